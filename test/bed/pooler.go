// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Pooler is a PgBouncer in front of a PostgreSQL server, for all its databases and logins. It has the server's certificate.
type Pooler struct {
	// Port is on the loopback interface, and in the name of its socket in Dir, where clients need no TLS.
	Port int
	Dir  string

	process *process
	owner   io.Closer
}

// NewPooler is [StartPooler] for a test, which ends it.
func NewPooler(tb testing.TB, s *Server, mode string, more ...string) (port int) {
	tb.Helper()
	p, err := StartPooler(tb.Context(), s, mode, more...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("log of PgBouncer:\n%s", tail(p.process.text()))
		}
		p.Stop()
	})
	return p.Port
}

// PID is its process.
func (p *Pooler) PID() int { return p.process.cmd.Process.Pid }

// Stop ends it and removes what it left.
func (p *Pooler) Stop() {
	if p.process != nil {
		p.process.kill()
	}
	_ = os.RemoveAll(p.Dir)
	_ = p.owner.Close()
}

// StartPooler starts PgBouncer. mode is its pool_mode; more are further lines of its configuration.
func StartPooler(ctx context.Context, s *Server, mode string, more ...string) (_ *Pooler, err error) {
	b := &Pooler{}
	if b.Dir, b.owner, err = tempDir("pgbouncer"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.Stop()
		}
	}()
	if b.Port, err = freePort(); err != nil {
		return nil, err
	}
	key, err := os.ReadFile(s.file("tls.key"))
	if err != nil {
		return nil, fmt.Errorf("reading the server's key: %w", err)
	}
	file := func(name string) string { return filepath.Join(b.Dir, name) }
	lines := append([]string{
		"[databases]", fmt.Sprintf("* = host=%s port=%d", s.Host, s.Port),
		"[pgbouncer]", "listen_addr = 127.0.0.1", "listen_port = " + strconv.Itoa(b.Port), "unix_socket_dir = " + b.Dir, "pool_mode = " + mode,
		"auth_type = scram-sha-256", "auth_file = " + file("users"), "auth_user = " + s.AdminUser, "auth_dbname = template1",
		"auth_query = SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1",
		"server_tls_sslmode = require", "client_tls_sslmode = allow",
		"client_tls_cert_file = " + s.file("tls.crt"), "client_tls_key_file = " + file("tls.key"),
	}, more...)
	if err := errors.Join(
		os.WriteFile(file("users"), []byte(fmt.Sprintf("%q %q\n", s.AdminUser, s.AdminPassword)), 0o600),
		os.WriteFile(file("tls.key"), key, 0o600),
		os.WriteFile(file("pgbouncer.ini"), []byte(strings.Join(lines, "\n")+"\n"), 0o600),
		give(b.Dir, file("users"), file("tls.key"), file("pgbouncer.ini")),
	); err != nil {
		return nil, fmt.Errorf("configuring PgBouncer: %w", err)
	}
	cmd, err := Client(ctx, "pgbouncer", file("pgbouncer.ini"))
	if err != nil {
		return nil, err
	}
	if b.process, err = startProcess(file("log"), true, cmd.Args...); err != nil {
		return nil, err
	}
	return b, b.process.ready(ctx, func(ctx context.Context) error {
		config, err := pgx.ParseConfig(fmt.Sprintf("postgres://127.0.0.1:%d/template1?sslmode=disable", b.Port))
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
