// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// Adoption by rollout, on a real API server, by sidecars that use the ServiceAccount of vCluster's chart, with the
// rights that its Role and deploy/kustomize/rbac grant. There are no controllers, so the test plays them.

var rollout = append([]string{"ADOPT=rollout"}, hourly...)

type object = map[string]any

// These are the rules of vCluster's Role that matter here, without those about workloads: not every version of the
// chart lets the vCluster patch them, but deploy/kustomize/rbac does.
var (
	chartRules = []object{
		{
			"apiGroups": []string{""}, "resources": []string{"configmaps", "secrets", "services", "pods"},
			"verbs": []string{"create", "delete", "patch", "update", "get", "list", "watch"},
		},
		{"apiGroups": []string{""}, "resources": []string{"endpoints", "events", "pods/log"}, "verbs": []string{"get", "list", "watch"}},
		{"apiGroups": []string{"apps"}, "resources": []string{"statefulsets", "replicasets", "deployments"}, "verbs": []string{"get", "list", "watch"}},
	}
	eventRule = object{"apiGroups": []string{""}, "resources": []string{"events"}, "verbs": []string{"create", "patch"}}
)

func patchRule(release string) object {
	return object{
		"apiGroups": []string{"apps"}, "resources": []string{"statefulsets", "deployments"},
		"resourceNames": []string{release}, "verbs": []string{"get", "patch"},
	}
}

const rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/" + rig.Namespace

// account makes the ServiceAccount of a release, with these rules, and lets the sidecars of p use that account.
func account(tb testing.TB, p *rig.Tenant, rules ...object) *rig.Tenant {
	tb.Helper()
	api, name := p.Cluster.API, "vc-"+p.Name
	for path, o := range map[string]object{
		"/api/v1/namespaces/" + rig.Namespace + "/serviceaccounts": {},
		rbac + "/roles": {"rules": rules},
		rbac + "/rolebindings": {
			"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
			"subjects": []object{{"kind": "ServiceAccount", "name": name, "namespace": rig.Namespace}},
		},
	} {
		o = maps.Clone(o)
		o["metadata"] = object{"name": name}
		require.NoError(tb, api.Do(tb.Context(), http.MethodPost, path, o, nil), "making an account")
	}
	token, err := api.Token(tb.Context(), rig.Namespace, name)
	require.NoError(tb, err, "making a token")
	as := *p
	as.Kubeconfig = kubeconfig(tb, api.KubeconfigFor(token))
	return &as
}

// grant replaces the rules of an account, and waits until they hold.
func grant(tb testing.TB, p *rig.Tenant, verb, group, resource, name string, allowed bool, rules ...object) {
	tb.Helper()
	require.NoError(tb, p.Cluster.API.Do(tb.Context(), http.MethodPatch, rbac+"/roles/vc-"+p.Name, object{"rules": rules}, nil), "changing a Role")
	bed.Eventually(tb, rig.Patience, func(ctx context.Context) error {
		var review struct{ Status struct{ Allowed bool } }
		err := p.Cluster.API.Do(ctx, http.MethodPost, "/apis/authorization.k8s.io/v1/subjectaccessreviews", object{"spec": object{
			"user":               "system:serviceaccount:" + rig.Namespace + ":vc-" + p.Name,
			"resourceAttributes": object{"namespace": rig.Namespace, "verb": verb, "group": group, "resource": resource, "name": name},
		}}, &review)
		if err == nil && review.Status.Allowed != allowed {
			err = fmt.Errorf("may %s %s: %t, want %t", verb, resource, review.Status.Allowed, allowed)
		}
		return err
	})
}

// workload is the control plane's StatefulSet or Deployment.
type workload struct {
	cluster *rig.Cluster
	path    string
	status  func(generation int64, replicas, updated int) object
}

var kinds = []struct {
	name   string
	status func(generation int64, replicas, updated int) object
}{
	{"StatefulSet", func(generation int64, replicas, updated int) object {
		current := "one"
		if updated == replicas {
			current = "two"
		}
		return object{
			"observedGeneration": generation, "replicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas,
			"updatedReplicas": updated, "currentReplicas": replicas - updated, "currentRevision": current, "updateRevision": "two",
		}
	}},
	{"Deployment", func(generation int64, replicas, updated int) object {
		return object{"observedGeneration": generation, "replicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas, "updatedReplicas": updated}
	}},
}

func newWorkload(tb testing.TB, p *rig.Tenant, kind string, replicas int) *workload {
	tb.Helper()
	labels := object{"app": "vcluster", "release": p.Name}
	spec := object{
		"replicas": replicas, "selector": object{"matchLabels": labels},
		"template": object{
			"metadata": object{"labels": labels, "annotations": object{"vClusterConfigHash": "0123", "example.com/mine": "stays"}},
			"spec":     object{"containers": []object{{"name": "syncer", "image": "example.com/vcluster", "env": []object{{"name": "A", "value": "b"}}}}},
		},
	}
	if kind == "StatefulSet" {
		spec["serviceName"] = p.Name + "-headless"
		spec["volumeClaimTemplates"] = []object{{
			"metadata": object{"name": "data"},
			"spec":     object{"accessModes": []string{"ReadWriteOnce"}, "resources": object{"requests": object{"storage": "1Gi"}}},
		}}
	}
	w := &workload{cluster: p.Cluster, path: "/apis/apps/v1/namespaces/" + rig.Namespace + "/" + strings.ToLower(kind) + "s"}
	for _, k := range kinds {
		if k.name == kind {
			w.status = k.status
		}
	}
	require.NoError(tb, p.Cluster.API.Do(tb.Context(), http.MethodPost, w.path, object{
		"apiVersion": "apps/v1", "kind": kind, "spec": spec,
		"metadata": object{"name": p.Name, "labels": labels, "annotations": object{"example.com/note": "stays"}},
	}, nil), "making the workload")
	w.path += "/" + p.Name
	w.roll(tb, replicas, replicas)
	return w
}

// get reads the object. It returns the object without its version, its bookkeeping and the fields that a rollout
// changes. It returns the generation and our annotations apart.
func (w *workload) get(tb testing.TB) (rest object, generation int64, ours object) {
	tb.Helper()
	require.NoError(tb, w.cluster.API.Do(tb.Context(), http.MethodGet, w.path, nil, &rest), "reading the workload")
	meta, _ := rest["metadata"].(object)
	number, _ := meta["generation"].(float64)
	for _, key := range []string{"resourceVersion", "generation", "managedFields"} {
		delete(meta, key)
	}
	delete(rest, "status")
	template, _ := rest["spec"].(object)["template"].(object)
	annotations, _ := template["metadata"].(object)["annotations"].(object)
	ours = object{}
	for key, value := range annotations {
		if strings.HasPrefix(key, "dbconnector/") {
			ours[key] = value
			delete(annotations, key)
		}
	}
	return rest, int64(number), ours
}

// roll reports, as the controller would, how many pods have the current template.
func (w *workload) roll(tb testing.TB, replicas, updated int) {
	tb.Helper()
	_, generation, _ := w.get(tb)
	require.NoError(tb, w.cluster.API.Do(tb.Context(), http.MethodPatch, w.path+"/status", object{"status": w.status(generation, replicas, updated)}, nil))
}

// TestRollout: three sidecars race for the rollout of one rotation. The pod template is changed once, and nothing else
// of the object; the old password lives until the workload says that all pods have moved, and a sidecar says how many
// have moved (F37). The rights are enough.
func TestRollout(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			p, server := plane(t, rig.Host(t))
			w := newWorkload(t, p, kind.name, 3)
			as := account(t, p, append([]object{eventRule, patchRule(p.Name)}, chartRules...)...)
			pods := []*rig.Tenant{as}
			for range 2 {
				r := rig.Replica(t, p)
				r.Kubeconfig = as.Kubeconfig
				pods = append(pods, r)
			}
			var sidecars []*rig.Process
			for _, pod := range pods {
				sidecars = append(sidecars, rig.Sidecar(t, pod, rollout...))
			}
			old := rig.Until(t, p, "provisioned", (*tenant.Record).Provisioned)
			before, generationBefore, ours := w.get(t)
			if len(ours) > 0 {
				t.Errorf("asked before there was a rotation: %v", ours)
			}
			end := session(t, server, old.Login(old.Active)) // the control plane
			due(t, p)
			for _, s := range sidecars { // each of them has asked for it, or has seen that another one did
				gauge(t, s, `dbconnector_postponed{reason="NotAdopted"}`, 1)
			}
			// The sidecar names a rollout that makes no progress, because of a quota for example, with the command that shows
			// why (F37).
			stuck := fmt.Sprintf("%s %s/%s: 0 of 3 pods replaced, 3 available; to see why: kubectl --namespace %s rollout status %s %s",
				kind.name, rig.Namespace, p.Name, rig.Namespace, strings.ToLower(kind.name), p.Name)
			if lines := sidecars[0].Lines("postponed"); len(lines) == 0 || lines[len(lines)-1]["detail"] != stuck {
				t.Errorf("the sidecar says %v, want %q", lines, stuck)
			}
			after, generationAfter, ours := w.get(t)
			if generationAfter != generationBefore+1 {
				t.Errorf("the object was changed %d times", generationAfter-generationBefore)
			}
			if ours["dbconnector/generation"] != "2" {
				t.Errorf("the template asks for %v, want generation 2", ours)
			}
			if !reflect.DeepEqual(before, after) {
				t.Errorf("something else was touched:\n%v\nbefore:\n%v", after, before)
			}

			// The sessions have moved, and the workload has not said so: not all pods are ready yet.
			w.roll(t, 3, 1)
			rotated := rig.Until(t, p, "generation 2", generation(2))
			end()
			session(t, server, rotated.Login(rotated.Active))
			if rotated.OtherRetired {
				t.Error("retired before the workload said that all pods have moved")
			}
			accepts(t, rotated)
			w.roll(t, 3, 3)
			rig.Until(t, p, "retired", func(r *tenant.Record) bool { return r.OtherRetired })
			dead(t, old, old.Active)
			for i, s := range sidecars {
				handsOver(t, pods[i], server)
				gauge(t, s, `dbconnector_old_credential_valid`, 0)
				gauge(t, s, "dbconnector_consecutive_failures", 0)
				ready(t, s)
			}
			if _, now, _ := w.get(t); now != generationAfter {
				t.Errorf("the object was changed again: generation %d, then %d", generationAfter, now)
			}
		})
	}
}

// TestRolloutNotAllowed: the right to change the workload is missing. The sidecar names the right, and waits: the
// rotation is done, and the old password still works. When an operator grants the right, it goes on.
func TestRolloutNotAllowed(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	w := newWorkload(t, p, "StatefulSet", 1)
	as := account(t, p, append([]object{eventRule}, chartRules...)...)
	sidecar := rig.Sidecar(t, as, rollout...)
	old := rig.Until(t, p, "provisioned", (*tenant.Record).Provisioned)
	end := session(t, server, old.Login(old.Active))
	due(t, p)
	failing(t, sidecar, "adopt")
	want := fmt.Sprintf(`an RBAC rule is missing, verb "patch" on resource "statefulsets.apps" named %q in namespace %q (deploy/kustomize`, p.Name, rig.Namespace)
	if quoted, _ := json.Marshal(want); !strings.Contains(sidecar.Log(), strings.Trim(string(quoted), `"`)) {
		t.Errorf("the sidecar does not say what is missing:\n%s", sidecar.Log())
	}
	ready(t, sidecar)
	rotated := rig.Until(t, p, "generation 2", generation(2))
	accepts(t, rotated)
	handsOver(t, p, server)

	grant(t, p, "patch", "apps", "statefulsets", p.Name, true, append([]object{eventRule, patchRule(p.Name)}, chartRules...)...)
	nudge(t, p)
	gauge(t, sidecar, `dbconnector_postponed{reason="NotAdopted"}`, 1)
	gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
	end()
	session(t, server, rotated.Login(rotated.Active))
	w.roll(t, 1, 1)
	rig.Until(t, p, "retired", func(r *tenant.Record) bool { return r.OtherRetired })
}

// TestRolloutOfNothing: there is no workload of that name. The rotation is done and visibly waits. It goes on when
// there is one.
func TestRolloutOfNothing(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	as := account(t, p, append([]object{patchRule(p.Name)}, chartRules...)...)
	sidecar := rig.Sidecar(t, as, rollout...)
	old := rig.Until(t, p, "provisioned", (*tenant.Record).Provisioned)
	session(t, server, old.Login(old.Active))
	due(t, p)
	failing(t, sidecar, "look")
	if want := "there is neither a StatefulSet nor a Deployment " + rig.Namespace + "/" + p.Name; !strings.Contains(sidecar.Log(), want) {
		t.Errorf("the sidecar does not say what is missing:\n%s", sidecar.Log())
	}
	accepts(t, rig.Until(t, p, "generation 2", generation(2)))
	w := newWorkload(t, p, "Deployment", 1)
	nudge(t, p)
	gauge(t, sidecar, `dbconnector_postponed{reason="NotAdopted"}`, 1)
	if _, _, ours := w.get(t); ours["dbconnector/generation"] != "2" {
		t.Errorf("the template asks for %v, want generation 2", ours)
	}
}

// TestRolloutOfAnotherRecord: the record was lost after a rotation, and a new one counts from 1 again. A request of the
// old record in the template says nothing about the new one: each rotation of the new one gets a rollout of its own.
func TestRolloutOfAnotherRecord(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	w := newWorkload(t, p, "Deployment", 1)
	as := account(t, p, append([]object{patchRule(p.Name)}, chartRules...)...)
	sidecar := rig.Sidecar(t, as, rollout...)
	generations := []int64{}
	adopted := func(record *tenant.Record) {
		t.Helper()
		end := session(t, server, record.Login(record.Active))
		defer end()
		w.roll(t, 1, 1)
		rig.Until(t, p, "retired", func(r *tenant.Record) bool { return r.OtherRetired })
		_, n, _ := w.get(t)
		generations = append(generations, n)
	}
	asked := func(n int64) {
		t.Helper()
		bed.Eventually(t, rig.Patience, func(ctx context.Context) error {
			var o struct{ Metadata struct{ Generation int64 } }
			err := w.cluster.API.Do(ctx, http.MethodGet, w.path, nil, &o)
			if err == nil && o.Metadata.Generation <= n {
				err = errors.New("the workload is not restarted")
			}
			return err
		})
	}
	_, first, _ := w.get(t)
	for n := int64(2); n <= 3; n++ {
		due(t, p)
		r := rig.Until(t, p, "the next generation", generation(n))
		asked(first + n - 2)
		adopted(r)
	}
	require.NoError(t, p.Forget(t.Context()), "deleting the record")
	failing(t, sidecar, "read")
	rig.Replica(t, p)
	fresh := rig.Until(t, p, "a new one", func(r *tenant.Record) bool { return r.Provisioned() && r.Pending == nil })
	if fresh.Generation > 3 {
		t.Fatalf("the new record begins with generation %d: nothing is shown", fresh.Generation)
	}
	gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
	for n := fresh.Generation + 1; n <= 4; n++ {
		due(t, p)
		r := rig.Until(t, p, "the next generation", generation(n))
		asked(generations[len(generations)-1])
		adopted(r)
	}
	for i, n := range generations {
		if n != first+int64(i)+1 {
			t.Fatalf("the object's generations after each rotation: %v, from %d", generations, first)
		}
	}
}
