// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// buffers are used again by later sessions.
var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// farewell is how long one side may go on after the other has ended: the server still has to hear the last words, and the client may
// still read an answer.
const farewell = 5 * time.Second

// session is one that is passed on.
type session struct {
	*Session
	client   net.Conn
	opened   time.Time
	oldSince time.Time // when it was first seen to be on an old login; guarded by the server's mutex
	drained  atomic.Bool
	up, down flow
}

// flow is one direction of a session.
type flow struct {
	total   *atomic.Int64 // bytes of all sessions
	passing atomic.Bool   // something was read, and the other side does not have it yet
	last    atomic.Int64  // when that was last so, in nanoseconds since the session was opened
}

// relay passes bytes until both sides have ended, or one has failed.
func (s *session) relay() error {
	var wg sync.WaitGroup
	var upErr, downErr error
	wg.Go(func() { upErr = s.pass(&s.up, s.Server, s.client, s.FromClient) })
	wg.Go(func() { downErr = s.pass(&s.down, s.client, s.Server, s.FromServer) })
	wg.Wait()
	return errors.Join(upErr, downErr)
}

// pass copies until from ends. Then it ends to's side of that direction, and gives the other direction a moment.
func (s *session) pass(f *flow, to, from net.Conn, seen func([]byte)) error {
	buffer, ok := buffers.Get().(*[]byte)
	if !ok {
		return errors.New("no buffer")
	}
	defer buffers.Put(buffer)
	for {
		read, readErr := from.Read(*buffer)
		if read > 0 {
			f.passing.Store(true)
			data := (*buffer)[:read]
			seen(data)
			written, writeErr := to.Write(data)
			f.total.Add(int64(written))
			f.last.Store(int64(time.Since(s.opened)))
			f.passing.Store(false)
			if writeErr != nil {
				end(to, from)
				return writeErr
			}
		}
		switch {
		case errors.Is(readErr, io.EOF):
			if f == &s.up && s.drained.Load() && s.Idle() { // in the client's place, or the server would take it for a broken connection
				_, _ = to.Write(s.Goodbye)
			}
			if half, ok := to.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
				_ = to.SetReadDeadline(time.Now().Add(farewell))
				return nil
			}
			end(to, from)
			return nil
		case readErr != nil:
			end(to, from)
			return readErr
		}
	}
}

// idleFor is how long nothing has been under way in the session, by the protocol and by the clock; negative while something is.
func (s *session) idleFor() time.Duration {
	if s.up.passing.Load() || s.down.passing.Load() || !s.Idle() {
		return -1
	}
	return time.Since(s.opened) - time.Duration(max(s.up.last.Load(), s.down.last.Load()))
}

// drain ends the session from the client's side: on a unix socket a client that writes from now on learns at once that its session has
// gone, and that nothing was sent. What it had sent before is passed on and answered.
func (s *session) drain() {
	half, ok := s.client.(interface{ CloseRead() error })
	if !ok {
		return
	}
	s.drained.Store(true)
	_ = half.CloseRead()
}

func end(conns ...net.Conn) {
	for _, c := range conns {
		_ = c.Close()
	}
}
