// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/rotation"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

const (
	fireReplicas = 3
	fireKills    = 300
	fireGrace    = 300 * time.Millisecond
	// firePause is the longest time from one kill to the next. A sidecar lives for half a second on average: long enough for
	// a few steps, too short for most rotations.
	firePause = 300 * time.Millisecond
	// fireProbes a second.
	fireProbes = 20
)

// fires limits the number of servers under fire at once. The test shows that nothing fails, not that the machine is
// fast.
var fires = make(chan struct{}, 2)

// TestUnderFire is promise 3 with real parts: three replicas rotate one tenant every two seconds, and 300 times the
// test kills a random one and starts it again. Each has a client like kine, at an address of its own, which moves some
// time after its hand-over has changed. A prober logs in with the published credential 20 times a second. No login
// fails. When the kills end, everything comes to rest by itself, and the next rotation is an ordinary one. (B3, B12,
// B17, B46)
func TestUnderFire(t *testing.T) {
	t.Parallel()
	// No sidecar lives long enough for a retirement that waits for earlier logins that have not ended.
	binary, err := rig.BuildBriefRotate(t.Context(), t.TempDir(), 100*time.Millisecond)
	require.NoError(t, err, "building dbconnector-rotate")
	for _, s := range servers {
		t.Run(string(s.engine)+"-"+s.version, func(t *testing.T) {
			t.Parallel()
			fires <- struct{}{}
			defer func() { <-fires }()
			underFire(t, binary, bed.NewServer(t, s.engine, s.version, bed.Options{}))
		})
	}
}

func underFire(t *testing.T, binary string, server *bed.Server) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pods := []*pod{newPod(rig.NewKubeTenant(t, rig.Host(t), server), binary, server.CA, 0)}
	for i := 1; i < fireReplicas; i++ {
		pods = append(pods, newPod(rig.Replica(t, pods[0].Tenant), binary, server.CA, i))
	}
	before := rig.Until(t, pods[0].Tenant, "provisioned", (*tenant.Record).Provisioned)

	// Clients and a prober use the credentials all the time.
	var users sync.WaitGroup
	defer users.Wait()
	defer cancel()
	failures := make(chan error, 1)
	failed := func(err error) {
		if ctx.Err() != nil {
			return // the test's end is the cause
		}
		select {
		case failures <- err:
		default:
		}
	}
	for _, p := range pods {
		users.Go(func() {
			if err := p.use(ctx); err != nil {
				failed(fmt.Errorf("the client at %s: %w", p.address, err))
			}
		})
	}
	probes := &prober{pods: pods, seen: map[string]int{}}
	users.Go(func() {
		if err := probes.run(ctx); err != nil {
			failed(err)
		}
	})

	rotating, resting := []string{"ROTATION_PERIOD=2s", "GRACE=" + fireGrace.String()}, []string{"ROTATION_PERIOD=1h", "GRACE=" + fireGrace.String()}
	start := func(settings []string) {
		for _, p := range pods {
			require.NoError(t, p.start(settings...), "dbconnector-rotate")
		}
	}
	t.Cleanup(func() {
		for _, p := range pods {
			p.kill()
		}
		if t.Failed() {
			for _, p := range pods {
				t.Logf("the last log lines of the sidecar at %s:\n%s", p.address, tail(p.log, 40))
			}
		}
	})
	start(rotating)

	struck := map[string]int{}
	pause := time.NewTimer(0)
	defer pause.Stop()
	for n := range fireKills {
		pause.Reset(rand.N(firePause))
		select {
		case <-pause.C:
		case err := <-failures:
			t.Fatal(err)
		}
		p := pods[rand.IntN(len(pods))]
		record, err := p.Record(ctx)
		if n%50 == 0 { // a moment that random kills may miss
			waiting, enough := context.WithTimeout(ctx, rig.Patience)
			err = soon(waiting, func() error {
				if record, err = p.Record(waiting); err == nil && stage(record) != stages[1] {
					err = errors.New("no password is ever staged")
				}
				return err
			})
			enough()
		}
		require.NoError(t, err, "reading the record")
		if exit := p.kill(); exit != -1 {
			t.Fatalf("the sidecar at %s ended by itself, exit code %d", p.address, exit)
		}
		if record.OtherRefused {
			t.Fatalf("init is asked for help: %+v", record)
		}
		struck[stage(record)]++
		require.NoError(t, p.start(rotating...), "dbconnector-rotate")
	}

	// The fire is over. With a long period nothing becomes due, and everything comes to rest.
	for _, p := range pods {
		p.kill()
	}
	burnt, err := pods[0].Record(ctx)
	require.NoError(t, err, "reading the record")
	start(resting)
	for _, p := range pods {
		bed.Eventually(t, rig.Patience, func(ctx context.Context) error {
			if r, err := p.Record(ctx); err != nil || !r.OtherRetired {
				return errors.Join(err, errors.New("the old slot is not retired"))
			}
			return p.CheckHandover(ctx)
		})
	}
	for _, p := range pods {
		require.NoError(t, p.stop(ctx), "stopping")
	}
	// One more, and the one after it, which begins when the old slot of the first is retired.
	start(rotating)
	rig.Until(t, pods[0].Tenant, "two more rotations", func(r *tenant.Record) bool { return r.Generation >= burnt.Generation+2 })
	for _, p := range pods {
		require.NoError(t, p.stop(ctx), "stopping")
	}
	cancel()
	users.Wait()
	select {
	case err := <-failures:
		t.Fatal(err)
	default:
	}

	rotations := burnt.Generation - before.Generation
	t.Logf("%d rotations under fire; killed in %v; %d logins with %d credentials; %d probes were overtaken, %v moved",
		rotations, struck, probes.count, len(probes.seen), probes.overtaken, moves(pods))
	if rotations < 3 { // each rotation but the first begins with a retired old slot
		t.Errorf("only %d rotations under fire", rotations)
	}
	for _, s := range stages {
		if struck[s] == 0 {
			t.Errorf("no sidecar was killed %s: %v", s, struck)
		}
	}
	for _, p := range pods {
		for _, why := range []rotation.Reason{rotation.OtherUnknown, rotation.RepairPending} {
			if strings.Contains(p.log, string(why)) {
				t.Errorf("the sidecar at %s waited for a human: %s", p.address, why)
			}
		}
		if p.moved == 0 {
			t.Errorf("the client at %s has never moved", p.address)
		}
	}
	// The passwords that were published before are dead.
	last, err := pods[0].Record(t.Context())
	require.NoError(t, err, "reading the record")
	for dsn := range probes.seen {
		login := loginOf(dsn, last.Database)
		if login.Password == last.Slots[tenant.A].Password || login.Password == last.Slots[tenant.B].Password {
			continue
		}
		assert.NoError(t, rig.CheckRefused(t.Context(), last, login), "a password that was published before")
	}
}

// stages are the states of a rotation, as the record shows them.
var stages = []string{"between rotations", "with a password staged", "before the old one was retired", "with its end staged"}

func stage(r *tenant.Record) string {
	switch {
	case r.Pending == nil && r.OtherRetired:
		return stages[0]
	case r.Pending == nil:
		return stages[2]
	case r.Pending.Purpose == tenant.Retire:
		return stages[3]
	}
	return stages[1]
}

// pod is a replica of a control plane: a hand-over, the sidecar that keeps it, and the client that uses it.
type pod struct {
	*rig.Tenant
	binary  string
	ca      []byte
	address string
	sidecar *rig.Process
	log     string // of the sidecars that have ended
	moved   int    // how often the client has moved
}

// newPod makes the n-th pod, from 0. All sidecars use the address of the first pod's client.
func newPod(t *rig.Tenant, binary string, ca []byte, n int) *pod {
	return &pod{Tenant: t, binary: binary, ca: ca, address: fmt.Sprintf("127.0.%d.1", n)}
}

func (p *pod) start(settings ...string) (err error) {
	p.sidecar, err = p.Rotate(context.Background(), p.binary, settings...)
	return err
}

// kill ends the sidecar, if it runs. It returns -1 unless the sidecar had ended by itself.
func (p *pod) kill() (exit int) {
	if p.sidecar == nil {
		return -1
	}
	p.sidecar.Kill()
	return p.ended()
}

func (p *pod) stop(ctx context.Context) error {
	exit, err := p.sidecar.Stop(ctx)
	if err == nil && exit != 0 {
		err = fmt.Errorf("exit code %d", exit)
	}
	if err == nil {
		p.ended()
	}
	return err
}

func (p *pod) ended() (exit int) {
	exit = p.sidecar.Exit()
	p.log += p.sidecar.Log()
	p.sidecar = nil
	return exit
}

// use does what kine does with a DSN: it reads it once, keeps a session, and opens others at any time. It restarts some
// time after the hand-over has another DSN.
func (p *pod) use(ctx context.Context) error {
	every := time.NewTicker(100 * time.Millisecond)
	defer every.Stop()
	for ctx.Err() == nil {
		k, err := connectAs(ctx, p)
		if err != nil {
			return err
		}
		var restart <-chan time.Time
		for restarted := false; !restarted && err == nil; {
			select {
			case <-ctx.Done():
				restarted = true
				continue
			case <-restart:
				p.moved++
				restarted = true
				continue
			case <-every.C:
			}
			if err = k.Check(ctx); err == nil && restart == nil {
				var now string
				if now, err = p.DSN(); now != k.DSN {
					restart = time.After(rand.N(500 * time.Millisecond))
				}
			}
		}
		k.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func connectAs(ctx context.Context, p *pod) (*rig.Client, error) {
	dsn, err := p.DSN()
	if err != nil {
		return nil, err
	}
	return rig.Connect(ctx, p.address, dsn, p.ca)
}

// prober logs in with the published credential.
type prober struct {
	pods []*pod

	mu        sync.Mutex
	count     int
	seen      map[string]int // DSNs
	overtaken int
}

func (p *prober) run(ctx context.Context) error {
	every := time.NewTicker(time.Second / fireProbes)
	defer every.Stop()
	var flying sync.WaitGroup
	defer flying.Wait()
	slots := make(chan struct{}, 10) // far below the tenant's limit of connections
	failures := make(chan error, cap(slots))
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failures:
			return err
		case <-every.C:
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		flying.Go(func() {
			defer func() { <-slots }()
			if err := p.probe(ctx, p.pods[rand.IntN(len(p.pods))]); err != nil {
				select {
				case failures <- err:
				default:
				}
			}
		})
	}
}

// probe logs in as a second client of a pod.
func (p *prober) probe(ctx context.Context, by *pod) error {
	read := time.Now()
	dsn, err := by.DSN()
	if err != nil {
		return err
	}
	c, err := rig.Connect(ctx, by.address, dsn, by.ca)
	took := time.Since(read)
	if err == nil {
		c.Close()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count++
	p.seen[dsn]++
	if err == nil {
		return nil
	}
	// A client that stands still between reading and logging in, for longer than the grace, may find that all others have
	// moved.
	if now, nerr := by.DSN(); nerr == nil && now != dsn && took > fireGrace {
		p.overtaken++
		return nil
	}
	return fmt.Errorf("login %d, %s after reading the hand-over of %s: %w", p.count, took, by.address, err)
}

// loginOf splits a DSN of the tenant.
func loginOf(dsn, database string) tenant.Login {
	_, rest, _ := strings.Cut(dsn, "://")
	rest, _, _ = strings.Cut(rest, "@")
	user, password, _ := strings.Cut(rest, ":")
	return tenant.Login{User: user, Password: dbserver.Password(password), Database: database}
}

func moves(pods []*pod) (list []int) {
	for _, p := range pods {
		list = append(list, p.moved)
	}
	return list
}

// tail is the last lines of a log, without those that every start writes.
func tail(log string, n int) string {
	var lines []string
	for line := range strings.Lines(log) {
		if !strings.Contains(line, `"msg":"starting"`) && !strings.Contains(line, `"msg":"serving"`) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
