// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"dbconnector/pkg/engine"
	"dbconnector/pkg/engine/enginetest"
	"dbconnector/pkg/fault"
	"dbconnector/test/bed"
)

// F33: each statement that a message about PostgreSQL recommends is run as it is printed, in the state in which it is
// recommended, and the next init succeeds. TestShut runs the advice of waits for locks, TestRivals the advice for a
// database that an interrupted DROP DATABASE left, and TestServerWide the warnings about open databases.
func TestAdvice(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name    string
		in      string // the database in which state and advice are run, as the superuser; {db} is the tenant's
		state   []string
		pattern string
		after   bool // the tenant is there before
	}{
		{
			name: "the admin may not enter the database postgres", in: "template1",
			state: []string{`REVOKE CONNECT ON DATABASE postgres FROM PUBLIC`}, pattern: `GRANT CONNECT ON DATABASE "postgres" TO "cloud@admin"`,
		},
		{
			name: "the database postgres is closed", in: "template1",
			state: []string{`ALTER DATABASE postgres ALLOW_CONNECTIONS false`}, pattern: `ALTER DATABASE "postgres" ALLOW_CONNECTIONS true`,
		},
		{
			name: "the admin lacks attributes", in: "postgres",
			state: []string{`ALTER ROLE "cloud@admin" NOCREATEDB NOCREATEROLE`}, pattern: `ALTER ROLE "cloud@admin" CREATEDB CREATEROLE`,
		},
		{
			name: "the mark is gone from a database without a record", in: "postgres", after: true,
			state: []string{`COMMENT ON DATABASE {db} IS NULL`}, pattern: `COMMENT ON DATABASE "{db}" IS '[^']+'`,
		},
		{
			name: "schema public is gone", in: "{db}", after: true,
			state: []string{`DROP SCHEMA public CASCADE`}, pattern: `CREATE SCHEMA public AUTHORIZATION "cloud@admin"`,
		},
	}
	for _, v := range bed.Versions {
		if v.Engine != bed.Postgres {
			continue
		}
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			server := newServer(t, v)
			s := admins(t, server)["cloud admin"]
			for _, tc := range cases {
				t.Run(tc.name, func(t *testing.T) {
					x := s.NewTenant()
					if tc.after {
						x.Ensure(t)
						x.Provisioned = false // the record was lost
					}
					in := x.SQL([]string{tc.in})[0]
					require.NoError(t, server.ExecIn(t.Context(), in, x.SQL(tc.state)...))
					_, err := x.TryEnsure(t.Context())
					require.Error(t, err, "no refusal")
					way := printed(t, err.Error(), x.SQL([]string{tc.pattern})[0])
					require.NoError(t, server.ExecIn(t.Context(), in, way))
					x.Ensure(t)
					x.Works(t)
				})
			}
		})
	}
}

// F4: some services have no database postgres. All inits of a server still choose the same database.
func TestMaintenanceDatabase(t *testing.T) {
	t.Parallel()
	for _, v := range bed.Versions {
		if v.Engine != bed.Postgres {
			continue
		}
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			server := newServer(t, v)
			// PostgreSQL renames only a database without sessions, so this test does not use the superuser's pool of the other
			// tests.
			must := func(t *testing.T, in string, statements ...string) {
				t.Helper()
				require.NoError(t, server.ExecIn(t.Context(), in, statements...))
			}
			user, password, err := server.CloudAdmin(t.Context(), "cloud")
			require.NoError(t, err)
			s := describe(server, user, password)
			for _, next := range []struct{ old, name, in string }{{"postgres", "defaultdb", "defaultdb"}, {"defaultdb", "rdb", "template1"}} {
				enginetest.Eventually(t, "the database to have no sessions", func() bool {
					return server.ExecIn(t.Context(), "template1", `ALTER DATABASE "`+next.old+`" RENAME TO "`+next.name+`"`) == nil
				})
				newJob(t, s).run(t)
				oneLock(t, server, s.NewTenant(), next.in)
			}
			// init does not skip a database that exists and is not open, because other inits may be in it.
			must(t, "template1", `CREATE DATABASE defaultdb`, `CREATE DATABASE postgres`, `REVOKE CONNECT ON DATABASE postgres FROM PUBLIC`)
			newJob(t, s).refused(t, `GRANT CONNECT ON DATABASE "postgres" TO "cloud"`)
			// An init that is in the next database notices one that is made meanwhile, once it has its lock.
			must(t, "template1", `DROP DATABASE postgres`)
			x := s.NewTenant()
			x.WithAdmin(t, func(admin engine.Admin) {
				must(t, "template1", `CREATE DATABASE postgres`)
				if err := admin.Lock(t.Context(), x.Names); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), `database "postgres" was made meanwhile`) {
					t.Errorf("got class %d: %v", fault.Of(err), err)
				}
			})
			x.Ensure(t)
		})
	}
}

// oneLock lets two admins want a tenant's lock: one has it, in the database in which it belongs, and the other waits.
func oneLock(t *testing.T, server *bed.Server, x *enginetest.Tenant, in string) {
	t.Helper()
	x.WithAdmin(t, func(admin engine.Admin) {
		require.NoError(t, admin.Lock(t.Context(), x.Names))
		where, err := server.Query(
			t.Context(), "template1",
			"SELECT string_agg(datname, ',') FROM pg_locks JOIN pg_database d ON d.oid = database WHERE locktype = 'advisory'",
		)
		if err != nil || where != in {
			t.Errorf("locks are held in %q, want %q (%v)", where, in, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := x.TryEnsure(ctx); !fault.Is(err, fault.Unavailable) {
			t.Errorf("a second admin got the lock: %v", err)
		}
	})
}

// F18: the answers of the server itself, or of a user's code in it, to our statements, where the test can cause them on
// demand.
func TestAnswers(t *testing.T) {
	t.Parallel()
	server := newServer(t, bed.Version{Engine: bed.Postgres, Version: "17"})
	s := admins(t, server)["cloud admin"]
	for _, tc := range []struct {
		code, in string
		sql      []string
		class    fault.Class
	}{
		{"P0001", "{db}", []string{
			`REVOKE ALL ON SCHEMA public FROM {owner}`,
			`CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'ask the platform team'; END $$`,
			`CREATE EVENT TRIGGER no ON ddl_command_start WHEN TAG IN ('GRANT') EXECUTE FUNCTION no()`,
		}, fault.Refused},
		{"39P03", "{db}", []string{
			`REVOKE ALL ON SCHEMA public FROM {owner}`,
			`CREATE FUNCTION odd() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '39P03'; END $$`,
			`CREATE EVENT TRIGGER odd ON ddl_command_start WHEN TAG IN ('GRANT') EXECUTE FUNCTION odd()`,
		}, fault.Refused},
		{"58P01", "postgres", []string{`ALTER ROLE "{admin}" SET local_preload_libraries = 'nosuch'`}, fault.Unknown},
	} {
		t.Run(tc.code, func(t *testing.T) {
			x := s.NewTenant()
			x.Ensure(t)
			require.NoError(t, server.ExecIn(t.Context(), x.SQL([]string{tc.in})[0], x.SQL(tc.sql)...))
			_, err := x.TryEnsure(t.Context())
			if fault.Of(err) != tc.class || !strings.Contains(err.Error(), "SQLSTATE "+tc.code) {
				t.Errorf("got class %d: %v", fault.Of(err), err)
			}
		})
	}
}
