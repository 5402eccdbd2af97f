// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// Options say how a server differs from the usual one: TLS with a certificate of
// [Authority] for the loopback addresses, not required; the engine's own settings,
// less durable.
type Options struct {
	// Cert is the server's certificate instead of the usual one. Set CA, too, if
	// another authority issued it and clients shall trust it.
	Cert *Cert
	// CA is what [Server.CA] hands out; Authority's by default.
	CA []byte
	// NoTLS makes a server that has no TLS at all.
	NoTLS bool
	// RequireTLS makes the server refuse plaintext connections over TCP.
	RequireTLS bool
	// MaxConnections limits the server's connections.
	MaxConnections int
	// LogStatements makes the server log connections and statements, for
	// [Server.Connections], [Server.Statements] and [Server.StatementLog].
	LogStatements bool
	// IPv6 makes the server listen on ::1, too.
	IPv6 bool
	// Settings are the server's own: "log_statement": "all".
	Settings map[string]string
}

// Server is a running database server.
type Server struct {
	Engine      Engine
	Version     string // as asked for: "17"
	FullVersion string // as the server says: "17.10", "11.8.6-MariaDB-0+deb13u1"

	Host string
	Port int
	// AdminUser may do everything, over TCP.
	AdminUser, AdminPassword string
	// CA is the PEM bundle that verifies the server; nil if it has no TLS.
	CA []byte

	// DataDir and LogFile are empty if the server is not ours.
	DataDir, LogFile string

	plaintext bool
	dir       string
	owner     *os.File
	argv      []string
	mu        sync.Mutex
	proc      *process
}

// adminPassword is in every cached data directory. It is long and odd so that it is
// found when it turns up where it should not.
const adminPassword = "bed-Admin.9~Password_in-the-Clear"

func databaseItem(v Version) item {
	if v.Engine == Postgres {
		return item{name: v.String(), key: fmt.Sprintf("%s-%s-1", v.Engine, v.npm), build: v.buildPostgres}
	}
	return item{name: v.String(), key: fmt.Sprintf("%s-%s-1", v, v.suite), build: v.buildMySQL}
}

// Start starts a server, or finds the user's own.
func Start(ctx context.Context, engine Engine, version string, o Options) (*Server, error) {
	v, err := lookup(engine, version)
	if err != nil {
		return nil, err
	}
	if s, err := own(ctx, v, o); s != nil || err != nil {
		return s, err
	}
	s, err := start(ctx, v, o)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", v, err)
	}
	return s, nil
}

// NewServer is [Start] for tests: the server ends with the test.
func NewServer(tb testing.TB, engine Engine, version string, o Options) *Server {
	tb.Helper()
	s, err := Start(tb.Context(), engine, version, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() && s.LogFile != "" {
			tb.Logf("log of %s-%s:\n%s", s.Engine, s.Version, tail(s.Log()))
		}
		// The test's context has ended by now.
		if err := s.Stop(context.Background()); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func start(ctx context.Context, v Version, o Options) (_ *Server, err error) {
	cache, err := cached(ctx, databaseItem(v))
	if err != nil {
		return nil, err
	}
	dir, owner, err := tempDir(v.String())
	if err != nil {
		return nil, err
	}
	s := &Server{
		Engine: v.Engine, Version: v.Version,
		Host:      "127.0.0.1",
		AdminUser: adminUser(v.Engine), AdminPassword: adminPassword,
		DataDir: filepath.Join(dir, "data"), LogFile: filepath.Join(dir, "server.log"),
		plaintext: o.NoTLS, dir: dir, owner: owner,
	}
	defer func() {
		if err != nil {
			s.cleanUp()
		}
	}()
	// The copy keeps owners and modes, on some file systems also the blocks.
	if err := give(dir); err != nil {
		return nil, err
	}
	if _, err := run(ctx, "", "cp", "-a", "--reflink=auto", filepath.Join(cache, "data"), s.DataDir); err != nil {
		return nil, fmt.Errorf("copying data directory: %w", err)
	}
	if err := s.writeCert(o); err != nil {
		return nil, err
	}
	if s.Port, err = freePort(); err != nil {
		return nil, err
	}
	if s.argv, err = s.commandLine(filepath.Join(cache, "root"), o); err != nil {
		return nil, err
	}
	if err := s.launch(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// commandLine configures the server and returns how to run it.
func (s *Server) commandLine(root string, o Options) ([]string, error) {
	if s.Engine == Postgres {
		return s.postgresArgv(root, o)
	}
	return s.mysqlArgv(root, o)
}

func adminUser(e Engine) string {
	if e == Postgres {
		return "postgres"
	}
	return "admin"
}

// writeCert puts the server's certificate beside its data.
func (s *Server) writeCert(o Options) error {
	if o.NoTLS {
		return nil
	}
	ca, err := Authority()
	if err != nil {
		return err
	}
	s.CA = ca.PEM
	if o.CA != nil {
		s.CA = o.CA
	}
	cert := o.Cert
	if cert == nil {
		if cert, err = ca.Issue(Request{}); err != nil {
			return err
		}
	}
	if err := errors.Join(
		os.WriteFile(s.file("ca.crt"), s.CA, 0o644),
		os.WriteFile(s.file("tls.crt"), cert.Cert, 0o644),
		os.WriteFile(s.file("tls.key"), cert.Key, 0o600),
	); err != nil {
		return fmt.Errorf("writing certificate: %w", err)
	}
	return give(s.file("tls.key"))
}

// SetCert has the running server show another certificate to new connections, which the authority ca verifies. Open ones stay as they are.
func (s *Server) SetCert(ctx context.Context, cert *Cert, ca []byte) error {
	admin, err := s.Admin("") // while the one that it knows is valid
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close() }()
	admin.SetMaxOpenConns(1)
	if err := admin.PingContext(ctx); err != nil {
		return fmt.Errorf("changing the certificate: %w", err)
	}
	s.CA = ca
	if err := s.writeCert(Options{Cert: cert, CA: ca}); err != nil {
		return err
	}
	reload := map[Engine]string{Postgres: "SELECT pg_reload_conf()", MySQL: "ALTER INSTANCE RELOAD TLS", MariaDB: "FLUSH SSL"}[s.Engine]
	if _, err := admin.ExecContext(ctx, reload); err != nil {
		return fmt.Errorf("changing the certificate: %w", err)
	}
	// PostgreSQL answers before it has read the files.
	return Wait(ctx, func(ctx context.Context) error {
		_, err := s.Query(ctx, "", "SELECT 1")
		return err
	})
}

func (s *Server) file(name string) string { return filepath.Join(s.dir, name) }

// launch runs the server and waits until the admin can log in.
func (s *Server) launch(ctx context.Context) error {
	p, err := startProcess(s.LogFile, true, s.argv...)
	if err != nil {
		return err
	}
	if err := p.ready(ctx, s.ping); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proc = p
	return nil
}

// ping logs in as the admin. A certificate that was made to fail must not keep
// the bed from seeing that the server is up, so it is not verified here.
func (s *Server) ping(ctx context.Context) error {
	db, err := s.open(s.AdminUser, s.AdminPassword, "", false)
	if err != nil {
		return Permanent(err)
	}
	defer func() { _ = db.Close() }()
	query := "SELECT VERSION()"
	if s.Engine == Postgres {
		query = "SHOW server_version"
	}
	return db.QueryRowContext(ctx, query).Scan(&s.FullVersion)
}

// Stop ends the server and removes its data. It kills, since an orderly end is
// for the sake of the data, and takes MySQL seconds. A server of the user's own is left
// alone.
func (s *Server) Stop(context.Context) error {
	if s.dir == "" {
		return nil
	}
	err := s.Kill()
	s.cleanUp()
	return err
}

// Halt ends the server in order, as for maintenance. [Server.Restart] brings it
// back, [Server.Stop] cleans up.
func (s *Server) Halt(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	p, err := s.process()
	if err != nil {
		return err
	}
	sig := syscall.SIGTERM
	if s.Engine == Postgres {
		sig = syscall.SIGINT // SIGTERM would wait for clients to leave
	}
	return p.stop(ctx, sig)
}

func (s *Server) cleanUp() {
	_ = os.RemoveAll(s.dir)
	_ = s.owner.Close()
}

// Kill ends the server as a crash would. [Server.Restart] brings it back with its
// data, [Server.Stop] cleans up.
func (s *Server) Kill() error {
	p, err := s.process()
	if err != nil {
		return err
	}
	p.kill()
	return nil
}

// Restart ends the server in order, if it runs, and starts it again on the same port.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Halt(ctx); err != nil {
		return err
	}
	if err := s.launch(ctx); err != nil {
		return fmt.Errorf("restarting %s-%s: %w", s.Engine, s.Version, err)
	}
	return nil
}

// Pause makes the server a black hole: the kernel still accepts connections for it,
// and no server ever answers.
func (s *Server) Pause() error {
	p, err := s.process()
	if err != nil {
		return err
	}
	p.pause()
	return nil
}

// Resume ends [Server.Pause].
func (s *Server) Resume() error {
	p, err := s.process()
	if err != nil {
		return err
	}
	p.resume()
	return nil
}

func (s *Server) process() (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return nil, fmt.Errorf("%s-%s is not the bed's own server", s.Engine, s.Version)
	}
	return s.proc, nil
}

// Log returns what the server has logged.
func (s *Server) Log() string {
	log, err := os.ReadFile(s.LogFile)
	if err != nil {
		return err.Error()
	}
	return string(log)
}

// Addr is the server's host:port.
func (s *Server) Addr() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// Open returns a pool of connections for a login; database may be empty. If
// the server has TLS, it is used and the server verified.
func (s *Server) Open(user, password, database string) (*sql.DB, error) {
	return s.open(user, password, database, true)
}

// Admin is [Server.Open] for the admin.
func (s *Server) Admin(database string) (*sql.DB, error) {
	return s.Open(s.AdminUser, s.AdminPassword, database)
}

func (s *Server) open(user, password, database string, verify bool) (*sql.DB, error) {
	config, err := s.tlsConfig(verify)
	if err != nil {
		return nil, err
	}
	if s.Engine == Postgres {
		if database == "" {
			database = "postgres"
		}
		c, err := pgx.ParseConfig("postgres://" + s.Addr() + "/?sslmode=disable")
		if err != nil {
			return nil, fmt.Errorf("making connection settings: %w", err)
		}
		c.User, c.Password, c.Database, c.TLSConfig = user, password, database, config
		// Tests count statements and flights: no pings that the test did not ask for.
		noPing := func(context.Context, stdlib.ShouldPingParams) bool { return false }
		return stdlib.OpenDB(*c, stdlib.OptionShouldPing(noPing)), nil
	}
	c := mysql.NewConfig()
	c.Net, c.Addr, c.User, c.Passwd, c.DBName, c.TLS = "tcp", s.Addr(), user, password, database, config
	c.AllowNativePasswords = true
	c.Logger = &mysql.NopLogger{} // it comments on every attempt while the server starts
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, fmt.Errorf("making connection settings: %w", err)
	}
	return sql.OpenDB(connector), nil
}

func (s *Server) tlsConfig(verify bool) (*tls.Config, error) {
	if s.plaintext {
		return nil, nil
	}
	if !verify {
		return &tls.Config{InsecureSkipVerify: true, ServerName: s.Host}, nil
	}
	config := &tls.Config{ServerName: s.Host, MinVersion: tls.VersionTLS12}
	if s.CA != nil {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(s.CA) {
			return nil, errors.New("the server's CA bundle holds no certificate")
		}
	}
	return config, nil
}

// Exec runs statements as the admin, each for itself, outside any database (on
// PostgreSQL in the database postgres).
func (s *Server) Exec(ctx context.Context, statements ...string) error {
	return s.ExecIn(ctx, "", statements...)
}

// ExecIn is [Server.Exec] in a database.
func (s *Server) ExecIn(ctx context.Context, database string, statements ...string) error {
	db, err := s.Admin(database)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	db.SetMaxOpenConns(1) // so that SET and the like hold for the next statements
	for _, statement := range statements {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("executing %q: %w", statement, err)
		}
	}
	return nil
}

// Query runs a query for one value as the admin. PostgreSQL's placeholders are $1,
// the others' are ?.
func (s *Server) Query(ctx context.Context, database, query string, args ...any) (string, error) {
	db, err := s.Admin(database)
	if err != nil {
		return "", err
	}
	defer func() { _ = db.Close() }()
	var value sql.NullString
	if err := db.QueryRowContext(ctx, query, args...).Scan(&value); err != nil {
		return "", fmt.Errorf("querying %q: %w", query, err)
	}
	return value.String, nil
}

// own finds the server that the environment names for this version.
func own(ctx context.Context, v Version, o Options) (*Server, error) {
	name := "DBCONNECTOR_TEST_" + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(v.String()))
	raw := os.Getenv(name + "_URL")
	if raw == "" || !reflect.ValueOf(o).IsZero() {
		return nil, nil
	}
	u, err := url.Parse(raw)
	if err != nil || u.User == nil || u.Hostname() == "" {
		return nil, fmt.Errorf("%s_URL: must be <scheme>://<user>:<password>@<host>:<port>/", name) // the value holds a password
	}
	s := &Server{
		Engine: v.Engine, Version: v.Version,
		Host: u.Hostname(), Port: map[Engine]int{Postgres: 5432, MySQL: 3306, MariaDB: 3306}[v.Engine],
		AdminUser: u.User.Username(),
		plaintext: u.Query().Get("sslmode") == "disable",
	}
	s.AdminPassword, _ = u.User.Password()
	if u.Port() != "" {
		s.Port, _ = strconv.Atoi(u.Port()) // url.Parse has checked it
	}
	if file := os.Getenv(name + "_CA"); file != "" {
		if s.CA, err = os.ReadFile(file); err != nil {
			return nil, fmt.Errorf("%s_CA: %w", name, err)
		}
	}
	if err := s.ping(ctx); err != nil {
		return nil, fmt.Errorf("%s_URL: logging in: %w", name, err)
	}
	return s, nil
}

// SetPassword changes a login's password by hand. It must hold no quote.
func (s *Server) SetPassword(ctx context.Context, user, password string) error {
	if s.Engine == Postgres {
		return s.Exec(ctx, fmt.Sprintf(`ALTER ROLE "%s" PASSWORD '%s'`, user, password))
	}
	return s.Exec(ctx, fmt.Sprintf("ALTER USER '%s'@'%%' IDENTIFIED BY '%s'", user, password))
}

// Sessions counts the sessions of the logins whose names are LIKE user.
func (s *Server) Sessions(ctx context.Context, user string) (int, error) {
	query := "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER LIKE ?"
	if s.Engine == Postgres {
		query = "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE $1"
	}
	count, err := s.Query(ctx, "", query, user)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(count)
}

// CloudAdmin creates a login with a random password and the rights that managed
// databases give their customers: it may create databases and logins, and is no
// superuser. A name that exists is an error.
func (s *Server) CloudAdmin(ctx context.Context, name string) (user, password string, err error) {
	password = "Cl0ud-" + rand.Text()
	for _, statement := range cloudAdmin(s.Engine, name, password) {
		if err := s.Exec(ctx, statement); err != nil {
			return "", "", fmt.Errorf("creating cloud admin: %w", err)
		}
	}
	return name, password, nil
}
