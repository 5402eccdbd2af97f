// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
	"dbconnector/pkg/vclusterconfig"
)

// content reads a directory: its files by name, and what else lies there.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		m[e.Name()] = string(data)
	}
	return m
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no inode")
	}
	return stat.Ino
}

func TestWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	all := files{dsn: "mysql://u:p@tcp(h:1)/d", ca: "pem\n", config: []byte("a: 1\n")}
	write := func(want files, mode fs.FileMode, changes bool) {
		t.Helper()
		changed, err := write(dir, mode, want)
		if err != nil || changed != changes {
			t.Fatalf("got changed=%v, %v; want %v", changed, err, changes)
		}
		got := content(t, dir)
		for name, text := range map[string]string{DSNFile: want.dsn, CAFile: want.ca, ConfigFile: string(want.config)} {
			if got[name] != text {
				t.Errorf("%s: got %q, want %q", name, got[name], text)
			}
			info, err := os.Stat(filepath.Join(dir, name))
			switch {
			case text == "" && err == nil:
				t.Errorf("%s is still there", name)
			case text != "" && (err != nil || info.Mode() != mode):
				t.Errorf("%s: mode %v, want %v (%v)", name, info.Mode(), mode, err)
			}
			delete(got, name)
		}
		if len(got) > 0 {
			t.Errorf("left behind: %v", got)
		}
	}
	write(all, 0o640, true)
	first := inode(t, filepath.Join(dir, DSNFile))
	write(all, 0o640, false)
	if inode(t, filepath.Join(dir, DSNFile)) != first {
		t.Error("a file was rewritten though it had not changed")
	}
	write(all, 0o660, true) // the umask has no say
	all.dsn = "mysql://u:q@tcp(h:1)/d"
	write(all, 0o660, true)
	write(files{dsn: all.dsn}, 0o660, true) // a file that is not wanted any more is stale
	write(files{dsn: all.dsn}, 0o660, false)
}

// TestWriteSweeps: a process that was killed left the temporary file with a password behind.
func TestWriteSweeps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{".dbconnector-tmp-123", ".other", "mine"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := write(dir, 0o640, files{dsn: "x"}); err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range content(t, dir) {
		names = append(names, name)
	}
	slices.Sort(names)
	if want := []string{".other", "dsn", "mine"}; !slices.Equal(names, want) {
		t.Errorf("got %v, want %v", names, want)
	}
}

// TestWriteUnderALock: another container holds the lock for as long as it likes, and sweeps any files that it likes. (S13)
func TestWriteUnderALock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	lock, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if changed, err := write(dir, 0o640, files{dsn: "x"}); err != nil || !changed {
		t.Errorf("got %t, %v", changed, err)
	}
	if took := time.Since(began); took > 10*lockPatience {
		t.Errorf("waited for %s", took)
	}
}

// TestReplaceSwept: a writer without the lock loses a temporary file to a sweeper, and makes another one. (S13)
func TestReplaceSwept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stop, done := make(chan struct{}), make(chan struct{})
	var swept atomic.Int32
	go func() {
		defer close(done)
		for {
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				if strings.HasPrefix(e.Name(), ".dbconnector-tmp-") && swept.Load() < 2 && os.Remove(filepath.Join(dir, e.Name())) == nil {
					swept.Add(1)
				}
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for n := 0; n < 5000 && swept.Load() < 2; n++ {
		if _, err := replace(filepath.Join(dir, "f"), []byte(strings.Repeat("x", n)), 0o600); err != nil {
			t.Errorf("time %d: %v", n, err)
			break
		}
	}
	close(stop)
	<-done
	if swept.Load() < 2 {
		t.Fatal("no temporary file was swept away: this test shows nothing")
	}
}

// TestWriteAtOnce: many writers at once, and readers who only ever see a whole file, and with a dsn all that belongs to it.
func TestWriteAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	done := make(chan error)
	contents := []string{strings.Repeat("a", 10000), strings.Repeat("b", 9000)}
	for i := range 4 {
		go func() {
			for j := range 25 {
				text := contents[(i+j)%2]
				if _, err := write(dir, 0o640, files{dsn: text, ca: text, config: []byte(text)}); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for running := 4; running > 0; {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			running--
		default:
			if _, err := os.Stat(filepath.Join(dir, DSNFile)); err != nil {
				continue
			}
			for _, name := range []string{DSNFile, CAFile, ConfigFile} {
				data, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil || !slices.Contains(contents, string(data)) {
					t.Fatalf("%s: read %d bytes, %v", name, len(data), err)
				}
			}
		}
	}
	if got := content(t, dir); len(got) != 3 {
		t.Errorf("left behind: %d files", len(got)-3)
	}
}

// TestNew: what could not be written in the end is refused at once, and nothing is left in the directory. The writer then hands over the
// record's DSN, and the config with that DSN and the path of the CA in it.
func TestNew(t *testing.T) {
	t.Parallel()
	dir, base := t.TempDir(), t.TempDir()
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	parse := func(text string) *vclusterconfig.Config {
		config, err := vclusterconfig.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return config
	}
	const store = "controlPlane: {backingStore: {database: {embedded: {enabled: %s}}}}\n"
	dsn := func(r *tenant.Record) (string, error) { return "postgres://" + r.Database + "@h/d", nil }
	for name, test := range map[string]struct {
		dir    string
		config *vclusterconfig.Config
	}{
		"no directory":             {filepath.Join(base, "no"), nil},
		"a file":                   {file, nil},
		"a config without a store": {dir, parse(strings.Replace(store, "%s", "false", 1))},
	} {
		if _, err := New(test.dir, 0o640, test.config, dsn, false); !fault.Is(err, fault.Refused) {
			t.Errorf("%s: got %v, want it refused", name, err)
		}
	}
	w, err := New(dir, 0o640, parse(strings.Replace(store, "%s", "true", 1)), dsn, false)
	if err != nil {
		t.Fatal(err)
	}
	if left := content(t, dir); len(left) != 0 || w.Written() {
		t.Fatalf("before the first write: %v, written: %t", left, w.Written())
	}
	first, second := &tenant.Record{Database: "one"}, &tenant.Record{Database: "two"}
	first.Server.CA = "pem\n"
	if w.Replaces(first) {
		t.Error("replaces a DSN where there is none")
	}
	if err := w.Write(first); err != nil {
		t.Fatal(err)
	}
	got := content(t, dir)
	if got[DSNFile] != "postgres://one@h/d" || got[CAFile] != "pem\n" ||
		!strings.Contains(got[ConfigFile], got[DSNFile]) || !strings.Contains(got[ConfigFile], filepath.Join(dir, CAFile)) {
		t.Errorf("handed over: %q", got)
	}
	if !w.Written() || w.Replaces(first) || !w.Replaces(second) {
		t.Errorf("written %t, replaces the same %t, another %t", w.Written(), w.Replaces(first), w.Replaces(second))
	}
}

func TestWriteRefusals(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	blocked := filepath.Join(base, "blocked")
	if err := os.MkdirAll(filepath.Join(blocked, DSNFile), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		dir, want string
		class     fault.Class
	}{
		"missing":                {filepath.Join(base, "no"), "must exist: mount an emptyDir there", fault.Refused},
		"a file":                 {file, "must be a directory", fault.Refused},
		"a directory in the way": {blocked, "must be a directory, and the hand-over in it regular files", fault.Refused},
		"no place to write":      {"/proc/self", "", fault.Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := write(test.dir, 0o640, files{dsn: "mysql://u:hunter2@tcp(h:1)/d"})
			switch {
			case err == nil:
				t.Fatal("accepted")
			case test.want != "" && !fault.Is(err, test.class):
				t.Errorf("class %v, want %v: %v", fault.Of(err), test.class, err)
			case !strings.Contains(err.Error(), "DBCONNECTOR_OUTPUT_DIR=") || !strings.Contains(err.Error(), test.want):
				t.Errorf("got %q, want %q", err, test.want)
			case strings.Contains(err.Error(), "hunter2"):
				t.Errorf("shows the dsn: %q", err)
			}
		})
	}
	for _, dsn := range []string{"", "hunter2\n", "hunter2\x00"} {
		if _, err := write(base, 0o640, files{dsn: dsn}); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("DSN %q: got %v", dsn, err)
		}
	}
}

// TestClassifyWriting: what this test's user (root, perhaps) or file system cannot be brought to answer.
func TestClassifyWriting(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err   error
		class fault.Class
		want  string
	}{
		"not allowed": {syscall.EACCES, fault.Refused, "must be a directory that this user can write to"},
		"read-only":   {syscall.EROFS, fault.Refused, "must be a directory that this user can write to"},
		"subPath":     {syscall.EBUSY, fault.Refused, "must not be mounted one by one (subPath)"},
		"full":        {syscall.ENOSPC, fault.Unknown, "is full"},
		"other":       {syscall.EIO, fault.Unknown, "input/output error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := classify("/out", &fs.PathError{Op: "open", Path: "/out/x", Err: test.err})
			if fault.Of(err) != test.class || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), `DBCONNECTOR_OUTPUT_DIR="/out"`) {
				t.Errorf("got class %v, %q", fault.Of(err), err)
			}
		})
	}
}
