// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/handover"
	"dbconnector/pkg/kube"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

const replicas = 3

// pod is a replica of a control plane: dbconnector-init, dbconnector-rotate, and a kine on the hand-over of its own.
type pod struct {
	*Tenant
	kine     *bed.Kine
	sidecar  *rig.Process   // nil: not started yet
	sidecars []*rig.Process // all there ever were
	dsn      string         // kine runs on it
	dsns     []string       // those that kine was started on, each once
	args     []string       // for kine
	template int64          // the generation of the StatefulSet that the pod was made for
}

// plane is a control plane of several replicas, in the host cluster, on one database, with one API server on all of them.
type plane struct {
	name   string
	server *bed.Server
	host   *rig.Cluster
	pods   []*pod
	api    *bed.APIServer
}

// newPlane starts a control plane; with settings for its pods, NAME=value without the prefix, the sidecars, too. It needs the connector no
// more.
func newPlane(t *testing.T, s setting, settings ...string) *plane {
	t.Helper()
	server := bed.NewServer(t, s.engine, s.version, s.options)
	user, password, err := server.CloudAdmin(t.Context(), "platform")
	require.NoError(t, err)
	dir := t.TempDir()
	connector := filepath.Join(dir, "connector")
	require.NoError(t, WriteConnector(connector, server, user, password))
	values, err := ShippedValues(t.Context(), "licensed") // the only store that may have replicas
	require.NoError(t, err)
	p := &plane{
		name:   strings.ToLower(strings.NewReplacer("/", "-", ".", "-", "_", "-").Replace(t.Name())),
		server: server, host: rig.Host(t),
	}
	endpoints := make([]string, replicas)
	for i := range replicas {
		member, err := NewTenant(p.name, connector, filepath.Join(dir, fmt.Sprintf("replica-%d", i)), values)
		require.NoError(t, err)
		member.Cluster, member.State = p.host, ""
		r := &pod{Tenant: member, template: 1}
		p.pods = append(p.pods, r)
		t.Cleanup(func() { r.cleanUp(t) })
		require.NoError(t, r.start(t.Context(), settings...))
		endpoints[i] = r.kine.Endpoint
	}
	// From here on no program knows the admin's credential.
	require.NoError(t, os.RemoveAll(connector))
	require.NoError(t, p.startAPI(t.Context(), strings.Join(endpoints, ",")))
	t.Cleanup(func() {
		if t.Failed() {
			lines := strings.Split(p.api.Log(), "\n")
			t.Logf("log of kube-apiserver:\n%s", strings.Join(lines[max(0, len(lines)-50):], "\n"))
		}
		assert.NoError(t, p.api.Stop(context.Background()))
	})
	return p
}

// startAPI starts the API server on the first kine, and then the other kines again. A new API server creates many objects at
// once, and if it is told of one that it exists already, which kine on MySQL and MariaDB says for nothing (see
// createConfigMap), it takes that for another API server's work, waits for it to appear, and is never ready. Fewer kines do so
// less often, and a second start finds nearly everything there.
func (p *plane) startAPI(ctx context.Context, endpoints string) (err error) {
	for _, r := range p.pods[1:] {
		if err := r.kine.Halt(ctx); err != nil {
			return err
		}
	}
	if p.api, err = bed.StartAPIServer(ctx, bed.APIServerOptions{Etcd: endpoints}); err != nil {
		p.api, err = bed.StartAPIServer(ctx, bed.APIServerOptions{Etcd: endpoints})
	}
	for _, r := range p.pods[1:] {
		if err == nil {
			err = r.serve(ctx)
		}
	}
	return err
}

func (r *pod) cleanUp(t *testing.T) {
	for _, s := range r.sidecars {
		s.Kill()
		if t.Failed() {
			t.Logf("log of dbconnector-rotate:\n%s", s.Log())
		}
	}
	if r.kine != nil {
		if t.Failed() {
			t.Logf("log of kine:\n%s", r.kine.Log())
		}
		_ = r.kine.Stop(context.Background()) // it may well have ended by itself
	}
}

// start treats a new pod as the kubelet does: its volumes are empty, dbconnector-init runs to its end, then the sidecar, if there are
// settings, and the control plane start. It returns when all are ready. Both programs have the settings, as in the shipped values.
func (r *pod) start(ctx context.Context, settings ...string) error {
	private := handover.PrivateDir(r.Out)
	if err := errors.Join(os.RemoveAll(r.Out), os.Mkdir(r.Out, 0o750), os.RemoveAll(private), os.Mkdir(private, 0o700)); err != nil {
		return err
	}
	r.Settings = []string{fmt.Sprintf("DBCONNECTOR_CONNECTION_LIMIT=%d", (replicas+1)*20+10)} // as docs/install.md has it
	for _, s := range settings {
		r.Settings = append(r.Settings, "DBCONNECTOR_"+s)
	}
	r.args = nil
	if slices.Contains(settings, "ADOPT=socket") { // the shipped lifetime is for a rotation once a month
		r.args = []string{"--datastore-connection-max-lifetime=2s"}
	}
	ready, err := r.Provision(ctx)
	if err != nil {
		return err
	}
	if r.kine != nil && !ready.Restart {
		return errors.New("dbconnector-init needed the admin's credential for a restart")
	}
	if len(settings) > 0 {
		if err := r.rotate(ctx, settings...); err != nil {
			return err
		}
	}
	return r.serve(ctx)
}

// serve runs kine on what the hand-over says.
func (r *pod) serve(ctx context.Context) error {
	store, err := r.Store()
	if err != nil {
		return err
	}
	r.dsn = store.DataSource
	if !slices.Contains(r.dsns, store.DataSource) {
		r.dsns = append(r.dsns, store.DataSource)
	}
	if r.kine != nil {
		return r.kine.Restart(ctx, store.DataSource, store.CAFile, append(store.ExtraArgs, r.args...)...)
	}
	r.kine, err = store.StartKine(ctx, r.args...)
	return err
}

// rotate starts the sidecar. Settings are NAME=value without the prefix.
func (r *pod) rotate(ctx context.Context, settings ...string) error {
	sidecar, err := r.Rotate(context.WithoutCancel(ctx), "", settings...) // it is stopped by name
	if err != nil {
		return err
	}
	r.sidecar = sidecar
	r.sidecars = append(r.sidecars, sidecar)
	return bed.Wait(ctx, func(ctx context.Context) error {
		status, body, err := sidecar.Get(ctx, "/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("dbconnector-rotate is not ready with a hand-over in place: %d %s", status, body)
		}
		return err
	})
}

// restart replaces the pod: the control plane and the sidecar are asked to end together, as the kubelet asks all containers.
func (r *pod) restart(ctx context.Context, settings ...string) error {
	ended := make(chan error, 1)
	go func() {
		exit, err := r.sidecar.Stop(ctx)
		if err != nil || exit != 0 {
			err = fmt.Errorf("dbconnector-rotate was asked to end: exit code %d, %w\n%s", exit, err, r.sidecar.Log())
		}
		ended <- err
	}()
	if err := errors.Join(r.kine.Halt(ctx), <-ended); err != nil {
		return err
	}
	return r.start(ctx, settings...)
}

func (p *plane) workload() string {
	return "/apis/apps/v1/namespaces/" + rig.Namespace + "/statefulsets/" + p.name
}

// statefulSet has the fields of one that a test reads.
type statefulSet struct {
	Metadata struct{ Generation int64 }
	Spec     struct {
		Template struct {
			Metadata struct{ Annotations map[string]string }
			Spec     struct{ Containers []container }
		}
	}
	Status struct{ ObservedGeneration, UpdatedReplicas, AvailableReplicas int64 }
}

// container is the one of the template; its variables are the pod's settings.
type container struct {
	Name  string     `json:"name"`
	Image string     `json:"image"`
	Env   []variable `json:"env,omitempty"`
}

type variable struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func containers(settings []string) []container {
	c := container{Name: "syncer", Image: "example.com/vcluster"}
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		c.Env = append(c.Env, variable{name, value})
	}
	return []container{c}
}

// settings are those of the template.
func (s statefulSet) settings() (list []string) {
	for _, v := range s.Spec.Template.Spec.Containers[0].Env {
		list = append(list, v.Name+"="+v.Value)
	}
	return list
}

// rolledOut: all pods have the template.
func (s statefulSet) rolledOut() bool {
	return s.Status.ObservedGeneration == s.Metadata.Generation && s.Status.UpdatedReplicas == replicas && s.Status.AvailableReplicas == replicas
}

// requested is the generation on the pod template; 0 for none.
func (s statefulSet) requested() int64 {
	n, _ := strconv.ParseInt(s.Spec.Template.Metadata.Annotations[kube.GenerationAnnotation], 10, 64)
	return n
}

func (p *plane) statefulSet(ctx context.Context) (s statefulSet, err error) {
	err = p.host.API.Do(ctx, http.MethodGet, p.workload(), nil, &s)
	return s, err
}

// createWorkload makes the StatefulSet of the control plane, with these settings on its template.
func (p *plane) createWorkload(ctx context.Context, settings ...string) error {
	labels := map[string]string{"app": "vcluster", "release": p.name}
	object := map[string]any{
		"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": map[string]any{"name": p.name},
		"spec": map[string]any{
			"replicas": replicas, "serviceName": p.name, "selector": map[string]any{"matchLabels": labels},
			"template": map[string]any{
				"metadata": map[string]any{"labels": labels, "annotations": map[string]string{"example.com/other": "stays"}},
				"spec":     map[string]any{"containers": containers(settings)},
			},
		},
	}
	if err := p.host.API.Do(ctx, http.MethodPost, strings.TrimSuffix(p.workload(), "/"+p.name), object, nil); err != nil {
		return err
	}
	return p.report(ctx, 1, replicas, replicas)
}

// report writes the status of the StatefulSet: of its template of this generation, so many pods are there and ready.
func (p *plane) report(ctx context.Context, generation int64, updated, available int) error {
	revision := func(n int64) string { return fmt.Sprintf("%s-%d", p.name, n) }
	current := revision(generation)
	if updated < replicas || available < replicas {
		current = revision(generation - 1)
	}
	return p.host.API.Do(ctx, http.MethodPatch, p.workload()+"/status", map[string]any{"status": map[string]any{
		"observedGeneration": generation, "replicas": replicas, "updatedReplicas": updated, "availableReplicas": available,
		"readyReplicas": available, "currentReplicas": replicas - updated, "currentRevision": current, "updateRevision": revision(generation),
	}}, nil)
}

// change has the operator change the settings on the template.
func (p *plane) change(ctx context.Context, settings []string) error {
	return p.host.API.Do(ctx, http.MethodPatch, p.workload(), map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{
		"containers": containers(settings),
	}}}}, nil)
}

// control plays the StatefulSet controller, and the kubelet, until ctx ends: when the object changes, it replaces the pods one
// after the other, the last one first, and waits for each to be ready. A template that changes meanwhile is the one it goes on with.
// settings is asked before each pod is replaced. control sends the annotation of every template that has been rolled out.
func (p *plane) control(ctx context.Context, settings func(context.Context, statefulSet) ([]string, error), rolled chan<- int64) error {
	for observed := int64(1); ; {
		var now statefulSet
		err := bed.Wait(ctx, func(ctx context.Context) (err error) {
			if now, err = p.statefulSet(ctx); err == nil && now.Metadata.Generation == observed {
				err = errors.New("there is no new template")
			}
			return err
		})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		for old := p.outdated(now); len(old) > 0; old = p.outdated(now) {
			if err := p.replace(ctx, old[len(old)-1], now, replicas-len(old), settings); err != nil {
				return fmt.Errorf("rolling out generation %d of the StatefulSet: %w", now.Metadata.Generation, err)
			}
			if now, err = p.statefulSet(ctx); err != nil {
				return err
			}
		}
		observed = now.Metadata.Generation
		if err := p.report(ctx, observed, replicas, replicas); err != nil {
			return err
		}
		rolled <- now.requested()
	}
}

// outdated are the pods that do not have the template.
func (p *plane) outdated(now statefulSet) (old []*pod) {
	for _, r := range p.pods {
		if r.template != now.Metadata.Generation {
			old = append(old, r)
		}
	}
	return old
}

// replace makes one pod new, for a template that so many pods have.
func (p *plane) replace(ctx context.Context, r *pod, now statefulSet, updated int, settings func(context.Context, statefulSet) ([]string, error)) error {
	list, err := settings(ctx, now)
	if err != nil {
		return err
	}
	if err := p.report(ctx, now.Metadata.Generation, updated, replicas-1); err != nil {
		return err
	}
	if err := r.restart(ctx, list...); err != nil {
		return err
	}
	r.template = now.Metadata.Generation
	return nil
}

func (p *plane) record(t *testing.T) *tenant.Record {
	t.Helper()
	record, err := p.pods[0].Record(t.Context())
	require.NoError(t, err)
	return record
}

// login tries a DSN.
func (p *plane) login(ctx context.Context, dsn string) error {
	db, err := rig.OpenDSN(dsn, p.server.CA)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.PingContext(ctx)
}

// checkMoved is for the end: the old passwords are dead, every replica works with the active one, and no kine was ever
// refused.
func (p *plane) checkMoved(t *testing.T, generations int) {
	t.Helper()
	record := p.record(t)
	active, other := record.Login(record.Active), record.Login(record.Active.Other())
	if record.Generation != int64(generations) {
		t.Errorf("the record is of generation %d, want %d", record.Generation, generations)
	}
	used := map[string]bool{}
	for i, r := range p.pods {
		dsn, err := os.ReadFile(filepath.Join(r.Out, handover.DSNFile))
		require.NoError(t, err)
		if latest := r.dsns[len(r.dsns)-1]; latest != string(dsn) || !strings.Contains(latest, "//"+active.User+":"+active.Password.Reveal()+"@") {
			t.Errorf("replica %d does not run with the active credential, or its hand-over does not carry it", i)
		}
		if len(r.dsns) != generations {
			t.Errorf("replica %d used %d credentials, want %d", i, len(r.dsns), generations)
		}
		for _, dsn := range r.dsns {
			used[dsn] = true
		}
		if line := authentication.FindString(r.kine.Log()); line != "" {
			t.Errorf("kine of replica %d was refused: %s", i, line)
		}
		if gaps := strings.Count(r.kine.Log(), "GAP "); gaps > 0 {
			t.Logf("kine of replica %d passed over %d revisions that it did not find", i, gaps)
		}
	}
	if line := authentication.FindString(p.api.Log()); line != "" {
		t.Errorf("the API server was told of a refusal: %s", line)
	}
	if len(used) != generations {
		t.Errorf("the replicas used %d credentials, want %d", len(used), generations)
	}
	for dsn := range used {
		err := p.login(t.Context(), dsn)
		if dsn == p.pods[0].dsns[generations-1] {
			assert.NoError(t, err, "the active credential")
			continue
		}
		said := Refusal(err)
		if !strings.HasPrefix(said, "28P01 ") && !strings.HasPrefix(said, "1045 ") {
			t.Errorf("a credential that was rotated away: %q (%v), want it refused", said, err)
		}
		if err != nil && !authentication.MatchString(err.Error()) {
			t.Errorf("a refusal would not be noticed in a log: %v", err)
		}
	}
	bed.Eventually(t, patience, func(ctx context.Context) error {
		on, err := p.server.Sessions(ctx, active.User)
		off, errOff := p.server.Sessions(ctx, other.User)
		if err == nil && errOff == nil && (on < replicas || off != 0) {
			err = fmt.Errorf("the active login has %d sessions and the other one %d", on, off)
		}
		return errors.Join(err, errOff)
	})
}

// lines counts, by generation, what all the sidecars that there ever were have logged.
func (p *plane) lines(message string) map[int64]int {
	counts := map[int64]int{}
	for _, r := range p.pods {
		for _, s := range r.sidecars {
			for _, line := range s.Lines(message) {
				generation, _ := line["generation"].(float64)
				counts[int64(generation)]++
			}
		}
	}
	return counts
}
