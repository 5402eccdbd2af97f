// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"dbconnector/test/bed"
)

// TestConnectorIsMended starts a vCluster before its connector is there, then gives it one with a wrong password, and then
// the right one. The pod shows the cause each time, and comes up in the end without a human touching it.
func TestConnectorIsMended(t *testing.T) {
	t.Parallel()
	lap := stopwatch(t)
	c, server := newConnector(t, "repaired")
	kubectl(t, c, "delete", "secret", "--namespace", PlatformNamespace, "repaired")
	require.NoError(t, server.SetPassword(t.Context(), "repaired", "right"))
	v := install(t, c, "open-source", Names{Release: "team-a", Namespace: "repaired", Connector: "repaired"}, func(values *Values) {
		values.SetEnv("DBCONNECTOR_TIMEOUT", "5s") // it tries again for two minutes otherwise
	})
	says := func(want string) {
		t.Helper()
		refused(t, v, func(ctx context.Context) (*corev1.Pod, error) { return onePod(ctx, v) }, want)
		lap(want)
	}
	says("secret vcluster-platform/repaired does not exist")
	require.NoError(t, c.Connect(t.Context(), "postgres", "repaired", server, "repaired", "wrong"))
	says("28P01")
	tried(t, c, "Failed", "28P01")
	require.NoError(t, c.Connect(t.Context(), "postgres", "repaired", server, "repaired", "right"))
	ready(t, v)
	lap("ready")
	tried(t, c, "Complete", `"msg":"ready"`)
	lap("tried")
}

// tried follows docs/deployment.md to try a connector, here "repaired", and waits for the end of the Job (F41).
func tried(t *testing.T, c *Cluster, want, says string) {
	t.Helper()
	root, err := bed.Root()
	require.NoError(t, err)
	shipped, err := os.ReadFile(filepath.Join(root, "deploy", "kustomize", "examples", "connectors", "check.yaml"))
	require.NoError(t, err)
	// Like [Values.RenderForNode] without a request for ephemeral storage, of which the bed's node keeps no account.
	job := strings.NewReplacer("postgres", "repaired", ", ephemeral-storage: 16Mi", "", ", ephemeral-storage: 1Gi", "").Replace(string(shipped))
	if _, err := c.Kubectl(t.Context(), job, "apply", "--filename", "-"); err != nil {
		t.Fatal(err)
	}
	name := "check-" + strings.ToLower(want)
	kubectl(t, c, "--namespace", PlatformNamespace, "create", "job", "--from", "cronjob/dbconnector-check-repaired", name)
	bed.Eventually(t, patience, func(ctx context.Context) error {
		got, err := c.Kubectl(ctx, "", "--namespace", PlatformNamespace, "get", "job", name, "--output", `jsonpath={.status.conditions[?(@.status=="True")].type}`)
		if err == nil && !slices.Contains(strings.Fields(got), want) {
			pods, _ := c.Kubectl(ctx, "", "--namespace", PlatformNamespace, "get", "pod", "--selector", "batch.kubernetes.io/job-name="+name,
				"--output", "jsonpath={.items[*].status}")
			err = fmt.Errorf("the Job is %q, want %s\n%s", got, want, pods)
		}
		return err
	})
	if got := kubectl(t, c, "--namespace", PlatformNamespace, "logs", "job/"+name); !strings.Contains(got, says) {
		t.Errorf("the log does not say %s:\n%s", says, got)
	}
}

// refused waits until a pod and an Event on it say why there is no control plane in it, and that the operator has to act.
func refused(t *testing.T, v *VCluster, find func(context.Context) (*corev1.Pod, error), want string) {
	t.Helper()
	var name string
	bed.Eventually(t, patience, func(ctx context.Context) error {
		pod, err := find(ctx)
		if err != nil {
			return err
		}
		name = pod.Name
		s := containerOf(pod, "dbconnector-init")
		for _, at := range []string{state(s.State), state(s.LastTerminationState)} {
			if strings.HasPrefix(at, "ended with 2: ") && strings.Contains(at, want) {
				return nil
			}
		}
		return fmt.Errorf("dbconnector-init: %s; before, %s", state(s.State), state(s.LastTerminationState))
	})
	bed.Eventually(t, patience, func(ctx context.Context) error {
		all, err := v.c.Kubectl(ctx, "", "get", "events", "--namespace", v.Namespace, "--no-headers",
			"--field-selector=reason=Refused,involvedObject.kind=Pod,involvedObject.name="+name, "--output=custom-columns=M:.message")
		if err == nil && !strings.Contains(all, want) {
			err = fmt.Errorf("no Event says %q:\n%s", want, all)
		}
		return err
	})
	if got := kubectl(t, v.c, "describe", "pod", "--namespace", v.Namespace, name); !strings.Contains(got, want) {
		t.Errorf("kubectl describe does not say %q:\n%s", want, got)
	}
}

// TestConnectorMoved lets the connector of a running vCluster point at another server, where its data is not. A running pod goes
// on, rotates its password, and may be replaced: all that needs is in the record. But where the record's login does not work
// any more, init asks the connector, and refuses to begin again on the other server; until the connector is put back.
func TestConnectorMoved(t *testing.T) {
	t.Parallel()
	lap := stopwatch(t)
	c, home := newConnector(t, "moved")
	options, err := c.Options()
	require.NoError(t, err)
	away := bed.NewServer(t, bed.Postgres, "17", options)
	user, password, err := away.CloudAdmin(t.Context(), "another")
	require.NoError(t, err)
	v := install(t, c, "licensed", Names{Release: "team-b", Namespace: "moved", Connector: "moved"}, func(values *Values) {
		values.ControlPlane.StatefulSet.HighAvailability.Replicas = new(2)
		values.SetEnv("DBCONNECTOR_ADOPT", "none") // so that it is the test that replaces pods
	})
	ready(t, v)
	mustWrite(t, v, "before")
	lap("ready")

	secret := "/api/v1/namespaces/" + PlatformNamespace + "/secrets/moved"
	var connector corev1.Secret
	require.NoError(t, c.Do(t.Context(), http.MethodGet, secret, nil, &connector))
	require.NoError(t, c.Connect(t.Context(), "postgres", "moved", away, user, password))
	before := record(t, v)
	admin := adminLogins(home, "moved")

	first, err := v.Pods(t.Context())
	require.NoError(t, err)
	kubectl(t, c, "delete", "pod", "--namespace", v.Namespace, first[0].Name)
	ready(t, v)
	lap("a pod replaced")

	// Both run on the first password before the second is made.
	var pods []corev1.Pod
	bed.Eventually(t, patience, func(ctx context.Context) error {
		all, err := v.Pods(ctx)
		if err != nil {
			return err
		}
		pods = slices.DeleteFunc(alive(all), func(pod corev1.Pod) bool { return !containerOf(&pod, "syncer").Ready })
		if len(pods) != 2 {
			return fmt.Errorf("%d pods are ready", len(pods))
		}
		return nil
	})
	makeDue(t, v)
	rotated := rotatedSince(t, v, before.Generation)
	for _, pod := range pods {
		handedOver(t, v, &pod, rotated)
	}
	mustWrite(t, v, "rotated")
	if now := adminLogins(home, "moved"); now != admin {
		t.Errorf("the admin logged in %d times more", now-admin)
	}
	lap("rotated")

	// The control planes run on the login before, and so it is the next pod alone that is locked out (B51).
	require.NoError(t, home.SetPassword(t.Context(), rotated.Login(rotated.Active).User, "by-hand"))
	gone, stays := pods[0], pods[1]
	kubectl(t, c, "delete", "pod", "--namespace", v.Namespace, gone.Name)
	next := func(ctx context.Context) (*corev1.Pod, error) {
		pods, err := v.Pods(ctx)
		if err != nil {
			return nil, err
		}
		for _, pod := range alive(pods) {
			if pod.Name != stays.Name {
				return &pod, nil
			}
		}
		return nil, fmt.Errorf("pod %s has no successor", gone.Name)
	}
	refused(t, v, next, "was provisioned on "+before.Server.Address()+", and it is not on "+c.Host()+":")
	refused(t, v, next, "bring the database back (restore it, or let the connector point at the server that has it)")
	if n, err := away.Query(t.Context(), "", `SELECT (SELECT count(*) FROM pg_catalog.pg_database WHERE datname LIKE 'vc%') +
		(SELECT count(*) FROM pg_catalog.pg_roles WHERE rolname LIKE 'vc%')`); err != nil || n != "0" {
		t.Errorf("the other server has got %q databases and roles, %v", n, err)
	}
	mustWrite(t, v, "refused")
	lap("refused")

	require.NoError(t, c.Do(t.Context(), http.MethodPatch, secret, map[string]any{"data": connector.Data}, nil))
	ready(t, v)
	for _, name := range []string{"before", "rotated", "refused"} {
		written(t, v, name)
	}
	if now := record(t, v); now.Server != before.Server || now.Database != before.Database || now.Generation <= rotated.Generation {
		t.Errorf("the record has %s on %s in generation %d", now.Database, now.Server.Address(), now.Generation)
	}
	untouched(t, v, &stays)
	lap("put back")
}

// untouched waits until a pod is ready, and makes sure that no container of it was started again since it was looked at. It may
// have been before: of several kines that make their table at once, one may fail and come again.
func untouched(t *testing.T, v *VCluster, was *corev1.Pod) {
	t.Helper()
	bed.Eventually(t, patience, func(ctx context.Context) error {
		pods, err := v.Pods(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(pods, func(pod corev1.Pod) bool { return pod.UID == was.UID })
		if i < 0 {
			return bed.Permanent(fmt.Errorf("pod %s is gone", was.Name))
		}
		for _, name := range []string{"syncer", "dbconnector-init", "dbconnector-rotate"} {
			s := containerOf(&pods[i], name)
			if s.ContainerID != containerOf(was, name).ContainerID {
				return bed.Permanent(fmt.Errorf("pod %s: container %s is another one: %d restarts, %s", was.Name, name, s.RestartCount, state(s.LastTerminationState)))
			}
			if !s.Ready {
				return fmt.Errorf("pod %s: container %s is not ready: %s", was.Name, name, state(s.State))
			}
		}
		return nil
	})
}
