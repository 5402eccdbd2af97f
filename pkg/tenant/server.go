// SPDX-License-Identifier: Apache-2.0

package tenant

import "dbconnector/pkg/connector"

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
}

// Done is what an engine did to fulfil a Want.
type Done struct {
	// Changes name the statements that ran and changed something, in order; none of them holds a secret.
	Changes []string
	// Warnings are what an admin should look at.
	Warnings []string
}
