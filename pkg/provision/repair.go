// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"maps"
	"time"

	"dbconnector/pkg/engine"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// repair makes the tenant's logins work, under the tenant's lock on the server. Its methods bring record forward, to what was
// written last.
type repair struct {
	*run
	server  engine.Engine
	admin   engine.Admin
	record  *tenant.Record
	outcome *engine.Outcome
}

// settle makes the active slot's login work, and checks what the tenant can do with it.
func (r *repair) settle(ctx context.Context) error {
	err := r.verify(ctx)
	if err == nil {
		if p := r.record.Pending; p != nil && p.Slot == r.record.Active {
			// A repair that was cut short before it reached the server, and that is not needed any more: the login test shows it.
			if err := r.write(ctx, func(old *tenant.Record) { old.Pending = nil }); err != nil {
				return err
			}
		}
		return r.settleOther(ctx)
	}
	if !fault.Is(err, fault.WrongPassword) {
		return err
	}

	// The server does not know the record's password: the record was lost or is older than the server, or the password was
	// changed by hand (docs/failures.md B51). What is pending comes first.
	if r.record.Pending != nil {
		if err := r.rollForward(ctx, true); err != nil {
			return err
		}
		if err = r.verify(ctx); err == nil {
			return r.settleOther(ctx)
		}
		if !fault.Is(err, fault.WrongPassword) {
			return err
		}
	}
	slot, err := r.unusedSlot(ctx)
	if err != nil {
		return err
	}
	if err := r.reset(ctx, slot, tenant.Activate); err != nil {
		return err
	}
	if err := r.verify(ctx); fault.Is(err, fault.WrongPassword) {
		// The change was dropped: a client began to use the slot after init had looked.
		return fault.New(fault.Unavailable, "waiting for a login without sessions: %w", err)
	} else if err != nil {
		return err
	}
	return r.settleOther(ctx)
}

// verify logs in with the active slot, and checks what the tenant could do there that it must not.
func (r *repair) verify(ctx context.Context) error {
	login := r.record.Login(r.record.Active)
	return r.asActive(ctx, login, func(ctx context.Context) error {
		warnings, err := r.server.Verify(ctx, login, r.record.Names())
		if err == nil {
			r.outcome.Warnings = append(r.outcome.Warnings, warnings...)
		}
		return err
	})
}

// unusedSlot chooses the slot that may get a new password: one without sessions, and of two such the active one, whose
// recorded password is known not to work.
func (r *repair) unusedSlot(ctx context.Context) (tenant.Slot, error) {
	for _, slot := range []tenant.Slot{r.record.Active, r.record.Active.Other()} {
		used, err := r.admin.InUse(ctx, r.record.Names().User(slot))
		if err != nil {
			return "", err
		}
		if !used {
			return slot, nil
		}
	}
	return "", fault.New(fault.Unavailable, "the record's password is refused, and both logins %q and %q have sessions: waiting until one is free",
		r.record.Names().User(tenant.A), r.record.Names().User(tenant.B))
}

// settleOther gives the inactive slot a password that the record holds, where it holds none. A slot with sessions is left alone:
// the next start tries again.
func (r *repair) settleOther(ctx context.Context) error {
	other, pending := r.record.Active.Other(), r.record.Pending
	if r.record.Slots[other].Password != "" && !r.record.OtherRefused && (pending == nil || !pending.Admin) {
		return nil
	}
	if pending != nil {
		return r.rollForward(ctx, false)
	}
	used, err := r.admin.InUse(ctx, r.record.Names().User(other))
	if err != nil || used {
		return err
	}
	return r.reset(ctx, other, tenant.Retire)
}

// reset gives a slot a new password with the admin's credential: into the record, onto the server, and committed. Where servers
// have no lock for init, another init may have come to the end of the same repair since the record was read: its control plane is
// about to use what it was handed.
func (r *repair) reset(ctx context.Context, slot tenant.Slot, purpose tenant.Purpose) error {
	seen := r.record
	change := &tenant.Change{Slot: slot, Password: tenant.NewPassword(), Purpose: purpose, Admin: true}
	err := r.write(ctx, func(old *tenant.Record) {
		if old.Pending == nil && old.Active == seen.Active && maps.Equal(old.Slots, seen.Slots) { // never a second one
			old.Pending = change
		}
	})
	switch {
	case err != nil:
		return err
	case r.record.Pending == nil:
		return fault.New(fault.Unavailable, "%s was repaired by another init at the same time", r.RecordName)
	}
	return r.rollForward(ctx, purpose == tenant.Activate)
}

// rollForward brings the pending change to its end. A change that the server does not know and whose slot is in use is given
// back to the sidecar that began it, or dropped: the login test has shown that it was not applied, and applying it now would
// cut a client off. wrong: the server refuses what the record holds for the active slot.
func (r *repair) rollForward(ctx context.Context, wrong bool) error {
	// No sidecar knows of the admin's lock. From this write on they leave the change to init, and what one of them did to it before
	// is in what it returns.
	pending := *r.record.Pending
	sidecars := !pending.Admin // begun by one
	if sidecars {
		err := r.write(ctx, func(old *tenant.Record) {
			if old.Pending != nil && *old.Pending == pending {
				old.Pending.Admin = true
			}
		})
		if err != nil || r.record.Pending == nil || r.record.Pending.Password != pending.Password {
			return err
		}
		pending.Admin = true
	}
	login := r.record.LoginWith(pending.Slot, pending.Password)
	err := r.login(ctx, r.server, login)
	if fault.Is(err, fault.WrongPassword) {
		used, err := r.inUse(ctx, login.User)
		if err != nil {
			return err
		}
		if used {
			return r.write(ctx, func(old *tenant.Record) {
				switch {
				case old.Pending == nil || *old.Pending != pending:
				case sidecars && !wrong: // perhaps the session is of the sidecar that is about to set it
					old.Pending.Admin = false
				default:
					old.Pending = nil
				}
			})
		}
		if err := r.admin.SetPassword(ctx, login.User, pending.Password); err != nil {
			return err
		}
		r.outcome.Changes = append(r.outcome.Changes, "set password of login "+string(pending.Slot))
		if err := r.login(ctx, r.server, login); fault.Is(err, fault.WrongPassword) {
			return fault.New(fault.Unavailable, "login %q was given a new password, and is refused: %w", login.User, err)
		} else if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	now := r.Now().UTC().Truncate(time.Second)
	return r.write(ctx, func(old *tenant.Record) {
		if old.Pending == nil || *old.Pending != pending {
			return
		}
		old.Commit(now)
		if pending.Purpose == tenant.Activate && wrong {
			// The record was wrong about one slot: it is not believed about the other, which settleOther asks about. In the
			// same write, so that no crash lets it be forgotten.
			old.Slots[old.Active.Other()] = tenant.Credential{}
			old.OtherRetired = false
		}
		if pending.Purpose == tenant.Retire && pending.Slot != old.Active && !wrong {
			// A login that began with the password before may still become a session (docs/failures.md S5). That takes longer than
			// a start may: the password is known now, and the retirement is left to the sidecar, which waits and ends it.
			old.Pending = &tenant.Change{Slot: pending.Slot, Password: pending.Password, Purpose: tenant.Retire}
		}
	})
}

// inUse says whether a login has a session now, or begins one within Quiet.
func (r *repair) inUse(ctx context.Context, user string) (bool, error) {
	const looks = 3
	for look := 1; ; look++ {
		used, err := r.admin.InUse(ctx, user)
		if err != nil || used || look == looks || r.Quiet <= 0 {
			return used, err
		}
		pause := time.NewTimer(r.Quiet / (looks - 1))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return false, fault.New(fault.Unavailable, "waiting for a login without sessions: %w", context.Cause(ctx))
		}
	}
}

// write changes the record, and goes on with what the store has then.
func (r *repair) write(ctx context.Context, fn func(old *tenant.Record)) error {
	record, err := r.change(ctx, fn)
	if err == nil {
		r.record = record
	}
	return err
}
