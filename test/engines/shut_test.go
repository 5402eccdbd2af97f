// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"dbconnector/pkg/engine"
	"dbconnector/pkg/engine/enginetest"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/bed/attack"
)

// S3: any login can keep any database of its server shut, and no right prevents it. An init that waits names the login
// that does it, and the statement that ends it. The test runs the statement as it is printed, and the next init
// succeeds.
func TestShut(t *testing.T) {
	t.Parallel()
	for _, v := range bed.Versions {
		if v.Engine != bed.Postgres {
			continue // nothing that a tenant may do takes a lock on a database, or on an account
		}
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			server := newServer(t, v)
			shut(t, server, admins(t, server)["cloud admin"])
		})
	}
}

// waits checks one try of init by the class and the words of its error.
func waits(t *testing.T, try func(ctx context.Context) error, words ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := try(ctx)
	if !fault.Is(err, fault.Unavailable) {
		t.Fatalf("got class %d: %v", fault.Of(err), err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("got %q, which does not say %q", err, word)
		}
	}
	return err.Error()
}

func shut(t *testing.T, server *bed.Server, s *enginetest.Server) {
	victim := newJob(t, s)
	record := victim.run(t)
	evil := s.NewTenant()
	evil.Ensure(t)
	login := evil.Login(tenant.A)
	pool, err := s.Open(login.User, login.Password.Reveal(), "template1")
	require.NoError(t, err)
	defer pool.Close()
	const end = `SELECT pg_terminate_backend\(\d+\)`
	ends := func(t *testing.T, in, said string) {
		t.Helper()
		require.NoError(t, server.ExecIn(t.Context(), in, printed(t, said, end)))
	}
	evils := fmt.Sprintf(`of login %q (another's) holds a lock`, login.User)

	enter := func(ctx context.Context) error {
		_, err := victim.Engine.HasData(ctx, record.Login(record.Active))
		return err
	}
	t.Run("the tenant's database", func(t *testing.T) {
		attack.Shut(t, pool, victim.Database)
		ends(t, "postgres", waits(t, enter, fmt.Sprintf("database %q is shut", victim.Database), evils))
		before := victim.used.Load()
		victim.run(t)
		if victim.used.Load() != before {
			t.Error("the connector was read: a restart has no need of it")
		}
	})
	t.Run("the database of the admins", func(t *testing.T) {
		attack.Shut(t, pool, "postgres")
		x := s.NewTenant()
		said := waits(t, func(ctx context.Context) error {
			_, err := x.TryEnsure(ctx)
			return err
		}, `database "postgres" is shut`, evils)
		ends(t, "template1", said)
		x.Ensure(t)
	})
	t.Run("the template", func(t *testing.T) {
		attack.Shut(t, pool, "template0")
		x := s.NewTenant()
		began := time.Now()
		_, err := x.TryEnsure(t.Context())
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), evils) {
			t.Fatalf("got class %d: %v", fault.Of(err), err)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("took %s", took)
		}
		ends(t, "postgres", err.Error())
		x.Ensure(t)
	})
	t.Run("and", func(t *testing.T) {
		t.Run("kine's table", func(t *testing.T) { // as by VACUUM FULL
			t.Parallel()
			j := newJob(t, s)
			r := j.run(t)
			own := j.Session(t, r.Login(tenant.A))
			for _, statement := range []string{"CREATE TABLE kine (id INTEGER)", "BEGIN; LOCK TABLE kine"} {
				if _, err := own.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			ends(t, "postgres", waits(t, func(ctx context.Context) error {
				_, err := j.Engine.HasData(ctx, r.Login(tenant.B))
				return err
			}, fmt.Sprintf("table kine of database %q is locked", j.Database), fmt.Sprintf(`of login %q (another's) holds a lock`, j.User(tenant.A))))
			j.run(t)
		})
		t.Run("the tenant's lock", func(t *testing.T) { // every login sees it in pg_locks while it is held
			t.Parallel()
			x := s.NewTenant()
			postgres := s.Pool(t, login.User, login.Password, "postgres")
			if _, err := postgres.ExecContext(t.Context(), "SELECT pg_advisory_lock(hashtextextended($1, 0))", x.Lock); err != nil {
				t.Fatal(err)
			}
			_, err := x.TryEnsure(t.Context())
			if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), evils) {
				t.Fatalf("got class %d: %v", fault.Of(err), err)
			}
			ends(t, "postgres", err.Error())
			x.Ensure(t)
		})
		t.Run("a login itself", func(t *testing.T) { // its row in the catalog, which a repair must change
			t.Parallel()
			x := s.NewTenant()
			x.Ensure(t)
			own := x.Session(t, x.Login(tenant.A))
			if _, err := own.ExecContext(
				t.Context(),
				"SET ROLE NONE; BEGIN; ALTER ROLE CURRENT_USER SET work_mem = '4MB'; ALTER ROLE CURRENT_USER PASSWORD NULL",
			); err != nil {
				t.Fatal(err)
			}
			x.WithAdmin(t, func(admin engine.Admin) {
				err := admin.SetPassword(t.Context(), x.User(tenant.A), x.Passwords[tenant.A])
				if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), fmt.Sprintf(`of login %q (another's) holds a lock`, x.User(tenant.A))) {
					t.Fatalf("got class %d: %v", fault.Of(err), err)
				}
				ends(t, "postgres", err.Error())
				require.NoError(t, admin.SetPassword(t.Context(), x.User(tenant.A), x.Passwords[tenant.A]))
			})
		})
	})
	t.Run("no other database is open to the login", func(t *testing.T) {
		release := attack.Shut(t, pool, victim.Database)
		exec(t, server, "REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC")
		waits(t, enter, fmt.Sprintf("login %q may enter no other database to ask which", victim.User(tenant.A)))
		release()
		exec(t, server, "GRANT CONNECT ON DATABASE postgres, template1 TO PUBLIC")
		victim.run(t)
	})
	t.Run("the whole server", func(t *testing.T) {
		release := attack.ShutAll(t, pool)
		waits(t, enter, "no login gets through to any database of this server")
		release()
		victim.run(t)
	})
}
