// SPDX-License-Identifier: Apache-2.0

// Package engine is the contract of a database server: what init and the sidecar ask of it, whichever it is.
//
// The seam is at the level of intent (log in, ensure, in use?, set password) and never at that of SQL: an abstraction over
// statements ends in methods that one engine must refuse. The implementations import this package and assert that they satisfy
// Engine; package open chooses one of them.
//
// Every error has a class of package fault.
package engine

import (
	"context"
	"time"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/tenant"
)

// Engine is a database server. No method tries twice: repeating is the caller's business, by the class of the error. But where
// a server is known to refuse right passwords at times, it is asked again before it is believed.
type Engine interface {
	// Login logs in as a tenant to its database and ends the session again: one connection. fault.WrongPassword means that
	// the server said just that; fault.NoDatabase that the database is not there; fault.NoAccess that it is not open to
	// this login; fault.Unavailable and fault.Refused as everywhere.
	Login(ctx context.Context, login tenant.Login) error
	// Ready is Login, and asks over the same connection whether the login can do there what a control plane does:
	// fault.NoAccess where it has lost a right that Ensure had given it.
	Ready(ctx context.Context, login tenant.Login, names tenant.Names) error
	// HasData is Login, and tells over the same connection whether the database holds a store with data: kine's table, with
	// a row in it. kine writes one at its first start and never removes all.
	HasData(ctx context.Context, login tenant.Login) (bool, error)
	// Verify is Login, and asks over the same connection what the tenant could do there that it must not. Such a finding is
	// an error of class fault.Refused; lesser ones are returned as warnings.
	Verify(ctx context.Context, login tenant.Login, names tenant.Names) (warnings []string, err error)
	// Admin opens a session with the admin's credential, and refuses a server that takes no writes.
	Admin(ctx context.Context, user string, password dbserver.Password) (Admin, error)
	// TenantSession opens a session of a tenant's login that works on itself: one connection. Its classes are those of Login.
	TenantSession(ctx context.Context, login tenant.Login) (TenantSession, error)
	// DSN is kine's endpoint for a login, read back with the parsers that kine uses.
	DSN(login tenant.Login) (string, error)
}

// Spec is what a server must hold for a tenant. Every engine is asked for the same.
type Spec struct {
	tenant.Names
	// Passwords are for logins that have to be created. A login that exists keeps its own.
	Passwords map[tenant.Slot]dbserver.Password
	// ConnectionLimit bounds the tenant's connections.
	ConnectionLimit int
	// Provisioned says that the database was complete once. It must be there, then: an empty one in its place would be
	// data loss. And it is the tenant's even if its marker was removed.
	Provisioned bool
	// Existing says that the database must be there, also without a record: a new one would hide the data of the one before. It is no
	// proof that a database is the tenant's.
	Existing bool
}

// CreateDatabase is the name of the statement in Outcome.Changes that makes a tenant's database where there was none.
const CreateDatabase = "create database"

// Outcome is what an engine did to fulfil a Spec.
type Outcome struct {
	// Changes name the statements that ran and changed something, in order; none of them holds a secret.
	Changes []string
	// Warnings are what an admin should look at.
	Warnings []string
}

// Admin is a session with the admin's credential on a server.
type Admin interface {
	// Lock waits until no other session holds the tenant's lock, as long as ctx and the session's own limit allow: fault.Unavailable
	// after that, and the caller tries again. Close releases the lock.
	Lock(ctx context.Context, names tenant.Names) error
	// Ensure brings about what is wanted and changes nothing that is right already. fault.NoDatabase: the database was
	// provisioned once, or must be there, and is not. fault.Refused: a database of that name is not this tenant's, or the admin lacks
	// a right. fault.Unavailable: try again.
	Ensure(ctx context.Context, spec Spec) (Outcome, error)
	// InUse says whether a login has a session. If it cannot be told, that is an error and not a no.
	InUse(ctx context.Context, user string) (bool, error)
	// SetPassword sets the password of a login that exists. fault.Refused: a password policy refuses it, or the admin lacks
	// a right. fault.Unavailable: try again.
	SetPassword(ctx context.Context, user string, password dbserver.Password) error
	// Close ends the session.
	Close()
}

// TenantSession is a session of a tenant's own login, in which the login looks at itself and changes its own password. The
// server ends it when it has done nothing for a minute: a sidecar that stands still must not keep the others from the login.
type TenantSession interface {
	// Sessions counts the other sessions of this login. If it cannot be told, that is an error and not a zero.
	Sessions(ctx context.Context) (Sessions, error)
	// Expel ends the sessions of this login that began before this one, whatever they call themselves. Of two sessions that do
	// so together, the later one stays.
	Expel(ctx context.Context) (Remains, error)
	// SetPassword changes the login's own password. fault.NoAccess: the server does not let a login do so.
	// fault.Rejected: a password policy refuses this password.
	SetPassword(ctx context.Context, password dbserver.Password) error
	// Close ends the session.
	Close()
}

// Sessions are the sessions of a login, but for the one that counted.
type Sessions struct {
	Count     int
	Addresses int // from how many client addresses they come, our own programs left out
	Here      int // how many come from the address of the one that counted, our own programs left out
}

// Remains is what is left of logins that began before a session, after Expel has ended what it could.
type Remains struct {
	// Sessions is how many sessions Expel found, and told the server to end: they are gone when it finds none any more.
	Sessions int
	// Entering are logins that the server has let in and that no list of sessions shows yet. Whose they are cannot be told, and
	// they cannot be ended: wait until those that were there once are gone, or show.
	Entering []string
	// LoginTime is how long a login may take, from the look at its password to the session.
	LoginTime time.Duration
}
