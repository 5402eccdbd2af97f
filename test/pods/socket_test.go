// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"dbconnector/pkg/dbserver"
	"dbconnector/test/bed"
)

// socketMode sets what a test of socket mode needs.
func socketMode(values *Values) {
	values.SetEnv("DBCONNECTOR_ADOPT", "socket")
	values.SetEnv("DBCONNECTOR_GRACE", "1s")
	database := &values.ControlPlane.BackingStore.Database
	for _, store := range []map[string]any{database.Embedded, database.External} {
		if args, ok := store["extraArgs"].([]any); ok { // the shipped ten minutes are for a rotation once a month
			store["extraArgs"] = append(args, "--datastore-connection-max-lifetime=2s")
		}
	}
}

// TestSocketMode: three replicas whose control planes hold no password go through rotations. No pod is replaced, no container started
// again, no request fails, and a client that watches keeps its connection.
func TestSocketMode(t *testing.T) {
	t.Parallel()
	const rotations = 3
	lap := stopwatch(t)
	c := newCluster(t)
	server := newServer(t, c, bed.Postgres, "17", "postgres", "socket")
	values, err := c.NativeSidecar("licensed")
	require.NoError(t, err)
	v := installValues(t, c, "licensed", values, Names{Release: "team-c", Namespace: "socket", Connector: "socket"}, func(values *Values) {
		socketMode(values)
		values.SetEnv("DBCONNECTOR_ROTATION_PERIOD", "15s")
	})
	ready(t, v)
	before, err := v.Pods(t.Context())
	require.NoError(t, err)
	require.Len(t, before, 3)
	began := record(t, v)
	lap("three replicas")

	ctx, stop := context.WithCancel(t.Context())
	w := &writer{v: v}
	watched := make(chan error, 1)
	var clients sync.WaitGroup
	defer clients.Wait()
	defer stop()
	var seen sync.Map // names of objects
	looking, enough := context.WithCancel(t.Context())
	defer enough()
	watching := v.watch(looking, t)
	clients.Go(func() { watched <- watching(&seen) })
	clients.Go(func() { w.run(ctx) })
	w.goesOn(t, 0)

	passwords := map[dbserver.Password]bool{}
	bed.Eventually(t, patience, func(ctx context.Context) error {
		now, err := v.Record(ctx)
		if err != nil {
			return err
		}
		for slot := range now.Slots {
			passwords[now.Slots[slot].Password] = true
		}
		if past := now.Generation - began.Generation; past < rotations || past == rotations && !now.OtherRetired {
			return fmt.Errorf("%d rotations, the last password is retired: %t", past, now.OtherRetired)
		}
		return nil
	})
	lap(fmt.Sprintf("%d rotations", rotations))
	w.goesOn(t, w.acknowledged())
	select {
	case err := <-watched:
		t.Errorf("the watch ended: %v", err)
	default:
	}
	after, err := v.Pods(t.Context())
	require.NoError(t, err)
	names := map[string]bool{}
	for _, pod := range before {
		names[string(pod.UID)] = true
	}
	for _, pod := range after {
		assert.True(t, names[string(pod.UID)], "pod %s is another one", pod.Name)
		for _, s := range append(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses...) {
			assert.Zero(t, s.RestartCount, "restarts of %s in pod %s", s.Name, pod.Name)
		}
		log := kubectl(t, c, "logs", "--namespace", v.Namespace, pod.Name, "--all-containers")
		for password := range passwords {
			assert.NotContains(t, log, password.Reveal(), "the pod's log")
		}
	}
	assert.Len(t, after, len(before))
	for slot := range began.Slots {
		if login := began.Login(slot); !assert.Error(t, enters(t.Context(), server, login, login.Database)) {
			t.Errorf("the first password of login %s opens the database", login.User)
		}
	}
	stop()
	bed.Eventually(t, patience, func(context.Context) error {
		for n := range w.acknowledged() {
			if _, there := seen.Load(fmt.Sprintf("object-%d", n)); !there {
				return fmt.Errorf("the watch never saw object-%d", n)
			}
		}
		return nil
	})
	enough()
	clients.Wait()
	require.Error(t, <-watched, "the watch was ended")
	assert.Zero(t, w.cuts, "requests without an answer")
	w.lostNothing(t)
	lap("all objects are there")
}

// watch opens a watch on all objects, over one connection. The function that it returns reads it until ctx or the watch ends, and notes
// the names.
func (v *VCluster) watch(ctx context.Context, t *testing.T) func(seen *sync.Map) error {
	t.Helper()
	var service corev1.Service
	require.NoError(t, v.c.Do(ctx, http.MethodGet, "/api/v1/namespaces/"+v.Namespace+"/services/"+v.Release, nil, &service))
	client := &http.Client{Transport: bearer{&http.Transport{
		DialContext: v.c.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // it vouches for itself
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+service.Spec.ClusterIP+objects+"?watch=true", http.NoBody)
	require.NoError(t, err)
	response, err := client.Do(request)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode)
	return func(seen *sync.Map) error {
		defer response.Body.Close()
		for decoder := json.NewDecoder(response.Body); ; {
			var event struct {
				Object corev1.ConfigMap `json:"object"`
			}
			if err := decoder.Decode(&event); err != nil {
				return errors.Join(err, ctx.Err())
			}
			if strings.HasPrefix(event.Object.Name, "object-") {
				seen.Store(event.Object.Name, true)
			}
		}
	}
}

// TestRestoreBySocket: in socket mode, with the native sidecar and the socket's connection string in the values, the control plane needs
// neither the hand-over nor its args, and the pod of `vcluster restore` reaches the tenant's database. (42)
func TestRestoreBySocket(t *testing.T) {
	t.Parallel()
	c, server := newConnector(t, "socket-restore")
	values, err := c.NativeSidecar("open-source")
	require.NoError(t, err)
	v := installValues(t, c, "open-source", values, Names{Release: "team-a", Namespace: "socket-restore", Connector: "socket-restore"}, func(values *Values) {
		socketMode(values)
		values.SetEnv("DBCONNECTOR_VCLUSTER_NAME", "team-a") // the pod of a restore has no label with it
		values.ControlPlane.BackingStore.Database.Embedded["dataSource"] = "postgres://vcluster@/state?host=/var/run/dbconnector&sslmode=disable"
		values.ControlPlane.StatefulSet.Args = nil
	})
	ready(t, v)
	mustWrite(t, v, "mine")
	names := record(t, v).Names()
	n, err := server.Sessions(t.Context(), names.Database+"%")
	require.NoError(t, err)
	assert.NotZero(t, n, "sessions of the control plane's in the tenant's database")

	deployment, err := v.Deployment(t.Context())
	require.NoError(t, err)
	kubectl(t, c, "scale", "--namespace", v.Namespace, "deployment/"+v.Release, "--replicas=0")
	pod := restore(t, v, *deployment.Spec.Template.Spec.DeepCopy(), corev1.PodSucceeded)
	log := kubectl(t, c, "logs", "--namespace", v.Namespace, pod.Name, "--container=dbconnector-rotate")
	assert.Contains(t, log, "serving the control plane")
	kubectl(t, c, "scale", "--namespace", v.Namespace, "deployment/"+v.Release, "--replicas=1")
	ready(t, v)
	written(t, v, "mine")
}

// startsOf is how often TestSocketStarts starts a pod; more often where the variable says so.
func startsOf(t *testing.T) int {
	t.Helper()
	const variable, usual = "DBCONNECTOR_TEST_SOCKET_STARTS", 2
	text := os.Getenv(variable)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, variable)
	return n
}

// TestSocketStarts: with either form of the sidecar the control plane finds the socket when it starts, or waits for it. No container is
// started twice.
func TestSocketStarts(t *testing.T) {
	t.Parallel()
	native := func(c *Cluster) (*Values, error) { return c.NativeSidecar("open-source") }
	ordinary := func(c *Cluster) (*Values, error) { return c.Values("open-source") }
	waits := func(c *Cluster) (*Values, error) { return c.WaitForSocket("open-source") }
	for name, test := range map[string]struct {
		engine  bed.Engine
		version string
		kind    string
		values  func(*Cluster) (*Values, error)
	}{
		"mariadb-native":    {bed.MariaDB, "11.8", "mysql", native},
		"mariadb-ordinary":  {bed.MariaDB, "11.8", "mysql", waits},
		"mysql-ordinary":    {bed.MySQL, "9.7", "mysql", waits},
		"postgres-ordinary": {bed.Postgres, "17", "postgres", ordinary},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			namespace := "starts-" + name
			newServer(t, c, test.engine, test.version, test.kind, namespace)
			values, err := test.values(c)
			require.NoError(t, err)
			v := installValues(t, c, "open-source", values, Names{Release: "team-a", Namespace: namespace, Connector: namespace}, socketMode)
			for starts := range startsOf(t) {
				if starts > 0 {
					kubectl(t, c, "scale", "--namespace", v.Namespace, "deployment/"+v.Release, "--replicas=0")
					bed.Eventually(t, patience, func(ctx context.Context) error {
						pods, err := v.Pods(ctx)
						if err == nil && len(pods) > 0 {
							err = fmt.Errorf("%d pods are left", len(pods))
						}
						return err
					})
					kubectl(t, c, "scale", "--namespace", v.Namespace, "deployment/"+v.Release, "--replicas=1")
				}
				ready(t, v)
				pods, err := v.Pods(t.Context())
				require.NoError(t, err)
				for _, pod := range alive(pods) {
					for _, s := range append(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses...) {
						assert.Zero(t, s.RestartCount, "start %d: %s: %s", starts+1, s.Name, state(s.LastTerminationState))
					}
				}
			}
		})
	}
}
