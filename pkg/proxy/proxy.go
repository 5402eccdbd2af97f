// SPDX-License-Identifier: Apache-2.0

// Package proxy lets a control plane use its database without a password: it listens on a unix socket, speaks the database server's
// protocol to the client, logs in to the server with the tenant's current login, and then passes bytes. One client session is one
// session on the server. It reads no SQL and changes nothing but the handshake.
package proxy

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/fault"
)

// The limits of a session before bytes are passed on.
const (
	helloTime = 10 * time.Second // for what the client has to say
	// openTime is for all attempts to log in. kine's drivers wait as long as it takes.
	openTime = 25 * time.Second
)

// Wire is a protocol, up to the moment from which bytes are passed on.
type Wire interface {
	// Open reads what the client wants, logs in to the server with one login after the other of next, and tells the client that
	// it is in. An error has been told to the client, in the protocol. Both results are nil where the client wanted nothing that
	// stays, as to cancel a statement.
	Open(ctx context.Context, client net.Conn, next Next) (*Session, error)
	// Refuse reads what the client wants, and tells it in the protocol that there are too many sessions.
	Refuse(ctx context.Context, client net.Conn)
}

// Session is a session that is open on both sides.
type Session struct {
	Server net.Conn
	Login  Login
	// FromClient and FromServer are shown what is about to be passed on. Idle says whether the protocol proves that nothing is
	// under way: no statement and no transaction. It may be called at any time.
	FromClient, FromServer func([]byte)
	Idle                   func() bool
	// Close is called when the session has ended.
	Close func()
}

// Server serves the clients of a listener.
type Server struct {
	Wire   Wire
	Logins *Logins
	// MaxSessions is how many there may be at once, those that are about to be opened included.
	MaxSessions int
	Log         *zap.Logger

	mu       sync.Mutex
	sessions map[net.Conn]*Session // by the client's side; nil while it is opened
	refusing int                   // clients that are told that there is no room
	all      sync.WaitGroup
}

// Serve serves until the listener is closed, and returns when the last session has ended. When ctx ends, so do all sessions.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.mu.Lock()
	s.sessions = map[net.Conn]*Session{}
	s.mu.Unlock()
	defer s.all.Wait()
	for {
		client, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			s.Log.Warn("accepting a connection failed (continuing)", zap.Error(err))
			select { // no more descriptors: sessions that end give some back
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return nil
			}
			continue
		}
		s.all.Go(func() { s.serve(ctx, client) })
	}
}

// Sessions counts the sessions by the generation of their login, those that are about to be opened as 0.
func (s *Server) Sessions() map[int64]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := map[int64]int{}
	for _, session := range s.sessions {
		generation := int64(0)
		if session != nil {
			generation = session.Login.Generation
		}
		counts[generation]++
	}
	return counts
}

func (s *Server) serve(ctx context.Context, client net.Conn) {
	defer func() { _ = client.Close() }()
	defer context.AfterFunc(ctx, func() { _ = client.Close() })()
	_ = client.SetDeadline(time.Now().Add(helloTime))
	room, leave := s.enter(ctx, client)
	defer leave()
	if !room {
		return
	}

	began := time.Now()
	opening, opened := context.WithTimeout(ctx, openTime)
	session, err := s.Wire.Open(opening, client, s.Logins.Session())
	opened()
	switch {
	case err != nil:
		s.Log.Warn("a session could not be opened", zap.String("error", fault.Show(err.Error())), zap.Duration("took", time.Since(began)))
		return
	case session == nil:
		return
	}
	defer session.Close()
	defer func() { _ = session.Server.Close() }()
	defer context.AfterFunc(ctx, func() { _ = session.Server.Close() })()
	s.Logins.Worked(session.Login)
	s.mu.Lock()
	s.sessions[client] = session
	s.mu.Unlock()
	_ = client.SetDeadline(time.Time{})
	up, down, err := relay(client, session.Server, session.FromClient, session.FromServer)
	s.Log.Debug("a session has ended", zap.Int64("generation", session.Login.Generation), zap.Duration("took", time.Since(began)),
		zap.Int64("sent", up), zap.Int64("received", down), zap.NamedError("end", err))
}

// enter finds room for a client's session, or tells the client that there is none. As many as there may be sessions are told at once; the
// connection of one more just ends.
func (s *Server) enter(ctx context.Context, client net.Conn) (room bool, leave func()) {
	s.mu.Lock()
	if len(s.sessions) < s.MaxSessions {
		s.sessions[client] = nil
		s.mu.Unlock()
		return true, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.sessions, client)
		}
	}
	told := s.refusing < s.MaxSessions
	if told {
		s.refusing++
	}
	s.mu.Unlock()
	if told {
		s.Wire.Refuse(ctx, client)
		s.mu.Lock()
		s.refusing--
		s.mu.Unlock()
	}
	return false, func() {}
}
