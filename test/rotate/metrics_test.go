// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// secrets are all passwords that a record holds.
func secrets(r *tenant.Record) []string {
	list := []string{r.Slots[tenant.A].Password.Reveal(), r.Slots[tenant.B].Password.Reveal()}
	if r.Pending != nil {
		list = append(list, r.Pending.Password.Reveal())
	}
	return list
}

// holds says which of some words a text holds.
func holds(text string, words []string) (found []string) {
	for _, word := range words {
		if word != "" && strings.Contains(text, word) {
			found = append(found, word)
		}
	}
	return found
}

// TestEndpoints requests the paths that a kubelet and Prometheus use. No request makes a connection to the database,
// and no metric names the tenant.
func TestEndpoints(t *testing.T) {
	t.Parallel()
	for _, s := range []struct {
		engine  bed.Engine
		version string
	}{{bed.Postgres, "17"}, {bed.MySQL, "9.7"}} {
		t.Run(string(s.engine)+"-"+s.version, func(t *testing.T) {
			t.Parallel()
			server := bed.NewServer(t, s.engine, s.version, bed.Options{LogStatements: true})
			p := rig.NewTenant(t, server, "")
			sidecar := rig.Sidecar(t, p, hourly...)
			gauge(t, sidecar, "dbconnector_credential_generation", 1)
			r := rig.Until(t, p, "provisioned", (*tenant.Record).Provisioned)
			before, err := server.Connections()
			require.NoError(t, err, "counting connections")
			var body string
			for range 50 {
				ready(t, sidecar)
				var status int
				if status, body, err = sidecar.Get(t.Context(), "/metrics"); err != nil || status != http.StatusOK {
					t.Fatalf("/metrics answers %d, %v", status, err)
				}
			}
			after, err := server.Connections()
			require.NoError(t, err, "counting connections")
			if before == 0 || after != before {
				t.Errorf("%d connections before, %d after", before, after)
			}
			whose := append(secrets(r), p.Name, r.Database, r.Server.Host, fmt.Sprint(r.Server.Port), r.Namespace)
			for line := range strings.Lines(body) {
				if !strings.HasPrefix(line, "dbconnector_") {
					continue
				}
				if found := holds(line, whose); len(found) > 0 && !strings.Contains(line, "_seconds ") { // a time may hold any digits
					t.Errorf("a metric names the tenant, %q: %s", found, line)
				}
			}
		})
	}
}

// TestNotReady: a sidecar without a hand-over and without a record is alive and not ready. It becomes ready as soon as
// there is one.
func TestNotReady(t *testing.T) {
	t.Parallel()
	server := rig.Server(t, bed.Postgres, "17")
	made := rig.NewTenant(t, server, "")
	later := *made
	later.Out, later.State = filepath.Join(t.TempDir(), "out"), filepath.Join(t.TempDir(), "state")
	require.NoError(t, os.Mkdir(later.Out, 0o755), "making a directory")
	sidecar := rig.Sidecar(t, &later, hourly...)
	for path, want := range map[string]int{"/healthz": http.StatusOK, "/readyz": http.StatusServiceUnavailable, "/metrics": http.StatusOK} {
		if status, body, err := sidecar.Get(t.Context(), path); err != nil || status != want {
			t.Errorf("%s answers %d %q, %v; want %d", path, status, body, err, want)
		}
	}
	data, err := os.ReadFile(filepath.Join(made.State, "record.json"))
	require.NoError(t, err, "reading the record")
	require.NoError(t, os.WriteFile(filepath.Join(later.State, "record.json.new"), data, 0o600), "writing the record")
	require.NoError(t, os.Rename(filepath.Join(later.State, "record.json.new"), filepath.Join(later.State, "record.json")), "writing the record")
	bed.Eventually(t, rig.Patience, func(ctx context.Context) error {
		status, _, err := sidecar.Get(ctx, "/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("/readyz answers %d", status)
		}
		return err
	})
	works(t, &later, server)
}

// counter stands before an API server and notes the requests to it.
type counter struct {
	mu       sync.Mutex
	requests []string
	agent    string            // of the last request
	then     func(what string) // is called before the request is passed on
}

func (c *counter) list() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

// counted puts a counter between an API server and the sidecars of a tenant.
func counted(tb testing.TB, p *rig.Tenant) (*rig.Tenant, *counter) {
	tb.Helper()
	c := &counter{}
	proxy := p.Cluster.API.NewProxy(tb, func(pass http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			what := r.Method + " " + r.URL.Path
			if r.URL.Query().Get("watch") != "" {
				what = "WATCH " + r.URL.Path + " for " + r.URL.Query().Get("timeoutSeconds") + "s"
			}
			c.mu.Lock()
			c.requests, c.agent = append(c.requests, what), r.UserAgent()
			if c.then != nil {
				c.then(what)
			}
			c.mu.Unlock()
			pass.ServeHTTP(w, r)
		})
	})
	through := *p
	through.Kubeconfig = proxy.Kubeconfig
	return &through, c
}

// TestVersionOfRotate: the sidecar names its build in its first line and in a metric, and the API server sees it. (F30)
func TestVersionOfRotate(t *testing.T) {
	t.Parallel()
	p, _ := plane(t, rig.Host(t))
	through, counter := counted(t, p)
	sidecar := rig.Sidecar(t, through, hourly...)
	gauge(t, sidecar, "dbconnector_credential_generation", 1)
	answer, err := exec.CommandContext(t.Context(), rig.Rotate, "-version").Output()
	require.NoError(t, err, "asking for the version")
	said := strings.Fields(string(answer)) // program, version, compiler
	gauge(t, sidecar, fmt.Sprintf("dbconnector_build_info{goversion=%q,version=%q}", said[2], said[1]), 1)
	counter.mu.Lock()
	agent := counter.agent
	counter.mu.Unlock()
	if want := said[0] + "/" + said[1]; agent != want {
		t.Errorf("the API server sees %q, want %q", agent, want)
	}
	var first map[string]any
	line, _, _ := strings.Cut(sidecar.Log(), "\n")
	require.NoError(t, json.Unmarshal([]byte(line), &first), "reading the first line")
	if first["msg"] != "starting" || first["version"] != said[1] {
		t.Errorf("the first line is %s, want the version %s", line, said[1])
	}
}

// TestIdle: while nothing is due, the sidecar has no connection to the database, and asks the API server only for the
// record: it reads it and watches it. Changes come over the watch. A watch lasts 55 minutes, so the sidecar sends two
// requests in that time and a few seconds.
func TestIdle(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	through, counter := counted(t, p)
	sidecar := rig.Sidecar(t, through, append([]string{"ADOPT=rollout"}, hourly...)...)
	gauge(t, sidecar, "dbconnector_credential_generation", 1)
	want := []string{"GET /api/v1/namespaces/tenants/secrets", "WATCH /api/v1/namespaces/tenants/secrets for 3300s"}
	bed.Eventually(t, rig.Patience, func(context.Context) error {
		if got := counter.list(); len(got) < len(want) {
			return fmt.Errorf("asked %q", got)
		}
		return nil
	})
	for i := range 10 {
		edit(t, p, func(r *tenant.Record) { r.Generation++ })
		gauge(t, sidecar, "dbconnector_credential_generation", float64(i)+2)
		ready(t, sidecar)
		patch(t, p, map[string]any{"metadata": map[string]any{"annotations": map[string]any{"note": fmt.Sprint(i)}}})
	}
	if got := counter.list(); !slices.Equal(got, want) {
		t.Errorf("asked %q, want %q", got, want)
	}
	n, err := server.Sessions(t.Context(), p.Names().Database+"%")
	if err != nil || n != 0 {
		t.Errorf("%d connections to the database, %v", n, err)
	}
}

// event is an Event as the API server keeps it.
type event struct {
	Type, Reason, Message string
	Metadata              struct{ ResourceVersion string }
	InvolvedObject        struct{ APIVersion, Kind, Namespace, Name, UID string }
	Source                struct{ Component string }
	Count                 int
	FirstTimestamp        time.Time
}

// events waits for the Events about a pod, "Warning Failed x2" for one that has occurred twice, and returns them in the
// order of their last writes.
func events(tb testing.TB, p *rig.Tenant, pod string, want ...string) (list []event) {
	tb.Helper()
	path := "/api/v1/namespaces/" + rig.Namespace + "/events?fieldSelector=" + url.QueryEscape("involvedObject.name="+pod)
	bed.Eventually(tb, rig.Patience, func(ctx context.Context) error {
		var all struct{ Items []event }
		if err := p.Cluster.API.Do(ctx, http.MethodGet, path, nil, &all); err != nil {
			return err
		}
		list = all.Items
		slices.SortFunc(list, func(a, b event) int {
			x, _ := strconv.Atoi(a.Metadata.ResourceVersion)
			y, _ := strconv.Atoi(b.Metadata.ResourceVersion)
			return x - y
		})
		var got []string
		for _, e := range list {
			got = append(got, e.Type+" "+e.Reason)
			if e.Count != 1 {
				got[len(got)-1] += fmt.Sprintf(" x%d", e.Count)
			}
		}
		switch {
		case slices.Equal(got, want):
			return nil
		case len(got) > len(want):
			return bed.Permanent(fmt.Errorf("the Events are %q, want %q:\n%+v", got, want, list))
		}
		return fmt.Errorf("the Events are %q, want %q", got, want)
	})
	return list
}

// TestEvents: an operator who describes the pod reads each change once for each state (B2), and no secret (B18).
func TestEvents(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	pod, uid := p.Name+"-0", "8f1a6a2e-0000-4000-8000-000000000000"
	as := account(t, p, append([]object{eventRule}, chartRules...)...)
	sidecar := rig.Sidecar(t, as, append([]string{"POD_NAME=" + pod, "POD_UID=" + uid}, hourly...)...)
	var words []string
	record := func(what string, has func(*tenant.Record) bool) *tenant.Record {
		t.Helper()
		r := rig.Until(t, p, what, has)
		words = append(words, secrets(r)...)
		return r
	}
	first := record("provisioned", (*tenant.Record).Provisioned)
	leave := session(t, server, first.Login(first.Active))
	due(t, p)
	want := []string{"Normal Rotated", "Warning Postponed"}
	events(t, p, pod, want...)
	leave()
	gauge(t, sidecar, `dbconnector_postponed{reason="NotAdopted"}`, 1) // the same to a reader of Events
	rotated := record("generation 2", generation(2))
	session(t, server, rotated.Login(rotated.Active))
	want = append(want, "Normal Retired")
	events(t, p, pod, want...)
	content, err := record("retired", func(r *tenant.Record) bool { return r.OtherRetired && r.Pending == nil }).Encode()
	require.NoError(t, err, "keeping the record")
	for range 2 {
		for n := range 3 { // trouble that lasts is one Event
			metrics, err := sidecar.Metrics(t.Context())
			require.NoError(t, err, "reading metrics")
			const series = `dbconnector_failures_total{step="read"}`
			patch(t, p, dataOf(fmt.Sprintf(`{"version":%d,"slots":"%s"}`, n+2, words[0])))
			metric(t, sidecar, series, "grows", func(v float64) bool { return v > metrics[series] })
		}
		patch(t, p, dataOf(string(content)))
		gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
	}
	list := events(t, p, pod, append(want, "Warning Failed x2")...)
	for _, e := range list {
		about := e.InvolvedObject
		if about.APIVersion != "v1" || about.Kind != "Pod" ||
			about.Namespace != rig.Namespace || about.UID != uid ||
			e.Source.Component != "dbconnector-rotate" || e.FirstTimestamp.IsZero() {
			t.Errorf("got %+v", e)
		}
		if found := holds(e.Message, words); len(found) > 0 {
			t.Errorf("an Event holds a password: %s", e.Message)
		}
	}
	for i, text := range []string{
		"the active login is now " + rotated.Login(rotated.Active).User, "OldCredentialInUse: login " + first.Login(first.Active).User + " is still in use",
		"login " + rotated.Login(rotated.Active.Other()).User, `reading the record failed: secret tenants/dbconnector-` + p.Name + `: key "record.json": `,
	} {
		if !strings.Contains(list[i].Message, text) {
			t.Errorf("the Event %s says %q, want %q", list[i].Reason, list[i].Message, text)
		}
	}
	if found := holds(sidecar.Log(), words); len(found) > 0 {
		t.Errorf("the log holds a password:\n%s", sidecar.Log())
	}
	if _, body, err := sidecar.Get(t.Context(), "/metrics"); err != nil || len(holds(body, words)) > 0 {
		t.Errorf("the metrics hold a password, %v:\n%s", err, body)
	}
}

// TestLastEvents: a sidecar that is asked to end while it writes the record still reports what it did, because no other
// program would.
func TestLastEvents(t *testing.T) {
	t.Parallel()
	p, _ := plane(t, rig.Host(t))
	through, counter := counted(t, p)
	pod := p.Name + "-0"
	due(t, p)
	started, writes := make(chan *rig.Process, 1), 0
	counter.then = func(what string) {
		if strings.HasPrefix(what, "PUT ") {
			writes++
		}
		if writes == 2 { // staged, committed
			(<-started).Terminate()
			counter.then = nil
		}
	}
	sidecar := rig.Sidecar(t, through, append([]string{"POD_NAME=" + pod, "POD_UID=1"}, hourly...)...)
	started <- sidecar
	rig.Until(t, p, "generation 2", generation(2))
	stops(t, sidecar)
	events(t, p, pod, "Normal Rotated")
}
