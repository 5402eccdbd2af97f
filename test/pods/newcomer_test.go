// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"dbconnector/test/bed"
)

// TestNewcomer does what the README says: the shipped connector, Roles and values make a vCluster whose data is on the
// server, in a database of its own.
func TestNewcomer(t *testing.T) {
	for _, test := range []struct {
		connector string
		engine    bed.Engine
		version   string
		exists    string // counts a database
	}{
		{"postgres", bed.Postgres, "17", "SELECT count(*) FROM pg_catalog.pg_database WHERE datname = $1"},
		{"mysql", bed.MySQL, "9.7", "SELECT count(*) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = ?"},
	} {
		t.Run(test.connector, func(t *testing.T) {
			c := newCluster(t)
			lap := stopwatch(t)
			server := newServer(t, c, test.engine, test.version, test.connector, test.connector)
			lap("server")
			v := install(t, c, "open-source", Names{Release: "team-a", Namespace: "newcomer-" + test.connector, Connector: test.connector}, nil)
			lap("installed")
			ready(t, v)
			lap("ready")
			mustWrite(t, v, "mine")
			written(t, v, "mine")
			name := record(t, v).Database
			if n, err := server.Query(t.Context(), "", test.exists, name); err != nil || n != "1" {
				t.Errorf("the server has %q databases %q, %v", n, name, err)
			}
			if n, err := server.Query(t.Context(), name, "SELECT count(*) FROM kine WHERE name = '/registry/configmaps/default/mine'"); err != nil || n != "1" {
				t.Errorf("the object is %q times in the database, %v", n, err)
			}
			lap("object written")
			if got, err := events(t.Context(), v); err != nil || !strings.Contains(got, "Provisioned") {
				t.Errorf("no Event says that the tenant was provisioned: %v\n%s", err, got)
			}
			// The sidecar runs beside the control plane, as long as it does.
			pod, err := onePod(t.Context(), v)
			require.NoError(t, err)
			if s := containerOf(pod, "dbconnector-rotate"); !s.Ready || s.State.Running == nil || s.RestartCount > 0 {
				t.Errorf("the sidecar: ready %v, %d restarts, %s", s.Ready, s.RestartCount, state(s.State))
			}
			if got := cliStatus(pod); got != "Running" { // F21
				t.Errorf("for the vCluster CLI the pod is %q", got)
			}
		})
	}
}

// describe shows the output that an operator would look at.
func describe(t *testing.T, v *VCluster) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // the test's own has ended
	defer cancel()
	pods, err := v.Pods(ctx)
	assert.NoError(t, err)
	for _, pod := range pods {
		for _, s := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
			t.Logf("%s %s: %d restarts, %s; before, %s", pod.Name, s.Name, s.RestartCount, state(s.State), state(s.LastTerminationState))
			if !s.Ready && s.State.Terminated == nil {
				log, _ := v.c.Kubectl(ctx, "", "logs", "--namespace", v.Namespace, pod.Name, "--container", s.Name, "--tail=20",
					"--previous="+strconv.FormatBool(s.LastTerminationState.Terminated != nil))
				t.Logf("its log:\n%s", log)
			}
		}
	}
	events, err := v.c.Kubectl(ctx, "", "get", "events", "--namespace", v.Namespace)
	t.Logf("events: %v\n%s", err, events)
}

func state(s corev1.ContainerState) string {
	switch {
	case s.Waiting != nil:
		return fmt.Sprintf("waiting: %s %s", s.Waiting.Reason, s.Waiting.Message)
	case s.Terminated != nil:
		return fmt.Sprintf("ended with %d: %s", s.Terminated.ExitCode, s.Terminated.Message)
	case s.Running != nil:
		return "running"
	}
	return "nothing"
}
