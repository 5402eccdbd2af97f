// SPDX-License-Identifier: Apache-2.0

// Package open is the one switch over the engines.
package open

import (
	"fmt"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/engine/mysql"
	"dbconnector/pkg/engine/postgres"
	"dbconnector/pkg/tenant"
)

// Engine picks the implementation for a server; it does not connect. program is the name that the server's admin sees in the
// list of sessions. It panics on an engine that connector.Parse and tenant.DecodeRecord let no caller make.
func Engine(server dbserver.Server, program string) engine.Engine {
	switch server.Engine {
	case dbserver.Postgres:
		return postgres.New(server, program)
	case dbserver.MySQL:
		return mysql.New(server, program)
	}
	panic(fmt.Sprintf("open: no implementation for %q", server.Engine))
}

// DSN is kine's endpoint for a record's active login.
func DSN(r *tenant.Record) (string, error) { return Engine(r.Server, "").DSN(r.Login(r.Active)) }
