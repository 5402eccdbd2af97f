// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/config"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// inMode are the settings of a pod. In mode none a rotation waits for the operator, so the sidecars of that mode begin none.
func inMode(mode string) []string {
	period := "4s"
	if mode == config.AdoptNone {
		period = "720h"
	}
	return []string{"ADOPT=" + mode, "ROTATION_PERIOD=" + period, "GRACE=2s"}
}

// TestMovesBetweenModes: the operator moves a control plane of three replicas under load from mode to mode, by the variable and a rolling
// update. The password is rotated while the replicas are in two modes, and again when the update is over. No request fails, each
// replica's password works as long as its kine is on it, and all passwords but the last are dead in the end.
func TestMovesBetweenModes(t *testing.T) {
	t.Parallel()
	postgres, mariadb := settings[0], settings[2]
	// All six moves are here. A tenant begins with none.
	long, short := []string{config.AdoptSocket, config.AdoptRollout, config.AdoptSocket, config.AdoptNone}, []string{config.AdoptRollout, config.AdoptNone}
	for name, c := range map[string]struct {
		setting
		modes []string
	}{
		"postgres": {postgres, long}, "mariadb": {mariadb, long}, "rollout": {postgres, short},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, c.setting)
			for _, mode := range c.modes {
				f.move(t, mode)
			}
			f.finish(t)
			f.check(t, len(c.modes))
		})
	}
}

// fleet is a control plane whose replicas may be in two modes.
type fleet struct {
	*plane
	load       *traffic
	began      time.Time
	controller <-chan error // nil when it has ended
	stop       context.CancelFunc
	logins     map[int64]tenant.Login // the active one of each generation

	// The controller's own.
	target  string // the mode of the template
	rotated bool   // the password was rotated since the replicas have been in two modes
	mixed   int    // moves of which that is true
}

func newFleet(t *testing.T, s setting) *fleet {
	t.Helper()
	f := &fleet{
		plane: newPlane(t, s, inMode(config.AdoptNone)...), began: time.Now(), target: config.AdoptNone,
		logins: map[int64]tenant.Login{},
	}
	require.NoError(t, f.createWorkload(t.Context(), inMode(config.AdoptNone)...))
	f.load = startTraffic(t, f.api)
	f.load.progress(t, 20)
	var ctx context.Context
	ctx, f.stop = context.WithCancel(t.Context())
	controller := make(chan error, 1)
	f.controller = controller
	go func() {
		controller <- f.control(ctx, f.next, make(chan int64, 100))
		close(controller)
	}()
	t.Cleanup(func() { // before the pods are cleaned up
		f.stop()
		for range controller { // until it is closed
		}
	})
	return f
}

// mode is the pod's.
func (r *pod) mode() string {
	for _, s := range r.Settings {
		if mode, ok := strings.CutPrefix(s, "DBCONNECTOR_ADOPT="); ok {
			return mode
		}
	}
	return config.AdoptNone
}

// next is asked before a pod is replaced. All pods must be well then. The first time that the replicas are in two modes, it waits for a
// rotation.
func (f *fleet) next(ctx context.Context, now statefulSet) ([]string, error) {
	list := now.settings()
	mode := strings.TrimPrefix(list[0], "ADOPT=")
	if mode != f.target {
		f.target, f.rotated = mode, false
	}
	moved := 0
	for _, r := range f.pods {
		if r.mode() == mode {
			moved++
		}
	}
	if moved > 0 && moved < replicas && !f.rotated {
		if err := f.rotation(ctx); err != nil {
			return nil, fmt.Errorf("with %d of %d replicas in mode %s: %w", moved, replicas, mode, err)
		}
		f.rotated = true
		f.mixed++
	}
	return list, f.well(ctx)
}

// rotation waits until the password is on its way to another. A replica that is on the old one holds up the retirement: a sidecar has to look
// for it, and to say so.
func (f *fleet) rotation(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	before, err := f.pods[0].Record(ctx)
	if err != nil {
		return err
	}
	return bed.Wait(ctx, func(ctx context.Context) error {
		now, err := f.pods[0].Record(ctx)
		switch {
		case err != nil:
			return err
		case now.Generation == before.Generation && now.OtherRetired:
			return errors.New("there is no rotation")
		case len(f.behind(now)) == 0:
			return nil
		case now.OtherRetired:
			return bed.Permanent(errors.New("the old password was retired, and a replica is on it"))
		}
		for _, r := range f.pods {
			if metrics, err := r.sidecar.Metrics(ctx); err == nil && metrics[postponed] == 1 {
				return nil
			}
		}
		return errors.New("a replica is on the old password, and no sidecar says so")
	})
}

// behind are the pods whose kine is on another password than the active one.
func (f *fleet) behind(r *tenant.Record) (list []*pod) {
	active := r.Login(r.Active)
	for _, p := range f.pods {
		if p.mode() != config.AdoptSocket && !strings.Contains(p.dsn, "//"+active.User+":"+active.Password.Reveal()+"@") {
			list = append(list, p)
		}
	}
	return list
}

// well says whether each kine runs, and its password, where it has one, works. A server that is too busy to answer refuses nothing.
func (f *fleet) well(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var errs []error
	for i, r := range f.pods {
		select {
		case <-r.kine.Done():
			errs = append(errs, fmt.Errorf("kine of replica %d has ended", i))
		default:
		}
		if r.mode() == config.AdoptSocket {
			continue
		}
		err := bed.Wait(ctx, func(ctx context.Context) error {
			err := f.login(ctx, r.dsn)
			if err != nil && authentication.MatchString(err.Error()) {
				err = bed.Permanent(err)
			}
			return err
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("replica %d in mode %s: %w", i, r.mode(), err))
		}
	}
	return errors.Join(errs...)
}

// move changes the mode, waits until all pods have it, and then, where the control plane adopts by itself, for a rotation from its beginning to
// its end.
func (f *fleet) move(t *testing.T, mode string) {
	t.Helper()
	require.NoError(t, f.change(t.Context(), inMode(mode)))
	var record *tenant.Record
	f.eventually(t, "all pods in mode "+mode, func(ctx context.Context, r *tenant.Record) bool {
		record = r
		now, err := f.statefulSet(ctx)
		return err == nil && now.rolledOut() && now.settings()[0] == "ADOPT="+mode
	})
	t.Logf("%s: generation %d, all pods in mode %s", time.Since(f.began).Round(time.Second), record.Generation, mode)
	if mode != config.AdoptNone {
		next := record.Generation + 1
		f.eventually(t, "a rotation in mode "+mode, func(_ context.Context, r *tenant.Record) bool {
			return r.Generation > next || r.Generation == next && r.OtherRetired
		})
		t.Logf("%s: generation %d, rotated in mode %s", time.Since(f.began).Round(time.Second), next, mode)
	}
	f.load.progress(t, 5)
}

// eventually is until, and takes note of passwords.
func (f *fleet) eventually(t *testing.T, what string, has func(context.Context, *tenant.Record) bool) {
	t.Helper()
	f.until(t, f.controller, what, func(r *tenant.Record) bool {
		f.logins[r.Generation] = r.Login(r.Active)
		return has(t.Context(), r)
	})
}

// finish ends the controller, and replaces the pods that were in mode none before the last rotation: until then their password is valid.
func (f *fleet) finish(t *testing.T) {
	t.Helper()
	f.stop()
	require.NoError(t, <-f.controller)
	f.controller = nil
	for _, r := range f.behind(f.record(t)) {
		assert.False(t, f.record(t).OtherRetired, "a replica is on the old password")
		require.NoError(t, f.well(t.Context()))
		require.NoError(t, r.restart(t.Context(), inMode(config.AdoptNone)...))
	}
	f.eventually(t, "the old login is retired", func(_ context.Context, r *tenant.Record) bool { return r.OtherRetired && r.Pending == nil })
}

// check is for the end, after so many moves.
func (f *fleet) check(t *testing.T, moves int) {
	t.Helper()
	last := f.record(t)
	require.NoError(t, f.well(t.Context()))
	assert.Empty(t, f.behind(last), "replicas that are not on the active password")
	assert.False(t, last.OtherRefused, "the record has a password for the other login that the server refuses")
	assert.Equal(t, moves, f.mixed, "moves with a rotation in the middle")
	assert.Len(t, f.logins, int(last.Generation), "generations that were seen")
	for generation, login := range f.logins {
		if generation != last.Generation {
			assert.NoError(t, rig.CheckRefused(t.Context(), last, login), "the password of generation %d", generation)
		}
	}
	f.load.check(t)
	assert.Zero(t, f.load.failed(), "requests failed")
	for i := range f.load.watchers {
		assert.Zero(t, f.load.watchers[i].resumed, "a watch was interrupted")
	}
	for i, r := range f.pods {
		if line := authentication.FindString(r.kine.Log()); line != "" {
			t.Errorf("kine of replica %d was refused: %s", i, line)
		}
	}
	t.Logf("%d moves, %d rotations, in %s", moves, last.Generation-1, time.Since(f.began).Round(time.Second))
}
