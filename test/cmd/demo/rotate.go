// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/v3/kubernetes"
	"golang.org/x/sync/errgroup"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/controlplane"
	"dbconnector/test/rig"
)

const (
	// rotations is how often each tenant's password changes, period how often it is to, and grace how long the one before
	// is left alone. No operator rotates like that; it makes a short demo.
	rotations = 3
	period    = 2 * time.Second
	grace     = 500 * time.Millisecond
	// pace is how often a tenant under load writes an object and reads it back.
	pace = 10 * time.Millisecond
)

// rotate has both tenants' passwords change a few times while they work. The demo plays the part of the kubelet: where a
// hand-over has changed, it replaces the kine, the new one before the old one, as a rolling update does.
func (d *demo) rotate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for _, line := range []string{
		"Beside each tenant runs dbconnector-rotate, and each tenant writes and reads without a pause.",
		"rotated:  the login that no client uses got a new password, and that is in the hand-over now",
		"adopted:  as in a rolling update, a second kine started on it, and then the first one ended",
		"retired:  the password before is not in use any more, and the server does not take it any more",
	} {
		d.out.line("  %s", line)
	}
	d.out.line("")
	d.out.line("%s", moment{"TIME", "TENANT", "WHAT", "", "REQUESTS", "FAILED"})
	began := time.Now()
	group, lives := errgroup.WithContext(ctx)
	results := make([][]row, len(d.tenants))
	for i, t := range d.tenants {
		group.Go(func() (err error) {
			if results[i], err = d.life(lives, t, began); err != nil {
				return fmt.Errorf("%s rotations: %w", t.Name, err)
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
	return d.each(ctx, "list what is there, all that was written under load", "list after the rotations", read)
}

// moment is a line of the timeline.
type moment struct{ time, tenant, what, detail, requests, failed string }

func (m moment) String() string {
	return fmt.Sprintf("%7s  %-6s  %-7s  %-54s %8s %7s", m.time, m.tenant, m.what, m.detail, m.requests, m.failed)
}

// life is a tenant's life through all of its rotations.
func (d *demo) life(ctx context.Context, t *member, epoch time.Time) (_ []row, err error) {
	began := time.Now()
	l, err := startLoad(ctx, t, "-load-")
	if err != nil {
		return nil, err
	}
	defer l.close()
	tell := func(what, format string, args ...any) {
		d.out.line("%s", moment{
			fmt.Sprintf("%.1f s", time.Since(epoch).Seconds()), t.Name, what, fmt.Sprintf(format, args...),
			fmt.Sprint(l.requests.Load()), fmt.Sprint(l.failed.Load()),
		})
	}

	now, err := t.Record(ctx)
	if err != nil {
		return nil, err
	}
	// Not ctx: it is asked to end, and not killed.
	sidecar, err := t.Rotate(context.WithoutCancel(ctx), "", "ROTATION_PERIOD="+period.String(), "GRACE="+grace.String(), "ADOPT=none")
	if err != nil {
		return nil, err
	}
	defer sidecar.Kill()
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w\ndbconnector-rotate said:\n%s", err, sidecar.Log())
		}
	}()
	tell("begins", "with password %d, of login %s", now.Generation, now.Active)
	var old []tenant.Login
	code := ""
	for range rotations {
		was := now
		if now, err = d.adopt(ctx, t, l, sidecar, tell); err != nil {
			return nil, err
		}
		err = wait(ctx, sidecar, func(ctx context.Context) error {
			r, err := t.Record(ctx)
			if err == nil && r.Generation == now.Generation && !r.OtherRetired { // a later one: the next rotation has begun
				err = fmt.Errorf("password %d is never retired", was.Generation)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		login := was.Login(was.Active)
		if code, err = d.dead(ctx, login); err != nil {
			return nil, err
		}
		tell("retired", "password %d is refused, error %s", was.Generation, code)
		old = append(old, login)
	}
	took := time.Since(began)
	l.stop()
	if exit, err := sidecar.Stop(ctx); err != nil || exit != 0 {
		return nil, errors.Join(err, fmt.Errorf("asked to end, dbconnector-rotate did so with exit code %d", exit))
	}
	if l.failed.Load() > 0 {
		return nil, fmt.Errorf("%d of %d requests failed, the first: %w", l.failed.Load(), l.requests.Load(), l.err)
	}

	// Once more, all of them, now that each login has had several.
	began = time.Now()
	for _, login := range old {
		if code, err = d.dead(ctx, login); err != nil {
			return nil, err
		}
	}
	return []row{
		{fmt.Sprintf("rotate %d times, under load", rotations), t.Name, fmt.Sprintf("%d requests, 0 failed", l.requests.Load()), short(took)},
		{"use a rotated-away password", t.Name, fmt.Sprintf("%d of %d refused by the server, error %s", len(old), rotations, code), short(time.Since(began))},
	}, nil
}

// adopt waits for another hand-over and moves the tenant to a kine on it. It returns the record of that hand-over: there is
// no later one, because that needs the adoption.
func (d *demo) adopt(ctx context.Context, t *member, l *load, sidecar *rig.Process, tell func(what, format string, args ...any)) (*tenant.Record, error) {
	err := wait(ctx, sidecar, func(context.Context) error {
		store, err := t.Store()
		if err == nil && store.DataSource == t.dsn {
			err = errors.New("the hand-over never changes")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	r, err := t.Record(ctx)
	if err != nil {
		return nil, err
	}
	tell("rotated", "password %d, of login %s, is handed over", r.Generation, r.Active)
	first, began := t.kine, time.Now()
	second, err := d.newKine(ctx, t)
	if err != nil {
		return nil, err
	}
	t.kine = second
	client, err := controlplane.Dial(second.Endpoint)
	if err == nil {
		l.move(client)
	}
	if err = errors.Join(err, first.Stop(context.WithoutCancel(ctx))); err != nil {
		return nil, err
	}
	tell("adopted", "the new kine serves, the old one has ended, in %s", short(time.Since(began)))
	return r, nil
}

// wait is bed.Wait for a step of a sidecar.
func wait(ctx context.Context, sidecar *rig.Process, cond func(context.Context) error) error {
	return bed.Wait(ctx, func(ctx context.Context) error {
		select {
		case <-sidecar.Done():
			return bed.Permanent(fmt.Errorf("dbconnector-rotate ended with exit code %d", sidecar.Exit()))
		default:
			return cond(ctx)
		}
	})
}

// dead makes sure that a server refuses a login because of its password, and returns the error's number.
func (d *demo) dead(ctx context.Context, login tenant.Login) (string, error) {
	db, err := d.db.Open(login.User, login.Password.Reveal(), login.Database)
	if err != nil {
		return "", err
	}
	defer db.Close()
	err = db.PingContext(ctx)
	code, _, _ := strings.Cut(controlplane.Refusal(err), " ")
	switch {
	case err == nil:
		return "", fmt.Errorf("login %s still gets in with a retired password", login.User)
	case code != "28P01" && code != "1045":
		return "", fmt.Errorf("the server did not refuse a retired password, something else went wrong: %w", err)
	}
	return code, nil
}

// load writes objects and reads each back, through whatever kine its tenant has at the time.
type load struct {
	prefix string
	// mu is held for reading during a request, so that a move of the client waits for requests that are on their way.
	mu     sync.RWMutex
	client *kubernetes.Client

	requests, failed atomic.Int64
	stop             func() // and wait for run to return

	// To be read when run has returned: the first failure, and what was written, by key.
	err     error
	written map[string]string
}

// startLoad has a tenant work, on keys of its own that contain name.
func startLoad(ctx context.Context, t *member, name string) (*load, error) {
	client, err := controlplane.Dial(t.kine.Endpoint)
	if err != nil {
		return nil, err
	}
	l := &load{prefix: keys + t.Name + name, client: client, written: t.objects}
	working, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { l.run(working) })
	l.stop = func() {
		stop()
		wg.Wait()
	}
	return l, nil
}

// close stops the work, if that was not done, and the client.
func (l *load) close() {
	l.stop()
	_ = l.client.Close()
}

// move sends all further requests to another kine, and returns when the one before has none any more.
func (l *load) move(to *kubernetes.Client) {
	l.mu.Lock()
	from := l.client
	l.client = to
	l.mu.Unlock()
	_ = from.Close()
}

// run works until ctx ends. A request that has begun is finished.
func (l *load) run(ctx context.Context) {
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		key, value := fmt.Sprintf("%s%d", l.prefix, n), fmt.Sprintf("write %d", n)
		if l.do(ctx, func(ctx context.Context, c *kubernetes.Client) error {
			_, err := controlplane.Put(ctx, c, key, value, 0)
			return err
		}) {
			l.written[key] = value
			l.do(ctx, func(ctx context.Context, c *kubernetes.Client) error { return expect(ctx, c, key, value) })
		}
	}
}

func (l *load) do(ctx context.Context, request func(context.Context, *kubernetes.Client) error) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	l.mu.RLock()
	err := request(ctx, l.client)
	l.mu.RUnlock()
	l.requests.Add(1)
	if err != nil {
		if l.failed.Add(1) == 1 {
			l.err = err
		}
		return false
	}
	return true
}

func expect(ctx context.Context, client *kubernetes.Client, key, value string) error {
	response, err := client.Kubernetes.Get(ctx, key, kubernetes.GetOptions{})
	switch {
	case err != nil:
		return fmt.Errorf("reading %s: %w", key, err)
	case response.KV == nil || string(response.KV.Value) != value:
		return fmt.Errorf("reading %s: what was written is not there", filepath.Base(key))
	}
	return nil
}
