// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// Every login of a server can keep a database shut: one session takes a weak lock on it (ALTER ROLE CURRENT_USER IN DATABASE …),
// another asks for a strong one (DROP DATABASE, which waits for the lock before it looks at who owns the database), and all who
// connect wait behind the second. No right prevents it. What can be done is to say who it is. (docs/failures.md S3)

// loginTime bounds one login, where the caller's time does not; askTime what is spent on finding out why one did not get through.
const (
	loginTime = 15 * time.Second
	askTime   = 3 * time.Second
)

// spare leaves a part of ctx's time for asking why a login does not get through.
func spare(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := loginTime
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		limit = min(limit, left-min(left/4, askTime))
	}
	return context.WithTimeout(ctx, limit)
}

// holder is a session that keeps others waiting.
type holder struct {
	pid     int
	user    string
	granted bool // it has its lock; else it waits for it, in front of others
}

// why says why the server took up a login to a database and did not let it through. It asks over a session of the same login to
// another database, if there is one that the login may enter. Only a failed login comes here, so an ordinary start asks nothing.
func (s *Server) why(ctx context.Context, user string, password dbserver.Password, database string) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	deadline, _ := ctx.Deadline()
	tried, hung := 0, 0
	for i, door := range maintenance {
		if door == database {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(maintenance)-i)) // it may be shut as well
		conn, answered, err := s.dial(limited, user, password, door, adminSettings)
		cancel()
		switch {
		case err == nil:
			holders, err := holdersOf(ctx, conn, database)
			hangUp(ctx, conn)
			if err != nil || len(holders) == 0 {
				return fault.New(fault.Unavailable, "no answer within the time limit")
			}
			return fault.New(fault.Unavailable, "database %q is shut: %s; from a session to another database: %s",
				database, tell(holders, user), terminate(holders))
		case code(err) == invalidCatalogName:
			continue
		case answered && timedOut(err):
			hung++
		}
		tried++
	}
	if hung > 0 && hung == tried {
		return fault.New(fault.Unavailable, "no login gets through to any database of this server within the time limit: "+
			"it is slow, or a session has locked a catalog that all databases share")
	}
	return fault.New(fault.Unavailable, "no answer within the time limit: the server is slow, or a session has locked database %q; "+
		"login %q may enter no other database to ask which", database, user)
}

// holdersOf are the sessions that keep a database shut.
func holdersOf(ctx context.Context, conn *pgx.Conn, database string) ([]holder, error) {
	return holders(ctx, conn, `
		SELECT l.pid, COALESCE(a.usename::text, ''), l.granted
		FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.objid
		JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
		WHERE l.locktype = 'object' AND l.classid = 'pg_catalog.pg_database'::regclass AND d.datname = $1
		  AND (l.granted OR l.mode = 'AccessExclusiveLock')
		ORDER BY l.granted DESC, l.pid LIMIT 5`, database)
}

func holders(ctx context.Context, conn *pgx.Conn, query string, args ...any) ([]holder, error) {
	rows, err := conn.Query(ctx, query, args...)
	if err != nil {
		return nil, classify(err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (holder, error) {
		var h holder
		return h, row.Scan(&h.pid, &h.user, &h.granted)
	})
	return found, classify(err)
}

// tell names sessions, and whose they are. user is who asks.
func tell(all []holder, user string) string {
	var parts []string
	for _, h := range all {
		does := "waits for one"
		if h.granted {
			does = "holds a lock"
		}
		whose := "another's"
		if h.user == user {
			whose = "its own"
		}
		parts = append(parts, fmt.Sprintf("session %d of login %q (%s) %s", h.pid, h.user, whose, does))
	}
	return strings.Join(parts, ", ")
}

// terminate is the statement that ends those who hold a lock, or, where only waits are seen, those who wait.
func terminate(all []holder) string {
	granted := slices.ContainsFunc(all, func(h holder) bool { return h.granted })
	var calls []string
	for _, h := range all {
		if h.granted == granted {
			calls = append(calls, fmt.Sprintf("pg_terminate_backend(%d)", h.pid))
		}
	}
	return "SELECT " + strings.Join(calls, ", ")
}

// held adds to a wait that reached lock_timeout who may hold the lock. Short transactions hold locks for a moment,
// so what is named is to be looked at. Sessions of the admin's own login are other inits, and do not count.
func (a *Admin) held(ctx context.Context, err error) error {
	if code(err) != lockNotAvailable {
		return err
	}
	all, aerr := holders(ctx, a.conn, `
		SELECT DISTINCT a.pid, COALESCE(a.usename::text, ''), l.granted
		FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
		WHERE l.database = 0 AND a.usename <> session_user
		  AND (l.locktype = 'object' OR l.locktype = 'relation' AND l.mode <> 'AccessShareLock')
		ORDER BY 3 DESC, 1 LIMIT 5`)
	if aerr != nil || len(all) == 0 {
		return err
	}
	return fault.New(fault.Unavailable, "%w; on what all databases share %s: if it stays, %s", err, tell(all, a.login), terminate(all))
}

// holdsLock says who holds the tenant's lock.
func (a *Admin) holdsLock(ctx context.Context, name string, err error) error {
	if code(err) != lockNotAvailable {
		return err
	}
	all, aerr := holders(ctx, a.conn, `
		SELECT l.pid, COALESCE(a.usename::text, ''), true
		FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
		WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
		  AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
		  AND (l.classid::bigint << 32 | l.objid::bigint) = pg_catalog.hashtextextended($1, 0)`, name)
	if aerr != nil || len(all) == 0 {
		return err
	}
	return fault.New(fault.Unavailable, "%w; %s: if it stays, %s", err, tell(all, a.login), terminate(all))
}

// locked says who keeps kine's table from being read.
func (s *Server) locked(ctx context.Context, conn *pgx.Conn, login tenant.Login) error {
	all, err := holders(ctx, conn, `
		SELECT DISTINCT a.pid, COALESCE(a.usename::text, ''), l.granted
		FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
		WHERE l.locktype = 'relation' AND l.relation = pg_catalog.to_regclass('public.kine') AND l.mode <> 'AccessShareLock' AND a.pid <> pg_catalog.pg_backend_pid()
		  AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
		ORDER BY 3 DESC, 1 LIMIT 5`)
	if err != nil || len(all) == 0 {
		return fault.New(fault.Unavailable, "table kine of database %q is locked", login.Database)
	}
	return fault.New(fault.Unavailable, "table kine of database %q is locked: %s: if it stays, %s", login.Database, tell(all, login.User), terminate(all))
}

// timedOut says whether an error is the end of a time limit.
func timedOut(err error) bool {
	var network interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout()
}
