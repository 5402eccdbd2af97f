// SPDX-License-Identifier: Apache-2.0

package enginetest

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"testing"

	"dbconnector/pkg/tenant"
)

// Attempt is something that a tenant tries. Besides what stands in Break, {other}, {otherowner} and {othera} stand for the
// neighbour's names.
type Attempt struct {
	Name, Reason string
	// Database to connect to; the tenant's own where it is empty.
	Database string
	// SQL is tried over one connection; the last statement must be answered with one of the codes, and those before it must
	// succeed. Where there is no SQL, connecting must fail.
	SQL []string
	// Codes are the server's words for no; empty for what the server cannot hide, and which must succeed, so that the
	// threat model does not say less, or more, than is true.
	Codes []string
	// Rows: the last statement is a query, and gives as many rows.
	Rows *int
}

// isolation is promise 1, tried for real: two tenants whose UIDs would collide if they were joined, cut or folded (B27, B28),
// and everything that one could try against the other, against the server and against its own limits.
func isolation(t *testing.T, s *Server) {
	if len(s.Attempts) == 0 {
		t.Fatal("nothing to try")
	}
	long := strings.Repeat("team", 50)
	unique := s.NewTenant().ID
	var victim, attacker *Tenant
	for i, pair := range [][2]string{
		{"a-b/c", "a/b-c"},
		{long + "1", long + "2"},
		{"Tenant", "tenant"},
		{"vc_1", "vc%1"},
		{`x'; DROP DATABASE postgres; --`, "x`; DROP DATABASE mysql; --"},
	} {
		attacker, victim = s.TenantOf(unique+pair[0]), s.TenantOf(unique+pair[1])
		if attacker.Database == victim.Database || !tenant.IsDatabase(attacker.Database) || len(attacker.User(tenant.A)) > 32 {
			t.Errorf("%q and %q: names %q and %q", pair[0], pair[1], attacker.Database, victim.Database)
		}
		if i == 0 {
			defer func(attacker, victim *Tenant) { attacker.Works(t); victim.Works(t) }(attacker, victim)
			attacker.Ensure(t)
			victim.Ensure(t)
		}
	}
	attacker.Ensure(t)
	victim.Ensure(t)
	s.ExecAs(t, victim.User(tenant.A), victim.Passwords[tenant.A], victim.Database, "CREATE TABLE secret (id INTEGER)", "INSERT INTO secret (id) VALUES (1)")
	whole, wholeAttacker := victim.Look(t), attacker.Look(t)
	more := []string{"{other}", victim.Database, "{otherowner}", victim.Owner, "{othera}", victim.User(tenant.A)}

	t.Run("attempts", func(t *testing.T) {
		for _, a := range s.Attempts {
			t.Run(a.Name, func(t *testing.T) {
				for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
					database := attacker.Database
					if a.Database != "" {
						database = attacker.SQL([]string{a.Database}, more...)[0]
					}
					db := s.Pool(t, attacker.User(slot), attacker.Passwords[slot], database)
					err := db.PingContext(t.Context())
					rows := 0
					for i, statement := range attacker.SQL(a.SQL, more...) {
						if err != nil {
							t.Fatalf("%s: slot %s: before %q: %v", a.Reason, slot, statement, err)
						}
						if a.Rows == nil || i < len(a.SQL)-1 {
							_, err = db.ExecContext(t.Context(), statement)
							continue
						}
						rows, err = count(t.Context(), db, statement)
					}
					switch {
					case len(a.Codes) == 0 && err != nil:
						t.Errorf("%s: slot %s: got %v, where the threat model says that it is possible", a.Reason, slot, err)
					case len(a.Codes) > 0 && err == nil:
						t.Errorf("%s: slot %s: it is possible", a.Reason, slot)
					case err != nil && !slices.Contains(a.Codes, s.Code(err)):
						t.Errorf("%s: slot %s: got code %s (%v), want one of %q", a.Reason, slot, s.Code(err), err, a.Codes)
					case err == nil && a.Rows != nil && rows != *a.Rows:
						t.Errorf("%s: slot %s: got %d rows, want %d", a.Reason, slot, rows, *a.Rows)
					}
					_ = db.Close()
				}
			})
		}
	})
	if now := victim.Look(t); now != whole {
		t.Errorf("the neighbour changed: the server says\n%s\nafter\n%s", now, whole)
	}
	if now := attacker.Look(t); now != wholeAttacker {
		t.Errorf("the tenant changed itself: the server says\n%s\nafter\n%s", now, wholeAttacker)
	}
	victim.Works(t)
	attacker.Works(t)
}

// count counts the rows of a query.
func count(ctx context.Context, db *sql.DB, query string) (n int, err error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return 0, err
	}
	defer rows.Close() //nolint:errcheck // Err is asked below
	for rows.Next() {
		n++
	}
	return n, rows.Err()
}
