// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// of is a record of a generation. Each became active at a time of its own.
func of(generation int64) *tenant.Record {
	r := newRecord()
	r.Generation = generation
	r.RotatedAt = time.Date(2020, 1, 1, 0, 0, int(generation), 0, time.UTC)
	return r
}

func newest(context.Context) error { return nil }

var errLate = errors.New("the record has moved on")

func late(context.Context) error { return errLate }

// deployed makes a workload, and returns its path.
func (c cluster) deployed(t *testing.T, namespace, kind, name string) (path string) {
	t.Helper()
	labels := map[string]any{"app": name}
	path = "/apis/apps/v1/namespaces/" + namespace + "/" + strings.ToLower(kind) + "s"
	c.do(t, http.MethodPost, path, map[string]any{
		"apiVersion": "apps/v1", "kind": kind, "metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"selector": map[string]any{"matchLabels": labels}, "replicas": 2,
			"template": map[string]any{
				"metadata": map[string]any{"labels": labels, "annotations": map[string]any{"theirs": "stays"}},
				"spec":     map[string]any{"containers": []any{map[string]any{"name": "c", "image": "example.com/i"}}},
			},
		},
	}, nil)
	return path + "/" + name
}

// template is how often the object was changed, and the annotations of its pod template.
func (c cluster) template(t *testing.T, path string) (generation int64, annotations map[string]string) {
	t.Helper()
	var o workload
	c.do(t, http.MethodGet, path, nil, &o)
	return o.Metadata.Generation, o.Spec.Template.Metadata.Annotations
}

func testWorkload(t *testing.T, c cluster) {
	c.namespace(t, "workload")
	_, _, _, err := c.admin(t).Workload("workload", "none").Status(t.Context(), of(1))
	if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), "neither a StatefulSet nor a Deployment workload/none") {
		t.Errorf("none: got class %v: %v", fault.Of(err), err)
	}
	for _, kind := range []string{"StatefulSet", "Deployment"} {
		name := strings.ToLower(kind)
		path := c.deployed(t, "workload", kind, name)
		generation, _ := c.template(t, path)
		changes := int64(0)
		changed := func(what string, n int64, want *tenant.Record) {
			t.Helper()
			changes += n
			now, annotations := c.template(t, path)
			if now != generation+changes {
				t.Errorf("%s, %s: changed %d times, want %d", kind, what, now-generation, changes)
			}
			all := marks(want)
			all["theirs"] = "stays"
			if !maps.Equal(annotations, all) {
				t.Errorf("%s, %s: got %v, want %v", kind, what, annotations, all)
			}
			if asked, _, _, err := c.admin(t).Workload("workload", name).Status(t.Context(), want); err != nil || !asked {
				t.Errorf("%s, %s: asks for it: %t, %v", kind, what, asked, err)
			}
		}
		w := c.admin(t).Workload("workload", name)
		if asked, _, _, err := w.Status(t.Context(), of(1)); err != nil || asked {
			t.Errorf("%s: asked before it was: %t, %v", kind, asked, err)
		}

		var group sync.WaitGroup
		for range 10 {
			rival := c.admin(t).Workload("workload", name)
			group.Go(func() {
				if err := rival.Request(t.Context(), of(5), newest); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		changed("ten at once", 1, of(5))

		if err := w.Request(t.Context(), of(4), late); !errors.Is(err, errLate) {
			t.Errorf("%s, a late one: got %v", kind, err)
		}
		changed("a late one", 0, of(5))

		// The same number, but of another record.
		other := of(5)
		other.RotatedAt = other.RotatedAt.Add(time.Hour)
		if asked, _, _, err := w.Status(t.Context(), other); err != nil || asked {
			t.Errorf("%s: another record's: %t, %v", kind, asked, err)
		}
		if err := w.Request(t.Context(), other, newest); err != nil {
			t.Error(err)
		}
		changed("another record, the same number", 1, other)
		if err := w.Request(t.Context(), of(2), newest); err != nil {
			t.Error(err)
		}
		changed("another record, a lower number", 1, of(2))

		// Others write the object between the look and the deed: the controller, or a rival with the next generation.
		calls := 0
		err := w.Request(t.Context(), of(3), func(ctx context.Context) error {
			if calls++; calls > 2 {
				return nil
			}
			return c.Do(ctx, http.MethodPatch, path+"/status", map[string]any{"status": map[string]any{"observedGeneration": calls}}, nil)
		})
		if err != nil || calls != 3 {
			t.Errorf("%s, conflicts: asked %d times, %v", kind, calls, err)
		}
		changed("conflicts", 1, of(3))
		calls = 0
		err = w.Request(t.Context(), of(4), func(ctx context.Context) error {
			if calls++; calls > 1 {
				return errLate
			}
			return c.admin(t).Workload("workload", name).Request(ctx, of(6), newest)
		})
		if !errors.Is(err, errLate) || calls != 2 {
			t.Errorf("%s, overtaken: asked %d times, %v", kind, calls, err)
		}
		changed("overtaken", 1, of(6))

		generation, changes = generation+changes, 0
		for _, test := range []struct {
			what     string
			observed int64
			replicas, updated,
			available int
			want     bool
			progress string
		}{
			{"nobody looks after it", 0, 0, 0, 0, false, "0 of 2 pods replaced, 0 available"},
			{"the controller has not seen it", generation - 1, 2, 2, 2, false, "0 of 2 pods replaced, 2 available"},
			{"the old pods", generation, 2, 0, 2, false, "0 of 2 pods replaced, 2 available"},
			{"one of two", generation, 2, 1, 2, false, "1 of 2 pods replaced, 2 available"},
			{"a new one besides", generation, 3, 2, 3, false, "2 of 2 pods replaced, 3 available"},
			{"not available", generation, 2, 2, 1, false, "2 of 2 pods replaced, 1 available"},
			{"done", generation, 2, 2, 2, true, "kubectl --namespace workload rollout status " + strings.ToLower(kind) + " " + name},
		} {
			status := map[string]any{
				"observedGeneration": test.observed, "replicas": test.replicas, "updatedReplicas": test.updated,
				"readyReplicas": test.available, "availableReplicas": test.available,
			}
			if kind == "StatefulSet" { // with the strategy OnDelete the revisions stay different
				status["currentRevision"], status["updateRevision"] = "one", "two"
			}
			c.do(t, http.MethodPatch, path+"/status", map[string]any{"status": status}, nil)
			if asked, rolled, progress, err := w.Status(t.Context(), of(6)); err != nil || !asked || rolled != test.want || !strings.Contains(progress, test.progress) {
				t.Errorf("%s, %s: asked %t, rolled %t, %q, %v; want %t, %q", kind, test.what, asked, rolled, progress, err, test.want, test.progress)
			}
		}
	}
}

// testWorkloadRights: whoever may not restart the workload learns which rule he lacks.
func testWorkloadRights(t *testing.T, c cluster) {
	c.namespace(t, "workload-rights")
	path := c.deployed(t, "workload-rights", "StatefulSet", "w")
	nobody, reader := c.account(t, "workload-rights", "nobody"), c.account(t, "workload-rights", "reads")
	c.grant(t, "workload-rights", "nobody")
	c.grant(t, "workload-rights", "reads", rbacv1.PolicyRule{APIGroups: []string{"apps"}, Resources: []string{"statefulsets"}, Verbs: []string{"get"}})
	for verb, who := range map[string]*Client{"get": nobody, "patch": reader} {
		want := `an RBAC rule is missing, verb "` + verb + `" on resource "statefulsets.apps" named "w" in namespace "workload-rights" (deploy/kustomize/rbac has it)`
		err := who.Workload("workload-rights", "w").Request(t.Context(), of(2), newest)
		if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), want) {
			t.Errorf("got class %v: %v\nwant %s", fault.Of(err), err, want)
		}
	}
	if _, annotations := c.template(t, path); len(annotations) != 1 {
		t.Errorf("the template was changed: %v", annotations)
	}
}

// TestWorkloadFaults: what a real API server does not do on demand.
func TestWorkloadFaults(t *testing.T) {
	t.Parallel()
	there := func(version string, r *tenant.Record) answer {
		meta := map[string]any{}
		if r != nil {
			meta["annotations"] = marks(r)
		}
		return object(map[string]any{"kind": "StatefulSet", "metadata": map[string]any{"resourceVersion": version}, "spec": map[string]any{"template": map[string]any{"metadata": meta}}})
	}
	conflict := status(409, metav1.StatusReasonConflict, "the object has been modified")
	for name, test := range map[string]struct {
		answers []answer
		want    []string
	}{
		"the answer is lost":    {[]answer{there("1", of(1)), hangUp, conflict, there("2", of(2))}, []string{"GET", "PATCH", "PATCH", "GET"}},
		"the question is lost":  {[]answer{there("1", nil), hangUp, there("2", of(2))}, []string{"GET", "PATCH", "PATCH"}},
		"deleted and made anew": {[]answer{there("1", nil), conflict, there("1", nil), there("2", of(2))}, []string{"GET", "PATCH", "GET", "PATCH"}},
	} {
		c, s := play(t, test.answers...)
		if err := c.Workload("team-a", "blue").Request(within(t, time.Minute), of(2), newest); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s.count(t, test.want...)
	}
	// Conflicts until time is up.
	c, s := play(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			there("1", nil)(w, r)
			return
		}
		conflict(w, r)
	})
	err := c.Workload("team-a", "blue").Request(within(t, 3*time.Second), of(2), newest)
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "others keep writing it") || len(s.requests) < 4 {
		t.Errorf("got class %v after %d requests: %v", fault.Of(err), len(s.requests), err)
	}
	// A proxy's page is not a workload that asks for nothing.
	for name, foreign := range map[string]answer{
		"a page":       func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"another kind": object(map[string]any{"kind": "Status", "metadata": map[string]any{"resourceVersion": "1"}}),
		"no version":   object(map[string]any{"kind": "StatefulSet"}),
	} {
		c, _ = play(t, foreign)
		if _, _, _, err := c.Workload("team-a", "blue").Status(t.Context(), of(2)); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), "what answers is not an API server") {
			t.Errorf("%s: got class %v: %v", name, fault.Of(err), err)
		}
	}
}
