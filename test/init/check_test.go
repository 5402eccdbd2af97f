// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	"sigs.k8s.io/yaml"

	"dbconnector/test/bed"
)

// TestConnectorCheck runs what the shipped CronJob runs, with its environment and its volumes, every time in a new pod.
// It succeeds whenever the connector is good, and fails for each fault that a connector can have (F41).
func TestConnectorCheck(t *testing.T) {
	t.Parallel()
	root, err := bed.Root()
	require.NoError(t, err)
	var job batchv1.CronJob
	require.NoError(t, yaml.UnmarshalStrict([]byte(read(t, filepath.Join(root, "deploy/kustomize/examples/connectors/check.yaml"))), &job))
	container := job.Spec.JobTemplate.Spec.Template.Spec.Containers[0]
	for name, server := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good := connectorFor(server.Get(t))
			// The tenant belongs to this test alone. The rest of the pod is as shipped.
			uid, limit := "connector-check/"+t.Name(), "30s"
			check := func(connector map[string]string) *outcome {
				t.Helper()
				s := newSite(t, nil)
				s.connector = connector
				s.writeConnector(t)
				mounts := map[string]string{"connector": s.connectorDir, "dbconnector": s.outputDir}
				env := map[string]string{}
				for _, e := range container.Env {
					env[e.Name] = e.Value
					for _, m := range container.VolumeMounts {
						if rest, ok := strings.CutPrefix(e.Value, m.MountPath); ok {
							env[e.Name] = mounts[m.Name] + rest
						}
					}
				}
				env["DBCONNECTOR_OUTPUT_DIR"] = s.outputDir // by default the path at which the pod mounts the volume
				env["DBCONNECTOR_TENANT_UID"] = uid
				env["DBCONNECTOR_TIMEOUT"] = limit
				return run(t, env)
			}
			with := func(key, value string) map[string]string {
				c := maps.Clone(good)
				c[key] = value
				return c
			}
			for range 2 {
				check(good).succeeded(t)
			}
			check(with("password", "Wrong.Loud~never-set")).refused(t, 2, "the server refuses the admin")
			check(with("user", "")).refused(t, 2, `"user"`)
			check(with("sslMode", "prefer")).refused(t, 2, "would fall back to clear text")
			limit = "5s"
			check(with("endpoint", "no-such-name.invalid")).refused(t, 1, "does not resolve")
			limit = "30s"
			if server == postgres {
				check(weak(t, server.Get(t), good)).refused(t, 2, "may not create databases and roles")
			}
			check(good).succeeded(t)
		})
	}
}

// weak is a connector whose admin has lost its rights.
func weak(tb testing.TB, server *bed.Server, good map[string]string) map[string]string {
	tb.Helper()
	require.NoError(tb, server.Exec(tb.Context(), "CREATE ROLE withdrawn LOGIN PASSWORD 'Loud~withdrawn'"))
	c := maps.Clone(good)
	c["user"], c["password"] = "withdrawn", "Loud~withdrawn"
	return c
}
