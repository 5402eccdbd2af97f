// SPDX-License-Identifier: Apache-2.0

package mysql

import (
	"errors"
	"strings"

	driver "github.com/go-sql-driver/mysql"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/tenant"
)

// scheme is what kine cuts off before it hands the rest to the driver.
const scheme = "mysql://"

// DSN renders kine's endpoint for a login, and reads it back in the way kine does (pkg/drivers/mysql: the driver's
// ParseDSN) before anybody sees it. Nothing in it is percent-encoded, for nothing is decoded. Its error never contains the
// DSN.
//
// tls says what holds without a CA. Where there is one, it must be left out: ParseDSN turns it into TLS settings on the spot,
// and these outweigh the ones that kine makes of --ca-file afterwards. With tls=true kine would ask the system's roots, with
// tls=skip-verify nobody. Whoever uses such a DSN without the CA is not downgraded to clear text but refused, for the
// account has REQUIRE SSL.
func DSN(server connector.Server, login tenant.Login) (string, error) {
	config := driver.NewConfig()
	config.User, config.Passwd, config.DBName = login.User, login.Password.Reveal(), login.Database
	config.Net, config.Addr = "tcp", server.Address()
	switch {
	case server.SSLMode == connector.Disable:
		config.TLSConfig = "false"
	case server.CA != "":
	case server.SSLMode == connector.Require:
		config.TLSConfig = "skip-verify"
	default:
		config.TLSConfig = "true"
	}
	dsn := scheme + config.FormatDSN()

	back, err := driver.ParseDSN(strings.TrimPrefix(dsn, scheme))
	if err != nil {
		return "", errors.New("rendering the DSN: the MySQL driver does not read it")
	}
	if back.Addr != server.Address() || back.User != login.User || back.Passwd != login.Password.Reveal() ||
		back.DBName != login.Database || back.TLSConfig != config.TLSConfig || (server.CA != "" && back.TLS != nil) {
		return "", errors.New("rendering the DSN: it does not read back as it was written")
	}
	return dsn, nil
}
