// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	driver "github.com/go-sql-driver/mysql"

	"dbconnector/pkg/engine/enginetest"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// mysqlChange is a statement in the general log that changes something. SET and GET_LOCK belong to every session.
var mysqlChange = regexp.MustCompile(
	`(?i)\t\s*\d+ (?:Query|Execute)\t(?:CREATE|ALTER|DROP|GRANT|REVOKE|RENAME|INSERT|UPDATE|DELETE|REPLACE|TRUNCATE|FLUSH|KILL|SET PASSWORD|SET GLOBAL)\b`,
)

func describeMySQL(d *enginetest.Server, s *bed.Server) {
	mariadb := s.Engine == bed.MariaDB
	cloud := d.Connector.User != s.AdminUser

	d.Snapshot = func(ctx context.Context, n tenant.Names) (string, error) {
		var all []string
		for _, query := range []string{
			"SELECT CONCAT_WS(' ', 'account', User, Host, ssl_type, max_user_connections, max_questions, max_connections) " +
				"FROM mysql.user WHERE LEFT(User, 26) = ? ORDER BY 1",
			"SELECT CONCAT_WS(' ', 'database', SCHEMA_NAME, DEFAULT_CHARACTER_SET_NAME) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = ? ORDER BY 1",
			"SELECT CONCAT_WS(' ', 'on database', GRANTEE, PRIVILEGE_TYPE, IS_GRANTABLE) FROM information_schema.SCHEMA_PRIVILEGES WHERE TABLE_SCHEMA = ? ORDER BY 1",
			"SELECT CONCAT_WS(' ', 'global', GRANTEE, PRIVILEGE_TYPE, IS_GRANTABLE) " +
				"FROM information_schema.USER_PRIVILEGES WHERE SUBSTRING(GRANTEE, 2, 26) = ? ORDER BY 1",
			"SELECT CONCAT_WS(' ', 'elsewhere', User, Db) FROM mysql.db WHERE LEFT(User, 26) = ? AND Db <> LEFT(User, 26) ORDER BY 1",
			"SELECT CONCAT_WS(' ', 'table', TABLE_NAME) FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? ORDER BY 1",
		} {
			some, err := lines(ctx, s, "", query, n.Database)
			if err != nil {
				return "", err
			}
			all = append(all, some...)
		}
		return strings.Join(all, "\n"), nil
	}
	d.Changing = func(line string, n tenant.Names) bool {
		return strings.Contains(line, n.Database) && mysqlChange.MatchString(line)
	}
	d.Code = func(err error) string {
		var e *driver.MySQLError
		if errors.As(err, &e) {
			return strconv.Itoa(int(e.Number))
		}
		return ""
	}
	d.Seven = []string{"SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "INDEX"}
	d.Privileges = func(ctx context.Context, n tenant.Names, slot tenant.Slot) ([]string, error) {
		return lines(ctx, s, "", `
			SELECT PRIVILEGE_TYPE FROM information_schema.SCHEMA_PRIVILEGES WHERE GRANTEE = ? AND TABLE_SCHEMA = ?
			UNION ALL SELECT CONCAT('elsewhere ', TABLE_SCHEMA) FROM information_schema.SCHEMA_PRIVILEGES WHERE GRANTEE = ? AND TABLE_SCHEMA <> ?
			UNION ALL SELECT CONCAT('global ', PRIVILEGE_TYPE) FROM information_schema.USER_PRIVILEGES WHERE GRANTEE = ? AND PRIVILEGE_TYPE <> 'USAGE'`,
			account(n, slot), n.Database, account(n, slot), n.Database, account(n, slot))
	}

	d.Breaks = []enginetest.Break{
		{Name: "login a gone", Reason: "an admin dropped it", SQL: []string{`DROP USER {a}`}},
		{Name: "login b gone", Reason: "an admin dropped it", SQL: []string{`DROP USER {b}`}},
		{Name: "both logins gone", Reason: "a dump holds no accounts", SQL: []string{`DROP USER {a}, {b}`}},
		{Name: "mark gone", Reason: "the record proves whose it is", SQL: []string{`DROP ROLE {owner}`}},
		{Name: "TLS not required of a", Reason: "promise 6", SQL: []string{`ALTER USER {a} REQUIRE NONE`}},
		{Name: "TLS not required of b", Reason: "promise 6", SQL: []string{`ALTER USER {b} REQUIRE NONE`}},
		{Name: "limit of a lifted", Reason: "B45", SQL: []string{`ALTER USER {a} WITH MAX_USER_CONNECTIONS 0`}},
		{Name: "limit of b lowered", Reason: "B45", SQL: []string{`ALTER USER {b} WITH MAX_USER_CONNECTIONS 1`}},
		{Name: "all rights of a gone", Reason: "B5", SQL: []string{`REVOKE ALL ON {db}.* FROM {a}`}},
		{Name: "DROP for a", Reason: "it could drop its own database", SQL: []string{`GRANT DROP ON {db}.* TO {a}`}},
		{Name: "GRANT OPTION for b", Reason: "it could let others in", SQL: []string{`GRANT SELECT ON {db}.* TO {b} WITH GRANT OPTION`}},
		{
			Name: "several rights too many", Reason: "the seven and no more",
			SQL: []string{`GRANT CREATE VIEW, CREATE ROUTINE, EVENT, TRIGGER, LOCK TABLES, CREATE TEMPORARY TABLES ON {db}.* TO {b}`},
		},
		{Name: "GRANT OPTION on the whole server", Reason: "S17", Alone: true, SQL: []string{`GRANT USAGE ON *.* TO {a} WITH GRANT OPTION`}},
		{Name: "GRANT OPTION on another database", Reason: "S17", SQL: []string{`GRANT GRANT OPTION ON mysql.* TO {b}`}},
		{
			Name: "everything at once", Reason: "repairs must not depend on each other",
			SQL: []string{
				`DROP USER {b}`, `DROP ROLE {owner}`, `REVOKE INSERT ON {db}.* FROM {a}`, `GRANT DROP ON {db}.* TO {a}`,
				`ALTER USER {a} REQUIRE NONE WITH MAX_USER_CONNECTIONS 0`,
			},
		},
	}
	for _, privilege := range d.Seven {
		for slot, user := range map[string]string{"a": "{a}", "b": "{b}"} {
			d.Breaks = append(d.Breaks, enginetest.Break{
				Name: privilege + " of " + slot + " gone", Reason: "kine needs all seven (B5)",
				SQL: []string{"REVOKE " + privilege + " ON {db}.* FROM " + user},
			})
		}
	}
	if !cloud {
		// A cloud admin cannot take away a right that it does not have.
		d.Breaks = append(d.Breaks, enginetest.Break{
			Name: "ALL for a", Reason: "the seven and no more",
			SQL: []string{`GRANT ALL ON {db}.* TO {a} WITH GRANT OPTION`},
		})
	}

	d.Findings = []enginetest.Finding{
		{
			Name: "GRANT OPTION", Reason: "S17", Alone: true,
			SQL: []string{`GRANT USAGE ON *.* TO {a} WITH GRANT OPTION`}, Undo: []string{`REVOKE GRANT OPTION ON *.* FROM {a}`},
			Want: "GRANT OPTION",
		},
		{
			Name: "a global privilege", Reason: "promise 1",
			SQL: []string{`GRANT PROCESS ON *.* TO {a}`}, Undo: []string{`REVOKE PROCESS ON *.* FROM {a}`}, Want: "PROCESS",
		},
		{
			Name: "another tenant's database", Reason: "promise 1",
			SQL: []string{`GRANT SELECT ON {other}.* TO {a}`}, Undo: []string{`REVOKE SELECT ON {other}.* FROM {a}`},
			Want: "{other}",
		},
		{
			Name: "a table of another tenant", Reason: "promise 1",
			SQL:  []string{`CREATE TABLE {other}.t (i INTEGER)`, `GRANT SELECT ON {other}.t TO {a}`},
			Undo: []string{`REVOKE SELECT ON {other}.t FROM {a}`}, Want: "{other}",
		},
		{
			Name: "password hashes", Reason: "B33",
			SQL: []string{`GRANT SELECT ON mysql.* TO {a}`}, Undo: []string{`REVOKE SELECT ON mysql.* FROM {a}`},
			Want: "accounts (mysql.",
		},
		{
			Name: "a role that is not in force", Reason: "the tenant may put it in force at any time", Want: "{other}",
			SQL:  []string{`CREATE ROLE {a}r`, `GRANT SELECT ON {other}.* TO {a}r`, `GRANT {a}r TO {a}`},
			Undo: []string{`DROP ROLE {a}r`},
		},
	}

	const login = `CREATE USER {user} IDENTIFIED BY '{password}'`
	const seven = "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX"
	roles := ""
	if !mariadb {
		roles = ", CREATE ROLE"
	}
	d.Admins = []enginetest.WeakAdmin{
		{Name: "nothing", Reason: "the rights are named", SQL: []string{login}, Want: "CREATE USER"},
		{
			Name: "no CREATE USER", Reason: "the rights are named",
			SQL:  []string{login, `GRANT ` + seven + ` ON {db}.* TO {user} WITH GRANT OPTION`, `GRANT SELECT ON mysql.* TO {user}`},
			Want: "CREATE USER",
		},
		{
			Name: "no look at mysql.user", Reason: "the rights are named",
			SQL: []string{login, `GRANT CREATE USER, CREATE` + roles + ` ON *.* TO {user}`}, Want: "GRANT SELECT",
		},
		{
			Name: "no GRANT OPTION", Reason: "the rights are named",
			SQL: []string{login, `GRANT CREATE USER` + roles + `, ` + seven + ` ON *.* TO {user}`}, Want: "WITH GRANT OPTION",
		},
		{
			Name: "no INDEX", Reason: "an admin cannot grant a right that it does not have",
			SQL:  []string{login, `GRANT CREATE USER` + roles + `, SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER ON *.* TO {user} WITH GRANT OPTION`},
			Want: "INDEX",
		},
		{
			Name: "no PROCESS", Reason: "the admin must not mistake hidden sessions for none",
			SQL:  []string{login, `GRANT CREATE USER` + roles + `, ` + seven + ` ON *.* TO {user} WITH GRANT OPTION`},
			Want: "GRANT PROCESS",
		},
	}
	d.Foreign = []string{`CREATE DATABASE {db}`}
	d.Close = []string{`REVOKE ALL ON {db}.* FROM {a}`, `REVOKE ALL ON {db}.* FROM {b}`}
	d.DropDatabase = []string{`DROP DATABASE {db}`}
	d.DropLogins = []string{`DROP USER {a}, {b}`, `DROP ROLE {owner}`}
	d.Dump = []string{`CREATE DATABASE {db}`}
	d.LimitIsPerLogin = true
	d.Attempts = mysqlAttempts(mariadb, s.AdminUser)
}

// account is a login as information_schema names it.
func account(n tenant.Names, slot tenant.Slot) string { return fmt.Sprintf("'%s'@'%%'", n.User(slot)) }

// mysqlAttempts are the attempts of a tenant on MySQL and MariaDB.
func mysqlAttempts(mariadb bool, admin string) []enginetest.Attempt {
	const (
		db    = "1044" // access to a database denied
		file  = "1045" // FILE, and some of GRANT
		table = "1142"
		need  = "1227" // a global privilege is needed
	)
	role := "3530" // ER_ROLE_NOT_GRANTED
	if mariadb {
		role = "1959" // ER_INVALID_ROLE
	}
	out := []enginetest.Attempt{
		{Name: "connect to the neighbour", Reason: "promise 1", Database: "{other}", Codes: []string{db}},
		{Name: "use the neighbour's database", Reason: "promise 1", SQL: []string{"USE {other}"}, Codes: []string{db}},
		{Name: "read the neighbour's table", Reason: "promise 1", SQL: []string{"SELECT * FROM {other}.secret"}, Codes: []string{table}},
		{Name: "write the neighbour's table", Reason: "promise 1", SQL: []string{"INSERT INTO {other}.secret VALUES (2)"}, Codes: []string{table}},
		{
			Name: "see the neighbour", Reason: "MySQL hides objects on which a login has no right",
			SQL: []string{"SELECT 1 FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = '{other}'"}, Rows: ptr(0),
		},
		{
			Name: "see the neighbour's tables", Reason: "as above",
			SQL: []string{"SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = '{other}'"}, Rows: ptr(0),
		},
		{
			Name: "see databases that are not its own", Reason: "as above",
			SQL:  []string{"SELECT 1 FROM information_schema.SCHEMATA WHERE SCHEMA_NAME NOT IN ('{db}', 'information_schema', 'performance_schema')"},
			Rows: ptr(0),
		},
		{
			Name: "see the sessions of others", Reason: "without PROCESS a login sees its own sessions",
			SQL: []string{"SELECT 1 FROM information_schema.PROCESSLIST WHERE USER NOT IN ('{a}', '{b}')"}, Rows: ptr(0),
		},
		{Name: "create a database", Reason: "promise 1", SQL: []string{"CREATE DATABASE loot"}, Codes: []string{db}},
		{Name: "create a database like its own", Reason: "B26: nothing in the name is a wildcard", SQL: []string{"CREATE DATABASE {db}x"}, Codes: []string{db}},
		{Name: "drop its database", Reason: "DROP is not among the seven", SQL: []string{"DROP DATABASE {db}"}, Codes: []string{db}},
		{Name: "drop the neighbour's database", Reason: "promise 1", SQL: []string{"DROP DATABASE {other}"}, Codes: []string{db}},
		{Name: "alter the neighbour's database", Reason: "promise 1", SQL: []string{"ALTER DATABASE {other} CHARACTER SET latin1"}, Codes: []string{db}},
		{Name: "create a user", Reason: "promise 1", SQL: []string{"CREATE USER loot IDENTIFIED BY 'x'"}, Codes: []string{need}},
		{Name: "create a role", Reason: "promise 1", SQL: []string{"CREATE ROLE loot"}, Codes: []string{need}},
		{Name: "drop the neighbour's login", Reason: "promise 1", SQL: []string{"DROP USER {othera}"}, Codes: []string{need}},
		{Name: "rename the neighbour's login", Reason: "promise 1", SQL: []string{"RENAME USER {othera} TO loot"}, Codes: []string{need}},
		{Name: "raise its connection limit", Reason: "B45", SQL: []string{"ALTER USER CURRENT_USER() WITH MAX_USER_CONNECTIONS 1000"}, Codes: []string{need}},
		{Name: "lift its connection limit", Reason: "B45", SQL: []string{"ALTER USER {a} WITH MAX_USER_CONNECTIONS 0"}, Codes: []string{need}},
		{Name: "drop the need for TLS", Reason: "promise 6", SQL: []string{"ALTER USER {a} REQUIRE NONE"}, Codes: []string{need}},
		{
			Name: "raise the limit by GRANT", Reason: "B45",
			SQL: []string{"GRANT USAGE ON *.* TO {a} WITH MAX_USER_CONNECTIONS 0"}, Codes: []string{file, "1064", need},
		},
		{Name: "raise the limit of all accounts", Reason: "B45", SQL: []string{"SET GLOBAL max_user_connections = 0"}, Codes: []string{need}},
		{Name: "change the neighbour's password", Reason: "promise 1", SQL: []string{"ALTER USER {othera} IDENTIFIED BY 'x'"}, Codes: []string{need}},
		{Name: "change the neighbour's password by SET", Reason: "promise 1", SQL: []string{"SET PASSWORD FOR {othera} = 'x'"}, Codes: []string{db, need, "1372"}},
		{Name: "change the admin's password", Reason: "promise 1", SQL: []string{fmt.Sprintf("ALTER USER '%s' IDENTIFIED BY 'x'", admin)}, Codes: []string{need}},
		{Name: "read password hashes", Reason: "B33", SQL: []string{"SELECT * FROM mysql.user"}, Codes: []string{table}},
		{Name: "read rights", Reason: "B33", SQL: []string{"SELECT * FROM mysql.db"}, Codes: []string{table}},
		{Name: "read an account's definition", Reason: "B33", SQL: []string{"SHOW CREATE USER {othera}"}, Codes: []string{table, need, db}},
		{Name: "share its database", Reason: "no GRANT OPTION", SQL: []string{"GRANT SELECT ON {db}.* TO {othera}"}, Codes: []string{db}},
		{Name: "share by wildcard", Reason: "B26", SQL: []string{"GRANT SELECT ON `vc%`.* TO {a}"}, Codes: []string{db}},
		{Name: "share by single wildcards", Reason: "B26", SQL: []string{"GRANT SELECT ON `vc________________________`.* TO {a}"}, Codes: []string{db}},
		{Name: "take everything", Reason: "promise 1", SQL: []string{"GRANT ALL ON *.* TO {a}"}, Codes: []string{file}},
		{Name: "become its own mark", Reason: "the role is a mark, and no login has it", SQL: []string{"SET ROLE {owner}"}, Codes: []string{role}},
		{Name: "become the neighbour's mark", Reason: "as above", SQL: []string{"SET ROLE {otherowner}"}, Codes: []string{role}},
		{Name: "log in as its mark", Reason: "a role is locked", SQL: []string{"SELECT CURRENT_ROLE()"}, Rows: ptr(1)},
		{Name: "write a file", Reason: "the server's files are not the tenant's", SQL: []string{"SELECT 1 INTO OUTFILE '/tmp/loot'"}, Codes: []string{file, need}},
		{Name: "read a file into a table", Reason: "as above", SQL: []string{"LOAD DATA INFILE '/etc/passwd' INTO TABLE t"}, Codes: []string{file, need}},
		{
			Name: "read a file", Reason: "without FILE the function gives NULL",
			SQL: []string{"SELECT 1 FROM (SELECT LOAD_FILE('/etc/passwd') AS f) x WHERE f IS NOT NULL"}, Rows: ptr(0),
		},
		{Name: "load a library", Reason: "as above", SQL: []string{"INSTALL PLUGIN loot SONAME 'loot.so'"}, Codes: []string{table}},
		{Name: "load a function", Reason: "as above", SQL: []string{"CREATE FUNCTION loot RETURNS INTEGER SONAME 'loot.so'"}, Codes: []string{table, "1370", db}},
		{Name: "create a routine", Reason: "not among the seven", SQL: []string{"CREATE PROCEDURE loot() SELECT 1"}, Codes: []string{db}},
		{Name: "create a view", Reason: "not among the seven", SQL: []string{"CREATE VIEW loot AS SELECT 1"}, Codes: []string{table}},
		{Name: "create an event", Reason: "not among the seven", SQL: []string{"CREATE EVENT loot ON SCHEDULE EVERY 1 DAY DO SELECT 1"}, Codes: []string{db}},
		{Name: "create a table elsewhere", Reason: "promise 1", SQL: []string{"CREATE TABLE mysql.loot (i INTEGER)"}, Codes: []string{table}},
		{Name: "stop the server", Reason: "promise 1", SQL: []string{"SHUTDOWN"}, Codes: []string{need}},
		{Name: "switch the log off", Reason: "the admin's evidence", SQL: []string{"SET GLOBAL general_log = OFF"}, Codes: []string{need}},
		{Name: "hide from the log", Reason: "the admin's evidence", SQL: []string{"SET SESSION sql_log_bin = 0"}, Codes: []string{need}},
		{Name: "flush", Reason: "all tenants share it", SQL: []string{"FLUSH PRIVILEGES"}, Codes: []string{need}},
		{Name: "let its password expire", Reason: "no client could use its login", SQL: []string{"ALTER USER CURRENT_USER() PASSWORD EXPIRE"}, Codes: []string{need}},
		{Name: "lock its login", Reason: "as above", SQL: []string{"ALTER USER CURRENT_USER() ACCOUNT LOCK"}, Codes: []string{need}},
		{
			Name: "keep its password beside the next one", Reason: "a replaced password must be dead",
			SQL:   []string{"ALTER USER USER() IDENTIFIED BY 'Kept-1~password' RETAIN CURRENT PASSWORD"},
			Codes: []string{need, "1064"},
		},
		{
			Name: "have wrong passwords block its login", Reason: "F13: any client that reaches the port could",
			SQL: []string{"ALTER USER {a} FAILED_LOGIN_ATTEMPTS 1 PASSWORD_LOCK_TIME UNBOUNDED"}, Codes: []string{need, "1064"},
		},
		{Name: "lock the server for a backup", Reason: "all tenants share it", SQL: []string{"LOCK INSTANCE FOR BACKUP"}, Codes: []string{need, "1064"}},
		{Name: "lock a table for a backup", Reason: "as above", SQL: []string{"BACKUP LOCK {db}.t"}, Codes: []string{need, "1064"}},
		{Name: "set what outlives a restart", Reason: "as above", SQL: []string{"SET PERSIST sql_mode = ''"}, Codes: []string{need, "1064"}},
		{
			Name: "read accounts through a table of its own", Reason: "B33",
			SQL: []string{"CREATE TABLE loot (i INTEGER) ENGINE = MERGE UNION = (mysql.user)"}, Codes: []string{table},
		},
		{Name: "read accounts by their handler", Reason: "B33", SQL: []string{"HANDLER mysql.user OPEN"}, Codes: []string{table}},
		{Name: "write to a read-only server", Reason: "all tenants share it", SQL: []string{"SET GLOBAL read_only = ON"}, Codes: []string{need}},
	}
	return out
}
