// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestWrongName is F32: a control plane with data must not start on a new, empty database because its name changed.
// init refuses each case before it makes anything on the server or in the API, and goes on when the operator says that
// a new one is meant.
func TestWrongName(t *testing.T) {
	t.Parallel()
	server := postgres.Get(t)
	for name, test := range map[string]struct {
		reason string
		change func(t *testing.T, v *vcluster)
		want   []string
	}{
		"the pod's own name": {
			"fieldPath: metadata.name in place of the release's label",
			func(_ *testing.T, v *vcluster) { v.env["DBCONNECTOR_VCLUSTER_NAME"] = v.release + "-0" },
			[]string{`the pod "my-v-c-0" is not one of that name's`},
		},
		"another's ServiceAccount": {
			"a name from another's values; Events are switched off",
			func(_ *testing.T, v *vcluster) {
				delete(v.env, "DBCONNECTOR_POD_NAME")
				delete(v.env, "DBCONNECTOR_POD_UID")
				v.env["DBCONNECTOR_VCLUSTER_NAME"] = "other"
			},
			[]string{`the ServiceAccount "vc-my-v-c" is that of another one`},
		},
		"a release that was renamed": {
			"its record is there, and its workload is not",
			func(t *testing.T, v *vcluster) { renamed(t, v, "new") },
			[]string{`secret NAMESPACE/dbconnector-my-v-c is that of vCluster "my-v-c"`, "DBCONNECTOR_RECORD_SECRET=dbconnector-my-v-c"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVCluster(t, server, connectorFor(server))
			test.change(t, v)
			uid := v.uid + "/" + v.env["DBCONNECTOR_VCLUSTER_NAME"]
			record := "dbconnector-" + v.env["DBCONNECTOR_VCLUSTER_NAME"]

			o := v.run(t)

			t.Logf("%s: %s", test.reason, o.message())
			want := strings.Split(strings.ReplaceAll(strings.Join(test.want, "\x00"), "NAMESPACE", v.namespace), "\x00")
			o.refused(t, human, append(want, "DBCONNECTOR_ALLOW_NEW=true")...)
			if left := objects(t, server, uid); len(left) > 0 {
				t.Errorf("left on the server: %q", left)
			}
			if getSecret(t, v.namespace, record) != nil {
				t.Error("a record was made")
			}
			if left := names(t, v.outputDir); len(left) > 0 {
				t.Errorf("left in the output directory: %q", left)
			}
			v.env["DBCONNECTOR_ALLOW_NEW"] = "true"
			v.run(t).succeeded(t)
			if name := databaseIn(t, read(t, v.outputDir, "dsn")); name != databaseOf(uid) {
				t.Errorf("the hand-over leads to database %q, want %q", name, databaseOf(uid))
			}
			delete(v.env, "DBCONNECTOR_ALLOW_NEW")
			v.run(t).succeeded(t) // it is no longer a first start
		})
	}
}

// renamed provisions a vCluster, and gives it the environment of another release in the same namespace.
func renamed(tb testing.TB, v *vcluster, name string) {
	tb.Helper()
	v.provision(tb)
	account := "/api/v1/namespaces/" + v.namespace + "/serviceaccounts"
	do(tb, http.MethodPost, account, object{"metadata": object{"name": "vc-" + name}}, nil)
	bind := "/apis/rbac.authorization.k8s.io/v1/namespaces/"
	for _, binding := range []string{
		v.namespace + "/rolebindings/vc-" + v.release, v.namespace + "/rolebindings/dbconnector-" + v.release,
		v.platform + "/rolebindings/dbconnector." + v.namespace + "." + v.release,
	} {
		do(tb, http.MethodPatch, bind+binding, object{"subjects": []object{{"kind": "ServiceAccount", "name": "vc-" + name, "namespace": v.namespace}}}, nil)
	}
	token, err := cluster(tb).Token(tb.Context(), v.namespace, "vc-"+name)
	require.NoError(tb, err)
	v.useKubeconfig(tb, string(cluster(tb).KubeconfigFor(token)))
	v.env["DBCONNECTOR_VCLUSTER_NAME"], v.env["DBCONNECTOR_POD_NAME"] = name, name+"-0"
	v.outputDir = dir(tb)
	v.env["DBCONNECTOR_OUTPUT_DIR"] = v.outputDir
}

// workload makes a StatefulSet or Deployment of a name.
func workload(tb testing.TB, v *vcluster, resource, kind, name string) {
	tb.Helper()
	labels := object{"app": name}
	do(tb, http.MethodPost, "/apis/apps/v1/namespaces/"+v.namespace+"/"+resource, object{
		"kind": kind, "metadata": object{"name": name}, "spec": object{
			"replicas": 0, "selector": object{"matchLabels": labels}, "serviceName": name,
			"template": object{"metadata": object{"labels": labels}, "spec": object{"containers": []object{{"name": "c", "image": "i"}}}},
		},
	}, nil)
}

// TestNeighbours: another vCluster may begin beside one that exists, even one that is scaled to zero (F32). It may also
// begin where init lacks the rights to check.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	server := postgres.Get(t)
	for resource, kind := range map[string]string{"statefulsets": "StatefulSet", "deployments": "Deployment"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			v := newVCluster(t, server, connectorFor(server))
			renamed(t, v, "second")
			workload(t, v, resource, kind, v.release)
			v.run(t).succeeded(t)
		})
	}
	t.Run("no right to look", func(t *testing.T) {
		t.Parallel()
		v := newVCluster(t, server, connectorFor(server))
		renamed(t, v, "third")
		role := "/apis/rbac.authorization.k8s.io/v1/namespaces/" + v.namespace + "/roles/vc-" + v.release
		do(
			t, http.MethodPatch, role,
			object{"rules": []object{{"apiGroups": []string{""}, "resources": []string{"secrets"}, "verbs": []string{"get", "create", "update"}}}},
			nil,
		)
		o := v.run(t)
		o.succeeded(t)
		if !o.said("configuration warning", `whether this release was renamed cannot be told`) ||
			!o.said("configuration warning", `verb "list" on resource "secrets"`) {
			t.Errorf("no log line says that it could not look:\n%s", o.stderr)
		}
	})
}

// TestFirstStarts: init says that it is a first start, and the operator can forbid one (F32).
func TestFirstStarts(t *testing.T) {
	t.Parallel()
	for name, on := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := on.Get(t)
			v := newVCluster(t, server, connectorFor(server))
			event := func(text string) {
				t.Helper()
				if _, all := v.events(t); !strings.Contains(all, text+" "+databaseOf(v.tenant())+" on ") {
					t.Errorf("no Event says %q: %s", text, all)
				}
			}

			v.env["DBCONNECTOR_ALLOW_NEW"] = "false"
			v.run(t).refused(t, human, "DBCONNECTOR_ALLOW_NEW=false", "restore it from a backup")
			if left := objects(t, server, v.tenant()); len(left) > 0 || getSecret(t, v.namespace, v.recordName()) != nil {
				t.Errorf("something was made: %q", left)
			}
			delete(v.env, "DBCONNECTOR_ALLOW_NEW")
			v.run(t).succeeded(t)
			event("created a new, empty database")
			put(t, server, v, "mine")
			v.env["DBCONNECTOR_ALLOW_NEW"] = "false" // a restart is not a first start
			v.run(t).succeeded(t)

			do(t, http.MethodDelete, secretPath(v.namespace, v.recordName()), nil, nil)
			v.run(t).refused(t, human, "DBCONNECTOR_ALLOW_NEW=false")
			v.env["DBCONNECTOR_ALLOW_NEW"] = "true"
			o := v.run(t)
			o.succeeded(t)
			if !o.said("configuration warning", "there was no record: took over the existing database") {
				t.Errorf("the log does not say so:\n%s", o.stderr)
			}
			event("there was no record: took over the existing database")
			if got := get(t, server, v); got != "mine" {
				t.Errorf("the data is %q, want \"mine\"", got)
			}
			if reasons, _ := v.events(t); !slices.Equal(sorted(reasons), []string{"Normal Provisioned", "Normal Provisioned", "Warning Refused x2"}) {
				t.Errorf("Events %q", reasons)
			}
		})
	}
}

// TestRanBefore: a control plane that has run on another store, such as SQLite or etcd, does not start on a new, empty
// database (F32). The certificates that it makes at its first start show this. init takes over a database that exists,
// and an operator may give the data up.
func TestRanBefore(t *testing.T) {
	t.Parallel()
	for name, on := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := on.Get(t)
			v := newVCluster(t, server, connectorFor(server))
			secret := object{"metadata": object{"name": v.release + "-certs", "labels": object{"app": "vcluster", "vcluster-name": v.release}}}
			do(t, http.MethodPost, secretPath(v.namespace, ""), secret, nil)
			for range 2 { // the record that the first of them leaves changes nothing
				v.run(t).refused(
					t, human, "this control plane has run before (there is secret "+v.namespace+"/"+v.release+"-certs)",
					databaseOf(v.tenant()), "DBCONNECTOR_ALLOW_NEW=true",
				)
				if left := objects(t, server, v.tenant()); len(left) > 0 {
					t.Errorf("something was made: %q", left)
				}
			}

			// Certificates that the operator has made say nothing.
			own := newVCluster(t, server, connectorFor(server))
			do(t, http.MethodPost, secretPath(own.namespace, ""), object{"metadata": object{"name": own.release + "-certs"}}, nil)
			own.run(t).succeeded(t)

			v.env["DBCONNECTOR_ALLOW_NEW"] = "true"
			v.run(t).succeeded(t)
			delete(v.env, "DBCONNECTOR_ALLOW_NEW")
			put(t, server, v, "mine")
			do(t, http.MethodDelete, secretPath(v.namespace, v.recordName()), nil, nil)
			v.run(t).succeeded(t)
			if got := get(t, server, v); got != "mine" {
				t.Errorf("the data is %q, want \"mine\"", got)
			}
		})
	}
}
