// SPDX-License-Identifier: Apache-2.0

package health

import (
	"net"
	"slices"
	"sync"
)

// maxConnections is how many connections are open at once, maxFromOne how many of them come from one address. The kubelet has
// one for each probe, for milliseconds, and a Prometheus server one. A connection costs some 20 KiB, in a container of 64 MiB.
const (
	maxConnections = 64
	maxFromOne     = 16
)

// receiveBuffer is what the kernel keeps of a connection that is not read. A request is a few hundred bytes; the default grows
// to megabytes, which a container pays for.
const receiveBuffer = 16 << 10

// limited keeps the number of open connections down. To make newcomers wait would let a client that is first, and stays, keep the
// kubelet out, and a pod whose probes fail gets no traffic. So a newcomer whose address has too many is closed at once, before
// it costs anything, and any other gets in: where there are too many in all, for the oldest of the address that has the most.
type limited struct {
	net.Listener
	mu   sync.Mutex
	open []*limitedConn // the oldest first
}

// Accept takes the next connection that may stay.
func (l *limited) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		conn := &limitedConn{Conn: accepted, listener: l, from: accepted.RemoteAddr().String()}
		if host, _, err := net.SplitHostPort(conn.from); err == nil {
			conn.from = host
		}
		victim := l.admit(conn)
		if victim != nil {
			_ = victim.Close()
		}
		if victim != conn {
			return conn, nil
		}
	}
}

// admit notes a connection and says which one has to go for it: none, another, or itself.
func (l *limited) admit(conn *limitedConn) (victim *limitedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	count, most := map[string]int{}, 0
	for _, c := range l.open {
		count[c.from]++
		most = max(most, count[c.from])
	}
	if count[conn.from] >= maxFromOne {
		return conn
	}
	if len(l.open) >= maxConnections {
		victim = l.open[slices.IndexFunc(l.open, func(c *limitedConn) bool { return count[c.from] == most })]
	}
	l.open = append(l.open, conn)
	return victim
}

func (l *limited) forget(conn *limitedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = slices.DeleteFunc(l.open, func(c *limitedConn) bool { return c == conn })
}

type limitedConn struct {
	net.Conn
	listener *limited
	from     string // the address without its port
}

// Close also makes room for another.
func (c *limitedConn) Close() error {
	c.listener.forget(c)
	return c.Conn.Close()
}
