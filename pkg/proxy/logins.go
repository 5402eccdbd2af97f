// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// Login is a login to try, and what it is in the record.
type Login struct {
	tenant.Login
	Slot tenant.Slot
	// Generation is the record's.
	Generation int64
}

// ErrNoLogin is the end of a session that found no login which the server lets in, in time.
var ErrNoLogin = errors.New("dbconnector has no login that the server accepts")

// Next gives the login that a session tries. refused is what the server said to the one before, nil at first. It may wait until the
// record has changed. Its error is the session's end: what the server said last, or ErrNoLogin.
type Next func(ctx context.Context, refused error) (Login, error)

// The pauses between two rounds of logins that the server has all refused, for all sessions together: servers count refusals, and lock
// the account after some (MySQL's FAILED_LOGIN_ATTEMPTS, MariaDB's max_password_errors).
const (
	shortestPause = 250 * time.Millisecond
	longestPause  = 5 * time.Second
)

// Logins knows which logins to try, from the record as the sidecar last read it: the active one; the one that may have become
// active without the record saying so; the one that was active before, until it is retired.
type Logins struct {
	mu      sync.Mutex
	list    []Login
	changed chan struct{} // closed when list changes
	// After a round that the server has refused, the next one begins at resume, whichever session comes first.
	pause  time.Duration
	resume time.Time
}

// NewLogins makes one that knows no login yet.
func NewLogins() *Logins { return &Logins{changed: make(chan struct{})} }

// Set takes the logins out of a record.
func (l *Logins) Set(r *tenant.Record) {
	list := candidates(r)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list, l.pause, l.resume = list, 0, time.Time{}
	close(l.changed)
	l.changed = make(chan struct{})
}

// Loaded says whether there is a login to try.
func (l *Logins) Loaded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.list) > 0
}

func candidates(r *tenant.Record) []Login {
	if r == nil {
		return nil
	}
	of := func(login tenant.Login, slot tenant.Slot) Login { return Login{login, slot, r.Generation} }
	other := r.Active.Other()
	list := []Login{of(r.Login(r.Active), r.Active)}
	if p := r.Pending; p != nil && p.Purpose == tenant.Activate {
		list = append(list, of(r.LoginWith(p.Slot, p.Password), p.Slot))
	}
	if !r.OtherRetired && r.Slots[other].Password != "" {
		list = append(list, of(r.Login(other), other))
	}
	return list
}

// Session gives the logins for one session.
func (l *Logins) Session() Next {
	var round []Login
	rounds := 0
	return func(ctx context.Context, refused error) (Login, error) {
		if len(round) == 0 {
			if refused != nil {
				l.allRefused()
			}
			const most = 2
			if rounds++; rounds > most {
				return Login{}, refused
			}
			var err error
			if round, err = l.turn(ctx); err != nil {
				return Login{}, cmp.Or(refused, err)
			}
		}
		next := round[0]
		round = round[1:]
		return next, nil
	}
}

// Worked says which login the server has let in. Sessions begin with it, until the record changes.
func (l *Logins) Worked(login Login) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.list, login)
	if i < 0 {
		return // it is of an earlier record
	}
	l.pause, l.resume = 0, time.Time{}
	copy(l.list[1:i+1], l.list[:i])
	l.list[0] = login
}

// allRefused puts the next round off.
func (l *Logins) allRefused() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pause = min(max(2*l.pause, shortestPause), longestPause)
	l.resume = time.Now().Add(l.pause/2 + rand.N(l.pause)) //nolint:gosec // a pause is no secret
}

// turn waits until it is this session's turn to try, and returns the logins of that moment.
func (l *Logins) turn(ctx context.Context) ([]Login, error) {
	for {
		l.mu.Lock()
		list, changed, wait := slices.Clone(l.list), l.changed, time.Until(l.resume)
		if len(list) > 0 && wait <= 0 {
			if l.pause > 0 { // of the sessions that wait, one tries
				l.resume = time.Now().Add(l.pause)
			}
			l.mu.Unlock()
			return list, nil
		}
		l.mu.Unlock()
		var ready <-chan time.Time
		if len(list) > 0 {
			ready = time.After(wait)
		}
		select {
		case <-changed:
		case <-ready:
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "%w", ErrNoLogin)
		}
	}
}
