// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/engine"
	"dbconnector/pkg/engine/enginetest"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// eachPostgres runs a test on every version, with both kinds of admin, who share a server.
func eachPostgres(t *testing.T, test func(t *testing.T, server *bed.Server, s *enginetest.Server)) {
	t.Helper()
	t.Parallel()
	for _, v := range bed.Versions {
		if v.Engine != bed.Postgres {
			continue
		}
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			server := newServer(t, v)
			for name, s := range admins(t, server) {
				t.Run(name, func(t *testing.T) { test(t, server, s) })
			}
		})
	}
}

// selfGrants says whether a login may grant itself to others.
func selfGrants(server *bed.Server) bool { return server.Version < "15" }

// asLogin runs statements as a login that has left the owner role, and ends the session.
func asLogin(t *testing.T, x *enginetest.Tenant, slot tenant.Slot, statements ...string) {
	t.Helper()
	db, err := x.Open(x.User(slot), x.Passwords[slot].Reveal(), x.Database)
	require.NoError(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, statement := range append([]string{"SET ROLE NONE"}, statements...) {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// S1: up to 14 a login may grant itself to any other. A membership that is forced on a neighbour changes nothing for
// the neighbour. Its provisioning and its repair report a warning and no more, however often the attacker does it.
func TestMembershipForcedOnNeighbour(t *testing.T) {
	eachPostgres(t, func(t *testing.T, server *bed.Server, s *enginetest.Server) {
		attacker, victim := s.NewTenant(), s.NewTenant()
		attacker.Ensure(t)
		victim.Ensure(t)
		whole := victim.Look(t)
		force := []string{}
		for _, role := range []string{victim.User(tenant.A), victim.User(tenant.B), victim.Owner} {
			force = append(force, fmt.Sprintf("GRANT %s TO %s", attacker.User(tenant.A), role))
		}
		plant := func() {
			if selfGrants(server) {
				asLogin(t, attacker, tenant.A, force...)
			} else { // as an upgrade leaves it
				attacker.ExecAs(t, s.Connector.User, s.Connector.Password, "", force...)
			}
		}
		plant()
		victim.Works(t) // before any repair
		for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
			assert.NoErrorf(t, s.Engine.Ready(t.Context(), victim.Login(slot), victim.Names), "slot %s", slot)
		}
		victim.Ensure(t)
		if now := victim.Look(t); now != whole {
			t.Errorf("got\n%s\nwant\n%s", now, whole)
		}
		plant()
		attacker.Ensure(t) // the attacker's own repair takes it back, too
		if now := victim.Look(t); now != whole {
			t.Errorf("after the attacker's repair: got\n%s\nwant\n%s", now, whole)
		}
		victim.Works(t)
		attacker.Works(t)
	})
}

// S1: after an upgrade from 14 or older to 16 or later a membership that was forced on a neighbour is the superuser's,
// and is inherited. An admin who is no superuser cannot take it back. init does not refuse. It names the statement that
// takes the membership back; the statement works and is enough.
func TestMembershipOfTheSuperuser(t *testing.T) {
	eachPostgres(t, func(t *testing.T, server *bed.Server, s *enginetest.Server) {
		if server.Version < "16" || s.Connector.User == server.AdminUser {
			return // an admin who may change a role may revoke its memberships
		}
		attacker, victim := s.NewTenant(), s.NewTenant()
		attacker.Ensure(t)
		victim.Ensure(t)
		whole := victim.Look(t)
		for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
			exec(t, server, fmt.Sprintf("GRANT %s TO %s WITH INHERIT TRUE", attacker.User(tenant.A), victim.User(slot)))
		}
		done := victim.Ensure(t)
		victim.Works(t)
		for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
			exec(t, server, printed(t, strings.Join(done.Warnings, "\n"), fmt.Sprintf(`REVOKE "%s" FROM "%s" GRANTED BY "%s" CASCADE`,
				attacker.User(tenant.A), victim.User(slot), server.AdminUser)))
		}
		done = victim.Ensure(t)
		if now := victim.Look(t); now != whole || strings.Contains(strings.Join(done.Warnings, "\n"), "is a member of") {
			t.Errorf("got\n%s\nwant\n%s\nwarnings %q", now, whole, done.Warnings)
		}
	})
}

// S1, S11: an attacker who once had a login's password has made its own login a member of that login. The membership
// does not open the database to the attacker. The sidecar sees it and sends init, and init takes it back. init also
// reports an open session that is left, with the way to end it.
func TestMembershipOutlivesNoPassword(t *testing.T) {
	eachPostgres(t, func(t *testing.T, server *bed.Server, s *enginetest.Server) {
		attacker, victim := s.NewTenant(), s.NewTenant()
		attacker.Ensure(t)
		victim.Ensure(t)
		grants := []string{fmt.Sprintf("GRANT %s TO %s WITH ADMIN OPTION", victim.User(tenant.A), attacker.User(tenant.A))}
		if selfGrants(server) {
			asLogin(t, victim, tenant.A, grants...)
		} else {
			victim.ExecAs(t, s.Connector.User, s.Connector.Password, "", grants...)
		}
		intruder := attacker.Login(tenant.A)
		intruder.Database = victim.Database
		enter := func() error { return s.Engine.Login(t.Context(), intruder) }
		if err := enter(); !fault.Is(err, fault.NoAccess) && server.Version < "16" {
			t.Errorf("the attacker in the victim's database: %v", err)
		}
		session := attacker.Session(t, attacker.Login(tenant.A))
		if _, err := session.ExecContext(t.Context(), "SET ROLE "+victim.User(tenant.A)); err != nil {
			t.Errorf("the attacker could not become the victim, so this test shows nothing: %v", err)
		}
		err := s.Engine.Ready(t.Context(), victim.Login(tenant.A), victim.Names)
		if !fault.Is(err, fault.NoAccess) || !strings.Contains(err.Error(), attacker.User(tenant.A)) {
			t.Errorf("the sidecar's question: %v", err)
		}
		victim.Works(t)
		done := victim.Ensure(t)
		if !slices.Contains(done.Changes, "revoke foreign membership") {
			t.Errorf("changes %q", done.Changes)
		}
		assert.NoError(t, s.Engine.Ready(t.Context(), victim.Login(tenant.A), victim.Names))
		if err := enter(); !fault.Is(err, fault.NoAccess) {
			t.Errorf("the attacker in the victim's database: %v", err)
		}
		// The statement that the warning names ends what is left.
		exec(
			t, server,
			printed(t, strings.Join(done.Warnings, "\n"), `SELECT pg_terminate_backend\(pid\) FROM pg_stat_activity WHERE usename = '`+attacker.User(tenant.A)+`'`),
		)
		enginetest.Eventually(t, "the end of the attacker's sessions", func() bool {
			left, err := lines(t.Context(), server, "", "SELECT pid::text FROM pg_stat_activity WHERE usename = $1", attacker.User(tenant.A))
			return err == nil && len(left) == 0
		})
		db, err := server.Open(attacker.User(tenant.A), attacker.Passwords[tenant.A].Reveal(), attacker.Database)
		require.NoError(t, err)
		defer db.Close()
		if _, err := db.ExecContext(t.Context(), "SET ROLE "+victim.User(tenant.A)); err == nil {
			t.Error("the attacker is still a member")
		}
		victim.Works(t)
	})
}

// S1, S6: settings and memberships that the owner of the old password left behind go with the password, without an
// admin: settings on every version, and members where a login grants itself.
func TestPasswordTakesAllWithIt(t *testing.T) {
	eachPostgres(t, func(t *testing.T, server *bed.Server, s *enginetest.Server) {
		x, other := s.NewTenant(), s.NewTenant()
		x.Ensure(t)
		other.Ensure(t)
		whole := x.Look(t)
		own := []string{
			"ALTER ROLE CURRENT_USER SET default_transaction_read_only = on", "ALTER ROLE CURRENT_USER SET search_path = pg_temp",
			"ALTER ROLE CURRENT_USER SET statement_timeout = 1", "ALTER ROLE CURRENT_USER RESET role",
			x.SQL([]string{"ALTER ROLE CURRENT_USER IN DATABASE {db} SET statement_timeout = 1"})[0],
			x.SQL([]string{"ALTER ROLE CURRENT_USER IN DATABASE {db} SET role = 'none'"})[0],
			"ALTER ROLE CURRENT_USER SET local_preload_libraries = 'nosuch'",
			"ALTER ROLE CURRENT_USER SET transaction_read_only = on", "ALTER ROLE CURRENT_USER SET session_authorization = '" + x.User(tenant.B) + "'",
		}
		if server.Version >= "14" {
			own = append(own, "ALTER ROLE CURRENT_USER SET idle_session_timeout = 1")
		}
		if server.Version >= "17" {
			own = append(own, "ALTER ROLE CURRENT_USER SET transaction_timeout = 1")
		}
		if selfGrants(server) {
			own = append(own, fmt.Sprintf("GRANT %s TO %s", x.User(tenant.B), other.User(tenant.A)))
		}
		asLogin(t, x, tenant.B, own...)
		self, err := s.Engine.TenantSession(t.Context(), x.Login(tenant.B))
		require.NoError(t, err)
		defer self.Close()
		enginetest.Eventually(t, "to be alone", func() bool {
			sessions, err := self.Sessions(t.Context())
			require.NoError(t, err)
			return sessions.Count == 0
		})
		x.Passwords[tenant.B] = tenant.NewPassword()
		s.Secret(x.Passwords[tenant.B])
		require.NoError(t, self.SetPassword(t.Context(), x.Passwords[tenant.B]))
		assert.NoError(t, s.Engine.Ready(t.Context(), x.Login(tenant.B), x.Names))
		// From 16 on, a setting of one transaction cannot be reset, and does nothing.
		exec(t, server, x.SQL([]string{
			"UPDATE pg_db_role_setting SET setconfig = " +
				"(SELECT array_agg(e) FROM unnest(setconfig) e WHERE e !~ '^transaction_read_only') WHERE setrole = '{b}'::regrole",
		})...)
		if now := x.Look(t); now != whole {
			t.Errorf("got\n%s\nwant\n%s", now, whole)
		}
		x.Works(t)
	})
}

// S6: a login may set any parameter for itself, to any value. A sidecar still gets in, sees its sessions, and takes the
// setting back.
func TestEveryOwnSetting(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"13", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			server := newServer(t, bed.Version{Engine: bed.Postgres, Version: version})
			s := admins(t, server)["cloud admin"]
			x := s.NewTenant()
			x.Ensure(t)
			tried := 0
			for _, v := range extremes(t, server, "name NOT LIKE 'transaction\\_%' OR name = 'transaction_timeout'") {
				// The superuser sets it, because no value before keeps the superuser out.
				if err := server.Exec(t.Context(), fmt.Sprintf(`ALTER ROLE %s SET "%s" = '%s'`, x.User(tenant.B), v.name, v.value)); err != nil {
					continue // no such value
				}
				tried++
				self, err := s.Engine.TenantSession(t.Context(), x.Login(tenant.B))
				if err != nil {
					t.Errorf("%s = %q: %v", v.name, v.value, err)
					exec(t, server, fmt.Sprintf(`ALTER ROLE %s RESET "%s"`, x.User(tenant.B), v.name))
					continue
				}
				if _, err := self.Sessions(t.Context()); err != nil {
					t.Errorf("%s = %q: %v", v.name, v.value, err)
				}
				assert.NoErrorf(t, self.SetPassword(t.Context(), x.Passwords[tenant.B]), "%s = %q", v.name, v.value)
				self.Close()
				assert.NoErrorf(t, s.Engine.Ready(t.Context(), x.Login(tenant.B), x.Names), "%s = %q: afterwards", v.name, v.value)
			}
			t.Logf("%d values", tried)
			if tried < 300 {
				t.Errorf("only %d values could be set", tried)
			}
		})
	}
}

type parameter struct{ name, value string }

// extremes are the parameters that every login may set, each with values at the ends of its range.
func extremes(t *testing.T, server *bed.Server, which string) []parameter {
	t.Helper()
	db, err := superuser(server)
	require.NoError(t, err)
	rows, err := db.QueryContext(t.Context(), `
		SELECT name, v FROM pg_settings CROSS JOIN LATERAL (
			SELECT DISTINCT v FROM unnest(CASE vartype
				WHEN 'bool' THEN ARRAY['on', 'off']
				WHEN 'enum' THEN enumvals
				WHEN 'string' THEN ARRAY['', 'nosuch', 'pg_temp', '"$user"', 'SQL_ASCII', 'LATIN1', 'EUC_JP', 'German', 'view']
				ELSE ARRAY[min_val, CASE vartype WHEN 'integer' THEN (min_val::bigint + 1)::text END, `+
		`CASE vartype WHEN 'integer' THEN (min_val::bigint + 2)::text END, max_val] END) v
			WHERE v IS NOT NULL) x
		WHERE context = 'user' AND (`+which+`) ORDER BY 1, 2`)
	require.NoError(t, err)
	defer rows.Close()
	var out []parameter
	for rows.Next() {
		var p parameter
		require.NoError(t, rows.Scan(&p.name, &p.value))
		out = append(out, p)
	}
	require.NoError(t, rows.Err())
	return out
}

// F11: a server's defaults must not keep a control plane from working. The test runs kine's work with each parameter
// that every login may set, at the ends of its range. init sets a parameter that breaks kine for the tenant's database,
// or leaves it visible on purpose.
func TestSettingsThatKineDependsOn(t *testing.T) {
	t.Parallel()
	visible := []string{
		"default_transaction_read_only", "transaction_read_only", // an admin who sets it means it
		"transaction_isolation",                                       // of one transaction, and not a default of a server
		"idle_session_timeout", "idle_in_transaction_session_timeout", // they protect the server, and kine notices only values of milliseconds
	}
	for _, version := range []string{"13", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			server := newServer(t, bed.Version{Engine: bed.Postgres, Version: version})
			x := admins(t, server)["cloud admin"].NewTenant()
			x.Ensure(t)
			pinned, err := lines(
				t.Context(), server, "",
				"SELECT split_part(e, '=', 1) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase, unnest(setconfig) e WHERE setrole = 0 AND datname = $1",
				x.Database,
			)
			require.NoError(t, err)
			exec(t, server, "CREATE TABLESPACE nosuch LOCATION '"+tablespace(t, server)+"'")
			broken := map[string]string{}
			for _, v := range extremes(t, server, "true") {
				if err := kine(t.Context(), server, x, v); err != nil {
					broken[v.name] = fmt.Sprintf("%s: %v", v.value, err)
				}
			}
			for name, why := range broken {
				t.Logf("%s = %s", name, why)
				if !slices.Contains(pinned, name) && !slices.Contains(visible, name) {
					t.Errorf("%s = %s", name, why)
				}
			}
			for _, name := range []string{"search_path", "default_transaction_isolation", "statement_timeout", "default_tablespace"} {
				if broken[name] == "" {
					t.Errorf("nothing breaks with another %s: what stands in for kine does too little", name)
				}
			}
		})
	}
}

// kine does the work of kine in a session with one parameter set. It returns nil where the parameter cannot be set.
func kine(ctx context.Context, server *bed.Server, x *enginetest.Tenant, v parameter) error {
	db, err := server.Open(x.User(tenant.A), x.Passwords[tenant.A].Reveal(), x.Database)
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(2)
	var conns [2]*sql.Conn
	for i := range conns {
		if conns[i], err = db.Conn(ctx); err != nil {
			return err
		}
		defer conns[i].Close()
		if _, err := conns[i].ExecContext(ctx, `SELECT set_config($1, $2, false)`, v.name, v.value); err != nil {
			return nil //nolint:nilerr // no such value
		}
	}
	defer func() {
		if clean, err := server.Admin(x.Database); err == nil {
			_, _ = clean.ExecContext(ctx, "DROP TABLE IF EXISTS public.kine")
			_ = clean.Close()
		}
	}()
	for _, statement := range []string{
		`CREATE TABLE IF NOT EXISTS kine (id BIGSERIAL PRIMARY KEY, name text COLLATE "C", created INTEGER, deleted INTEGER, ` +
			`create_revision BIGINT, prev_revision BIGINT, lease INTEGER, value bytea, old_value bytea)`,
		`CREATE INDEX IF NOT EXISTS kine_name_index ON kine (name)`,
		`CREATE UNIQUE INDEX IF NOT EXISTS kine_name_prev_revision_uindex ON kine (name, prev_revision)`,
	} {
		if _, err := conns[0].ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	for i := range 3 {
		if _, err := conns[i%2].ExecContext(ctx, `INSERT INTO kine (name, created, deleted, create_revision, prev_revision, lease, value) `+
			`VALUES ($1, 1, 0, 0, $2, 0, $3)`,
			`/registry/Ω\`+"'", i, []byte{0, 1, 0xff, '\\'}); err != nil {
			return err
		}
	}
	var value []byte
	if err := conns[1].QueryRowContext(
		ctx, `SELECT value FROM public.kine WHERE name = $1 ORDER BY id DESC LIMIT 1`, `/registry/Ω\`+"'",
	).Scan(&value); err != nil {
		return err
	}
	if string(value) != "\x00\x01\xff\\" {
		return fmt.Errorf("read %q", value)
	}
	return compactions(ctx, conns)
}

// compactions runs two compactions that meet, as those of two replicas do.
func compactions(ctx context.Context, conns [2]*sql.Conn) error {
	var txs [2]*sql.Tx
	for i, conn := range conns {
		var err error
		if txs[i], err = conn.BeginTx(ctx, nil); err != nil {
			return err
		}
		defer txs[i].Rollback() //nolint:errcheck // it has been committed, or has failed
		var n int
		if err := txs[i].QueryRowContext(ctx, "SELECT count(*) FROM kine").Scan(&n); err != nil {
			return err
		}
	}
	for _, tx := range txs {
		if _, err := tx.ExecContext(ctx, "UPDATE kine SET prev_revision = prev_revision + 10 WHERE id = (SELECT max(id) FROM kine)"); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM kine WHERE id < (SELECT max(id) FROM kine)"); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return err
		}
	}
	return nil
}

// tablespace is a directory for a tablespace.
func tablespace(t *testing.T, server *bed.Server) string {
	t.Helper()
	info, err := os.Stat(server.DataDir)
	require.NoError(t, err)
	owner := info.Sys().(*syscall.Stat_t) //nolint:forcetypeassert // on Linux it is
	dir := filepath.Join(filepath.Dir(server.DataDir), "space")
	require.NoError(t, errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, int(owner.Uid), int(owner.Gid))))
	return dir
}

// S4: the connection limit of a tenant holds in every database, for each of its logins; init applies a changed limit.
func TestLimitHoldsElsewhere(t *testing.T) {
	eachPostgres(t, func(t *testing.T, _ *bed.Server, s *enginetest.Server) {
		x := s.NewTenant()
		x.ConnectionLimit = 3
		x.Ensure(t)
		x.ConnectionLimit = 2
		x.Ensure(t)
		elsewhere := x.Login(tenant.A)
		elsewhere.Database = "postgres"
		for range x.ConnectionLimit {
			x.Session(t, elsewhere)
		}
		if err := s.Engine.Login(t.Context(), elsewhere); !fault.Is(err, fault.Unavailable) {
			t.Errorf("one session more: %v", err)
		}
		// During a rolling update both are in use.
		assert.NoError(t, s.Engine.Login(t.Context(), x.Login(tenant.B)), "the other login")
	})
}

// S10: operators and functions that a login made do not answer in place of the server's when the sidecar or init checks
// the login.
func TestVerifyAsksTheServer(t *testing.T) {
	eachPostgres(t, func(t *testing.T, server *bed.Server, s *enginetest.Server) {
		if s.Connector.User != server.AdminUser {
			return // every tenant's run reports an open database, so one at a time
		}
		x, other := s.NewTenant(), s.NewTenant()
		x.Ensure(t)
		other.Ensure(t)
		x.ExecAs(t, x.User(tenant.A), x.Passwords[tenant.A], x.Database,
			"CREATE FUNCTION public.no(name, text) RETURNS bool LANGUAGE sql AS 'SELECT false'",
			"CREATE FUNCTION public.no(name, name) RETURNS bool LANGUAGE sql AS 'SELECT false'",
			"CREATE OPERATOR public.~ (LEFTARG = name, RIGHTARG = text, FUNCTION = public.no)",
			"CREATE OPERATOR public.<> (LEFTARG = name, RIGHTARG = name, FUNCTION = public.no)",
			"SET ROLE NONE", "ALTER ROLE CURRENT_USER SET search_path = public, pg_catalog")
		exec(t, server, "GRANT CONNECT ON DATABASE "+other.Database+" TO PUBLIC")
		if _, err := s.Engine.Verify(t.Context(), x.Login(tenant.A), x.Names); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), other.Database) {
			t.Errorf("got %v", err)
		}
		exec(t, server, "REVOKE CONNECT ON DATABASE "+other.Database+" FROM PUBLIC")
	})
}

// S11: roles with the tenant's names and without its mark belong to others until a record or a person says otherwise,
// because their maker may know their passwords. The way out that the message names works.
func TestUnmarkedRolesAreNotAdopted(t *testing.T) {
	eachPostgres(t, func(t *testing.T, _ *bed.Server, s *enginetest.Server) {
		x := s.NewTenant()
		x.ExecAs(t, s.Connector.User, s.Connector.Password, "", x.SQL([]string{
			"CREATE ROLE {owner}", "CREATE ROLE {a} LOGIN PASSWORD 'known'", "CREATE ROLE {db}m", "GRANT {a} TO {db}m WITH ADMIN OPTION",
		})...)
		whole := x.Look(t)
		_, err := x.TryEnsure(t.Context())
		if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), x.Database+`m" may administer`) {
			t.Fatalf("got %v", err)
		}
		if now := x.Look(t); now != whole {
			t.Errorf("something was changed: got\n%s\nwant\n%s", now, whole)
		}
		_, out, _ := strings.Cut(err.Error(), "mark it: ")
		x.ExecAs(t, s.Connector.User, s.Connector.Password, "", strings.Split(out, "; ")...)
		x.ExecAs(t, s.Connector.User, s.Connector.Password, "", fmt.Sprintf("ALTER ROLE %s PASSWORD '%s'", x.User(tenant.A), x.Passwords[tenant.A].Reveal()))
		x.Ensure(t)
		x.Works(t)
	})
}

// F14: the admin has lost ADMIN OPTION on the tenant's roles, as after a dump and restore. init names the statement
// that gives it back; the statement works and is enough.
func TestAdminLostAdminOption(t *testing.T) {
	eachPostgres(t, func(t *testing.T, server *bed.Server, s *enginetest.Server) {
		if server.Version < "16" || s.Connector.User == server.AdminUser {
			return // there, CREATEROLE is enough
		}
		x := s.NewTenant()
		x.Ensure(t)
		whole := x.Look(t)
		admin := `"` + s.Connector.User + `"`
		x.MustExec(t, "", x.SQL([]string{
			"REVOKE {owner} FROM {a}, {b} GRANTED BY " + admin, "REVOKE {owner}, {a}, {b} FROM " + admin + " CASCADE",
			"GRANT {owner} TO {a}, {b}", "ALTER ROLE {a} RESET role",
		})...)
		_, err := x.TryEnsure(t.Context())
		if !fault.Is(err, fault.Refused) {
			t.Fatalf("got %v", err)
		}
		for _, role := range []string{x.Owner, x.User(tenant.A), x.User(tenant.B)} {
			exec(t, server, printed(t, err.Error(), fmt.Sprintf(`GRANT "%s" TO "cloud@admin" WITH ADMIN OPTION`, role)))
		}
		x.Ensure(t)
		x.Works(t)
		for _, line := range strings.Split(whole, "\n") {
			if !strings.HasPrefix(line, "member ") && !strings.Contains(x.Look(t), line) {
				t.Errorf("missing: %s", line)
			}
		}
		x.WithAdmin(t, func(admin engine.Admin) {
			assert.NoError(t, admin.SetPassword(t.Context(), x.User(tenant.A), x.Passwords[tenant.A]))
			x.MustExec(t, "", x.SQL([]string{`REVOKE {a} FROM "cloud@admin" CASCADE`})...)
			err := admin.SetPassword(t.Context(), x.User(tenant.A), x.Passwords[tenant.A])
			if !fault.Is(err, fault.Refused) {
				t.Fatalf("got %v", err)
			}
			exec(t, server, printed(t, err.Error(), `GRANT "`+x.User(tenant.A)+`" TO "cloud@admin" WITH ADMIN OPTION`))
			assert.NoError(t, admin.SetPassword(t.Context(), x.User(tenant.A), x.Passwords[tenant.A]))
		})
	})
}

// S6: a statement that runs a tenant's code can fail with any code and any words. Neither decides how init classifies
// the error, and the words do not get into the log. A library that a login cannot load keeps the login out with the
// server's words; init repairs that.
func TestTenantAnswersForTheServer(t *testing.T) {
	eachPostgres(t, func(t *testing.T, server *bed.Server, s *enginetest.Server) {
		x := s.NewTenant()
		x.ConnectionLimit = 50 // the pools below stay open
		x.Ensure(t)
		for _, code := range []string{"28P01", "3D000", "42501", "55000", "28000", "25006", "57P01", "08P01", "P0001"} {
			x.ExecAs(t, x.User(tenant.A), x.Passwords[tenant.A], x.Database,
				"DROP VIEW IF EXISTS public.kine",
				fmt.Sprintf(
					`CREATE OR REPLACE FUNCTION public.lie() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION E'their words \x1b[2J' USING ERRCODE = '%s'; END $$`,
					code,
				),
				"CREATE VIEW public.kine AS SELECT public.lie() AS id")
			data, err := s.Engine.HasData(t.Context(), x.Login(tenant.A))
			if code == "42501" { // looks the same as another role's table
				if err != nil || !data {
					t.Errorf("%s: %t, %v", code, data, err)
				}
				continue
			}
			if fault.Of(err) != fault.Unknown || err == nil || strings.Contains(err.Error(), "their words") {
				t.Errorf("%s: class %d: %v", code, fault.Of(err), err)
			}
		}
		j := newJob(t, s)
		r := j.run(t)
		exec(t, server, fmt.Sprintf(`ALTER ROLE %s SET local_preload_libraries = E'no\x1bsuch'`, j.User(r.Active)))
		if err := s.Engine.Login(t.Context(), r.Login(r.Active)); err == nil || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("got %v", err)
		}
		j.run(t)
		if j.used.Load() != 2 {
			t.Errorf("the connector was read %d times", j.used.Load())
		}
	})
}

// F11: on servers that were hardened, or serve other programs, a tenant's sessions still have the settings that kine
// needs.
func TestHardenedServer(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"13", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			server := newServer(t, bed.Version{Engine: bed.Postgres, Version: version})
			x := admins(t, server)["cloud admin"].NewTenant()
			exec(t, server, `ALTER SYSTEM SET search_path = "$user"`, `ALTER SYSTEM SET default_transaction_isolation = 'serializable'`,
				`ALTER SYSTEM SET statement_timeout = '3s'`, "SELECT pg_reload_conf()")
			enginetest.Eventually(t, "the server to read its settings", func() bool {
				got, err := lines(t.Context(), server, "template1", "SHOW search_path")
				return err == nil && strings.Join(got, "") == `"$user"`
			})
			x.Ensure(t)
			x.Works(t)
			assert.NoError(t, kine(t.Context(), server, x, parameter{"application_name", "kine"}))
		})
	}
}
