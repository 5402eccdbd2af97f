// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"dbconnector/test/bed"
)

// The programs, after [Build].
var (
	Init   string // dbconnector-init
	Rotate string // dbconnector-rotate
)

// BriefQuiet builds init as shipped, except for the time for which a login must be without sessions before init resets its password.
// It is for tests that kill a repair at each of its many points: their sessions never come and go.
const BriefQuiet = "-X main.quiet=10ms"

// Patience bounds a wait that takes a moment on an idle machine.
const Patience = 2 * time.Minute

// Build builds both programs into dir, as shipped but for the linker's flags for init.
func Build(ctx context.Context, dir string, initFlags ...string) error {
	Init, Rotate = filepath.Join(dir, "dbconnector-init"), filepath.Join(dir, "dbconnector-rotate")
	if err := bed.Build(ctx, Init, "cmd/init", initFlags...); err != nil {
		return err
	}
	return bed.Build(ctx, Rotate, "cmd/rotate")
}

// BuildBriefRotate builds dbconnector-rotate into dir, as shipped, except for the longest time for which a retirement
// waits for earlier logins that have not ended.
func BuildBriefRotate(ctx context.Context, dir string, loginTime time.Duration) (string, error) {
	path := filepath.Join(dir, "dbconnector-rotate-brief")
	return path, bed.Build(ctx, path, "cmd/rotate", "-X main.loginTime="+loginTime.String())
}

// Main is TestMain for a package whose tests run the programs: it calls [Run].
func Main(m *testing.M, initFlags ...string) { os.Exit(Run(m, initFlags...)) }

// Run builds the programs, runs the tests, and stops the servers that they share. It returns the exit code.
func Run(m *testing.M, initFlags ...string) int {
	flag.Parse()
	if testing.Verbose() {
		bed.Progress = os.Stderr
	}
	dir, remove, err := bed.TempDir("programs")
	if err == nil {
		defer remove()
		err = errors.Join(os.Chmod(dir, 0o755), Build(context.Background(), dir, initFlags...)) // some tests run them as another account
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer stopShared()
	return m.Run()
}

// Tests that do no harm to a server share it: tenants have logins, databases, and names of their own. The servers outlive the test that
// asks first. A test that restarts a server, changes its settings or counts its statements uses one from bed.NewServer.
var (
	sharedMu sync.Mutex
	servers  = map[string]*bed.Server{}
	host     *Cluster
)

// Server is the server of a version that all tests of a package share.
func Server(tb testing.TB, engine bed.Engine, version string) *bed.Server {
	tb.Helper()
	sharedMu.Lock()
	defer sharedMu.Unlock()
	key := string(engine) + "-" + version
	if servers[key] == nil {
		s, err := bed.Start(context.Background(), engine, version, bed.Options{})
		if err != nil {
			tb.Fatal(err)
		}
		servers[key] = s
	}
	return servers[key]
}

// Host is the cluster that all tests of a package share.
func Host(tb testing.TB) *Cluster {
	tb.Helper()
	sharedMu.Lock()
	defer sharedMu.Unlock()
	if host == nil {
		api, err := bed.StartAPIServer(context.Background(), bed.APIServerOptions{})
		if err == nil {
			host, err = NewCluster(context.Background(), api)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	return host
}

func stopShared() {
	if host != nil {
		_ = host.API.Stop(context.Background())
	}
	for _, s := range servers {
		_ = s.Stop(context.Background())
	}
}
