// SPDX-License-Identifier: Apache-2.0

package report

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/config"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/health"
	"dbconnector/pkg/kube"
	"dbconnector/pkg/rotation"
	"dbconnector/pkg/tenant"
)

// queue are Events that nothing sends.
func queue() *Events { return NewEvents(config.Common{PodName: "pod"}, &kube.Client{}, zap.NewNop()) }

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
	o := NewObserver(queue())
	said := ""
	told := func(want ...string) {
		t.Helper()
		var got []string
		for len(o.events.queue) > 0 {
			e := <-o.events.queue
			got = append(got, e.kind+" "+e.reason)
			if !strings.Contains(e.message, " ") {
				t.Errorf("the Event %s says %q", e.reason, e.message)
			}
			said = e.message
		}
		if !slices.Equal(got, want) {
			t.Errorf("Events %q, want %q", got, want)
		}
	}
	shows := func(want map[string]string) {
		t.Helper()
		if got := served(t, o.Metrics); !maps.Equal(got, want) {
			t.Errorf("metrics\n%v\nwant\n%v", got, want)
		}
	}
	shows(map[string]string{}) // not one of them is an alert

	r := tenant.NewRecord("uid/v", "ns", "v", dbserver.Server{Engine: dbserver.Postgres, Host: "db.example", Port: 5432, SSLMode: dbserver.Require}, 10)
	o.Record(r, r.RotatedAt.Add(time.Hour))
	shows(map[string]string{"credential_generation": "1"}) // init is at work on it: nothing is overdue
	r.ProvisionedAt = time.Unix(900, 0)
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
	if want := "checking the state of the rotation failed: the server says no"; said != want {
		t.Errorf("the Event says %q, want %q", said, want)
	}
	during := maps.Clone(now)
	maps.Copy(during, map[string]string{
		`postponed{reason="OldCredentialInUse"}`: "1", `postponements_total{reason="OldCredentialInUse"}`: "1",
		`failures_total{step="look"}`: "100", `failures_total{step="read"}`: "1", "consecutive_failures": "101", `locked_out{login="active"}`: "1",
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
		`postponements_total{reason="OldCredentialInUse"}`: "1", `failures_total{step="look"}`: "100", `failures_total{step="read"}`: "1",
		"change_pending": "1", "old_credential_valid": "1", `locked_out{login="inactive"}`: "1",
	})
	shows(after)
	o.Failed("apply", errors.New("the next trouble"))
	o.Rotated(r)
	o.Retired(r)
	told("Warning Failed", "Normal Rotated", "Normal Retired")

	// Whoever moves is seen now here, now there: one Event for all of it. That init is needed is another story, and so is the
	// next rotation.
	o.Healthy()
	for range 2 {
		o.Postponed(rotation.NotAdopted, "not all have moved")
		o.Postponed(rotation.OtherInUse, "somebody is there")
		o.Failed("look", errors.New("an outage"))
		o.Postponed("", "")
		o.Healthy()
	}
	told("Warning Postponed", "Warning Failed", "Warning Failed")
	o.Postponed(rotation.OtherUnknown, "who knows")
	o.Postponed(rotation.OtherInUse, "somebody is there")
	r.Pending = nil
	o.Record(r, time.Unix(2000, 0))
	o.Postponed(rotation.NotAdopted, "not all have moved")
	told("Warning Postponed")
	r.OtherRetired = true
	o.Record(r, time.Unix(2000, 0))
	o.Postponed(rotation.OtherInUse, "somebody is there")
	told("Warning Postponed")

	// The slot whose password nobody knows is locked out, whatever the server would say.
	r.OtherRefused, r.Slots[tenant.B] = false, tenant.Credential{}
	o.Record(r, time.Unix(2000, 0))
	if served(t, o.Metrics)[`locked_out{login="inactive"}`] != "1" {
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

// TestSeries: dashboards and alerts ask for these series, and may rely on all of them from the beginning. Their labels hold
// nothing of a tenant.
func TestSeries(t *testing.T) {
	t.Parallel()
	answer := httptest.NewRecorder()
	NewObserver(nil).Metrics.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	var got []string
	for _, m := range regexp.MustCompile(`(?m)^(dbconnector_\S+) (.*)$`).FindAllStringSubmatch(answer.Body.String(), -1) {
		got = append(got, m[1])
		if m[2] != "0" {
			t.Errorf("%s begins with %s", m[1], m[2])
		}
	}
	for _, series := range got {
		// OpenMetrics names a counter without its suffix: then it would be one with the gauge.
		if family, ok := strings.CutSuffix(strings.Split(series, "{")[0], "_total"); ok && slices.ContainsFunc(got, func(s string) bool { return strings.Split(s, "{")[0] == family }) {
			t.Errorf("%s is a gauge and a counter", family)
		}
	}
	want := []string{
		`dbconnector_change_pending`,
		`dbconnector_consecutive_failures`,
		`dbconnector_credential_generation`,
		`dbconnector_credential_rotated_timestamp_seconds`,
		`dbconnector_failures_total{step="adopt"}`,
		`dbconnector_failures_total{step="apply"}`,
		`dbconnector_failures_total{step="commit"}`,
		`dbconnector_failures_total{step="doubt"}`,
		`dbconnector_failures_total{step="look"}`,
		`dbconnector_failures_total{step="project"}`,
		`dbconnector_failures_total{step="read"}`,
		`dbconnector_failures_total{step="stage"}`,
		`dbconnector_locked_out{login="active"}`,
		`dbconnector_locked_out{login="inactive"}`,
		`dbconnector_old_credential_valid`,
		`dbconnector_postponed{reason="InactiveSlotUnknown"}`,
		`dbconnector_postponed{reason="NotAdopted"}`,
		`dbconnector_postponed{reason="OldCredentialInUse"}`,
		`dbconnector_postponed{reason="RepairPending"}`,
		`dbconnector_postponements_total{reason="InactiveSlotUnknown"}`,
		`dbconnector_postponements_total{reason="NotAdopted"}`,
		`dbconnector_postponements_total{reason="OldCredentialInUse"}`,
		`dbconnector_postponements_total{reason="RepairPending"}`,
		`dbconnector_retirements_total`,
		`dbconnector_rotation_due_timestamp_seconds`,
		`dbconnector_rotations_total`,
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestEventsInTheBackground: they are sent in the background, each tried for a moment and once. At the end what is left is sent,
// and nobody waits for an API server that does not answer.
func TestEventsInTheBackground(t *testing.T) {
	arrived := make(chan string, 100)
	away := make(chan struct{})
	var hanging atomic.Int32
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var event struct{ Reason string }
		_ = json.NewDecoder(r.Body).Decode(&event)
		select {
		case <-away:
			hanging.Add(1)
			<-r.Context().Done() // an API server that does not answer
		default:
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","code":403,"reason":"Forbidden","message":"no"}`))
			arrived <- event.Reason
		}
	}))
	t.Cleanup(api.Close)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "x", "cluster": {"server": "`+api.URL+`"}}],
		"users": [{"name": "x", "user": {}}], "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}], "current-context": "x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", kubeconfig)
	client, err := kube.New("test")
	if err != nil {
		t.Fatal(err)
	}
	o := NewObserver(NewEvents(config.Common{Namespace: "ns", PodName: "pod"}, client, zap.NewNop()))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- o.events.Run(ctx) }()

	r := tenant.NewRecord("uid/v", "ns", "v", dbserver.Server{Engine: dbserver.Postgres, Host: "db.example", Port: 5432, SSLMode: dbserver.Require}, 10)
	o.Rotated(r)
	o.Retired(r) // that one was refused is no reason not to try the next
	for _, want := range []string{"Rotated", "Retired"} {
		if got := <-arrived; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}

	// What is left at the end.
	for range 8 {
		o.Retired(r)
	}
	if err := o.events.Run(ctx); err != nil {
		t.Error(err)
	}
	if n := len(arrived); n != 8 {
		t.Errorf("%d of the last 8 Events were sent", n)
	}
	close(away)
	for range cap(o.events.queue) {
		o.Rotated(r)
	}
	if err := o.events.Run(ctx); err != nil {
		t.Error(err)
	}
	if n := hanging.Load(); n > 1 { // the first one takes what time there is
		t.Errorf("%d Events were tried at the end on an API server that does not answer", n)
	}
}

// TestDeeds: the Event about a step that failed says in words what the step was to do; whatever its kind is.
func TestDeeds(t *testing.T) {
	t.Parallel()
	steps := []string{"read"}
	for kind := rotation.Project; kind <= rotation.Doubt; kind++ {
		steps = append(steps, kind.String())
	}
	if got := slices.Sorted(maps.Keys(deeds)); !slices.Equal(got, slices.Sorted(slices.Values(steps))) {
		t.Errorf("there are words for %q, and the steps that fail are %q", got, steps)
	}
	for _, step := range steps {
		o := NewObserver(queue())
		o.Failed(step, errors.New("no"))
		if said := (<-o.events.queue).message; !regexp.MustCompile(`^[a-z]+ing .* failed: no$`).MatchString(said) {
			t.Errorf("step %s: the Event says %q", step, said)
		}
	}
}
