// SPDX-License-Identifier: Apache-2.0

// Package races_test runs dbconnector-init as its users do, but many at once, or killed at every moment, or while the
// servers that it needs stop and come back.
package races_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m, rig.BriefQuiet) }

// admin is an admin on a server. It says whether this is a cloud admin.
type admin struct{ user, password string }

func superuser(s *bed.Server) admin { return admin{s.AdminUser, s.AdminPassword} }

func cloudAdmin(tb testing.TB, s *bed.Server) admin {
	tb.Helper()
	user, password, err := s.CloudAdmin(tb.Context(), "cloudadmin")
	require.NoError(tb, err)
	return admin{user, password}
}

// newTenant is a tenant with a hand-over directory of its own and its record in a Secret.
func newTenant(tb testing.TB, c *rig.Cluster, name, connector string) *rig.Tenant {
	tb.Helper()
	out := filepath.Join(tb.TempDir(), "out")
	require.NoError(tb, os.Mkdir(out, 0o755))
	return &rig.Tenant{Name: name, Out: out, Cluster: c, ConnectorName: connector}
}

func inspect(tb testing.TB, s *bed.Server) *rig.Inspector {
	tb.Helper()
	look, err := rig.Inspect(s)
	require.NoError(tb, err, "looking at the server")
	tb.Cleanup(look.Close)
	return look
}
