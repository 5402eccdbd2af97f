// SPDX-License-Identifier: Apache-2.0

package attack

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"sync"
	"testing"
	"time"

	"dbconnector/test/bed"
)

// shutFor is the most that a server or a database stays shut.
const shutFor = time.Minute

// Shut keeps one database of a PostgreSQL server shut: no client gets in until the function that it returns is called, or the
// test has ended. db is a pool of any login to any other database. It is two statements, and no right prevents them
// (docs/failures.md S3): the first session holds a weak lock on the database, the second waits for a strong one, in front of
// all clients that connect.
func Shut(tb testing.TB, db *sql.DB, database string) (release func()) {
	tb.Helper()
	return block(tb, db,
		`ALTER ROLE CURRENT_USER IN DATABASE "`+database+`" SET work_mem = '4MB'`,
		`DROP DATABASE "`+database+`"`)
}

// ShutAll does the same to all databases of a server at once: the second session asks for a lock on a catalog that they share,
// and gets as far as the wait, since CREATE RULE, too, looks at its rights later.
func ShutAll(tb testing.TB, db *sql.DB) (release func()) {
	tb.Helper()
	return block(tb, db, `SELECT count(*) FROM pg_catalog.pg_database`,
		`CREATE RULE shut AS ON INSERT TO pg_catalog.pg_database DO INSTEAD NOTHING`)
}

// block runs weak in a transaction that stays open, and strong beside it.
func block(tb testing.TB, db *sql.DB, weak, strong string) (release func()) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), shutFor)
	holder, err := db.Conn(ctx)
	if err != nil {
		cancel()
		tb.Fatal(err)
	}
	waiter, err := db.Conn(ctx)
	if err != nil {
		cancel()
		tb.Fatal(err)
	}
	run := func(conn *sql.Conn, statement string) {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			tb.Errorf("%s: %v", statement, err)
		}
	}
	run(holder, "SET ROLE NONE") // the owner role, as which tenants begin, is no login and has no sessions of its own
	run(waiter, "SET ROLE NONE")
	run(holder, "BEGIN")
	run(holder, weak)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = waiter.ExecContext(ctx, strong) // it is refused in the end
	}()
	soon, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	if err := bed.Wait(soon, func(ctx context.Context) error {
		var waits bool
		err := holder.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock')`).Scan(&waits)
		if err == nil && !waits {
			err = sql.ErrNoRows
		}
		return err
	}); err != nil {
		tb.Errorf("%s: does not wait: %v", strong, err)
	}
	var once sync.Once
	release = func() {
		once.Do(func() {
			cancel()
			<-done
			for _, conn := range []*sql.Conn{holder, waiter} {
				_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // ends the session, and with it its transaction
				_ = conn.Close()
			}
		})
	}
	tb.Cleanup(release)
	return release
}
