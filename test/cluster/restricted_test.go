// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"strings"
	"testing"
)

// TestRestricted runs a control plane that is not root, on read-only root file systems, in a namespace that admits only pods
// of the Pod Security Standard "restricted". It reads the hand-over by its group; and others have no right to it.
func TestRestricted(t *testing.T) {
	t.Parallel()
	lap := stopwatch(t)
	c, _ := newConnector(t, "restricted")
	v := install(t, c, "open-source", Names{Release: "team-a", Namespace: "restricted", Connector: "restricted"}, func(values *Values) {
		restricted := map[string]any{
			"runAsNonRoot": true, "runAsUser": 12345, "runAsGroup": 12345, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
			"capabilities": map[string]any{"drop": []string{"ALL"}}, "seccompProfile": map[string]any{"type": "RuntimeDefault"},
		}
		set := &values.ControlPlane.StatefulSet
		set.Security.ContainerSecurityContext = restricted // beside the shipped podSecurityContext
		values.ControlPlane.Distro.K8s.SecurityContext = restricted
	}, "pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/enforce-version=latest")
	ready(t, v)
	lap("ready")
	pod, err := onePod(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	dir := "/var/lib/kubelet/pods/" + string(pod.UID) + "/volumes/kubernetes.io~empty-dir/dbconnector"
	for _, name := range []string{"dsn", "ca.crt", "config.yaml"} {
		got, err := c.Run(t.Context(), "busybox", "stat", "-L", "-c", "%a %u:%g", dir+"/"+name)
		if want := "640 65532:65532"; err != nil || strings.TrimSpace(got) != want {
			t.Errorf("%s has mode and owner %q, want %q, %v", name, got, want, err)
		}
	}
	if mounts, err := c.Run(t.Context(), "busybox", "cat", "/proc/mounts"); err != nil || !strings.Contains(mounts, "tmpfs "+dir+" tmpfs rw") {
		t.Errorf("the hand-over is not in memory: %v\n%s", err, mounts)
	}
	// It is the standard that is enforced, and nothing else that let the pod in.
	if _, err := c.Kubectl(t.Context(), "", "run", "root", "--namespace", v.Namespace, "--image=bed.test/busybox:1"); err == nil || !strings.Contains(err.Error(), "PodSecurity") {
		t.Errorf("the namespace admits an ordinary pod: %v", err)
	}
}
