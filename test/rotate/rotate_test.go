// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// TestRotate is the ordinary life of a credential: due, rotated, adopted by the one client, and the previous one dead
// (B3, B46). No admin takes part, and neither login may grant anything (B7).
func TestRotate(t *testing.T) {
	t.Parallel()
	for _, s := range servers {
		t.Run(string(s.engine)+"-"+s.version, func(t *testing.T) {
			t.Parallel()
			server := bed.NewServer(t, s.engine, s.version, bed.Options{})
			plane := rig.NewTenant(t, server, "")
			before := rig.Until(t, plane, "provisioned", (*tenant.Record).Provisioned)
			old, err := plane.DSN()
			require.NoError(t, err, "reading the hand-over")
			sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=4s", "GRACE=1s")
			rotated := rig.Until(t, plane, "generation 2", func(r *tenant.Record) bool { return r.Generation >= 2 })
			if rotated.Active == before.Active {
				t.Errorf("generation %d is on the same slot", rotated.Generation)
			}
			var dsn string
			bed.Eventually(t, rig.Patience, func(context.Context) error {
				if dsn, err = plane.DSN(); err == nil && dsn == old {
					err = fmt.Errorf("the hand-over has the old DSN")
				}
				return err
			})
			// The old one opens the database until all clients have moved. None has moved yet.
			require.NoError(t, rig.UseDSN(t.Context(), old, server.CA), "using the old DSN")

			// The client moves.
			db, err := rig.OpenDSN(dsn, server.CA)
			require.NoError(t, err, "opening the new DSN")
			defer db.Close()
			require.NoError(t, db.PingContext(t.Context()), "using the new DSN")
			rig.Until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired || r.Generation > rotated.Generation })
			login := before.Login(before.Active)
			assert.NoError(t, rig.CheckRefused(t.Context(), before, login), "the old password, after its retirement")
			if exit, err := sidecar.Stop(t.Context()); err != nil || exit != 0 {
				t.Errorf("asked to end: exit code %d, %v", exit, err)
			}
		})
	}
}
