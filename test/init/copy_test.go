// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
)

// TestCopyInAnotherCluster is F2: a drill copies the record into a cluster with the same names. init refuses it. One
// annotation takes it over, and init takes the restart path from then on. The admin path needs the tenant UID as well.
func TestCopyInAnotherCluster(t *testing.T) {
	t.Parallel()
	server := mariadb.Get(t)
	v := prepared(t, server, connectorFor(server))
	v.provision(t)
	put(t, server, v, "mine")
	second := bed.NewAPIServer(t, bed.APIServerOptions{})
	there := func(method, path string, in, out any) {
		t.Helper()
		require.NoError(t, second.Do(t.Context(), method, path, in, out))
	}
	var made struct{ Metadata struct{ UID string } }
	there(http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": v.namespace}}, &made)
	var secret object
	do(t, http.MethodGet, secretPath(v.namespace, v.recordName()), nil, &secret)
	meta, _ := secret["metadata"].(object)
	delete(meta, "resourceVersion")
	delete(meta, "uid")
	there(http.MethodPost, "/api/v1/namespaces/"+v.namespace+"/secrets", secret, nil)

	v.outputDir = dir(t)
	v.env["DBCONNECTOR_OUTPUT_DIR"] = v.outputDir
	v.useKubeconfig(t, read(t, second.Kubeconfig))
	o := v.run(t)
	fact := "dbconnector/namespace-uid=" + made.Metadata.UID
	o.refused(t, human, "kubectl --namespace "+v.namespace+" annotate --overwrite secret "+v.recordName()+" "+fact, "DBCONNECTOR_TENANT_UID="+v.tenant())
	if left := names(t, v.outputDir); len(left) > 0 {
		t.Errorf("left in the output directory: %q", left)
	}
	v.env["DBCONNECTOR_TENANT_UID"] = v.tenant() // a drill copies the values as well, so they prove nothing
	v.run(t).refused(t, human, fact)
	delete(v.env, "DBCONNECTOR_TENANT_UID")

	there(
		http.MethodPatch, secretPath(v.namespace, v.recordName()),
		object{"metadata": object{"annotations": object{"dbconnector/namespace-uid": made.Metadata.UID}}}, nil,
	)
	for range 2 {
		o := v.run(t)
		o.succeeded(t)
		if !o.said("ready", "restart:true") || o.said("could not finish what is left to do (continuing)", "") {
			t.Errorf("not the restart path:\n%s", o.stderr)
		}
	}
	if got := get(t, server, v); got != "mine" {
		t.Errorf("the data is %q, want \"mine\"", got)
	}

	there(http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": v.platform}}, nil)
	there(http.MethodPost, "/api/v1/namespaces/"+v.platform+"/secrets", object{
		"metadata": object{"name": v.connector, "labels": connectorLabel}, "stringData": connectorFor(server),
	}, nil)
	v.env["DBCONNECTOR_CONNECTION_LIMIT"] = "60"
	o = v.run(t)
	o.succeeded(t)
	if !o.said("could not finish what is left to do (continuing)", "names another tenant") {
		t.Errorf("the admin worked for a tenant UID that the operator did not set:\n%s", o.stderr)
	}
	v.env["DBCONNECTOR_TENANT_UID"] = v.tenant()
	o = v.run(t)
	o.succeeded(t)
	if o.said("could not finish what is left to do (continuing)", "") {
		t.Errorf("the admin path failed:\n%s", o.stderr)
	}
}

// TestTenantUIDStaysOut is S15: with the tenant UID, an attacker who may set a variable of a pod opens the tenant's
// database. init does not name it where it is of no use.
func TestTenantUIDStaysOut(t *testing.T) {
	t.Parallel()
	server := mariadb.Get(t)
	s := newSite(t, server)
	v := newVCluster(t, server, connectorFor(server))
	for range 2 {
		v.env["DBCONNECTOR_TENANT_UID"] = ""
		for uid, o := range map[string]*outcome{s.uid: s.run(t), v.tenant(): v.run(t)} {
			o.succeeded(t)
			if strings.Contains(o.stderr, uid) {
				t.Errorf("the log tells the tenant UID:\n%s", o.stderr)
			}
		}
	}
	v.env["DBCONNECTOR_TENANT_UID"] = v.tenant()
	o := v.run(t)
	o.succeeded(t)
	if strings.Contains(o.stderr, v.tenant()) || !o.said("starting", "that of "+databaseOf(v.tenant())) {
		t.Errorf("the log tells the tenant UID, or does not say that one is set:\n%s", o.stderr)
	}
	if _, text := v.events(t); strings.Contains(text, v.uid) {
		t.Errorf("an Event tells it: %s", text)
	}
}
