// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"dbconnector/pkg/engine/enginetest"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// The queries read what the catalogs hold of a tenant. They name roles and never use numbers, so that a role that was
// dropped and made again looks the same.
const (
	postgresShared = `
		SELECT format('role %s %s', r.rolname, (to_jsonb(r) - 'oid' - 'rolname' - 'rolpassword')::text || coalesce(shobj_description(r.oid, 'pg_authid'), ''))
		FROM pg_roles r WHERE starts_with(r.rolname, $1)
		UNION ALL
		SELECT format('member %s of %s %s', u.rolname, o.rolname, to_jsonb(m) - 'oid' - 'roleid' - 'member' - 'grantor')
		FROM pg_auth_members m JOIN pg_roles o ON o.oid = m.roleid JOIN pg_roles u ON u.oid = m.member
		WHERE starts_with(o.rolname, $1) OR starts_with(u.rolname, $1)
		UNION ALL
		SELECT format('database %s %s %s %s %s', datname, pg_get_userbyid(datdba), datallowconn, datconnlimit, shobj_description(oid, 'pg_database'))
		FROM pg_database WHERE datname = $1
		UNION ALL
		SELECT format('on database: %s %s %s', CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee) END, x.privilege_type, x.is_grantable)
		FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) x WHERE datname = $1
		UNION ALL
		SELECT format('setting %s %s %s', d.datname, r.rolname, ARRAY(SELECT unnest(s.setconfig) ORDER BY 1)) ` +
		`FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase
		LEFT JOIN pg_roles r ON r.oid = s.setrole WHERE d.datname = $1 OR starts_with(r.rolname, $1)
		ORDER BY 1`
	postgresInside = `
		SELECT format('on schema public: %s %s %s', CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee) END, x.privilege_type, x.is_grantable)
		FROM pg_namespace, aclexplode(coalesce(nspacl, acldefault('n', nspowner))) x WHERE nspname = 'public'
		UNION ALL
		SELECT format('schema %s', nspname) FROM pg_namespace WHERE nspname !~ '^pg_temp|^pg_toast'
		UNION ALL
		SELECT format('table %s %s', tablename, tableowner) FROM pg_tables WHERE schemaname = 'public'
		ORDER BY 1`
)

// postgresChange is a statement in the server's log that changes something.
var postgresChange = regexp.MustCompile(
	`(?i)LOG:  (?:statement|execute [^:]*): \s*` +
		`(?:(?:CREATE|ALTER|DROP|GRANT|REVOKE|COMMENT|INSERT|UPDATE|DELETE|BEGIN|LOCK|SELECT pg_catalog.pg_terminate_backend)\b)`,
)

func describePostgres(d *enginetest.Server, s *bed.Server) {
	version, err := strconv.Atoi(s.Version)
	if err != nil {
		panic(err)
	}
	cloud := d.Connector.User != s.AdminUser
	// On 13 and 14 schema public belongs to the bootstrap superuser, and an admin who is no superuser cannot grant on it.
	ownsSchema := version >= 15 || !cloud

	d.Snapshot = func(ctx context.Context, n tenant.Names) (string, error) {
		shared, err := lines(ctx, s, "", postgresShared, n.Database)
		if err != nil {
			return "", err
		}
		inside, err := lines(ctx, s, n.Database, postgresInside)
		var pg *pgconn.PgError
		if errors.As(err, &pg) && (pg.Code == "55000" || pg.Code == "3D000") {
			inside, err = []string{"closed: " + pg.Code}, nil
		}
		return strings.Join(append(shared, inside...), "\n"), err
	}
	d.Changing = func(line string, n tenant.Names) bool {
		return strings.Contains(line, n.Database) && postgresChange.MatchString(line)
	}
	d.Code = func(err error) string {
		var pg *pgconn.PgError
		if errors.As(err, &pg) {
			return pg.Code
		}
		return ""
	}
	d.Owners = func(ctx context.Context, database string) ([]string, error) {
		return lines(ctx, s, database, "SELECT tableowner FROM pg_tables WHERE schemaname = 'public'")
	}
	d.Seven = []string{"database CONNECT", "database TEMPORARY", "schema CREATE", "schema USAGE"}
	d.Privileges = func(ctx context.Context, n tenant.Names, slot tenant.Slot) ([]string, error) {
		return lines(ctx, s, n.Database, `
			SELECT 'database ' || p FROM unnest(ARRAY['CONNECT', 'TEMPORARY', 'CREATE']) p WHERE has_database_privilege($1, current_database(), p)
			UNION ALL
			SELECT 'schema ' || p FROM unnest(ARRAY['USAGE', 'CREATE']) p WHERE has_schema_privilege($2, 'public', p)
			UNION ALL
			SELECT 'attribute ' || a.key FROM pg_roles r, jsonb_each(to_jsonb(r)) a
			WHERE pg_has_role($1, r.oid, 'MEMBER') AND a.key IN ('rolsuper', 'rolcreatedb', 'rolcreaterole', 'rolreplication', 'rolbypassrls') `+
			`AND a.value = 'true'`, n.User(slot), n.Owner)
	}

	// These objects were made before the logins had rights of their own.
	older := []string{
		`GRANT CONNECT, TEMPORARY ON DATABASE {db} TO {owner}`, `REVOKE ALL ON DATABASE {db} FROM {a}, {b}`, `ALTER DATABASE {db} RESET ALL`,
		`ALTER ROLE {owner} INHERIT`, `ALTER ROLE {a} INHERIT CONNECTION LIMIT -1`, `ALTER ROLE {b} INHERIT CONNECTION LIMIT -1`,
	}
	if version >= 16 {
		older = append(older, `GRANT {owner} TO {a}, {b} WITH INHERIT TRUE GRANTED BY "{admin}"`)
	}
	d.Breaks = []enginetest.Break{
		{Name: "login a gone", Reason: "an admin dropped it", SQL: []string{`DROP OWNED BY {a}`, `DROP ROLE {a}`}},
		{Name: "login b gone", Reason: "an admin dropped it", SQL: []string{`DROP OWNED BY {b}`, `DROP ROLE {b}`}},
		{Name: "both logins gone", Reason: "a dump holds no roles", SQL: []string{`DROP OWNED BY {a}, {b}`, `DROP ROLE {a}, {b}`}},
		{Name: "membership of a gone", Reason: "B4", SQL: []string{`REVOKE {owner} FROM {a} GRANTED BY "{admin}"`}},
		{Name: "membership of b gone", Reason: "B4, B5", SQL: []string{`REVOKE {owner} FROM {b} GRANTED BY "{admin}"`}},
		{Name: "SET role of a gone", Reason: "B4", SQL: []string{`ALTER ROLE {a} RESET role`}},
		{Name: "SET role of b wrong", Reason: "B4", SQL: []string{`ALTER ROLE {b} SET role TO 'none'`}},
		{Name: "SET role of both gone", Reason: "B4", SQL: []string{`ALTER ROLE {a} RESET ALL`, `ALTER ROLE {b} RESET ALL`}},
		{Name: "mark of the database gone", Reason: "the record proves whose it is", SQL: []string{`COMMENT ON DATABASE {db} IS NULL`}},
		{Name: "mark of the database changed", Reason: "as above", SQL: []string{`COMMENT ON DATABASE {db} IS 'the blue one'`}},
		{Name: "mark of the owner role gone", Reason: "it says whose it is (B15)", SQL: []string{`COMMENT ON ROLE {owner} IS NULL`}},
		{Name: "marks of the logins gone", Reason: "as above", SQL: []string{`COMMENT ON ROLE {a} IS NULL`, `COMMENT ON ROLE {b} IS ''`}},
		{Name: "CONNECT gone", Reason: "the tenant is locked out", SQL: []string{`REVOKE CONNECT ON DATABASE {db} FROM {a}`}},
		{Name: "all rights on the database gone", Reason: "as above", SQL: []string{`REVOKE ALL ON DATABASE {db} FROM {owner}, {a}, {b}`}},
		{Name: "CREATE on the database", Reason: "a tenant makes no schemas", SQL: []string{`GRANT CREATE ON DATABASE {db} TO {owner}, {b}`}},
		{Name: "owner role may connect", Reason: "S1: a member of it would be in", SQL: []string{`GRANT CONNECT ON DATABASE {db} TO {owner}`}},
		{
			Name: "roles inherit", Reason: "S1: a membership that is forced on a login would have an effect",
			SQL: []string{`ALTER ROLE {owner} INHERIT`, `ALTER ROLE {a} INHERIT`, `ALTER ROLE {b} INHERIT`},
		},
		{Name: "limit of a login lifted", Reason: "S4: other databases count for themselves", SQL: []string{`ALTER ROLE {a} CONNECTION LIMIT -1`}},
		{Name: "limit of a login changed", Reason: "S4", SQL: []string{`ALTER ROLE {b} CONNECTION LIMIT 3`}},
		{
			Name: "foreign member of a login", Reason: "S1",
			SQL: []string{`CREATE ROLE {db}x LOGIN`, `GRANT {a} TO {db}x`}, AsAdmin: true, Clean: []string{`DROP ROLE {db}x`},
		},
		{
			Name: "foreign member of the owner role, who may grant it on", Reason: "S1", AsAdmin: true, Clean: []string{`DROP ROLE {db}x`, `DROP ROLE {db}y`},
			SQL: []string{`CREATE ROLE {db}x LOGIN`, `CREATE ROLE {db}y`, `GRANT {owner} TO {db}x WITH ADMIN OPTION`, `GRANT {owner} TO {db}y`},
		},
		{Name: "a login is a member of the other", Reason: "S1", AsAdmin: true, SQL: []string{`GRANT {a} TO {b}`}},
		{
			Name: "a neighbour's login is forced on it", Reason: "S1", AsAdmin: true, Clean: []string{`DROP ROLE {db}x`},
			SQL: []string{`CREATE ROLE {db}x LOGIN`, `GRANT {db}x TO {a}`, `GRANT {db}x TO {owner}`},
		},
		{Name: "a login may grant the owner role", Reason: "S1", AsAdmin: true, SQL: []string{`GRANT {owner} TO {a} WITH ADMIN OPTION`}},
		{Name: "settings of the logins", Reason: "S6", SQL: []string{
			`ALTER ROLE {a} SET search_path = pg_temp`, `ALTER ROLE {a} SET local_preload_libraries = 'nosuch'`, `ALTER ROLE {a} SET statement_timeout = 1`,
			`ALTER ROLE {b} SET default_transaction_read_only = on`, `ALTER ROLE {b} IN DATABASE {db} SET role = 'none'`,
			`ALTER ROLE {b} IN DATABASE {db} SET "DateStyle" = 'German'`, `ALTER ROLE {owner} SET work_mem = '1MB'`, `ALTER ROLE {b} SET session_authorization = '{b}'`,
		}},
		{Name: "made by an older release", Reason: "S1, S4, F11", SQL: older},
		{Name: "pins of the database", Reason: "F11", SQL: []string{
			`ALTER DATABASE {db} RESET search_path`, `ALTER DATABASE {db} SET lock_timeout = 1`,
			`ALTER DATABASE {db} SET default_transaction_isolation = 'serializable'`,
		}},
		{
			Name: "CONNECT for PUBLIC", Alone: true, Reason: "B24: every login of the server could read along",
			SQL: []string{`GRANT CONNECT ON DATABASE {db} TO PUBLIC`},
		},
		{Name: "TEMPORARY for PUBLIC", Alone: true, Reason: "B24", SQL: []string{`GRANT TEMPORARY ON DATABASE {db} TO PUBLIC`}},
		{Name: "everything for PUBLIC", Alone: true, Reason: "B24", SQL: []string{`GRANT ALL ON DATABASE {db} TO PUBLIC`}},
		{Name: "limit lifted", Reason: "B45", SQL: []string{`ALTER DATABASE {db} CONNECTION LIMIT -1`}},
		{Name: "limit lowered", Reason: "B45", SQL: []string{`ALTER DATABASE {db} CONNECTION LIMIT 1`}},
		{Name: "database closed", Reason: "no login gets in", SQL: []string{`ALTER DATABASE {db} ALLOW_CONNECTIONS false`}},
		{Name: "everything at once", Alone: true, Reason: "repairs must not depend on each other", SQL: []string{
			`DROP OWNED BY {b}`, `DROP ROLE {b}`, `ALTER ROLE {a} RESET role`, `COMMENT ON DATABASE {db} IS NULL`, `REVOKE ALL ON DATABASE {db} FROM {a}`,
			`GRANT ALL ON DATABASE {db} TO PUBLIC`, `ALTER DATABASE {db} CONNECTION LIMIT 1`, `ALTER DATABASE {db} ALLOW_CONNECTIONS false`,
		}},
	}
	if ownsSchema {
		d.Breaks = append(d.Breaks,
			enginetest.Break{Name: "rights on the schema gone", Reason: "B39", Inside: true, SQL: []string{`REVOKE ALL ON SCHEMA public FROM {owner}`}},
			enginetest.Break{Name: "CREATE on the schema gone", Reason: "B39", Inside: true, SQL: []string{`REVOKE CREATE ON SCHEMA public FROM {owner}`}},
			enginetest.Break{Name: "schema for PUBLIC", Reason: "B24", Inside: true, SQL: []string{`GRANT ALL ON SCHEMA public TO PUBLIC`}})
	}
	if cloud {
		grant := `GRANT {owner} TO CURRENT_USER`
		if version >= 16 {
			grant += " WITH INHERIT TRUE, SET TRUE"
		}
		d.Breaks = append(d.Breaks,
			enginetest.Break{Name: "admin left a member", Reason: "B38", AsAdmin: true, SQL: []string{grant}})
	}

	d.Findings = []enginetest.Finding{
		{Name: "may create databases", Reason: "promise 1", SQL: []string{`ALTER ROLE {a} CREATEDB`}, Undo: []string{`ALTER ROLE {a} NOCREATEDB`}, Want: "{a}"},
		{
			Name: "may create roles", Reason: "promise 1",
			SQL: []string{`ALTER ROLE {owner} CREATEROLE`}, Undo: []string{`ALTER ROLE {owner} NOCREATEROLE`}, Want: "{owner}",
		},
		{
			Name: "may run programs, by way of the owner role", Reason: "a login that may do this acts as the server's operating system user",
			SQL:  []string{`GRANT pg_execute_server_program TO {owner}`},
			Undo: []string{`REVOKE pg_execute_server_program FROM {owner}`}, Want: "pg_execute_server_program",
		},
		{
			Name: "another tenant's database open to PUBLIC", Alone: true, Reason: "B24",
			SQL:  []string{`GRANT CONNECT ON DATABASE {other} TO PUBLIC`},
			Undo: []string{`REVOKE CONNECT ON DATABASE {other} FROM PUBLIC`}, Want: "{other}",
		},
		{
			Name: "another tenant's database open to the login", Reason: "B24",
			SQL:  []string{`GRANT CONNECT ON DATABASE {other} TO {a}`},
			Undo: []string{`REVOKE CONNECT ON DATABASE {other} FROM {a}`}, Want: "{other}",
		},
		{Name: "not the owner role", Reason: "B4", SQL: []string{`ALTER ROLE {a} RESET role`}, Undo: []string{`ALTER ROLE {a} SET role TO {owner}`}, Want: "{owner}"},
		{
			Name: "no tables in the schema", Reason: "B39", Inside: true, Want: "schema public",
			SQL:  []string{`REVOKE CREATE ON SCHEMA public FROM {owner}, PUBLIC`},
			Undo: []string{`GRANT USAGE, CREATE ON SCHEMA public TO {owner}`},
		},
		{
			Name: "read-only", Reason: "B47",
			SQL:  []string{`ALTER ROLE {a} SET default_transaction_read_only = on`},
			Undo: []string{`ALTER ROLE {a} RESET default_transaction_read_only`}, Want: "read-only",
		},
	}

	if !cloud { // from 16 on the cloud admin is a member of the roles that it made, and circles are not allowed
		d.Findings = append(d.Findings, enginetest.Finding{
			Name: "a member of the admin", Reason: "promise 1",
			SQL: []string{`GRANT "{admin}" TO {a}`}, Undo: []string{`REVOKE "{admin}" FROM {a}`}, Want: "{admin}",
		})
	}

	const login = `CREATE ROLE {user} LOGIN PASSWORD '{password}'`
	d.Admins = []enginetest.WeakAdmin{
		{Name: "nothing", Reason: "the attributes are named", SQL: []string{login}, Want: `CREATEDB CREATEROLE`},
		{Name: "no CREATEROLE", Reason: "the attributes are named", SQL: []string{login + " CREATEDB"}, Want: `CREATEDB CREATEROLE`},
		{Name: "no CREATEDB", Reason: "the attributes are named", SQL: []string{login + " CREATEROLE"}, Want: `CREATEDB CREATEROLE`},
		{
			Name: "another admin's roles", Reason: "only their maker may grant them (from 16 on), so they have to be handed over", Want: "another admin",
			SQL: []string{login + " CREATEDB CREATEROLE", `CREATE DATABASE {db} ALLOW_CONNECTIONS false`, `COMMENT ON DATABASE {db} IS '{marker}'`},
		},
	}
	d.Foreign = []string{`CREATE DATABASE {db}`}
	d.Close = []string{`REVOKE ALL ON DATABASE {db} FROM {a}, {b}`}
	d.DropDatabase = []string{`DROP DATABASE {db} WITH (FORCE)`}
	d.DropLogins = []string{`DROP ROLE {a}, {b}, {owner}`}
	d.Dump = []string{ // never open to PUBLIC, or it would be a finding for others
		`CREATE DATABASE {db} TEMPLATE template0 ALLOW_CONNECTIONS false`, `REVOKE ALL ON DATABASE {db} FROM PUBLIC`, `ALTER DATABASE {db} ALLOW_CONNECTIONS true`,
	}
	d.Attempts = postgresAttempts(version, s.AdminUser, d.Connector.User)
}

// postgresAttempts are the attempts of a tenant on PostgreSQL.
func postgresAttempts(version int, super, admin string) []enginetest.Attempt {
	no := []string{"42501"} // insufficient_privilege
	out := []enginetest.Attempt{
		{Name: "connect to the neighbour", Reason: "B22, B24", Database: "{other}", Codes: no},
		{Name: "connect to template0", Reason: "it is closed to every login", Database: "template0", Codes: []string{"55000"}},
		{Name: "create a database", Reason: "promise 1", SQL: []string{`CREATE DATABASE loot`}, Codes: no},
		{Name: "create a role", Reason: "promise 1", SQL: []string{`CREATE ROLE loot`}, Codes: no},
		{Name: "create a login", Reason: "promise 1", SQL: []string{`SET ROLE NONE`, `CREATE USER loot PASSWORD 'x'`}, Codes: no},
		{Name: "create a schema", Reason: "kine needs none", SQL: []string{`CREATE SCHEMA loot`}, Codes: no},
		{Name: "drop its database", Reason: "the admin owns it", SQL: []string{`DROP DATABASE {db}`}, Codes: no},
		{Name: "drop its database as itself", Reason: "the admin owns it", SQL: []string{`SET ROLE NONE`, `DROP DATABASE {db}`}, Codes: no},
		{Name: "drop the neighbour's database", Reason: "promise 1", SQL: []string{`DROP DATABASE {other} WITH (FORCE)`}, Codes: no},
		{Name: "rename its database", Reason: "the admin owns it", SQL: []string{`ALTER DATABASE {db} RENAME TO loot`}, Codes: no},
		{Name: "close its database", Reason: "the admin owns it", SQL: []string{`ALTER DATABASE {db} ALLOW_CONNECTIONS false`}, Codes: no},
		{Name: "make its database a template", Reason: "any login with CREATEDB could copy it", SQL: []string{`ALTER DATABASE {db} IS_TEMPLATE true`}, Codes: no},
		{Name: "raise its connection limit", Reason: "B45", SQL: []string{`ALTER DATABASE {db} CONNECTION LIMIT 1000`}, Codes: no},
		{
			Name:   "open its database",
			Reason: "B24: the server only warns that nothing was granted; the snapshot at the end shows it",
			SQL:    []string{`GRANT CONNECT ON DATABASE {db} TO PUBLIC`},
		},
		{Name: "own its database", Reason: "the admin owns it", SQL: []string{`ALTER DATABASE {db} OWNER TO {owner}`}, Codes: no},
		{Name: "set what the server does in its database", Reason: "the admin owns it", SQL: []string{`ALTER DATABASE {db} SET work_mem = '1GB'`}, Codes: no},
		{Name: "become the admin", Reason: "promise 1", SQL: []string{fmt.Sprintf(`SET ROLE "%s"`, admin)}, Codes: no},
		{Name: "become the superuser", Reason: "promise 1", SQL: []string{fmt.Sprintf(`SET ROLE "%s"`, super)}, Codes: no},
		{Name: "begin a session as the superuser", Reason: "promise 1", SQL: []string{fmt.Sprintf(`SET SESSION AUTHORIZATION "%s"`, super)}, Codes: no},
		{Name: "become the neighbour", Reason: "promise 1", SQL: []string{`SET ROLE {otherowner}`}, Codes: no},
		{Name: "begin a session as the neighbour", Reason: "promise 1", SQL: []string{`SET SESSION AUTHORIZATION {othera}`}, Codes: no},
		{Name: "hand its role to the neighbour", Reason: "B22", SQL: []string{`GRANT {owner} TO {othera}`}, Codes: no},
		{Name: "hand its role to the neighbour, as itself", Reason: "B22", SQL: []string{`SET ROLE NONE`, `GRANT {owner} TO {othera}`}, Codes: no},
		{Name: "take the neighbour's role", Reason: "promise 1", SQL: []string{`GRANT {otherowner} TO {a}`}, Codes: no},
		{Name: "take pg_read_all_data", Reason: "promise 1", SQL: []string{`GRANT pg_read_server_files TO {a}`}, Codes: no},
		{Name: "change the neighbour's password", Reason: "promise 1", SQL: []string{`ALTER ROLE {othera} PASSWORD 'x'`}, Codes: no},
		{Name: "change the superuser's password", Reason: "promise 1", SQL: []string{fmt.Sprintf(`ALTER ROLE "%s" PASSWORD 'x'`, super)}, Codes: no},
		{Name: "change its passwords as the owner role", Reason: "B4: one slot never changes the other's", SQL: []string{`ALTER ROLE {a} PASSWORD 'x'`}, Codes: no},
		{Name: "drop its owner role", Reason: "the admin made it", SQL: []string{`DROP ROLE {owner}`}, Codes: no},
		{Name: "become a superuser", Reason: "promise 1", SQL: []string{`SET ROLE NONE`, `ALTER ROLE CURRENT_USER SUPERUSER`}, Codes: no},
		{Name: "take CREATEDB", Reason: "promise 1", SQL: []string{`SET ROLE NONE`, `ALTER ROLE CURRENT_USER CREATEDB`}, Codes: no},
		{Name: "lift the role's own limit", Reason: "B45", SQL: []string{`SET ROLE NONE`, `ALTER ROLE CURRENT_USER CONNECTION LIMIT -1`}, Codes: no},
		{Name: "read password hashes", Reason: "B33", SQL: []string{`SELECT rolpassword FROM pg_authid`}, Codes: no},
		{Name: "read password hashes by the view", Reason: "B33", SQL: []string{`SELECT passwd FROM pg_shadow`}, Codes: no},
		{Name: "run a program", Reason: "the server's files are not the tenant's", SQL: []string{`COPY (SELECT 1) TO PROGRAM 'cat'`}, Codes: no},
		{Name: "read a file", Reason: "as above", SQL: []string{`CREATE TEMPORARY TABLE f (l text)`, `COPY f FROM '/etc/passwd'`}, Codes: no},
		{Name: "write a file", Reason: "as above", SQL: []string{`COPY (SELECT 1) TO '/tmp/loot'`}, Codes: no},
		{Name: "read a file by function", Reason: "as above", SQL: []string{`SELECT pg_read_file('/etc/passwd')`}, Codes: no},
		{Name: "read a file into a large object", Reason: "as above", SQL: []string{`SELECT lo_import('/etc/passwd')`}, Codes: no},
		{Name: "list files", Reason: "as above", SQL: []string{`SELECT pg_ls_dir('.')`}, Codes: no},
		{Name: "load a library", Reason: "as above", SQL: []string{`CREATE FUNCTION loot() RETURNS int LANGUAGE c AS '/tmp/loot.so'`}, Codes: no},
		{Name: "change the server's settings", Reason: "all tenants share them", SQL: []string{`ALTER SYSTEM SET max_connections = 10`}, Codes: no},
		{Name: "switch constraints and triggers off", Reason: "a superuser's setting", SQL: []string{`SET session_replication_role = 'replica'`}, Codes: no},
		{Name: "make a tablespace", Reason: "the server's files are not the tenant's", SQL: []string{`CREATE TABLESPACE loot LOCATION '/tmp'`}, Codes: no},
		{Name: "switch the log off", Reason: "the admin's evidence", SQL: []string{`SET log_statement = 'none'`}, Codes: no},
		{
			Name: "end other sessions", Reason: "promise 1",
			SQL:   []string{fmt.Sprintf(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = '%s' LIMIT 1`, super)},
			Codes: no,
		},
		{Name: "subscribe", Reason: "a way to read other servers", SQL: []string{`CREATE SUBSCRIPTION loot CONNECTION 'host=localhost' PUBLICATION p`}, Codes: no},
		{Name: "replicate", Reason: "it would read every database", SQL: []string{`SELECT pg_create_physical_replication_slot('loot')`}, Codes: no},

		// PostgreSQL cannot hide these facts, so the threat model must name them.
		{
			Name: "possible: list databases", Reason: "the names are hashes, so they tell nothing",
			SQL: []string{`SELECT 1 FROM pg_database WHERE datname = '{other}'`}, Rows: ptr(1),
		},
		{Name: "possible: list roles", Reason: "as above", SQL: []string{`SELECT 1 FROM pg_roles WHERE rolname = '{othera}'`}, Rows: ptr(1)},
		{
			Name: "possible: read marks", Reason: "they are hashes of values other than the names",
			SQL: []string{`SELECT 1 FROM pg_shdescription WHERE description LIKE 'dbconnector:%' LIMIT 1`}, Rows: ptr(1),
		},
		{
			Name: "others' statements are hidden", Reason: "pg_stat_activity shows the user, not the statement",
			SQL: []string{fmt.Sprintf(
				`SELECT 1 FROM pg_stat_activity WHERE usename IN ('%s', '%s') AND query IS NOT NULL AND query <> '<insufficient privilege>'`,
				super, strings.ReplaceAll(admin, "'", "''"),
			)},
			Rows: ptr(0),
		},
		{Name: "possible: connect to postgres", Reason: "PUBLIC may, unless the admin closes it: Ensure warns", Database: "postgres", SQL: []string{`SELECT 1`}},
		{Name: "possible: connect to template1", Reason: "as above", Database: "template1", SQL: []string{`SELECT 1`}},
		{
			Name: "possible: temporary tables in postgres", Reason: "PUBLIC may; they end with the session",
			Database: "postgres",
			SQL:      []string{`CREATE TEMPORARY TABLE loot (i int)`},
		},
		{
			Name:   "possible: large objects in postgres",
			Reason: "PUBLIC may, on every version; they take space outside the tenant's database", Database: "postgres",
			SQL: []string{`SELECT lo_unlink(lo_create(0))`},
		},
	}
	tables := enginetest.Attempt{
		Name: "create tables in postgres", Reason: "up to 14 PUBLIC may (CVE-2018-1058), from 15 on not",
		Database: "postgres",
		SQL:      []string{`SET ROLE NONE`, `CREATE TABLE public.{db} (i int)`}, Codes: no,
	}
	templates := enginetest.Attempt{
		Name: "create tables in template1", Reason: "up to 14 PUBLIC may, and every database made from it later has them",
		Database: "template1",
		SQL:      []string{`SET ROLE NONE`, `CREATE TABLE public.{db} (i int)`}, Codes: no,
	}
	if version < 15 {
		tables.Codes, templates.Codes = nil, nil
		tables.Name, templates.Name = "possible: "+tables.Name, "possible: "+templates.Name
		tables.SQL, templates.SQL = append(tables.SQL, `DROP TABLE public.{db}`), append(templates.SQL, `DROP TABLE public.{db}`)
	}
	return append(out, tables, templates)
}
