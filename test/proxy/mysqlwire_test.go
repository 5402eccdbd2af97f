// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/proxy"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// spy remembers the sessions that a protocol opens.
type spy struct {
	proxy.Wire
	mu       sync.Mutex
	sessions []*proxy.Session
}

func (w *spy) Open(ctx context.Context, client net.Conn, next proxy.Next) (*proxy.Session, error) {
	s, err := w.Wire.Open(ctx, client, next)
	if s != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.sessions = append(w.sessions, s)
	}
	return s, err
}

// opened is the session that was opened as the n-th.
func (w *spy) opened(tb testing.TB, n int) (s *proxy.Session) {
	tb.Helper()
	bed.Eventually(tb, rig.Patience, func(context.Context) error { // the client is told before Open returns
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.sessions) < n {
			return fmt.Errorf("%d sessions were opened", len(w.sessions))
		}
		s = w.sessions[n-1]
		return nil
	})
	return s
}

func spied(w *spy) func(*proxy.Server) {
	return func(p *proxy.Server) { w.Wire, p.Wire = p.Wire, w }
}

// Capabilities, as the documentation of MySQL and MariaDB has them.
const (
	longPassword   = 1 << 0
	foundRows      = 1 << 1
	connectWithDB  = 1 << 3
	compress       = 1 << 5
	localFiles     = 1 << 7
	protocol41     = 1 << 9
	secure         = 1 << 15
	multiStatement = 1 << 16
	multiResults   = 1 << 17
	pluginAuth     = 1 << 19
	longAuth       = 1 << 21
	sessionTrack   = 1 << 23
	deprecateEOF   = 1 << 24
	zstd           = 1 << 26
	attributes     = 1 << 27
	cacheMetadata  = 1 << 36
	plainClient    = protocol41 | 1<<13 | secure | multiResults | pluginAuth | connectWithDB
)

// rawClient is a client that agrees to exactly what a test wants.
type rawClient struct {
	net.Conn
	next byte
	caps uint64 // agreed
}

func (c *rawClient) read(tb testing.TB) []byte {
	tb.Helper()
	var head [4]byte
	_, err := io.ReadFull(c, head[:])
	require.NoError(tb, err)
	payload := make([]byte, int(head[0])|int(head[1])<<8|int(head[2])<<16)
	_, err = io.ReadFull(c, payload)
	require.NoError(tb, err)
	c.next = head[3] + 1
	return payload
}

func (c *rawClient) write(tb testing.TB, payload string) {
	tb.Helper()
	n := len(payload)
	_, err := c.Write(append([]byte{byte(n), byte(n >> 8), byte(n >> 16), c.next}, payload...))
	require.NoError(tb, err)
}

// command begins an exchange.
func (c *rawClient) command(tb testing.TB, payload string) {
	tb.Helper()
	c.next = 0
	c.write(tb, payload)
}

// query is a statement; where attributes were agreed on, it has none.
func (c *rawClient) query(tb testing.TB, statement string) {
	tb.Helper()
	if c.caps&attributes != 0 {
		statement = "\x00\x01" + statement
	}
	c.command(tb, "\x03"+statement)
}

// rawLogin connects with capabilities, as far as the server offers them.
func (s *socket) rawLogin(tb testing.TB, caps uint64) *rawClient {
	tb.Helper()
	conn, err := net.Dial("unix", s.path)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = conn.Close() })
	require.NoError(tb, conn.SetDeadline(time.Now().Add(rig.Patience)))
	c := &rawClient{Conn: conn}
	greeting := c.read(tb)
	_, rest, _ := bytes.Cut(greeting[1:], []byte{0})
	offered := uint64(binary.LittleEndian.Uint16(rest[13:])) | uint64(binary.LittleEndian.Uint16(rest[18:]))<<16
	if offered&longPassword == 0 {
		offered |= uint64(binary.LittleEndian.Uint32(rest[27:])) << 32
	}
	c.caps = caps & offered
	said := binary.LittleEndian.AppendUint32(nil, uint32(caps))
	said = append(said, 0, 0, 0, 1, 45)
	said = append(said, make([]byte, 19)...)
	said = binary.LittleEndian.AppendUint32(said, uint32(caps>>32))
	c.write(tb, string(said)+"any\x00\x00"+s.record.Database+"\x00mysql_native_password\x00")
	require.Zero(tb, c.read(tb)[0], "no OK packet")
	return c
}

// answer reads what a query is answered, and counts its rows. An error of the server's has a number.
func (c *rawClient) answer(tb testing.TB) (rows int, number uint16) {
	tb.Helper()
	for {
		head := c.read(tb)
		switch head[0] {
		case 0xff:
			return rows, binary.LittleEndian.Uint16(head[1:])
		case 0:
			if at := 1 + 1 + 1; head[at]&8 == 0 { // both numbers are short here
				return rows, 0
			}
			continue
		}
		columns, defined := int(head[0]), true
		if c.caps&cacheMetadata != 0 {
			require.Len(tb, head, 2)
			defined = head[1] != 0
		}
		if defined {
			for range columns {
				require.Equal(tb, byte(3), c.read(tb)[0], "not a column")
			}
		}
		if c.caps&deprecateEOF == 0 {
			require.Len(tb, c.read(tb), 5)
		}
		for {
			packet := c.read(tb)
			if packet[0] != 0xfe {
				rows++
				continue
			}
			more := packet[3]
			if c.caps&deprecateEOF == 0 {
				require.Len(tb, packet, 5)
			}
			if more&8 == 0 {
				return rows, 0
			}
			break
		}
	}
}

// TestSocketMySQLCapabilities: the server hears of the capabilities that the client has, and of no other; so results are read as they are
// written, and the proxy knows when they end. (16)
func TestSocketMySQLCapabilities(t *testing.T) {
	t.Parallel()
	for _, m := range mysqls {
		t.Run(string(m.engine)+"-"+m.version, func(t *testing.T) {
			t.Parallel()
			server := bed.NewServer(t, m.engine, m.version, bed.Options{NoTLS: true})
			w := &spy{}
			s := newSocket(t, server, spied(w))
			front := bed.NewProxy(t, server.Addr())
			var mu sync.Mutex
			heard, conn := uint64(0), 0
			front.Intercept(func(q bed.Question) bed.Reply {
				mu.Lock()
				defer mu.Unlock()
				if q.Conn != conn && len(q.Data) > 36 { // the first that this client says
					conn = q.Conn
					heard = uint64(binary.LittleEndian.Uint32(q.Data[4:])) | uint64(binary.LittleEndian.Uint32(q.Data[32:]))<<32
				}
				return bed.Reply{}
			})
			record := s.record.Clone()
			record.Server.Host, record.Server.Port = front.Host(), uint16(front.Port())
			s.proxy.Logins.Set(record)
			for i, more := range []uint64{
				0, deprecateEOF, foundRows, multiStatement | deprecateEOF, sessionTrack, sessionTrack | deprecateEOF, cacheMetadata, cacheMetadata | deprecateEOF,
				longPassword, longPassword | deprecateEOF | sessionTrack, longAuth | attributes, localFiles | compress | zstd,
			} {
				what := fmt.Sprintf("%x", more)
				c := s.rawLogin(t, plainClient|more)
				mu.Lock()
				got := heard
				mu.Unlock()
				assert.Equal(t, c.caps|more&longPassword, got, "%s: the server heard %x", what, got)
				assert.Zero(t, c.caps&(localFiles|compress|zstd), what)
				session := w.opened(t, i+1)
				ask := func(statement string, wantRows int, wantNumber uint16, wantIdle bool) {
					t.Helper()
					c.query(t, statement)
					rows, number := c.answer(t)
					assert.Equal(t, wantRows, rows, "%s: %s", what, statement)
					assert.Equal(t, wantNumber, number, "%s: %s", what, statement)
					assert.Equal(t, wantIdle, session.Idle(), "%s: idle after %s", what, statement)
				}
				ask("SELECT 1 UNION SELECT 2", 2, 0, true)
				ask("SELECT 1 WHERE 1 = 0", 0, 0, true)
				ask("BEGIN", 0, 0, false)
				ask("SELECT 1, NULL", 1, 0, false)
				ask("COMMIT", 0, 0, true)
				ask("SELECT nonsense", 0, 1054, false)
				ask("DO 1", 0, 0, true)
				ask("SET autocommit = 0", 0, 0, false)
				ask("SET autocommit = 1", 0, 0, true)
				ask("START TRANSACTION READ ONLY", 0, 0, false)
				ask("ROLLBACK", 0, 0, true)
				if more&multiStatement != 0 {
					ask("SELECT 1; SELECT 2; DO 1", 2, 0, true)
					ask("BEGIN; SELECT 1; SELECT nonsense", 1, 1054, false)
					ask("ROLLBACK", 0, 0, true)
				}

				// The other commands of drivers: a ping, a reset, an option (multiple statements off), a prepared statement and its end.
				for _, command := range []string{"\x0e", "\x1f", "\x1b\x01\x00", "\x02" + s.record.Database} {
					c.command(t, command)
					assert.Contains(t, []byte{0, 0xfe}, c.read(t)[0], "%s: command %x", what, command)
					assert.True(t, session.Idle(), "%s: command %x", what, command)
				}
				c.command(t, "\x16SELECT ?, 2")
				prepared := c.read(t)
				require.Zero(t, prepared[0])
				definitions := 1 + 2
				if c.caps&deprecateEOF == 0 {
					definitions += 2
				}
				for range definitions {
					c.read(t)
				}
				assert.True(t, session.Idle(), "%s: prepared", what)
				id := string(prepared[1:5])
				parameter := "\x00\x01\x08\x00" + strings.Repeat("\x00", 8) // of type LONGLONG
				count := ""
				flags := "\x00"
				if c.caps&attributes != 0 {
					flags, count, parameter = "\x08", "\x01", "\x00\x01\x08\x00\x00"+strings.Repeat("\x00", 8)
				}
				for range 3 { // MariaDB leaves the definitions out from the second time on
					c.command(t, "\x17"+id+flags+"\x01\x00\x00\x00"+count+parameter)
					rows, number := c.answer(t)
					assert.Equal(t, 1, rows, what)
					assert.Zero(t, number, what)
					assert.True(t, session.Idle(), "%s: executed", what)
				}
				c.command(t, "\x1a"+id)
				assert.Zero(t, c.read(t)[0])
				c.command(t, "\x19"+id)
				ask("DO 2", 0, 0, true)

				// Another user is the server's to refuse: it does, and the session ends or not, but it is never taken for idle.
				c.command(t, "\x11other\x00\x00\x00\x2d\x00mysql_native_password\x00")
				first := c.read(t)
				if first[0] == 0xfe {
					c.write(t, "")
					first = c.read(t)
				}
				assert.Equal(t, byte(0xff), first[0], "%s: COM_CHANGE_USER", what)
				assert.False(t, session.Idle(), what)
				_ = c.Close()
			}
		})
	}
}

// TestSocketMySQLProcedures: results of procedures end where the proxy thinks they do. (24)
func TestSocketMySQLProcedures(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, server *bed.Server) {
		w := &spy{}
		s := newSocket(t, server, spied(w))
		require.NoError(t, server.ExecIn(t.Context(), s.record.Database,
			"CREATE PROCEDURE several(OUT n INT) BEGIN SELECT 1; SELECT 'x', 2; SET n = 3; END",
			fmt.Sprintf("GRANT EXECUTE ON `%s`.* TO '%s'@'%%'", s.record.Database, s.record.Login(tenant.A).User)))
		conn := session(t, s.open(t))
		opened := w.opened(t, 1)
		results := func(query func() (*sql.Rows, error)) (n int) {
			rows, err := query()
			require.NoError(t, err)
			defer rows.Close()
			for n = 1; rows.NextResultSet(); n++ {
			}
			require.NoError(t, rows.Err())
			return n
		}
		// The procedure's two; the driver counts what follows them in its own way.
		assert.GreaterOrEqual(t, results(func() (*sql.Rows, error) { return conn.QueryContext(t.Context(), "CALL several(@n)") }), 2)
		assert.True(t, opened.Idle(), "after a procedure")
		// Prepared, what it gives back is a result, too.
		assert.GreaterOrEqual(t, results(func() (*sql.Rows, error) { return conn.QueryContext(t.Context(), "CALL several(?)", "any") }), 2)
		assert.True(t, opened.Idle(), "after a prepared procedure")
		statement, err := conn.PrepareContext(t.Context(), "SELECT ? FROM (SELECT 1 UNION SELECT 2) AS two")
		require.NoError(t, err)
		defer statement.Close()
		for range 3 {
			assert.Equal(t, 1, results(func() (*sql.Rows, error) { return statement.QueryContext(t.Context(), 7) }))
			assert.True(t, opened.Idle(), "after a prepared statement")
		}
		_, err = conn.ExecContext(t.Context(), "XA START 'x'")
		require.NoError(t, err)
		assert.False(t, opened.Idle(), "in a transaction by XA")
		_, err = conn.ExecContext(t.Context(), "XA END 'x'")
		require.NoError(t, err)
		_, err = conn.ExecContext(t.Context(), "XA ROLLBACK 'x'")
		require.NoError(t, err)
		assert.True(t, opened.Idle(), "after XA ROLLBACK")
	})
}

// TestSocketMySQLSplitPackets: what is too long for one packet goes through in both directions, and the session is idle after it. (22)
func TestSocketMySQLSplitPackets(t *testing.T) {
	t.Parallel()
	const part = 1<<24 - 1
	for _, m := range []int{0, 3} {
		t.Run(string(mysqls[m].engine), func(t *testing.T) {
			t.Parallel()
			server := bed.NewServer(t, mysqls[m].engine, mysqls[m].version, bed.Options{Settings: map[string]string{"max-allowed-packet": "64M"}})
			w := &spy{}
			s := newSocket(t, server, spied(w))
			conn := session(t, s.open(t, "interpolateParams=true", "maxAllowedPacket=0"))
			// Around the length at which the statement, then the row, fill a packet.
			statement := len("\x03SELECT ''")
			for _, length := range []int{
				4 << 20, part - statement - 1, part - statement, part - statement + 1, part - 4, part - 3, part + 1, 2*part - statement, 2*part + 5,
			} {
				text := strings.Repeat("x", length)
				var back string
				require.NoError(t, conn.QueryRowContext(t.Context(), "SELECT ?", text).Scan(&back), length)
				assert.Equal(t, length, len(back))
				assert.True(t, back == text, "%d bytes came back changed", length)
				assert.True(t, w.opened(t, 1).Idle(), length)
			}
			assert.Len(t, w.sessions, 1)
		})
	}
}

// TestSocketMySQLTLS: the connector's sslMode holds towards the server. (11)
func TestSocketMySQLTLS(t *testing.T) {
	t.Parallel()
	other, err := bed.NewCA()
	require.NoError(t, err)
	for _, m := range []int{0, 2} {
		t.Run(string(mysqls[m].engine), func(t *testing.T) {
			t.Parallel()
			server := rig.Server(t, mysqls[m].engine, mysqls[m].version)
			s := newSocket(t, server, nil)
			for name, test := range map[string]struct {
				change func(*dbserver.Server)
				want   uint16
				says   string
			}{
				"as it is":   {func(*dbserver.Server) {}, 0, ""},
				"require":    {func(d *dbserver.Server) { d.SSLMode, d.CA = dbserver.Require, "" }, 0, ""},
				"verify-ca":  {func(d *dbserver.Server) { d.SSLMode = dbserver.VerifyCA }, 0, ""},
				"another CA": {func(d *dbserver.Server) { d.CA = string(other.PEM) }, 2003, "dbconnector: the server's certificate is not accepted"},
				"verify-ca by another": {
					func(d *dbserver.Server) { d.SSLMode, d.CA = dbserver.VerifyCA, string(other.PEM) }, 2003, "dbconnector: the server's certificate is not accepted",
				},
				"no mode":    {func(d *dbserver.Server) { d.SSLMode = "prefer" }, 2003, "is not a mode"},
				"clear text": {func(d *dbserver.Server) { d.SSLMode = dbserver.Disable }, 1045, "Access denied"}, // the account asks for TLS
			} {
				record := s.record.Clone()
				test.change(&record.Server)
				s.proxy.Logins.Set(record)
				err := s.open(t).PingContext(t.Context())
				assert.Equal(t, test.want, number(err), "%s: %v", name, err)
				if test.want != 0 {
					assert.ErrorContains(t, err, test.says, name)
				}
			}
		})
	}
}

// TestSocketMySQLDrain: after a rotation idle sessions of the old login are drained, and their pool notices nothing; one in a transaction
// stays until that has ended. (28, 39)
func TestSocketMySQLDrain(t *testing.T) {
	t.Parallel()
	eachMySQL(t, func(t *testing.T, server *bed.Server) {
		s := newSocket(t, server, nil)
		db := s.open(t)
		db.SetMaxIdleConns(5)
		const idle = 4
		var held []*sql.Conn
		for range idle {
			held = append(held, session(t, db))
		}
		for _, conn := range held {
			require.NoError(t, conn.PingContext(t.Context()))
			require.NoError(t, conn.Close()) // back to the pool
		}
		open, err := s.open(t).BeginTx(t.Context(), nil)
		require.NoError(t, err)
		defer func() { _ = open.Rollback() }()
		failed := session(t, s.open(t)) // its last answer was an error: what it would lose is not known
		_, err = failed.ExecContext(t.Context(), "SELECT nonsense")
		assert.EqualValues(t, 1054, number(err))
		next := s.record.Clone()
		next.Pending = &tenant.Change{Slot: tenant.B, Password: "Second-1~password", Purpose: tenant.Activate}
		require.NoError(t, server.SetPassword(t.Context(), next.Login(tenant.B).User, "Second-1~password"))
		next.Commit(time.Now())
		s.proxy.Logins.Set(next)

		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var busy sync.WaitGroup
		busy.Go(func() { // a pool that is always in use
			pool := s.open(t)
			for n := 0; ctx.Err() == nil; n++ {
				if _, err := pool.ExecContext(ctx, "DO 1"); err != nil && ctx.Err() == nil {
					t.Errorf("after %d statements: %v", n, err)
					return
				}
			}
		})
		bed.Eventually(t, rig.Patience, func(context.Context) error {
			if got := s.proxy.Sessions()[1].Sessions; got != 2 {
				return fmt.Errorf("%d sessions of the old login", got)
			}
			return nil
		})
		var queries sync.WaitGroup
		for range 2 * idle {
			queries.Go(func() {
				var user string
				err := db.QueryRowContext(t.Context(), "SELECT CURRENT_USER()").Scan(&user)
				if want := next.Login(tenant.B).User + "@%"; err != nil || user != want {
					t.Errorf("the pool's next query: %q, %v; want %q", user, err, want)
				}
			})
		}
		queries.Wait()
		stop()
		busy.Wait()
		_, err = open.ExecContext(t.Context(), "DO 1")
		require.NoError(t, err)
		require.NoError(t, open.Commit())
		_, err = failed.ExecContext(t.Context(), "DO 1")
		require.NoError(t, err)
		bed.Eventually(t, rig.Patience, func(context.Context) error {
			if got := s.proxy.Sessions()[1].Sessions; got != 0 {
				return fmt.Errorf("%d sessions of the old login", got)
			}
			return nil
		})
	})
}

// TestSocketMySQLClientsThatLeave: whatever clients do before they have a session, the server sees no broken connection, for which it would
// block this host after some; and the proxy's attempts with a dead login are few. (29, 37)
func TestSocketMySQLClientsThatLeave(t *testing.T) {
	t.Parallel()
	for _, m := range []int{0, 3} {
		t.Run(string(mysqls[m].engine), func(t *testing.T) {
			t.Parallel()
			server := bed.NewServer(t, mysqls[m].engine, mysqls[m].version, bed.Options{})
			s := newSocket(t, server, func(p *proxy.Server) { p.MaxSessions = 100 })
			status := func() int {
				db, err := server.Admin("")
				require.NoError(t, err)
				defer db.Close()
				var name, value string
				require.NoError(t, db.QueryRowContext(t.Context(), "SHOW GLOBAL STATUS LIKE 'Aborted_connects'").Scan(&name, &value))
				n, err := strconv.Atoi(value)
				require.NoError(t, err)
				return n
			}
			settled := func(s *socket) {
				bed.Eventually(t, rig.Patience, func(context.Context) error {
					if got := s.proxy.Sessions(); len(got) > 0 {
						return fmt.Errorf("sessions %v", got)
					}
					return nil
				})
			}
			before := status()
			junk := make([]byte, 200)
			_, err := rand.Read(junk)
			require.NoError(t, err)
			for _, said := range []string{
				"", "\x01", "GET / HTTP/1.0\r\n\r\n", "\x20\x00\x00\x01" + strings.Repeat("\xff", 32), "\xff\xff\xff\x01", "\x00\x00\x00\x01",
				"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", string(junk),
			} {
				raw, err := net.Dial("unix", s.path)
				require.NoError(t, err)
				head := make([]byte, 1)
				_, err = raw.Read(head) // it was greeted
				require.NoError(t, err)
				_, _ = raw.Write([]byte(said))
				_ = raw.Close()
			}
			settled(s)
			assert.Equal(t, before, status(), "connections that the server calls aborted")
			require.NoError(t, s.open(t).PingContext(t.Context()))

			s = newSocket(t, server, func(p *proxy.Server) { p.MaxSessions = 100 })
			require.NoError(t, server.SetPassword(t.Context(), s.record.Login(tenant.A).User, "Another-1~password"))
			before = status()
			var clients sync.WaitGroup
			for n := range 50 {
				clients.Go(func() {
					if n%2 == 0 {
						if err := s.open(t).PingContext(t.Context()); number(err) != 1045 {
							t.Errorf("no login works: %v", err)
						}
						return
					}
					raw, err := net.Dial("unix", s.path)
					if err != nil {
						t.Error(err)
						return
					}
					_ = raw.Close()
				})
			}
			clients.Wait()
			settled(s)
			if n := status() - before; n < 1 || n > 20 {
				t.Errorf("fifty clients cost %d refused logins", n)
			}
		})
	}
}
