// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"dbconnector/test/bed"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Verbose() {
		bed.Progress = os.Stderr
	}
	os.Exit(m.Run())
}

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
      resources: {limits: {memory: 16Mi}}
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
      args: ["-c", "cat /shared/file; grep shared /proc/mounts; trap exit TERM; while :; do sleep 1; done"]
      volumeMounts: [{name: shared, mountPath: /shared, readOnly: true}]
`

// TestNode makes sure of what the scenarios take for granted: a node that runs a pod of init container, native sidecar
// and memory volume, its logs, programs run in it, a Service, and its end.
func TestNode(t *testing.T) {
	began := time.Now()
	took := func(what string) {
		t.Logf("%-12s %5.1f s", what, time.Since(began).Seconds())
		began = time.Now()
	}
	n := bed.NewNode(t)
	for _, p := range n.Phases {
		t.Logf("%-12s %5.1f s", "node: "+p.Name, p.Took.Seconds())
	}
	began = time.Now()
	busybox, err := bed.Busybox(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Import(t.Context(), busybox); err != nil {
		t.Fatal(err)
	}
	took("image")
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := n.Kubectl(t.Context(), "", args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}

	if _, err := n.Kubectl(t.Context(), smokePod, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	bed.Eventually(t, time.Minute, func(ctx context.Context) error {
		var pod struct {
			Status struct {
				Conditions []struct{ Type, Status, Message string }
			}
		}
		if err := n.Do(ctx, http.MethodGet, "/api/v1/namespaces/default/pods/smoke", nil, &pod); err != nil {
			return err
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				return nil
			}
		}
		return fmt.Errorf("pod is not ready: %v", pod.Status)
	})
	took("pod ready")
	var log string
	bed.Eventually(t, time.Minute, func(context.Context) error {
		if log = kubectl("logs", "smoke", "-c", "main"); log == "" {
			return errors.New("no log")
		}
		return nil
	})
	if !strings.HasPrefix(log, "from-init\ntmpfs /shared tmpfs ro") {
		t.Errorf("the main container says %q", log)
	}
	if got := kubectl("exec", "smoke", "-c", "sidecar", "--", "id", "-u"); got != "65532\n" {
		t.Errorf("the sidecar runs as %q", got)
	}
	took("logs, exec")
	// The API server, by way of its Service.
	if got := kubectl("exec", "smoke", "-c", "main", "--", "sh", "-c", "nc -w 5 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && echo reached"); got != "reached\n" {
		t.Errorf("the pod reaches the API server: %q", got)
	}
	took("service")
	kubectl("delete", "pod", "smoke", "--wait", "--timeout=60s")
	took("deletion")
}
