// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/engine/enginetest"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/provision"
	"dbconnector/pkg/statedir"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// job is the provisioning of one tenant, with its record in a directory.
type job struct {
	*enginetest.Tenant
	provision.Init
	dir string
	// used counts how often the connector was read.
	used atomic.Int32
	// published are the records that were handed over.
	mu        sync.Mutex
	published []*tenant.Record
	logs      *observer.ObservedLogs
}

func newJob(t *testing.T, s *enginetest.Server) *job {
	t.Helper()
	j := &job{Tenant: s.NewTenant(), dir: t.TempDir()}
	core, logs := observer.New(zapcore.DebugLevel)
	j.logs = logs
	store, err := statedir.Open(j.dir)
	require.NoError(t, err)
	file := filepath.Join(j.dir, statedir.File)
	j.Init = provision.Init{
		Namespace: "ns", VCluster: "vc", TenantUID: j.ID, ConnectionLimit: enginetest.Limit, Attempt: 20 * time.Second,
		Store: store, RecordName: "the record (" + file + ")", ForgetCommand: "rm " + file, Log: zap.New(core),
		Connector: func(context.Context) (connector.Connector, error) {
			j.used.Add(1)
			return j.Tenant.Connector, nil
		},
		Publish: func(r *tenant.Record) error {
			j.mu.Lock()
			defer j.mu.Unlock()
			j.published = append(j.published, r.Clone())
			return nil
		},
	}
	// Promise 5: our programs never log a password.
	t.Cleanup(func() {
		for _, entry := range logs.All() {
			s.NoSecretIn(t, "our log", fmt.Sprintf("%s %v", entry.Message, entry.ContextMap()))
		}
	})
	return j
}

// try runs init.
func (j *job) try(t *testing.T) (provision.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	result, err := provision.Run(ctx, j.Init, func(s dbserver.Server) engine.Engine { return open.Engine(s, program) })
	if record, lerr := j.Store.Load(t.Context()); lerr == nil && record != nil {
		for _, c := range record.Slots {
			if c.Password != "" {
				j.Secret(c.Password)
			}
		}
	}
	if err != nil {
		j.NoSecretIn(t, "our error", err.Error())
	}
	return result, err
}

// run is try, which must succeed. Then the hand-over works.
func (j *job) run(t *testing.T) *tenant.Record {
	t.Helper()
	before := len(j.published)
	result, err := j.try(t)
	require.NoError(t, err)
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.published) != before+1 {
		t.Fatalf("handed over %d times, want once", len(j.published)-before)
	}
	r := j.published[before]
	if r.Login(r.Active) != result.Record.Login(result.Record.Active) {
		t.Error("handed over another record than the result")
	}
	assert.NoError(t, open.Engine(r.Server, program).Login(t.Context(), r.Login(r.Active)), "using the hand-over")
	return r
}

// refused is try, which must end at once with a refusal that says all of the words; nothing is handed over.
func (j *job) refused(t *testing.T, words ...string) string {
	t.Helper()
	before := len(j.published)
	began := time.Now()
	_, err := j.try(t)
	if !fault.Is(err, fault.Refused) {
		t.Fatalf("got %v (class %d), want a refusal", err, fault.Of(err))
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("got %q, which does not say %q", err, word)
		}
	}
	if len(j.published) != before {
		t.Error("handed over nevertheless")
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("took %s, as if repeating would help", took)
	}
	return err.Error()
}

// verified checks what the tenant can do with the hand-over, and with the other slot.
func (j *job) verified(t *testing.T) {
	t.Helper()
	c, err := j.Connector(t.Context())
	require.NoError(t, err)
	r := j.published[len(j.published)-1]
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		if _, err := open.Engine(c.Server, program).Verify(t.Context(), r.Login(slot), r.Names()); err != nil {
			t.Errorf("slot %s: %v", slot, err)
		}
	}
}

// byHand changes the password of a slot without the record.
func (j *job) byHand(t *testing.T, slot tenant.Slot) tenant.Login {
	t.Helper()
	login := tenant.Login{User: j.User(slot), Password: tenant.NewPassword(), Database: j.Database}
	j.Secret(login.Password)
	j.WithAdmin(t, func(admin engine.Admin) {
		require.NoError(t, admin.SetPassword(t.Context(), login.User, login.Password))
	})
	return login
}

// edit changes the record.
func (j *job) edit(t *testing.T, fn func(*tenant.Record)) {
	t.Helper()
	if _, err := j.Store.Update(t.Context(), func(old *tenant.Record) (*tenant.Record, error) {
		fn(old)
		return old, nil
	}); err != nil {
		t.Fatal(err)
	}
}

// forget deletes the record in the way that messages name.
func (j *job) forget(t *testing.T) {
	t.Helper()
	file, ok := strings.CutPrefix(j.ForgetCommand, "rm ")
	if !ok {
		t.Fatalf("not a command: %s", j.ForgetCommand)
	}
	require.NoError(t, os.Remove(file))
}

// idle waits until no session of the tenant is left on the server.
func (j *job) idle(t *testing.T) {
	t.Helper()
	j.WithAdmin(t, func(admin engine.Admin) {
		enginetest.Eventually(t, "the end of the tenant's sessions", func() bool {
			for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
				if used, err := admin.InUse(t.Context(), j.User(slot)); err != nil || used {
					return false
				}
			}
			return true
		})
	})
}

// alive checks that a session still works, and that its login is still let in.
func (j *job) alive(t *testing.T, session *sql.DB, login tenant.Login) {
	t.Helper()
	if _, err := session.ExecContext(t.Context(), "SELECT 1"); err != nil {
		t.Errorf("the session of the running pod: %v", err)
	}
	assert.NoError(t, j.Engine.Login(t.Context(), login), "the login of the running pod")
}

func wantActive(t *testing.T, r *tenant.Record, slot tenant.Slot, generation int64) {
	t.Helper()
	// init leaves one task to the sidecar: to end sessions of clients that log in with the password that init has
	// replaced.
	left := r.Pending == nil || *r.Pending == tenant.Change{Slot: slot.Other(), Password: r.Slots[slot.Other()].Password, Purpose: tenant.Retire}
	if r.Active != slot || r.Generation != generation || !left {
		t.Errorf(
			"got slot %s, generation %d, pending %v; want slot %s, generation %d, nothing pending but a retirement", r.Active,
			r.Generation, r.Pending, slot, generation,
		)
	}
}

// known checks that the record's password of a slot works, or that the record knows none.
func (j *job) known(t *testing.T, r *tenant.Record, slot tenant.Slot, want bool) {
	t.Helper()
	switch got := r.Slots[slot].Password != ""; {
	case got != want:
		t.Errorf("slot %s: password known: %t, want %t", slot, got, want)
	case want:
		assert.NoErrorf(t, j.Engine.Login(t.Context(), r.Login(slot)), "slot %s", slot)
	}
}

var provisioning = map[string]func(*testing.T, *enginetest.Server){
	"again": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		first := j.run(t)
		wantActive(t, first, tenant.A, 1)
		j.known(t, first, tenant.B, true)
		if !first.Provisioned() || !first.OtherRetired {
			t.Errorf("provisioned %t, other slot retired %t", first.Provisioned(), first.OtherRetired)
		}
		used, changes := j.used.Load(), j.Changes(t)
		again := j.run(t) // promise 7
		if j.used.Load() != used || j.Changes(t) != changes {
			t.Errorf("read the connector %d times, changed %d things", j.used.Load()-used, j.Changes(t)-changes)
		}
		wantActive(t, again, tenant.A, 1)
	},
	"twenty at once": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := j.try(t); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, r := range j.published {
			if r.Login(r.Active) != j.published[0].Login(tenant.A) {
				t.Fatal("two were handed different credentials")
			}
		}
		j.known(t, j.published[0], tenant.A, true)
		j.known(t, j.published[0], tenant.B, true)
	},

	// An admin changed the active slot's password by hand (B51).
	"wrong password, no sessions": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		j.byHand(t, tenant.A)
		j.idle(t)
		r := j.run(t)
		wantActive(t, r, tenant.A, 2)
		j.known(t, r, tenant.B, true)
		wantActive(t, j.run(t), tenant.A, 2)
	},
	"wrong password, pod on slot a": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		login := j.byHand(t, tenant.A)
		pod := j.Session(t, login)
		r := j.run(t)
		wantActive(t, r, tenant.B, 2)
		j.known(t, r, tenant.A, false)
		j.alive(t, pod, login)
		r = j.run(t) // and again, as often as it takes
		wantActive(t, r, tenant.B, 2)
		j.known(t, r, tenant.A, false)
		j.alive(t, pod, login)
		// The pod ends, and init finishes the open work.
		require.NoError(t, pod.Close())
		j.idle(t)
		r = j.run(t)
		wantActive(t, r, tenant.B, 2)
		j.known(t, r, tenant.A, true)
		if !r.OtherRetired {
			t.Error("no client has slot a's new password, and yet it does not count as retired")
		}
	},
	"wrong password, both slots in use": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		a, b := j.byHand(t, tenant.A), j.byHand(t, tenant.B)
		podA, podB := j.Session(t, a), j.Session(t, b)
		done := make(chan error, 1)
		var r provision.Result
		go func() {
			var err error
			r, err = j.try(t)
			done <- err
		}()
		enginetest.Eventually(t, "a second wait", func() bool { return j.logs.FilterMessage("waiting").Len() > 1 })
		for _, entry := range j.logs.FilterMessage("waiting").All() {
			if reason := fmt.Sprint(entry.ContextMap()["error"]); !strings.Contains(reason, "both logins") ||
				!strings.Contains(reason, a.User) || !strings.Contains(reason, b.User) {
				t.Errorf("waits because of %q, want both logins named", reason)
			}
		}
		j.alive(t, podA, a)
		j.alive(t, podB, b)
		require.NoError(t, podB.Close())
		require.NoError(t, <-done)
		wantActive(t, r.Record, tenant.B, 2)
		j.known(t, r.Record, tenant.B, true)
		j.alive(t, podA, a)
	},

	// The record is gone, or older than the server (restored from a backup).
	"record lost, no sessions": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		j.forget(t)
		j.idle(t)
		r := j.run(t)
		j.known(t, r, tenant.A, true)
		j.known(t, r, tenant.B, true)
	},
	"record lost, pod on slot a": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		login := j.run(t).Login(tenant.A)
		pod := j.Session(t, login)
		j.forget(t)
		r := j.run(t)
		wantActive(t, r, tenant.B, 2)
		j.known(t, r, tenant.A, false)
		j.alive(t, pod, login)
	},
	"record lost, pod on slot b": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		login := j.run(t).Login(tenant.B)
		pod := j.Session(t, login)
		j.forget(t)
		r := j.run(t)
		wantActive(t, r, tenant.A, 2)
		j.known(t, r, tenant.B, false)
		j.alive(t, pod, login)
	},
	"record older than the server": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		j.byHand(t, tenant.A)
		login := j.byHand(t, tenant.B) // as after two rotations; the pod is on the second
		pod := j.Session(t, login)
		r := j.run(t)
		wantActive(t, r, tenant.A, 2)
		j.known(t, r, tenant.B, false)
		j.alive(t, pod, login)
	},

	// A crash between the record and the server (B12, B17).
	"pending and applied": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		login := j.byHand(t, tenant.A)
		j.edit(t, func(r *tenant.Record) {
			r.Pending = &tenant.Change{Slot: tenant.A, Password: login.Password, Purpose: tenant.Activate}
		})
		pod := j.Session(t, login) // no client has it yet, and a client that had it would be right
		r := j.run(t)
		wantActive(t, r, tenant.A, 2)
		if r.Slots[tenant.A].Password != login.Password {
			t.Error("a second password was made")
		}
		j.alive(t, pod, login)
	},
	"pending on the other slot and applied": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		running := j.byHand(t, tenant.A)
		pod := j.Session(t, running)
		login := j.byHand(t, tenant.B)
		j.edit(t, func(r *tenant.Record) {
			r.Pending = &tenant.Change{Slot: tenant.B, Password: login.Password, Purpose: tenant.Activate}
		})
		r := j.run(t)
		wantActive(t, r, tenant.B, 2)
		if r.Slots[tenant.B].Password != login.Password {
			t.Error("a second password was made")
		}
		j.alive(t, pod, running)
	},
	"pending and not applied": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		j.byHand(t, tenant.A)
		j.idle(t)
		pending := tenant.NewPassword()
		s.Secret(pending)
		j.edit(t, func(r *tenant.Record) {
			r.Pending = &tenant.Change{Slot: tenant.A, Password: pending, Purpose: tenant.Activate}
		})
		r := j.run(t)
		wantActive(t, r, tenant.A, 2)
		if r.Slots[tenant.A].Password != pending {
			t.Error("a second password was made")
		}
	},
	"pending, not applied, with a session": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		login := j.byHand(t, tenant.A)
		pod := j.Session(t, login)
		pending := tenant.NewPassword()
		s.Secret(pending)
		j.edit(t, func(r *tenant.Record) {
			r.Pending = &tenant.Change{Slot: tenant.A, Password: pending, Purpose: tenant.Activate}
		})
		r := j.run(t)
		wantActive(t, r, tenant.B, 2)
		j.alive(t, pod, login)
	},
	"pending, and not needed": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		first := j.run(t)
		pending := tenant.NewPassword()
		s.Secret(pending)
		j.edit(t, func(r *tenant.Record) {
			r.Pending = &tenant.Change{Slot: tenant.A, Password: pending, Purpose: tenant.Activate}
		})
		r := j.run(t)
		wantActive(t, r, tenant.A, 1)
		if r.Slots[tenant.A] != first.Slots[tenant.A] {
			t.Error("the password that worked was changed")
		}
	},
	"a rotation's pending change is left to it": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		pending := tenant.Change{Slot: tenant.B, Password: tenant.NewPassword(), Purpose: tenant.Activate}
		s.Secret(pending.Password)
		j.edit(t, func(r *tenant.Record) { p := pending; r.Pending = &p })
		r := j.run(t)
		if r.Active != tenant.A || r.Pending == nil || *r.Pending != pending {
			t.Errorf("got slot %s, pending %v", r.Active, r.Pending)
		}
	},

	// Promise 2.
	"database dropped": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		j.MustExec(t, "", j.SQL(s.DropDatabase)...)
		before := j.Look(t)
		j.refused(t, j.ForgetCommand, j.Database, "refusing to start on an empty one")
		if now := j.Look(t); now != before {
			t.Errorf("something was changed: the server says\n%s\nafter\n%s", now, before)
		}
		j.forget(t) // the way out that the message names
		j.known(t, j.run(t), tenant.A, true)
	},
	"database emptied": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		table := []string{"CREATE TABLE kine (id int)"}
		again := []string{"CREATE DATABASE " + j.Database}
		if j.Tenant.Connector.Server.Engine == dbserver.Postgres {
			table = append(table, "GRANT SELECT ON kine TO PUBLIC")
			again = []string{ // closed until it is locked down, because other tenants' runs would report it
				"CREATE DATABASE " + j.Database + " ALLOW_CONNECTIONS false", "REVOKE ALL ON DATABASE " + j.Database + " FROM PUBLIC",
				"GRANT CONNECT ON DATABASE " + j.Database + " TO " + j.User(tenant.A), "ALTER DATABASE " + j.Database + " ALLOW_CONNECTIONS true",
			}
		}
		j.MustExec(t, j.Database, append(table, "INSERT INTO kine VALUES (1)")...)
		if r := j.run(t); !r.DataSeen {
			t.Error("the restart did not notice the data")
		}
		// A restore that ended after its first statements.
		j.MustExec(t, "", append(j.SQL(s.DropDatabase), again...)...)
		j.refused(t, j.ForgetCommand, j.Database, "it holds none")
		j.MustExec(t, j.Database, table...)
		j.refused(t, "it holds none") // a table without a row is no data
		j.MustExec(t, j.Database, "INSERT INTO kine VALUES (1)")
		j.run(t)
	},
	"database and logins dropped": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		j.MustExec(t, "", j.SQL(append(slices.Clone(s.DropDatabase), s.DropLogins...))...)
		j.refused(t, j.ForgetCommand, j.Database)
		j.forget(t)
		j.known(t, j.run(t), tenant.A, true)
	},
	"moved to a server without the database": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.was(t, deadServer(t, s))
		before := j.Look(t)
		j.refused(t, j.ForgetCommand, j.Tenant.Connector.Server.Address(), deadAddress(t, j))
		if now := j.Look(t); now != before {
			t.Errorf("something was changed: the server says\n%s\nafter\n%s", now, before)
		}
	},
	"moved to a server with a dump of the database": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.was(t, deadServer(t, s))
		// A dump brings no roles, no mark and no rights.
		j.ExecAs(t, s.Connector.User, s.Connector.Password, "", j.SQL(s.Dump)...)
		j.ExecAs(t, s.Connector.User, s.Connector.Password, j.Database, "CREATE TABLE kine (id INTEGER)", "INSERT INTO kine VALUES (7)")
		r := j.run(t)
		if r.Server != s.Connector.Server {
			t.Errorf("the record still names %s", r.Server.Address())
		}
		if used := j.used.Load(); used != 1 {
			t.Errorf("read the connector %d times", used)
		}
		j.run(t)
		if used := j.used.Load(); used != 1 {
			t.Error("the restart path does not know the new server")
		}
	},
	"the old server still answers": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		dead := deadServer(t, s)
		j.Connector = func(context.Context) (connector.Connector, error) {
			c := s.Connector
			c.Server = dead
			return c, nil
		}
		if r := j.run(t); r.Server != s.Connector.Server {
			t.Error("moved to a server that holds nothing")
		}
	},
	"limit changed": func(t *testing.T, s *enginetest.Server) {
		j := newJob(t, s)
		j.run(t)
		j.ConnectionLimit = enginetest.Limit + 2
		before := j.Look(t)
		if r := j.run(t); r.ConnectionLimit != enginetest.Limit+2 {
			t.Errorf("the record says %d", r.ConnectionLimit)
		}
		if j.Look(t) == before {
			t.Error("the server was not told")
		}
	},
}

// was makes a record for a tenant that was provisioned elsewhere.
func (j *job) was(t *testing.T, server dbserver.Server) {
	t.Helper()
	r := tenant.NewRecord(j.ID, "ns", "vc", server, enginetest.Limit)
	r.ProvisionedAt = time.Now()
	j.Secret(r.Slots[tenant.A].Password, r.Slots[tenant.B].Password)
	if _, err := j.Store.Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) { return r, nil }); err != nil {
		t.Fatal(err)
	}
}

// deadServer is a server that is gone. It has a port below 1024, on which nothing listens and which the kernel gives to
// no process.
func deadServer(_ *testing.T, s *enginetest.Server) dbserver.Server {
	dead := s.Connector.Server
	dead.Port = 1
	return dead
}

func deadAddress(t *testing.T, j *job) string {
	t.Helper()
	r, err := j.Store.Load(t.Context())
	require.NoError(t, err)
	return r.Server.Address()
}

// newest are the versions on which init is also run with a superuser. The kind of admin does not change how init uses
// an engine, and other tests run the engine itself with both kinds.
var newest = []string{"postgres-18", "mysql-9.7", "mariadb-11.8"}

// TestProvision is init as a whole, without Kubernetes, on every version, with the admin that has fewer rights.
func TestProvision(t *testing.T) {
	t.Parallel()
	for _, v := range bed.Versions {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			for admin, s := range admins(t, newServer(t, v)) {
				if admin == "superuser" && !slices.Contains(newest, v.String()) {
					continue
				}
				for _, name := range slices.Sorted(maps.Keys(provisioning)) {
					t.Run(name+" as "+admin, func(t *testing.T) {
						t.Parallel()
						provisioning[name](t, s)
					})
				}
			}
		})
	}
}

// printed is a statement that a message tells the admin to run.
func printed(t *testing.T, message, pattern string) string {
	t.Helper()
	found := regexp.MustCompile(pattern).FindString(message)
	if found == "" {
		t.Fatalf("no statement like %s in %q", pattern, message)
	}
	return found
}
