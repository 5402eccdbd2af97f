// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/tenant"
)

// kine reads a DSN as kine does (pkg/drivers/pgsql, prepareDSN): the part after "postgres://" goes through net/url, the path
// is lower-cased, the query rebuilt with the files of its flags, and pgx reads the result.
func kine(endpoint string) (*pgx.ConnConfig, url.Values, error) {
	u, err := url.Parse("postgres://" + strings.TrimPrefix(endpoint, "postgres://"))
	if err != nil {
		return nil, nil, err
	}
	u.Path = strings.ToLower(u.Path)
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, nil, err
	}
	u.RawQuery = query.Encode()
	config, err := pgx.ParseConfig(u.String())
	return config, query, err
}

func TestDSNPostgres(t *testing.T) {
	t.Parallel()
	login := tenant.Login{User: "vcxa", Password: "aB3-_.~x", Database: "vcx"}
	for _, tc := range []struct {
		reason string
		server dbserver.Server
		want   string
	}{
		{"a name", dbserver.Server{Host: "db.example", Port: 5432, SSLMode: dbserver.VerifyFull}, "postgres://vcxa:aB3-_.~x@db.example:5432/vcx?sslmode=verify-full"},
		{
			"an IPv4 address",
			dbserver.Server{Host: "192.0.2.7", Port: 1, SSLMode: dbserver.VerifyFull},
			"postgres://vcxa:aB3-_.~x@192.0.2.7:1/vcx?sslmode=verify-full",
		},
		{
			"an IPv6 address",
			dbserver.Server{Host: "2001:db8::1", Port: 65535, SSLMode: dbserver.VerifyCA},
			"postgres://vcxa:aB3-_.~x@[2001:db8::1]:65535/vcx?sslmode=verify-ca",
		},
		{
			"clear text, because the admin said so",
			dbserver.Server{Host: "db", Port: 5432, SSLMode: dbserver.Disable},
			"postgres://vcxa:aB3-_.~x@db:5432/vcx?sslmode=disable",
		},
		{"encrypted, not verified", dbserver.Server{Host: "db", Port: 5432, SSLMode: dbserver.Require}, "postgres://vcxa:aB3-_.~x@db:5432/vcx?sslmode=require"},
	} {
		got, err := DSN(tc.server, login)
		if err != nil || got != tc.want {
			t.Errorf("%s: got %q, %v, want %q", tc.reason, got, err, tc.want)
			continue
		}
		config, query, err := kine(got)
		if err != nil {
			t.Errorf("%s: kine does not read it: %v", tc.reason, err)
			continue
		}
		if config.Host != tc.server.Host || query.Get("sslmode") != string(tc.server.SSLMode) ||
			(config.TLSConfig == nil) != (tc.server.SSLMode == dbserver.Disable) {
			t.Errorf("%s: kine reads host %q, mode %q, TLS %t", tc.reason, config.Host, query.Get("sslmode"), config.TLSConfig != nil)
		}
		for _, fallback := range config.Fallbacks {
			if fallback.TLSConfig == nil && tc.server.SSLMode != dbserver.Disable {
				t.Errorf("%s: kine would fall back to clear text (B9)", tc.reason)
			}
		}
	}
}

// B43: kine looks for the lower-case name, so a DSN with another is no DSN.
func TestDSNOfMixedCase(t *testing.T) {
	t.Parallel()
	got, err := DSN(dbserver.Server{Host: "db", Port: 1, SSLMode: dbserver.Require}, tenant.Login{User: "u", Password: "secret-pw", Database: "Vcx"})
	if err == nil {
		t.Fatalf("got %q", got)
	}
	if strings.Contains(err.Error(), "secret-pw") {
		t.Errorf("the error holds the password (B20): %v", err)
	}
}

func FuzzDSNPostgres(f *testing.F) {
	f.Add("db.example", uint16(5432), "vcxa", "aB3-_.~x", "vcx")
	f.Add("2001:db8::1", uint16(1), "u", "p", "d")
	f.Add("h", uint16(1), "u:v", "p@/?#%", "d?x=y")
	f.Add("/tmp", uint16(1), "", "", "%2f")
	f.Fuzz(func(t *testing.T, host string, port uint16, user, password, database string) {
		server := dbserver.Server{Host: host, Port: port, SSLMode: dbserver.Require}
		got, err := DSN(server, tenant.Login{User: user, Password: dbserver.Password(password), Database: database})
		if err != nil {
			if len(password) > 8 && strings.Contains(err.Error(), password) {
				t.Error("the error repeats the password")
			}
			return
		}
		config, query, err := kine(got)
		if err != nil {
			t.Fatalf("kine could not read %q: %v", got, err)
		}
		if config.Host != host || config.Port != port || config.User != user || config.Password != password ||
			config.Database != database || query.Get("sslmode") != "require" || config.TLSConfig == nil {
			t.Errorf("%q reads back as host %q, port %d, user %q, password %q, database %q, %v", got, config.Host, config.Port, config.User,
				config.Password, config.Database, query)
		}
	})
}

// Whatever password and names we make, there is a DSN.
func TestDSNOfOursPostgres(t *testing.T) {
	t.Parallel()
	for range 1000 {
		names := tenant.NamesOf(string(tenant.NewPassword()))
		for _, host := range []string{"db.example", "192.0.2.7", "2001:db8::1", "xn--bcher-kva.example."} {
			server := dbserver.Server{Host: host, Port: 5432, SSLMode: dbserver.Require}
			if _, err := DSN(server, tenant.Login{User: names.User(tenant.A), Password: tenant.NewPassword(), Database: names.Database}); err != nil {
				t.Fatal(err)
			}
		}
	}
}
