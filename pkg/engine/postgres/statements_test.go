// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"dbconnector/pkg/engine"
	"dbconnector/pkg/tenant"
)

var (
	cloud13 = session{version: 130023, user: "cloud", createDB: true, createRole: true}
	cloud16 = session{version: 160014, user: "cloud", createDB: true, createRole: true}
	super   = session{version: 180004, user: "postgres", superuser: true, createDB: true, createRole: true}
)

func want() engine.Spec {
	return engine.Spec{Names: tenant.Names{Database: "vcx", Owner: "vcxo", Marker: "dbconnector:0"}, ConnectionLimit: 40}
}

// good is a tenant to whom nothing is missing.
func good() catalog {
	w := want()
	login := role{marker: w.Marker, limit: 40, begins: true, member: true}
	d := &database{exists: true, marker: w.Marker, allowConn: true, limit: 40, acl: []string{
		"vcxa CONNECT", "vcxa TEMPORARY", "vcxb CONNECT", "vcxb TEMPORARY", "vcxo TEMPORARY",
	}}
	for _, pin := range pins {
		d.settings = append(d.settings, pin.name+"="+pin.value)
	}
	return catalog{roles: map[string]role{"vcxo": {marker: w.Marker}, "vcxa": login, "vcxb": login}, database: d}
}

func check(t *testing.T, reason string, got, want []statement) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", reason, got, want)
	}
}

func TestPlanRoles(t *testing.T) {
	t.Parallel()
	const (
		a = `CREATE ROLE "vcxa" LOGIN NOINHERIT CONNECTION LIMIT 40 PASSWORD 'SCRAM-A' IN ROLE "vcxo"`
		b = `CREATE ROLE "vcxb" LOGIN NOINHERIT CONNECTION LIMIT 40 PASSWORD 'SCRAM-B' IN ROLE "vcxo"`
	)
	newTenant := func(grant ...statement) []statement {
		head := []statement{
			{"create owner role", `CREATE ROLE "vcxo" NOLOGIN NOINHERIT`},
			{"mark owner role", `COMMENT ON ROLE "vcxo" IS 'dbconnector:0'`},
			{"create login a", a},
			{"mark login a", `COMMENT ON ROLE "vcxa" IS 'dbconnector:0'`},
			{"create login b", b},
			{"mark login b", `COMMENT ON ROLE "vcxb" IS 'dbconnector:0'`},
		}
		sets := []statement{
			{"set owner role for login a", `ALTER ROLE "vcxa" SET role TO 'vcxo'`},
			{"set owner role for login b", `ALTER ROLE "vcxb" SET role TO 'vcxo'`},
		}
		if len(grant) == 0 {
			return append(head, sets...)
		}
		return slices.Concat(head, grant[:1], sets, grant[1:])
	}
	change := func(name string, fn func(*role)) func(*catalog) {
		return func(c *catalog) {
			r := c.roles[name]
			fn(&r)
			c.roles[name] = r
		}
	}
	revoke := statement{"revoke owner role from admin", `REVOKE "vcxo" FROM CURRENT_USER`}
	tests := map[string]struct {
		reason string
		s      session
		have   func(*catalog)
		want   []statement
	}{
		"nothing to do":  {"a second run must change nothing", cloud16, func(*catalog) {}, nil},
		"new, superuser": {"a superuser needs no grant", super, func(c *catalog) { *c = catalog{} }, newTenant()},
		"new, cloud admin up to 15": {
			"ALTER ROLE … SET role wants membership, for the transaction only (B32)", cloud13, func(c *catalog) { *c = catalog{} },
			newTenant(statement{"grant owner role to admin", `GRANT "vcxo" TO CURRENT_USER`}, revoke),
		},
		"new, cloud admin from 16 on": {
			"the creator has ADMIN OPTION only and must grant itself the rest (B36)", cloud16, func(c *catalog) { *c = catalog{} },
			newTenant(statement{"grant owner role to admin", `GRANT "vcxo" TO CURRENT_USER WITH INHERIT TRUE, SET TRUE`}, revoke),
		},
		"login gone": {
			"init makes it again, and touches nothing else", super, func(c *catalog) { delete(c.roles, "vcxb") },
			[]statement{
				{"create login b", b},
				{"mark login b", `COMMENT ON ROLE "vcxb" IS 'dbconnector:0'`},
				{"set owner role for login b", `ALTER ROLE "vcxb" SET role TO 'vcxo'`},
			},
		},
		"membership gone": {
			"without it a login cannot become the owner (B4)", cloud13, change("vcxa", func(r *role) { r.member = false }),
			[]statement{{"grant owner role to login a", `GRANT "vcxo" TO "vcxa"`}},
		},
		"setting gone": {
			"what the login creates would belong to itself (B4)", super, change("vcxa", func(r *role) { r.begins = false }),
			[]statement{{"set owner role for login a", `ALTER ROLE "vcxa" SET role TO 'vcxo'`}},
		},
		"membership gone, from 16 on": {
			"S1: a login becomes the owner role, and does not inherit from it", cloud16, change("vcxa", func(r *role) { r.member = false }),
			[]statement{{"grant owner role to login a", `GRANT "vcxo" TO "vcxa" WITH INHERIT FALSE, SET TRUE`}},
		},
		"made by an older release": {
			"S1, S4: the login's own right to connect comes before it ceases to inherit one", cloud16, func(c *catalog) {
				c.roles["vcxo"] = role{marker: want().Marker, inherits: true, limit: -1}
				for _, user := range []string{"vcxa", "vcxb"} {
					c.roles[user] = role{marker: want().Marker, inherits: true, limit: -1, begins: true, wrong: []grant{{"vcxo", user, "cloud", true}}}
				}
				c.database.acl = []string{"vcxo CONNECT", "vcxo TEMPORARY"}
			},
			[]statement{
				{"let owner role not inherit", `ALTER ROLE "vcxo" NOINHERIT`},
				{"revoke foreign membership", `REVOKE "vcxo" FROM "vcxa" GRANTED BY "cloud" CASCADE`},
				{"grant owner role to login a", `GRANT "vcxo" TO "vcxa" WITH INHERIT FALSE, SET TRUE`},
				{"open database to login", `GRANT CONNECT, TEMPORARY ON DATABASE "vcx" TO "vcxa"`},
				{"let login a not inherit", `ALTER ROLE "vcxa" NOINHERIT`},
				{"limit connections of login a", `ALTER ROLE "vcxa" CONNECTION LIMIT 40`},
				{"revoke foreign membership", `REVOKE "vcxo" FROM "vcxb" GRANTED BY "cloud" CASCADE`},
				{"grant owner role to login b", `GRANT "vcxo" TO "vcxb" WITH INHERIT FALSE, SET TRUE`},
				{"open database to login", `GRANT CONNECT, TEMPORARY ON DATABASE "vcx" TO "vcxb"`},
				{"let login b not inherit", `ALTER ROLE "vcxb" NOINHERIT`},
				{"limit connections of login b", `ALTER ROLE "vcxb" CONNECTION LIMIT 40`},
			},
		},
		"settings of a login's own": {
			"S6: the login made them, or a thief with its password", super, change("vcxa", func(r *role) {
				r.settings = []setting{{"DateStyle", false}, {"role", true}}
			}),
			[]statement{
				{"reset setting of login a", `ALTER ROLE "vcxa" RESET "DateStyle"`},
				{"reset setting of login a", `ALTER ROLE "vcxa" IN DATABASE "vcx" RESET "role"`},
			},
		},
		"marks gone": {
			"marks tell our roles from others (B15)", super, func(c *catalog) {
				for name, r := range c.roles {
					r.marker = ""
					c.roles[name] = r
				}
			},
			[]statement{
				{"mark owner role", `COMMENT ON ROLE "vcxo" IS 'dbconnector:0'`},
				{"mark login a", `COMMENT ON ROLE "vcxa" IS 'dbconnector:0'`},
				{"mark login b", `COMMENT ON ROLE "vcxb" IS 'dbconnector:0'`},
			},
		},
		"admin is still a member": {
			"a grant that an interrupted release left behind (B38)", cloud16, func(c *catalog) { c.adminMember = true },
			[]statement{revoke},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			have := good()
			tc.have(&have)
			check(t, tc.reason, planRoles(have, tc.s, want(), map[tenant.Slot]string{tenant.A: "SCRAM-A", tenant.B: "SCRAM-B"}), tc.want)
		})
	}
}

func TestPlanDatabase(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		reason string
		have   func(*database)
		want   []statement
	}{
		"nothing to do": {"a second run must change nothing", func(*database) {}, nil},
		"just created": {
			"B25: locked down first, opened last", func(d *database) {
				*d = database{exists: true, limit: 40, publicACL: true, settings: d.settings}
			},
			[]statement{
				{"close database to others", `REVOKE ALL ON DATABASE "vcx" FROM PUBLIC`},
				{"open database to login", `GRANT CONNECT, TEMPORARY ON DATABASE "vcx" TO "vcxa"`},
				{"open database to login", `GRANT CONNECT, TEMPORARY ON DATABASE "vcx" TO "vcxb"`},
				{"let tenant make temporary tables", `GRANT TEMPORARY ON DATABASE "vcx" TO "vcxo"`},
				{"mark database", `COMMENT ON DATABASE "vcx" IS 'dbconnector:0'`},
				{"open database", `ALTER DATABASE "vcx" ALLOW_CONNECTIONS true`},
			},
		},
		"opened to PUBLIC": {"B24", func(d *database) { d.publicACL = true }, []statement{{"close database to others", `REVOKE ALL ON DATABASE "vcx" FROM PUBLIC`}}},
		"right gone": {
			"kine needs CONNECT", func(d *database) {
				d.acl = slices.DeleteFunc(d.acl, func(s string) bool { return s == "vcxb CONNECT" })
			},
			[]statement{{"open database to login", `GRANT CONNECT, TEMPORARY ON DATABASE "vcx" TO "vcxb"`}},
		},
		"right too many": {
			"a tenant makes no schemas", func(d *database) { d.acl = append(d.acl, "vcxo CREATE") },
			[]statement{{"withhold schemas from tenant", `REVOKE CREATE ON DATABASE "vcx" FROM "vcxo"`}},
		},
		"owner role may connect": {
			"S1: a member of it could", func(d *database) { d.acl = append(d.acl, "vcxo CONNECT") },
			[]statement{{"close database to owner role", `REVOKE CONNECT ON DATABASE "vcx" FROM "vcxo"`}},
		},
		"pin changed": {
			"F11: kine finds nothing by another search_path", func(d *database) {
				d.settings = slices.DeleteFunc(d.settings, func(s string) bool { return strings.HasPrefix(s, "search_path=") })
				d.settings = append(d.settings, "search_path=app", "work_mem=4MB")
			},
			[]statement{{"set search_path of database", `ALTER DATABASE "vcx" SET search_path TO "$user", public`}},
		},
		"limit changed": {
			"the limit is the operator's setting", func(d *database) { d.limit = -1 },
			[]statement{{"limit connections", `ALTER DATABASE "vcx" CONNECTION LIMIT 40`}},
		},
		"mark gone": {
			"the mark names the owner", func(d *database) { d.marker = "" },
			[]statement{{"mark database", `COMMENT ON DATABASE "vcx" IS 'dbconnector:0'`}},
		},
		"closed": {
			"no login could use it", func(d *database) { d.allowConn = false },
			[]statement{{"open database", `ALTER DATABASE "vcx" ALLOW_CONNECTIONS true`}},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			have := *good().database
			tc.have(&have)
			check(t, tc.reason, planDatabase(have, super, want()), tc.want)
		})
	}
	check(t, "B42: template0, and closed from the start (B25)", []statement{createDatabase(session{version: 140000}, want())}, []statement{{
		"create database",
		`CREATE DATABASE "vcx" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' ALLOW_CONNECTIONS false CONNECTION LIMIT 40`,
	}})
	check(t, "from 15 on ICU's order would win", []statement{createDatabase(session{version: 150000}, want())}, []statement{{
		"create database",
		`CREATE DATABASE "vcx" TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C' ALLOW_CONNECTIONS false CONNECTION LIMIT 40`,
	}})
}

func TestPlanSchema(t *testing.T) {
	t.Parallel()
	closeOthers := statement{"close schema to others", "REVOKE ALL ON SCHEMA public FROM PUBLIC"}
	open := statement{"open schema to tenant", `GRANT USAGE, CREATE ON SCHEMA public TO "vcxo"`}
	for _, tc := range []struct {
		reason string
		have   schema
		want   []statement
	}{
		{"a second run must change nothing", schema{changeable: true, ownerACL: []string{"USAGE", "CREATE"}}, nil},
		{"B39: on 15 and later only the owner may create", schema{changeable: true, publicACL: true}, []statement{closeOthers, open}},
		{"one of two rights is not enough", schema{changeable: true, ownerACL: []string{"USAGE"}}, []statement{open}},
		{"13 and 14, not superuser: it is the bootstrap superuser's", schema{publicACL: true}, nil},
	} {
		check(t, tc.reason, planSchema(tc.have, want()), tc.want)
	}
}

func TestOursPostgres(t *testing.T) {
	t.Parallel()
	closed := &database{exists: true}
	owner := map[string]role{"vcxo": {marker: want().Marker}}
	for _, tc := range []struct {
		reason      string
		c           catalog
		provisioned bool
		want        bool
	}{
		{"there is none", catalog{}, true, false},
		{"it carries the mark", good(), false, true},
		{"the record knows it", catalog{database: &database{exists: true, allowConn: true}}, true, true},
		{"closed, with our owner role: made by us, and the crash came before the mark", catalog{database: closed, roles: owner}, false, true},
		{"closed by another tool", catalog{database: closed}, false, false},
		{"open and without a mark", catalog{database: &database{exists: true, allowConn: true}, roles: owner}, false, false},
		{"another tenant's mark", catalog{database: &database{exists: true, allowConn: true, marker: "dbconnector:1"}}, false, false},
	} {
		w := want()
		w.Provisioned = tc.provisioned
		if got := tc.c.ours(w); got != tc.want {
			t.Errorf("%s: got %t", tc.reason, got)
		}
	}
}

func FuzzQuotePostgres(f *testing.F) {
	for _, seed := range []string{"", "vcx", `a"b`, `""`, `a\"`, "a\x00b", `"; DROP DATABASE x; --`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got := quote(name)
		// As the server's lexer reads it (scan.l): up to a quote that is not doubled.
		var read []byte
		i := 1
		for ; i < len(got); i++ {
			if got[i] == '"' {
				if i+1 >= len(got) || got[i+1] != '"' {
					break
				}
				i++
			}
			read = append(read, got[i])
		}
		clean := slices.DeleteFunc([]byte(name), func(b byte) bool { return b == 0 })
		if got[0] != '"' || i != len(got)-1 || string(read) != string(clean) {
			t.Errorf("quote(%q) = %q reads as %q", name, got, read)
		}
		if got != (pgx.Identifier{name}).Sanitize() {
			t.Error("not pgx's quoting")
		}
	})
}

func FuzzLiteral(f *testing.F) {
	for _, seed := range []string{"dbconnector:0", "a'b", `a\b`, "a\nb", "é", "SCRAM-SHA-256$4096:x==$y=:z="} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		defer func() {
			clean := !slices.ContainsFunc([]rune(s), func(r rune) bool { return r < ' ' || r > '~' || r == '\'' || r == '\\' })
			if r := recover(); (r == nil) != clean {
				t.Errorf("literal(%q): panic %v", s, r)
			}
		}()
		if got := literal(s); got != "'"+s+"'" {
			t.Errorf("got %q", got)
		}
	})
}

// FuzzText: a name from the catalog, which a tenant may have chosen, is one literal in the statement that a message recommends:
// read as PostgreSQL reads it, with either setting of standard_conforming_strings, it is the name again.
func FuzzText(f *testing.F) {
	for _, seed := range []string{"", "a'b", `a\`, `\'; DROP TABLE x; --`, "E'", `a\\'b`, "é"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := text(s)
		body, escapes := strings.CutPrefix(got, "E")
		if !strings.HasPrefix(body, "'") || escapes != strings.Contains(s, `\`) {
			t.Fatalf("text(%q) = %s", s, got)
		}
		var read strings.Builder
		for i := 1; ; i++ {
			switch {
			case i >= len(body):
				t.Fatalf("text(%q) = %s does not end", s, got)
			case body[i] == '\'' && i+1 < len(body) && body[i+1] == '\'', body[i] == '\\' && i+1 < len(body) && body[i+1] == '\\':
				i++
			case body[i] == '\'':
				if i != len(body)-1 || read.String() != s {
					t.Fatalf("text(%q) = %s reads as %q, %d bytes are left", s, got, read.String(), len(body)-1-i)
				}
				return
			case body[i] == '\\':
				t.Fatalf("text(%q) = %s escapes something", s, got)
			}
			read.WriteByte(body[i])
		}
	})
}
