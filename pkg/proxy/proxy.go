// SPDX-License-Identifier: Apache-2.0

// Package proxy lets a control plane use its database without a password: it listens on a unix socket, speaks the database server's
// protocol to the client, logs in to the server with the tenant's current login, and then passes bytes. One client session is one
// session on the server. It reads no SQL and changes nothing but the handshake.
package proxy

import (
	"context"
	"errors"
	"math/bits"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/fault"
)

// The limits of a session before bytes are passed on.
const (
	// HelloTime is for what the client has to say.
	HelloTime = 10 * time.Second
	// AttemptTime is for one attempt to log in.
	AttemptTime = 10 * time.Second
	// AnswerTime is for the client to take an answer.
	AnswerTime = time.Second
	// openTime is for all attempts to log in. kine's drivers wait as long as it takes.
	openTime = 25 * time.Second
)

const (
	// acceptPause is after how long accepting is tried again, give or take half of it.
	acceptPause = 100 * time.Millisecond
	// drainTick is how often sessions are looked at that may have to be drained.
	drainTick = 250 * time.Millisecond
	// restful is for how long a session has to be idle before it is drained. Before it uses one that was idle for more than a second,
	// database/sql with pgx asks whether it is still there (pgx, stdlib: ResetSession): such a client loses no query by it.
	restful = 2 * time.Second
	// Patience is after how long on an old login a session is drained that is never idle for so long, as soon as it is idle at all. kine
	// from 0.16.6 on polls over a connection that it keeps, once a second; where that ends, it takes another. All others are gone by
	// then where kine limits the lifetime of its connections, as in the shipped values.
	Patience = 15 * time.Minute
)

// Wire is a protocol, up to the moment from which bytes are passed on.
type Wire interface {
	// Open reads what the client wants, logs in to the server with one login after the other of next, and tells the client that
	// it is in. An error is an *OpenError, and has been told to the client, in the protocol. Both results are nil where the client
	// asked for another session's statement to be cancelled.
	Open(ctx context.Context, client net.Conn, next Next) (*Session, error)
	// Refuse reads what the client wants, and tells it in the protocol that there are too many sessions.
	Refuse(ctx context.Context, client net.Conn)
}

// Result is how an attempt to open a session has ended.
type Result string

// The results.
const (
	Opened      Result = "ok"
	Refused     Result = "refused"     // the server let no login in
	ServerError Result = "server"      // the server said something else
	Unreachable Result = "unreachable" // there was no server to say anything
	NoRoom      Result = "limit"       // there are too many sessions
	ClientError Result = "client"      // the client went away, or said what is not possible
)

// Results are all of them.
var Results = []Result{Opened, Refused, ServerError, Unreachable, NoRoom, ClientError}

// OpenError is why a session was not opened.
type OpenError struct {
	Result Result
	Code   string // of the protocol, as the client was told; empty for not
	// LetIn is the login that the server has let in all the same, where it was the client that went away; else it is empty.
	LetIn Login
	Err   error
}

func (e *OpenError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *OpenError) Unwrap() error { return e.Err }

// Session is a session that is open on both sides.
type Session struct {
	Server net.Conn
	Login  Login
	// FromClient and FromServer are shown what is about to be passed on. Idle says whether the protocol proves that nothing is
	// under way: no statement and no transaction. It may be called at any time.
	FromClient, FromServer func([]byte)
	Idle                   func() bool
	// Goodbye is what a client says to the server that ends its session.
	Goodbye []byte
	// Close is called when the session has ended.
	Close func()
}

// Observer is told of sessions, for metrics. Its methods must not block.
type Observer interface {
	// Connected: an attempt to open a session has ended.
	Connected(result Result, took time.Duration)
	// Drained: a session was ended because its login is not the active one any more.
	Drained()
	// Cancelled: a client asked for another session's statement to be cancelled.
	Cancelled()
}

// Server serves the clients of a listener.
type Server struct {
	Wire   Wire
	Logins *Logins
	// MaxSessions is how many there may be at once, those that are about to be opened included.
	MaxSessions int
	// Patience bounds draining; 0: the constant.
	Patience time.Duration
	Observer Observer
	Log      *zap.Logger

	mu       sync.Mutex
	sessions map[net.Conn]*session // by the client's side; nil while it is opened
	refusing int                   // clients that are told that there is no room
	number   int64                 // of the last session
	failures uint                  // to open one, in a row
	all      sync.WaitGroup

	sent, received atomic.Int64 // bytes
}

// Serve serves until the listener is closed, and returns when the last session has ended. When ctx ends, so do all sessions.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.mu.Lock()
	s.sessions = map[net.Conn]*session{}
	s.mu.Unlock()
	defer s.all.Wait()
	draining, over := context.WithCancel(ctx)
	defer over()
	s.all.Go(func() { s.drain(draining) })
	for {
		client, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			s.Log.Warn("accepting a connection failed (continuing)", zap.Error(err))
			select { // no more descriptors: sessions that end give some back
			case <-time.After(acceptPause/2 + rand.N(acceptPause)): //nolint:gosec // no secret
			case <-ctx.Done():
				return nil
			}
			continue
		}
		s.all.Go(func() { s.serve(ctx, client) })
	}
}

// Group are the sessions whose login is of one generation.
type Group struct {
	Sessions int
	Oldest   time.Duration // since it was opened
}

// Sessions counts the sessions by the generation of their login, those that are about to be opened as 0.
func (s *Server) Sessions() map[int64]Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	groups := map[int64]Group{}
	for _, session := range s.sessions {
		generation, age := int64(0), time.Duration(0)
		if session != nil {
			generation, age = session.Login.Generation, time.Since(session.opened)
		}
		group := groups[generation]
		groups[generation] = Group{group.Sessions + 1, max(group.Oldest, age)}
	}
	return groups
}

// Bytes counts what was passed on to the server and to clients.
func (s *Server) Bytes() (sent, received int64) { return s.sent.Load(), s.received.Load() }

// Quiet waits until there has been no session for a while, or ctx has ended.
func (s *Server) Quiet(ctx context.Context, while time.Duration) {
	const look = 10
	ticker := time.NewTicker(while / look)
	defer ticker.Stop()
	for quiet := 0; quiet < look; quiet++ {
		s.mu.Lock()
		if len(s.sessions) > 0 {
			quiet = 0
		}
		s.mu.Unlock()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) serve(ctx context.Context, client net.Conn) {
	defer func() { _ = client.Close() }()
	defer context.AfterFunc(ctx, func() { _ = client.Close() })()
	_ = client.SetDeadline(time.Now().Add(HelloTime))
	number, leave := s.enter(ctx, client)
	if number == 0 {
		return
	}
	defer leave()

	began := time.Now()
	log := s.Log.With(zap.Int64("session", number))
	next, ended := s.Logins.Session()
	opening, opened := context.WithTimeout(ctx, openTime)
	open, err := s.Wire.Open(opening, client, next)
	opened()
	login := Login{}
	if open != nil {
		login = open.Login
	}
	if open != nil || err != nil {
		ended(login, err)
	}
	s.opened(log, open, err, time.Since(began))
	if open == nil {
		return
	}
	defer open.Close()
	defer func() { _ = open.Server.Close() }()
	defer context.AfterFunc(ctx, func() { _ = open.Server.Close() })()
	session := &session{Session: open, client: client, opened: time.Now(), up: flow{total: &s.sent}, down: flow{total: &s.received}}
	s.mu.Lock()
	s.sessions[client] = session
	s.mu.Unlock()
	_ = client.SetDeadline(time.Time{})
	err = session.relay()
	log.Debug("a session has ended", zap.Int64("generation", open.Login.Generation), zap.Duration("took", time.Since(began)),
		zap.Bool("drained", session.drained.Load()), zap.NamedError("end", err))
}

// opened tells how an attempt has ended. Failures in a row are logged with growing gaps: a client tries again once a second.
func (s *Server) opened(log *zap.Logger, open *Session, err error, took time.Duration) {
	result, code := Opened, ""
	var failure *OpenError
	switch {
	case err == nil && open == nil:
		s.Observer.Cancelled()
		return
	case errors.As(err, &failure):
		result, code = failure.Result, failure.Code
	}
	s.Observer.Connected(result, took)
	s.mu.Lock()
	if s.failures++; err == nil {
		s.failures = 0
	}
	failures := s.failures
	s.mu.Unlock()
	switch {
	case err == nil:
		log.Debug("a session was opened", zap.Int64("generation", open.Login.Generation), zap.Duration("took", took))
	case bits.OnesCount(failures) == 1:
		log.Warn("a session could not be opened", zap.String("result", string(result)), zap.String("code", code),
			zap.String("error", fault.Words(err.Error())), zap.Duration("took", took), zap.Uint("failures", failures))
	}
}

// enter finds room for a client's session and gives it a number, or tells the client that there is none. As many as there may be
// sessions are told at once; the connection of one more just ends.
func (s *Server) enter(ctx context.Context, client net.Conn) (number int64, leave func()) {
	s.mu.Lock()
	if len(s.sessions) < s.MaxSessions {
		s.sessions[client] = nil
		s.number++
		number = s.number
		s.mu.Unlock()
		return number, func() {
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
	s.Observer.Connected(NoRoom, 0)
	if told {
		s.Wire.Refuse(ctx, client)
		s.mu.Lock()
		s.refusing--
		s.mu.Unlock()
	}
	return 0, nil
}

// drain ends the sessions of old logins, each at a moment when that costs its client nothing.
func (s *Server) drain(ctx context.Context) {
	patience := s.Patience
	if patience == 0 {
		patience = Patience
	}
	ticker := time.NewTicker(drainTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			s.drainOnce(now, patience)
		}
	}
}

func (s *Server) drainOnce(now time.Time, patience time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range s.sessions {
		if session == nil || session.drained.Load() || !s.Logins.old(session.Login) {
			continue
		}
		if session.oldSince.IsZero() {
			session.oldSince = now
		}
		if idle := session.idleFor(); idle >= restful || idle >= 0 && now.Sub(session.oldSince) >= patience {
			session.drain()
			s.Observer.Drained()
			s.Log.Debug("a session is drained", zap.Int64("generation", session.Login.Generation), zap.Duration("idle", idle))
		}
	}
}
