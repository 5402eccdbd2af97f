// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// These tests cover faults in which a server answers and refuses: a password, a login that changes its own password,
// both logins, or a login's work with the database.

// intercept puts a proxy before a server that speaks clear text. answer hears each question of a session of a tenant's login, and may
// answer it, because no server gives some answers on demand. It returns the proxy's address.
func intercept(tb testing.TB, server string, answer func(asked []byte) []byte) string {
	tb.Helper()
	proxy := bed.NewProxy(tb, server)
	var tenants sync.Map
	proxy.Intercept(func(q bed.Question) bed.Reply {
		// The first message of both kinds of clients names the login; names of logins begin with vc.
		if bytes.Contains(q.Data, []byte("user\x00vc")) || bytes.HasPrefix(q.Data[min(36, len(q.Data)):], []byte("vc")) {
			tenants.Store(q.Conn, true)
		}
		if _, is := tenants.Load(q.Conn); is {
			return bed.Reply{Instead: answer(q.Data)}
		}
		return bed.Reply{}
	})
	return proxy.Addr()
}

// no is PostgreSQL's answer to a statement that it refuses.
func no(tb testing.TB, code string) []byte {
	tb.Helper()
	answer, err := (&pgproto3.ErrorResponse{Severity: "ERROR", Code: code, Message: "the test's server says no"}).Encode(nil)
	require.NoError(tb, err, "making an answer")
	answer, err = (&pgproto3.ReadyForQuery{TxStatus: 'I'}).Encode(answer)
	require.NoError(tb, err, "making an answer")
	return answer
}

// failures are the log lines of a sidecar about failed steps.
func failures(s *rig.Process) []map[string]any { return s.Lines("a step failed (continuing)") }

// resigned waits until a sidecar has failed so often that it retries only after minutes. It returns the number of
// failures.
func resigned(tb testing.TB, s *rig.Process, since int) int {
	tb.Helper()
	var lines []map[string]any
	bed.Eventually(tb, rig.Patience, func(context.Context) error {
		lines = failures(s)
		if len(lines) > since {
			text, _ := lines[len(lines)-1]["next"].(string)
			if next, err := time.ParseDuration(text); err == nil && next > 2*time.Minute {
				return nil
			}
		}
		return fmt.Errorf("the sidecar has failed %d times, and asks again soon", len(lines))
	})
	return len(lines) - since
}

// TestPasswordRejected: the server has a policy, and no password is good enough for it. The sidecar discards each one
// when a login has shown that the server has not taken it, and tries another one, five in a row. Then it waits for
// minutes (B1, B2). When an admin fixes the policy, the sidecar goes on. The policy is MySQL's own. The test invents
// PostgreSQL's, because a SCRAM verifier does not show a policy how good a password is. MariaDB's policies are not in
// the packages of its server.
func TestPasswordRejected(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		var server *bed.Server
		var address string
		var strict func(on bool)
		var tries func() int
		if engine == bed.Postgres {
			server = bed.NewServer(t, engine, version, bed.Options{NoTLS: true})
			var isStrict atomic.Bool
			var mu sync.Mutex
			tried := map[string]bool{}
			address = intercept(t, server.Addr(), func(asked []byte) []byte {
				if !changes(engine, asked) || !isStrict.Load() {
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				tried[string(asked)] = true
				return no(t, "22023")
			})
			strict = isStrict.Store
			tries = func() int { mu.Lock(); defer mu.Unlock(); return len(tried) }
		} else {
			server = bed.NewServer(t, engine, version, bed.Options{})
			require.NoError(t, server.Exec(t.Context(), "INSTALL COMPONENT 'file://component_validate_password'"), "loading the policy")
			strict = func(on bool) {
				length := 8
				if on {
					length = 41
				}
				require.NoError(t, server.Exec(t.Context(), fmt.Sprint("SET GLOBAL validate_password.length = ", length)), "setting the policy")
			}
			tries = func() int {
				n, err := server.Status(t.Context(), "Com_alter_user")
				require.NoError(t, err, "asking the server")
				return int(n)
			}
		}
		plane := rig.NewTenant(t, server, address)
		client := consume(t, plane, server, "127.0.0.1", false)
		sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=1s")
		before := recordOf(t, plane)

		strict(true)
		rewrite(t, plane, overdue)
		bed.Eventually(t, rig.Patience, func(context.Context) error {
			if n := tries(); n < 2 {
				return fmt.Errorf("%d passwords were tried", n)
			}
			return nil
		})
		r := recordOf(t, plane)
		if r.Generation != 1 || r.Slots[tenant.B] != before.Slots[tenant.B] {
			t.Errorf("rotated to generation %d", r.Generation)
		}
		accepts(t, r)
		strict(false)
		rig.Until(t, plane, "generation 2", generation(2))
		healthy(t, sidecar)

		strict(true)
		tried, failed := tries(), len(failures(sidecar))
		client.move(t)
		resigned(t, sidecar, failed)
		if n := tries() - tried; n != 5 {
			t.Errorf("%d passwords were tried, want 5", n)
		}
		lines := failures(sidecar)
		if text := fmt.Sprint(lines[len(lines)-1]["error"]); !strings.Contains(text, "5 passwords in a row") {
			t.Errorf("the sidecar says %q", text)
		}
		r = recordOf(t, plane)
		if r.OtherRetired || r.OtherRefused {
			t.Errorf("old slot retired: %t, refused: %t", r.OtherRetired, r.OtherRefused)
		}
		accepts(t, r)
		strict(false)
		sidecar.Kill() // the next sidecar has not given up yet
		sidecar = rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=1s")
		accepts(t, rig.Until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired }))
		dead(t, before, before.Active)
		healthy(t, sidecar)
	}, "postgres-17", "mysql-9.7")
}

// TestStrictMySQL is a server with the policies that MySQL has: a login must give the old password with the new one, no
// password may be used again, and all must be good. A password that is used again is rejected like any other (B1).
func TestStrictMySQL(t *testing.T) {
	t.Parallel()
	server := bed.NewServer(t, bed.MySQL, "9.7", bed.Options{})
	require.NoError(t, server.Exec(t.Context(), "INSTALL COMPONENT 'file://component_validate_password'", "SET GLOBAL validate_password.policy = STRONG",
		"SET GLOBAL password_require_current = ON", "SET GLOBAL password_history = 10", "SET GLOBAL password_reuse_interval = 365"), "setting policies")
	plane := rig.NewTenant(t, server, "")
	client := consume(t, plane, server, "127.0.0.1", false)
	first := recordOf(t, plane)
	rewrite(t, plane, overdue)
	sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=1s")
	rig.Until(t, plane, "generation 2", generation(2))
	client.move(t)
	rig.Until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired })
	if n := len(failures(sidecar)); n != 0 {
		t.Errorf("%d failures", n)
	}
	// Slot a had this one already.
	came := tenant.Change{Slot: tenant.A, Password: first.Slots[tenant.A].Password, Purpose: tenant.Activate}
	rewrite(t, plane, func(r *tenant.Record) { r.Pending = &came })
	bed.Eventually(t, rig.Patience, func(context.Context) error {
		if len(failures(sidecar)) == 0 {
			return errors.New("the server takes a password again")
		}
		return nil
	})
	rewrite(t, plane, overdue)
	accepts(t, rig.Until(t, plane, "generation 3", generation(3)))
	dead(t, first, tenant.A)
	healthy(t, sidecar)
}

// TestSelfChangeForbidden: the server lets no login change its own password, as rds.restrict_password_commands has it
// (B10). The sidecar says so, and the next init finishes the change with the admin's credential. None of the test
// servers can forbid it: MySQL only asks for the old password, see TestStrictMySQL. So the test sends the refusal.
func TestSelfChangeForbidden(t *testing.T) {
	t.Parallel()
	server := bed.NewServer(t, bed.Postgres, "17", bed.Options{NoTLS: true})
	address := intercept(t, server.Addr(), func(asked []byte) []byte {
		if changes(bed.Postgres, asked) {
			return no(t, "42501")
		}
		return nil
	})
	plane := rig.NewTenant(t, server, address)
	client := consume(t, plane, server, "127.0.0.1", false)
	sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=1s")
	rewrite(t, plane, overdue)
	forbidden := func(what string) *tenant.Record {
		t.Helper()
		gauge(t, sidecar, `dbconnector_locked_out{login="inactive"}`, 1)
		metric(t, sidecar, "dbconnector_consecutive_failures", "is positive", func(v float64) bool { return v > 0 })
		r := rig.Until(t, plane, "init is to know", func(r *tenant.Record) bool { return r.OtherRefused && r.Pending != nil })
		if log := sidecar.Log(); !strings.Contains(log, "SQLSTATE 42501") {
			t.Errorf("%s: the sidecar does not say why", what)
		}
		client.connected(t)
		return r
	}
	if r := forbidden("rotation"); r.Generation != 1 {
		t.Errorf("generation %d", r.Generation)
	}
	first := recordOf(t, plane)
	attempts := resigned(t, sidecar, 0) // init does not touch a slot that a sidecar is looking at
	rig.Provision(t, plane)
	if r := recordOf(t, plane); r.Generation != 2 || r.Pending != nil || r.OtherRefused {
		t.Errorf("init has not finished it: generation %d, pending %t, refused %t", r.Generation, r.Pending != nil, r.OtherRefused)
	}
	gauge(t, sidecar, `dbconnector_locked_out{login="inactive"}`, 0)
	client.move(t)
	if r := forbidden("retirement"); r.OtherRetired {
		t.Error("retired")
	}
	resigned(t, sidecar, attempts)
	rig.Provision(t, plane)
	r := recordOf(t, plane)
	if r.Generation != 2 || r.OtherRefused || !r.OtherRetired {
		t.Errorf("init has not finished it: generation %d, refused %t, retired %t", r.Generation, r.OtherRefused, r.OtherRetired)
	}
	rig.Until(t, plane, "no login can be under way", func(r *tenant.Record) bool { return r.Pending == nil }) // the sidecar need not change it
	accepts(t, r)
	dead(t, first, first.Active)
	gauge(t, sidecar, `dbconnector_locked_out{login="inactive"}`, 0)
	healthy(t, sidecar)
}

// TestLockedOut: the server has other passwords than the record, as after a restore from a backup. The sidecar says so
// and does not try again and again (B2). The next init repairs both logins, one of them when no client uses it any more
// (B51), and rotation goes on.
func TestLockedOut(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		server := bed.NewServer(t, engine, version, bed.Options{LogStatements: true})
		plane := rig.NewTenant(t, server, "")
		client := consume(t, plane, server, "127.0.0.1", false)
		for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
			require.NoError(t, server.SetPassword(t.Context(), plane.Names().User(slot), "Fr0m-a.backup"), "changing passwords")
		}
		refusals := func() int {
			log, err := server.StatementLog()
			require.NoError(t, err, "reading the server's log")
			return strings.Count(log, map[bool]string{true: "FATAL:  password authentication failed", false: "Access denied"}[engine == bed.Postgres])
		}
		began := refusals()
		rewrite(t, plane, overdue)
		sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=1s")
		gauge(t, sidecar, `dbconnector_locked_out{login="active"}`, 1)
		gauge(t, sidecar, `dbconnector_locked_out{login="inactive"}`, 1)
		ready(t, sidecar)
		n := resigned(t, sidecar, 0)
		for _, line := range failures(sidecar) {
			if text := fmt.Sprint(line["error"]); !strings.Contains(text, "the active login is locked out, the next start of init repairs it") {
				t.Errorf("the sidecar says %q", text)
			}
		}
		// There is one login for each slot, and at first one more before the sidecar asks for init. The sidecar asks MariaDB
		// twice before it trusts the answer.
		most := 2*n + 2
		if engine == bed.MariaDB {
			most *= 2
		}
		if got := refusals() - began; n > 5 || got > most {
			t.Errorf("%d tries and %d refused logins before the sidecar waits for minutes", n, got)
		}

		rig.Provision(t, plane)
		r := recordOf(t, plane)
		if r.Generation != 2 || r.Active != tenant.B {
			t.Errorf("generation %d, active %s: slot a is in use", r.Generation, r.Active)
		}
		gauge(t, sidecar, `dbconnector_locked_out{login="active"}`, 0)
		healthy(t, sidecar)
		client.move(t)
		rig.Provision(t, plane)
		accepts(t, recordOf(t, plane))
		gauge(t, sidecar, `dbconnector_locked_out{login="inactive"}`, 0)
		rewrite(t, plane, overdue)
		rig.Until(t, plane, "generation 3", generation(3))
		healthy(t, sidecar)
	})
}

// TestRightsWithdrawn: an admin took rights from the inactive slot. A control plane on that slot would fail, so the
// sidecar does not move it there. The next init, which otherwise looks at the active slot only, gives the rights back
// and finishes the rotation (B4, B5).
func TestRightsWithdrawn(t *testing.T) {
	t.Parallel()
	names := []string{"postgres-13", "postgres-17", "mysql-9.7", "mariadb-10.5", "mariadb-11.8"}
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		withdrawals := map[string]string{
			"one": "REVOKE INSERT ON `{db}`.* FROM '{db}b'@'%'", "all": "REVOKE ALL PRIVILEGES ON `{db}`.* FROM '{db}b'@'%'",
		}
		if engine == bed.Postgres {
			withdrawals = map[string]string{"membership": `REVOKE "{db}o" FROM "{db}b"`, "a member of the owner role": `CREATE ROLE "{db}m"; GRANT "{db}o" TO "{db}m"`}
		}
		var all sync.WaitGroup
		defer all.Wait()
		withdraw := func(name, statement string) {
			t.Run(name, func(t *testing.T) {
				server := rig.Server(t, engine, version)
				plane := rig.NewTenant(t, server, "")
				client := consume(t, plane, server, "127.0.0.1", false)
				works(t, plane, server) // makes a table
				require.NoError(t, server.Exec(t.Context(), strings.ReplaceAll(statement, "{db}", plane.Names().Database)), "withdrawing a right")
				rewrite(t, plane, overdue)
				sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=1s")
				gauge(t, sidecar, `dbconnector_locked_out{login="inactive"}`, 1)
				metric(t, sidecar, "dbconnector_consecutive_failures", "is positive", func(v float64) bool { return v > 0 })
				if r := recordOf(t, plane); r.Generation != 1 {
					t.Errorf("generation %d is on a login that cannot do the work", r.Generation)
				}
				client.connected(t)
				works(t, plane, server)
				rig.Provision(t, plane)
				rig.Until(t, plane, "generation 2", generation(2))
				handsOver(t, plane, server)
				gauge(t, sidecar, `dbconnector_locked_out{login="inactive"}`, 0)
				client.move(t)
				rig.Until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired })
				require.NoError(t, plane.CheckHandover(t.Context()), "what is handed over")
				healthy(t, sidecar)
			})
		}
		for name, statement := range withdrawals {
			all.Go(func() { withdraw(name, statement) })
		}
	}, names...)
}
