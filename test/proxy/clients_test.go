// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// client runs a command line client, with nothing in its environment but the path, a home without files, and environ.
func client(tb testing.TB, environ []string, name string, args ...string) string {
	tb.Helper()
	cmd, err := bed.Client(tb.Context(), name, args...)
	require.NoError(tb, err)
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + tb.TempDir(), "LC_ALL=C"}, environ...)
	out, err := cmd.Output()
	require.NoError(tb, err, "%s %s\n%s", name, strings.Join(args, " "), said.String())
	return string(out)
}

// restrict are the lines of a dump that have a key, another one each time. They are for psql alone.
var restrict = regexp.MustCompile(`(?m)^\\(un)?restrict .*\n`)

// TestSocketPostgresClients: PostgreSQL's own clients work on the socket without a password, and a dump is the one that is taken on the
// server.
func TestSocketPostgresClients(t *testing.T) {
	t.Parallel()
	server := rig.Server(t, bed.Postgres, "17")
	s := newSocket(t, server, nil)
	login := s.record.Login(tenant.A)
	socket := func(args ...string) []string {
		return append([]string{"--host=" + s.dir, "--username=vcluster"}, args...)
	}

	psql := func(input string) string {
		return client(t, nil, "psql", socket("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", "--command="+input, "anything")...)
	}
	assert.Equal(t, login.User+"|"+s.record.Database+"\n", psql("SELECT session_user, current_database()"))
	assert.Equal(t, "6\n", psql("CREATE TABLE numbers AS SELECT n FROM generate_series(1, 3) AS n; SELECT sum(n) FROM numbers"))
	assert.Equal(t, "1\n2\n3\n", psql(`\copy numbers TO STDOUT`))

	const clients, transactions = 8, 40
	bench := func(args ...string) string { return client(t, nil, "pgbench", socket(append(args, "anything")...)...) }
	bench("--initialize", "--quiet")
	for _, protocol := range []string{"simple", "extended", "prepared"} {
		for _, script := range []string{"tpcb-like", "select-only"} {
			said := bench("--no-vacuum", "--builtin="+script, "--protocol="+protocol, "--client="+strconv.Itoa(clients), "--jobs=2",
				"--transactions="+strconv.Itoa(transactions))
			assert.Contains(t, said, "number of transactions actually processed: 320/320\n", "%s, %s", protocol, script)
			assert.Contains(t, said, "number of failed transactions: 0 ", "%s, %s", protocol, script)
		}
	}
	assert.Equal(t, "960\n", psql("SELECT count(*) FROM pgbench_history"), "one line for each of the transactions that write")

	dump := func(environ []string, args ...string) string {
		return restrict.ReplaceAllString(client(t, environ, "pg_dump", args...), "")
	}
	through := dump(nil, socket("anything")...)
	direct := dump([]string{"PGPASSWORD=" + login.Password.Reveal()},
		"--host="+server.Host, "--port="+strconv.Itoa(server.Port), "--username="+login.User, s.record.Database)
	assert.Greater(t, len(direct), 1<<20, "the dump has the rows")
	assert.True(t, through == direct, "the dump through the socket is another one than the server's")
}

// taken are the lines of a dump that say when and on which host it was taken.
var taken = regexp.MustCompile(`(?m)^-- (Dump completed on|Host:) .*\n`)

// TestSocketMySQLClients: MariaDB's own clients work on the socket without a password, and a dump is the one that is taken on the server.
func TestSocketMySQLClients(t *testing.T) {
	t.Parallel()
	for _, m := range []int{0, 3} {
		t.Run(string(mysqls[m].engine), func(t *testing.T) {
			t.Parallel()
			server := rig.Server(t, mysqls[m].engine, mysqls[m].version)
			s := newSocket(t, server, nil)
			login := s.record.Login(tenant.A)
			ca := filepath.Join(t.TempDir(), "ca.crt")
			require.NoError(t, os.WriteFile(ca, server.CA, 0o600))
			socket := []string{"--socket=" + s.path, "--user=vcluster", "--skip-ssl"}
			direct := []string{"--host=" + server.Host, "--port=" + strconv.Itoa(server.Port), "--protocol=tcp", "--user=" + login.User, "--ssl-ca=" + ca}
			password := []string{"MYSQL_PWD=" + login.Password.Reveal()}

			query := func(input string) string {
				return client(t, nil, "mariadb", append(socket, "--batch", "--skip-column-names", "--execute="+input, s.record.Database)...)
			}
			assert.Equal(t, login.User+"@%\t"+s.record.Database+"\n", query("SELECT CURRENT_USER(), DATABASE()"))
			query("CREATE TABLE letters (n INT AUTO_INCREMENT PRIMARY KEY, data MEDIUMBLOB)")
			query("INSERT INTO letters (data) VALUES (REPEAT('\\0x', 1000000)), (NULL)")
			query("INSERT INTO letters (data) SELECT n FROM letters")
			assert.Equal(t, "1\t2000000\n2\tNULL\n3\t1\n4\t1\n", query("SELECT n, LENGTH(data) FROM letters ORDER BY n"))

			dump := func(environ []string, args ...string) string {
				args = append(args, "--single-transaction", "--hex-blob", "--no-tablespaces", s.record.Database)
				return taken.ReplaceAllString(client(t, environ, "mariadb-dump", args...), "")
			}
			through, want := dump(nil, socket...), dump(password, direct...)
			assert.Greater(t, len(want), 4_000_000, "the dump has the rows")
			assert.True(t, through == want, "the dump through the socket is another one than the server's")
		})
	}
}
