// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
)

const smokePod = `
apiVersion: v1
kind: Pod
metadata: {name: smoke, namespace: default}
spec:
  terminationGracePeriodSeconds: 5
  volumes:
    - name: shared
      emptyDir: {medium: Memory, sizeLimit: 1Mi}
  initContainers:
    - name: first
      image: bed.test/busybox:1
      args: ["-c", "echo from-init > /shared/file"]
      volumeMounts: [{name: shared, mountPath: /shared}]
    - name: sidecar
      image: bed.test/busybox:1
      restartPolicy: Always
      args: ["-c", "trap exit TERM; while :; do sleep 1; done"]
      resources: {limits: {memory: 64Mi}} # with less, cgroup v2 may kill the runtime while it starts the container
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
        seccompProfile: {type: RuntimeDefault}
  containers:
    - name: main
      image: bed.test/busybox:1
      args: ["-c", "cat /shared/file; grep shared /proc/mounts; touch /said; trap exit TERM; while :; do sleep 1; done"]
      readinessProbe: {exec: {command: [ls, /said]}, periodSeconds: 1}
      volumeMounts: [{name: shared, mountPath: /shared, readOnly: true}]
`

// TestNode checks the basis of all scenarios: a node that runs a pod of init container, native sidecar
// and memory volume, its logs, programs run in it, a Service, and its end.
func TestNode(t *testing.T) {
	lap := stopwatch(t)
	c := newCluster(t)
	for _, p := range c.Phases {
		t.Logf("%6.1f s  of it: %s", p.Took.Seconds(), p.Name)
	}
	lap("cluster")
	require.NoError(t, c.Apply(t.Context(), []byte(smokePod)))
	kubectl(t, c, "wait", "--for=condition=Ready", "pod/smoke", "--timeout="+patience.String())
	lap("pod ready")
	log := kubectl(t, c, "logs", "smoke", "--container=main")
	if !strings.HasPrefix(log, "from-init\ntmpfs /shared tmpfs ro") {
		t.Errorf("the main container says %q", log)
	}
	if got := kubectl(t, c, "exec", "smoke", "--container=sidecar", "--", "id", "-u"); got != "65532\n" {
		t.Errorf("the sidecar runs as %q", got)
	}
	lap("logs, exec")
	// The API server, by way of its Service.
	const reach = "nc -w 60 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && echo reached"
	bed.Eventually(t, patience, func(ctx context.Context) error { // kube-proxy may be new as well
		got, err := c.Kubectl(ctx, "", "exec", "smoke", "--container=main", "--", "sh", "-c", reach)
		if err == nil && got != "reached\n" {
			err = fmt.Errorf("the pod says %q", got)
		}
		return err
	})
	lap("Service")
	kubectl(t, c, "delete", "pod", "smoke", "--timeout="+patience.String())
	lap("pod deleted")
}
