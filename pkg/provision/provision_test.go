// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/engine/memory"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// The logic against a world in memory, for what real servers do not do on demand: a kill before or after any call, a lost
// compare-and-swap, any order of two runs. What servers really answer is tested in test/engines.

const uid = "unit/test"

var (
	names     = tenant.NamesOf(uid)
	here      = dbserver.Server{Engine: dbserver.Postgres, Host: "here", Port: 5432, SSLMode: dbserver.Disable}
	elsewhere = dbserver.Server{Engine: dbserver.Postgres, Host: "elsewhere", Port: 5432, SSLMode: dbserver.Disable}
	errKilled = errors.New("killed")
)

// world is a server, a store and an output directory.
type world struct {
	t      *testing.T
	mu     sync.Mutex
	server *memory.Server
	store  *memory.Store
	handed *tenant.Record

	// A run is killed at its n-th call: before the call has its effect, or after. From then on nothing it calls has one.
	calls, killAt int
	after, dead   bool
	// conflicts are how many writes of the record lose against a rival who changes nothing.
	conflicts int
	// rival writes the record before the n-th write of the run, as a sidecar that rotates does: without the server's lock.
	rival   func(*tenant.Record)
	rivalAt int
	// turn is called before each call, without the mutex: a test of interleavings waits there.
	turn func()
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, server: memory.NewServer(), store: &memory.Store{}}
	w.server.Learns = w.learns
	w.store.Writes = w.writes
	w.store.Loses = func(memory.Link) bool {
		if w.rivalAt--; w.rivalAt == 0 && w.store.Record != nil {
			w.rival(w.store.Record)
		}
		w.conflicts--
		return w.conflicts >= 0
	}
	return w
}

// do is one call to the world outside.
func (w *world) do(effect func() error) error {
	if w.turn != nil {
		w.turn()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return errKilled
	}
	w.calls++
	if w.calls == w.killAt && !w.after {
		w.dead = true
		return errKilled
	}
	err := effect()
	if w.calls == w.killAt {
		w.dead = true
		return errKilled
	}
	return err
}

// The world is the link of every run to the server and the store.

func (w *world) Call(_ context.Context, _ string, _ *memory.Session, effect func() error) error {
	return w.do(effect)
}

func (w *world) Do(effect func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	effect()
}

func (w *world) Wait(ctx context.Context, _ string) bool { return ctx.Err() == nil }

func (w *world) Address() string { return "" }

// revive makes the world what it is for the next run after a kill: the server has noticed that the session is gone.
func (w *world) revive() {
	w.calls, w.killAt, w.dead = 0, 0, false
	for _, s := range slices.Clone(w.server.Sessions) {
		if s.Owner != nil {
			s.End()
		}
	}
}

// use has pods hold so many sessions of a login.
func (w *world) use(user string, n int) {
	for _, s := range slices.Clone(w.server.Sessions) {
		if s.User == user {
			s.End()
		}
	}
	for range n {
		w.server.Open(nil, user, "")
	}
}

// database is the tenant's; nil where it is not there.
func (w *world) database() *memory.Database { return w.server.Databases[names.Database] }

func (w *world) drop() { delete(w.server.Databases, names.Database) }

// writes looks at every write of the record.
func (w *world) writes(_ memory.Link, old, next *tenant.Record) {
	if _, err := next.Encode(); err != nil {
		w.t.Errorf("a record that could not be read back: %v", err)
	}
	if old != nil && old.Pending != nil && next.Pending != nil && old.Pending.Password != next.Pending.Password {
		w.t.Error("a second pending change")
	}
	if old != nil && next.Generation < old.Generation {
		w.t.Error("the generation went back")
	}
}

// learns is the server being told a password. The record must have it (intent first), or say that it is not known.
func (w *world) learns(_ memory.Link, user string, p dbserver.Password) {
	slot := tenant.Slot(strings.TrimPrefix(user, names.Database))
	switch r := w.store.Record; {
	case p == "":
		w.t.Error("an empty password")
	case r == nil:
		w.t.Error("the server learns a password without a record")
	case r.Slots[slot].Password != p && r.Slots[slot].Password != "" && (r.Pending == nil || r.Pending.Password != p):
		w.t.Error("the server learns a password that the record does not hold")
	}
	if w.server.Used(user) > 0 {
		w.t.Errorf("the password of login %s was changed while it is in use", user)
	}
}

// late is a context that ends a moment after its deadline, as every context does.
type late struct {
	context.Context
	deadline time.Time
}

func (l late) Deadline() (time.Time, bool) { return l.deadline, true }

// run is one run of init.
func (w *world) run(ctx context.Context, change ...func(*Init)) (Result, error) {
	p := Init{
		Namespace: "ns", VCluster: "vc", UID: func(context.Context) (string, error) { return uid, nil },
		ConnectionLimit: 10, Attempt: time.Second, Store: w.store.For(w),
		RecordName: "the record", ForgetCommand: "rm record", Log: zap.NewNop(),
		Connector: func(context.Context) (connector.Connector, error) {
			return connector.Connector{Server: here, User: "admin", Password: "admin", Source: "secret ns/c"}, w.do(func() error { return nil })
		},
		Publish: func(r *tenant.Record) error {
			return w.do(func() error { w.handed = r.Clone(); return nil })
		},
	}
	for _, c := range change {
		c(&p)
	}
	return Run(ctx, p, func(s dbserver.Server) engine.Engine {
		if s != here {
			away := memory.NewServer()
			away.Stop()
			return away.For(w)
		}
		return w.server.For(w)
	})
}

// must is run, which must succeed and hand over a credential that works.
func (w *world) must(what string, change ...func(*Init)) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	w.handed = nil
	if _, err := w.run(ctx, change...); err != nil {
		w.t.Errorf("%s: %v", what, err)
		return
	}
	w.works(what)
}

func (w *world) works(what string) {
	w.t.Helper()
	switch {
	case w.handed == nil:
		w.t.Errorf("%s: nothing was handed over", what)
	case w.database() == nil || w.server.Users[w.handed.Login(w.handed.Active).User] != w.handed.Login(w.handed.Active).Password:
		w.t.Errorf("%s: what was handed over does not work", what)
	case w.store.Record.Pending != nil && w.store.Record.Pending.Slot == w.store.Record.Active:
		w.t.Errorf("%s: a change is pending", what)
	}
	if w.store.Record == nil || w.handed == nil {
		return
	}
	other := w.store.Record.Active.Other()
	if p := w.store.Record.Slots[other].Password; w.store.Record.Pending == nil && p != "" && w.server.Users[names.User(other)] != p {
		w.t.Errorf("%s: the record's password of the inactive slot is not the server's", what)
	}
}

// scenarios are the states that init may find. Each returns the logins of running pods, which must keep working.
var scenarios = map[string]func(*world) []tenant.Slot{
	"new": func(*world) []tenant.Slot { return nil },
	"restart": func(w *world) []tenant.Slot {
		w.must("preparing")
		return nil
	},
	"limit changed": func(w *world) []tenant.Slot {
		w.must("preparing", func(p *Init) { p.ConnectionLimit = 5 })
		w.use(names.User(tenant.A), 1)
		return []tenant.Slot{tenant.A}
	},
	"wrong password": func(w *world) []tenant.Slot {
		w.must("preparing")
		w.server.Users[names.User(tenant.A)] = "by hand"
		return nil
	},
	"wrong password, pod on slot a": func(w *world) []tenant.Slot {
		w.must("preparing")
		w.server.Users[names.User(tenant.A)] = "by hand"
		w.use(names.User(tenant.A), 1)
		return []tenant.Slot{tenant.A}
	},
	"both passwords wrong, pod on slot b": func(w *world) []tenant.Slot {
		w.must("preparing")
		w.server.Users[names.User(tenant.A)], w.server.Users[names.User(tenant.B)] = "by hand", "by hand, too"
		w.use(names.User(tenant.B), 1)
		return []tenant.Slot{tenant.B}
	},
	"record lost": func(w *world) []tenant.Slot {
		w.must("preparing")
		w.store.Record = nil
		return nil
	},
	"record lost, pod on slot a": func(w *world) []tenant.Slot {
		w.must("preparing")
		w.store.Record = nil
		w.use(names.User(tenant.A), 2)
		return []tenant.Slot{tenant.A}
	},
	"record lost, pod on slot b": func(w *world) []tenant.Slot {
		w.must("preparing")
		w.store.Record = nil
		w.use(names.User(tenant.B), 1)
		return []tenant.Slot{tenant.B}
	},
	"login a gone": func(w *world) []tenant.Slot {
		w.must("preparing")
		delete(w.server.Users, names.User(tenant.A))
		return nil
	},
	"login b gone, its password unknown": func(w *world) []tenant.Slot {
		w.must("preparing")
		delete(w.server.Users, names.User(tenant.B))
		w.store.Record.Slots[tenant.B] = tenant.Credential{}
		w.server.Users[names.User(tenant.A)] = "by hand"
		return nil
	},
	"pending on the active slot, applied": func(w *world) []tenant.Slot {
		w.must("preparing")
		w.pend(tenant.A, tenant.Activate, true)
		return nil
	},
	"pending on the active slot, not applied, password wrong": func(w *world) []tenant.Slot {
		w.must("preparing")
		w.pend(tenant.A, tenant.Activate, false)
		w.server.Users[names.User(tenant.A)] = "by hand"
		return nil
	},
	"pending on the active slot, not applied, pod there": func(w *world) []tenant.Slot {
		w.must("preparing")
		w.pend(tenant.A, tenant.Activate, false)
		w.server.Users[names.User(tenant.A)] = "by hand"
		w.use(names.User(tenant.A), 1)
		return []tenant.Slot{tenant.A}
	},
	"pending on the other slot, applied, password wrong": func(w *world) []tenant.Slot {
		w.must("preparing")
		w.pend(tenant.B, tenant.Activate, true)
		w.server.Users[names.User(tenant.A)] = "by hand"
		w.use(names.User(tenant.A), 1)
		return []tenant.Slot{tenant.A}
	},
	"pending retirement of an unknown slot": func(w *world) []tenant.Slot {
		w.must("preparing")
		w.store.Record.Slots[tenant.B] = tenant.Credential{}
		w.server.Users[names.User(tenant.B)] = "unknown"
		w.pend(tenant.B, tenant.Retire, false)
		return nil
	},
	"inactive slot refused": func(w *world) []tenant.Slot {
		w.must("preparing")
		w.server.Users[names.User(tenant.B)] = "by hand"
		w.store.Record.OtherRefused = true // a sidecar found out
		w.use(names.User(tenant.A), 1)
		return []tenant.Slot{tenant.A}
	},
	"rotation staged, and a login may not change its password": func(w *world) []tenant.Slot {
		w.must("preparing")
		w.pend(tenant.B, tenant.Activate, false)
		w.store.Record.OtherRefused = true
		w.use(names.User(tenant.A), 1)
		return []tenant.Slot{tenant.A}
	},
	"pending retirement, applied, password wrong": func(w *world) []tenant.Slot {
		w.must("preparing")
		w.pend(tenant.B, tenant.Retire, true)
		w.server.Users[names.User(tenant.A)] = "by hand"
		return nil
	},
}

// pend is a change that a run decided on before it was killed.
func (w *world) pend(slot tenant.Slot, purpose tenant.Purpose, applied bool) {
	w.store.Record.Pending = &tenant.Change{Slot: slot, Password: tenant.NewPassword(), Purpose: purpose}
	if applied {
		w.server.Users[names.User(slot)] = w.store.Record.Pending.Password
	}
}

// TestKillInit is promise 3: killed at any call, before or after its effect, and killed again in the run after that, init
// converges, and a client that is logged in stays so. The points are counted, not listed.
func TestKillInit(t *testing.T) {
	t.Parallel()
	for _, name := range slices.Sorted(maps.Keys(scenarios)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			points := 0
			for _, after := range []bool{false, true} {
				for first := 1; ; first++ {
					killed := kill(t, name, after, first, 0)
					if !killed {
						break
					}
					points++
					for second := 1; kill(t, name, after, first, second); second++ {
						points++
					}
					if t.Failed() {
						t.Fatalf("killed after the effect: %t, at call %d", after, first)
					}
				}
			}
			if points < 10 {
				t.Errorf("only %d points: the world is not asked", points)
			}
		})
	}
}

// kill makes the scenario, kills a run at one call and, unless it is 0, the next at another, and then runs in peace. It
// says whether the last of the calls was reached at all.
func kill(t *testing.T, name string, after bool, points ...int) (killed bool) {
	t.Helper()
	w := newWorld(t)
	pods := scenarios[name](w)
	before := maps.Clone(w.server.Users)
	for _, n := range points {
		if n == 0 {
			break
		}
		w.revive()
		w.killAt, w.after = n, after
		_, err := w.run(t.Context())
		if killed = w.dead; killed && err == nil {
			t.Error("killed, and yet it succeeded")
		}
		if !killed && err != nil {
			t.Error(err)
		}
	}
	w.revive()
	w.must("in peace")
	w.revive()
	w.must("and again")
	for _, slot := range pods {
		if user := names.User(slot); w.server.Users[user] != before[user] {
			t.Errorf("the login %s, which a pod uses, has another password", user)
		}
	}
	return killed
}

// TestConflicts: every write of the record loses against a rival once, so every closure runs twice.
func TestConflicts(t *testing.T) {
	t.Parallel()
	for name, prepare := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			prepare(w)
			w.conflicts = 1000
			w.must("with conflicts")
		})
	}
}

// TestRotationMeanwhile: a sidecar of another replica stages a rotation before any write of init. Its pending change is
// settled and not replaced, or the sidecar would wait for a password that no server was ever told.
func TestRotationMeanwhile(t *testing.T) {
	t.Parallel()
	for name, prepare := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 1; ; n++ {
				w := newWorld(t)
				pods := prepare(w)
				before := maps.Clone(w.server.Users)
				var staged *tenant.Change
				w.rivalAt = n
				w.rival = func(r *tenant.Record) {
					other := r.Active.Other()
					if r.Provisioned() && r.OtherRetired && r.Pending == nil && w.server.Used(names.User(other)) == 0 {
						staged = &tenant.Change{Slot: other, Password: tenant.NewPassword(), Purpose: tenant.Activate}
						change := *staged
						r.Pending = &change
					}
				}
				w.must("with a rotation")
				for _, slot := range pods {
					if user := names.User(slot); w.server.Users[user] != before[user] {
						t.Errorf("the login %s, which a pod uses, has another password", user)
					}
				}
				// init leaves it to a sidecar to confirm a change of its own (S5).
				if p := w.store.Record.Pending; staged != nil && p != nil && p.Password != staged.Password && p.Password != w.store.Record.Slots[p.Slot].Password {
					t.Error("the staged change was replaced")
				}
				w.must("and again")
				if t.Failed() {
					t.Fatalf("before write %d", n)
				}
				if w.rivalAt > 0 {
					return // there are no more writes
				}
			}
		})
	}
}

// TestInterleavings runs three at once in any order of their calls, which a seed decides.
func TestInterleavings(t *testing.T) {
	t.Parallel()
	const runs, seeds = 3, 60
	for name, prepare := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(seeds) {
				w := newWorld(t)
				pods := prepare(w)
				before := maps.Clone(w.server.Users)
				interleave(t, w, seed, runs)
				for _, slot := range pods {
					if user := names.User(slot); w.server.Users[user] != before[user] {
						t.Errorf("the login %s, which a pod uses, has another password", user)
					}
				}
				w.turn = nil
				w.must("in peace")
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

// interleave lets one of the runs make one call at a time.
func interleave(t *testing.T, w *world, seed uint64, runs int) {
	t.Helper()
	order := rand.New(rand.NewPCG(seed, 0)) // it has to be repeatable
	asking, ended := make(chan chan struct{}), make(chan error)
	w.turn = func() {
		mine := make(chan struct{})
		asking <- mine
		<-mine
	}
	var handed []*tenant.Record
	for range runs {
		go func() {
			result, err := w.run(t.Context())
			if err == nil {
				handed = append(handed, result.Record) // one at a time: the others wait for their turn or for asking
			}
			ended <- err
		}()
	}
	var waiting []chan struct{}
	for alive := runs; alive > 0; {
		for len(waiting) < alive {
			select {
			case c := <-asking:
				waiting = append(waiting, c)
			case err := <-ended:
				alive--
				if err != nil {
					t.Error(err)
				}
			}
		}
		if alive == 0 {
			break
		}
		i := order.IntN(len(waiting))
		next := waiting[i]
		waiting = slices.Delete(waiting, i, i+1)
		close(next)
	}
	// No init handed over a credential that another one then made useless.
	for _, r := range handed {
		if l := r.Login(r.Active); w.server.Users[l.User] != l.Password {
			t.Errorf("the credential that was handed over (slot %s, generation %d) does not work any more", r.Active, r.Generation)
		}
	}
}

// (F5) Without a lock on the server, an init that has decided to set a password finds that another one has come to the end of
// the same repair. It leaves alone what that one has handed over.
func TestRepairedMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.must("preparing")
		w.server.Users[names.User(w.store.Record.Active)] = "by hand"
		theirs := tenant.NewPassword()
		w.rivalAt, w.rival = 1, func(r *tenant.Record) {
			r.Slots[r.Active] = tenant.Credential{Password: theirs}
			r.Generation++
			w.server.Users[names.User(r.Active)] = theirs
		}
		w.must("beside another init")
		if w.server.Users[names.User(w.handed.Active)] != theirs || w.handed.Login(w.handed.Active).Password != theirs {
			t.Error("the credential that the other init had handed over does not work any more")
		}
		w.works("beside another init")
	})
}

// Both slots in use: wait within the limit, and go on when one is free. The clock is the bubble's.
func TestBothInUse(t *testing.T) {
	t.Parallel()
	prepare := func(t *testing.T) *world {
		w := newWorld(t)
		w.must("preparing")
		for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
			w.server.Users[names.User(slot)] = dbserver.Password("by hand " + slot)
			w.use(names.User(slot), 1)
		}
		return w
	}
	t.Run("until the time is up", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := prepare(t)
			before := maps.Clone(w.server.Users)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			began := time.Now()
			_, err := w.run(ctx)
			if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "both logins") || !strings.Contains(err.Error(), "time limit") {
				t.Errorf("got %v", err)
			}
			if took := time.Since(began); took > time.Minute {
				t.Errorf("took %s", took)
			}
			if !maps.Equal(before, w.server.Users) || w.store.Record.Pending != nil {
				t.Error("something was changed")
			}
			for login, times := range w.server.Wrong { // (F13) or the server blocks it for the clients that use it
				if times > tries {
					t.Errorf("login %s: a wrong password was presented %d times", login.User, times)
				}
			}
		})
	})
	t.Run("until a connection notices first that the time is up", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := prepare(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Second)
			defer cancel()
			end := time.Now().Add(time.Minute)
			connection, closed := context.WithDeadline(ctx, end)
			defer closed()
			w.turn = func() {
				if time.Until(end) < 20*time.Second {
					<-connection.Done()
					w.server.Stop()
				}
			}
			_, err := w.run(late{ctx, end})
			if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "both logins") || !strings.Contains(err.Error(), "time limit") {
				t.Errorf("got %v", err)
			}
			if !time.Now().Equal(end) {
				t.Errorf("went on for %s", time.Since(end))
			}
		})
	})
	t.Run("until one is free", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := prepare(t)
			time.AfterFunc(30*time.Second, func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.use(names.User(tenant.B), 0)
			})
			w.must("waiting")
			if w.store.Record.Active != tenant.B || w.server.Users[names.User(tenant.A)] != "by hand a" {
				t.Errorf("slot %s is active; slot a was left alone: %t", w.store.Record.Active, w.server.Users[names.User(tenant.A)] == "by hand a")
			}
		})
	})
}

// TestLostRecord: one start is enough where the old control plane has ended before, as a StatefulSet's has. Where it still runs,
// as a Deployment's does, the login that it uses must be left alone, and takes a second start (F40).
func TestLostRecord(t *testing.T) {
	t.Parallel()
	settled := func(w *world) bool {
		other := w.store.Record.Active.Other()
		return w.store.Record.Slots[other].Password != "" && w.server.Users[names.User(other)] == w.store.Record.Slots[other].Password
	}
	for _, running := range []bool{false, true} {
		w := newWorld(t)
		w.must("first start")
		used := names.User(w.store.Record.Active)
		if running {
			w.use(used, 1)
		}
		before := w.server.Users[used]
		w.store.Record = nil
		w.must("record lost")
		if settled(w) == running || running && w.server.Users[used] != before {
			t.Errorf("running %t: settled %t, the password in use is the same %t", running, settled(w), w.server.Users[used] == before)
		}
		w.use(used, 0)
		if w.must("the next start"); !settled(w) {
			t.Errorf("running %t: not settled by the next start", running)
		}
	}
}

// TestAnotherTenantsRecord: a record that names another tenant reaches the admin neither when it is read nor when it is put in
// the place of the own one at any later moment (S2).
func TestAnotherTenantsRecord(t *testing.T) {
	t.Parallel()
	victim := tenant.NamesOf("victim")
	planted := func(provisioned bool) *tenant.Record {
		r := tenant.NewRecord("victim", "ns", "vc", here, 10)
		if provisioned {
			r.ProvisionedAt = time.Now()
		}
		r.Pending = &tenant.Change{Slot: tenant.A, Password: tenant.NewPassword(), Purpose: tenant.Activate, Admin: true}
		return r
	}
	begin := func() *world {
		w := newWorld(t)
		w.must("first start")
		for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
			w.server.Users[victim.User(slot)] = "the victim's own"
		}
		return w
	}
	unharmed := func(w *world, what string) {
		t.Helper()
		for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
			if w.server.Users[victim.User(slot)] != "the victim's own" {
				t.Errorf("%s: the victim's login %s got another password", what, slot)
			}
		}
		if w.handed != nil && w.handed.UID == "victim" {
			t.Errorf("%s: the victim's database was handed over", what)
		}
	}
	for _, provisioned := range []bool{false, true} {
		w := begin()
		w.store.Record, w.handed = planted(provisioned), nil
		_, err := w.run(t.Context(), func(p *Init) {
			inner := p.Publish
			p.Publish = func(r *tenant.Record) error { t.Error("something was handed over"); return inner(r) }
		})
		if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), "names another tenant") {
			t.Errorf("class %v: %v", fault.Of(err), err)
		}
		unharmed(w, "planted")
	}
	for at := 1; ; at++ {
		w := begin()
		w.handed = nil
		for user := range w.server.Users { // nothing that the record says works any more: every step of a repair is needed
			if user != victim.User(tenant.A) && user != victim.User(tenant.B) {
				w.server.Users[user] = tenant.NewPassword()
			}
		}
		w.rivalAt = at
		w.rival = func(r *tenant.Record) { *r = *planted(true) }
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := w.run(ctx)
		cancel()
		unharmed(w, fmt.Sprintf("planted before write %d", at))
		if w.rivalAt > 0 { // there are not so many writes
			if at < 4 || err != nil {
				t.Fatalf("%d writes, %v: this test looks in the wrong way", at, err)
			}
			return
		}
		if err == nil {
			t.Errorf("planted before write %d: it succeeded", at)
		}
	}
}

// TestMake: a tenant that an earlier release made is brought up to date at its next start, by the admin path. Where that is not
// to be had, the control plane starts all the same, and the next start tries again. What a later release made stays.
func TestMake(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must("first start")
	if w.store.Record.Make != tenant.Make {
		t.Fatalf("a new tenant is of make %d, want %d", w.store.Record.Make, tenant.Make)
	}
	ensured := func(change ...func(*Init)) bool {
		w.database().Limit = 0 // which only the admin path sets
		w.must("restart", change...)
		return w.database().Limit != 0
	}
	if ensured() {
		t.Error("a tenant that is up to date needed the admin")
	}
	away := func(p *Init) {
		p.Connector = func(context.Context) (connector.Connector, error) {
			return connector.Connector{}, fault.New(fault.Refused, "no connector")
		}
	}
	for _, older := range []int{0, tenant.Make - 1} {
		w.store.Record.Make = older
		if ensured(away) || w.store.Record.Make != older {
			t.Errorf("make %d without a connector became %d", older, w.store.Record.Make)
		}
		if !ensured() || w.store.Record.Make != tenant.Make {
			t.Errorf("make %d became %d", older, w.store.Record.Make)
		}
	}
	w.store.Record.Make = tenant.Make + 1
	if ensured() || w.store.Record.Make != tenant.Make+1 {
		t.Errorf("init touched the work of a later release; it is of make %d now", w.store.Record.Make)
	}
	if !ensured(func(p *Init) { p.ConnectionLimit = 11 }) || w.store.Record.Make != tenant.Make+1 {
		t.Errorf("the admin path made it one of make %d", w.store.Record.Make)
	}
}

// TestRestartNeedsNoAdmin is promise 7.
func TestRestartNeedsNoAdmin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must("preparing")
	w.calls = 0
	w.must("restart", func(p *Init) {
		p.Connector = func(context.Context) (connector.Connector, error) {
			return connector.Connector{}, errors.New("the connector was read")
		}
	})
	if w.calls != 3 {
		t.Errorf("%d calls, want one read, one login, one hand-over", w.calls)
	}
}

// TestWithoutConnector: what is left to do must not keep a control plane from coming up, and what is not must be said.
func TestWithoutConnector(t *testing.T) {
	t.Parallel()
	none := func(p *Init) {
		p.Connector = func(context.Context) (connector.Connector, error) {
			return connector.Connector{}, fault.New(fault.Refused, "no such secret")
		}
	}
	for _, tc := range []struct {
		reason string
		world  func(*world)
		want   string // "" where it comes up
	}{
		{"the limit can wait", func(w *world) { w.store.Record.ConnectionLimit = 5 }, ""},
		{"the inactive slot can wait", func(w *world) { w.store.Record.Slots[tenant.B] = tenant.Credential{} }, ""},
		{"a wrong password cannot", func(w *world) { w.server.Users[names.User(tenant.A)] = "by hand" }, "no such secret"},
		{"a server that is away cannot, and the record knows where it is", func(w *world) { w.server.Stop() }, "connection refused"},
		{"the database is away: promise 2", func(w *world) { w.drop() }, "rm record"},
		{"nothing is there yet", func(w *world) { w.store.Record = nil }, "no such secret"},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.must("preparing")
				tc.world(w)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				w.handed = nil
				_, err := w.run(ctx, none)
				switch {
				case tc.want == "" && (err != nil || w.handed == nil):
					t.Errorf("%s: got %v", tc.reason, err)
				case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || w.handed != nil):
					t.Errorf("%s: got %v, want %q", tc.reason, err, tc.want)
				}
			})
		})
	}
}

// TestGuards are the refusals of a record that is not for this control plane, or for no server that is there (promise 2).
func TestGuards(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		reason string
		world  func(*world)
		init   func(*Init)
		want   string
	}{
		{"the database is gone", func(w *world) { w.drop() }, func(*Init) {}, "rm record"},
		{"the database and the logins are gone", func(w *world) { w.drop(); clear(w.server.Users) }, func(*Init) {}, "rm record"},
		{"moved to a server without it", func(w *world) { w.store.Record.Server = elsewhere; w.drop(); clear(w.server.Users) }, func(*Init) {}, elsewhere.Address()},
		{"another UID", nil, func(p *Init) { p.TenantUID = "other" }, "DBCONNECTOR_TENANT_UID"},
		{"another namespace", nil, func(p *Init) { p.Namespace = "other" }, "DBCONNECTOR_TENANT_UID=" + uid},
		{"another vCluster", nil, func(p *Init) { p.VCluster = "other" }, `made for vCluster "vc"`},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.must("preparing")
			if tc.world != nil {
				tc.world(w)
			}
			before, users := fmt.Sprint(w.store.Record), len(w.server.Users)
			w.handed = nil
			_, err := w.run(t.Context(), tc.init)
			if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: got %v (class %d), want a refusal that says %q", tc.reason, err, fault.Of(err), tc.want)
			}
			if w.handed != nil || fmt.Sprint(w.store.Record) != before || len(w.server.Users) != users {
				t.Errorf("%s: something was done nevertheless", tc.reason)
			}
		})
	}
	t.Run("moved to a server that has it", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.must("preparing")
		w.store.Record.Server = elsewhere
		w.must("moved")
		if w.store.Record.Server != here {
			t.Error("the record does not know the new server")
		}
	})
	t.Run("the UID of a tenant that was moved here", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.must("preparing")
		w.must("moved", func(p *Init) { p.Namespace, p.TenantUID = "other", uid })
	})
}

// TestDatabaseIsDroppedMeanwhile drops the database before each call of a run. init never makes a provisioned database again, and
// refuses wherever it notices that; it makes again a database that never was complete.
func TestDatabaseIsDroppedMeanwhile(t *testing.T) {
	t.Parallel()
	for _, name := range slices.Sorted(maps.Keys(scenarios)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refusals := 0
			for point, reached := 1, true; reached; point++ {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					scenarios[name](w)
					w.handed = nil
					calls, provisioned := 0, false
					w.turn = func() {
						if calls++; calls == point {
							w.drop()
							provisioned = w.store.Record != nil && w.store.Record.Provisioned()
						}
					}
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					_, err := w.run(ctx)
					reached = calls >= point
					refused := fault.Is(err, fault.Refused) && strings.Contains(err.Error(), "refusing to start on an empty one")
					switch {
					case err != nil && (!refused || !provisioned):
						t.Errorf("at call %d: got %v", point, err)
					case err != nil && w.handed != nil:
						t.Errorf("at call %d: refused, and handed over nevertheless", point)
					case provisioned && w.database() != nil:
						t.Errorf("at call %d: an empty database is in the place of the one that was there", point)
					}
					if refused {
						refusals++
					}
				})
			}
			if refusals == 0 && name != "new" && !strings.HasPrefix(name, "record lost") {
				t.Error("it was never noticed")
			}
		})
	}
}

// Stopped on request is not the server's fault, and says so.
func TestStopInit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.server.Stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.run(ctx); err == nil || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// After a restart of the server no client has a session, and a running pod is back in a moment: one look is not enough.
func TestPasswordIsLeftToWhoComesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must("preparing")
	a, b := names.User(tenant.A), names.User(tenant.B)
	w.store.Record = nil // lost; a pod runs on slot a, and has no session at this moment
	before := w.server.Users[a]
	looks := 0
	w.server.Looked = func(user string) {
		if user == a {
			if looks++; looks == 2 {
				w.use(a, 1)
			}
		}
	}
	w.must("repairing", func(p *Init) { p.Quiet = 10 * time.Millisecond })
	if w.server.Users[a] != before {
		t.Error("the password of a slot was reset whose pod came back while init looked")
	}
	if w.store.Record.Active != tenant.B || w.server.Users[b] != w.store.Record.Slots[tenant.B].Password {
		t.Errorf("active is slot %s, want b, with the recorded password", w.store.Record.Active)
	}
}

// A database that was recreated empty is as lost as one that is not there (promise 2).
func TestEmptyDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must("preparing")
	w.must("restarting before kine ran")
	w.database().Data = true
	w.must("restarting on data")
	if !w.store.Record.DataSeen {
		t.Fatal("the data was not noted")
	}
	w.database().Data = false
	for what, prepare := range map[string]func(){"restart": func() {}, "repair": func() { w.server.Users[names.User(w.store.Record.Active)] = "by hand" }} {
		prepare()
		w.handed = nil
		if _, err := w.run(t.Context()); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), "holds none") ||
			!strings.Contains(err.Error(), "rm record") {
			t.Errorf("%s: got %v, want a refusal that names the way out", what, err)
		}
		if w.handed != nil {
			t.Errorf("%s: something was handed over", what)
		}
	}
}

// A record that is away for a moment (an answer of a proxy, kubectl replace) is looked at again: the tenant stays where its record says, and
// is not taken to the connector's server.
func TestRecordAwayForAMoment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must("preparing")
	w.store.Record.Server = elsewhere
	before, users := fmt.Sprint(w.store.Record), maps.Clone(w.server.Users)
	hidden := w.store.Record
	calls := 0
	w.turn = func() {
		switch calls++; calls {
		case 1:
			w.store.Record = nil
		case 2:
			w.store.Record = hidden
		}
	}
	w.handed = nil
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := w.run(ctx, func(p *Init) { p.Patience = time.Hour })
	if calls < 3 || !fault.Is(err, fault.Unavailable) || w.handed != nil {
		t.Errorf("%d calls, %v, a hand-over %v: want to wait for the record's server", calls, err, w.handed)
	}
	if fmt.Sprint(w.store.Record) != before || !maps.Equal(w.server.Users, users) {
		t.Errorf("the record is %v, want %v", w.store.Record, before)
	}
}

// An outage of the server that the record names does not move a tenant at once; that it stays away does.
func TestMoveNeedsPatience(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must("preparing")
	w.store.Record.Server.Host = "elsewhere"
	w.server.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	w.handed = nil
	if _, err := w.run(ctx, func(p *Init) { p.Patience = time.Hour }); !fault.Is(err, fault.Unavailable) || w.handed != nil {
		t.Errorf("got %v and a hand-over %v, want to wait for the old server", err, w.handed)
	}
}
