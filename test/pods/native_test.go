// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"dbconnector/test/bed"
)

// TestNativeSidecar runs the variant whose sidecar is a native one: a password is made, adopted by a rollout and retired all
// the same. The vCluster CLI takes its pod for one that has not started, which is why it is the variant (F21). On MariaDB.
func TestNativeSidecar(t *testing.T) {
	t.Parallel()
	lap := stopwatch(t)
	c := newCluster(t)
	server := newServer(t, c, bed.MariaDB, "11.8", "mysql", "native")
	values, err := c.NativeSidecar("open-source")
	require.NoError(t, err)
	v := installValues(t, c, "open-source", values, Names{Release: "team-a", Namespace: "native", Connector: "native"}, func(values *Values) {
		values.SetEnv("DBCONNECTOR_ADOPT", "rollout")
		values.SetEnv("DBCONNECTOR_GRACE", "1s")
	})
	ready(t, v)
	mustWrite(t, v, "before")
	before := record(t, v)
	old := before.Login(before.Active)
	lap("ready")

	makeDue(t, v)
	bed.Eventually(t, patience, func(ctx context.Context) error {
		now, err := v.Record(ctx)
		if err != nil {
			return err
		}
		if now.Generation != before.Generation+1 || !now.OtherRetired {
			return fmt.Errorf("generation %d, the one before is retired: %v", now.Generation, now.OtherRetired)
		}
		return nil
	})
	ready(t, v)
	lap("rotated")

	written(t, v, "before")
	mustWrite(t, v, "after")
	if err := enters(t.Context(), server, old, old.Database); err == nil || !strings.Contains(err.Error(), "Access denied") {
		t.Errorf("the password before: %v", err)
	}
	var pod *corev1.Pod
	bed.Eventually(t, patience, func(ctx context.Context) error {
		pod, err = onePod(ctx, v)
		return err
	})
	if want := strconv.FormatInt(before.Generation+1, 10); pod.Annotations[generationAnnotation] != want {
		t.Errorf("the pod is of generation %q, want %s", pod.Annotations[generationAnnotation], want)
	}
	for _, name := range []string{"dbconnector-init", "syncer", "dbconnector-rotate"} {
		if s := containerOf(pod, name); s.RestartCount > 0 {
			t.Errorf("container %s was restarted %d times: %s", name, s.RestartCount, state(s.LastTerminationState))
		}
	}
	if len(pod.Spec.Containers) != 1 || len(pod.Spec.InitContainers) != 3 {
		t.Errorf("the containers are %v, want the sidecar among the init containers", pod.Spec.Containers)
	}
	if got := cliStatus(pod); got != "Init:2/3" {
		t.Errorf("for the vCluster CLI the pod is %q; if it is running now, the variant can be the default", got)
	}
}
