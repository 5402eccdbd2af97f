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
// tls says what holds without a CA; where there is one, kine takes it by --ca-file and verifies the server in full, whatever
// stands here.
func DSN(server connector.Server, login tenant.Login) (string, error) {
	config := driver.NewConfig()
	config.User, config.Passwd, config.DBName = login.User, login.Password.Reveal(), login.Database
	config.Net, config.Addr = "tcp", server.Address()
	switch server.SSLMode {
	case connector.Disable:
		config.TLSConfig = "false"
	case connector.Require:
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
		back.DBName != login.Database || back.TLSConfig != config.TLSConfig {
		return "", errors.New("rendering the DSN: it does not read back as it was written")
	}
	return dsn, nil
}
