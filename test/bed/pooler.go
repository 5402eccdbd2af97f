// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// NewPooler starts PgBouncer in front of a PostgreSQL server, for all its databases and logins, and ends it with the test. mode
// is its pool_mode; more are further lines of its configuration. It has the server's certificate.
func NewPooler(tb testing.TB, s *Server, mode string, more ...string) (port int) {
	tb.Helper()
	port, err := startPooler(tb.Context(), tb, s, mode, more)
	if err != nil {
		tb.Fatal(err)
	}
	return port
}

func startPooler(ctx context.Context, tb testing.TB, s *Server, mode string, more []string) (int, error) {
	dir, owner, err := tempDir("pgbouncer")
	if err != nil {
		return 0, err
	}
	tb.Cleanup(func() {
		_ = os.RemoveAll(dir)
		_ = owner.Close()
	})
	port, err := freePort()
	if err != nil {
		return 0, err
	}
	key, err := os.ReadFile(s.file("tls.key"))
	if err != nil {
		return 0, fmt.Errorf("reading the server's key: %w", err)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	lines := append([]string{
		"[databases]", fmt.Sprintf("* = host=%s port=%d", s.Host, s.Port),
		"[pgbouncer]", "listen_addr = 127.0.0.1", "listen_port = " + strconv.Itoa(port), "unix_socket_dir =", "pool_mode = " + mode,
		"auth_type = scram-sha-256", "auth_file = " + file("users"), "auth_user = " + s.AdminUser, "auth_dbname = template1",
		"auth_query = SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1",
		"server_tls_sslmode = require", "client_tls_sslmode = allow",
		"client_tls_cert_file = " + s.file("tls.crt"), "client_tls_key_file = " + file("tls.key"),
	}, more...)
	if err := errors.Join(
		os.WriteFile(file("users"), []byte(fmt.Sprintf("%q %q\n", s.AdminUser, s.AdminPassword)), 0o600),
		os.WriteFile(file("tls.key"), key, 0o600),
		os.WriteFile(file("pgbouncer.ini"), []byte(strings.Join(lines, "\n")+"\n"), 0o600),
		give(dir, file("users"), file("tls.key"), file("pgbouncer.ini")),
	); err != nil {
		return 0, fmt.Errorf("configuring PgBouncer: %w", err)
	}
	cmd, err := Client(ctx, "pgbouncer", file("pgbouncer.ini"))
	if err != nil {
		return 0, err
	}
	p, err := startProcess(file("log"), true, cmd.Args...)
	if err != nil {
		return 0, err
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("log of PgBouncer:\n%s", tail(p.text()))
		}
		p.kill()
	})
	return port, p.ready(ctx, func(ctx context.Context) error {
		config, err := pgx.ParseConfig(fmt.Sprintf("postgres://127.0.0.1:%d/template1?sslmode=disable", port))
		if err != nil {
			return Permanent(err)
		}
		config.User, config.Password = s.AdminUser, s.AdminPassword
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
}
