// SPDX-License-Identifier: Apache-2.0

package shipped_test

import (
	"bytes"
	"context"
	"net/http"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"

	"dbconnector/pkg/kube"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/pods"
	"dbconnector/test/shipped"
)

// TestGitOps proves the claims of docs/deployment.md about tools that keep a cluster as a repository has it (F42): the
// annotations that a rollout leaves in the pod template are no difference for them, and are kept by both ways to apply;
// replacing the object takes them away. It needs the environment, so it runs alone.
func TestGitOps(t *testing.T) {
	api := bed.NewAPIServer(t, bed.APIServerOptions{})
	const namespace = "gitops"
	post(t, api, "/api/v1/namespaces", object{"metadata": object{"name": namespace}}, nil)
	text, err := shipped.Values(kustomize(t, "examples", "licensed", "values.yaml"))
	require.NoError(t, err)
	values, err := pods.ParseValues(text)
	require.NoError(t, err)
	manifests, err := values.Render("team-a", namespace)
	require.NoError(t, err)
	program, err := bed.Program(t.Context(), "kubectl")
	require.NoError(t, err)
	kubectl := func(args ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, append([]string{"--kubeconfig", api.Kubeconfig, "--cache-dir", t.TempDir()}, append(args, "--filename=-")...)...)
		cmd.Stdin = bytes.NewReader(manifests)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("kubectl %q: %v\n%s", args, err, out)
		}
	}
	annotated := func() bool {
		t.Helper()
		var workload appsv1.Deployment
		require.NoError(t, api.Do(t.Context(), http.MethodGet, "/apis/apps/v1/namespaces/"+namespace+"/deployments/team-a", nil, &workload))
		annotations := workload.Spec.Template.Annotations
		if annotations["vClusterConfigHash"] == "" {
			t.Errorf("the chart's own annotation is gone: %v", annotations)
		}
		return annotations[kube.GenerationAnnotation] == "7" && annotations[kube.RotatedAtAnnotation] != ""
	}
	t.Setenv("KUBECONFIG", api.Kubeconfig)
	client, err := kube.New("dbconnector-rotate")
	require.NoError(t, err)
	rollout := func() {
		t.Helper()
		record := &tenant.Record{Generation: 7, RotatedAt: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}
		require.NoError(t, client.Workload(namespace, "team-a").Request(t.Context(), record, func(context.Context) error { return nil }))
		if !annotated() {
			t.Fatal("the rollout left no annotations")
		}
	}

	kubectl("apply")
	rollout()
	kubectl("diff") // ends with 1 where there is a difference
	for _, args := range [][]string{
		{"apply"},
		{"apply", "--server-side", "--force-conflicts", "--field-manager=argocd-controller"},
		{"apply", "--server-side", "--field-manager=argocd-controller"},
	} {
		kubectl(args...)
		if !annotated() {
			t.Errorf("kubectl %q took the annotations away", args)
			rollout()
		}
	}
	kubectl("diff", "--server-side", "--field-manager=argocd-controller")
	kubectl("replace")
	if annotated() {
		t.Error("replacing the object kept the annotations: docs/deployment.md says that it takes them away")
	}
}
