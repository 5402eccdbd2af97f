// SPDX-License-Identifier: Apache-2.0

// Package mysql does on a MySQL (8, 9) or MariaDB (10.5 to 11.8) server what package engine asks for.
//
// A tenant is two accounts at '%' with the seven privileges that kine needs on one database, whose name holds nothing that
// GRANT reads as a wildcard. MySQL has no comment on a database, so a role without rights or members marks the tenant as
// ours. DDL commits on its own: the statements stand in an order in which a crash after any of them leaves something that
// the next run completes, and each of them survives being too late.
package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// sqlMode is set on the admin's session, so that a server's own setting changes nothing of what our statements mean: no ANSI_QUOTES,
// no NO_BACKSLASH_ESCAPES (the driver's quoting follows it, one mode is one thing less to test), errors instead of
// truncation (docs/failures.md B52). Without the mode that only MariaDB has, a GRANT to a login that was dropped a moment
// ago would make it again, without a password.
const (
	modes   = "STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
	sqlMode = "IF(LOWER(VERSION()) LIKE '%mariadb%', '" + modes + ",NO_AUTO_CREATE_USER', '" + modes + "')"
)

// idleLimit is after how many seconds the server ends an admin's session that does nothing. The default is eight hours: so long
// a machine that vanished without a word would keep the tenant's lock. Nothing that init does between two statements takes
// so long, and where it does, the run is repeated.
const idleLimit = "30"

// Server is a MySQL or MariaDB server.
type Server struct {
	server  dbserver.Server
	program string
	mariadb atomic.Bool // its greeting said so
	strict  atomic.Bool // it counts refused passwords and blocks accounts for them; known once an admin was there
}

var _ engine.Engine = (*Server)(nil)

// New prepares for a server; it does not connect. program is the name that performance_schema shows of our sessions.
func New(server dbserver.Server, program string) *Server {
	return &Server{server: server, program: program}
}

// DSN is kine's endpoint for a login.
func (s *Server) DSN(login tenant.Login) (string, error) { return DSN(s.server, login) }

// connect opens one connection, for which the caller gets a pool that holds exactly this one, and does not try again.
func (s *Server) connect(ctx context.Context, user string, password dbserver.Password, database string, params map[string]string) (*session, error) {
	config := driver.NewConfig()
	config.User, config.Passwd, config.DBName = user, password.Reveal(), database
	config.Net, config.Addr = "tcp", s.server.Address()
	config.InterpolateParams = true // the driver quotes; no statement is prepared, so each is one round trip
	config.Params = params          // each costs a statement
	config.ConnectionAttributes = "program_name:" + s.program
	config.Logger = &driver.NopLogger{} // its default writes lines of its own to stderr
	config.AllowNativePasswords = true  // MariaDB's default plugin
	var err error
	if config.TLS, err = s.server.TLSConfig(); err != nil {
		return nil, fault.New(fault.Refused, "preparing TLS: %w", err)
	}
	dialer := &net.Dialer{KeepAlive: 15 * time.Second}
	heard := greeting{patience: patience(ctx)}
	heard.redial = func() (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, "tcp", s.server.Address())
		if deadline, ok := ctx.Deadline(); ok && err == nil {
			_ = conn.SetDeadline(deadline)
		}
		return conn, err
	}
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &sniffer{conn, &heard, &s.mariadb}, nil
	}
	c, err := driver.NewConnector(config)
	if err != nil {
		return nil, fault.New(fault.Refused, "preparing a connection to %s failed", s.server.Address())
	}
	db := sql.OpenDB(careful{c})
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(ctx)
	if err != nil {
		_ = db.Close() // nothing is open
		if verdict := heard.verdict.Load(); verdict != nil {
			return nil, fmt.Errorf("connecting to %s: %w", s.server.Address(), *verdict)
		}
		err = fmt.Errorf("logging in to %s as %q: %w", s.server.Address(), user, classify(err))
		if config.TLS == nil && (fault.Is(err, fault.WrongPassword) || fault.Is(err, fault.Refused)) {
			// MariaDB answers so, too, where it or the account asks for TLS.
			err = fmt.Errorf(`%w (in clear text, since the connector's key "sslMode" is "disable"; the server may insist on TLS)`, err)
		}
		return nil, err
	}
	return &session{db: db, conn: conn}, nil
}

// connectSure is connect for a password that should be right, where believing the server's no has consequences. While a
// MariaDB server reads its privileges again (FLUSH PRIVILEGES), it says no to a right one, too, for a moment. MySQL does
// not; and a server that blocks accounts for refused passwords is not asked twice. Login, Ready and Enter do not come here: they are
// also how it is asked whether a password was set yet, and what follows on Enter's no begins with Verify.
func (s *Server) connectSure(ctx context.Context, user string, password dbserver.Password, database string, params map[string]string) (*session, error) {
	session, err := s.connect(ctx, user, password, database, params)
	if s.mariadb.Load() && !s.strict.Load() && numberOf(err) == accessDenied {
		return s.connect(ctx, user, password, database, params)
	}
	return session, err
}

// patience is until when a server may keep silent before it is asked what it is: nearly as long as ctx lasts, for a server that
// resolves the names of its clients may need many seconds for its greeting. Zero where ctx has no deadline.
func patience(ctx context.Context) time.Time {
	deadline, ok := ctx.Deadline()
	if !ok {
		return time.Time{}
	}
	const toAsk = 2 * time.Second // PostgreSQL starts a process before it answers
	return deadline.Add(-min(toAsk, time.Until(deadline)/4))
}

// session is one connection and the pool that database/sql wants around it.
type session struct {
	db   *sql.DB
	conn *sql.Conn
}

func (s *session) close() {
	_ = s.conn.Close() // returns it to the pool, which ends it
	_ = s.db.Close()
}

// Login logs in as a tenant to its database and ends the session again. See package engine for the classes of its error.
func (s *Server) Login(ctx context.Context, login tenant.Login) error {
	session, err := s.connect(ctx, login.User, login.Password, login.Database, nil)
	if err != nil {
		return err
	}
	session.close()
	return nil
}

// Ready is Login, and asks whether the login can do what a control plane does; see package engine.
func (s *Server) Ready(ctx context.Context, login tenant.Login, _ tenant.Names) error {
	session, err := s.connect(ctx, login.User, login.Password, login.Database, nil)
	if err != nil {
		return err
	}
	defer session.close()
	// What counts is what Ensure compares: the account's own rights on the database, and none that a role lends it.
	have, err := column(ctx, session.conn, "SELECT PRIVILEGE_TYPE FROM information_schema.SCHEMA_PRIVILEGES WHERE GRANTEE = ? AND TABLE_SCHEMA = ?",
		"'"+login.User+"'@'%'", login.Database)
	if err != nil {
		return fmt.Errorf("asking what login %q may do: %w", login.User, err)
	}
	if missing := without(privileges, have); len(missing) > 0 {
		return fault.New(fault.NoAccess, "login %q lacks %s on database %q", login.User, strings.Join(missing, ", "), login.Database)
	}
	return nil
}

// HasData is Login, and looks for kine's data; see package engine. The question whether the server takes writes rides along.
func (s *Server) HasData(ctx context.Context, login tenant.Login) (bool, error) {
	session, err := s.connect(ctx, login.User, login.Password, login.Database, nil)
	if err != nil {
		return false, err
	}
	defer session.close()
	d := dialectMySQL
	if s.mariadb.Load() {
		d = dialectMariaDB
	}
	var n int
	var readOnly, closed bool
	if err := session.conn.QueryRowContext(ctx, "SELECT COUNT(*), "+d.readOnly+", "+d.databaseReadOnly+
		" FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'kine'").Scan(&n, &readOnly, &closed); err != nil {
		return false, fmt.Errorf("looking for data in database %q: %w", login.Database, classify(err))
	}
	switch {
	case readOnly:
		return false, fault.New(fault.Refused, "login %q finds the server read-only: point the connector at the primary (%s)", login.User, d.readOnlyName)
	case closed:
		return false, fault.New(fault.Refused, "database %q is read-only, and a control plane cannot work on it: ALTER DATABASE %s READ ONLY = 0", login.Database,
			quote(login.Database))
	case n == 0:
		return false, nil
	}
	var data bool
	err = session.conn.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM kine)").Scan(&data)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded), numberOf(err) == lockWaitTimeout:
		return false, fault.New(fault.Unavailable, "table kine of database %q does not answer: if the server does else, a session has locked the table; SHOW FULL "+
			"PROCESSLIST shows what works on it, and KILL ends it", login.Database)
	case err != nil:
		return false, fmt.Errorf("looking for data in database %q: %w", login.Database, classify(err))
	}
	return data, nil
}

// Verify logs in as a tenant and asks the server what it could do there. It asks and does not try, so that nothing but
// the answer is left behind.
func (s *Server) Verify(ctx context.Context, login tenant.Login, _ tenant.Names) ([]string, error) {
	// As kine does it: a server that refuses what the DSN sets is found here.
	session, err := s.connectSure(ctx, login.User, login.Password, login.Database, sessionSettings())
	if err != nil {
		return nil, err
	}
	defer session.close()

	var account string
	if err := session.conn.QueryRowContext(ctx, "SELECT CURRENT_USER()").Scan(&account); err != nil {
		return nil, fmt.Errorf("asking who login %q is: %w", login.User, classify(err))
	}
	if account != login.User+"@%" {
		return nil, fault.New(fault.Refused, "login %q is taken for account %q, which shadows it: drop that account", login.User, account)
	}
	warnings, err := overreach(ctx, session.conn, login)
	if err != nil {
		return nil, err
	}
	// A role that is not in force may be put in force by the login that has it, mandatory ones included.
	roles, err := column(ctx, session.conn, "SELECT DISTINCT ROLE_NAME FROM information_schema.APPLICABLE_ROLES WHERE ROLE_NAME <> 'PUBLIC' ORDER BY 1")
	if err != nil {
		return nil, fmt.Errorf("asking which roles login %q may take: %w", login.User, err)
	}
	for _, role := range roles {
		warnings = append(warnings, fmt.Sprintf("login %q may take role %s, which dbconnector did not grant", login.User, quote(role)))
		if _, err := session.conn.ExecContext(ctx, "SET ROLE "+quote(role)); err != nil {
			return nil, fmt.Errorf("login %q: taking role %s: %w", login.User, quote(role), classify(err))
		}
		if _, err := overreach(ctx, session.conn, login); err != nil {
			return nil, fmt.Errorf("through role %s: %w", quote(role), err)
		}
	}
	return warnings, nil
}

// overreach looks for rights that a tenant's session must not have.
func overreach(ctx context.Context, conn *sql.Conn, login tenant.Login) (warnings []string, err error) {
	// A login that may read the privileges sees those of all others here, too; what counts is its own, and PUBLIC's.
	global, err := column(ctx, conn, "SELECT DISTINCT IF(PRIVILEGE_TYPE = 'USAGE', 'GRANT OPTION', PRIVILEGE_TYPE) FROM information_schema.USER_PRIVILEGES"+
		" WHERE (PRIVILEGE_TYPE <> 'USAGE' OR IS_GRANTABLE = 'YES') AND (GRANTEE = ? OR GRANTEE LIKE '%PUBLIC%') ORDER BY 1",
		"'"+login.User+"'@'%'")
	if err != nil {
		return nil, fmt.Errorf("asking what login %q may do: %w", login.User, err)
	}
	if len(global) > 0 {
		return nil, fault.New(fault.Refused, "login %q has privileges on the whole server (%s): revoke them", login.User, strings.Join(global, ", "))
	}
	// SCHEMATA holds just the databases on which a login has any right, by whatever grant, wildcard, role or anonymous account.
	others, err := column(ctx, conn, "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME "+
		"NOT IN (?, 'information_schema', 'performance_schema') ORDER BY 1", login.Database)
	if err != nil {
		return nil, fmt.Errorf("asking which databases login %q sees: %w", login.User, err)
	}
	accounts, err := column(ctx, conn, "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'mysql' AND TABLE_NAME IN ('user', 'global_priv')")
	if err != nil {
		return nil, fmt.Errorf("asking which tables login %q sees: %w", login.User, err)
	}
	if len(accounts) > 0 {
		return nil, fault.New(fault.Refused, "login %q has rights on the server's accounts (mysql.%s): revoke them", login.User, accounts[0])
	}
	for _, name := range others {
		if tenant.IsDatabase(name) {
			return nil, fault.New(fault.Refused, "login %q has rights on another tenant's database %s: revoke them", login.User, quote(name))
		}
		warnings = append(warnings, fmt.Sprintf("every login of this server has rights on database %s: revoke them, or drop it", quote(name)))
	}
	return warnings, nil
}

// Admin is a session of the admin.
type Admin struct {
	server  *Server
	session *session
	user    string
	account string // as the server knows it, quoted
	dialect dialect
	// flushes: a blocked account is not unblocked by a new password.
	flushes  bool
	warnings []string
}

// Admin logs in as the admin and checks that the server takes writes. The caller closes the session.
func (s *Server) Admin(ctx context.Context, user string, password dbserver.Password) (engine.Admin, error) {
	params := sessionSettings()
	params["sql_mode"], params["wait_timeout"], params["lock_wait_timeout"] = sqlMode, idleLimit, idleLimit
	session, err := s.connectSure(ctx, user, password, "", params)
	if err != nil {
		return nil, err
	}
	a := &Admin{server: s, session: session, user: user}
	if err := a.introduce(ctx); err != nil {
		session.close()
		return nil, err
	}
	return a, nil
}

func (a *Admin) introduce(ctx context.Context) error {
	var version string
	if err := a.session.conn.QueryRowContext(ctx, "SELECT VERSION()").Scan(&version); err != nil {
		return fmt.Errorf("asking for the server's version: %w", classify(err))
	}
	a.dialect = dialectOf(version)
	var readOnly, strict, proxies bool
	var policy, user, host string
	if err := a.session.conn.QueryRowContext(ctx, "SELECT "+a.dialect.readOnly+", "+a.dialect.policies+
		", LEFT(CURRENT_USER(), CHAR_LENGTH(CURRENT_USER()) - LOCATE('@', REVERSE(CURRENT_USER()))), SUBSTRING_INDEX(CURRENT_USER(), '@', -1)").
		Scan(&readOnly, &strict, &a.flushes, &proxies, &policy, &user, &host); err != nil {
		return fmt.Errorf("asking whether the server is read-only: %w", classify(err))
	}
	a.server.strict.Store(strict)
	a.dialect, a.account = a.dialect.under(policy), quote(user)+"@"+quote(host)
	if proxies { // any login may grant PROXY, and MySQL 9.7 lets it do so on all accounts (docs/failures.md S17)
		return fault.New(fault.Refused, "check_proxy_users is ON: an account could work as another one, by the will of any tenant; "+
			"SET PERSIST check_proxy_users = OFF")
	}
	if readOnly {
		return fault.New(fault.Refused, "the server is read-only (%s): point the connector at the primary", a.dialect.readOnlyName)
	}
	return nil
}

// Close ends the session and with it its lock.
func (a *Admin) Close() { a.session.close() }

// Lock waits for the tenant's lock on the server. It lasts until Close. On a Galera cluster it covers one node only, which is
// why the statements survive a race without it; and where a server forbids GET_LOCK, init goes on, with a warning in what Ensure
// returns.
func (a *Admin) Lock(ctx context.Context, names tenant.Names) error {
	wait := time.Hour // for a context without a deadline
	if deadline, ok := ctx.Deadline(); ok {
		wait = time.Until(deadline)
	}
	var got sql.NullInt64
	if err := a.session.conn.QueryRowContext(ctx, "SELECT GET_LOCK(?, ?)", names.Lock, int(wait.Seconds())).Scan(&got); err != nil {
		if slices.Contains(noLocks, numberOf(err)) {
			a.warnings = append(a.warnings, fmt.Sprintf("GET_LOCK is not to be had (%v): inits of one tenant that run at the same time are not kept apart; "+
				"their statements survive that, and some of them have to try again", classify(err)))
			return nil
		}
		return fmt.Errorf("waiting for the tenant's lock: %w", classify(err))
	}
	if got.Int64 != 1 {
		return fault.New(fault.Unavailable, "waiting for the tenant's lock: another session holds it")
	}
	return nil
}

// Ensure brings about what is wanted; see package engine.
func (a *Admin) Ensure(ctx context.Context, spec engine.Spec) (engine.Outcome, error) {
	outcome := engine.Outcome{Warnings: slices.Clone(a.warnings)}
	seen, err := a.catalog(ctx, spec.Names)
	if err != nil {
		return outcome, fmt.Errorf("ensuring the tenant's database: %w", a.explain(err))
	}
	switch {
	case !seen.database && (spec.Provisioned || spec.Existing):
		return outcome, fault.New(fault.NoDatabase, "database %q is not on this server", spec.Database)
	case seen.database && !seen.ours(spec):
		return outcome, fault.New(fault.Refused, "database %q exists and carries no mark of this tenant; if it is this tenant's own (restored from a dump, say), "+
			"mark it: CREATE ROLE %s",
			spec.Database, quote(spec.Owner))
	}
	for _, s := range plan(a.dialect, seen, spec, a.server.server.SSLMode != dbserver.Disable) {
		if _, err := a.session.conn.ExecContext(ctx, s.sql, s.args...); err != nil {
			return outcome, fmt.Errorf("ensuring the tenant's database: %s: %w", s.name, a.explain(err))
		}
		outcome.Changes = append(outcome.Changes, s.name)
	}
	err = a.takeBack(ctx, seen.loans, spec.Database, &outcome)
	return outcome, err
}

// takeBack ends what logins gave away, or warns of it where an admin may have granted it, or where this admin may not end it.
func (a *Admin) takeBack(ctx context.Context, loans []loan, database string, outcome *engine.Outcome) error {
	if len(loans) == maxLoans {
		outcome.Warnings = append(outcome.Warnings, fmt.Sprintf("at least %d rights were given to or by the tenant's logins: the next run of init takes back what "+
			"is left of them", maxLoans))
	}
	for _, l := range loans {
		switch {
		case !l.foreign() || l.rights == "PROXY":
		case l.database == "":
			outcome.Warnings = append(outcome.Warnings, fmt.Sprintf("account '%s'@'%s' has GRANT OPTION on the whole server and no other right there, as a tenant's "+
				"login may give it; if the admin of the server did not: %s",
				l.user, l.host, l.advice()))
			continue
		default:
			outcome.Warnings = append(outcome.Warnings, fmt.Sprintf("account '%s'@'%s' has rights in the tenant's database %s; if the admin of the server did not "+
				"grant them: %s",
				l.user, l.host, quote(l.database), l.advice()))
			continue
		}
		_, err := a.session.conn.ExecContext(ctx, l.revoke())
		switch {
		case err == nil:
			if change := "revoke what a login gave away"; !slices.Contains(outcome.Changes, change) {
				outcome.Changes = append(outcome.Changes, change)
			}
			if l.database == database {
				outcome.Warnings = append(outcome.Warnings, fmt.Sprintf("account '%s'@'%s' had rights in the tenant's database, which are revoked now. A session that "+
					"has selected the database keeps them: "+
					"KILL each of SELECT ID FROM information_schema.PROCESSLIST WHERE USER = '%[1]s' AND DB = '%[3]s'", l.user, l.host, l.database))
			}
		case numberOf(err) == noSuchGrant || numberOf(err) == noSuchTableGrant:
		case numberOf(err) == proxyDenied || fault.Is(classify(err), fault.NoAccess): // few admins have PROXY on all accounts WITH GRANT OPTION
			outcome.Warnings = append(outcome.Warnings, fmt.Sprintf("account '%s'@'%s' has rights that a tenant's login gave away, and the admin may not revoke them "+
				"(%v). As root: %s",
				l.user, l.host, classify(err), l.advice()))
		default:
			return fmt.Errorf("ensuring the tenant's database: revoking what a login gave away: %w", a.explain(err))
		}
	}
	return nil
}

// explain adds who lacks what to a refused statement: with managed services it is nearly always the admin's rights.
func (a *Admin) explain(err error) error {
	var server *driver.MySQLError
	err = classify(err)
	if a.dialect.hashes && numberOf(err) == optionPrevents && errors.As(err, &server) && strings.Contains(server.Message, "strict-password-validation") {
		// In force where a password plugin is loaded, it takes no hash. To send clear text instead would silently put
		// passwords into the server's logs. The number alone also stands for other options; their names are not translated.
		return fault.New(fault.Refused, "%w; passwords travel as hashes, so that the server's logs do not show them: SET GLOBAL strict_password_validation = OFF "+
			"(the passwords have 40 characters of all classes)", err)
	}
	if numberOf(err) == noPlugin { // at a login this would be for a new password to cure
		return fault.New(fault.Refused, "%w", err)
	}
	if fault.Is(err, fault.NoAccess) || fault.Is(err, fault.WrongPassword) { // a GRANT beyond one's own rights is answered with 1045
		return fault.New(fault.Refused, "the admin %q may not do this: %w; what it needs: GRANT CREATE USER, PROCESS ON *.* TO %s; GRANT %s ON *.* TO %[3]s WITH "+
			"GRANT OPTION",
			a.user, err, a.account, strings.Join(privileges, ", "))
	}
	return err
}

// catalog asks for everything about a tenant.
func (a *Admin) catalog(ctx context.Context, names tenant.Names) (catalog, error) {
	seen := catalog{accounts: map[tenant.Slot]account{}}
	var n int
	if err := a.session.conn.QueryRowContext(ctx, "SELECT COUNT(*) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = ?", names.Database).Scan(&n); err != nil {
		return seen, fmt.Errorf("reading the databases: %w", classify(err))
	}
	seen.database = n > 0

	slots := map[string]tenant.Slot{names.User(tenant.A): tenant.A, names.User(tenant.B): tenant.B}
	// An account without a name (old installations have one) matters where it matches the host that the server sees us from.
	rows, err := a.session.conn.QueryContext(ctx, `SELECT User, Host, ssl_type <> '', max_user_connections FROM mysql.user
		WHERE User IN (?, ?, ?) OR User = '' AND Host <> '%' AND SUBSTRING_INDEX(USER(), '@', -1) LIKE Host`,
		names.Owner, names.User(tenant.A), names.User(tenant.B))
	if err != nil {
		return seen, fmt.Errorf("reading the accounts: %w", classify(err))
	}
	defer rows.Close() //nolint:errcheck // Err is asked below
	for rows.Next() {
		var user, host string
		var have account
		if err := rows.Scan(&user, &host, &have.tls, &have.limit); err != nil {
			return seen, fmt.Errorf("reading the accounts: %w", classify(err))
		}
		slot, login := slots[user]
		switch {
		case (login || user == "") && host != "%":
			// The server prefers the more specific host: this row would be asked for the password in place of ours (failures.md B6).
			return seen, fault.New(fault.Refused, "account '%s'@'%s' shadows the tenant's logins, which are at '%%': DROP USER '%s'@'%s'", user, host, user, host)
		case !login:
			seen.marked = seen.marked || host == a.dialect.roleHost
		default:
			seen.accounts[slot] = have
		}
	}
	if err := rows.Err(); err != nil {
		return seen, fmt.Errorf("reading the accounts: %w", classify(err))
	}

	for user, slot := range slots {
		have, ok := seen.accounts[slot]
		if !ok {
			continue
		}
		// A set, read from the catalog: the text of SHOW GRANTS differs between servers (docs/failures.md B30).
		if have.privileges, err = a.granted(ctx, user, names.Database); err != nil {
			return seen, err
		}
		seen.accounts[slot] = have
	}
	seen.loans, err = a.loans(ctx, names)
	return seen, err
}

// loans are the rights that others have in the tenant's database, those that its logins have elsewhere, and PROXY to and from its logins.
func (a *Admin) loans(ctx context.Context, names tenant.Names) ([]loan, error) {
	query, args := a.dialect.loans(names)
	rows, err := a.session.conn.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("reading what the tenant's logins gave away: %w", classify(err))
	}
	defer rows.Close() //nolint:errcheck // Err is asked below
	var out []loan
	for rows.Next() {
		var l loan
		if err := rows.Scan(&l.user, &l.host, &l.onUser, &l.onHost, &l.rights, &l.level, &l.database, &l.table, &l.everyone); err != nil {
			return nil, fmt.Errorf("reading what the tenant's logins gave away: %w", classify(err))
		}
		out = append(out, l)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading what the tenant's logins gave away: %w", classify(err))
	}
	return out, nil
}

// granted reads the rights of an account on a database from mysql.db, whose columns are Select_priv, Insert_priv and so on.
func (a *Admin) granted(ctx context.Context, user, database string) ([]string, error) {
	rows, err := a.session.conn.QueryContext(ctx, "SELECT * FROM mysql.db WHERE User = ? AND Host = '%' AND Db = ?", user, database)
	if err != nil {
		return nil, fmt.Errorf("reading the rights of login %q: %w", user, classify(err))
	}
	defer rows.Close() //nolint:errcheck // Err is asked below
	columns, err := rows.Columns()
	if err != nil {
		return nil, fmt.Errorf("reading the rights of login %q: %w", user, classify(err))
	}
	var out []string
	for rows.Next() {
		values := make([]sql.RawBytes, len(columns))
		into := make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			return nil, fmt.Errorf("reading the rights of login %q: %w", user, classify(err))
		}
		for i, column := range columns {
			if name, ok := strings.CutSuffix(column, "_priv"); ok && string(values[i]) == "Y" {
				out = append(out, privilegeOf(name))
			}
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading the rights of login %q: %w", user, classify(err))
	}
	slices.Sort(out)
	return out, nil
}

// privilegeOf turns the name of a column of mysql.db into that of the privilege in GRANT.
func privilegeOf(column string) string {
	switch column {
	case "Create_tmp_table":
		return "CREATE TEMPORARY TABLES"
	case "Delete_history":
		return "DELETE HISTORY"
	case "Grant":
		return "GRANT OPTION"
	}
	return strings.ToUpper(strings.ReplaceAll(column, "_", " "))
}

// A thread stays in the list for some milliseconds after its session has ended, and one whose login was refused, as our own
// question whether a password still works, stands there with its user's name, too. Only what stays is a session.
const (
	endingTries = 10
	endingPause = 25 * time.Millisecond
)

// seesAll asks for the right to see the sessions of others: the admin's own, or that of a role which is in force, since managed
// services give theirs out so. From mysql.user, because information_schema shows no role's privileges on MariaDB.
const seesAll = `SELECT 1 FROM mysql.user WHERE Process_priv = 'Y' AND
	(CONCAT(User, '@', Host) = CURRENT_USER() OR User IN (SELECT ROLE_NAME FROM information_schema.ENABLED_ROLES))`

// oneNode refuses a server that shows a part of a login's sessions only.
func oneNode(ctx context.Context, conn *sql.Conn, user string) error {
	var variable, size string
	err := conn.QueryRowContext(ctx, "SHOW GLOBAL STATUS LIKE 'wsrep_cluster_size'").Scan(&variable, &size)
	switch {
	case err == nil && size != "0" && size != "1":
		// PROCESSLIST is of one node. A session on another one would count as none.
		return fault.New(fault.Refused, "the server is one of a Galera cluster of %s nodes: it cannot be told whether login %q is in use on another one, and a "+
			"password in use must not be changed", size, user)
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("looking for sessions of login %q: %w", user, classify(err))
	}
	return nil
}

// InUse says whether a login has a session. Without PROCESS an admin sees his own sessions only, and no answer is
// not a no: that is a refusal.
func (a *Admin) InUse(ctx context.Context, user string) (bool, error) {
	process, err := column(ctx, a.session.conn, seesAll)
	if err != nil {
		return false, fmt.Errorf("looking for sessions of login %q: %w", user, err)
	}
	if len(process) == 0 {
		return false, fault.New(fault.Refused, "the admin %q sees no sessions of others, and a password in use must not be changed: GRANT PROCESS ON *.* TO %s",
			a.user, a.account)
	}
	if err := oneNode(ctx, a.session.conn, user); err != nil {
		return false, err
	}
	for try := 1; ; try++ {
		var n int
		if err := a.session.conn.QueryRowContext(ctx, "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = ?", user).Scan(&n); err != nil {
			return false, fmt.Errorf("looking for sessions of login %q: %w", user, classify(err))
		}
		if n == 0 || try == endingTries {
			return n > 0, nil
		}
		timer := time.NewTimer(endingPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false, fault.New(fault.Unavailable, "looking for sessions of login %q: %w", user, context.Cause(ctx))
		}
	}
}

// SetPassword sets the password of a login that exists, and lets in who was blocked for too many wrong ones.
func (a *Admin) SetPassword(ctx context.Context, user string, password dbserver.Password) error {
	s := setPassword(a.dialect, user, password)
	if _, err := a.session.conn.ExecContext(ctx, s.sql, s.args...); err != nil {
		return fmt.Errorf("setting the password of login %q: %w", user, a.explain(err))
	}
	if a.flushes {
		// An admin without RELOAD may not; the next login then says that the account is blocked, and what ends it.
		_, _ = a.session.conn.ExecContext(ctx, "FLUSH PRIVILEGES")
	}
	return nil
}

// column reads a column of text.
func column(ctx context.Context, conn *sql.Conn, query string, args ...any) ([]string, error) {
	rows, err := conn.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, classify(err)
	}
	defer rows.Close() //nolint:errcheck // Err is asked below
	var out []string
	for rows.Next() {
		var value string
		if err := rows.Scan(&value); err != nil {
			return nil, classify(err)
		}
		out = append(out, value)
	}
	if err := rows.Err(); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, classify(err)
	}
	return out, nil
}
