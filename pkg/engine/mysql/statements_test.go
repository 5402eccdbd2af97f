// SPDX-License-Identifier: Apache-2.0

package mysql

import (
	"slices"
	"strings"
	"testing"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/tenant"
)

var names = tenant.Names{Database: "vcx", Owner: "vcxo", Marker: "dbconnector:0"}

func want() engine.Spec {
	return engine.Spec{
		Names: names, ConnectionLimit: 40,
		Passwords: map[tenant.Slot]dbserver.Password{tenant.A: "secret-A", tenant.B: "secret-B"},
	}
}

// good is a tenant to whom nothing is missing.
func good() catalog {
	return catalog{database: true, marked: true, accounts: map[tenant.Slot]account{
		tenant.A: {tls: true, limit: 40, privileges: slices.Sorted(slices.Values(privileges))},
		tenant.B: {tls: true, limit: 40, privileges: slices.Sorted(slices.Values(privileges))},
	}}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	const grant = "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX ON `vcx`.* TO ?@'%'"
	change := func(slot tenant.Slot, fn func(*account)) func(*catalog) {
		return func(c *catalog) {
			a := c.accounts[slot]
			fn(&a)
			c.accounts[slot] = a
		}
	}
	tests := map[string]struct {
		reason string
		d      dialect
		have   func(*catalog)
		plain  bool // the connector disables TLS
		want   []statement
	}{
		"nothing to do": {
			reason: "a second run must change nothing",
			d:      dialectMySQL, have: func(*catalog) {}, want: nil,
		},
		"new on MySQL": {
			reason: "MySQL hashes by itself and hides the clear text in its logs",
			d:      dialectMySQL,
			have:   func(c *catalog) { *c = catalog{} },
			want: []statement{
				{"mark tenant", "CREATE ROLE IF NOT EXISTS `vcxo`", nil},
				{"create login a", "CREATE USER IF NOT EXISTS ?@'%' IDENTIFIED WITH caching_sha2_password BY ? REQUIRE SSL WITH MAX_USER_CONNECTIONS 40 PASSWORD EXPIRE " +
					"NEVER", []any{"vcxa", "secret-A"}},
				{"create login b", "CREATE USER IF NOT EXISTS ?@'%' IDENTIFIED WITH caching_sha2_password BY ? REQUIRE SSL WITH MAX_USER_CONNECTIONS 40 PASSWORD EXPIRE " +
					"NEVER", []any{"vcxb", "secret-B"}},
				{"create database", "CREATE DATABASE IF NOT EXISTS `vcx` CHARACTER SET utf8mb4", nil},
				{"grant to login a", "GRANT " + grant, []any{"vcxa"}},
				{"grant to login b", "GRANT " + grant, []any{"vcxb"}},
			},
		},
		"new on MariaDB": {
			reason: "MariaDB logs statements as they come, so that no clear text may be in them",
			d:      dialectMariaDB,
			have:   func(c *catalog) { *c = catalog{} },
			want: []statement{
				{"mark tenant", "CREATE ROLE IF NOT EXISTS `vcxo`", nil},
				{
					"create login a", "CREATE USER IF NOT EXISTS ?@'%' IDENTIFIED BY PASSWORD ? REQUIRE SSL WITH MAX_USER_CONNECTIONS 40 PASSWORD EXPIRE NEVER",
					[]any{"vcxa", nativeHash("secret-A")},
				},
				{
					"create login b", "CREATE USER IF NOT EXISTS ?@'%' IDENTIFIED BY PASSWORD ? REQUIRE SSL WITH MAX_USER_CONNECTIONS 40 PASSWORD EXPIRE NEVER",
					[]any{"vcxb", nativeHash("secret-B")},
				},
				{"create database", "CREATE DATABASE IF NOT EXISTS `vcx` CHARACTER SET utf8mb4", nil},
				{"grant to login a", "GRANT " + grant, []any{"vcxa"}},
				{"grant to login b", "GRANT " + grant, []any{"vcxb"}},
			},
		},
		"login gone": {
			reason: "a login that is made anew has no rights yet",
			d:      dialectMySQL,
			have:   func(c *catalog) { delete(c.accounts, tenant.B) },
			want: []statement{
				{"create login b", "CREATE USER IF NOT EXISTS ?@'%' IDENTIFIED WITH caching_sha2_password BY ? REQUIRE SSL WITH MAX_USER_CONNECTIONS 40 PASSWORD EXPIRE " +
					"NEVER", []any{"vcxb", "secret-B"}},
				{"grant to login b", "GRANT " + grant, []any{"vcxb"}},
			},
		},
		"TLS not required": {
			reason: "a login without REQUIRE SSL could be used in clear text",
			d:      dialectMySQL,
			have:   change(tenant.A, func(a *account) { a.tls = false }),
			want:   []statement{{"set TLS and limit of login a", "ALTER USER ?@'%' REQUIRE SSL WITH MAX_USER_CONNECTIONS 40", []any{"vcxa"}}},
		},
		"TLS required, connector without TLS": {
			reason: "the login could not be used, then",
			d:      dialectMySQL, plain: true,
			have: change(tenant.B, func(a *account) { a.tls = false }),
			want: []statement{{"set TLS and limit of login a", "ALTER USER ?@'%' REQUIRE NONE WITH MAX_USER_CONNECTIONS 40", []any{"vcxa"}}},
		},
		"limit changed": {
			reason: "the limit is the operator's setting",
			d:      dialectMySQL,
			have:   change(tenant.B, func(a *account) { a.limit = 0 }),
			want:   []statement{{"set TLS and limit of login b", "ALTER USER ?@'%' REQUIRE SSL WITH MAX_USER_CONNECTIONS 40", []any{"vcxb"}}},
		},
		"privilege missing": {
			reason: "kine needs all seven",
			d:      dialectMySQL,
			have:   change(tenant.A, func(a *account) { a.privileges = without(a.privileges, []string{"INDEX"}) }),
			want:   []statement{{"grant to login a", "GRANT " + grant, []any{"vcxa"}}},
		},
		"privileges surplus": {
			reason: "with DROP a tenant could drop its own database",
			d:      dialectMySQL,
			have:   change(tenant.A, func(a *account) { a.privileges = append(a.privileges, "DROP", "GRANT OPTION") }),
			want:   []statement{{"revoke from login a", "REVOKE DROP, GRANT OPTION ON `vcx`.* FROM ?@'%'", []any{"vcxa"}}},
		},
		"mark missing": {
			reason: "a record that says provisioned proves that the database is ours; the mark is made again",
			d:      dialectMySQL,
			have:   func(c *catalog) { c.marked = false },
			want:   []statement{{"mark tenant", "CREATE ROLE IF NOT EXISTS `vcxo`", nil}},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			have := good()
			tc.have(&have)
			got := plan(tc.d, have, want(), !tc.plain)
			if !slices.EqualFunc(got, tc.want, func(a, b statement) bool {
				return a.name == b.name && a.sql == b.sql && slices.Equal(a.args, b.args)
			}) {
				t.Errorf("%s:\n got %q\nwant %q", tc.reason, got, tc.want)
			}
		})
	}
}

// S17: what init names is run as it is, so it has to be right for every kind of account.
func TestLoan(t *testing.T) {
	t.Parallel()
	const neighbour = "vcaaaaaaaaaaaaaaaaaaaaaaaab"
	tests := map[string]struct {
		loan    loan
		want    string
		foreign bool
	}{
		"a database": {loan{user: neighbour, host: "%", database: "vcx", rights: "SELECT, GRANT OPTION"}, "REVOKE SELECT, GRANT OPTION ON `vcx`.* " +
			"FROM `" + neighbour + "`@`%`", false},
		"a table": {loan{user: neighbour, host: "%", database: "vcx", table: "k`n", rights: "SELECT"}, "REVOKE SELECT ON `vcx`.`k``n` FROM " +
			"`" + neighbour + "`@`%`", false},
		"a role of MariaDB":          {loan{user: "PUBLIC", database: "vcx", rights: "SELECT"}, "REVOKE SELECT ON `vcx`.* FROM `PUBLIC`", true},
		"the account without a name": {loan{host: "%", database: "vcx", rights: "SELECT"}, "REVOKE SELECT ON `vcx`.* FROM ``@`%`", true},
		"another account":            {loan{user: "backup", host: "10.%", database: "vcx", rights: "SELECT"}, "REVOKE SELECT ON `vcx`.* FROM `backup`@`10.%`", true},
		"PROXY": {loan{user: neighbour, host: "%", onUser: "vcxa", onHost: "%", rights: "PROXY"}, "REVOKE PROXY ON `vcxa`@`%` FROM " +
			"`" + neighbour + "`@`%`", false},
		"all of the server": {loan{user: "PUBLIC", rights: "GRANT OPTION", everyone: true}, "REVOKE GRANT OPTION ON *.* FROM `PUBLIC`", false},
		"a routine": {loan{user: neighbour, host: "%", database: "sys", table: "f", level: "FUNCTION", rights: "GRANT OPTION"}, "REVOKE GRANT " +
			"OPTION ON FUNCTION `sys`.`f` FROM `" + neighbour + "`@`%`", false},
		"PROXY on all": {loan{user: neighbour, host: "%", rights: "PROXY"}, "REVOKE PROXY ON ``@`` FROM `" + neighbour + "`@`%`", false},
	}
	for name, tt := range tests {
		if strings.Contains(tt.loan.table, "`") == (tt.loan.advice() == tt.loan.revoke()) {
			t.Errorf("%s: a person is told %q", name, tt.loan.advice())
		}
		if got := tt.loan.revoke(); got != tt.want || tt.loan.foreign() != tt.foreign {
			t.Errorf("%s: got %q, foreign %t", name, got, tt.loan.foreign())
		}
	}
}

func TestOursMySQL(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		reason string
		c      catalog
		w      engine.Spec
		want   bool
	}{
		{"there is no database to be ours", catalog{marked: true}, engine.Spec{Provisioned: true}, false},
		{"the mark is made before the database", catalog{database: true, marked: true}, engine.Spec{}, true},
		{"the record knows it", catalog{database: true}, engine.Spec{Provisioned: true}, true},
		{"nothing says that it is ours", catalog{database: true}, engine.Spec{}, false},
	} {
		if got := tc.c.ours(tc.w); got != tc.want {
			t.Errorf("%s: got %t", tc.reason, got)
		}
	}
}

// B8: a version's prefix proves nothing.
func TestDialectOf(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]string{
		"9.7.0":                                "MySQL",
		"8.0.36-28.1":                          "MySQL", // Percona
		"8.0.mysql_aurora.3.05.2":              "MySQL",
		"10.11.6-MariaDB-0+deb12u1":            "MariaDB",
		"5.5.5-10.5.29-MariaDB-0+deb11u1":      "MariaDB", // as old proxies say it
		"8.0.0-mariadb":                        "MariaDB",
		"11.8.6-MariaDB-0+deb13u1 from Debian": "MariaDB",
	} {
		if got := dialectOf(version).name; got != want {
			t.Errorf("version %q: got %s, want %s", version, got, want)
		}
	}
}

// (F6) What a server insists on outweighs the plugin that is named otherwise. Nothing but a plugin's name becomes part of a statement.
func TestUnderPolicy(t *testing.T) {
	t.Parallel()
	const usual = "IDENTIFIED WITH caching_sha2_password BY ?"
	for policy, want := range map[string]string{
		"": usual, "*": usual, "*,,": usual, "*:sha256_password,,": usual, ",authentication_ldap_simple,": usual,
		"caching_sha2_password,,": usual, "sha256_password,,": "IDENTIFIED WITH sha256_password BY ?", " sha256_password ,*": "IDENTIFIED WITH sha256_password BY ?",
		"a' BY 'x'; --": usual, "a b": usual, "a`b": usual,
	} {
		if got := dialectMySQL.under(policy).identified; got != want {
			t.Errorf("policy %q: got %q, want %q", policy, got, want)
		}
	}
	if dialectMySQL.identified != usual {
		t.Error("one server's policy became everybody's")
	}
	if got := setPassword(dialectMySQL, "vcxa", "x").sql; got != "ALTER USER ?@'%' "+usual+" PASSWORD EXPIRE NEVER /*!80019 FAILED_LOGIN_ATTEMPTS 0 "+
		"PASSWORD_LOCK_TIME 0 */" {
		t.Errorf("got %s", got)
	}
	if got := setPassword(dialectMariaDB, "vcxa", "x").sql; got != "ALTER USER ?@'%' IDENTIFIED BY PASSWORD ? PASSWORD EXPIRE NEVER" {
		t.Errorf("got %s", got)
	}
}

// The vector is MariaDB's own: its manual shows SELECT PASSWORD('mariadb').
func TestNativeHash(t *testing.T) {
	t.Parallel()
	if got, want := nativeHash("mariadb"), "*54958E764CE10E50764C2EECBB71D01F08549980"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestPrivilegeOf(t *testing.T) {
	t.Parallel()
	for column, want := range map[string]string{
		"Select": "SELECT", "Lock_tables": "LOCK TABLES", "Show_view": "SHOW VIEW", "Create_routine": "CREATE ROUTINE",
		"Create_tmp_table": "CREATE TEMPORARY TABLES", "Delete_history": "DELETE HISTORY", "Grant": "GRANT OPTION",
	} {
		if got := privilegeOf(column); got != want {
			t.Errorf("column %s_priv: got %s, want %s", column, got, want)
		}
	}
}

func FuzzQuoteMySQL(f *testing.F) {
	for _, seed := range []string{"", "vcx", "a`b", "``", "a\\`", "a\x00b", "`; DROP DATABASE x; --"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got := quote(name)
		inner := got[1 : len(got)-1]
		if got[0] != '`' || got[len(got)-1] != '`' || strings.ReplaceAll(inner, "``", "`") != name ||
			strings.Contains(strings.ReplaceAll(inner, "``", ""), "`") {
			t.Errorf("quote(%q) = %q can be left from inside", name, got)
		}
	})
}
