// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"database/sql"
	"flag"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Verbose() {
		Progress = os.Stderr
	}
	os.Exit(m.Run())
}

// login logs in and returns the server's version and whether the connection is encrypted.
func login(tb testing.TB, s *Server, user, password string) (version, cipher string) {
	tb.Helper()
	db, err := s.Open(user, password, "")
	if err != nil {
		tb.Fatal(err)
	}
	defer db.Close()
	if s.Engine == Postgres {
		err = db.QueryRowContext(tb.Context(), "SELECT current_setting('server_version'), cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&version, &cipher)
	} else {
		var name string
		if err = db.QueryRowContext(tb.Context(), "SELECT VERSION()").Scan(&version); err == nil {
			err = db.QueryRowContext(tb.Context(), "SHOW STATUS LIKE 'Ssl_cipher'").Scan(&name, &cipher)
		}
	}
	if err != nil {
		tb.Fatalf("logging in as %s: %v", user, err)
	}
	return version, cipher
}

func TestServers(t *testing.T) {
	for _, v := range Versions {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			s := NewServer(t, v.Engine, v.Version, Options{})
			t.Logf("started %s in %s", s.FullVersion, time.Since(start).Round(time.Millisecond))
			if !strings.HasPrefix(s.FullVersion, v.Version+".") {
				t.Errorf("got version %s, want %s", s.FullVersion, v.Version)
			}
			if version, cipher := login(t, s, s.AdminUser, s.AdminPassword); version == "" || cipher == "" {
				t.Errorf("superuser: got version %q, cipher %q", version, cipher)
			}
			user, password, err := s.CloudAdmin(t.Context(), "cloudadmin")
			if err != nil {
				t.Fatal(err)
			}
			if version, cipher := login(t, s, user, password); version == "" || cipher == "" {
				t.Errorf("cloud admin: got version %q, cipher %q", version, cipher)
			}
			checkCloudAdmin(t, s, user, password)
		})
	}
}

// checkCloudAdmin checks what a cloud admin may and may not do.
func checkCloudAdmin(t *testing.T, s *Server, user, password string) {
	t.Helper()
	db, err := s.Open(user, password, "")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	may := map[bool][]string{
		true:  {"CREATE DATABASE d", "CREATE ROLE r"},
		false: {"ALTER SYSTEM SET work_mem = '8MB'", "CREATE ROLE r2 SUPERUSER", "SELECT * FROM pg_authid"},
	}
	switch s.Engine {
	case MySQL:
		may[true] = []string{"CREATE DATABASE d", "CREATE USER u", "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX ON d.* TO u", "SELECT * FROM mysql.user"}
		may[false] = []string{"SET GLOBAL max_connections = 7", "DELETE FROM mysql.user", "CREATE TABLE mysql.t (i int)"}
	case MariaDB:
		may[true] = []string{"CREATE DATABASE d", "CREATE USER u", "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX ON d.* TO u"}
		may[false] = []string{"SET GLOBAL max_connections = 7"}
	}
	for want, statements := range may {
		for _, statement := range statements {
			if _, err := db.ExecContext(t.Context(), statement); (err == nil) != want {
				t.Errorf("cloud admin: %s: got %v, want success %t", statement, err, want)
			}
		}
	}
}

var (
	_ = context.Background
	_ sql.NullString
)
