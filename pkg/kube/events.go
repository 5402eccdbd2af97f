// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"dbconnector/pkg/fault"
)

// Pod is what an Event is about.
type Pod struct{ Namespace, Name, UID string }

// The types of Events.
const (
	Normal  = "Normal"
	Warning = "Warning"
)

const (
	// maxMessage is the longest message of an Event that the API server takes.
	maxMessage = 1024
	// eventTimeout is short: a program does not wait for an Event.
	eventTimeout = 3 * time.Second
)

// Event records an Event about a pod. Where one of this pod already says the same, it is recorded as one more occurrence of that
// one, so that a container that is started again and again makes one Event with a count. It tries once and not for long: an
// Event is for people, and what it tells is in the log as well. The error is for a debug line.
//
// The name of an Event is a hash of what it says: the API server's refusal of a second one tells that there is a first.
func (c *Client) Event(ctx context.Context, pod Pod, eventType, reason, message string) error {
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	now := metav1.Now()
	event := &apiEvent{
		InvolvedObject: objectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID),
		},
		Type: eventType, Reason: reason, Message: fault.Cut(message, maxMessage),
		Source: eventSource{Component: c.component}, ReportingController: c.component, ReportingInstance: pod.Name,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}
	create := func(suffix string) error {
		// A pod's name may be as long as an Event's.
		event.ObjectMeta = metav1.ObjectMeta{Name: strings.TrimRight(fault.Cut(pod.Name, 200), "-.") + "." + suffix, Namespace: pod.Namespace}
		return c.rest.Post().Namespace(pod.Namespace).Resource("events").MaxRetries(0).Body(event).Do(ctx).Error()
	}
	err := create(fingerprint(c.component, pod.UID, eventType, reason, numbers.ReplaceAllString(message, "0")))
	if apierrors.IsAlreadyExists(err) {
		if c.repeat(ctx, event) == nil {
			return nil
		}
		// The right to patch is missing (an older Role), or the API server has just dropped the Event: a new one, under another
		// name. That stays few: init tells two a run, the sidecar one for each change of state.
		err = create(strings.ToLower(rand.Text()[:16]))
	}
	return classify(err, call{doing: "recording an event", verb: "create", resource: "events", namespace: pod.Namespace})
}

// numbers are what differs between two occurrences of the same: times, durations, the port of our end of a connection.
var numbers = regexp.MustCompile(`[0-9]+`)

// fingerprint is what makes two Events one.
func fingerprint(said ...string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", said))
	return hex.EncodeToString(sum[:8])
}

// repeat counts an Event that is there once more, and gives it the words of this time. It needs no right to get the Event: the
// answer to a patch is the whole object.
func (c *Client) repeat(ctx context.Context, event *apiEvent) error {
	patch := func(fields map[string]any) (count int32, err error) {
		body, err := json.Marshal(fields)
		if err != nil {
			return 0, err
		}
		var found apiEvent
		err = into(c.rest.Patch(types.MergePatchType).Namespace(event.Namespace).Resource("events").Name(event.Name).MaxRetries(0).Body(body).Do(ctx), &found)
		return found.Count, err
	}
	count, err := patch(map[string]any{"message": event.Message, "lastTimestamp": event.LastTimestamp})
	if err == nil {
		_, err = patch(map[string]any{"count": count + 1})
	}
	return err
}
