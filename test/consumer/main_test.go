// SPDX-License-Identifier: Apache-2.0

package consumer

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"dbconnector/test/bed"
)

// program is dbconnector-init, and rotateProgram dbconnector-rotate, built once for all tests of the package.
var program, rotateProgram string

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Verbose() {
		bed.Progress = os.Stderr
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "dbconnector-consumer-")
	if err == nil {
		defer os.RemoveAll(dir)
		program, err = Build(context.Background(), dir)
	}
	if err == nil {
		rotateProgram, err = BuildRotate(context.Background(), dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer host.Stop()
	return m.Run()
}

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
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	connector := filepath.Join(dir, "connector")
	if err := WriteConnector(connector, server, user, password); err != nil {
		t.Fatal(err)
	}
	values, err := ShippedValues(t.Context(), s.example)
	if err != nil {
		t.Fatal(err)
	}
	tenant, err := NewTenant("tenant", program, connector, filepath.Join(dir, "tenant"), values)
	if err != nil {
		t.Fatal(err)
	}
	ready, err := tenant.Provision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if ready.Restart {
		t.Error("a first provisioning says that it is a restart")
	}
	return server, tenant
}

// startKine starts kine on what the hand-over's config.yaml says, as vCluster does.
func startKine(t *testing.T, s setting, tenant *Tenant, args ...string) *bed.Kine {
	t.Helper()
	store, err := tenant.Store()
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(tenant.Output(), "ca.crt"); s.options.NoTLS && store.CAFile != "" || !s.options.NoTLS && store.CAFile != want {
		t.Errorf("config.yaml has caFile %q", store.CAFile)
	}
	kine := bed.NewKine(t, store.DataSource, store.CAFile, append(append([]string{}, store.ExtraArgs...), args...)...)
	return kine
}
