// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"dbconnector/pkg/engine"
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

// text quotes any string: a name from the catalog, for a statement that a message recommends.
func text(s string) string {
	quoted := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) { // whatever standard_conforming_strings says
		return "E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
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

// role is what the catalog says of one of the tenant's roles.
type role struct {
	marker   string
	inherits bool
	limit    int       // rolconnlimit
	expires  bool      // VALID UNTIL is set
	begins   bool      // its sessions begin as the owner role
	settings []setting // others that it has
	member   bool      // of the owner role, and may become it
	wrong    []grant   // of the owner role to it, with more than that
}

// setting is a parameter that is set for one of the tenant's roles: everywhere, or in the tenant's database alone.
type setting struct {
	name   string
	inside bool
}

// grant is a membership of one of the tenant's roles, or in one.
type grant struct {
	role, member string
	grantor      string // "" up to 15, where a membership is there once, whichever role granted it
	revocable    bool   // by the admin
}

// catalog is what the shared catalogs say of a tenant.
type catalog struct {
	roles map[string]role
	// foreign are memberships in the tenant's roles that are none of ours, and memberships that others forced on them: up to 14
	// a login may grant itself to any role.
	foreign []grant
	// admins may grant the tenant's roles to themselves and to others.
	admins []string
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
	acl       []string // what the tenant's roles may do: "vcx… CONNECT"
	settings  []string // what is set for all who connect: "search_path=public"
}

// schema is what the tenant's database says of its schema public.
type schema struct {
	changeable bool // the admin may grant on it. On 13 and 14 it belongs to the bootstrap superuser
	publicACL  bool
	ownerACL   []string
}

// ours says whether a database that exists is the tenant's: it carries the marker, or it is still closed, as we create it, and
// the marked owner role is there, which is only ever made where no database of that name exists.
func (c catalog) ours(w engine.Spec) bool {
	if c.database == nil {
		return false
	}
	return c.database.marker == w.Marker || w.Provisioned || (!c.database.allowConn && c.roles[w.Owner].marker == w.Marker)
}

// adopt says which of the tenant's roles exist without its mark, and how to mark them. Only a record that was provisioned proves
// that they are ours: who made them may know their passwords, and may administer them (docs/failures.md S11).
func (c catalog) adopt(w engine.Spec) (unmarked, remedy []string) {
	for _, name := range []string{w.Owner, w.User(tenant.A), w.User(tenant.B)} {
		if have, ok := c.roles[name]; ok && have.marker != w.Marker && !w.Provisioned {
			unmarked = append(unmarked, strconv.Quote(name))
			remedy = append(remedy, fmt.Sprintf("COMMENT ON ROLE %s IS %s", quote(name), literal(w.Marker)))
		}
	}
	return unmarked, remedy
}

// sort puts a membership where it belongs.
func (c *catalog) sort(m membership, names tenant.Names) {
	ours := rolesOf(names)
	a, b := names.User(tenant.A), names.User(tenant.B)
	switch {
	case m.role == names.Owner && (m.member == a || m.member == b):
		r, ok := c.roles[m.member]
		if !ok {
			return // made since: without a lock on the server, by a rival
		}
		if (m.inherit || m.admin) && m.revocable {
			r.wrong = append(r.wrong, m.grant)
		} else {
			r.member = r.member || m.set
		}
		c.roles[m.member] = r
	case slices.Contains(ours, m.role):
		if m.admin && !slices.Contains(c.admins, m.member) {
			c.admins = append(c.admins, m.member)
		}
		if !m.byAdmin { // who may make roles needs no grant of ours, and from 16 on has one of all that he made
			c.foreign = append(c.foreign, m.grant)
		}
	case m.login: // a group, which is no login and no tenant's, was granted by an admin: Verify judges it
		c.foreign = append(c.foreign, m.grant)
	}
}

// revoke takes a membership back, and what was granted on by way of it.
func revoke(g grant) statement {
	sql := fmt.Sprintf("REVOKE %s FROM %s", quote(g.role), quote(g.member))
	if g.grantor != "" {
		sql += fmt.Sprintf(" GRANTED BY %s CASCADE", quote(g.grantor))
	}
	return statement{"revoke foreign membership", sql}
}

// plan is a list of statements in the making.
type plan []statement

func (p *plan) add(name, format string, args ...any) {
	*p = append(*p, statement{name, fmt.Sprintf(format, args...)})
}

// planRoles brings the roles and their membership about. All of it runs in one transaction: a crash leaves all or nothing.
//
// The logins inherit nothing. Up to 14 a login may grant itself to others, and other logins to it: what is forced on it must
// have no effect, and who is made a member of it must not enter the tenant's database (docs/failures.md S1).
func planRoles(c catalog, s session, w engine.Spec, verifiers map[tenant.Slot]string) []statement {
	var p plan
	owner := quote(w.Owner)
	have, hasOwner := c.roles[w.Owner]
	switch {
	case !hasOwner:
		p.add("create owner role", "CREATE ROLE %s NOLOGIN NOINHERIT", owner)
	case have.inherits:
		p.add("let owner role not inherit", "ALTER ROLE %s NOINHERIT", owner)
	}
	if have.marker != w.Marker {
		p.add("mark owner role", "COMMENT ON ROLE %s IS %s", owner, literal(w.Marker))
	}
	p.reset("owner role", w.Owner, w.Database, have.settings)

	var adopt []statement
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		user := w.User(slot)
		have, ok := c.roles[user]
		if ok {
			p.convert(slot, have, c.database, s, w)
		} else {
			// From 16 on IN ROLE grants what the login's own attributes say: SET, and not INHERIT.
			p.add("create login "+string(slot), "CREATE ROLE %s LOGIN NOINHERIT CONNECTION LIMIT %d PASSWORD %s IN ROLE %s",
				quote(user), w.ConnectionLimit, literal(verifiers[slot]), owner)
		}
		if have.marker != w.Marker {
			p.add("mark login "+string(slot), "COMMENT ON ROLE %s IS %s", quote(user), literal(w.Marker))
		}
		if !have.begins {
			adopt = append(adopt, statement{
				"set owner role for login " + string(slot),
				fmt.Sprintf("ALTER ROLE %s SET role TO %s", quote(user), literal(w.Owner)),
			})
		}
	}
	if len(adopt) > 0 && !s.superuser {
		// ALTER ROLE … SET role is refused to a role that cannot SET ROLE itself. The grant ends with the transaction.
		options := ""
		if s.version >= 160000 {
			options = " WITH INHERIT TRUE, SET TRUE"
		}
		p.add("grant owner role to admin", "GRANT %s TO CURRENT_USER%s", owner, options)
	}
	p = append(p, adopt...)
	if (len(adopt) > 0 && !s.superuser) || c.adminMember {
		p.add("revoke owner role from admin", "REVOKE %s FROM CURRENT_USER", owner)
	}
	return p
}

// convert makes a login that exists what it has to be. Its own right to connect comes before it ceases to inherit the owner
// role's, so that there is no moment at which it cannot.
func (p *plan) convert(slot tenant.Slot, have role, d *database, s session, w engine.Spec) {
	user := w.User(slot)
	for _, g := range have.wrong {
		*p = append(*p, revoke(g))
	}
	if !have.member {
		options := ""
		if s.version >= 160000 {
			options = " WITH INHERIT FALSE, SET TRUE"
		}
		p.add("grant owner role to login "+string(slot), "GRANT %s TO %s%s", quote(w.Owner), quote(user), options)
	}
	if d != nil {
		p.open(*d, user, w)
	}
	if have.inherits {
		p.add("let login "+string(slot)+" not inherit", "ALTER ROLE %s NOINHERIT", quote(user))
	}
	if have.limit != w.ConnectionLimit {
		p.add("limit connections of login "+string(slot), "ALTER ROLE %s CONNECTION LIMIT %d", quote(user), w.ConnectionLimit)
	}
	if have.expires {
		// The server answers an expired login like a wrong password. Who wants to lock a tenant out takes NOLOGIN.
		p.add("let login "+string(slot)+" not expire", "ALTER ROLE %s VALID UNTIL 'infinity'", quote(user))
	}
	p.reset("login "+string(slot), user, w.Database, have.settings)
}

// reset takes back what was set for a role; one by one, because from 16 on RESET ALL fails as a whole where a login has set
// what cannot be reset.
func (p *plan) reset(what, user, database string, settings []setting) {
	for _, have := range settings {
		where := ""
		if have.inside {
			where = " IN DATABASE " + quote(database)
		}
		p.add("reset setting of "+what, "ALTER ROLE %s%s RESET %s", quote(user), where, quote(have.name))
	}
}

// open lets a login connect, by a right of its own.
func (p *plan) open(d database, user string, w engine.Spec) {
	if !holds(d.acl, user+" CONNECT", user+" TEMPORARY") {
		p.add("open database to login", "GRANT CONNECT, TEMPORARY ON DATABASE %s TO %s", quote(w.Database), quote(user))
	}
}

// createDatabase makes the database closed; it cannot run in a transaction. template0 because template1 may be in use or
// have another collation version (docs/failures.md B42 has the cases); C because kine compares bytes. From 15 on a server
// may be made with ICU, whose order would win over C unless the provider is named.
func createDatabase(s session, w engine.Spec) statement {
	provider := ""
	if s.version >= 150000 {
		provider = " LOCALE_PROVIDER libc"
	}
	return statement{engine.CreateDatabase, fmt.Sprintf(
		"CREATE DATABASE %s TEMPLATE template0 ENCODING 'UTF8'%s LC_COLLATE 'C' LC_CTYPE 'C' ALLOW_CONNECTIONS false CONNECTION LIMIT %d",
		quote(w.Database), provider, w.ConnectionLimit)}
}

// pins are the parameters that kine depends on, as it needs them: a server's defaults may be others (docs/failures.md F11), and
// those of the database win over them. default_transaction_read_only is none: who sets it means it.
var pins = []struct {
	name, value, sql string
	since            int
}{
	{name: "default_tablespace", sql: "''"},
	{name: "default_transaction_isolation", value: "read committed"},
	{name: "lock_timeout", value: "0"},
	{name: "search_path", value: `"$user", public`, sql: `"$user", public`},
	{name: "statement_timeout", value: "0"},
	{name: "transaction_timeout", value: "0", since: 170000},
}

// planDatabase locks the database down, marks it and only then opens it, in one transaction.
func planDatabase(d database, s session, w engine.Spec) []statement {
	var p plan
	db := quote(w.Database)
	if d.publicACL {
		p.add("close database to others", "REVOKE ALL ON DATABASE %s FROM PUBLIC", db)
	}
	for _, user := range []string{w.User(tenant.A), w.User(tenant.B)} {
		p.open(d, user, w)
	}
	if !holds(d.acl, w.Owner+" TEMPORARY") {
		p.add("let tenant make temporary tables", "GRANT TEMPORARY ON DATABASE %s TO %s", db, quote(w.Owner))
	}
	if slices.Contains(d.acl, w.Owner+" CONNECT") {
		// A right of the logins: a member of the owner role must not have it.
		p.add("close database to owner role", "REVOKE CONNECT ON DATABASE %s FROM %s", db, quote(w.Owner))
	}
	for _, user := range []string{w.Owner, w.User(tenant.A), w.User(tenant.B)} {
		if slices.Contains(d.acl, user+" CREATE") {
			p.add("withhold schemas from tenant", "REVOKE CREATE ON DATABASE %s FROM %s", db, quote(user))
		}
	}
	if d.limit != w.ConnectionLimit {
		p.add("limit connections", "ALTER DATABASE %s CONNECTION LIMIT %d", db, w.ConnectionLimit)
	}
	for _, pin := range pins {
		if s.version >= pin.since && !slices.Contains(d.settings, pin.name+"="+pin.value) {
			value := pin.sql
			if value == "" {
				value = literal(pin.value)
			}
			p.add("set "+pin.name+" of database", "ALTER DATABASE %s SET %s TO %s", db, pin.name, value)
		}
	}
	if d.marker != w.Marker {
		p.add("mark database", "COMMENT ON DATABASE %s IS %s", db, literal(w.Marker))
	}
	if !d.allowConn {
		p.add("open database", "ALTER DATABASE %s ALLOW_CONNECTIONS true", db)
	}
	return p
}

// planSchema gives the tenant the schema public and takes it from all others. Where the admin may not grant on it
// (13 and 14, not superuser), PUBLIC has both rights from the start, and no other login can connect: nothing is to be done.
func planSchema(s schema, w engine.Spec) []statement {
	if !s.changeable {
		return nil
	}
	var p plan
	if s.publicACL {
		p.add("close schema to others", "REVOKE ALL ON SCHEMA public FROM PUBLIC")
	}
	if !holds(s.ownerACL, "USAGE", "CREATE") {
		p.add("open schema to tenant", "GRANT USAGE, CREATE ON SCHEMA public TO %s", quote(w.Owner))
	}
	return p
}

func holds(have []string, want ...string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}
