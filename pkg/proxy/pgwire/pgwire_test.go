// SPDX-License-Identifier: Apache-2.0

package pgwire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/proxy"
	"dbconnector/pkg/tenant"
)

// packet is one without a type.
func packet(code uint32, body string) string {
	head := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	return string(binary.BigEndian.AppendUint32(head, code)) + body
}

// client says something, and keeps what it is answered.
type client struct {
	io.Reader
	answers bytes.Buffer
}

func (c *client) Write(p []byte) (int, error) { return c.answers.Write(p) }

const v3 = protocol3 << 16

// TestHello: what a client may say first, byte by byte and at once (proxy.md 1, 2, 7).
func TestHello(t *testing.T) {
	t.Parallel()
	const params = "user\x00vcluster\x00database\x00x\x00lock_timeout\x0010000\x00options\x00-c a=b\x00\x00"
	start := &hello{database: "x", params: map[string]string{"lock_timeout": "10000", "options": "-c a=b"}}
	for name, test := range map[string]struct {
		said, answered string
		want           *hello
		err            error
	}{
		"startup":            {packet(v3, params), "", start, nil},
		"SSL, then startup":  {packet(sslCode, "") + packet(v3, params), "N", start, nil},
		"SSL and GSS":        {packet(sslCode, "") + packet(gssCode, "") + packet(v3, params), "NN", start, nil},
		"SSL twice":          {packet(sslCode, "") + packet(sslCode, ""), "N", nil, errNoHello},
		"SSL with a body":    {packet(sslCode, "x"), "", nil, errNoHello},
		"nothing to say":     {packet(v3, "\x00"), "", &hello{params: map[string]string{}}, nil},
		"3.2 with an option": {packet(v3+2, "_pq_.x\x001\x00\x00"), "", &hello{params: map[string]string{}, newer: true, unknown: []string{"_pq_.x"}}, nil},
		"cancel": {
			packet(cancelCode, "\x00\x00\x01\x02key!"), "",
			&hello{cancel: &pgproto3.CancelRequest{ProcessID: 258, SecretKey: []byte("key!")}}, nil,
		},
		"cancel without a key": {packet(cancelCode, "\x00\x00\x01\x02"), "", nil, errNoHello},
		"cancel, a long key":   {packet(cancelCode, "\x00\x00\x01\x02"+strings.Repeat("k", 257)), "", nil, errNoHello},
		"protocol 2":           {packet(2<<16, params), "", nil, errProtocol},
		"TLS at once":          {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "", nil, errNoHello},
		"HTTP":                 {"GET / HTTP/1.1\r\n\r\n", "", nil, errNoHello},
		"length 0":             {"\x00\x00\x00\x00\x00\x03\x00\x00", "", nil, errNoHello},
		"length 7":             {"\x00\x00\x00\x07\x00\x03\x00\x00", "", nil, errNoHello},
		"length 10001":         {"\x00\x00\x27\x11\x00\x03\x00\x00", "", nil, errNoHello},
		"negative length":      {"\xff\xff\xff\xff\x00\x03\x00\x00", "", nil, errNoHello},
		"three bytes":          {"\x00\x00\x00", "", nil, io.ErrUnexpectedEOF},
		"half a packet":        {packet(v3, params)[:20], "", nil, io.ErrUnexpectedEOF},
		"no end":               {packet(v3, "user\x00x\x00"), "", nil, errNoHello},
		"no value":             {packet(v3, "user\x00"), "", nil, errNoHello},
		"more after the end":   {packet(v3, "\x00\x00"), "", nil, errNoHello},
	} {
		for how, reader := range map[string]io.Reader{"at once": strings.NewReader(test.said), "byte by byte": iotest.OneByteReader(strings.NewReader(test.said))} {
			c := &client{Reader: reader}
			got, err := readHello(c)
			if !errors.Is(err, test.err) || !reflect.DeepEqual(got, test.want) || c.answers.String() != test.answered {
				t.Errorf("%s, %s: got %+v, %v after %q; want %+v, %v", name, how, got, err, c.answers.String(), test.want, test.err)
			}
		}
	}
	// Not a byte more than the hello is read: the client may have sent its first statement already.
	rest := strings.NewReader(packet(v3, "\x00") + "Q...")
	if _, err := readHello(&client{Reader: rest}); err != nil || rest.Len() != 4 {
		t.Errorf("%d bytes are left (%v), want 4", rest.Len(), err)
	}
}

// FuzzHello: nothing that a client says makes the proxy panic, read past the hello, or keep more than it was sent.
func FuzzHello(f *testing.F) {
	f.Add([]byte(packet(v3, "user\x00x\x00\x00")))
	f.Add([]byte(packet(sslCode, "") + packet(gssCode, "") + packet(v3+2, "_pq_.x\x001\x00\x00")))
	f.Add([]byte(packet(cancelCode, "\x00\x00\x01\x02key!")))
	f.Fuzz(func(t *testing.T, said []byte) {
		c := &client{Reader: bytes.NewReader(said)}
		h, err := readHello(c)
		if (h == nil) == (err == nil) {
			t.Fatalf("got %+v and %v", h, err)
		}
		if c.answers.Len() > 2 {
			t.Errorf("answered %q", c.answers.String())
		}
		if h == nil {
			return
		}
		size := len(h.database)
		for name, value := range h.params {
			size += len(name) + len(value)
		}
		if size > longest {
			t.Errorf("keeps %d bytes", size)
		}
	})
}

// message is one with a type.
func message(kind byte, body string) string {
	return string(kind) + string(binary.BigEndian.AppendUint32(nil, uint32(4+len(body)))) + body
}

// TestIdleByProtocol: a session is idle only when the server has answered all that was asked, outside a transaction.
func TestIdleByProtocol(t *testing.T) {
	t.Parallel()
	const idle, busy = true, false
	type step struct {
		client bool
		data   string
		want   bool
	}
	asks := func(data string, want bool) step { return step{true, data, want} }
	answers := func(data string, want bool) step { return step{false, data, want} }
	ready, open, failed := message('Z', "I"), message('Z', "T"), message('Z', "E")
	for name, steps := range map[string][]step{
		"a query":         {asks(message('Q', "SELECT 1\x00"), busy), answers(message('D', "x"), busy), answers(ready, idle)},
		"a transaction":   {asks(message('Q', "BEGIN\x00"), busy), answers(open, busy), asks(message('Q', "COMMIT\x00"), busy), answers(ready, idle)},
		"a failed one":    {asks(message('Q', "x\x00"), busy), answers(failed, busy)},
		"prepared":        {asks(message('P', "x")+message('B', "x")+message('E', "x"), busy), asks(message('S', ""), busy), answers(ready, idle)},
		"two at once":     {asks(message('Q', "a\x00")+message('Q', "b\x00"), busy), answers(ready, busy), answers(ready, idle)},
		"parsed, no sync": {asks(message('Q', "a\x00"), busy), asks(message('P', "x"), busy), answers(ready, busy)},
		"half a question": {asks(message('Q', "a\x00")[:3], busy), asks(message('Q', "a\x00")[3:], busy), answers(ready, idle), asks("Q\x00", busy)},
		"half an answer":  {asks(message('Q', "a\x00"), busy), answers(ready+"D\x00\x00\x00\x08a", busy), answers("bcd", idle)},
		"a notification":  {answers(message('A', "news"), idle)},
	} {
		s := &state{status: 'I'}
		if !s.idle() {
			t.Fatal("a new session is not idle")
		}
		for i, step := range steps {
			if step.client {
				s.fromClient([]byte(step.data))
			} else {
				s.fromServer([]byte(step.data))
			}
			if got := s.idle(); got != step.want {
				t.Errorf("%s, step %d: idle %t, want %t", name, i+1, got, step.want)
			}
		}
	}
}

// FuzzFrames: however a stream is cut, the messages are the same, and what is no message is passed over without harm.
func FuzzFrames(f *testing.F) {
	f.Add([]byte(message('Q', "SELECT 1\x00")+message('S', "")+message('Z', "I")), 3)
	f.Add([]byte("Q\x00\x00\x00\x00"), 1)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		var whole, parts []byte
		collect := func(into *[]byte) func(kind, first byte) {
			return func(kind, first byte) { *into = append(*into, kind, first) }
		}
		var once frames
		once.next(data, collect(&whole))
		var often frames
		size := max(1, cut%7)
		for rest := data; len(rest) > 0; {
			n := min(size, len(rest))
			often.next(rest[:n], collect(&parts))
			rest = rest[n:]
		}
		if !bytes.Equal(whole, parts) || once.between() != often.between() {
			t.Errorf("%q at once: %q, in parts of %d: %q", data, whole, size, parts)
		}
	})
}

// slow is a connection on which the first write takes long, though the other side has it at once: a process that the kernel lets wait.
type slow struct {
	net.Conn
	once sync.Once
}

func (c *slow) Write(p []byte) (int, error) {
	const while = 50 * time.Millisecond // pgconn begins to read in the background after 15 ms
	n, err := c.Conn.Write(p)
	c.once.Do(func() { <-time.After(while) })
	return n, err
}

// answerAll plays a server that lets everybody in, and answers a query with itself, in pieces.
func answerAll(conn net.Conn) error {
	backend := pgproto3.NewBackend(conn, conn)
	if _, err := backend.ReceiveStartupMessage(); err != nil {
		return err
	}
	ready := &pgproto3.ReadyForQuery{TxStatus: 'I'}
	backend.Send(&pgproto3.AuthenticationOk{})
	backend.Send(&pgproto3.ParameterStatus{Name: "server_version", Value: "17.0"})
	backend.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte("key!")})
	backend.Send(ready)
	for {
		if err := backend.Flush(); err != nil {
			return err
		}
		message, err := backend.Receive()
		if err != nil {
			return err
		}
		query, ok := message.(*pgproto3.Query)
		if !ok {
			return fmt.Errorf("got %T", message)
		}
		backend.Send(&pgproto3.DataRow{Values: [][]byte{[]byte(query.String)}})
		backend.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
		backend.Send(ready)
	}
}

// TestSlowWrite: where writing to the server is slow, pgconn reads in the background while it logs in. It has stopped when the session
// begins, and has kept nothing. (8)
func TestSlowWrite(t *testing.T) {
	t.Parallel()
	w := New()
	w.dial = func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			defer far.Close()
			_ = answerAll(far)
		}()
		return &slow{Conn: near}, nil
	}
	login := proxy.Login{Login: tenant.Login{User: "u", Password: "p", Database: "d"}, Server: dbserver.Server{Host: "h", Port: 1, SSLMode: dbserver.Disable}}
	next := func(context.Context, error) (proxy.Login, error) { return login, nil }
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		_, _ = io.WriteString(near, packet(v3, "user\x00u\x00\x00"))
		_, _ = io.Copy(io.Discard, near)
	}()
	session, err := w.Open(t.Context(), far, next)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Server.Close()
	if err := session.Server.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	frontend := pgproto3.NewFrontend(session.Server, session.Server)
	for i := range 5 {
		query := fmt.Sprint("query ", i)
		frontend.Send(&pgproto3.Query{String: query})
		if err := frontend.Flush(); err != nil {
			t.Fatal(err)
		}
		message, err := frontend.Receive()
		if row, ok := message.(*pgproto3.DataRow); err != nil || !ok || string(row.Values[0]) != query {
			t.Fatalf("%s: got %#v, %v", query, message, err)
		}
		for range 2 {
			if _, err := frontend.Receive(); err != nil {
				t.Fatal(err)
			}
		}
	}
}
