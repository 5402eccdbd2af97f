// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// TestNeighboursAreStrangers installs two vClusters of the same name, in two namespaces: each has a database of its own, and
// reads neither the other's connector nor its record.
func TestNeighboursAreStrangers(t *testing.T) {
	t.Parallel()
	lap := stopwatch(t)
	var neighbours []*VCluster
	var server *bed.Server
	for _, name := range []string{"east", "west"} {
		var c *Cluster
		c, server = newConnector(t, name) // the same for both
		neighbours = append(neighbours, install(t, c, "open-source", Names{Release: "team-a", Namespace: name, Connector: name}, nil))
	}
	for _, v := range neighbours {
		ready(t, v)
		mustWrite(t, v, "of-"+v.Namespace)
	}
	lap("ready")
	if a, b := record(t, neighbours[0]), record(t, neighbours[1]); a.Database == b.Database || a.Login(a.Active).Password == b.Login(b.Active).Password {
		t.Errorf("they share database %s, or a password", a.Database)
	}
	for i, v := range neighbours {
		other := neighbours[1-i]
		written(t, v, "of-"+v.Namespace)
		mustWrite(t, v, "of-"+other.Namespace) // which is refused where it is there
		account := "--as=system:serviceaccount:" + v.Namespace + ":vc-" + v.Release
		for _, secret := range []struct {
			namespace, name string
			may             bool
		}{
			{PlatformNamespace, v.Connector, true},
			{PlatformNamespace, other.Connector, false},
			{v.Namespace, "dbconnector-" + v.Release, true},
			{other.Namespace, "dbconnector-" + other.Release, false},
		} {
			_, err := v.c.Kubectl(t.Context(), "", "get", "secret", "--namespace", secret.namespace, secret.name, "--output=name", account)
			if secret.may && err != nil || !secret.may && (err == nil || !strings.Contains(err.Error(), "Forbidden")) {
				t.Errorf("the ServiceAccount in %s, reading %s/%s: %v", v.Namespace, secret.namespace, secret.name, err)
			}
		}
		if _, err := v.c.Kubectl(t.Context(), "", "get", "secrets", "--namespace", PlatformNamespace, account); err == nil ||
			!strings.Contains(err.Error(), "Forbidden") {
			t.Errorf("the ServiceAccount in %s, listing connectors: %v", v.Namespace, err)
		}
		mine, theirs := record(t, v), record(t, other)
		for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
			login := mine.Login(slot)
			assert.NoErrorf(t, enters(t.Context(), server, login, login.Database), "login %s", login.User)
			if err := enters(t.Context(), server, login, theirs.Database); err == nil || !strings.Contains(err.Error(), "42501") {
				t.Errorf("login %s, entering the neighbour's database: %v", login.User, err)
			}
		}
	}
	lap("strangers")
}

// TestNamespaceMadeAgain deletes a vCluster with its namespace and makes it again under the same names: it is a new tenant,
// and sees nothing of the old one's data. With the old one's UID it is the old tenant.
func TestNamespaceMadeAgain(t *testing.T) {
	t.Parallel()
	lap := stopwatch(t)
	c, server := newConnector(t, "again")
	names := Names{Release: "team-a", Namespace: "again", Connector: "again"}
	v := install(t, c, "open-source", names, nil)
	ready(t, v)
	mustWrite(t, v, "old")
	old := record(t, v)
	lap("first")

	again := func(uid string) {
		t.Helper()
		kubectl(t, c, "delete", "namespace", names.Namespace, "--timeout="+patience.String())
		lap("deleted")
		values, err := c.Values("open-source")
		require.NoError(t, err)
		values.SetConnector(names.Connector)
		if uid != "" {
			values.SetEnv("DBCONNECTOR_TENANT_UID", uid)
		}
		v, err = c.New(t.Context(), "open-source", names, values)
		require.NoError(t, err)
		ready(t, v)
		lap("made again")
	}
	again("")
	if now := record(t, v); now.Database == old.Database {
		t.Errorf("it has the old database %s", now.Database)
	}
	mustWrite(t, v, "old") // which is refused where it is there
	if n, err := server.Query(t.Context(), old.Database, "SELECT count(*) FROM kine WHERE name = '/registry/configmaps/default/old'"); err != nil || n != "1" {
		t.Errorf("the old object is %q times in the old database, %v", n, err)
	}

	again(old.UID)
	if now := record(t, v); now.Database != old.Database {
		t.Errorf("it has database %s, want the old one, %s", now.Database, old.Database)
	}
	written(t, v, "old")
}
