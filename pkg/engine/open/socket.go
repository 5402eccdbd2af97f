// SPDX-License-Identifier: Apache-2.0

package open

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine/mysql"
	"dbconnector/pkg/engine/postgres"
	"dbconnector/pkg/tenant"
)

// Socket is where a sidecar serves a control plane that holds no password.
type Socket struct {
	// Dir is the directory of the unix socket.
	Dir string
	// Address is on the loopback interface, and in place of a unix socket; empty for a unix socket.
	Address string
}

// socketUser stands in the DSN for a login, which the sidecar has.
const socketUser = "vcluster"

// Listen is where the sidecar listens for the clients of an engine. PostgreSQL's clients make the file's name themselves.
func (s Socket) Listen(engine dbserver.Engine) (network, address string) {
	switch {
	case s.Address != "":
		return "tcp", s.Address
	case engine == dbserver.Postgres:
		return "unix", path.Join(s.Dir, ".s.PGSQL.5432")
	}
	return "unix", path.Join(s.Dir, "mysql.sock")
}

// DSN is kine's endpoint for a record. It holds no secret, and is the same after each rotation.
func (s Socket) DSN(r *tenant.Record) (string, error) {
	network, address := s.Listen(r.Server.Engine)
	if r.Server.Engine == dbserver.Postgres {
		return postgres.SocketDSN(network, address, socketUser, r.Database), nil
	}
	return mysql.SocketDSN(network, address, socketUser, r.Database, false), nil
}

// Own says whether a data source that stands in a vCluster's config is this socket's, and in words what is wrong with one that only
// resembles it. dsn is what DSN gave; empty where the record is not known yet. On PostgreSQL the sidecar takes every name for the
// tenant's database, but for those that every server has; on MySQL it has to be the right one.
func (s Socket) Own(dataSource, dsn string) (own bool, conflict string) {
	if !strings.Contains(dataSource, "://"+socketUser+"@") {
		return false, ""
	}
	scheme, rest, _ := strings.Cut(dataSource, "://")
	switch scheme {
	case "postgres":
		name := path.Base(strings.SplitN(rest, "?", 2)[0])
		network, address := s.Listen(dbserver.Postgres)
		want := postgres.SocketDSN(network, address, socketUser, "NAME")
		switch {
		case !databaseName.MatchString(name) || slices.Contains(serversOwn, name) || dataSource != strings.Replace(want, "NAME", name, 1):
			return false, "resembles the data source of DBCONNECTOR_ADOPT=socket, which is " + want + ", with any NAME but postgres, template0 and template1"
		case strings.HasPrefix(dsn, "mysql:"):
			return false, "is PostgreSQL's, and the tenant's server is of another kind"
		}
		return true, ""
	case "mysql":
		network, address := s.Listen(dbserver.MySQL)
		name := strings.SplitN(rest[strings.LastIndex(strings.SplitN(rest, "?", 2)[0], "/")+1:], "?", 2)[0]
		plain, full := mysql.SocketDSN(network, address, socketUser, name, true), mysql.SocketDSN(network, address, socketUser, name, false)
		switch {
		case dataSource != plain && dataSource != full:
			return false, "resembles the data source of DBCONNECTOR_ADOPT=socket, which is " + mysql.SocketDSN(network, address, socketUser, "NAME", true) +
				", with the NAME of the tenant's database"
		case dsn != "" && full != dsn:
			return false, "names another database than the tenant's: write " + strings.SplitN(dsn, "?", 2)[0]
		}
		return true, ""
	}
	return false, ""
}

// serversOwn are databases that every PostgreSQL server has.
var serversOwn = []string{"postgres", "template0", "template1"}

// databaseName is what a name in a DSN may be that needs no encoding, and that kine, which writes it in lower case, does not change.
var databaseName = regexp.MustCompile(`^[a-z0-9_-]{1,63}$`)
