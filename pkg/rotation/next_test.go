// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"fmt"
	"testing"
	"time"

	"dbconnector/pkg/engine"
	"dbconnector/pkg/tenant"
)

var (
	rotatedAt = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	fresh     = tenant.NewPassword()
)

const (
	days30  = 30 * 24 * time.Hour
	minutes = 10 * time.Minute // of grace
)

// made is a record at rest: generation 3, slot a active, slot b retired.
func made(change ...func(*tenant.Record)) *tenant.Record {
	r := tenant.NewRecord(uid, "ns", "vc", here, 10)
	r.ProvisionedAt, r.RotatedAt, r.Generation = rotatedAt.Add(-time.Hour), rotatedAt, 3
	for _, c := range change {
		c(r)
	}
	return r
}

func unretired(clients int) func(*tenant.Record) {
	return func(r *tenant.Record) { r.OtherRetired, r.Clients = false, clients }
}

func pends(slot tenant.Slot, purpose tenant.Purpose) func(*tenant.Record) {
	return func(r *tenant.Record) { r.Pending = &tenant.Change{Slot: slot, Password: fresh, Purpose: purpose} }
}

func blank(r *tenant.Record)   { r.Slots[tenant.B] = tenant.Credential{} }
func admins(r *tenant.Record)  { r.Pending.Admin = true }
func doubted(r *tenant.Record) { r.OtherRefused = true }

func from(addresses int) *engine.Sessions {
	return &engine.Sessions{Count: 3 * addresses, Addresses: addresses, Here: min(addresses, 1)}
}

// TestNext is the table of states (docs/rotation.md), transposed.
func TestNext(t *testing.T) {
	t.Parallel()
	const early, adopted, late = time.Minute, time.Hour, 40 * 24 * time.Hour // since the rotation
	look := func(w What) Step { return Step{Kind: Look, What: w} }
	stage := func(p tenant.Purpose) Step { return Step{Kind: Stage, Slot: tenant.B, Purpose: p} }
	in := func(since, d time.Duration, why Reason) Step {
		kind := Postpone
		if why == "" {
			kind = Wait
		}
		return Step{Kind: kind, Why: why, Until: rotatedAt.Add(since + d)}
	}
	due := Due(made(), Policy{Period: days30}).Sub(rotatedAt)
	seen := func(o Observation) Observation { o.Projected = true; return o }
	rivals, foreign := &engine.Sessions{Count: 2}, &engine.Sessions{Count: 1, Addresses: 1}
	left := func(sessions int, entering ...string) *engine.Remains {
		return &engine.Remains{Sessions: sessions, Entering: entering, LoginTime: time.Minute}
	}

	for name, tc := range map[string]struct {
		reason  string
		record  *tenant.Record
		seen    Observation
		since   time.Duration // the rotation
		rollout bool
		want    Step
	}{
		"not provisioned": {
			"init is at work",
			made(func(r *tenant.Record) { r.ProvisionedAt = time.Time{} }),
			Observation{},
			late, false, in(late, recheck, ""),
		},
		"not projected":          {"the files come first, due or not", made(), Observation{}, late, false, Step{Kind: Project}},
		"not projected, pending": {"and whatever is pending", made(pends(tenant.B, tenant.Activate)), Observation{}, early, false, Step{Kind: Project}},
		"not due":                {"nothing to do, and no server is asked", made(), seen(Observation{}), early, false, in(0, due, "")},
		"a second before":        {"the same", made(), seen(Observation{}), due - time.Second, false, in(0, due, "")},

		"due":         {"is the other slot in use?", made(), seen(Observation{}), due, false, look(OtherSessions)},
		"due, free":   {"no client uses the retired slot", made(), seen(Observation{Other: from(0)}), due, false, stage(tenant.Activate)},
		"due, rivals": {"other sidecars that look are no users", made(), seen(Observation{Other: rivals}), due, false, stage(tenant.Activate)},
		"due, used": {
			"its password was given to no client: an intruder does not hold up a rotation (S5)",
			made(), seen(Observation{Other: from(1)}), due, false, stage(tenant.Activate),
		},
		"due, blank":      {"the other slot's password is unknown", made(blank), seen(Observation{}), late, false, in(late, unknownRecheck, OtherUnknown)},
		"due, refused":    {"the record is wrong about it: init is to know", made(), seen(Observation{Stored: Refused}), late, false, Step{Kind: Doubt}},
		"due, doubted":    {"init knows; but is the active one accepted?", made(doubted), seen(Observation{Stored: Refused}), late, false, look(ActiveSessions)},
		"due, both asked": {"it is", made(doubted), seen(Observation{Stored: Refused, Active: from(1)}), late, false, in(late, unknownRecheck, OtherUnknown)},
		"due, doubt gone": {"the server was wrong for a while", made(doubted), seen(Observation{Other: from(0)}), late, false, stage(tenant.Activate)},
		"known for long":  {"made under a clock that was ahead, but old all the same", made(), seen(Observation{Known: due}), -time.Hour, false, look(OtherSessions)},
		"ahead, new":      {"and not before", made(), seen(Observation{Known: due - time.Second}), -time.Hour, false, in(-time.Hour, time.Second, "")},
		"ahead, a little": {"two clocks are never the same", made(), seen(Observation{}), -days30 / 10, false, in(-days30/10, due, "")},
		"far ahead": {
			"a clock was years ahead: due at first sight, however short a pod lives (S12)",
			made(), seen(Observation{}), -days30/10 - time.Second, false, look(OtherSessions),
		},

		"far ahead, seen to begin": {
			"a replica's clock is wrong for good: a rotation is no reason for the next (S12)",
			made(), seen(Observation{Known: time.Hour, FromStart: true}), -days30, false, in(-days30, due-time.Hour, ""),
		},
		"far ahead, old": {"nor is it delayed", made(), seen(Observation{Known: due, FromStart: true}), -days30, false, look(OtherSessions)},

		"pending": {"how far did it come?", made(pends(tenant.B, tenant.Activate)), seen(Observation{}), early, false, look(PendingLogin)},
		"pending, refused": {
			"the server does not know it",
			made(pends(tenant.B, tenant.Activate)), seen(Observation{Pending: Refused}), early, false,
			Step{Kind: Apply},
		},
		"pending, accepted": {
			"the clients that have to move are known only before the move",
			made(pends(tenant.B, tenant.Activate)), seen(Observation{Pending: Accepted}), early, false, look(ActiveSessions),
		},
		"pending, accepted, counted": {
			"the server knows it",
			made(pends(tenant.B, tenant.Activate)), seen(Observation{Pending: Accepted, Active: from(3)}), early, false,
			Step{Kind: Commit},
		},
		"pending, accepted, no client": {
			"no client has to move, and that is known",
			made(pends(tenant.B, tenant.Activate)), seen(Observation{Pending: Accepted, Active: from(0)}), early, false,
			Step{Kind: Commit},
		},
		"pending, neither": {
			"the stored one is refused as well",
			made(pends(tenant.B, tenant.Activate)), seen(Observation{Pending: Refused, Stored: Refused}), early, false,
			Step{Kind: Doubt},
		},
		"pending, neither, doubted": {
			"init knows",
			made(pends(tenant.B, tenant.Activate), doubted), seen(Observation{Pending: Refused, Stored: Refused, Active: from(1)}),
			early, false, in(early, unknownRecheck, OtherUnknown),
		},
		"pending, blank": {
			"only the admin can",
			made(pends(tenant.B, tenant.Activate), blank), seen(Observation{Pending: Refused}), early, false,
			in(early, unknownRecheck, OtherUnknown),
		},
		"pending, blank, accepted": {
			"the admin did",
			made(pends(tenant.B, tenant.Activate), blank), seen(Observation{Pending: Accepted, Active: from(0)}), early, false,
			Step{Kind: Commit},
		},
		"repair of the active slot": {
			"a slot in use is init's",
			made(pends(tenant.A, tenant.Activate)), seen(Observation{Pending: Refused}), early, false,
			in(early, unknownRecheck, RepairPending),
		},
		"repair of the active slot, done": {
			"init may be about to do it once more",
			made(pends(tenant.A, tenant.Activate)), seen(Observation{Pending: Accepted}), early, false,
			in(early, unknownRecheck, RepairPending),
		},
		"the admin's": {
			"of any slot",
			made(pends(tenant.B, tenant.Activate), admins), seen(Observation{}), early, false,
			in(early, unknownRecheck, RepairPending),
		},
		"the admin's, accepted": {
			"no sidecar takes it from init",
			made(pends(tenant.B, tenant.Retire), admins), seen(Observation{Pending: Accepted}), early, false,
			in(early, unknownRecheck, RepairPending),
		},
		"pending while due": {"never a second one", made(pends(tenant.B, tenant.Activate)), seen(Observation{}), late, false, look(PendingLogin)},

		"retiring, accepted": {
			"which sessions have begun with the old one? (S5)",
			made(pends(tenant.B, tenant.Retire), unretired(2)), seen(Observation{Pending: Accepted}), adopted, false, look(OldLogins),
		},
		"retiring, logins may end": {
			"a login may take a minute",
			made(pends(tenant.B, tenant.Retire), unretired(2)),
			seen(Observation{Pending: Accepted, Remains: left(0), Held: 20 * time.Second, Looked: 20 * time.Second}), adopted, false,
			in(adopted, 40*time.Second, ""),
		},
		"retiring, logins have ended": {
			"and the sidecar has not looked since for the sessions that it became",
			made(pends(tenant.B, tenant.Retire), unretired(2)),
			seen(Observation{Pending: Accepted, Remains: left(0), Held: time.Minute, Looked: 20 * time.Second}), adopted, false,
			look(OldLogins),
		},
		"retiring, one was ended": {
			"it is gone when it is not found any more",
			made(pends(tenant.B, tenant.Retire), unretired(2)),
			seen(Observation{Pending: Accepted, Remains: left(1), Held: time.Minute, Looked: time.Minute}), adopted, false,
			in(adopted, time.Second, OtherInUse),
		},
		"retiring, one stays": {
			"looked at less and less often",
			made(pends(tenant.B, tenant.Retire), unretired(2)),
			seen(Observation{Pending: Accepted, Remains: left(1), Held: time.Hour, Looked: time.Hour}), adopted, false,
			in(adopted, recheck, OtherInUse),
		},
		"retiring, one is under way": {
			"it was let in, and is no session yet",
			made(pends(tenant.B, tenant.Retire), unretired(2)),
			seen(Observation{Pending: Accepted, Remains: left(0, "1"), Held: 81 * time.Second, Looked: time.Minute}), adopted, false,
			in(adopted, 21*time.Second/8, LoginUnderWay),
		},
		"retiring, nothing is left": {
			"dead, and no client has to move",
			made(pends(tenant.B, tenant.Retire), unretired(2)),
			seen(Observation{Pending: Accepted, Remains: left(0), Held: time.Minute, Looked: time.Minute}), adopted, false,
			Step{Kind: Commit},
		},
		"retiring, refused": {
			"perhaps a client came back since it was staged",
			made(pends(tenant.B, tenant.Retire), unretired(2)), seen(Observation{Pending: Refused}), adopted, false,
			look(OtherSessions),
		},
		"retiring, a client is back": {
			"and is not cut off",
			made(pends(tenant.B, tenant.Retire), unretired(2)), seen(Observation{Pending: Refused, Other: from(1)}), minutes, false,
			in(minutes, recheck, OtherInUse),
		},
		"retiring, outage": {
			"no client at all is no evidence",
			made(pends(tenant.B, tenant.Retire), unretired(2)), seen(Observation{Pending: Refused, Other: from(0), Active: from(0)}),
			minutes, false, in(minutes, recheck, NotAdopted),
		},
		"retiring, moved": {
			"the evidence is there",
			made(pends(tenant.B, tenant.Retire), unretired(2)), seen(Observation{Pending: Refused, Other: from(0), Active: from(2)}),
			adopted, false,
			Step{Kind: Apply},
		},
		"retiring, retired": {
			"a fresh password for a slot that no client uses",
			made(pends(tenant.B, tenant.Retire)), seen(Observation{Pending: Refused}), adopted, false,
			Step{Kind: Apply},
		},
		"retiring, rollout, no word": {
			"the workload is asked again",
			made(pends(tenant.B, tenant.Retire), unretired(2)), seen(Observation{Pending: Refused}), adopted, true, look(Adoptions),
		},
		"retiring, rollout, restarts": {
			"and waited for",
			made(pends(tenant.B, tenant.Retire), unretired(2)), seen(Observation{Pending: Refused, Adopted: Requested}), minutes,
			true, in(minutes, recheck, NotAdopted),
		},

		"grace": {
			"a client that has read the old DSN may be about to use it",
			made(unretired(2)), seen(Observation{}), early, false, in(0, minutes, ""),
		},
		"grace, clock in the future": {
			"counts from when it was seen",
			made(unretired(2)), seen(Observation{Known: minutes}), -1000 * time.Hour, false, look(OtherSessions),
		},
		"grace, clock jumped ahead": {
			"it has lasted for a minute, whatever the clock says",
			made(unretired(2)), seen(Observation{Known: time.Minute, FromStart: true}), late, false,
			in(late, minutes-time.Minute, ""),
		},
		"after grace, after a jump": {
			"and not for longer",
			made(unretired(2)), seen(Observation{Known: minutes, FromStart: true}), -late, false, look(OtherSessions),
		},
		"after grace":   {"does a client use the old slot?", made(unretired(2)), seen(Observation{}), minutes, false, look(OtherSessions)},
		"old slot used": {"wait for them", made(unretired(2)), seen(Observation{Other: from(1)}), minutes, false, in(minutes, recheck, OtherInUse)},
		"old slot used, due": {
			"a period shorter than adoption: rotation waits",
			made(unretired(2)), seen(Observation{Other: from(1)}), late, false, in(late, longRecheck, OtherInUse),
		},
		"old slot free": {
			"is there a client on the new one?",
			made(unretired(2)), seen(Observation{Other: from(0)}), adopted, false, look(ActiveSessions),
		},
		"no client anywhere": {
			"an outage looks like this",
			made(unretired(0)), seen(Observation{Other: from(0), Active: from(0)}), minutes, false, in(minutes, recheck, NotAdopted),
		},
		"no client, for long": {
			"however long it looks like this",
			made(unretired(2)), seen(Observation{Other: from(0), Active: from(0), Quiet: late}), minutes, false,
			in(minutes, recheck, NotAdopted),
		},
		"one of two": {
			"one has not come back yet",
			made(unretired(2)), seen(Observation{Other: from(0), Active: from(1), Quiet: time.Minute}), minutes, false,
			in(minutes, recheck, NotAdopted),
		},
		"one of two, for a long time": {
			"scaled down, or one was a backup: the sidecar does not wait for ever",
			made(unretired(2)), seen(Observation{Other: from(0), Active: from(1), Quiet: patience * minutes}), adopted, false,
			stage(tenant.Retire),
		},
		"two of two": {
			"all have moved",
			made(unretired(2)), seen(Observation{Other: from(0), Active: from(2)}), minutes, false, stage(tenant.Retire),
		},
		"three of two": {"scaled up", made(unretired(2)), seen(Observation{Other: from(0), Active: from(3)}), minutes, false, stage(tenant.Retire)},
		"a backup instead": {
			"it uses the new one, and the control plane in this pod does not (S7)",
			made(unretired(1)), seen(Observation{Other: from(0), Active: foreign, Quiet: late}), minutes, false,
			in(minutes, recheck, NotAdopted),
		},
		"rollout, done, from afar": {
			"there the workload knows, and no address counts",
			made(unretired(1)), seen(Observation{Other: from(0), Active: foreign, Adopted: Reported}), minutes, true,
			stage(tenant.Retire),
		},
		"no client counted": {
			"a client has to be there",
			made(unretired(0)), seen(Observation{Other: from(0), Active: from(1)}), minutes, false, stage(tenant.Retire),
		},
		"rivals on the old slot": {
			"sidecars that look have nothing to adopt",
			made(unretired(2)), seen(Observation{Other: rivals, Active: from(2)}), minutes, false, stage(tenant.Retire),
		},
		"rivals on the new slot": {
			"and are no evidence",
			made(unretired(1)), seen(Observation{Other: from(0), Active: rivals}), minutes, false, in(minutes, recheck, NotAdopted),
		},
		"old slot blank": {
			"the sidecar cannot look",
			made(unretired(2), blank), seen(Observation{}), adopted, false, in(adopted, unknownRecheck, OtherUnknown),
		},
		"old slot refused": {"init is to know", made(unretired(2)), seen(Observation{Stored: Refused}), adopted, false, Step{Kind: Doubt}},

		"rollout":               {"how far is the workload's rollout?", made(unretired(2)), seen(Observation{}), 0, true, look(Adoptions)},
		"rollout, not asked":    {"ask it at once", made(unretired(2)), seen(Observation{Adopted: Unrequested}), 0, true, Step{Kind: Adopt}},
		"rollout, asked before": {"for another credential", made(unretired(2)), seen(Observation{Adopted: Unrequested}), 0, true, Step{Kind: Adopt}},
		"rollout, asked":        {"once", made(unretired(2)), seen(Observation{Adopted: Requested}), 0, true, in(0, minutes, "")},
		"rollout, at work":      {"pods restart", made(unretired(2)), seen(Observation{Adopted: Requested}), minutes, true, in(minutes, recheck, NotAdopted)},
		"rollout, done": {
			"its word does not count for an old pod that still ends",
			made(unretired(2)), seen(Observation{Adopted: Reported}), minutes, true, look(OtherSessions),
		},
		"rollout, done, old pod ends": {
			"as here",
			made(unretired(2)), seen(Observation{Other: from(1), Adopted: Reported}), minutes, true, in(minutes, recheck, OtherInUse),
		},
		"rollout, done, scaled down": {
			"it knows how many there are",
			made(unretired(3)), seen(Observation{Other: from(0), Active: from(1), Adopted: Reported}), minutes, true,
			stage(tenant.Retire),
		},
		"rollout, done, no client": {
			"an outage right then",
			made(unretired(3)), seen(Observation{Other: from(0), Active: from(0), Adopted: Reported}), minutes, true,
			in(minutes, recheck, NotAdopted),
		},
		"retiring, rollout, undone": {
			"the operator replaced the template: the workload's status says nothing",
			made(pends(tenant.B, tenant.Retire), unretired(2)),
			seen(Observation{Pending: Refused, Other: from(0), Active: from(1), Adopted: Unrequested}), minutes, true,
			in(minutes, recheck, NotAdopted),
		},
		"retiring, undone, moved": {
			"but sessions do",
			made(pends(tenant.B, tenant.Retire), unretired(2)),
			seen(Observation{Pending: Refused, Other: from(0), Active: from(2), Adopted: Unrequested}), minutes, true,
			Step{Kind: Apply},
		},
		"rollout, retired": {"nothing to adopt: the workload is left alone", made(), seen(Observation{}), early, true, in(0, due, "")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := fmt.Sprintf("%#v %#v", tc.record, tc.record.Pending)
			p := Policy{Period: days30, Grace: minutes}
			if !tc.rollout {
				tc.seen.Adopted = Unreported
			}
			got := Next(tc.record, tc.seen, rotatedAt.Add(tc.since), p)
			if got != tc.want {
				t.Errorf("%s:\ngot  %v %+v\nwant %v %+v", tc.reason, got.Kind, got, tc.want.Kind, tc.want)
			}
			if after := fmt.Sprintf("%#v %#v", tc.record, tc.record.Pending); after != before {
				t.Error("the record was changed")
			}
		})
	}
}

// TestDue: within a tenth of the period, the same for each replica that asks, and spread over tenants and generations.
func TestDue(t *testing.T) {
	t.Parallel()
	p := Policy{Period: days30}
	seen := map[time.Duration]bool{}
	var lowest, highest time.Duration = 2 * days30, 0
	for tenants := range 100 {
		for generation := range int64(10) {
			r := made(func(r *tenant.Record) { r.UID, r.Generation = fmt.Sprint("uid/", tenants), 1+generation })
			d := Due(r, p).Sub(rotatedAt)
			if again := Due(r.Clone(), p).Sub(rotatedAt); again != d {
				t.Errorf("got %s, and then %s", d, again)
			}
			seen[d] = true
			lowest, highest = min(lowest, d), max(highest, d)
		}
	}
	if len(seen) != 1000 {
		t.Errorf("%d different of 1000", len(seen))
	}
	if lowest < days30*9/10 || lowest > days30*91/100 || highest > days30*11/10 || highest < days30*109/100 {
		t.Errorf("from %s to %s", lowest, highest)
	}
	if got := Due(made(), Policy{Period: 9}); got != rotatedAt.Add(9) {
		t.Errorf("a period that cannot be divided: %s", got.Sub(rotatedAt))
	}
}

// TestAgain: short policies, as tests have, are not kept waiting, and none makes a tight loop.
func TestAgain(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ since, grace, want time.Duration }{
		{0, minutes, recheck},
		{-time.Hour, minutes, recheck},
		{0, 2 * time.Second, 2 * time.Second},
		{0, 0, time.Second},
		{time.Hour, minutes, 450 * time.Second},
		{days30, minutes, longRecheck},
	} {
		if got := again(tc.since, Policy{Grace: tc.grace}); got != tc.want {
			t.Errorf("after %s with grace %s: got %s, want %s", tc.since, tc.grace, got, tc.want)
		}
	}
}
