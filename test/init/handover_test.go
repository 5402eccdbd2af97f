// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"dbconnector/test/bed"
)

// inode distinguishes a file from its successor of the same name.
func inode(tb testing.TB, path ...string) uint64 {
	tb.Helper()
	info, err := os.Stat(filepath.Join(path...))
	require.NoError(tb, err)
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		tb.Fatalf("no inode in %T", info.Sys())
	}
	return stat.Ino
}

const licensed = `# Chosen by the platform's team.
controlPlane:
  backingStore:
    database:
      external:
        enabled: true
        connector: pg-1
        extraArgs: ["--datastore-max-open-connections=20"] # below half of the limit
  statefulSet: {highAvailability: {replicas: 3}}
futureField: {nested: [1, two, 3.0, null, "007"]}
sync:
  toHost:
    pods: {enabled: true}
`

// TestHandover checks each byte and each file mode that the control plane gets.
func TestHandover(t *testing.T) {
	t.Parallel()
	for name, on := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, on.Get(t))
			config(strings.ReplaceAll(embedded, "enabled: true", "enabled: true\n        extraArgs: [a]"))(t, s)
			s.provision(t)

			if got, want := sorted(names(t, s.outputDir)), []string{"ca.crt", "config.yaml", "dsn"}; !slices.Equal(got, want) {
				t.Fatalf("files %q, want %q", got, want)
			}
			checkModes(t, s.outputDir, 0o640)
			dsn := read(t, s.outputDir, "dsn")
			if strings.TrimSpace(dsn) != dsn || strings.Contains(dsn, "\n") {
				t.Error("the DSN is not one line without an end")
			}
			if name, err := login(t, s.server, dsn); err != nil || name != databaseOf(s.uid) {
				t.Errorf("the DSN leads to database %q, %v; want %q", name, err, databaseOf(s.uid))
			}
			if read(t, s.outputDir, "ca.crt") != s.connector["caCert"] {
				t.Error("ca.crt is not the connector's caCert")
			}
			checkConfig(t, s, "embedded", dsn, filepath.Join(s.outputDir, "ca.crt"))

			// init does not rewrite unchanged content, so it does not wake a process that watches the files.
			before := map[string]uint64{}
			for _, file := range names(t, s.outputDir) {
				before[file] = inode(t, s.outputDir, file)
			}
			s.provision(t)
			for file, was := range before {
				if inode(t, s.outputDir, file) != was {
					t.Errorf("%s was rewritten though nothing had changed", file)
				}
			}

			// init sweeps the files that a killed run left behind, and no file of another program.
			write(t, filepath.Join(s.outputDir, ".dbconnector-tmp-1"), dsn)
			write(t, filepath.Join(s.outputDir, "mine"), "")
			// A repaired password is a new DSN and a new config, and the same CA.
			require.NoError(t, s.server.SetPassword(t.Context(), databaseOf(s.uid)+"a", "Changed-by.Hand~0123456789"))
			s.provision(t)
			for file, was := range before {
				if changed := inode(t, s.outputDir, file) != was; changed != (file != "ca.crt") {
					t.Errorf("%s: replaced %t after a repair", file, changed)
				}
			}
			repaired := read(t, s.outputDir, "dsn")
			if _, err := login(t, s.server, repaired); err != nil || repaired == dsn {
				t.Errorf("the repaired DSN: %v, changed %t", err, repaired != dsn)
			}
			checkConfig(t, s, "embedded", repaired, filepath.Join(s.outputDir, "ca.crt"))
			if got, want := sorted(names(t, s.outputDir)), []string{"ca.crt", "config.yaml", "dsn", "mine"}; !slices.Equal(got, want) {
				t.Errorf("files %q, want %q", got, want)
			}
		})
	}

	t.Run("licensed store", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, postgres.Get(t))
		config(licensed)(t, s)
		s.provision(t)
		checkConfig(t, s, "external", read(t, s.outputDir, "dsn"), filepath.Join(s.outputDir, "ca.crt"))
		if text := read(t, s.outputDir, "config.yaml"); !strings.Contains(text, "# below half of the limit") || strings.Contains(text, "connector:") {
			t.Errorf("a comment is lost, or the connector still there:\n%s", text)
		}
	})
	t.Run("no CA and no config", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, mysql.Get(t))
		unset("caCert")(t, s)
		s.provision(t)
		if got, want := names(t, s.outputDir), []string{"dsn"}; !slices.Equal(got, want) {
			t.Errorf("files %q, want %q", got, want)
		}
	})
	t.Run("stale files", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, postgres.Get(t))
		unset("caCert")(t, s)
		for _, file := range []string{"ca.crt", "config.yaml"} {
			write(t, filepath.Join(s.outputDir, file), "of another tenant")
		}
		s.provision(t)
		if got, want := names(t, s.outputDir), []string{"dsn"}; !slices.Equal(got, want) {
			t.Errorf("files %q, want %q", got, want)
		}
	})
	t.Run("mode", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, postgres.Get(t))
		config(embedded)(t, s)
		s.env["DBCONNECTOR_FILE_MODE"] = "0600"
		s.provision(t)
		checkModes(t, s.outputDir, 0o600)
		was := inode(t, s.outputDir, "dsn")
		s.env["DBCONNECTOR_FILE_MODE"] = "0660"
		s.provision(t)
		checkModes(t, s.outputDir, 0o660)
		if inode(t, s.outputDir, "dsn") == was {
			t.Error("the mode was changed in place: a process that had opened the file for reading, or could not, sees something in between")
		}
	})
	t.Run("record's mode", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, postgres.Get(t))
		s.provision(t)
		for path, want := range map[string]os.FileMode{s.stateDir: 0o700 | os.ModeDir, s.recordFile(): 0o600} {
			if info, err := os.Stat(path); err != nil || info.Mode() != want {
				t.Errorf("%s: mode %v, want %v: %v", path, info.Mode(), want, err)
			}
		}
	})
}

func checkModes(tb testing.TB, dir string, want os.FileMode) {
	tb.Helper()
	for _, name := range names(tb, dir) {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
			tb.Errorf("%s: mode %v, want %v: %v", name, info.Mode(), want, err)
		}
	}
}

// checkConfig compares the config of the hand-over with the one it was made from: only the store differs.
func checkConfig(tb testing.TB, s *site, store, dsn, ca string) {
	tb.Helper()
	var want, got map[string]any
	for file, into := range map[string]*map[string]any{s.env["DBCONNECTOR_VCLUSTER_CONFIG"]: &want, filepath.Join(s.outputDir, "config.yaml"): &got} {
		require.NoError(tb, yaml.Unmarshal([]byte(read(tb, file)), into))
	}
	path := part(want, "controlPlane", "backingStore", "database", store)
	path["dataSource"] = dsn
	path["caFile"] = ca
	delete(path, "connector")
	if !reflect.DeepEqual(got, want) {
		tb.Errorf("config.yaml is\n%v\nwant\n%v", got, want)
	}
}

// TestStopped: a pod that is deleted while it starts. A stopped run is no success. It ends quickly and leaves whole
// files or none. The next start finishes the work.
func TestStopped(t *testing.T) {
	t.Parallel()
	t.Run("while it waits", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, postgres.Get(t))
		asked := make(chan struct{})
		once := sync.OnceFunc(func() { close(asked) })
		port := listen(t, func(net.Conn) { once() })
		at("postgres", func(testing.TB) string { return port })(t, s)
		s.writeConnector(t)
		c := start(t, s.env)
		<-asked
		c.Terminate()
		began := time.Now()
		o := c.wait(t)
		o.refused(t, moment, "stopped on request")
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("took %s to stop", took)
		}
		s.untouched(t)
	})
	// The program asks the server dozens of questions. The test stops it at some of them, spread over the whole run.
	for name, on := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := on.Get(t)
			full := flights(t, server)
			stopped := 0
			for _, share := range []int{1, 3, 5, 7, 9} {
				s := newSite(t, server)
				config(embedded)(t, s)
				proxy := bed.NewProxy(t, server.Addr())
				key("port", strconv.Itoa(proxy.Port()))(t, s)
				s.writeConnector(t)
				var c *child
				ready := make(chan struct{})
				proxy.KillAfter(full*share/10, func() {
					<-ready
					c.Terminate()
				})
				c = start(t, s.env)
				close(ready)
				o := c.wait(t)
				o.wellBehaved(t)
				if o.code == moment {
					stopped++
				}
				left := sorted(names(t, s.outputDir))
				switch {
				case o.code == 0 && len(left) != 3:
					t.Errorf("stopped at %d of %d: done, and there are only %q", full*share/10, full, left)
				case o.code != 0 && o.code != moment:
					t.Errorf("stopped at %d of %d: exit code %d, want %d\n%s", full*share/10, full, o.code, moment, o.stderr)
				case o.code != 0 && len(left) > 0:
					t.Errorf("stopped at %d of %d: left %q", full*share/10, full, left)
				}
				proxy.Pass()
				s.provision(t)
				if name, err := login(t, server, read(t, s.outputDir, "dsn")); err != nil || name != databaseOf(s.uid) {
					t.Errorf("stopped at %d of %d: afterwards the hand-over leads to %q, %v", full*share/10, full, name, err)
				}
			}
			if stopped < 3 {
				t.Errorf("%d of 5 runs were stopped before their end: this proves too little", stopped)
			}
		})
	}
}

// flights is how many messages a whole run sends to a server.
func flights(tb testing.TB, server *bed.Server) int {
	tb.Helper()
	s := newSite(tb, server)
	proxy := bed.NewProxy(tb, server.Addr())
	key("port", strconv.Itoa(proxy.Port()))(tb, s)
	s.provision(tb)
	return proxy.Flights()
}
