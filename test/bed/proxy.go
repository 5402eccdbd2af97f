// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Proxy is a TCP proxy in front of a server that sees, and can spoil, what goes on:
// tests of crashes and outages put it before a database or an API server.
//
// It counts flights: a flight is what a client sends, in however many pieces, until
// the server answers. For a protocol of questions and answers this is the question,
// and the count is the same from run to run but for one thing: where the server
// speaks unasked (TLS 1.3 session tickets of MySQL, watches), a flight may count as
// two. A test that wants every crash point therefore raises n until a run gets through.
type Proxy struct {
	target string
	addr   *net.TCPAddr

	mu          sync.Mutex
	listener    net.Listener
	conns       map[net.Conn]struct{} // both sides of each connection
	connections int
	flights     int
	killAt      int
	kill        func()
	intercept   func(Question) Reply
	open        chan struct{} // closed unless the proxy is a black hole
	closed      bool
	wg          sync.WaitGroup
}

// StartProxy starts a proxy for the target, host:port, on a port of 127.0.0.1.
func StartProxy(target string) (*Proxy, error) {
	port, err := freePort() // not one of the kernel's: after Refuse we want it back
	if err != nil {
		return nil, err
	}
	return startProxyAt(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}, target)
}

func startProxyAt(addr *net.TCPAddr, target string) (*Proxy, error) {
	p := &Proxy{target: target, addr: addr, conns: map[net.Conn]struct{}{}, open: make(chan struct{})}
	close(p.open)
	if err := p.Accept(); err != nil {
		return nil, err
	}
	return p, nil
}

// NewProxy is [StartProxy] for tests.
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	p, err := StartProxy(target)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.Close)
	return p
}

// NewProxyAt is [NewProxy] on an address of this machine. It makes a server that has the same port at another address.
func NewProxyAt(tb testing.TB, host string, port int, target string) *Proxy {
	tb.Helper()
	p, err := startProxyAt(&net.TCPAddr{IP: net.ParseIP(host), Port: port}, target)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.Close)
	return p
}

// Addr is the proxy's host:port.
func (p *Proxy) Addr() string { return p.addr.String() }

// Host is the proxy's address.
func (p *Proxy) Host() string { return p.addr.IP.String() }

// Port is the proxy's port.
func (p *Proxy) Port() int { return p.addr.Port }

// Connections returns how many connections were made so far.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connections
}

// Flights returns how many flights were sent so far, over all connections.
func (p *Proxy) Flights() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.flights
}

// KillAfter calls f once, when the n-th flight from now has reached the server and
// the server has answered, but before the client learns of it: the moment at which
// a crash does the most harm. f runs in a goroutine of the proxy, and may kill the client, the server, or [Proxy.Cut].
// An n of 0 calls nothing, also what an earlier call asked for.
func (p *Proxy) KillAfter(n int, f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kill, p.killAt = f, p.flights+n
	if n == 0 {
		p.kill = nil
	}
}

// Question is the beginning of a flight: what the client sent at once. A client that sends more before the server has answered is heard
// only once.
type Question struct {
	Conn int    // numbers the connections, from 1
	Data []byte // not to be kept
}

// Reply says how a proxy goes on with a question. The zero value passes it on, and the answer, too.
type Reply struct {
	// Instead goes to the client, and nothing to the server.
	Instead []byte
	// Drop ends the connection before the server hears the question.
	Drop bool
	// Answered, unless nil, is called before the client hears the answer, or that the server has ended the connection. If it says no, the
	// connection ends before.
	Answered func() (pass bool)
}

// Intercept calls f with every question before the server hears it. f, and what it returns, may take their time, but must not wait for
// the client to say more on that connection, nor close the proxy. The same holds for [Proxy.KillAfter].
func (p *Proxy) Intercept(f func(Question) Reply) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.intercept = f
}

// BlackHole makes the proxy swallow packets, as a firewall that drops them: new
// connections are accepted and nothing on any connection goes through until
// [Proxy.Pass].
func (p *Proxy) BlackHole() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
		p.open = make(chan struct{})
	default: // it is one already
	}
}

// Vanish makes the kernel drop what comes in for the proxy, as where the cable is cut: no packet is acknowledged, that of a new connection
// neither, and none is sent until [Proxy.Pass].
func (p *Proxy) Vanish(ctx context.Context) error {
	p.BlackHole()
	// The kernel would send again what the client has not acknowledged yet.
	if err := Wait(ctx, func(context.Context) error {
		return p.eachSocket(func(fd int) error {
			left, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ)
			if err == nil && left > 0 {
				err = fmt.Errorf("%d bytes are on their way", left)
			}
			if errors.Is(err, unix.EINVAL) { // the listener's
				err = nil
			}
			return err
		})
	}); err != nil {
		return err
	}
	return p.eachSocket(func(fd int) error {
		dropAll := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
		return errors.Join(
			unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &dropAll}),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0)) // or the kernel would send packets by itself
	})
}

// eachSocket calls f with the sockets that clients talk to.
func (p *Proxy) eachSocket(f func(fd int) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var sockets []syscall.Conn
	if l, ok := p.listener.(*net.TCPListener); ok {
		sockets = append(sockets, l)
	}
	for c := range p.conns {
		if tcp, ok := c.(*net.TCPConn); ok && c.LocalAddr().String() == p.addr.String() {
			sockets = append(sockets, tcp)
		}
	}
	for _, socket := range sockets {
		raw, err := socket.SyscallConn()
		if err != nil {
			return fmt.Errorf("at a proxy's sockets: %w", err)
		}
		var failed error
		if err := raw.Control(func(fd uintptr) { failed = f(int(fd)) }); errors.Join(err, failed) != nil {
			return fmt.Errorf("at a proxy's sockets: %w", errors.Join(err, failed))
		}
	}
	return nil
}

// Pass ends [Proxy.BlackHole] and [Proxy.Vanish]; what was held up is delivered.
func (p *Proxy) Pass() {
	_ = p.eachSocket(func(fd int) error { // one that has none is as it should be
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		return nil
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
	default:
		close(p.open)
	}
}

// Refuse makes new connections fail with "connection refused". The existing ones
// live on; see [Proxy.Cut].
func (p *Proxy) Refuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		// As in freePort: afterwards no process must be listening.
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		_ = p.listener.Close()
		p.listener = nil
	}
}

// Accept ends [Proxy.Refuse].
func (p *Proxy) Accept() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		return nil
	}
	config := net.ListenConfig{}
	config.SetMultipathTCP(false) // whose sockets take no filter
	l, err := config.Listen(context.Background(), "tcp4", p.addr.String())
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	p.listener = l
	p.wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed
			}
			p.wg.Go(func() { p.serve(client) })
		}
	})
	return nil
}

// Cut resets all existing connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset, not an orderly end
		}
		_ = c.Close()
	}
}

// Close ends the proxy and its connections.
func (p *Proxy) Close() {
	p.Refuse()
	p.mu.Lock()
	p.closed = true
	p.kill = nil
	p.mu.Unlock()
	p.Pass()
	p.Cut()
	p.wg.Wait()
}

// conversation is one connection of a client.
type conversation struct {
	*Proxy
	number         int
	client, server net.Conn

	mu       sync.Mutex  // as long as a question or an answer is looked at
	asked    bool        // the client spoke last
	flight   int         // the number of its last flight
	answered func() bool // of its last question
}

func (p *Proxy) serve(client net.Conn) {
	defer func() { _ = client.Close() }()
	p.mu.Lock()
	p.connections++
	c := &conversation{Proxy: p, number: p.connections, client: client}
	p.mu.Unlock()
	if !p.track(client) {
		return
	}
	defer p.forget(client)
	p.pass()
	server, err := new(net.Dialer).DialContext(context.Background(), "tcp", p.target) // loopback: no wait
	if err != nil {
		return // the client learns it by the end of its connection
	}
	c.server = server
	defer func() { _ = server.Close() }()
	if !p.track(server) {
		return
	}
	defer p.forget(server)

	var wg sync.WaitGroup
	wg.Go(func() { c.copy(server, client, c.ask) })
	wg.Go(func() { c.copy(client, server, c.answer) })
	wg.Wait()
}

// copy passes on what before lets pass. before also sees the end, whatever it is, as no data.
func (c *conversation) copy(to, from net.Conn, before func([]byte) (pass, on bool)) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 || err != nil {
			c.pass()
			pass, on := before(buf[:n])
			if !on {
				break
			}
			if pass && n > 0 {
				if _, err := to.Write(buf[:n]); err != nil {
					break
				}
			}
		}
		if errors.Is(err, io.EOF) {
			if tcp, ok := to.(*net.TCPConn); ok {
				_ = tcp.CloseWrite()
			}
			return
		}
		if err != nil {
			break
		}
	}
	_ = to.Close()
	_ = from.Close()
}

// ask notes that the client spoke. It says whether the server may hear it, and whether the connection goes on.
func (c *conversation) ask(data []byte) (pass, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asked || len(data) == 0 {
		return true, true
	}
	c.Proxy.mu.Lock()
	c.flights++
	c.asked, c.flight, c.answered = true, c.flights, nil
	intercept := c.intercept
	c.Proxy.mu.Unlock()
	if intercept == nil {
		return true, true
	}
	reply := intercept(Question{c.number, data})
	if reply.Instead != nil {
		c.asked = false
		_, err := c.client.Write(reply.Instead)
		return false, err == nil
	}
	c.answered = reply.Answered
	return !reply.Drop, !reply.Drop
}

// answer notes that the server spoke. It asks the interceptor of the question, and calls what [Proxy.KillAfter] asked for.
func (c *conversation) answer(data []byte) (pass, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var kill func()
	if len(data) > 0 {
		c.Proxy.mu.Lock()
		if c.asked && c.flight == c.killAt {
			kill, c.kill = c.kill, nil
		}
		c.Proxy.mu.Unlock()
	}
	answered := c.answered
	c.asked, c.answered = false, nil
	if kill != nil {
		kill()
	}
	on = answered == nil || answered()
	return on, on
}

// pass waits while the proxy is a black hole.
func (p *Proxy) pass() {
	p.mu.Lock()
	open := p.open
	p.mu.Unlock()
	<-open
}

func (p *Proxy) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) forget(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}
