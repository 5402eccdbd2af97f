// SPDX-License-Identifier: Apache-2.0

package mysql

import (
	"errors"
	"maps"
	"strings"

	driver "github.com/go-sql-driver/mysql"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/tenant"
)

// scheme is what kine cuts off before it hands the rest to the driver.
const scheme = "mysql://"

// sessionSettings are what kine's sessions depend on and a server may have set otherwise for all (docs/failures.md F9, F10). The driver
// sends them in one SET right after the login, before the control plane's first statement, and after the server's init_connect. No
// privilege is needed for any of them.
//
// Some stand in comments that only those servers execute that know the variable: MySQL from 8.0.18 on lets any login set the
// increment, MariaDB skips comments that are for MySQL 8, and innodb_snapshot_isolation is on by default from MariaDB 11.6.2
// on, where kine's compaction fails with error 1020 beside any other writer.
func sessionSettings() map[string]string {
	return map[string]string{
		"autocommit": "1 /*!80018 , auto_increment_increment = 1 */ /*M!100500 , auto_increment_increment = 1 */" +
			" /*M!110602 , innodb_snapshot_isolation = 0 */",
		"completion_type":        "0",      // COMMIT begins no other transaction, and does not end the session
		"default_storage_engine": "InnoDB", // the others have no transactions
		"sql_big_selects":        "1",
		"sql_mode":               "'" + modes + "'", // a key that is too long is an error, and not cut off
		"sql_safe_updates":       "0",
		"sql_select_limit":       "18446744073709551615", // a list that ends early would be a list of deleted objects
		"unique_checks":          "1",
	}
}

// DSN renders kine's endpoint for a login, and reads it back in the way kine does (pkg/drivers/mysql: the driver's
// ParseDSN) before it is handed on. Nothing in it is percent-encoded, for nothing is decoded. Its error never contains the
// DSN.
//
// tls says what holds without a CA. Where there is one, it must be left out: ParseDSN turns it into TLS settings on the spot,
// and these outweigh the ones that kine makes of --ca-file afterwards. With tls=true kine would ask the system's roots, with
// tls=skip-verify nothing. A client that uses such a DSN without the CA is not downgraded to clear text but refused, for the
// account has REQUIRE SSL.
func DSN(server dbserver.Server, login tenant.Login) (string, error) {
	config := driver.NewConfig()
	config.User, config.Passwd, config.DBName = login.User, login.Password.Reveal(), login.Database
	config.Net, config.Addr = "tcp", server.Address()
	config.Params = sessionSettings()
	switch {
	case server.SSLMode == dbserver.Disable:
		config.TLSConfig = "false"
	case server.CA != "":
	case server.SSLMode == dbserver.Require:
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
		back.DBName != login.Database || back.TLSConfig != config.TLSConfig || !maps.Equal(back.Params, config.Params) || (server.CA != "" && back.TLS != nil) {
		return "", errors.New("rendering the DSN: it does not read back as it was written")
	}
	return dsn, nil
}

// SocketDSN renders kine's endpoint for a proxy beside it: a user without a password, and a unix socket's path or an address on the
// loopback interface. plain leaves out what kine's sessions depend on.
func SocketDSN(network, address, user, database string, plain bool) string {
	config := driver.NewConfig()
	config.User, config.Net, config.Addr, config.DBName = user, network, address, database
	if !plain {
		config.Params = sessionSettings()
	}
	return scheme + config.FormatDSN()
}
