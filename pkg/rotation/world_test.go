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
	names      = tenant.NamesOf(uid)
	here       = dbserver.Server{Engine: dbserver.Postgres, Host: "here", Port: 5432, SSLMode: dbserver.Disable}
	errKilled  = errors.New("killed")
	errIgnored = errors.New("ignored")
	errAway    = fault.New(fault.Unavailable, "connection refused")
	errWrong   = fault.New(fault.WrongPassword, "wrong password")
)

type world struct {
	t  *testing.T
	mu sync.Mutex
	Policy
	rolls  bool // the control planes are asked to adopt, by a rollout
	faults odds
	points map[string]int // crash points that were hit, by name
	plan   []int          // the calls that are the last ones of the next sidecars
	effect bool           // and whether they have their effect

	// The server.
	users    map[tenant.Slot]dbserver.Password
	stripped map[tenant.Slot]bool // has lost its rights on the database
	sessions []*session
	down     bool
	lock     *session // the admin's lock
	halves   []*half  // logins that an attacker has begun
	numbered int      // logins, so that of two it is known which is older
	// refuse is asked before a login changes its own password; errIgnored: the server says yes and does nothing.
	refuse func() error
	// before and then are called around the effect of every call.
	before func(by *proc, what string) error
	then   func(by *proc, what string)
	count  map[string]int // calls, by name

	// The store.
	record  *tenant.Record
	changed chan struct{} // closed when the record changes
	apiDown bool

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

// window is how long a login may take on this world's server.
const window = 8 * time.Second

// half is a login that somebody began with a password that was right then. It is nowhere to be seen until it is let in, and
// what is seen of it afterwards, for as long as its client wants, is that it is under way.
type half struct {
	slot     tenant.Slot
	password dbserver.Password
	number   int
	inside   bool
}

// attack: whoever has the DSN that was rotated away does with it what the server allows (S5).
func (w *world) attack(ctx context.Context, rng *rand.Rand) {
	for wait(ctx, moment(rng, 4*time.Second)) {
		w.mu.Lock()
		var h *half
		if r := w.record; r != nil && !w.down && w.published[w.users[r.Active.Other()]] {
			w.numbered++
			h = &half{slot: r.Active.Other(), password: w.users[r.Active.Other()], number: w.numbered}
			w.halves = append(w.halves, h)
			w.note("attacker: begins a login on %s", h.slot)
		}
		w.mu.Unlock()
		if h == nil {
			continue
		}
		unseen, hidden, stays := moment(rng, window), time.Duration(0), moment(rng, 30*time.Second)
		if rng.IntN(4) == 0 {
			hidden = moment(rng, time.Minute)
		}
		go func() {
			defer w.forsake(h)
			if !wait(ctx, unseen) {
				return
			}
			w.mu.Lock()
			h.inside = true
			w.mu.Unlock()
			if !wait(ctx, hidden) {
				return
			}
			w.mu.Lock()
			var s *session
			if slices.Contains(w.halves, h) {
				w.note("attacker: is in on %s", h.slot)
				s = w.open(nil, h.slot, "evil")
				s.password, s.number, s.hostile = h.password, h.number, true
			}
			w.mu.Unlock()
			w.forsake(h)
			if s == nil {
				return
			}
			wait(ctx, stays)
			w.mu.Lock()
			s.end()
			w.mu.Unlock()
		}()
	}
}

func (w *world) forsake(h *half) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.halves = slices.DeleteFunc(w.halves, func(other *half) bool { return other == h })
}

// survivor says that a login with another password than the slot's is alive, or will be.
func (w *world) survivor(slot tenant.Slot) bool {
	return slices.ContainsFunc(w.halves, func(h *half) bool { return h.slot == slot && h.password != w.users[slot] }) ||
		slices.ContainsFunc(w.sessions, func(s *session) bool { return s.slot == slot && s.owner == nil && s.password != w.users[slot] })
}

// odds are how often, per thousand calls, something happens.
type odds struct{ kill, fail, stall, late, reject int }

func newWorld(t *testing.T, p Policy) *world {
	return &world{
		t: t, Policy: p, lifetime: 2 * p.Period, users: map[tenant.Slot]dbserver.Password{}, changed: make(chan struct{}), processes: map[*process]bool{},
		count: map[string]int{}, published: map[dbserver.Password]bool{}, request: make(chan string, 1), points: map[string]int{},
	}
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
}

func (p *proc) chance(perMille int) bool { return perMille > 0 && p.rng.IntN(1000) < perMille }

// moment is a duration up to d, and no two are the same.
func moment(rng *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(d))) + time.Duration(rng.IntN(999_983))
}

func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// call is one call to the world outside.
func (p *proc) call(ctx context.Context, what string, effect func() error) (err error) {
	defer func() {
		if p.once && err != nil && fault.Is(err, fault.Unavailable) {
			p.stop()
		}
	}()
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
	return effect()
}

// die ends the process. The server notices at once, or a while later.
func (p *proc) die(what, when string) {
	p.points[when+" "+what]++
	p.note("%s: killed %s %s", p.name, when, what)
	p.dead = true
	p.stop()
	for _, s := range slices.Clone(p.sessions) {
		if s.owner == p {
			p.linger(s)
		}
	}
}

func (p *proc) linger(s *session) {
	if p.rng.IntN(2) == 0 {
		s.end()
		return
	}
	time.AfterFunc(moment(p.rng, 30*time.Second), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		s.end()
	})
}

// session is a session on the server; slot is "" for the admin's.
type session struct {
	*world
	owner   *proc // nil for a control plane's
	slot    tenant.Slot
	address string
	ended   chan struct{}
	late    bool // a statement is on its way
	hostile bool
	// password is the one that it began with; number says when.
	password dbserver.Password
	number   int
}

func (w *world) open(owner *proc, slot tenant.Slot, address string) *session {
	w.numbered++
	s := &session{world: w, owner: owner, slot: slot, address: address, ended: make(chan struct{}), password: w.users[slot], number: w.numbered}
	w.sessions = append(w.sessions, s)
	return s
}

func (s *session) alive() bool { return slices.Contains(s.sessions, s) }

func (s *session) end() {
	if i := slices.Index(s.sessions, s); i >= 0 {
		s.sessions = slices.Delete(s.sessions, i, i+1)
		close(s.ended)
		if s.lock == s {
			s.lock = nil
		}
	}
}

// outage: the server goes away and takes all sessions with it.
func (w *world) outage(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("the server is down: %t", down)
	w.down, w.halves = down, nil
	for len(w.sessions) > 0 {
		w.sessions[0].end()
	}
}

// change is the one place where a password changes. Here the promises are checked.
func (w *world) change(by *proc, slot tenant.Slot, to dbserver.Password) {
	from := w.users[slot]
	if from == to {
		return
	}
	r := w.record
	w.note("%s: sets the password of %s", by.name, slot)
	switch {
	case r == nil:
		w.violated("%s: a password changes without a record", by.name)
	case r.Active == slot && r.Slots[slot].Password == from && from != "":
		w.violated("%s: the active slot %s gets another password", by.name, slot)
	}
	for _, s := range w.sessions {
		if s.slot == slot && s.owner == nil && !s.hostile && from != "" {
			w.violated("%s: the password of slot %s changes while it is in use", by.name, slot)
		}
	}
	for c := range w.processes {
		if c.slot == slot && c.counts && c.password == from {
			w.violated("%s: a control plane that runs with slot %s cannot log in any more", by.name, slot)
		}
	}
	w.users[slot] = to
}

// database is the world as the server for one process.
type database struct {
	engine.Engine // what neither program asks for
	*proc
}

func (s database) login(l tenant.Login) (tenant.Slot, error) {
	if s.down {
		return "", errAway
	}
	slot := tenant.Slot(strings.TrimPrefix(l.User, names.Database))
	if p, ok := s.users[slot]; !ok || p != l.Password {
		return "", errWrong
	}
	return slot, nil
}

func (s database) Login(ctx context.Context, l tenant.Login) error {
	return s.call(ctx, "login", func() error { _, err := s.login(l); return err })
}

// Ready is Login, and finds the rights that the slot was left.
func (s database) Ready(ctx context.Context, l tenant.Login, _ tenant.Names) error {
	return s.call(ctx, "login", func() error {
		slot, err := s.login(l)
		if err == nil && s.stripped[slot] {
			err = fault.New(fault.NoAccess, "no rights")
		}
		return err
	})
}

// HasData is Login: this world's database always holds data, which is another test's business.
func (s database) HasData(ctx context.Context, l tenant.Login) (bool, error) {
	return true, s.Login(ctx, l)
}

func (s database) Verify(ctx context.Context, l tenant.Login, _ tenant.Names) ([]string, error) {
	return nil, s.call(ctx, "verify", func() error { _, err := s.login(l); return err })
}

func (s database) TenantSession(ctx context.Context, l tenant.Login) (engine.TenantSession, error) {
	var out *self
	err := s.call(ctx, "open session", func() error {
		slot, err := s.login(l)
		if err == nil {
			out = &self{s, s.open(s.proc, slot, "sidecar")}
		}
		return err
	})
	if err != nil {
		if out != nil { // it was opened, and nobody knows
			s.mu.Lock()
			s.linger(out.session)
			s.mu.Unlock()
		}
		return nil, err
	}
	return out, nil
}

type self struct {
	database
	session *session
}

func (s *self) lost() error {
	if s.down || !s.session.alive() {
		return errAway
	}
	return nil
}

func (s *self) Sessions(ctx context.Context) (out engine.Sessions, err error) {
	err = s.call(ctx, "count sessions", func() error {
		if err := s.lost(); err != nil {
			return err
		}
		addresses := map[string]bool{}
		for _, other := range s.sessions {
			if other.slot == s.session.slot && other != s.session {
				out.Count++
				if other.owner == nil {
					addresses[other.address] = true
					if s.address == "" || other.address == s.address {
						out.Here++
					}
				}
			}
		}
		out.Addresses = len(addresses)
		return nil
	})
	return out, err
}

// Expel: the server ends sessions in its own time.
func (s *self) Expel(ctx context.Context) (out engine.Remains, err error) {
	out.LoginTime = window
	err = s.call(ctx, "end sessions", func() error {
		if err := s.lost(); err != nil {
			return err
		}
		for _, other := range slices.Clone(s.sessions) {
			if other.slot == s.session.slot && other.number < s.session.number {
				out.Sessions++
				s.linger(other)
			}
		}
		for _, h := range s.halves {
			if h.inside {
				out.Entering = append(out.Entering, fmt.Sprint(h.number))
			}
		}
		return nil
	})
	return out, err
}

// SetPassword may be late: the statement is on its way, and neither the end of the caller's patience nor of its process
// stops it. Only the end of the session does.
func (s *self) SetPassword(ctx context.Context, p dbserver.Password) error {
	s.mu.Lock()
	late := s.chance(s.faults.late)
	s.mu.Unlock()
	if !late {
		return s.call(ctx, "set password", func() error { return s.set(p) })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return errKilled
	}
	s.session.late = true
	s.note("%s: a statement is late", s.name)
	time.AfterFunc(moment(s.rng, time.Minute), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = s.set(p)
		s.session.end()
	})
	return fault.New(fault.Unavailable, "timed out")
}

func (s *self) set(p dbserver.Password) error {
	if err := s.lost(); err != nil {
		return err
	}
	if s.refuse != nil {
		switch err := s.refuse(); {
		case errors.Is(err, errIgnored):
			return nil
		case err != nil:
			return err
		}
	}
	if s.chance(s.faults.reject) {
		return fault.New(fault.Rejected, "not to the policy's taste")
	}
	s.change(s.proc, s.session.slot, p)
	return nil
}

func (s *self) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.session.late: // until the statement has come
	case s.dead:
		s.linger(s.session)
	default:
		s.session.end()
	}
}

// admin is what init may do besides.
type admin struct {
	database
	session *session
}

func (s database) Admin(ctx context.Context, _ string, _ dbserver.Password) (engine.Admin, error) {
	var out *admin
	err := s.call(ctx, "open admin session", func() error {
		if s.down {
			return errAway
		}
		out = &admin{s, s.open(s.proc, "", "admin")}
		return nil
	})
	if err != nil {
		if out != nil {
			out.Close()
		}
		return nil, err
	}
	return out, nil
}

func (a *admin) Lock(ctx context.Context, _ tenant.Names) error {
	for {
		got := false
		err := a.do(ctx, "lock", func() error {
			if a.lock == nil || a.lock == a.session {
				a.lock, got = a.session, true
			}
			return nil
		})
		if err != nil || got {
			return err
		}
		a.mu.Lock()
		d := moment(a.rng, time.Second)
		a.mu.Unlock()
		if !wait(ctx, d) {
			return fault.New(fault.Unavailable, "somebody holds the lock")
		}
	}
}

func (a *admin) do(ctx context.Context, what string, effect func() error) error {
	return a.call(ctx, what, func() error {
		if a.down || !a.session.alive() {
			return errAway
		}
		return effect()
	})
}

func (a *admin) Ensure(ctx context.Context, want engine.Spec) (done engine.Outcome, err error) {
	return done, a.do(ctx, "ensure", func() error {
		clear(a.stripped)
		for slot, p := range want.Passwords {
			if _, ok := a.users[slot]; !ok {
				a.users[slot] = p
			}
		}
		return nil
	})
}

func (a *admin) InUse(ctx context.Context, user string) (used bool, err error) {
	err = a.do(ctx, "in use", func() error {
		used = slices.ContainsFunc(a.sessions, func(s *session) bool { return s.slot != "" && names.User(s.slot) == user })
		return nil
	})
	return used, err
}

func (a *admin) SetPassword(ctx context.Context, user string, p dbserver.Password) error {
	return a.do(ctx, "admin sets password", func() error {
		a.change(a.proc, tenant.Slot(strings.TrimPrefix(user, names.Database)), p)
		return nil
	})
}

func (a *admin) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.session.end()
}

// store is the world as the store for one process.
type store struct{ *proc }

func (s store) Load(ctx context.Context) (r *tenant.Record, err error) {
	err = s.call(ctx, "read record", func() error {
		if s.apiDown {
			return errAway
		}
		r = s.record.Clone()
		return nil
	})
	return r, err
}

func (s store) Update(ctx context.Context, fn func(*tenant.Record) (*tenant.Record, error)) (r *tenant.Record, err error) {
	err = s.call(ctx, "write record", func() error {
		if s.apiDown {
			return errAway
		}
		if s.rng.IntN(4) == 0 { // a conflict: what it made is thrown away
			if _, err := fn(s.record.Clone()); err != nil {
				return err
			}
		}
		next, err := fn(s.record.Clone())
		if err != nil {
			return err
		}
		s.write(s.proc, next)
		r = next.Clone()
		return nil
	})
	return r, err
}

// write is the one place where the record changes. Here its own promises are checked.
func (w *world) write(by *proc, next *tenant.Record) {
	old := w.record
	if _, err := next.Encode(); err != nil {
		w.violated("%s: a record that nobody could read: %v", by.name, err)
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
		if old.Provisioned() && old.Slots[old.Active].Password == w.users[old.Active] && next.Slots[next.Active].Password != w.users[next.Active] {
			w.violated("%s: the active credential does not log in", by.name)
		}
		if !old.OtherRetired && next.OtherRetired && w.published[w.users[next.Active.Other()]] {
			w.violated("%s: retired, and yet a password that was handed over is accepted", by.name)
		}
		if p := old.Pending; p != nil && next.Pending == nil && next.Slots[p.Slot].Password == p.Password && strings.HasPrefix(by.name, "sidecar") && w.survivor(p.Slot) {
			w.violated("%s: committed to %s, and a login that began with an older password of slot %s is alive (S5)", by.name, p.Purpose, p.Slot)
		}
		if p := next.Pending; p != nil && next.OtherRefused && !old.OtherRefused && w.users[p.Slot] == p.Password && w.refuse == nil && !w.stripped[p.Slot] {
			w.violated("%s: init is called to a change that is done", by.name)
		}
	}
	w.note("%s: record: generation %d, active %s, retired %t, refused %t, pending %t, clients %d", by.name, next.Generation, next.Active, next.OtherRetired, next.OtherRefused, next.Pending != nil, next.Clients)
	w.record = next.Clone()
	w.published[next.Slots[next.Active].Password] = true
	close(w.changed)
	w.changed = make(chan struct{})
}

// Follow may be behind, but the last word comes through.
func (s store) Follow(ctx context.Context) <-chan tenant.News {
	out := make(chan tenant.News, 1)
	s.mu.Lock()
	rng := rand.New(rand.NewPCG(s.rng.Uint64(), 0))
	s.mu.Unlock()
	go func() {
		defer close(out)
		for {
			s.mu.Lock()
			news, changed := tenant.News{Record: s.record.Clone()}, s.changed
			if s.apiDown {
				news = tenant.News{Err: errAway}
			}
			stalls := s.faults.stall > 0
			s.mu.Unlock()
			delay := moment(rng, 100*time.Millisecond)
			if stalls && rng.IntN(50) == 0 {
				delay = moment(rng, 20*time.Second)
			}
			if !wait(ctx, delay) {
				return
			}
			select {
			case <-out:
			default:
			}
			out <- news
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// workload is the control plane's for one process.
type workload struct{ *proc }

func (l workload) Status(ctx context.Context, r *tenant.Record) (asked, rolled bool, progress string, err error) {
	err = l.call(ctx, "workload status", func() error {
		asked, rolled = l.requested == mark(r), l.rolled
		return nil
	})
	return asked, rolled, fmt.Sprintf("%d rollouts", l.rollouts), err
}

func (l workload) Request(ctx context.Context, r *tenant.Record, current func(context.Context) error) error {
	for {
		var had string
		if err := l.call(ctx, "workload status", func() error { had = l.requested; return nil }); err != nil || had == mark(r) {
			return err
		}
		if err := current(ctx); err != nil {
			return err
		}
		err := l.call(ctx, "request rollout", func() error {
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
	address  string // in this incarnation
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
		rng: rand.New(rand.NewPCG(p.rng.Uint64(), 0)),
	}, ctx
}

func (p *pod) moment(d time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return moment(p.rng, d)
}

// publish is the hand-over of the pod being written.
func (p *pod) publish(ctx context.Context, by *proc, r *tenant.Record) error {
	return by.call(ctx, "publish", func() error {
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
		ConnectionLimit: 10, Attempt: 20 * time.Second, Store: store{by}, RecordName: "the record", ForgetCommand: "rm", Log: zap.NewNop(),
		Connector: func(context.Context) (connector.Connector, error) {
			return connector.Connector{Server: here, User: "admin", Password: "admin", Source: "secret ns/c"}, nil
		},
		Publish: func(r *tenant.Record) error { return p.publish(ctx, by, r) },
		Now:     func() time.Time { return time.Now().Add(p.skew) },
	}, func(dbserver.Server) engine.Engine { return database{proc: by} })
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
		Policy: p.Policy, Namespace: "ns", VCluster: "vc", Store: store{by}, Observer: &journal{}, Attempt: 20 * time.Second, Log: zap.NewNop(),
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
	if p.rolls {
		job.Adoption = workload{by}
	}
	for _, c := range configure {
		c(by, &job)
	}
	if err := Run(ctx, job, func(dbserver.Server) engine.Engine { return database{proc: by} }); err != nil {
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
		p.note("pod %d: starts", p.id)
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

// control is one process of the control plane, from its start to its end.
func (p *pod) control(ctx context.Context, rng *rand.Rand, address string) {
	lifetime := p.lifetime/2 + moment(rng, p.lifetime)
	if p.rolls {
		lifetime = time.Hour + moment(rng, time.Hour) // nothing but a rollout ends it
	}
	ctx, cancel := context.WithTimeout(ctx, lifetime)
	defer cancel()
	p.mu.Lock()
	h, r := p.handover, p.record
	if h == nil {
		p.mu.Unlock()
		return
	}
	c := &process{slot: h.Active, password: h.Slots[h.Active].Password}
	c.counts = p.users[c.slot] == c.password && (h.Generation == r.Generation || time.Since(r.RotatedAt) < p.Grace/2)
	p.processes[c] = true
	p.note("control plane %s: starts with slot %s (generation %d)", address, c.slot, h.Generation)
	p.mu.Unlock()
	var s *session
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.note("control plane %s: ends", address)
		p.ready = false
		delete(p.processes, c)
		if s != nil {
			s.end()
		}
	}()
	if !wait(ctx, moment(rng, 2*time.Second)) {
		return
	}
	for {
		p.mu.Lock()
		switch {
		case p.down:
			s = nil
		case p.users[c.slot] != c.password:
			p.mu.Unlock()
			return // it began with a hand-over that was out of date; the promises are checked elsewhere
		default:
			s = p.open(nil, c.slot, address)
			c.counts, p.ready = true, true
		}
		p.mu.Unlock()
		if s != nil {
			select {
			case <-s.ended:
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
