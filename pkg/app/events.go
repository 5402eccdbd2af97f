// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/config"
	"dbconnector/pkg/kube"
)

// Events records Events on the program's own pod. A nil Events records none: not every program is in a pod.
type Events struct {
	client *kube.Client
	pod    kube.Pod
	log    *zap.Logger
	queue  chan event
}

type event struct{ kind, reason, message string }

// parting is what all that is left to tell gets at the end. A pod of vCluster has 15 s (before 0.31
// 10 s), and a last step may take five of them.
const parting = time.Second

// NewEvents makes the Events of the pod that the settings name; nil without a pod or a client.
func NewEvents(cfg config.Common, client *kube.Client, log *zap.Logger) *Events {
	if client == nil || cfg.PodName == "" {
		return nil
	}
	return &Events{client: client, pod: kube.Pod{Namespace: cfg.Namespace, Name: cfg.PodName, UID: cfg.PodUID}, log: log, queue: make(chan event, 16)}
}

// Record records an Event. It tries once: the log has it, too.
func (e *Events) Record(ctx context.Context, kind, reason, message string) {
	if e == nil {
		return
	}
	if err := e.client.Event(ctx, e.pod, kind, reason, message); err != nil {
		e.log.Debug("could not record an event (continuing)", zap.String("error", err.Error()))
	}
}

// Send leaves an Event to Run, and drops it where too many wait.
func (e *Events) Send(kind, reason, message string) {
	if e == nil {
		return
	}
	select {
	case e.queue <- event{kind, reason, message}:
	default:
	}
}

// Run records in the background what was left to it, until ctx ends, which is no error, and then what came before: nothing else
// would tell of it.
func (e *Events) Run(ctx context.Context) error {
	if e == nil {
		return nil
	}
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(parting, cancel) })()
	for {
		select {
		case ev := <-e.queue:
			e.Record(sending, ev.kind, ev.reason, ev.message)
		case <-ctx.Done():
			for len(e.queue) > 0 && sending.Err() == nil {
				ev := <-e.queue
				e.Record(sending, ev.kind, ev.reason, ev.message)
			}
			return nil
		}
	}
}
