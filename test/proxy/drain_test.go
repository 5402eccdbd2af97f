// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/proxy"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// rotate makes the other login the active one, on the server and for the proxy.
func (s *socket) rotate(tb testing.TB) {
	tb.Helper()
	next := s.record.Clone()
	next.Pending = &tenant.Change{Slot: next.Active.Other(), Password: dbserver.Password("Next-1~password"), Purpose: tenant.Activate}
	require.NoError(tb, s.server.SetPassword(tb.Context(), next.LoginWith(next.Pending.Slot, "").User, next.Pending.Password.Reveal()))
	next.Commit(time.Now())
	s.record = next
	s.proxy.Logins.Set(next)
}

// sessions waits until there are so many of each generation.
func (s *socket) sessions(tb testing.TB, first, second int) {
	tb.Helper()
	bed.Eventually(tb, rig.Patience, func(context.Context) error {
		if got := s.proxy.Sessions(); got[1].Sessions != first || got[2].Sessions != second {
			return fmt.Errorf("%d sessions of the first login and %d of the second, want %d and %d", got[1].Sessions, got[2].Sessions, first, second)
		}
		return nil
	})
}

func (o *observer) drains() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.drained
}

// pool is database/sql with a driver, and n sessions that were opened.
func pool(tb testing.TB, driver, dsn string, n int) *sql.DB {
	tb.Helper()
	db, err := sql.Open(driver, dsn)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	var open []*sql.Conn
	for range n {
		conn, err := db.Conn(tb.Context())
		require.NoError(tb, err)
		require.NoError(tb, conn.PingContext(tb.Context()))
		open = append(open, conn)
	}
	for _, conn := range open {
		require.NoError(tb, conn.Close()) // back to the pool
	}
	return db
}

// TestSocketDrain: when another login becomes active, idle sessions of the old one end, and their pool fails no query; one in a transaction
// stays until it has ended; one that is used all the time stays until the server's patience ends, and goes in between.
func TestSocketDrain(t *testing.T) {
	t.Parallel()
	const idle, patience = 3, 8 * time.Second
	s := newSocket(t, rig.Server(t, bed.Postgres, "17"), func(p *proxy.Server) { p.Patience = patience })
	ctx := t.Context()
	resting := pool(t, "pgx", s.dsn(), idle)
	transaction := s.connect(t)
	_, err := transaction.Exec(ctx, "BEGIN")
	require.NoError(t, err)

	// One is used five times a second, and must notice nothing either. With pgx that holds for Exec alone: a write that has failed before a
	// byte was sent is tried again there, and is an error of Query (stdlib: QueryContext reads the first row by itself).
	polling, stop := context.WithCancel(ctx)
	var poll sync.WaitGroup
	defer poll.Wait()
	defer stop()
	var polls atomic.Int64
	busy := pool(t, "pgx", s.dsn(), 1)
	poll.Go(func() {
		ticker := time.NewTicker(200 * time.Millisecond)
		defer ticker.Stop()
		for polling.Err() == nil {
			if _, err := busy.ExecContext(context.WithoutCancel(ctx), "SELECT 1"); err != nil {
				t.Errorf("poll %d: %v", polls.Load(), err)
			}
			polls.Add(1)
			select {
			case <-ticker.C:
			case <-polling.Done():
			}
		}
	})
	s.sessions(t, idle+2, 0)

	changed := time.Now()
	s.rotate(t)
	s.sessions(t, 2, 0) // the polled one and the transaction
	assert.Less(t, time.Since(changed), patience, "idle sessions wait for no patience")
	assert.Equal(t, idle, s.seen.drains())
	for range 2 * idle {
		var user string
		require.NoError(t, resting.QueryRowContext(ctx, "SELECT session_user::text").Scan(&user))
		assert.Equal(t, s.record.Login(tenant.B).User, user)
	}

	drained := func(want int) {
		t.Helper()
		bed.Eventually(t, rig.Patience, func(context.Context) error {
			if n := s.seen.drains(); n != want {
				return fmt.Errorf("%d sessions were drained, want %d", n, want)
			}
			return nil
		})
	}
	drained(idle + 1) // the polled one
	assert.GreaterOrEqual(t, time.Since(changed), patience)
	s.sessions(t, 1, 2) // the transaction; one of each pool
	stop()
	poll.Wait()
	_, err = transaction.Exec(ctx, "COMMIT")
	require.NoError(t, err)
	drained(idle + 2)
	s.sessions(t, 0, 2)
	t.Logf("%d polls", polls.Load())
}

// passage is a unix socket before a server, whose sessions a test ends as the proxy drains them.
type passage struct {
	path  string
	mu    sync.Mutex
	conns []*net.UnixConn
}

func newPassage(tb testing.TB, name, target string) *passage {
	tb.Helper()
	p := &passage{path: filepath.Join(tb.TempDir(), name)}
	l, err := net.Listen("unix", p.path)
	require.NoError(tb, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.conns = append(p.conns, client.(*net.UnixConn)) //nolint:forcetypeassert // it is one
			p.mu.Unlock()
			all.Go(func() {
				defer client.Close()
				server, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer server.Close()
				all.Go(func() {
					_, _ = io.Copy(client, server)
					_ = client.Close()
				})
				_, _ = io.Copy(server, client)
			})
		}
	})
	tb.Cleanup(func() {
		_ = l.Close()
		p.end()
		all.Wait()
	})
	return p
}

// end ends all sessions, and returns how many there were.
func (p *passage) end() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.CloseRead()
	}
	n := len(p.conns)
	p.conns = nil
	return n
}

// TestDrainedDrivers pins what draining counts on: database/sql with either driver fails no query when a session ends that was idle. pgx asks
// before it uses one that was idle for more than a second, go-sql-driver looks each time. (39)
func TestDrainedDrivers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		engine                bed.Engine
		version, name, driver string
	}{
		{bed.Postgres, "17", ".s.PGSQL.5432", "pgx"},
		{bed.MariaDB, "11.8", "mysql.sock", "mysql"},
	} {
		t.Run(test.driver, func(t *testing.T) {
			t.Parallel()
			server := rig.Server(t, test.engine, test.version)
			p := newPassage(t, test.name, server.Addr())
			dsn := fmt.Sprintf("host=%s user=%s password=%s database=postgres sslmode=disable", filepath.Dir(p.path), server.AdminUser, server.AdminPassword)
			if test.engine != bed.Postgres {
				config := mysql.NewConfig()
				config.Net, config.Addr, config.User, config.Passwd = "unix", p.path, server.AdminUser, server.AdminPassword
				config.Logger = &mysql.NopLogger{} // it says that it found an idle session closed
				dsn = config.FormatDSN()
			}
			const sessions = 3
			for _, idle := range []time.Duration{1100 * time.Millisecond, 2 * time.Second} {
				db := pool(t, test.driver, dsn, sessions)
				rested := time.NewTimer(idle)
				<-rested.C
				require.Equal(t, sessions, p.end())
				for range 2 * sessions {
					_, err := db.ExecContext(t.Context(), "SELECT 1")
					require.NoError(t, err, "after %s", idle)
				}
				_ = db.Close() // of those that were ended and not used, too
				p.end()
			}
		})
	}
}

// TestSocketLastWords: what one side has said reaches the other after its end: a client that hangs up in the middle of an answer ends its
// session on the server, and the server's last words come after all rows before them. (38)
func TestSocketLastWords(t *testing.T) {
	t.Parallel()
	server := rig.Server(t, bed.Postgres, "17")
	s := newSocket(t, server, nil)
	ctx := t.Context()
	conn := s.connect(t)
	rows, err := conn.Query(ctx, "SELECT repeat('x', 1000) FROM generate_series(1, 10000000)")
	require.NoError(t, err)
	require.True(t, rows.Next())
	require.NoError(t, conn.PgConn().Conn().Close())
	bed.Eventually(t, rig.Patience, func(ctx context.Context) error {
		n, err := server.Sessions(ctx, s.record.Database+"%")
		if err == nil && n+len(s.proxy.Sessions()) > 0 {
			err = fmt.Errorf("the server has %d sessions, the proxy %v", n, s.proxy.Sessions())
		}
		return err
	})

	const many = 20000
	conn = s.connect(t)
	pid := one(t, conn, "SELECT pg_backend_pid()::text")
	rows, err = conn.Query(ctx, fmt.Sprintf(
		"SELECT CASE WHEN n <= %d THEN repeat('x', 100) ELSE pg_sleep(300)::text END FROM generate_series(1, %[1]d + 1) AS n", many))
	require.NoError(t, err)
	require.True(t, rows.Next())
	ended := make(chan error, 1)
	go func() { // while the client reads
		ended <- bed.Wait(ctx, func(ctx context.Context) error {
			waits, err := server.Query(ctx, "", "SELECT coalesce(wait_event, '') FROM pg_stat_activity WHERE pid = "+pid)
			if err != nil || waits != "PgSleep" {
				return fmt.Errorf("the statement waits for %q: %w", waits, err)
			}
			return server.Exec(ctx, "SELECT pg_terminate_backend("+pid+")")
		})
	}()
	got := 1
	for rows.Next() {
		got++
	}
	assert.Equal(t, "57P01", code(rows.Err()), "%v", rows.Err())
	assert.Greater(t, got, many*9/10, "rows before the end; the server keeps the last few KiB to itself until it has more")
	require.NoError(t, <-ended)
}
