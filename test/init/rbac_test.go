// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// TestRBAC: with the token of the chart's ServiceAccount, the chart's own Role and the shipped manifests, the program
// does its work. The token opens nothing else in the platform's namespace. The test asks the API server for this, and
// does not trust the manifests.
func TestRBAC(t *testing.T) {
	t.Parallel()
	server := postgres.Get(t)
	v := newVCluster(t, server, connectorFor(server))
	other := prepared(t, server, nil)
	// Another vCluster, with the same release name in another namespace, on the same platform, with a connector of its own.
	other.platform, other.connector = v.platform, "pg-2.example"
	other.env["DBCONNECTOR_CONNECTOR"], other.env["DBCONNECTOR_CONNECTOR_NAMESPACE"] = other.connector, other.platform
	makeSecret(t, other.platform, other.connector, connectorLabel, connectorFor(server))
	other.grant(t)
	other.useToken(t, cluster(t).URL)

	for _, tenant := range []*vcluster{v, other} {
		tenant.provision(t)
		if reasons, _ := tenant.events(t); !slices.Equal(reasons, []string{"Normal Provisioned"}) {
			t.Errorf("Events %q, want one that says Provisioned", reasons)
		}
		if name, err := login(t, server, read(t, tenant.outputDir, "dsn")); err != nil || name != databaseOf(tenant.tenant()) {
			t.Errorf("the hand-over leads to database %q, %v; want %q", name, err, databaseOf(tenant.tenant()))
		}
	}

	makeSecret(t, v.platform, "other", nil, map[string]string{"x": "y"})
	do(t, http.MethodPost, "/api/v1/namespaces/"+v.platform+"/configmaps", object{"metadata": object{"name": "settings"}}, nil)
	token := v.token(t)
	if code, _ := as(t, token, http.MethodGet, secretPath(v.platform, v.connector), ""); code != http.StatusOK {
		t.Fatalf("reading its connector: %d, want 200: what follows would prove nothing", code)
	}
	secrets := "/api/v1/namespaces/" + v.platform + "/secrets"
	connector := secrets + "/" + v.connector
	for _, test := range []struct{ what, method, path, body string }{
		{"list the platform's Secrets", http.MethodGet, secrets, ""},
		{"list them by the connector's name", http.MethodGet, secrets + "?fieldSelector=metadata.name%3D" + v.connector, ""},
		{"list connectors by their label", http.MethodGet, secrets + "?labelSelector=loft.sh%2Fconnector-type%3Dshared-database", ""},
		{"watch the platform's Secrets", http.MethodGet, secrets + "?watch=true", ""},
		{"watch its connector", http.MethodGet, secrets + "?watch=true&fieldSelector=metadata.name%3D" + v.connector, ""},
		{"read another Secret", http.MethodGet, secrets + "/other", ""},
		{"read another vCluster's connector", http.MethodGet, secrets + "/" + other.connector, ""},
		{"read a Secret that is not there", http.MethodGet, secrets + "/nothing", ""},
		{"create a Secret", http.MethodPost, secrets, `{"metadata":{"name":"mine"}}`},
		{"replace its connector", http.MethodPut, connector, `{"metadata":{"name":"` + v.connector + `"}}`},
		{"change its connector", http.MethodPatch, connector, `{"data":{"endpoint":"eHg="}}`},
		{"delete its connector", http.MethodDelete, connector, ""},
		{"delete all Secrets", http.MethodDelete, secrets, ""},
		{"read a ConfigMap of the platform", http.MethodGet, "/api/v1/namespaces/" + v.platform + "/configmaps/settings", ""},
		{"list the platform's ConfigMaps", http.MethodGet, "/api/v1/namespaces/" + v.platform + "/configmaps", ""},
		{"list the platform's pods", http.MethodGet, "/api/v1/namespaces/" + v.platform + "/pods", ""},
		{
			"create a pod on the platform", http.MethodPost, "/api/v1/namespaces/" + v.platform + "/pods",
			`{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i"}]}}`,
		},
		{"get a token of the platform", http.MethodPost, "/api/v1/namespaces/" + v.platform + "/serviceaccounts/default/token", `{"spec":{}}`},
		{"record an Event on the platform", http.MethodPost, "/api/v1/namespaces/" + v.platform + "/events", `{"metadata":{"name":"e"}}`},
		{"read the platform's namespace", http.MethodGet, "/api/v1/namespaces/" + v.platform, ""},
		{
			"read its Role on the platform", http.MethodGet,
			"/apis/rbac.authorization.k8s.io/v1/namespaces/" + v.platform + "/roles/dbconnector." + v.namespace + "." + v.release,
			"",
		},
		{
			"widen its Role on the platform", http.MethodPatch,
			"/apis/rbac.authorization.k8s.io/v1/namespaces/" + v.platform + "/roles/dbconnector." + v.namespace + "." + v.release,
			`{"rules":[]}`,
		},
		{
			"widen its Role at home", http.MethodPatch,
			"/apis/rbac.authorization.k8s.io/v1/namespaces/" + v.namespace + "/roles/dbconnector-" + v.release, `{"rules":[]}`,
		},
		{"read another vCluster's record", http.MethodGet, secretPath(other.namespace, other.recordName()), ""},
		{"list another vCluster's Secrets", http.MethodGet, "/api/v1/namespaces/" + other.namespace + "/secrets", ""},
		{"record an Event for another vCluster", http.MethodPost, "/api/v1/namespaces/" + other.namespace + "/events", `{"metadata":{"name":"e"}}`},
		{"rewrite an Event of another vCluster", http.MethodPatch, "/api/v1/namespaces/" + other.namespace + "/events/e", `{"count":2}`},
		{"delete an Event at home", http.MethodDelete, "/api/v1/namespaces/" + v.namespace + "/events/e", ""},
		{"read another vCluster's namespace", http.MethodGet, "/api/v1/namespaces/" + other.namespace, ""},
		{"read Secrets of the system", http.MethodGet, "/api/v1/namespaces/kube-system/secrets", ""},
		{"list Secrets everywhere", http.MethodGet, "/api/v1/secrets", ""},
		{"list namespaces", http.MethodGet, "/api/v1/namespaces", ""},
		{"change its namespace", http.MethodPatch, "/api/v1/namespaces/" + v.namespace, `{"metadata":{"labels":{"x":"y"}}}`},
		{"delete its namespace", http.MethodDelete, "/api/v1/namespaces/" + v.namespace, ""},
		{"list nodes", http.MethodGet, "/api/v1/nodes", ""},
	} {
		if code, answer := as(t, token, test.method, test.path, test.body); code != http.StatusForbidden {
			t.Errorf("may %s: %s %s answered %d, want 403: %s", test.what, test.method, test.path, code, answer)
		}
	}
	if code, _ := as(t, other.token(t), http.MethodGet, connector, ""); code != http.StatusForbidden {
		t.Errorf("another vCluster reads the connector: %d, want 403", code)
	}
}

// TestMissingRights: without a RoleBinding the message holds everything that an admin needs to write one.
func TestMissingRights(t *testing.T) {
	t.Parallel()
	server := postgres.Get(t)
	rbac := "/apis/rbac.authorization.k8s.io/v1/namespaces/"
	for _, test := range []struct {
		name, reason string
		remove       func(v *vcluster) string
		want         func(v *vcluster) []string
		code         int
	}{
		{
			"connector", "the manifests were not applied, or for another name",
			func(v *vcluster) string {
				return rbac + v.platform + "/rolebindings/dbconnector." + v.namespace + "." + v.release
			},
			func(v *vcluster) []string {
				return []string{`verb "get" on resource "secrets" named "` + v.connector + `" in namespace "` + v.platform + `"`, "deploy/kustomize"}
			}, human,
		},
		{
			"record", "a ServiceAccount of one's own, without the chart's Role",
			func(v *vcluster) string { return rbac + v.namespace + "/rolebindings/vc-" + v.release },
			func(v *vcluster) []string {
				return []string{`verb "get" on resource "secrets" named "` + v.recordName() + `" in namespace "` + v.namespace + `"`}
			}, human,
		},
		{
			"namespace and events", "the second half of the manifests",
			func(v *vcluster) string { return rbac + v.namespace + "/rolebindings/dbconnector-" + v.release },
			func(v *vcluster) []string {
				return []string{fmt.Sprintf(`verb "get" on resource "namespaces" named %q`, v.namespace), "DBCONNECTOR_TENANT_UID"}
			}, human,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			v := newVCluster(t, server, connectorFor(server))
			do(t, http.MethodDelete, test.remove(v), nil, nil)
			o := v.run(t)
			t.Logf("%s: %s", test.reason, o.message())
			o.refused(t, test.code, test.want(v)...)
			if left := objects(t, server, v.tenant()); len(left) > 0 {
				t.Errorf("left on the server: %q", left)
			}
			if record := getSecret(t, v.namespace, v.recordName()); record != nil {
				t.Error("a record was made")
			}
			if left := names(t, v.outputDir); len(left) > 0 {
				t.Errorf("left in the output directory: %q", left)
			}
			// The way out of the last case needs no more rights, because Events are optional.
			if strings.Contains(o.message(), "set DBCONNECTOR_TENANT_UID") {
				v.env["DBCONNECTOR_TENANT_UID"] = v.tenant()
				v.provision(t)
			}
		})
	}
}
