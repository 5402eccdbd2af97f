// SPDX-License-Identifier: Apache-2.0

// Package memory is a database server and a store of records in memory, for tests of what init and the sidecar do. A test decides
// what becomes of every call: it may come late, fail before or after its effect, or be the last one of its process. The
// conformance suite holds the server to the behaviour of the real ones.
package memory

import (
	"context"
	"slices"
	"sync"
	"time"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// Link is how one process reaches the server and the store. Server and Store have no lock of their own: a Link runs one effect
// at a time, over all Links.
type Link interface {
	// Call makes one call; what names it, and on is the session over which it is made, nil where there is none. It may run
	// effect, or not, or later, and its error is what the process gets to know.
	Call(ctx context.Context, what string, on *Session, effect func() error) error
	// Do runs what is no call of the process, such as the end of a session that it has closed.
	Do(effect func())
	// Wait waits until the process tries again for what, or hears of it. It says false when ctx has ended.
	Wait(ctx context.Context, what string) bool
	// Address is where the process's sessions come from; empty where it makes no difference.
	Address() string
}

// Server is a database server. A test may change all of it between two calls.
type Server struct {
	// Down: no client gets in. A server that goes down ends its sessions (Stop).
	Down bool
	// Users are the logins and their passwords.
	Users map[string]dbserver.Password
	// Databases are the tenants' databases.
	Databases map[string]*Database
	// Sessions are the open ones, the oldest first.
	Sessions []*Session
	// Begun are the logins that were begun and are in no list of sessions yet.
	Begun []*Login
	// Locks are the tenants' locks, by name.
	Locks map[string]*Session
	// Wrong counts the logins that were refused for their password.
	Wrong map[tenant.Login]int
	// Log is what Ensure has changed.
	Log []string

	// LoginTime is how long a login may take.
	LoginTime time.Duration
	// AdminPassword is the admin's; empty: any is right.
	AdminPassword dbserver.Password

	// Refuses is asked before a login sets its own password; nil: it may. ErrIgnored: the server says yes and does nothing.
	Refuses func(by Link) error
	// Learns is called before a login gets another password from a process.
	Learns func(by Link, user string, password dbserver.Password)
	// Looked is called when an admin has asked whether a login is in use.
	Looked func(user string)
	// Ends is how a session ends that the server was told to end, or whose opener does not know of it; nil: at once. Closes is the
	// same for one that its process has closed.
	Ends, Closes func(s *Session)

	number int
}

// Database is a tenant's database.
type Database struct {
	Marker string
	Limit  int  // of sessions that came by a login
	Data   bool // kine has written to it
	Closed bool // the logins may not connect
	// Lost are the logins that have lost their rights in it.
	Lost map[string]bool
}

// Session is an open session.
type Session struct {
	Server *Server
	// Owner is the process that opened it; nil for a client of the tenant.
	Owner   Link
	User    string // empty: the admin's
	Address string
	// Password is the one that it began with, and Number its place in the order of logins.
	Password dbserver.Password
	Number   int
	// Ended is closed when it ends.
	Ended chan struct{}
}

// Login is a login that a client has begun with a password that was right then. It may become a session much later.
type Login struct {
	User     string
	Password dbserver.Password
	Number   int
	// In: the server has let it in, and shows that a client is on the way.
	In bool
}

// NewServer is a server without tenants.
func NewServer() *Server {
	return &Server{
		Users: map[string]dbserver.Password{}, Databases: map[string]*Database{}, Locks: map[string]*Session{},
		Wrong: map[tenant.Login]int{}, LoginTime: 8 * time.Second,
	}
}

// Open opens a session, with the password that the login has now.
func (s *Server) Open(owner Link, user, address string) *Session {
	s.number++
	session := &Session{Server: s, Owner: owner, User: user, Address: address, Password: s.Users[user], Number: s.number, Ended: make(chan struct{})}
	s.Sessions = append(s.Sessions, session)
	return session
}

// Begin begins a login with the password that it has now.
func (s *Server) Begin(user string) *Login {
	s.number++
	l := &Login{User: user, Password: s.Users[user], Number: s.number}
	s.Begun = append(s.Begun, l)
	return l
}

// Finish makes a session of a login that was begun; nil where the server has forgotten it.
func (s *Server) Finish(l *Login, address string) *Session {
	if !s.Forget(l) {
		return nil
	}
	session := s.Open(nil, l.User, address)
	session.Password, session.Number = l.Password, l.Number
	return session
}

// Forget drops a login that was begun, and says whether it was there.
func (s *Server) Forget(l *Login) bool {
	n := len(s.Begun)
	s.Begun = slices.DeleteFunc(s.Begun, func(other *Login) bool { return other == l })
	return len(s.Begun) < n
}

// Stop ends all sessions, and lets no client in until it is started.
func (s *Server) Stop() {
	s.Down, s.Begun = true, nil
	for len(s.Sessions) > 0 {
		s.Sessions[0].End()
	}
}

// Start lets clients in again.
func (s *Server) Start() { s.Down = false }

// Used counts the sessions of a login.
func (s *Server) Used(user string) (n int) {
	for _, session := range s.Sessions {
		if session.User == user {
			n++
		}
	}
	return n
}

// Alive says whether the session is open.
func (s *Session) Alive() bool { return slices.Contains(s.Server.Sessions, s) }

// End ends the session, and with it its lock.
func (s *Session) End() {
	i := slices.Index(s.Server.Sessions, s)
	if i < 0 {
		return
	}
	s.Server.Sessions = slices.Delete(s.Server.Sessions, i, i+1)
	for name, holder := range s.Server.Locks {
		if holder == s {
			delete(s.Server.Locks, name)
		}
	}
	close(s.Ended)
}

func (s *Server) end(session *Session) {
	if s.Ends == nil {
		session.End()
		return
	}
	s.Ends(session)
}

func (s *Server) close(session *Session) {
	if s.Closes == nil {
		session.End()
		return
	}
	s.Closes(session)
}

// login checks a login as the real servers do: first the password, then the database.
func (s *Server) login(l tenant.Login) error {
	password, ok := s.Users[l.User]
	d := s.Databases[l.Database]
	switch {
	case s.Down:
		return away()
	case !ok || password != l.Password:
		s.Wrong[l]++
		return fault.New(fault.WrongPassword, "wrong password of login %q", l.User)
	case d == nil:
		return fault.New(fault.NoDatabase, "database %q is not there", l.Database)
	case d.Closed:
		return fault.New(fault.NoAccess, "login %q may not connect to database %q", l.User, l.Database)
	case d.Limit > 0 && s.Used(l.Database+string(tenant.A))+s.Used(l.Database+string(tenant.B)) >= d.Limit:
		return fault.New(fault.Unavailable, "too many connections to database %q", l.Database)
	}
	return nil
}

func away() error { return fault.New(fault.Unavailable, "connection refused") }

// Direct is a Link on which every call succeeds. Processes that share a server share its Mutex.
type Direct struct {
	Mutex *sync.Mutex
	From  string
}

var _ Link = Direct{}

// Call runs effect.
func (d Direct) Call(ctx context.Context, what string, _ *Session, effect func() error) error {
	if ctx.Err() != nil {
		return fault.New(fault.Unavailable, "%s: %w", what, context.Cause(ctx))
	}
	d.Mutex.Lock()
	defer d.Mutex.Unlock()
	return effect()
}

// Do runs effect.
func (d Direct) Do(effect func()) {
	d.Mutex.Lock()
	defer d.Mutex.Unlock()
	effect()
}

// Wait waits a moment.
func (d Direct) Wait(ctx context.Context, _ string) bool {
	return Pause(ctx, time.Millisecond)
}

// Pause waits for d; false when ctx ended before.
func Pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Address is where the process's sessions come from.
func (d Direct) Address() string { return d.From }
