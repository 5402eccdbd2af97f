// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/health"
	"dbconnector/pkg/kube"
	"dbconnector/pkg/rotation"
	"dbconnector/pkg/tenant"
)

// observer turns what happens into metrics and Events. It is called by the loop alone.
type observer struct {
	metrics *health.Metrics
	events  *events // nil for none
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

var _ rotation.Observer = (*observer)(nil)

var reasons = []rotation.Reason{rotation.OtherInUse, rotation.NotAdopted, rotation.OtherUnknown, rotation.RepairPending}

// failedRead is the one failure that is no step's.
const failedRead = "read"

// deeds say in words what a step that failed was to do.
var deeds = map[string]string{
	failedRead:                "reading the record",
	rotation.Project.String(): "writing the hand-over",
	rotation.Look.String():    "checking the state of the rotation",
	rotation.Rollout.String(): "asking for a rollout",
	rotation.Stage.String():   "writing a new password into the record",
	rotation.Apply.String():   "setting the new password",
	rotation.Commit.String():  "completing the change of the password",
	rotation.Doubt.String():   "noting that the server refuses a password",
}

func newObserver() *observer {
	m := health.New()
	for _, why := range reasons {
		m.Postponements.WithLabelValues(string(why))
		m.Postponed.WithLabelValues(string(why))
	}
	for step := range deeds {
		m.Failures.WithLabelValues(step)
	}
	return &observer{metrics: m, told: map[rotation.Reason]bool{}}
}

func (o *observer) Record(r *tenant.Record, due time.Time) {
	if now := (phase{r.Generation, r.RotatedAt.Unix(), r.OtherRetired}); now != o.phase {
		o.phase, o.told = now, map[rotation.Reason]bool{}
	}
	m := o.metrics
	m.Generation.Set(float64(r.Generation))
	m.RotatedAt.Set(unix(r, r.RotatedAt))
	m.DueAt.Set(unix(r, due))
	m.ChangePending.Set(boolean(r.Pending != nil))
	m.OldCredentialValid.Set(boolean(!r.OtherRetired))
	m.LockedOut.WithLabelValues(health.Inactive).Set(boolean(r.OtherRefused || r.Slots[r.Active.Other()].Password == ""))
}

func (o *observer) Rotated(r *tenant.Record) {
	o.metrics.Rotations.Inc()
	o.event(kube.Normal, "Rotated", "the password was rotated: the active login is now "+r.Login(r.Active).User)
}

func (o *observer) Retired(r *tenant.Record) {
	o.metrics.Retirements.Inc()
	o.event(kube.Normal, "Retired", "the password before the last rotation is dead: login "+r.Login(r.Active.Other()).User)
}

func (o *observer) Postponed(why rotation.Reason, detail string) {
	for _, reason := range reasons {
		o.metrics.Postponed.WithLabelValues(string(reason)).Set(0)
	}
	if why == "" {
		return
	}
	o.metrics.Postponements.WithLabelValues(string(why)).Inc()
	o.metrics.Postponed.WithLabelValues(string(why)).Set(1)
	// A control plane that moves is seen now here, now there, and an outage in between is no news of it either.
	class := why
	if why == rotation.NotAdopted {
		class = rotation.OtherInUse
	}
	if !o.told[class] {
		o.told[class] = true
		o.event(kube.Warning, "Postponed", string(why)+": "+detail)
	}
}

func (o *observer) Failed(step string, err error) {
	o.metrics.Failures.WithLabelValues(step).Inc()
	o.metrics.Failing.Inc()
	if fault.Is(err, fault.WrongPassword) { // of the other login the record tells
		o.metrics.LockedOut.WithLabelValues(health.Active).Set(1)
	}
	if !o.failing { // one Event for each change of state, not for each try
		o.failing = true
		o.event(kube.Warning, "Failed", deeds[step]+" failed: "+err.Error())
	}
}

func (o *observer) Healthy() {
	o.metrics.Failing.Set(0)
	o.metrics.LockedOut.WithLabelValues(health.Active).Set(0)
	o.failing = false
}

func (o *observer) event(kind, reason, message string) {
	if o.events != nil {
		o.events.send(kind, reason, message)
	}
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

// events sends Events in the background: nothing waits for them.
type events struct {
	client *kube.Client
	pod    kube.Pod
	log    *zap.Logger
	queue  chan event
}

type event struct{ kind, reason, message string }

// parting is what all that is left to tell gets at the end. A pod of vCluster has 15 s (before 0.31
// 10 s), and a last step may take five of them.
const parting = time.Second

func newEvents(client *kube.Client, pod kube.Pod, log *zap.Logger) *events {
	return &events{client: client, pod: pod, log: log, queue: make(chan event, 16)}
}

// send drops an Event where too many wait: the log has it, too.
func (e *events) send(kind, reason, message string) {
	select {
	case e.queue <- event{kind, reason, message}:
	default:
	}
}

// run sends until ctx ends, which is no error, and then what came before: nobody else would tell of it.
func (e *events) run(ctx context.Context) error {
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(parting, cancel) })()
	for {
		select {
		case ev := <-e.queue:
			e.deliver(sending, ev)
		case <-ctx.Done():
			for len(e.queue) > 0 && sending.Err() == nil {
				e.deliver(sending, <-e.queue)
			}
			return nil
		}
	}
}

func (e *events) deliver(ctx context.Context, ev event) {
	if err := e.client.Event(ctx, e.pod, ev.kind, ev.reason, ev.message); err != nil {
		e.log.Debug("could not record an event (continuing)", zap.String("error", err.Error()))
	}
}
