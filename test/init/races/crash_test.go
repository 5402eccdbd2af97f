// SPDX-License-Identifier: Apache-2.0

package races_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// scene is the state in which the test kills the process.
type scene struct {
	name string
	// set brings a provisioned tenant to the state in which the process starts. It returns the slot that a control plane
	// uses meanwhile, or "" where none does.
	set func(ctx context.Context, s *bed.Server, t *rig.Tenant) (held tenant.Slot, err error)
	// fresh: the tenant is not provisioned before.
	fresh bool
	// active is the slot that must be active in the end.
	active tenant.Slot
}

var scenes = []scene{
	{name: "first", fresh: true, active: tenant.A},
	{name: "restart", active: tenant.A, set: func(context.Context, *bed.Server, *rig.Tenant) (tenant.Slot, error) {
		return tenant.A, nil
	}},
	// An admin changed the active slot's password by hand, and a control plane runs on the other slot.
	{name: "password", active: tenant.A, set: func(ctx context.Context, s *bed.Server, t *rig.Tenant) (tenant.Slot, error) {
		return tenant.B, s.SetPassword(ctx, t.Names().User(tenant.A), "Changed-1.it~by_hand0")
	}},
	// The record is lost, and a control plane still runs on slot a, with a password that is now only in its DSN.
	{name: "record", active: tenant.B, set: func(ctx context.Context, _ *bed.Server, t *rig.Tenant) (tenant.Slot, error) {
		return tenant.A, t.Forget(ctx)
	}},
}

// TestKilledAtEveryQuestion kills dbconnector-init at each question that it asks of the database or of the API server,
// and runs it again (design.md, promise 3). It kills once before the server hears the question and once after the
// server has answered it.
//
// After every kill the tenant's database is closed to others, and the credential that was handed over still works. The
// second run succeeds, its hand-over works, and the server holds the same objects as for an undisturbed tenant.
func TestKilledAtEveryQuestion(t *testing.T) {
	t.Parallel()
	c := rig.Host(t)
	for _, server := range []struct {
		engine  bed.Engine
		version string
		cloud   bool
		scenes  []scene
	}{
		// A run as superuser differs only in the roles, and a run on version 13 in the rights of their members.
		{bed.Postgres, "17", false, scenes[:1]},
		{bed.Postgres, "17", true, scenes},
		{bed.Postgres, "13", true, []scene{scenes[0], scenes[3]}},
		{bed.MySQL, "9.7", true, scenes},
		{bed.MariaDB, "11.8", true, scenes},
	} {
		kind := "superuser"
		if server.cloud {
			kind = "cloud"
		}
		t.Run(fmt.Sprintf("%s-%s-%s", server.engine, server.version, kind), func(t *testing.T) {
			t.Parallel()
			s := bed.NewServer(t, server.engine, server.version, bed.Options{})
			a := superuser(s)
			if server.cloud {
				a = cloudAdmin(t, s)
			}
			for _, sc := range server.scenes {
				t.Run(sc.name, func(t *testing.T) { killEverywhere(t, c, s, a, sc) })
			}
		})
	}
}

// farewell begins PostgreSQL's message Terminate. Those of MySQL have no name and are no points.
const farewell = "X"

func killEverywhere(t *testing.T, c *rig.Cluster, s *bed.Server, a admin, sc scene) {
	ctx := t.Context()
	look := inspect(t, s)
	front := rig.NewFront(t, s.Addr(), c.API)
	connector := rig.Name(t, "connector")
	require.NoError(t, c.Connector(ctx, connector, rig.Connector(s, a.user, a.password, front.Addr, false)), "creating the connector")

	var points []string // of the last run
	play := func(id string, at int, moment rig.Moment) (facts string) {
		t.Helper()
		what := fmt.Sprintf("%s question %d", moment, at)
		x := newTenant(t, c, rig.Name(t, id), connector)
		x.Kubeconfig = front.Kubeconfig
		var held *rig.Client
		if !sc.fresh {
			front.Watch(0, moment, nil)
			_, err := x.Provision(ctx)
			require.NoError(t, err, "provisioning")
			before, err := x.Record(ctx)
			require.NoError(t, err, "reading the record")
			dsn, err := x.DSN()
			require.NoError(t, err, "reading the hand-over")
			slot, err := sc.set(ctx, s, x)
			require.NoError(t, err, "setting the scene")
			held, err = rig.Connect(ctx, "", rig.WithLogin(dsn, before.Login(slot)), nil)
			require.NoError(t, err, "logging in as a control plane")
			defer held.Close()
		}
		p := x.Prepare(ctx)
		front.Watch(at, moment, p.Kill)
		first, err := p.Run()
		require.NoError(t, err, what)
		points = front.Names()
		if at != 0 {
			if len(points) >= at {
				what += " (" + points[at-1] + ")"
			}
			// The answer to a farewell is the end of its connection, which may come when the process has ended.
			if at <= len(points) && !strings.HasPrefix(points[at-1], farewell) && !front.Fired() {
				t.Fatalf("%s: nothing was killed", what)
			}
			front.Watch(0, moment, nil)
			require.NoError(t, look.CheckClosed(ctx, x.Names(), a.user), what+": right after the kill")
			require.NoError(t, x.CheckFiles(ctx, ""), what+": right after the kill")
			if held != nil {
				require.NoError(t, held.Use(ctx), what+": right after the kill: the control plane that runs")
			}
			if first.Exit != -1 && first.Exit != 0 {
				t.Fatalf("%s: the process ended by itself: %v", what, first.Err())
			}
			_, err := x.Provision(ctx)
			require.NoError(t, err, what+": the second run")
		} else {
			require.NoError(t, first.Err(), "undisturbed")
		}
		require.NoError(t, x.CheckHandover(ctx), what)
		require.NoError(t, look.CheckClosed(ctx, x.Names(), a.user), what)
		require.NoError(t, look.CheckAdmin(ctx, x.Names(), a.user), what)
		if held != nil {
			require.NoError(t, held.Use(ctx), what+": the control plane that runs")
		}
		record, err := x.Record(ctx)
		require.NoError(t, err, what)
		if record.Active != sc.active {
			t.Errorf("%s: slot %s is active, want %s", what, record.Active, sc.active)
		}
		facts, err = look.Facts(ctx, x.Names())
		require.NoError(t, err)
		return facts
	}

	want := play("undisturbed", 0, rig.Before)
	all := points
	t.Logf("%d points: %s", len(all), strings.Join(all, " | "))
	if least := 3; len(all) < least {
		t.Fatalf("a run asks only %d questions, at least %d were expected: is the front in its way?", len(all), least)
	}
	for _, moment := range []rig.Moment{rig.Before, rig.After} {
		// A kill before a question leaves the server in the same state as a kill after the previous one. So where a run
		// begins with a complete tenant, half of the moments are enough.
		if moment == rig.Before && !sc.fresh {
			continue
		}
		for at := 1; at <= len(all); at++ {
			if at > 1 && all[at-1] == all[at-2] {
				continue // asked again and again, until the answer changes
			}
			if got := play(fmt.Sprintf("%s-%d", moment, at), at, moment); got != want {
				t.Errorf("%s question %d (%s): the server holds\n%s\nand for an undisturbed tenant\n%s", moment, at, all[at-1], got, want)
			}
		}
	}
}

// TestKilledAtEveryFileOperation kills dbconnector-init at each system call that changes its record's directory or the
// hand-over, before and after the kernel has carried it out, and runs it again.
func TestKilledAtEveryFileOperation(t *testing.T) {
	t.Parallel()
	s := bed.NewServer(t, bed.Postgres, "17", bed.Options{})
	a := cloudAdmin(t, s)
	ctx := t.Context()
	look := inspect(t, s)
	connector := t.TempDir()
	require.NoError(t, rig.WriteConnector(connector, rig.Connector(s, a.user, a.password, "", true)), "writing the connector")
	ca := string(s.CA)

	play := func(id string, at int, moment rig.Moment) []string {
		t.Helper()
		dir := t.TempDir()
		x := &rig.Tenant{Name: id, Out: filepath.Join(dir, "out"), State: filepath.Join(dir, "state"), ConnectorDir: connector}
		require.NoError(t, os.Mkdir(x.Out, 0o755), "making the directory")
		what := fmt.Sprintf("%s call %d", moment, at)
		calls, exit, err := x.Trace([]string{x.Out, x.State}, at, moment)
		require.NoError(t, err, what)
		if at > 0 {
			if len(calls) < at || exit != -1 {
				t.Fatalf("%s: the test did not kill the process; it ended with %d after %d calls", what, exit, len(calls))
			}
			what += " (" + calls[at-1] + ")"
			require.NoError(t, x.CheckFiles(ctx, ca), what+": right after the kill")
			require.NoError(t, look.CheckClosed(ctx, x.Names(), a.user), what+": right after the kill")
			_, err := x.Provision(ctx)
			require.NoError(t, err, what+": the second run")
		}
		require.NoError(t, x.CheckHandover(ctx), what)
		for _, dir := range []string{x.Out, x.State} {
			entries, err := os.ReadDir(dir)
			require.NoError(t, err, what)
			for _, e := range entries {
				if strings.Contains(e.Name(), "tmp") {
					t.Errorf("%s: %s was left behind", what, e.Name())
				}
			}
		}
		return calls
	}

	calls := play("undisturbed", 0, rig.Before)
	t.Logf("%d calls: %s", len(calls), strings.Join(calls, " | "))
	if least := 20; len(calls) < least {
		t.Fatalf("a run changes files by only %d calls, at least %d were expected: is it traced?", len(calls), least)
	}
	for _, moment := range []rig.Moment{rig.Before, rig.After} {
		for at := 1; at <= len(calls); at++ {
			play(fmt.Sprintf("%s-%d", moment, at), at, moment)
		}
	}
}
