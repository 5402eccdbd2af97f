// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/engine"
	"dbconnector/pkg/engine/enginetest"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// Managed services give out their admin's rights through a role (rds_superuser_role, cloudsqlsuperuser). B36: init
// looks at the rights in force, not at how they were granted.
func TestAdminByRole(t *testing.T) {
	t.Parallel()
	for _, v := range bed.Versions {
		if v.Engine == bed.Postgres {
			continue // there, CREATEDB and CREATEROLE are not inherited
		}
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			server := newServer(t, v)
			rights := "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, PROCESS, CREATE USER"
			statements := []string{"CREATE ROLE managed", "CREATE USER byrole IDENTIFIED BY 'Test-1~byrole'", "GRANT managed TO byrole"}
			if v.Engine == bed.MySQL {
				rights += ", CREATE ROLE"
				statements = append(statements, "SET DEFAULT ROLE managed TO byrole")
			} else {
				statements = append(statements, "SET DEFAULT ROLE managed FOR byrole")
			}
			statements = append(statements, fmt.Sprintf("GRANT %s ON *.* TO managed WITH GRANT OPTION", rights))
			require.NoError(t, server.Exec(t.Context(), statements...))
			x := describe(server, "byrole", "Test-1~byrole").NewTenant()
			x.Ensure(t)
			x.Works(t)
			x.Session(t, x.Login(tenant.A))
			x.WithAdmin(t, func(admin engine.Admin) {
				for slot, want := range map[tenant.Slot]bool{tenant.A: true, tenant.B: false} {
					if used, err := admin.InUse(t.Context(), x.User(slot)); err != nil || used != want {
						t.Errorf("slot %s: in use %t, %v", slot, used, err)
					}
				}
			})
		})
	}
}

// People log in as themselves and work as the role of their team, so that the objects that one of them makes belong to
// all.
func TestAdminWithSetRole(t *testing.T) {
	t.Parallel()
	for _, v := range bed.Versions {
		if v.Engine != bed.Postgres {
			continue
		}
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			server := newServer(t, v)
			require.NoError(t, server.Exec(t.Context(), "CREATE ROLE team CREATEDB CREATEROLE", "CREATE ROLE carol LOGIN PASSWORD 'Test-1~carol' IN ROLE team",
				"ALTER ROLE carol SET role TO team"))
			x := describe(server, "carol", "Test-1~carol").NewTenant()
			x.Ensure(t)
			x.Works(t)
			if done := x.Ensure(t); len(done.Changes) > 0 {
				t.Errorf("again: changes %q", done.Changes)
			}
		})
	}
}

// CVE-2018-1058: a tenant owns what is in its database, and up to 14 every login may create in the database postgres.
// Code that a tenant leaves there must never run with the admin's rights. So the test's tenant shadows every operator
// that exists, for every pair of types that our statements could mean, with a function that records its caller.
func TestAdminRunsNoCodeOfTenants(t *testing.T) {
	t.Parallel()
	const trap = `
		DO $do$
		DECLARE l text; r text; op text;
		BEGIN
			CREATE SEQUENCE public.trapped;
			FOREACH l IN ARRAY ARRAY['oid', 'int4', 'int8', 'name', 'text', 'bool', '"char"', 'regrole'] LOOP
				FOREACH r IN ARRAY ARRAY['oid', 'int4', 'int8', 'name', 'text', 'bool', '"char"', 'regrole', 'name[]', 'text[]'] LOOP
					FOREACH op IN ARRAY ARRAY['=', '<>', '<', '>', '~', '||'] LOOP
						EXECUTE format('CREATE OR REPLACE FUNCTION public.trap(%s, %s) RETURNS bool LANGUAGE plpgsql AS $f$ BEGIN
							IF session_user <> %L THEN PERFORM pg_catalog.nextval(''public.trapped''); END IF; RETURN true; END $f$', l, r, session_user);
						EXECUTE format('CREATE OPERATOR public.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.trap)', op, l, r);
					END LOOP;
				END LOOP;
			END LOOP;
		END $do$`
	for _, v := range bed.Versions {
		if v.Engine != bed.Postgres {
			continue // without CREATE ROUTINE and CREATE VIEW a tenant can leave no code
		}
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			server := newServer(t, v)
			for name, s := range admins(t, server) {
				t.Run(name, func(t *testing.T) { trapped(t, server, s, v.Version < "15", trap) })
			}
		})
	}
}

func trapped(t *testing.T, server *bed.Server, s *enginetest.Server, everywhere bool, trap string) {
	x := s.NewTenant()
	x.Ensure(t)
	databases := []string{x.Database}
	if everywhere {
		databases = append(databases, "postgres")
	}
	for _, database := range databases {
		x.ExecAs(t, x.User(tenant.A), x.Passwords[tenant.A], database, trap)
		x.ExecAs(t, x.User(tenant.A), x.Passwords[tenant.A], database, "GRANT ALL ON SEQUENCE public.trapped TO PUBLIC")
	}
	// The test sets up damage to repair on every path, and a neighbour.
	x.MustExec(t, "", x.SQL([]string{"ALTER DATABASE {db} CONNECTION LIMIT 3", "ALTER ROLE {b} RESET role"})...)
	if s.Connector.User == server.AdminUser || !everywhere { // this admin may grant on the schema
		x.MustExec(t, x.Database, x.SQL([]string{"GRANT ALL ON SCHEMA public TO PUBLIC"})...)
	}
	x.Ensure(t)
	s.NewTenant().Ensure(t)
	x.WithAdmin(t, func(admin engine.Admin) {
		if _, err := admin.InUse(t.Context(), x.User(tenant.A)); err != nil {
			t.Fatal(err)
		}
		require.NoError(t, admin.SetPassword(t.Context(), x.User(tenant.B), x.Passwords[tenant.B]))
	})
	for _, database := range databases {
		got, err := lines(t.Context(), server, database, "SELECT is_called::text FROM public.trapped")
		require.NoError(t, err)
		if strings.Join(got, "") != "false" {
			t.Errorf("code of the tenant ran with the admin's rights in database %s", database)
		}
		x.MustExec(t, database, x.SQL([]string{"DROP OWNED BY {owner}, {a}"})...)
	}
}

// A neighbour's database is locked down and opened in one transaction. A client that asks at that moment sees the state
// before or after, and never a mixture, which would be a database that is open to every login.
func TestNeighbourIsBeingMade(t *testing.T) {
	t.Parallel()
	const times = 800
	for _, v := range bed.Versions {
		if v.Engine != bed.Postgres {
			continue
		}
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			s := admins(t, newServer(t, v))["cloud admin"]
			neighbour := s.NewTenant()
			neighbour.Ensure(t)
			unmade := []string{
				"ALTER DATABASE {db} ALLOW_CONNECTIONS false", // first: no check reports a closed database
				"REVOKE ALL ON DATABASE {db} FROM {a}, {b}; GRANT CONNECT, TEMPORARY ON DATABASE {db} TO PUBLIC",
			}
			made := "BEGIN; REVOKE ALL ON DATABASE {db} FROM PUBLIC; GRANT CONNECT, TEMPORARY ON DATABASE {db} TO {a}, {b}; " +
				"ALTER DATABASE {db} ALLOW_CONNECTIONS true; COMMIT"

			done := make(chan struct{})
			var wg sync.WaitGroup
			defer wg.Wait()
			for range 2 {
				x := s.NewTenant()
				x.Ensure(t)
				wg.Go(func() {
					for {
						select {
						case <-done:
							return
						default:
						}
						if _, err := x.Engine.Verify(t.Context(), x.Login(tenant.A), x.Names); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			defer close(done)
			for range times {
				neighbour.MustExec(t, "", neighbour.SQL(append(slices.Clone(unmade), made))...)
			}
		})
	}
}

// A rival, which is a sidecar or a person, has begun to change the tenant's logins when init comes to them. PostgreSQL
// refuses the later of two changes. This passes, so init tries again. (docs/failures.md B41)
func TestRivals(t *testing.T) {
	t.Parallel()
	server := newServer(t, bed.Version{Engine: bed.Postgres, Version: "17"})
	db, err := superuser(server)
	require.NoError(t, err)
	s := admins(t, server)["cloud admin"]
	// beside lets a rival begin, lets act run into the rival's change, and lets the rival end.
	beside := func(t *testing.T, rival string, act func() error) error {
		t.Helper()
		tx, err := db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		defer func() { _ = tx.Rollback() }()
		if _, err := tx.ExecContext(t.Context(), rival); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- act() }()
		enginetest.Eventually(t, "a wait for the rival", func() bool {
			got, err := lines(t.Context(), server, "", "SELECT 1 FROM pg_locks WHERE NOT granted")
			return err == nil && len(got) > 0
		})
		require.NoError(t, tx.Commit())
		return <-done
	}

	t.Run("changes a login whose password is set", func(t *testing.T) {
		x := s.NewTenant()
		x.Ensure(t)
		x.WithAdmin(t, func(admin engine.Admin) {
			login := x.Login(tenant.A)
			set := func() error { return admin.SetPassword(t.Context(), login.User, login.Password) }
			if err := beside(t, x.SQL([]string{"ALTER ROLE {a} CONNECTION LIMIT 50"})[0], set); !fault.Is(err, fault.Unavailable) ||
				!strings.Contains(err.Error(), "the server says: tuple concurrently updated") {
				t.Errorf("got class %d: %v", fault.Of(err), err)
			}
			assert.NoError(t, set(), "again")
			if err := beside(t, x.SQL([]string{"DROP OWNED BY {a}; DROP ROLE {a}"})[0], set); !fault.Is(err, fault.Unavailable) {
				t.Errorf("dropped: got class %d: %v", fault.Of(err), err)
			}
			// An admin who may not do it is told which right is missing.
			if err := admin.SetPassword(t.Context(), server.AdminUser, login.Password); !fault.Is(err, fault.Refused) ||
				!strings.Contains(err.Error(), "may not do this") {
				t.Errorf("without the right: got class %d: %v", fault.Of(err), err)
			}
		})
	})
	t.Run("drops a login that is set right", func(t *testing.T) {
		x := s.NewTenant()
		x.Ensure(t)
		x.MustExec(t, "", x.SQL([]string{"ALTER ROLE {a} RESET role"})...)
		x.WithAdmin(t, func(admin engine.Admin) {
			ensure := func() error {
				_, err := admin.Ensure(t.Context(), engine.Spec{Names: x.Names, Passwords: x.Passwords, ConnectionLimit: enginetest.Limit, Provisioned: true})
				return err
			}
			assert.NoError(t, beside(t, x.SQL([]string{"DROP OWNED BY {a}; DROP ROLE {a}"})[0], ensure))
		})
		x.Works(t)
	})
	t.Run("was interrupted while it dropped the database", func(t *testing.T) {
		x := s.NewTenant()
		x.Ensure(t)
		x.MustExec(t, "", "UPDATE pg_database SET datconnlimit = -2 WHERE datname = '"+x.Database+"'")
		remedy := "DROP DATABASE " + pgx.Identifier{x.Database}.Sanitize()
		x.WithAdmin(t, func(admin engine.Admin) {
			want := engine.Spec{Names: x.Names, Passwords: x.Passwords, ConnectionLimit: enginetest.Limit}
			for _, want.Provisioned = range []bool{true, false} {
				if _, err := admin.Ensure(t.Context(), want); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), remedy) {
					t.Errorf("provisioned %t: got class %d: %v", want.Provisioned, fault.Of(err), err)
				}
			}
			x.MustExec(t, "", remedy)
			if _, err := admin.Ensure(t.Context(), want); err != nil {
				t.Errorf("dropped in full: got class %d: %v", fault.Of(err), err)
			}
		})
		x.Works(t)
	})
}
