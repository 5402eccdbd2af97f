// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dbconnector/test/bed"
)

// TestRestartsNeedNoAdmin kills a sidecar and a control plane, and deletes their pod: the same data is there each time, and
// the admin does not log in again.
func TestRestartsNeedNoAdmin(t *testing.T) {
	t.Parallel()
	lap := stopwatch(t)
	c, server := newConnector(t, "restarts")
	v := install(t, c, "open-source", Names{Release: "team-a", Namespace: "restarts", Connector: "restarts"}, nil)
	ready(t, v)
	mustWrite(t, v, "mine")
	admin, before := adminLogins(server, "restarts"), record(t, v)
	if admin == 0 {
		t.Error("the admin has not made the database")
	}
	lap("ready")

	for _, name := range []string{"dbconnector-rotate", "syncer"} {
		pod, err := onePod(t.Context(), v)
		require.NoError(t, err)
		_, id, _ := strings.Cut(containerOf(pod, name).ContainerID, "://")
		if _, err := c.Run(t.Context(), "ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", id); err != nil {
			t.Fatal(err)
		}
		bed.Eventually(t, patience, func(ctx context.Context) error {
			now, err := onePod(ctx, v)
			if err != nil {
				return err
			}
			if now.UID != pod.UID {
				return bed.Permanent(errors.New("the pod was replaced"))
			}
			if s := containerOf(now, name); s.RestartCount == 0 || !s.Ready {
				return fmt.Errorf("container %s: %d restarts, %s", name, s.RestartCount, state(s.State))
			}
			return nil
		})
		ready(t, v)
		written(t, v, "mine")
		lap(name + " killed")
	}
	pod, err := onePod(t.Context(), v)
	require.NoError(t, err)
	kubectl(t, c, "delete", "pod", "--namespace", v.Namespace, pod.Name)
	ready(t, v)
	written(t, v, "mine")
	if now, err := onePod(t.Context(), v); err != nil || now.UID == pod.UID {
		t.Errorf("the pod was not replaced: %v", err)
	}
	lap("pod deleted")
	if now := adminLogins(server, "restarts"); now != admin {
		t.Errorf("the admin logged in %d times more", now-admin)
	}
	if now := record(t, v); now.Database != before.Database || now.Generation != before.Generation {
		t.Errorf("got database %s, generation %d, want %s, %d", now.Database, now.Generation, before.Database, before.Generation)
	}
}

// TestKubeletRestartEndsNothing restarts the node's kubelet: the pod goes on, sidecar and all, and can be replaced by a
// kubelet that has not started it. Not in parallel: other tests' pods would be taken for not ready for a moment.
func TestKubeletRestartEndsNothing(t *testing.T) {
	lap := stopwatch(t)
	c, server := newConnector(t, "kubelet")
	v := install(t, c, "open-source", Names{Release: "team-a", Namespace: "kubelet", Connector: "kubelet"}, nil)
	ready(t, v)
	mustWrite(t, v, "mine")
	admin := adminLogins(server, "kubelet")
	pod, err := onePod(t.Context(), v)
	require.NoError(t, err)
	lap("ready")
	require.NoError(t, c.HaltDaemon(t.Context(), "kubelet"))
	halted := time.Now()
	require.NoError(t, c.StartDaemon("kubelet"))
	bed.Eventually(t, patience, func(ctx context.Context) error {
		var lease coordinationv1.Lease
		if err := c.Do(ctx, http.MethodGet, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node", nil, &lease); err != nil {
			return err
		}
		if renewed := lease.Spec.RenewTime; renewed == nil || renewed.Before(new(metav1.NewMicroTime(halted))) {
			return errors.New("the kubelet has not reported since")
		}
		// By way of the kubelet.
		_, err := c.Kubectl(ctx, "", "logs", "--namespace", v.Namespace, pod.Name, "--container=dbconnector-rotate")
		return err
	})
	ready(t, v)
	written(t, v, "mine")
	untouched(t, v, pod)
	lap("kubelet restarted")
	kubectl(t, c, "delete", "pod", "--namespace", v.Namespace, pod.Name)
	ready(t, v)
	written(t, v, "mine")
	lap("pod deleted")
	if now := adminLogins(server, "kubelet"); now != admin {
		t.Errorf("the admin logged in %d times more", now-admin)
	}
}
