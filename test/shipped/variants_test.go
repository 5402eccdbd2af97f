// SPDX-License-Identifier: Apache-2.0

package shipped_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"dbconnector/test/bed"
	"dbconnector/test/pods"
	"dbconnector/test/shipped"
)

// variantsDir has files of values that come over an example's.
func variantsDir(t *testing.T) string {
	return kustomize(t, "variants")
}

// inspect renders an example as the chart would, with variants over its values, and returns the manifest of a kind.
func inspect(t *testing.T, example, namespace, kind string, into any, variants ...string) {
	t.Helper()
	files := []string{kustomize(t, "examples", example, "values.yaml")}
	for _, variant := range variants {
		files = append(files, filepath.Join(variantsDir(t), variant+".yaml"))
	}
	text, err := shipped.Values(files...)
	require.NoError(t, err)
	values, err := pods.ParseValues(text)
	require.NoError(t, err)
	manifests, err := values.Render("team-a", namespace)
	require.NoError(t, err)
	var list struct{ Items []object }
	require.NoError(t, yaml.Unmarshal(manifests, &list))
	for _, item := range list.Items {
		if item["kind"] != kind {
			continue
		}
		text, err := yaml.Marshal(item)
		require.NoError(t, err)
		decode(t, string(text), into)
		return
	}
	t.Fatalf("%s with %q has no %s", example, variants, kind)
}

// renderedPod is the pod of a control plane.
func renderedPod(t *testing.T, example, namespace string, variants ...string) corev1.Pod {
	t.Helper()
	var workload appsv1.Deployment
	inspect(t, example, namespace, "Deployment", &workload, variants...)
	template := workload.Spec.Template
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "team-a-", Namespace: namespace, Labels: template.Labels},
		Spec:       template.Spec,
	}
}

// containersOf returns all containers of a pod.
func containersOf(pod *corev1.Pod) (list []*corev1.Container) {
	for i := range pod.Spec.InitContainers {
		list = append(list, &pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		list = append(list, &pod.Spec.Containers[i])
	}
	return list
}

// newNamespace makes one with the control plane's ServiceAccount.
func newNamespace(t *testing.T, api *bed.APIServer, name string) {
	t.Helper()
	post(t, api, "/api/v1/namespaces", object{"metadata": object{"name": name}}, nil)
	post(t, api, "/api/v1/namespaces/"+name+"/serviceaccounts", object{"metadata": object{"name": "vc-team-a"}}, nil)
}

// create asks the API server for a pod.
func create(ctx context.Context, api *bed.APIServer, pod corev1.Pod, made *corev1.Pod) error {
	return api.Do(ctx, http.MethodPost, "/api/v1/namespaces/"+pod.Namespace+"/pods?fieldValidation=Strict", pod, made)
}

// refused waits until the API server refuses a pod with these words, and with none of the others.
func refused(t *testing.T, api *bed.APIServer, pod corev1.Pod, words string, not ...string) {
	t.Helper()
	bed.Eventually(t, time.Minute, func(ctx context.Context) error { // a policy or quota is in force after a moment
		err := create(ctx, api, pod, &corev1.Pod{})
		if err == nil || !strings.Contains(err.Error(), words) {
			return fmt.Errorf("the API server says %w, want %q", err, words)
		}
		for _, word := range not {
			if strings.Contains(err.Error(), word) {
				return fmt.Errorf("the API server names %s, too: %w", word, err)
			}
		}
		return nil
	})
}

// TestVariants: each file makes its own change, holds no list of containers, and fits every example.
func TestVariants(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(variantsDir(t), "*.yaml"))
	require.NoError(t, err)
	var names []string
	for _, file := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(file), ".yaml"))
		for _, container := range []string{"initContainers", "sidecarContainers"} {
			if strings.Contains(read(t, file), container+":") {
				t.Errorf("%s holds %s: a list takes the place of the whole list in the values", file, container)
			}
		}
	}
	if want := []string{"network-policy", "openshift", "quota"}; !slices.Equal(names, want) {
		t.Errorf("variants %q, want %q", names, want)
	}
	for example := range examples {
		all, plain := renderedPod(t, example, "team-a", names...), renderedPod(t, example, "team-a")
		for i, c := range containersOf(&all) {
			if before := containersOf(&plain)[i]; strings.HasPrefix(c.Name, "dbconnector-") && !reflect.DeepEqual(c, before) {
				t.Errorf("%s: a variant changes %s:\n%+v\nwas\n%+v", example, c.Name, c, before)
			}
		}
	}
}

// scc has the demands of OpenShift's SCC restricted-v2 on a pod, for a namespace with the given range of ids.
func scc(namespace string, from, to int64) (policy, binding object) {
	each := func(rule string) string {
		return "(object.spec.containers + (has(object.spec.initContainers) ? object.spec.initContainers : [])).all(c, " + rule + ")"
	}
	inRange := func(field string) string {
		return fmt.Sprintf("(has(c.securityContext.%[1]s) && c.securityContext.%[1]s >= %[2]d && c.securityContext.%[1]s <= %[3]d)", field, from, to)
	}
	validations := []object{
		{"message": "runAsUser is not of the namespace", "expression": each(inRange("runAsUser"))},
		{
			"message":    "fsGroup is not of the namespace",
			"expression": fmt.Sprintf("object.spec.securityContext.fsGroup >= %d && object.spec.securityContext.fsGroup <= %d", from, to),
		},
		{"message": "privilege escalation", "expression": each("!has(c.securityContext.allowPrivilegeEscalation) || !c.securityContext.allowPrivilegeEscalation")},
		{"message": "capabilities", "expression": each("c.securityContext.capabilities.drop == ['ALL'] && !has(c.securityContext.capabilities.add)")},
		{"message": "seccomp", "expression": each("!has(c.securityContext.seccompProfile) || c.securityContext.seccompProfile.type == 'RuntimeDefault'")},
		{"message": "root", "expression": each("!has(c.securityContext.runAsNonRoot) || c.securityContext.runAsNonRoot")},
		{"message": "volumes", "expression": "object.spec.volumes.all(v, !has(v.hostPath))"},
	}
	policy = object{
		"metadata": object{"name": "restricted-v2"},
		"spec": object{
			"failurePolicy": "Fail",
			"matchConstraints": object{"resourceRules": []object{{
				"apiGroups": []string{""}, "apiVersions": []string{"v1"}, "operations": []string{"CREATE"}, "resources": []string{"pods"},
			}}},
			"validations": validations,
		},
	}
	binding = object{
		"metadata": object{"name": "restricted-v2"},
		"spec": object{
			"policyName": "restricted-v2", "validationActions": []string{"Deny"},
			"matchResources": object{"namespaceSelector": object{"matchLabels": object{"kubernetes.io/metadata.name": namespace}}},
		},
	}
	return policy, binding
}

// TestOpenShift: with values of the variant, the pod asks for no user and no group, so that what an SCC sets is all there is,
// and the API server admits it under rules like those of restricted-v2; with the values as they are, it does not (F24).
func TestOpenShift(t *testing.T) {
	t.Parallel()
	const namespace = "openshift"
	const from, to = 1000680000, 1000689999
	api := bed.NewAPIServer(t, bed.APIServerOptions{})
	newNamespace(t, api, namespace)
	policy, binding := scc(namespace, from, to)
	const group = "/apis/admissionregistration.k8s.io/v1/"
	post(t, api, group+"validatingadmissionpolicies", policy, nil)
	post(t, api, group+"validatingadmissionpolicybindings", binding, nil)
	for example := range examples {
		asIs := renderedPod(t, example, namespace)
		pods.AsSCC(&asIs.Spec, from)
		refused(t, api, asIs, "is not of the namespace", "dbconnector-")

		pod := renderedPod(t, example, namespace, "openshift")
		for _, c := range containersOf(&pod) {
			if sc := c.SecurityContext; sc.RunAsUser != nil || sc.RunAsGroup != nil {
				t.Errorf("%s: container %s names a user or a group", example, c.Name)
			}
		}
		if sc := pod.Spec.SecurityContext; sc != nil && (sc.FSGroup != nil || sc.RunAsUser != nil || len(sc.SupplementalGroups) > 0) {
			t.Errorf("%s: the pod names a user or a group: %+v", example, sc)
		}
		pods.AsSCC(&pod.Spec, from)
		assert.NoError(t, create(t.Context(), api, pod, &corev1.Pod{}), example)
	}
}

// quotas are what a namespace demands, by name; and what the API server says then.
var quotas = []string{"requests.cpu", "requests.memory", "limits.cpu", "limits.memory", "requests.ephemeral-storage", "limits.ephemeral-storage"}

// TestQuota: where a ResourceQuota demands a limit of each kind, dbconnector's containers have it, and the variant has the
// chart's; where a LimitRange gives limits, as the one that vCluster makes of its policies, neither is needed, and what it
// gives is not more than what the values ask for (F25).
func TestQuota(t *testing.T) {
	t.Parallel()
	api := bed.NewAPIServer(t, bed.APIServerOptions{})
	quota := func(namespace string) {
		t.Helper()
		hard := object{}
		for _, kind := range quotas {
			hard[kind] = "1000Gi"
		}
		made := object{"apiVersion": "v1", "kind": "ResourceQuota", "metadata": object{"name": "quota"}, "spec": object{"hard": hard}}
		post(t, api, "/api/v1/namespaces/"+namespace+"/resourcequotas", made, nil)
		// A controller would write this, and there is none.
		used := object{}
		for _, kind := range quotas {
			used[kind] = "0"
		}
		made["status"] = object{"hard": hard, "used": used}
		require.NoError(t, api.Do(t.Context(), http.MethodPut, "/api/v1/namespaces/"+namespace+"/resourcequotas/quota/status", made, nil))
	}
	newNamespace(t, api, "quota")
	quota("quota")
	newNamespace(t, api, "ranged")
	quota("ranged")
	post(t, api, "/api/v1/namespaces/ranged/limitranges", object{"metadata": object{"name": "vc-team-a"}, "spec": object{"limits": []object{{
		"type":           "Container",
		"default":        object{"cpu": "1", "memory": "512Mi", "ephemeral-storage": "8Gi"},
		"defaultRequest": object{"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "3Gi"},
	}}}}, nil)

	for example := range examples {
		refused(t, api, renderedPod(t, example, "quota"), "must specify", "dbconnector-")
		bed.Eventually(t, time.Minute, func(ctx context.Context) error { // the LimitRange is in force after a moment
			var made corev1.Pod
			if err := create(ctx, api, renderedPod(t, example, "ranged"), &made); err != nil {
				return err
			}
			asked := renderedPod(t, example, "ranged")
			for i, c := range containersOf(&made) {
				if want := containersOf(&asked)[i].Resources; strings.HasPrefix(c.Name, "dbconnector-") && !reflect.DeepEqual(c.Resources, want) {
					t.Errorf("%s: %s has resources %+v, asked for %+v", example, c.Name, c.Resources, want)
				}
			}
			return nil
		})
		pod := renderedPod(t, example, "quota", "quota")
		for _, c := range containersOf(&pod) {
			if !strings.HasPrefix(c.Name, "dbconnector-") {
				// The chart's default, which the stand-in leaves out.
				c.Resources.Limits[corev1.ResourceEphemeralStorage] = resource.MustParse("8Gi")
			}
		}
		assert.NoErrorf(t, create(t.Context(), api, pod, &corev1.Pod{}), "%s, with the variant", example)
	}
}

// TestNetworkPolicy: under the chart's network policy, the values of the variant let the control plane reach the database,
// and Prometheus reach the sidecar, and nothing else that was shut before (F26). The API server takes the policy; what a
// policy means is decided here by the rules of Kubernetes, because the bed's node enforces none.
func TestNetworkPolicy(t *testing.T) {
	t.Parallel()
	api := bed.NewAPIServer(t, bed.APIServerOptions{})
	newNamespace(t, api, "closed")
	closed, open := networkingv1.NetworkPolicy{}, networkingv1.NetworkPolicy{}
	inspect(t, "open-source", "closed", "NetworkPolicy", &open, "network-policy")
	post(t, api, "/apis/networking.k8s.io/v1/namespaces/closed/networkpolicies", open, &open)
	open.DeepCopyInto(&closed)
	var variant struct {
		Policies struct {
			NetworkPolicy struct {
				ControlPlane struct{ Egress, Ingress []object }
			}
		}
	}
	require.NoError(t, yaml.Unmarshal([]byte(read(t, variantsDir(t), "network-policy.yaml")), &variant))
	rules := variant.Policies.NetworkPolicy.ControlPlane
	closed.Spec.Egress = closed.Spec.Egress[:len(closed.Spec.Egress)-len(rules.Egress)]
	closed.Spec.Ingress = closed.Spec.Ingress[:len(closed.Spec.Ingress)-len(rules.Ingress)]

	pod := renderedPod(t, "open-source", "closed")
	for _, policy := range []networkingv1.NetworkPolicy{closed, open} {
		if !selects(t, &policy.Spec.PodSelector, pod.Labels) {
			t.Fatalf("the policy is not the control plane's: %+v", policy.Spec.PodSelector)
		}
	}
	far := peer{namespace: map[string]string{"kubernetes.io/metadata.name": "databases"}}
	prometheus := peer{namespace: map[string]string{"kubernetes.io/metadata.name": "monitoring"}, pod: map[string]string{"app": "prometheus"}}
	tenant := peer{
		namespace: map[string]string{"kubernetes.io/metadata.name": "closed"},
		pod:       map[string]string{"vcluster.loft.sh/managed-by": "team-a"},
		same:      true,
	}
	for _, test := range []struct {
		name          string
		who           peer
		port          int32
		out           bool
		before, after bool
	}{
		{"to PostgreSQL", far, 5432, true, false, true},
		{"to MySQL", far, 3306, true, false, true},
		{"to the host's API", far, 6443, true, true, true},
		{"to another port", far, 25, true, false, false},
		{"from Prometheus to the sidecar", prometheus, 8085, false, false, true},
		{"from Prometheus to kine", prometheus, 2379, false, false, false},
		{"from the tenant's pods to the API", tenant, 8443, false, true, true},
		{"from the tenant's pods to the sidecar", tenant, 8085, false, false, false},
		{"from elsewhere to the sidecar", far, 8085, false, false, false},
	} {
		for name, policy := range map[string]*networkingv1.NetworkPolicy{"before": &closed, "after": &open} {
			want := map[string]bool{"before": test.before, "after": test.after}[name]
			if got := lets(t, policy, test.who, test.port, test.out); got != want {
				t.Errorf("%s, %s: %t, want %t", test.name, name, got, want)
			}
		}
	}
}

// peer is the other side of a connection: the labels of its namespace and of its pod.
type peer struct {
	namespace, pod map[string]string
	same           bool // in the policy's namespace
}

func selects(t *testing.T, selector *metav1.LabelSelector, set map[string]string) bool {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	require.NoError(t, err)
	return s.Matches(labels.Set(set))
}

// lets says whether a policy lets a TCP connection through.
func lets(t *testing.T, policy *networkingv1.NetworkPolicy, who peer, port int32, out bool) bool {
	t.Helper()
	fits := func(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) bool {
		p := len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
			return *p.Protocol == corev1.ProtocolTCP && p.Port.IntVal == port
		})
		return p && (len(peers) == 0 || slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool {
			if p.IPBlock != nil {
				t.Fatal("this test knows no addresses")
			}
			in := who.same
			if p.NamespaceSelector != nil {
				in = selects(t, p.NamespaceSelector, who.namespace)
			}
			return in && (p.PodSelector == nil || selects(t, p.PodSelector, who.pod))
		}))
	}
	if out {
		return slices.ContainsFunc(policy.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool { return fits(r.To, r.Ports) })
	}
	return slices.ContainsFunc(policy.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool { return fits(r.From, r.Ports) })
}

// TestServiceAccountName: with the patch that an example's kustomization.yaml has as a comment, the Roles are bound to the
// ServiceAccount of another name, and to no other (F27).
func TestServiceAccountName(t *testing.T) {
	t.Parallel()
	api := bed.NewAPIServer(t, bed.APIServerOptions{})
	post(t, api, "/api/v1/namespaces", object{"metadata": object{"name": "vcluster-platform"}}, nil)
	for example := range examples {
		dir := t.TempDir()
		require.NoError(t, os.CopyFS(dir, os.DirFS(kustomize(t))))
		file := filepath.Join(dir, "examples", example, "kustomization.yaml")
		require.NoError(t, shipped.BindAccount(file, "my-account"))
		shipped := rendered(t, filepath.Dir(file))
		var params corev1.ConfigMap
		decode(t, read(t, filepath.Dir(file), "vcluster.yaml"), &params)
		namespace := params.Data["namespace"]
		post(t, api, "/api/v1/namespaces", object{"metadata": object{"name": namespace}}, nil)
		for in, role := range shipped.roles {
			path := "/apis/rbac.authorization.k8s.io/v1/namespaces/" + in
			post(t, api, path+"/roles", role, nil)
			post(t, api, path+"/rolebindings", shipped.bindings[in], nil)
			want := []rbacv1.Subject{{Kind: "ServiceAccount", Name: "my-account", Namespace: namespace}}
			if got := shipped.bindings[in].Subjects; !reflect.DeepEqual(got, want) {
				t.Errorf("%s: the Role in %s is bound to %+v, want %+v", example, in, got, want)
			}
		}
		for account, want := range map[string]bool{"my-account": true, "vc-" + params.Data["release"]: false} {
			for _, attributes := range []authorizationv1.ResourceAttributes{
				{Namespace: "vcluster-platform", Verb: "get", Resource: "secrets", Name: params.Data["connector"]},
				{Namespace: namespace, Verb: "get", Resource: "namespaces", Name: namespace},
				{Namespace: namespace, Verb: "create", Resource: "events"},
				{Namespace: namespace, Verb: "patch", Resource: "events"},
				{Namespace: namespace, Verb: "patch", Group: "apps", Resource: "deployments", Name: params.Data["release"]},
			} {
				bed.Eventually(t, time.Minute, func(ctx context.Context) error { // Roles are known after a moment
					var answer authorizationv1.SubjectAccessReview
					err := api.Do(ctx, http.MethodPost, "/apis/authorization.k8s.io/v1/subjectaccessreviews", authorizationv1.SubjectAccessReview{
						Spec: authorizationv1.SubjectAccessReviewSpec{
							User: "system:serviceaccount:" + namespace + ":" + account, ResourceAttributes: &attributes,
						},
					}, &answer)
					if err == nil && answer.Status.Allowed != want {
						err = fmt.Errorf("%s, account %s: %+v is allowed: %t, want %t", example, account, attributes, answer.Status.Allowed, want)
					}
					return err
				})
			}
		}
	}
}

// TestValuesMergeAsHelm is about the bed's own stand-in for Helm.
func TestValuesMergeAsHelm(t *testing.T) {
	t.Parallel()
	var files []string
	for i, text := range []string{"a: {b: 1, c: [1, 2], d: {e: 1}}", "a: {b: null, c: [3], d: {f: 2}}"} {
		files = append(files, filepath.Join(t.TempDir(), fmt.Sprint(i)))
		require.NoError(t, os.WriteFile(files[i], []byte(text), 0o600))
	}
	text, err := shipped.Values(files...)
	require.NoError(t, err)
	var got map[string]object
	require.NoError(t, yaml.Unmarshal(text, &got))
	if b, there := got["a"]["b"]; !there || b != nil || len(slices.Collect(maps.Keys(got["a"]))) != 3 {
		t.Errorf("got %v", got)
	}
	if want := (object{"e": 1.0, "f": 2.0}); !reflect.DeepEqual(got["a"]["d"], want) || !reflect.DeepEqual(got["a"]["c"], []any{3.0}) {
		t.Errorf("got %v", got)
	}
}
