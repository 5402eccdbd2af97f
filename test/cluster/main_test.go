// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"dbconnector/test/bed"
)

// patience is how long a test waits for what takes a moment on an idle machine.
const patience = 2 * time.Minute

// shared is the cluster of all tests, started by the first that needs it.
var shared = sync.OnceValues(func() (*Cluster, error) { return Start(context.Background()) })

var started bool

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Verbose() {
		bed.Progress = os.Stderr
	}
	code := m.Run()
	if started {
		if c, err := shared(); err == nil {
			if err := c.Stop(context.Background()); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}
	}
	os.Exit(code)
}

// newCluster returns the cluster.
func newCluster(t *testing.T) *Cluster {
	t.Helper()
	started = true
	c, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// kubectl runs kubectl and returns what it says.
func kubectl(t *testing.T, c *Cluster, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// stopwatch logs what each part of a test takes.
func stopwatch(t *testing.T) (lap func(what string)) {
	began := time.Now()
	return func(what string) {
		t.Logf("%6.1f s  %s", time.Since(began).Seconds(), what)
		began = time.Now()
	}
}
