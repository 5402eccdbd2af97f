// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/engine/memory"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/provision"
	"dbconnector/pkg/tenant"
)

// The world in memory: a server with two logins and their sessions, the store of the record, pods with init, sidecar and a
// control plane that reads its DSN once, and a workload that restarts them. Time is the bubble's, and what happens when is
// drawn from a seed: every call takes a while, some much longer, some fail before or after they had their effect, and some
// are the last that their process makes. The invariants are checked where a password changes, by the server itself.

const uid = "unit/test"

var (
	names     = tenant.NamesOf(uid)
	here      = dbserver.Server{Engine: dbserver.Postgres, Host: "here", Port: 5432, SSLMode: dbserver.Disable}
	errKilled = errors.New("killed")
	errAway   = fault.New(fault.Unavailable, "connection refused")
)

type world struct {
	t  *testing.T
	mu sync.Mutex
	Policy
	rolls  bool // the control planes are asked to adopt, by a rollout
	mixed  bool // each start of a pod may be in another mode: the operator moves the tenant, or takes the move back
	faults odds
	points map[string]int // crash points that were hit, by name
	plan   []int          // the calls that are the last ones of the next sidecars
	effect bool           // and whether they have their effect

	server *memory.Server
	store  *memory.Store
	// refuse is asked before a login changes its own password.
	refuse func() error
	late   map[*memory.Session]bool // a statement is on its way
	rng    *rand.Rand               // for what no process does
	// before and then are called around the effect of every call.
	before func(by *proc, what string) error
	then   func(by *proc, what string)
	count  map[string]int // calls, by name

	processes map[*process]bool
	pods      []*pod
	lifetime  time.Duration // of a control plane's process, give or take half of it
	nat       bool          // all clients come from one address
	published map[dbserver.Password]bool
	requested string
	rolled    bool
	rollouts  int
	request   chan string
	trace     []string
	silent    bool // the journal is off
}

// attack: an attacker that has the DSN which was rotated away does with it what the server allows (S5).
func (w *world) attack(ctx context.Context, rng *rand.Rand) {
	for wait(ctx, moment(rng, 4*time.Second)) {
		w.mu.Lock()
		var h *memory.Login
		if r := w.store.Record; r != nil && !w.server.Down && w.published[w.password(r.Active.Other())] {
			h = w.server.Begin(names.User(r.Active.Other()))
			w.note("attacker: begins a login on %s", h.User)
		}
		w.mu.Unlock()
		if h == nil {
			continue
		}
		unseen, hidden, stays := moment(rng, w.server.LoginTime), time.Duration(0), moment(rng, 30*time.Second)
		if rng.IntN(4) == 0 {
			hidden = moment(rng, time.Minute)
		}
		go func() {
			defer w.Do(func() { w.server.Forget(h) })
			if !wait(ctx, unseen) {
				return
			}
			w.Do(func() { h.In = true })
			if !wait(ctx, hidden) {
				return
			}
			var s *memory.Session
			w.Do(func() {
				if s = w.server.Finish(h, evil); s != nil {
					w.note("attacker: is in on %s", h.User)
				}
			})
			if s != nil {
				wait(ctx, stays)
				w.Do(s.End)
			}
		}()
	}
}

// evil is where the attacker's sessions come from.
const evil = "evil"

// Do runs effect while nothing else happens.
func (w *world) Do(effect func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	effect()
}

// password is the one that a slot's login has on the server.
func (w *world) password(slot tenant.Slot) dbserver.Password { return w.server.Users[names.User(slot)] }

// sets gives both logins the passwords of a record, by hand.
func (w *world) sets(r *tenant.Record) {
	for slot, c := range r.Slots {
		w.server.Users[names.User(slot)] = c.Password
	}
}

// open opens a session of a slot's login; owner is nil for a client of the tenant.
func (w *world) open(owner memory.Link, slot tenant.Slot, address string) *memory.Session {
	return w.server.Open(owner, names.User(slot), address)
}

// survivor says that a login with another password than the slot's is alive, or will be.
func (w *world) survivor(slot tenant.Slot) bool {
	user, now := names.User(slot), w.password(slot)
	return slices.ContainsFunc(w.server.Begun, func(h *memory.Login) bool { return h.User == user && h.Password != now }) ||
		slices.ContainsFunc(w.server.Sessions, func(s *memory.Session) bool { return s.User == user && s.Owner == nil && s.Password != now })
}

// odds are how often, per thousand calls, something happens.
type odds struct{ kill, fail, stall, late, reject int }

func newWorld(t *testing.T, p Policy) *world {
	w := &world{
		t: t, Policy: p, lifetime: 2 * p.Period, server: memory.NewServer(), store: &memory.Store{}, late: map[*memory.Session]bool{},
		rng: rand.New(rand.NewPCG(1, 1)), processes: map[*process]bool{},
		count: map[string]int{}, published: map[dbserver.Password]bool{}, request: make(chan string, 1), points: map[string]int{},
	}
	w.server.Learns, w.server.Refuses = w.learns, w.refuses
	w.server.Ends, w.server.Closes = w.linger, w.closes
	w.store.Writes = w.writes
	w.store.Loses = func(by memory.Link) bool { return by.(*proc).rng.IntN(4) == 0 } //nolint:forcetypeassert // all of this world are
	return w
}

func (w *world) note(format string, args ...any) {
	if !w.silent {
		w.trace = append(w.trace, fmt.Sprintf("%9.3f ", time.Since(epoch).Seconds())+fmt.Sprintf(format, args...))
	}
}

var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // where a bubble's time begins

func (w *world) violated(format string, args ...any) {
	w.note("VIOLATION: "+format, args...)
	w.t.Errorf(format, args...)
}

// proc is a process that calls the world: an init or a sidecar.
type proc struct {
	*world
	name    string
	rng     *rand.Rand // guarded by the world's mutex, as all below
	stop    context.CancelFunc
	dead    bool
	calls   int
	killAt  int    // the call that is the last; 0 for by chance
	address string // its pod's; "" for a test that is about one pod
	// once: the process gives up when a call fails. init's own patience has a jitter that no seed decides.
	once bool
	news *rand.Rand // what it hears of the record comes in its own time
}

var _ memory.Link = (*proc)(nil)

func (p *proc) chance(perMille int) bool { return perMille > 0 && p.rng.IntN(1000) < perMille }

// moment is a duration up to d, and no two are the same.
func moment(rng *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(d))) + time.Duration(rng.IntN(999_983))
}

var wait = memory.Pause

// Call is one call to the world outside.
func (p *proc) Call(ctx context.Context, what string, on *memory.Session, effect func() error) (err error) {
	defer func() {
		if p.once && err != nil && fault.Is(err, fault.Unavailable) {
			p.stop()
		}
	}()
	if what == "set password" && p.isLate(on, effect) {
		return fault.New(fault.Unavailable, "%s: timed out", what)
	}
	p.mu.Lock()
	d := moment(p.rng, 20*time.Millisecond)
	if p.chance(p.faults.stall) {
		d = moment(p.rng, 40*time.Second)
	}
	p.mu.Unlock()
	if !wait(ctx, d) {
		return fault.New(fault.Unavailable, "%s: timed out", what)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return errKilled
	}
	p.calls++
	p.count[what]++
	if p.then != nil {
		defer p.then(p, what)
	}
	if p.before != nil {
		if err := p.before(p, what); err != nil {
			return err
		}
	}
	kill, after := p.chance(p.faults.kill), p.rng.IntN(2) == 0
	if p.killAt > 0 {
		kill, after = p.calls == p.killAt, p.effect
	}
	switch {
	case kill && !after:
		p.die(what, "before")
		return errKilled
	case kill:
		_ = effect() // nobody learns of it
		p.die(what, "after")
		return errKilled
	case p.chance(p.faults.fail):
		if after {
			_ = effect() // nobody learns of it
		}
		p.note("%s: %s fails (effect: %t)", p.name, what, after)
		return fault.New(fault.Unavailable, "%s: connection reset", what)
	}
	err = effect()
	if d := p.server.Databases[names.Database]; d != nil {
		d.Data = true // kine has been there: what is seen of data is another test's business
	}
	return err
}

// isLate: the statement is on its way, and neither the end of the caller's patience nor of its process stops it. Only the end of
// the session does.
func (p *proc) isLate(on *memory.Session, effect func() error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead || !p.chance(p.faults.late) {
		return false
	}
	p.late[on] = true
	p.note("%s: a statement is late", p.name)
	time.AfterFunc(moment(p.rng, time.Minute), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		_ = effect()
		on.End()
	})
	return true
}

// Wait waits for a lock, or for news of the record.
func (p *proc) Wait(ctx context.Context, what string) bool {
	p.mu.Lock()
	d := time.Duration(0)
	switch {
	case what != "news":
		d = moment(p.rng, time.Second)
	case p.faults.stall > 0 && p.news.IntN(50) == 0:
		d = moment(p.news, 20*time.Second)
	default:
		d = moment(p.news, 100*time.Millisecond)
	}
	p.mu.Unlock()
	return wait(ctx, d)
}

// Address is the pod's.
func (p *proc) Address() string { return p.address }

// die ends the process. The server notices at once, or a while later.
func (p *proc) die(what, when string) {
	p.points[when+" "+what]++
	p.note("%s: killed %s %s", p.name, when, what)
	p.dead = true
	p.stop()
	for _, s := range slices.Clone(p.server.Sessions) {
		if s.Owner == memory.Link(p) {
			p.linger(s)
		}
	}
}

// linger ends a session in the server's own time.
func (w *world) linger(s *memory.Session) {
	if w.rng.IntN(2) == 0 {
		s.End()
		return
	}
	time.AfterFunc(moment(w.rng, 30*time.Second), func() { w.Do(s.End) })
}

// closes ends a session that its process has closed.
func (w *world) closes(s *memory.Session) {
	switch by, _ := s.Owner.(*proc); {
	case w.late[s]: // until the statement has come
	case by != nil && by.dead:
		w.linger(s)
	default:
		s.End()
	}
}

// outage: the server goes away and takes all sessions with it.
func (w *world) outage(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("the server is down: %t", down)
	if down {
		w.server.Stop()
		return
	}
	w.server.Start()
}

// refuses is what the server says to a login that changes its own password.
func (w *world) refuses(by memory.Link) error {
	if w.refuse != nil {
		if err := w.refuse(); err != nil {
			return err
		}
	}
	if by.(*proc).chance(w.faults.reject) { //nolint:forcetypeassert // all of this world are
		return fault.New(fault.Rejected, "not to the policy's taste")
	}
	return nil
}

// learns is called for each password that the server learns. Here the promises are checked.
func (w *world) learns(link memory.Link, user string, to dbserver.Password) {
	by := link.(*proc) //nolint:forcetypeassert // all of this world are
	slot, from := tenant.Slot(strings.TrimPrefix(user, names.Database)), w.server.Users[user]
	if from == to {
		return
	}
	r := w.store.Record
	w.note("%s: sets the password of %s", by.name, slot)
	switch {
	case r == nil:
		w.violated("%s: a password changes without a record", by.name)
	case r.Active == slot && r.Slots[slot].Password == from && from != "":
		w.violated("%s: the active slot %s gets another password", by.name, slot)
	}
	for _, s := range w.server.Sessions {
		if s.User == user && s.Owner == nil && s.Address != evil && from != "" {
			w.violated("%s: the password of slot %s changes while it is in use", by.name, slot)
		}
	}
	for c := range w.processes {
		if c.slot == slot && c.counts && c.password == from {
			w.violated("%s: a control plane that runs with slot %s cannot log in any more", by.name, slot)
		}
	}
}

// writes is called for each write of the record. Here its own promises are checked.
func (w *world) writes(link memory.Link, old, next *tenant.Record) {
	by := link.(*proc) //nolint:forcetypeassert // all of this world are
	if _, err := next.Encode(); err != nil {
		w.violated("%s: a record that could not be read: %v", by.name, err)
	}
	if old != nil {
		if old.Equal(next) {
			return
		}
		if old.Pending != nil && next.Pending != nil && old.Pending.Password != next.Pending.Password {
			w.violated("%s: a second pending change", by.name)
		}
		if next.Generation < old.Generation {
			w.violated("%s: the generation goes back", by.name)
		}
		if old.Provisioned() && old.Slots[old.Active].Password == w.password(old.Active) && next.Slots[next.Active].Password != w.password(next.Active) {
			w.violated("%s: the active credential does not log in", by.name)
		}
		if !old.OtherRetired && next.OtherRetired && w.published[w.password(next.Active.Other())] {
			w.violated("%s: retired, and yet a password that was handed over is accepted", by.name)
		}
		if p := old.Pending; p != nil && next.Pending == nil && next.Slots[p.Slot].Password == p.Password && strings.HasPrefix(by.name,
			"sidecar") && w.survivor(p.Slot) {
			w.violated("%s: committed to %s, and a login that began with an older password of slot %s is alive (S5)", by.name, p.Purpose, p.Slot)
		}
		if p := next.Pending; p != nil && next.OtherRefused && !old.OtherRefused && w.password(p.Slot) == p.Password && w.refuse == nil && !w.lost(p.Slot) {
			w.violated("%s: init is called to a change that is done", by.name)
		}
	}
	w.note("%s: record: generation %d, active %s, retired %t, refused %t, pending %t, clients %d", by.name, next.Generation, next.Active, next.OtherRetired,
		next.OtherRefused, next.Pending != nil, next.Clients)
	w.published[next.Slots[next.Active].Password] = true
}

// lost says whether a slot has lost its rights on the database.
func (w *world) lost(slot tenant.Slot) bool {
	d := w.server.Databases[names.Database]
	return d != nil && d.Lost[names.User(slot)]
}

// workload is the control plane's for one process.
type workload struct{ *proc }

func (l workload) Status(ctx context.Context, r *tenant.Record) (asked, rolled bool, progress string, err error) {
	err = l.Call(ctx, "workload status", nil, func() error {
		asked, rolled = l.requested == mark(r), l.rolled
		return nil
	})
	return asked, rolled, fmt.Sprintf("%d rollouts", l.rollouts), err
}

func (l workload) Request(ctx context.Context, r *tenant.Record, current func(context.Context) error) error {
	for {
		var had string
		if err := l.Call(ctx, "workload status", nil, func() error { had = l.requested; return nil }); err != nil || had == mark(r) {
			return err
		}
		if err := current(ctx); err != nil {
			return err
		}
		err := l.Call(ctx, "request rollout", nil, func() error {
			if l.requested != had {
				return errConflict
			}
			l.requested, l.rolled = mark(r), false
			l.rollouts++
			select {
			case <-l.request:
			default:
			}
			l.request <- l.requested
			return nil
		})
		if err != errConflict { //nolint:errorlint // from here
			return err
		}
	}
}

var errConflict = errors.New("conflict")

// mark is what a pod template is asked for.
func mark(r *tenant.Record) string { return fmt.Sprint(r.Generation, " ", r.RotatedAt.Unix()) }

// process is a control plane: it reads its DSN once, when it starts, and keeps it.
type process struct {
	slot     tenant.Slot
	password dbserver.Password
	// counts: from now on its password must not die. Not so for one that began with a hand-over that nobody had kept
	// current, until it has logged in.
	counts bool
}

// pod is one replica of the control plane.
type pod struct {
	*world
	id       int
	rng      *rand.Rand    // guarded by the world's mutex
	skew     time.Duration // of its node's clock
	handover *tenant.Record
	restart  chan struct{}
	ready    bool
	// In this incarnation:
	address string
	asks    bool          // its sidecar asks for rollouts
	brief   time.Duration // how long a control plane uses one login, at most; zero for what is usual in its mode
}

func (w *world) pod(seed uint64, id int) *pod {
	rng := rand.New(rand.NewPCG(seed, uint64(id)))
	p := &pod{world: w, id: id, rng: rng, restart: make(chan struct{}, 1)}
	if w.faults.stall > 0 {
		p.skew = moment(rng, 2*time.Second) - time.Second
	}
	w.pods = append(w.pods, p)
	return p
}

func (p *pod) proc(ctx context.Context, kind string) (*proc, context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	return &proc{
		world: p.world, address: p.address, name: fmt.Sprintf("%s %d", kind, p.id), stop: cancel,
		rng: rand.New(rand.NewPCG(p.rng.Uint64(), 0)), news: rand.New(rand.NewPCG(p.rng.Uint64(), 0)),
	}, ctx
}

func (p *pod) moment(d time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return moment(p.rng, d)
}

// publish is the hand-over of the pod being written.
func (p *pod) publish(ctx context.Context, by *proc, r *tenant.Record) error {
	return by.Call(ctx, "publish", nil, func() error {
		if p.handover == nil || p.handover.Generation != r.Generation {
			p.note("%s: publishes generation %d", by.name, r.Generation)
		}
		p.handover = r.Clone()
		return nil
	})
}

func (p *pod) init(ctx context.Context) error {
	by, ctx := p.proc(ctx, "init")
	by.once = true
	defer by.stop()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	_, err := provision.Run(ctx, provision.Init{
		Namespace: "ns", VCluster: "vc", UID: func(context.Context) (string, error) { return uid, nil },
		ConnectionLimit: 1000, Attempt: 20 * time.Second, Store: p.store.For(by), RecordName: "the record", ForgetCommand: "rm", Log: zap.NewNop(),
		Connector: func(context.Context) (connector.Connector, error) {
			return connector.Connector{Server: here, User: "admin", Password: "admin", Source: "secret ns/c"}, nil
		},
		Publish: func(r *tenant.Record) error { return p.publish(ctx, by, r) },
		Now:     func() time.Time { return time.Now().Add(p.skew) },
	}, func(dbserver.Server) engine.Engine { return p.server.For(by) })
	return err
}

// sidecar runs the loop once, until it is killed or ctx ends.
func (p *pod) sidecar(ctx context.Context, configure ...func(*proc, *Rotation)) {
	by, ctx := p.proc(ctx, "sidecar")
	defer by.stop()
	p.mu.Lock()
	if len(p.plan) > 0 {
		by.killAt, p.plan = p.plan[0], p.plan[1:]
	}
	p.mu.Unlock()
	job := Rotation{
		Policy: p.Policy, Namespace: "ns", VCluster: "vc", Store: p.store.For(by), Observer: &journal{}, Attempt: 20 * time.Second, Log: zap.NewNop(),
		Publish: func(r *tenant.Record) error { return p.publish(ctx, by, r) },
		Replaces: func(r *tenant.Record) bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.handover != nil && p.handover.Login(p.handover.Active) != r.Login(r.Active)
		},
		Now: func() time.Time { return time.Now().Add(p.skew) },
		jitter: func(d time.Duration) time.Duration {
			p.mu.Lock()
			defer p.mu.Unlock()
			return d/2 + moment(by.rng, d)
		},
	}
	if p.rolls || p.asks {
		job.Adoption = workload{by}
	}
	for _, c := range configure {
		c(by, &job)
	}
	if err := Run(ctx, job, func(dbserver.Server) Server { return p.server.For(by) }); err != nil {
		p.t.Errorf("the loop ended: %v", err)
	}
}

// live is the pod's life: init, then a sidecar that is started again whenever it dies, and a control plane.
func (p *pod) live(ctx context.Context) {
	wait(ctx, p.moment(5*time.Second)) // what happens at one instant has no order that a seed decides
	for incarnation := 0; ctx.Err() == nil; incarnation++ {
		p.mu.Lock()
		p.handover, p.ready, p.address = nil, false, fmt.Sprintf("%d.%d", p.id, incarnation)
		if p.nat {
			p.address = "nat"
		}
		p.mode()
		p.note("pod %d: starts, asks for rollouts %t, a login lasts %s", p.id, p.asks, p.brief)
		p.mu.Unlock()
		for p.init(ctx) != nil && wait(ctx, p.moment(5*time.Second)) {
		}
		inside, stop := context.WithCancel(ctx)
		rng := rand.New(rand.NewPCG(uint64(p.moment(time.Hour)), 0))
		var group sync.WaitGroup
		group.Go(func() {
			for inside.Err() == nil {
				p.sidecar(inside)
				wait(inside, p.moment(8*time.Second))
			}
		})
		group.Go(func() {
			for inside.Err() == nil {
				p.control(inside, rng, p.address)
				wait(inside, moment(rng, 2*time.Second))
			}
		})
		select {
		case <-p.restart:
		case <-ctx.Done():
		}
		stop()
		group.Wait()
	}
}

// mode sets the mode of an incarnation. With the socket a control plane moves to the active login by itself, in seconds.
func (p *pod) mode() {
	p.asks, p.brief = p.rolls, 0
	if !p.mixed {
		return
	}
	switch p.rng.IntN(3) {
	case 0:
		p.asks = true
	case 1:
		p.brief = 5 * time.Second
	}
}

// control is one process of the control plane, from its start to its end.
func (p *pod) control(ctx context.Context, rng *rand.Rand, address string) {
	lifetime := p.lifetime/2 + moment(rng, p.lifetime)
	switch {
	case p.asks:
		lifetime = time.Hour + moment(rng, time.Hour) // nothing but a rollout ends it
	case p.brief > 0:
		lifetime = moment(rng, p.brief)
	}
	ctx, cancel := context.WithTimeout(ctx, lifetime)
	defer cancel()
	p.mu.Lock()
	h, r := p.handover, p.store.Record
	if h == nil {
		p.mu.Unlock()
		return
	}
	c := &process{slot: h.Active, password: h.Slots[h.Active].Password}
	c.counts = p.password(c.slot) == c.password && (h.Generation == r.Generation || time.Since(r.RotatedAt) < p.Grace/2)
	p.processes[c] = true
	p.note("control plane %s: starts with slot %s (generation %d)", address, c.slot, h.Generation)
	p.mu.Unlock()
	var s *memory.Session
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.note("control plane %s: ends", address)
		p.ready = false
		delete(p.processes, c)
		if s != nil {
			s.End()
		}
	}()
	if !wait(ctx, moment(rng, 2*time.Second)) {
		return
	}
	for {
		p.mu.Lock()
		switch {
		case p.server.Down:
			s = nil
		case p.password(c.slot) != c.password:
			p.mu.Unlock()
			return // it began with a hand-over that was out of date; the promises are checked elsewhere
		default:
			s = p.open(nil, c.slot, address)
			c.counts, p.ready = true, true
		}
		p.mu.Unlock()
		if s != nil {
			select {
			case <-s.Ended:
			case <-ctx.Done():
				return
			}
		}
		if !wait(ctx, moment(rng, 1500*time.Millisecond)) { // settling is longer than it takes to come back
			return
		}
	}
}

// roll restarts the pods one after the other whenever that was asked for.
func (w *world) roll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case asked := <-w.request:
			for _, p := range w.pods {
				p.restart <- struct{}{}
				for ready := false; !ready; {
					if !wait(ctx, time.Second) {
						return
					}
					w.mu.Lock()
					ready = p.ready
					w.mu.Unlock()
				}
			}
			w.mu.Lock()
			w.rolled = w.requested == asked
			w.mu.Unlock()
		}
	}
}

// journal is an Observer that keeps what it is told.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf(format, args...))
}

func (j *journal) take() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	lines := j.lines
	j.lines = nil
	return lines
}

func (j *journal) Record(*tenant.Record, time.Time)    {}
func (j *journal) Rotated(r *tenant.Record)            { j.add("rotated %d", r.Generation) }
func (j *journal) Retired(*tenant.Record)              { j.add("retired") }
func (j *journal) Postponed(why Reason, detail string) { j.add("postponed %s", why) }
func (j *journal) Failed(step string, err error)       { j.add("failed %s: %v", step, err) }
func (j *journal) Healthy()                            { j.add("healthy") }
