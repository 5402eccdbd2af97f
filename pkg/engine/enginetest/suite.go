// SPDX-License-Identifier: Apache-2.0

package enginetest

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// part is one case of the suite.
type part struct {
	name string
	run  func(*testing.T, *Server)
}

// behaviour is what every engine must do, whatever language its server speaks.
var behaviour = []part{
	{"create", create},
	{"race", race},
	{"race without lock", raceWithoutLock},
	{"lock", lock},
	{"database gone", gone},
	{"classes of a login", logins},
	{"sessions and passwords", passwords},
	{"own password", own},
	{"own sessions", expel},
	{"connection limit", limit},
}

// RunBehaviour runs the part of the suite that needs no SQL.
func RunBehaviour(t *testing.T, s *Server) {
	t.Helper()
	for _, p := range behaviour {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			p.run(t, s)
		})
	}
}

// Run runs the suite on one server, once for each kind of admin.
func Run(t *testing.T, admins map[string]*Server) {
	t.Helper()
	t.Run("together", func(t *testing.T) {
		for name, s := range admins {
			for _, p := range append(slices.Clone(behaviour), []part{
				{"repair", func(t *testing.T, s *Server) { repair(t, s, false) }},
				{"findings", func(t *testing.T, s *Server) { findings(t, s, false) }},
				{"ownership", ownership},
				{"privileges", privileges},
				{"weak admins", weakAdmins},
				{"isolation", isolation},
			}...) {
				t.Run(p.name+" as "+name, func(t *testing.T) {
					t.Parallel()
					p.run(t, s)
				})
			}
		}
	})
	// A database that is open to PUBLIC makes Verify refuse every tenant of the server, so these have it for themselves.
	for name, s := range admins {
		t.Run("alone as "+name, func(t *testing.T) {
			t.Run("repair", func(t *testing.T) { repair(t, s, true) })
			t.Run("findings", func(t *testing.T) { findings(t, s, true) })
			t.Run("foreign database", func(t *testing.T) { foreign(t, s) })
		})
	}
	// B18, B19: everything above has been logged by now, refused statements included.
	for _, s := range admins {
		log, err := s.Log()
		if err != nil {
			t.Fatal(err)
		}
		s.NoSecretIn(t, "the server's log", log)
	}
}

// create makes a tenant, twice: the second time nothing may change, which the server itself is asked about.
func create(t *testing.T, s *Server) {
	x := s.NewTenant()
	before := x.Changes(t)
	done, err := x.TryEnsure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := x.Changes(t) - before; n == 0 || len(done.Changes) == 0 {
		t.Errorf("%d changing statements in the log, changes %q: the count does not work", n, done.Changes)
	}
	x.Works(t)
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		if err := x.Engine.Login(t.Context(), x.Login(slot)); err != nil {
			t.Errorf("slot %s: %v", slot, err)
		}
	}
	snapshot := x.Look(t)
	for _, provisioned := range []bool{false, true} {
		x.Provisioned = provisioned
		before = x.Changes(t)
		done = x.Ensure(t)
		if n := x.Changes(t) - before; n != 0 || len(done.Changes) != 0 {
			t.Errorf("provisioned %t: again: %d changing statements in the log, changes %q", provisioned, n, done.Changes)
		}
		if now := x.Look(t); now != snapshot {
			t.Errorf("provisioned %t: again: the server says\n%s\nafter\n%s", provisioned, now, snapshot)
		}
	}
	x.Works(t)
}

// repair breaks each piece and expects the very state from before. So all of them can be tried on one tenant.
func repair(t *testing.T, s *Server, alone bool) {
	var x *Tenant
	for _, b := range s.Breaks {
		if b.Alone != alone {
			continue
		}
		ok := t.Run(b.Name, func(t *testing.T) {
			if x == nil {
				x = s.NewTenant()
				x.Ensure(t)
			}
			whole := x.Look(t)
			database := ""
			if b.Inside {
				database = x.Database
			}
			if b.AsAdmin {
				x.ExecAs(t, x.Connector.User, x.Connector.Password, database, x.SQL(b.SQL)...)
			} else {
				x.MustExec(t, database, x.SQL(b.SQL)...)
			}
			if x.Look(t) == whole {
				t.Fatal("nothing is broken")
			}
			done := x.Ensure(t)
			if len(done.Changes) == 0 {
				t.Errorf("%s: no change reported", b.Reason)
			}
			if len(b.Clean) > 0 {
				x.ExecAs(t, x.Connector.User, x.Connector.Password, database, x.SQL(b.Clean)...)
			}
			if now := x.Look(t); now != whole {
				t.Errorf("%s: got\n%s\nwant\n%s\nafter %q", b.Reason, now, whole, done.Changes)
			}
			x.Works(t)
			if done := x.Ensure(t); len(done.Changes) != 0 {
				t.Errorf("%s: again: changes %q", b.Reason, done.Changes)
			}
		})
		if !ok {
			x = nil
		}
	}
}

// findings are what Verify must refuse, until they are undone.
func findings(t *testing.T, s *Server, alone bool) {
	var x, other *Tenant
	for _, f := range s.Findings {
		if f.Alone != alone {
			continue
		}
		ok := t.Run(f.Name, func(t *testing.T) {
			if x == nil {
				x, other = s.NewTenant(), s.NewTenant()
				x.Ensure(t)
				other.Ensure(t)
			}
			database, more := "", []string{"{other}", other.Database}
			if f.Inside {
				database = x.Database
			}
			x.MustExec(t, database, x.SQL(f.SQL, more...)...)
			_, err := x.Engine.Verify(t.Context(), x.Login(tenant.A), x.Names)
			wantClass(t, err, fault.Refused, x.SQL([]string{f.Want}, more...)...)
			x.MustExec(t, database, x.SQL(f.Undo, more...)...)
			if _, err := x.Engine.Verify(t.Context(), x.Login(tenant.A), x.Names); err != nil {
				t.Errorf("%s: undone: %v", f.Reason, err)
			}
		})
		if !ok {
			x = nil
		}
	}
}

// ownership is B4: what one slot creates, the other one reads, writes, alters and indexes; both with sessions at once.
func ownership(t *testing.T, s *Server) {
	x := s.NewTenant()
	x.Ensure(t)
	sessions := map[tenant.Slot]string{tenant.A: "ta", tenant.B: "tb"}
	for slot, table := range sessions {
		mine, others := x.Session(t, x.Login(slot)), x.Session(t, x.Login(slot.Other()))
		do := func(who string, exec func(context.Context, string) error, statements ...string) {
			t.Helper()
			for _, statement := range statements {
				if err := exec(t.Context(), statement); err != nil {
					t.Errorf("table of slot %s, %s: %s: %v", slot, who, statement, err)
				}
			}
		}
		creator := func(ctx context.Context, q string) error { _, err := mine.ExecContext(ctx, q); return err }
		neighbour := func(ctx context.Context, q string) error { _, err := others.ExecContext(ctx, q); return err }
		do("its creator", creator,
			"CREATE TABLE "+table+" (id INTEGER PRIMARY KEY, v VARCHAR(20))",
			"INSERT INTO "+table+" (id, v) VALUES (1, 'x')")
		do("the other slot", neighbour,
			"INSERT INTO "+table+" (id, v) VALUES (2, 'y')",
			"UPDATE "+table+" SET v = 'z' WHERE id = 1",
			"ALTER TABLE "+table+" ADD COLUMN w INTEGER",
			"CREATE INDEX i"+table+" ON "+table+" (v)",
			"DELETE FROM "+table+" WHERE id = 2",
			"SELECT id, v, w FROM "+table)
		do("its creator, afterwards", creator,
			"UPDATE "+table+" SET w = 1 WHERE v = 'z'",
			"CREATE INDEX j"+table+" ON "+table+" (w)")
	}
	if s.Owners != nil {
		owners, err := s.Owners(t.Context(), x.Database)
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{x.Owner, x.Owner}; !slices.Equal(owners, want) {
			t.Errorf("the tables' owners are %q, want %q", owners, want)
		}
	}
	// A login that is made again finds its tables.
	x.Works(t)
}

// privileges compares sets from the catalog (B30).
func privileges(t *testing.T, s *Server) {
	x := s.NewTenant()
	x.Ensure(t)
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		got, err := s.Privileges(t.Context(), x.Names, slot)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		want := slices.Sorted(slices.Values(s.Seven))
		if !slices.Equal(got, want) {
			t.Errorf("slot %s holds %q, want %q", slot, got, want)
		}
	}
}

const crowd = 20

// race is twenty at once under the lock, as init does it.
func race(t *testing.T, s *Server) {
	x := s.NewTenant()
	changed := 0
	ensure := func() (done engine.Outcome, err error) {
		for { // a wait for the lock has a limit, and init tries again
			if done, err = x.TryEnsure(t.Context()); !fault.Is(err, fault.Unavailable) || t.Context().Err() != nil {
				return done, err
			}
		}
	}
	for _, r := range atOnce(ensure) {
		if r.err != nil {
			t.Error(r.err)
		}
		if len(r.done.Changes) > 0 {
			changed++
		}
	}
	if changed != 1 {
		t.Errorf("%d of %d changed something, want the first one only", changed, crowd)
	}
	x.Works(t)
}

// raceWithoutLock is what a pooler, or a cluster of which each node has its own locks, makes of it (B40, B41). A run that
// loses may be told to try again, and nothing else.
func raceWithoutLock(t *testing.T, s *Server) {
	x := s.NewTenant()
	for _, r := range atOnce(func() (engine.Outcome, error) {
		admin, err := x.Engine.Admin(t.Context(), x.Connector.User, x.Connector.Password)
		if err != nil {
			return engine.Outcome{}, err
		}
		defer admin.Close()
		return admin.Ensure(t.Context(), x.Spec)
	}) {
		if r.err != nil && !fault.Is(r.err, fault.Unavailable) {
			t.Errorf("class %d: %v", fault.Of(r.err), r.err)
		}
	}
	x.Ensure(t)
	x.Works(t)
	if done := x.Ensure(t); len(done.Changes) != 0 {
		t.Errorf("again: changes %q", done.Changes)
	}
}

type result struct {
	done engine.Outcome
	err  error
}

func atOnce(fn func() (engine.Outcome, error)) []result {
	results := make([]result, crowd)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() {
			<-start
			results[i].done, results[i].err = fn()
		})
	}
	close(start)
	wg.Wait()
	return results
}

func lock(t *testing.T, s *Server) {
	x := s.NewTenant()
	open := func() engine.Admin {
		admin, err := x.Engine.Admin(t.Context(), x.Connector.User, x.Connector.Password)
		if err != nil {
			t.Fatal(err)
		}
		return admin
	}
	first, second, third := open(), open(), open()
	defer second.Close()
	defer third.Close()
	if err := first.Lock(t.Context(), x.Names); err != nil {
		t.Fatal(err)
	}
	other := s.NewTenant()
	other.WithAdmin(t, func(admin engine.Admin) {
		if err := admin.Lock(t.Context(), other.Names); err != nil {
			t.Errorf("another tenant has to wait: %v", err)
		}
	})
	// A wait that ends with the caller's time is worth another try.
	short, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
	defer cancel()
	wantClass(t, third.Lock(short, x.Names), fault.Unavailable)

	got := make(chan error, 1)
	go func() { got <- second.Lock(t.Context(), x.Names) }()
	select {
	case err := <-got:
		t.Fatalf("two hold the lock: %v", err)
	default:
	}
	first.Close() // as a crash does
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

// foreign is a database that is not ours. The way out that the message names must work as it stands there.
func foreign(t *testing.T, s *Server) {
	x := s.NewTenant()
	x.ExecAs(t, x.Connector.User, x.Connector.Password, "", x.SQL(s.Foreign)...)
	snapshot, before := x.Look(t), x.Changes(t)
	_, err := x.TryEnsure(t.Context())
	wantClass(t, err, fault.Refused, x.Database, "mark it: ")
	if now := x.Look(t); now != snapshot || x.Changes(t) != before {
		t.Errorf("something was changed: the server says\n%s\nafter\n%s", now, snapshot)
	}
	if t.Failed() {
		return
	}
	_, out, _ := strings.Cut(err.Error(), "mark it: ")
	x.ExecAs(t, x.Connector.User, x.Connector.Password, "", out)
	x.Ensure(t)
	x.Works(t)
}

// gone: a database that was there once is never made again (promise 2).
func gone(t *testing.T, s *Server) {
	x := s.NewTenant()
	x.Ensure(t)
	x.MustExec(t, "", x.SQL(s.DropDatabase)...)
	wantClass(t, x.Engine.Login(t.Context(), x.Login(tenant.A)), fault.NoDatabase)
	before := x.Changes(t)
	_, err := x.TryEnsure(t.Context())
	wantClass(t, err, fault.NoDatabase, x.Database)
	if x.Changes(t) != before {
		t.Error("something was changed")
	}
	// For a tenant that begins again, what is left of the old one is taken over.
	x.Provisioned = false
	x.Ensure(t)
	x.Works(t)
}

// logins are the classes that provision and rotation decide by.
func logins(t *testing.T, s *Server) {
	x := s.NewTenant()
	x.Ensure(t)
	wrong := x.Login(tenant.A)
	wrong.Password = tenant.NewPassword()
	s.Secret(wrong.Password)
	wantClass(t, x.Engine.Login(t.Context(), wrong), fault.WrongPassword)
	_, err := x.Engine.Verify(t.Context(), wrong, x.Names)
	wantClass(t, err, fault.WrongPassword)
	absent := s.NewTenant()
	wantClass(t, x.Engine.Login(t.Context(), absent.Login(tenant.A)), fault.WrongPassword)
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		if err := x.Engine.Ready(t.Context(), x.Login(slot), x.Names); err != nil {
			t.Errorf("slot %s: %v", slot, err)
		}
	}
	x.MustExec(t, "", x.SQL(s.Close)...)
	wantClass(t, x.Engine.Login(t.Context(), x.Login(tenant.A)), fault.NoAccess)
	wantClass(t, x.Engine.Ready(t.Context(), x.Login(tenant.A), x.Names), fault.NoAccess)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := x.Engine.Login(ctx, x.Login(tenant.A)); err == nil {
		t.Error("logged in although stopped")
	}
	if _, err := x.Engine.Admin(t.Context(), x.Connector.User, "wrong-"+dbserver.Password(rand.Text())); !fault.Is(err, fault.WrongPassword) {
		t.Errorf("admin with a wrong password: got %v (class %d)", err, fault.Of(err))
	}
}

// own: a login sees its own sessions, all but the one it looks from, and changes its own password, without any right.
func own(t *testing.T, s *Server) {
	x := s.NewTenant()
	x.Ensure(t)
	login := x.Login(tenant.B)
	self, err := x.Engine.TenantSession(t.Context(), login)
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	count := func() engine.Sessions {
		sessions, err := self.Sessions(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return sessions
	}
	Eventually(t, "the end of earlier sessions", func() bool { return count() == engine.Sessions{} })
	session := x.Hold(t, login)
	if got, want := count(), (engine.Sessions{Count: 1, Addresses: 1, Here: 1}); got != want {
		t.Errorf("beside a control plane's session: got %+v, want %+v", got, want)
	}
	rival, err := x.Engine.TenantSession(t.Context(), login)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := count(), (engine.Sessions{Count: 2, Addresses: 1, Here: 1}); got != want {
		t.Errorf("beside a rival, who is in the way but no evidence: got %+v, want %+v", got, want)
	}
	rival.Close()
	fresh := login
	fresh.Password = tenant.NewPassword()
	s.Secret(fresh.Password)
	for range 2 { // the same again must do no harm
		if err := self.SetPassword(t.Context(), fresh.Password); err != nil {
			t.Fatal(err)
		}
		if err := x.Engine.Login(t.Context(), fresh); err != nil {
			t.Error(err)
		}
	}
	wantClass(t, x.Engine.Login(t.Context(), login), fault.WrongPassword)
	if err := x.Engine.Login(t.Context(), x.Login(tenant.A)); err != nil {
		t.Errorf("the other slot: %v", err)
	}
	if err := session.PingContext(t.Context()); err != nil {
		t.Errorf("the session that was open: %v", err)
	}
}

// expel: a login ends its sessions that are older than the one that asks, and no other's (S5).
func expel(t *testing.T, s *Server) {
	x := s.NewTenant()
	x.Ensure(t)
	open := func() engine.TenantSession {
		self, err := x.Engine.TenantSession(t.Context(), x.Login(tenant.B))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(self.Close)
		return self
	}
	ends := func(self engine.TenantSession) engine.Remains {
		left, err := self.Expel(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return left
	}
	other, intruder := x.Hold(t, x.Login(tenant.A)), x.Hold(t, x.Login(tenant.B))
	rival := open()
	self := open()
	later := open()
	if left := ends(self); left.Sessions < 2 || left.LoginTime < time.Second {
		t.Errorf("got %+v, want two sessions, and the time that a login may take", left)
	}
	Eventually(t, "the end of what was ended", func() bool { return ends(self).Sessions == 0 })
	if _, err := rival.Sessions(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("an older session: %v", err)
	}
	if _, err := later.Sessions(t.Context()); err != nil {
		t.Errorf("a later session: %v", err)
	}
	if err := other.PingContext(t.Context()); err != nil {
		t.Errorf("the other login's session: %v", err)
	}
	if err := intruder.PingContext(t.Context()); err == nil {
		if left := ends(open()); left.Sessions == 0 { // the pool has opened another one
			t.Error("the intruder's session is not found")
		}
	}
}

func passwords(t *testing.T, s *Server) {
	x := s.NewTenant()
	x.Ensure(t)
	x.WithAdmin(t, func(admin engine.Admin) {
		inUse := func() bool {
			used, err := admin.InUse(t.Context(), x.User(tenant.A))
			if err != nil {
				t.Fatal(err)
			}
			return used
		}
		if inUse() {
			Eventually(t, "the end of earlier sessions", func() bool { return !inUse() })
		}
		session := x.Hold(t, x.Login(tenant.A))
		if !inUse() {
			t.Error("a session is not seen")
		}
		if used, err := admin.InUse(t.Context(), x.User(tenant.B)); err != nil || used {
			t.Errorf("slot b: in use %t, %v", used, err)
		}
		if err := session.Close(); err != nil {
			t.Fatal(err)
		}
		Eventually(t, "the end of a session", func() bool { return !inUse() })

		old := x.Login(tenant.A)
		fresh := old
		fresh.Password = tenant.NewPassword()
		s.Secret(fresh.Password)
		for range 2 { // the same again must do no harm
			if err := admin.SetPassword(t.Context(), fresh.User, fresh.Password); err != nil {
				t.Fatal(err)
			}
			if err := x.Engine.Login(t.Context(), fresh); err != nil {
				t.Error(err)
			}
		}
		wantClass(t, x.Engine.Login(t.Context(), old), fault.WrongPassword)
		if err := x.Engine.Login(t.Context(), x.Login(tenant.B)); err != nil {
			t.Errorf("the other slot: %v", err)
		}
		// Ensure leaves a login's password alone, whatever it is asked for.
		x.Ensure(t)
		if err := x.Engine.Login(t.Context(), fresh); err != nil {
			t.Error(err)
		}
		if err := admin.SetPassword(t.Context(), s.NewTenant().User(tenant.A), fresh.Password); err == nil {
			t.Error("the password of a login that does not exist was set")
		}
	})
}

// limit is B45: the tenant's connections end at the limit, and others do not feel it.
func limit(t *testing.T, s *Server) {
	x, other := s.NewTenant(), s.NewTenant()
	x.Ensure(t)
	other.Ensure(t)
	var sessions []Connection
	for range Limit {
		sessions = append(sessions, x.Hold(t, x.Login(tenant.A)))
	}
	wantClass(t, x.Engine.Login(t.Context(), x.Login(tenant.A)), fault.Unavailable)
	err := x.Engine.Login(t.Context(), x.Login(tenant.B))
	if s.LimitIsPerLogin {
		if err != nil {
			t.Errorf("the other slot: %v", err)
		}
	} else {
		wantClass(t, err, fault.Unavailable)
	}
	if err := x.Engine.Login(t.Context(), other.Login(tenant.A)); err != nil {
		t.Errorf("another tenant: %v", err)
	}
	// Where an admin who is no superuser counts, too, he is told to come again, and then gets in.
	if _, err := x.TryEnsure(t.Context()); err != nil {
		wantClass(t, err, fault.Unavailable)
	}
	if err := sessions[0].Close(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "room for the admin", func() bool {
		_, err := x.TryEnsure(t.Context())
		return err == nil
	})
}

func weakAdmins(t *testing.T, s *Server) {
	for _, weak := range s.Admins {
		t.Run(weak.Name, func(t *testing.T) {
			t.Parallel()
			x := s.NewTenant()
			user, password := "weak"+strings.ToLower(rand.Text())[:12], dbserver.Password("Weak-1~"+rand.Text())
			x.MustExec(t, "", x.SQL(weak.SQL, "{user}", user, "{password}", password.Reveal())...)
			try := func() error {
				admin, err := x.Engine.Admin(t.Context(), user, password)
				if err != nil {
					return err
				}
				defer admin.Close()
				if err := admin.Lock(t.Context(), x.Names); err != nil {
					return err
				}
				if _, err := admin.Ensure(t.Context(), x.Spec); err != nil {
					return err
				}
				_, err = admin.InUse(t.Context(), x.User(tenant.A))
				return err
			}
			err := try()
			t.Log(err)
			wantClass(t, err, fault.Refused, weak.Want)
		})
	}
}
