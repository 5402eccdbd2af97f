// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// postponed is the metric for an old credential that is still in use.
const postponed = `dbconnector_postponed{reason="OldCredentialInUse"}`

// The sidecars' settings: rotate as soon as the last rotation is over; and do not rotate any more.
var (
	hasty  = []string{"ROTATION_PERIOD=2s", "GRACE=1s"}
	steady = []string{"ROTATION_PERIOD=720h", "GRACE=1s"}
)

// TestRotationWithRollout rotates under the load of a control plane of three replicas whose pods are replaced after each
// rotation, the sidecars with them: no request fails for the credential, nothing that was acknowledged is lost, watches see
// every event, there is one rollout for each rotation, and old passwords are dead (B3, B46).
func TestRotationWithRollout(t *testing.T) {
	t.Parallel()
	const rotations = 3
	for _, s := range settings[:3] {
		t.Run(string(s.engine)+"-"+s.version, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t, s)
			require.NoError(t, p.createWorkload(t.Context()))
			load := startTraffic(t, p.api)
			load.progress(t, 20)

			for _, r := range p.pods {
				require.NoError(t, r.rotate(t.Context(), append([]string{"ADOPT=rollout"}, hasty...)...))
			}
			// Only now: it may end a sidecar at once.
			ctx, cancel := context.WithCancel(t.Context())
			rolled, controller := make(chan int64, 100), make(chan error, 1)
			go func() {
				controller <- p.control(ctx, func(_ context.Context, now statefulSet) ([]string, error) {
					// Both begin at 1, so that they agree as long as each rotation changes the template once.
					if now.requested() != now.Metadata.Generation {
						return nil, fmt.Errorf("%d is on the template", now.requested())
					}
					if now.requested() > rotations { // generations count from 1
						return append([]string{"ADOPT=rollout"}, steady...), nil
					}
					return append([]string{"ADOPT=rollout"}, hasty...), nil
				}, rolled)
				close(controller)
			}()
			t.Cleanup(func() { // before the pods are cleaned up
				cancel()
				for range controller { // until it is closed
				}
			})
			p.until(t, controller, "three rotations and retirements", func(r *tenant.Record) bool {
				return r.Generation > rotations && r.OtherRetired && r.Pending == nil
			})
			load.progress(t, 20)
			cancel()
			require.NoError(t, <-controller)

			p.checkMoved(t, rotations+1)
			object, err := p.statefulSet(t.Context())
			require.NoError(t, err)
			if object.Metadata.Generation != rotations+1 || object.requested() != rotations+1 {
				t.Errorf("%d rotations: the StatefulSet is at generation %d, with %d on the template", rotations, object.Metadata.Generation, object.requested())
			}
			close(rolled)
			var got []int64
			for generation := range rolled {
				got = append(got, generation)
			}
			if !slices.Equal(got, []int64{2, 3, 4}) {
				t.Errorf("the rollouts were for the generations %v, want 2, 3, 4", got)
			}
			want := map[int64]int{2: 1, 3: 1, 4: 1}
			if got := p.lines("rotated"); !maps.Equal(got, want) {
				t.Errorf("the replicas say so often that they rotated: %v, want %v", got, want)
			}
			if got := p.lines("retired"); !maps.Equal(got, want) {
				t.Errorf("the replicas say so often that they retired the credential before a generation: %v, want %v", got, want)
			}
			load.check(t)
		})
	}
}

// TestRotationWithoutRollout rotates under the load of a control plane whose pods are not replaced: not one request fails, and
// the old credential, which all kines go on using, stays valid until the last pod has been restarted for a reason of its own
// (B3, B46).
func TestRotationWithoutRollout(t *testing.T) {
	t.Parallel()
	for _, s := range settings[:3] {
		t.Run(string(s.engine)+"-"+s.version, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t, s)
			load := startTraffic(t, p.api)
			load.progress(t, 20)
			for _, r := range p.pods {
				require.NoError(t, r.rotate(t.Context(), hasty...))
			}
			p.until(t, nil, "a rotation", func(r *tenant.Record) bool { return r.Generation > 1 })
			for _, r := range p.pods {
				r.waits(t)
			}
			load.progress(t, 100)
			if n := load.failed(); n > 0 {
				t.Errorf("%d requests failed during a rotation that restarted nothing", n)
			}
			p.checkWaiting(t)

			for i, r := range p.pods {
				require.NoError(t, r.restart(t.Context(), steady...))
				if i < replicas-1 {
					r.waits(t) // a new process: it has looked since
					p.checkWaiting(t)
				}
			}
			p.until(t, nil, "the retirement", func(r *tenant.Record) bool { return r.OtherRetired && r.Pending == nil })
			for i, r := range p.pods {
				bed.Eventually(t, patience, func(ctx context.Context) error {
					metrics, err := r.sidecar.Metrics(ctx)
					if err == nil && metrics[postponed] != 0 {
						err = fmt.Errorf("replica %d still says that the old credential is in use", i)
					}
					return err
				})
			}
			load.progress(t, 20)
			p.checkMoved(t, 2)
			load.check(t)
		})
	}
}

// waits waits until the sidecar says that it waits for the clients that use the old credential.
func (r *pod) waits(t *testing.T) {
	t.Helper()
	bed.Eventually(t, patience, func(ctx context.Context) error {
		metrics, err := r.sidecar.Metrics(ctx)
		if err == nil && metrics[postponed] != 1 {
			err = errors.New("the sidecar does not say that the old credential is in use")
		}
		return err
	})
}

// checkWaiting is for as long as a kine is on the credential before the first rotation.
func (p *plane) checkWaiting(t *testing.T) {
	t.Helper()
	if record := p.record(t); record.Generation != 2 || record.OtherRetired || record.Pending != nil {
		t.Errorf("with the old credential in use, the record is of generation %d, retired %t, pending %t", record.Generation,
			record.OtherRetired, record.Pending != nil)
	}
	assert.NoError(t, p.login(t.Context(), p.pods[replicas-1].dsns[0]), "the old credential, which is in use")
}

// until waits for a record that has a property. It gives up when the controller, if there is one, does.
func (p *plane) until(t *testing.T, controller <-chan error, what string, has func(*tenant.Record) bool) {
	t.Helper()
	bed.Eventually(t, 4*patience, func(ctx context.Context) error {
		select {
		case err := <-controller:
			return bed.Permanent(fmt.Errorf("the controller ended: %w", err))
		default:
		}
		record, err := p.pods[0].Record(ctx)
		if err == nil && !has(record) {
			err = fmt.Errorf("waiting for %s: generation %d, retired %t, pending %t", what, record.Generation, record.OtherRetired, record.Pending != nil)
		}
		return err
	})
}
