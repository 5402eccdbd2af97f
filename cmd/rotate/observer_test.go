// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/health"
	"dbconnector/pkg/kube"
	"dbconnector/pkg/rotation"
	"dbconnector/pkg/tenant"
)

// served are the metrics of ours that are not zero, as Prometheus reads them.
func served(t *testing.T, m *health.Metrics) map[string]string {
	t.Helper()
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	list := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^dbconnector_(\S+) (.*)$`).FindAllStringSubmatch(answer.Body.String(), -1) {
		if m[2] != "0" {
			list[m[1]] = m[2]
		}
	}
	return list
}

// TestObserver: what happens becomes metrics that say how things are, and Events that say once what changed (B2).
func TestObserver(t *testing.T) {
	t.Parallel()
	o := &observer{metrics: health.New(), events: newEvents(nil, kube.Pod{}, zap.NewNop())}
	told := func(want ...string) {
		t.Helper()
		var got []string
		for len(o.events.queue) > 0 {
			e := <-o.events.queue
			got = append(got, e.kind+" "+e.reason)
			if !strings.Contains(e.message, " ") {
				t.Errorf("the Event %s says %q", e.reason, e.message)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("Events %q, want %q", got, want)
		}
	}
	shows := func(want map[string]string) {
		t.Helper()
		if got := served(t, o.metrics); !maps.Equal(got, want) {
			t.Errorf("metrics\n%v\nwant\n%v", got, want)
		}
	}
	shows(map[string]string{}) // not one of them is an alert

	r := tenant.NewRecord("uid/v", "ns", "v", connector.Server{Engine: connector.Postgres, Host: "db.example", Port: 5432, SSLMode: connector.Require}, 10)
	r.RotatedAt = time.Unix(1000, 0)
	o.Record(r, time.Unix(2000, 0))
	now := map[string]string{
		"credential_generation": "1", "credential_rotated_timestamp_seconds": "1000", "rotation_due_timestamp_seconds": "2000",
	}
	shows(now)

	// Trouble that lasts is one Event, and a number that grows.
	o.Postponed(rotation.OtherInUse, "somebody is there")
	refused := fault.New(fault.WrongPassword, "the server says no")
	for range 100 {
		o.Failed("look", refused)
	}
	o.Failed("read", errors.New("no answer today"))
	told("Warning Postponed", "Warning Failed")
	during := maps.Clone(now)
	maps.Copy(during, map[string]string{
		`postponed{reason="OldCredentialInUse"}`: "1", `postponed_total{reason="OldCredentialInUse"}`: "1",
		`failures_total{step="look"}`: "100", `failures_total{step="read"}`: "1", "failing": "101", `locked_out{login="active"}`: "1",
	})
	shows(during)

	// And so is its end; the counters stay.
	o.Postponed("", "")
	o.Healthy()
	r.OtherRefused, r.OtherRetired = true, false
	r.Pending = &tenant.Change{Slot: tenant.B, Password: tenant.NewPassword(), Purpose: tenant.Activate}
	o.Record(r, time.Unix(2000, 0))
	told()
	after := maps.Clone(now)
	maps.Copy(after, map[string]string{
		`postponed_total{reason="OldCredentialInUse"}`: "1", `failures_total{step="look"}`: "100", `failures_total{step="read"}`: "1",
		"change_pending": "1", "old_credential_valid": "1", `locked_out{login="inactive"}`: "1",
	})
	shows(after)
	o.Failed("apply", errors.New("the next trouble"))
	o.Rotated(r)
	o.Retired(r)
	told("Warning Failed", "Normal Rotated", "Normal Retired")

	// The slot whose password nobody knows is locked out, whatever the server would say.
	r.OtherRefused, r.Slots[tenant.B] = false, tenant.Credential{}
	o.Record(r, time.Unix(2000, 0))
	if served(t, o.metrics)[`locked_out{login="inactive"}`] != "1" {
		t.Error("a slot whose password nobody knows counts as one that can be used")
	}

	// Nothing waits for an API server that takes no Events.
	for range 2 * cap(o.events.queue) {
		o.Rotated(r)
	}
	if len(o.events.queue) != cap(o.events.queue) {
		t.Errorf("%d Events wait, want %d", len(o.events.queue), cap(o.events.queue))
	}
}
