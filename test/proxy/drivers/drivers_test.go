// SPDX-License-Identifier: Apache-2.0

// Package drivers_test runs the test suites of the drivers that clients of the socket use: each test ends through the socket of the shipped
// sidecar as it does on the server.
package drivers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// exception is a test, or some, and why it is one.
type exception struct {
	name string // a regular expression for "package:Test/subtest", with the package's path in its module
	why  string
}

// most is how many sessions there may be at once. Tests that open fifty and then close them have more, as the server ends a session a
// moment after its client.
const most = 300

// suite is a driver's tests.
type suite struct {
	module   string
	packages []string
	options  bed.Options
	// prepare gives the tenant what the tests need of a database.
	prepare func(t *testing.T, server *bed.Server, r *tenant.Record)
	// direct and socket are the environment of the tests: for the server, and for the socket.
	direct func(t *testing.T, server *bed.Server, r *tenant.Record) []string
	socket func(path string, r *tenant.Record) []string
	// without are the names of tests that are not run at all.
	without []exception
	// apart are the tests that cannot end through the socket as on the server, and failing those that fail on the server, too.
	apart, failing []exception
}

// TestDrivers: every test of a driver ends through the socket as on the server, but for those that are named above with the reason.
func TestDrivers(t *testing.T) {
	for _, test := range []struct {
		engine  bed.Engine
		version string
		suite   suite
	}{
		{bed.Postgres, "17", pgx},
		{bed.MariaDB, "11.8", mariadb},
		{bed.MySQL, "9.7", mysql},
	} {
		t.Run(string(test.engine)+"-"+test.version, func(t *testing.T) {
			programs := test.suite.build(t)
			server := bed.NewServer(t, test.engine, test.version, test.suite.options)
			// Each run has a tenant of its own, so that neither finds what the other left behind.
			newTenant := func(settings ...string) (*rig.Tenant, *tenant.Record) {
				plane := rig.NewTenant(t, server, "", append(settings, fmt.Sprintf("DBCONNECTOR_CONNECTION_LIMIT=%d", most))...)
				record, err := plane.Record(t.Context())
				require.NoError(t, err)
				test.suite.prepare(t, server, record)
				return plane, record
			}
			_, record := newTenant()
			direct := test.suite.direct(t, server, record)
			plane, record := newTenant("DBCONNECTOR_ADOPT=socket")
			socket := test.suite.socket(serve(t, plane), record)

			var onServer, throughSocket map[string]outcome
			t.Run("both", func(t *testing.T) { // at once: they wait more than they compute
				t.Run("server", func(t *testing.T) {
					t.Parallel()
					onServer = test.suite.run(t, programs, direct)
				})
				t.Run("socket", func(t *testing.T) {
					t.Parallel()
					throughSocket = test.suite.run(t, programs, socket)
				})
			})
			// Some tests measure time, and fail now and then on a machine that has much else to do. A test that has ended in two ways counts
			// as it ends when it is alone.
			if again := test.suite.differing(onServer, throughSocket); len(again) > 0 && len(again) <= mostAgain {
				t.Logf("once more, each alone: %q", again)
				for _, name := range again {
					pkg, only, _ := strings.Cut(name, ":")
					i := slices.IndexFunc(programs, func(p program) bool { return p.pkg == pkg })
					alone := []string{"-test.run=^" + only + "$", "-test.count=3"}
					maps.Copy(onServer, test.suite.run(t, programs[i:i+1], direct, alone...))
					maps.Copy(throughSocket, test.suite.run(t, programs[i:i+1], socket, alone...))
				}
			}
			test.suite.compare(t, onServer, throughSocket)
		})
	}
}

// mostAgain is how many tests may differ because of the time that they measure. More have another cause.
const mostAgain = 5

// differing are the tests, without their subtests, that ended in two ways and are not excepted.
func (s suite) differing(direct, socket map[string]outcome) (names []string) {
	for name := range direct {
		if _, ok := find(s.apart, name); !ok && direct[name].result != socket[name].result {
			pkg, test, _ := strings.Cut(name, ":")
			test, _, _ = strings.Cut(test, "/")
			names = append(names, pkg+":"+test)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// find is the exception that a test is.
func find(exceptions []exception, name string) (exception, bool) {
	for _, e := range exceptions {
		if regexp.MustCompile("^(" + e.name + ")$").MatchString(name) {
			return e, true
		}
	}
	return exception{}, false
}

// serve has the sidecar serve a tenant, and returns the socket's path.
func serve(t *testing.T, plane *rig.Tenant) string {
	t.Helper()
	p := rig.Sidecar(t, plane)
	bed.Eventually(t, rig.Patience, func(ctx context.Context) error {
		status, body, err := p.Get(ctx, "/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
	sockets, err := filepath.Glob(filepath.Join(plane.Out, "*"))
	require.NoError(t, err)
	i := slices.IndexFunc(sockets, func(path string) bool {
		info, err := os.Lstat(path)
		return err == nil && info.Mode()&os.ModeSocket != 0
	})
	require.GreaterOrEqual(t, i, 0, "no socket among %q", sockets)
	return sockets[i]
}

// program is the tests of one package, built, and the directory in which they are run.
type program struct{ pkg, file, dir string }

// major is a part of a module's path that no name of a program has.
var major = regexp.MustCompile(`/v\d+$`)

// build builds the tests in a copy of the module, because Go's cache of modules is read-only and the tests write beside their files.
func (s suite) build(t *testing.T) (programs []program) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", s.module).Output()
	require.NoError(t, err)
	root := filepath.Join(t.TempDir(), "module")
	copyTree(t, root, strings.TrimSpace(string(out)))
	args := []string{"test", "-c", "-trimpath", "-o", root + "/"} // without its own directory in it, Go's cache has most of it
	name := major.ReplaceAllString(s.module, "")
	for _, pkg := range s.packages {
		args = append(args, "./"+pkg)
		programs = append(programs, program{pkg, filepath.Join(root, path.Base(path.Join(name, pkg))+".test"), filepath.Join(root, pkg)})
	}
	build := exec.CommandContext(t.Context(), "go", args...)
	build.Dir, build.Env = root, append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	out, err = build.CombinedOutput()
	require.NoError(t, err, "building the tests of %s: %s", s.module, out)
	return programs
}

func copyTree(t *testing.T, to, from string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(from, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		copied := filepath.Join(to, strings.TrimPrefix(file, from))
		if entry.IsDir() {
			return os.Mkdir(copied, 0o755)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return os.WriteFile(copied, data, 0o644)
	}))
}

// outcome is how a test ended, and what it said.
type outcome struct{ result, log string }

// run runs all programs, one after the other, and returns how each test has ended.
func (s suite) run(t *testing.T, programs []program, environ []string, flags ...string) map[string]outcome {
	t.Helper()
	outcomes := map[string]outcome{}
	for _, p := range programs {
		args := append([]string{"-test.v=test2json", "-test.timeout=5m"}, flags...)
		for _, e := range s.without {
			args = append(args, "-test.skip=^"+e.name+"$")
			t.Logf("not run: %s: %s", e.name, e.why)
		}
		tests := exec.CommandContext(t.Context(), p.file, args...)
		var said bytes.Buffer
		tests.Dir, tests.Stdout, tests.Stderr = p.dir, &said, &said
		tests.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "USER=root"}, environ...)
		began := time.Now()
		err := tests.Run()
		var failed *exec.ExitError
		if err != nil && !errors.As(err, &failed) {
			require.NoError(t, err, "running the tests of %s", p.pkg)
		}
		took, before := time.Since(began), len(outcomes)
		read(t, p.pkg, &said, outcomes)
		require.Greater(t, len(outcomes), before, "the tests of %q: %v\n%s", p.pkg, err, said.String())
		t.Logf("%q: %d tests in %s", p.pkg, len(outcomes)-before, took.Round(100*time.Millisecond))
	}
	t.Logf("in all: %s", count(outcomes))
	return outcomes
}

// temporary is a test's directory, which some have in their subtests' names.
var temporary = regexp.MustCompile(`/tmp/\w+/\d+`)

// read adds the outcomes of a package's tests. A test that has begun and not ended is one, too.
func read(t *testing.T, pkg string, said *bytes.Buffer, outcomes map[string]outcome) {
	t.Helper()
	convert := exec.CommandContext(t.Context(), "go", "tool", "test2json")
	convert.Stdin = bytes.NewReader(said.Bytes())
	out, err := convert.Output()
	require.NoError(t, err)
	for decoder := json.NewDecoder(bytes.NewReader(out)); decoder.More(); {
		var event struct{ Action, Test, Output string }
		require.NoError(t, decoder.Decode(&event))
		if event.Test == "" {
			continue
		}
		name := pkg + ":" + temporary.ReplaceAllString(event.Test, "DIR")
		o := outcomes[name]
		switch event.Action {
		case "run":
			if o.result == "" {
				o.result = "never ended"
			}
		case "output":
			o.log += event.Output
		case "pass", "fail", "skip":
			if o.result != "fail" { // of an earlier time
				o.result = event.Action
			}
		}
		outcomes[name] = o
	}
}

func count(outcomes map[string]outcome) string {
	n := map[string]int{}
	for _, o := range outcomes {
		n[o.result]++
	}
	return fmt.Sprint(n)
}

// compare fails the test for each difference and each failure that is not excepted, and for each exception that is none any more.
func (s suite) compare(t *testing.T, direct, socket map[string]outcome) {
	t.Helper()
	names := maps.Clone(direct)
	maps.Copy(names, socket)
	used := map[exception]bool{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		server, through := direct[name], socket[name]
		differ, exceptions := server.result != through.result, s.failing
		if differ {
			exceptions = s.apart
		} else if server.result == "pass" || server.result == "skip" {
			continue
		}
		said := fmt.Sprintf("%s: %q on the server, %q through the socket", name, server.result, through.result)
		e, ok := find(exceptions, name)
		if !ok {
			t.Errorf("%s\non the server:\n%s\nthrough the socket:\n%s", said, server.log, through.log)
			continue
		}
		used[e] = true
		t.Logf("%s: %s", said, e.why)
	}
	for _, e := range slices.Concat(s.apart, s.failing) {
		assert.True(t, used[e], "the exception %s is none any more", e.name)
	}
}
