// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
			options, err := c.Options()
			if err != nil {
				t.Fatal(err)
			}
			server := bed.NewServer(t, test.engine, test.version, options)
			user, password, err := server.CloudAdmin(t.Context(), "platform")
			if err != nil {
				t.Fatal(err)
			}
			lap("server")
			if err := c.Connect(t.Context(), test.connector, server, user, password); err != nil {
				t.Fatal(err)
			}
			values, err := c.Values("open-source")
			if err != nil {
				t.Fatal(err)
			}
			names := Names{Release: "team-a", Namespace: "newcomer-" + test.connector, Connector: test.connector}
			values.SetEnv("DBCONNECTOR_CONNECTOR", test.connector)
			v, err := c.New(t.Context(), "open-source", names, values)
			if err != nil {
				t.Fatal(err)
			}
			lap("installed")
			t.Cleanup(func() {
				if t.Failed() {
					describe(t, v)
				}
			})
			if _, err := c.Kubectl(t.Context(), "", "rollout", "status", "--namespace", names.Namespace, "deployment/team-a", "--timeout="+patience.String()); err != nil {
				t.Fatal(err)
			}
			lap("ready")

			// A ready pod is not yet behind its Service, nor does a ready API server have its first namespace.
			bed.Eventually(t, patience, func(ctx context.Context) error {
				return v.Do(ctx, http.MethodGet, "/api/v1/namespaces/default", nil, nil)
			})
			const path = "/api/v1/namespaces/default/configmaps"
			object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Data: map[string]string{"key": "value"}}
			if err := v.Do(t.Context(), http.MethodPost, path, object, nil); err != nil {
				t.Fatal(err)
			}
			var got corev1.ConfigMap
			if err := v.Do(t.Context(), http.MethodGet, path+"/mine", nil, &got); err != nil || got.Data["key"] != "value" {
				t.Errorf("the vCluster has %v, %v", got.Data, err)
			}
			record, err := v.Record(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n, err := server.Query(t.Context(), "", test.exists, record["database"]); err != nil || n != "1" {
				t.Errorf("the server has %q databases %q, %v", n, record["database"], err)
			}
			if n, err := server.Query(t.Context(), record["database"], "SELECT count(*) FROM kine WHERE name = '/registry/configmaps/default/mine'"); err != nil || n != "1" {
				t.Errorf("the object is %q times in the database, %v", n, err)
			}
			lap("object written")
			events := kubectl(t, c, "get", "events", "--namespace", names.Namespace, "--output=custom-columns=R:.reason,O:.involvedObject.kind,M:.message")
			if !strings.Contains(events, "Provisioned") {
				t.Errorf("no Event says that the tenant was provisioned:\n%s", events)
			}
			// Without waiting for its end: room for the next one is all that matters.
			kubectl(t, c, "delete", "namespace", names.Namespace, "--wait=false")
		})
	}
}

// describe shows what an operator would look at.
func describe(t *testing.T, v *VCluster) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // the test's own has ended
	defer cancel()
	pods, err := v.Pods(ctx)
	if err != nil {
		t.Error(err)
	}
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
