// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/tenant"
)

// TenantSession is a session of a tenant's login that works on itself.
type TenantSession struct {
	conn  *pgx.Conn
	login tenant.Login
}

// selfSettings are the tenantSettings of a session in which the login changes itself. It gets in, and works, whatever the login
// has set for itself: what it finds it takes back.
var selfSettings = func() map[string]string {
	settings := maps.Clone(tenantSettings)
	settings["local_preload_libraries"] = ""
	// The session lives in a transaction: that is how every version limits how long it may do nothing (docs/failures.md S9), since
	// idle_session_timeout came with 14 only. No snapshot is kept between two statements.
	settings["idle_in_transaction_session_timeout"] = "60s"
	settings["default_transaction_isolation"] = "read committed"
	return settings
}()

// TenantSession logs in as a tenant, and leaves the owner role: as that, it could neither change the login's password nor see where the
// login's sessions come from.
func (s *Server) TenantSession(ctx context.Context, login tenant.Login) (engine.TenantSession, error) {
	conn, err := s.connect(ctx, login.User, login.Password, login.Database, selfSettings)
	if err != nil {
		return nil, err
	}
	self := &TenantSession{conn: conn, login: login}
	since := func(version int) bool { return major(conn) >= version }
	if err = self.begin(ctx); err == nil || !since(14) {
		return self.orHangUp(ctx, err)
	}
	// A server refuses a parameter that it does not know, so these wait until the version is known; and the login may have set
	// one so low that the session ends before it can be told otherwise.
	hangUp(ctx, conn)
	settings := maps.Clone(selfSettings)
	settings["idle_session_timeout"] = "0"
	if since(17) {
		settings["transaction_timeout"] = "0"
	}
	if self.conn, err = s.connect(ctx, login.User, login.Password, login.Database, settings); err != nil {
		return nil, err
	}
	return self.orHangUp(ctx, self.begin(ctx))
}

// major is the server's version, which it tells at the login.
func major(conn *pgx.Conn) int {
	digits, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), ".")
	n, _ := strconv.Atoi(strings.TrimRight(digits, " abcdefghijklmnopqrstuvwxyz(")) // "19beta1"
	return n
}

// begin makes the session its own master. It ends when the sidecar stands still: as long as it lasts, it blocks the others.
// A login that made itself read-only is overruled. A server or a database that is read-only is not: its provider means it.
func (s *TenantSession) begin(ctx context.Context) error {
	var role string
	var idle, transaction, readOnly *string
	err := s.conn.QueryRow(ctx, `
		SELECT pg_catalog.set_config('role', 'none', false), CASE WHEN version >= 140000 THEN pg_catalog.set_config('idle_session_timeout', '60s', false) END,
		       CASE WHEN version >= 170000 THEN pg_catalog.set_config('transaction_timeout', '0', false) END,
		       CASE WHEN readonly.source IN ('user', 'database user') THEN pg_catalog.set_config('default_transaction_read_only', 'off', false) END
		FROM (SELECT pg_catalog.current_setting('server_version_num')::int) v(version), pg_catalog.pg_settings readonly
		WHERE readonly.name = 'default_transaction_read_only'`).Scan(&role, &idle, &transaction, &readOnly)
	if err != nil {
		return fmt.Errorf("leaving the owner role as login %q: %w", s.login.User, classify(err))
	}
	if _, err := s.conn.Exec(ctx, "BEGIN"); err != nil {
		return fmt.Errorf("beginning as login %q: %w", s.login.User, classify(err))
	}
	return nil
}

func (s *TenantSession) orHangUp(ctx context.Context, err error) (engine.TenantSession, error) {
	if err != nil {
		hangUp(ctx, s.conn)
		return nil, err
	}
	return s, nil
}

// Sessions counts the login's other sessions. Only this very session is left out: a rival's, about to set a password that
// has moved on since, has to show. Addresses are evidence that a control plane has moved, so there our own programs, which
// come from the same pods, do not count.
func (s *TenantSession) Sessions(ctx context.Context) (engine.Sessions, error) {
	var out engine.Sessions
	if err := s.forget(ctx); err != nil {
		return out, err
	}
	err := s.conn.QueryRow(ctx, `
		SELECT count(*), count(DISTINCT COALESCE(client_addr::text, '')) FILTER (WHERE application_name NOT LIKE 'dbconnector-%'),
		       count(*) FILTER (WHERE application_name NOT LIKE 'dbconnector-%' AND client_addr IS NOT DISTINCT FROM pg_catalog.inet_client_addr())
		FROM pg_catalog.pg_stat_activity
		WHERE usename = session_user AND pid <> pg_catalog.pg_backend_pid() AND backend_type = 'client backend'`).
		Scan(&out.Count, &out.Addresses, &out.Here)
	if err != nil {
		return out, fmt.Errorf("looking for sessions of login %q: %w", s.login.User, classify(err))
	}
	return out, nil
}

// forget has the server list its sessions again: within a transaction it would repeat the first list.
func (s *TenantSession) forget(ctx context.Context) error {
	if _, err := s.conn.Exec(ctx, "SELECT pg_catalog.pg_stat_clear_snapshot()"); err != nil {
		return fmt.Errorf("looking for sessions of login %q: %w", s.login.User, classify(err))
	}
	return nil
}

// Expel ends the login's older sessions. Where their application_name says that they are ours proves nothing: a client chooses it.
//
// A login that was let in is in pg_stat_activity only when it is complete, and its client can put that off for half an hour
// (post_auth_delay), as can a session that holds a lock on the database. From before its settings are read until it is in the list it
// holds a lock on its database. So the locks are asked for first, and then the list: what is in neither has not been let in.
func (s *TenantSession) Expel(ctx context.Context) (engine.Remains, error) {
	var out engine.Remains
	fail := func(err error) (engine.Remains, error) {
		return engine.Remains{}, fmt.Errorf("ending sessions of login %q: %w", s.login.User, classify(err))
	}
	var timeout float64
	var entering []int32
	err := s.conn.QueryRow(ctx, `
		SELECT (SELECT extract(epoch FROM pg_catalog.current_setting('authentication_timeout')::interval)::float8),
		       ARRAY(SELECT DISTINCT pid FROM pg_catalog.pg_locks
		             WHERE locktype = 'object' AND classid = 'pg_catalog.pg_database'::regclass AND mode = 'RowExclusiveLock'
		               AND pg_catalog.has_database_privilege(session_user, objid, 'CONNECT'))`).Scan(&timeout, &entering)
	if err != nil {
		return fail(err)
	}
	out.LoginTime = time.Duration(timeout * float64(time.Second))
	if err := s.forget(ctx); err != nil {
		return fail(err)
	}
	var hidden []int32
	err = s.conn.QueryRow(ctx, `
		SELECT (SELECT count(pg_catalog.pg_terminate_backend(o.pid)) FROM pg_catalog.pg_stat_activity o
		        WHERE o.usename = session_user AND o.backend_type = 'client backend' AND o.pid <> me.pid AND o.backend_start <= me.backend_start),
		       ARRAY(SELECT p FROM pg_catalog.unnest($1::int[]) p
		             WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_stat_activity s WHERE s.pid = p AND (s.usename IS NOT NULL OR s.backend_type <> 'client backend')))
		FROM pg_catalog.pg_stat_activity me WHERE me.pid = pg_catalog.pg_backend_pid()`, entering).Scan(&out.Sessions, &hidden)
	if err != nil {
		return fail(err)
	}
	for _, pid := range hidden {
		out.Entering = append(out.Entering, strconv.Itoa(int(pid)))
	}
	return out, nil
}

// SetPassword changes the login's own password. In the same transaction it takes back what was set for the login, and, up to
// 14, where it was granted to: who had the old password may have left either, to get in by it later (docs/failures.md S1, S6).
func (s *TenantSession) SetPassword(ctx context.Context, password dbserver.Password) error {
	v, err := verifier(password)
	if err != nil {
		return err
	}
	statements, err := s.leftBehind(ctx)
	if err != nil {
		return fmt.Errorf("looking for what was set for login %q: %w", s.login.User, classify(err))
	}
	statements = append(statements, fmt.Sprintf("ALTER ROLE %s PASSWORD %s", quote(s.login.User), literal(v)), "COMMIT", "BEGIN")
	if err := s.conn.PgConn().Exec(ctx, strings.Join(statements, ";\n")).Close(); err != nil {
		return fmt.Errorf("changing the password of login %q as itself: %w", s.login.User, classifyChange(err))
	}
	return nil
}

// leftBehind asks what does not belong to the login, and is the statements that take it back.
func (s *TenantSession) leftBehind(ctx context.Context) ([]string, error) {
	owner := tenant.OwnerOf(s.login.Database)
	var begins bool
	var settings, inside, strangers []string
	err := s.conn.QueryRow(ctx, `
		SELECT COALESCE((SELECT 'role=' || $1 = ANY(rolconfig) FROM pg_catalog.pg_roles WHERE rolname = session_user), false)
		       OR NOT COALESCE((SELECT pg_catalog.pg_has_role(session_user, oid, 'MEMBER') FROM pg_catalog.pg_roles WHERE rolname = $1), false),
		       ARRAY(SELECT DISTINCT n.name `+entries+` AND r.rolname = session_user AND s.setdatabase = 0 AND n.name <> 'role' AND `+settable("'user'")+`),
		       ARRAY(SELECT DISTINCT n.name `+entries+` AND r.rolname = session_user AND s.setdatabase <> 0 AND (n.name = 'role' OR `+settable("'user'")+`)),
		       ARRAY(SELECT DISTINCT u.rolname::text `+members+` AND o.rolname = session_user
		             AND pg_catalog.current_setting('server_version_num')::int < 150000)`,
		owner, s.login.Database, s.login.Database+string(tenant.A), s.login.Database+string(tenant.B)).Scan(&begins, &settings, &inside, &strangers)
	if err != nil {
		return nil, err
	}
	user := quote(s.login.User)
	var statements []string
	for _, name := range settings {
		statements = append(statements, fmt.Sprintf("ALTER ROLE %s RESET %s", user, quote(name)))
	}
	for _, name := range inside {
		statements = append(statements, fmt.Sprintf("ALTER ROLE %s IN DATABASE %s RESET %s", user, quote(s.login.Database), quote(name)))
	}
	if !begins {
		statements = append(statements, fmt.Sprintf("ALTER ROLE %s SET role TO %s", user, literal(owner)))
	}
	for _, name := range strangers {
		statements = append(statements, fmt.Sprintf("REVOKE %s FROM %s", user, quote(name)))
	}
	return statements, nil
}

// Close ends the session.
func (s *TenantSession) Close() { hangUp(context.Background(), s.conn) }
