// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"dbconnector/pkg/tenant"
)

// Everything in this file is pure: from what the catalog says and what is wanted to the statements that are missing.
// postgres.go asks and runs. No statement holds a clear-text password.

// statement is SQL and a name for it that may be logged.
type statement struct{ name, sql string }

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// literal quotes a string of our own making: a marker or a verifier, whose alphabets hold neither quote nor backslash. It
// panics on anything else, for that would be a bug of ours and an injection.
func literal(s string) string {
	for _, r := range s {
		if r == '\'' || r == '\\' || r < ' ' || r > '~' {
			panic("postgres: literal outside its alphabet")
		}
	}
	return "'" + s + "'"
}

// session is what the server says of itself and of the admin.
type session struct {
	version    int // server_version_num
	readOnly   bool
	user       string
	superuser  bool
	createDB   bool
	createRole bool
}

// role is what pg_roles says of one of the tenant's roles.
type role struct {
	marker   string
	settings []string // rolconfig
	member   bool     // of the owner role
	expires  bool     // VALID UNTIL is set
}

// catalog is what the shared catalogs say of a tenant.
type catalog struct {
	roles map[string]role
	// adminMember: a grant of the owner role to the admin with more than ADMIN OPTION, left behind by an older release.
	adminMember bool
	database    *database
}

type database struct {
	exists    bool
	marker    string
	allowConn bool
	limit     int
	publicACL bool     // PUBLIC has any right
	ownerACL  []string // the rights of the tenant's owner role
}

// schema is what the tenant's database says of its schema public.
type schema struct {
	changeable bool // the admin may grant on it. On 13 and 14 it belongs to the bootstrap superuser
	publicACL  bool
	ownerACL   []string
}

// ours says whether a database that exists is the tenant's: it carries the marker, or it is still closed, as we create it, and
// the marked owner role is there, which is only ever made where no database of that name exists.
func (c catalog) ours(w tenant.Want) bool {
	if c.database == nil {
		return false
	}
	return c.database.marker == w.Marker || w.Provisioned || (!c.database.allowConn && c.roles[w.Owner].marker == w.Marker)
}

// planRoles brings the roles and their membership about. All of it runs in one transaction: a crash leaves all or nothing.
func planRoles(c catalog, s session, w tenant.Want, verifiers map[tenant.Slot]string) []statement {
	var plan []statement
	add := func(name, format string, args ...any) {
		plan = append(plan, statement{name, fmt.Sprintf(format, args...)})
	}
	owner := quote(w.Owner)

	_, hasOwner := c.roles[w.Owner]
	if !hasOwner {
		add("create owner role", "CREATE ROLE %s NOLOGIN", owner)
	}
	if c.roles[w.Owner].marker != w.Marker {
		add("mark owner role", "COMMENT ON ROLE %s IS %s", owner, literal(w.Marker))
	}
	setting := "role=" + w.Owner
	var adopt []statement
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		user := w.User(slot)
		have, ok := c.roles[user]
		switch {
		case !ok:
			add("create login "+string(slot), "CREATE ROLE %s LOGIN PASSWORD %s IN ROLE %s", quote(user), literal(verifiers[slot]), owner)
		case !have.member:
			add("grant owner role to login "+string(slot), "GRANT %s TO %s", owner, quote(user))
		}
		if have.expires {
			// The server answers an expired login like a wrong password. Who wants to lock a tenant out takes NOLOGIN.
			add("let login "+string(slot)+" not expire", "ALTER ROLE %s VALID UNTIL 'infinity'", quote(user))
		}
		if have.marker != w.Marker {
			add("mark login "+string(slot), "COMMENT ON ROLE %s IS %s", quote(user), literal(w.Marker))
		}
		if !slices.Contains(have.settings, setting) {
			adopt = append(adopt, statement{
				"set owner role for login " + string(slot),
				fmt.Sprintf("ALTER ROLE %s SET role TO %s", quote(user), literal(w.Owner)),
			})
		}
	}
	if len(adopt) > 0 && !s.superuser {
		// ALTER ROLE … SET role is refused to whoever cannot SET ROLE himself. The grant ends with the transaction.
		options := ""
		if s.version >= 160000 {
			options = " WITH INHERIT TRUE, SET TRUE"
		}
		add("grant owner role to admin", "GRANT %s TO CURRENT_USER%s", owner, options)
	}
	plan = append(plan, adopt...)
	if (len(adopt) > 0 && !s.superuser) || c.adminMember {
		add("revoke owner role from admin", "REVOKE %s FROM CURRENT_USER", owner)
	}
	return plan
}

// createDatabase makes the database closed; it cannot run in a transaction. template0 because template1 may be in use or
// have another collation version (docs/failures.md B42 has the cases); C because kine compares bytes. From 15 on a server
// may be made with ICU, whose order would win over C unless the provider is named.
func createDatabase(s session, w tenant.Want) statement {
	provider := ""
	if s.version >= 150000 {
		provider = " LOCALE_PROVIDER libc"
	}
	return statement{tenant.CreateDatabase, fmt.Sprintf(
		"CREATE DATABASE %s TEMPLATE template0 ENCODING 'UTF8'%s LC_COLLATE 'C' LC_CTYPE 'C' ALLOW_CONNECTIONS false CONNECTION LIMIT %d",
		quote(w.Database), provider, w.ConnectionLimit)}
}

// planDatabase locks the database down, marks it and only then opens it, in one transaction.
func planDatabase(d database, w tenant.Want) []statement {
	var plan []statement
	add := func(name, format string, args ...any) {
		plan = append(plan, statement{name, fmt.Sprintf(format, args...)})
	}
	db := quote(w.Database)
	if d.publicACL {
		add("close database to others", "REVOKE ALL ON DATABASE %s FROM PUBLIC", db)
	}
	if !holds(d.ownerACL, "CONNECT", "TEMPORARY") {
		add("open database to tenant", "GRANT CONNECT, TEMPORARY ON DATABASE %s TO %s", db, quote(w.Owner))
	}
	if slices.Contains(d.ownerACL, "CREATE") {
		add("withhold schemas from tenant", "REVOKE CREATE ON DATABASE %s FROM %s", db, quote(w.Owner))
	}
	if d.limit != w.ConnectionLimit {
		add("limit connections", "ALTER DATABASE %s CONNECTION LIMIT %d", db, w.ConnectionLimit)
	}
	if d.marker != w.Marker {
		add("mark database", "COMMENT ON DATABASE %s IS %s", db, literal(w.Marker))
	}
	if !d.allowConn {
		add("open database", "ALTER DATABASE %s ALLOW_CONNECTIONS true", db)
	}
	return plan
}

// planSchema gives the tenant the schema public and takes it from everybody else. Where the admin may not grant on it
// (13 and 14, not superuser), PUBLIC has both rights from the start, and nobody else can connect: nothing is to be done.
func planSchema(s schema, w tenant.Want) []statement {
	if !s.changeable {
		return nil
	}
	var plan []statement
	if s.publicACL {
		plan = append(plan, statement{"close schema to others", "REVOKE ALL ON SCHEMA public FROM PUBLIC"})
	}
	if !holds(s.ownerACL, "USAGE", "CREATE") {
		plan = append(plan, statement{"open schema to tenant", "GRANT USAGE, CREATE ON SCHEMA public TO " + quote(w.Owner)})
	}
	return plan
}

func holds(have []string, want ...string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}
