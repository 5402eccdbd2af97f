// SPDX-License-Identifier: Apache-2.0

package rotation_test

import (
	"context"
	"fmt"
	"testing"

	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/races/rig"
)

// TestRotate is the ordinary life of a credential: due, rotated, adopted by the one client, and the previous one dead
// (B3, B46). No admin takes part, and neither login may grant anything (B7).
func TestRotate(t *testing.T) {
	t.Parallel()
	for _, s := range servers {
		t.Run(string(s.engine)+"-"+s.version, func(t *testing.T) {
			t.Parallel()
			server := bed.NewServer(t, s.engine, s.version, bed.Options{})
			plane := newTenant(t, server, "")
			before := until(t, plane, "provisioned", (*tenant.Record).Provisioned)
			old, err := plane.DSN()
			check(t, "reading the hand-over", err)
			sidecar := rotate(t, plane, "ROTATION_PERIOD=4s", "GRACE=1s")
			rotated := until(t, plane, "generation 2", func(r *tenant.Record) bool { return r.Generation >= 2 })
			if rotated.Active == before.Active {
				t.Errorf("generation %d is on the same slot", rotated.Generation)
			}
			var dsn string
			bed.Eventually(t, patience, func(context.Context) error {
				if dsn, err = plane.DSN(); err == nil && dsn == old {
					err = fmt.Errorf("the hand-over has the old DSN")
				}
				return err
			})
			// The old one opens the database until all clients have moved. None has moved yet.
			check(t, "using the old DSN", rig.UseDSN(t.Context(), old, server.CA))

			// The client moves.
			db, err := rig.OpenDSN(dsn, server.CA)
			check(t, "opening the new DSN", err)
			defer db.Close()
			check(t, "using the new DSN", db.PingContext(t.Context()))
			until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired || r.Generation > rotated.Generation })
			login := before.Login(before.Active)
			if err := open.Engine(before.Server, "test").Login(t.Context(), login); !fault.Is(err, fault.WrongPassword) {
				t.Errorf("the old password, after its retirement: %v", err)
			}
			if exit, err := sidecar.Stop(t.Context()); err != nil || exit != 0 {
				t.Errorf("asked to end: exit code %d, %v", exit, err)
			}
		})
	}
}
