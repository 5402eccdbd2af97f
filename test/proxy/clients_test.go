// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"bytes"
	"os"
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
