// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// setting is a server and how to reach it.
type setting struct {
	name    string
	engine  bed.Engine
	version string
	options bed.Options
	example string // the Helm values: "open-source" for the embedded store, "licensed" for the external one
}

// settings are the settings that a control plane must run with. With TLS, the server takes nothing else
// and its certificate is from a CA that no system trusts, so that a program that gets through
// has read the CA of the hand-over.
var settings = []setting{
	{"postgres-17 verified", bed.Postgres, "17", bed.Options{RequireTLS: true}, "open-source"},
	{"mysql-9.7 verified", bed.MySQL, "9.7", bed.Options{RequireTLS: true}, "licensed"},
	{"mariadb-11.8 verified", bed.MariaDB, "11.8", bed.Options{RequireTLS: true}, "open-source"},
	{"postgres-17 without TLS", bed.Postgres, "17", bed.Options{NoTLS: true}, "licensed"},
	{"mysql-9.7 without TLS", bed.MySQL, "9.7", bed.Options{NoTLS: true}, "open-source"},
	{"mariadb-11.8 without TLS", bed.MariaDB, "11.8", bed.Options{NoTLS: true}, "licensed"},
}

// newTenant starts the server, makes a connector with an admin as managed databases have
// them, and provisions one tenant.
func (s setting) newTenant(t *testing.T) (*bed.Server, *Tenant) {
	t.Helper()
	server := bed.NewServer(t, s.engine, s.version, s.options)
	user, password, err := server.CloudAdmin(t.Context(), "platform")
	require.NoError(t, err)
	dir := t.TempDir()
	connector := filepath.Join(dir, "connector")
	require.NoError(t, WriteConnector(connector, server, user, password))
	values, err := ShippedValues(t.Context(), s.example)
	require.NoError(t, err)
	tenant, err := NewTenant("tenant", connector, filepath.Join(dir, "tenant"), values)
	require.NoError(t, err)
	ready, err := tenant.Provision(t.Context())
	require.NoError(t, err)
	if ready.Restart {
		t.Error("a first provisioning says that it is a restart")
	}
	return server, tenant
}

// startKine starts kine on what the hand-over's config.yaml says, as vCluster does.
func startKine(t *testing.T, s setting, tenant *Tenant, args ...string) *bed.Kine {
	t.Helper()
	store, err := tenant.Store()
	require.NoError(t, err)
	if want := filepath.Join(tenant.Out, "ca.crt"); s.options.NoTLS && store.CAFile != "" || !s.options.NoTLS && store.CAFile != want {
		t.Errorf("config.yaml has caFile %q", store.CAFile)
	}
	kine := bed.NewKine(t, store.DataSource, store.CAFile, append(append([]string{}, store.ExtraArgs...), args...)...)
	return kine
}
