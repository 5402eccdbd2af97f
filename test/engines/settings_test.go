// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine/enginetest"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// TestServerWide covers settings and states that concern every tenant of a server, and so needs a server of its own.
// Its steps follow each other. (F12, F33)
func TestServerWide(t *testing.T) {
	t.Parallel()
	for _, v := range bed.Versions {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			server := newServer(t, v)
			if v.Engine == bed.Postgres {
				postgresWide(t, server)
			} else {
				mysqlWide(t, server)
			}
		})
	}
}

// The machine of an init that holds the tenant's lock vanishes, and no packet says so. No admin has to end its session
// by hand. The wait takes half a minute, so the test runs on one version of each engine, on all at once. PostgreSQL 13
// notices only through TCP, which a proxy cannot show, because the proxy's system answers in place of the lost machine.
func TestLockOfTheDead(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, v := range []bed.Version{{Engine: bed.Postgres, Version: "18"}, {Engine: bed.MySQL, Version: "9.7"}, {Engine: bed.MariaDB, Version: "11.8"}} {
		server := newServer(t, v)
		s := describe(server, server.AdminUser, server.AdminPassword)
		x := s.NewTenant()
		proxy := bed.NewProxy(t, server.Addr())
		far := s.Connector.Server
		far.Port = uint16(proxy.Port())
		dead, err := open.Engine(far, program).Admin(t.Context(), s.Connector.User, s.Connector.Password)
		require.NoError(t, err)
		require.NoError(t, dead.Lock(t.Context(), x.Names))
		proxy.BlackHole()
		wg.Go(func() {
			defer dead.Close()
			defer proxy.Cut()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			// The test does as init does: it waits for the lock, again and again, as long as it may.
			assert.NoError(t, bed.Wait(ctx, func(context.Context) error {
				_, err := x.TryEnsure(ctx)
				if err != nil && !fault.Is(err, fault.Unavailable) {
					return bed.Permanent(err)
				}
				return err
			}), v)
		})
	}
}

// exec runs statements as the superuser, each on its own.
func exec(t *testing.T, s *bed.Server, statements ...string) {
	t.Helper()
	require.NoError(t, s.Exec(t.Context(), statements...))
}

func postgresWide(t *testing.T, server *bed.Server) {
	both := admins(t, server)
	modes(t, both["cloud admin"])

	// B25: init ends the session of a stranger that connected while the database was open, also if an init that was killed
	// at once closed the database. A login that an admin let in by name stays.
	for name, s := range both {
		for how, closes := range map[string]string{"": "", ", closed by an init that was killed": "REVOKE CONNECT ON DATABASE {db} FROM PUBLIC"} {
			t.Run("sessions of strangers as "+name+how, func(t *testing.T) {
				x, stranger := s.NewTenant(), s.NewTenant()
				x.Ensure(t)
				stranger.Ensure(t)
				backup := "backup" + strings.ToLower(rand.Text()[:8])
				x.MustExec(t, "", x.SQL([]string{
					"GRANT CONNECT ON DATABASE {db} TO PUBLIC",
					"CREATE ROLE {backup} LOGIN PASSWORD 'Backup-1~password'", "GRANT CONNECT ON DATABASE {db} TO {backup}",
				}, "{backup}", backup)...)
				own := x.Session(t, x.Login(tenant.A))
				named := x.Session(t, tenant.Login{User: backup, Password: "Backup-1~password", Database: x.Database})
				foreign := stranger.Login(tenant.A)
				foreign.Database = x.Database
				session := stranger.Session(t, foreign)
				conn, err := session.Conn(t.Context())
				require.NoError(t, err)
				if closes != "" {
					x.MustExec(t, "", x.SQL([]string{closes})...)
				}
				done := x.Ensure(t)
				_, err = conn.ExecContext(t.Context(), "SELECT 1")
				warnings := strings.Join(done.Warnings, "\n")
				warned := strings.Contains(warnings, "foreign sessions")
				if (err != nil) == warned {
					t.Errorf("the stranger's session: %v; warned: %t (%q)", err, warned, done.Warnings)
				}
				if name == "superuser" && err == nil {
					t.Error("the stranger is still there")
				}
				if warned { // the statement that it names ends them
					exec(t, server, printed(t, warnings, `SELECT pg_terminate_backend[^\n]*`))
					if _, err = conn.ExecContext(t.Context(), "SELECT 1"); err == nil {
						t.Error("the stranger is still there")
					}
				}
				if name == "superuser" && closes != "" { // a role that is dropped leaves its session
					gone := "gone" + strings.ToLower(rand.Text()[:8])
					x.MustExec(t, "", x.SQL([]string{"CREATE ROLE {gone} LOGIN PASSWORD 'Gone-1~password'", "GRANT CONNECT ON DATABASE {db} TO {gone}"}, "{gone}", gone)...)
					ghost := x.Session(t, tenant.Login{User: gone, Password: "Gone-1~password", Database: x.Database})
					conn, err := ghost.Conn(t.Context())
					require.NoError(t, err)
					x.MustExec(t, "", x.SQL([]string{"REVOKE CONNECT ON DATABASE {db} FROM {gone}", "DROP ROLE {gone}"}, "{gone}", gone)...)
					x.Ensure(t)
					if _, err := conn.ExecContext(t.Context(), "SELECT 1"); err == nil {
						t.Error("the session of a role that is gone is still there")
					}
				}
				for who, db := range map[string]*sql.DB{"the tenant": own, "who was let in by name": named} {
					if _, err := db.ExecContext(t.Context(), "SELECT 1"); err != nil {
						t.Errorf("the session of %s: %v", who, err)
					}
				}
			})
		}
	}

	// B24: init reports everything that is open to every login of the server, with statements after which the admin still
	// gets in.
	t.Run("open doors", func(t *testing.T) {
		exec(t, server, `CREATE DATABASE "Others"`)
		x := both["cloud admin"].NewTenant()
		warnings := strings.Join(x.Ensure(t).Warnings, "\n")
		exec(t, server, printed(t, warnings, `GRANT CONNECT ON DATABASE "postgres" TO "cloud@admin"; REVOKE CONNECT ON DATABASE "postgres" FROM PUBLIC`))
		for _, name := range []string{"Others", "template1"} {
			exec(t, server, printed(t, warnings, `REVOKE CONNECT ON DATABASE "`+name+`" FROM PUBLIC`))
		}
		if done := x.Ensure(t); len(done.Warnings) > 0 {
			t.Errorf("closed: warnings %q", done.Warnings)
		}
		x.Works(t)
		both["cloud admin"].NewTenant().Ensure(t)
	})

	// kine compares bytes. The locale that initdb --locale-provider=icu leaves in template0 is in every database that does
	// not set its own.
	if server.Version >= "15" {
		t.Run("server made with ICU", func(t *testing.T) {
			column := "datlocale"
			if server.Version < "17" {
				column = "daticulocale"
			}
			exec(t, server, "UPDATE pg_database SET datlocprovider = 'i', "+column+" = 'en-US' WHERE datname = 'template0'")
			x := both["cloud admin"].NewTenant()
			x.Ensure(t)
			if got, err := lines(t.Context(), server, x.Database, "SELECT 'B' < 'a'"); err != nil || strings.Join(got, "") != "true" {
				t.Errorf("B before a: %q, %v", got, err)
			}
		})
	}

	// Promise 2: a database that goes while its roles are repaired is not replaced by an empty one.
	t.Run("database dropped meanwhile", func(t *testing.T) {
		x := both["superuser"].NewTenant()
		x.Ensure(t)
		x.MustExec(t, "", x.SQL([]string{"ALTER ROLE {b} RESET role"})...)
		db, err := server.Admin("")
		require.NoError(t, err)
		defer db.Close()
		tx, err := db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		if _, err := tx.ExecContext(t.Context(), x.SQL([]string{"ALTER ROLE {b} SET work_mem = '1MB'"})[0]); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := x.TryEnsure(t.Context())
			ended <- err
		}()
		enginetest.Eventually(t, "Ensure to wait for the role", func() bool {
			waiting, err := lines(t.Context(), server, "", "SELECT pid::text FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = $1", program)
			return err == nil && len(waiting) > 0
		})
		x.MustExec(t, "", x.SQL(x.DropDatabase)...)
		require.NoError(t, tx.Rollback())
		if err := <-ended; !fault.Is(err, fault.NoDatabase) {
			t.Errorf("got %v (class %d)", err, fault.Of(err))
		}
		if there, err := lines(t.Context(), server, "", "SELECT datname FROM pg_database WHERE datname = $1", x.Database); err != nil || len(there) > 0 {
			t.Errorf("the database was made again: %q, %v", there, err)
		}
	})

	existing := newJob(t, both["superuser"])
	existing.run(t)
	t.Run("read-only by setting", func(t *testing.T) { // B47
		exec(t, server, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
		for _, s := range both {
			j := newJob(t, s)
			enginetest.Eventually(t, "the server to read its settings", func() bool {
				admin, err := s.Engine.Admin(t.Context(), s.Connector.User, s.Connector.Password)
				if err == nil {
					admin.Close()
				}
				return err != nil
			})
			j.refused(t, "read-only", "default_transaction_read_only")
		}
		existing.refused(t, "the server is read-only (default_transaction_read_only)") // F12: a restart reads only, and notices all the same
		db, err := server.Admin("")
		require.NoError(t, err)
		defer db.Close()
		conn, err := db.Conn(t.Context())
		require.NoError(t, err)
		for _, statement := range []string{"SET default_transaction_read_only = off", "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"} {
			if _, err := conn.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		enginetest.Eventually(t, "the server to read its settings", func() bool {
			_, err := existing.try(t)
			return err == nil
		})
	})
	t.Run("one database read-only", func(t *testing.T) { // F12
		exec(t, server, existing.SQL([]string{`ALTER DATABASE {db} SET default_transaction_read_only = on`})...)
		exec(t, server, printed(t, existing.refused(t, "is read-only"), `ALTER DATABASE "[a-z0-9]+" RESET default_transaction_read_only`))
		existing.run(t)
	})
	t.Run("one login read-only", func(t *testing.T) { // F12: a setting that a tenant makes for itself leads to the admin path
		login := existing.published[0].Login(tenant.A)
		exec(t, server, existing.SQL([]string{`ALTER ROLE {a} SET default_transaction_read_only = on`})...)
		if _, err := existing.Engine.HasData(t.Context(), login); !fault.Is(err, fault.NoAccess) {
			t.Errorf("got class %d: %v", fault.Of(err), err)
		}
		exec(t, server, existing.SQL([]string{`ALTER ROLE {a} RESET default_transaction_read_only`})...)
		existing.run(t)
	})
	t.Run("standby", func(t *testing.T) {
		// A server with this file recovers without an end and takes no writes, as a standby does.
		file := filepath.Join(server.DataDir, "standby.signal")
		if err := os.WriteFile(file, nil, 0o644); err != nil { // the server only looks whether it is there
			t.Fatal(err)
		}
		require.NoError(t, server.Restart(t.Context()))
		for _, s := range both {
			newJob(t, s).refused(t, "standby", "primary")
		}
		// A control plane that was there before must not start on it, either.
		existing.refused(t, "standby", "primary")
	})
}

func mysqlWide(t *testing.T, server *bed.Server) {
	both := admins(t, server)
	modes(t, both["cloud admin"])

	// An anonymous account would also shadow an admin at '%', so here the admins are at this host.
	for _, s := range both {
		exec(t, server, fmt.Sprintf("RENAME USER '%s'@'%%' TO '%[1]s'@'127.0.0.1'", s.Connector.User))
	}
	exec(t, server, "FLUSH PRIVILEGES") // MariaDB sorts accounts only then

	for name, s := range both {
		// B6: the server takes the more specific host first, and asks for that account's password.
		for what, shadow := range map[string]string{
			"an account of the same name":  `'{a}'@'127.0.0.1'`,
			"an account for a network":     `'{b}'@'127.0.0.0/255.0.0.0'`,
			"an account with a wildcard":   `'{a}'@'127.%'`,
			"an anonymous account":         `''@'127.0.0.1'`,
			"an anonymous network account": `''@'127.0.0.%'`,
		} {
			t.Run(what+" shadows as "+name, func(t *testing.T) {
				j := newJob(t, s)
				shadow := j.SQL([]string{shadow})[0]
				exec(t, server, "CREATE USER "+shadow+" IDENTIFIED BY 'Shadow-1~password'")
				way := printed(t, j.refused(t, "shadows"), `DROP USER '[^']*'@'[^']*'`)
				j.ExecAs(t, s.Connector.User, s.Connector.Password, "", way)
				j.run(t)
				j.verified(t)
			})
		}
		t.Run("an anonymous account elsewhere is no shadow as "+name, func(t *testing.T) {
			exec(t, server, `CREATE USER ''@'192.0.2.1' IDENTIFIED BY 'Shadow-1~password'`, `CREATE USER ''@'%' IDENTIFIED BY 'Shadow-1~password'`)
			newJob(t, s).run(t)
			exec(t, server, `DROP USER ''@'192.0.2.1', ''@'%'`)
		})
	}

	// B48 is the rule of this server: without TLS there is no way in, and init says so.
	t.Run("clear text", func(t *testing.T) {
		s := both["superuser"]
		c := s.Connector.Server
		c.SSLMode, c.CA = dbserver.Disable, ""
		_, err := open.Engine(c, program).Admin(t.Context(), s.Connector.User, s.Connector.Password)
		if err == nil || !strings.Contains(err.Error(), "TLS") && !strings.Contains(err.Error(), "secure transport") {
			t.Errorf("got %v, want a word about TLS", err)
		}
	})

	settings := []string{"read_only"}
	if server.Engine == bed.MySQL {
		settings = append(settings, "super_read_only")
	}
	for _, setting := range settings {
		t.Run(setting, func(t *testing.T) {
			exec(t, server, "SET GLOBAL "+setting+" = ON")
			for _, s := range both {
				newJob(t, s).refused(t, "read-only", setting, "primary")
			}
			exec(t, server, "SET GLOBAL "+setting+" = OFF", "SET GLOBAL read_only = OFF")
			newJob(t, both["cloud admin"]).run(t)
		})
	}
}

// TestWithoutTLS uses a server without TLS: the connector must say so (promise 6, B9).
func TestWithoutTLS(t *testing.T) {
	t.Parallel()
	for _, v := range bed.Versions {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			server := bed.NewServer(t, v.Engine, v.Version, bed.Options{NoTLS: true, LogStatements: true})
			s := describe(server, server.AdminUser, server.AdminPassword)
			for _, mode := range []dbserver.SSLMode{dbserver.Require, dbserver.VerifyCA, dbserver.VerifyFull} {
				with(t, s, mode, "").refused(t, "does not offer TLS", "sslMode")
			}
			j := with(t, s, dbserver.Disable, "")
			j.run(t)
			j.verified(t)
			log, err := s.Log() // here, where TLS does not hide what is sent
			require.NoError(t, err)
			s.NoSecretIn(t, "the server's log", log)
		})
	}
}

// with is a new job with another way of securing the connection.
func with(t *testing.T, s *enginetest.Server, mode dbserver.SSLMode, ca string) *job {
	t.Helper()
	j := newJob(t, s)
	c := s.Connector
	c.Server.SSLMode, c.Server.CA = mode, ca
	j.Connector = func(context.Context) (connector.Connector, error) { return c, nil }
	return j
}

// modes are the ways of securing the connection to a server that has TLS.
func modes(t *testing.T, s *enginetest.Server) {
	t.Helper()
	ca := s.Connector.Server.CA
	for _, tc := range []struct {
		reason string
		mode   dbserver.SSLMode
		ca     string
		want   string // a part of the refusal; "" where it works
	}{
		{"encrypted, not verified", dbserver.Require, "", ""},
		{"certificate verified, name not", dbserver.VerifyCA, ca, ""},
		{"verified in full", dbserver.VerifyFull, ca, ""},
		{"verified by the system, which does not know this CA", dbserver.VerifyFull, "", "certificate is not accepted"},
		{"certificate verified by the system", dbserver.VerifyCA, "", "certificate is not accepted"},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			j := with(t, s, tc.mode, tc.ca)
			if tc.want != "" {
				j.refused(t, tc.want)
				return
			}
			j.run(t)
			j.verified(t)
		})
	}
}
