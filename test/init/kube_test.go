// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"dbconnector/test/bed"
	"dbconnector/test/rig"
	"dbconnector/test/shipped"
)

// cluster is the API server that all tests share; each has namespaces of its own.
func cluster(tb testing.TB) *bed.APIServer { tb.Helper(); return rig.Host(tb).API }

type object = map[string]any

func do(tb testing.TB, method, path string, in, out any) {
	tb.Helper()
	require.NoError(tb, cluster(tb).Do(tb.Context(), method, path, in, out))
}

func unique(prefix string) string { return prefix + "-" + strings.ToLower(rand.Text()[:10]) }

// namespace makes a namespace and returns its UID.
func namespace(tb testing.TB, name string) string {
	tb.Helper()
	var made struct{ Metadata struct{ UID string } }
	do(tb, http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": name}}, &made)
	return made.Metadata.UID
}

func secretPath(namespace, name string) string {
	return "/api/v1/namespaces/" + namespace + "/secrets/" + name
}

// makeSecret makes a Secret; with label, one that is marked as a connector.
func makeSecret(tb testing.TB, namespace, name string, labels map[string]string, data map[string]string) {
	tb.Helper()
	encoded := map[string]string{}
	for key, value := range data {
		encoded[key] = base64.StdEncoding.EncodeToString([]byte(value))
	}
	do(tb, http.MethodPost, "/api/v1/namespaces/"+namespace+"/secrets", object{
		"metadata": object{"name": name, "labels": labels}, "data": encoded,
	}, nil)
}

var connectorLabel = map[string]string{"loft.sh/connector-type": "shared-database"}

// getSecret is a Secret's data; nil where there is none.
func getSecret(tb testing.TB, namespace, name string) map[string]string {
	tb.Helper()
	var secret struct{ Data map[string][]byte }
	if err := cluster(tb).Do(tb.Context(), http.MethodGet, secretPath(namespace, name), nil, &secret); err != nil {
		if bed.Code(err) == http.StatusNotFound {
			return nil
		}
		tb.Fatal(err)
	}
	data := map[string]string{}
	for key, value := range secret.Data {
		data[key] = string(value)
	}
	return data
}

// vcluster is a tenant on Kubernetes: namespaces, the connector Secret, the chart's ServiceAccount with the rights that
// the chart's Role and our manifests grant it, and the environment that our Helm values give its init container.
type vcluster struct {
	release, namespace, uid, platform, connector string
	server                                       *bed.Server
	env                                          map[string]string
	outputDir                                    string
}

// newVCluster makes all of it. Names hold the characters at which a parser could split them.
func newVCluster(tb testing.TB, server *bed.Server, connector map[string]string) *vcluster {
	tb.Helper()
	v := prepared(tb, server, connector)
	v.grant(tb)
	v.useToken(tb, cluster(tb).URL)
	return v
}

// prepared is a vCluster that still acts as the cluster's admin, for tests that do not depend on rights.
func prepared(tb testing.TB, server *bed.Server, connector map[string]string) *vcluster {
	tb.Helper()
	v := &vcluster{
		release: "my-v-c", namespace: unique("team-a"), platform: unique("vcluster-platform"), connector: "pg-1.example",
		server: server, outputDir: dir(tb),
	}
	namespace(tb, v.platform)
	v.uid = namespace(tb, v.namespace)
	if connector != nil {
		makeSecret(tb, v.platform, v.connector, connectorLabel, connector)
	}
	v.env = map[string]string{
		"DBCONNECTOR_VCLUSTER_NAME": v.release, "DBCONNECTOR_NAMESPACE": v.namespace,
		"DBCONNECTOR_CONNECTOR": v.connector, "DBCONNECTOR_CONNECTOR_NAMESPACE": v.platform,
		"DBCONNECTOR_POD_NAME": v.release + "-0", "DBCONNECTOR_POD_UID": "8f1a6a2e-0000-4000-8000-000000000000",
		"DBCONNECTOR_OUTPUT_DIR": v.outputDir, "DBCONNECTOR_TIMEOUT": "60s", "DBCONNECTOR_LOG_LEVEL": "debug",
	}
	v.useKubeconfig(tb, read(tb, cluster(tb).Kubeconfig))
	return v
}

func (v *vcluster) useKubeconfig(tb testing.TB, content string) {
	tb.Helper()
	file := filepath.Join(dir(tb), "kubeconfig")
	write(tb, file, content)
	v.env["KUBECONFIG"] = file
}

// useToken lets the program be the chart's ServiceAccount, at this address of the API server.
func (v *vcluster) useToken(tb testing.TB, address string) {
	tb.Helper()
	v.useKubeconfig(tb, strings.ReplaceAll(string(cluster(tb).KubeconfigFor(v.token(tb))), cluster(tb).URL, address))
}

func (v *vcluster) token(tb testing.TB) string {
	tb.Helper()
	token, err := cluster(tb).Token(tb.Context(), v.namespace, "vc-"+v.release)
	require.NoError(tb, err)
	return token
}

// grant makes the ServiceAccount, the Role that the vCluster chart gives it by default, and what our manifests add.
func (v *vcluster) grant(tb testing.TB) {
	tb.Helper()
	account := "vc-" + v.release
	do(tb, http.MethodPost, "/api/v1/namespaces/"+v.namespace+"/serviceaccounts", object{"metadata": object{"name": account}}, nil)
	most := []string{"create", "delete", "patch", "update", "get", "list", "watch"}
	group := "/apis/rbac.authorization.k8s.io/v1/namespaces/" + v.namespace
	do(tb, http.MethodPost, group+"/roles", object{"metadata": object{"name": account}, "rules": []object{
		{
			"apiGroups": []string{""},
			"resources": []string{"configmaps", "secrets", "services", "pods", "pods/attach", "pods/portforward", "pods/exec", "persistentvolumeclaims"},
			"verbs":     most,
		},
		{"apiGroups": []string{""}, "resources": []string{"pods/status", "pods/ephemeralcontainers"}, "verbs": []string{"patch", "update"}},
		{"apiGroups": []string{""}, "resources": []string{"endpoints", "events", "pods/log"}, "verbs": []string{"get", "list", "watch"}},
		{"apiGroups": []string{"apps"}, "resources": []string{"statefulsets", "replicasets", "deployments"}, "verbs": []string{"get", "list", "watch", "patch"}},
	}}, nil)
	do(tb, http.MethodPost, group+"/rolebindings", object{
		"metadata": object{"name": account},
		"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
		"subjects": []object{{"kind": "ServiceAccount", "name": account, "namespace": v.namespace}},
	}, nil)
	v.apply(tb)
}

// apply does what `kubectl apply -k` does with the shipped component and this vCluster's names.
func (v *vcluster) apply(tb testing.TB) {
	tb.Helper()
	root, err := bed.Root()
	require.NoError(tb, err)
	overlay := tb.TempDir()
	rbac, err := filepath.Rel(overlay, filepath.Join(root, "deploy", "kustomize", "rbac"))
	require.NoError(tb, err)
	write(tb, filepath.Join(overlay, "kustomization.yaml"), "resources: [vcluster.yaml]\ncomponents: ["+rbac+"]\n")
	write(tb, filepath.Join(overlay, "vcluster.yaml"), fmt.Sprintf(`
apiVersion: v1
kind: ConfigMap
metadata: {name: dbconnector, annotations: {config.kubernetes.io/local-config: "true"}}
data: {release: %q, namespace: %q, connector: %q, platformNamespace: %q}
`, v.release, v.namespace, v.connector, v.platform))
	manifests, err := shipped.Build(tb.Context(), overlay)
	require.NoError(tb, err)
	paths := map[string]string{"Role": "roles", "RoleBinding": "rolebindings"}
	for doc := range strings.SplitSeq(string(manifests), "\n---\n") {
		var o object
		require.NoError(tb, yaml.Unmarshal([]byte(doc), &o))
		kind, _ := o["kind"].(string)
		meta, _ := o["metadata"].(object)
		if paths[kind] == "" {
			tb.Fatalf("the manifests hold a %s, which this test does not know", kind)
		}
		do(tb, http.MethodPost, fmt.Sprintf("/apis/rbac.authorization.k8s.io/v1/namespaces/%s/%s", meta["namespace"], paths[kind]), o, nil)
	}
}

// unbind removes the RoleBinding that lets the vCluster read the connector.
func (v *vcluster) unbind(tb testing.TB) {
	tb.Helper()
	do(tb, http.MethodDelete, "/apis/rbac.authorization.k8s.io/v1/namespaces/"+v.platform+"/rolebindings/dbconnector."+v.namespace+"."+v.release, nil, nil)
}

func (v *vcluster) run(tb testing.TB) *outcome {
	tb.Helper()
	return run(tb, v.env)
}

func (v *vcluster) provision(tb testing.TB) {
	tb.Helper()
	v.run(tb).succeeded(tb)
}

func (v *vcluster) tenant() string { return v.uid + "/" + v.release }

func (v *vcluster) recordName() string { return "dbconnector-" + v.release }

func (v *vcluster) record(tb testing.TB) map[string]any {
	tb.Helper()
	return decodeRecord(tb, []byte(getSecret(tb, v.namespace, v.recordName())["record.json"]))
}

// setConnector replaces the connector's data.
func (v *vcluster) setConnector(tb testing.TB, data map[string]string) {
	tb.Helper()
	do(tb, http.MethodDelete, secretPath(v.platform, v.connector), nil, nil)
	makeSecret(tb, v.platform, v.connector, connectorLabel, data)
}

// events are the reasons and messages of the Events in the vCluster's namespace, and how often each has occurred if not once.
func (v *vcluster) events(tb testing.TB) (reasons []string, text string) {
	tb.Helper()
	var list struct {
		Items []struct {
			Reason, Message, Type string
			Count                 int
			InvolvedObject        struct{ Kind, Name, UID string }
			Source                struct{ Component string }
		}
	}
	do(tb, http.MethodGet, "/api/v1/namespaces/"+v.namespace+"/events", nil, &list)
	for _, e := range list.Items {
		if e.InvolvedObject.Kind != "Pod" || e.InvolvedObject.Name != v.env["DBCONNECTOR_POD_NAME"] || e.Source.Component != "dbconnector-init" {
			tb.Errorf("an Event is about %+v, by %q", e.InvolvedObject, e.Source.Component)
		}
		what := e.Type + " " + e.Reason
		if e.Count != 1 {
			what += fmt.Sprintf(" x%d", e.Count)
		}
		reasons = append(reasons, what)
		text += e.Message + "\n"
	}
	return reasons, text
}

// counter is a front of the API server that notes every request.
type counter struct {
	url string

	mu       sync.Mutex
	requests []string
	clients  []string // the user agents, each once
}

func newCounter(tb testing.TB) *counter {
	tb.Helper()
	a := cluster(tb)
	target, err := url.Parse(a.URL)
	require.NoError(tb, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.CA)
	cert, err := issue(bed.Request{})
	require.NoError(tb, err)
	pair, err := tls.X509KeyPair(cert.Cert, cert.Key)
	require.NoError(tb, err)
	c := &counter{}
	forward := httputil.NewSingleHostReverseProxy(target)
	forward.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.requests = append(c.requests, r.Method+" "+r.URL.Path)
		if !slices.Contains(c.clients, r.UserAgent()) {
			c.clients = append(c.clients, r.UserAgent())
		}
		c.mu.Unlock()
		forward.ServeHTTP(w, r)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	tb.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// take returns the requests since it was last called.
func (c *counter) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.requests
	c.requests = nil
	return list
}

// agents are the user agents of all requests.
func (c *counter) agents() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.clients)
}

// newAdmin makes an admin whose name and password no other test uses.
func newAdmin(tb testing.TB, server *bed.Server) (user, password string) {
	tb.Helper()
	user, password = strings.ToLower("adm"+rand.Text()[:12]), "Adm1n-"+rand.Text()+"~x_y.z"
	statements := []string{"CREATE ROLE " + user + " SUPERUSER LOGIN PASSWORD '" + password + "'"}
	if server.Engine != bed.Postgres {
		statements = []string{"CREATE USER " + user + "@'%' IDENTIFIED BY '" + password + "'", "GRANT ALL ON *.* TO " + user + "@'%' WITH GRANT OPTION"}
	}
	require.NoError(tb, server.Exec(tb.Context(), statements...))
	return user, password
}

// dropDatabase drops a tenant's database, as an admin would who does not know its purpose.
func dropDatabase(tb testing.TB, server *bed.Server, name string) {
	tb.Helper()
	statement := "DROP DATABASE " + name
	if server.Engine == bed.Postgres {
		statement += " WITH (FORCE)"
	}
	require.NoError(tb, server.Exec(tb.Context(), statement))
}

// as makes a request to the API server with a token and returns the status code.
func as(tb testing.TB, token, method, path string, body string) (code int, answer string) {
	tb.Helper()
	a := cluster(tb)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.CA)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(tb.Context(), method, a.URL+path, bytes.NewBufferString(body))
	require.NoError(tb, err)
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	response, err := transport.RoundTrip(request)
	require.NoError(tb, err)
	defer shut(response.Body)
	if response.StatusCode == http.StatusOK {
		return http.StatusOK, "" // a watch would not end
	}
	text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	return response.StatusCode, string(text)
}
