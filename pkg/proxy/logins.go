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

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// Login is a login to try, and where.
type Login struct {
	tenant.Login
	Server dbserver.Server
	// Generation numbers the credential, as the record does.
	Generation int64
}

// same says whether two logins are one: of the same server and with the same password.
func (l Login) same(other Login) bool { return l.Login == other.Login && l.Server == other.Server }

// ErrNoLogin is the end of a session that found no login which the server lets in, in time.
var ErrNoLogin = errors.New("there is no login that the server accepts")

// Next gives the login that a session tries. refused is what the server said to the one before, nil at first. It may wait until the
// record has changed. Its error is the session's end: what the server said last, or ErrNoLogin.
type Next func(ctx context.Context, refused error) (Login, error)

// The pauses between two rounds of logins that the server has all refused, for all sessions together: servers count refusals, and lock
// the account after some (MySQL's FAILED_LOGIN_ATTEMPTS, MariaDB's max_password_errors).
const (
	shortestPause = 250 * time.Millisecond
	longestPause  = 5 * time.Second
	// retryTime is for how long sessions begin with another login where the server has refused the active one.
	retryTime = time.Minute
	// trialTime is how long the others wait for the first session that tries a login of which nothing is known yet.
	trialTime = 2 * time.Second
)

// Logins knows which logins to try, from the record as the sidecar last read it: the active one; the one that may have become
// active without the record saying so; the one that was active before, until it is retired.
type Logins struct {
	mu      sync.Mutex
	record  *tenant.Record
	number  int // of records so far
	active  Login
	list    []Login
	worked  Login         // the last that the server has let in
	changed chan struct{} // closed when what is waited for may be there
	// After a round that the server has refused, the next one begins at resume, whichever session comes first. Until one of list was
	// let in, one session tries at a time.
	pause   time.Duration
	resume  time.Time
	proven  bool
	retry   time.Time // where another than the active login is the first: when that is tried again
	failure error     // why the last that tried did not reach the server
	// trusted: what the record says is active was let in when it became so. A backup's may not be.
	trusted bool
}

// NewLogins makes one that knows no login yet.
func NewLogins() *Logins { return &Logins{changed: make(chan struct{})} }

// Set takes the logins out of a record. A record that is no successor of the one before may be a backup's, with passwords that were
// changed since: then what worked last is tried, too, and the answer is no.
func (l *Logins) Set(r *tenant.Record) (trusted bool) {
	list := candidates(r)
	l.mu.Lock()
	defer l.mu.Unlock()
	known := func(login Login) bool { return slices.ContainsFunc(list, login.same) }
	l.trusted = l.record == nil || r.Succeeds(l.record)
	if !l.trusted && l.worked.User != "" && !known(l.worked) {
		list = append(list, l.worked)
	}
	l.proven = l.proven && l.list[0].same(list[0])
	l.record, l.active, l.list = r, list[0], list
	l.number++
	l.pause, l.resume, l.failure = 0, time.Time{}, nil
	l.wake()
	return l.trusted
}

// wake has all who wait look again.
func (l *Logins) wake() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// engine is that of the record's server.
func (l *Logins) engine() dbserver.Engine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.active.Server.Engine
}

// old says whether a session of this login is to be drained: the record says that another one is active.
func (l *Logins) old(login Login) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.record == nil {
		return false
	}
	// Else it may be the only one that works. A record says what is active, and not that the server was ever reached as it has it now: with
	// another CA, say.
	reached := login.Server == l.active.Server || l.worked.Server == l.active.Server
	return !l.active.same(login) && l.list[0].same(l.active) && (l.trusted && reached || l.worked.same(l.active))
}

func candidates(r *tenant.Record) []Login {
	of := func(login tenant.Login, generation int64) Login { return Login{login, r.Server, generation} }
	other := r.Active.Other()
	list := []Login{of(r.Login(r.Active), r.Generation)}
	if p := r.Pending; p != nil && p.Purpose == tenant.Activate {
		list = append(list, of(r.LoginWith(p.Slot, p.Password), r.Generation+1))
	}
	if !r.OtherRetired && r.Slots[other].Password != "" {
		list = append(list, of(r.Login(other), r.Generation-1))
	}
	return list
}

// Session gives the logins for one session. It has to say how that ended: with the login that was let in, or with the error for which it
// gave up, which may name a login that was let in.
func (l *Logins) Session() (next Next, ended func(Login, error)) {
	var round []Login
	rounds, trying, number := 0, false, 0
	next = func(ctx context.Context, refused error) (Login, error) {
		if len(round) == 0 {
			if refused != nil {
				l.mu.Lock()
				l.allRefused()
				l.mu.Unlock()
			}
			const most = 2
			if rounds++; rounds > most {
				return Login{}, refused
			}
			var err error
			if round, number, trying, err = l.turn(ctx); err != nil {
				return Login{}, cmp.Or(refused, err)
			}
		}
		login := round[0]
		round = round[1:]
		return login, nil
	}
	return next, func(login Login, err error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		var failure *OpenError
		if errors.As(err, &failure) && failure.LetIn != (Login{}) {
			login, err = failure.LetIn, nil
		}
		if err == nil {
			if number == l.number { // else it says nothing of the logins of today: its own may be the one before
				l.works(login)
			}
			return
		}
		result := ClientError
		if failure != nil {
			result = failure.Result
		}
		switch {
		case l.pause > 0: // refusals are counted already
		case result == Refused && number == l.number:
			l.allRefused()
		case !trying || l.proven || result == ClientError: // a client that leaves lets no other one try any sooner
		default:
			if result == Unreachable {
				l.failure = err
			}
			l.resume = time.Time{} // it was no refusal: the next one tries
			l.wake()
		}
	}
}

// works has sessions begin with a login that the server has let in, until the record changes. The mutex is held.
func (l *Logins) works(login Login) {
	i := slices.IndexFunc(l.list, login.same)
	if i < 0 {
		return
	}
	l.worked = login
	if l.proven && i == 0 {
		return
	}
	l.pause, l.resume, l.proven, l.failure = 0, time.Time{}, true, nil
	l.retry = time.Now().Add(retryTime)
	copy(l.list[1:i+1], l.list[:i])
	l.list[0] = login
	l.wake()
}

// allRefused puts the next round off. The mutex is held.
func (l *Logins) allRefused() {
	l.proven = false
	l.pause = min(max(2*l.pause, shortestPause), longestPause)
	l.resume = time.Now().Add(l.pause/2 + rand.N(l.pause)) //nolint:gosec // a pause is no secret
}

// turn waits until it is this session's turn to try, and returns the logins of that moment, and the number of their record. alone: the
// others wait for it.
func (l *Logins) turn(ctx context.Context) (list []Login, number int, alone bool, err error) {
	for {
		l.mu.Lock()
		if len(l.list) > 0 && !l.list[0].same(l.active) && !time.Now().Before(l.retry) {
			i := slices.IndexFunc(l.list, l.active.same)
			l.list[0], l.list[i], l.proven = l.list[i], l.list[0], false
		}
		list, changed, wait := slices.Clone(l.list), l.changed, time.Until(l.resume)
		if len(list) > 0 && (l.proven || wait <= 0) {
			if alone = !l.proven; alone {
				l.resume = time.Now().Add(max(l.pause, trialTime))
			}
			number = l.number
			l.mu.Unlock()
			return list, number, alone, nil
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
			l.mu.Lock()
			defer l.mu.Unlock()
			return nil, 0, false, cmp.Or(l.failure, fault.New(fault.Unavailable, "%w", ErrNoLogin))
		}
	}
}
