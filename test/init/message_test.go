// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// TestUnresolvedName: init waits for a name that does not resolve, and names the key that it comes from. (F17)
func TestUnresolvedName(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"postgres", "mysql"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, nil)
			s.connector["type"], s.connector["endpoint"] = engine, "no-such-name.invalid"
			s.env["DBCONNECTOR_TIMEOUT"] = "5s"
			o := s.run(t)
			o.refused(t, 1, `the server's name "no-such-name.invalid" (the connector's key "endpoint") does not resolve: `)
			if !o.said("waiting", "no-such-name.invalid") {
				t.Errorf("init did not wait for it:\n%s", o.stderr)
			}
		})
	}
}

// TestTerminationMessage: the kubelet's file holds the reason and nothing else, for each program; a run that goes well leaves it
// empty. (F36)
func TestTerminationMessage(t *testing.T) {
	t.Parallel()
	base := dir(t)
	file := filepath.Join(base, "termination-log")
	for _, name := range []string{"init", "rotate"} {
		binary := filepath.Join(base, name)
		require.NoError(t, bed.Build(t.Context(), binary, "cmd/"+name, "-X dbconnector/pkg/logging.terminationLog="+file))
		write(t, file, "of the run before")
		refused := exec.CommandContext(t.Context(), binary)
		refused.Env = []string{"DBCONNECTOR_STATE_DIR=relative"}
		if err := refused.Run(); refused.ProcessState.ExitCode() != 2 {
			t.Fatalf("%s: %v", name, err)
		}
		const want = `environment: `
		if got := read(t, file); len(got) < len(want) || got[:len(want)] != want {
			t.Errorf("%s: got %q, want %q and the reason", name, got, want)
		}
	}
	s := newSite(t, postgres.Get(t))
	s.writeConnector(t)
	write(t, file, "")
	well := exec.CommandContext(t.Context(), filepath.Join(base, "init"))
	for name, value := range s.env {
		well.Env = append(well.Env, name+"="+value)
	}
	if out, err := well.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := read(t, file); got != "" {
		t.Errorf("a run that went well left %q", got)
	}
}

// TestWaitingIsSaid: the server is down. An operator who looks at the pod sees what init waits for and until when. One
// Event says so, with the number of times, however often the kubelet starts the container. A run that the server
// answers at once makes no such Event. With an older Role, which lacks the right to patch Events, there is one Event
// for each run. (F35)
func TestWaitingIsSaid(t *testing.T) {
	t.Parallel()
	c := connectorFor(postgres.Get(t))
	c["port"] = closedPort(t)
	v := newVCluster(t, postgres.Get(t), c)
	v.env["DBCONNECTOR_TIMEOUT"] = "8s"
	const mark = "; tried again until "
	until := ""
	for n := 1; n <= 3; n++ {
		if n == 3 { // an older Role
			role := "/apis/rbac.authorization.k8s.io/v1/namespaces/" + v.namespace + "/roles/dbconnector-" + v.release
			do(t, http.MethodPatch, role, object{"rules": []object{
				{"apiGroups": []string{""}, "resources": []string{"events"}, "verbs": []string{"create"}},
				{"apiGroups": []string{""}, "resources": []string{"namespaces"}, "resourceNames": []string{v.namespace}, "verbs": []string{"get"}},
			}}, nil)
			api := cluster(t)
			bed.Eventually(t, time.Minute, func(ctx context.Context) error { // Roles are known after a moment
				var review struct{ Status struct{ Allowed bool } }
				err := api.Do(ctx, http.MethodPost, "/apis/authorization.k8s.io/v1/subjectaccessreviews", object{"spec": object{
					"user":               "system:serviceaccount:" + v.namespace + ":vc-" + v.release,
					"resourceAttributes": object{"namespace": v.namespace, "resource": "events", "verb": "patch"},
				}}, &review)
				if err == nil && review.Status.Allowed {
					err = errors.New("init may still patch Events")
				}
				return err
			})
		}
		run(t, v.env).refused(t, 1, "gave up when the time limit was reached")
		reasons, text := v.events(t)
		if want := [][]string{
			1: {"Warning Failed", "Warning Waiting"},
			2: {"Warning Failed x2", "Warning Waiting x2"},
			3: {"Warning Failed", "Warning Failed x2", "Warning Waiting", "Warning Waiting x2"},
		}[n]; !slices.Equal(sorted(reasons), want) {
			t.Errorf("run %d: Events %q, want %q", n, reasons, want)
		}
		if !strings.Contains(text, "127.0.0.1:"+c["port"]) {
			t.Errorf("no Event says where the server should be:\n%s", text)
		}
		if _, now, _ := strings.Cut(text, mark); n < 3 {
			now, _, _ = strings.Cut(now, "\n")
			if _, err := time.Parse(time.RFC3339, now); err != nil || now <= until {
				t.Errorf("run %d: the Event says %q after %q, want the end of this run", n, now, until)
			}
			until = now
		}
	}
	v.setConnector(t, connectorFor(postgres.Get(t)))
	v.env["DBCONNECTOR_TIMEOUT"] = "60s"
	run(t, v.env).succeeded(t)
	if reasons, _ := v.events(t); len(reasons) != 5 {
		t.Errorf("Events %q, want one more for what was done", reasons)
	}
}

// TestProxyInThePod: the endpoint is a proxy in the pod itself, which does not run yet. The Event and the log explain
// it, and init goes on as soon as the proxy is up (F23).
func TestProxyInThePod(t *testing.T) {
	t.Parallel()
	for name, server := range map[string]*rig.Shared{"PostgreSQL": postgres, "MySQL": mysql} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := connectorFor(server.Get(t))
			proxy := bed.NewProxy(t, net.JoinHostPort(c["endpoint"], c["port"]))
			proxy.Refuse()
			c["port"] = strconv.Itoa(proxy.Port())
			v := prepared(t, server.Get(t), c)
			v.env["DBCONNECTOR_TIMEOUT"] = "60s"
			init := start(t, v.env)
			const hint = "connection refused: the address is this pod itself, " +
				"and a proxy that runs as an ordinary container starts after init: run it as a native sidecar"
			bed.Eventually(t, 30*time.Second, func(context.Context) error {
				if _, text := v.events(t); !strings.Contains(text, hint) { //nolint:contextcheck // it has a context of its own
					return fmt.Errorf("no Event says %q:\n%s", hint, text)
				}
				return nil
			})
			require.NoError(t, proxy.Accept())
			out := init.wait(t)
			out.succeeded(t)
			if !strings.Contains(out.stderr, hint) {
				t.Errorf("the log does not say %q:\n%s", hint, out.stderr)
			}
		})
	}
}

// TestLogFileIsToldOf: vCluster's log file would hold the password. init says so before anything else (F28).
func TestLogFileIsToldOf(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.connector["user"] = "" // ends the run
	config("controlPlane: {backingStore: {database: {embedded: {enabled: true}}}}\nlogging: {file: {enabled: true}}")(t, s)
	o := s.run(t)
	o.refused(t, 2, `"user"`)
	if !o.said("configuration warning", "logging.file.enabled is true") {
		t.Errorf("no warning:\n%s", o.stderr)
	}
}
