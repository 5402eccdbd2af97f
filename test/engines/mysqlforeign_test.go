// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/engine/enginetest"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/provision"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// eachMySQL runs a test for every version of MySQL and MariaDB.
func eachMySQL(t *testing.T, test func(t *testing.T, v bed.Version)) {
	t.Helper()
	for _, v := range bed.Versions {
		if v.Engine != bed.Postgres {
			t.Run(v.String(), func(t *testing.T) {
				t.Parallel()
				test(t, v)
			})
		}
	}
}

// (F9, F10) Server settings under which kine fails, all at once: its revisions would have gaps, its lists would end
// early, its writes would never be committed. The DSN sets the ones that matter for kine's own sessions, and init works
// under them, too.
func TestHostileSettings(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, v bed.Version) {
		server := newServer(t, v)
		s := describe(server, server.AdminUser, server.AdminPassword)
		exec(t, server, "SET GLOBAL auto_increment_increment = 3", "SET GLOBAL auto_increment_offset = 2", "SET GLOBAL autocommit = 0",
			"SET GLOBAL completion_type = 1", "SET GLOBAL default_storage_engine = MyISAM", "SET GLOBAL sql_safe_updates = 1",
			"SET GLOBAL sql_select_limit = 1", "SET GLOBAL unique_checks = 0", "SET GLOBAL sql_mode = 'ANSI,NO_AUTO_VALUE_ON_ZERO'",
			"SET GLOBAL init_connect = 'SET autocommit = 0, sql_select_limit = 1'")
		j := newJob(t, s)
		r := j.run(t)
		j.verified(t)
		j.run(t) // and a restart
		exec(t, server, "SET GLOBAL max_join_size = 1")
		dsn, err := j.Engine.DSN(r.Login(r.Active))
		require.NoError(t, err)
		open := func(dsn string) *sql.DB {
			db, err := rig.OpenDSN(dsn, server.CA)
			require.NoError(t, err)
			t.Cleanup(func() { _ = db.Close() })
			db.SetMaxOpenConns(1)
			return db
		}
		bare, _, _ := strings.Cut(dsn, "?")
		db, plain := open(dsn), open(bare)

		var seen string
		require.NoError(t, db.QueryRowContext(t.Context(), `SELECT CONCAT_WS(' ', @@autocommit + 0, @@auto_increment_increment,
			@@completion_type, @@default_storage_engine, @@sql_big_selects + 0, @@sql_mode, @@sql_safe_updates + 0, @@sql_select_limit,
			@@unique_checks + 0)`).Scan(&seen))
		if want := "1 1 NO_CHAIN InnoDB 1 STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION 0 18446744073709551615 1"; seen != want {
			t.Errorf("kine's session has %q, want %q", seen, want)
		}
		kineOnHostile(t, server, j, dsn, db)
		snapshots(t, v, db, plain, open(dsn))
	})
}

// kineOnHostile runs kine, whose revisions follow each other.
func kineOnHostile(t *testing.T, server *bed.Server, j *job, dsn string, db *sql.DB) {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(ca, server.CA, 0o600))
	kine := bed.NewKine(t, dsn, ca)
	bed.Eventually(t, time.Minute, func(ctx context.Context) error {
		var rows, last int
		err := db.QueryRowContext(ctx, "SELECT COUNT(*), MAX(id) FROM kine").Scan(&rows, &last)
		if err == nil && rows < 2 {
			err = fmt.Errorf("kine has written %d rows", rows)
		}
		if err == nil && rows != last {
			err = bed.Permanent(fmt.Errorf("%d rows up to revision %d", rows, last))
		}
		return err
	})
	require.NoError(t, kine.Stop(t.Context()))
	// The superuser's session would be under the server's settings; kine's own sees its table, too.
	var is string
	const query = "SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? AND TABLE_NAME = 'kine'"
	if err := db.QueryRowContext(t.Context(), query, j.Database).Scan(&is); err != nil || is != "InnoDB" {
		t.Errorf("kine's table is of engine %q, %v", is, err)
	}
}

// snapshots repeats kine's compaction beside another writer: it deletes a row that was changed since its transaction
// began to read. MariaDB from 11.6.2 on answers error 1020 to a session with default settings.
func snapshots(t *testing.T, v bed.Version, db, plain, other *sql.DB) {
	t.Helper()
	exec := func(db interface {
		ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	}, statements ...string,
	) {
		t.Helper()
		for _, statement := range statements {
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
	}
	exec(other, "CREATE TABLE snapshots (id INTEGER PRIMARY KEY, v INTEGER)", "INSERT INTO snapshots VALUES (1, 1), (2, 1)")
	for id, c := range []struct {
		name  string
		db    *sql.DB
		fails bool
	}{{"by the DSN", db, false}, {"as it comes", plain, v.Engine == bed.MariaDB && v.Version == "11.8"}} {
		conn, err := c.db.Conn(t.Context())
		require.NoError(t, err)
		exec(conn, "START TRANSACTION", "SELECT * FROM snapshots WHERE id = 1")
		exec(other, fmt.Sprintf("UPDATE snapshots SET v = 2 WHERE id = %d", id+1))
		_, err = conn.ExecContext(t.Context(), fmt.Sprintf("DELETE FROM snapshots WHERE id = %d", id+1))
		var said *driver.MySQLError
		if errors.As(err, &said) != c.fails || c.fails && said.Number != 1020 {
			t.Errorf("a session %s: %v", c.name, err)
		}
		exec(conn, "ROLLBACK")
		_ = conn.Close()
	}
}

// (F12) A server, or the tenant's database alone, that takes no writes: a control plane that is started on it ends at once, again and
// again. So init refuses a restart, too, and says what to do.
func TestNoWrites(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, v bed.Version) {
		server := newServer(t, v)
		settings := map[string]string{"read_only": "read_only", "tx_read_only": "tx_read_only"}
		if v.Engine == bed.MySQL {
			settings = map[string]string{"read_only": "read_only", "super_read_only": "super_read_only", "transaction_read_only": "transaction_read_only"}
		}
		both := admins(t, server)
		existing := newJob(t, both["cloud admin"])
		r := existing.run(t)
		for setting := range settings {
			exec(t, server, "SET GLOBAL "+setting+" = ON")
			existing.refused(t, "read-only", setting, "primary")
			for _, s := range both {
				newJob(t, s).refused(t, "read-only", setting, "primary")
			}
			exec(t, server, "SET SESSION TRANSACTION READ WRITE") // for those that the pool keeps
			require.NoError(t, off(t.Context(), server, setting))
			existing.run(t)
		}
		if v.Engine == bed.MySQL {
			// A tenant can do that to itself, because it may ALTER. An admin can do it to move the tenant.
			existing.ExecAs(t, r.Login(r.Active).User, r.Login(r.Active).Password, r.Database, "ALTER DATABASE "+r.Database+" READ ONLY = 1")
			way := printed(t, existing.refused(t, r.Database), `ALTER DATABASE .* READ ONLY = 0`) // (F33)
			existing.ExecAs(t, existing.Tenant.Connector.User, existing.Tenant.Connector.Password, "", way)
			existing.run(t)
		}
	})
}

// off switches a setting off again.
func off(ctx context.Context, server *bed.Server, setting string) error {
	err := server.Exec(ctx, "SET GLOBAL "+setting+" = OFF")
	if err == nil && setting == "super_read_only" { // which switches the other one on
		err = server.Exec(ctx, "SET GLOBAL read_only = OFF")
	}
	return err
}

// (F6, F13) Accounts that cannot log in, whatever the password: their plugin is gone, or takes none, or the server has
// blocked them for wrong passwords. A new password repairs them all, so init sets one.
func TestAccountsPutRight(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, v bed.Version) {
		server := newServer(t, v)
		type broken struct {
			name  string
			sql   []string
			wrong int // number of wrong passwords
		}
		cases := []broken{
			{"(F6) a plugin that is gone", []string{
				"UPDATE mysql.user SET plugin = 'mysql_native_password', authentication_string = " +
					"'*54958E764CE10E50764C2EECBB71D01F08549980' WHERE User IN ('{a}', '{b}')",
				"FLUSH PRIVILEGES",
			}, 0},
			{"(F13) blocked for good", []string{"ALTER USER {a} FAILED_LOGIN_ATTEMPTS 3 PASSWORD_LOCK_TIME UNBOUNDED"}, 3},
		}
		if v.Engine == bed.MariaDB {
			exec(t, server, "SET GLOBAL max_password_errors = 3")
			cases = []broken{
				{"(F6) a plugin that is gone", []string{
					`UPDATE mysql.global_priv SET Priv = JSON_SET(Priv, '$.plugin', 'ed25519') WHERE User IN ('{a}', '{b}')`, "FLUSH PRIVILEGES",
				}, 0},
				{"(F6) a plugin that takes no password", []string{"ALTER USER {a} IDENTIFIED VIA unix_socket"}, 0},
				{"(F13) blocked until an admin unlocks it", nil, 4},
			}
		}
		for who, s := range admins(t, server) {
			for _, c := range cases {
				t.Run(c.name+" as "+who, func(t *testing.T) {
					j := newJob(t, s)
					r := j.run(t)
					j.MustExec(t, "", j.SQL(c.sql)...)
					guess := r.Login(tenant.A)
					guess.Password = tenant.NewPassword()
					for range c.wrong {
						if err := j.Engine.Login(t.Context(), guess); !fault.Is(err, fault.WrongPassword) {
							t.Fatal(err)
						}
					}
					if err := j.Engine.Login(t.Context(), r.Login(tenant.A)); !fault.Is(err, fault.WrongPassword) {
						t.Fatalf("not broken: %v", err)
					}
					j.idle(t)
					r = j.run(t)
					wantActive(t, r, tenant.A, 2)
					j.known(t, r, tenant.A, true)
					j.known(t, r, tenant.B, true)
				})
			}
		}
	})
}

// (F13) A record that is older than the server, on a server that blocks accounts for wrong passwords: while init waits
// for a free login, it does not block the logins that control planes use.
func TestInitBlocksNobody(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, v bed.Version) {
		server := newServer(t, v)
		s := describe(server, server.AdminUser, server.AdminPassword)
		j := newJob(t, s)
		j.run(t)
		if v.Engine == bed.MariaDB {
			exec(t, server, "SET GLOBAL max_password_errors = 3")
		} else {
			j.MustExec(t, "", j.SQL([]string{"ALTER USER {a}, {b} FAILED_LOGIN_ATTEMPTS 3 PASSWORD_LOCK_TIME UNBOUNDED"})...)
		}
		logins := map[tenant.Slot]tenant.Login{}
		for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
			login := tenant.Login{User: j.User(slot), Password: tenant.NewPassword(), Database: j.Database}
			j.Secret(login.Password)
			identified := "IDENTIFIED BY '" + login.Password.Reveal() + "'"
			j.MustExec(t, "", j.SQL([]string{"ALTER USER {" + string(slot) + "} " + identified})...)
			logins[slot] = login
		}
		var pods []*sql.DB
		for _, login := range logins {
			pods = append(pods, j.Session(t, login))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second) // several tries
		defer cancel()
		_, err := provision.Run(ctx, j.Init, func(s dbserver.Server) engine.Engine { return open.Engine(s, program) })
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "waiting until one is free") {
			t.Errorf("class %d: %v", fault.Of(err), err)
		}
		for slot, login := range logins {
			assert.NoErrorf(t, j.Engine.Login(t.Context(), login), "the control plane on slot %s", slot)
		}
		for _, pod := range pods {
			require.NoError(t, pod.Close())
		}
	})
}

// (F5) A server that forbids GET_LOCK, as Percona XtraDB Cluster does with pxc_strict_mode=ENFORCING: init goes on
// without it and says so. Twenty inits start at once for one tenant, and each hands over the same credential.
func TestLocksForbidden(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, v bed.Version) {
		server := bed.NewServer(t, v.Engine, v.Version, bed.Options{NoTLS: true, MaxConnections: 500})
		user, password, err := server.CloudAdmin(t.Context(), "cloudadmin")
		require.NoError(t, err)
		const message = "Percona-XtraDB-Cluster prohibits use of GET_LOCK with pxc_strict_mode = ENFORCING"
		s := describe(server, user, password)
		s.Connector.Server.Port = uint16(bed.ForbidMySQL(t, server.Addr(), "GET_LOCK", 1105, message))
		s.Engine = open.Engine(s.Connector.Server, program)
		j := newJob(t, s)
		var all sync.WaitGroup
		var warned atomic.Int32
		for range 20 {
			all.Go(func() {
				result, err := j.try(t)
				assert.NoError(t, err)
				for _, warning := range result.Outcome.Warnings {
					if strings.Contains(warning, message) {
						warned.Add(1)
					}
				}
			})
		}
		all.Wait()
		if warned.Load() == 0 {
			t.Error("no run warned of it")
		}
		for _, r := range j.published {
			if r.Login(r.Active) != j.published[0].Login(tenant.A) {
				t.Fatal("two were handed different credentials")
			}
		}
		j.known(t, j.published[0], tenant.A, true)
		j.known(t, j.published[0], tenant.B, true)
		j.verified(t)
		// As many inits repair it.
		j.byHand(t, tenant.A)
		j.idle(t)
		for range 20 {
			all.Go(func() {
				if _, err := j.try(t); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		r := j.run(t)
		j.known(t, r, r.Active, true)
	})
}

// (F33) The test runs the statement that a message recommends, in the state in which init recommends it. Then init
// finishes. The statements of other messages are run in TestServerWide (DROP USER), in the conformance suite (CREATE
// ROLE) and in TestNoWrites (ALTER DATABASE).
func TestAdviceOfMySQL(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, v bed.Version) {
		server := newServer(t, v)
		root := describe(server, server.AdminUser, server.AdminPassword)
		t.Run("init_connect", func(t *testing.T) {
			j := newJob(t, root) // a superuser, which has all rights
			j.run(t)
			exec(t, server, "SET GLOBAL init_connect = 'SELEC 1'")
			way := printed(t, j.refused(t, "init_connect"), `SET GLOBAL init_connect = ''`)
			j.ExecAs(t, j.Tenant.Connector.User, j.Tenant.Connector.Password, "", way)
			j.run(t)
		})
		t.Run("rights of the admin", func(t *testing.T) {
			password := "Weak-1~password"
			exec(t, server, "CREATE USER weak IDENTIFIED BY '"+password+"'")
			j := newJob(t, describe(server, "weak", password))
			message := j.refused(t, "GRANT CREATE USER")
			exec(t, server, printed(t, message, `GRANT CREATE USER[^;]*`))
			exec(t, server, printed(t, message, `GRANT SELECT, INSERT[^;]* WITH GRANT OPTION`))
			j.run(t)
			j.byHand(t, tenant.A) // a repair needs one more
			j.MustExec(t, "", "REVOKE PROCESS ON *.* FROM weak")
			exec(t, server, printed(t, j.refused(t, "PROCESS"), `GRANT PROCESS ON \*\.\* TO [^;]*`))
			j.idle(t)
			j.run(t)
		})
	})
}

// S3: a session that has locked kine's table keeps a control plane from starting. init names the table.
func TestTableLocked(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, v bed.Version) {
		server := newServer(t, v)
		j := newJob(t, admins(t, server)["cloud admin"])
		r := j.run(t)
		j.MustExec(t, j.Database, "CREATE TABLE kine (id INTEGER)")
		holder := j.Pool(t, server.AdminUser, dbserver.Password(server.AdminPassword), j.Database)
		if _, err := holder.ExecContext(t.Context(), "LOCK TABLES kine WRITE"); err != nil {
			t.Fatal(err)
		}
		waits(t, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			_, err := j.Engine.HasData(ctx, r.Login(r.Active))
			return err
		}, fmt.Sprintf("table kine of database %q does not answer", j.Database))
		if _, err := holder.ExecContext(t.Context(), "UNLOCK TABLES"); err != nil {
			t.Fatal(err)
		}
		j.run(t)
	})
}

// root runs statements as the account that the server came with. The server accepts it at its socket only.
func root(t *testing.T, server *bed.Server, statements ...string) {
	t.Helper()
	config := driver.NewConfig()
	config.User, config.Net, config.Addr = "root", "unix", filepath.Join(filepath.Dir(server.DataDir), "s.sock")
	connector, err := driver.NewConnector(config)
	require.NoError(t, err)
	db := sql.OpenDB(connector)
	defer db.Close()
	for _, statement := range statements {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// S17: any login may grant PROXY on itself, and by its WITH GRANT OPTION the server gives GRANT OPTION on everything.
// So an attacker with a leaked password can give away rights that outlive the password, and a neighbour can force
// rights on a tenant. init takes all of them back, or says which account can and how. init refuses none of these cases.
func TestGrantOption(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, v bed.Version) {
		server := newServer(t, v)
		for who, s := range admins(t, server) {
			t.Run(who, func(t *testing.T) {
				attacker, victim := s.NewTenant(), s.NewTenant()
				attacker.Ensure(t)
				victim.Ensure(t)
				app := "app" + strings.ToLower(rand.Text()[:8])
				password := "Stranger-1~password"
				victim.MustExec(t, victim.Database, "CREATE TABLE kine (id INTEGER)", "CREATE USER "+app+" IDENTIFIED BY '"+password+"'")
				whole := [2]string{victim.Look(t), attacker.Look(t)}
				grants := func(x *enginetest.Tenant, slot tenant.Slot, statements ...string) {
					t.Helper()
					db, err := s.Open(x.User(slot), x.Passwords[slot].Reveal(), "")
					require.NoError(t, err)
					defer db.Close()
					for _, statement := range victim.SQL(statements, "{other}", attacker.Database,
						"{othera}", attacker.User(tenant.A), "{otherb}", attacker.User(tenant.B), "{app}", app) {
						if _, err := db.ExecContext(t.Context(), statement); err != nil {
							t.Fatalf("%s: %v", statement, err)
						}
					}
				}
				everyone := everyone(t, server)
				const others = "SELECT CONCAT_WS(' ', User, Db, Select_priv, Grant_priv) FROM mysql.db WHERE User NOT LIKE 'vc%' AND User NOT LIKE 'app%' ORDER BY 1"
				admins, err := lines(t.Context(), server, "", others)
				require.NoError(t, err)
				plant := func() {
					// The attacker has the password of the victim's login for a moment.
					grants(victim, tenant.A, "GRANT PROXY ON {a} TO {a} WITH GRANT OPTION")
					grants(victim, tenant.A, "GRANT SELECT, INSERT ON {db}.* TO {otherb} WITH GRANT OPTION", "GRANT SELECT ON {db}.kine TO {othera}",
						"GRANT SELECT (id) ON {db}.kine TO {othera}", "GRANT SELECT ON {db}.* TO {app}", "GRANT PROXY ON {a} TO {app}")
					// And the attacker forces rights on it.
					grants(attacker, tenant.A, "GRANT PROXY ON CURRENT_USER() TO {otherb} WITH GRANT OPTION")
					grants(attacker, tenant.B, "GRANT GRANT OPTION ON *.* TO {app}")
					if v.Engine == bed.MySQL {
						grants(attacker, tenant.B, "GRANT PROXY ON {a} TO {app}") // by the right on all accounts
					}
					grants(attacker, tenant.B, "GRANT SELECT ON {other}.* TO {a}, {b}", "GRANT GRANT OPTION ON *.* TO {b}", "GRANT GRANT OPTION ON mysql.* TO {b}",
						"GRANT GRANT OPTION ON {db}.* TO {a}", "GRANT GRANT OPTION ON PROCEDURE "+routine(t, server)+" TO {a}")
					if everyone != "" {
						for _, grant := range []string{
							"GRANT SELECT ON {other}.*", "GRANT GRANT OPTION ON mysql.*", "GRANT GRANT OPTION ON *.*",
							"GRANT GRANT OPTION ON PROCEDURE " + routine(t, server),
						} {
							grants(attacker, tenant.B, grant+" TO "+everyone)
						}
					}
					if v.Engine == bed.MariaDB {
						grants(attacker, tenant.B, "GRANT USAGE ON *.* TO {otherb} REQUIRE NONE WITH MAX_USER_CONNECTIONS 0")
					}
				}
				heal := func() (warnings string) {
					t.Helper()
					for _, x := range []*enginetest.Tenant{victim, attacker} {
						warnings += strings.Join(x.Ensure(t).Warnings, "\n") + "\n"
					}
					victim.Works(t)
					attacker.Works(t)
					if now := [2]string{victim.Look(t), attacker.Look(t)}; !strings.Contains(warnings, app) && now != whole {
						t.Errorf("got\n%s\nwant\n%s", now, whole)
					}
					return warnings
				}
				plant()
				reads := func(db *sql.DB) error {
					_, err := db.ExecContext(t.Context(), "SELECT * FROM "+victim.Database+".kine")
					return err
				}
				open := s.Pool(t, attacker.User(tenant.B), attacker.Passwords[tenant.B], victim.Database)
				require.NoError(t, reads(open), "what was planted does not work")
				for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
					assert.NoErrorf(t, s.Engine.Ready(t.Context(), victim.Login(slot), victim.Names), "before any repair, slot %s", slot)
				}
				warnings := heal()
				for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
					db := s.Pool(t, attacker.User(slot), attacker.Passwords[slot], "")
					if reads(db) == nil {
						t.Errorf("login %s of the attacker still reads the victim's table", slot)
					}
				}
				// An open session still reads it, and the test ends it as the warning says.
				ids, err := lines(
					t.Context(), server, "",
					printed(t, warnings, `SELECT ID FROM information_schema.PROCESSLIST WHERE USER = '`+attacker.User(tenant.B)+`' AND DB = '[a-z0-9]*'`),
				)
				if err != nil || len(ids) == 0 {
					t.Fatalf("%q, %v", ids, err)
				}
				for _, id := range ids {
					exec(t, server, "KILL "+id)
				}
				enginetest.Eventually(t, "the end of the open session", func() bool { return reads(open) != nil })
				said := regexp.MustCompile("REVOKE [^;\n]*").FindAllString(warnings, -1)
				if !strings.Contains(warnings, "account '"+app+"'@'%' has rights in the tenant's database") {
					t.Errorf("no warning names the account that may be an admin's own: %s", warnings)
				}
				slices.Sort(said) // a finding of both runs is there twice
				root(t, server, slices.Compact(said)...)
				if left := heal(); strings.Contains(left, "REVOKE") {
					t.Errorf("after the statements that it named: %s", left)
				}
				if done := victim.Ensure(t); len(done.Changes) > 0 {
					t.Errorf("and again: %+v", done)
				}
				if now, err := lines(t.Context(), server, "", others); err != nil || !slices.Equal(now, admins) {
					t.Errorf("what an admin had granted to others is %q, was %q, %v", now, admins, err)
				}

				if s.Connector.User != server.AdminUser {
					return // MySQL lets no account revoke PROXY that has no rights on database mysql
				}
				plant()
				root(t, server, "GRANT PROXY ON ''@'' TO '"+s.Connector.User+"' WITH GRANT OPTION")
				if left := heal(); strings.Contains(left, "As root") {
					t.Errorf("by an admin with all rights: %s", left)
				}
				root(t, server, "REVOKE PROXY ON ''@'' FROM '"+s.Connector.User+"'")
				rows, err := lines(t.Context(), server, "", "SELECT CONCAT(User, ' as ', Proxied_user) FROM mysql.proxies_priv WHERE Host = '%'")
				if err != nil || len(rows) > 0 {
					t.Errorf("left: %q, %v", rows, err)
				}
			})
		}
	})
}

// everyone returns a role that every login has; "" where the server knows none.
func everyone(t *testing.T, server *bed.Server) string {
	t.Helper()
	switch {
	case server.Engine == bed.MySQL:
		exec(t, server, "CREATE ROLE IF NOT EXISTS everyone, every", "SET GLOBAL mandatory_roles = '`everyone`@`%`, of_another'",
			"GRANT SELECT ON app.* TO everyone WITH GRANT OPTION", "GRANT GRANT OPTION ON mysql.* TO every")
		return "everyone"
	case server.Version != "10.5":
		exec(t, server, "GRANT SELECT ON app.* TO PUBLIC")
		return "PUBLIC"
	}
	return ""
}

// routine returns a routine that the server came with.
func routine(t *testing.T, server *bed.Server) string {
	t.Helper()
	found, err := lines(
		t.Context(), server, "",
		"SELECT CONCAT(ROUTINE_SCHEMA, '.', ROUTINE_NAME) FROM information_schema.ROUTINES WHERE ROUTINE_TYPE = 'PROCEDURE' ORDER BY 1 LIMIT 1",
	)
	if err != nil || len(found) == 0 {
		t.Fatalf("no routine: %v", err)
	}
	return found[0]
}

// S17: a tenant's login that has given itself GRANT OPTION takes it away from the admin, too. init then names the
// rights that the admin lacks, and granting them is enough. On MySQL an admin with SYSTEM_USER is out of a login's
// reach.
func TestGrantOptionOfTheAdmin(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, v bed.Version) {
		server := newServer(t, v)
		s := admins(t, server)["cloud admin"]
		attacker := s.NewTenant()
		attacker.Ensure(t)
		take := "REVOKE GRANT OPTION ON *.* FROM '" + s.Connector.User + "'"
		plant := func() {
			attacker.ExecAs(t, attacker.User(tenant.A), attacker.Passwords[tenant.A], "", attacker.SQL([]string{"GRANT PROXY ON {a} TO {a} WITH GRANT OPTION"})...)
		}
		plant()
		takes := func() error { // in a session of its own: the server reads global rights at the beginning of a session
			db := s.Pool(t, attacker.User(tenant.A), attacker.Passwords[tenant.A], "")
			_, err := db.ExecContext(t.Context(), take)
			return err
		}
		require.NoError(t, takes())
		j := newJob(t, s)
		exec(t, server, printed(t, j.refused(t, "WITH GRANT OPTION"), `GRANT SELECT, INSERT[^;]* WITH GRANT OPTION`))
		j.run(t)
		if v.Engine == bed.MySQL {
			plant()
			exec(t, server, "GRANT SYSTEM_USER ON *.* TO '"+s.Connector.User+"'")
			if takes() == nil {
				t.Error("an admin with SYSTEM_USER lost GRANT OPTION")
			}
			newJob(t, s).run(t)
		}
		if v.Engine == bed.MariaDB { // even from a superuser, who gets it back in the same way
			plant()
			from := "REVOKE GRANT OPTION ON *.* FROM '" + server.AdminUser + "'"
			attacker.ExecAs(t, attacker.User(tenant.A), attacker.Passwords[tenant.A], "", from)
			as := func(statement string) error { // in a session of its own
				db := s.Pool(t, server.AdminUser, dbserver.Password(server.AdminPassword), "")
				_, err := db.ExecContext(t.Context(), statement)
				return err
			}
			grant := "GRANT SELECT ON *.* TO '" + s.Connector.User + "' WITH GRANT OPTION"
			if as(grant) == nil {
				t.Error("the superuser still has GRANT OPTION: docs/operate.md says too much")
			}
			assert.NoError(t, as(fmt.Sprintf("GRANT PROXY ON '%s'@'%%' TO '%[1]s'@'%%' WITH GRANT OPTION", server.AdminUser)))
			assert.NoError(t, as(grant), "the superuser has not got GRANT OPTION back")
		}
		plant()
		newJob(t, s).run(t) // init of any tenant
		if takes() == nil {
			t.Error("the login still has GRANT OPTION when init has run")
		}
	})
}

// S17: init refuses a server on which PROXY has an effect for accounts with a password, before it makes a tenant there.
func TestProxyWithOldPlugin(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, v bed.Version) {
		if v.Engine == bed.MariaDB {
			return // its own plugins map no accounts
		}
		server := newServer(t, v)
		exec(t, server, "SET GLOBAL check_proxy_users = ON")
		j := newJob(t, describe(server, server.AdminUser, server.AdminPassword))
		exec(t, server, strings.Replace(printed(t, j.refused(t, "check_proxy_users is ON"), `SET PERSIST check_proxy_users = OFF`), "PERSIST", "GLOBAL", 1))
		j.run(t)
	})
}
