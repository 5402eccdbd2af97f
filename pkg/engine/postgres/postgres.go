// SPDX-License-Identifier: Apache-2.0

// Package postgres does on a PostgreSQL server (13 to 18) what package engine asks for.
//
// The admin owns the tenant's database and the tenant does not, so that a managed service's admin, who is no superuser, never
// needs SET ROLE, and the tenant can neither drop nor open its database. Both logins are members of an owner role without
// login and begin their sessions as that role, so that either reads and writes what the other made (docs/failures.md B4).
//
// The catalog is asked first and only what is missing runs, so a second run changes nothing, and no statement fails in the
// ordinary course of things: the server's log stays clean, and a refused statement would stand in it in full. Passwords
// travel as SCRAM verifiers, made here.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// maintenance are the names of the database in which the admin works and holds his locks: the first of them that exists.
// Advisory locks are local to one database, so all inits of a server must come to the same one, and what decides is which
// databases there are, which is the same for all, and nothing else. Some services have "defaultdb" in place of "postgres".
var maintenance = []string{"postgres", "defaultdb", "template1"}

// attempts bounds how often a step is run again after a lost race. The advisory lock makes races rare: what is left are
// people, and poolers that do not keep a session.
const attempts = 5

// invalid is the connection limit of a database that is being dropped. It stays if that is interrupted.
const invalid = -2

// Server is a PostgreSQL server.
type Server struct {
	server  dbserver.Server
	program string
	pooled  atomic.Bool // a pooler is in between, which keeps sessions and does not hand on settings
}

var _ engine.Engine = (*Server)(nil)

// New prepares for a server; it does not connect. program is the application_name that the server's admin sees.
func New(server dbserver.Server, program string) *Server {
	return &Server{server: server, program: program}
}

// DSN is kine's endpoint for a login.
func (s *Server) DSN(login tenant.Login) (string, error) { return DSN(s.server, login) }

// adminSettings hold for the admin's sessions, whatever his login, the database and the server have for defaults. Operators
// cannot all be named with their schema, and a better match in public wins over the one in pg_catalog: a login that may create
// there (a tenant in its own database, up to 14 any login in the maintenance database) would have code of his run with the
// admin's rights (CVE-2018-1058).
//
// Every login can hold locks that these sessions wait for (docs/failures.md S3), so no wait for one lasts longer than
// lock_timeout: it ends with the name of who holds the lock.
var adminSettings = map[string]string{"search_path": "pg_catalog, pg_temp", "lock_timeout": "10s"}

// tenantSettings hold for sessions of a tenant's login in which we ask something: what the login has for defaults is set by
// any client that has its password, and operators of its own would answer in the server's place (docs/failures.md S6, S10). Login and
// Enter go without, as kine does: they are to notice what keeps a control plane out.
var tenantSettings = map[string]string{
	"search_path":                    "pg_catalog, pg_temp",
	"statement_timeout":              "0",
	"lock_timeout":                   "10s",
	"default_transaction_isolation":  "read committed",
	"default_transaction_deferrable": "off",
}

// connect opens one connection, with settings of its own, and does not try again. Where the server does not let the login
// through in time, it finds out why.
func (s *Server) connect(ctx context.Context, user string, password dbserver.Password, database string, settings map[string]string) (*pgx.Conn, error) {
	limited, cancel := spare(ctx)
	defer cancel()
	conn, answered, err := s.dial(limited, user, password, database, settings)
	switch {
	case err == nil:
		return s.settled(limited, conn, settings)
	case answered && timedOut(err) && ctx.Err() == nil:
		err = s.why(ctx, user, password, database)
	case code(err) == protocolViolation && len(settings) > 0:
		err = s.unsettled(limited, err, user, password, database, settings)
	}
	err = classify(err)
	hint := ""
	if s.server.SSLMode == dbserver.Disable && code(err) == invalidAuthorization {
		hint = ` (in clear text, since the connector's key "sslMode" is "disable"; the server may insist on TLS)`
	}
	return nil, fmt.Errorf("logging in to %s as %q: %w%s", s.server.Address(), user, err, hint)
}

// attempt marks the context of a connection that dial makes: pgx makes others by itself, in the background and with a context of
// its own, to cancel what was given up.
type attempt struct{}

// dial is one attempt to connect. answered says that the server has said something.
func (s *Server) dial(ctx context.Context, user string, password dbserver.Password, database string, settings map[string]string) (
	conn *pgx.Conn, answered bool, err error,
) {
	// Only ParseConfig makes a usable config. It also reads the PG… variables of the environment, so everything that
	// matters is overwritten.
	config, err := pgx.ParseConfig("sslmode=disable host=localhost")
	if err != nil {
		return nil, false, fault.New(fault.Refused, "reading the environment's PG variables failed: remove them")
	}
	config.Host, config.Port = s.server.Host, s.server.Port
	config.User, config.Password, config.Database = user, password.Reveal(), database
	config.Fallbacks = nil // no second try in clear text, no second host
	config.ValidateConnect = nil
	config.ConnectTimeout = 0 // the context's deadline counts
	config.KerberosSrvName, config.KerberosSpn = "", ""
	config.RuntimeParams = map[string]string{"application_name": s.program}
	maps.Copy(config.RuntimeParams, settings)
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // one round trip, no prepared statement: a pooler may be in between
	if config.TLSConfig, err = s.server.TLSConfig(); err != nil {
		return nil, false, fault.New(fault.Refused, "preparing TLS: %w", err)
	}
	// pgconn would give the first address of a name all the time that there is. The dialer divides it among all of them.
	config.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	var seen *sniffer
	dialer := &net.Dialer{KeepAlive: 15 * time.Second}
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err != nil || ctx.Value(attempt{}) == nil {
			return conn, err
		}
		seen = &sniffer{Conn: conn}
		return seen, nil
	}
	conn, err = pgx.ConnectConfig(context.WithValue(ctx, attempt{}, true), config)
	if err != nil && seen != nil {
		answered = seen.answered()
		if verdict := seen.verdict(config.TLSConfig != nil); verdict != nil && code(err) == "" {
			err = verdict
		}
	}
	return conn, answered, err
}

// hangUp ends a session politely, in bounded time, even when the caller's time is up.
func hangUp(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // the session ends either way
}

// Login logs in as a tenant to its database and ends the session again. See package engine for the classes of its error.
func (s *Server) Login(ctx context.Context, login tenant.Login) error {
	conn, err := s.connect(ctx, login.User, login.Password, login.Database, nil)
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)
	return s.primary(conn)
}

// Ready is Login, and asks whether the login can do what a control plane does, and whether it is what Ensure made it; see
// package engine.
func (s *Server) Ready(ctx context.Context, login tenant.Login, names tenant.Names) error {
	conn, err := s.connect(ctx, login.User, login.Password, login.Database, tenantSettings)
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)
	if err := s.primary(conn); err != nil {
		return err
	}
	// A login that does not begin as the owner role makes tables that the other slot cannot use (docs/failures.md B4).
	var owner, schema, table bool
	var settings, strangers []string
	err = conn.QueryRow(ctx, `
		SELECT current_user = $1,
		       pg_catalog.has_schema_privilege('public', 'USAGE') AND pg_catalog.has_schema_privilege('public', 'CREATE'),
		       COALESCE((SELECT pg_catalog.bool_and(pg_catalog.has_table_privilege(pg_catalog.to_regclass('public.kine'), right_))
		                 FROM pg_catalog.unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) right_), true),
		       ARRAY(SELECT DISTINCT n.name `+entries+` AND r.rolname = session_user
		             AND (n.name = 'role' AND s.setdatabase <> 0 OR n.name <> 'role' AND `+settable("'user'")+`) ORDER BY 1),
		       ARRAY(SELECT DISTINCT u.rolname::text `+members+` ORDER BY 1)`,
		names.Owner, names.Database, names.User(tenant.A), names.User(tenant.B)).Scan(&owner, &schema, &table, &settings, &strangers)
	lacks := ""
	switch {
	case err != nil:
		return fmt.Errorf("asking what login %q may do: %w", login.User, classify(err))
	case !owner:
		lacks = fmt.Sprintf("does not begin its sessions as role %q", names.Owner)
	case !schema:
		lacks = fmt.Sprintf("may not create tables in schema public of database %q", login.Database)
	case !table:
		lacks = fmt.Sprintf("may not read and write table kine of database %q", login.Database)
	case len(settings) > 0:
		lacks = "has settings that dbconnector did not make: " + strings.Join(shown(settings), ", ")
	case len(strangers) > 0:
		lacks = "has members that dbconnector did not make, or its owner role has: " + strings.Join(shown(strangers), ", ")
	default:
		return nil
	}
	return fault.New(fault.NoAccess, "login %q %s", login.User, lacks)
}

// HasData is Login, and looks for kine's data; see package engine.
func (s *Server) HasData(ctx context.Context, login tenant.Login) (bool, error) {
	conn, err := s.connect(ctx, login.User, login.Password, login.Database, nil)
	if err != nil {
		return false, err
	}
	defer hangUp(ctx, conn)
	if err := s.primary(conn); err != nil {
		return false, err
	}
	// Schema public is the only one in which a tenant may create tables. Asked in two steps, so that a table that is not
	// there yet leaves no error in the server's log.
	var table bool
	var readOnly string
	if err := conn.QueryRow(ctx, "SELECT pg_catalog.to_regclass('public.kine') IS NOT NULL, pg_catalog.current_setting('transaction_read_only')").
		Scan(&table, &readOnly); err != nil {
		return false, fmt.Errorf("looking for data in database %q: %w", login.Database, classify(err))
	}
	if readOnly == "on" {
		return false, s.readOnly(ctx, conn, login)
	}
	if !table {
		return false, nil
	}
	// One simple query is one round trip and one transaction. A setting that outlived it would be kine's behind a pooler.
	answers, err := conn.PgConn().Exec(ctx, "SET LOCAL lock_timeout = '3s'; SELECT EXISTS (SELECT 1 FROM public.kine)").ReadAll()
	switch {
	case code(err) == insufficientPrivilege:
		return true, nil // another owner's, from a restore: that is not nothing, and kine will say what is wrong with it
	case code(err) == lockNotAvailable:
		return false, s.locked(ctx, conn, login)
	case err != nil:
		return false, fmt.Errorf("looking for data in database %q: %w", login.Database, classifyTheirs(err))
	}
	return len(answers) == 2 && len(answers[1].Rows) == 1 && string(answers[1].Rows[0][0]) == "t", nil
}

// primary refuses a standby.
func (s *Server) primary(conn *pgx.Conn) error {
	// From 14 on the server reports this with every login, so it costs nothing to notice a connector or a DNS name that was
	// left pointing at a standby. kine would start on it and fail at its first write.
	if conn.PgConn().ParameterStatus("in_hot_standby") == "on" {
		return fault.New(fault.Refused, "%s is a standby (in_hot_standby): point the connector at the primary", s.server.Address())
	}
	return nil
}

// readOnly says why a tenant's session cannot write: kine would start, and fail at its first write. What the login has set for
// itself the admin path takes back; the rest, such as a provider's answer to a full disk, is a human's matter. (docs/failures.md F12)
func (s *Server) readOnly(ctx context.Context, conn *pgx.Conn, login tenant.Login) error {
	var recovery bool
	var source string
	err := conn.QueryRow(ctx, `SELECT pg_catalog.pg_is_in_recovery(), (SELECT source FROM pg_catalog.pg_settings
		WHERE name OPERATOR(pg_catalog.=) 'default_transaction_read_only')`).Scan(&recovery, &source)
	switch {
	case err != nil:
		return fmt.Errorf("asking why database %q is read-only: %w", login.Database, classify(err))
	case recovery:
		return fault.New(fault.Refused, "%s is a standby (pg_is_in_recovery): point the connector at the primary", s.server.Address())
	case source == "user", source == "database user":
		return fault.New(fault.NoAccess, "login %q has set itself to be read-only (default_transaction_read_only)", login.User)
	case source == "database":
		return fault.New(fault.Refused, "database %q is read-only: ALTER DATABASE %s RESET default_transaction_read_only", login.Database, quote(login.Database))
	}
	return fault.New(fault.Refused, "the server is read-only (default_transaction_read_only): make room where its disk is full, and switch the setting off "+
		"where no service does that by itself")
}

// Verify logs in as a tenant and asks the server what it could do there. It asks and does not try, so that nothing but
// the answer is left behind.
func (s *Server) Verify(ctx context.Context, login tenant.Login, names tenant.Names) ([]string, error) {
	conn, err := s.connect(ctx, login.User, login.Password, login.Database, tenantSettings)
	if err != nil {
		return nil, err
	}
	defer hangUp(ctx, conn)

	var current string
	var readOnly, creates bool
	var mighty, foreign, open []string
	// What a role could do by SET ROLE counts where it is an admin's; by inheritance alone where it is another tenant's. A neighbour's
	// does not count at all: up to 14 he may force it on this login, and after an upgrade to 16 or later that is inherited, and
	// no admin but a superuser can take it back (docs/failures.md S1). That it is there is a warning.
	//
	// Whether a database is open and to whom is read from one row: has_database_privilege looks at a newer or older state of
	// it than the query does, and would see a neighbour that is just being made as open to PUBLIC.
	err = conn.QueryRow(ctx, `
		SELECT current_user::text,
		       pg_catalog.current_setting('transaction_read_only') = 'on',
		       pg_catalog.has_schema_privilege('public', 'CREATE') AND pg_catalog.has_schema_privilege('public', 'USAGE'),
		       ARRAY(SELECT rolname::text FROM pg_catalog.pg_roles
		             WHERE pg_catalog.pg_has_role(session_user, oid, 'MEMBER')
		               AND (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls
		                    OR rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files')) ORDER BY 1),
		       ARRAY(SELECT rolname::text FROM pg_catalog.pg_roles
		             WHERE pg_catalog.pg_has_role(session_user, oid, 'MEMBER') AND rolname NOT IN (session_user, $2) ORDER BY 1),
		       ARRAY(SELECT datname::text FROM pg_catalog.pg_database
		             WHERE datname ~ $1 AND datname <> pg_catalog.current_database() AND datallowconn
		               AND EXISTS (SELECT 1 FROM pg_catalog.aclexplode(COALESCE(datacl, pg_catalog.acldefault('d', datdba)))
		                           WHERE privilege_type = 'CONNECT' AND (grantee = 0 OR pg_catalog.pg_has_role(session_user, grantee, 'USAGE')
		                                AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_roles g WHERE g.oid = grantee AND g.rolname <> session_user AND g.rolname ~ $3)))
		             ORDER BY 1)`,
		tenant.NamePattern, names.Owner, rolePattern).Scan(&current, &readOnly, &creates, &mighty, &foreign, &open)
	if err != nil {
		return nil, fmt.Errorf("asking what login %q may do: %w", login.User, classify(err))
	}
	switch {
	case readOnly:
		return nil, fault.New(fault.Refused, "login %q finds the server read-only: point the connector at the primary", login.User)
	case current != names.Owner:
		return nil, fault.New(fault.Refused, "login %q works as role %q and not as %q: what one slot creates, the other could not use", login.User, current,
			names.Owner)
	case !creates:
		return nil, fault.New(fault.Refused, "login %q may not create tables in schema public of database %q: grant USAGE and CREATE on it to %q", login.User,
			login.Database, names.Owner)
	case len(mighty) > 0:
		return nil, fault.New(fault.Refused, "login %q has more rights than a tenant may have, through role %s: revoke what was granted to it", login.User,
			strings.Join(shown(mighty), ", "))
	case len(open) > 0:
		return nil, fault.New(fault.Refused, "login %q could connect to another tenant's database %s: revoke CONNECT on it from PUBLIC, or from the role that it "+
			"was granted to", login.User, strings.Join(open, ", "))
	}
	var warnings []string
	if len(foreign) > 0 {
		warnings = append(warnings, fmt.Sprintf("login %q is a member of role %s, which dbconnector did not grant", login.User, strings.Join(shown(foreign), ", ")))
	}
	return warnings, nil
}

// Admin is a session of the admin in the maintenance database.
type Admin struct {
	server   *Server
	conn     *pgx.Conn
	database string // the maintenance database
	login    string // who logged in. session.user is who does the work, another one where the login begins with SET role
	password dbserver.Password
	session  session
}

// Admin logs in as the admin and checks that he can do the work: the server takes writes, and he may create databases and
// roles. The caller closes the session.
func (s *Server) Admin(ctx context.Context, user string, password dbserver.Password) (engine.Admin, error) {
	conn, database, err := s.maintain(ctx, user, password)
	if err != nil {
		return nil, err
	}
	a := &Admin{server: s, conn: conn, database: database, login: user, password: password}
	if err := a.begin(ctx); err != nil {
		hangUp(ctx, conn)
		return nil, err
	}
	return a, nil
}

// maintain opens a session in the maintenance database. Only that a database is not there leads to the next one: one that this
// login may not enter, or that is shut, is still the one to which the others come.
func (s *Server) maintain(ctx context.Context, user string, password dbserver.Password) (*pgx.Conn, string, error) {
	var err error
	for _, database := range maintenance {
		var conn *pgx.Conn
		conn, err = s.connect(ctx, user, password, database, adminSettings)
		switch {
		case err == nil:
			return conn, database, nil
		case code(err) == insufficientPrivilege:
			return nil, "", fault.New(fault.NoAccess, "%w: GRANT CONNECT ON DATABASE %s TO %s", err, quote(database), quote(user))
		case code(err) == notInState:
			return nil, "", fault.New(fault.NoAccess, "%w: ALTER DATABASE %s ALLOW_CONNECTIONS true", err, quote(database))
		case code(err) != invalidCatalogName:
			return nil, "", err
		}
	}
	return nil, "", err
}

func (a *Admin) introduce(ctx context.Context) error {
	var recovery, readOnly bool
	var idle *string
	err := a.conn.QueryRow(ctx, `
		SELECT pg_catalog.current_setting('server_version_num')::int, pg_catalog.pg_is_in_recovery(),
		       pg_catalog.current_setting('transaction_read_only') = 'on',
		       r.rolname::text, r.rolsuper, r.rolcreatedb, r.rolcreaterole,
		       CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 140000
		            THEN pg_catalog.set_config('idle_session_timeout', '30s', false) END
		FROM pg_catalog.pg_roles r WHERE r.rolname = current_user`).
		Scan(&a.session.version, &recovery, &readOnly, &a.session.user, &a.session.superuser, &a.session.createDB, &a.session.createRole, &idle)
	if err != nil {
		return fmt.Errorf("asking what the admin may do: %w", classify(err))
	}
	a.session.readOnly = recovery || readOnly
	switch {
	case a.session.version < 130000:
		return fault.New(fault.Refused, "the server is PostgreSQL %d: the oldest supported version is 13", a.session.version/10000)
	case recovery:
		return fault.New(fault.Refused, "the server is a standby (pg_is_in_recovery): point the connector at the primary")
	case readOnly:
		return fault.New(fault.Refused, "the server is read-only (transaction_read_only): point the connector at the primary, or switch "+
			"default_transaction_read_only off")
	case !a.session.superuser && (!a.session.createDB || !a.session.createRole):
		return fault.New(fault.Refused, `the admin %q may not create databases and roles: ALTER ROLE %s CREATEDB CREATEROLE`, a.session.user, quote(a.session.user))
	}
	return nil
}

// Close ends the session and with it its lock.
func (a *Admin) Close() { hangUp(context.Background(), a.conn) }

// Lock waits for the tenant's lock on the server. It lasts until Close.
func (a *Admin) Lock(ctx context.Context, names tenant.Names) error {
	// hashtextextended folds the name into the lock's 64 bits; a collision would only make one tenant wait for another.
	if _, err := a.conn.Exec(ctx, "SELECT pg_catalog.pg_advisory_lock(pg_catalog.hashtextextended($1, 0))", names.Lock); err != nil {
		return fmt.Errorf("waiting for the tenant's lock: %w", a.holdsLock(ctx, names.Lock, classify(err)))
	}
	before := maintenance[:slices.Index(maintenance, a.database)]
	if len(before) == 0 {
		return nil
	}
	// Others may be in a database that has been made since, and that comes before this one.
	var another string
	err := a.conn.QueryRow(ctx, `SELECT COALESCE(pg_catalog.min(d.datname::text), '') FROM pg_catalog.pg_database d WHERE d.datname = ANY($1)`,
		before).Scan(&another)
	switch {
	case err != nil:
		return fmt.Errorf("waiting for the tenant's lock: %w", classify(err))
	case another != "":
		return fault.New(fault.Unavailable, "waiting for the tenant's lock: database %q was made meanwhile, and the lock belongs there", another)
	}
	return nil
}

// Ensure brings about what is wanted; see package engine.
func (a *Admin) Ensure(ctx context.Context, spec engine.Spec) (engine.Outcome, error) {
	var outcome engine.Outcome
	var seen catalog
	run := func(what func() error) error {
		var err error
		for range attempts {
			if err = what(); !lostRace(err) {
				break
			}
		}
		err = a.held(ctx, err)
		if fault.Is(err, fault.NoAccess) {
			return explain(err, a.session.user, a.handOver(ctx, spec.Database, seen.foreign, rolesOf(spec.Names)...))
		}
		return explain(err, a.session.user, "")
	}

	if err := run(func() (err error) {
		if seen, err = a.look(ctx, spec); err != nil {
			return err
		}
		if len(seen.foreign) > 0 {
			if err := a.disown(ctx, seen.foreign, spec.Names, &outcome); err != nil {
				return err
			}
			if seen, err = a.look(ctx, spec); err != nil { // what was granted by way of them went with them
				return err
			}
		}
		verifiers := map[tenant.Slot]string{}
		for slot, password := range spec.Passwords {
			if verifiers[slot], err = verifier(password); err != nil {
				return err
			}
		}
		return a.transaction(ctx, a.conn, planRoles(seen, a.session, spec, verifiers), &outcome)
	}); err != nil {
		return outcome, fmt.Errorf("ensuring the tenant's roles: %w", err)
	}
	if err := run(func() (err error) {
		if seen, err = a.look(ctx, spec); err != nil { // again: it may have gone meanwhile
			return err
		}
		if seen.database == nil {
			create := createDatabase(a.session, spec)
			if _, err := a.conn.Exec(ctx, create.sql); err != nil {
				return fmt.Errorf("%s: %w", create.name, classify(err))
			}
			outcome.Changes = append(outcome.Changes, create.name)
			if seen, err = a.look(ctx, spec); err != nil {
				return err
			}
			if seen.database == nil {
				return fault.New(fault.Unavailable, "database %q vanished while it was set up", spec.Database)
			}
		}
		return a.transaction(ctx, a.conn, planDatabase(*seen.database, a.session, spec), &outcome)
	}); err != nil {
		return outcome, fmt.Errorf("ensuring the tenant's database: %w", err)
	}
	if !slices.Contains(outcome.Changes, engine.CreateDatabase) {
		if err := a.expel(ctx, spec.Names, &outcome); err != nil {
			return outcome, err
		}
	}
	if err := run(func() error { return a.ensureSchema(ctx, spec, &outcome) }); err != nil {
		return outcome, fmt.Errorf("ensuring the tenant's schema: %w", err)
	}
	warnings, err := a.openDoors(ctx)
	outcome.Warnings = append(outcome.Warnings, warnings...)
	return outcome, err
}

// look reads the catalog, and refuses what must not be touched: no database in the place of one that was there, and none of others.
func (a *Admin) look(ctx context.Context, spec engine.Spec) (catalog, error) {
	seen, err := a.catalog(ctx, spec.Names)
	switch {
	case err != nil:
	case seen.database == nil && (spec.Provisioned || spec.Existing):
		err = fault.New(fault.NoDatabase, "database %q is not on this server", spec.Database)
	case seen.database != nil && !seen.ours(spec):
		err = fault.New(fault.Refused, "database %q exists and carries no mark of this tenant; if it is this tenant's own (restored from a dump, say), mark it: "+
			"COMMENT ON DATABASE %s IS %s",
			spec.Database, quote(spec.Database), literal(spec.Marker))
	case seen.database != nil && seen.database.limit == invalid:
		err = fault.New(fault.Refused, "database %q is what an interrupted DROP DATABASE left, and no session can enter it: DROP DATABASE %s, and restore it if "+
			"it held data",
			spec.Database, quote(spec.Database))
	default:
		err = unmarked(seen, spec)
	}
	return seen, err
}

// explain adds who lacks what to a refused statement: with managed services it is nearly always the admin's rights.
func explain(err error, user, remedy string) error {
	switch fault.Of(err) {
	case fault.NoAccess:
		if remedy != "" {
			remedy = ": " + remedy
		}
		return fault.New(fault.Refused, "the admin %q may not do this: %w; objects that another admin made have to be handed over to it%s", user, err, remedy)
	case fault.Rejected:
		return fault.New(fault.Refused, "%w", err) // init makes no second password for a change that is pending
	}
	return err
}

// transaction runs statements in one transaction; none at all where the plan is empty.
func (a *Admin) transaction(ctx context.Context, conn *pgx.Conn, plan []statement, outcome *engine.Outcome) error {
	if len(plan) == 0 {
		return nil
	}
	var sql, names []string
	for _, s := range plan {
		sql, names = append(sql, s.sql), append(names, s.name)
	}
	// What one simple query holds is one transaction, and one round trip.
	results := conn.PgConn().Exec(ctx, strings.Join(sql, ";\n"))
	ran := 0
	for results.NextResult() {
		if _, err := results.ResultReader().Close(); err == nil {
			ran++
		}
	}
	switch err := results.Close(); {
	case err != nil && ran < len(plan):
		return fmt.Errorf("%s: %w", plan[ran].name, classify(err))
	case err != nil: // of the commit
		return classify(err)
	}
	outcome.Changes = append(outcome.Changes, names...)
	return nil
}

// expel ends the sessions of logins that may not connect any more: a REVOKE does not, and an init that was killed between the two
// has left them (docs/failures.md B25).
func (a *Admin) expel(ctx context.Context, names tenant.Names, outcome *engine.Outcome) error {
	const foreign = `FROM pg_catalog.pg_stat_activity WHERE datname = $1 AND usesysid IS NOT NULL AND usename IS DISTINCT FROM session_user
		AND NOT pg_catalog.has_database_privilege(usesysid, datid, 'CONNECT')`
	var n int
	err := a.conn.QueryRow(ctx, "SELECT count(pg_catalog.pg_terminate_backend(pid)) "+foreign, names.Database).Scan(&n)
	ended := err == nil
	if code(err) == insufficientPrivilege {
		err = a.conn.QueryRow(ctx, "SELECT count(*) "+foreign, names.Database).Scan(&n)
	}
	switch {
	case err != nil:
		return fmt.Errorf("ending foreign sessions in database %q: %w", names.Database, classify(err))
	case n == 0:
	case ended:
		outcome.Changes = append(outcome.Changes, "end foreign sessions")
	default:
		outcome.Warnings = append(outcome.Warnings, fmt.Sprintf("database %q has %d foreign sessions, of logins that may not connect to it any more, and "+
			"the admin may not end them: SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s "+
			"AND NOT has_database_privilege(usesysid, datid, 'CONNECT')", names.Database, n, literal(names.Database)))
	}
	return nil
}

// ensureSchema works inside the tenant's database, over a connection of its own.
func (a *Admin) ensureSchema(ctx context.Context, spec engine.Spec, outcome *engine.Outcome) error {
	conn, err := a.server.connect(ctx, a.login, a.password, spec.Database, adminSettings)
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)
	var s schema
	// pg_has_role 'USAGE' and not 'MEMBER': what counts is whether the owner's rights are in force, as for GRANT itself.
	err = conn.QueryRow(ctx, `
		SELECT pg_catalog.pg_has_role(current_user, n.nspowner, 'USAGE'),
		       EXISTS (SELECT 1 FROM pg_catalog.aclexplode(COALESCE(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) x WHERE x.grantee = 0),
		       ARRAY(SELECT x.privilege_type FROM pg_catalog.aclexplode(COALESCE(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) x
		             JOIN pg_catalog.pg_roles g ON g.oid = x.grantee WHERE g.rolname = $1)
		FROM pg_catalog.pg_namespace n WHERE n.nspname = 'public'`, spec.Owner).Scan(&s.changeable, &s.publicACL, &s.ownerACL)
	if errors.Is(err, pgx.ErrNoRows) {
		return fault.New(fault.Refused, "database %q has no schema public: CREATE SCHEMA public AUTHORIZATION %s", spec.Database, quote(a.session.user))
	}
	if err != nil {
		return fmt.Errorf("reading the schema: %w", classify(err))
	}
	return a.transaction(ctx, conn, planSchema(s, spec), outcome)
}

// openDoors names the databases that every login of the server may connect to: a tenant sees names there, holds sessions, and up
// to version 14 may create tables. We do not close them, since others may rely on them. Tenants' databases are Verify's matter.
func (a *Admin) openDoors(ctx context.Context) ([]string, error) {
	rows, err := a.conn.Query(ctx, `
		SELECT d.datname::text, pg_catalog.pg_get_userbyid(d.datdba)::text FROM pg_catalog.pg_database d
		WHERE d.datallowconn AND d.datname !~ $1
		  AND EXISTS (SELECT 1 FROM pg_catalog.aclexplode(COALESCE(d.datacl, pg_catalog.acldefault('d', d.datdba))) x
		              WHERE x.grantee = 0 AND x.privilege_type = 'CONNECT') ORDER BY 1`, tenant.NamePattern)
	if err != nil {
		return nil, fmt.Errorf("looking for open databases: %w", classify(err))
	}
	var warnings []string
	var name, owner string
	if _, err := pgx.ForEachRow(rows, []any{&name, &owner}, func() error {
		warnings = append(warnings, a.openDoor(name, owner))
		return nil
	}); err != nil {
		return nil, fmt.Errorf("looking for open databases: %w", classify(err))
	}
	return warnings, nil
}

// openDoor is the advice about one open database. The admin needs his own way into the maintenance database before the one that
// is PUBLIC's is closed.
func (a *Admin) openDoor(name, owner string) string {
	way := fmt.Sprintf("REVOKE CONNECT ON DATABASE %s FROM PUBLIC", quote(name))
	if name == a.database {
		way = fmt.Sprintf("GRANT CONNECT ON DATABASE %s TO %s; %s", quote(name), quote(a.login), way)
	}
	return fmt.Sprintf("database %q is open to every login of this server; as its owner %q: %s", name, owner, way)
}

// InUse says whether a login has a session anywhere on the server. Every role sees whose sessions there are.
func (a *Admin) InUse(ctx context.Context, user string) (bool, error) {
	var used bool
	if err := a.conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_stat_activity WHERE usename = $1)", user).Scan(&used); err != nil {
		return false, fmt.Errorf("looking for sessions of login %q: %w", user, classify(err))
	}
	return used, nil
}

// SetPassword sets the password of a login that exists.
func (a *Admin) SetPassword(ctx context.Context, user string, password dbserver.Password) error {
	v, err := verifier(password)
	if err != nil {
		return err
	}
	if _, err := a.conn.Exec(ctx, fmt.Sprintf("ALTER ROLE %s PASSWORD %s", quote(user), literal(v))); err != nil {
		err, remedy := a.held(ctx, classifyChange(err)), ""
		if fault.Is(err, fault.NoAccess) {
			remedy = a.handOver(ctx, "", nil, user)
		}
		return fmt.Errorf("setting the password of login %q: %w", user, explain(err, a.session.user, remedy))
	}
	return nil
}
