// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/tenant"
)

// Self is a session of a tenant's login that works on itself.
type Self struct {
	conn *pgx.Conn
	user string
}

// Self logs in as a tenant, and leaves the owner role: as that, it could neither change the login's password nor see where
// the login's sessions come from.
func (s *Server) Self(ctx context.Context, login tenant.Login) (tenant.Self, error) {
	conn, err := s.connect(ctx, login.User, login.Password, login.Database, adminSettings)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "SET ROLE NONE"); err != nil {
		hangUp(ctx, conn)
		return nil, fmt.Errorf("leaving the owner role as login %q: %w", login.User, classify(err))
	}
	return &Self{conn: conn, user: login.User}, nil
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
		return out, fmt.Errorf("looking for sessions of login %q: %w", s.user, classify(err))
	}
	return out, nil
}

// SetPassword changes the login's own password.
func (s *Self) SetPassword(ctx context.Context, password connector.Password) error {
	v, err := verifier(password)
	if err != nil {
		return err
	}
	if _, err := s.conn.Exec(ctx, fmt.Sprintf("ALTER ROLE %s PASSWORD %s", quote(s.user), literal(v))); err != nil {
		return fmt.Errorf("changing the password of login %q as itself: %w", s.user, classifyChange(err))
	}
	return nil
}

// Close ends the session.
func (s *Self) Close() { hangUp(context.Background(), s.conn) }
