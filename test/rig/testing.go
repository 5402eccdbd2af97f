// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/pkg/handover"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// NewTenant is a provisioned tenant with its record in a directory: the smallest setup that a sidecar can rotate. addr, if not
// empty, is the address of the server; settings are those of [Tenant].
func NewTenant(tb testing.TB, s *bed.Server, addr string, settings ...string) *Tenant {
	tb.Helper()
	dir := tb.TempDir()
	t := &Tenant{
		Name: Name(tb, "t"), Out: filepath.Join(dir, "out"), State: filepath.Join(dir, "state"), ConnectorDir: filepath.Join(dir, "connector"),
		Settings: settings,
	}
	require.NoError(tb, os.Mkdir(t.Out, 0o755))
	require.NoError(tb, WriteConnector(t.ConnectorDir, Connector(s, s.AdminUser, s.AdminPassword, addr, s.CA != nil)))
	Provision(tb, t)
	return t
}

// NewKubeTenant is a provisioned tenant with its record in a Secret.
func NewKubeTenant(tb testing.TB, c *Cluster, s *bed.Server, settings ...string) *Tenant {
	tb.Helper()
	connector := Name(tb, "c")
	require.NoError(tb, c.Connector(tb.Context(), connector, Connector(s, s.AdminUser, s.AdminPassword, "", s.CA != nil)))
	t := &Tenant{Name: Name(tb, "t"), Out: outDir(tb), Cluster: c, ConnectorName: connector, Settings: settings}
	Provision(tb, t)
	return t
}

// Replica is another pod of the same control plane: its own hand-over, the same record. It is provisioned.
func Replica(tb testing.TB, t *Tenant) *Tenant {
	tb.Helper()
	r := *t
	r.Out = outDir(tb)
	Provision(tb, &r)
	return &r
}

func outDir(tb testing.TB) string {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "out")
	require.NoError(tb, os.Mkdir(dir, 0o755))
	require.NoError(tb, os.Mkdir(handover.PrivateDir(dir), 0o700))
	return dir
}

// Provision runs dbconnector-init, which must succeed.
func Provision(tb testing.TB, t *Tenant) Result {
	tb.Helper()
	r, err := t.Provision(tb.Context())
	require.NoError(tb, err)
	return r
}

// Sidecar starts dbconnector-rotate beside a replica; the sidecar ends with the test. Settings are NAME=value without
// the prefix.
func Sidecar(tb testing.TB, t *Tenant, settings ...string) *Process {
	tb.Helper()
	p, err := t.Rotate(context.Background(), "", settings...)
	require.NoError(tb, err)
	tb.Cleanup(func() {
		p.Kill()
		if tb.Failed() {
			tb.Logf("the log of dbconnector-rotate:\n%s", p.Log())
		}
	})
	return p
}

// Until waits for a record that has a property, and returns it.
func Until(tb testing.TB, t *Tenant, what string, has func(*tenant.Record) bool) *tenant.Record {
	tb.Helper()
	var record *tenant.Record
	bed.Eventually(tb, Patience, func(ctx context.Context) (err error) {
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
