// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"dbconnector/test/bed"
)

// TestVariantsInPods runs a control plane with all variants of the values at once: each container has a user id that nothing
// else knows and the group 0, as on OpenShift (F24), in a namespace whose quota demands a limit of each kind (F25), with the
// chart's network policy, which the bed's node takes and does not enforce (F26), and under a ServiceAccount of another name
// (F27). It rotates its password and is replaced, for which the quota has room.
func TestVariantsInPods(t *testing.T) {
	t.Parallel()
	const id = 1000680000
	lap := stopwatch(t)
	c, _ := newConnector(t, "variants")
	names := Names{Release: "team-v", Namespace: "variants", Connector: "variants", ServiceAccount: "account-v"}
	values, err := c.Variant("open-source", "openshift", "quota", "network-policy")
	require.NoError(t, err)
	values.SetConnector(names.Connector)
	values.SetEnv("DBCONNECTOR_ADOPT", "rollout")
	values.SetEnv("DBCONNECTOR_ROTATION_PERIOD", "30s")
	values.SetEnv("DBCONNECTOR_GRACE", "1s")
	values.ControlPlane.Advanced.ServiceAccount.Name = names.ServiceAccount
	// The fields that OpenShift's admission sets for restricted-v2, where the pod leaves it open: see AsSCC.
	set := &values.ControlPlane.StatefulSet
	set.Security.PodSecurityContext["fsGroup"] = id
	set.Security.ContainerSecurityContext["runAsUser"] = id
	values.ControlPlane.Distro.K8s.SecurityContext["runAsUser"] = id
	for _, container := range slices.Concat(set.InitContainers, set.SidecarContainers) {
		context, ok := container["securityContext"].(object)
		if !ok || context["runAsUser"] != nil {
			t.Fatalf("%v has securityContext %v", container["name"], container["securityContext"])
		}
		context["runAsUser"] = id
	}

	require.NoError(t, c.Namespace(t.Context(), names.Namespace))
	v := &VCluster{names, c}
	t.Cleanup(func() { remove(t, v) })
	require.NoError(t, c.Apply(t.Context(), []byte(`{
  "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "quota", "namespace": "variants"},
  "spec": {"hard": {"requests.cpu": "1", "requests.memory": "2Gi", "limits.cpu": "8", "limits.memory": "8Gi", "pods": "2"}}
}`)))
	// It is in force once a pod without limits is refused.
	bed.Eventually(t, patience, func(ctx context.Context) error {
		_, err := c.Kubectl(ctx, "", "run", "limitless", "--namespace", names.Namespace, "--image=bed.test/busybox:1", "--dry-run=server")
		if err == nil {
			return errors.New("a pod without limits would be admitted")
		}
		if !strings.Contains(err.Error(), "must specify limits.cpu") {
			return err
		}
		return nil
	})
	require.NoError(t, c.Permit(t.Context(), "open-source", names))
	require.NoError(t, c.Install(t.Context(), names.Release, names.Namespace, values))
	ready(t, v)
	lap("ready")
	mustWrite(t, v, "one")
	var first *corev1.Pod
	bed.Eventually(t, patience, func(ctx context.Context) (err error) { // on a busy machine the first rollout is under way
		first, err = onePod(ctx, v)
		return err
	})
	if first.Spec.ServiceAccountName != names.ServiceAccount {
		t.Errorf("the pod has the ServiceAccount %s", first.Spec.ServiceAccountName)
	}
	for _, name := range []string{"dsn", "ca.crt", "config.yaml"} {
		got, err := c.Run(t.Context(), "busybox", "stat", "-L", "-c", "%a %u:%g", handOver(first)+"/"+name)
		if want := fmt.Sprintf("640 %d:%d", id, id); err != nil || strings.TrimSpace(got) != want {
			t.Errorf("%s has mode and owner %q, want %q, %v", name, got, want, err)
		}
	}
	bed.Eventually(t, patience, func(ctx context.Context) error {
		pod, err := onePod(ctx, v)
		if err == nil && (pod.UID == first.UID || !containerOf(pod, "syncer").Ready) {
			err = errors.New("no other pod is ready")
		}
		return err
	})
	if generation := record(t, v).Generation; generation < 2 {
		t.Errorf("the pod was replaced, and the credential is of generation %d", generation)
	}
	written(t, v, "one")
	lap("rotated")
	// Events are a right of dbconnector's Role alone, and the Role is bound to this account.
	bed.Eventually(t, patience, func(ctx context.Context) error {
		all, err := events(ctx, v)
		if err == nil && !strings.Contains(all, "Provisioned") {
			err = fmt.Errorf("no Event Provisioned:\n%s", all)
		}
		return err
	})
}
