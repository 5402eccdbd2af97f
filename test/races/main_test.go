// SPDX-License-Identifier: Apache-2.0

// Package races_test runs dbconnector-init as its users do, but many at once, or killed at every moment, or while the
// servers that it needs stop and come back.
package races_test

import (
	"os"
	"path/filepath"
	"testing"

	"dbconnector/test/bed"
	"dbconnector/test/races/rig"
)

// binary is dbconnector-init, built once.
var binary string

func TestMain(m *testing.M) { rig.Main(m, &binary, nil, shared.Stop) }

// The API server is shared by all tests: tenants have names of their own.
var shared rig.Shared

func sharedCluster(tb testing.TB) *rig.Cluster {
	tb.Helper()
	c, err := shared.Get()
	check(tb, "starting the API server", err)
	return c
}

// admin is an admin on a server. It says whether this is a cloud admin.
type admin struct{ user, password string }

func superuser(s *bed.Server) admin { return admin{s.AdminUser, s.AdminPassword} }

func cloudAdmin(tb testing.TB, s *bed.Server) admin {
	tb.Helper()
	user, password, err := s.CloudAdmin(tb.Context(), "cloudadmin")
	if err != nil {
		tb.Fatal(err)
	}
	return admin{user, password}
}

// newTenant is a tenant with a hand-over directory of its own and its record in a Secret.
func newTenant(tb testing.TB, c *rig.Cluster, name, connector string) *rig.Tenant {
	tb.Helper()
	out := filepath.Join(tb.TempDir(), "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		tb.Fatal(err)
	}
	return &rig.Tenant{Binary: binary, Name: name, Out: out, Cluster: c, ConnectorName: connector}
}

func inspect(tb testing.TB, s *bed.Server) *rig.Inspector {
	tb.Helper()
	look, err := rig.Inspect(s)
	check(tb, "looking at the server", err)
	tb.Cleanup(look.Close)
	return look
}

// must fails the test for a run that did not succeed.
func must(tb testing.TB, what string, r rig.Result, err error) {
	tb.Helper()
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		tb.Fatalf("%s: %v", what, err)
	}
}

func check(tb testing.TB, what string, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatalf("%s: %v", what, err)
	}
}
