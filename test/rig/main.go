// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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

// Shared is a server that the tests of a package share, each with a tenant of its own. It starts when the first test asks for it, and
// outlives that test. A test that restarts a server, changes its settings or counts its statements uses one from bed.NewServer.
type Shared struct {
	Version bed.Version
	Options bed.Options
	// Prepare, unless nil, is called once.
	Prepare func(ctx context.Context, s *bed.Server) error

	once   sync.Once
	server *bed.Server
	err    error
}

// Get is the server.
func (s *Shared) Get(tb testing.TB) *bed.Server {
	tb.Helper()
	s.once.Do(func() {
		ctx := context.Background()
		if s.server, s.err = bed.Start(ctx, s.Version.Engine, s.Version.Version, s.Options); s.err != nil {
			return
		}
		atEnd(func() error { return s.server.Stop(ctx) })
		if s.Prepare != nil {
			s.err = s.Prepare(ctx, s.server)
		}
	})
	if s.err != nil {
		tb.Fatal(s.err)
	}
	return s.server
}

var (
	sharedMu sync.Mutex
	servers  = map[string]*Shared{} // by version
	ends     []func() error         // in the order of the starts

	host = sync.OnceValues(func() (*Cluster, error) {
		api, err := bed.StartAPIServer(context.Background(), bed.APIServerOptions{})
		if err != nil {
			return nil, err
		}
		atEnd(func() error { return api.Stop(context.Background()) })
		return NewCluster(context.Background(), api)
	})
)

// Server is the server of a version without options that all tests of a package share.
func Server(tb testing.TB, engine bed.Engine, version string) *bed.Server {
	tb.Helper()
	v := bed.Version{Engine: engine, Version: version}
	sharedMu.Lock()
	if servers[v.String()] == nil {
		servers[v.String()] = &Shared{Version: v}
	}
	s := servers[v.String()]
	sharedMu.Unlock()
	return s.Get(tb)
}

// Host is the cluster that all tests of a package share.
func Host(tb testing.TB) *Cluster {
	tb.Helper()
	c, err := host()
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func atEnd(stop func() error) {
	sharedMu.Lock()
	defer sharedMu.Unlock()
	ends = append(ends, stop)
}

// stopShared stops what the tests shared, the last one first.
func stopShared() {
	for _, stop := range slices.Backward(ends) {
		if err := stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}
