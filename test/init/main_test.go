// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// scratch is where the tests' directories are. Other accounts may look into it, unlike into those of T.TempDir.
var scratch string

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	flag.Parse()
	// Most runs wait for a time limit or for a server, so more of them than cores run side by side.
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		if err := flag.Set("test.parallel", "8"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	dir, remove, err := bed.TempDir("init")
	if err == nil {
		defer remove()
		scratch, err = dir, os.Chmod(dir, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "preparing:", err)
		return 1
	}
	defer stopShared()
	return rig.Run(m)
}

// shared is a server that many tests use, each for a tenant of its own. It starts when the first test asks for it.
type shared struct {
	engine  bed.Engine
	version string
	options bed.Options
	prepare func(ctx context.Context, s *bed.Server) error

	once   sync.Once
	server *bed.Server
	err    error
}

var (
	startedMu sync.Mutex
	started   []*shared
)

func (s *shared) get(tb testing.TB) *bed.Server {
	tb.Helper()
	s.once.Do(func() {
		ctx := context.Background() // the server outlives the test that happens to start it
		if s.server, s.err = bed.Start(ctx, s.engine, s.version, s.options); s.err != nil {
			return
		}
		startedMu.Lock()
		started = append(started, s)
		startedMu.Unlock()
		if s.prepare != nil {
			s.err = s.prepare(ctx, s.server)
		}
	})
	if s.err != nil {
		tb.Fatal(s.err)
	}
	return s.server
}

func stopShared() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for _, s := range started {
		wg.Go(func() {
			if err := s.server.Stop(ctx); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		})
	}
	wg.Wait()
}

// The shared servers. Each logs all statements, so that tests see what a program asked of it.
var (
	postgres = &shared{engine: bed.Postgres, version: "17", options: bed.Options{LogStatements: true, IPv6: true}, prepare: preparePostgres}
	mysql    = &shared{engine: bed.MySQL, version: "9.7", options: bed.Options{LogStatements: true, IPv6: true}, prepare: prepareMySQL}
	mariadb  = &shared{engine: bed.MariaDB, version: "11.8", options: bed.Options{LogStatements: true, IPv6: true}, prepare: prepareMySQL}
)

var engines = map[string]*shared{"postgres": postgres, "mysql": mysql, "mariadb": mariadb}
