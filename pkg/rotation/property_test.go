// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var defaultSchedules = 2000

var (
	schedules = flag.Int("schedules", 0, "how many schedules TestSchedules runs; 0 for as many as make a short test")
	seedFlag  = flag.Uint64("seed", 0, "run this one schedule only, and print its journal")
)

// TestSchedules runs one to four replicas of init, sidecar and control plane through schedules that a seed decides: kills at
// any call, before its effect or after, calls that fail, stall or come too late, outages, restarts, a scaling down, rejected
// passwords, replicas in different modes. At every change of a password the world checks that no client that uses it is cut off, at every write of the
// record that the active credential logs in, that there is one pending change at most, and that what is retired is dead, with
// all that an attacker has begun in time (S5). When the faults end, rotations have to go on: due, rotated, adopted, retired.
func TestSchedules(t *testing.T) {
	t.Parallel()
	if *seedFlag != 0 {
		schedule(t, *seedFlag, map[string]int{})
		return
	}
	if *schedules == 0 {
		*schedules = defaultSchedules
	}
	const shards = 4
	var mu sync.Mutex
	points := map[string]int{}
	t.Run("shards", func(t *testing.T) {
		for shard := range uint64(shards) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				mine := map[string]int{}
				for i := range uint64(*schedules) / shards {
					if schedule(t, 1+i*shards+shard, mine); t.Failed() {
						break
					}
				}
				mu.Lock()
				defer mu.Unlock()
				for p, n := range mine {
					points[p] += n
				}
			})
		}
	})
	for _, call := range []string{"login", "open session", "count sessions", "set password", "write record", "publish", "workload status", "request rollout"} {
		for _, when := range []string{"before ", "after "} {
			if points[when+call] == 0 && *schedules >= 1000 {
				t.Errorf("no replica was ever killed %s%s: the schedules are incomplete", when, call)
			}
		}
	}
}

func schedule(t *testing.T, seed uint64, points map[string]int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 1<<32))
		w := newWorld(t, Policy{Period: time.Minute, Grace: 10 * time.Second})
		mode := rng.IntN(3)
		w.rolls, w.mixed = mode == 0, mode == 1
		w.points, w.silent = points, *seedFlag == 0
		w.nat = rng.IntN(3) == 0
		w.faults = odds{kill: rng.IntN(60), fail: rng.IntN(60), stall: rng.IntN(40), late: rng.IntN(300), reject: rng.IntN(200)}
		replicas := 1 + rng.IntN(4)
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		lives := make([]context.CancelFunc, replicas)
		for id := range replicas {
			p := w.pod(seed, id)
			inside, stop := context.WithCancel(ctx)
			lives[id] = stop
			group.Go(func() { p.live(inside) })
		}
		group.Go(func() { w.roll(ctx) })
		besieged, peace := context.WithCancel(ctx)
		group.Go(func() { w.attack(besieged, rand.New(rand.NewPCG(seed, 1<<33))) })

		for range 8 {
			wait(ctx, moment(rng, time.Minute))
			switch rng.IntN(6) {
			case 0, 1: // a server that restarts, or that is gone for a while
				w.outage(true)
				wait(ctx, moment(rng, []time.Duration{time.Second, 10 * time.Second, 90 * time.Second}[rng.IntN(3)]))
				w.outage(false)
			case 2:
				w.api(true)
				wait(ctx, moment(rng, time.Minute))
				w.api(false)
			case 3:
				if !w.rolls { // there the pods' restarts are counted
					select {
					case w.pods[rng.IntN(replicas)].restart <- struct{}{}:
					default:
					}
				}
			case 4:
				if replicas > 1 && !w.rolls && !w.mixed {
					replicas--
					lives[replicas]()
				}
			case 5:
				w.byHand()
			}
		}

		w.mu.Lock()
		w.note("the faults are over")
		w.faults = odds{}
		peace()
		from := int64(0)
		if w.store.Record != nil {
			from = w.store.Record.Generation
		}
		w.mu.Unlock()
		// A restart for a fault that only init can repair, and the time for three rotations, the longest wait between two looks
		// included.
		for _, p := range w.pods[:replicas] {
			wait(ctx, time.Minute)
			select {
			case p.restart <- struct{}{}:
			default:
			}
		}
		done := false
		for began := time.Now(); !done && time.Since(began) < time.Hour; {
			wait(ctx, 5*time.Second)
			if rng.IntN(100) == 0 { // a fault that only init can repair is noticed late at times
				select {
				case w.pods[0].restart <- struct{}{}:
				default:
				}
			}
			w.mu.Lock()
			done = w.store.Record != nil && w.store.Record.Generation >= from+3 // so two were retired
			w.mu.Unlock()
		}
		cancel()
		group.Wait()
		if !done {
			t.Errorf("no three rotations within an hour after the faults: generation %d at their end, now %+v", from, w.store.Record)
		}
		if t.Failed() {
			t.Logf("journal:\n%s", strings.Join(w.trace, "\n"))
			t.Fatalf("go test ./pkg/rotation -run TestSchedules -seed %d", seed)
		}
		time.Sleep(2 * time.Minute) //nolint:forbidigo // the bubble's: statements that are late, sessions that linger
	})
}

// byHand: an operator changes the password of the slot that no client uses.
func (w *world) byHand() {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.store.Record
	if r == nil || !r.Provisioned() || !r.OtherRetired || r.Pending != nil {
		return
	}
	w.note("by hand: the password of %s", r.Active.Other())
	w.server.Users[names.User(r.Active.Other())] = "by hand"
}

func (w *world) api(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("the API server is down: %t", down)
	w.store.Down = down
	w.store.Changed()
}

// TestKill is promise 3, point by point: a sidecar killed at any call of a rotation, before or after its effect, and the one
// that is started in its place killed at any call as well. The points are counted, not listed; with -v they are.
func TestKill(t *testing.T) {
	t.Parallel()
	for _, rollout := range []bool{false, true} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("rollout %t, after the effect %t", rollout, after), func(t *testing.T) {
				t.Parallel()
				points := map[string]int{}
				for first := 1; kill(t, rollout, after, points, first); first++ {
					for second := 1; kill(t, rollout, after, points, first, second); second++ {
						if t.Failed() {
							t.Fatalf("killed at call %d, and its successor at call %d", first, second)
						}
					}
				}
				for _, p := range slices.Sorted(maps.Keys(points)) {
					t.Logf("%s: %d times", p, points[p])
				}
				if len(points) < 6 {
					t.Errorf("only %d points", len(points))
				}
			})
		}
	}
}

// kill runs one rotation from its being due to the death of the old credential. It says whether all calls were reached at
// which a replica was to be killed.
func kill(t *testing.T, rollout, after bool, points map[string]int, plan ...int) (reached bool) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Policy{Period: time.Minute, Grace: 5 * time.Second})
		w.rolls = rollout
		w.points, w.plan, w.effect, w.lifetime = points, plan, after, 10*time.Second
		before := 0
		for _, n := range points {
			before += n
		}
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		p := w.pod(1, 0)
		group.Go(func() { p.live(ctx) })
		group.Go(func() { w.roll(ctx) })
		done := false
		for began := time.Now(); !done && time.Since(began) < 20*time.Minute; {
			wait(ctx, time.Second)
			w.mu.Lock()
			done = w.store.Record != nil && (w.store.Record.Generation > 2 || w.store.Record.Generation > 1 && w.store.Record.OtherRetired)
			w.mu.Unlock()
		}
		cancel()
		group.Wait()
		if !done {
			t.Errorf("no rotation came to its end: %+v\n%s", w.store.Record, strings.Join(w.trace, "\n"))
		}
		for _, n := range points {
			before -= n
		}
		reached = -before == len(plan)
		time.Sleep(time.Minute) //nolint:forbidigo // the bubble's: sessions that linger
	})
	return reached && !t.Failed()
}
