// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// TestHerdOfSidecars makes the passwords of 200 tenants of one server due at the same instant, where the server takes
// 50 connections. None may fail: a sidecar that the server turns away tries again. Each tenant has a sidecar of its
// own, as it is shipped. make bench does the same on MySQL and MariaDB, with records in Secrets.
func TestHerdOfSidecars(t *testing.T) {
	t.Parallel()
	server := bed.NewServer(t, bed.Postgres, "17", bed.Options{MaxConnections: rig.HerdLimit})
	herd := provisionHerd(t, server)
	result, err := rig.RotateHerd(t.Context(), server, herd, 5*time.Minute)
	require.NoError(t, err, "rotating the herd")
	t.Logf("from due to handed over: p50 %s, p99 %s, longest %s; %d steps tried again, at most %d connections",
		result.P50, result.P99, result.Longest, result.Again, result.Peak)
	if len(result.Failed) > 0 {
		t.Fatalf("%d of them failed, for example: %v", len(result.Failed), result.Failed[0])
	}
	if result.Again == 0 {
		t.Error("the server turned no sidecar away: this is no herd")
	}
	for _, plane := range herd {
		r := rig.Until(t, plane, "generation 2", func(r *tenant.Record) bool { return r.Generation == 2 })
		if r.Pending != nil || r.OtherRefused {
			t.Errorf("tenant %s has been rotated, and its record says that a change is pending (%t), a login refused (%t)",
				plane.Name, r.Pending != nil, r.OtherRefused)
		}
	}
}

// provisionHerd makes the tenants of a herd, with their records in directories, a few at a time.
func provisionHerd(t *testing.T, server *bed.Server) []*rig.Tenant {
	t.Helper()
	dir := t.TempDir()
	connector := filepath.Join(dir, "connector")
	require.NoError(t, rig.WriteConnector(connector, rig.Connector(server, server.AdminUser, server.AdminPassword, "", true)), "writing the connector")
	var herd []*rig.Tenant
	var group errgroup.Group
	group.SetLimit(4)
	for i := range rig.Herd {
		own := filepath.Join(dir, fmt.Sprint(i))
		plane := &rig.Tenant{
			Name: fmt.Sprintf("%s-%d", rig.Name(t, "t"), i), ConnectorDir: connector,
			Out: filepath.Join(own, "out"), State: filepath.Join(own, "state"),
		}
		require.NoError(t, os.MkdirAll(plane.Out, 0o755), "making a directory")
		herd = append(herd, plane)
		group.Go(func() error {
			_, err := plane.Provision(t.Context())
			return err
		})
	}
	require.NoError(t, group.Wait(), "provisioning the herd")
	return herd
}
