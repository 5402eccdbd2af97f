// SPDX-License-Identifier: Apache-2.0

// Package report tells what a rotation does: by metrics and by Events.
package report

import (
	"time"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/health"
	"dbconnector/pkg/kube"
	"dbconnector/pkg/rotation"
	"dbconnector/pkg/tenant"
)

// Observer turns what happens in a rotation into metrics and Events. It is for one goroutine.
type Observer struct {
	// Metrics are those that it keeps.
	Metrics *health.Metrics
	tell    func(kind, reason, message string) // of an Event
	failing bool
	phase   phase
	told    map[rotation.Reason]bool // in this phase
}

// phase is a part of a rotation: up to the commit, or from there to the retirement.
type phase struct {
	generation int64
	rotatedAt  int64
	retired    bool
}

var _ rotation.Observer = (*Observer)(nil)

var reasons = []rotation.Reason{rotation.OtherInUse, rotation.LoginUnderWay, rotation.NotAdopted, rotation.OtherUnknown, rotation.RepairPending}

// failedRead is the one failure that is no step's.
const failedRead = "read"

// deeds say in words what a step that failed was to do.
var deeds = map[string]string{
	failedRead:                "reading the record",
	rotation.Project.String(): "writing the hand-over",
	rotation.Look.String():    "checking the state of the rotation",
	rotation.Adopt.String():   "asking the control planes to adopt the new password",
	rotation.Stage.String():   "writing a new password into the record",
	rotation.Apply.String():   "setting the new password",
	rotation.Commit.String():  "completing the change of the password",
	rotation.Doubt.String():   "noting that the server refuses a password",
}

// NewObserver makes an observer with all series of the metrics from the beginning. tell is given the Events; it must not block.
func NewObserver(tell func(kind, reason, message string)) *Observer {
	m := health.New()
	for _, why := range reasons {
		m.Postponements.WithLabelValues(string(why))
		m.Postponed.WithLabelValues(string(why))
	}
	for step := range deeds {
		m.Failures.WithLabelValues(step)
	}
	return &Observer{Metrics: m, tell: tell, told: map[rotation.Reason]bool{}}
}

// Record is rotation.Observer's.
func (o *Observer) Record(r *tenant.Record, due time.Time) {
	if now := (phase{r.Generation, r.RotatedAt.Unix(), r.OtherRetired}); now != o.phase {
		o.phase, o.told = now, map[rotation.Reason]bool{}
	}
	m := o.Metrics
	m.Generation.Set(float64(r.Generation))
	m.RotatedAt.Set(unix(r, r.RotatedAt))
	m.DueAt.Set(unix(r, due))
	m.ChangePending.Set(boolean(r.Pending != nil))
	m.OldCredentialValid.Set(boolean(!r.OtherRetired))
	m.LockedOut.WithLabelValues(health.Inactive).Set(boolean(r.OtherRefused || r.Slots[r.Active.Other()].Password == ""))
}

// Rotated is rotation.Observer's.
func (o *Observer) Rotated(r *tenant.Record) {
	o.Metrics.Rotations.Inc()
	o.tell(kube.Normal, "Rotated", "the password was rotated: the active login is now "+r.Login(r.Active).User)
}

// Retired is rotation.Observer's.
func (o *Observer) Retired(r *tenant.Record) {
	o.Metrics.Retirements.Inc()
	o.tell(kube.Normal, "Retired", "the password before the last rotation is dead: login "+r.Login(r.Active.Other()).User)
}

// Postponed is rotation.Observer's.
func (o *Observer) Postponed(why rotation.Reason, detail string) {
	for _, reason := range reasons {
		o.Metrics.Postponed.WithLabelValues(string(reason)).Set(0)
	}
	if why == "" {
		return
	}
	o.Metrics.Postponements.WithLabelValues(string(why)).Inc()
	o.Metrics.Postponed.WithLabelValues(string(why)).Set(1)
	// A control plane that moves is seen now here, now there, and an outage in between is no news of it either.
	class := why
	if why == rotation.NotAdopted {
		class = rotation.OtherInUse
	}
	if !o.told[class] {
		o.told[class] = true
		o.tell(kube.Warning, "Postponed", string(why)+": "+detail)
	}
}

// Failed is rotation.Observer's.
func (o *Observer) Failed(step string, err error) {
	o.Metrics.Failures.WithLabelValues(step).Inc()
	o.Metrics.Failing.Inc()
	if fault.Is(err, fault.WrongPassword) { // of the other login the record tells
		o.Metrics.LockedOut.WithLabelValues(health.Active).Set(1)
	}
	if !o.failing { // one Event for each change of state, not for each try
		o.failing = true
		o.tell(kube.Warning, "Failed", deeds[step]+" failed: "+err.Error())
	}
}

// Healthy is rotation.Observer's.
func (o *Observer) Healthy() {
	o.Metrics.Failing.Set(0)
	o.Metrics.LockedOut.WithLabelValues(health.Active).Set(0)
	o.failing = false
}

// unix is a time of a record; 0 while init is still at work on it, when there is none.
func unix(r *tenant.Record, t time.Time) float64 {
	if !r.Provisioned() {
		return 0
	}
	return float64(t.Unix())
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
