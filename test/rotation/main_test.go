// SPDX-License-Identifier: Apache-2.0

// Package rotation_test runs dbconnector-rotate as its users do: several of them beside one tenant, on real servers.
// The tests kill them, cut them off and send them false answers.
package rotation_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/races/rig"
)

// The programs, built once.
var initBinary, rotateBinary string

func TestMain(m *testing.M) { rig.Main(m, &initBinary, &rotateBinary, stopServers) }

// Tests that do not harm the API server share it: tenants have names of their own.
var shared rig.Shared

func sharedCluster(tb testing.TB) *rig.Cluster {
	tb.Helper()
	c, err := shared.Get()
	check(tb, "starting the API server", err)
	return c
}

// Tests share database servers in the same way: tenants have logins and databases of their own. A test that restarts a
// server, changes its settings or counts its statements uses one from bed.NewServer.
var (
	serversMu  sync.Mutex
	serverPool = map[string]*bed.Server{}
)

func sharedServer(tb testing.TB, engine bed.Engine, version string) *bed.Server {
	tb.Helper()
	serversMu.Lock()
	defer serversMu.Unlock()
	key := string(engine) + "-" + version
	if serverPool[key] == nil {
		s, err := bed.Start(context.Background(), engine, version, bed.Options{})
		check(tb, "starting "+key, err)
		serverPool[key] = s
	}
	return serverPool[key]
}

// stopServers stops the API server, and then the shared database servers.
func stopServers() {
	shared.Stop()
	for _, s := range serverPool {
		_ = s.Stop(context.Background())
	}
}

// servers are the servers on which the tests run a rotation.
var servers = []struct {
	engine  bed.Engine
	version string
}{
	{bed.Postgres, "13"},
	{bed.Postgres, "15"},
	{bed.Postgres, "17"},
	{bed.Postgres, "18"},
	{bed.MySQL, "9.7"},
	{bed.MariaDB, "10.5"},
	{bed.MariaDB, "10.11"},
	{bed.MariaDB, "11.8"},
}

// patience bounds a wait that takes a moment on an idle machine.
const patience = 2 * time.Minute

// newTenant is a tenant with its record in a directory: the smallest setup that a sidecar can rotate. addr, if not
// empty, is the address of the server. The tenant is provisioned.
func newTenant(tb testing.TB, s *bed.Server, addr string) *rig.Tenant {
	tb.Helper()
	dir := tb.TempDir()
	t := &rig.Tenant{
		Binary: initBinary, Name: rig.Name(tb, "t"), Out: filepath.Join(dir, "out"), State: filepath.Join(dir, "state"),
		ConnectorDir: filepath.Join(dir, "connector"),
	}
	for _, d := range []string{t.Out, t.ConnectorDir} {
		check(tb, "making a directory", os.Mkdir(d, 0o755))
	}
	check(tb, "writing the connector", rig.WriteConnector(t.ConnectorDir, rig.Connector(s, s.AdminUser, s.AdminPassword, addr, s.CA != nil)))
	provision(tb, t)
	return t
}

// newKubeTenant is a provisioned tenant with its record in a Secret.
func newKubeTenant(tb testing.TB, c *rig.Cluster, s *bed.Server) *rig.Tenant {
	tb.Helper()
	out := filepath.Join(tb.TempDir(), "out")
	check(tb, "making a directory", os.Mkdir(out, 0o755))
	connector := rig.Name(tb, "c")
	check(tb, "making the connector", c.Connector(tb.Context(), connector, rig.Connector(s, s.AdminUser, s.AdminPassword, "", s.CA != nil)))
	t := &rig.Tenant{Binary: initBinary, Name: rig.Name(tb, "t"), Out: out, Cluster: c, ConnectorName: connector}
	provision(tb, t)
	return t
}

// replica is another pod of the same control plane: its own hand-over, the same record. It is provisioned.
func replica(tb testing.TB, t *rig.Tenant) *rig.Tenant {
	tb.Helper()
	r := *t
	r.Out = filepath.Join(tb.TempDir(), "out")
	check(tb, "making a directory", os.Mkdir(r.Out, 0o755))
	provision(tb, &r)
	return &r
}

func provision(tb testing.TB, t *rig.Tenant) {
	tb.Helper()
	result, err := t.Run(tb.Context())
	if err == nil {
		err = result.Err()
	}
	check(tb, "dbconnector-init", err)
}

// rotate starts dbconnector-rotate beside a replica; the sidecar ends with the test. Settings are NAME=value without
// the prefix.
func rotate(tb testing.TB, t *rig.Tenant, settings ...string) *rig.Sidecar {
	tb.Helper()
	env := make([]string, len(settings))
	for i, s := range settings {
		env[i] = "DBCONNECTOR_" + s
	}
	s, err := t.Rotate(context.Background(), rotateBinary, env...)
	check(tb, "dbconnector-rotate", err)
	tb.Cleanup(func() {
		s.Kill()
		if tb.Failed() {
			tb.Logf("the log of dbconnector-rotate:\n%s", s.Log())
		}
	})
	return s
}

// until waits for a record that has a property, and returns it.
func until(tb testing.TB, t *rig.Tenant, what string, has func(*tenant.Record) bool) *tenant.Record {
	tb.Helper()
	var record *tenant.Record
	bed.Eventually(tb, patience, func(ctx context.Context) (err error) {
		if record, err = t.Record(ctx); err != nil {
			return err
		}
		if record == nil || !has(record) {
			return fmt.Errorf("the record never says: %s: %+v", what, record)
		}
		return nil
	})
	return record
}

func check(tb testing.TB, what string, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatalf("%s: %v", what, err)
	}
}
