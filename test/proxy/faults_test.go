// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/net/dns/dnsmessage"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/proxy"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// protocols are a server of each protocol.
var protocols = map[bed.Engine]string{bed.Postgres: "17", bed.MariaDB: "11.8"}

// eachProtocol runs a test for each of them.
func eachProtocol(t *testing.T, test func(t *testing.T, engine bed.Engine, version string)) {
	t.Helper()
	for engine, version := range protocols {
		t.Run(string(engine), func(t *testing.T) {
			t.Parallel()
			test(t, engine, version)
		})
	}
}

// witness hears all that the proxy logs and all that clients are told. No password of the tenant may be in it. (40)
type witness struct {
	mu      sync.Mutex
	heard   bytes.Buffer
	secrets []string
}

func newWitness(tb testing.TB, record *tenant.Record) *witness {
	tb.Helper()
	w := &witness{}
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		w.secrets = append(w.secrets, record.Login(slot).Password.Reveal())
	}
	tb.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, secret := range w.secrets {
			require.NotEmpty(tb, secret)
			assert.NotContains(tb, w.heard.String(), secret)
		}
		assert.NotEmpty(tb, w.heard.String())
		if tb.Failed() {
			tb.Log(w.heard.String())
		}
	})
	return w
}

func (w *witness) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heard.Write(line)
}

// says notes an error.
func (w *witness) says(err error) error {
	if err != nil {
		_, _ = fmt.Fprintf(w, "%v\n%+v\n%#v\n", err, err, err)
	}
	return err
}

// faulty is a tenant whose server fails.
type faulty struct {
	*socket
	*witness
}

// newFaulty serves a tenant of a server, with a witness.
func newFaulty(tb testing.TB, server *bed.Server, record *tenant.Record) *faulty {
	tb.Helper()
	w := newWitness(tb, record)
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewDevelopmentEncoderConfig()), zapcore.AddSync(w), zap.DebugLevel)
	return &faulty{serve(tb, server, record, func(p *proxy.Server) { p.Log = zap.New(core) }), w}
}

// driver is a driver of database/sql and its connection string.
func (f *faulty) driver() (name, dsn string) {
	if f.record.Server.Engine == dbserver.Postgres {
		return "pgx", f.dsn()
	}
	return "mysql", f.mysqlDSN()
}

// begin opens a session; end closes it.
func (f *faulty) begin(ctx context.Context) (conn *sql.Conn, end func(), err error) {
	db, err := sql.Open(f.driver())
	if err != nil {
		return nil, nil, err
	}
	if conn, err = db.Conn(ctx); err != nil {
		_ = db.Close()
		return nil, nil, f.says(err)
	}
	return conn, func() {
		_ = conn.Close()
		_ = db.Close()
	}, nil
}

// hold opens a session that ends with the test.
func (f *faulty) hold(tb testing.TB) *sql.Conn {
	tb.Helper()
	conn, end, err := f.begin(tb.Context())
	require.NoError(tb, err)
	tb.Cleanup(end)
	return conn
}

// try opens a session, uses and closes it.
func (f *faulty) try(ctx context.Context) error {
	conn, end, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return f.use(ctx, conn)
}

func (f *faulty) use(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, "SELECT 1")
	return f.says(err)
}

// user is who a new session is on the server.
func (f *faulty) user(tb testing.TB) string {
	tb.Helper()
	query := "SELECT SUBSTRING_INDEX(CURRENT_USER(), '@', 1)"
	if f.record.Server.Engine == dbserver.Postgres {
		query = "SELECT session_user::text"
	}
	return askMySQL(tb, f.hold(tb), query)
}

// told is the code of the protocol in an error; empty for none.
func told(err error) string {
	if n := number(err); n != 0 {
		return fmt.Sprint(n)
	}
	return code(err)
}

// unreachable is what clients are told where there is no server that may be talked to.
var unreachable = map[bed.Engine]string{bed.Postgres: "08001", bed.MariaDB: "2003"}

// left waits until the proxy has so many sessions.
func (f *faulty) left(tb testing.TB, want int) {
	tb.Helper()
	bed.Eventually(tb, rig.Patience, func(context.Context) error {
		n := 0
		for _, group := range f.proxy.Sessions() {
			n += group.Sessions
		}
		if n != want {
			return fmt.Errorf("the proxy has %d sessions, want %d", n, want)
		}
		return nil
	})
}

// nameService answers Go's resolver for names below failoverZone, and passes other questions on to the machine's name service.
type nameService struct {
	mu        sync.Mutex
	addresses map[string][]string
}

const failoverZone = ".failover.test"

// names has the whole process ask it: package net has no other place for that, and no test may have begun.
var names = func() *nameService {
	n := &nameService{addresses: map[string][]string{}}
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: n.dial}
	return n
}()

// lead has a name lead to addresses, in this order.
func (n *nameService) lead(name string, addresses ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addresses[name+"."] = addresses
}

// dial stands for a connection to a name service. A pipe is a stream to the resolver, and a message there follows its length.
func (n *nameService) dial(ctx context.Context, _, address string) (net.Conn, error) {
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		var length [2]byte
		if _, err := io.ReadFull(server, length[:]); err != nil {
			return
		}
		question := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(server, question); err != nil {
			return
		}
		answer, err := n.answer(ctx, question, address)
		if err != nil {
			return
		}
		_, _ = server.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
	}()
	return client, nil
}

func (n *nameService) answer(ctx context.Context, question []byte, address string) ([]byte, error) {
	var message dnsmessage.Message
	if err := message.Unpack(question); err != nil || len(message.Questions) != 1 {
		return nil, errors.Join(err, errors.New("not one question"))
	}
	asked := message.Questions[0]
	if !strings.Contains(asked.Name.String(), failoverZone+".") {
		return relayQuestion(ctx, question, address)
	}
	n.mu.Lock()
	addresses := n.addresses[asked.Name.String()]
	n.mu.Unlock()
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: message.ID, Response: true, Authoritative: true, RecursionAvailable: true},
		Questions: message.Questions,
	}
	if len(addresses) == 0 {
		reply.RCode = dnsmessage.RCodeNameError
	}
	if asked.Type == dnsmessage.TypeA {
		for _, ip := range addresses {
			reply.Answers = append(reply.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: asked.Name, Class: dnsmessage.ClassINET, TTL: 1},
				Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(ip).To4())},
			})
		}
	}
	return reply.Pack()
}

// relayQuestion asks the machine's name service.
func relayQuestion(ctx context.Context, question []byte, address string) ([]byte, error) {
	real, err := new(net.Dialer).DialContext(ctx, "udp", address)
	if err != nil {
		return nil, err
	}
	defer real.Close()
	_ = real.SetDeadline(time.Now().Add(rig.Patience))
	if _, err := real.Write(question); err != nil {
		return nil, err
	}
	answer := make([]byte, 64<<10-1)
	length, err := real.Read(answer)
	return answer[:length], err
}

// TestSocketFailover: the server's name leads to another server, with the same tenant. Sessions that begin from then on are there. Those of
// the first server go on, and end when it does. Where the name has several addresses, one that is dead costs no session. (35)
func TestSocketFailover(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(t *testing.T, engine bed.Engine, version string) {
		name := string(engine) + failoverZone
		ca, err := bed.Authority()
		require.NoError(t, err)
		cert, err := ca.Issue(bed.Request{Hosts: []string{"127.0.0.1", name}})
		require.NoError(t, err)
		first := bed.NewServer(t, engine, version, bed.Options{Cert: cert})
		second := bed.NewServer(t, engine, version, bed.Options{Cert: cert})
		plane := rig.NewTenant(t, first, "")
		record, err := plane.Record(t.Context())
		require.NoError(t, err)
		twin := *plane
		twin.State, twin.ConnectorDir = filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "connector")
		require.NoError(t, rig.WriteConnector(twin.ConnectorDir, rig.Connector(second, second.AdminUser, second.AdminPassword, "", true)))
		rig.Provision(t, &twin)
		login := record.Login(record.Active)
		require.NoError(t, second.SetPassword(t.Context(), login.User, login.Password.Reveal()))

		const there, elsewhere, dead = "127.0.0.1", "127.0.0.2", "127.0.0.3"
		bed.NewProxyAt(t, elsewhere, first.Port, second.Addr()) // the same port at another address
		record.Server.Host = name
		names.lead(name, there)
		s := newFaulty(t, first, record)
		port := func(conn *sql.Conn) string {
			query := "SELECT CONCAT(@@port, '')"
			if engine == bed.Postgres {
				query = "SELECT inet_server_port()::text"
			}
			return askMySQL(t, conn, query)
		}
		before := s.hold(t)
		assert.Equal(t, fmt.Sprint(first.Port), port(before))
		names.lead(name, elsewhere)
		after := s.hold(t)
		assert.Equal(t, fmt.Sprint(second.Port), port(after))
		assert.Equal(t, fmt.Sprint(first.Port), port(before), "a session that was open goes on")

		require.NoError(t, first.Kill())
		s.left(t, 1)
		require.Error(t, s.use(t.Context(), before))
		require.NoError(t, s.use(t.Context(), after))

		names.lead(name, there, elsewhere)
		require.NoError(t, s.try(t.Context()), "the first of two addresses refuses connections")
		require.NoError(t, bed.NewProxyAt(t, dead, first.Port, first.Addr()).Vanish(t.Context()))
		names.lead(name, dead, elsewhere)
		require.NoError(t, s.try(t.Context()), "the first of two addresses does not answer")
		limited, cancel := context.WithTimeout(t.Context(), proxy.AttemptTime)
		defer cancel()
		require.NoError(t, open.Engine(record.Server, "test").Login(limited, record.Login(record.Active)), "the first of two addresses does not answer the programs")
		names.lead(name)
		err = s.try(t.Context())
		assert.Equal(t, unreachable[engine], told(err), "%v", err)
		assert.ErrorContains(t, err, name)
		require.NoError(t, s.use(t.Context(), after))
	})
}

// TestSocketBlackHole: the packets of a server vanish. Sessions that wait for an answer, that ask, and that do nothing all end, where the
// kernel's own limits are a quarter of an hour and two hours. New ones are refused, and open again when packets get through. (35)
func TestSocketBlackHole(t *testing.T) {
	t.Parallel()
	type cut struct {
		*faulty
		cable *bed.Proxy
		idle  *sql.Conn
		ends  chan error // of the two that are not idle
		at    time.Time
	}
	cuts := map[bed.Engine]*cut{} // both at once: most of it is waiting
	for engine, version := range protocols {
		server := rig.Server(t, engine, version)
		cable := bed.NewProxy(t, server.Addr())
		defer cable.Close() // before the sessions: it ends those that would wait for ever
		record, err := rig.NewTenant(t, server, "").Record(t.Context())
		require.NoError(t, err)
		record.Server.Port = uint16(cable.Port())
		c := &cut{faulty: newFaulty(t, server, record), cable: cable, ends: make(chan error, 2)}
		cuts[engine] = c
		waits, asks := c.hold(t), c.hold(t)
		c.idle = c.hold(t)
		ask := func(conn *sql.Conn, query string) {
			go func() {
				_, err := conn.ExecContext(context.WithoutCancel(t.Context()), query)
				c.ends <- c.says(err)
			}()
		}
		sleep, running := "SELECT SLEEP(301)", "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO = ?"
		if engine == bed.Postgres {
			sleep, running = "SELECT pg_sleep(301)", "SELECT count(*)::text FROM pg_stat_activity WHERE query = $1 AND state = 'active'"
		}
		ask(waits, sleep)
		bed.Eventually(t, rig.Patience, func(ctx context.Context) error {
			n, err := server.Query(ctx, "", running, sleep)
			if err == nil && n != "1" {
				err = fmt.Errorf("%s statements are running", n)
			}
			return err
		})
		require.NoError(t, cable.Vanish(t.Context()))
		c.at = time.Now()
		ask(asks, "SELECT 2")
	}
	for engine, c := range cuts {
		began := time.Now()
		err := c.try(t.Context())
		assert.Equal(t, unreachable[engine], told(err), "%v", err)
		assert.ErrorContains(t, err, "dbconnector: no answer within the time limit")
		t.Logf("%s: a new session is refused after %s", engine, time.Since(began))
	}
	for engine, c := range cuts {
		for range 2 {
			select {
			case err := <-c.ends:
				t.Logf("%s: %v after %s", engine, err, time.Since(c.at))
				require.Error(t, err)
			case <-time.After(rig.Patience):
				t.Fatalf("%s: the client still waits", engine)
			}
		}
		c.left(t, 0)
		t.Logf("%s: nothing is left after %s", engine, time.Since(c.at))
		require.Error(t, c.use(t.Context(), c.idle))
		c.cable.Pass()
		require.NoError(t, c.try(t.Context()))
	}
}

// TestSocketCertificateChanges: the server shows a certificate of another authority. New sessions are refused and the client is told why;
// when the record has the new authority, they open. Sessions that are open notice nothing of either.
func TestSocketCertificateChanges(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(t *testing.T, engine bed.Engine, version string) {
		server := bed.NewServer(t, engine, version, bed.Options{})
		record, err := rig.NewTenant(t, server, "").Record(t.Context())
		require.NoError(t, err)
		s := newFaulty(t, server, record)
		held := s.hold(t)
		_, err = held.ExecContext(t.Context(), "BEGIN")
		require.NoError(t, err)
		driver, dsn := s.driver()
		resting := pool(t, driver, dsn, 3)

		authority, err := bed.NewCA()
		require.NoError(t, err)
		cert, err := authority.Issue(bed.Request{})
		require.NoError(t, err)
		require.NoError(t, server.SetCert(t.Context(), cert, authority.PEM))
		for range 3 {
			err = s.try(t.Context())
			assert.Equal(t, unreachable[engine], told(err), "%v", err)
			assert.ErrorContains(t, err, "dbconnector: the server's certificate is not accepted")
			assert.ErrorContains(t, err, "unknown authority")
			assert.ErrorContains(t, err, `"caCert"`)
		}
		require.NoError(t, s.use(t.Context(), held))

		next := record.Clone()
		next.Server.CA = string(authority.PEM)
		s.proxy.Logins.Set(next)
		require.NoError(t, s.try(t.Context()))
		require.NoError(t, s.use(t.Context(), held))
		s.left(t, 1) // sessions of the earlier server's are drained where they are idle
		require.NoError(t, resting.PingContext(t.Context()), "the pool noticed that its sessions were drained")
		_, err = held.ExecContext(t.Context(), "COMMIT")
		require.NoError(t, err)
	})
}

// TestSocketServerFull: a server without room says so, in its own words, and is asked once for each client, by the active login. As soon as
// it has room, sessions open.
func TestSocketServerFull(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(t *testing.T, engine bed.Engine, version string) {
		const most = 12
		server := bed.NewServer(t, engine, version, bed.Options{MaxConnections: most})
		asked := bed.NewProxy(t, server.Addr())
		record, err := rig.NewTenant(t, server, "").Record(t.Context())
		require.NoError(t, err)
		record.Server.Port = uint16(asked.Port())
		record.OtherRetired = false // there is another login, which would be tried
		s := newFaulty(t, server, record)
		full := map[bed.Engine]string{bed.Postgres: "53300", bed.MariaDB: "1040"}[engine]
		held := s.hold(t)

		login := record.Login(record.Active)
		direct, err := server.Open(login.User, login.Password.Reveal(), record.Database)
		require.NoError(t, err)
		defer direct.Close()
		var taken []*sql.Conn
		for err == nil { // until the server has no room
			var conn *sql.Conn
			if conn, err = direct.Conn(t.Context()); err == nil {
				taken = append(taken, conn)
			}
		}
		require.Equal(t, full, told(err), "%v", err)
		const clients = 20
		before := asked.Connections()
		for range clients {
			err := s.try(t.Context())
			assert.Equal(t, full, told(err), "%v", err)
			assert.NotContains(t, err.Error(), "dbconnector: ", "the words are the server's")
		}
		assert.Equal(t, clients, asked.Connections()-before, "connections that were tried")
		require.NoError(t, s.use(t.Context(), held))

		for _, conn := range taken {
			_ = conn.Close()
		}
		require.NoError(t, direct.Close())
		bed.Eventually(t, rig.Patience, s.try)
		assert.Zero(t, s.seen.count(proxy.Refused))
		assert.Equal(t, login.User, s.user(t))
	})
}

// TestSocketStrangers: clients that say nothing, half a word, or a great deal that means nothing are let go within the time for a hello, and
// the proxy takes in no more of it than one packet. Others are served meanwhile.
func TestSocketStrangers(t *testing.T) {
	t.Parallel()
	const garbage = 16 << 20
	noise := bytes.Repeat([]byte{0xff}, garbage)
	var all sync.WaitGroup
	served := map[bed.Engine]func(){}
	for engine, version := range protocols { // both at once: most of it is waiting
		server := rig.Server(t, engine, version)
		record, err := rig.NewTenant(t, server, "").Record(t.Context())
		require.NoError(t, err)
		s := newFaulty(t, server, record)
		first := s.hold(t)
		half := []byte{0, 0, 0, 64, 0, 3, 0, 0, 'u', 's'} // a StartupMessage of 64 bytes
		longest := []byte{0, 0, 0x27, 0x10, 0, 3, 0, 0}   // of 10,000
		if engine != bed.Postgres {
			half = []byte{64, 0, 0, 1, 0xff, 0xff} // an answer to the greeting of 64 bytes
			longest = []byte{0, 0, 2, 1}           // of 128 KiB
		}
		for what, said := range map[string][]byte{
			"nothing": nil, "a byte": half[:1], "half a packet": half, "garbage": noise, "a length and garbage": append(longest, noise...),
		} {
			began := time.Now()
			raw, err := net.Dial("unix", s.path)
			require.NoError(t, err)
			defer raw.Close()
			require.NoError(t, raw.SetDeadline(began.Add(rig.Patience)))
			all.Go(func() {
				written, _ := raw.Write(said)
				_, err := io.Copy(io.Discard, raw)
				after := time.Since(began)
				t.Logf("%s: %s: let go after %s", engine, what, after)
				if wait := net.Error(nil); errors.As(err, &wait) && wait.Timeout() {
					t.Errorf("%s: %s: the proxy still waits", engine, what)
				}
				if len(said) < garbage && after < proxy.HelloTime {
					t.Errorf("%s: %s: let go after %s", engine, what, after)
				}
				if written > 1<<20 { // the kernel holds some of it for the proxy
					t.Errorf("%s: %s: the proxy took %d bytes", engine, what, written)
				}
			})
		}
		for range 5 {
			require.NoError(t, s.try(t.Context()))
		}
		served[engine] = func() {
			s.left(t, 1)
			require.NoError(t, s.use(t.Context(), first))
		}
	}
	all.Wait()
	for _, serves := range served {
		serves()
	}
}

// figures are what a process holds.
type figures struct{ goroutines, files, heap int64 }

// figuresOf counts what a sidecar holds when it has no session.
func figuresOf(ctx context.Context, p *rig.Process) (f figures, connects float64, err error) {
	metrics, err := p.Metrics(ctx)
	if err != nil {
		return f, 0, err
	}
	for name, value := range metrics {
		if strings.HasPrefix(name, "dbconnector_socket_connects_total{") {
			connects += value
		}
		if strings.HasPrefix(name, "dbconnector_socket_sessions{") && value > 0 {
			return f, 0, fmt.Errorf("%s is %v", name, value)
		}
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid()))
	if err != nil {
		return f, 0, bed.Permanent(err)
	}
	return figures{int64(metrics["go_goroutines"]), int64(len(files)), int64(metrics["go_memstats_heap_alloc_bytes"])}, connects, nil
}

// TestSocketManyConnections: after ten thousand connections, most of which are none of a client that means it, the sidecar holds what it held
// before. With DBCONNECTOR_TEST_CONNECTIONS there are so many. (40)
func TestSocketManyConnections(t *testing.T) {
	t.Parallel()
	const workers, usual, heapGrowth = 8, 10_000, 4 << 20
	connections, err := strconv.Atoi(cmp.Or(os.Getenv("DBCONNECTOR_TEST_CONNECTIONS"), fmt.Sprint(usual)))
	require.NoError(t, err)
	for engine, test := range map[bed.Engine]struct {
		version string
		share   int // per cent: MariaDB's protocol begins with the server, so each connection is one there
		socket  string
		half    []byte
	}{
		bed.Postgres: {"17", 90, ".s.PGSQL.5432", []byte{0, 0, 0, 64, 0, 3, 0, 0, 'u', 's'}},
		bed.MariaDB:  {"11.8", 10, "mysql.sock", []byte{64, 0, 0, 1, 0xff, 0xff}},
	} {
		t.Run(string(engine), func(t *testing.T) {
			t.Parallel()
			plane := rig.NewTenant(t, rig.Server(t, engine, test.version), "", inSocketMode)
			record, err := plane.Record(t.Context())
			require.NoError(t, err)
			p := sidecar(t, plane)
			dsn, err := plane.DSN()
			require.NoError(t, err)
			driver := "pgx"
			if engine != bed.Postgres {
				driver, dsn = "mysql", strings.TrimPrefix(dsn, "mysql://")
			}
			var made atomic.Int64
			whole := func() error {
				return bed.Wait(t.Context(), func(ctx context.Context) error {
					db, err := sql.Open(driver, dsn)
					if err != nil {
						return bed.Permanent(err)
					}
					defer db.Close()
					made.Add(1)
					_, err = db.ExecContext(ctx, "SELECT 1")
					if c := told(err); err != nil && c != "1040" && c != "53300" { // no room: the others come faster than they are let go
						return bed.Permanent(err)
					}
					return err
				})
			}
			part := func(said []byte) error {
				raw, err := net.Dial("unix", filepath.Join(plane.Out, test.socket))
				if err != nil {
					return err
				}
				made.Add(1)
				defer raw.Close()
				if half, ok := raw.(*net.UnixConn); ok && said != nil { // until the proxy lets go: else they would be more than it lets in
					_, _ = half.Write(said)
					_ = half.CloseWrite()
					_, _ = io.Copy(io.Discard, half)
				}
				return nil
			}
			connect := func(from, to int) {
				every := max(3, to/300) // a few hundred are whole sessions
				var all sync.WaitGroup
				for worker := range workers {
					all.Go(func() {
						for i := from + worker; i < to; i += workers {
							var err error
							switch {
							case i%every == 0:
								err = whole()
							case i/workers%2 == 0: // each worker takes turns
								err = part(nil)
							default:
								err = part(test.half)
							}
							if err != nil {
								t.Errorf("connection %d: %v", i, err)
								return
							}
						}
					})
				}
				all.Wait()
			}
			many := connections * test.share / 100
			connect(0, workers*workers) // what the first ones leave in pools
			var before, after figures
			bed.Eventually(t, rig.Patience, func(ctx context.Context) (err error) {
				var n float64
				if before, n, err = figuresOf(ctx, p); err == nil && int64(n) != made.Load() {
					err = fmt.Errorf("%v connections were counted of %d", n, made.Load())
				}
				return err
			})
			began := time.Now()
			connect(workers*workers, workers*workers+many)
			took := time.Since(began)
			bed.Eventually(t, rig.Patience, func(ctx context.Context) (err error) {
				var n float64
				if after, n, err = figuresOf(ctx, p); err != nil {
					return err
				}
				if int64(n) != made.Load() || after.goroutines > before.goroutines || after.files > before.files ||
					after.heap > before.heap+heapGrowth {
					return fmt.Errorf("%+v before, and %+v after %v connections", before, after, n)
				}
				return nil
			})
			t.Logf("%d connections in %s: %+v before, %+v after", made.Load(), took, before, after)
			for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
				assert.NotContains(t, p.Log(), record.Login(slot).Password.Reveal())
			}
		})
	}
}
