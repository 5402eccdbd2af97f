// SPDX-License-Identifier: Apache-2.0

package open

import (
	"strings"
	"testing"

	driver "github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/tenant"
)

// TestSocketDSN: the drivers read the data source of a socket as the sidecar means it, and it is accepted where it stands in a config.
func TestSocketDSN(t *testing.T) {
	t.Parallel()
	record := func(engine dbserver.Engine) *tenant.Record {
		return tenant.NewRecord("uid", "ns", "vc", dbserver.Server{Engine: engine, Host: "db.example", Port: 1, SSLMode: dbserver.Require}, 10)
	}
	pg, my := record(dbserver.Postgres), record(dbserver.MySQL)
	unix, loopback := Socket{Dir: "/var/run/dbconnector"}, Socket{Address: "127.0.0.1:15432"}
	for _, s := range []Socket{unix, loopback} {
		for _, r := range []*tenant.Record{pg, my} {
			dsn, err := s.DSN(r)
			if own, conflict := s.Own(dsn, dsn); err != nil || !own || conflict != "" {
				t.Errorf("%s: own %t, %q, %v", dsn, own, conflict, err)
			}
			for slot := range r.Slots {
				if strings.Contains(dsn, r.Slots[slot].Password.Reveal()) || strings.Contains(dsn, r.Server.Host) {
					t.Errorf("%s tells more than it must", dsn)
				}
			}
			network, address := s.Listen(r.Server.Engine)
			if r == pg {
				config, err := pgx.ParseConfig(dsn)
				if err != nil || config.TLSConfig != nil || config.Database != r.Database || config.User != socketUser {
					t.Fatalf("pgx reads %s as %+v, %v", dsn, config, err)
				}
				if s == unix && (config.Host != "/var/run/dbconnector" || address != "/var/run/dbconnector/.s.PGSQL.5432") ||
					s == loopback && (config.Host != "127.0.0.1" || config.Port != 15432) {
					t.Errorf("pgx reads %s as %s:%d, and the sidecar listens on %s", dsn, config.Host, config.Port, address)
				}
				continue
			}
			config, err := driver.ParseDSN(strings.TrimPrefix(dsn, "mysql://"))
			if err != nil || config.Net != network || config.Addr != address || config.DBName != r.Database || config.Passwd != "" || config.Params["sql_mode"] == "" {
				t.Errorf("the driver reads %s as %+v, %v", dsn, config, err)
			}
		}
	}
	if network, address := unix.Listen(dbserver.MySQL); network != "unix" || address != "/var/run/dbconnector/mysql.sock" {
		t.Errorf("got %s %s", network, address)
	}
}

// TestSocketOwn: what else may stand in a config, and what is said of it.
func TestSocketOwn(t *testing.T) {
	t.Parallel()
	s := Socket{Dir: "/run/d"}
	const real = "mysql://vcluster@unix(/run/d/mysql.sock)/vcabc"
	for name, test := range map[string]struct {
		source, dsn string
		own         bool
		conflict    string
	}{
		"any name":           {"postgres://vcluster@/state?host=/run/d&sslmode=disable", "postgres://x", true, ""},
		"no name yet":        {"mysql://vcluster@unix(/run/d/mysql.sock)/vcabc", "", true, ""},
		"another directory":  {"postgres://vcluster@/state?host=/run/e&sslmode=disable", "", false, "host=/run/d&sslmode=disable"},
		"maintenance":        {"postgres://vcluster@/postgres?host=/run/d&sslmode=disable", "", false, "any NAME but postgres"},
		"upper case":         {"postgres://vcluster@/State?host=/run/d&sslmode=disable", "", false, "resembles"},
		"no name":            {"postgres://vcluster@/?host=/run/d&sslmode=disable", "", false, "resembles"},
		"an option more":     {"postgres://vcluster@/state?host=/run/d&sslmode=disable&x=1", "", false, "resembles"},
		"a server":           {"postgres://vcluster@db.example/state?sslmode=disable", "", false, "resembles"},
		"another's database": {"mysql://vcluster@unix(/run/d/mysql.sock)/vcxyz", real + "?a=1", false, "names another database than the tenant's: write " + real},
		"no database":        {"mysql://vcluster@unix(/run/d/mysql.sock)/", real, false, "names another database"},
		"another engine":     {"postgres://vcluster@/state?host=/run/d&sslmode=disable", real, false, "another kind"},
		"another user":       {"postgres://admin:secret@db.example/x", "", false, ""},
		"another scheme":     {"sqlite://vcluster@x", "", false, ""},
		"nothing":            {"", "", false, ""},
	} {
		own, conflict := s.Own(test.source, test.dsn)
		if own != test.own || !strings.Contains(conflict, test.conflict) || test.conflict == "" && conflict != "" {
			t.Errorf("%s: own %t, %q; want %t, %q", name, own, conflict, test.own, test.conflict)
		}
	}
}
