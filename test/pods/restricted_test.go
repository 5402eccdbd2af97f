// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// restrict makes a control plane one of the Pod Security Standard "restricted", that is no root and has a read-only root file
// system, beside the shipped podSecurityContext.
func restrict(values *Values) {
	set := &values.ControlPlane.StatefulSet
	set.Security.ContainerSecurityContext = restricted(12345)
	values.ControlPlane.Distro.K8s.SecurityContext = restricted(12345)
}

func restricted(user int) object {
	return object{
		"runAsNonRoot": true, "runAsUser": user, "runAsGroup": user, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
		"capabilities": object{"drop": []string{"ALL"}}, "seccompProfile": object{"type": "RuntimeDefault"},
	}
}

// stranger is a container with a user and a group that nothing else has.
func stranger(name string, mounts []object) object {
	return object{
		"name": name, "image": "bed.test/busybox:1", "args": []string{"-c", "trap exit TERM; while :; do sleep 1; done"},
		"volumeMounts": mounts, "securityContext": restricted(23456),
	}
}

// TestRestricted runs a control plane that is not root, on read-only root file systems, in a namespace that admits only pods
// of the Pod Security Standard "restricted". It reads the hand-over by its group, as does every container of the pod that
// mounts the volume. No other container can, and no process that is not of that group, even where it gets at the files.
func TestRestricted(t *testing.T) {
	t.Parallel()
	lap := stopwatch(t)
	c, _ := newConnector(t, "restricted")
	v := install(t, c, "open-source", Names{Release: "team-a", Namespace: "restricted", Connector: "restricted"}, func(values *Values) {
		restrict(values)
		set := &values.ControlPlane.StatefulSet
		set.SidecarContainers = append(set.SidecarContainers,
			stranger("mounts", set.Persistence.AddVolumeMounts), stranger("mounts-not", nil))
	}, "pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/enforce-version=latest")
	ready(t, v)
	lap("ready")
	pod, err := onePod(t.Context(), v)
	require.NoError(t, err)
	dir := handOver(pod)
	files := []string{"dsn", "ca.crt", "config.yaml"}
	for _, name := range files {
		got, err := c.Run(t.Context(), "busybox", "stat", "-L", "-c", "%a %u:%g", dir+"/"+name)
		if want := "640 65532:65532"; err != nil || strings.TrimSpace(got) != want {
			t.Errorf("%s has mode and owner %q, want %q, %v", name, got, want, err)
		}
	}
	if mounts, err := c.Run(t.Context(), "busybox", "cat", "/proc/mounts"); err != nil || !strings.Contains(mounts, "tmpfs "+dir+" tmpfs rw") {
		t.Errorf("the hand-over is not in memory: %v\n%s", err, mounts)
	}
	// The standard does not ask for this; the documentation promises it.
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if ours := strings.HasPrefix(container.Name, "dbconnector-"); ours && !*container.SecurityContext.ReadOnlyRootFilesystem {
			t.Errorf("container %s can write to its root file system", container.Name)
		}
	}
	// It is the standard that is enforced, and nothing else that let the pod in.
	if _, err := c.Kubectl(t.Context(), "", "run", "root", "--namespace", v.Namespace, "--image=bed.test/busybox:1"); err == nil ||
		!strings.Contains(err.Error(), "PodSecurity") {
		t.Errorf("the namespace admits an ordinary pod: %v", err)
	}

	// A pod that gets at the volume from outside, which only an admin of the node can make: the mode of the files alone is in
	// its way. The same user with the group shows that nothing else is.
	mounts := []object{{"name": "foreign", "mountPath": "/var/run/dbconnector"}}
	asMember := restricted(23456)
	asMember["runAsGroup"] = 65532
	member := stranger("member", mounts)
	member["securityContext"] = asMember
	outside, err := yaml.Marshal(object{
		"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": "outside", "namespace": "default"},
		"spec": object{
			"containers":                    []object{stranger("stranger", mounts), member},
			"volumes":                       []object{{"name": "foreign", "hostPath": object{"path": dir, "type": "Directory"}}},
			"terminationGracePeriodSeconds": 0,
		},
	})
	require.NoError(t, err)
	require.NoError(t, c.Apply(t.Context(), outside))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience) // the test's own has ended
		defer cancel()
		if _, err := c.Kubectl(ctx, "", "delete", "pod", "outside", "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	kubectl(t, c, "wait", "--for=condition=Ready", "pod/outside", "--timeout="+patience.String())
	for _, test := range []struct {
		namespace, pod, container string
		refusal                   string // empty: it can read
	}{
		{v.Namespace, pod.Name, "mounts", ""}, // fsGroup is a group of all containers
		{v.Namespace, pod.Name, "mounts-not", "No such file or directory"},
		{"default", "outside", "stranger", "Permission denied"},
		{"default", "outside", "member", ""},
	} {
		// cat's message; not the file that it reads, which is a secret.
		got := kubectl(t, c, "exec", "--namespace", test.namespace, test.pod, "--container", test.container, "--",
			"sh", "-c", "cd /var/run && for name in "+strings.Join(files, " ")+"; do cat dbconnector/$name 2>&1 >/dev/null; done; true")
		want := ""
		for _, name := range files {
			if test.refusal != "" {
				want += "cat: can't open 'dbconnector/" + name + "': " + test.refusal + "\n"
			}
		}
		if got != want {
			t.Errorf("container %s, reading: it says %q, want %q", test.container, got, want)
		}
	}
	lap("read and refused")
}
