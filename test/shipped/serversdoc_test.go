// SPDX-License-Identifier: Apache-2.0

package shipped_test

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// block is the SQL whose first line is the given comment, statement by statement: of docs/install.md for an admin, of
// docs/lifecycle.md for a deletion.
func block(t *testing.T, title string) []string {
	t.Helper()
	document := "docs/lifecycle.md"
	if strings.HasSuffix(title, ": admin") {
		document = "docs/install.md"
	}
	m := regexp.MustCompile("(?ms)^ *```sql\n *-- " + regexp.QuoteMeta(title) + "\n(.*?)^ *```$").FindStringSubmatch(read(t, document))
	if m == nil {
		t.Fatalf("%s has no block of SQL called %q", document, title)
	}
	var statements []string
	for statement := range strings.SplitSeq(m[1], ";\n") {
		if statement = strings.TrimSpace(statement); statement != "" {
			statements = append(statements, statement)
		}
	}
	return statements
}

// TestSQLOfOperations runs the statements of docs/install.md and docs/lifecycle.md: the admin that they make can do the
// whole admin path, a repair included, and nothing of a tenant is left when they have deleted it.
func TestSQLOfOperations(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		engine         bed.Engine
		version, admin string
	}{
		{bed.Postgres, "13", "postgres"},
		{bed.Postgres, "17", "postgres"},
		{bed.Postgres, "18", "postgres"},
		{bed.MySQL, "9.7", "mysql"},
		{bed.MariaDB, "10.5", "mariadb"},
		{bed.MariaDB, "11.8", "mariadb"},
	} {
		t.Run(string(test.engine)+"-"+test.version, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			// With a setting, so that it is never a server of the user's own.
			server := bed.NewServer(t, test.engine, test.version, bed.Options{RequireTLS: true})
			require.NoError(t, server.Exec(ctx, block(t, test.admin+": admin")...))
			target := dbserver.Server{
				Engine: dbserver.MySQL, Host: server.Host, Port: port(t, server), SSLMode: dbserver.VerifyFull, CA: string(server.CA),
			}
			deletion := block(t, "mysql: delete a tenant")
			if test.engine == bed.Postgres {
				target.Engine = dbserver.Postgres
				deletion = block(t, "postgres: delete a tenant")
			}
			e := open.Engine(target, "docs")
			names := tenant.NamesOf("docs/" + string(test.engine))
			passwords := map[tenant.Slot]dbserver.Password{tenant.A: tenant.NewPassword(), tenant.B: tenant.NewPassword()}
			login := tenant.Login{User: names.User(tenant.A), Password: passwords[tenant.A], Database: names.Database}

			admin, err := e.Admin(ctx, "dbconnector", "change-me")
			require.NoError(t, err)
			defer admin.Close()
			require.NoError(t, admin.Lock(ctx, names))
			if _, err := admin.Ensure(ctx, engine.Spec{Names: names, Passwords: passwords, ConnectionLimit: 10}); err != nil {
				t.Fatal(err)
			}
			if used, err := admin.InUse(ctx, login.User); used || err != nil {
				t.Fatalf("in use: %v, %v", used, err)
			}
			login.Password = tenant.NewPassword()
			require.NoError(t, admin.SetPassword(ctx, login.User, login.Password))
			if _, err := e.Verify(ctx, login, names); err != nil {
				t.Fatal(err)
			}
			work(t, login, server)

			// PostgreSQL: as the connector's admin, as the text says. The others: as a login that has DROP.
			user, password := "dbconnector", "change-me"
			if test.engine != bed.Postgres {
				user, password = server.AdminUser, server.AdminPassword
			}
			db, err := server.Open(user, password, "")
			require.NoError(t, err)
			defer db.Close()
			for _, statement := range deletion {
				if err := bed.Wait(ctx, func(ctx context.Context) error { // a session that was closed lives on for a moment
					_, err := db.ExecContext(ctx, strings.ReplaceAll(statement, "vcXXXX", names.Database))
					return err
				}); err != nil {
					t.Fatalf("%s: %v", statement, err)
				}
			}
			if err := e.Login(ctx, login); !fault.Is(err, fault.WrongPassword) {
				t.Errorf("after the deletion a login gives %v", err)
			}
			count := "SELECT COUNT(*) FROM mysql.user WHERE User LIKE '" + names.Database + "%'"
			if test.engine == bed.Postgres {
				count = "SELECT (SELECT count(*) FROM pg_roles WHERE rolname LIKE '" + names.Database + "%') + " +
					"(SELECT count(*) FROM pg_database WHERE datname = '" + names.Database + "')"
			}
			if left, err := server.Query(ctx, "", count); left != "0" || err != nil {
				t.Errorf("%s objects are left, %v", left, err)
			}
		})
	}
}

// TestDeletionAmongNeighbours (S14): a neighbour that has granted something to a tenant's roles, in its own database, does not
// keep an admin from deleting the tenant, and loses nothing of its own.
func TestDeletionAmongNeighbours(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"13", "15", "18"} {
		t.Run("postgres-"+version, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			server := bed.NewServer(t, bed.Postgres, version, bed.Options{RequireTLS: true})
			require.NoError(t, server.Exec(ctx, block(t, "postgres: admin")...))
			target := dbserver.Server{Engine: dbserver.Postgres, Host: server.Host, Port: port(t, server), SSLMode: dbserver.VerifyFull, CA: string(server.CA)}
			admin, err := open.Engine(target, "docs").Admin(ctx, "dbconnector", "change-me")
			require.NoError(t, err)
			defer admin.Close()
			victim, neighbour := tenant.NamesOf("docs/victim"), tenant.NamesOf("docs/neighbour")
			password := tenant.NewPassword()
			for _, names := range []tenant.Names{victim, neighbour} {
				want := engine.Spec{Names: names, Passwords: map[tenant.Slot]dbserver.Password{tenant.A: password, tenant.B: password}, ConnectionLimit: 10}
				if _, err := admin.Ensure(ctx, want); err != nil {
					t.Fatal(err)
				}
			}
			run := func(user, password, database string, statements ...string) error {
				db, err := server.Open(user, password, database)
				if err != nil {
					return err
				}
				defer db.Close()
				for _, statement := range statements {
					if _, err := db.ExecContext(ctx, strings.NewReplacer("vcXXXX", victim.Database, "vcYYYY", neighbour.Database).Replace(statement)); err != nil {
						return fmt.Errorf("%s: %w", statement, err)
					}
				}
				return nil
			}
			login := tenant.Login{User: neighbour.User(tenant.A), Password: password, Database: neighbour.Database}
			require.NoError(t, run(login.User, password.Reveal(), login.Database, "CREATE TABLE kine (id INT PRIMARY KEY)", "INSERT INTO kine VALUES (1)",
				`GRANT SELECT ON kine TO "vcXXXXa"`, `CREATE POLICY p ON kine TO "vcXXXXb"`, `ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO "vcXXXXo"`))

			deletion := block(t, "postgres: delete a tenant")
			require.NoError(t, run("dbconnector", "change-me", "postgres", deletion[:1]...))
			if err := run("dbconnector", "change-me", "postgres", deletion[1:]...); err == nil || !strings.Contains(err.Error(), "2BP01") {
				t.Fatalf("the neighbour is not in the way: %v", err)
			}
			who := block(t, "postgres: who names the tenant's roles")
			require.NoError(t, run("dbconnector", "change-me", "postgres", who[0]))
			// Query gives the first row, and there must be no other.
			where, err := server.Query(ctx, "postgres",
				"SELECT string_agg(datname, ',') FROM ("+strings.TrimSuffix(strings.ReplaceAll(who[1], "vcXXXX", victim.Database), ";")+") w")
			if err != nil || where != neighbour.Database {
				t.Fatalf("the roles are named in %q, %v", where, err)
			}
			require.NoError(t, run("dbconnector", "change-me", where, block(t, "postgres: let go of the tenant's roles")...))
			require.NoError(t, run("dbconnector", "change-me", "postgres", deletion[1:]...))
			if left, err := server.Query(ctx, login.Database, "SELECT count(*) FROM kine"); left != "1" || err != nil {
				t.Errorf("of the neighbour's rows %s are left, %v", left, err)
			}
		})
	}
}

// work leaves a table behind, as kine does: its owner decides the order of the deletion.
func work(t *testing.T, login tenant.Login, server *bed.Server) {
	t.Helper()
	db, err := server.Open(login.User, login.Password.Reveal(), login.Database)
	require.NoError(t, err)
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE kine (id INT PRIMARY KEY)"); err != nil {
		t.Fatal(err)
	}
}

func port(t *testing.T, server *bed.Server) uint16 {
	t.Helper()
	n, err := strconv.ParseUint(strconv.Itoa(server.Port), 10, 16)
	require.NoError(t, err)
	return uint16(n)
}
