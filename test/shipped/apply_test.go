// SPDX-License-Identifier: Apache-2.0

package shipped_test

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	authorizationv1 "k8s.io/api/authorization/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dbconnector/test/bed"
)

type object = map[string]any

// post sends an object to the API server as its admin. Whatever the server does not know in it is an error.
func post(t *testing.T, api *bed.APIServer, path string, in, out any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, api.Do(ctx, http.MethodPost, path+"?fieldValidation=Strict", in, out))
}

// TestAPIServerTakesWhatIsShipped: the containers of the values make a pod that the API server accepts where the pod security
// standard `restricted` is enforced, with a plain sidecar and with a native one; and the Roles allow what the programs do, beside a
// Role of an older chart, which only reads workloads and Events (F29), and nothing else.
func TestAPIServerTakesWhatIsShipped(t *testing.T) {
	t.Parallel()
	api := bed.NewAPIServer(t, bed.APIServerOptions{})
	post(t, api, "/api/v1/namespaces", object{"metadata": object{"name": "vcluster-platform"}}, nil)
	t.Run("monitoring", func(t *testing.T) { monitored(t, api) })
	t.Run("check", func(t *testing.T) { checked(t, api) })
	for example := range examples {
		var params corev1.ConfigMap
		dir := kustomize(t, "examples", example)
		decode(t, read(t, dir, "vcluster.yaml"), &params)
		v := vcluster{
			release: params.Data["release"], namespace: params.Data["namespace"],
			connector: params.Data["connector"], platform: params.Data["platformNamespace"],
		}
		post(t, api, "/api/v1/namespaces", object{"metadata": object{
			"name": v.namespace, "labels": object{"pod-security.kubernetes.io/enforce": "restricted"},
		}}, nil)
		account := object{"metadata": object{"name": "vc-" + v.release}}
		post(t, api, "/api/v1/namespaces/"+v.namespace+"/serviceaccounts", account, nil)
		t.Run(example+", plain", func(t *testing.T) { admitted(t, api, v, exampleValues(t, example, false)) })
		t.Run(example+", native", func(t *testing.T) { admitted(t, api, v, exampleValues(t, example, true)) })
		t.Run(example+", rights", func(t *testing.T) { allowed(t, api, v, rendered(t, dir)) })
	}
}

// checked makes the CronJob that checks a connector, and the pod that it would make where that is restricted.
func checked(t *testing.T, api *bed.APIServer) {
	t.Helper()
	var job batchv1.CronJob
	decode(t, read(t, "deploy", "kustomize", "examples", "connectors", "check.yaml"), &job)
	post(t, api, "/apis/batch/v1/namespaces/"+job.Namespace+"/cronjobs", job, nil)
	post(t, api, "/api/v1/namespaces", object{"metadata": object{
		"name": "restricted", "labels": object{"pod-security.kubernetes.io/enforce": "restricted"},
	}}, nil)
	post(t, api, "/api/v1/namespaces/restricted/serviceaccounts", object{"metadata": object{"name": "default"}}, nil)
	post(t, api, "/api/v1/namespaces/restricted/pods", corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: job.Name, Namespace: "restricted"}, Spec: job.Spec.JobTemplate.Spec.Template.Spec,
	}, nil)
}

// admitted makes the pod that the chart would make of the values, but for the chart's own containers.
func admitted(t *testing.T, api *bed.APIServer, v vcluster, values values) {
	t.Helper()
	set := values.ControlPlane.StatefulSet
	plane := *set.InitContainers[0].DeepCopy() // restricted, so that only ours can be refused
	plane.Name, plane.VolumeMounts = "syncer", set.Persistence.AddVolumeMounts
	pod := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: v.release + "-", Namespace: v.namespace, Labels: map[string]string{"app": "vcluster", "release": v.release}},
		Spec: corev1.PodSpec{
			ServiceAccountName: "vc-" + v.release,
			SecurityContext:    &set.Security.PodSecurityContext,
			InitContainers:     set.InitContainers,
			Containers:         append([]corev1.Container{plane}, set.SidecarContainers...),
			Volumes: append(set.Persistence.AddVolumes, corev1.Volume{Name: chartConfig, VolumeSource: corev1.VolumeSource{
				Secret: &corev1.SecretVolumeSource{SecretName: "vc-config-" + v.release},
			}}),
		},
	}
	var made corev1.Pod
	post(t, api, "/api/v1/namespaces/"+v.namespace+"/pods", pod, &made)
	for i, c := range made.Spec.InitContainers {
		if want := set.InitContainers[i].RestartPolicy; !reflect.DeepEqual(c.RestartPolicy, want) {
			t.Errorf("init container %s has restartPolicy %v, want %v", c.Name, c.RestartPolicy, want)
		}
	}
}

// allowed asks the API server for each right that the programs use, and for some that they must not have.
func allowed(t *testing.T, api *bed.APIServer, v vcluster, shipped grants) {
	t.Helper()
	const group = "/apis/rbac.authorization.k8s.io/v1/namespaces/"
	account := "vc-" + v.release
	chart := rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: account, Namespace: v.namespace}, Rules: []rbacv1.PolicyRule{
		{
			APIGroups: []string{""},
			Resources: []string{"secrets", "configmaps", "pods"},
			Verbs:     []string{"create", "delete", "patch", "update", "get", "list", "watch"},
		},
		{APIGroups: []string{"apps"}, Resources: []string{"statefulsets", "replicasets", "deployments"}, Verbs: []string{"get", "list", "watch"}},
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"get", "list", "watch"}},
	}}
	post(t, api, group+v.namespace+"/roles", chart, nil)
	post(t, api, group+v.namespace+"/rolebindings", rbacv1.RoleBinding{
		ObjectMeta: chart.ObjectMeta, Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: account, Namespace: v.namespace}},
		RoleRef: rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "Role", Name: account},
	}, nil)
	for namespace, role := range shipped.roles {
		post(t, api, group+namespace+"/roles", role, nil)
		post(t, api, group+namespace+"/rolebindings", shipped.bindings[namespace], nil)
	}
	record := "dbconnector-" + v.release
	for _, test := range []struct {
		namespace, group, resource, name, verbs string
		want                                    bool
	}{
		{v.platform, "", "secrets", v.connector, "get", true},
		{v.platform, "", "secrets", v.connector, "list watch update patch delete", false},
		{v.platform, "", "secrets", "other", "get", false},
		{v.namespace, "", "namespaces", v.namespace, "get", true},
		{v.namespace, "", "secrets", record, "get list watch update", true},
		{v.namespace, "", "secrets", "", "create", true},
		{v.namespace, "", "events", "", "create patch", true},
		{v.namespace, "", "events", "", "update delete", false},
		{v.namespace, "apps", "deployments", v.release, "get patch", true},
		{v.namespace, "apps", "statefulsets", v.release, "get patch", true},
		{v.namespace, "apps", "deployments", v.release, "update delete", false},
		{v.namespace, "apps", "deployments", v.release + "-2", "patch", false},
		{v.namespace, "apps", "statefulsets", "", "create", false},
		{v.platform, "apps", "deployments", v.release, "get patch", false},
	} {
		for verb := range strings.FieldsSeq(test.verbs) {
			bed.Eventually(t, time.Minute, func(ctx context.Context) error { // Roles are known after a moment
				var answer authorizationv1.SubjectAccessReview
				err := api.Do(ctx, http.MethodPost, "/apis/authorization.k8s.io/v1/subjectaccessreviews", authorizationv1.SubjectAccessReview{
					Spec: authorizationv1.SubjectAccessReviewSpec{
						User: "system:serviceaccount:" + v.namespace + ":" + account,
						ResourceAttributes: &authorizationv1.ResourceAttributes{
							Namespace: test.namespace, Verb: verb, Group: test.group, Resource: test.resource, Name: test.name,
						},
					},
				}, &answer)
				if err == nil && answer.Status.Allowed != test.want {
					err = fmt.Errorf("%s %s %s %s/%s: allowed %t, want %t: %s", verb, test.group, test.resource, test.namespace, test.name,
						answer.Status.Allowed, test.want, answer.Status.Reason)
				}
				return err
			})
		}
	}
}
