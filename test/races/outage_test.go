// SPDX-License-Identifier: Apache-2.0

package races_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"dbconnector/test/bed"
	"dbconnector/test/races/rig"
)

// TestServerGoesAway kills the database server in the middle of a run, at every seventh question, and starts it again: the
// same run goes on and succeeds.
func TestServerGoesAway(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	for _, server := range []struct {
		engine  bed.Engine
		version string
	}{{bed.Postgres, "17"}, {bed.MySQL, "9.7"}, {bed.MariaDB, "11.8"}} {
		t.Run(fmt.Sprintf("%s-%s", server.engine, server.version), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s := bed.NewServer(t, server.engine, server.version, bed.Options{})
			a := cloudAdmin(t, s)
			front, err := rig.NewFront(ctx, t.TempDir(), s.Addr(), c.API)
			check(t, "putting a front before the servers", err)
			t.Cleanup(front.Close)
			connector := rig.Name(t, "connector")
			check(t, "creating the connector", c.Connector(ctx, connector, rig.Connector(s, a.user, a.password, front.Addr, false)))
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
				r, err := x.Run(ctx)
				front.Watch(0, rig.Before, nil)
				close(killed)
				check(t, "restarting the server", <-back)
				must(t, fmt.Sprintf("the server went away at question %d", at), r, err)
				check(t, "the hand-over", x.CheckHandover(ctx))
				look := inspect(t, s) // its connections do not outlive the server
				check(t, "the admin", look.CheckAdmin(ctx, x.Names(), a.user))
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
	check(t, "preparing the API server", err)
	s := bed.NewServer(t, bed.Postgres, "17", bed.Options{})
	front, err := rig.NewFront(ctx, t.TempDir(), s.Addr(), api)
	check(t, "putting a front before the servers", err)
	t.Cleanup(front.Close)
	check(t, "creating the connector", c.Connector(ctx, "x", rig.Connector(s, s.AdminUser, s.AdminPassword, "", true)))

	// In the middle: at the first question, and after the record was written.
	for at := 1; at <= 5; at++ {
		for _, moment := range []rig.Moment{rig.Before, rig.After} {
			x := newTenant(t, c, fmt.Sprintf("%s-%d", moment, at), "x")
			x.Kubeconfig = front.Kubeconfig
			front.Watch(at, moment, func() { go front.Watch(0, moment, nil) })
			r, err := x.Run(ctx)
			must(t, fmt.Sprintf("request %d was lost (%s)", at, moment), r, err)
			check(t, "the hand-over", x.CheckHandover(ctx))
		}
	}

	x := newTenant(t, c, "outage", "x")
	api.Kill()
	done := make(chan error, 1)
	p := x.Prepare(ctx)
	go func() {
		r, err := p.Run()
		done <- errors.Join(err, r.Err())
	}()
	check(t, "restarting the API server", api.Restart(ctx))
	check(t, "a run that began without an API server", <-done)
	check(t, "the hand-over", x.CheckHandover(ctx))
}
