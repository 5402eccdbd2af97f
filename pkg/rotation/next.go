// SPDX-License-Identifier: Apache-2.0

// Package rotation changes a tenant's password on a schedule, without the admin's credential and without a query that fails.
//
// A tenant has two logins, the slots. One is active: the hand-over carries it. A rotation gives the other one a new
// password, logged in as that very slot, makes it the active one, has the control plane move over, and then gives the slot
// that was left a password that is never handed out, so that a leaked old DSN is dead. No credential in use is ever touched.
//
// Every replica of a control plane runs this loop, and there is no leader. The record is the only thing they share. The
// replica that stages a change first by compare-and-swap fixes its password. From there on every step is the same for all of
// them and may be repeated: so another replica finishes what a crash has cut short, wherever that was.
//
// The decision is apart from the deed. Next is pure, and its table is its test; the loop does one step and asks again. What
// Next does not know it asks for, and only when it matters: an idle sidecar talks to no database at all.
package rotation

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	"dbconnector/pkg/engine"
	"dbconnector/pkg/tenant"
)

// Policy is what the operator chose.
type Policy struct {
	// Period is the age at which the active credential is rotated.
	Period time.Duration
	// Grace is how long the old slot is left alone after a rotation, at least.
	Grace time.Duration
}

// Verdict is what a server says of a password.
type Verdict int

// The verdicts.
const (
	Unasked Verdict = iota
	Accepted
	Refused
)

// Adopted says how far the control planes have come with the active credential.
type Adopted int

// The answers.
const (
	// Unknown: it was not looked at.
	Unknown Adopted = iota
	// Unreported: control planes adopt it when they restart, and only their sessions tell.
	Unreported
	// Unrequested: they were not asked to adopt this very credential.
	Unrequested
	// Requested: they were asked, and not all report that they have it.
	Requested
	// Reported: they were asked, and all report that they have it.
	Reported
)

// Observation is what was seen of the world outside the record. What is nil or zero was not looked at yet.
type Observation struct {
	// Known is how long this generation has been known here, by a clock that does not jump, and FromStart that it was first seen
	// when it began: then Known is its age.
	Known     time.Duration
	FromStart bool
	// Projected: the hand-over carries what the record says.
	Projected bool
	// Pending is the server's verdict on the pending password, and Stored on the one that the record holds for the slot that
	// is to get another.
	Pending, Stored Verdict
	// Held is for how long it has been known here that the server accepts the pending password, by a clock that does not jump.
	Held time.Duration
	// Remains is what was left of logins to the pending slot that began before the look, and Looked what Held was then.
	Remains *engine.Remains
	Looked  time.Duration
	// Active and Other are the sessions of the two slots, but for the one that looked.
	Active, Other *engine.Sessions
	// Quiet is for how long every look found clients on the active slot and none on the other.
	Quiet time.Duration
	// Adopted is what the control planes report.
	Adopted Adopted
}

// Kind says what a step does.
type Kind int

// The kinds of steps, in the order of their table (docs/rotation.md).
const (
	// Wait: nothing to do before Until.
	Wait Kind = iota
	// Project writes the hand-over.
	Project
	// Look asks for one thing more: What says which.
	Look
	// Adopt asks the control planes to adopt the active credential.
	Adopt
	// Stage writes a fresh password for Slot into the record, as pending with Purpose.
	Stage
	// Apply sets the pending password on the server, logged in as the slot with its stored one.
	Apply
	// Commit makes the pending password the slot's, which the server was seen to accept.
	Commit
	// Doubt notes in the record that the server refuses what the record holds for the inactive slot: init acts on it.
	Doubt
	// Postpone: something is due but must not be done yet, for Why. Ask again at Until.
	Postpone
)

var kinds = [...]string{"wait", "project", "look", "adopt", "stage", "apply", "commit", "doubt", "postpone"}

// String is the step's name in logs and metrics.
func (k Kind) String() string { return kinds[k] }

// What is something to look at.
type What int

// What can be looked at.
const (
	PendingLogin What = iota + 1
	ActiveSessions
	OtherSessions
	Adoptions
	OldLogins
)

// Reason says why something was postponed; it is a metric's label and stands in Events.
type Reason string

// The reasons.
const (
	// OtherInUse: the slot that would get a new password has sessions.
	OtherInUse Reason = "OldCredentialInUse"
	// NotAdopted: not every client has moved to the active slot.
	NotAdopted Reason = "NotAdopted"
	// LoginUnderWay: the server has let logins in that may have begun with a dead password, and does not show yet whose they are.
	LoginUnderWay Reason = "LoginUnderWay"
	// OtherUnknown: the record does not hold the password of the inactive slot. The next init run renews it.
	OtherUnknown Reason = "InactiveSlotUnknown"
	// RepairPending: init has begun to change a password with the admin's credential, and was cut short.
	RepairPending Reason = "RepairPending"
)

// Step is what to do next.
type Step struct {
	Kind    Kind
	What    What           // Look
	Slot    tenant.Slot    // Stage
	Purpose tenant.Purpose // Stage
	Until   time.Time      // Wait, Postpone
	Why     Reason         // Postpone
}

const (
	// recheck and longRecheck bound how often something that was postponed is looked at again. A rollout takes minutes,
	// but a control plane that is not restarted takes weeks, and a thousand of them must cost a server nothing.
	recheck     = 30 * time.Second
	longRecheck = 15 * time.Minute
	// unknownRecheck is for what only init can repair, unless a server has been wrong about a password.
	unknownRecheck = 5 * time.Minute
	// patience, in graces: after so long without a client on the old slot, while the active one has clients, they
	// are not counted any more. Otherwise an operator who scales down, or runs a backup during a rotation, would wait for ever.
	patience = 6
)

// Next decides. It is pure: the same input gives the same step, on every replica.
func Next(r *tenant.Record, seen Observation, now time.Time, p Policy) Step {
	due := period(r, p) - age(r, seen, now)
	if ahead := r.RotatedAt.Sub(now); ahead > p.Period/10 && !seen.FromStart {
		// A clock was wrong when it was made, or is now. Pods may live shorter than the period: none of them would know it for
		// long enough. The next commit sets it right; what is less ahead is only as late as that. A sidecar that saw it begin
		// knows its age: else a replica whose clock is ahead for good would have the others rotate after each of its rotations
		// (docs/failures.md S12).
		due = 0
	}
	switch {
	case !r.Provisioned():
		return Step{Kind: Wait, Until: now.Add(recheck)} // init is at work
	case !seen.Projected:
		return Step{Kind: Project}
	case r.Pending != nil:
		return pending(r, seen, now, p)
	case !r.OtherRetired:
		return adoption(r, seen, now, p)
	case due > 0:
		return Step{Kind: Wait, Until: now.Add(due)}
	}
	other := r.Active.Other()
	switch {
	case r.Slots[other].Password == "":
		return unknown(now)
	case seen.Stored == Refused:
		return doubt(r, seen, now)
	case seen.Other == nil: // who is there does not matter: it has to be a login that works
		return Step{Kind: Look, What: OtherSessions}
	}
	return Step{Kind: Stage, Slot: other, Purpose: tenant.Activate}
}

// pending: a password is on its way. What the server says decides how far it came.
func pending(r *tenant.Record, seen Observation, now time.Time, p Policy) Step {
	change := r.Pending
	switch {
	case change.Admin || change.Slot == r.Active:
		// A credential in use is never touched here. And init may stand still right before it sets this password, so that
		// the slot must not move on by itself, accepted or not.
		return Step{Kind: Postpone, Until: now.Add(unknownRecheck), Why: RepairPending}
	case seen.Pending == Unasked:
		return Step{Kind: Look, What: PendingLogin}
	case seen.Pending == Accepted && change.Purpose == tenant.Activate && seen.Active == nil:
		// How many clients have to move is known only before the move.
		return Step{Kind: Look, What: ActiveSessions}
	case seen.Pending == Accepted && change.Purpose == tenant.Retire:
		return drained(seen, now)
	case seen.Pending == Accepted:
		return Step{Kind: Commit}
	case r.Slots[change.Slot].Password == "":
		return unknown(now)
	case seen.Stored == Refused:
		return doubt(r, seen, now)
	case change.Purpose == tenant.Retire && !r.OtherRetired:
		// The evidence was there when this was staged. But a client may have come back since, and would be cut off now.
		if missing, ok := moved(r, seen, now, p); !ok {
			return missing
		}
	}
	return Step{Kind: Apply}
}

// drained: the server knows the password that is never handed out. A login that began with the one before may still become a session:
// the server reads the verifier when a login begins. Only when that can be no more, and all that it left has been ended, is
// the old password dead.
func drained(seen Observation, now time.Time) Step {
	left := seen.Remains
	if left == nil || seen.Looked < left.LoginTime && seen.Held >= left.LoginTime {
		return Step{Kind: Look, What: OldLogins}
	}
	since := seen.Held - left.LoginTime
	switch {
	case since < 0:
		return Step{Kind: Wait, Until: now.Add(-since)}
	case left.Sessions > 0:
		return Step{Kind: Postpone, Until: now.Add(min(max(since/8, time.Second), recheck)), Why: OtherInUse}
	case len(left.Entering) > 0:
		return Step{Kind: Postpone, Until: now.Add(min(max(since/8, time.Second), recheck)), Why: LoginUnderWay}
	}
	return Step{Kind: Commit}
}

// adoption: the active slot is new and a client may still use the old one.
func adoption(r *tenant.Record, seen Observation, now time.Time, p Policy) Step {
	switch seen.Adopted {
	case Unknown:
		return Step{Kind: Look, What: Adoptions}
	case Unrequested:
		return Step{Kind: Adopt}
	}
	since := age(r, seen, now)
	if seen.FromStart {
		since = seen.Known // a clock that jumped ahead must not cut it short
	}
	if grace := p.Grace - since; grace > 0 {
		return Step{Kind: Wait, Until: now.Add(grace)}
	}
	if missing, ok := moved(r, seen, now, p); !ok {
		return missing
	}
	return Step{Kind: Stage, Slot: r.Active.Other(), Purpose: tenant.Retire}
}

// moved says whether every client has moved to the active slot, or else what is to be done first. It wants evidence, never
// its absence: in an outage all sessions are gone, too.
func moved(r *tenant.Record, seen Observation, now time.Time, p Policy) (Step, bool) {
	later := now.Add(again(age(r, seen, now)-p.Grace, p))
	// Control planes that were asked for something else say nothing about this credential.
	reported := seen.Adopted == Reported
	switch {
	case r.Slots[r.Active.Other()].Password == "":
		return unknown(now), false
	case seen.Adopted == Unknown:
		return Step{Kind: Look, What: Adoptions}, false
	case seen.Adopted == Requested:
		return Step{Kind: Postpone, Until: later, Why: NotAdopted}, false
	case seen.Stored == Refused:
		return doubt(r, seen, now), false
	case seen.Other == nil:
		return Step{Kind: Look, What: OtherSessions}, false
	case seen.Other.Addresses > 0:
		return Step{Kind: Postpone, Until: later, Why: OtherInUse}, false
	case seen.Active == nil:
		return Step{Kind: Look, What: ActiveSessions}, false
	case seen.Active.Addresses == 0, !reported && seen.Active.Here == 0:
		// Another client of the active slot has read it from the record's Secret: that says nothing of the control plane in this very
		// pod, however long it stays away.
		return Step{Kind: Postpone, Until: later, Why: NotAdopted}, false
	case !reported && seen.Active.Addresses < r.Clients && seen.Quiet < patience*p.Grace:
		return Step{Kind: Postpone, Until: later, Why: NotAdopted}, false
	}
	return Step{}, true
}

// doubt: neither the pending password, where there is one, nor the stored one opens the inactive slot. The record keeps what
// it holds, for perhaps it is the server that is wrong for a while (a standby that lags behind), but init is asked to look.
func doubt(r *tenant.Record, seen Observation, now time.Time) Step {
	switch {
	case !r.OtherRefused:
		return Step{Kind: Doubt}
	case seen.Active == nil:
		// After a restore from a backup the active slot is locked out as well, and nothing else would say so.
		return Step{Kind: Look, What: ActiveSessions}
	}
	return unknown(now)
}

func unknown(now time.Time) Step {
	return Step{Kind: Postpone, Until: now.Add(unknownRecheck), Why: OtherUnknown}
}

// again is when to look again at what has been postponed for some time: the longer, the later.
func again(since time.Duration, p Policy) time.Duration {
	return min(max(since/8, min(recheck, p.Grace), time.Second), longRecheck)
}

// age is how old the active credential is. Clocks jump, and differ: a credential is at least as old as we have known it, or
// one that was made under a clock in the future would never become old.
func age(r *tenant.Record, seen Observation, now time.Time) time.Duration {
	return max(now.Sub(r.RotatedAt), seen.Known)
}

// Due is when the active credential is to be rotated, if clocks are right.
func Due(r *tenant.Record, p Policy) time.Time { return r.RotatedAt.Add(period(r, p)) }

// period is the policy's, give or take up to a tenth. The part is drawn from the tenant and the generation, so that all
// replicas agree, and a thousand tenants that were made in one minute do not meet again.
func period(r *tenant.Record, p Policy) time.Duration {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(r.UID), uint64(r.Generation))) //nolint:gosec // at least 1
	tenth := p.Period / 10
	if tenth <= 0 {
		return p.Period
	}
	part := time.Duration(binary.BigEndian.Uint64(sum[:8])>>1) % (2 * tenth)
	return p.Period - tenth + part
}
