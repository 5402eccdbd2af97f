// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// Adoption is how the control planes come to use a new credential.
type Adoption interface {
	// Status tells whether they are asked to adopt the record's active credential, that one and no other, and whether all of them
	// report that they have what they were asked for. progress says how far they have come, and how to find out what holds them up.
	Status(ctx context.Context, r *tenant.Record) (asked, reported bool, progress string, err error)
	// Request asks them to. Where they are asked already, nothing is changed. Otherwise current is called after their state was
	// read, and that is replaced only if current returned nil and nothing else changed it meanwhile: a replica that comes late
	// takes nothing back.
	Request(ctx context.Context, r *tenant.Record, current func(context.Context) error) error
}

// Socket serves sessions of a control plane that holds no password.
type Socket interface {
	// Set is told each record as soon as it is known, so that new sessions use its active login.
	Set(r *tenant.Record)
}

// Observer is told what happens, for metrics and Events. Its methods must not block.
type Observer interface {
	// Record: this is the record now.
	Record(r *tenant.Record, due time.Time)
	// Rotated: this replica committed a rotation. The others learn of it through the record.
	Rotated(r *tenant.Record)
	// Retired: this replica saw the old credential die.
	Retired(r *tenant.Record)
	// Postponed: something is due and must wait; "" when nothing is any more, or when a step failed, for then it is not known. It
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
	Store                          tenant.FollowedStore
	// Adoption asks the control planes to move; nil: they move when they restart, and only their sessions tell.
	Adoption Adoption
	// Socket serves the control plane's sessions, where it holds no password; nil where it does.
	Socket Socket
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

// Server is what the sidecar asks of a database server. The admin's session is not among it.
type Server interface {
	Login(ctx context.Context, login tenant.Login) error
	Ready(ctx context.Context, login tenant.Login, names tenant.Names) error
	TenantSession(ctx context.Context, login tenant.Login) (engine.TenantSession, error)
}

const (
	// reproject is how often the hand-over is looked at while nothing happens: another program may have changed a file.
	reproject = time.Minute
	// firstBackoff and longBackoff bound the wait after a failure. The longest is short against any period worth
	// setting, and long for a server that has a thousand tenants.
	firstBackoff = time.Second
	longBackoff  = time.Minute
	// humanBackoff is for what no repetition repairs: a human, or the next init run, has to act.
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
// record says how far it came, and the next replica that looks goes on from there. open gives access to a server.
func Run(ctx context.Context, p Rotation, open func(dbserver.Server) Server) error {
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

func newLoop(p Rotation, open func(dbserver.Server) Server) *loop {
	if p.Now == nil {
		p.Now = time.Now
	}
	if p.jitter == nil {
		p.jitter = func(d time.Duration) time.Duration { return d/2 + rand.N(d) } //nolint:gosec // no secret
	}
	return &loop{Rotation: p, open: open}
}

// loop is one replica's rotation. It is for one goroutine.
type loop struct {
	Rotation
	open func(dbserver.Server) Server

	record     *tenant.Record
	records    int       // that there were, with this one
	stale      bool      // Follow told of a record that is no successor of this one: it has to be read again
	trusted    bool      // record succeeds one whose active credential was in the hand-over, or was tried
	knownSince time.Time // when record's generation was first seen
	fromStart  bool      // and that was when it began

	seen         Observation
	lookAgainAt  time.Time // when what was seen is too old
	filesChecked time.Time // when the hand-over was last compared
	quietSince   time.Time // since when there are clients on the active slot and none on the other; zero for not
	drain        drain
	progress     string // of the adoption, in words

	unreadable bool   // the record cannot be read
	failing    bool   // a failure was reported, and no recovery since
	failures   int    // in a row
	busy       int    // times in a row that a slot had sessions when its password was to be set
	rejections int    // in a row
	postponed  Reason // what was reported last
}

// turn does steps until one has to wait, and tells for how long.
func (l *loop) turn(ctx context.Context) time.Duration {
	for moves := 0; ctx.Err() == nil; {
		if l.stale {
			if err := l.perform(ctx, l.reload); err != nil {
				return l.failed(ctx, readRecord, err)
			}
		}
		if !l.record.Of(l.Namespace, l.VCluster, l.TenantUID) {
			return l.fail(readRecord, fault.New(fault.Refused, "the record was made for vCluster %q in namespace %q: a copy must not change the original's password; "+
				"the next start of init says what to do",
				l.record.VCluster, l.record.Namespace))
		}
		now := l.Now()
		l.observe(now)
		step := Next(l.record, l.seen, now, l.Policy)
		switch step.Kind {
		case Wait, Postpone:
			l.failures, l.busy = 0, 0
			l.healthy()
			l.postpone(step.Why)
			if l.lookAgainAt.IsZero() { // else this turn was for the files only
				l.lookAgainAt = step.Until
			}
			return max(min(l.lookAgainAt.Sub(now), reproject), 10*time.Millisecond)
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
		case ctx.Err() == nil:
			l.tellInit(ctx, step, err)
			return l.fail(step.Kind.String(), err)
		default:
			return 0 // perhaps it failed because of that
		}
	}
	return 0
}

// observe brings what was seen up to now.
func (l *loop) observe(now time.Time) {
	if !l.lookAgainAt.IsZero() && !now.Before(l.lookAgainAt) {
		l.lookAgain()
	}
	if age := now.Sub(l.filesChecked); age >= reproject || age < 0 {
		l.seen.Projected = false
	}
	l.seen.Known, l.seen.FromStart, l.seen.Held = now.Sub(l.knownSince), l.fromStart, l.held(now)
	if l.Adoption == nil {
		l.seen.Adopted = Unreported
	}
}

// lookAgain forgets what was seen, but for the files, which have a time of their own.
func (l *loop) lookAgain() {
	l.seen, l.lookAgainAt = Observation{Projected: l.seen.Projected}, time.Time{}
}

// giveWay waits for the client that has a session on the slot whose password is to be set. Most of the time that is another
// replica, which is about to set the very same password: not worth a word. If it lasts, it is another client.
func (l *loop) giveWay() time.Duration {
	l.lookAgain()
	l.quietSince = time.Time{}
	if l.busy++; l.busy > maxBusy {
		l.postpone(OtherInUse)
	} else {
		l.postpone("")
	}
	return l.jitter(min(firstBackoff<<min(l.busy-1, 10), longRecheck))
}
