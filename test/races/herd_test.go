// SPDX-License-Identifier: Apache-2.0

package races_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"dbconnector/test/bed"
	"dbconnector/test/races/rig"
)

// replicas is how many inits start at once for one tenant.
const replicas = 20

// TestReplicas starts many inits at once for one new tenant, and then once more after its record was lost while a control
// plane runs. All of them must end with the same credential. (docs/failures.md B40, B41)
func TestReplicas(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	for _, server := range []struct {
		engine  bed.Engine
		version string
		dir     bool
	}{
		{bed.Postgres, "13", false},
		{bed.Postgres, "17", false},
		{bed.Postgres, "17", true},
		{bed.MySQL, "9.7", false},
		{bed.MariaDB, "10.5", false},
		{bed.MariaDB, "11.8", false},
	} {
		where := "secret"
		if server.dir {
			where = "directory"
		}
		t.Run(fmt.Sprintf("%s-%s-%s", server.engine, server.version, where), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s := bed.NewServer(t, server.engine, server.version, bed.Options{})
			a := cloudAdmin(t, s)
			data := rig.Connector(s, a.user, a.password, "", true)
			id := rig.Name(t, "x")
			var all []*rig.Tenant
			dir := t.TempDir()
			connector := filepath.Join(dir, "connector")
			check(t, "making a directory", os.Mkdir(connector, 0o755))
			if server.dir {
				check(t, "writing the connector", rig.WriteConnector(connector, data))
			} else {
				check(t, "creating the connector", c.Connector(ctx, id, data))
			}
			for range replicas {
				x := newTenant(t, c, id, id)
				if server.dir {
					x.State, x.ConnectorDir = filepath.Join(dir, "state"), connector
				}
				all = append(all, x)
			}

			first := together(ctx, t, s, all)
			check(t, "the hand-over", all[0].CheckHandover(ctx))
			if !server.dir {
				n, err := c.Records(ctx, id)
				check(t, "counting records", err)
				if n != 1 {
					t.Errorf("there are %d records, want 1", n)
				}
			}

			record, err := all[0].Record(ctx)
			check(t, "reading the record", err)
			if record.Active != "a" || record.Generation != 1 {
				t.Errorf("slot %s with generation %d is active, want a with 1", record.Active, record.Generation)
			}
			held, err := hold(ctx, first, s.CA)
			check(t, "logging in as a control plane", err)
			defer held.close()
			check(t, "deleting the record", all[0].Forget(ctx))
			again := together(ctx, t, s, all)
			check(t, "the control plane that runs", held.check(ctx))
			check(t, "the hand-over after the record was lost", all[0].CheckHandover(ctx))
			if again == first {
				t.Error("the record was lost, and the credential is the same")
			}
			if record, err = all[0].Record(ctx); err != nil || record.Active != "b" {
				t.Errorf("slot %v is active (%v), want b: a is in use", record, err)
			}
		})
	}
}

// together runs all replicas at once. It returns their DSN, which must be the same for all, on the only database.
func together(ctx context.Context, t *testing.T, s *bed.Server, all []*rig.Tenant) string {
	t.Helper()
	results, err := rig.Together(ctx, all)
	check(t, "running all replicas", err)
	for i, r := range results {
		must(t, fmt.Sprintf("replica %d", i), r, nil)
	}
	seen := map[string]int{}
	one := ""
	for _, x := range all {
		if one, err = x.DSN(); err != nil {
			t.Fatal(err)
		}
		seen[one]++
	}
	if len(seen) != 1 {
		for i, r := range results {
			dsn, _ := all[i].DSN()
			t.Logf("replica %d, whose DSN %d replicas got:\n%s", i, seen[dsn], r.Stderr)
		}
		t.Fatalf("%d replicas were handed %d different DSNs", len(all), len(seen))
	}
	query := "SELECT count(*) FROM pg_database WHERE datname LIKE 'vc%'"
	if s.Engine != bed.Postgres {
		query = "SELECT COUNT(*) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME LIKE 'vc%'"
	}
	n, err := s.Query(ctx, "", query)
	check(t, "counting databases", err)
	if n != "1" {
		t.Fatalf("there are %s databases, want 1", n)
	}
	return one
}

// TestHerd starts 200 new tenants at once on a server with 50 connections. None may fail, because a host cluster that
// restarts brings all of its control planes back at once.
func TestHerd(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	for _, server := range []struct {
		engine  bed.Engine
		version string
	}{{bed.Postgres, "17"}, {bed.MySQL, "9.7"}, {bed.MariaDB, "11.8"}} {
		// The herds do not run in parallel: one herd is enough for a machine.
		t.Run(fmt.Sprintf("%s-%s", server.engine, server.version), func(t *testing.T) {
			ctx := t.Context()
			s := bed.NewServer(t, server.engine, server.version, bed.Options{MaxConnections: rig.HerdLimit})
			a := cloudAdmin(t, s)
			connector := rig.Name(t, "connector")
			check(t, "creating the connector", c.Connector(ctx, connector, rig.Connector(s, a.user, a.password, "", true)))
			herd, err := rig.NewHerd(c, binary, rig.Name(t, "x"), connector, t.TempDir())
			check(t, "making the herd", err)
			result, err := rig.RunHerd(ctx, s, a.user, herd)
			check(t, "running the herd", err)
			t.Logf("%d tenants: p50 %s, p99 %s, at most %d connections of the admin", len(herd), result.P50, result.P99, result.Peak)
			for _, r := range result.Failed {
				t.Errorf("a tenant failed: %v", r.Err())
			}
			if t.Failed() {
				return
			}
			seen := map[string]bool{}
			for _, x := range herd {
				dsn, err := x.DSN()
				check(t, "reading a hand-over", err)
				if seen[dsn] {
					t.Error("two tenants have one DSN")
				}
				seen[dsn] = true
			}
			check(t, "the first tenant", herd[0].CheckHandover(ctx))
			check(t, "the last tenant", herd[len(herd)-1].CheckHandover(ctx))
		})
	}
}
