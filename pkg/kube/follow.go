// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// watchTime is how long one watch is asked for. The API server would end it after 30 to 60 minutes; each end costs two
// requests, a read and a new watch.
const watchTime = 55 * time.Minute

// Follow sends the record as it is now and whenever it changes, until ctx ends; of records that nobody took, the latest. It
// watches the one Secret: while nothing changes, that is a few requests an hour.
func (s *Records) Follow(ctx context.Context) <-chan tenant.News {
	out := make(chan tenant.News, 1)
	go func() {
		defer close(out)
		for backoff := newBackoff(); ; {
			began := time.Now()
			err := s.watch(ctx, out)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				latest(out, tenant.News{Err: err})
			}
			if time.Since(began) > time.Minute {
				backoff = newBackoff() // it went well for a while
			}
			if !pause(ctx, step(&backoff, err)) {
				return
			}
		}
	}()
	return out
}

// latest replaces what was not taken yet. Only the one goroutine of Follow sends.
func latest(out chan tenant.News, u tenant.News) {
	select {
	case <-out:
	default:
	}
	out <- u
}

// watch reads the Secret and then watches it from there on. It returns nil when the server ends the watch in the ordinary
// way, and after anything that it does not understand: the next read has the truth.
func (s *Records) watch(ctx context.Context, out chan tenant.News) error {
	// A list and not a get: it has a resourceVersion to watch from even where the Secret is not there.
	var list corev1.SecretList
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, s.name).String()
	call := s.call("reading", "list")
	_, err := s.client.retry(ctx, call, func(ctx context.Context) error {
		return s.client.rest.Get().Namespace(s.namespace).Resource("secrets").Param("fieldSelector", selector).MaxRetries(0).Do(ctx).Into(&list)
	})
	if err != nil {
		return err
	}
	var now *corev1.Secret
	if len(list.Items) > 0 {
		now = &list.Items[0]
	}
	s.send(out, now)

	call = s.call("watching", "watch")
	seconds := int64(watchTime / time.Second)
	w, err := s.client.watcher.Get().Namespace(s.namespace).Resource("secrets").
		VersionedParams(&metav1.ListOptions{
			FieldSelector: selector, ResourceVersion: list.ResourceVersion, Watch: true,
			TimeoutSeconds: &seconds, AllowWatchBookmarks: true,
		}, metav1.ParameterCodec).MaxRetries(0).Watch(ctx)
	if err != nil {
		return classify(err, call)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, ok := <-w.ResultChan():
			if !ok {
				return nil
			}
			secret, isSecret := event.Object.(*corev1.Secret)
			switch {
			case event.Type == watch.Bookmark:
			case event.Type == watch.Error || !isSecret: // too old a resourceVersion, most of the time
				return fault.New(fault.Unavailable, "watching the tenant's record, %s: the API server ended the watch", s.source())
			case event.Type == watch.Deleted:
				s.send(out, nil)
			default:
				s.send(out, secret)
			}
		}
	}
}

// send decodes a Secret. A record that is damaged is an error, and never no record.
func (s *Records) send(out chan tenant.News, secret *corev1.Secret) {
	s.see(secret)
	r, _, err := s.decode(secret)
	latest(out, tenant.News{Record: r, Err: err})
}
