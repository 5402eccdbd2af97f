// SPDX-License-Identifier: Apache-2.0

package races_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// TestServerGoesAway kills the database server in the middle of a run, at every seventh question, and starts it again: the
// same run goes on and succeeds.
func TestServerGoesAway(t *testing.T) {
	t.Parallel()
	c := rig.Host(t)
	for _, v := range bed.Usual() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s := bed.NewServer(t, v.Engine, v.Version, bed.Options{})
			a := cloudAdmin(t, s)
			front := rig.NewFront(t, s.Addr(), c.API)
			connector := rig.Name(t, "connector")
			require.NoError(t, c.Connector(ctx, connector, rig.Connector(s, a.user, a.password, front.Addr, false)), "creating the connector")
			for at, over := 4, false; !over; at += 7 {
				x := newTenant(t, c, rig.Name(t, fmt.Sprint(at)), connector)
				x.Kubeconfig = front.Kubeconfig
				killed := make(chan error, 1)
				front.Watch(at, rig.Before, func() { killed <- s.Kill() })
				back := make(chan error, 1)
				go func() {
					err, fired := <-killed
					if !fired { // the run had fewer questions
						over = true
						back <- nil
						return
					}
					front.Watch(0, rig.Before, nil)
					// Not the test's context: a server that stays down would fail all the later cases.
					back <- errors.Join(err, s.Restart(context.WithoutCancel(ctx)))
				}()
				_, err := x.Provision(ctx)
				front.Watch(0, rig.Before, nil)
				close(killed)
				require.NoError(t, <-back, "restarting the server")
				require.NoErrorf(t, err, "the server went away at question %d", at)
				require.NoError(t, x.CheckHandover(ctx), "the hand-over")
				look := inspect(t, s) // its connections do not outlive the server
				require.NoError(t, look.CheckAdmin(ctx, x.Names(), a.user), "the admin")
			}
		})
	}
}

// TestAPIServerGoesAway stops the API server before a run begins, and starts it again while the run waits; and makes
// each request fail once.
func TestAPIServerGoesAway(t *testing.T) {
	t.Parallel()
	// The test has an API server of its own, because other tests must not lose theirs.
	api := bed.NewAPIServer(t, bed.APIServerOptions{})
	ctx := t.Context()
	c, err := rig.NewCluster(ctx, api)
	require.NoError(t, err, "preparing the API server")
	s := bed.NewServer(t, bed.Postgres, "17", bed.Options{})
	front := rig.NewFront(t, s.Addr(), api)
	require.NoError(t, c.Connector(ctx, "x", rig.Connector(s, s.AdminUser, s.AdminPassword, "", true)), "creating the connector")

	// In the middle: at the first question, and after the record was written.
	for at := 1; at <= 5; at++ {
		for _, moment := range []rig.Moment{rig.Before, rig.After} {
			x := newTenant(t, c, fmt.Sprintf("%s-%d", moment, at), "x")
			x.Kubeconfig = front.Kubeconfig
			front.Watch(at, moment, func() { go front.Watch(0, moment, nil) })
			_, err := x.Provision(ctx)
			require.NoErrorf(t, err, "request %d was lost (%s)", at, moment)
			require.NoError(t, x.CheckHandover(ctx), "the hand-over")
		}
	}

	x := newTenant(t, c, "outage", "x")
	api.Kill()
	done := make(chan error, 1)
	go func() {
		_, err := x.Provision(ctx)
		done <- err
	}()
	require.NoError(t, api.Restart(ctx), "restarting the API server")
	require.NoError(t, <-done, "a run that began without an API server")
	require.NoError(t, x.CheckHandover(ctx), "the hand-over")
}
