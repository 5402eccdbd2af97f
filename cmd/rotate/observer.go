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
}

var _ rotation.Observer = (*observer)(nil)

// The values of the label login.
const (
	active   = "active"
	inactive = "inactive"
)

func (o *observer) Record(r *tenant.Record, due time.Time) {
	m := o.metrics
	m.Generation.Set(float64(r.Generation))
	m.RotatedAt.Set(float64(r.RotatedAt.Unix()))
	m.DueAt.Set(float64(due.Unix()))
	m.Pending.Set(boolean(r.Pending != nil))
	m.Unretired.Set(boolean(!r.OtherRetired))
	m.LockedOut.WithLabelValues(inactive).Set(boolean(r.OtherRefused || r.Slots[r.Active.Other()].Password == ""))
}

func (o *observer) Rotated(r *tenant.Record) {
	o.metrics.Rotations.Inc()
	o.event(kube.Normal, "Rotated", "the password was rotated: the active login is now "+r.Login(r.Active).User)
}

func (o *observer) Retired(r *tenant.Record) {
	o.metrics.Retired.Inc()
	o.event(kube.Normal, "Retired", "the password before the last rotation is dead: login "+r.Login(r.Active.Other()).User)
}

func (o *observer) Postponed(why rotation.Reason, detail string) {
	o.metrics.Waiting.Reset()
	if why == "" {
		return
	}
	o.metrics.Postponed.WithLabelValues(string(why)).Inc()
	o.metrics.Waiting.WithLabelValues(string(why)).Set(1)
	o.event(kube.Warning, "Postponed", string(why)+": "+detail)
}

func (o *observer) Failed(step string, err error) {
	o.metrics.Failures.WithLabelValues(step).Inc()
	o.metrics.Failing.Inc()
	if fault.Is(err, fault.WrongPassword) { // of the other login the record tells
		o.metrics.LockedOut.WithLabelValues(active).Set(1)
	}
	if !o.failing { // one Event for each change of state, not for each try
		o.failing = true
		o.event(kube.Warning, "Failed", step+": "+err.Error())
	}
}

func (o *observer) Healthy() {
	o.metrics.Failing.Set(0)
	o.metrics.LockedOut.WithLabelValues(active).Set(0)
	o.failing = false
}

func (o *observer) event(kind, reason, message string) {
	if o.events != nil {
		o.events.send(kind, reason, message)
	}
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

// run sends until ctx ends, which is no error.
func (e *events) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev := <-e.queue:
			if err := e.client.Event(ctx, e.pod, ev.kind, ev.reason, ev.message); err != nil {
				e.log.Debug("could not record an event (continuing)", zap.String("error", err.Error()))
			}
		}
	}
}
