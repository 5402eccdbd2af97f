// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// patience is how long a follower waits for what.
type patience struct {
	// watch is how long one watch is asked for. The API server would end it after 30 to 60 minutes; each end costs two
	// requests, a read and a new watch.
	watch time.Duration
	// silence is how long a watch may say nothing after it has sent a bookmark, which the API server does every minute. A
	// network that swallows packets ends no watch, and requests of HTTP/1.1 are not asked whether they are still there.
	silence time.Duration
	// start is how long a watch may take to begin.
	start time.Duration
	// outage is after how long in vain the reader is told, at first; later it is told less and less often.
	outage, longOutage time.Duration
}

var usualPatience = patience{
	watch: 55 * time.Minute, silence: 5 * time.Minute, start: requestTimeout, outage: 30 * time.Second, longOutage: 10 * time.Minute,
}

// newRefusedBackoff is for a watch that is refused until an operator acts: it is asked for again, but a thousand sidecars that
// lack a rule must not be a load.
func newRefusedBackoff() wait.Backoff {
	return wait.Backoff{Duration: time.Second, Factor: 2, Jitter: 1, Steps: 10, Cap: 2 * time.Minute}
}

// Follow sends the record as it is now and whenever it changes, until ctx ends; of records that were not received, the latest. It
// watches the one Secret: while nothing changes, that is a few requests an hour.
//
// What goes wrong is sent, too, once for each time that following was begun again. Afterwards the record is sent only when it
// is known to be followed again, or when it has changed: where reading is allowed and watching is not, no operator should think
// again and again that all is well now.
func (s *Records) Follow(ctx context.Context) <-chan tenant.News {
	out := make(chan tenant.News, 1)
	go func() {
		defer close(out)
		f := follower{Records: s, out: out, outage: s.patience.outage}
		for backoff, refused := newBackoff(), newRefusedBackoff(); ; {
			began := time.Now()
			err := f.follow(ctx)
			if ctx.Err() != nil {
				return
			}
			if f.troubled = err != nil; f.troubled {
				// Behind a record that was not received yet, and not in its place: it will not be sent again.
				select {
				case out <- tenant.News{Err: err}:
				case <-ctx.Done():
					return
				}
			}
			if time.Since(began) > time.Minute && f.outage == s.patience.outage {
				backoff, refused = newBackoff(), newRefusedBackoff() // it went well for a while
			}
			next := &backoff
			if fault.Is(err, fault.Refused) {
				next = &refused
			}
			if !pause(ctx, step(next, err)) {
				return
			}
		}
	}()
	return out
}

// follower is the state of one Follow, and for one goroutine.
type follower struct {
	*Records
	out      chan tenant.News
	troubled bool   // the last thing sent is an error of following
	last     string // the resourceVersion that was sent last; empty for no Secret
	outage   time.Duration
}

// latest replaces what was not taken yet. Only the one goroutine of Follow sends.
func latest(out chan tenant.News, u tenant.News) {
	select {
	case <-out:
	default:
	}
	out <- u
}

// follow reads the Secret and then watches it from there on. It returns nil when the server ends the watch in the ordinary
// way, and after anything that it does not understand: the next read has the truth.
func (f *follower) follow(ctx context.Context) error {
	list, err := f.list(ctx)
	if err != nil {
		return err
	}
	var now *apiSecret
	version := ""
	if len(list.Items) > 0 {
		now = &list.Items[0]
		version = now.ResourceVersion
	}
	if !f.troubled || version != f.last {
		if err := f.send(ctx, now); err != nil {
			return err
		}
		f.troubled = false
	}

	limit := f.patience
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	call := f.call("watching", "watch")
	hung := time.AfterFunc(limit.start, func() { cancel(errSilence) })
	defer hung.Stop()
	seconds := int64(limit.watch / time.Second)
	w, err := f.client.watcher.Get().Namespace(f.namespace).Resource("secrets").
		VersionedParams(&metav1.ListOptions{
			FieldSelector: f.selector(), ResourceVersion: list.ResourceVersion, Watch: true,
			TimeoutSeconds: &seconds, AllowWatchBookmarks: true,
		}, metav1.ParameterCodec).MaxRetries(0).Watch(ctx)
	switch {
	case errors.Is(context.Cause(ctx), errSilence):
		return fault.New(fault.Unavailable, "%s: %w", call.doing, errSilence)
	case err != nil:
		return classify(err, call)
	}
	// Somewhat longer than the server was asked for: then it is not the server that ends it.
	hung.Reset(limit.watch + limit.watch/10)
	defer w.Stop()
	if f.troubled {
		if err := f.send(ctx, now); err != nil {
			return err
		}
	}
	bookmarks := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, ok := <-w.ResultChan():
			if !ok {
				return nil
			}
			if bookmarks = bookmarks || event.Type == watch.Bookmark; bookmarks {
				hung.Reset(limit.silence)
			}
			secret, isSecret := event.Object.(*apiSecret)
			switch {
			case event.Type == watch.Bookmark:
			case event.Type == watch.Error:
				err := apierrors.FromObject(event.Object)
				if apierrors.IsGone(err) || apierrors.IsResourceExpired(err) { // what was read is too old to go on from
					return nil
				}
				return classify(err, call)
			case !isSecret:
				return classify(errForeign, call)
			case event.Type == watch.Deleted:
				secret = nil
				fallthrough
			default:
				if err := f.send(ctx, secret); err != nil {
					return err
				}
			}
		}
	}
}

// list reads the Secret. A list and not a get: it has a resourceVersion to watch from even where the Secret is not there.
func (f *follower) list(ctx context.Context) (*apiSecretList, error) {
	ctx, cancel := context.WithTimeout(ctx, f.outage)
	defer cancel()
	list := &apiSecretList{}
	_, err := f.client.retry(ctx, f.call("reading", "list"), func(ctx context.Context) error {
		return into(f.client.rest.Get().Namespace(f.namespace).Resource("secrets").Param("fieldSelector", f.selector()).MaxRetries(0).Do(ctx), list)
	})
	f.outage = min(2*f.outage, f.patience.longOutage)
	if err == nil {
		f.outage = f.patience.outage
	}
	return list, err
}

// errSilence is why a watch is given up that does not end by itself.
var errSilence = errors.New("no answer")

func (s *Records) selector() string {
	return fields.OneTermEqualSelector(metav1.ObjectNameField, s.name).String()
}

// send decodes a Secret. A record that is damaged, or a copy, is an error, and never no record. Its own error is why neither
// can be told now.
func (f *follower) send(ctx context.Context, secret *apiSecret) error {
	r, _, err := f.decode(ctx, secret)
	if err != nil && !fault.Is(err, fault.Refused) {
		return err
	}
	f.see(secret)
	f.last = ""
	if secret != nil {
		f.last = secret.ResourceVersion
	}
	latest(f.out, tenant.News{Record: r, Err: err})
	return nil
}
