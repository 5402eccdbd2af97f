// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/tenant"
)

// Self is a session of a tenant's login that works on itself.
type Self struct {
	conn  *pgx.Conn
	login tenant.Login
}

// selfSettings are the tenantSettings of a session in which the login changes itself. It gets in, and works, whatever the login
// has set for itself: what it finds it takes back.
var selfSettings = func() map[string]string {
	settings := maps.Clone(tenantSettings)
	settings["local_preload_libraries"] = ""
	return settings
}()

// Self logs in as a tenant, and leaves the owner role: as that, it could neither change the login's password nor see where the
// login's sessions come from.
func (s *Server) Self(ctx context.Context, login tenant.Login) (tenant.Self, error) {
	conn, err := s.connect(ctx, login.User, login.Password, login.Database, selfSettings)
	if err != nil {
		return nil, err
	}
	self := &Self{conn: conn, login: login}
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
func (s *Self) begin(ctx context.Context) error {
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
	return nil
}

func (s *Self) orHangUp(ctx context.Context, err error) (tenant.Self, error) {
	if err != nil {
		hangUp(ctx, s.conn)
		return nil, err
	}
	return s, nil
}

// Sessions counts the login's other sessions. Only this very session is left out: a rival's, about to set a password that
// has moved on since, has to show. Addresses are evidence that a control plane has moved, so there our own programs, which
// come from the same pods, do not count.
func (s *Self) Sessions(ctx context.Context) (tenant.Sessions, error) {
	var out tenant.Sessions
	err := s.conn.QueryRow(ctx, `
		SELECT count(*), count(DISTINCT COALESCE(client_addr::text, '')) FILTER (WHERE application_name NOT LIKE 'dbconnector-%')
		FROM pg_catalog.pg_stat_activity
		WHERE usename = session_user AND pid <> pg_catalog.pg_backend_pid() AND backend_type = 'client backend'`).
		Scan(&out.Count, &out.Addresses)
	if err != nil {
		return out, fmt.Errorf("looking for sessions of login %q: %w", s.login.User, classify(err))
	}
	return out, nil
}

// SetPassword changes the login's own password. In the same transaction it takes back what was set for the login, and, up to
// 14, where it was granted to: who had the old password may have left either, to get in by it later (docs/failures.md S1, S6).
func (s *Self) SetPassword(ctx context.Context, password connector.Password) error {
	v, err := verifier(password)
	if err != nil {
		return err
	}
	statements, err := s.leftBehind(ctx)
	if err != nil {
		return fmt.Errorf("looking for what was set for login %q: %w", s.login.User, classify(err))
	}
	statements = append(statements, fmt.Sprintf("ALTER ROLE %s PASSWORD %s", quote(s.login.User), literal(v)))
	// What one simple query holds is one transaction.
	if err := s.conn.PgConn().Exec(ctx, strings.Join(statements, ";\n")).Close(); err != nil {
		return fmt.Errorf("changing the password of login %q as itself: %w", s.login.User, classifyChange(err))
	}
	return nil
}

// leftBehind asks what does not belong to the login, and is the statements that take it back.
func (s *Self) leftBehind(ctx context.Context) ([]string, error) {
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
func (s *Self) Close() { hangUp(context.Background(), s.conn) }
