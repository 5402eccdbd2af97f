// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"dbconnector/test/bed"
)

// The annotations of the pod template, by hand: they are promised.
const generationAnnotation = "dbconnector/generation"

// writer is a client that writes all the time, and asks again when it is not answered.
type writer struct {
	v *VCluster

	mu    sync.Mutex
	done  int     // so many objects are acknowledged: object-0, object-1, ...
	other []error // answers other than "yes"
	cuts  int     // how often there was no answer
}

func (w *writer) run(ctx context.Context) {
	pace := time.NewTicker(100 * time.Millisecond) // not to be the load itself
	defer pace.Stop()
	for n := 0; ; {
		err := write(ctx, w.v, fmt.Sprintf("object-%d", n))
		if ctx.Err() != nil {
			return
		}
		again := err != nil && strings.Contains(err.Error(), "AlreadyExists") // the answer was lost, or we left at the wrong moment
		w.mu.Lock()
		switch {
		case err == nil || again:
			n++
			w.done = n
		case turnedAway(err) || strings.Contains(err.Error(), "requesting: ") || strings.Contains(err.Error(), "reading answer: "):
			w.cuts++
		default:
			w.other = append(w.other, err)
		}
		w.mu.Unlock()
		select {
		case <-pace.C:
		case <-ctx.Done():
			return
		}
	}
}

func (w *writer) acknowledged() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done
}

// goesOn waits until ten objects more are acknowledged than there were.
func (w *writer) goesOn(t *testing.T, were int) {
	t.Helper()
	bed.Eventually(t, patience, func(context.Context) error {
		if now := w.acknowledged(); now < were+10 {
			return fmt.Errorf("%d objects more", now-were)
		}
		return nil
	})
}

// lostNothing makes sure, when the client has ended, that it met no answer but yes and that all it wrote is there.
func (w *writer) lostNothing(t *testing.T) {
	t.Helper()
	t.Logf("%d objects, %d requests without an answer", w.done, w.cuts)
	for _, err := range w.other {
		t.Errorf("the vCluster answers: %v", err)
	}
	if w.cuts > w.done { // a few at each pod that ends; not while there is no control plane
		t.Error("most requests had no answer")
	}
	// A replica learns of what another one has written when its kine next looks, about once a second.
	bed.Eventually(t, patience, func(ctx context.Context) error {
		var list corev1.ConfigMapList
		if err := w.v.Do(ctx, http.MethodGet, objects, nil, &list); err != nil {
			return err
		}
		there := map[string]bool{}
		for _, object := range list.Items {
			there[object.Name] = true
		}
		var gone []string
		for n := range w.done {
			if name := fmt.Sprintf("object-%d", n); !there[name] {
				gone = append(gone, name)
			}
		}
		if len(gone) > 0 {
			return fmt.Errorf("acknowledged, and gone: %q", gone)
		}
		return nil
	})
}

// TestRotationLosesNothing starts three replicas at once, and rotates the password while a client writes through the
// Service. Each rotation is one rollout by the real controller, after which the password before opens nothing; and all
// that was acknowledged is there.
func TestRotationLosesNothing(t *testing.T) {
	t.Parallel()
	lap := stopwatch(t)
	c, server := newConnector(t, "replicas")
	v := install(t, c, "licensed", Names{Release: "team-b", Namespace: "replicas", Connector: "replicas"}, func(values *Values) {
		values.SetEnv("DBCONNECTOR_ROTATION_PERIOD", "15s")
		values.SetEnv("DBCONNECTOR_GRACE", "1s")
	})
	lap("installed")
	answers(t, v)
	lap("first replica answers")

	ctx, stop := context.WithCancel(t.Context())
	w := &writer{v: v}
	var client sync.WaitGroup
	client.Go(func() { w.run(ctx) })
	defer client.Wait()
	defer stop()

	var first []corev1.Pod
	bed.Eventually(t, patience, func(ctx context.Context) error {
		deployment, err := v.Deployment(ctx)
		if err == nil && deployment.Status.AvailableReplicas < 3 {
			err = fmt.Errorf("%d replicas are available", deployment.Status.AvailableReplicas)
		}
		return err
	})
	first, err := v.Pods(t.Context())
	require.NoError(t, err)
	before := record(t, v)
	old := before.Login(before.Active)
	lap(fmt.Sprintf("three replicas, generation %d", before.Generation))

	// Until all replicas use the next password and none uses this one.
	after := before
	bed.Eventually(t, patience, func(ctx context.Context) error {
		if after, err = v.Record(ctx); err != nil {
			return err
		}
		if past := after.Generation - before.Generation; past < 1 || past == 1 && !after.OtherRetired {
			return fmt.Errorf("generation %d, the one before is retired: %v", after.Generation, after.OtherRetired)
		}
		return nil
	})
	pods, err := v.Pods(t.Context())
	require.NoError(t, err)
	count := w.acknowledged()
	lap(fmt.Sprintf("generation %d, the one before retired", after.Generation))

	for _, pod := range alive(pods) {
		if g, err := strconv.ParseInt(pod.Annotations[generationAnnotation], 10, 64); err != nil || g <= before.Generation {
			t.Errorf("pod %s was not replaced: generation %q", pod.Name, pod.Annotations[generationAnnotation])
		}
		for _, was := range first {
			if was.Name == pod.Name && was.Annotations[generationAnnotation] != pod.Annotations[generationAnnotation] {
				t.Errorf("pod %s has another generation than when it was made", pod.Name)
			}
		}
		for _, name := range []string{"syncer", "dbconnector-init", "dbconnector-rotate"} {
			if s := containerOf(&pod, name); s.RestartCount > 0 {
				t.Errorf("pod %s: container %s was restarted %d times: %s", pod.Name, name, s.RestartCount, state(s.LastTerminationState))
			}
		}
	}
	bed.Eventually(t, patience, func(ctx context.Context) error {
		d, err := v.Deployment(ctx)
		if err != nil {
			return err
		}
		if d.Status.ObservedGeneration != d.Generation {
			return errors.New("the controller has not seen the Deployment's last change")
		}
		// The revision is the controller's count of rollouts, the first installation among them.
		if got, want := d.Annotations["deployment.kubernetes.io/revision"], d.Spec.Template.Annotations[generationAnnotation]; got != want {
			return bed.Permanent(fmt.Errorf("generation %s came with rollout %s", want, got))
		}
		return nil
	})
	if err := enters(t.Context(), server, old, old.Database); err == nil || !strings.Contains(err.Error(), "28P01") {
		t.Errorf("the password before: %v", err)
	}
	bed.Eventually(t, patience, func(ctx context.Context) error { // the next rotation may be under way already
		r, err := v.Record(ctx)
		if err != nil {
			return err
		}
		return enters(ctx, server, r.Login(r.Active), r.Database)
	})

	// The client goes on a little with the new one.
	w.goesOn(t, count)
	stop()
	client.Wait()
	w.lostNothing(t)
	lap("all objects are there")
}
