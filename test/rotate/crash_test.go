// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/rotation"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

var updateMatrix = flag.Bool("update", false, "write what TestCrashMatrix finds into docs/crash-matrix.md, instead of comparing it")

// matrixFile is written by TestCrashMatrix, except for its prose.
const matrixFile = "../../docs/crash-matrix.md"

// situation is a state that a crash can leave behind, and the steps after it.
type situation struct {
	name                      string
	chapter                   rig.Chapter
	record, server, published string
	next                      []string
	why                       string
}

// situations is the full list: a crash that leaves another state behind fails the test.
var situations = []situation{
	{
		"due", rig.Due, "nothing pending", "new slot: its stored password, which no client got", "old slot",
		[]string{"stage", "apply", "commit", "project", "adopt", "stage", "apply", "commit"},
		"nothing has happened",
	},
	{
		"staged", rig.Staged, "pending for the new slot", "new slot: its stored password", "old slot",
		[]string{"apply", "commit", "project", "adopt", "stage", "apply", "commit"},
		"the new password is in the record before any server hears of it; the stored one still opens the slot, to set it",
	},
	{
		"applied", rig.Applied, "pending for the new slot", "new slot: the pending password", "old slot",
		[]string{"commit", "project", "adopt", "stage", "apply", "commit"},
		"the pending password is in the record, and a login shows that it was set; it is not set again",
	},
	{
		"committed", rig.Committed, "new slot active, old slot not retired", "new slot: its new password; old slot: its old one", "old slot",
		[]string{"project", "adopt", "stage", "apply", "commit"},
		"both passwords are valid; the files are made from the record",
	},
	{
		"moving", rig.Committed, "new slot active, old slot not retired", "new slot: its new password; old slot: its old one", "new slot",
		[]string{"adopt", "stage", "apply", "commit"},
		"both passwords are valid, for as long as a client has not moved",
	},
	{
		"rolling", rig.Committed, "new slot active, old slot not retired", "new slot: its new password; old slot: its old one", "new slot",
		[]string{"stage", "apply", "commit"},
		"the pod template asks for this very credential, so it is not changed again",
	},
	{
		"retiring", rig.Retiring, "pending for the old slot, to retire", "old slot: its old password", "new slot",
		[]string{"apply", "commit"},
		"as staged, and before it is set the old slot is looked at again",
	},
	{
		"dead", rig.Dead, "pending for the old slot, to retire", "old slot: the pending password", "new slot",
		[]string{"commit"},
		"as applied, and the old password is dead, and no client used it",
	},
	{
		"at rest", rig.Retired, "nothing pending, old slot retired", "old slot: a password that no client got", "new slot",
		nil,
		"nothing is left to do",
	},
}

// TestCrashMatrix kills dbconnector-rotate at every question of one whole rotation, before the server hears it and
// after the server has answered it, on a tenant whose client goes on all the time. Right after the kill the published
// credential logs in, the client has lost nothing, and the state is one of few situations. Then the next process
// finishes the rotation. docs/crash-matrix.md holds the results. (B12, B17)
func TestCrashMatrix(t *testing.T) {
	t.Parallel()
	binary, err := rig.BuildBriefRotate(t.Context(), t.TempDir(), 100*time.Millisecond)
	require.NoError(t, err, "building dbconnector-rotate")
	for _, s := range servers {
		section := string(s.engine) + "-" + s.version
		if !slices.Contains([]string{"postgres-17", "mysql-9.7", "mariadb-11.8"}, section) {
			continue
		}
		t.Run(section, func(t *testing.T) {
			t.Parallel()
			m := newMatrix(t, binary, bed.NewServer(t, s.engine, s.version, bed.Options{}))
			compare(t, section, m.run())
		})
	}
	t.Run("rollout", func(t *testing.T) {
		t.Parallel()
		m := newMatrix(t, binary, bed.NewServer(t, bed.Postgres, "17", bed.Options{}))
		m.workload = newWorkload(t, m.tenant, "StatefulSet", 1)
		compare(t, "rollout", m.run())
	})
	compare(t, "situations", situationTable())
}

// matrix is one tenant on one server, which the test rotates again and again.
type matrix struct {
	*testing.T
	binary string
	server *bed.Server
	front  *rig.Front
	script *rig.Script
	tenant *rig.Tenant
	// workload, if not nil, is restarted for every rotation. The test then plays only the points of the restart.
	workload *workload

	mu     sync.Mutex // guards client
	client *rig.Client
	points []string // of the last sidecar

	template int64 // the workload's generation, before the rotation
}

const (
	matrixPeriod = time.Hour
	matrixGrace  = 50 * time.Millisecond
)

func newMatrix(t *testing.T, binary string, s *bed.Server) *matrix {
	t.Helper()
	ctx := t.Context()
	c := rig.Host(t)
	front := rig.NewFront(t, s.Addr(), c.API)
	m := &matrix{T: t, binary: binary, server: s, front: front, script: rig.NewScript(ctx, s.Engine)}
	front.Name = m.script.Name
	connector := rig.Name(t, "c")
	// The connection is in clear text, because the front has to tell the questions apart.
	require.NoError(t, c.Connector(ctx, connector, rig.Connector(s, s.AdminUser, s.AdminPassword, front.Addr, false)), "creating the connector")
	out := filepath.Join(t.TempDir(), "out")
	require.NoError(t, os.Mkdir(out, 0o755), "making a directory")
	m.tenant = &rig.Tenant{Name: rig.Name(t, "t"), Out: out, Cluster: c, ConnectorName: connector}
	rig.Provision(t, m.tenant)
	m.tenant.Kubeconfig = front.Kubeconfig
	var err error
	m.client, err = rig.Connect(ctx, "", m.published(), nil)
	require.NoError(t, err, "logging in as a control plane")
	t.Cleanup(func() { m.client.Close() })
	return m
}

// published is the hand-over's DSN, without the front.
func (m *matrix) published() string {
	m.Helper()
	dsn, err := m.tenant.DSN()
	require.NoError(m, err, "reading the hand-over")
	return strings.ReplaceAll(dsn, m.front.Addr, m.server.Addr())
}

// run plays an undisturbed rotation, which shows the questions, and then one for each question and each moment.
func (m *matrix) run() (table string) {
	began := time.Now()
	// The sidecar asks some questions twice only if the watch is late or a session ends slowly.
	var all []string
	for again := range 3 {
		m.play("", rig.Before)
		if again == 0 {
			all = m.points
		}
		all = slices.DeleteFunc(all, func(name string) bool { return !slices.Contains(m.points, name) })
	}
	all = distinct(all)
	if len(all) < 20 {
		m.Fatalf("a rotation asks only %d questions: is the front in its way?\n%s", len(all), strings.Join(all, "\n"))
	}
	var b strings.Builder
	b.WriteString("| step | question | killed before it | killed after it |\n|---|---|---|---|\n")
	last, kills := "", 0
	for _, name := range all {
		point := rig.PointOf(name)
		if m.workload != nil && point.Step != "adopt" && !strings.Contains(point.What, "the workload") {
			continue // same as without a restart
		}
		kills += 2
		if point.Step == "?" {
			m.Fatalf("a question that has no name yet: %s", point.What)
		}
		before, after := m.play(name, rig.Before), m.play(name, rig.After)
		if last == "committed" && before == "moving" {
			// These states lie between two questions.
			fmt.Fprintf(&b, "| project | write the hand-over | %s | %s |\n", last, before)
		}
		last = after
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", point.Step, point.What, before, after)
	}
	fmt.Fprintf(&b, "\n%d kills.\n", kills)
	m.Logf("%d kills in %s", kills, time.Since(began).Round(time.Second))
	return b.String()
}

// distinct keeps the first of equal names. A login is several questions with one name.
func distinct(names []string) (out []string) {
	for _, name := range names {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// play runs one rotation. It kills the sidecar at a question, and another sidecar finishes the rotation. It returns the
// situation that the kill left behind.
func (m *matrix) play(name string, moment rig.Moment) (found string) {
	m.Helper()
	ctx := m.Context()
	what := "undisturbed"
	if name != "" {
		what = fmt.Sprintf("killed %s %q", moment, name)
	}
	before, err := m.tenant.Record(ctx)
	require.NoError(m, err, "reading the record")
	if before.Pending != nil || !before.OtherRetired || before.OtherRefused {
		m.Fatalf("%s: the tenant is not at rest before: %+v", what, before)
	}
	require.NoError(m, m.tenant.SetDue(ctx, time.Now().Add(-time.Minute), rotation.Policy{Period: matrixPeriod, Grace: matrixGrace}), "making a rotation due")
	old, next := before.Login(before.Active), before.Login(before.Active.Other())
	m.template, err = m.generation(ctx)
	require.NoError(m, err, "reading the workload")

	// The client moves as soon as it can. A sidecar that looks for it has to wait for that, or it would look twice.
	moved := make(chan struct{})
	var moving sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer moving.Wait()
	defer cancel()
	moving.Go(func() {
		if m.move(ctx, old.User) {
			close(moved)
		}
	})
	dead := make(chan struct{})
	hold := func(p rig.Point) <-chan struct{} {
		switch {
		case p.Chapter == rig.Committed && (strings.HasPrefix(p.What, "old slot") || strings.Contains(p.What, "replaced")):
			return moved
		case name != "" && rig.PointOf(name).Watching() && !p.Watching() && p.Step != "start":
			return dead // the process continues while it asks for the watch
		}
		return nil
	}

	started := make(chan *rig.Process, 1)
	m.front.WatchFor(name, moment, func() { (<-started).Kill() })
	m.script.Begin(old.User, next.User, rig.Due, hold)
	first := m.sidecar()
	started <- first
	if name == "" {
		m.finish(what, first, before)
		return ""
	}
	select {
	case <-first.Done():
	case <-time.After(rig.Patience):
		m.Fatalf("%s: the sidecar never came so far:\n%s\n%s", what, strings.Join(m.front.Names(), "\n"), first.Log())
	}
	close(dead)
	if first.Exit() != -1 {
		m.Fatalf("%s: it ended by itself:\n%s", what, first.Log())
	}

	// Right after the kill.
	require.NoError(m, rig.UseDSN(ctx, m.published(), nil), what+": the published credential")
	m.checkClient(what)
	left := m.situation(what, before)

	m.front.Watch(0, moment, nil)
	m.script.Begin(old.User, next.User, left.chapter, hold)
	m.finish(what, m.sidecar(), before)
	want := slices.DeleteFunc(slices.Clone(left.next), func(s string) bool {
		return s == "project" || s == "adopt" && m.workload == nil
	})
	if got := m.script.Changes(); !slices.Equal(got, want) {
		m.Errorf("%s: the next process, which found it %s, did %v, want %v", what, left.name, got, want)
	}
	return left.name
}

func (m *matrix) sidecar() *rig.Process {
	m.Helper()
	adopt := "none"
	if m.workload != nil {
		adopt = "rollout"
	}
	s, err := m.tenant.Rotate(context.Background(), m.binary,
		"ROTATION_PERIOD="+matrixPeriod.String(), "GRACE="+matrixGrace.String(), "ADOPT="+adopt)
	require.NoError(m, err, "dbconnector-rotate")
	m.Cleanup(s.Kill)
	return s
}

// move does what kine does when its pod is replaced: the new pod starts before the old one ends.
func (m *matrix) move(ctx context.Context, old string) bool {
	generation := int64(0)
	err := soon(ctx, func() error {
		dsn, err := m.tenant.DSN()
		if err == nil && strings.Contains(dsn, "//"+old+":") {
			err = errors.New("the hand-over has not changed")
		}
		if err == nil && m.workload != nil {
			if generation, err = m.generation(ctx); err == nil && generation == m.template {
				err = errors.New("the pod template has not changed")
			}
		}
		return err
	})
	if err != nil {
		return false // the test is over, and says why
	}
	next, err := rig.Connect(ctx, "", m.published(), nil)
	if err != nil {
		m.Errorf("the client, which moves: %v", err)
		return false
	}
	m.mu.Lock()
	m.client.Close()
	m.client = next
	m.mu.Unlock()
	if m.workload == nil {
		return true
	}
	// The controller reports it.
	status := object{"status": m.workload.status(generation, 1, 1)}
	if err := m.workload.cluster.API.Do(ctx, http.MethodPatch, m.workload.path+"/status", status, nil); err != nil {
		m.Errorf("reporting the workload's status: %v", err)
		return false
	}
	return true
}

// generation goes up by one with each change of the pod template.
func (m *matrix) generation(ctx context.Context) (int64, error) {
	if m.workload == nil {
		return 0, nil
	}
	var o struct{ Metadata struct{ Generation int64 } }
	err := m.workload.cluster.API.Do(ctx, http.MethodGet, m.workload.path, nil, &o)
	return o.Metadata.Generation, err
}

func (m *matrix) checkClient(what string) {
	m.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	require.NoError(m, m.client.Check(m.Context()), what+": the client")
}

// situation returns the situation that the kill left behind.
func (m *matrix) situation(what string, before *tenant.Record) situation {
	m.Helper()
	ctx := m.Context()
	r, err := m.tenant.Record(ctx)
	require.NoError(m, err, what)
	server := before.Server
	server.Host, server.Port = m.server.Host, uint16(m.server.Port)
	accepts := func(l tenant.Login) bool {
		err := open.Engine(server, "test").Login(ctx, l)
		if err != nil && !fault.Is(err, fault.WrongPassword) {
			m.Fatalf("%s: %v", what, err)
		}
		return err == nil
	}
	pending := false
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		stored, change := accepts(r.Login(slot)), r.Pending
		if change == nil || change.Slot != slot {
			if !stored {
				m.Fatalf("%s: the server refuses the password that the record holds for slot %s", what, slot)
			}
			continue
		}
		if pending = accepts(r.LoginWith(slot, change.Password)); pending == stored {
			m.Fatalf("%s: slot %s accepts both passwords, or none: %t", what, slot, stored)
		}
	}
	chapter := rig.Retired
	switch {
	case r.Generation == before.Generation && r.Pending == nil:
		chapter = rig.Due
	case r.Generation == before.Generation && r.Pending.Purpose == tenant.Activate && !pending:
		chapter = rig.Staged
	case r.Generation == before.Generation && r.Pending.Purpose == tenant.Activate:
		chapter = rig.Applied
	case r.Generation == before.Generation+1 && r.Pending == nil && !r.OtherRetired:
		chapter = rig.Committed
	case r.Generation == before.Generation+1 && r.Pending != nil && r.Pending.Purpose == tenant.Retire && !pending:
		chapter = rig.Retiring
	case r.Generation == before.Generation+1 && r.Pending != nil && r.Pending.Purpose == tenant.Retire:
		chapter = rig.Dead
	case r.Generation != before.Generation+1 || r.Pending != nil:
		m.Fatalf("%s: the crash left an unknown situation behind: %+v", what, r)
	}
	published := "new slot"
	if dsn := m.published(); strings.Contains(dsn, "//"+before.Login(before.Active).User+":") {
		published = "old slot"
	}
	template, err := m.generation(ctx)
	require.NoError(m, err, what)
	rolling := chapter == rig.Committed && template > m.template
	for _, s := range situations {
		if s.chapter == chapter && s.published == published && (s.name == "rolling" || !rolling) {
			return s
		}
	}
	m.Fatalf("%s: chapter %d, and the hand-over has the %s", what, chapter, published)
	return situation{}
}

// finish waits until a sidecar has finished the rotation, and checks everything.
func (m *matrix) finish(what string, sidecar *rig.Process, before *tenant.Record) {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), rig.Patience)
	defer cancel()
	var after *tenant.Record
	err := soon(ctx, func() (err error) {
		if after, err = m.tenant.Record(ctx); err == nil && (after.Generation != before.Generation+1 || after.Pending != nil || !after.OtherRetired) {
			err = errors.New("the rotation never comes to its end")
		}
		return err
	})
	if err != nil {
		m.Fatalf("%s: %v\n%s\n%s", what, err, strings.Join(m.front.Names(), "\n"), sidecar.Log())
	}
	_, _, err = sidecar.Get(ctx, "/healthz") // a sidecar with nothing left to do has only just started
	require.NoError(m, err, what)
	if exit, err := sidecar.Stop(ctx); err != nil || exit != 0 {
		m.Fatalf("%s: asked to end: exit code %d, %v", what, exit, err)
	}
	m.points = m.front.Names()
	m.script.End()
	if after.OtherRefused || after.Active == before.Active {
		m.Errorf("%s: ended with %+v", what, after)
	}
	require.NoError(m, m.tenant.CheckHandover(ctx), what)
	m.checkClient(what)
	template, err := m.generation(ctx)
	require.NoError(m, err, what)
	if m.workload != nil && template != m.template+1 {
		m.Errorf("%s: the pod template was changed %d times", what, template-m.template)
	}
	dead := before.Login(before.Active)
	assert.NoError(m, rig.CheckRefused(ctx, before, dead), what+": the old password, in the end")
}

// soon is bed.Wait for conditions that take milliseconds, hundreds of times.
func soon(ctx context.Context, cond func() error) error {
	every := time.NewTicker(5 * time.Millisecond)
	defer every.Stop()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

func situationTable() string {
	var b strings.Builder
	b.WriteString("| left behind | the record | the server | the hand-over | the next process does | nothing is lost, because |\n|---|---|---|---|---|---|\n")
	for _, s := range situations {
		next := strings.Join(s.next, ", ")
		if next == "" {
			next = "nothing"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", s.name, s.record, s.server, s.published, next, s.why)
	}
	return b.String()
}

// matrixLock guards the file, because tests that run at the same time write its sections.
var matrixLock sync.Mutex

// compare checks a section of the file against the results, or writes it.
func compare(t *testing.T, section, found string) {
	t.Helper()
	matrixLock.Lock()
	defer matrixLock.Unlock()
	data, err := os.ReadFile(matrixFile)
	require.NoError(t, err, "reading the crash matrix")
	begin, end := "<!-- "+section+" -->\n", "<!-- end of "+section+" -->\n"
	head, rest, ok := strings.Cut(string(data), begin)
	written, foot, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("docs/crash-matrix.md has no section %s", section)
	}
	found = "\n" + found + "\n"
	switch {
	case t.Failed() || written == found:
	case *updateMatrix:
		require.NoError(t, os.WriteFile(matrixFile, []byte(head+begin+found+end+foot), 0o644), "writing the crash matrix")
	default:
		t.Errorf("docs/crash-matrix.md says otherwise (`make matrix` writes it again). Found:\n%s\nwritten:\n%s", found, written)
	}
}
