// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"dbconnector/pkg/rotation"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/controlplane"
	"dbconnector/test/rig"
)

const (
	// grace keeps a rotation and the retirement that follows so far apart that they can be counted one by one.
	grace = 2 * time.Second
	// replicas is how many sidecars race in the second count.
	replicas                     = 3
	roundsOfOne, roundsOfSeveral = 3, 5
	// maxIdleMemory and maxIdleRequests are goals.
	maxIdleMemory   = 25 << 20
	maxIdleRequests = 5.0
	// idleWindow is how long a sidecar is watched at least while nothing is due.
	idleWindow = time.Minute
)

// policy is what the sidecars here run with: nothing is due in the time that a benchmark takes, unless the benchmark makes it
// due.
var policy = rotation.Policy{Period: 24 * time.Hour, Grace: grace}

// cost is what the servers saw of all sidecars of a tenant.
type cost struct{ Connections, Statements, API int }

func (c cost) minus(o cost) cost {
	return cost{c.Connections - o.Connections, c.Statements - o.Statements, c.API - o.API}
}

// span is a figure that is not the same each time.
type span struct{ least, most int }

func (s span) String() string {
	if s.least == s.most {
		return fmt.Sprint(s.least)
	}
	return fmt.Sprintf("%d to %d", s.least, s.most)
}

// rotations are a few rotations of one tenant.
type rotations struct {
	rotate, retire []cost
	// took are from due to handed over, to the last replica.
	took []time.Duration
}

func spanOf(all []cost, f func(cost) int) span {
	least, most := f(all[0]), f(all[0])
	for _, c := range all {
		least, most = min(least, f(c)), max(most, f(c))
	}
	return span{least, most}
}

func spans(all []cost) string {
	return fmt.Sprintf("%s, %s, %s", spanOf(all, func(c cost) int { return c.Connections }),
		spanOf(all, func(c cost) int { return c.Statements }), spanOf(all, func(c cost) int { return c.API }))
}

func (r rotations) times() string {
	return fmt.Sprintf("%.0f ms (%.0f ms)", rig.Quantile(r.took, 0.5).Seconds()*1000, rig.Quantile(r.took, 1).Seconds()*1000)
}

// offRotation says whether a count of one sidecar's rotations is not the one that is expected. The number of API requests is not always
// the same: where the watch tells of a change later than the next one was made, the sidecar asks.
func (f figures) offRotation(i int) []string {
	e := engines[i]
	off := append(offCost(e.name+": rotation", f.one.rotate, e.rotate, e.again), offCost(e.name+": retirement", f.one.retire, e.retire, e.again)...)
	if f.perHour > maxIdleRequests {
		off = append(off, fmt.Sprintf("%s: an idle sidecar makes %.1f API requests an hour", e.name, f.perHour))
	}
	return off
}

// offCost says which counts are not want (F31). MySQL and MariaDB end a session some milliseconds after its client has left, on a
// busy machine later, and a sidecar that sees one comes again, because it cannot know whose it was. That is allowed if it costs
// just what it must, and if not every round had it: then it would be a habit.
func offCost(name string, got []cost, want, again cost) []string {
	var off []string
	exact := false
	for _, c := range got {
		c.API = 0
		more := c.minus(want)
		exact = exact || more == cost{}
		times := 0
		if again.Connections > 0 {
			times = max(0, more.Connections/again.Connections)
		}
		if more != (cost{Connections: times * again.Connections, Statements: times * again.Statements}) {
			off = append(off, fmt.Sprintf("%s: got %+v, want %+v, or some times %+v more", name, c, want, again))
		}
	}
	if !exact && len(off) == 0 {
		off = append(off, fmt.Sprintf("%s: got %+v, and never %+v", name, got, want))
	}
	return off
}

// sidecars measures the cost of the sidecars of a new tenant, and leaves one of them to idle.
func (b *bench) sidecars(ctx context.Context, s *bed.Server, connector string, f *figures) (_ *idle, err error) {
	progress("%s: rotations", s.Engine)
	t, err := b.tenant(connector)
	if err != nil {
		return nil, err
	}
	r, err := t.Run(ctx)
	if err = errors.Join(err, r.Err()); err != nil {
		return nil, err
	}
	if f.perHour, err = b.requestsPerHour(ctx, t); err != nil {
		return nil, err
	}
	several, err := b.newPlane(ctx, s, t, replicas)
	defer several.close()
	if err == nil {
		f.three, err = several.run(ctx, roundsOfSeveral)
	}
	if err != nil {
		return nil, err
	}
	several.close()
	one, err := b.newPlane(ctx, s, t, 1)
	if err == nil {
		f.one, err = one.run(ctx, roundsOfOne)
	}
	var i *idle
	if err == nil {
		i, err = one.watchIdle(ctx)
	}
	if err != nil {
		one.close()
		return nil, err
	}
	return i, nil
}

// plane is a control plane of a few replicas with a sidecar each, and one client.
type plane struct {
	b        *bench
	s        *bed.Server
	pods     []*rig.Tenant
	sidecars []*rig.Process
	client   *sql.DB
}

// newPlane runs a sidecar beside each of n replicas of a tenant that is provisioned.
func (b *bench) newPlane(ctx context.Context, s *bed.Server, t *rig.Tenant, n int) (*plane, error) {
	p := &plane{b: b, s: s, pods: []*rig.Tenant{t}}
	for i := 1; i < n; i++ {
		pod := *t
		pod.Out = fmt.Sprintf("%s-%d", t.Out, i)
		if err := os.MkdirAll(pod.Out, 0o755); err != nil {
			return p, err
		}
		p.pods = append(p.pods, &pod)
	}
	for _, pod := range p.pods {
		if _, err := pod.Provision(ctx); err != nil {
			return p, err
		}
	}
	if err := p.move(ctx); err != nil {
		return p, err
	}
	for _, pod := range p.pods {
		x, err := pod.Rotate(ctx, "", "ROTATION_PERIOD="+policy.Period.String(), "GRACE="+policy.Grace.String())
		if err != nil {
			return p, err
		}
		p.sidecars = append(p.sidecars, x)
		err = bed.Wait(ctx, func(ctx context.Context) error {
			metrics, err := x.Metrics(ctx)
			if err == nil && metrics["dbconnector_credential_generation"] < 1 {
				err = errors.New("a sidecar never reads the record")
			}
			return err
		})
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p *plane) close() {
	if p.client != nil {
		_ = p.client.Close()
	}
	for _, x := range p.sidecars {
		x.Kill()
	}
}

// move has the client log in with the hand-over, and closes what it had before: the control plane is restarted.
func (p *plane) move(ctx context.Context) error {
	dsn, err := p.pods[0].DSN()
	if err != nil {
		return err
	}
	db, err := rig.OpenDSN(dsn, p.s.CA)
	if err != nil {
		return err
	}
	if p.client != nil {
		err = p.client.Close()
	}
	p.client = db
	return errors.Join(err, db.PingContext(ctx))
}

// seen are the requests and connections that the servers have seen so far.
func (p *plane) seen() (c cost, err error) {
	if c.Connections, err = p.s.Connections(); err != nil {
		return c, err
	}
	if c.Statements, err = p.s.Statements(); err != nil {
		return c, err
	}
	c.API, err = p.b.requestsOf("dbconnector-rotate")
	return c, err
}

// settled waits until the servers have seen nothing new for a while.
func (p *plane) settled(ctx context.Context) (cost, error) {
	const quiet = 400 * time.Millisecond
	var last cost
	since := time.Now()
	err := bed.Wait(ctx, func(context.Context) error {
		now, err := p.seen()
		if err != nil {
			return bed.Permanent(err)
		}
		if now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) < quiet {
			return errors.New("the servers are never left alone")
		}
		return nil
	})
	return last, err
}

// run makes the password due a few times, and counts the rotations. A round that this machine was too slow for is
// repeated.
func (p *plane) run(ctx context.Context, rounds int) (r rotations, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for len(r.took) < rounds {
		if err := p.round(ctx, &r); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (p *plane) round(ctx context.Context, r *rotations) error {
	old, err := p.pods[0].DSN()
	if err != nil {
		return err
	}
	// At a whole second, because a record knows no parts of one: so all of the grace time is left after the rotation.
	due := time.Now().Truncate(time.Second).Add(3 * time.Second)
	if err := p.pods[0].SetDue(ctx, due, policy); err != nil {
		return err
	}
	before, err := p.settled(ctx) // the sidecars look at a record that was changed behind their back
	if err != nil {
		return err
	}
	early := time.Now().Before(due)
	var took time.Duration
	for _, pod := range p.pods {
		err := bed.Wait(ctx, func(context.Context) error {
			dsn, err := pod.DSN()
			if err == nil && dsn == old {
				err = errors.New("a hand-over never changes")
			}
			return err
		})
		if err != nil {
			return err
		}
		at, err := pod.HandedOver()
		if err != nil {
			return err
		}
		took = max(took, at.Sub(due))
	}
	rotated, err := p.settled(ctx)
	if err != nil {
		return err
	}
	if err := p.move(ctx); err != nil {
		return err
	}
	moved, err := p.seen()
	if err != nil {
		return err
	}
	inTime := early && time.Since(due) < grace // or else it cannot be told what belongs to the rotation
	err = bed.Wait(ctx, func(ctx context.Context) error {
		record, err := p.pods[0].Record(ctx)
		if err == nil && !record.OtherRetired {
			err = errors.New("the old password is never retired")
		}
		return err
	})
	if err != nil {
		return err
	}
	retired, err := p.settled(ctx)
	if err != nil || !inTime {
		return err
	}
	r.took = append(r.took, took)
	r.rotate = append(r.rotate, rotated.minus(before))
	r.retire = append(r.retire, retired.minus(moved))
	return nil
}

// idle is a sidecar that has nothing to do.
type idle struct {
	p      *plane
	began  time.Time
	cpu    time.Duration
	api    int
	logins int
	stop   func() error
}

// watchIdle begins to watch a sidecar, and asks it meanwhile what a kubelet and a Prometheus ask.
func (p *plane) watchIdle(ctx context.Context) (*idle, error) {
	i := &idle{p: p, began: time.Now()}
	var err error
	if i.cpu, i.api, i.logins, err = i.sample(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	for path, every := range map[string]time.Duration{"/healthz": 10 * time.Second, "/readyz": 10 * time.Second, "/metrics": 30 * time.Second} {
		group.Go(func() error {
			ticker := time.NewTicker(every)
			defer ticker.Stop()
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-ticker.C:
				}
				status, _, err := p.sidecars[0].Get(ctx, path)
				if ctx.Err() == nil && (err != nil || status != http.StatusOK) {
					return errors.Join(err, fmt.Errorf("%s answers %d", path, status))
				}
			}
		})
	}
	i.stop = func() error {
		cancel()
		return group.Wait()
	}
	return i, nil
}

// off names the figures that are too high.
func (f idleFigures) off(name string) []string {
	var off []string
	if f.memory > maxIdleMemory {
		off = append(off, fmt.Sprintf("%s: an idle sidecar takes %s of memory", name, mib(f.memory)))
	}
	if f.api > 0 || f.logins > 0 {
		off = append(off, fmt.Sprintf("%s: in %s of idling, a sidecar made %d API requests and %d logins", name, f.window.Round(time.Second), f.api, f.logins))
	}
	return off
}

// idleFigures are of a sidecar that has nothing to do.
type idleFigures struct {
	memory int64         // resident
	own    int64         // of it, what is no page of the program
	cpu    time.Duration // in an hour
	api    int           // requests in the window
	logins int           // in the window
	window time.Duration
}

func (i *idle) end(ctx context.Context) (f idleFigures, err error) {
	timer := time.NewTimer(time.Until(i.began.Add(idleWindow)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return f, ctx.Err()
	}
	f.window = since(i.began)
	cpu, api, logins, err := i.sample(ctx)
	if err = errors.Join(err, i.stop()); err != nil {
		return f, err
	}
	f.cpu = time.Duration(float64(cpu-i.cpu) * float64(time.Hour) / float64(f.window))
	f.api, f.logins = api-i.api, logins-i.logins
	f.memory, f.own, err = resident(i.p.sidecars[0].Pid())
	return f, err
}

// sample is what a sidecar has cost so far: CPU, requests to the API server, and logins as its tenant.
func (i *idle) sample(ctx context.Context) (cpu time.Duration, api, logins int, err error) {
	if cpu, err = cpuTime(i.p.sidecars[0].Pid()); err != nil {
		return 0, 0, 0, err
	}
	if api, err = i.p.b.requestsOf("dbconnector-rotate"); err != nil {
		return 0, 0, 0, err
	}
	record, err := i.p.pods[0].Record(ctx)
	if err != nil {
		return 0, 0, 0, err
	}
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		n, err := controlplane.Logins(i.p.s, record.Login(slot).User)
		if err != nil {
			return 0, 0, 0, err
		}
		logins += n
	}
	return cpu, api, logins, nil
}

// cpuTime is how long a process has been on a CPU, to the nanosecond: /proc/<pid>/stat counts in hundredths of a second.
func cpuTime(pid int) (time.Duration, error) {
	var sum time.Duration
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		return 0, fmt.Errorf("process %d: no /proc/<pid>/task/<tid>/schedstat: %w", pid, os.ErrNotExist)
	}
	for _, name := range threads {
		line, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		field, _, _ := strings.Cut(string(line), " ")
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		sum += time.Duration(n)
	}
	return sum, nil
}

// resident is a process's resident memory, and how much of it is its own: the rest are pages of the program, which all
// sidecars of a node share.
func resident(pid int) (all, own int64, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for name, into := range map[string]*int64{"VmRSS": &all, "RssAnon": &own} {
		m := regexp.MustCompile(`(?m)^` + name + `:\s*(\d+) kB$`).FindSubmatch(status)
		if m == nil {
			return 0, 0, fmt.Errorf("process %d has no %s", pid, name)
		}
		n, err := strconv.ParseInt(string(m[1]), 10, 64)
		if err != nil {
			return 0, 0, err
		}
		*into = n << 10
	}
	return all, own, nil
}

// requestsPerHour is how many requests an idle sidecar makes in an hour. It runs in time lapse: a proxy shortens the time for
// which a watch is asked, the API server ends it in the ordinary way, and what is counted per watch holds for the time that
// the sidecar had asked for.
func (b *bench) requestsPerHour(ctx context.Context, t *rig.Tenant) (float64, error) {
	const watches, lapse = 5, "1"
	var mu sync.Mutex
	var asked []string
	requests, counted := 0, 0
	proxy, err := b.cluster.API.StartProxy(b.dir, func(pass http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			requests++
			if query := r.URL.Query(); query.Get("watch") != "" {
				asked = append(asked, query.Get("timeoutSeconds"))
				counted = requests
				query.Set("timeoutSeconds", lapse)
				r.URL.RawQuery = query.Encode()
			}
			mu.Unlock()
			pass.ServeHTTP(w, r)
		})
	})
	if err != nil {
		return 0, err
	}
	defer proxy.Close()
	x := *t
	x.Kubeconfig = proxy.Kubeconfig
	sidecar, err := x.Rotate(ctx, "")
	if err != nil {
		return 0, err
	}
	defer sidecar.Kill()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err = bed.Wait(ctx, func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if len(asked) < watches {
			return fmt.Errorf("%d watches of %d:\n%s", len(asked), watches, sidecar.Log())
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	mu.Lock()
	defer mu.Unlock()
	seconds, err := strconv.Atoi(asked[0])
	if err != nil || len(slices.Compact(asked)) != 1 {
		return 0, fmt.Errorf("the watches ask for timeoutSeconds=%v", asked)
	}
	return float64(counted) / float64(len(asked)) * 3600 / float64(seconds), nil
}

// requestsOf is how many requests of a program the API server has received.
func (b *bench) requestsOf(program string) (int, error) {
	log, err := os.ReadFile(b.audit)
	if err != nil {
		return 0, err
	}
	return strings.Count(string(log), `"userAgent":"`+program+"/"), nil
}
