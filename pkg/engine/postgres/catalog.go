// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"dbconnector/pkg/engine"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// settable says of a parameter, n.name, whether a login could have set it for itself and can take it back. pg_settings does
// not show session_authorization. From 16 on those of the transaction cannot be reset; they do nothing: every transaction
// begins with its defaults. Parameters of extensions concern their own code only. contexts are pg_settings' words.
func settable(contexts string) string {
	return `(n.name = 'session_authorization' OR EXISTS (
		SELECT 1 FROM pg_catalog.pg_settings p WHERE pg_catalog.lower(p.name) = pg_catalog.lower(n.name) AND p.context IN (` + contexts + `)
		AND p.name NOT IN ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')))`
}

// entries are the settings of roles, everywhere and in one database ($2): which role, which parameter, whether inside. Those in
// other databases have no effect in the tenant's, and to reset them could wait for a lock that a neighbour holds there.
const entries = `
	FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
	LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
	CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) e(entry)
	CROSS JOIN LATERAL pg_catalog.split_part(e.entry, '=', 1) n(name)
	WHERE (s.setdatabase = 0 OR d.datname = $2)`

// members are the roles that are members of the login or of its owner role ($1), and are none of ours ($3, $4): who may make
// roles needs no grant of ours, and from 16 on has one of all that he made.
const members = `
	FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles o ON o.oid = m.roleid JOIN pg_catalog.pg_roles u ON u.oid = m.member
	WHERE o.rolname IN (session_user, $1) AND NOT (u.rolsuper OR u.rolcreaterole) AND NOT (o.rolname = $1 AND u.rolname IN ($3, $4))`

// catalog asks the shared catalogs for everything about a tenant. pg_roles and not pg_authid, which managed services close.
func (a *Admin) catalog(ctx context.Context, names tenant.Names) (catalog, error) {
	seen := catalog{roles: map[string]role{}}
	for _, part := range []struct {
		what string
		read func(context.Context, tenant.Names, *catalog) error
	}{
		// First: without a lock on the server, a rival may be at work, who makes the roles before the database. A database that is
		// still closed is ours by their mark.
		{"database", a.readDatabase},
		{"roles", a.readRoles},
		{"roles' settings", a.readSettings},
		{"roles' members", a.readMembers},
	} {
		if err := part.read(ctx, names, &seen); err != nil {
			return seen, fmt.Errorf("reading the %s: %w", part.what, classify(err))
		}
	}
	return seen, nil
}

// rolePattern matches the roles of every tenant.
var rolePattern = strings.TrimSuffix(tenant.NamePattern, "$") + "[abo]$"

func rolesOf(names tenant.Names) []string {
	return []string{names.Owner, names.User(tenant.A), names.User(tenant.B)}
}

func (a *Admin) readRoles(ctx context.Context, names tenant.Names, seen *catalog) error {
	rows, err := a.conn.Query(ctx, `
		SELECT r.rolname::text, COALESCE(pg_catalog.shobj_description(r.oid, 'pg_authid'), ''), r.rolinherit, r.rolconnlimit,
		       COALESCE(r.rolvaliduntil <> 'infinity', false), COALESCE('role=' || $2 = ANY(r.rolconfig), false)
		FROM pg_catalog.pg_roles r WHERE r.rolname = ANY($1)`, rolesOf(names), names.Owner)
	if err != nil {
		return err
	}
	var name string
	var r role
	_, err = pgx.ForEachRow(rows, []any{&name, &r.marker, &r.inherits, &r.limit, &r.expires, &r.begins}, func() error {
		seen.roles[name] = r
		return nil
	})
	return err
}

func (a *Admin) readSettings(ctx context.Context, names tenant.Names, seen *catalog) error {
	contexts := "'user'"
	if a.session.superuser {
		contexts += ", 'superuser'"
	}
	rows, err := a.conn.Query(ctx, `SELECT r.rolname::text, n.name, s.setdatabase <> 0`+entries+` AND r.rolname = ANY($1)
		AND (n.name = 'role' AND (s.setdatabase <> 0 OR r.rolname = $3) OR n.name <> 'role' AND `+settable(contexts)+`) ORDER BY 1, 2, 3`,
		rolesOf(names), names.Database, names.Owner)
	if err != nil {
		return err
	}
	var user string
	var one setting
	_, err = pgx.ForEachRow(rows, []any{&user, &one.name, &one.inside}, func() error {
		if r, ok := seen.roles[user]; ok {
			r.settings = append(r.settings, one)
			seen.roles[user] = r
		}
		return nil
	})
	return err
}

// membership is a row of pg_auth_members.
type membership struct {
	grant
	admin, inherit, set bool // its options; up to 15 a membership always allows SET ROLE, and the member decides what it inherits
	byAdmin             bool // the member is an admin of roles himself
	login               bool // the role can log in, or is another tenant's
}

func (a *Admin) readMembers(ctx context.Context, names tenant.Names, seen *catalog) error {
	// Up to 15 CREATEROLE reaches every role but superusers; from 16 on a grant is revoked in the name of who granted it.
	options, grantor, revocable := "false, true", "''", "NOT o.rolsuper"
	if a.session.version >= 160000 {
		options, grantor, revocable = "m.inherit_option, m.set_option", "g.rolname::text", "pg_catalog.pg_has_role(current_user, m.grantor, 'USAGE')"
	}
	if a.session.superuser {
		revocable = "true"
	}
	rows, err := a.conn.Query(ctx, `
		SELECT o.rolname::text, u.rolname::text, COALESCE(`+grantor+`, ''), `+revocable+`, m.admin_option, `+options+`,
		       u.rolsuper OR u.rolcreaterole, o.rolcanlogin OR o.rolname ~ $2
		FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles o ON o.oid = m.roleid JOIN pg_catalog.pg_roles u ON u.oid = m.member
		LEFT JOIN pg_catalog.pg_roles g ON g.oid = m.grantor
		WHERE m.roleid = ANY(ARRAY(SELECT oid FROM pg_catalog.pg_roles WHERE rolname = ANY($1)))
		   OR m.member = ANY(ARRAY(SELECT oid FROM pg_catalog.pg_roles WHERE rolname = ANY($1))) ORDER BY 1, 2, 3`,
		rolesOf(names), rolePattern)
	if err != nil {
		return err
	}
	var m membership
	_, err = pgx.ForEachRow(rows, []any{&m.role, &m.member, &m.grantor, &m.revocable, &m.admin, &m.inherit, &m.set, &m.byAdmin, &m.login}, func() error {
		seen.sort(m, names)
		return nil
	})
	return err
}

func (a *Admin) readDatabase(ctx context.Context, names tenant.Names, seen *catalog) error {
	// From 16 on the creator of a role keeps a grant of it with ADMIN OPTION alone, which is as it should be.
	leftover := "true"
	if a.session.version >= 160000 {
		leftover = "(m.inherit_option OR m.set_option) AND m.grantor = u.oid"
	}
	var d database
	err := a.conn.QueryRow(ctx, `
		SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles o ON o.oid = m.roleid
		               JOIN pg_catalog.pg_roles u ON u.oid = m.member
		               WHERE o.rolname = $3 AND u.rolname = current_user AND `+leftover+`),
		       d.oid IS NOT NULL, COALESCE(pg_catalog.shobj_description(d.oid, 'pg_database'), ''),
		       COALESCE(d.datallowconn, false), COALESCE(d.datconnlimit, 0),
		       EXISTS (SELECT 1 FROM pg_catalog.aclexplode(COALESCE(d.datacl, pg_catalog.acldefault('d', d.datdba))) x WHERE x.grantee = 0),
		       ARRAY(SELECT g.rolname || ' ' || x.privilege_type FROM pg_catalog.aclexplode(COALESCE(d.datacl, pg_catalog.acldefault('d', d.datdba))) x
		             JOIN pg_catalog.pg_roles g ON g.oid = x.grantee WHERE g.rolname = ANY($2)),
		       COALESCE((SELECT s.setconfig FROM pg_catalog.pg_db_role_setting s WHERE s.setdatabase = d.oid AND s.setrole = 0), '{}')
		FROM (SELECT 1) one LEFT JOIN pg_catalog.pg_database d ON d.datname = $1`, names.Database, rolesOf(names), names.Owner).
		Scan(&seen.adminMember, &d.exists, &d.marker, &d.allowConn, &d.limit, &d.publicACL, &d.acl, &d.settings)
	if err != nil {
		return err
	}
	if d.exists {
		seen.database = &d
	}
	return nil
}

// disown revokes memberships that are none of ours. It must not keep a tenant from its control plane: who plants one can
// plant it again at once, and can make the server refuse the later of two changes.
func (a *Admin) disown(ctx context.Context, foreign []grant, names tenant.Names, outcome *engine.Outcome) error {
	for _, g := range foreign {
		revocation := revoke(g)
		if !g.revocable {
			outcome.Warnings = append(outcome.Warnings, fmt.Sprintf("role %q is a member of %q, which dbconnector did not grant and the admin may not revoke: %s",
				g.member, g.role, revocation.sql))
			continue
		}
		if _, err := a.conn.Exec(ctx, revocation.sql); err != nil {
			if code(err) == "" {
				return fmt.Errorf("%s: %w", revocation.name, classify(err))
			}
			outcome.Warnings = append(outcome.Warnings, fmt.Sprintf("role %q is a member of %q, which dbconnector did not grant and could not revoke (%s): %s",
				g.member, g.role, classify(err).Error(), revocation.sql))
			continue
		}
		outcome.Changes = append(outcome.Changes, revocation.name)
		if !slices.Contains(rolesOf(names), g.role) {
			continue
		}
		// A session that has become the login stays it, and may still change the login's password.
		used, err := a.InUse(ctx, g.member)
		if err != nil {
			return err
		}
		if used {
			outcome.Warnings = append(outcome.Warnings, fmt.Sprintf("role %q was a member of %q, which dbconnector did not grant; its sessions keep what they took: "+
				"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", g.member, g.role, text(g.member)))
		}
	}
	return nil
}

// handOver names the statements that hand a tenant over to the admin, for who made it: "" where nothing is in the way. Foreign
// memberships that only others may revoke belong to it: after an upgrade they are the superuser's, as the roles are.
func (a *Admin) handOver(ctx context.Context, database string, foreign []grant, roles ...string) string {
	if a.session.superuser {
		return ""
	}
	var lacking []string
	var owns bool
	err := a.conn.QueryRow(ctx, `
		SELECT ARRAY(SELECT rolname::text FROM pg_catalog.pg_roles
		             WHERE rolname = ANY($1) AND NOT pg_catalog.pg_has_role(current_user, oid, 'MEMBER WITH ADMIN OPTION') ORDER BY 1),
		       COALESCE((SELECT pg_catalog.pg_has_role(current_user, datdba, 'USAGE') FROM pg_catalog.pg_database WHERE datname = $2), true)`,
		roles, database).Scan(&lacking, &owns)
	if err != nil {
		return ""
	}
	var statements []string
	if a.session.version >= 160000 { // up to 15 CREATEROLE is enough
		for _, name := range lacking {
			statements = append(statements, fmt.Sprintf("GRANT %s TO %s WITH ADMIN OPTION", quote(name), quote(a.session.user)))
		}
	}
	if !owns {
		statements = append(statements, fmt.Sprintf("ALTER DATABASE %s OWNER TO %s", quote(database), quote(a.session.user)))
	}
	if len(statements) > 0 {
		theirs := slices.DeleteFunc(slices.Clone(foreign), func(g grant) bool { return g.revocable })
		for _, g := range theirs[:min(len(theirs), few)] { // what is left is warned about one by one when the admin has its rights
			statements = append(statements, revoke(g).sql)
		}
	}
	return strings.Join(statements, "; ")
}

// unmarked refuses roles of the tenant's names that nothing proves to be the tenant's.
func unmarked(seen catalog, spec engine.Spec) error {
	names, remedy := seen.adopt(spec)
	if len(names) == 0 {
		return nil
	}
	admins := ""
	if len(seen.admins) > 0 {
		admins = " (" + strings.Join(shown(seen.admins), ", ") + " may administer it)"
	}
	return fault.New(fault.Refused, "role %s exists and carries no mark of this tenant%s, so others may know its password; if it is this tenant's own "+
		"(restored from a dump, say), mark it: %s",
		strings.Join(names, ", "), admins, strings.Join(remedy, "; "))
}

// few is how many names of a list a message repeats: a neighbour may make it long.
const few = 5

// shown are names from the server as a message may repeat them.
func shown(names []string) []string {
	out := make([]string, 0, few+1)
	for i, name := range names {
		if i == few {
			return append(out, fmt.Sprintf("and %d more", len(names)-few))
		}
		out = append(out, fault.Show(name))
	}
	return out
}
