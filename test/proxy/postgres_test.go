// SPDX-License-Identifier: Apache-2.0

// Package proxy_test has real clients use real servers through the socket. The numbers in brackets are those of the list of tests for
// socket mode.
package proxy_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/proxy"
	"dbconnector/pkg/proxy/mywire"
	"dbconnector/pkg/proxy/pgwire"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/controlplane"
	"dbconnector/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// versions are the servers of the tests that depend on the version.
var versions = []string{"13", "17", "18"}

// socket is a tenant with a proxy before its database.
type socket struct {
	server *bed.Server
	record *tenant.Record
	dir    string
	path   string // of the socket
	proxy  *proxy.Server
	seen   observer
	stop   func() // and wait
}

// observer counts.
type observer struct {
	mu                 sync.Mutex
	connects           map[proxy.Result]int
	drained, cancelled int
}

func (o *observer) Connected(result proxy.Result, _ time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.connects == nil {
		o.connects = map[proxy.Result]int{}
	}
	o.connects[result]++
}

// count is how often connecting had a result.
func (o *observer) count(result proxy.Result) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.connects[result]
}

func (o *observer) Drained() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drained++
}

func (o *observer) Cancelled() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cancelled++
}

// newSocket provisions a tenant on a server, and serves it.
func newSocket(tb testing.TB, server *bed.Server, change func(*proxy.Server)) *socket {
	tb.Helper()
	plane := rig.NewTenant(tb, server, "")
	record, err := plane.Record(tb.Context())
	require.NoError(tb, err)
	return serve(tb, server, record, change)
}

// serve serves a tenant. server may be nil where it is none of the bed's.
func serve(tb testing.TB, server *bed.Server, record *tenant.Record, change func(*proxy.Server)) *socket {
	tb.Helper()
	s := &socket{server: server, record: record, dir: tb.TempDir()}
	s.serve(tb, change)
	return s
}

// serve starts the proxy.
func (s *socket) serve(tb testing.TB, change func(*proxy.Server)) {
	tb.Helper()
	s.path = filepath.Join(s.dir, ".s.PGSQL.5432")
	var wire proxy.Wire = pgwire.New()
	if s.record.Server.Engine == dbserver.MySQL {
		s.path, wire = filepath.Join(s.dir, "mysql.sock"), mywire.New()
	}
	s.proxy = &proxy.Server{Wire: wire, Logins: proxy.NewLogins(), MaxSessions: 40, Observer: &s.seen, Log: zap.NewNop()}
	s.proxy.Logins.Set(s.record)
	if change != nil {
		change(s.proxy)
	}
	l, err := proxy.Listen(tb.Context(), s.path, 0o660)
	require.NoError(tb, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	served := make(chan error, 1)
	go func() { served <- s.proxy.Serve(ctx, l) }()
	s.stop = sync.OnceFunc(func() {
		_ = l.Close()
		cancel()
		assert.NoError(tb, <-served)
		assert.Empty(tb, s.proxy.Sessions())
	})
	tb.Cleanup(s.stop)
}

// gone waits until nothing is left of the sessions, on the server and in the proxy.
func (s *socket) gone(tb testing.TB, what string) {
	tb.Helper()
	bed.Eventually(tb, rig.Patience, func(ctx context.Context) error {
		n, err := s.server.Sessions(ctx, s.record.Database+"%")
		if err == nil && n+len(s.proxy.Sessions()) > 0 {
			err = fmt.Errorf("%s: the server has %d sessions, the proxy %v", what, n, s.proxy.Sessions())
		}
		return err
	})
}

// dsn is what kine would be given, and more parameters.
func (s *socket) dsn(parameters ...string) string {
	return "host=" + s.dir + " user=vcluster database=anything sslmode=disable " + strings.Join(parameters, " ")
}

func (s *socket) connect(tb testing.TB, parameters ...string) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), s.dsn(parameters...))
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func one(tb testing.TB, conn *pgx.Conn, query string) (value string) {
	tb.Helper()
	require.NoError(tb, conn.QueryRow(tb.Context(), query).Scan(&value), query)
	return value
}

// code is the SQLSTATE of an error; empty for none.
func code(err error) string {
	var said *pgconn.PgError
	if errors.As(err, &said) {
		return said.Code
	}
	return ""
}

// TestSocketSession: a client without a login is the tenant in the tenant's database, over TLS, and what it sets in the startup packet
// holds on the server. (3, 4)
func TestSocketSession(t *testing.T) {
	t.Parallel()
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			s := newSocket(t, rig.Server(t, bed.Postgres, version), nil)
			conn := s.connect(t, "lock_timeout=10000", "application_name=kine", "client_encoding=UTF8", "search_path=public", "options='-c statement_timeout=12s'")
			for query, want := range map[string]string{
				"SELECT session_user::text": s.record.Login(tenant.A).User, "SELECT current_database()::text": s.record.Database,
				"SHOW lock_timeout": "10s", "SHOW application_name": "kine", "SHOW search_path": "public", "SHOW statement_timeout": "12s",
			} {
				assert.Equal(t, want, one(t, conn, query), query)
			}
			encrypted, err := s.server.Query(t.Context(), "", "SELECT bool_and(ssl)::text FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = $1",
				s.record.Login(tenant.A).User)
			require.NoError(t, err)
			assert.Equal(t, "true", encrypted)
			assert.Equal(t, 1, s.proxy.Sessions()[1].Sessions)
			for _, database := range []string{"postgres", "template1"} {
				_, err := pgx.Connect(t.Context(), "host="+s.dir+" user=x sslmode=disable database="+database)
				assert.Equal(t, "3D000", code(err), "%s: %v", database, err)
			}
			_, err = pgconn.Connect(t.Context(), s.dsn("replication=database"))
			assert.Equal(t, "0A000", code(err), "%v", err)
			_, err = pgx.Connect(t.Context(), s.dsn("no_such_setting=1"))
			assert.Equal(t, "42704", code(err), "the server's own word: %v", err)
		})
	}
}

// TestSocketNewerProtocol: a client that asks for a later minor version and for options is told what there is, and has a session. (7)
func TestSocketNewerProtocol(t *testing.T) {
	t.Parallel()
	s := newSocket(t, rig.Server(t, bed.Postgres, "18"), nil)
	conn := s.connect(t, "max_protocol_version=3.2")
	assert.Equal(t, "1", one(t, conn, "SELECT 1::text"))
}

// TestSocketCancel: a request to cancel ends the statement of its session, and no other key ends anything. (5)
func TestSocketCancel(t *testing.T) {
	t.Parallel()
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			s := newSocket(t, rig.Server(t, bed.Postgres, version), nil)
			conn := s.connect(t)
			running := func() string {
				n, err := s.server.Query(t.Context(), "", `SELECT count(*)::text FROM pg_stat_activity
					WHERE query LIKE 'SELECT pg_sleep(300)%' AND state = 'active' AND usename = $1`, s.record.Login(tenant.A).User)
				require.NoError(t, err)
				return n
			}
			done := make(chan error, 1)
			go func() {
				_, err := conn.Exec(context.Background(), "SELECT pg_sleep(300)")
				done <- err
			}()
			bed.Eventually(t, rig.Patience, func(context.Context) error {
				if n := running(); n != "1" {
					return fmt.Errorf("%s statements are running", n)
				}
				return nil
			})
			ask := func(secret []byte) {
				raw, err := net.Dial("unix", filepath.Join(s.dir, ".s.PGSQL.5432"))
				require.NoError(t, err)
				defer raw.Close()
				packet, err := (&pgproto3.CancelRequest{ProcessID: conn.PgConn().PID(), SecretKey: secret}).Encode(nil)
				require.NoError(t, err)
				_, err = raw.Write(packet)
				require.NoError(t, err)
				n, _ := raw.Read(make([]byte, 1))
				assert.Zero(t, n, "an answer to a request to cancel")
			}
			key := conn.PgConn().SecretKey()
			ask(append([]byte{^key[0]}, key[1:]...))
			assert.Equal(t, "1", running(), "after a wrong key")
			require.NoError(t, conn.PgConn().CancelRequest(t.Context()))
			select {
			case err := <-done:
				assert.Equal(t, "57014", code(err), "%v", err)
			case <-time.After(rig.Patience):
				t.Fatal("the statement was not cancelled")
			}
			require.NoError(t, conn.Close(t.Context()))
			ask(key) // of a session that has ended
			assert.Equal(t, "0", running())
		})
	}
}

// TestSocketPassesAll: large values, copies in both directions, notifications and many prepared statements come through as they are. (10)
func TestSocketPassesAll(t *testing.T) {
	t.Parallel()
	s := newSocket(t, rig.Server(t, bed.Postgres, "17"), nil)
	conn := s.connect(t)
	ctx := t.Context()
	large := make([]byte, 16<<20)
	_, err := rand.Read(large)
	require.NoError(t, err)
	var back []byte
	require.NoError(t, conn.QueryRow(ctx, "SELECT $1::bytea", large).Scan(&back))
	assert.True(t, bytes.Equal(large, back), "16 MiB came back changed")

	_, err = conn.Exec(ctx, "CREATE TEMPORARY TABLE copied (line text)")
	require.NoError(t, err)
	text := strings.Repeat("a line\n", 100_000)
	in, err := conn.PgConn().CopyFrom(ctx, strings.NewReader(text), "COPY copied FROM STDIN")
	require.NoError(t, err)
	assert.EqualValues(t, 100_000, in.RowsAffected())
	var out bytes.Buffer
	_, err = conn.PgConn().CopyTo(ctx, &out, "COPY copied TO STDOUT")
	require.NoError(t, err)
	assert.Equal(t, text, out.String())

	_, err = conn.Exec(ctx, "LISTEN news")
	require.NoError(t, err)
	_, err = s.connect(t).Exec(ctx, "NOTIFY news, 'heard'")
	require.NoError(t, err)
	waiting, enough := context.WithTimeout(ctx, rig.Patience)
	defer enough()
	news, err := conn.WaitForNotification(waiting)
	require.NoError(t, err)
	assert.Equal(t, "heard", news.Payload)

	for i := range 1000 {
		name := fmt.Sprint("statement ", i)
		_, err := conn.Prepare(ctx, name, fmt.Sprintf("SELECT %d::text", i))
		require.NoError(t, err)
		if i%100 == 0 {
			assert.Equal(t, fmt.Sprint(i), one(t, conn, name))
		}
	}
}

// TestSocketErrors: what the server says to a login comes through with its code; what only the proxy knows has a code of its own. (9, 29, 36)
func TestSocketErrors(t *testing.T) {
	t.Parallel()
	server := bed.NewServer(t, bed.Postgres, "17", bed.Options{LogStatements: true})
	s := newSocket(t, server, func(p *proxy.Server) { p.MaxSessions = 2 })
	ctx := t.Context()
	dial := func(s *socket) error {
		conn, err := pgx.Connect(ctx, s.dsn())
		if err == nil {
			_ = conn.Close(ctx)
		}
		return err
	}
	login := s.record.Login(tenant.A)

	require.NoError(t, server.Exec(ctx, fmt.Sprintf("ALTER ROLE %q CONNECTION LIMIT 0", login.User)))
	err := dial(s)
	assert.Equal(t, "53300", code(err), "%v", err)
	assert.Contains(t, err.Error(), "too many connections for role")
	require.NoError(t, server.Exec(ctx, fmt.Sprintf("ALTER ROLE %q CONNECTION LIMIT 60", login.User)))

	held := []*pgx.Conn{s.connect(t), s.connect(t)}
	err = dial(s)
	assert.Equal(t, "53300", code(err), "%v", err)
	assert.Contains(t, err.Error(), "dbconnector: there is no room")
	require.NoError(t, held[0].Close(ctx))
	bed.Eventually(t, rig.Patience, func(context.Context) error { return dial(s) })
	require.NoError(t, held[1].Close(ctx))

	// No login works. Fifty clients cost the server a few attempts.
	locked := newSocket(t, server, func(p *proxy.Server) { p.MaxSessions = 100 })
	login = locked.record.Login(tenant.A)
	require.NoError(t, server.SetPassword(ctx, login.User, "another"))
	refusals := func() int {
		log, err := server.StatementLog()
		require.NoError(t, err)
		return strings.Count(log, "FATAL:  password authentication failed")
	}
	before := refusals()
	var clients sync.WaitGroup
	for range 50 {
		clients.Go(func() {
			err := dial(locked)
			if c := code(err); c != "28P01" && c != "28000" {
				t.Errorf("no login works: got %q, %v", c, err)
			}
		})
	}
	clients.Wait()
	if n := refusals() - before; n < 1 || n > 20 {
		t.Errorf("fifty clients cost %d refused logins", n)
	}

	require.NoError(t, server.Kill())
	err = dial(locked)
	assert.Equal(t, "08001", code(err), "%v", err)
	for _, secret := range []string{login.Password.Reveal(), login.User} {
		assert.NotContains(t, err.Error(), secret)
	}
}

// TestSocketRotation: passwords change all the time, on the server first, and the proxy learns it late. No new session fails, and one that
// was opened before the first change and is in a transaction works after the last. (26, 27, 28)
func TestSocketRotation(t *testing.T) {
	t.Parallel()
	const rotations, late = 20, 150 * time.Millisecond
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			server := rig.Server(t, bed.Postgres, version)
			s := newSocket(t, server, nil)
			old := s.connect(t)
			_, err := old.Exec(t.Context(), "BEGIN") // else it would be drained
			require.NoError(t, err)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var workers sync.WaitGroup
			defer workers.Wait()
			var opened atomic.Int64
			for range 4 {
				workers.Go(func() {
					for ctx.Err() == nil {
						conn, err := pgx.Connect(ctx, s.dsn())
						if err == nil {
							_, err = conn.Exec(ctx, "SELECT 1")
							_ = conn.Close(context.WithoutCancel(ctx))
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
				password := dbserver.Password(fmt.Sprintf("rotation-%d-%s", i, rand.Text()))
				next.Pending = &tenant.Change{Slot: record.Active.Other(), Password: password, Purpose: tenant.Activate}
				s.proxy.Logins.Set(next) // staged
				require.NoError(t, server.SetPassword(t.Context(), next.LoginWith(next.Pending.Slot, password).User, password.Reveal()))
				next = next.Clone()
				next.Commit(time.Now())
				// The previous login is retired at once, before the proxy knows of any of it: the one that it tries first is dead.
				require.NoError(t, server.SetPassword(t.Context(), record.Login(record.Active).User, "retired"+rand.Text()))
				bed.Eventually(t, rig.Patience, func(context.Context) error { // sessions go on meanwhile
					if opened.Load() == 0 {
						return errors.New("no session was opened")
					}
					return nil
				})
				timer := time.NewTimer(late)
				<-timer.C
				next.OtherRetired = true
				s.proxy.Logins.Set(next)
				record = next
			}
			stop()
			workers.Wait()
			t.Logf("%d sessions during %d rotations", opened.Load(), rotations)
			assert.Greater(t, opened.Load(), int64(2*rotations))
			assert.Equal(t, "1", one(t, old, "SELECT 1::text"))
			assert.Equal(t, int64(1+rotations), record.Generation)
			fresh := s.connect(t)
			assert.Equal(t, record.Login(record.Active).User, one(t, fresh, "SELECT session_user::text"))
			bed.Eventually(t, rig.Patience, func(context.Context) error { // the workers' last ones end
				if got := s.proxy.Sessions(); len(got) != 2 || got[1].Sessions != 1 || got[record.Generation].Sessions != 1 {
					return fmt.Errorf("sessions by generation: %v", got)
				}
				return nil
			})
		})
	}
}

// TestSocketKine: the real kine on the static connection string, while the login changes. (41)
func TestSocketKine(t *testing.T) {
	t.Parallel()
	server := rig.Server(t, bed.Postgres, "17")
	s := newSocket(t, server, nil)
	kine := bed.NewKine(t, "postgres://vcluster@/anything?host="+s.dir+"&sslmode=disable", "")
	client, err := controlplane.Dial(kine.Endpoint)
	require.NoError(t, err)
	defer client.Close()
	ctx := t.Context()
	revision, err := controlplane.Put(ctx, client, "/registry/x", "first", 0)
	require.NoError(t, err)
	next := s.record.Clone()
	next.Pending = &tenant.Change{Slot: tenant.B, Password: "Second-1~password", Purpose: tenant.Activate}
	require.NoError(t, server.SetPassword(ctx, next.Login(tenant.B).User, "Second-1~password"))
	next.Commit(time.Now())
	s.proxy.Logins.Set(next)
	_, err = controlplane.Put(ctx, client, "/registry/x", "second", revision)
	require.NoError(t, err)
	objects, err := controlplane.List(ctx, client, "/registry/x")
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"/registry/x": "second"}, objects)
	for _, login := range []tenant.Login{s.record.Login(tenant.A), next.Login(tenant.B)} {
		assert.NotContains(t, kine.Log(), login.Password.Reveal())
		assert.NotContains(t, kine.Log(), login.User)
	}
}

// TestSocketEnds: sessions end with the server's, with the client's, and with the proxy; nothing of them is left. (34, 37)
func TestSocketEnds(t *testing.T) {
	t.Parallel()
	server := rig.Server(t, bed.Postgres, "17")
	s := newSocket(t, server, nil)
	require.NoError(t, s.connect(t).Close(t.Context()))
	s.gone(t, "the client said goodbye")

	conn := s.connect(t)
	require.NoError(t, conn.PgConn().Conn().Close())
	s.gone(t, "the client hung up")

	conn = s.connect(t)
	pid := one(t, conn, "SELECT pg_backend_pid()::text")
	require.NoError(t, server.Exec(t.Context(), "SELECT pg_terminate_backend("+pid+")"))
	_, err := conn.Exec(t.Context(), "SELECT 1")
	assert.Equal(t, "57P01", code(err), "the client reads the server's last words: %v", err)
	s.gone(t, "the server ended it")

	for _, said := range []string{"", "\x00\x00", "GET / HTTP/1.0\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc"} {
		raw, err := net.Dial("unix", filepath.Join(s.dir, ".s.PGSQL.5432"))
		require.NoError(t, err)
		_, _ = raw.Write([]byte(said))
		_ = raw.Close()
	}
	s.gone(t, "clients that speak otherwise")

	s.connect(t)
	s.stop()
	s.gone(t, "the proxy was ended")
}
