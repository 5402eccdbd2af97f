// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"errors"
	"net/url"
	"path"
	"strings"

	"github.com/jackc/pgx/v5"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/tenant"
)

// DSN renders kine's endpoint for a login, and reads it back in the way kine does (pkg/drivers/pgsql: net/url, the path in
// lower case, then pgx) before it is handed on. Its error never contains the DSN.
//
// The CA is not named in it: kine takes it by --ca-file, and a path would tie the DSN to one container's file system.
func DSN(server dbserver.Server, login tenant.Login) (string, error) {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(login.User, login.Password.Reveal()),
		Host:     server.Address(),
		Path:     "/" + login.Database,
		RawQuery: url.Values{"sslmode": {string(server.SSLMode)}}.Encode(),
	}
	dsn := u.String()

	back, err := url.Parse(dsn)
	if err != nil {
		return "", errors.New("rendering the DSN: net/url does not read it")
	}
	back.Path = strings.ToLower(back.Path)
	// Verification needs files that may not be here; what is compared does not depend on it.
	back.RawQuery = "sslmode=disable"
	config, err := pgx.ParseConfig(back.String())
	if err != nil {
		return "", errors.New("rendering the DSN: pgx does not read it")
	}
	if config.Host != server.Host || config.Port != server.Port || config.User != login.User ||
		config.Password != login.Password.Reveal() || config.Database != login.Database {
		return "", errors.New("rendering the DSN: it does not read back as it was written")
	}
	return dsn, nil
}

// SocketDSN renders kine's endpoint for a proxy beside it: a user without a password, and a unix socket's directory or an address on the
// loopback interface.
func SocketDSN(network, address, user, database string) string {
	u := url.URL{Scheme: "postgres", User: url.User(user), Path: "/" + database, RawQuery: "sslmode=disable"}
	if network == "unix" {
		u.RawQuery = "host=" + path.Dir(address) + "&sslmode=disable"
	} else {
		u.Host = address
	}
	return u.String()
}
