// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/tenant"
	"dbconnector/test/rig"
)

// socketRotations is how often each tenant's password changes in socket mode.
const socketRotations = 2

// socket moves both tenants to socket mode, and has their passwords change while they work.
func (d *demo) socket(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for _, line := range []string{
		"With DBCONNECTOR_ADOPT=socket kine has no password: the sidecar logs in for it. Nothing is",
		"started again when the password changes.",
	} {
		d.out.line("  %s", line)
	}
	group, lives := errgroup.WithContext(ctx)
	results := make([][]row, len(d.tenants))
	for i, t := range d.tenants {
		group.Go(func() (err error) {
			if results[i], err = d.bySocket(lives, t); err != nil {
				return fmt.Errorf("%s in socket mode: %w", t.Name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for n := range results[0] {
		for i := range d.tenants {
			d.rows = append(d.rows, results[i][n])
		}
	}
	return nil
}

// bySocket is a tenant's life in socket mode.
func (d *demo) bySocket(ctx context.Context, t *member) (_ []row, err error) {
	began := time.Now()
	// As a new pod does it: init, then the sidecar, then the control plane.
	first := t.kine
	t.kine = nil
	if err := first.Stop(ctx); err != nil {
		return nil, err
	}
	t.Settings = append(t.Settings, "DBCONNECTOR_ADOPT=socket")
	if err := errors.Join(os.RemoveAll(t.Out), os.Mkdir(t.Out, 0o750)); err != nil {
		return nil, err
	}
	if _, err := t.Provision(ctx); err != nil {
		return nil, err
	}
	sidecar, err := t.Rotate(context.WithoutCancel(ctx), "", "ROTATION_PERIOD="+period.String(), "GRACE="+grace.String())
	if err != nil {
		return nil, err
	}
	defer sidecar.Kill()
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w\ndbconnector-rotate said:\n%s", err, sidecar.Log())
		}
	}()
	if err := wait(ctx, sidecar, func(ctx context.Context) error { return ready(ctx, sidecar) }); err != nil {
		return nil, err
	}
	store, err := t.Store()
	if err != nil {
		return nil, err
	}
	// kine keeps its connections for ten minutes in the shipped values, which is longer than a demo.
	if t.kine, err = store.StartKine(ctx, "--datastore-connection-max-lifetime=1s"); err != nil {
		return nil, err
	}
	process := t.kine.PID()

	l, err := startLoad(ctx, t, "-socket-")
	if err != nil {
		return nil, err
	}
	defer l.close()
	was, err := t.Record(ctx)
	if err != nil {
		return nil, err
	}
	passwords := map[dbserver.Password]bool{}
	var now *tenant.Record
	err = wait(ctx, sidecar, func(ctx context.Context) error {
		r, err := t.Record(ctx)
		if err != nil {
			return err
		}
		for slot := range r.Slots {
			passwords[r.Slots[slot].Password] = true
		}
		if r.Generation < was.Generation+socketRotations || !r.OtherRetired && r.Generation == was.Generation+socketRotations {
			return fmt.Errorf("after %d passwords, the rotation does not go on", r.Generation-was.Generation)
		}
		now = r
		return nil
	})
	if err != nil {
		return nil, err
	}
	took := time.Since(began)
	l.stop()
	if l.failed.Load() > 0 {
		return nil, fmt.Errorf("%d of %d requests failed, the first: %w", l.failed.Load(), l.requests.Load(), l.err)
	}
	select {
	case <-t.kine.Done():
		return nil, fmt.Errorf("kine ended:\n%s", t.kine.Log())
	default:
	}
	if _, err := read(ctx, t); err != nil {
		return nil, err
	}
	code, err := d.dead(ctx, was.Login(was.Active))
	if err != nil {
		return nil, err
	}

	began = time.Now()
	visible, err := t.Visible(t.kine)
	switch {
	case err != nil:
		return nil, err
	case !strings.Contains(visible, store.DataSource):
		return nil, errors.New("the search for passwords does not even find the data source")
	}
	for password := range passwords {
		if strings.Contains(visible, password.Reveal()) {
			return nil, errors.New("a password is in kine's arguments, environment, files or log")
		}
	}
	searched := time.Since(began)
	// The sidecar serves until the control plane has gone.
	kine := t.kine
	t.kine = nil
	if err := kine.Stop(context.WithoutCancel(ctx)); err != nil {
		return nil, err
	}
	if exit, err := sidecar.Stop(ctx); err != nil || exit != 0 {
		return nil, errors.Join(err, fmt.Errorf("asked to end, dbconnector-rotate did so with exit code %d", exit))
	}
	return []row{
		{
			fmt.Sprintf("rotate %d times in socket mode", now.Generation-was.Generation), t.Name,
			fmt.Sprintf("%d requests, 0 failed, one kine: process %d", l.requests.Load(), process), short(took),
		},
		{"use a password of before", t.Name, "refused by the server, error " + code, short(searched)},
		{fmt.Sprintf("search kine for %d passwords", len(passwords)), t.Name, "none in its arguments, environment, files, log", short(searched)},
	}, nil
}

// ready asks a sidecar whether the control plane may start.
func ready(ctx context.Context, sidecar *rig.Process) error {
	status, body, err := sidecar.Get(ctx, "/readyz")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("dbconnector-rotate is not ready: %s", body)
	}
	return err
}
