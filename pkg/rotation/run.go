// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// Store keeps the tenant's record.
type Store interface {
	// Update stores fn(old) if nobody else wrote meanwhile, else tries again: fn may run more than once and must have no
	// effects. old is nil where there is no record.
	Update(ctx context.Context, fn func(old *tenant.Record) (*tenant.Record, error)) (*tenant.Record, error)
	// Follow sends the record as it is now and every time it changed, until ctx ends. It never blocks the writer: of records
	// that nobody took yet, the latest is sent. What goes wrong is sent, too, and following goes on.
	Follow(ctx context.Context) <-chan tenant.News
}

// Workload is the control plane's Deployment or StatefulSet.
type Workload interface {
	// Status tells whether the pod template asks for the adoption of the record's active credential, of that one and of no
	// other, and whether the workload reports that all its pods have the template as it is, and are ready. progress says how far
	// it has come, and how to find out what holds it up.
	Status(ctx context.Context, r *tenant.Record) (asked, rolled bool, progress string, err error)
	// Request makes the pod template ask for it, which restarts the pods one after the other. Where it asks already, nothing
	// is changed. Otherwise current is called after the template was read, and what was read is replaced only if current
	// returned nil and nobody else changed it meanwhile: whoever comes late takes nothing back.
	Request(ctx context.Context, r *tenant.Record, current func(context.Context) error) error
}

// Observer is told what happens, for metrics and Events. Its methods must not block.
type Observer interface {
	// Record: this is the record now.
	Record(r *tenant.Record, due time.Time)
	// Rotated: this replica committed a rotation. The others learn of it through the record.
	Rotated(r *tenant.Record)
	// Retired: this replica saw the old credential die.
	Retired(r *tenant.Record)
	// Postponed: something is due and must wait; "" when nothing is any more, or when a step failed, for then nobody knows. It
	// is called once for each state, not for each look.
	Postponed(why Reason, detail string)
	// Failed: a step failed. It is called for every failure.
	Failed(step string, err error)
	// Healthy: steps succeed again.
	Healthy()
}

// Rotation rotates one tenant's credential. A field is required unless it says what its zero value means.
type Rotation struct {
	Policy
	// Namespace, VCluster and TenantUID say whose record it has to be, see tenant.Record.Of; an empty TenantUID: of any tenant's.
	Namespace, VCluster, TenantUID string
	Store                          Store
	Workload                       Workload // nil without Policy.Rollout
	// Publish brings the hand-over to the record's state. It may be called at any time and changes nothing that is right.
	Publish func(r *tenant.Record) error
	// Replaces says whether Publish would replace a DSN by another one. Where it cannot tell, it says yes.
	Replaces func(r *tenant.Record) bool
	Observer Observer
	// Attempt bounds one step.
	Attempt time.Duration
	// LoginTime caps how long the server says that a login may take; 0 for not. Only tests know better than the server.
	LoginTime time.Duration
	Log       *zap.Logger
	Now       func() time.Time // the clock; nil: the real one

	jitter func(time.Duration) time.Duration // for tests; the time given, give or take half of it
}

const (
	// reproject is how often the hand-over is looked at while nothing happens: somebody may have changed a file.
	reproject = time.Minute
	// firstBackoff and longBackoff bound the wait after a failure. The longest is short against any period worth
	// setting, and long for a server that has a thousand tenants.
	firstBackoff = time.Second
	longBackoff  = time.Minute
	// humanBackoff is for what no repetition mends: somebody, or the next init run, has to act.
	humanBackoff = 5 * time.Minute
	// yield is how long a change is left to the replica, or the init, that has begun it.
	yield = time.Second
	// settling is how long a slot that is to be retired is watched in one session that lasts. A client that lost its
	// sessions in an outage is back by then; and had the outage gone on, the watching session would have gone as well.
	settling = 5 * time.Second
	// farewell is what is left of a step when the program is asked to end: vCluster's pods get 15 s, and before 0.31 10 s.
	farewell = 5 * time.Second
	// maxRejections bounds how often a password that a policy refused is replaced by another one in a row.
	maxRejections = 5
	// maxMoves and maxBusy bound how often another replica is simply believed to be at work.
	maxMoves, maxBusy = 3, 3
)

// Run rotates until ctx ends, which is no error. A step that was begun gets a few seconds to finish, and no other is begun: the
// record says how far it came, and whoever looks next goes on from there.
func Run(ctx context.Context, p Rotation, open func(dbserver.Server) engine.Engine) error {
	l := newLoop(p, open)
	updates := p.Store.Follow(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-updates:
			if !ok {
				return nil // ctx ended
			}
			// What tells nothing new must not cut a wait short: it may be one after a failure.
			if wait, news := l.learn(u); news {
				timer.Reset(wait)
			}
		case <-timer.C:
			// With a record the next step is known; without one only an update helps.
			if l.record != nil {
				timer.Reset(l.turn(ctx))
			}
		}
	}
}

func newLoop(p Rotation, open func(dbserver.Server) engine.Engine) *loop {
	if p.Now == nil {
		p.Now = time.Now
	}
	if p.jitter == nil {
		p.jitter = func(d time.Duration) time.Duration { return d/2 + rand.N(d) } //nolint:gosec // no secret
	}
	return &loop{Rotation: p, open: open}
}

type loop struct {
	Rotation
	open func(dbserver.Server) engine.Engine

	record  *tenant.Record
	suspect bool      // Follow told of a record that is no successor of this one: it has to be read anew
	trusted bool      // record is what became of one whose active credential was in the hand-over, or was tried
	since   time.Time // when record's generation was first seen
	born    bool      // and that was when it began
	seen    Observation
	forget  time.Time // when what was seen is too old
	checked time.Time // when the hand-over was last compared
	drain   drain
	quiet   time.Time // since when there are clients on the active slot and none on the other; zero for not

	deaf       bool // the record cannot be read
	ill        bool // a failure was reported, and no recovery since
	failures   int  // in a row
	busy       int  // times in a row that a slot had sessions when its password was to be set
	rejections int  // in a row
	postponed  Reason
	progress   string // of the rollout, in words
}

// drain is what is known of the time since the server accepted a pending password: a sidecar that starts anew waits anew.
type drain struct {
	password dbserver.Password
	since    time.Time // when it was first seen to be accepted
	// entering are the logins that were under way when the last that began before should have ended, and have been since.
	entering []string
	listed   bool
}

// learn takes in what Follow tells. It says whether that is news, and in how long to act on it.
func (l *loop) learn(u tenant.News) (wait time.Duration, news bool) {
	switch {
	case u.Err != nil:
		l.deaf, l.ill = true, true
		l.Observer.Failed("read", u.Err)
		l.Log.Warn("the record cannot be read (continuing with the last one)", zap.String("error", u.Err.Error()))
		return 0, false
	case u.Record == nil:
		// Deleted under us. The control plane goes on with what it has; the next init makes a new record.
		if l.record != nil || !l.deaf {
			l.Log.Warn("there is no record (waiting)")
		}
		if l.record != nil {
			l.ill = true
			l.Observer.Failed("read", fault.New(fault.Unavailable, "the record was deleted"))
		}
		l.deaf, l.record = true, nil
		l.postpone("")
		return 0, false
	}
	again := l.deaf && l.failures > 0
	if l.deaf {
		l.deaf = false
		l.healthy()
	}
	was := l.record
	switch {
	case was == nil || !same(was, u.Record):
	case again:
		return l.jitter(yield), true // what failed while the record could not be read, failed for the same reason
	default:
		return 0, false // a label, or our own write
	}
	if was != nil && !succeeds(u.Record, was) {
		// Follow may be behind what we have written ourselves, and a hand-over must not go back because of that. Or the
		// record was made anew, or restored from a backup. The store knows.
		l.suspect = true
		return 0, true
	}
	l.adopt(u.Record)
	if was != nil && u.Record.Pending != nil && (was.Pending == nil || *was.Pending != *u.Record.Pending) {
		return l.jitter(yield), true
	}
	return 0, true
}

// same says whether two records say the same.
func same(a, b *tenant.Record) bool {
	x, err := a.Encode()
	if err != nil {
		return false
	}
	y, err := b.Encode()
	return err == nil && string(x) == string(y)
}

// credential says whether two records have the same active credential. The generation alone would not tell: after a record
// was lost, the next one counts from 1 again.
func credential(a, b *tenant.Record) bool {
	return a.Generation == b.Generation && a.Active == b.Active && a.RotatedAt.Equal(b.RotatedAt)
}

// succeeds says whether a record can be what became of another one. A record from a backup may have a higher generation, where
// the one before was made anew; and somebody may have edited the password. Where a clock runs behind, a successor is not taken
// for one, which costs a login.
func succeeds(next, was *tenant.Record) bool {
	if credential(next, was) {
		return next.Slots[next.Active] == was.Slots[was.Active]
	}
	return next.Generation > was.Generation && !next.RotatedAt.Before(was.RotatedAt)
}

// adopt goes on with a record. What was seen of the world belonged to the one before.
func (l *loop) adopt(r *tenant.Record) {
	if l.record == nil || !credential(l.record, r) {
		l.since, l.born, l.quiet = l.Now(), l.record != nil, time.Time{}
	}
	l.trusted = l.trusted && l.record != nil && succeeds(r, l.record)
	l.record, l.seen, l.forget = r, Observation{}, time.Time{}
	l.Observer.Record(r, Due(r, l.Policy))
}

// turn does steps until one has to wait, and tells for how long.
func (l *loop) turn(ctx context.Context) time.Duration {
	for moves := 0; ctx.Err() == nil; {
		if !l.suspect && !l.record.Of(l.Namespace, l.VCluster, l.TenantUID) {
			return l.fail(Step{Kind: Look, What: truth}, fault.New(fault.Refused, "the record was made for vCluster %q in namespace %q: a copy must not change the original's password; the next start of init says what to do",
				l.record.VCluster, l.record.Namespace))
		}
		now := l.Now()
		step := Step{Kind: Look, What: truth}
		if !l.suspect {
			l.observe(now)
			step = Next(l.record, l.seen, now, l.Policy)
		}
		switch step.Kind {
		case Wait, Postpone:
			l.failures, l.busy = 0, 0
			l.healthy()
			l.postpone(step.Why)
			if l.forget.IsZero() { // else this turn was for the files only
				l.forget = step.Until
			}
			return max(min(l.forget.Sub(now), reproject), 10*time.Millisecond)
		}
		err := l.do(ctx, step)
		switch {
		case err == nil && step.Kind == Look, err == nil && step.Kind == Project:
		case err == nil: // what may have waited was done
			l.postpone("")
		case errors.Is(err, errMoved): // no failure: Next is asked about the new one
			if moves++; moves > maxMoves {
				return l.jitter(firstBackoff)
			}
		case errors.Is(err, errBusy):
			return l.giveWay()
		case ctx.Err() != nil: // perhaps it failed for that
			return 0
		default:
			l.tellInit(ctx, step, err)
			return l.fail(step, err)
		}
	}
	return 0
}

// observe brings what was seen up to now.
func (l *loop) observe(now time.Time) {
	if !l.forget.IsZero() && !now.Before(l.forget) {
		l.lookAgain()
	}
	if age := now.Sub(l.checked); age >= reproject || age < 0 {
		l.seen.Projected = false
	}
	l.seen.Known, l.seen.Born, l.seen.Held = now.Sub(l.since), l.born, l.held(now)
}

// held is for how long this process has known that the server accepts the pending password.
func (l *loop) held(now time.Time) time.Duration {
	if p := l.record.Pending; p == nil || p.Password != l.drain.password {
		return 0
	}
	return now.Sub(l.drain.since)
}

// watch keeps for how long all looks have been the same. It counts up to the last look, and no further.
func (l *loop) watch() {
	other, active, now := l.seen.Other, l.seen.Active, l.Now()
	switch {
	case other == nil || active == nil: // half a look
		return
	case other.Addresses > 0 || active.Addresses == 0:
		l.quiet = time.Time{}
		return
	case l.quiet.IsZero():
		l.quiet = now
	}
	l.seen.Quiet = now.Sub(l.quiet)
}

// lookAgain forgets what was seen, but for the files, which have a time of their own.
func (l *loop) lookAgain() {
	l.seen, l.forget = Observation{Projected: l.seen.Projected}, time.Time{}
}

// giveWay waits for whoever has a session on the slot whose password is to be set. Most of the time that is another replica,
// which is about to set the very same password: not worth a word. But if it lasts, it is somebody else.
func (l *loop) giveWay() time.Duration {
	l.lookAgain()
	l.quiet = time.Time{}
	if l.busy++; l.busy > maxBusy {
		l.postpone(OtherInUse)
	} else {
		l.postpone("")
	}
	return l.jitter(min(firstBackoff<<min(l.busy-1, 10), longRecheck))
}

// tellInit notes in the record that the inactive slot lacks a right: to change its own password, or to use the database. Only
// the admin can mend that, and init, which looks at the active slot alone, would not know that it has to.
func (l *loop) tellInit(ctx context.Context, step Step, err error) {
	inactive := step.Kind == Apply || step.Kind == Look && (step.What == PendingLogin || step.What == OtherSessions)
	if inactive && fault.Is(err, fault.NoAccess) && !l.record.OtherRefused {
		_ = l.do(ctx, Step{Kind: Doubt}) // the failure is reported either way, and the next one tries again
	}
}

func (l *loop) fail(step Step, err error) time.Duration {
	l.lookAgain()
	l.quiet = time.Time{}
	l.failures++
	l.ill = true
	wait := l.jitter(l.backoff(err))
	l.Observer.Failed(step.Kind.String(), err)
	l.postpone("")
	l.Log.Warn("a step failed (continuing)", zap.Stringer("step", step.Kind), zap.String("error", err.Error()),
		zap.Int("attempt", l.failures), zap.Duration("next", wait))
	return wait
}

// backoff is by the class of the error: a moment, or a human.
func (l *loop) backoff(err error) time.Duration {
	switch fault.Of(err) {
	case fault.Refused, fault.NoAccess, fault.NoDatabase, fault.WrongPassword:
		if l.failures > 3 { // a race with another replica looks like this, too
			return humanBackoff
		}
	}
	return min(firstBackoff<<min(l.failures-1, 10), longBackoff)
}

// healthy says so once after failures. A step that succeeds says nothing where another one keeps failing: only a turn that
// came to its end counts.
func (l *loop) healthy() {
	if l.ill && !l.deaf && l.failures == 0 {
		l.ill = false
		l.Observer.Healthy()
	}
}

// postpone says once for each state what waits, and that nothing does.
func (l *loop) postpone(why Reason) {
	if l.postponed == why {
		return
	}
	l.postponed = why
	if why == "" {
		l.Observer.Postponed("", "")
		return
	}
	detail := l.describe(why)
	l.Observer.Postponed(why, detail)
	l.Log.Warn("postponed", zap.String("reason", string(why)), zap.String("detail", detail), zap.Int64("generation", l.record.Generation))
}

// do performs one step. When the program is to end, it gets a little time to come to its own end: stop is the caller's context,
// the deadline the step's.
func (l *loop) do(stop context.Context, step Step) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(stop), l.Attempt)
	defer cancel()
	defer context.AfterFunc(stop, func() { time.AfterFunc(farewell, cancel) })()
	switch step.Kind {
	case Project:
		return l.project(ctx)
	case Look:
		return l.look(ctx, step.What)
	case Rollout:
		// A template that asks for something else was changed in the name of an earlier credential, or of another record; but
		// perhaps also in the name of a later credential of this one, and this replica has not heard of it.
		current := func(ctx context.Context) error { return l.update(ctx, func(*tenant.Record) {}) }
		if err := l.Workload.Request(ctx, l.record, current); err != nil {
			return err
		}
		l.seen.Asked, l.seen.Rolled = true, false
		return nil
	case Stage:
		return l.stage(ctx, step)
	case Apply:
		return l.apply(ctx, stop.Done())
	case Commit:
		return l.commit(ctx)
	case Doubt:
		return l.update(ctx, func(r *tenant.Record) { r.OtherRefused = true })
	}
	return fmt.Errorf("rotation: no step of kind %d", step.Kind)
}

// project brings the hand-over to the record's state. It holds what worked so far, and a record of which this process does not
// know where it comes from, perhaps from a backup, is no reason to replace that by what the server refuses: a control plane
// that starts in its old pod, without init, would not come up again. At an ordinary start the hand-over, by init, carries the
// very credential, and no server is asked.
func (l *loop) project(ctx context.Context) error {
	if !l.trusted && l.Replaces(l.record) {
		err := l.open(l.record.Server).Login(ctx, l.record.Login(l.record.Active))
		if fault.Is(err, fault.WrongPassword) {
			return fmt.Errorf("the record has another active login than the hand-over, and it is locked out: the hand-over stays as it is, the next start of init repairs the record: %w", err)
		}
		if err != nil {
			return err
		}
	}
	l.trusted = true
	if err := l.Publish(l.record); err != nil {
		return err
	}
	l.seen.Projected, l.checked = true, l.Now()
	return nil
}

// truth is the record as it is in the store, which Next does not ask for.
const truth What = 0

func (l *loop) look(ctx context.Context, what What) error {
	switch what {
	case truth:
		r, err := l.Store.Update(ctx, func(old *tenant.Record) (*tenant.Record, error) {
			if old == nil {
				return nil, errGone
			}
			return old, nil
		})
		if err != nil {
			return err
		}
		l.suspect = false
		l.adopt(r)
		return nil
	case PendingLogin:
		p := l.record.Pending
		server, login := l.open(l.record.Server), l.record.LoginWith(p.Slot, p.Password)
		var err error
		if p.Purpose == tenant.Activate {
			err = server.Ready(ctx, login, l.record.Names()) // the control plane is going to live on it
		} else {
			err = server.Login(ctx, login)
		}
		switch {
		case err == nil:
			l.seen.Pending = Accepted
			if l.drain.password != p.Password {
				l.drain = drain{password: p.Password, since: l.Now()}
			}
		case !fault.Is(err, fault.WrongPassword):
			return err
		default:
			l.seen.Pending, l.drain = Refused, drain{}
		}
		return nil
	case ActiveSessions:
		s, err := l.sessions(ctx, l.record.Active)
		switch {
		case !fault.Is(err, fault.WrongPassword):
		case l.seen.Pending == Accepted:
			// The active slot is locked out, and the pending password is not: nobody has to be asked who is there.
			s, err = &engine.Sessions{}, nil
		default:
			err = fmt.Errorf("the active login is locked out, the next start of init repairs it: %w", err)
		}
		l.seen.Active = s
		l.watch()
		return err
	case OtherSessions:
		s, err := l.sessions(ctx, l.record.Active.Other())
		if fault.Is(err, fault.WrongPassword) {
			// Perhaps a rival applied the pending password since it was asked about.
			l.seen.Pending, l.seen.Stored, err = Unasked, Refused, nil
		}
		l.seen.Other = s
		return err
	case WorkloadStatus:
		asked, rolled, progress, err := l.Workload.Status(ctx, l.record)
		if err != nil {
			return err
		}
		l.seen.Asked, l.seen.Rolled, l.seen.Workload, l.progress = asked, rolled, true, progress
		return nil
	case OldLogins:
		return l.oldLogins(ctx)
	}
	return fmt.Errorf("rotation: nothing of kind %d to look at", what)
}

// oldLogins ends the sessions that logins with the slot's old password have become. All that began before the look's own session
// go, so that what a client calls itself does not matter. It may be that of a rival that looks or sets the same password: to
// lose its session does a rival no harm, and of two that look together the later one stays.
func (l *loop) oldLogins(ctx context.Context) error {
	p := l.record.Pending
	held := l.held(l.Now())
	self, err := l.open(l.record.Server).TenantSession(ctx, l.record.LoginWith(p.Slot, p.Password))
	if fault.Is(err, fault.WrongPassword) {
		l.seen.Pending = Unasked // the server is wrong now, or was before
		return nil
	}
	if err != nil {
		return err
	}
	defer self.Close()
	left, err := self.Expel(ctx)
	if err != nil {
		return err
	}
	if l.LoginTime > 0 {
		left.LoginTime = min(left.LoginTime, l.LoginTime)
	}
	l.ended(left)
	// Those that come later begin with the new password, or with that of another login.
	switch {
	case held < left.LoginTime:
		left.Entering = nil
	case l.drain.listed:
		left.Entering = slices.DeleteFunc(left.Entering, func(id string) bool { return !slices.Contains(l.drain.entering, id) })
		l.drain.entering = left.Entering
	default:
		l.drain.entering, l.drain.listed = left.Entering, true
	}
	l.seen.Remains, l.seen.Looked = &left, held
	return nil
}

// sessions asks as the very login: a login sees its own sessions on every server, without a right.
func (l *loop) sessions(ctx context.Context, slot tenant.Slot) (*engine.Sessions, error) {
	self, err := l.open(l.record.Server).TenantSession(ctx, l.record.Login(slot))
	if err != nil {
		return nil, err
	}
	defer self.Close()
	s, err := self.Sessions(ctx)
	if err != nil {
		return nil, err
	}
	return &s, nil
}

var (
	// errMoved: somebody else wrote the record since it was looked at.
	errMoved = errors.New("the record has moved on")
	// errBusy: somebody else has a session on the slot whose password is to be set.
	errBusy = errors.New("the slot has other sessions")
	errGone = fault.New(fault.Unavailable, "the record was deleted")
)

// update writes the record if it still is the one that the decision was made for; errMoved if it is not.
func (l *loop) update(ctx context.Context, fn func(r *tenant.Record)) error {
	var theirs *tenant.Record
	next, err := l.Store.Update(ctx, func(old *tenant.Record) (*tenant.Record, error) {
		if old == nil {
			return nil, errGone
		}
		if !same(old, l.record) {
			theirs = old.Clone()
			return nil, errMoved
		}
		fn(old)
		return old, nil
	})
	switch {
	case errors.Is(err, errMoved):
		l.adopt(theirs)
		return err
	case err != nil:
		return err
	case !same(next, l.record):
		l.adopt(next)
	}
	return nil
}

// stage writes the intent. Of replicas that stage together one wins, and the others go on with its password.
func (l *loop) stage(ctx context.Context, step Step) error {
	change := tenant.Change{Slot: step.Slot, Password: tenant.NewPassword(), Purpose: step.Purpose}
	seen := l.seen
	if err := l.update(ctx, func(r *tenant.Record) { r.Pending = &change }); err != nil {
		return err
	}
	// What was seen of the world is as good for the change as it was for the decision.
	l.seen = seen
	l.seen.Projected = true // it carries the same credential
	return nil
}

// apply sets the pending password as the slot itself, where nobody else has a session on it.
//
// The order is what keeps a replica that stands still between any two of these lines from setting a password that has moved
// on since. It holds a session on the slot; then it sees that nobody else does; then it sees that the change is still pending.
// From there on every other replica, and init, finds this session and leaves the slot alone, for as long as it lasts.
func (l *loop) apply(ctx context.Context, stop <-chan struct{}) error {
	p := *l.record.Pending
	self, err := l.open(l.record.Server).TenantSession(ctx, l.record.Login(p.Slot))
	if fault.Is(err, fault.WrongPassword) {
		// Perhaps a rival applied it a moment ago; or nobody knows this slot's password any more.
		l.seen.Pending, l.seen.Stored = Unasked, Refused
		return nil
	}
	if err != nil {
		return err
	}
	defer self.Close()
	if err := l.alone(ctx, self); err != nil {
		return err
	}
	if p.Purpose == tenant.Retire {
		settled := time.NewTimer(min(settling, l.Grace, l.Attempt/2))
		defer settled.Stop()
		select {
		case <-settled.C:
		case <-stop:
			return errBusy
		}
		if err := l.alone(ctx, self); err != nil {
			return err
		}
	}
	if err := l.update(ctx, func(*tenant.Record) {}); err != nil {
		return err
	}
	err = self.SetPassword(ctx, p.Password)
	switch {
	case fault.Is(err, fault.Rejected):
		return l.discard(ctx, err)
	case err != nil:
		return err
	}
	// The server has the last word.
	if err := l.look(ctx, PendingLogin); err != nil {
		return err
	}
	if l.seen.Pending == Refused {
		return fault.New(fault.Refused, "the server changed the password of slot %q and yet refuses it", p.Slot)
	}
	return nil
}

// alone says whether the session is the slot's only one. The password of a slot that is retired was never handed out: a client that
// stays there for longer than a rival would is an intruder, or a rival that stands still, and has to go. The slot is left alone until
// that has happened.
func (l *loop) alone(ctx context.Context, self engine.TenantSession) error {
	sessions, err := self.Sessions(ctx)
	if err != nil || sessions.Count == 0 {
		return err
	}
	if l.record.OtherRetired && l.busy >= maxBusy {
		left, err := self.Expel(ctx)
		if err != nil {
			return err
		}
		l.ended(left)
	}
	return errBusy
}

// ended tells of sessions on a login that no client should use.
func (l *loop) ended(left engine.Remains) {
	if left.Sessions > 0 {
		l.Log.Warn("ended sessions of a retired login", zap.Int("sessions", left.Sessions),
			zap.String("user", l.record.Login(l.record.Active.Other()).User))
	}
}

// discard throws a pending password away that a policy refused, after a login has shown that it was not applied.
func (l *loop) discard(ctx context.Context, why error) error {
	l.rejections++
	if err := l.look(ctx, PendingLogin); err != nil || l.seen.Pending == Accepted {
		return err
	}
	if l.rejections >= maxRejections {
		return fault.New(fault.Refused, "the server refused %d passwords in a row: %w", l.rejections, why)
	}
	if err := l.update(ctx, func(r *tenant.Record) { r.Pending = nil }); err != nil {
		return err
	}
	return fault.New(fault.Unavailable, "the server refused a password, another one is tried: %w", why)
}

func (l *loop) commit(ctx context.Context) error {
	now := l.Now().UTC().Truncate(time.Second)
	purpose, clients := l.record.Pending.Purpose, 0
	if l.seen.Active != nil {
		clients = l.seen.Active.Addresses
	}
	err := l.update(ctx, func(r *tenant.Record) {
		r.Commit(now)
		if purpose == tenant.Activate && clients > 0 {
			r.Clients = clients // nobody at all is no evidence: then as many have to move as the last time
		}
	})
	if err != nil {
		return err
	}
	l.rejections = 0
	r := l.record
	if purpose == tenant.Activate {
		l.Observer.Rotated(r)
		l.Log.Info("rotated", zap.Int64("generation", r.Generation), zap.String("user", r.Login(r.Active).User))
	} else {
		l.Observer.Retired(r)
		l.Log.Info("retired", zap.Int64("generation", r.Generation), zap.String("user", r.Login(r.Active.Other()).User))
	}
	return nil
}

func (l *loop) describe(why Reason) string {
	active, other := l.record.Login(l.record.Active).User, l.record.Login(l.record.Active.Other()).User
	left := l.seen.Remains
	switch why {
	case OtherInUse:
		switch {
		case left != nil && left.Sessions > 0:
			return "sessions that began with a dead password of login " + other + " do not end: see the server's list of sessions"
		case left != nil:
			return "a client was let in and is in no list of sessions yet, perhaps with a dead password of login " + other + ": see the server's pg_locks"
		case l.record.OtherRetired:
			return "login " + other + " has sessions, and its password was never handed out: they are ended"
		}
		return "login " + other + " is still in use: restart what uses it"
	case NotAdopted:
		switch {
		case l.seen.Workload && l.seen.Asked && !l.seen.Rolled:
			return l.progress
		case l.seen.Active != nil && l.seen.Active.Here == 0:
			return "no session on login " + active + " comes from this pod: restart its control plane"
		}
		return "not every client has moved to login " + active
	case OtherUnknown:
		return "nobody knows the password of login " + other + ": the next start of init renews it"
	case RepairPending:
		return "init has begun to change a password: if it does not end soon, the next start of init finishes it"
	}
	return string(why)
}
