// SPDX-License-Identifier: Apache-2.0

package mysql

import (
	"strings"
	"testing"

	driver "github.com/go-sql-driver/mysql"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/tenant"
)

// (F9, F10) What is set for a session, as the driver writes it.
const set = "autocommit=1+%2F%2A%2180018+%2C+auto_increment_increment+%3D+1+%2A%2F+%2F%2AM%21100500+%2C+auto_increment_increment+%3D+1+%2A%2F" +
	"+%2F%2AM%21110602+%2C+innodb_snapshot_isolation+%3D+0+%2A%2F&completion_type=0&default_storage_engine=InnoDB&sql_big_selects=1" +
	"&sql_mode=%27STRICT_ALL_TABLES%2CERROR_FOR_DIVISION_BY_ZERO%2CNO_ENGINE_SUBSTITUTION%27&sql_safe_updates=0" +
	"&sql_select_limit=18446744073709551615&unique_checks=1"

func TestDSNMySQL(t *testing.T) {
	t.Parallel()
	login := tenant.Login{User: "vcxa", Password: "aB3-_.~x", Database: "vcx"}
	for _, tc := range []struct {
		reason string
		server dbserver.Server
		want   string
	}{
		{"a name", dbserver.Server{Host: "db.example", Port: 3306, SSLMode: dbserver.VerifyFull}, "mysql://vcxa:aB3-_.~x@tcp(db.example:3306)/vcx?tls=true&" + set},
		{"an IPv4 address", dbserver.Server{Host: "192.0.2.7", Port: 1, SSLMode: dbserver.VerifyFull}, "mysql://vcxa:aB3-_.~x@tcp(192.0.2.7:1)/vcx?tls=true&" + set},
		{
			"an IPv6 address",
			dbserver.Server{Host: "2001:db8::1", Port: 65535, SSLMode: dbserver.VerifyFull},
			"mysql://vcxa:aB3-_.~x@tcp([2001:db8::1]:65535)/vcx?tls=true&" + set,
		},
		{
			"clear text, because the admin said so",
			dbserver.Server{Host: "db", Port: 3306, SSLMode: dbserver.Disable},
			"mysql://vcxa:aB3-_.~x@tcp(db:3306)/vcx?tls=false&" + set,
		},
		{
			"encrypted, not verified",
			dbserver.Server{Host: "db", Port: 3306, SSLMode: dbserver.Require},
			"mysql://vcxa:aB3-_.~x@tcp(db:3306)/vcx?tls=skip-verify&" + set,
		},
		{
			"the driver does not know verify-ca: upwards",
			dbserver.Server{Host: "db", Port: 3306, SSLMode: dbserver.VerifyCA},
			"mysql://vcxa:aB3-_.~x@tcp(db:3306)/vcx?tls=true&" + set,
		},
		{
			"kine's --ca-file decides, and would not if anything stood here",
			dbserver.Server{Host: "db", Port: 3306, SSLMode: dbserver.VerifyFull, CA: "PEM"},
			"mysql://vcxa:aB3-_.~x@tcp(db:3306)/vcx?" + set,
		},
		{"a mode that does not exist is not clear text", dbserver.Server{Host: "db", Port: 3306}, "mysql://vcxa:aB3-_.~x@tcp(db:3306)/vcx?tls=true&" + set},
	} {
		got, err := DSN(tc.server, login)
		if err != nil || got != tc.want {
			t.Errorf("%s: got %q, %v, want %q", tc.reason, got, err, tc.want)
		}
	}
}

// FuzzDSNMySQL renders and reads back as kine does: it cuts off the scheme and gives the rest to the driver.
func FuzzDSNMySQL(f *testing.F) {
	f.Add("db.example", uint16(3306), "vcxa", "aB3-_.~x", "vcx")
	f.Add("2001:db8::1", uint16(1), "u", "p", "d")
	f.Add("h", uint16(1), "u:v", "p@/)", "d?x=y")
	f.Add("h)", uint16(1), "", "", "%2f")
	f.Fuzz(func(t *testing.T, host string, port uint16, user, password, database string) {
		server := dbserver.Server{Host: host, Port: port, SSLMode: dbserver.VerifyFull}
		got, err := DSN(server, tenant.Login{User: user, Password: dbserver.Password(password), Database: database})
		if err != nil {
			if len(password) > 8 && strings.Contains(err.Error(), password) {
				t.Errorf("the error repeats the password")
			}
			return
		}
		config, err := driver.ParseDSN(strings.TrimPrefix(got, "mysql://"))
		if err != nil {
			t.Fatalf("kine could not read %q: %v", got, err)
		}
		if config.Addr != server.Address() || config.User != user || config.Passwd != password || config.DBName != database ||
			config.TLSConfig != "true" || config.Net != "tcp" || config.AllowFallbackToPlaintext {
			t.Errorf("%q reads back as %+v", got, config)
		}
	})
}

// Whatever password and names we make, there is a DSN.
func TestDSNOfOursMySQL(t *testing.T) {
	t.Parallel()
	for range 1000 {
		names := tenant.NamesOf(string(tenant.NewPassword()))
		for _, host := range []string{"db.example", "192.0.2.7", "2001:db8::1", "xn--bcher-kva.example."} {
			server := dbserver.Server{Host: host, Port: 3306, SSLMode: dbserver.Require}
			if _, err := DSN(server, tenant.Login{User: names.User(tenant.A), Password: tenant.NewPassword(), Database: names.Database}); err != nil {
				t.Fatal(err)
			}
		}
	}
}
