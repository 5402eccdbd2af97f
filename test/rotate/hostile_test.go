// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/bed/attack"
	"dbconnector/test/rig"
)

// These tests cover attacks by a tenant, or by an attacker who has its old DSN.

// serverNames are all servers on which the tests run a rotation.
func serverNames() []string {
	var names []string
	for _, s := range servers {
		names = append(names, string(s.engine)+"-"+s.version)
	}
	return names
}

// refused says whether the server refuses a DSN.
func refused(ctx context.Context, dsn string) (bool, error) {
	db, err := rig.OpenDSN(dsn, nil)
	if err != nil {
		return false, err
	}
	defer db.Close()
	if err = db.PingContext(ctx); wrongPassword(err) {
		return true, nil
	}
	return false, err
}

// besiege begins one login after the other with a DSN until the server refuses it, and returns the last ones.
func besiege(tb testing.TB, engine bed.Engine, dsn string) []*attack.HalfLogin {
	tb.Helper()
	const most = 5
	var late []*attack.HalfLogin
	bed.Eventually(tb, rig.Patience, func(ctx context.Context) error {
		if engine != bed.MariaDB || len(late) < most { // MariaDB shows such logins, so that the old one counts as used
			h, err := attack.BeginLogin(ctx, dsn, nil)
			if err != nil {
				return err
			}
			tb.Cleanup(h.Close)
			if late = append(late, h); len(late) > most {
				late[0].Close()
				late = late[1:]
			}
		}
		dead, err := refused(ctx, dsn)
		if err == nil && !dead {
			err = errors.New("the old DSN is accepted")
		}
		return err
	})
	return late
}

// TestHalfFinishedLogin: a login that was begun with the old password ends after the server has got the new one, and
// one that the server accepted before does not show in the list of sessions until then. Neither is alive when the old
// credential counts as retired (S5).
func TestHalfFinishedLogin(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		server := bed.NewServer(t, engine, version, bed.Options{NoTLS: true})
		plane := rig.NewTenant(t, server, "")
		client := consume(t, plane, server, "127.0.0.1", false)
		old, err := plane.DSN()
		require.NoError(t, err, "reading the hand-over")
		rewrite(t, plane, overdue)
		sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=1s")
		rig.Until(t, plane, "generation 2", generation(2))
		client.move(t)

		var hidden *attack.HalfLogin
		if engine == bed.Postgres {
			hidden, err = attack.BeginLogin(t.Context(), old, map[string]string{"post_auth_delay": "12"})
			require.NoError(t, err, "attacking")
			t.Cleanup(hidden.Close)
			go func() { _, _ = hidden.Finish(context.Background()) }()
		}
		var intruders []*sql.Conn
		for _, h := range besiege(t, engine, old) {
			if intruder, err := h.Finish(t.Context()); err == nil {
				intruders = append(intruders, intruder)
			}
		}
		if len(intruders) == 0 && engine != bed.MariaDB { // MariaDB shows such logins, so that the sidecar ended them
			t.Error("the attack came to nothing")
		}
		r := rig.Until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired })
		if r.Generation != 2 {
			t.Errorf("generation %d", r.Generation)
		}
		for _, intruder := range intruders {
			if _, err := intruder.ExecContext(t.Context(), "CREATE TABLE IF NOT EXISTS intruder (i int)"); err == nil {
				t.Error("a session that began with the old password writes after its retirement")
			}
		}
		if hidden != nil {
			conn, err := hidden.Finish(t.Context())
			if err == nil {
				_, err = conn.ExecContext(t.Context(), "CREATE TABLE IF NOT EXISTS intruder (i int)")
			}
			assert.Error(t, err, "a login that did not show became a session that writes after its password's retirement")
		}
		require.NoError(t, client.check(t.Context()), "the control plane")
		if n := len(sidecar.Lines("ended sessions of a retired login")); n == 0 && engine != bed.MariaDB {
			t.Error("the sidecar does not say that it has ended sessions")
		}
	}, serverNames()...)
}

// TestLoginUnderWay: a login that waits for a locked database is in no list of sessions, and may belong to any account.
// A sidecar that retires a password waits for such logins in the databases that its login may enter, and names them.
// The advice in docs/operate.md ends the wait. Logins to a database that is closed to the sidecar's login do not count
// (S3, S5).
func TestLoginUnderWay(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		for name, closed := range map[string]bool{"open": false, "closed": true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				server := bed.NewServer(t, engine, version, bed.Options{NoTLS: true})
				plane, neighbour := rig.NewTenant(t, server, ""), rig.NewTenant(t, server, "")
				client := consume(t, plane, server, "127.0.0.1", false)
				r := recordOf(t, neighbour)
				login := r.Login(r.Active)
				pool, err := server.Open(login.User, login.Password.Reveal(), login.Database)
				require.NoError(t, err, "logging in")
				defer pool.Close()
				if closed {
					require.NoError(t, server.ExecIn(t.Context(), "template1", `REVOKE CONNECT ON DATABASE "postgres" FROM PUBLIC`), "closing the database")
				}
				attack.Shut(t, pool, "postgres")
				waiting, err := server.Open(login.User, login.Password.Reveal(), "postgres")
				require.NoError(t, err, "logging in")
				defer waiting.Close()
				go func() { _ = waiting.PingContext(t.Context()) }()

				rewrite(t, plane, overdue)
				sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=1s")
				rig.Until(t, plane, "generation 2", generation(2))
				client.move(t)
				said := func() bool {
					return slices.ContainsFunc(sidecar.Lines("postponed"), func(line map[string]any) bool {
						return line["reason"] == "LoginUnderWay" && strings.Contains(fmt.Sprint(line["detail"]), "processes ")
					})
				}
				if !closed {
					bed.Eventually(t, rig.Patience, func(context.Context) error {
						if !said() {
							return errors.New("no word of the login that is under way")
						}
						return nil
					})
					if recordOf(t, plane).OtherRetired {
						t.Error("retired, although a login that began before could still become a session")
					}
					require.NoError(t, server.ExecIn(t.Context(), "template1", `SELECT pg_terminate_backend(p)
						FROM pg_locks l CROSS JOIN LATERAL unnest(pg_blocking_pids(l.pid)) p WHERE NOT l.granted`), "ending the attack")
				}
				rig.Until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired })
				if closed && said() {
					t.Error("waits for logins to a database that its own login may not enter")
				}
				require.NoError(t, client.check(t.Context()), "the control plane")
			})
		}
	}, "postgres-13", "postgres-18")
}

// TestSidecarStandsStill: the test stops one sidecar while it watches the login whose password is to be retired. The
// others go on when the server has ended its session (S9). When it goes on itself, it does no harm.
func TestSidecarStandsStill(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		server := rig.Server(t, engine, version)
		plane := rig.NewTenant(t, server, "")
		client := consume(t, plane, server, "127.0.0.1", false)
		rewrite(t, plane, overdue)
		stopped := rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=3s")
		r := rig.Until(t, plane, "generation 2", generation(2))
		client.move(t)

		// It watches for three seconds: a session that it sees twice lasts.
		watched := "SELECT count(*) FROM information_schema.PROCESSLIST WHERE USER = '%s'"
		if engine == bed.Postgres {
			watched = "SELECT count(*) FROM pg_stat_activity WHERE usename = '%s' AND state = 'idle in transaction'"
		}
		seen := 0
		bed.Eventually(t, rig.Patience, func(ctx context.Context) error {
			n, err := server.Query(ctx, "", fmt.Sprintf(watched, r.Login(r.Active.Other()).User))
			if seen++; err != nil || n != "1" {
				seen = 0
			}
			if seen < 2 {
				return fmt.Errorf("%s sessions: %w", n, errors.Join(err, errors.New("no sidecar watches the login")))
			}
			return nil
		})
		require.NoError(t, syscall.Kill(stopped.Pid(), syscall.SIGSTOP), "stopping a sidecar")

		other := rig.Sidecar(t, rig.Replica(t, plane), "ROTATION_PERIOD=1h", "GRACE=3s")
		bed.Eventually(t, 2*rig.Patience, func(ctx context.Context) error {
			r, err := plane.Record(ctx)
			if err == nil && (!r.OtherRetired || r.Pending != nil || len(other.Lines("retired")) != 1) {
				err = errors.New("not retired by the sidecar that was not stopped")
			}
			return err
		})
		require.NoError(t, syscall.Kill(stopped.Pid(), syscall.SIGCONT), "waking a sidecar")
		healthy(t, stopped)
		accepts(t, recordOf(t, plane))
		require.NoError(t, client.check(t.Context()), "the control plane")
	}, serverNames()...)
}

// TestForeignConsumer: a backup job connects with the new credential, and the one control plane is cut off meanwhile.
// The sidecar does not retire the control plane's credential because of that, however long it takes (S7).
func TestForeignConsumer(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		server := rig.Server(t, engine, version)
		plane := rig.NewTenant(t, server, "")
		client := consume(t, plane, server, "127.0.0.1", false)
		rewrite(t, plane, overdue)
		const grace = time.Second
		sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=1s")
		rig.Until(t, plane, "generation 2", generation(2))
		consume(t, plane, server, "127.0.0.5", false).move(t) // the backup job
		client.leave()
		gauge(t, sidecar, `dbconnector_postponed{reason="NotAdopted"}`, 1)
		cut := time.Now()
		bed.Eventually(t, rig.Patience, func(context.Context) error {
			if away := time.Since(cut); away < 12*grace {
				return fmt.Errorf("away for %s", away)
			}
			return nil
		})
		if r := recordOf(t, plane); r.OtherRetired || r.Pending != nil {
			t.Errorf("retired %t, pending %t: the control plane was not seen on the new login", r.OtherRetired, r.Pending != nil)
		}
		require.NoError(t, client.comeBack(), "the old DSN")
		client.connected(t)
		client.move(t)
		rig.Until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired })
	})
}
