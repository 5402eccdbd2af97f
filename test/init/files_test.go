// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Files and directories that other containers of the pod may change. None of them may block init in the kernel, where
// neither its time limit nor SIGTERM reaches it. (S13)

// endsWithin waits for a run that must end by itself. It asks a run that does not to end, kills it, and fails the test.
func (c *child) endsWithin(tb testing.TB, limit time.Duration) *outcome {
	tb.Helper()
	end := time.NewTimer(limit)
	defer end.Stop()
	select {
	case <-c.Done():
	case <-end.C:
		c.Terminate()
		grace := time.NewTimer(5 * time.Second)
		defer grace.Stop()
		select {
		case <-c.Done():
			tb.Errorf("init ran for %s, and ended when it was asked to", limit)
		case <-grace.C:
			c.Kill()
			tb.Errorf("init ran for %s, and did not end when it was asked to", limit)
		}
	}
	return c.wait(tb)
}

func fifo(tb testing.TB, path string) {
	tb.Helper()
	require.NoError(tb, errors.Join(os.RemoveAll(path), syscall.Mkfifo(path, 0o666)))
	give(tb, path)
}

// sparse makes a file that says it is very long.
func sparse(tb testing.TB, path string) {
	tb.Helper()
	write(tb, path, "")
	require.NoError(tb, os.Truncate(path, 1<<40))
}

// lockDir holds the lock that `flock -x` takes until the test ends.
func lockDir(tb testing.TB, path string) {
	tb.Helper()
	d, err := os.Open(path)
	require.NoError(tb, err)
	tb.Cleanup(func() { shut(d) })
	require.NoError(tb, syscall.Flock(int(d.Fd()), syscall.LOCK_EX))
}

// TestFilesOfOthers: init hands over in time, whatever another container does to the output directory. (S13)
func TestFilesOfOthers(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(tb testing.TB, s *site){
		"the directory locked": func(tb testing.TB, s *site) { lockDir(tb, s.outputDir) },
		"the DSN is a FIFO":    func(tb testing.TB, s *site) { fifo(tb, filepath.Join(s.outputDir, "dsn")) },
		"all are FIFOs": func(tb testing.TB, s *site) {
			for _, file := range []string{"dsn", "ca.crt", "config.yaml", ".dbconnector-tmp-1"} {
				fifo(tb, filepath.Join(s.outputDir, file))
			}
		},
		"the DSN is endless": func(tb testing.TB, s *site) { sparse(tb, filepath.Join(s.outputDir, "dsn")) },
		"the DSN is a device": func(tb testing.TB, s *site) {
			require.NoError(tb, os.Symlink("/dev/zero", filepath.Join(s.outputDir, "dsn")))
		},
		"a directory with the name of a temporary file": func(tb testing.TB, s *site) {
			require.NoError(tb, os.MkdirAll(filepath.Join(s.outputDir, ".dbconnector-tmp-1", "full"), 0o755))
		},
		"very many files": func(tb testing.TB, s *site) {
			path := filepath.Join(s.outputDir, "x")
			write(tb, path, "")
			for i := range 20000 {
				require.NoError(tb, os.Link(path, filepath.Join(s.outputDir, ".dbconnector-other-"+time.Duration(i).String())))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, postgres.Get(t))
			config(embedded)(t, s)
			s.writeConnector(t)
			prepare(t, s)
			start(t, s.env).endsWithin(t, 30*time.Second).succeeded(t)
			checkConfig(t, s, "embedded", read(t, s.outputDir, "dsn"), filepath.Join(s.outputDir, "ca.crt"))
			if info, err := os.Lstat(filepath.Join(s.outputDir, "dsn")); err != nil || !info.Mode().IsRegular() {
				t.Errorf("dsn: %v, %v", info.Mode(), err)
			}
		})
	}
}

// TestInputsOfOthers: an input of init is not a regular file. init says so at once. (S13)
func TestInputsOfOthers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		prepare func(tb testing.TB, s *site)
		want    []string
	}{
		"the config is a FIFO": {func(tb testing.TB, s *site) {
			config(embedded)(tb, s)
			fifo(tb, s.env["DBCONNECTOR_VCLUSTER_CONFIG"])
		}, []string{"reading the vCluster's config (DBCONNECTOR_VCLUSTER_CONFIG): ", "not a regular file"}},
		"the config is endless": {func(tb testing.TB, s *site) {
			config(embedded)(tb, s)
			sparse(tb, s.env["DBCONNECTOR_VCLUSTER_CONFIG"])
		}, []string{"vCluster config: is larger than 262144 bytes"}},
		"a key is a FIFO": {func(tb testing.TB, s *site) { fifo(tb, filepath.Join(s.connectorDir, "password")) }, []string{`key "password": is missing`}},
		"a key is endless": {
			func(tb testing.TB, s *site) { sparse(tb, filepath.Join(s.connectorDir, "caCert")) },
			[]string{`key "caCert": has more than 262144 bytes`},
		},
		"the record a FIFO": {
			func(tb testing.TB, s *site) { ownState(tb, s); fifo(tb, s.recordFile()) },
			[]string{"reading the tenant's record: ", "the files in it must be regular files"},
		},
		"the record is endless": {
			func(tb testing.TB, s *site) { ownState(tb, s); sparse(tb, s.recordFile()) },
			[]string{"has more than 1048576 bytes, so it is not a tenant's record"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, nil)
			s.writeConnector(t)
			test.prepare(t, s)
			start(t, s.env).endsWithin(t, 20*time.Second).refused(t, 2, test.want...)
			if left := names(t, s.outputDir); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func ownState(tb testing.TB, s *site) {
	tb.Helper()
	require.NoError(tb, os.Mkdir(s.stateDir, 0o700))
	give(tb, s.stateDir)
}
