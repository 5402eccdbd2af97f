// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// OpenDSN opens a pool on a DSN in the way kine does. ca is the content of kine's --ca-file; nil for none.
func OpenDSN(dsn string, ca []byte) (*sql.DB, error) { return OpenDSNFrom("", dsn, ca) }

// OpenDSNFrom is [OpenDSN] for a client at an address of its own, such as 127.0.0.2; empty for any.
func OpenDSNFrom(address, dsn string, ca []byte) (*sql.DB, error) {
	dialer := &net.Dialer{}
	if address != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(address)}
	}
	roots := x509.NewCertPool()
	if ca != nil && !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("the hand-over's ca.crt holds no certificate")
	}
	if strings.HasPrefix(dsn, "postgres://") {
		config, err := pgx.ParseConfig(dsn)
		if err != nil {
			return nil, fmt.Errorf("reading the DSN: %w", err)
		}
		if ca != nil {
			config.TLSConfig.RootCAs = roots
		}
		config.DialFunc = dialer.DialContext
		return stdlib.OpenDB(*config), nil
	}
	config, err := mysql.ParseDSN(strings.TrimPrefix(dsn, "mysql://"))
	if err != nil {
		return nil, fmt.Errorf("reading the DSN: %w", err)
	}
	if ca != nil {
		config.TLS = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	config.DialFunc = dialer.DialContext
	c, err := mysql.NewConnector(config)
	if err != nil {
		return nil, fmt.Errorf("reading the DSN: %w", err)
	}
	return sql.OpenDB(c), nil
}

// WithLogin is a DSN with another login of the same tenant.
func WithLogin(dsn string, login tenant.Login) string {
	scheme, rest, _ := strings.Cut(dsn, "://")
	_, rest, _ = strings.Cut(rest, "@")
	return scheme + "://" + login.User + ":" + login.Password.Reveal() + "@" + rest
}

// rows renders all rows of a query, sorted.
func rows(ctx context.Context, db *sql.DB, query string, args ...any) ([]string, error) {
	r, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("reading the catalog: %w", err)
	}
	defer r.Close()
	columns, err := r.Columns()
	if err != nil {
		return nil, fmt.Errorf("reading the catalog: %w", err)
	}
	var out []string
	for r.Next() {
		values, into := make([]sql.NullString, len(columns)), make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		if err := r.Scan(into...); err != nil {
			return nil, fmt.Errorf("reading the catalog: %w", err)
		}
		var line []string
		for i, v := range values {
			line = append(line, columns[i]+"="+v.String)
		}
		out = append(out, strings.Join(line, " "))
	}
	slices.Sort(out)
	return out, r.Err()
}

var hash = regexp.MustCompile(`'\*[0-9A-F]{40}'`)

// Inspector reads a server as its superuser, over connections that it keeps.
type Inspector struct {
	server *bed.Server
	db     *sql.DB
}

// Inspect makes an inspector of a server.
func Inspect(s *bed.Server) (*Inspector, error) {
	db, err := s.Admin("")
	if err != nil {
		return nil, err
	}
	return &Inspector{s, db}, nil
}

// Close ends its connections.
func (i *Inspector) Close() { _ = i.db.Close() }

// Facts is everything that a server holds of a tenant, except passwords, in words that are the same for every tenant.
func (i *Inspector) Facts(ctx context.Context, names tenant.Names) (string, error) {
	var facts []string
	var err error
	if i.server.Engine == bed.Postgres {
		facts, err = i.postgres(ctx, names)
	} else {
		facts, err = i.mysql(ctx, names)
	}
	out := strings.NewReplacer(names.Database, "T", names.Marker, "M").Replace(strings.Join(facts, "\n"))
	return hash.ReplaceAllString(out, "H"), err
}

func (i *Inspector) count(ctx context.Context, query string, args ...any) (n int, err error) {
	if err := i.db.QueryRowContext(ctx, query, args...).Scan(&n); err != nil {
		return 0, fmt.Errorf("reading the catalog: %w", err)
	}
	return n, nil
}

func (i *Inspector) postgres(ctx context.Context, names tenant.Names) ([]string, error) {
	options := "''"
	if i.server.Version >= "16" {
		options = "concat(m.inherit_option, m.set_option)"
	}
	var facts []string
	for _, query := range []string{
		`SELECT rolname, rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls, rolinherit, rolconnlimit,
		        rolconfig, shobj_description(oid, 'pg_authid') AS mark FROM pg_roles WHERE rolname LIKE $1`,
		`SELECT o.rolname AS role, u.rolname AS member, m.admin_option AS admin, ` + options + ` AS options
		   FROM pg_auth_members m JOIN pg_roles o ON o.oid = m.roleid JOIN pg_roles u ON u.oid = m.member
		  WHERE o.rolname LIKE $1 OR u.rolname LIKE $1`,
		`SELECT datname, pg_get_userbyid(datdba) AS owner, datallowconn, datconnlimit,
		        ARRAY(SELECT x::text FROM unnest(datacl) x ORDER BY 1) AS datacl, datcollate, datctype, encoding,
		        shobj_description(oid, 'pg_database') AS mark FROM pg_database WHERE datname LIKE $1`,
	} {
		found, err := rows(ctx, i.db, query, names.Database+"%")
		if err != nil {
			return nil, err
		}
		facts = append(facts, found...)
	}
	open, err := i.count(ctx, "SELECT count(*) FROM pg_database WHERE datname = $1 AND datallowconn", names.Database)
	if err != nil || open != 1 {
		return facts, err
	}
	inside, err := i.server.Admin(names.Database)
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	schema, err := rows(ctx, inside, "SELECT nspname, nspacl FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'")
	return append(facts, schema...), err
}

func (i *Inspector) mysql(ctx context.Context, names tenant.Names) ([]string, error) {
	var facts []string
	for _, query := range []string{
		"SELECT User, Host, ssl_type, max_user_connections, plugin FROM mysql.user WHERE User LIKE ?",
		"SELECT * FROM mysql.db WHERE Db LIKE ?",
		"SELECT SCHEMA_NAME AS name, DEFAULT_CHARACTER_SET_NAME AS charset FROM information_schema.SCHEMATA WHERE SCHEMA_NAME LIKE ?",
	} {
		found, err := rows(ctx, i.db, query, names.Database+"%")
		if err != nil {
			return nil, err
		}
		facts = append(facts, found...)
	}
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		if !strings.Contains(strings.Join(facts, "\n"), "User="+names.User(slot)+" ") {
			continue
		}
		found, err := rows(ctx, i.db, "SHOW GRANTS FOR '"+names.User(slot)+"'@'%'")
		if err != nil {
			return nil, err
		}
		facts = append(facts, found...)
	}
	return facts, nil
}

// CheckClosed returns an error where a login other than the tenant's and the admins' can enter the tenant's database.
// This must never be possible, and so not right after a crash either.
func (i *Inspector) CheckClosed(ctx context.Context, names tenant.Names, admin string) error {
	// The query reads everything from one row. has_database_privilege would look at another state of it, while a crashed
	// init's last transaction ends.
	query, args := `SELECT count(*) FROM pg_database d WHERE d.datname = $1 AND d.datallowconn AND EXISTS (
		SELECT 1 FROM pg_roles r, aclexplode(COALESCE(d.datacl, acldefault('d', d.datdba))) x
		WHERE NOT r.rolsuper AND r.rolname NOT IN ($2, $3, $4, $5) AND x.privilege_type = 'CONNECT' AND (x.grantee = 0 OR pg_has_role(r.oid, x.grantee, 'USAGE')))`,
		[]any{names.Database, names.Owner, names.User(tenant.A), names.User(tenant.B), admin}
	if i.server.Engine != bed.Postgres {
		query, args = "SELECT COUNT(*) FROM mysql.db WHERE ? LIKE Db AND User NOT IN (?, ?)",
			[]any{names.Database, names.User(tenant.A), names.User(tenant.B)}
	}
	n, err := i.count(ctx, query, args...)
	if err != nil {
		return err
	}
	if n != 0 {
		return fmt.Errorf("database %s is open to others", names.Database)
	}
	return nil
}

// CheckAdmin returns an error where an admin of PostgreSQL that is no superuser has the rights of a tenant's owner
// role.
func (i *Inspector) CheckAdmin(ctx context.Context, names tenant.Names, admin string) error {
	if i.server.Engine != bed.Postgres {
		return nil
	}
	how := "USAGE"
	if i.server.Version < "16" {
		how = "MEMBER" // before 16, a member can always SET ROLE
	}
	got, err := i.count(ctx, `SELECT count(*) FROM pg_roles r, pg_roles o WHERE r.rolname = $1 AND NOT r.rolsuper AND o.rolname = $2
		AND pg_has_role(r.oid, o.oid, $3)`, admin, names.Owner, how)
	if err != nil {
		return err
	}
	if got != 0 {
		return fmt.Errorf("the admin %s has the rights of the owner role of %s", admin, names.Database)
	}
	return nil
}

// CheckHandover returns nil if the hand-over holds the DSN of the record's active slot and nothing else, that DSN
// works, and the server accepts every password in the record.
func (t *Tenant) CheckHandover(ctx context.Context) error {
	record, err := t.Record(ctx)
	if err != nil {
		return err
	}
	if record == nil {
		return fmt.Errorf("there is no record")
	}
	if record.Pending != nil || !record.Provisioned() {
		return fmt.Errorf("the record is not settled: pending %t, provisioned %t", record.Pending != nil, record.Provisioned())
	}
	entries, err := os.ReadDir(t.Out)
	if err != nil {
		return fmt.Errorf("reading the hand-over: %w", err)
	}
	for _, e := range entries {
		if e.Name() != "dsn" && e.Name() != "ca.crt" {
			return fmt.Errorf("the hand-over holds %s", e.Name())
		}
	}
	dsn, err := t.DSN()
	if err != nil {
		return err
	}
	if want := record.Login(record.Active); !strings.Contains(dsn, "//"+want.User+":"+want.Password.Reveal()+"@") {
		return fmt.Errorf("the hand-over is not the record's active credential")
	}
	var ca []byte
	if record.Server.CA != "" {
		if ca, err = os.ReadFile(filepath.Join(t.Out, "ca.crt")); err != nil {
			return fmt.Errorf("reading the hand-over: %w", err)
		}
	}
	for slot, credential := range record.Slots {
		if credential.Password == "" {
			continue // no program knows it, and the record says so
		}
		if err := UseDSN(ctx, WithLogin(dsn, record.Login(slot)), ca); err != nil {
			return fmt.Errorf("slot %s: %w", slot, err)
		}
	}
	return nil
}

// CheckFiles returns an error where a file of the hand-over or the record exists and is not whole. A missing record or
// hand-over is no error.
func (t *Tenant) CheckFiles(ctx context.Context, ca string) error {
	if _, err := t.Record(ctx); err != nil {
		return err
	}
	dsn, err := os.ReadFile(filepath.Join(t.Out, "dsn"))
	if err == nil && !regexp.MustCompile(`^[a-z]+://vc[^:]+:[^@]{40}@[^/]+/vc[a-z2-7]{24}\?[a-z]+=[a-z-]+(&.*)?$`).Match(dsn) {
		return fmt.Errorf("the hand-over's dsn is not whole: %d bytes", len(dsn))
	}
	got, err := os.ReadFile(filepath.Join(t.Out, "ca.crt"))
	if err == nil && string(got) != ca {
		return fmt.Errorf("the hand-over's ca.crt is not whole: %d bytes", len(got))
	}
	return nil
}
