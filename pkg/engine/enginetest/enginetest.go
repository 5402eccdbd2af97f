// SPDX-License-Identifier: Apache-2.0

// Package enginetest is the conformance suite: what every engine must do on every supported server, with every kind of
// admin.
//
// The suite does not know which engine it tests. The test that runs it describes a server: the engine, the admin that the
// engine is given, and a few ways to look at the server and to break what was made there. What is broken and what a
// tenant must not be able to do are tables of SQL, because only there do the engines differ.
//
// All cases share one server and run at the same time, each with tenants of its own, as they would in the field.
package enginetest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"sync"
	"testing"
	"time"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// Server is a server under test and the admin with whom it is tested.
type Server struct {
	// Connector is what the engine is given.
	Connector connector.Connector
	Engine    engine.Engine

	// Open opens a pool for any login, in the way the connector says; nil where the server speaks no SQL.
	Open func(user, password, database string) (*sql.DB, error)
	// Connect opens a session of a login as a control plane does; nil: by Open.
	Connect func(ctx context.Context, login tenant.Login) (Connection, error)
	// Exec runs statements, in the server's own language, as a superuser, whichever admin is under test. Without a database it is the engine's usual one.
	Exec func(ctx context.Context, database string, statements ...string) error
	// Snapshot renders all that the server says of a tenant's objects, but no passwords.
	Snapshot func(ctx context.Context, names tenant.Names) (string, error)
	// Log is everything that the server has logged, with every statement in it.
	Log func() (string, error)
	// Changing says whether a line of the log is a statement that changes something of a tenant.
	Changing func(line string, names tenant.Names) bool
	// Code is the server's code of a driver's error.
	Code func(err error) string
	// Owners are the owners of the tables in a tenant's database; nil where tables have none.
	Owners func(ctx context.Context, database string) ([]string, error)
	// Privileges are the rights that a login holds on the tenant's database, and Seven those that it must hold.
	Privileges func(ctx context.Context, names tenant.Names, slot tenant.Slot) ([]string, error)
	Seven      []string

	// Breaks are the pieces that can be missing or wrong, and that Ensure must repair.
	Breaks []Break
	// Findings are what Verify must find, and Ensure cannot or must not repair.
	Findings []Finding
	// Admins are admins who lack a right.
	Admins []WeakAdmin
	// Attempts are what a tenant must not be able to do.
	Attempts []Attempt
	// Foreign creates a database of the tenant's name that is not ours. It runs as the admin under test, who could not
	// take over what belongs to another admin.
	Foreign []string
	// Close takes away the right to use the tenant's database from its logins, but not the database.
	Close []string
	// DropDatabase drops the tenant's database, also while it is used, and DropLogins what else is there of the tenant.
	DropDatabase, DropLogins []string
	// Dump creates the tenant's database as one that was restored from a dump, without anything of ours.
	Dump []string
	// LimitIsPerLogin: the connection limit counts each login for itself.
	LimitIsPerLogin bool

	mu      *sync.Mutex
	secrets *[]string
}

// Break is something that can be wrong with a tenant's objects. In the SQL, {db}, {owner}, {a}, {b}, {marker} and {admin}
// stand for the names, which need no quoting.
type Break struct {
	Name, Reason string
	// SQL is run by a superuser, or by the admin under test.
	SQL     []string
	AsAdmin bool
	// Clean is run in the end by who ran SQL: it removes what is not the tenant's.
	Clean []string
	// Inside: in the tenant's database.
	Inside bool
	// Alone: other tenants notice.
	Alone bool
}

// Finding is something about a tenant's login that Verify must refuse, in words that hold Want. In the SQL, {other} stands for
// another tenant's database besides what stands in Break.
type Finding struct {
	Name, Reason string
	SQL          []string
	Undo         []string
	Inside       bool
	Alone        bool
	Want         string
}

// WeakAdmin is an admin who lacks a right; what is said must hold Want. {user} and {password} stand for his credential.
type WeakAdmin struct {
	Name, Reason string
	SQL          []string
	Want         string
}

// New completes a description.
func New(s Server) *Server {
	s.mu, s.secrets = new(sync.Mutex), new([]string)
	return &s
}

// Limit is the connection limit of the suite's tenants.
const Limit = 7

// Tenant is a tenant of one case.
type Tenant struct {
	*Server
	engine.Spec
	ID string // its UID
}

// NewTenant makes up a tenant.
func (s *Server) NewTenant() *Tenant { return s.TenantOf("suite/" + rand.Text()) }

// TenantOf is a tenant with this UID.
func (s *Server) TenantOf(uid string) *Tenant {
	t := &Tenant{Server: s, ID: uid, Spec: engine.Spec{
		Names: tenant.NamesOf(uid), ConnectionLimit: Limit,
		Passwords: map[tenant.Slot]dbserver.Password{tenant.A: tenant.NewPassword(), tenant.B: tenant.NewPassword()},
	}}
	s.Secret(t.Passwords[tenant.A], t.Passwords[tenant.B])
	return t
}

// Secret remembers passwords that must not turn up in any log.
func (s *Server) Secret(passwords ...dbserver.Password) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range passwords {
		*s.secrets = append(*s.secrets, p.Reveal())
	}
}

// NoSecretIn fails the test if text holds one of the passwords in a form from which it could be read.
func (s *Server) NoSecretIn(tb testing.TB, what, text string) {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(*s.secrets) == 0 {
		tb.Fatal("no password to look for")
	}
	for _, secret := range *s.secrets {
		for _, form := range []string{
			secret, base64.StdEncoding.EncodeToString([]byte(secret)), base64.URLEncoding.EncodeToString([]byte(secret)),
			hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret))),
		} {
			if strings.Contains(text, form) {
				tb.Errorf("a password is in %s", what)
				return
			}
		}
	}
}

// Login is the login of a slot.
func (t *Tenant) Login(slot tenant.Slot) tenant.Login {
	return tenant.Login{User: t.User(slot), Password: t.Passwords[slot], Database: t.Database}
}

// SQL puts the tenant's names into statements. It may be given more pairs.
func (t *Tenant) SQL(statements []string, more ...string) []string {
	r := strings.NewReplacer(append(more, "{db}", t.Database, "{owner}", t.Owner, "{a}", t.User(tenant.A), "{b}", t.User(tenant.B),
		"{marker}", t.Marker, "{admin}", t.Connector.User)...)
	out := make([]string, len(statements))
	for i, s := range statements {
		out[i] = r.Replace(s)
	}
	return out
}

// WithAdmin hands the engine's admin session to fn.
func (t *Tenant) WithAdmin(tb testing.TB, fn func(admin engine.Admin)) {
	tb.Helper()
	admin, err := t.Engine.Admin(tb.Context(), t.Connector.User, t.Connector.Password)
	if err != nil {
		tb.Fatal(err)
	}
	defer admin.Close()
	fn(admin)
}

// TryEnsure is Ensure by an admin of its own, under the tenant's lock.
func (t *Tenant) TryEnsure(ctx context.Context) (engine.Outcome, error) {
	admin, err := t.Engine.Admin(ctx, t.Connector.User, t.Connector.Password)
	if err != nil {
		return engine.Outcome{}, err
	}
	defer admin.Close()
	if err := admin.Lock(ctx, t.Names); err != nil {
		return engine.Outcome{}, err
	}
	return admin.Ensure(ctx, t.Spec)
}

// Ensure is TryEnsure, which must succeed. From then on the tenant counts as provisioned.
func (t *Tenant) Ensure(tb testing.TB) engine.Outcome {
	tb.Helper()
	done, err := t.TryEnsure(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	t.Provisioned = true
	return done
}

// Works checks that both logins are let in (Verify logs in first) and can do what they must, and nothing else.
func (t *Tenant) Works(tb testing.TB) {
	tb.Helper()
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		if _, err := t.Engine.Verify(tb.Context(), t.Login(slot), t.Names); err != nil {
			tb.Errorf("slot %s: %v", slot, err)
		}
	}
}

// MustExec runs statements as a superuser.
func (t *Tenant) MustExec(tb testing.TB, database string, statements ...string) {
	tb.Helper()
	if err := t.Exec(tb.Context(), database, statements...); err != nil {
		tb.Fatal(err)
	}
}

// ExecAs runs statements as some login.
func (s *Server) ExecAs(tb testing.TB, user string, password dbserver.Password, database string, statements ...string) {
	tb.Helper()
	db := s.Pool(tb, user, password, database)
	for _, statement := range statements {
		if _, err := db.ExecContext(tb.Context(), statement); err != nil {
			tb.Fatalf("%s: %v", statement, err)
		}
	}
}

// Pool opens a pool of one connection, which ends with the test.
func (s *Server) Pool(tb testing.TB, user string, password dbserver.Password, database string) *sql.DB {
	tb.Helper()
	db, err := s.Open(user, password.Reveal(), database)
	if err != nil {
		tb.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

// Session opens a session of a slot and keeps it until the test ends or it is closed.
func (t *Tenant) Session(tb testing.TB, login tenant.Login) *sql.DB {
	tb.Helper()
	db := t.Pool(tb, login.User, login.Password, login.Database)
	if err := db.PingContext(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return db
}

// Connection is a session of a control plane.
type Connection interface {
	PingContext(ctx context.Context) error
	Close() error
}

// Hold opens a session of a login, as a control plane does, until the test ends or it is closed.
func (t *Tenant) Hold(tb testing.TB, login tenant.Login) Connection {
	tb.Helper()
	if t.Connect == nil {
		return t.Session(tb, login)
	}
	c, err := t.Connect(tb.Context(), login)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// Look is a snapshot.
func (t *Tenant) Look(tb testing.TB) string {
	tb.Helper()
	snapshot, err := t.Snapshot(tb.Context(), t.Names)
	if err != nil {
		tb.Fatal(err)
	}
	return snapshot
}

// Changes counts the statements in the server's log that changed something of the tenant.
func (t *Tenant) Changes(tb testing.TB) int {
	tb.Helper()
	log, err := t.Log()
	if err != nil {
		tb.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(log) {
		if t.Changing(line, t.Names) {
			n++
		}
	}
	return n
}

// wantClass checks the class of an error, and that it is one line with all of the words.
func wantClass(tb testing.TB, err error, class fault.Class, words ...string) {
	tb.Helper()
	if err == nil || fault.Of(err) != class {
		tb.Errorf("got %v (class %d), want class %d", err, fault.Of(err), class)
		return
	}
	if strings.Contains(err.Error(), "\n") {
		tb.Errorf("not one line: %q", err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			tb.Errorf("got %q, which does not say %q", err, word)
		}
	}
}

// Eventually waits until a condition holds. It is for what a server does in its own time, such as ending a session.
func Eventually(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 20*time.Second)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			tb.Fatalf("waiting in vain: %s", what)
		}
	}
}
