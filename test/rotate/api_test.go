// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/rotation"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// These tests cover faults of the API server and of the record. The engine makes no difference to them, so one is
// enough. The tests do not wait for a rotation: the period is an hour, and due ends it.

const period = time.Hour

var hourly = []string{"ROTATION_PERIOD=" + period.String(), "GRACE=1s"}

// plane is a control plane with one replica, its record a Secret in c, on the shared server.
func plane(tb testing.TB, c *rig.Cluster) (*rig.Tenant, *bed.Server) {
	tb.Helper()
	server := rig.Server(tb, bed.Postgres, "17")
	return rig.NewKubeTenant(tb, c, server), server
}

func secretPath(p *rig.Tenant) string {
	return "/api/v1/namespaces/" + rig.Namespace + "/secrets/dbconnector-" + p.Name
}

// patch changes the record's Secret as the admin.
func patch(tb testing.TB, p *rig.Tenant, object map[string]any) {
	tb.Helper()
	require.NoError(tb, p.Cluster.API.Do(tb.Context(), http.MethodPatch, secretPath(p), object, nil), "changing the record's Secret")
}

func dataOf(content string) map[string]any {
	return map[string]any{"data": map[string]any{"record.json": base64.StdEncoding.EncodeToString([]byte(content))}}
}

// edit changes the record as another program would, by compare-and-swap.
func edit(tb testing.TB, p *rig.Tenant, change func(r *tenant.Record)) {
	tb.Helper()
	bed.Eventually(tb, rig.Patience, func(ctx context.Context) error {
		var secret struct {
			Metadata struct{ ResourceVersion string }
			Data     map[string][]byte
		}
		if err := p.Cluster.API.Do(ctx, http.MethodGet, secretPath(p), nil, &secret); err != nil {
			return err
		}
		r, err := tenant.DecodeRecord(secret.Data["record.json"])
		if err != nil {
			return bed.Permanent(err)
		}
		change(r)
		content, err := r.Encode()
		if err != nil {
			return bed.Permanent(err)
		}
		object := dataOf(string(content))
		object["metadata"] = map[string]any{"resourceVersion": secret.Metadata.ResourceVersion}
		return p.Cluster.API.Do(ctx, http.MethodPatch, secretPath(p), object, nil)
	})
}

// due makes a rotation due from now on.
func due(tb testing.TB, p *rig.Tenant) {
	tb.Helper()
	edit(tb, p, func(r *tenant.Record) {
		age := rotation.Due(r, rotation.Policy{Period: period}).Sub(r.RotatedAt)
		r.RotatedAt = time.Now().Add(-age).UTC().Truncate(time.Second)
	})
}

// session opens a session with a login of the tenant, as a control plane does. The test or end closes it.
func session(tb testing.TB, s *bed.Server, login tenant.Login) (end func()) {
	tb.Helper()
	db, err := s.Open(login.User, login.Password.Reveal(), login.Database)
	require.NoError(tb, err, "opening a session")
	db.SetMaxOpenConns(1)
	require.NoError(tb, db.PingContext(tb.Context()), "opening a session")
	tb.Cleanup(func() { db.Close() })
	return func() { db.Close() }
}

// hold blocks a rotation of p, which is due, until release is called. So the sidecar rotates only when the test says
// so, however slow the machine is.
func hold(tb testing.TB, s *bed.Server, p *rig.Tenant, sidecars ...*rig.Process) (release func()) {
	tb.Helper()
	r := rig.Until(tb, p, "provisioned", (*tenant.Record).Provisioned)
	limit := func(sessions int) {
		tb.Helper()
		require.NoError(tb, s.Exec(tb.Context(), fmt.Sprintf("ALTER ROLE %q CONNECTION LIMIT %d", r.Login(r.Active.Other()).User, sessions)), "limiting a login")
	}
	limit(0) // of the login that becomes the active one
	due(tb, p)
	for _, sidecar := range sidecars {
		failing(tb, sidecar, "look")
	}
	return func() { tb.Helper(); limit(r.ConnectionLimit) }
}

// gauge waits until a metric has a value.
func gauge(tb testing.TB, s *rig.Process, series string, want float64) {
	tb.Helper()
	metric(tb, s, series, fmt.Sprint("is ", want), func(v float64) bool { return v == want })
}

func metric(tb testing.TB, s *rig.Process, series, what string, has func(float64) bool) {
	tb.Helper()
	bed.Eventually(tb, rig.Patience, func(ctx context.Context) error {
		metrics, err := s.Metrics(ctx)
		if err != nil {
			return err
		}
		if v, ok := metrics[series]; !ok || !has(v) {
			return fmt.Errorf("%s never %s; it is %v (there at all: %t)", series, what, v, ok)
		}
		return nil
	})
}

// failing waits until a sidecar says that a step fails.
func failing(tb testing.TB, s *rig.Process, step string) {
	tb.Helper()
	metric(tb, s, "dbconnector_consecutive_failures", "is positive", func(v float64) bool { return v > 0 })
	metric(tb, s, `dbconnector_failures_total{step="`+step+`"}`, "is positive", func(v float64) bool { return v > 0 })
}

// ready asks the questions of a kubelet.
func ready(tb testing.TB, s *rig.Process) {
	tb.Helper()
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body, err := s.Get(tb.Context(), path); err != nil || status != http.StatusOK {
			tb.Errorf("%s answers %d %q, %v", path, status, body, err)
		}
	}
}

// works uses the hand-over, as kine would.
func works(tb testing.TB, p *rig.Tenant, s *bed.Server) {
	tb.Helper()
	dsn, err := p.DSN()
	require.NoError(tb, err, "reading the hand-over")
	require.NoError(tb, rig.UseDSN(tb.Context(), dsn, s.CA), "using what is handed over")
}

// handsOver waits until the hand-over carries the record's active credential, and uses it.
func handsOver(tb testing.TB, p *rig.Tenant, s *bed.Server) {
	tb.Helper()
	bed.Eventually(tb, rig.Patience, func(ctx context.Context) error {
		r, err := p.Record(ctx)
		if err != nil {
			return err
		}
		dsn, err := p.DSN()
		if err == nil && dsn != rig.WithLogin(dsn, r.Login(r.Active)) {
			err = errors.New("the hand-over does not carry the active credential")
		}
		return err
	})
	works(tb, p, s)
}

func generation(n int64) func(*tenant.Record) bool {
	return func(r *tenant.Record) bool { return r.Generation >= n }
}

// accepts checks that the server accepts the passwords that the record holds for both slots.
func accepts(tb testing.TB, r *tenant.Record) {
	tb.Helper()
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		assert.NoErrorf(tb, open.Engine(r.Server, "test").Login(tb.Context(), r.Login(slot)), "slot %s of generation %d", slot, r.Generation)
	}
}

func dead(tb testing.TB, r *tenant.Record, slot tenant.Slot) {
	tb.Helper()
	assert.NoErrorf(tb, rig.CheckRefused(tb.Context(), r, r.Login(slot)), "slot %s of generation %d", slot, r.Generation)
}

// kubeconfig writes one to a file of the test's own.
func kubeconfig(tb testing.TB, content []byte) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "kubeconfig")
	require.NoError(tb, os.WriteFile(file, content, 0o600), "writing a kubeconfig")
	return file
}

// behind puts a proxy between an API server and the sidecars of a tenant.
func behind(tb testing.TB, p *rig.Tenant) (*rig.Tenant, *bed.Proxy) {
	tb.Helper()
	api := p.Cluster.API
	proxy := bed.NewProxy(tb, api.Addr())
	config, err := os.ReadFile(api.Kubeconfig)
	require.NoError(tb, err, "reading the kubeconfig")
	behind := *p
	behind.Kubeconfig = kubeconfig(tb, []byte(strings.ReplaceAll(string(config), api.URL, "https://"+proxy.Addr())))
	return &behind, proxy
}

// waits waits until that many requests of a sidecar to the API server have failed in a row. The sidecar logs the
// attempts whose number is a power of two.
func waits(tb testing.TB, s *rig.Process, attempts float64) {
	tb.Helper()
	bed.Eventually(tb, rig.Patience, func(context.Context) error {
		for _, line := range s.Lines("waiting") {
			if n, _ := line["attempt"].(float64); n >= attempts {
				return nil
			}
		}
		return fmt.Errorf("the sidecar never waits for the API server:\n%s", s.Log())
	})
}

// TestAPIServerGone: a rotation becomes possible only while the API server is away. Nothing is lost, the hand-over
// still works, and the sidecar rotates when the API server is back.
func TestAPIServerGone(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		reads bool // the sidecar may read the record meanwhile
		run   func(t *testing.T) (p, sidecars *rig.Tenant, s *bed.Server, away func(), gone func(*rig.Process), back func())
	}{
		{"refused", true, func(t *testing.T) (*rig.Tenant, *rig.Tenant, *bed.Server, func(), func(*rig.Process), func()) {
			p, s := plane(t, rig.Host(t))
			sidecars, proxy := behind(t, p)
			return p, sidecars, s, func() { proxy.Refuse(); proxy.Cut() },
				func(s *rig.Process) { waits(t, s, 4) },
				func() { require.NoError(t, proxy.Accept(), "ending the outage") }
		}},
		{"black hole", true, func(t *testing.T) (*rig.Tenant, *rig.Tenant, *bed.Server, func(), func(*rig.Process), func()) {
			p, s := plane(t, rig.Host(t))
			sidecars, proxy := behind(t, p)
			// There is no reset: every request has to find out by itself.
			return p, sidecars, s, proxy.BlackHole, func(s *rig.Process) { waits(t, s, 1) }, proxy.Pass
		}},
		{"restarted", false, func(t *testing.T) (*rig.Tenant, *rig.Tenant, *bed.Server, func(), func(*rig.Process), func()) {
			api := bed.NewAPIServer(t, bed.APIServerOptions{})
			c, err := rig.NewCluster(t.Context(), api)
			require.NoError(t, err, "preparing the API server")
			p, s := plane(t, c)
			return p, p, s, api.Kill,
				func(s *rig.Process) { waits(t, s, 4) },
				func() { require.NoError(t, api.Restart(t.Context()), "restarting the API server") }
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p, through, server, away, gone, back := test.run(t)
			sidecar := rig.Sidecar(t, through, hourly...)
			release := hold(t, server, p, sidecar)
			before := rig.Until(t, p, "provisioned", (*tenant.Record).Provisioned)
			away()
			release()
			gone(sidecar)
			ready(t, sidecar)
			works(t, p, server)
			accepts(t, before)
			if test.reads {
				if r, err := p.Record(t.Context()); err != nil || r.Generation != before.Generation {
					t.Errorf("rotated without the API server: %+v, %v", r, err)
				}
			}
			back()
			rotated := rig.Until(t, p, "generation 2", generation(2))
			handsOver(t, p, server)
			if rotated.Active == before.Active {
				t.Error("the active slot is the same")
			}
			gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
			ready(t, sidecar)
		})
	}
}

// TestAPIServerHangs: a replica rotates while the watch of another one hangs in a network that swallows packets. That one
// hands over the new credential when it hears of it; until then the old one works, in use or not.
func TestAPIServerHangs(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	second := rig.Replica(t, p)
	deaf, proxy := behind(t, second)
	well, hangs := rig.Sidecar(t, p, hourly...), rig.Sidecar(t, deaf, hourly...)
	release := hold(t, server, p, well, hangs)
	proxy.BlackHole()
	release()
	rotated := rig.Until(t, p, "generation 2", generation(2))
	handsOver(t, p, server)
	works(t, second, server)
	ready(t, hangs)
	proxy.Pass()
	handsOver(t, second, server)
	if r := rig.Until(t, p, "generation 2", generation(2)); r.Generation != rotated.Generation {
		t.Errorf("rotated twice: generation %d", r.Generation)
	}
}

// TestConflictStorm: other programs write the record's Secret all the time, so that most writes of the sidecar meet a
// conflict.
func TestConflictStorm(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	sidecars := []*rig.Process{rig.Sidecar(t, p, hourly...), rig.Sidecar(t, rig.Replica(t, p), hourly...)}
	release := hold(t, server, p, sidecars...)

	ctx, stop := context.WithCancel(t.Context())
	var storm sync.WaitGroup
	for i := range 2 {
		storm.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				note := map[string]any{"metadata": map[string]any{"annotations": map[string]any{fmt.Sprint("note-", i): fmt.Sprint(n)}}}
				if err := p.Cluster.API.Do(ctx, http.MethodPatch, secretPath(p), note, nil); err != nil && ctx.Err() == nil {
					t.Errorf("the storm: %v", err)
					return
				}
			}
		})
	}
	release()
	rotated := rig.Until(t, p, "generation 2", generation(2))
	handsOver(t, p, server)
	end := session(t, server, rotated.Login(rotated.Active)) // the control plane moves
	rig.Until(t, p, "retired", func(r *tenant.Record) bool { return r.OtherRetired })
	end()
	stop()
	storm.Wait()
	if r, err := p.Record(t.Context()); err != nil || r.Generation != 2 {
		t.Errorf("after the storm: %+v, %v", r, err)
	}
	for _, s := range sidecars {
		gauge(t, s, "dbconnector_consecutive_failures", 0)
	}
}

// TestRecordDeleted: the record is deleted under a running sidecar. The sidecar does not touch the control plane, logs
// the loss, and goes on with the record that the next init makes.
func TestRecordDeleted(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	sidecar := rig.Sidecar(t, p, hourly...)
	gauge(t, sidecar, "dbconnector_credential_generation", 1)
	old := rig.Until(t, p, "provisioned", (*tenant.Record).Provisioned)
	session(t, server, old.Login(old.Active)) // the control plane
	require.NoError(t, p.Forget(t.Context()), "deleting the record")
	failing(t, sidecar, "read")
	if lines := sidecar.Lines("there is no record (waiting)"); len(lines) == 0 {
		t.Errorf("the sidecar does not say so:\n%s", sidecar.Log())
	}
	ready(t, sidecar)
	works(t, p, server)
	accepts(t, old)

	next := rig.Replica(t, p) // a pod starts
	fresh := rig.Until(t, p, "a new one", (*tenant.Record).Provisioned)
	if fresh.Login(fresh.Active) == old.Login(old.Active) {
		t.Fatal("init has made no new record")
	}
	handsOver(t, next, server)
	handsOver(t, p, server)
	gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
	// The new record does not know the slot of the control plane, and the slot is in use. init changes no password of a
	// slot in use.
	assert.NoError(t, open.Engine(old.Server, "test").Login(t.Context(), old.Login(old.Active)), "the credential of the control plane")
}

// TestRecordRestored: the record comes back from a backup that is older than the last rotation, and a sidecar starts
// that has never seen another one, as after a crash of its own. The working credential stays handed over until init has
// repaired the record (B51).
func TestRecordRestored(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	backup := rig.Until(t, p, "provisioned", (*tenant.Record).Provisioned)
	first := rig.Sidecar(t, p, hourly...)
	due(t, p)
	rotated := rig.Until(t, p, "generation 2", generation(2))
	handsOver(t, p, server)
	session(t, server, rotated.Login(rotated.Active)) // the control plane
	rig.Until(t, p, "retired", func(r *tenant.Record) bool { return r.OtherRetired })
	first.Kill()
	dead(t, backup, backup.Active)

	content, err := backup.Encode()
	require.NoError(t, err, "keeping the record")
	patch(t, p, dataOf(string(content)))
	files := stat(t, p.Out)
	sidecar := rig.Sidecar(t, p, hourly...)
	keepsHandOver(t, p, sidecar, server, files)

	rig.Replica(t, p) // a pod starts
	handsOver(t, p, server)
	gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
	assert.NoError(t, open.Engine(rotated.Server, "test").Login(t.Context(), rotated.Login(rotated.Active)), "the credential of the control plane")
}

// keepsHandOver makes sure that a sidecar which does not trust its record says so, stays ready, and leaves the files as they are.
func keepsHandOver(t *testing.T, p *rig.Tenant, sidecar *rig.Process, server *bed.Server, files string) {
	t.Helper()
	failing(t, sidecar, "project")
	gauge(t, sidecar, `dbconnector_locked_out{login="active"}`, 1)
	ready(t, sidecar)
	if now := stat(t, p.Out); now != files {
		t.Errorf("the hand-over was written:\n%s\nbefore:\n%s", now, files)
	}
	works(t, p, server)
}

// TestRecordReplaced: under a running sidecar, a record is replaced by one that is no successor of it, although its
// generation is higher or the same. It comes from a backup of the time before the record was made again, or was edited.
// The credential in it would not work, so the sidecar leaves the hand-over as it is, and says so.
func TestRecordReplaced(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*tenant.Record){
		"higher generation": func(r *tenant.Record) { r.Generation, r.RotatedAt = 12, r.RotatedAt.Add(-time.Hour) },
		"same generation":   func(*tenant.Record) {},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			p, server := plane(t, rig.Host(t))
			before := rig.Until(t, p, "provisioned", (*tenant.Record).Provisioned)
			sidecar := rig.Sidecar(t, p, hourly...)
			gauge(t, sidecar, "dbconnector_credential_generation", 1)
			files := stat(t, p.Out)
			replaced := before.Clone()
			change(replaced)
			slot := replaced.Slots[replaced.Active]
			slot.Password = dbserver.Password(strings.Repeat("x", len(slot.Password)))
			replaced.Slots[replaced.Active] = slot
			content, err := replaced.Encode()
			require.NoError(t, err, "encoding the record")
			patch(t, p, dataOf(string(content)))
			keepsHandOver(t, p, sidecar, server, files)

			content, err = before.Encode()
			require.NoError(t, err, "encoding the record")
			patch(t, p, dataOf(string(content)))
			gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
		})
	}
}

// TestRecordCorrupt: B14, a record that cannot be read is never an empty one. The sidecar changes nothing, says so, and
// goes on when the record is repaired.
func TestRecordCorrupt(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	sidecar := rig.Sidecar(t, p, hourly...)
	content, err := rig.Until(t, p, "provisioned", (*tenant.Record).Provisioned).Encode()
	require.NoError(t, err, "keeping the record")
	for what, damaged := range map[string]string{"cut off": string(content[:len(content)/2]), "of a later version": `{"version":2}`, "empty": ""} {
		patch(t, p, dataOf(damaged))
		failing(t, sidecar, "read")
		ready(t, sidecar)
		works(t, p, server)
		patch(t, p, dataOf(string(content)))
		gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
		t.Log("repaired:", what)
	}
	// The test spoils the record once more, while the rotation is possible.
	release := hold(t, server, p, sidecar)
	before := rig.Until(t, p, "provisioned", (*tenant.Record).Provisioned)
	content, err = before.Encode()
	require.NoError(t, err, "keeping the record")
	patch(t, p, dataOf("{}"))
	failing(t, sidecar, "read")
	release()
	failing(t, sidecar, "stage")
	accepts(t, before)
	if strings.Contains(sidecar.Log(), before.Slots[before.Active].Password.Reveal()) {
		t.Error("the log holds a password")
	}
	patch(t, p, dataOf(string(content)))
	rig.Until(t, p, "generation 2", generation(2))
	handsOver(t, p, server)
	gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
}

// TestMetadataEdited: B11, an operator who edits labels and annotations of the record's Secret, or adds other keys,
// changes nothing: the sidecar does not rotate, writes no file, and logs nothing.
func TestMetadataEdited(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	sidecar := rig.Sidecar(t, p, hourly...)
	gauge(t, sidecar, "dbconnector_credential_generation", 1)
	before := rig.Until(t, p, "provisioned", (*tenant.Record).Provisioned)
	files, logged := stat(t, p.Out), sidecar.Log()
	for i := range 5 {
		patch(t, p, map[string]any{"metadata": map[string]any{
			"labels":      map[string]any{"team": fmt.Sprint("t", i), "app.kubernetes.io/managed-by": nil},
			"annotations": map[string]any{"note": fmt.Sprint(i)},
		}})
	}
	patch(t, p, map[string]any{"stringData": map[string]any{"mine": "1"}})
	if r, err := p.Record(t.Context()); err != nil || r.Generation != 1 || r.Pending != nil || r.Slots[r.Active] != before.Slots[before.Active] {
		t.Errorf("the record changed: %+v, %v", r, err)
	}
	// A watch keeps the order: when the sidecar has seen this change, it has seen all earlier ones.
	at := before.RotatedAt.Add(time.Second)
	edit(t, p, func(r *tenant.Record) { r.RotatedAt = at })
	gauge(t, sidecar, "dbconnector_credential_rotated_timestamp_seconds", float64(at.Unix()))
	if now := stat(t, p.Out); now != files {
		t.Errorf("the hand-over was written:\n%s\nbefore:\n%s", now, files)
	}
	if now := sidecar.Log(); now != logged {
		t.Errorf("the sidecar logged it:\n%s", strings.TrimPrefix(now, logged))
	}
	accepts(t, before)
	works(t, p, server)
}

// stat describes the files of a directory. A replaced file has another inode.
func stat(tb testing.TB, dir string) string {
	tb.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(tb, err, "reading a directory")
	var all strings.Builder
	for _, entry := range entries {
		info, err := entry.Info()
		require.NoError(tb, err, "reading a directory")
		fmt.Fprintf(&all, "%s %s %s %v\n", info.Name(), info.Mode(), info.ModTime(), info.Sys())
	}
	return all.String()
}

// TestRecordOfAnotherNamespace: a record that was written for another namespace of this name is a copy in another
// cluster, or has outlived its namespace (F2). No sidecar rotates it and init refuses it. Both go on when an operator
// has taken it over for this namespace. A restore in place needs no operator.
func TestRecordOfAnotherNamespace(t *testing.T) {
	t.Parallel()
	c := rig.Host(t)
	p, _ := plane(t, c)
	replace := func(namespaceUID string) { // the Secret as a restore brings it
		t.Helper()
		var secret map[string]any
		require.NoError(t, c.API.Do(t.Context(), http.MethodGet, secretPath(p), nil, &secret), "reading the record's Secret")
		meta, _ := secret["metadata"].(map[string]any)
		annotations, _ := meta["annotations"].(map[string]any)
		if annotations["dbconnector/namespace-uid"] != c.UID || annotations["dbconnector/secret-uid"] != meta["uid"] {
			t.Fatalf("the record carries %v, its Secret is %v in a namespace that is %s", annotations, meta["uid"], c.UID)
		}
		annotations["dbconnector/namespace-uid"] = namespaceUID
		delete(meta, "resourceVersion")
		delete(meta, "uid")
		require.NoError(t, c.API.Do(t.Context(), http.MethodDelete, secretPath(p), nil, nil), "deleting the record's Secret")
		require.NoError(t, c.API.Do(t.Context(), http.MethodPost, filepath.Dir(secretPath(p)), secret, nil), "restoring the record's Secret")
	}
	due(t, p)
	copied := rig.Until(t, p, "provisioned", (*tenant.Record).Provisioned)
	replace("99999999-0000-4000-8000-000000000000")

	sidecar := rig.Sidecar(t, p, hourly...)
	failing(t, sidecar, "read")
	command := "kubectl --namespace " + rig.Namespace + " annotate --overwrite secret dbconnector-" + p.Name + " dbconnector/namespace-uid=" + c.UID
	if log := sidecar.Log(); !strings.Contains(log, command) {
		t.Errorf("the sidecar does not say what to do:\n%s", log)
	}
	result, err := p.Run(t.Context())
	require.NoError(t, err, "dbconnector-init")
	if result.Exit != 2 || !strings.Contains(result.Log, command) {
		t.Errorf("exit code %d, want 2, and the command:\n%s", result.Exit, result.Log)
	}
	if r, err := p.Record(t.Context()); err != nil || r.Generation != copied.Generation || r.Pending != nil {
		t.Errorf("the copy was changed: %+v, %v", r, err)
	}
	accepts(t, copied)

	patch(t, p, map[string]any{"metadata": map[string]any{"annotations": map[string]any{"dbconnector/namespace-uid": c.UID}}})
	rig.Until(t, p, "generation 2", generation(2))
	rig.Provision(t, p)
	replace(c.UID)
	rig.Provision(t, p)
	replace(c.UID) // replace also checks the notes of the previous start
	gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
}

// TestRecordOfAnother: another vCluster's record is in place of the right one, as after a restore into the wrong place.
// The sidecar changes no password of either vCluster, and hands nothing of it over.
func TestRecordOfAnother(t *testing.T) {
	t.Parallel()
	c := rig.Host(t)
	p, server := plane(t, c)
	other := rig.NewKubeTenant(t, c, server)

	sidecar := rig.Sidecar(t, p, hourly...)
	release := hold(t, server, p, sidecar)
	files := stat(t, p.Out)
	mine := rig.Until(t, p, "provisioned", (*tenant.Record).Provisioned)
	theirs := rig.Until(t, other, "provisioned", (*tenant.Record).Provisioned)
	copied := theirs.Clone()
	copied.RotatedAt = copied.RotatedAt.Add(-2 * period) // it is due, and its slots are free
	content, err := copied.Encode()
	require.NoError(t, err, "copying the record")
	patch(t, p, dataOf(string(content)))
	release()
	failing(t, sidecar, "read")
	if log := sidecar.Log(); !strings.Contains(log, `the record was made for vCluster \"`+other.Name) {
		t.Errorf("the sidecar does not say which vCluster the record belongs to:\n%s", log)
	}
	accepts(t, mine)
	accepts(t, theirs)
	if now := stat(t, p.Out); now != files {
		t.Errorf("the hand-over was written:\n%s\nbefore:\n%s", now, files)
	}
	if r, err := p.Record(t.Context()); err != nil || r.Pending != nil || r.Generation != copied.Generation || r.UID != theirs.UID {
		t.Errorf("the copy was changed: %+v, %v", r, err)
	}
	ready(t, sidecar)

	content, err = mine.Encode()
	require.NoError(t, err, "putting the record back")
	patch(t, p, dataOf(string(content)))
	rig.Until(t, p, "generation 2", generation(2))
	handsOver(t, p, server)
	gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
	accepts(t, theirs)
}

// nudge makes a change without meaning in the record. A sidecar that has failed a few times for lack of a right looks
// again only every few minutes, but it looks at a changed record at once.
func nudge(tb testing.TB, p *rig.Tenant) {
	tb.Helper()
	edit(tb, p, func(r *tenant.Record) { r.ConnectionLimit++ })
}

// TestPermissionWithdrawn: a running sidecar loses the right to write the record, and gets it back.
func TestPermissionWithdrawn(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	readOnly := object{"apiGroups": []string{""}, "resources": []string{"secrets"}, "verbs": []string{"get", "list", "watch"}}
	// The missing right to make Events of its pod is no failure.
	sidecar := rig.Sidecar(t, account(t, p, chartRules...), append([]string{"POD_NAME=pod", "POD_UID=1"}, hourly...)...)
	release := hold(t, server, p, sidecar)
	before := rig.Until(t, p, "provisioned", (*tenant.Record).Provisioned)
	record := "dbconnector-" + p.Name
	grant(t, p, "update", "", "secrets", record, false, readOnly)
	release()
	failing(t, sidecar, "stage")
	want := fmt.Sprintf(
		`an RBAC rule is missing, verb \"update\" on resource \"secrets\" named \"%s\" in namespace \"%s\"`,
		record, rig.Namespace,
	)
	if !strings.Contains(sidecar.Log(), want) {
		t.Errorf("the sidecar does not say what is missing:\n%s", sidecar.Log())
	}
	ready(t, sidecar)
	works(t, p, server)
	accepts(t, before)
	if r, err := p.Record(t.Context()); err != nil || r.Generation != before.Generation || r.Pending != nil {
		t.Errorf("got %+v, %v", r, err)
	}
	grant(t, p, "update", "", "secrets", record, true, chartRules...)
	nudge(t, p)
	rig.Until(t, p, "generation 2", generation(2))
	handsOver(t, p, server)
	gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
}

// lastLine is the last line of a sidecar's log, which the kubelet shows as the termination message.
func lastLine(tb testing.TB, s *rig.Process) (line map[string]any) {
	tb.Helper()
	log := strings.TrimSpace(s.Log())
	if err := json.Unmarshal([]byte(log[strings.LastIndexByte(log, '\n')+1:]), &line); err != nil {
		tb.Fatalf("the last line: %v\n%s", err, log)
	}
	return line
}

// stops asks a sidecar to end. This is no failure, whatever the sidecar does at that moment.
func stops(tb testing.TB, s *rig.Process) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), rig.Patience)
	defer cancel()
	exit, err := s.Stop(ctx)
	if err != nil || exit != 0 {
		tb.Errorf("exit code %d, %v", exit, err)
	}
	if last := lastLine(tb, s); last["msg"] != "stopped" || last["level"] != "info" {
		tb.Errorf("the last line is %v", last)
	}
}

// TestStop: SIGTERM at any time ends the sidecar cleanly, and the next one goes on.
func TestStop(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	through, proxy := behind(t, p)

	starting := rig.Sidecar(t, through, hourly...)
	bed.Eventually(t, rig.Patience, func(context.Context) error {
		if starting.Log() == "" {
			return errors.New("the sidecar has not begun")
		}
		return nil
	})
	stops(t, starting)

	proxy.Refuse()
	proxy.Cut()
	waiting := rig.Sidecar(t, through, hourly...)
	waits(t, waiting, 1)
	stops(t, waiting)
	require.NoError(t, proxy.Accept(), "ending the outage")

	idle := rig.Sidecar(t, through, hourly...)
	gauge(t, idle, "dbconnector_credential_generation", 1)
	stops(t, idle)

	postponed := rig.Sidecar(t, through, hourly...)
	release := hold(t, server, p, postponed)
	stops(t, postponed)
	release()

	// The test sends the signal at the answer to the n-th question to the API server, which reaches the sidecar after the
	// signal.
	for n := 1; ; n++ {
		asked := make(chan struct{})
		working := rig.Sidecar(t, through, hourly...)
		proxy.KillAfter(n, func() {
			defer close(asked)
			working.Terminate() // the test may have stopped it below already, and it asks once more before it ends
		})
		done := false
		bed.Eventually(t, rig.Patience, func(ctx context.Context) error {
			select {
			case <-asked:
				return nil
			default:
			}
			metrics, err := working.Metrics(ctx)
			if done = err == nil && metrics[`dbconnector_postponed{reason="NotAdopted"}`] == 1; done {
				return nil // it has rotated, and waits for the control plane
			}
			return fmt.Errorf("neither stopped at question %d nor done: %w", n, err)
		})
		stops(t, working)
		r, err := p.Record(t.Context())
		require.NoError(t, err, "reading the record")
		t.Logf("question %d: generation %d, pending: %t", n, r.Generation, r.Pending != nil)
		if done {
			if n < 4 { // read, watched, staged, committed
				t.Errorf("stopped at %d questions only", n-1)
			}
			break
		}
	}
	rig.Until(t, p, "generation 2", generation(2))
	handsOver(t, p, server)
}

// TestExitCodes: a fault that a human must fix ends the sidecar with 2, and one that may pass with 1. The last line
// describes the fault.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err, "taking a port")
	t.Cleanup(func() { taken.Close() })
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600), "writing a file")
	for _, test := range []struct {
		name, setting string
		exit          int
		want          string
	}{
		{"period", "ROTATION_PERIOD=1s", 2, `DBCONNECTOR_ROTATION_PERIOD="1s": must be a duration from 2s`},
		{"grace", "GRACE=31d", 2, `DBCONNECTOR_GRACE="31d": `},
		{"adoption", "ADOPT=rollout", 2, `DBCONNECTOR_ADOPT="rollout": must be none or socket where DBCONNECTOR_STATE_DIR is set`},
		{"no hand-over", "OUTPUT_DIR=/nowhere", 2, `DBCONNECTOR_OUTPUT_DIR="/nowhere": must be a directory that exists`},
		{"no directory", "OUTPUT_DIR=" + file, 2, `DBCONNECTOR_OUTPUT_DIR="` + file + `": must be a directory that exists`},
		{"no config", "VCLUSTER_CONFIG=/nowhere", 2, `reading the vCluster's config (DBCONNECTOR_VCLUSTER_CONFIG): open /nowhere: no such file`},
		{"no state", "STATE_DIR=" + file, 2, "creating the state directory: DBCONNECTOR_STATE_DIR="},
		{"address", "HTTP_ADDRESS=nowhere", 2, `DBCONNECTOR_HTTP_ADDRESS="nowhere": must be an address to listen on`},
		{"port taken", "HTTP_ADDRESS=" + taken.Addr().String(), 1, `DBCONNECTOR_HTTP_ADDRESS="` + taken.Addr().String() + `": listen tcp`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			p := &rig.Tenant{Name: "t", Out: dir, State: filepath.Join(dir, "state"), ConnectorDir: dir}
			sidecar := rig.Sidecar(t, p, test.setting)
			select {
			case <-sidecar.Done():
			case <-time.After(rig.Patience):
				t.Fatal("the sidecar does not end")
			}
			last := lastLine(t, sidecar)
			said, _ := last["error"].(string)
			if sidecar.Exit() != test.exit || last["exitCode"] != float64(test.exit) ||
				last["level"] != "error" || last["msg"] != "rotate failed" || !strings.Contains(said, test.want) {
				t.Errorf("exit code %d, want %d with %q; the last line is %v", sidecar.Exit(), test.exit, test.want, last)
			}
			if len(sidecar.Lines("rotate failed")) != 1 {
				t.Errorf("the sidecar says so more than once:\n%s", sidecar.Log())
			}
		})
	}
}
