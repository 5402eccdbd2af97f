// SPDX-License-Identifier: Apache-2.0

// Package engine is what we ask of a database server.
//
// The seam is at the level of intent (log in, ensure, in use?, set password) and never at that of SQL: an abstraction over
// statements ends in methods that one engine must refuse. The implementations do not import this package, so there is no
// cycle; that they satisfy Engine is asserted below.
package engine

import (
	"context"
	"fmt"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/engine/mysql"
	"dbconnector/pkg/engine/postgres"
	"dbconnector/pkg/tenant"
)

// Engine is a database server. No method tries twice: repeating is the caller's business, by the class of the error
// (package fault). But where a server is known to refuse right passwords at times, it is asked again before it is believed.
type Engine interface {
	// Login logs in as a tenant to its database and ends the session again: one connection. fault.WrongPassword means that
	// the server said just that; fault.NoDatabase that the database is not there; fault.NoAccess that it is not open to
	// this login; fault.Unavailable and fault.Refused as everywhere.
	Login(ctx context.Context, login tenant.Login) error
	// Ready is Login, and asks over the same connection whether the login can do there what a control plane does:
	// fault.NoAccess where it has lost a right that Ensure had given it.
	Ready(ctx context.Context, login tenant.Login, names tenant.Names) error
	// Enter is Login, and tells over the same connection whether the database holds a store with data: kine's table, with
	// a row in it. kine writes one at its first start and never removes all.
	Enter(ctx context.Context, login tenant.Login) (data bool, err error)
	// Verify is Login, and asks over the same connection what the tenant could do there that it must not. Such a finding is
	// an error of class fault.Refused; lesser ones are returned as warnings.
	Verify(ctx context.Context, login tenant.Login, names tenant.Names) (warnings []string, err error)
	// Admin opens a session with the admin's credential, and refuses a server that takes no writes.
	Admin(ctx context.Context, user string, password connector.Password) (tenant.Admin, error)
	// Self opens a session of a tenant's login that works on itself: one connection. Its classes are those of Login.
	Self(ctx context.Context, login tenant.Login) (tenant.Self, error)
	// DSN is kine's endpoint for a login, read back with the parsers that kine uses.
	DSN(login tenant.Login) (string, error)
}

var (
	_ Engine = (*postgres.Server)(nil)
	_ Engine = (*mysql.Server)(nil)
)

// Open picks the implementation for a server; it does not connect. program is the name that the server's admin sees in his
// list of sessions. It panics on an engine that connector.Parse and tenant.DecodeRecord let nobody make.
func Open(server connector.Server, program string) Engine {
	switch server.Engine {
	case connector.Postgres:
		return postgres.New(server, program)
	case connector.MySQL:
		return mysql.New(server, program)
	}
	panic(fmt.Sprintf("engine: no implementation for %q", server.Engine))
}

// Binding renders a record's active credential for other consumers, with the DSN as its uri.
func Binding(r *tenant.Record) (map[string]string, error) {
	dsn, err := Open(r.Server, "").DSN(r.Login(r.Active))
	if err != nil {
		return nil, err
	}
	return r.Binding(dsn), nil
}
