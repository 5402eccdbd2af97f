// SPDX-License-Identifier: Apache-2.0

package drivers_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// mysql are the tests of go-sql-driver, which are one package. The socket offers no compression: what asks for it there goes without, as the
// protocol has it.
var mysql = suite{
	module:   "github.com/go-sql-driver/mysql",
	packages: []string{"."},
	options:  bed.Options{MaxConnections: most, Settings: map[string]string{"local-infile": "1"}},
	prepare: func(t *testing.T, server *bed.Server, r *tenant.Record) {
		t.Helper()
		// The tests choose for each session whether it is encrypted, open more of them than a tenant has, and make tables and procedures as
		// the database's owner does elsewhere.
		user := r.Login(r.Active).User
		require.NoError(t, server.Exec(t.Context(), fmt.Sprintf("ALTER USER '%s'@'%%' REQUIRE NONE WITH MAX_USER_CONNECTIONS 0", user),
			fmt.Sprintf("GRANT ALL ON `%s`.* TO '%s'@'%%'", r.Database, user)))
	},
	direct: func(t *testing.T, server *bed.Server, r *tenant.Record) []string {
		t.Helper()
		login := r.Login(r.Active)
		return []string{
			"MYSQL_TEST_PROT=tcp", "MYSQL_TEST_ADDR=" + server.Addr(), "MYSQL_TEST_USER=" + login.User, "MYSQL_TEST_PASS=" + login.Password.Reveal(),
			"MYSQL_TEST_DBNAME=" + r.Database,
		}
	},
	socket: func(path string, r *tenant.Record) []string {
		// Without a name the tests would say root. There is no password.
		return []string{"MYSQL_TEST_PROT=unix", "MYSQL_TEST_ADDR=" + path, "MYSQL_TEST_USER=vcluster", "MYSQL_TEST_DBNAME=" + r.Database}
	},
	without: []exception{{"TestConnectorReturnsTimeout", "it connects to an address on the internet"}},
	apart: []exception{
		{`[.]:TestTLS(/.*)?`, "it wants its session encrypted; on the socket there is no TLS"},
		{`[.]:TestIssue1567(/.*)?`, "as above: it breaks off logins over TLS"},
		{`[.]:TestUnixSocketAuthFail`, "it wants a wrong password refused; on the socket there is none to be wrong"},
		{`[.]:TestLoadData(/.*)?`, "the socket offers no LOAD DATA LOCAL"},
	},
}

// mariadb are the same on MariaDB.
var mariadb = func() suite {
	s := mysql
	s.apart = append(slices.Clip(s.apart), exception{
		`[.]:TestLongData(/compress)?`, "MariaDB itself refuses the longest packet when it is compressed; the socket offers no compression",
	})
	return s
}()
