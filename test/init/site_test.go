// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base32"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// site is one tenant without Kubernetes: connector and record are directories.
type site struct {
	uid       string
	server    *bed.Server // nil where none is meant to be reached
	connector map[string]string
	env       map[string]string

	connectorDir, stateDir, outputDir string
}

// newSite makes a tenant that the program would provision on the server.
func newSite(tb testing.TB, server *bed.Server) *site {
	tb.Helper()
	base := dir(tb)
	s := &site{
		uid: "init/" + rand.Text(), server: server,
		connectorDir: filepath.Join(base, "connector"), stateDir: filepath.Join(base, "state"), outputDir: filepath.Join(base, "out"),
	}
	for _, name := range []string{s.connectorDir, s.outputDir} {
		require.NoError(tb, os.Mkdir(name, 0o755))
		give(tb, name)
	}
	s.env = map[string]string{
		"DBCONNECTOR_VCLUSTER_NAME": "demo", "DBCONNECTOR_TENANT_UID": s.uid,
		"DBCONNECTOR_CONNECTOR_DIR": s.connectorDir, "DBCONNECTOR_STATE_DIR": s.stateDir, "DBCONNECTOR_OUTPUT_DIR": s.outputDir,
		// Longer than any run needs that does not use up its time limit, even on a machine with more work than cores.
		"DBCONNECTOR_TIMEOUT": "60s", "DBCONNECTOR_LOG_LEVEL": "debug",
	}
	s.connector = connectorFor(server)
	return s
}

// connectorFor is a good connector for a server.
func connectorFor(server *bed.Server) map[string]string {
	if server == nil {
		return map[string]string{"type": "postgres", "endpoint": "127.0.0.1", "port": "1", "user": "admin", "password": "Never-0ut.Loud~unused"}
	}
	return rig.Connector(server, server.AdminUser, server.AdminPassword, "", server.CA != nil)
}

// run writes the connector as it is now, and runs the program.
func (s *site) run(tb testing.TB) *outcome {
	tb.Helper()
	s.writeConnector(tb)
	return run(tb, s.env)
}

func (s *site) writeConnector(tb testing.TB) {
	tb.Helper()
	require.NoError(tb, os.MkdirAll(s.connectorDir, 0o755))
	for _, name := range names(tb, s.connectorDir) {
		require.NoError(tb, os.Remove(filepath.Join(s.connectorDir, name)))
	}
	for key, value := range s.connector {
		write(tb, filepath.Join(s.connectorDir, key), value)
	}
}

// provision runs the program for the first time.
func (s *site) provision(tb testing.TB) {
	tb.Helper()
	s.run(tb).succeeded(tb)
}

func (s *site) recordFile() string { return filepath.Join(s.stateDir, "record.json") }

// record reads the tenant's record as any reader would: as JSON.
func (s *site) record(tb testing.TB) map[string]any {
	tb.Helper()
	return decodeRecord(tb, []byte(read(tb, s.recordFile())))
}

func decodeRecord(tb testing.TB, data []byte) map[string]any {
	tb.Helper()
	var r map[string]any
	require.NoError(tb, json.Unmarshal(data, &r))
	return r
}

// passwords are all that a record holds.
func passwords(tb testing.TB, record map[string]any) []string {
	tb.Helper()
	var list []string
	var collect func(any)
	collect = func(v any) {
		object, _ := v.(map[string]any)
		for key, value := range object {
			if text, ok := value.(string); ok && key == "password" && text != "" {
				list = append(list, text)
			}
			collect(value)
		}
	}
	collect(record)
	if len(list) == 0 {
		tb.Fatal("the record holds no password")
	}
	return list
}

// put writes a record that was changed by hand.
func (s *site) put(tb testing.TB, content string) {
	tb.Helper()
	require.NoError(tb, os.MkdirAll(s.stateDir, 0o700))
	give(tb, s.stateDir)
	write(tb, s.recordFile(), content)
}

// edit changes the record by hand.
func (s *site) edit(tb testing.TB, change func(record map[string]any)) {
	tb.Helper()
	r := s.record(tb)
	change(r)
	data, err := json.Marshal(r)
	require.NoError(tb, err)
	s.put(tb, string(data))
}

// part is an object inside of a record.
func part(record map[string]any, path ...string) map[string]any {
	for _, key := range path {
		record, _ = record[key].(map[string]any)
	}
	return record
}

// databaseOf derives a tenant's database name again, from the design and not from the code.
func databaseOf(uid string) string {
	sum := sha256.Sum256([]byte(uid))
	return "vc" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:24]
}

// objects lists what a server holds of a tenant.
func objects(tb testing.TB, server *bed.Server, uid string) []string {
	tb.Helper()
	n := databaseOf(uid)
	query := "SELECT COALESCE(GROUP_CONCAT(name), '') FROM " +
		"(SELECT SCHEMA_NAME AS name FROM information_schema.SCHEMATA UNION SELECT User FROM mysql.user) t WHERE name LIKE ?"
	if server.Engine == bed.Postgres {
		query = "SELECT COALESCE(string_agg(name, ','), '') FROM " +
			"(SELECT datname::text AS name FROM pg_database UNION ALL SELECT rolname::text FROM pg_roles) t WHERE name LIKE $1"
	}
	list, err := server.Query(context.WithoutCancel(tb.Context()), "", query, n+"%")
	require.NoError(tb, err)
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

// untouched checks that a run which was refused left nothing behind. The caller checks the record.
func (s *site) untouched(tb testing.TB) {
	tb.Helper()
	if _, err := os.Stat(s.outputDir); err == nil {
		if left := names(tb, s.outputDir); len(left) > 0 {
			tb.Errorf("left in the output directory: %q", left)
		}
	}
	if s.server != nil {
		if left := objects(tb, s.server, s.uid); len(left) > 0 {
			tb.Errorf("left on the server: %q", left)
		}
	}
}

// login logs in with the DSN of the hand-over, as kine would, and returns the database's name.
func login(tb testing.TB, server *bed.Server, dsn string) (string, error) {
	tb.Helper()
	user, password := credentialOf(tb, dsn)
	db, err := server.Open(user, password, databaseIn(tb, dsn))
	require.NoError(tb, err)
	defer shut(db)
	var name sql.NullString
	query := "SELECT DATABASE()"
	if server.Engine == bed.Postgres {
		query = "SELECT current_database()"
	}
	err = db.QueryRowContext(tb.Context(), query).Scan(&name)
	return name.String, err
}

func databaseIn(tb testing.TB, dsn string) string {
	tb.Helper()
	_, after, ok := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(dsn, "postgres://"), "mysql://"), "/")
	if !ok {
		tb.Fatal("the DSN has no database")
	}
	name, _, _ := strings.Cut(after, "?")
	return name
}

func credentialOf(tb testing.TB, dsn string) (user, password string) {
	tb.Helper()
	_, rest, _ := strings.Cut(dsn, "://")
	authority, _, ok := strings.Cut(rest, "@")
	if !ok {
		tb.Fatal("the DSN has no user")
	}
	user, password, _ = strings.Cut(authority, ":")
	return user, password
}

// preparePostgres makes the admins that a test can be refused as. They share one server, so that not every case needs
// its own.
func preparePostgres(ctx context.Context, s *bed.Server) error {
	for _, statement := range []string{
		"CREATE ROLE expired SUPERUSER LOGIN VALID UNTIL '2020-01-01' PASSWORD '" + chosen + "'",
		"CREATE ROLE locked SUPERUSER NOLOGIN PASSWORD '" + chosen + "'",
		"CREATE ROLE powerless LOGIN PASSWORD '" + chosen + "'",
		"CREATE ROLE createdb LOGIN CREATEDB PASSWORD '" + chosen + "'",
		"CREATE ROLE barred SUPERUSER LOGIN PASSWORD '" + chosen + "'",
		"CREATE ROLE changing SUPERUSER LOGIN PASSWORD '" + chosen + "'",
		"CREATE ROLE marked SUPERUSER LOGIN PASSWORD '" + strings.ReplaceAll(odd, "'", "''") + "'",
	} {
		if err := s.Exec(ctx, statement); err != nil {
			return err
		}
	}
	file := filepath.Join(s.DataDir, "pg_hba.conf")
	rules, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, append([]byte("host all barred all reject\n"), rules...), 0o600); err != nil {
		return err
	}
	return s.Exec(ctx, "SELECT pg_reload_conf()")
}

func prepareMySQL(ctx context.Context, s *bed.Server) error {
	return s.Exec(ctx,
		"CREATE USER expired@'%' IDENTIFIED BY '"+chosen+"' PASSWORD EXPIRE", "GRANT ALL ON *.* TO expired@'%' WITH GRANT OPTION",
		"CREATE USER locked@'%' IDENTIFIED BY '"+chosen+"' ACCOUNT LOCK", "GRANT ALL ON *.* TO locked@'%' WITH GRANT OPTION",
		"CREATE USER powerless@'%' IDENTIFIED BY '"+chosen+"'",
		"CREATE USER createdb@'%' IDENTIFIED BY '"+chosen+"'", "GRANT CREATE ON *.* TO createdb@'%'",
		"CREATE USER changing@'%' IDENTIFIED BY '"+chosen+"'", "GRANT ALL ON *.* TO changing@'%' WITH GRANT OPTION",
		"CREATE USER marked@'%' IDENTIFIED BY '"+strings.ReplaceAll(strings.ReplaceAll(odd, `\`, `\\`), "'", "''")+"'",
		"GRANT ALL ON *.* TO marked@'%' WITH GRANT OPTION")
}

// Passwords of admins. odd holds characters that must be escaped in an SQL string, a URL, JSON and a DSN. It must still
// work.
const (
	chosen = "Chosen-Admin.7~Password_to-look-for"
	odd    = `Odd:Admin@7/Pass?wo#rd%20&"quo\ted"=[x]{y}'; ü`
)

func init() {
	if strings.Contains(odd, "$") { // it would be a parameter in a statement above
		panic("odd")
	}
}

// with is a copy of a map with some entries changed; those that are changed to "" are removed.
func with(m map[string]string, changes map[string]string) map[string]string {
	m = maps.Clone(m)
	for key, value := range changes {
		if m[key] = value; value == "" {
			delete(m, key)
		}
	}
	return m
}

func sorted(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return list
}
