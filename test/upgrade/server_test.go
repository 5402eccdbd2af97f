// SPDX-License-Identifier: Apache-2.0

package upgrade_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/handover"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// moves are the upgrades of a PostgreSQL on which a login may grant itself, to one on which it may not. From 16 on memberships
// have options and an owner of their own.
var moves = []struct{ from, to string }{{"13", "15"}, {"13", "18"}, {"14", "16"}, {"14", "17"}}

// TestServerUpgraded: on a PostgreSQL 13 or 14, with tenants as the last release made them, an attacker who has a victim's DSN
// for a moment makes his own login a member of the victim's logins, and forces another one of his on them. Then the server is
// upgraded. The memberships survive that, and he is still in. The next start of the victim's init takes both back, whatever
// admin it has, and does not fail because of them; the victim's data and its logins stay what they were (S1). Where an admin
// has lost ADMIN OPTION by the upgrade, init prints the statements that a superuser has to run, once, and they are enough
// (F14).
func TestServerUpgraded(t *testing.T) {
	t.Parallel()
	for _, move := range moves {
		for _, admin := range []string{"superuser", "cloud admin"} {
			t.Run(move.from+" to "+move.to+"/"+admin, func(t *testing.T) {
				t.Parallel()
				serverUpgraded(t, move.from, move.to, admin == "cloud admin")
			})
		}
	}
}

func serverUpgraded(t *testing.T, from, to string, cloud bool) {
	all := releases(t)
	release := all[len(all)-1]
	older := bed.NewServer(t, bed.Postgres, from, bed.Options{LogStatements: true})
	newer := bed.NewServer(t, bed.Postgres, to, bed.Options{LogStatements: true})
	victim, attacker := thawFor(t, release, 0, newer, ""), thawFor(t, release, 0, newer, "red")
	theirs, own := victim.decode(t, "secret/record.json"), attacker.decode(t, "secret/record.json")
	user, password := newer.AdminUser, newer.AdminPassword
	if cloud {
		var err error
		user, password, err = older.CloudAdmin(t.Context(), "cloud@admin")
		require.NoError(t, err, "making an admin")
	}
	for _, l := range []*left{victim, attacker} {
		l.leave(t, older)
		require.NoError(t, older.Exec(t.Context(),
			fmt.Sprintf("ALTER DATABASE %q OWNER TO %q", l.decode(t, "secret/record.json").Database, user)), "giving the database to the admin")
	}

	stolen, forced := own.Login(tenant.A), own.Login(tenant.B)
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		asLogin(t, older, theirs.Login(slot), fmt.Sprintf("GRANT %q TO %q", theirs.Login(slot).User, stolen.User))
		asLogin(t, older, forced, fmt.Sprintf("GRANT %q TO %q", forced.User, theirs.Login(slot).User))
	}
	breaksIn := func(server *bed.Server) error {
		return errors.Join(enters(t.Context(), server, stolen, theirs), becomes(t.Context(), server, stolen, theirs.Login(tenant.A).User),
			becomes(t.Context(), server, stolen, theirs.Login(tenant.B).User))
	}
	require.NoError(t, breaksIn(older), "the attack before the upgrade")
	require.NoError(t, older.MoveTo(t.Context(), newer), "the upgrade")
	require.NoError(t, breaksIn(newer), "the attack after the upgrade")

	victim.store(t, victim.text(t, "secret/record.json"))
	files := victim.handOver(t)
	victim.kine(t, files[handover.DSNFile])() // a control plane that has not been restarted yet
	lacking := cloud && to >= "16"
	if said := start(t, victim, newer, user, password, lacking); !lacking && !strings.Contains(said, "revoke foreign membership") {
		t.Errorf("init does not say that it took a membership back:\n%s", said)
	}
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		assert.Errorf(t, becomes(t.Context(), newer, stolen, theirs.Login(slot).User), "the attacker still becomes the victim's login %s", slot)
	}
	assert.Error(t, enters(t.Context(), newer, stolen, theirs), "the attacker is still in the victim's database")
	if members := memberships(t, newer, theirs); len(members) > 0 {
		t.Errorf("memberships that are none of ours: %q", members)
	}
	dsn, err := victim.DSN()
	require.NoError(t, err, "reading the hand-over")
	if was, now := theirs.Login(theirs.Active), dsn; now != rig.WithLogin(now, was) {
		t.Error("the control plane gets another login than it had")
	}
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		victim.kine(t, rig.WithLogin(dsn, theirs.Login(slot)))()
	}

	// The attacker is a tenant, too. Its attack keeps no tenant from a control plane, itself included.
	attacker.store(t, attacker.text(t, "secret/record.json"))
	attacker.handOver(t)
	start(t, attacker, newer, user, password, lacking)
	dsn, err = attacker.DSN()
	require.NoError(t, err, "reading the hand-over")
	attacker.kine(t, dsn)()
	assert.Error(t, enters(t.Context(), newer, stolen, theirs), "the attacker is in the victim's database again")
}

// start runs init as a pod's start does, and returns what it says. Where the admin lacks a right after the upgrade, init says what
// gives it back, and lets the control plane start all the same: what it says is run as a superuser, as it is printed, and the
// next start does what is left.
func start(tb testing.TB, l *left, server *bed.Server, user, password string, lacking bool) string {
	tb.Helper()
	require.NoError(tb, l.Cluster.Connector(tb.Context(), l.ConnectorName, rig.Connector(server, user, password, "", true)), "making the connector")
	run := func() string {
		result := rig.Provision(tb, l.Tenant)
		return strings.ReplaceAll(result.Log, `\"`, `"`)
	}
	said := run()
	if lacking {
		advice := regexp.MustCompile(`(?:GRANT|REVOKE) "vc\w+" (?:TO "cloud@admin" WITH ADMIN OPTION|FROM "vc\w+" GRANTED BY "\w+" CASCADE)`)
		statements := advice.FindAllString(said, -1)
		if len(statements) < 3 {
			tb.Fatalf("init does not print the statements that give the admin its rights back:\n%s", said)
		}
		require.NoError(tb, server.Exec(tb.Context(), statements...), "running init's statements")
		said = run()
	}
	if !strings.Contains(said, "let owner role not inherit") {
		tb.Errorf("init does not say that it has brought the tenant up to date:\n%s", said)
	}
	if strings.Contains(said, "could not finish") {
		tb.Errorf("something is left to do:\n%s", said)
	}
	return said
}

// asLogin runs a statement as a login that has left its owner role.
func asLogin(tb testing.TB, server *bed.Server, login tenant.Login, statement string) {
	tb.Helper()
	require.NoError(tb, session(tb.Context(), server, login, func(db *sql.DB) error {
		_, err := db.ExecContext(tb.Context(), statement)
		return err
	}), statement)
}

// enters is nil where a login gets into a tenant's database.
func enters(ctx context.Context, server *bed.Server, login tenant.Login, r *tenant.Record) error {
	login.Database = r.Database
	return session(ctx, server, login, func(*sql.DB) error { return nil })
}

// becomes is nil where a login may take another role.
func becomes(ctx context.Context, server *bed.Server, login tenant.Login, role string) error {
	return session(ctx, server, login, func(db *sql.DB) error {
		_, err := db.ExecContext(ctx, fmt.Sprintf("SET ROLE %q", role))
		return err
	})
}

// session does something in a login's session that has left the owner role.
func session(ctx context.Context, server *bed.Server, login tenant.Login, do func(db *sql.DB) error) error {
	db, err := server.Open(login.User, login.Password.Reveal(), login.Database)
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, "SET ROLE NONE"); err != nil {
		return err
	}
	return do(db)
}

// memberships are those of a tenant's roles, and in them, that no init makes.
func memberships(tb testing.TB, server *bed.Server, r *tenant.Record) []string {
	tb.Helper()
	names := r.Names()
	list, err := server.Query(tb.Context(), "", `
		SELECT string_agg(u.rolname || ' of ' || o.rolname, ', ') FROM pg_auth_members m JOIN pg_roles o ON o.oid = m.roleid JOIN pg_roles u ON u.oid = m.member
		WHERE (o.rolname = ANY($1) OR u.rolname = ANY($1)) AND NOT (u.rolsuper OR u.rolcreaterole) AND NOT (o.rolname = $2 AND u.rolname = ANY($1))`,
		[]string{names.Owner, names.User(tenant.A), names.User(tenant.B)}, names.Owner)
	require.NoError(tb, err, "reading the memberships")
	if list == "" {
		return nil
	}
	return strings.Split(list, ", ")
}
