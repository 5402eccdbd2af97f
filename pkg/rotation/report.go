// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"strings"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/engine"
	"dbconnector/pkg/fault"
)

// readRecord is the one failure that is no step's.
const readRecord = "read"

// ended tells of sessions on a login that no client should use.
func (l *loop) ended(left engine.Remains) {
	if left.Sessions > 0 {
		l.Log.Warn("ended sessions of a retired login", zap.Int("sessions", left.Sessions),
			zap.String("user", l.record.Login(l.record.Active.Other()).User))
	}
}

// tellInit notes in the record that the inactive slot lacks a right: to change its own password, or to use the database. Only
// the admin can repair that, and init, which looks at the active slot alone, would not know that it has to.
func (l *loop) tellInit(ctx context.Context, step Step, err error) {
	inactive := step.Kind == Apply || step.Kind == Look && (step.What == PendingLogin || step.What == OtherSessions)
	if inactive && fault.Is(err, fault.NoAccess) && !l.record.OtherRefused {
		_ = l.do(ctx, Step{Kind: Doubt}) // the failure is reported either way, and the next one tries again
	}
}

// failed is fail, unless the program is to end: perhaps it failed because of that.
func (l *loop) failed(ctx context.Context, step string, err error) time.Duration {
	if ctx.Err() != nil {
		return 0
	}
	return l.fail(step, err)
}

// fail reports a failure, and says how long to wait.
func (l *loop) fail(step string, err error) time.Duration {
	l.lookAgain()
	l.quietSince = time.Time{}
	l.failures++
	l.failing = true
	wait := l.jitter(l.backoff(err))
	l.Observer.Failed(step, err)
	l.postpone("")
	l.Log.Warn("a step failed (continuing)", zap.String("step", step), zap.String("error", err.Error()),
		zap.Int("attempt", l.failures), zap.Duration("next", wait))
	return wait
}

// backoff is by the class of the error: a moment, or longer where a human has to act.
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
	if l.failing && !l.unreadable && l.failures == 0 {
		l.failing = false
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

// describe says in words what waits, and for what.
func (l *loop) describe(why Reason) string {
	active, other := l.record.Login(l.record.Active).User, l.record.Login(l.record.Active.Other()).User
	left := l.seen.Remains
	switch why {
	case OtherInUse:
		switch {
		case left != nil && left.Sessions > 0:
			return "sessions that began with a dead password of login " + other + " do not end: see the server's list of sessions"
		case l.record.OtherRetired:
			return "login " + other + " has sessions, and its password was never handed out: they are ended"
		}
		if l.Socket != nil {
			return "login " + other + " is still in use: sessions of the socket end as soon as they have been idle for a while, or kine limits their lifetime; " +
				"restart what else uses it"
		}
		return "login " + other + " is still in use: restart what uses it"
	case LoginUnderWay:
		return "the server has let clients in that are in no list of sessions yet, perhaps with a dead password of login " + other +
			": its processes " + strings.Join(left.Entering, ", ")
	case NotAdopted:
		switch {
		case l.seen.Adopted == Requested:
			return l.progress
		case l.seen.Active != nil && l.seen.Active.Here == 0:
			if l.Socket != nil {
				return "no session on login " + active + " comes from this pod: its control plane does not use the socket"
			}
			return "no session on login " + active + " comes from this pod: restart its control plane"
		}
		return "not every client has moved to login " + active
	case OtherUnknown:
		return "the password of login " + other + " is not known any more: the next start of init renews it"
	case RepairPending:
		return "init has begun to change a password: if it does not end soon, the next start of init finishes it"
	}
	return string(why)
}
