// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Addresses of the node's network, which no process outside of it sees.
const (
	nodeIP      = "10.98.0.1"
	podCIDR     = "10.99.0.0/24"
	serviceCIDR = "10.96.0.0/16"
	serviceIP   = "10.96.0.1" // of the API server
)

// within calls f on a thread that is in the node's network: a socket stays in the network where it was made.
func (n *Node) within(f func() error) error {
	errs := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, instead of surprising another goroutine.
		runtime.LockOSThread()
		if err := unix.Setns(int(n.network.Fd()), unix.CLONE_NEWNET); err != nil {
			errs <- fmt.Errorf("entering the node's network: %w", err)
			return
		}
		errs <- f()
	}()
	return <-errs
}

// Dial connects from the node's network, say to a pod. The host has to be an address: there is no name service.
func (n *Node) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.within(func() error {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens in the node's network, where pods find it.
func (n *Node) Listen(ctx context.Context, network, address string) (l net.Listener, err error) {
	err = n.within(func() error {
		var config net.ListenConfig
		l, err = config.Listen(ctx, network, address)
		return err
	})
	return l, err
}

// Host is the address at which pods find a port behind [Node.Expose].
func (n *Node) Host() string { return nodeIP }

// Expose lets pods reach a server of this machine, such as [Server.Addr], and returns the port of [Node.Host] that leads
// there, until the node stops. A pod of 10.99.0.7 is seen by the server as 127.99.0.7, so that pods have different addresses.
func (n *Node) Expose(ctx context.Context, target string) (port int, err error) {
	l, err := n.Listen(ctx, "tcp4", net.JoinHostPort(nodeIP, "0"))
	if err != nil {
		return 0, fmt.Errorf("exposing %s to pods: %w", target, err)
	}
	addr, _ := l.Addr().(*net.TCPAddr)
	n.forward(l, func(ctx context.Context, client net.Conn) (net.Conn, error) {
		var dialer net.Dialer
		from, ok := client.RemoteAddr().(*net.TCPAddr)
		if ok && strings.HasPrefix(target, "127.") {
			ip := from.IP.To4()
			dialer.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, ip[1], ip[2], ip[3])}
		}
		return dialer.DialContext(ctx, "tcp4", target)
	})
	return addr.Port, nil
}

// Publish lets programs of this machine reach an address in the node's network, such as a pod's, on the loopback port
// that it returns, until the node stops.
func (n *Node) Publish(ctx context.Context, target string) (port int, err error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("publishing %s: %w", target, err)
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, fmt.Errorf("publishing %s: listening on %s", target, l.Addr())
	}
	n.forward(l, func(ctx context.Context, _ net.Conn) (net.Conn, error) { return n.Dial(ctx, "tcp4", target) })
	return addr.Port, nil
}

// forward hands every connection on, until the node stops.
func (n *Node) forward(l net.Listener, dial func(context.Context, net.Conn) (net.Conn, error)) {
	n.forwards.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			n.forwards.Go(func() {
				defer func() { _ = client.Close() }()
				server, err := dial(n.life, client)
				if err != nil {
					return
				}
				defer func() { _ = server.Close() }()
				defer context.AfterFunc(n.life, func() { _, _ = client.Close(), server.Close() })()
				pipe(client, server)
			})
		}
	})
	context.AfterFunc(n.life, func() { _ = l.Close() })
}

// pipe copies in both directions. Each ends by itself: half a connection is one, too.
func pipe(a, b net.Conn) {
	var wg sync.WaitGroup
	for _, ends := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			_, err := io.Copy(ends[0], ends[1])
			half, ok := ends[0].(interface{ CloseWrite() error })
			if err != nil || !ok || errors.Is(half.CloseWrite(), os.ErrClosed) {
				_, _ = a.Close(), b.Close()
			}
		})
	}
	wg.Wait()
}
