// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// These tests cover the end of passwords: a replaced password dies, but not before all clients have moved.

// passwords collects all passwords that a record ever holds for each login.
type passwords struct {
	mu  sync.Mutex
	all map[tenant.Slot]map[dbserver.Password]bool
}

// collect follows a record until the test ends. A password stays in a record for longer than the time between two
// looks, unless the server refuses it at once.
func collect(tb testing.TB, p *rig.Tenant) *passwords {
	tb.Helper()
	c := &passwords{all: map[tenant.Slot]map[dbserver.Password]bool{tenant.A: {}, tenant.B: {}}}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	every := 5 * time.Millisecond
	if p.State == "" {
		every = 25 * time.Millisecond // other tests share the API server
	}
	done.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			if r, err := p.Record(ctx); err == nil && r != nil {
				c.add(r)
			}
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
	tb.Cleanup(func() { cancel(); done.Wait() })
	return c
}

func (c *passwords) add(r *tenant.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for slot, credential := range r.Slots {
		if credential.Password != "" {
			c.all[slot][credential.Password] = true
		}
	}
	if r.Pending != nil {
		c.all[r.Pending.Slot][r.Pending.Password] = true
	}
}

func (c *passwords) of(slots ...tenant.Slot) []dbserver.Password {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []dbserver.Password
	for _, slot := range slots {
		out = slices.AppendSeq(out, maps.Keys(c.all[slot]))
	}
	return out
}

// TestOldPasswordsAreDead: after five rotations, each of which the one client has adopted, no login with any password
// of the tenant's past is accepted. While a client was still on the old one, the sidecar saw it.
func TestOldPasswordsAreDead(t *testing.T) {
	t.Parallel()
	var names []string
	for _, s := range servers {
		names = append(names, string(s.engine)+"-"+s.version)
	}
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		server := rig.Server(t, engine, version)
		plane := rig.NewTenant(t, server, "")
		seen := collect(t, plane)
		client := consume(t, plane, server, "127.0.0.1", false)
		const rotations = 5
		sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=2s", "GRACE=0s")
		for g := int64(2); g <= 1+rotations; g++ {
			r := rig.Until(t, plane, fmt.Sprint("generation ", g), generation(g))
			if r.Generation != g {
				t.Fatalf("generation %d: rotated before all clients had moved", r.Generation)
			}
			if g == 3 {
				gauge(t, sidecar, `dbconnector_postponed{reason="OldCredentialInUse"}`, 1)
				gauge(t, sidecar, "dbconnector_old_credential_valid", 1)
				accepts(t, recordOf(t, plane))
			}
			client.move(t)
		}
		rig.Until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired || r.Generation > 1+rotations })
		if exit, err := sidecar.Stop(t.Context()); err != nil || exit != 0 { // so that nothing changes any more
			t.Errorf("asked to end: exit code %d, %v", exit, err)
		}
		r := recordOf(t, plane)
		dsn, err := plane.DSN()
		require.NoError(t, err, "reading the hand-over")
		refused := 0
		for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
			for _, password := range seen.of(tenant.A, tenant.B) {
				if password == r.Slots[slot].Password || r.Pending != nil && password == r.Pending.Password {
					continue
				}
				db, err := rig.OpenDSN(rig.WithLogin(dsn, r.LoginWith(slot, password)), server.CA)
				require.NoError(t, err, "opening an old DSN")
				if err := db.PingContext(t.Context()); !wrongPassword(err) {
					t.Errorf("an old password of slot %s: %v", slot, err)
				}
				_ = db.Close()
				refused++
			}
		}
		// There are two from the beginning, and two for each rotation on either login: one to use, and one that no client
		// gets.
		if want := 2 * (2 + 2*rotations - 2); refused < want {
			t.Errorf("%d old passwords were tried, want at least %d", refused, want)
		}
		require.NoError(t, rig.UseDSN(t.Context(), dsn, server.CA), "the new DSN")
	}, names...)
}

// TestPeriodShorterThanAdoption: without a restart the control plane stays on the old password for longer than a
// period, and for the next. The sidecar does not rotate a second time, and says so once for each state.
func TestPeriodShorterThanAdoption(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		server := bed.NewServer(t, engine, version, bed.Options{LogStatements: true})
		plane := rig.NewTenant(t, server, "")
		client := consume(t, plane, server, "127.0.0.1", false)
		sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=2s", "GRACE=1s")
		stands := func(reason string, lines int) {
			t.Helper()
			gauge(t, sidecar, `dbconnector_postponed{reason="`+reason+`"}`, 1)
			bed.Eventually(t, rig.Patience, func(context.Context) error { // the line follows the metric
				logged := sidecar.Lines("postponed")
				if len(logged) != lines || logged[len(logged)-1]["reason"] != reason {
					return fmt.Errorf("the sidecar has logged %v, want %d lines, %s last", logged, lines, reason)
				}
				return nil
			})
		}
		rig.Until(t, plane, "generation 2", generation(2))
		stands("OldCredentialInUse", 1)
		before, err := server.Connections()
		require.NoError(t, err, "counting connections")
		bed.Eventually(t, rig.Patience, func(ctx context.Context) error { // until the next one would be due, after many looks
			metrics, err := sidecar.Metrics(ctx)
			if err != nil {
				return err
			}
			late := time.Since(time.Unix(int64(metrics["dbconnector_rotation_due_timestamp_seconds"]), 0))
			n, err := server.Connections()
			if err == nil && (late < 3*time.Second || n < before+3) {
				err = fmt.Errorf("due since %s, %d looks", late, n-before)
			}
			return err
		})
		stands("OldCredentialInUse", 1)
		if r := recordOf(t, plane); r.Generation != 2 || r.OtherRetired {
			t.Errorf("generation %d, retired %t: a client uses the old one", r.Generation, r.OtherRetired)
		}
		accepts(t, recordOf(t, plane))

		client.leave() // which is not the same as moving
		stands("NotAdopted", 2)
		if r := recordOf(t, plane); r.Generation != 2 || r.OtherRetired {
			t.Errorf("generation %d, retired %t: no client uses the new one", r.Generation, r.OtherRetired)
		}
		require.NoError(t, client.comeBack(), "the old DSN")
		client.connected(t)
		stands("OldCredentialInUse", 3)

		client.move(t)
		r := rig.Until(t, plane, "generation 3, which had to wait", generation(3))
		if r.Generation != 3 {
			t.Errorf("generation %d", r.Generation)
		}
		bed.Eventually(t, rig.Patience, func(context.Context) error {
			if n := len(sidecar.Lines("retired")); n != 1 {
				return errors.New("retired, but not said")
			}
			return nil
		})
		metrics, err := sidecar.Metrics(t.Context())
		require.NoError(t, err, "reading metrics")
		if n := metrics[`dbconnector_postponements_total{reason="OldCredentialInUse"}`]; n < 2 {
			t.Errorf("postponed %v times", n)
		}
	})
}
