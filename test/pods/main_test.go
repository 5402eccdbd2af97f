// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// patience is how long a test waits for an event that takes a moment, or two minutes at most, on an idle machine.
const patience = 5 * time.Minute

// shared is the cluster of all tests, and database the server of those that do not bring their own. The first that needs
// one starts it.
var (
	shared   = sync.OnceValues(func() (*Cluster, error) { return Start(context.Background()) })
	database = sync.OnceValues(func() (*bed.Server, error) {
		c, err := shared()
		if err != nil {
			return nil, err
		}
		options, err := c.Options()
		if err != nil {
			return nil, err
		}
		options.MaxConnections = 400
		options.Settings = map[string]string{"log_connections": "on"}
		return bed.Start(context.Background(), bed.Postgres, "17", options)
	})
	started struct{ cluster, database bool }
	mu      sync.Mutex
)

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Verbose() {
		bed.Progress = os.Stderr
	}
	code := m.Run()
	var errs []error
	if started.cluster {
		if c, err := shared(); err == nil {
			errs = append(errs, c.Stop(context.Background()))
		}
	}
	if started.database {
		if s, err := database(); err == nil {
			errs = append(errs, s.Stop(context.Background()))
		}
	}
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// newCluster returns the cluster.
func newCluster(t *testing.T) *Cluster {
	t.Helper()
	mu.Lock()
	started.cluster = true
	mu.Unlock()
	c, err := shared()
	require.NoError(t, err)
	return c
}

// newConnector returns the cluster with a connector of that name, whose admin no other test uses, and the server.
func newConnector(t *testing.T, name string) (*Cluster, *bed.Server) {
	t.Helper()
	c := newCluster(t)
	mu.Lock()
	started.database = true
	mu.Unlock()
	server, err := database()
	require.NoError(t, err)
	user, password, err := server.CloudAdmin(t.Context(), name)
	require.NoError(t, err)
	require.NoError(t, c.Connect(t.Context(), "postgres", name, server, user, password))
	return c, server
}

// newServer returns a server of its own for a test, which a connector of that name leads to. It is made from an example,
// "postgres" or "mysql".
func newServer(t *testing.T, c *Cluster, engine bed.Engine, version, example, name string) *bed.Server {
	t.Helper()
	options, err := c.Options()
	require.NoError(t, err)
	server := bed.NewServer(t, engine, version, options)
	user, password, err := server.CloudAdmin(t.Context(), "platform")
	require.NoError(t, err)
	require.NoError(t, c.Connect(t.Context(), example, name, server, user, password))
	return server
}

// install makes a vCluster for the time of the test, with the shipped values of an example but for what change changes.
func install(t *testing.T, c *Cluster, example string, names Names, change func(*Values), labels ...string) *VCluster {
	t.Helper()
	values, err := c.Values(example)
	require.NoError(t, err)
	return installValues(t, c, example, values, names, change, labels...)
}

// installValues is [install] with other values than the example's.
func installValues(t *testing.T, c *Cluster, example string, values *Values, names Names, change func(*Values), labels ...string) *VCluster {
	t.Helper()
	values.SetConnector(names.Connector)
	// The chart looks every 6 seconds whether a control plane has started.
	values.ControlPlane.StatefulSet.Probes.StartupProbe = object{"periodSeconds": 1}
	if change != nil {
		change(values)
	}
	v, err := c.New(t.Context(), example, names, values, labels...)
	require.NoError(t, err)
	t.Cleanup(func() { remove(t, v) })
	return v
}

// remove deletes a vCluster's namespace at the end of a test.
func remove(t *testing.T, v *VCluster) {
	t.Helper()
	if t.Failed() {
		describe(t, v)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience) // the test's own has ended
	defer cancel()
	// Without waiting for its end: room for the next one is all that matters.
	if _, err := v.c.Kubectl(ctx, "", "delete", "namespace", v.Namespace, "--wait=false"); err != nil {
		t.Error(err)
	}
}

// ready waits until the whole control plane is, and its API answers.
func ready(t *testing.T, v *VCluster) {
	t.Helper()
	if _, err := v.c.Kubectl(
		t.Context(), "", "rollout", "status", "--namespace", v.Namespace, "deployment/"+v.Release, "--timeout="+patience.String(),
	); err != nil {
		t.Fatal(err)
	}
	answers(t, v)
}

// answers waits for the vCluster's API. A ready pod is not yet behind its Service, nor does a ready API server have its
// first namespace.
func answers(t *testing.T, v *VCluster) {
	t.Helper()
	bed.Eventually(t, patience, func(ctx context.Context) error {
		return v.Do(ctx, http.MethodGet, "/api/v1/namespaces/default", nil, nil)
	})
}

const objects = "/api/v1/namespaces/default/configmaps"

// write makes an object in the vCluster.
func write(ctx context.Context, v *VCluster, name string) error {
	return v.Do(ctx, http.MethodPost, objects, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"key": "value"},
	}, nil)
}

// mustWrite is [write] for an object that is not there yet.
func mustWrite(t *testing.T, v *VCluster, name string) {
	t.Helper()
	assert.NoErrorf(t, reached(t, func(ctx context.Context) error { return write(ctx, v, name) }), "writing %s", name)
}

// written makes sure that an object is there.
func written(t *testing.T, v *VCluster, name string) {
	t.Helper()
	var got corev1.ConfigMap
	err := reached(t, func(ctx context.Context) error { return v.Do(ctx, http.MethodGet, objects+"/"+name, nil, &got) })
	if err != nil || got.Data["key"] != "value" {
		t.Errorf("the vCluster has %v, %v", got.Data, err)
	}
}

// reached returns the answer to a request as soon as there is a connection: for a moment after a pod was replaced, its
// Service may lead to the one that has ended.
func reached(t *testing.T, request func(context.Context) error) (answer error) {
	t.Helper()
	bed.Eventually(t, patience, func(ctx context.Context) error {
		answer = request(ctx)
		if turnedAway(answer) {
			return answer
		}
		return nil
	})
	return answer
}

// turnedAway says whether a request came to a replica that has ended, or is about to.
func turnedAway(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "dial tcp") || strings.Contains(err.Error(), "apiserver is shutting down"))
}

// record returns the tenant's record.
func record(t *testing.T, v *VCluster) *tenant.Record {
	t.Helper()
	r, err := v.Record(t.Context())
	require.NoError(t, err)
	return r
}

// enters returns nil if a tenant's login is let into a database.
func enters(ctx context.Context, server *bed.Server, login tenant.Login, database string) error {
	db, err := server.Open(login.User, login.Password.Reveal(), database)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	return db.PingContext(ctx)
}

// kubectl runs kubectl and returns its output.
func kubectl(t *testing.T, c *Cluster, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), "", args...)
	require.NoError(t, err)
	return out
}

// onePod returns the only pod of a control plane that is not about to end.
func onePod(ctx context.Context, v *VCluster) (*corev1.Pod, error) {
	all, err := v.Pods(ctx)
	if err != nil {
		return nil, err
	}
	pods := alive(all)
	if len(pods) != 1 {
		return nil, fmt.Errorf("there are %d pods", len(pods))
	}
	return &pods[0], nil
}

// alive returns the pods that are not about to end.
func alive(pods []corev1.Pod) (list []corev1.Pod) {
	for _, pod := range pods {
		if pod.DeletionTimestamp == nil {
			list = append(list, pod)
		}
	}
	return list
}

// containerOf returns what the kubelet says of a container, of whatever sort it is.
func containerOf(pod *corev1.Pod, name string) (s corev1.ContainerStatus) {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, status := range list {
			if status.Name == name {
				s = status
			}
		}
	}
	return s
}

// cliStatus is what the vCluster CLI (0.37) makes of a pod, and kubectl before 1.29 did: it takes every entry of the init
// containers that has not ended well for one that is still to end. It refuses to work with a pod that is not "Running" (F21).
func cliStatus(pod *corev1.Pod) string {
	for i, s := range pod.Status.InitContainerStatuses {
		switch {
		case s.State.Terminated != nil && s.State.Terminated.ExitCode == 0:
		case s.State.Terminated != nil:
			return "Init:Error"
		default:
			return fmt.Sprintf("Init:%d/%d", i, len(pod.Spec.InitContainers))
		}
	}
	return string(pod.Status.Phase)
}

// events returns the Events of a namespace, one a line.
func events(ctx context.Context, v *VCluster) (string, error) {
	return v.c.Kubectl(ctx, "", "get", "events", "--namespace", v.Namespace, "--no-headers",
		"--output=custom-columns=R:.reason,O:.involvedObject.kind,S:.source.component,M:.message")
}

// stopwatch logs how long each part of a test takes.
func stopwatch(t *testing.T) (lap func(what string)) {
	began := time.Now()
	return func(what string) {
		t.Logf("%6.1f s  %s", time.Since(began).Seconds(), what)
		began = time.Now()
	}
}

// adminLogins counts how often the admin of that name has logged in.
func adminLogins(server *bed.Server, name string) int {
	return strings.Count(server.Log(), "connection authorized: user="+name+" ")
}
