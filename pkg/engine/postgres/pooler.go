// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
)

// A pooler between us and the server (docs/failures.md F8). Login and Enter depend on nothing that a pooler does not keep, so a
// restart works through any. The admin needs his session for himself, for the lock, and settings of his own: through a pooler
// that keeps sessions he makes the settings by statements, and one that does not is refused. Self gets no further than the
// refusal: where a login's sessions come from cannot be seen through a pooler.

// unsettled says why the server takes no settings with a login. That it takes the login without them shows that they are why.
func (s *Server) unsettled(ctx context.Context, refusal error, user string, password dbserver.Password, database string, settings map[string]string) error {
	conn, _, err := s.dial(ctx, user, password, database, nil)
	if err != nil {
		return refusal
	}
	hangUp(ctx, conn)
	return fault.Translate(fault.Refused, refusal, "a pooler is in between, which refuses the settings that this session begins with: "+
		"let the connector point at the server itself, or, where the pooler keeps sessions (pool_mode = session), set its ignore_startup_parameters = %s",
		strings.Join(slices.Sorted(maps.Keys(settings)), ","))
}

// settled makes the settings of a session by statements where it is known that a pooler did not hand them on.
func (s *Server) settled(ctx context.Context, conn *pgx.Conn, settings map[string]string) (*pgx.Conn, error) {
	if !s.pooled.Load() {
		return conn, nil
	}
	for name, value := range settings {
		if _, err := conn.Exec(ctx, "SELECT pg_catalog.set_config($1, $2, false)", name, value); err != nil {
			hangUp(ctx, conn)
			return nil, fmt.Errorf("setting %s: %w", name, classify(err))
		}
	}
	return conn, nil
}

// begin finds out whether the session is one with the server itself before anything is asked that depends on its settings.
func (a *Admin) begin(ctx context.Context) error {
	var pid uint32
	var path string
	if err := a.conn.QueryRow(ctx, "SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('search_path')").Scan(&pid, &path); err != nil {
		return fmt.Errorf("asking whose session it is: %w", classify(err))
	}
	// The server says at the login which of its processes serves it; a pooler makes a number up.
	if pid != a.conn.PgConn().PID() {
		if err := a.alone(ctx, pid); err != nil {
			return err
		}
		if path != adminSettings["search_path"] {
			a.server.pooled.Store(true)
			if _, err := a.server.settled(ctx, a.conn, adminSettings); err != nil {
				return err
			}
		}
	} else if path != adminSettings["search_path"] {
		return fault.New(fault.Refused, "something is in between that does not hand on the settings of a session: let the connector point at the server itself")
	}
	return a.introduce(ctx)
}

// alone refuses a pooler that gives the process behind this session, which is idle, to another one. Poolers take the process
// that was used last, so one look is enough for those that are set up in the usual way.
func (a *Admin) alone(ctx context.Context, pid uint32) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	conn, _, err := a.server.dial(ctx, a.login, a.password, a.database, nil)
	if err != nil {
		return nil // there is no second process for it: this session has one for itself
	}
	defer hangUp(ctx, conn)
	var other uint32
	if _, err = conn.Exec(ctx, "BEGIN"); err == nil {
		err = conn.QueryRow(ctx, "SELECT pg_catalog.pg_backend_pid()").Scan(&other)
	}
	if other == pid || code(err) == protocolViolation { // a pooler for single statements knows no BEGIN
		return fault.New(fault.Refused, "a pooler is in between, which does not keep sessions: neither a lock nor a setting lasts there; "+
			"let the connector point at the server itself, or at a pool with pool_mode = session")
	}
	return nil
}
