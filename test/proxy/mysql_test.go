// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/proxy"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/controlplane"
	"dbconnector/test/rig"
)

// mysqls are the servers that speak MySQL's protocol.
var mysqls = []struct {
	engine  bed.Engine
	version string
}{{bed.MySQL, "9.7"}, {bed.MariaDB, "10.5"}, {bed.MariaDB, "10.11"}, {bed.MariaDB, "11.8"}}

// eachMySQL runs a test on each of them, on the shared server.
func eachMySQL(t *testing.T, test func(t *testing.T, server *bed.Server)) {
	t.Helper()
	for _, s := range mysqls {
		t.Run(string(s.engine)+"-"+s.version, func(t *testing.T) {
			t.Parallel()
			test(t, rig.Server(t, s.engine, s.version))
		})
	}
}

// mysqlDSN is what kine's driver would be given, and more parameters.
func (s *socket) mysqlDSN(parameters ...string) string {
	return "vcluster@unix(" + s.path + ")/" + s.record.Database + "?" + strings.Join(parameters, "&")
}

func (s *socket) open(tb testing.TB, parameters ...string) *sql.DB {
	tb.Helper()
	db, err := sql.Open("mysql", s.mysqlDSN(parameters...))
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

// session is one connection of a pool.
func session(tb testing.TB, db *sql.DB) *sql.Conn {
	tb.Helper()
	conn, err := db.Conn(tb.Context())
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = conn.Close() })
	return conn
}

func askMySQL(tb testing.TB, conn interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}, query string, args ...any,
) (value string) {
	tb.Helper()
	require.NoError(tb, conn.QueryRowContext(tb.Context(), query, args...).Scan(&value), query)
	return value
}

// number is the server's of an error; 0 for none.
func number(err error) uint16 {
	var said *mysql.MySQLError
	if errors.As(err, &said) {
		return said.Number
	}
	return 0
}

// TestSocketMySQLSession: a client without a login is the tenant in the tenant's database, over TLS, whatever it says of itself. (3, 4, 16, 17, 23, 24)
func TestSocketMySQLSession(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, server *bed.Server) {
		s := newSocket(t, server, nil)
		db := s.open(t, "multiStatements=true")
		conn := session(t, db)
		login := s.record.Login(tenant.A)
		assert.Equal(t, login.User+"@%", askMySQL(t, conn, "SELECT CURRENT_USER()"))
		assert.Equal(t, s.record.Database, askMySQL(t, conn, "SELECT DATABASE()"))
		var name, cipher string
		require.NoError(t, conn.QueryRowContext(t.Context(), "SHOW SESSION STATUS LIKE 'Ssl_cipher'").Scan(&name, &cipher))
		assert.NotEmpty(t, cipher, "the session on the server is not encrypted")

		// Prepared statements, two results in one answer, and what a driver does between uses.
		assert.Equal(t, "7", askMySQL(t, conn, "SELECT ? + 3", 4))
		rows, err := conn.QueryContext(t.Context(), "SELECT 1; SELECT 'second'")
		require.NoError(t, err)
		defer rows.Close()
		require.True(t, rows.Next() && !rows.Next() && rows.NextResultSet() && rows.Next())
		var second string
		require.NoError(t, rows.Scan(&second))
		assert.Equal(t, "second", second)
		require.False(t, rows.Next())
		require.NoError(t, rows.Err())
		require.NoError(t, conn.PingContext(t.Context()))

		// Capabilities are the client's own: found rows are counted where it asks for that, and not else.
		_, err = conn.ExecContext(t.Context(), "CREATE TABLE counted (id INT PRIMARY KEY, v INT); INSERT INTO counted VALUES (1, 1)")
		require.NoError(t, err)
		for parameter, want := range map[string]int64{"clientFoundRows=true": 1, "clientFoundRows=false": 0} {
			result, err := s.open(t, parameter).ExecContext(t.Context(), "UPDATE counted SET v = 1 WHERE id = 1")
			require.NoError(t, err)
			n, err := result.RowsAffected()
			require.NoError(t, err)
			assert.Equal(t, want, n, parameter)
		}
		_, err = s.open(t).ExecContext(t.Context(), "SELECT 1; SELECT 2")
		assert.EqualValues(t, 1064, number(err), "two statements where the client did not ask for it: %v", err)

		// TLS to the socket is the sidecar's business.
		require.NoError(t, s.open(t, "tls=preferred").PingContext(t.Context()))
		assert.ErrorIs(t, s.open(t, "tls=skip-verify").PingContext(t.Context()), mysql.ErrNoTLS)

		// A file of the client's is never asked for.
		mysql.RegisterReaderHandler("data", func() io.Reader { return strings.NewReader("1\n") })
		_, err = conn.ExecContext(t.Context(), "LOAD DATA LOCAL INFILE 'Reader::data' INTO TABLE counted")
		assert.Contains(t, []uint16{1148, 3948, 4166}, number(err), "%v", err)

		// Another database is the server's to refuse; without one there is a session.
		err = newPool(t, "vcluster@unix("+s.path+")/other").PingContext(t.Context())
		assert.EqualValues(t, 1044, number(err), "%v", err)
		require.NoError(t, newPool(t, "vcluster:anything@unix("+s.path+")/").PingContext(t.Context()))
	})
}

func newPool(tb testing.TB, dsn string) *sql.DB {
	tb.Helper()
	db, err := sql.Open("mysql", dsn)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

// TestSocketMySQLPassesAll: packets of more than 16 MiB, in both directions, and many rows come through as they are. (10, 22)
func TestSocketMySQLPassesAll(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, server *bed.Server) {
		s := newSocket(t, server, nil)
		db := s.open(t, "maxAllowedPacket=0")
		large := make([]byte, 1<<20)
		_, err := rand.Read(large)
		require.NoError(t, err)
		var back []byte
		require.NoError(t, db.QueryRowContext(t.Context(), "SELECT ?", large).Scan(&back))
		assert.True(t, bytes.Equal(large, back), "1 MiB came back changed")
		var length int
		require.NoError(t, db.QueryRowContext(t.Context(), "SELECT REPEAT('x', @@max_allowed_packet - 1024)").Scan(&back))
		require.NoError(t, db.QueryRowContext(t.Context(), "SELECT @@max_allowed_packet").Scan(&length))
		assert.Len(t, back, length-1024)
		rows, err := db.QueryContext(t.Context(), "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 900) "+
			"SELECT a.i * 1000 + b.i FROM n a, n b WHERE a.i <= 100")
		require.NoError(t, err)
		defer rows.Close()
		count := 0
		for rows.Next() {
			count++
		}
		require.NoError(t, rows.Err())
		assert.Equal(t, 90_000, count)
	})
}

// TestSocketMySQLAuthentication: the ways in which these servers ask for a password. (18)
func TestSocketMySQLAuthentication(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		engine  bed.Engine
		version string
		options bed.Options
		setUp   []string // statements of the admin's; USER and PASSWORD are the login's
	}{
		"full-then-fast": {bed.MySQL, "9.7", bed.Options{}, []string{"FLUSH PRIVILEGES"}},
		"full-no-tls":    {bed.MySQL, "9.7", bed.Options{NoTLS: true}, []string{"FLUSH PRIVILEGES"}},
		"sha256":         {bed.MySQL, "9.7", bed.Options{}, []string{"ALTER USER USER IDENTIFIED WITH sha256_password BY PASSWORD"}},
		"sha256-no-tls":  {bed.MySQL, "9.7", bed.Options{NoTLS: true}, []string{"ALTER USER USER IDENTIFIED WITH sha256_password BY PASSWORD"}},
		"native-no-tls":  {bed.MariaDB, "11.8", bed.Options{NoTLS: true}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := bed.NewServer(t, test.engine, test.version, test.options)
			s := newSocket(t, server, nil)
			login := s.record.Login(tenant.A)
			for _, statement := range test.setUp {
				statement = strings.NewReplacer("BY PASSWORD", "BY '"+login.Password.Reveal()+"'", "ALTER USER USER", "ALTER USER '"+login.User+"'@'%'").Replace(statement)
				require.NoError(t, server.Exec(t.Context(), statement))
			}
			for range 2 {
				assert.Equal(t, login.User+"@%", askMySQL(t, session(t, s.open(t)), "SELECT CURRENT_USER()"))
			}
		})
	}
}

// TestSocketMySQLErrors: what the server says comes through with its number; what only the proxy knows has a number of its own. (9, 21, 29, 36)
func TestSocketMySQLErrors(t *testing.T) {
	t.Parallel()
	for _, m := range []int{0, 3} {
		t.Run(string(mysqls[m].engine), func(t *testing.T) {
			t.Parallel()
			server := bed.NewServer(t, mysqls[m].engine, mysqls[m].version, bed.Options{})
			s := newSocket(t, server, func(p *proxy.Server) { p.MaxSessions = 2 })
			dial := func(s *socket) error {
				db := s.open(t)
				defer db.Close()
				return db.PingContext(t.Context())
			}
			held := session(t, s.open(t))
			require.NoError(t, server.Exec(t.Context(), "SET GLOBAL max_connections = 10"))
			login := s.record.Login(tenant.A)
			pool, err := server.Open(login.User, login.Password.Reveal(), "")
			require.NoError(t, err)
			defer pool.Close()
			var full []*sql.Conn
			for err == nil { // until the server has no room
				var conn *sql.Conn
				if conn, err = pool.Conn(t.Context()); err == nil {
					full = append(full, conn)
				}
			}
			assert.EqualValues(t, 1040, number(dial(s)))
			for _, conn := range full {
				_ = conn.Close()
			}
			require.NoError(t, pool.Close())
			bed.Eventually(t, rig.Patience, func(context.Context) error { // the client is told first
				if n := s.seen.count(proxy.ServerError); n != 1 {
					return fmt.Errorf("%d errors of the server were counted", n)
				}
				return nil
			})
			require.NoError(t, held.PingContext(t.Context()))
			require.NoError(t, server.Exec(t.Context(), "SET GLOBAL max_connections = 100"))
			bed.Eventually(t, rig.Patience, func(context.Context) error { return dial(s) })

			bed.Eventually(t, rig.Patience, func(context.Context) error {
				if n := s.proxy.Sessions(); len(n) != 1 || n[1].Sessions != 1 {
					return fmt.Errorf("sessions %v", n)
				}
				return nil
			})
			second := session(t, s.open(t))
			err = dial(s)
			assert.EqualValues(t, 1040, number(err), "%v", err)
			assert.ErrorContains(t, err, "dbconnector: there is no room")
			require.NoError(t, second.PingContext(t.Context()))

			// No login works. Fifty clients cost the server a few attempts.
			locked := newSocket(t, server, func(p *proxy.Server) { p.MaxSessions = 100 })
			login = locked.record.Login(tenant.A)
			require.NoError(t, server.SetPassword(t.Context(), login.User, "Another-1~password"))
			var clients sync.WaitGroup
			for range 50 {
				clients.Go(func() {
					if err := dial(locked); number(err) != 1045 {
						t.Errorf("no login works: got %v", err)
					}
				})
			}
			clients.Wait()

			require.NoError(t, server.Kill())
			again := &socket{server: s.server, record: s.record, dir: t.TempDir()}
			again.serve(t, nil)
			err = dial(again)
			assert.EqualValues(t, 2003, number(err), "%v", err)
			assert.NotContains(t, err.Error(), login.User)
		})
	}
}

// TestSocketMySQLRotation: passwords change all the time, on the server first, and the proxy learns it late. No new session fails, and one
// in a transaction works to the end. Old sessions that are idle are drained, and their pool does not notice. (26, 27, 28, 39)
func TestSocketMySQLRotation(t *testing.T) {
	t.Parallel()
	const rotations, late = 15, 150 * time.Millisecond
	eachMySQL(t, func(t *testing.T, server *bed.Server) {
		s := newSocket(t, server, nil)
		old := session(t, s.open(t))
		_, err := old.ExecContext(t.Context(), "START TRANSACTION")
		require.NoError(t, err)
		idle := s.open(t)
		require.NoError(t, idle.PingContext(t.Context()))
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var workers sync.WaitGroup
		defer workers.Wait()
		var opened atomic.Int64
		for range 4 {
			workers.Go(func() {
				for ctx.Err() == nil {
					db, err := sql.Open("mysql", s.mysqlDSN())
					if err == nil {
						_, err = db.ExecContext(ctx, "SELECT 1")
						_ = db.Close()
					}
					if err != nil && ctx.Err() == nil {
						t.Errorf("after %d sessions: %v", opened.Load(), err)
						return
					}
					opened.Add(1)
				}
			})
		}
		record := s.record.Clone()
		for i := range rotations {
			next := record.Clone()
			password := dbserver.Password(fmt.Sprintf("Rotation-%d-%s~a", i, rand.Text()))
			next.Pending = &tenant.Change{Slot: record.Active.Other(), Password: password, Purpose: tenant.Activate}
			s.proxy.Logins.Set(next)
			require.NoError(t, server.SetPassword(t.Context(), next.LoginWith(next.Pending.Slot, password).User, password.Reveal()))
			next = next.Clone()
			next.Commit(time.Now())
			require.NoError(t, server.SetPassword(t.Context(), record.Login(record.Active).User, "Retired-1~"+rand.Text()))
			timer := time.NewTimer(late)
			<-timer.C
			next.OtherRetired = true
			s.proxy.Logins.Set(next)
			record = next
		}
		stop()
		workers.Wait()
		t.Logf("%d sessions during %d rotations", opened.Load(), rotations)
		assert.Greater(t, opened.Load(), int64(rotations))
		bed.Eventually(t, rig.Patience, func(context.Context) error { // the idle one is drained, the transaction stays
			if got := s.proxy.Sessions(); len(got) != 1 || got[1].Sessions != 1 {
				return fmt.Errorf("sessions by generation: %v", got)
			}
			return nil
		})
		require.NoError(t, idle.PingContext(t.Context()), "the pool noticed that its session was drained")
		assert.Equal(t, record.Login(record.Active).User+"@%", askMySQL(t, idle, "SELECT CURRENT_USER()"))
		_, err = old.ExecContext(t.Context(), "COMMIT")
		require.NoError(t, err, "the end of a transaction that began before the first rotation")
	})
}

// TestSocketMySQLKine: the real kine on the static connection string, while the login changes. (41)
func TestSocketMySQLKine(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, server *bed.Server) {
		s := newSocket(t, server, nil)
		kine := bed.NewKine(t, "mysql://vcluster@unix("+s.path+")/"+s.record.Database, "")
		client, err := controlplane.Dial(kine.Endpoint)
		require.NoError(t, err)
		defer client.Close()
		revision, err := controlplane.Put(t.Context(), client, "/registry/x", "first", 0)
		require.NoError(t, err)
		next := s.record.Clone()
		next.Pending = &tenant.Change{Slot: tenant.B, Password: "Second-1~password", Purpose: tenant.Activate}
		require.NoError(t, server.SetPassword(t.Context(), next.Login(tenant.B).User, "Second-1~password"))
		next.Commit(time.Now())
		s.proxy.Logins.Set(next)
		_, err = controlplane.Put(t.Context(), client, "/registry/x", "second", revision)
		require.NoError(t, err)
		assert.NotContains(t, kine.Log(), s.record.Login(tenant.A).Password.Reveal())
	})
}

// TestSocketMySQLEnds: sessions end with the client's and with the server's, clients that say nothing or something else cost nothing that
// stays. Nor does the server count them as broken connections, for which it would block this host's address after some. (34, 37)
func TestSocketMySQLEnds(t *testing.T) {
	t.Parallel()
	server := bed.NewServer(t, bed.MariaDB, "11.8", bed.Options{})
	s := newSocket(t, server, nil)
	broken := func() string {
		n, err := server.Query(t.Context(), "", "SELECT CONCAT(SUM(VARIABLE_VALUE), '') FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME LIKE 'ABORTED_%'")
		require.NoError(t, err)
		return n
	}
	before := broken()
	require.NoError(t, session(t, s.open(t)).PingContext(t.Context()))
	for _, said := range []string{"", "\x01", "GET / HTTP/1.0\r\n\r\n", "\x20\x00\x00\x01" + strings.Repeat("\xff", 32), "\xff\xff\xff\x01"} {
		raw, err := net.Dial("unix", s.path)
		require.NoError(t, err)
		_, err = raw.Read(make([]byte, 1)) // the greeting
		require.NoError(t, err)
		_, _ = raw.Write([]byte(said))
		_ = raw.Close()
	}
	bed.Eventually(t, rig.Patience, func(context.Context) error {
		if n := s.seen.count(proxy.ClientError); n != 5 {
			return fmt.Errorf("%d clients were turned away", n)
		}
		return nil
	})
	assert.Equal(t, before, broken(), "connections that the server takes for broken")
	s.stop()
	s.gone(t, "the proxy was ended")
}
