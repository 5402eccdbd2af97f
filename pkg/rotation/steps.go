// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// errBusy: another client has a session on the slot whose password is to be set.
var errBusy = errors.New("the slot has other sessions")

// perform runs one step. When the program is to end, the step gets a little time to come to its own end: stop is the caller's
// context, the deadline the step's.
func (l *loop) perform(stop context.Context, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(stop), l.Attempt)
	defer cancel()
	defer context.AfterFunc(stop, func() { time.AfterFunc(farewell, cancel) })()
	return step(ctx)
}

// do performs what Next has decided.
func (l *loop) do(stop context.Context, step Step) error {
	return l.perform(stop, func(ctx context.Context) error {
		switch step.Kind {
		case Project:
			return l.project(ctx)
		case Look:
			return l.look(ctx, step.What)
		case Adopt:
			// Control planes that are asked for something else were asked in the name of an earlier credential, or of another record;
			// but perhaps also in the name of a later credential of this one, and this replica has not heard of it.
			if err := l.Adoption.Request(ctx, l.record, l.unchanged); err != nil {
				return err
			}
			l.seen.Adopted = Requested
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
	})
}

// project brings the hand-over to the record's state. It holds what worked so far, and a record of which this process does not
// know where it comes from, perhaps from a backup, is no reason to replace that by what the server refuses: a control plane
// that starts in its old pod, without init, would not come up again. At an ordinary start the hand-over, by init, carries the
// very credential, and no server is asked.
func (l *loop) project(ctx context.Context) error {
	replaced := l.Socket != nil && l.records > 1 // which the hand-over of a socket does not show
	if !l.trusted && (replaced || l.Replaces(l.record)) {
		err := l.open(l.record.Server).Login(ctx, l.record.Login(l.record.Active))
		if fault.Is(err, fault.WrongPassword) && l.Socket != nil {
			return fmt.Errorf("the record was replaced by one whose active login is locked out: sessions go on with the login that worked before, the next start "+
				"of init repairs the record: %w", err)
		}
		if fault.Is(err, fault.WrongPassword) {
			return fmt.Errorf("the record has another active login than the hand-over, and it is locked out: the hand-over stays as it is, the next start of init "+
				"repairs the record: %w", err)
		}
		if err != nil {
			return err
		}
	}
	l.trusted = true
	if err := l.Publish(l.record); err != nil {
		return err
	}
	l.seen.Projected, l.filesChecked = true, l.Now()
	return nil
}

// look asks for one thing that Next does not know.
func (l *loop) look(ctx context.Context, what What) error {
	switch what {
	case PendingLogin:
		return l.pendingLogin(ctx)
	case ActiveSessions:
		s, err := l.sessions(ctx, l.record.Active)
		switch {
		case !fault.Is(err, fault.WrongPassword):
		case l.seen.Pending == Accepted:
			// The active slot is locked out, and the pending password is not: it need not be asked who is there.
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
	case Adoptions:
		return l.adoptions(ctx)
	case OldLogins:
		return l.oldLogins(ctx)
	}
	return fmt.Errorf("rotation: nothing of kind %d to look at", what)
}

// pendingLogin asks the server about the pending password.
func (l *loop) pendingLogin(ctx context.Context) error {
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
}

// adoptions asks how far the control planes have come with the active credential.
func (l *loop) adoptions(ctx context.Context) error {
	asked, reported, progress, err := l.Adoption.Status(ctx, l.record)
	switch {
	case err != nil:
		return err
	case !asked:
		l.seen.Adopted = Unrequested
	case reported:
		l.seen.Adopted = Reported
	default:
		l.seen.Adopted = Requested
	}
	l.progress = progress
	return nil
}

// drain is what is known of the time since the server accepted a pending password: a sidecar that starts again waits again.
type drain struct {
	password dbserver.Password
	since    time.Time // when it was first seen to be accepted
	// entering are the logins that were under way when the last that began before should have ended, and have been since.
	entering []string
	listed   bool
}

// held is for how long this process has known that the server accepts the pending password.
func (l *loop) held(now time.Time) time.Duration {
	if p := l.record.Pending; p == nil || p.Password != l.drain.password {
		return 0
	}
	return now.Sub(l.drain.since)
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

// watch keeps for how long all looks have been the same. It counts up to the last look, and no further.
func (l *loop) watch() {
	other, active, now := l.seen.Other, l.seen.Active, l.Now()
	switch {
	case other == nil || active == nil: // half a look
		return
	case other.Addresses > 0 || active.Addresses == 0:
		l.quietSince = time.Time{}
		return
	case l.quietSince.IsZero():
		l.quietSince = now
	}
	l.seen.Quiet = now.Sub(l.quietSince)
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

// apply sets the pending password as the slot itself, where no other client has a session on it.
//
// The order is what keeps a replica that stands still between any two of these lines from setting a password that has moved
// on since. It holds a session on the slot; then it sees that no other client does; then it sees that the change is still pending.
// From there on every other replica, and init, finds this session and leaves the slot alone, for as long as it lasts.
func (l *loop) apply(ctx context.Context, stop <-chan struct{}) error {
	p := *l.record.Pending
	self, err := l.open(l.record.Server).TenantSession(ctx, l.record.Login(p.Slot))
	if fault.Is(err, fault.WrongPassword) {
		// Perhaps a rival applied it a moment ago; or the record's password of this slot is not right any more.
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
	if err := l.unchanged(ctx); err != nil {
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
	if err := l.pendingLogin(ctx); err != nil {
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

// discard throws a pending password away that a policy refused, after a login has shown that it was not applied.
func (l *loop) discard(ctx context.Context, why error) error {
	l.rejections++
	if err := l.pendingLogin(ctx); err != nil || l.seen.Pending == Accepted {
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

// commit makes the pending password the slot's.
func (l *loop) commit(ctx context.Context) error {
	now := l.Now().UTC().Truncate(time.Second)
	purpose, clients := l.record.Pending.Purpose, 0
	if l.seen.Active != nil {
		clients = l.seen.Active.Addresses
	}
	err := l.update(ctx, func(r *tenant.Record) {
		r.Commit(now)
		if purpose == tenant.Activate && clients > 0 {
			r.Clients = clients // no client at all is no evidence: then as many have to move as the last time
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
