// SPDX-License-Identifier: Apache-2.0

package tenant

import (
	"context"
	"time"

	"dbconnector/pkg/connector"
)

// Want is what a server must hold for a tenant. Every engine is asked for the same.
type Want struct {
	Names
	// Passwords are for logins that have to be created. A login that exists keeps its own.
	Passwords map[Slot]connector.Password
	// ConnectionLimit bounds the tenant's connections.
	ConnectionLimit int
	// Provisioned says that the database was complete once. It must be there, then: an empty one in its place would be
	// data loss. And it is ours even if somebody removed the marker.
	Provisioned bool
	// Existing says that the database must be there, also without a record: a new one would hide the data of the one before. It is no
	// proof that a database is ours.
	Existing bool
}

// CreateDatabase is the name of the statement in Done.Changes that makes a tenant's database where there was none.
const CreateDatabase = "create database"

// Done is what an engine did to fulfil a Want.
type Done struct {
	// Changes name the statements that ran and changed something, in order; none of them holds a secret.
	Changes []string
	// Warnings are what an admin should look at.
	Warnings []string
}

// Admin is a session with the admin's credential on a server. It stands here and not in package engine so that engines can
// return it without knowing their user. Errors have a class of package fault.
type Admin interface {
	// Lock waits, as long as ctx allows, until no other session holds the tenant's lock. Close releases it.
	Lock(ctx context.Context, names Names) error
	// Ensure brings about what is wanted and changes nothing that is right already. fault.NoDatabase: the database was
	// provisioned once, or must be there, and is not. fault.Refused: a database of that name is not this tenant's, or the admin lacks
	// a right. fault.Unavailable: try again.
	Ensure(ctx context.Context, want Want) (Done, error)
	// InUse says whether a login has a session. If it cannot be told, that is an error and not a no.
	InUse(ctx context.Context, user string) (bool, error)
	// SetPassword sets the password of a login that exists. fault.Refused: a password policy refuses it, or the admin lacks
	// a right. fault.Unavailable: try again.
	SetPassword(ctx context.Context, user string, password connector.Password) error
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

// Self is a session of a tenant's own login, in which the login looks at itself and changes its own password. Errors have a
// class of package fault. The server ends it when it has done nothing for a minute: a sidecar that stands still must not keep
// the others from the login.
type Self interface {
	// Sessions counts the other sessions of this login. If it cannot be told, that is an error and not a zero.
	Sessions(ctx context.Context) (Sessions, error)
	// Expel ends the sessions of this login that began before this one, whatever they call themselves. Of two sessions that do
	// so together, the later one stays.
	Expel(ctx context.Context) (Remains, error)
	// SetPassword changes the login's own password. fault.NoAccess: the server does not let a login do so.
	// fault.Rejected: a password policy refuses this password.
	SetPassword(ctx context.Context, password connector.Password) error
	// Close ends the session.
	Close()
}
