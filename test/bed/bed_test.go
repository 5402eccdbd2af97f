// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// roleVariable makes the test program play a role, for tests that take several processes.
const roleVariable = "DBCONNECTOR_BED_ROLE"

var roles = map[string]func(context.Context) error{
	"fetch": fetchOnce,
	"serve": serveUntilKilled,
}

func play(tb testing.TB, role string, env ...string) *exec.Cmd {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), os.Args[0])
	cmd.Env = append(append(os.Environ(), roleVariable+"="+role), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := roles[role](context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
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
	require.NoError(tb, err)
	defer func() { _ = db.Close() }()
	if s.Engine == Postgres {
		err = db.QueryRowContext(tb.Context(),
			"SELECT current_setting('server_version'), cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&version, &cipher)
	} else {
		var name string
		if err = db.QueryRowContext(tb.Context(), "SELECT VERSION()").Scan(&version); err == nil {
			err = db.QueryRowContext(tb.Context(), "SHOW STATUS LIKE 'Ssl_cipher'").Scan(&name, &cipher)
		}
	}
	require.NoErrorf(tb, err, "logging in as %s", user)
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
			require.NoError(t, err)
			if version, cipher := login(t, s, user, password); version == "" || cipher == "" {
				t.Errorf("cloud admin: got version %q, cipher %q", version, cipher)
			}
			checkCloudAdmin(t, s, user, password)
		})
	}
}

// checkCloudAdmin checks the rights that a cloud admin has and has not.
func checkCloudAdmin(t *testing.T, s *Server, user, password string) {
	t.Helper()
	db, err := s.Open(user, password, "")
	require.NoError(t, err)
	defer func() { _ = db.Close() }()
	may := map[bool][]string{
		true:  {"CREATE DATABASE d", "CREATE ROLE r"},
		false: {"ALTER SYSTEM SET work_mem = '8MB'", "CREATE ROLE r2 SUPERUSER", "SELECT * FROM pg_authid"},
	}
	switch s.Engine {
	case MySQL:
		may[true] = []string{
			"CREATE DATABASE d",
			"CREATE USER u",
			"GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX ON d.* TO u",
			"SELECT * FROM mysql.user",
		}
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

// latest are the newest server of each engine.
var latest = []Version{
	{Engine: Postgres, Version: "18"},
	{Engine: MariaDB, Version: "11.8"},
	{Engine: MySQL, Version: "9.7"},
}

func eachEngine(t *testing.T, test func(*testing.T, Version)) {
	t.Helper()
	for _, v := range latest {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			test(t, v)
		})
	}
}

func TestServerCrashes(t *testing.T) {
	eachEngine(t, func(t *testing.T, v Version) {
		s := NewServer(t, v.Engine, v.Version, Options{})
		require.NoError(t, s.Exec(t.Context(), "CREATE DATABASE d"))
		require.NoError(t, s.ExecIn(t.Context(), "d", "CREATE TABLE kept (i int)", "INSERT INTO kept VALUES (7)"))
		db, err := s.Admin("d") // a session, so that PostgreSQL has a backend to kill
		require.NoError(t, err)
		defer func() { _ = db.Close() }()
		require.NoError(t, db.PingContext(t.Context()))

		require.NoError(t, s.Pause())
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		assert.Error(t, db.PingContext(ctx), "a paused server answered on an open connection")
		assert.Error(t, s.Exec(ctx, "SELECT 1"), "a paused server answered on a new connection")
		require.NoError(t, s.Resume())
		assert.NoError(t, s.Exec(t.Context(), "SELECT 1"), "after Resume")

		require.NoError(t, s.Kill())
		assert.Error(t, s.Exec(t.Context(), "SELECT 1"), "a killed server answered")
		require.NoError(t, s.Restart(t.Context()))
		if got, err := s.Query(t.Context(), "d", "SELECT i FROM kept"); err != nil || got != "7" {
			t.Errorf("after Kill and Restart: got %q, %v", got, err)
		}
		require.NoError(t, s.Halt(t.Context()))
		require.NoError(t, s.Restart(t.Context()))
	})
}

func TestServerTLS(t *testing.T) {
	eachEngine(t, func(t *testing.T, v Version) {
		ca, err := Authority()
		require.NoError(t, err)
		other, err := NewCA()
		require.NoError(t, err)
		certs := map[string]struct {
			ca      *CA
			request Request
		}{
			"expired":    {ca, Request{NotAfter: time.Now().Add(-time.Hour)}},
			"wrong name": {ca, Request{Hosts: []string{"db.example"}}},
			"other CA":   {other, Request{}},
		}
		for name, c := range certs {
			cert, err := c.ca.Issue(c.request)
			require.NoError(t, err)
			s := NewServer(t, v.Engine, v.Version, Options{Cert: cert})
			assert.Errorf(t, s.Exec(t.Context(), "SELECT 1"), "%s: a client that verifies got in", name)
		}

		s := NewServer(t, v.Engine, v.Version, Options{RequireTLS: true})
		assert.NoError(t, s.Exec(t.Context(), "SELECT 1"), "TLS required")
		plain := &Server{Engine: s.Engine, Host: s.Host, Port: s.Port, AdminUser: s.AdminUser, AdminPassword: s.AdminPassword, plaintext: true}
		assert.Error(t, plain.Exec(t.Context(), "SELECT 1"), "TLS required: got in without")

		s = NewServer(t, v.Engine, v.Version, Options{NoTLS: true, IPv6: true, MaxConnections: 20})
		assert.NoError(t, s.Exec(t.Context(), "SELECT 1"), "no TLS")
		secret := &Server{Engine: s.Engine, Host: s.Host, Port: s.Port, AdminUser: s.AdminUser, AdminPassword: s.AdminPassword, CA: ca.PEM}
		assert.Error(t, secret.Exec(t.Context(), "SELECT 1"), "no TLS: got in with TLS")
		s.Host = "::1"
		assert.NoError(t, s.Exec(t.Context(), "SELECT 1"), "IPv6")
		query := "SELECT @@max_connections"
		if v.Engine == Postgres {
			query = "SHOW max_connections"
		}
		if got, err := s.Query(t.Context(), "", query); err != nil || got != "20" {
			t.Errorf("max connections: got %q, %v", got, err)
		}
	})
}

func TestCounts(t *testing.T) {
	for _, v := range Versions {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			s := NewServer(t, v.Engine, v.Version, Options{LogStatements: true})
			count := func() (connections, statements int) {
				c, err1 := s.Connections()
				q, err2 := s.Statements()
				require.NoError(t, errors.Join(err1, err2))
				return c, q
			}
			c0, q0 := count()
			require.NoError(t, s.Exec(t.Context(), "SELECT 1", "SELECT 2"))
			db, err := s.Open(s.AdminUser, "wrong", "")
			require.NoError(t, err)
			defer func() { _ = db.Close() }()
			require.Error(t, db.PingContext(t.Context()), "logged in with a wrong password")
			Eventually(t, 5*time.Second, func(context.Context) error {
				c, q := count()
				if c-c0 != 2 || q-q0 != 2 {
					return fmt.Errorf("got %d connections and %d statements, want 2 and 2", c-c0, q-q0)
				}
				return nil
			})
		})
	}
}

// echo starts a server that answers each line with itself.
func echo(tb testing.TB) string {
	tb.Helper()
	l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					_, _ = fmt.Fprintln(conn, lines.Text())
				}
			}()
		}
	}()
	return l.Addr().String()
}

type lineClient struct {
	net.Conn
	r *bufio.Reader
}

func dial(tb testing.TB, addr string) *lineClient {
	tb.Helper()
	conn, err := new(net.Dialer).DialContext(tb.Context(), "tcp", addr)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = conn.Close() })
	return &lineClient{conn, bufio.NewReader(conn)}
}

// ask sends a line and returns the answer, which comes in time on a busy machine, too.
func (c *lineClient) ask(line string) (string, error) { return c.within(10*time.Second, line) }

// askInVain sends a line that is held up.
func (c *lineClient) askInVain(line string) (string, error) {
	return c.within(500*time.Millisecond, line)
}

func (c *lineClient) within(patience time.Duration, line string) (string, error) {
	if _, err := fmt.Fprintln(c, line); err != nil {
		return "", err
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	answer, err := c.r.ReadString('\n')
	return strings.TrimSpace(answer), err
}

func TestProxy(t *testing.T) {
	t.Parallel()
	p := NewProxy(t, echo(t))
	c := dial(t, p.Addr())
	for i := range 3 {
		want := strconv.Itoa(i)
		if got, err := c.ask(want); got != want || err != nil {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	if c, f := p.Connections(), p.Flights(); c != 1 || f != 3 {
		t.Errorf("got %d connections and %d flights, want 1 and 3", c, f)
	}

	p.BlackHole()
	if got, err := c.askInVain("held"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("black hole: got %q, %v", got, err)
	}
	if got, err := dial(t, p.Addr()).askInVain("held, too"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("black hole, new connection: got %q, %v", got, err)
	}
	p.Pass()
	if got, err := c.ask("late"); got != "held" || err != nil {
		t.Errorf("after black hole: got %q, %v, want what was held up", got, err)
	}

	p.Refuse()
	if conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("refuse: got %v, %v", conn, err)
	}
	if got, err := c.ask("still"); got != "late" || err != nil {
		t.Errorf("refuse: the open connection got %q, %v", got, err)
	}
	require.NoError(t, p.Accept())
	again := dial(t, p.Addr())
	if got, err := again.ask("again"); got != "again" || err != nil {
		t.Errorf("after refusing: got %q, %v", got, err)
	}

	p.Cut()
	if got, err := again.ask("gone"); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("cut: got %q, %v, want an ended connection", got, err)
	}
}

func TestProxyKillAfter(t *testing.T) {
	t.Parallel()
	p := NewProxy(t, echo(t))
	c := dial(t, p.Addr())
	var called atomic.Int32
	p.KillAfter(2, func() {
		called.Add(1)
		p.Cut()
	})
	if got, err := c.ask("first"); got != "first" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := c.ask("second"); got != "" || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %q, %v, want an ended connection and no answer", got, err)
	}
	if n := called.Load(); n != 1 {
		t.Errorf("called %d times, want once", n)
	}
	if got, err := dial(t, p.Addr()).ask("third"); got != "third" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestProxyIntercept: the interceptor hears each question once, may answer it, may drop it before the server hears it, and learns of each
// answer before the client does, also where that is the end of the connection, in order or not.
func TestProxyIntercept(t *testing.T) {
	t.Parallel()
	var heard atomic.Int64 // by the server
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					heard.Add(1)
					switch lines.Text() {
					case "end":
						return
					case "reset":
						_ = conn.(*net.TCPConn).SetLinger(0) //nolint:forcetypeassert // it is one
						return
					}
					_, _ = fmt.Fprintln(conn, lines.Text())
				}
			}()
		}
	}()
	p := NewProxy(t, l.Addr().String())
	answers := make(chan string, 10)
	p.Intercept(func(q Question) Reply {
		asked := strings.TrimSpace(string(q.Data))
		switch asked {
		case "forbidden":
			return Reply{Instead: []byte("no\n")}
		case "drop":
			return Reply{Drop: true}
		}
		return Reply{Answered: func() bool {
			answers <- asked
			return asked != "hide"
		}}
	})
	for _, test := range []struct {
		asked, answer string // no answer: the connection ends
		heard         int64
	}{
		{"hello", "hello", 1}, {"forbidden", "no", 0}, {"drop", "", 0}, {"hide", "", 1}, {"end", "", 1}, {"reset", "", 1},
	} {
		before := heard.Load()
		c := dial(t, p.Addr())
		got, err := c.ask(test.asked)
		if got != test.answer || (err == nil) != (test.answer != "") || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: got %q, %v, want %q", test.asked, got, err, test.answer)
		}
		assert.Equal(t, test.heard, heard.Load()-before, "%s: heard by the server", test.asked)
		if test.heard > 0 {
			assert.Equal(t, test.asked, <-answers)
		}
		if test.answer != "" { // and the connection goes on
			got, err = c.ask("more")
			if got != "more" || err != nil || <-answers != "more" {
				t.Errorf("%s, and more: got %q, %v", test.asked, got, err)
			}
		}
	}
}

// TestAPIProxy: one request is one call of the handler, which may refuse it; the client reaches the API server as its admin.
func TestAPIProxy(t *testing.T) {
	t.Parallel()
	a := NewAPIServer(t, APIServerOptions{})
	var asked []string
	p := a.NewProxy(t, func(pass http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, r.Method+" "+r.URL.Path)
			if r.URL.Path == "/cut" {
				panic(http.ErrAbortHandler)
			}
			pass.ServeHTTP(w, r)
		})
	})
	config, err := os.ReadFile(p.Kubeconfig)
	require.NoError(t, err)
	address := regexp.MustCompile(`http://[0-9.:]+`).FindString(string(config))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // or it would try again by itself
	var list struct{ Items []any }
	require.NoError(t, Ask(t.Context(), client, http.MethodGet, address+"/api/v1/namespaces", nil, &list))
	assert.NotEmpty(t, list.Items)
	missing := Ask(t.Context(), client, http.MethodGet, address+"/api/v1/namespaces/none", nil, nil)
	assert.Equal(t, http.StatusNotFound, Code(missing), "%v", missing)
	cut := Ask(t.Context(), client, http.MethodGet, address+"/cut", nil, nil)
	assert.Error(t, cut)
	assert.Equal(t, 0, Code(cut))
	p.Close()
	assert.Equal(t, []string{"GET /api/v1/namespaces", "GET /api/v1/namespaces/none", "GET /cut"}, asked)
}

// TestProxyBeforeServer kills a client at the moment the server has done what it asked.
func TestProxyBeforeServer(t *testing.T) {
	eachEngine(t, func(t *testing.T, v Version) {
		s := NewServer(t, v.Engine, v.Version, Options{})
		p := NewProxy(t, s.Addr())
		behind := &Server{
			Engine: s.Engine, Host: p.Host(), Port: p.Port(),
			AdminUser: s.AdminUser, AdminPassword: s.AdminPassword, CA: s.CA,
		}
		db, err := behind.Admin("")
		require.NoError(t, err)
		defer func() { _ = db.Close() }()
		require.NoError(t, db.PingContext(t.Context()))
		if p.Flights() == 0 || p.Connections() != 1 {
			t.Errorf("got %d flights on %d connections", p.Flights(), p.Connections())
		}
		p.KillAfter(1, p.Cut)
		if _, err := db.ExecContext(t.Context(), "CREATE DATABASE done"); err == nil {
			t.Error("the client learnt of it")
		}
		if _, err := s.Query(t.Context(), "done", "SELECT 1"); err != nil {
			t.Errorf("the server has not done it: %v", err)
		}
	})
}

func TestAPIServer(t *testing.T) {
	t.Parallel()
	a := NewAPIServer(t, APIServerOptions{})
	account := map[string]any{"metadata": map[string]any{"name": "someone"}}
	require.NoError(t, a.Do(t.Context(), http.MethodPost, "/api/v1/namespaces/default/serviceaccounts", account, nil))
	token, err := a.Token(t.Context(), "default", "someone")
	require.NoError(t, err)
	// Known, and allowed nothing.
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.URL+"/api/v1/namespaces/default/secrets", nil)
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+token)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.CA)
	anonymous := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	response, err := anonymous.Do(request)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	if body, _ := io.ReadAll(response.Body); response.StatusCode != http.StatusForbidden ||
		!strings.Contains(string(body), "system:serviceaccount:default:someone") {
		t.Errorf("got %s %s, want forbidden by name", response.Status, body)
	}
	if config := string(a.KubeconfigFor(token)); !strings.Contains(config, token) || !strings.Contains(config, a.URL) {
		t.Errorf("got kubeconfig without token or URL:\n%s", config)
	}
	a.Kill()
	require.NoError(t, a.Restart(t.Context()))
	assert.NoError(t, a.Do(t.Context(), http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/someone", nil, nil), "after Kill and Restart")
}

// TestKineOnDatabase runs an API server on kine on each engine, which is what tenants do.
func TestKineOnDatabase(t *testing.T) {
	s := NewServer(t, Postgres, "17", Options{})
	ca := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(ca, s.CA, 0o600))
	k := NewKine(t, fmt.Sprintf("postgres://%s:%s@%s/kine", s.AdminUser, s.AdminPassword, s.Addr()), ca)
	a := NewAPIServer(t, APIServerOptions{Etcd: k.Endpoint})
	assert.NoError(t, a.Do(t.Context(), http.MethodGet, "/api/v1/namespaces/kube-system", nil, nil))
	if rows, err := s.Query(t.Context(), "kine", "SELECT count(*) > 10 FROM kine"); err != nil || rows != "true" {
		t.Errorf("rows in kine's table: %s, %v", rows, err)
	}
}

// TestOwnServer names a server by the environment.
func TestOwnServer(t *testing.T) {
	for _, v := range latest {
		t.Run(v.String(), func(t *testing.T) {
			theirs := NewServer(t, v.Engine, v.Version, Options{IPv6: true})
			ca := filepath.Join(t.TempDir(), "ca.crt")
			require.NoError(t, os.WriteFile(ca, theirs.CA, 0o600))
			name := "DBCONNECTOR_TEST_" + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(v.String()))
			t.Setenv(name+"_URL", fmt.Sprintf("%s://%s:%s@[::1]:%d/", v.Engine, theirs.AdminUser, theirs.AdminPassword, theirs.Port))
			t.Setenv(name+"_CA", ca)
			s := NewServer(t, v.Engine, v.Version, Options{})
			if s.Host != "::1" || s.Port != theirs.Port || s.FullVersion != theirs.FullVersion {
				t.Errorf("got %s version %s, want the server of the environment", s.Addr(), s.FullVersion)
			}
			assert.NoError(t, s.Exec(t.Context(), "SELECT 1"))
			assert.Error(t, s.Kill(), "killed a server that is not ours")
			if special := NewServer(t, v.Engine, v.Version, Options{RequireTLS: true}); special.Port == theirs.Port {
				t.Error("used the server of the environment though the options ask for something special")
			}
		})
	}
}

func TestClients(t *testing.T) {
	eachEngine(t, func(t *testing.T, v Version) {
		s := NewServer(t, v.Engine, v.Version, Options{})
		name := "mariadb"
		args := []string{"--host=" + s.Host, "--port=" + strconv.Itoa(s.Port), "--user=" + s.AdminUser, "--ssl-ca=" + s.file("ca.crt"), "--execute=SELECT 6*7"}
		if v.Engine == Postgres {
			name = "psql"
			args = []string{"--no-psqlrc", "--host=" + s.Host, "--port=" + strconv.Itoa(s.Port), "--username=" + s.AdminUser, "--command=SELECT 6*7", "postgres"}
		}
		cmd, err := Client(t.Context(), name, args...)
		require.NoError(t, err)
		cmd.Env = append(os.Environ(), "PGPASSWORD="+s.AdminPassword, "MYSQL_PWD="+s.AdminPassword)
		if out, err := output(cmd); err != nil || !strings.Contains(out, "42") {
			t.Errorf("got %q, %v", out, err)
		}
	})
}

// TestFetchTwice lets two processes, with two goroutines each, want the same item.
func TestFetchTwice(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	var procs []*exec.Cmd
	for range 2 {
		// t.TempDir is closed to other accounts, so this cache is no good for
		// servers; fetchOnce builds something that needs none.
		cmd := play(t, "fetch", "DBCONNECTOR_BED_CACHE="+cache)
		require.NoError(t, cmd.Start())
		procs = append(procs, cmd)
	}
	for _, cmd := range procs {
		assert.NoError(t, cmd.Wait())
	}
	builds, err := os.ReadFile(filepath.Join(cache, "builds"))
	if err != nil || string(builds) != "x" {
		t.Errorf("got builds %q, %v, want one", builds, err)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, ".tmp-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func fetchOnce(ctx context.Context) error {
	cache := os.Getenv("DBCONNECTOR_BED_CACHE")
	it := item{name: "thing", key: "thing-1", build: func(ctx context.Context, dir string) error {
		builds, err := os.OpenFile(filepath.Join(cache, "builds"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer func() { _ = builds.Close() }()
		if _, err := builds.WriteString("x"); err != nil {
			return err
		}
		// Long enough for the others to come along.
		if _, err := run(ctx, dir, "sleep", "0.3"); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "content"), nil, 0o600)
	}}
	errs := make(chan error)
	for range 2 {
		go func() {
			dir, err := cachedIn(ctx, cache, it)
			if err == nil && !exists(filepath.Join(dir, "content")) {
				err = errors.New("got an item without its content")
			}
			errs <- err
		}()
	}
	return errors.Join(<-errs, <-errs)
}

func TestFetchInterrupted(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	it := item{name: "thing", key: "thing-1", build: func(_ context.Context, dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o600); err != nil {
			return err
		}
		return errors.New("interrupted")
	}}
	if _, err := cachedIn(t.Context(), cache, it); err == nil {
		t.Fatal("got no error")
	}
	if exists(filepath.Join(cache, it.key)) {
		t.Error("an interrupted fetch left half an item")
	}
	it.build = func(context.Context, string) error { return nil }
	if _, err := cachedIn(t.Context(), cache, it); err != nil {
		t.Errorf("second attempt: %v", err)
	}
}

// TestParentKilled checks that a server ends when the process that started it is
// killed, and that the next bed removes what it left.
func TestParentKilled(t *testing.T) {
	t.Parallel()
	temp, err := os.MkdirTemp("", "bed-parent-") //nolint:usetesting // t.TempDir is closed to the servers' account
	require.NoError(t, err)
	defer func() { _ = os.RemoveAll(temp) }()
	require.NoError(t, os.Chmod(temp, 0o755))
	cmd := play(t, "serve", "TMPDIR="+temp)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	addr, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	addr = strings.TrimSpace(addr)
	if conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr); err != nil {
		t.Fatal(err)
	} else {
		_ = conn.Close()
	}
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	Eventually(t, 10*time.Second, func(ctx context.Context) error {
		if conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr); err == nil {
			_ = conn.Close()
			return errors.New("the server is still there")
		}
		return nil
	})
	left, _ := filepath.Glob(filepath.Join(temp, "*"))
	if len(left) != 1 {
		t.Fatalf("got %v, want one directory left behind", left)
	}
	sweep(temp)
	if exists(left[0]) {
		t.Error("the sweep left it there")
	}
}

func serveUntilKilled(ctx context.Context) error {
	s, err := Start(ctx, Postgres, "17", Options{})
	if err != nil {
		return err
	}
	fmt.Println(s.Addr())
	select {}
}
