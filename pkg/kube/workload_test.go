// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

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

// TestWorkloadFaults: answers that a real API server does not give on demand.
func TestWorkloadFaults(t *testing.T) {
	t.Parallel()
	there := func(version string, r *tenant.Record) answer {
		meta := map[string]any{}
		if r != nil {
			meta["annotations"] = marks(r)
		}
		return object(map[string]any{
			"kind":     "StatefulSet",
			"metadata": map[string]any{"resourceVersion": version},
			"spec":     map[string]any{"template": map[string]any{"metadata": meta}},
		})
	}
	conflict := status(409, metav1.StatusReasonConflict, "the object has been modified")
	for name, test := range map[string]struct {
		answers []answer
		want    []string
	}{
		"the answer is lost":     {[]answer{there("1", of(1)), hangUp, conflict, there("2", of(2))}, []string{"GET", "PATCH", "PATCH", "GET"}},
		"the question is lost":   {[]answer{there("1", nil), hangUp, there("2", of(2))}, []string{"GET", "PATCH", "PATCH"}},
		"deleted and made again": {[]answer{there("1", nil), conflict, there("1", nil), there("2", of(2))}, []string{"GET", "PATCH", "GET", "PATCH"}},
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
		if _, _, _, err := c.Workload("team-a", "blue").Status(t.Context(), of(2)); !fault.Is(err, fault.Refused) ||
			!strings.Contains(err.Error(), "what answers is not an API server") {
			t.Errorf("%s: got class %v: %v", name, fault.Of(err), err)
		}
	}
}
