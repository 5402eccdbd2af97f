// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

var errRefused = errors.New("the server refuses the password")

func record() *tenant.Record {
	return tenant.NewRecord("uid", "ns", "vc", dbserver.Server{Engine: dbserver.Postgres, Host: "h", Port: 1, SSLMode: dbserver.Disable}, 10)
}

// TestLoginsOfARecord: the active login; the pending password of the slot that is to become active; the other slot, until it is retired.
func TestLoginsOfARecord(t *testing.T) {
	t.Parallel()
	r := record()
	a, b := r.Login(tenant.A), r.Login(tenant.B)
	pending := tenant.Login{User: b.User, Password: "pending", Database: b.Database}
	for name, test := range map[string]struct {
		change func(r *tenant.Record)
		want   []tenant.Login
	}{
		"new": {func(*tenant.Record) {}, []tenant.Login{a}},
		"staged": {func(r *tenant.Record) {
			r.Pending = &tenant.Change{Slot: tenant.B, Password: "pending", Purpose: tenant.Activate}
		}, []tenant.Login{a, pending}},
		"not over": {func(r *tenant.Record) { r.OtherRetired = false }, []tenant.Login{a, b}},
		"retiring": {func(r *tenant.Record) {
			r.OtherRetired, r.Pending = false, &tenant.Change{Slot: tenant.B, Password: "pending", Purpose: tenant.Retire}
		}, []tenant.Login{a, b}},
		"unknown other": {func(r *tenant.Record) { r.OtherRetired, r.Slots[tenant.B] = false, tenant.Credential{} }, []tenant.Login{a}},
	} {
		changed := r.Clone()
		test.change(changed)
		var got []tenant.Login
		for _, login := range candidates(changed) {
			got = append(got, login.Login)
		}
		if len(got) != len(test.want) {
			t.Errorf("%s: %d logins, want %d", name, len(got), len(test.want))
			continue
		}
		for i := range got {
			if got[i] != test.want[i] {
				t.Errorf("%s: login %d is %s, want %s", name, i, got[i].User, test.want[i].User)
			}
		}
	}
}

// first is the login with which a session begins.
func (l *Logins) first(t *testing.T) Login {
	t.Helper()
	next, _ := l.Session()
	login, err := next(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return login
}

// TestWorkedLoginIsFirst: sessions do not present a login that was refused before one that was let in, until the record changes.
func TestWorkedLoginIsFirst(t *testing.T) {
	t.Parallel()
	r := record()
	r.OtherRetired = false
	l := NewLogins()
	l.Set(r)
	next, ended := l.Session()
	_, _ = next(t.Context(), nil)
	second, err := next(t.Context(), errRefused)
	if b := r.Login(tenant.B); err != nil || second.Login != b {
		t.Fatalf("got login %s, %v", second.User, err)
	}
	ended(second, nil)
	if got := l.first(t); got != second {
		t.Errorf("the next session begins with login %s, want %s", got.User, second.User)
	}
	l.Set(r)
	if got := l.first(t); got.Login != r.Login(tenant.A) {
		t.Errorf("after the record was read again, a session begins with login %s, want the active one", got.User)
	}
}

// TestActiveIsTriedAgain: where the server has refused the active login, sessions begin with the one that it took, nothing is drained for it,
// and after a while the active one has its turn.
func TestActiveIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := record()
		r.OtherRetired = false
		l := NewLogins()
		l.Set(r)
		next, ended := l.Session()
		active, _ := next(t.Context(), nil)
		other, _ := next(t.Context(), errRefused)
		ended(other, nil)
		if got := l.first(t); got != other || l.old(other) {
			t.Errorf("a session begins with login %s, and that is drained: %t", got.User, l.old(other))
		}
		<-time.After(retryTime)
		if got := l.first(t); got != active {
			t.Errorf("after a while, a session begins with login %s, want the active one", got.User)
		}
		if !l.old(other) {
			t.Error("the other login is not drained")
		}
	})
}

// TestLateLogin: a session that began before a rotation and ends its login after it does not lead the next ones to the old login.
func TestLateLogin(t *testing.T) {
	t.Parallel()
	r := record()
	l := NewLogins()
	l.Set(r)
	next, ended := l.Session()
	old, err := next(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r = r.Clone()
	r.Pending = &tenant.Change{Slot: tenant.B, Password: tenant.NewPassword(), Purpose: tenant.Activate}
	r.Commit(time.Now())
	l.Set(r)
	ended(old, nil)
	later, _ := l.Session()
	if got, err := later(t.Context(), nil); err != nil || got.Login != r.Login(tenant.B) {
		t.Errorf("a session begins with login %s (%v), want the active one", got.User, err)
	}
	if !l.old(old) {
		t.Error("the session that was late is not drained")
	}
}

// TestAttemptsAreBounded: where the server refuses everything, all sessions together try a few times a minute, and none for ever. A new
// record is tried at once. (proxy.md 29)
func TestAttemptsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLogins()
		l.Set(record())
		var attempts atomic.Int64
		session := func(accepts func(Login) bool) error {
			ctx, cancel := context.WithTimeout(t.Context(), openTime)
			defer cancel()
			next, ended := l.Session()
			var refused error
			for {
				login, err := next(ctx, refused)
				if err != nil {
					ended(Login{}, err)
					return err
				}
				attempts.Add(1)
				if accepts(login) {
					ended(login, nil)
					return nil
				}
				refused = errRefused
			}
		}
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if err := session(func(Login) bool { return false }); !errors.Is(err, errRefused) && !fault.Is(err, fault.Unavailable) {
					t.Errorf("got %v, want the server's answer, or that there is no login", err)
				}
			})
		}
		began := time.Now()
		all.Wait()
		if took := time.Since(began); took > openTime || attempts.Load() > 20 {
			t.Errorf("%d attempts in %s", attempts.Load(), took)
		}

		// Sessions that wait learn of a new record.
		for range 5 {
			all.Go(func() {
				if err := session(func(login Login) bool { return login.Generation == 2 }); err != nil {
					t.Errorf("after the record changed: %v", err)
				}
			})
		}
		synctest.Wait()
		newer := record()
		newer.Generation = 2
		l.Set(newer)
		all.Wait()
	})
}

// TestClientsThatLeave: a client that goes away while its login is under way gives no other one its turn any sooner, and a refusal that it
// did not wait for counts as well: clients that come and go cannot have an account locked.
func TestClientsThatLeave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLogins()
		l.Set(record())
		wait := func(ended error) time.Duration {
			began := time.Now()
			next, end := l.Session()
			if _, err := next(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			end(Login{}, ended)
			return time.Since(began)
		}
		left := &OpenError{Result: ClientError, Err: errRefused}
		if first, second := wait(left), wait(left); first != 0 || second < trialTime {
			t.Errorf("two clients that left had their turns after %s and %s", first, second)
		}
		<-time.After(trialTime)
		next, end := l.Session()
		login, err := next(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		end(login, nil)
		if took := wait(&OpenError{Result: Refused, Err: errRefused}); took != 0 {
			t.Errorf("beside a login that works, a session waited for %s", took)
		}
		if took := wait(left); took < shortestPause/2 {
			t.Errorf("after a refusal, the next session had its turn after %s", took)
		}
	})
}

// TestNoRecordYet: a session waits for the record.
func TestNoRecordYet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLogins()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		next, _ := l.Session()
		if _, err := next(ctx, nil); !fault.Is(err, fault.Unavailable) {
			t.Errorf("got %v", err)
		}
		done := make(chan error, 1)
		go func() {
			next, _ := l.Session()
			_, err := next(t.Context(), nil)
			done <- err
		}()
		synctest.Wait()
		l.Set(record())
		if err := <-done; err != nil {
			t.Errorf("got %v", err)
		}
	})
}

// TestChangedServerIsProven: where the record says something else of the server, such as another CA, sessions of before are drained only when
// the server has let one in by it. A mistake there costs no session that is open.
func TestChangedServerIsProven(t *testing.T) {
	t.Parallel()
	r := record()
	l := NewLogins()
	l.Set(r)
	next, ended := l.Session()
	before, err := next(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ended(before, nil)
	r = r.Clone()
	r.Server.CA = "another"
	l.Set(r)
	if l.old(before) {
		t.Error("a session is drained for a CA by which no server was reached yet")
	}
	next, ended = l.Session()
	after, err := next(t.Context(), nil)
	if err != nil || after.Server.CA != "another" {
		t.Fatal(after.Server, err)
	}
	ended(after, &OpenError{Result: Unreachable, Err: errRefused})
	if l.old(before) {
		t.Error("a session is drained for a CA by which no server was reached")
	}
	next, ended = l.Session()
	if after, err = next(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	ended(after, nil)
	if !l.old(before) {
		t.Error("a session of the server as it was is not drained")
	}
}

// TestLetInWithoutClient: a client that leaves while a login is tried of which nothing is known yet holds up no other one, where the server
// has let the login in.
func TestLetInWithoutClient(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		letIn bool
		wait  time.Duration
	}{"let in": {true, 0}, "not known": {false, trialTime}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := NewLogins()
				l.Set(record())
				next, ended := l.Session()
				login, err := next(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				failure := &OpenError{Result: ClientError, Err: errRefused}
				if test.letIn {
					failure.LetIn = login
				}
				ended(Login{}, failure)
				began := time.Now()
				next, _ = l.Session()
				if _, err := next(t.Context(), nil); err != nil || time.Since(began) != test.wait {
					t.Errorf("the next session begins after %s (%v), want %s", time.Since(began), err, test.wait)
				}
			})
		})
	}
}
