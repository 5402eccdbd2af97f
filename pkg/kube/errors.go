// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"

	"dbconnector/pkg/fault"
)

// call describes a request for its error.
type call struct {
	doing                           string
	verb, resource, namespace, name string
	// hint is where to find the rule that a refused request lacks.
	hint string
}

// rule is the RBAC rule that allows the call.
func (c call) rule() string {
	name := ""
	if c.name != "" && c.verb != "create" { // a create cannot be bound to a name: it is not known when RBAC is asked
		name = fmt.Sprintf(" named %q", c.name)
	}
	return fmt.Sprintf("verb %q on resource %q%s in namespace %q", c.verb, c.resource, name, c.namespace)
}

// errForeign is what classify makes of an answer that is not what was asked for.
var errForeign = errors.New("not an answer of an API server")

// into takes the object out of an answer. rest.Result.Into takes an object of another kind, too, and leaves obj empty.
func into[T any](result rest.Result, obj *T) error {
	if err := result.Error(); err != nil {
		return err
	}
	answer, err := result.Get()
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return err
	}
	got, ok := any(answer).(*T)
	if err != nil || !ok { // its words are about client-go's sources, or repeat the answer
		return errForeign
	}
	*obj = *got
	return nil
}

// unpack takes an object's fields out of an answer that the scheme has no type for: metadata alone, or an apps/v1 object.
func unpack(result rest.Result, obj any) error {
	if err := result.Error(); err != nil {
		return err
	}
	answer, err := result.Raw()
	if err != nil || json.Unmarshal(answer, obj) != nil {
		return errForeign
	}
	return nil
}

// retry repeats do while its error is of class fault.Unavailable, until ctx ends. Then the error is the last that says
// what is wrong, rather than that time is up. tries is how often do ran.
func (c *Client) retry(ctx context.Context, call call, do func(context.Context) error) (tries int, err error) {
	backoff := newBackoff()
	var last error
	for {
		tries++
		err := classify(do(ctx), call)
		if !fault.Is(err, fault.Unavailable) {
			return tries, err
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		delay := step(&backoff, err)
		if c.waiting != nil && ctx.Err() == nil {
			c.waiting(err, tries, delay)
		}
		if !pause(ctx, delay) {
			return tries, last
		}
	}
}

// newBackoff waits 0.1 s to 0.2 s first and 5 s to 10 s at last: an API server that restarts is back in seconds, and many
// pods that wait for it must not come back together.
func newBackoff() wait.Backoff {
	return wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 10, Cap: 5 * time.Second}
}

// newConflictBackoff is shorter: a conflict means that the server is well and another writer has got on.
func newConflictBackoff() wait.Backoff {
	return wait.Backoff{Duration: 10 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 10, Cap: time.Second}
}

// longestDelay is the most that a server may ask for: its word comes over a network on which others may answer in its place.
const longestDelay = 30 * time.Second

// step is the pause before the next try, at least as long as the server asked for in err, up to longestDelay.
func step(backoff *wait.Backoff, err error) time.Duration {
	delay := backoff.Step()
	if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
		delay = max(delay, time.Duration(min(seconds, int(longestDelay/time.Second)))*time.Second)
	}
	return delay
}

// pause waits for the next try; false when ctx ended.
func pause(ctx context.Context, delay time.Duration) bool {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// classify gives an error of client-go its class, and its text the rule that was broken.
// Not found, conflict and already exists stay what they are, for their meaning depends on the call.
func classify(err error, call call) error {
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return nil
	case errors.As(err, &status):
		return classifyStatus(err, status.Status(), call)
	case isTLS(err):
		return fault.Translate(fault.Refused, err, "%s: the API server's identity cannot be verified: %s", call.doing, fault.Words(err.Error()))
	case errors.Is(err, errForeign):
		return fault.New(fault.Refused, "%s: what answers is not an API server, or not for this version of its API: check its address", call.doing)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fault.New(fault.Refused, "%s: what answers is not an API server: %w", call.doing, err)
	}
	var transport *url.Error
	if errors.As(err, &transport) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		// No network, no name, connection refused or reset, no answer in time, an answer that breaks off.
		return fault.New(fault.Unavailable, "%s: %w%s", call.doing, err, refusedHint(err))
	}
	return fmt.Errorf("%s: %w", call.doing, err)
}

// refusedHint says what a connection that was refused may mean in a pod (docs/failures.md F23). A mesh leads connections to its
// proxy whatever their address, so that a refusal by the API server, which is there before any pod, looks like the proxy's absence.
func refusedHint(err error) string {
	if hint := fault.Proxied(err); hint != "" || !errors.Is(err, syscall.ECONNREFUSED) {
		return hint
	}
	return ": where a mesh redirects this pod's traffic, its proxy may start after init: make it a native sidecar, or exclude the ports"
}

func classifyStatus(err error, status metav1.Status, call call) error {
	said := fault.Words(err.Error()) // an admission policy's prose may be as long as it likes
	if said == "" {
		said = strings.TrimSpace(fmt.Sprintf("%d %s", status.Code, status.Reason))
	}
	switch {
	case apierrors.IsNotFound(err) && apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse):
		// An API server says in its own words what is not there. To believe another one would be to give up a record.
		return fault.Translate(fault.Unavailable, err, "%s: 404, and not in an API server's words: a proxy may have answered", call.doing)
	case apierrors.IsNotFound(err), apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return fault.Translate(fault.Unknown, err, "%s: %s", call.doing, said)
	case apierrors.HasStatusCause(err, namespaceTerminating):
		return fault.New(fault.Refused, "%s: the namespace %q is being deleted", call.doing, call.namespace)
	case status.Code == http.StatusUnauthorized:
		return fault.Translate(fault.Refused, err, "%s: the API server does not accept this program's credential (in a pod, the ServiceAccount's token): %s",
			call.doing, said)
	case status.Code == http.StatusForbidden && strings.Contains(status.Message, "cannot "+call.verb):
		hint := ""
		if call.hint != "" {
			hint = " (" + call.hint + ")"
		}
		return fault.Translate(fault.Refused, err, "%s: an RBAC rule is missing, %s%s: %s", call.doing, call.rule(), hint, said)
	case status.Code == http.StatusForbidden: // a quota, an admission policy
		return fault.Translate(fault.Refused, err, "%s: the API server refuses it: %s", call.doing, said)
	case status.Code == http.StatusTooManyRequests, status.Code == http.StatusRequestTimeout, status.Code >= http.StatusInternalServerError:
		return fault.Translate(fault.Unavailable, err, "%s: %s", call.doing, said)
	}
	// 400, 413, 422: the server's words may repeat what was sent, which is a Secret. Which field and what kind of mistake
	// is enough.
	var causes []string
	if status.Details != nil {
		for _, cause := range status.Details.Causes {
			causes = append(causes, fmt.Sprintf("%s: %s", cause.Field, cause.Type))
		}
	}
	return fault.New(fault.Refused, "%s: the API server answers %d %s [%s]", call.doing, status.Code, fault.Words(string(status.Reason)),
		fault.Words(strings.Join(causes, ", ")))
}

func isTLS(err error) bool {
	var verification *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	var alert tls.AlertError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &verification) || errors.As(err, &header) || errors.As(err, &alert) ||
		errors.As(err, &authority) || errors.As(err, &host) || errors.As(err, &invalid)
}
