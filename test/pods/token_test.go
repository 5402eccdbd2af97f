// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// TestTokenRenewed renews the ServiceAccount's token under a sidecar that is not root. The kubelet does so every 48 minutes;
// here the API server gets another key for tokens, so that the sidecar even meets refusals before the kubelet has written the
// new token into the pod. It is not restarted, and makes its next rotation with the new one, as soon as client-go has read the
// file again, which it does every minute.
//
// The cluster is its own, because the tokens of all its pods become worthless.
func TestTokenRenewed(t *testing.T) {
	t.Parallel()
	lap := stopwatch(t)
	c, err := Start(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, c.Stop(context.Background()))
	})
	newServer(t, c, bed.Postgres, "17", "postgres", "token")
	lap("cluster and server")
	v := install(t, c, "open-source", Names{Release: "team-a", Namespace: "token", Connector: "token"}, restrict)
	ready(t, v)
	mustWrite(t, v, "mine")
	pod, err := onePod(t.Context(), v)
	require.NoError(t, err)
	before := record(t, v)
	lap("ready")

	// By its group, which is the pod's fsGroup, and not by its owner, which is root.
	volumes := "/var/lib/kubelet/pods/" + string(pod.UID) + "/volumes/kubernetes.io~projected"
	token := func(ctx context.Context) (string, error) {
		file, err := c.Run(ctx, "busybox", "find", volumes, "-name", "token", "-type", "f")
		if err != nil {
			return "", err
		}
		file = strings.TrimSpace(file)
		switch got, err := c.Run(ctx, "busybox", "stat", "-c", "%a %u:%g", file); {
		case err != nil:
			return "", err
		case got != "640 0:65532\n":
			return "", fmt.Errorf("the token has mode and owner %q", got)
		}
		return c.Run(ctx, "busybox", "cat", file)
	}
	old, err := token(t.Context())
	require.NoError(t, err)
	assert.NoError(t, c.authenticate(t.Context(), old), "the token at first")

	if err := c.HaltDaemon(t.Context(), "kubelet"); err != nil { // it would renew the token too soon
		t.Fatal(err)
	}
	require.NoError(t, c.ReplaceTokenKey())
	c.Kill() // an orderly end would wait a minute for the clients that watch
	require.NoError(t, c.Restart(t.Context()))
	lap("another key")
	if err := c.authenticate(t.Context(), old); err == nil || !strings.Contains(err.Error(), "Unauthorized") {
		t.Errorf("the old token: %v, want a refusal", err)
	}
	bed.Eventually(t, patience, func(ctx context.Context) error {
		log, err := c.Run(ctx, "busybox", "cat", "/var/log/pods/"+v.Namespace+"_"+pod.Name+"_"+string(pod.UID)+"/dbconnector-rotate/0.log")
		if err == nil && !strings.Contains(log, "does not accept this program's credential") {
			err = errors.New("the sidecar was not refused yet")
		}
		return err
	})
	lap("sidecar refused")

	require.NoError(t, c.StartDaemon("kubelet"))
	bed.Eventually(t, patience, func(ctx context.Context) error {
		switch now, err := token(ctx); {
		case err != nil:
			return err
		case now == old:
			return errors.New("the token is still the old one")
		default:
			return c.authenticate(ctx, now)
		}
	})
	lap("token renewed")
	makeDue(t, v)
	after := rotatedSince(t, v, before.Generation)
	handedOver(t, v, pod, after)
	bed.Eventually(t, patience, func(ctx context.Context) error {
		all, err := events(ctx, v)
		if err == nil && !strings.Contains(all, "Rotated") {
			err = fmt.Errorf("no Event says that the password was rotated:\n%s", all)
		}
		return err
	})
	lap("rotated")
	ready(t, v)
	written(t, v, "mine")
	untouched(t, v, pod)
}

// authenticate asks the API server whose a token is, and is refused if it is of no account.
func (c *Cluster) authenticate(ctx context.Context, token string) error {
	file := filepath.Join(c.Dir(), "kubeconfig-of-token")
	if err := os.WriteFile(file, c.KubeconfigFor(token), 0o600); err != nil {
		return err
	}
	out, err := c.Kubectl(ctx, "", "--kubeconfig", file, "auth", "whoami", "--output=jsonpath={.status.userInfo.username}")
	if err == nil && out != "system:serviceaccount:token:vc-team-a" {
		err = fmt.Errorf("the token is that of %q", out)
	}
	return err
}

// rotatedSince waits for a later generation than the given one, and returns the record with it.
func rotatedSince(t *testing.T, v *VCluster, generation int64) (r *tenant.Record) {
	t.Helper()
	bed.Eventually(t, patience, func(ctx context.Context) (err error) {
		if r, err = v.Record(ctx); err == nil && r.Generation <= generation {
			err = fmt.Errorf("generation %d", r.Generation)
		}
		return err
	})
	return r
}

// handedOver waits until a record's active login is in the hand-over of a running pod.
func handedOver(t *testing.T, v *VCluster, pod *corev1.Pod, r *tenant.Record) {
	t.Helper()
	login := r.Login(r.Active)
	bed.Eventually(t, patience, func(ctx context.Context) error {
		dsn, err := v.c.Run(ctx, "busybox", "cat", handOver(pod)+"/dsn")
		if err == nil && !strings.Contains(dsn, login.User+":"+login.Password.Reveal()+"@") {
			err = fmt.Errorf("the hand-over of pod %s has another login than %s", pod.Name, login.User)
		}
		return err
	})
}

// handOver is where the node has the hand-over of a pod.
func handOver(pod *corev1.Pod) string {
	return "/var/lib/kubelet/pods/" + string(pod.UID) + "/volumes/kubernetes.io~empty-dir/dbconnector"
}
