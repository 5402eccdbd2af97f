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

// TestWorkedLoginIsFirst: sessions do not present a login that was refused before one that was let in, until the record changes.
func TestWorkedLoginIsFirst(t *testing.T) {
	t.Parallel()
	r := record()
	r.OtherRetired = false
	l := NewLogins()
	l.Set(r)
	first := func() Login {
		next, leave := l.Session()
		login, err := next(t.Context(), nil)
		leave(nil)
		if err != nil {
			t.Fatal(err)
		}
		return login
	}
	next, _ := l.Session()
	_, _ = next(t.Context(), nil)
	second, err := next(t.Context(), errRefused)
	if b := r.Login(tenant.B); err != nil || second.Login != b {
		t.Fatalf("got login %s, %v", second.User, err)
	}
	l.Worked(second)
	if got := first(); got != second {
		t.Errorf("the next session begins with login %s, want %s", got.User, second.User)
	}
	l.Set(r)
	if got := first(); got.Login != r.Login(tenant.A) {
		t.Errorf("after the record was read again, a session begins with login %s, want the active one", got.User)
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
			next, leave := l.Session()
			var refused error
			for {
				login, err := next(ctx, refused)
				if err != nil {
					leave(err)
					return err
				}
				attempts.Add(1)
				if accepts(login) {
					leave(nil)
					l.Worked(login)
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

// TestNoRecordYet: a session waits for the record.
func TestNoRecordYet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLogins()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		next, _ := l.Session()
		if _, err := next(ctx, nil); !fault.Is(err, fault.Unavailable) || l.Loaded() {
			t.Errorf("got %v, loaded %t", err, l.Loaded())
		}
		done := make(chan error, 1)
		go func() {
			next, _ := l.Session()
			_, err := next(t.Context(), nil)
			done <- err
		}()
		synctest.Wait()
		l.Set(record())
		if err := <-done; err != nil || !l.Loaded() {
			t.Errorf("got %v, loaded %t", err, l.Loaded())
		}
	})
}
