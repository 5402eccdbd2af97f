// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dbconnector/pkg/engine/memory"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// The loop's own behaviour: one replica, one fault, and how often the sidecar reports it.

var hourly = Policy{Period: time.Hour, Grace: time.Minute}

// bench is a world with one pod, provisioned, in which nothing happens by chance.
type bench struct {
	*world
	pod     *pod
	journal *journal
	ctx     context.Context
	stop    context.CancelFunc
	done    chan struct{}
	offset  time.Duration // of the sidecar's clock
}

func newBench(t *testing.T, p Policy) *bench {
	t.Helper()
	w := newWorld(t, p)
	b := &bench{world: w, pod: w.pod(1, 0), journal: &journal{}}
	if err := b.pod.init(t.Context()); err != nil {
		t.Fatal(err)
	}
	clear(w.count)
	return b
}

// start runs the sidecar; it is stopped at the end of the test, or by halt.
func (b *bench) start(configure ...func(*proc, *Rotation)) {
	b.ctx, b.stop = context.WithCancel(b.t.Context())
	b.done = make(chan struct{})
	go func() {
		defer close(b.done)
		b.pod.sidecar(b.ctx, append([]func(*proc, *Rotation){func(_ *proc, r *Rotation) {
			r.Observer = b.journal
			r.Now = func() time.Time {
				b.mu.Lock()
				defer b.mu.Unlock()
				return time.Now().Add(b.offset)
			}
		}}, configure...)...)
	}()
}

func (b *bench) halt() { b.stop(); <-b.done }

// after lets time pass, and lets all replicas come to rest: the test takes its next step alone.
func (b *bench) after(d time.Duration) {
	b.edit(func() {})
	wait(b.t.Context(), d)
	synctest.Wait()
}

// edit does something to the world.
func (b *bench) edit(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fn()
}

// rewrite changes the record as another writer would.
func (b *bench) rewrite(fn func(*tenant.Record)) {
	b.edit(func() {
		r := b.store.Record.Clone()
		fn(r)
		b.put(r)
	})
}

func (w *world) put(r *tenant.Record) {
	w.store.Record = r
	w.store.Changed()
}

func (b *bench) calls() (n int) {
	b.edit(func() {
		for _, c := range b.count {
			n += c
		}
		clear(b.count)
	})
	return n
}

func (b *bench) told(want ...string) {
	b.t.Helper()
	got := b.journal.take()
	ok := len(got) == len(want)
	for i := range want {
		ok = ok && i < len(got) && strings.HasPrefix(got[i], want[i])
	}
	if !ok {
		b.t.Errorf("told\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func run(t *testing.T, name string, p Policy, test func(*testing.T, *bench)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, p)
			test(t, b)
			if b.done != nil {
				b.halt()
			}
		})
	})
}

func TestLoop(t *testing.T) {
	t.Parallel()
	run(t, "a rotation, and peace before it", hourly, func(t *testing.T, b *bench) {
		var client *memory.Session
		b.edit(func() { client = b.open(nil, tenant.A, "1") })
		b.start()
		b.after(50 * time.Minute)
		want := map[string]int{"publish": 50}
		if !maps.Equal(b.count, want) {
			t.Errorf("while idle: %v, want %v", b.count, want)
		}
		b.calls()
		b.after(20 * time.Minute)
		b.told("rotated 2", "postponed OldCredentialInUse")
		b.edit(func() { client.End(); b.open(nil, tenant.B, "2") })
		b.after(5 * time.Minute)
		b.told("postponed ", "retired")
		b.after(30 * time.Minute)
		b.told()
		b.edit(func() {
			if !b.store.Record.OtherRetired || b.store.Record.Generation != 2 || b.published[b.server.Users[names.User(tenant.A)]] {
				t.Errorf("got %+v", b.store.Record)
			}
		})
	})
	run(t, "a day with a control plane that is not restarted", hourly, func(t *testing.T, b *bench) {
		b.edit(func() { b.open(nil, tenant.A, "1") })
		b.start()
		b.after(2 * time.Hour)
		b.told("rotated 2", "postponed OldCredentialInUse")
		clear(b.count)
		b.after(24 * time.Hour)
		b.told() // once for each state
		if n := b.count["open session"]; n < 90 || n > 200 {
			t.Errorf("%d logins in a day", n)
		}
	})
	run(t, "a postponed step fails, or waits for something else", hourly, func(t *testing.T, b *bench) {
		var client *memory.Session
		b.edit(func() { client = b.open(nil, tenant.A, "1"); b.open(nil, tenant.B, "2") })
		b.rewrite(func(r *tenant.Record) { r.Active, r.OtherRetired, r.Clients = tenant.B, false, 1 })
		b.start()
		b.after(5 * time.Minute)
		b.told("postponed OldCredentialInUse")
		b.before = func(*proc, string) error { return errAway }
		b.after(2 * time.Minute)
		got := b.journal.take()
		if len(got) < 3 || !strings.HasPrefix(got[0], "failed look") || got[1] != "postponed " || slices.Contains(got[2:], "postponed ") {
			t.Errorf("told %q", got)
		}
		b.edit(func() { b.before = nil })
		b.after(2 * time.Minute)
		b.told("healthy", "postponed OldCredentialInUse")
		// The client has gone, another replica has staged the next change, and is slow.
		b.edit(func() { client.End(); b.open(&proc{world: b.world}, tenant.A, "sidecar") })
		b.rewrite(pends(tenant.A, tenant.Retire))
		b.after(2 * time.Second)
		b.told("postponed ")
	})
	run(t, "scaled down while a rotation is adopted", hourly, func(t *testing.T, b *bench) {
		b.edit(func() { b.open(nil, tenant.A, "1"); b.open(nil, tenant.A, "2") })
		b.start()
		b.after(70 * time.Minute)
		b.told("rotated 2", "postponed OldCredentialInUse")
		b.edit(func() {
			for len(b.server.Sessions) > 0 {
				b.server.Sessions[0].End()
			}
			b.open(nil, tenant.B, "3")
		})
		b.after(3 * time.Minute)
		b.told("postponed NotAdopted")
		b.after(time.Minute)
		b.outage(true) // which is no sign of anything
		b.after(5 * time.Minute)
		b.outage(false)
		b.edit(func() { b.open(nil, tenant.B, "3") })
		b.after(patience*time.Minute - 30*time.Second)
		if b.store.Record.OtherRetired {
			t.Error("retired too early: the second client has not moved")
		}
		b.after(10 * time.Minute)
		if !b.store.Record.OtherRetired {
			t.Error("not retired: the sidecar waits for ever")
		}
	})
	run(t, "an outage right before the commit", hourly, func(t *testing.T, b *bench) {
		b.rewrite(func(r *tenant.Record) { r.Clients = 2 })
		b.start()
		b.after(70 * time.Minute)
		b.told("rotated 2", "postponed NotAdopted")
		b.edit(func() { b.open(nil, tenant.B, "1") })
		b.after(3 * time.Minute)
		if b.store.Record.OtherRetired {
			t.Error("retired too early: there were two before, and one of them is back")
		}
		b.edit(func() { b.open(nil, tenant.B, "2") })
		b.after(2 * time.Minute)
		b.told("postponed ", "retired")
	})
	run(t, "a full emptyDir", hourly, func(t *testing.T, b *bench) {
		full := errors.New("writing the hand-over: no space left on device")
		b.before = func(_ *proc, what string) error {
			if what == "publish" {
				return full
			}
			return nil
		}
		b.start()
		b.after(2 * time.Hour)
		got := b.journal.take()
		if len(got) < 100 || len(got) > 140 || slices.ContainsFunc(got, func(s string) bool { return !strings.HasPrefix(s, "failed project") }) {
			t.Errorf("told %d times in two hours, the first %q", len(got), got[0])
		}
		if b.store.Record.Pending != nil || b.store.Record.Generation != 1 {
			t.Error("a rotation began whose result could not have been handed over")
		}
		b.edit(func() { b.before = nil })
		b.after(4 * time.Minute)
		b.told("rotated 2", "healthy", "postponed NotAdopted")
	})
	run(t, "self-change forbidden (B10)", hourly, func(t *testing.T, b *bench) {
		// It has run before: init has nothing to note, which would have the sidecar try again at that moment, and be seen.
		b.edit(func() { b.store.Record.DataSeen = true })
		b.refuse = func() error { return fault.New(fault.NoAccess, "permission denied") }
		b.start()
		b.after(7 * time.Hour)
		got := b.journal.take()
		if n := len(got); n < 60 || n > 90 || slices.ContainsFunc(got, func(s string) bool { return !strings.HasPrefix(s, "failed apply: permission denied") }) {
			t.Errorf("told %d times in six hours: %q", n, got[:min(n, 3)])
		}
		if !b.store.Record.OtherRefused || b.store.Record.Pending == nil || b.store.Record.Generation != 1 {
			t.Errorf("init does not know: %+v", b.store.Record)
		}
		if err := b.pod.init(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := b.store.Record; r.Generation != 2 || r.Pending != nil || r.OtherRefused ||
			r.Slots[tenant.A].Password != b.server.Users[names.User(tenant.A)] || r.Slots[tenant.B].Password != b.server.Users[names.User(tenant.B)] {
			t.Errorf("init did not finish it: %+v", r)
		}
		b.after(10 * time.Second)
		b.told("healthy")
	})
	run(t, "rights of the inactive slot withdrawn (B5)", hourly, func(t *testing.T, b *bench) {
		b.server.Databases[names.Database].Lost = map[string]bool{names.User(tenant.B): true}
		b.start()
		b.after(3 * time.Hour)
		got := b.journal.take()
		if n := len(got); n < 20 || n > 50 || slices.ContainsFunc(got, func(s string) bool { return !strings.HasSuffix(s, "has lost its rights") }) {
			t.Errorf("told %d times in two hours: %q", n, got[:min(n, 3)])
		}
		if r := b.store.Record; !r.OtherRefused || r.Generation != 1 || r.Active != tenant.A {
			t.Errorf("the control plane was sent to a slot without rights, or init does not know: %+v", r)
		}
		if err := b.pod.init(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.after(10 * time.Second)
		if got := b.journal.take(); !slices.Contains(got, "healthy") {
			t.Errorf("told %q", got)
		}
		if r := b.store.Record; r.Generation != 2 || r.OtherRefused {
			t.Errorf("init did not finish it: %+v", r)
		}
	})
	run(t, "every password rejected (B1)", hourly, func(t *testing.T, b *bench) {
		staged := map[any]bool{}
		b.refuse = func() error {
			staged[b.store.Record.Pending.Password] = true
			return fault.New(fault.Rejected, "policy")
		}
		b.start()
		b.after(5 * time.Hour)
		if len(staged) != maxRejections {
			t.Errorf("%d passwords were tried, want %d", len(staged), maxRejections)
		}
		if n := len(b.journal.take()); n > 70 {
			t.Errorf("told %d times", n)
		}
		b.edit(func() { b.refuse = nil })
		b.after(8 * time.Minute)
		b.told("rotated 2", "healthy", "postponed NotAdopted") // no client is there
	})
	run(t, "rejected, and yet applied (B1)", hourly, func(t *testing.T, b *bench) {
		b.refuse = func() error {
			b.refuse = nil
			b.server.Users[names.User(tenant.B)] = b.store.Record.Pending.Password
			return fault.New(fault.Rejected, "policy")
		}
		b.start()
		b.after(70 * time.Minute)
		b.told("rotated 2", "postponed NotAdopted")
	})
	run(t, "changed, and yet refused", hourly, func(t *testing.T, b *bench) {
		b.refuse = func() error { return memory.ErrIgnored }
		b.start()
		b.after(7 * time.Hour)
		if n := len(b.journal.take()); n < 60 || n > 90 {
			t.Errorf("told %d times: a tight loop", n)
		}
	})
	run(t, "the inactive slot changed by hand", hourly, func(t *testing.T, b *bench) {
		b.server.Users[names.User(tenant.B)] = "by hand"
		b.start()
		b.after(7 * time.Hour)
		b.told("postponed InactiveSlotUnknown")
		if !b.store.Record.OtherRefused || b.store.Record.Slots[tenant.B].Password == "" {
			t.Errorf("got %+v", b.store.Record)
		}
		if err := b.pod.init(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.after(20 * time.Second)
		b.told("postponed ", "retired", "rotated 2") // the sidecar retires the password that init has set
	})
	run(t, "the inactive slot refused for a while", hourly, func(t *testing.T, b *bench) {
		right := b.server.Users[names.User(tenant.B)]
		b.server.Users[names.User(tenant.B)] = "a standby's that lags behind"
		b.start()
		b.after(70 * time.Minute)
		b.told("postponed InactiveSlotUnknown")
		// It is accepted again: whether it may do all that it has to is shown by the commit.
		b.edit(func() { b.server.Users[names.User(tenant.B)] = right })
		b.after(20 * time.Minute)
		b.told("postponed ", "rotated 2", "postponed NotAdopted")
		if r := b.store.Record; r.OtherRefused || r.Generation != 2 {
			t.Errorf("the doubt stays for good: %+v", r)
		}
	})
	// The password of a retired slot was given to no client: a session there that outlives a rival's must go (S5).
	run(t, "an intruder on the retired slot", hourly, func(t *testing.T, b *bench) {
		var intruder *memory.Session
		b.edit(func() { b.open(nil, tenant.A, "1"); intruder = b.open(nil, tenant.B, evil) })
		b.start()
		b.after(70 * time.Minute)
		b.told("postponed OldCredentialInUse", "postponed ", "rotated 2", "postponed OldCredentialInUse")
		if intruder.Alive() {
			t.Error("the intruder is still there")
		}
	})
	// A rival that has a session there for a moment is given the time that it needs.
	run(t, "a rival on the retired slot", hourly, func(t *testing.T, b *bench) {
		var rival *memory.Session
		b.then = func(_ *proc, what string) {
			if what == "open session" && rival == nil {
				rival = b.open(&proc{world: b.world}, tenant.B, "sidecar")
				time.AfterFunc(2*time.Second, func() {
					b.edit(func() {
						if !rival.Alive() {
							t.Error("the rival was ended at once")
						}
						rival.End()
					})
				})
			}
		}
		b.start()
		b.after(70 * time.Minute)
		b.told("rotated 2", "postponed NotAdopted")
	})
	// A login that was begun with the old password is let in after the change, and does not show for a while (S5).
	run(t, "a login under way when the password dies", hourly, func(t *testing.T, b *bench) {
		var client *memory.Session
		b.edit(func() { client = b.open(nil, tenant.A, "1") })
		b.start()
		b.after(70 * time.Minute)
		b.told("rotated 2", "postponed OldCredentialInUse")
		h := b.server.Begin(names.User(tenant.A))
		b.edit(func() { client.End(); b.open(nil, tenant.B, "2") })
		b.before = func(_ *proc, what string) error {
			if b.server.Users[names.User(tenant.A)] != h.Password {
				h.In = true
			}
			return nil
		}
		b.after(5 * time.Minute)
		b.told("postponed ", "postponed LoginUnderWay")
		var intruder *memory.Session
		b.edit(func() {
			b.before = nil
			b.server.Begun = nil
			intruder = b.open(nil, tenant.A, evil)
			intruder.Password, intruder.Number = h.Password, 0
		})
		b.after(time.Minute)
		if intruder.Alive() {
			t.Error("the intruder is still there")
		}
		b.told("postponed OldCredentialInUse", "retired", "postponed ")
	})
	run(t, "both slots changed by hand", hourly, func(t *testing.T, b *bench) {
		b.server.Users[names.User(tenant.A)], b.server.Users[names.User(tenant.B)] = "by hand", "by hand"
		b.start()
		b.after(7 * time.Hour)
		got := b.journal.take()
		if n := len(got); n < 60 || n > 90 ||
			slices.ContainsFunc(got, func(s string) bool { return !strings.HasPrefix(s, "failed look: the active login is locked out") }) {
			t.Errorf("told %d times in six hours: %q", n, got[:min(n, 3)])
		}
		if !b.store.Record.OtherRefused {
			t.Errorf("got %+v", b.store.Record)
		}
		if err := b.pod.init(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.after(20 * time.Second)
		b.told("healthy", "retired")
	})
	run(t, "both slots changed by hand, with a change pending", hourly, func(t *testing.T, b *bench) {
		b.rewrite(pends(tenant.B, tenant.Activate))
		b.server.Users[names.User(tenant.A)], b.server.Users[names.User(tenant.B)] = "by hand", "by hand"
		b.start()
		b.after(10 * time.Second)
		if got := b.journal.take(); len(got) == 0 || !strings.HasPrefix(got[0], "failed look: the active login is locked out") {
			t.Errorf("told %q", got)
		}
		if err := b.pod.init(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.after(10 * time.Minute)
		if got := b.journal.take(); !slices.Contains(got, "healthy") {
			t.Errorf("told %q", got)
		}
	})
	run(t, "active locked out while a change is pending", hourly, func(t *testing.T, b *bench) {
		b.rewrite(pends(tenant.B, tenant.Activate))
		b.server.Users[names.User(tenant.A)], b.server.Users[names.User(tenant.B)] = "by hand", fresh
		b.start()
		b.after(10 * time.Second)
		b.told("rotated 2")
	})
	run(t, "a repair of the active slot that init was killed in", hourly, func(t *testing.T, b *bench) {
		b.rewrite(pends(tenant.A, tenant.Activate))
		b.start()
		b.after(time.Hour)
		b.told("postponed RepairPending")
		if err := b.pod.init(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.after(10 * time.Minute)
		b.told("postponed ", "rotated 2", "postponed NotAdopted")
	})
	run(t, "server gone for an hour", hourly, func(t *testing.T, b *bench) {
		b.start()
		b.after(50 * time.Minute)
		b.outage(true)
		b.after(80 * time.Minute)
		got := b.journal.take()
		if n := len(got); n < 40 || n > 90 {
			t.Errorf("told %d times", n)
		}
		b.outage(false)
		b.after(4 * time.Minute)
		b.told("rotated 2", "healthy", "postponed NotAdopted")
	})
	run(t, "the record deleted and made again", hourly, func(t *testing.T, b *bench) {
		b.start()
		b.after(10 * time.Minute)
		b.edit(func() { b.put(nil) })
		b.after(time.Second)
		b.told("failed read: the record was deleted")
		b.calls()
		b.after(3 * time.Hour)
		if n := b.calls(); n > 0 {
			t.Errorf("%d calls without a record", n)
		}
		for range 2 { // the second time, the deletion itself goes unnoticed
			b.edit(func() {
				r := made(func(r *tenant.Record) { r.RotatedAt, r.Generation = time.Now(), 1 })
				b.sets(r)
				b.put(r)
			})
			b.after(time.Second)
			if b.pod.handover.Slots[tenant.A].Password != b.server.Users[names.User(tenant.A)] {
				t.Error("the generation is the same, and the old credential still handed over")
			}
		}
		b.told("healthy")
	})
	run(t, "the record restored from a backup, with passwords that are dead", hourly, func(t *testing.T, b *bench) {
		var client *memory.Session
		b.edit(func() { client = b.open(nil, tenant.A, "1") })
		backup := b.store.Record.Clone()
		b.start()
		b.after(70 * time.Minute)
		b.edit(func() { client.End(); b.open(nil, tenant.B, "1") })
		b.after(5 * time.Minute)
		b.told("rotated 2", "postponed OldCredentialInUse", "postponed ", "retired")
		good := b.server.Users[names.User(tenant.B)]
		b.edit(func() { b.put(backup.Clone()) })
		b.after(10 * time.Minute)
		if got := b.pod.handover; got.Login(got.Active).Password != good {
			t.Error("the sidecar replaced a working credential by one that the server refuses")
		}
		for _, line := range b.journal.take() {
			if !strings.HasPrefix(line, "failed project: the record has another active login than the hand-over, and it is locked out") {
				t.Errorf("told %q", line)
			}
		}
		// One that starts now has seen nothing but the record and the files.
		b.halt()
		b.start()
		b.after(10 * time.Minute)
		if got := b.pod.handover; got.Login(got.Active).Password != good {
			t.Error("a sidecar that started again replaced a working credential by one that the server refuses")
		}
		// The same where the record was gone in between.
		b.edit(func() { b.put(nil) })
		b.after(time.Minute)
		b.edit(func() { b.put(backup.Clone()) })
		b.after(10 * time.Minute)
		if got := b.pod.handover; got.Login(got.Active).Password != good {
			t.Error("the sidecar replaced a working credential by one that the server refuses, because the record was gone in between")
		}
		b.journal.take()
		// init gives the login that no client uses a known password.
		b.edit(func() {
			r := b.store.Record.Clone()
			r.Slots[tenant.A] = tenant.Credential{Password: b.server.Users[names.User(tenant.A)]}
			r.Slots[tenant.B] = tenant.Credential{}
			r.OtherRetired, r.RotatedAt = false, time.Now()
			b.put(r)
		})
		b.after(time.Minute)
		if got := b.pod.handover; got.Login(got.Active) != b.store.Record.Login(tenant.A) {
			t.Error("the repaired record is not handed over")
		}
		b.told("healthy")
	})
	run(t, "a start after the record has moved on", hourly, func(t *testing.T, b *bench) {
		before := b.pod.handover
		b.start()
		b.after(70 * time.Minute)
		b.halt()
		b.journal.take()
		b.edit(func() { b.pod.handover = before; b.server.Down = true })
		b.calls()
		b.start()
		b.after(time.Minute)
		if b.pod.handover != before {
			t.Error("handed over untried")
		}
		b.edit(func() { b.server.Down = false })
		b.after(2 * time.Minute)
		if b.pod.handover.Generation != 2 {
			t.Error("not handed over")
		}
		// There is nothing to lose where nothing is handed over.
		b.halt()
		b.edit(func() { b.pod.handover = nil; b.server.Down = true })
		b.start()
		b.after(time.Second)
		if b.pod.handover == nil {
			t.Error("nothing handed over")
		}
		b.journal.take()
	})
	run(t, "the record replaced by one of the same generation", Policy{Period: 10 * time.Hour, Grace: 10 * time.Minute}, func(t *testing.T, b *bench) {
		b.start()
		b.after(time.Hour)
		b.edit(func() {
			r := made(func(r *tenant.Record) {
				r.Active, r.Generation, r.RotatedAt, r.OtherRetired = tenant.B, b.store.Record.Generation, time.Now(), false
			})
			b.sets(r)
			b.put(r)
			b.open(nil, tenant.B, "1")
		})
		b.after(9 * time.Minute)
		if b.store.Record.OtherRetired {
			t.Error("retired before its grace was over, which is another credential's age")
		}
		b.after(3 * time.Minute)
		if !b.store.Record.OtherRetired {
			t.Error("not retired")
		}
	})
	run(t, "the record lost, and rollouts in the name of the old one", Policy{Period: time.Hour, Grace: time.Minute}, func(t *testing.T, b *bench) {
		b.rolls = true
		b.start()
		rollouts := 0
		adopt := func() {
			b.after(70 * time.Minute)
			if rollouts++; b.rollouts != rollouts {
				t.Fatalf("%d rollouts, want %d: %+v", b.rollouts, rollouts, b.store.Record)
			}
			var client *memory.Session
			b.edit(func() { b.rolled = true; client = b.open(nil, b.store.Record.Active, "1") })
			b.after(10 * time.Minute)
			if !b.store.Record.OtherRetired {
				t.Fatalf("not retired: %+v", b.store.Record)
			}
			b.edit(client.End)
		}
		adopt()
		adopt()
		for range 3 {
			b.edit(func() {
				r := made(func(r *tenant.Record) { r.RotatedAt, r.Generation = time.Now(), 1 })
				b.sets(r)
				b.put(r)
			})
			adopt()
			adopt()
		}
	})
	run(t, "the record cannot be read", hourly, func(t *testing.T, b *bench) {
		b.start()
		b.after(time.Second)
		b.api(true)
		b.after(time.Second)
		b.told("failed read: connection refused")
		b.after(10 * time.Minute)
		b.told() // the files are looked after, which is no recovery
		b.api(false)
		b.after(time.Second)
		b.told("healthy")
	})
	run(t, "the API server gone while a rotation is due", hourly, func(t *testing.T, b *bench) {
		b.start()
		b.after(time.Second)
		b.api(true)
		b.after(5 * time.Hour)
		got := b.journal.take()
		if n := len(got); n < 200 || n > 400 || !strings.HasPrefix(got[0], "failed read") || !strings.HasPrefix(got[n-1], "failed stage") {
			t.Errorf("told %d times: %q", n, got[:min(n, 3)])
		}
		b.api(false)
		b.after(5 * time.Second) // and not a backoff later
		if got := b.journal.take(); !slices.Contains(got, "rotated 2") || !slices.Contains(got, "healthy") {
			t.Errorf("told %q", got)
		}
	})
	run(t, "labels edited (B11)", hourly, func(t *testing.T, b *bench) {
		b.start()
		b.after(30 * time.Second)
		b.calls()
		b.edit(func() { b.put(b.store.Record.Clone()) })
		b.after(10 * time.Second)
		if n := b.calls(); n > 0 {
			t.Errorf("%d calls", n)
		}
	})
	run(t, "a conflict storm", hourly, func(t *testing.T, b *bench) {
		b.start()
		b.after(50 * time.Minute)
		b.before = func(_ *proc, what string) error {
			if what == "write record" {
				b.store.Record.ConnectionLimit++
			}
			return nil
		}
		b.calls()
		b.after(20 * time.Minute)
		b.told() // no failure
		if n := b.calls(); n < 100 || n > 20_000 {
			t.Errorf("%d calls in ten minutes of storm", n)
		}
		b.edit(func() { b.before = nil })
		b.after(30 * time.Second)
		b.told("rotated 2")
	})
	run(t, "the clock jumps", hourly, func(t *testing.T, b *bench) {
		var client *memory.Session
		b.edit(func() { client = b.open(nil, tenant.A, "1") })
		b.start()
		b.after(10 * time.Minute)
		b.offset = 8760 * time.Hour
		b.after(2 * time.Minute)
		b.told("rotated 2", "postponed OldCredentialInUse") // early, and once
		b.offset = 0
		b.edit(func() { client.End(); b.open(nil, tenant.B, "1") })
		b.halt()
		b.start() // it has never seen a right clock
		b.after(5 * time.Minute)
		b.told("retired", "rotated 3", "postponed OldCredentialInUse") // at first sight (S12)
		if age := time.Since(b.store.Record.RotatedAt); age < 0 || age > time.Hour {
			t.Errorf("rotated %s ago", age)
		}
	})
	run(t, "a record that comes late", hourly, func(t *testing.T, b *bench) {
		old := b.store.Record.Clone()
		b.start(func(_ *proc, r *Rotation) { r.Store = lateStore{r.Store, old} })
		b.after(3 * time.Hour)
		if b.store.Record.Generation < 2 || b.pod.handover.Generation != b.store.Record.Generation {
			t.Errorf("generation %d, handed over %d", b.store.Record.Generation, b.pod.handover.Generation)
		}
		generations := []string{}
		for _, line := range b.trace {
			if _, g, ok := strings.Cut(line, "publishes generation "); ok {
				generations = append(generations, g)
			}
		}
		if !slices.IsSorted(generations) {
			t.Errorf("the hand-over went back: %v", generations)
		}
	})
	// A stalled replica must not set a password that has moved on: init dropped its change and made another one
	// active on the same slot, all while this one stood between its look and its deed.
	run(t, "a late apply (f)", hourly, func(t *testing.T, b *bench) {
		b.rewrite(pends(tenant.B, tenant.Activate))
		b.then = func(_ *proc, what string) {
			if what != "count sessions" {
				return
			}
			b.then = nil
			r := b.store.Record.Clone()
			r.Pending = &tenant.Change{Slot: tenant.B, Password: tenant.NewPassword(), Purpose: tenant.Activate}
			r.Commit(time.Now())
			b.server.Users[names.User(tenant.B)] = r.Slots[tenant.B].Password
			b.put(r)
		}
		b.start()
		b.after(10 * time.Second)
		b.told()
		if b.server.Users[names.User(tenant.B)] != b.store.Record.Slots[tenant.B].Password || b.store.Record.Generation != 2 || b.then != nil {
			t.Error("the active slot was changed")
		}
	})
	// The stage was right, and then a client came back, and then an outage hides it right when the session is looked for.
	run(t, "an outage is no evidence", hourly, func(t *testing.T, b *bench) {
		b.server.Users[names.User(tenant.B)] = fresh
		b.rewrite(func(r *tenant.Record) {
			r.Slots[tenant.B] = tenant.Credential{Password: fresh}
			r.Active, r.OtherRetired, r.Generation, r.RotatedAt, r.Clients = tenant.B, false, 2, time.Now().Add(-time.Hour/2), 1
			r.Pending = &tenant.Change{Slot: tenant.A, Password: tenant.NewPassword(), Purpose: tenant.Retire}
		})
		before := b.server.Users[names.User(tenant.A)]
		b.edit(func() { b.open(nil, tenant.B, "1") })
		b.then = func(_ *proc, what string) {
			if what == "count sessions" && b.count[what] == 3 { // apply's first
				b.then = nil
				time.AfterFunc(2*time.Second, func() { b.edit(func() { b.open(nil, tenant.A, "2") }) })
			}
		}
		b.start()
		b.after(25 * time.Minute)
		b.told("postponed OldCredentialInUse")
		if b.server.Users[names.User(tenant.A)] != before || b.then != nil {
			t.Error("a client was cut off")
		}
	})
}

// lateStore tells every piece of news, and the first one again.
type lateStore struct {
	tenant.FollowedStore
	old *tenant.Record
}

func (s lateStore) Follow(ctx context.Context) <-chan tenant.News {
	in, out := s.FollowedStore.Follow(ctx), make(chan tenant.News)
	go func() {
		defer close(out)
		for u := range in {
			for _, u := range []tenant.News{u, {Record: s.old.Clone()}} {
				select {
				case out <- u:
				case <-ctx.Done():
				}
			}
		}
	}()
	return out
}

// TestStopLoop: asked to end at any call of a rotation, the loop ends without an error and in time, no step is begun any more,
// and the next one goes on.
func TestStopLoop(t *testing.T) {
	t.Parallel()
	for n := 1; n < 40; n++ {
		run(t, fmt.Sprint("at call ", n), Policy{Period: time.Minute, Grace: 5 * time.Second}, func(t *testing.T, b *bench) {
			b.edit(func() { b.open(nil, tenant.B, "1") }) // the one client, as it will be
			b.server.Users[names.User(tenant.B)], b.server.Users[names.User(tenant.A)] = b.server.Users[names.User(tenant.A)], b.server.Users[names.User(tenant.B)]
			b.rewrite(func(r *tenant.Record) {
				r.Active = tenant.B
				r.Slots[tenant.A], r.Slots[tenant.B] = r.Slots[tenant.B], r.Slots[tenant.A]
			})
			calls := 0
			var stopped time.Time
			b.then = func(*proc, string) {
				if calls++; calls == n {
					b.stop()
					stopped = time.Now()
				}
			}
			b.start()
			select {
			case <-b.done:
				if took := time.Since(stopped); took > time.Second {
					t.Errorf("took %s", took)
				}
				for _, line := range b.journal.take() {
					if strings.HasPrefix(line, "failed") {
						t.Errorf("told %q", line)
					}
				}
				b.then = nil
				b.start()
			case <-time.After(10 * time.Minute): // the call was never reached
			}
			b.after(5 * time.Minute)
			if b.store.Record.Generation < 2 {
				t.Errorf("got %+v", b.store.Record)
			}
		})
	}
}
