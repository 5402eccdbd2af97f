// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/rotation"
	"dbconnector/pkg/statedir"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

const day = 24 * time.Hour

// wall is a time at which the wall clock is ahead, while the monotonic clock goes on as before. A process sees this
// after an admin has set the system's clock. Package time has no function for that: Add moves both. A Time begins with
// its seconds, above 30 bits of nanoseconds, and a flag above those.
func wall(now time.Time, ahead time.Duration) time.Time {
	*(*uint64)(unsafe.Pointer(&now)) += uint64(ahead/time.Second) << 30 // a negative value wraps as it should
	return now
}

// jumpy is a sidecar inside of the test, because no process can have a clock of its own.
type jumpy struct {
	plane *rig.Tenant
	ahead atomic.Int64 // of its clock, in nanoseconds
	stop  context.CancelFunc
	done  chan error

	mu        sync.Mutex
	published int
	told      []string
}

func (j *jumpy) now() time.Time { return wall(time.Now(), time.Duration(j.ahead.Load())) }

func (j *jumpy) tell(what string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.told = append(j.told, what)
}

func (j *jumpy) heard(what string) (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, t := range j.told {
		if t == what {
			n++
		}
	}
	return n
}

func (j *jumpy) Record(*tenant.Record, time.Time)        {}
func (j *jumpy) Rotated(*tenant.Record)                  { j.tell("rotated") }
func (j *jumpy) Retired(*tenant.Record)                  { j.tell("retired") }
func (j *jumpy) Postponed(why rotation.Reason, _ string) { j.tell("postponed " + string(why)) }
func (j *jumpy) Failed(step string, err error)           { j.tell("failed " + step + ": " + err.Error()) }
func (j *jumpy) Healthy()                                {}

// start runs it until it is halted, or the test ends.
func (j *jumpy) start(tb testing.TB, p rotation.Policy) {
	tb.Helper()
	store, err := statedir.Open(j.plane.State)
	require.NoError(tb, err, "opening the record")
	r := recordOf(tb, j.plane)
	job := rotation.Rotation{
		Policy: p, Namespace: r.Namespace, VCluster: r.VCluster, TenantUID: r.UID, Store: store, Observer: j,
		Attempt: 20 * time.Second, Log: zap.NewNop(), Now: j.now,
		Publish: func(r *tenant.Record) error {
			j.mu.Lock()
			defer j.mu.Unlock()
			j.published++
			return nil
		},
		Replaces: func(*tenant.Record) bool { return false },
	}
	ctx, cancel := context.WithCancel(context.Background())
	j.stop, j.done = cancel, make(chan error, 1)
	go func() {
		j.done <- rotation.Run(ctx, job, func(s dbserver.Server) rotation.Server { return open.Engine(s, "dbconnector-test") })
	}()
	tb.Cleanup(func() { j.halt(tb) })
}

func (j *jumpy) halt(tb testing.TB) {
	tb.Helper()
	if j.stop == nil {
		return
	}
	j.stop()
	assert.NoError(tb, <-j.done, "the loop ended")
	j.stop = nil
}

// jump sets the clock and makes the sidecar look at it, because a changed record ends any wait. The sidecar then
// publishes first. So when it publishes for the second time, it has finished the steps after the first time.
func (j *jumpy) jump(tb testing.TB, ahead time.Duration) {
	tb.Helper()
	j.ahead.Store(int64(ahead))
	for range 2 {
		j.mu.Lock()
		before := j.published
		j.mu.Unlock()
		rewrite(tb, j.plane, func(r *tenant.Record) { r.ConnectionLimit++ })
		bed.Eventually(tb, rig.Patience, func(context.Context) error {
			j.mu.Lock()
			defer j.mu.Unlock()
			if j.published == before {
				return errors.New("the sidecar has not looked at the record")
			}
			return nil
		})
	}
}

// TestClockJumps: a clock that jumps ahead by days makes a rotation early, and one that jumps back delays none for
// longer than its period. Neither turns one rotation into two, and neither retires a password before its grace has
// passed and all clients have moved.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	if now := time.Now(); wall(now, -day).Sub(now) != 0 || wall(now, -day).Unix() != now.Add(-day).Unix() || wall(now, 9*day).Unix() != now.Add(9*day).Unix() {
		t.Fatal("the layout of a Time is not the one that this test expects")
	}
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		server := rig.Server(t, engine, version)
		plane := rig.NewTenant(t, server, "")
		// The test writes the hand-over itself, because only the record matters here.
		dsn, err := plane.DSN()
		require.NoError(t, err, "reading the hand-over")
		use := func(r *tenant.Record, slot tenant.Slot) (leave func()) {
			t.Helper()
			db, err := rig.OpenDSN(rig.WithLogin(dsn, r.Login(slot)), server.CA)
			require.NoError(t, err, "opening a DSN")
			require.NoError(t, db.PingContext(t.Context()), "using a DSN")
			t.Cleanup(func() { _ = db.Close() })
			return func() { _ = db.Close() }
		}
		first := recordOf(t, plane)
		leave := use(first, first.Active)
		is := func(what string, generation int64, retired bool) *tenant.Record {
			t.Helper()
			r := recordOf(t, plane)
			if r.Generation != generation || r.OtherRetired != retired || r.Pending != nil {
				t.Fatalf(
					"%s: generation %d, retired %t, pending %t; want generation %d, retired %t", what, r.Generation, r.OtherRetired,
					r.Pending != nil, generation, retired,
				)
			}
			return r
		}
		sidecar := &jumpy{plane: plane}
		policy := rotation.Policy{Period: 2 * time.Hour, Grace: time.Hour}
		sidecar.start(t, policy)

		sidecar.jump(t, 0)
		is("at rest", 1, true)
		sidecar.jump(t, 3*day)
		rig.Until(t, plane, "generation 2", generation(2))
		for _, ahead := range []time.Duration{3 * day, 4 * day, -10 * day, 0} {
			sidecar.jump(t, ahead)
			is(fmt.Sprint("not retired, with the clock ahead by ", ahead), 2, false)
		}
		if n := sidecar.heard("postponed OldCredentialInUse"); n != 0 {
			t.Error("the grace was cut short")
		}

		// Another sidecar, with a clock that has always been wrong, cannot know how long the grace has lasted. So only a
		// client that uses the old password keeps it alive.
		sidecar.halt(t)
		policy.Grace = time.Second
		sidecar.start(t, policy)
		sidecar.jump(t, -10*day)
		bed.Eventually(t, rig.Patience, func(context.Context) error {
			if sidecar.heard("postponed OldCredentialInUse") == 0 {
				return errors.New("the sidecar does not look for users of the old one")
			}
			return nil
		})
		sidecar.jump(t, 20*day)
		r := is("in use", 2, false)
		accepts(t, r)
		leave()
		use(r, r.Active)
		sidecar.jump(t, 3*day)
		rig.Until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired })
		dead(t, first, first.Active)
		is("after all that", 2, true)

		// The record claims a time three days ahead. A sidecar with a right clock sees that at first sight, and does not wait
		// for a pod that lives as long as the period (S12).
		sidecar.halt(t)
		sidecar.ahead.Store(0)
		sidecar.start(t, policy)
		r = rig.Until(t, plane, "generation 3", generation(3))
		if time.Until(r.RotatedAt) > day {
			t.Errorf("rotated at %s", r.RotatedAt)
		}
		accepts(t, r)
		if got := sidecar.heard("rotated"); got != 2 {
			t.Errorf("rotated %d times, want 2", got)
		}
		sidecar.mu.Lock()
		defer sidecar.mu.Unlock()
		for _, what := range sidecar.told {
			if len(what) > 6 && what[:6] == "failed" {
				t.Error(what)
			}
		}
	})
}
