// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

var (
	// errMoved: another program wrote the record since it was looked at.
	errMoved = errors.New("the record has moved on")
	errGone  = fault.New(fault.Unavailable, "the record was deleted")
)

// learn takes in what Follow tells. It says whether that is news, and in how long to act on it.
func (l *loop) learn(u tenant.News) (wait time.Duration, news bool) {
	switch {
	case u.Err != nil:
		l.unreadable, l.failing = true, true
		l.Observer.Failed(readRecord, u.Err)
		l.Log.Warn("the record cannot be read (continuing with the last one)", zap.String("error", u.Err.Error()))
		return 0, false
	case u.Record == nil:
		// Deleted under us. The control plane goes on with what it has; the next init makes a new record.
		if l.record != nil || !l.unreadable {
			l.Log.Warn("there is no record (waiting)")
		}
		if l.record != nil {
			l.failing = true
			l.Observer.Failed(readRecord, fault.New(fault.Unavailable, "the record was deleted"))
		}
		l.unreadable, l.record = true, nil
		l.postpone("")
		return 0, false
	}
	again := l.unreadable && l.failures > 0
	if l.unreadable {
		l.unreadable = false
		l.healthy()
	}
	was := l.record
	switch {
	case was == nil || !was.Equal(u.Record):
	case again:
		return l.jitter(yield), true // what failed while the record could not be read, failed for the same reason
	default:
		return 0, false // a label, or our own write
	}
	if was != nil && !u.Record.Succeeds(was) {
		// Follow may be behind what we have written ourselves, and a hand-over must not go back because of that. Or the
		// record was made again, or restored from a backup. The store knows.
		l.stale = true
		return 0, true
	}
	l.adopt(u.Record)
	if was != nil && u.Record.Pending != nil && (was.Pending == nil || *was.Pending != *u.Record.Pending) {
		return l.jitter(yield), true
	}
	return 0, true
}

// adopt goes on with a record. What was seen of the world belonged to the one before.
func (l *loop) adopt(r *tenant.Record) {
	if l.record == nil || !l.record.SameCredential(r) {
		l.knownSince, l.fromStart, l.quietSince = l.Now(), l.record != nil, time.Time{}
	}
	l.trusted = l.trusted && l.record != nil && r.Succeeds(l.record)
	l.record, l.seen, l.lookAgainAt = r, Observation{}, time.Time{}
	l.records++
	if l.Socket != nil && r.Provisioned() && r.Of(l.Namespace, l.VCluster, l.TenantUID) {
		l.Socket.Set(r)
	}
	l.Observer.Record(r, Due(r, l.Policy))
}

// load reads the record from the store; that it was deleted is an error.
func (l *loop) load(ctx context.Context) (*tenant.Record, error) {
	r, err := l.Store.Load(ctx)
	if err == nil && r == nil {
		err = errGone
	}
	return r, err
}

// reload goes on with the record that the store has.
func (l *loop) reload(ctx context.Context) error {
	r, err := l.load(ctx)
	if err != nil {
		return err
	}
	l.stale = false
	l.adopt(r)
	return nil
}

// unchanged says whether the record in the store still is the one that a decision was made for; errMoved if it is not.
func (l *loop) unchanged(ctx context.Context) error {
	r, err := l.load(ctx)
	if err != nil {
		return err
	}
	if !r.Equal(l.record) {
		l.adopt(r)
		return errMoved
	}
	return nil
}

// update writes the record if it still is the one that the decision was made for; errMoved if it is not.
func (l *loop) update(ctx context.Context, fn func(r *tenant.Record)) error {
	var theirs *tenant.Record
	next, err := l.Store.Update(ctx, func(old *tenant.Record) (*tenant.Record, error) {
		if old == nil {
			return nil, errGone
		}
		if !old.Equal(l.record) {
			theirs = old.Clone()
			return nil, errMoved
		}
		fn(old)
		return old, nil
	})
	if errors.Is(err, errMoved) {
		l.adopt(theirs)
	}
	if err != nil {
		return err
	}
	l.adopt(next)
	return nil
}
