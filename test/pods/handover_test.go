// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dbconnector/test/bed"
)

// workload is something of the tenant's: an object in the vCluster, and the syncer's copy of it on the host.
type workload struct{ kind, virtual, host string }

var workloads = []workload{
	{"configmaps", "/api/v1/namespaces/default/configmaps/settings", "settings-x-default-x-team-a"},
	{"pods", "/api/v1/namespaces/default/pods/web", "web-x-default-x-team-a"},
}

// runWorkloads makes a tenant's workloads in the vCluster, and on the host the copies that its syncer would make.
func runWorkloads(t *testing.T, v *VCluster) {
	t.Helper()
	no := false
	spec := corev1.PodSpec{
		AutomountServiceAccountToken: &no,
		Containers: []corev1.Container{{
			Name: "web", Image: "bed.test/busybox:1", Args: []string{"-c", "trap exit TERM; while :; do sleep 1; done"},
		}},
	}
	// A vCluster's controllers make this account; admission takes no pod without it.
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	require.NoError(t, v.Do(t.Context(), http.MethodPost, "/api/v1/namespaces/default/serviceaccounts", account, nil))
	for _, w := range workloads {
		name := w.virtual[strings.LastIndex(w.virtual, "/")+1:]
		of := metav1.ObjectMeta{
			Name: w.host, Labels: map[string]string{ManagedBy: v.Release},
			Annotations: map[string]string{ObjectName: name, ObjectNamespace: "default"},
		}
		var virtual, host any = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, &corev1.ConfigMap{ObjectMeta: of}
		if w.kind == "pods" {
			virtual, host = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, &corev1.Pod{ObjectMeta: of, Spec: spec}
		}
		bed.Eventually(t, patience, func(ctx context.Context) error { // admission hears of the account after a moment
			return v.Do(ctx, http.MethodPost, "/api/v1/namespaces/default/"+w.kind, virtual, nil)
		})
		require.NoError(t, v.c.Do(t.Context(), http.MethodPost, "/api/v1/namespaces/"+v.Namespace+"/"+w.kind, host, nil))
	}
}

// deployed counts the workloads that are on the host, and that Kubernetes is not about to end.
func deployed(ctx context.Context, v *VCluster) (n int, err error) {
	for _, w := range workloads {
		var got metav1.PartialObjectMetadata
		err := v.c.Do(ctx, http.MethodGet, "/api/v1/namespaces/"+v.Namespace+"/"+w.kind+"/"+w.host, nil, &got)
		switch {
		case err != nil && bed.Code(err) != http.StatusNotFound:
			return 0, err
		case err == nil && got.DeletionTimestamp == nil:
			n++
		}
	}
	return n, nil
}

// newest returns the pod of the control plane that was made of the values that are installed now.
func newest(ctx context.Context, v *VCluster) (*corev1.Pod, error) {
	deployment, err := v.Deployment(ctx)
	if err != nil {
		return nil, err
	}
	pods, err := v.Pods(ctx)
	if err != nil {
		return nil, err
	}
	const hash = "vClusterConfigHash"
	for _, pod := range alive(pods) {
		if pod.Annotations[hash] == deployment.Spec.Template.Annotations[hash] {
			return &pod, nil
		}
	}
	return nil, errors.New("there is no pod of these values yet")
}

// TestHandOverLost installs values of which something was lost, over a vCluster that runs and has workloads (F1). No control
// plane comes up without the hand-over, the pod says why, the old one serves on, and no workload is deleted.
func TestHandOverLost(t *testing.T) {
	t.Parallel()
	lap := stopwatch(t)
	c, _ := newConnector(t, "lost")
	names := Names{Release: "team-a", Namespace: "lost", Connector: "lost"}
	shipped := func(change func(*Values)) *Values {
		values, err := c.Values("open-source")
		require.NoError(t, err)
		values.SetConnector(names.Connector)
		values.ControlPlane.StatefulSet.Probes.StartupProbe = object{"periodSeconds": 1}
		if change != nil {
			change(values)
		}
		return values
	}
	v := install(t, c, "open-source", names, nil)
	ready(t, v)
	mustWrite(t, v, "mine")
	runWorkloads(t, v)
	lap("ready")

	for _, lost := range []struct {
		what      string
		change    func(*Values)
		container string // which ends
		says      string
	}{
		{"args", func(values *Values) {
			values.ControlPlane.StatefulSet.Args = nil
		}, "syncer", "started without the hand-over of dbconnector"},
		{"the file that args name", func(values *Values) {
			values.ControlPlane.StatefulSet.Args = []string{"--config=/var/run/dbconnector/other.yaml"}
		}, "syncer", "no such file or directory"},
		{"init containers", func(values *Values) {
			values.ControlPlane.StatefulSet.InitContainers = nil
		}, "syncer", "no such file or directory"},
		{"the store, and args", func(values *Values) {
			values.ControlPlane.BackingStore.Database.Embedded = nil
			values.ControlPlane.StatefulSet.Args = nil
		}, "dbconnector-init", "no store is enabled"},
		{"the placeholder, to another store", func(values *Values) {
			values.ControlPlane.BackingStore.Database.Embedded["dataSource"] = "sqlite:///data/state.db"
		}, "dbconnector-init", "names a store of its own"},
	} {
		require.NoError(t, c.Install(t.Context(), v.Release, v.Namespace, shipped(lost.change)))
		bed.Eventually(t, patience, func(ctx context.Context) error {
			pod, err := newest(ctx, v)
			if err != nil {
				return err
			}
			s := containerOf(pod, lost.container)
			if s.RestartCount == 0 {
				return fmt.Errorf("container %s has not ended yet: %s", lost.container, state(s.State))
			}
			log, err := c.Kubectl(ctx, "", "logs", "--namespace", v.Namespace, pod.Name, "--container", lost.container, "--previous")
			// The kubelet may have removed that container already; ours leave a message.
			if ended := s.LastTerminationState.Terminated; ended != nil {
				log += ended.Message
			}
			if err == nil && !strings.Contains(log, lost.says) {
				err = fmt.Errorf("without %s the pod says\n%s", lost.what, log)
			}
			return err
		})
		answers(t, v)
		written(t, v, "mine")
		if n, err := deployed(t.Context(), v); n != len(workloads) || err != nil {
			t.Fatalf("without %s %d workloads are left, %v", lost.what, n, err)
		}
		lap("without " + lost.what)
	}

	// Without a data source, too, it is as it was before there was a placeholder. Were it not, this test would see nothing.
	require.NoError(t, c.Install(t.Context(), v.Release, v.Namespace, shipped(func(values *Values) {
		values.ControlPlane.StatefulSet.Args = nil
		delete(values.ControlPlane.BackingStore.Database.Embedded, "dataSource")
	})))
	bed.Eventually(t, patience, func(ctx context.Context) error {
		n, err := deployed(ctx, v)
		if err == nil && n > 0 {
			err = fmt.Errorf("the stand-in has left %d workloads", n)
		}
		return err
	})
	lap("on SQLite")

	// The data is where it was.
	require.NoError(t, c.Install(t.Context(), v.Release, v.Namespace, shipped(nil)))
	ready(t, v)
	written(t, v, "mine")
	lap("as it was")
}

// TestRestoreIsRefused makes the pod that `vcluster restore` makes: init containers and volumes of the control plane, another
// label, none of its args. It would restore into what its own config names, which is not the tenant's database, so it must
// not begin, and must say so (F22).
func TestRestoreIsRefused(t *testing.T) {
	t.Parallel()
	c, _ := newConnector(t, "restore")
	for _, native := range []bool{false, true} {
		t.Run("native "+strconv.FormatBool(native), func(t *testing.T) {
			values, err := c.Values("open-source")
			name := "restore-plain"
			if native {
				name = "restore-native"
				values, err = c.NativeSidecar("open-source")
			}
			require.NoError(t, err)
			v := installValues(t, c, "open-source", values, Names{Release: "team-a", Namespace: name, Connector: "restore"}, nil)
			ready(t, v)
			mustWrite(t, v, "mine")
			deployment, err := v.Deployment(t.Context())
			require.NoError(t, err)
			kubectl(t, c, "scale", "--namespace", v.Namespace, "deployment/"+v.Release, "--replicas=0")

			for test, init := range map[string]bool{"as it is made": true, "without init containers of ours": false} {
				spec := *deployment.Spec.Template.Spec.DeepCopy()
				if !init {
					spec.InitContainers = spec.InitContainers[:1] // the chart's
				}
				pod := restore(t, v, spec, corev1.PodFailed)
				if !init { // the store that it then finds is none either
					log := kubectl(t, c, "logs", "--namespace", v.Namespace, pod.Name, "--container=restore")
					if !strings.Contains(log, "started without the hand-over of dbconnector") {
						t.Errorf("%s: it says\n%s", test, log)
					}
					continue
				}
				ended := containerOf(pod, "dbconnector-init").State.Terminated
				if ended == nil || ended.ExitCode != 2 || !strings.Contains(ended.Message, "`vcluster restore` is not supported") {
					t.Errorf("%s: init: %+v", test, ended)
				}
				if s := containerOf(pod, "restore"); s.State.Running != nil || s.State.Terminated != nil && s.ContainerID != "" {
					t.Errorf("%s: the restore has begun: %s", test, state(s.State))
				}
			}
			kubectl(t, c, "scale", "--namespace", v.Namespace, "deployment/"+v.Release, "--replicas=1")
			ready(t, v)
			written(t, v, "mine")
		})
	}
}

// restore makes the pod that `vcluster restore` makes of a control plane's, and waits for its end.
func restore(t *testing.T, v *VCluster, spec corev1.PodSpec, want corev1.PodPhase) *corev1.Pod {
	t.Helper()
	plane := spec.Containers[0]
	plane.Name, plane.Command, plane.Args = "restore", []string{"/vcluster", "restore"}, nil
	plane.StartupProbe, plane.ReadinessProbe, plane.LivenessProbe = nil, nil, nil
	spec.Containers, spec.RestartPolicy = []corev1.Container{plane}, corev1.RestartPolicyNever
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "vcluster-snapshot-", Labels: map[string]string{"app": "vcluster-snapshot"}}, Spec: spec,
	}
	pods := "/api/v1/namespaces/" + v.Namespace + "/pods"
	require.NoError(t, v.c.Do(t.Context(), http.MethodPost, pods, pod, pod))
	bed.Eventually(t, patience, func(ctx context.Context) error {
		now := &corev1.Pod{}
		if err := v.c.Do(ctx, http.MethodGet, pods+"/"+pod.Name, nil, now); err != nil {
			return err
		}
		if now.Status.Phase != want {
			return fmt.Errorf("the pod is %s (%s)", now.Status.Phase, cliStatus(now))
		}
		pod = now
		return nil
	})
	return pod
}
