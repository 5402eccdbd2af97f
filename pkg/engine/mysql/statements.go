// SPDX-License-Identifier: Apache-2.0

package mysql

import (
	"crypto/sha1" //nolint:gosec // mysql_native_password is made of it; our passwords carry 241 bits
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/tenant"
)

// Everything in this file is pure: from what the server says and what is wanted to the statements that are missing.
// mysql.go asks and runs.

// statement is SQL, a name for it that may be logged, and its arguments, which the driver quotes.
type statement struct {
	name, sql string
	args      []any
}

// quote renders an identifier. Ours need none; it is here so that no identifier is ever pasted.
func quote(name string) string { return "`" + strings.ReplaceAll(name, "`", "``") + "`" }

// dialect is where MySQL and MariaDB differ.
type dialect struct {
	name string
	// readOnly are the expressions that are 1 when the server takes no writes, and how an error names them.
	readOnly, readOnlyName string
	// databaseReadOnly is 1 where the session's database alone takes no writes.
	databaseReadOnly string
	// policies are expressions: whether the server blocks accounts for refused passwords, whether FLUSH PRIVILEGES alone ends that,
	// whether it has accounts work as others (PROXY), and which plugins accounts may have.
	policies string
	// everyone says of a row of the privilege tables that it holds for all logins: PUBLIC, or a role that is mandatory.
	everyone string
	// roleHost is the Host under which mysql.user keeps a role.
	roleHost string
	// identified is the clause that sets a password, and secret what goes into its placeholder. MySQL writes <secret> into
	// its logs by itself and wants the clear text, since its plugin hashes on the server. MariaDB (10.5 to 11.8) writes
	// the statement into the general log, the slow log and the audit log as it came; it takes a hash, though. With the
	// hash alone a reader of such a log cannot log in: the protocol asks for its preimage.
	identified string
	secret     func(dbserver.Password) string
	// ownPassword is how a login changes its own password. MariaDB lets no login without CREATE USER do so by ALTER USER. MySQL
	// wants to see the old password, too, where password_require_current is on or the account says PASSWORD REQUIRE
	// CURRENT, and takes it (from 8.0.13 on) where it is not asked for.
	ownPassword string
	current     bool // ownPassword has a second placeholder, for the old password
	hashes      bool // secret is a hash
}

// mandatory compares with the names in a list such as "`a`@`%`,b". A name with a blank or a quote in it is not found.
const mandatory = "User <> '' AND (LOCATE(CONCAT(',', User, ','), " + mandatoryRoles + ") > 0" +
	" OR LOCATE(CONCAT(',', User, '@', Host, ','), " + mandatoryRoles + ") > 0)"

const mandatoryRoles = "CONCAT(',', REPLACE(REPLACE(REPLACE(@@global.mandatory_roles, '`', ''), '''', ''), ' ', ''), ',')"

var (
	dialectMySQL = dialect{ //nolint:gosec // statements, no passwords
		name: "MySQL", readOnly: "@@global.read_only OR @@global.super_read_only OR @@global.innodb_read_only OR @@transaction_read_only",
		readOnlyName: "read_only, super_read_only, innodb_read_only, transaction_read_only",
		databaseReadOnly: "FALSE /*!80022 OR EXISTS (SELECT 1 FROM information_schema.SCHEMATA_EXTENSIONS " +
			"WHERE SCHEMA_NAME = DATABASE() AND OPTIONS LIKE '%READ ONLY=1%') */",
		policies: "FALSE, FALSE, @@global.check_proxy_users, CONCAT('' /*!80027 , @@global.authentication_policy */)",
		roleHost: "%", everyone: mandatory,
		identified: "IDENTIFIED WITH caching_sha2_password BY ?", secret: dbserver.Password.Reveal,
		ownPassword: "ALTER USER USER() IDENTIFIED BY ? REPLACE ?", current: true,
	}
	dialectMariaDB = dialect{
		name: "MariaDB", readOnlyName: "read_only, innodb_read_only, tx_read_only", roleHost: "", everyone: "User = 'PUBLIC' AND Host = ''",
		readOnly: "@@global.read_only OR @@global.innodb_read_only OR " + // 11.1 renamed the variable, and keeps the old name for now
			"(SELECT MAX(VARIABLE_VALUE = 'ON') FROM information_schema.SESSION_VARIABLES WHERE VARIABLE_NAME IN ('TX_READ_ONLY', 'TRANSACTION_READ_ONLY'))",
		databaseReadOnly: "FALSE",
		policies:         "@@global.max_password_errors < 4294967295, @@global.max_password_errors < 4294967295 /*M!101100 AND FALSE */, FALSE, ''",
		identified:       "IDENTIFIED BY PASSWORD ?", secret: nativeHash, hashes: true, ownPassword: "SET PASSWORD = ?",
	}
)

// nativeHash is a password as the plugin mysql_native_password stores it: '*' and the SHA-1 of its SHA-1, in hex.
func nativeHash(p dbserver.Password) string {
	inner := sha1.Sum([]byte(p.Reveal())) //nolint:gosec // see the import
	outer := sha1.Sum(inner[:])           //nolint:gosec // see the import
	return "*" + strings.ToUpper(hex.EncodeToString(outer[:]))
}

// dialectOf tells the servers apart by VERSION(), which MariaDB always marks ("10.11.6-MariaDB-0+deb12u1"); a prefix such as
// "5.5.5-" or "8" proves nothing (docs/failures.md B8).
func dialectOf(version string) dialect {
	if strings.Contains(strings.ToLower(version), "mariadb") {
		return dialectMariaDB
	}
	return dialectMySQL
}

// privileges are what kine needs and all that a tenant gets. No DROP: it could drop its own database.
var privileges = []string{"SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "INDEX"}

// account is what mysql.user says of a login, and mysql.db of its rights on the tenant's database.
type account struct {
	tls        bool // REQUIRE SSL or stricter
	limit      int  // MAX_USER_CONNECTIONS
	privileges []string
}

// loan is what an account may do that it has from a tenant's login, or a tenant's login from another: rights on a database or a table, or
// PROXY, to work as another account. Any login can give all of it (docs/failures.md S17).
type loan struct {
	user, host      string // who has it
	onUser, onHost  string // PROXY: on which account; two empty ones stand for all
	rights          string // else a list as REVOKE takes it
	level           string // what the rights are on: "" is a database or a table, or FUNCTION, PROCEDURE and the like
	database, table string // the database "" stands for the whole server; a table may be empty
	everyone        bool   // all logins have it
}

// maxLoans is how many of them one run takes back. A tenant can make any number of tables, and give each away.
const maxLoans = 10_000

// catalog is what the server says of a tenant.
type catalog struct {
	database bool
	marked   bool // the role that marks the tenant as ours is there
	accounts map[tenant.Slot]account
	loans    []loan // of the tenant's logins, and to them
}

// ours says whether a database that exists is the tenant's. The role is made before the database, and only where no
// database of that name exists.
func (c catalog) ours(w engine.Spec) bool { return c.database && (c.marked || w.Provisioned) }

// plan is what is missing. Every statement commits on its own, so the order matters: the mark before the database, and
// logins, which can do nothing yet, before their rights.
func plan(d dialect, c catalog, w engine.Spec, tls bool) []statement {
	var out []statement
	add := func(name, sql string, args ...any) { out = append(out, statement{name, sql, args}) }

	if !c.marked {
		add("mark tenant", "CREATE ROLE IF NOT EXISTS "+quote(w.Owner))
	}
	require := "REQUIRE NONE"
	if tls {
		require = "REQUIRE SSL"
	}
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		have, ok := c.accounts[slot]
		user := w.User(slot)
		switch {
		case !ok:
			add("create login "+string(slot),
				fmt.Sprintf("CREATE USER IF NOT EXISTS ?@'%%' %s %s WITH MAX_USER_CONNECTIONS %d PASSWORD EXPIRE NEVER", d.identified, require, w.ConnectionLimit),
				user, d.secret(w.Passwords[slot]))
		case have.tls != tls || have.limit != w.ConnectionLimit:
			add("set TLS and limit of login "+string(slot),
				fmt.Sprintf("ALTER USER ?@'%%' %s WITH MAX_USER_CONNECTIONS %d", require, w.ConnectionLimit), user)
		}
	}
	if !c.database {
		add(engine.CreateDatabase, fmt.Sprintf("CREATE DATABASE IF NOT EXISTS %s CHARACTER SET utf8mb4", quote(w.Database)))
	}
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		have, user := c.accounts[slot].privileges, w.User(slot)
		if missing := without(privileges, have); len(missing) > 0 {
			add("grant to login "+string(slot), fmt.Sprintf("GRANT %s ON %s.* TO ?@'%%'", strings.Join(privileges, ", "), quote(w.Database)), user)
		}
		if surplus := without(have, privileges); len(surplus) > 0 {
			add("revoke from login "+string(slot), fmt.Sprintf("REVOKE %s ON %s.* FROM ?@'%%'", strings.Join(surplus, ", "), quote(w.Database)), user)
		}
	}
	return out
}

// lendable are the rights that a login can give away, once it has given itself GRANT OPTION: as the columns of mysql.db begin, and the
// sets of mysql.tables_priv name them.
var lendable = []string{"Select", "Insert", "Update", "Delete", "Create", "Alter", "Index", "Grant"}

// lent is an expression for a list of rights: holds says which of them a row has. MySQL revokes all of a list or, where one is missing, nothing.
func lent(holds func(name string) string) string {
	list := "CONCAT_WS(', '"
	for _, right := range lendable {
		list += ", IF(" + holds(right) + ", '" + privilegeOf(right) + "', NULL)"
	}
	return list + ")"
}

var (
	lentDatabase = lent(func(name string) string { return name + "_priv = 'Y'" })
	// A right on columns goes with the one on the table.
	lentTable = lent(func(name string) string {
		return "FIND_IN_SET('" + name + "', CONCAT_WS(',', Table_priv, Column_priv))"
	})
)

// loans is the query for what the tenant's logins gave away or got, for PROXY that any tenant gave, and for accounts that have GRANT
// OPTION on the whole server and nothing else. Of what all logins have outside of tenants' databases it names GRANT OPTION on the
// server's own ones alone: by that every tenant would see them. The rest may be an admin's.
func (d dialect) loans(names tenant.Names) (query string, args []any) {
	a, b := names.User(tenant.A), names.User(tenant.B)
	login := strings.TrimSuffix(tenant.NamePattern, "$") + "[ab]"
	const (
		ours   = "User IN (?, ?)"
		own    = "Db IN ('mysql', 'sys', 'performance_schema', '%')"
		theirs = "(Db = ? AND NOT (User IN (?, ?) AND Host = '%') OR Db <> ? AND User IN (?, ?))"
	)
	rights := func(list, grant string) string {
		return "IF(Db REGEXP ? OR " + ours + " OR NOT (" + d.everyone + "), " + list + ", IF(" + grant + " AND " + own + ", 'GRANT OPTION', ''))"
	}
	both := []any{a, b}
	pattern := append([]any{tenant.NamePattern}, both...)
	where := []any{names.Database, a, b, names.Database, a, b}
	for _, part := range []struct {
		sql  string
		args [][]any
	}{
		{"SELECT User, Host, Proxied_user, Proxied_host, 'PROXY' AS rights, '' AS level, '' AS db, '' AS tbl, FALSE AS everyone FROM mysql.proxies_priv" +
			" WHERE " + ours + " OR Proxied_user IN (?, ?) OR Grantor REGEXP ?", [][]any{both, both, {login + "@"}}},
		{" UNION ALL SELECT User, Host, '', '', 'GRANT OPTION', '', '', '', " + d.everyone + " FROM mysql.user WHERE Grant_priv = 'Y'" +
			" AND 'Y' NOT IN (Select_priv, Insert_priv, Update_priv, Delete_priv, Create_priv, Drop_priv, Alter_priv, Index_priv, Create_user_priv, Super_priv)", nil},
		{" UNION ALL SELECT User, Host, '', '', " + rights(lentDatabase, "Grant_priv = 'Y'") + ", '', Db, '', " + d.everyone +
			" FROM mysql.db WHERE " + theirs + " OR " + d.everyone, [][]any{pattern, where}},
		{" UNION ALL SELECT User, Host, '', '', " + rights(lentTable, "FIND_IN_SET('Grant', Table_priv)") + ", '', Db, Table_name, " + d.everyone +
			" FROM mysql.tables_priv WHERE " + theirs + " OR " + d.everyone, [][]any{pattern, where}},
		{" UNION ALL SELECT User, Host, '', '', 'GRANT OPTION', Routine_type, Db, Routine_name, " + d.everyone +
			" FROM mysql.procs_priv WHERE FIND_IN_SET('Grant', Proc_priv) AND (" + ours + " OR " + d.everyone + " AND " + own + ")", [][]any{both}},
	} {
		query += part.sql
		args = append(args, slices.Concat(part.args...)...)
	}
	// A row without rights has others, such as DROP, which no login of ours can give.
	return "SELECT * FROM (" + query + ") lent WHERE rights <> '' LIMIT " + strconv.Itoa(maxLoans), args
}

// plain are names that a person can copy from a log into a client.
var plain = regexp.MustCompile("^[A-Za-z0-9_$.%@-]*$")

// advice is the statement that ends a loan, for a person to run. A tenant chooses the names of its tables.
func (l loan) advice() string {
	if plain.MatchString(l.user + l.host + l.onUser + l.onHost + l.database + l.table) {
		return l.revoke()
	}
	return "REVOKE what mysql.db, mysql.tables_priv and mysql.proxies_priv show of it (a name there is not safe to copy)"
}

// grantee renders an account, or a role of MariaDB, which has no host.
func grantee(user, host string) string {
	if host == "" && user != "" {
		return quote(user)
	}
	return quote(user) + "@" + quote(host)
}

// revoke is the statement that ends a loan.
func (l loan) revoke() string {
	what, on := l.rights, "*.*"
	switch {
	case what == "PROXY":
		on = grantee(l.onUser, l.onHost)
	case l.table != "":
		on = strings.TrimSpace(l.level + " " + quote(l.database) + "." + quote(l.table))
	case l.database != "":
		on = quote(l.database) + ".*"
	}
	return "REVOKE " + what + " ON " + on + " FROM " + grantee(l.user, l.host)
}

// foreign says whether an account is none of a tenant: an admin may have given it what it has. None gives all logins rights in a
// tenant's database.
func (l loan) foreign() bool {
	return !l.everyone && (l.user == "" || !tenant.IsDatabase(l.user[:len(l.user)-1]))
}

// without is what is in a and not in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

// setPassword is the admin's way. Rotation decides how old a password gets, and not default_password_lifetime, which would
// stop a control plane one day without a word. On MySQL it also ends, once and for all, that refused passwords block the login:
// with such a rule any client that reaches the server's port could lock a control plane out.
func setPassword(d dialect, user string, password dbserver.Password) statement {
	sql := "ALTER USER ?@'%' " + d.identified + " PASSWORD EXPIRE NEVER"
	if !d.hashes {
		sql += " /*!80019 FAILED_LOGIN_ATTEMPTS 0 PASSWORD_LOCK_TIME 0 */"
	}
	return statement{"set password", sql, []any{user, d.secret(password)}}
}

// under is the dialect where the server says what plugins accounts may have (authentication_policy, "sha256_password,," or the like).
// Where it leaves the choice, it is the plugin that every MySQL from 8.0 on has. A plugin is named in any case, so that an account
// whose plugin is gone gets it, too (mysql_native_password, which MySQL 9 does not have), and so that no server's default makes
// accounts that its next version refuses.
func (d dialect) under(policy string) dialect {
	first, _, _ := strings.Cut(policy, ",")
	if first = strings.TrimSpace(first); first != "" && strings.Trim(first, "abcdefghijklmnopqrstuvwxyz0123456789_") == "" {
		d.identified = "IDENTIFIED WITH " + first + " BY ?"
	}
	return d
}
