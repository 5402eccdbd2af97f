// SPDX-License-Identifier: Apache-2.0

package attack

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Flood opens many connections to an HTTP server at once and keeps them, each with one of the habits. It ends with ctx.
type Flood struct {
	Address string
	// From is the address to come from; empty: the usual one.
	From string
	// Count is how many connections there are at once.
	Count int
	// Habit is how each client uses its connection.
	Habit func(ctx context.Context, conn net.Conn)
}

// Run floods, and opens a new connection for each that the server closes, at most once a second each.
func (f Flood) Run(ctx context.Context) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	if f.From != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(f.From)}
	}
	var all sync.WaitGroup
	for range f.Count {
		all.Go(func() {
			for pace := time.NewTicker(time.Second); ; {
				if conn, err := dialer.DialContext(ctx, "tcp", f.Address); err == nil {
					stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
					f.Habit(ctx, conn)
					stop()
					_ = conn.Close()
				}
				select {
				case <-ctx.Done():
					pace.Stop()
					return
				case <-pace.C:
				}
			}
		})
	}
	all.Wait()
}

// Idle says nothing, and waits for the server to close.
func Idle(_ context.Context, conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// SlowWriter sends a request that never ends, a byte at a time.
func SlowWriter(ctx context.Context, conn net.Conn) {
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: "); err != nil {
		return
	}
	for pace := time.NewTicker(200 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			pace.Stop()
			return
		case <-pace.C:
		}
		if _, err := io.WriteString(conn, "x"); err != nil {
			pace.Stop()
			return
		}
	}
}

// SlowReader asks for the largest answer again and again, and does not read.
func SlowReader(ctx context.Context, conn net.Conn) {
	for range 200 {
		if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return
		}
	}
	hold(ctx, 5*time.Second)
}

// Stuffer sends bytes that the server did not ask for, as much as the server's side takes, up to 16 MiB.
func Stuffer(ctx context.Context, conn net.Conn) {
	if _, err := fmt.Fprintf(conn, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", 16<<20); err != nil {
		return
	}
	chunk := make([]byte, 64<<10)
	for range 256 {
		_ = conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Write(chunk); err != nil {
			return
		}
	}
	hold(ctx, time.Second)
}

func hold(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
