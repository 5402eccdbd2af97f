// SPDX-License-Identifier: Apache-2.0

package races_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// replicas is how many inits start at once for one tenant.
const replicas = 20

// TestReplicas starts many inits at once for one new tenant, and then once more after its record was lost while a control
// plane runs. All of them must end with the same credential. (docs/failures.md B40, B41)
func TestReplicas(t *testing.T) {
	t.Parallel()
	c := rig.Host(t)
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
			require.NoError(t, os.Mkdir(connector, 0o755), "making a directory")
			if server.dir {
				require.NoError(t, rig.WriteConnector(connector, data), "writing the connector")
			} else {
				require.NoError(t, c.Connector(ctx, id, data), "creating the connector")
			}
			for range replicas {
				x := newTenant(t, c, id, id)
				if server.dir {
					x.State, x.ConnectorDir = filepath.Join(dir, "state"), connector
				}
				all = append(all, x)
			}

			first := together(ctx, t, s, all)
			require.NoError(t, all[0].CheckHandover(ctx), "the hand-over")
			if !server.dir {
				n, err := c.Records(ctx, id)
				require.NoError(t, err, "counting records")
				if n != 1 {
					t.Errorf("there are %d records, want 1", n)
				}
			}

			record, err := all[0].Record(ctx)
			require.NoError(t, err, "reading the record")
			if record.Active != "a" || record.Generation != 1 {
				t.Errorf("slot %s with generation %d is active, want a with 1", record.Active, record.Generation)
			}
			held, err := rig.Connect(ctx, "", first, s.CA)
			require.NoError(t, err, "logging in as a control plane")
			defer held.Close()
			require.NoError(t, all[0].Forget(ctx), "deleting the record")
			again := together(ctx, t, s, all)
			require.NoError(t, held.Use(ctx), "the control plane that runs")
			require.NoError(t, all[0].CheckHandover(ctx), "the hand-over after the record was lost")
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
	require.NoError(t, err, "running all replicas")
	for i, r := range results {
		require.NoErrorf(t, r.Err(), "replica %d", i)
	}
	seen := map[string]int{}
	one := ""
	for _, x := range all {
		one, err = x.DSN()
		require.NoError(t, err)
		seen[one]++
	}
	if len(seen) != 1 {
		for i, r := range results {
			dsn, _ := all[i].DSN()
			t.Logf("replica %d, whose DSN %d replicas got:\n%s", i, seen[dsn], r.Log)
		}
		t.Fatalf("%d replicas were handed %d different DSNs", len(all), len(seen))
	}
	query := "SELECT count(*) FROM pg_database WHERE datname LIKE 'vc%'"
	if s.Engine != bed.Postgres {
		query = "SELECT COUNT(*) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME LIKE 'vc%'"
	}
	n, err := s.Query(ctx, "", query)
	require.NoError(t, err, "counting databases")
	if n != "1" {
		t.Fatalf("there are %s databases, want 1", n)
	}
	return one
}

// TestHerd starts 200 new tenants at once on a server with 50 connections. None may fail, because a host cluster that
// restarts brings all of its control planes back at once.
func TestHerd(t *testing.T) {
	t.Parallel()
	c := rig.Host(t)
	for _, v := range bed.Usual() {
		// The herds do not run in parallel: one herd is enough for a machine.
		t.Run(v.String(), func(t *testing.T) {
			ctx := t.Context()
			s := bed.NewServer(t, v.Engine, v.Version, bed.Options{MaxConnections: rig.HerdLimit})
			a := cloudAdmin(t, s)
			connector := rig.Name(t, "connector")
			require.NoError(t, c.Connector(ctx, connector, rig.Connector(s, a.user, a.password, "", true)), "creating the connector")
			herd, err := rig.NewHerd(c, rig.Name(t, "x"), connector, t.TempDir())
			require.NoError(t, err, "making the herd")
			result, err := rig.RunHerd(ctx, s, a.user, herd)
			require.NoError(t, err, "running the herd")
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
				require.NoError(t, err, "reading a hand-over")
				if seen[dsn] {
					t.Error("two tenants have one DSN")
				}
				seen[dsn] = true
			}
			require.NoError(t, herd[0].CheckHandover(ctx), "the first tenant")
			require.NoError(t, herd[len(herd)-1].CheckHandover(ctx), "the last tenant")
		})
	}
}
