// SPDX-License-Identifier: Apache-2.0

package report

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

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/health"
	"dbconnector/pkg/rotation"
	"dbconnector/pkg/tenant"
)

type event struct{ kind, reason, message string }

// queue keeps Events.
type queue chan event

func (q queue) tell(kind, reason, message string) { q <- event{kind, reason, message} }

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

// TestObserver: the observer turns news into metrics, which show the state, and into Events, which tell each change once (B2).
func TestObserver(t *testing.T) {
	t.Parallel()
	events := make(queue, 16)
	o := NewObserver(events.tell)
	said := ""
	told := func(want ...string) {
		t.Helper()
		var got []string
		for len(events) > 0 {
			e := <-events
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
	o.Postponed(rotation.OtherInUse, "a client is there")
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

	// A client that moves is seen now on one slot, now on the other: one Event for all of it. That init is needed is another
	// reason, and so is the next rotation.
	o.Healthy()
	for range 2 {
		o.Postponed(rotation.NotAdopted, "not all have moved")
		o.Postponed(rotation.OtherInUse, "a client is there")
		o.Failed("look", errors.New("an outage"))
		o.Postponed("", "")
		o.Healthy()
	}
	told("Warning Postponed", "Warning Failed", "Warning Failed")
	o.Postponed(rotation.OtherUnknown, "the password is unknown")
	o.Postponed(rotation.OtherInUse, "a client is there")
	r.Pending = nil
	o.Record(r, time.Unix(2000, 0))
	o.Postponed(rotation.NotAdopted, "not all have moved")
	told("Warning Postponed")
	r.OtherRetired = true
	o.Record(r, time.Unix(2000, 0))
	o.Postponed(rotation.OtherInUse, "a client is there")
	told("Warning Postponed")

	// The slot whose password is unknown is locked out, whatever the server would say.
	r.OtherRefused, r.Slots[tenant.B] = false, tenant.Credential{}
	o.Record(r, time.Unix(2000, 0))
	if served(t, o.Metrics)[`locked_out{login="inactive"}`] != "1" {
		t.Error("a slot whose password is unknown counts as one that can be used")
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
		if family, ok := strings.CutSuffix(strings.Split(series, "{")[0], "_total"); ok &&
			slices.ContainsFunc(got, func(s string) bool { return strings.Split(s, "{")[0] == family }) {
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
		`dbconnector_postponed{reason="LoginUnderWay"}`,
		`dbconnector_postponed{reason="NotAdopted"}`,
		`dbconnector_postponed{reason="OldCredentialInUse"}`,
		`dbconnector_postponed{reason="RepairPending"}`,
		`dbconnector_postponements_total{reason="InactiveSlotUnknown"}`,
		`dbconnector_postponements_total{reason="LoginUnderWay"}`,
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
		events := make(queue, 1)
		o := NewObserver(events.tell)
		o.Failed(step, errors.New("no"))
		if said := (<-events).message; !regexp.MustCompile(`^[a-z]+ing .* failed: no$`).MatchString(said) {
			t.Errorf("step %s: the Event says %q", step, said)
		}
	}
}
