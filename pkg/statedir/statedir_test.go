// SPDX-License-Identifier: Apache-2.0

package statedir

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// When these are set, the test binary is a child: it increments the generation in the directory this many times, forever
// where it is 0, and writes a line after each.
const (
	childDir   = "DBCONNECTOR_TEST_STATEDIR"
	childTimes = "DBCONNECTOR_TEST_TIMES"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(m.Run())
}

func child(dir string) int {
	times, _ := strconv.Atoi(os.Getenv(childTimes))
	store, err := Open(dir)
	for i := 0; err == nil && (times == 0 || i < times); i++ {
		if _, err = store.Update(context.Background(), increment); err == nil {
			_, err = os.Stdout.WriteString(".\n")
		}
	}
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error())
		return 1
	}
	return 0
}

func start(t *testing.T, dir string, times int) (*exec.Cmd, *bufio.Reader, *strings.Builder) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, childTimes+"="+strconv.Itoa(times))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, bufio.NewReader(stdout), &stderr
}

func record() *tenant.Record {
	return tenant.NewRecord("uid/blue", "team-a", "blue",
		dbserver.Server{Engine: dbserver.Postgres, Host: "db", Port: 5432, SSLMode: dbserver.Require}, 80)
}

func increment(r *tenant.Record) (*tenant.Record, error) {
	if r == nil {
		return record(), nil
	}
	r.Generation++
	return r, nil
}

func open(t *testing.T) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state", "blue")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func generation(t *testing.T, s *Store) int64 {
	t.Helper()
	r, err := s.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r.Generation
}

func TestLifeOfARecord(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("a new directory is open to its owner only: got %v, %v", info.Mode(), err)
	}
	if r, err := s.Load(t.Context()); r != nil || err != nil {
		t.Fatalf("no record: got %v, %v", r, err)
	}
	if r, err := s.Update(t.Context(), func(old *tenant.Record) (*tenant.Record, error) { return old, nil }); r != nil || err != nil {
		t.Fatalf("nothing of nothing: got %v, %v", r, err)
	}
	want, err := s.Update(t.Context(), increment)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, File)
	before, err := os.Stat(path)
	if err != nil || before.Mode() != 0o600 {
		t.Fatalf("mode of the record: %v, %v", before.Mode(), err)
	}
	got, err := s.Update(t.Context(), func(old *tenant.Record) (*tenant.Record, error) { return old, nil })
	if err != nil || got.Slots[tenant.A] != want.Slots[tenant.A] {
		t.Fatalf("got %v, %v", got, err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Error("an unchanged record must not be written")
	}
	if got, err = s.Update(t.Context(), increment); err != nil || got.Generation != 2 || generation(t, s) != 2 {
		t.Errorf("got %v, %v", got, err)
	}
}

// TestFactsBesideTheRecord: they are written with the record, and neither they nor what has become of their file changes
// whether it can be read.
func TestFactsBesideTheRecord(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	store := func(change func(*tenant.Record)) {
		t.Helper()
		if _, err := s.Update(t.Context(), func(old *tenant.Record) (*tenant.Record, error) {
			if old == nil {
				old = record()
			}
			change(old)
			return old, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	load := func() tenant.Facts {
		t.Helper()
		r, err := s.Load(t.Context())
		if err != nil || r == nil {
			t.Fatalf("the record became unreadable: %v", err)
		}
		return r.Facts
	}
	store(func(*tenant.Record) {})
	if got := load(); got != (tenant.Facts{}) {
		t.Errorf("facts of a record that has none: %+v", got)
	}
	plain, _ := os.ReadFile(filepath.Join(dir, File))
	store(func(r *tenant.Record) { r.Make = tenant.Make }) // and nothing else
	if got := load(); got != (tenant.Facts{Make: tenant.Make}) {
		t.Errorf("got %+v", got)
	}
	if now, _ := os.ReadFile(filepath.Join(dir, File)); string(now) != string(plain) {
		t.Error("the record itself changed: an earlier release would refuse it")
	}
	for name, content := range map[string]string{
		"empty":        "",
		"rubbish":      "{",
		"another form": `{"make":2}`,
		"endless":      `{"make":"2","x":"` + strings.Repeat("x", 1<<20) + `"}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, "facts.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := load(); got.Make != 0 {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if err := os.Remove(filepath.Join(dir, "facts.json")); err != nil {
		t.Fatal(err)
	}
	if got := load(); got.Make != 0 {
		t.Errorf("got %+v", got)
	}

	if err := os.WriteFile(filepath.Join(dir, ApplyFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if load().Apply == "" {
		t.Error("the request is not seen")
	}
	store(func(r *tenant.Record) { r.Make = 1 })
	if load().Apply == "" {
		t.Error("a write that has nothing to do with it ended the request")
	}
	store(func(r *tenant.Record) { r.Apply = "" })
	if load().Apply != "" {
		t.Error("the request was kept after it was done")
	}
}

func TestErrorsOfTheCallerAreItsOwn(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	if _, err := s.Update(t.Context(), increment); err != nil {
		t.Fatal(err)
	}
	mine := errors.New("mine")
	for name, fn := range map[string]func(*tenant.Record) (*tenant.Record, error){
		"error":           func(r *tenant.Record) (*tenant.Record, error) { r.Generation = 99; return r, mine },
		"no record":       func(*tenant.Record) (*tenant.Record, error) { return nil, nil },
		"not to be read":  func(r *tenant.Record) (*tenant.Record, error) { r.Active = "c"; return r, nil },
		"changed in vain": func(r *tenant.Record) (*tenant.Record, error) { delete(r.Slots, tenant.A); return nil, mine },
	} {
		if got, err := s.Update(t.Context(), fn); err == nil || got != nil {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
		if generation(t, s) != 1 {
			t.Errorf("%s: it was written", name)
		}
	}
	if _, err := s.Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) { return nil, mine }); !errors.Is(err, mine) {
		t.Errorf("got %v, want the caller's error", err)
	}
}

// TestDamagedIsNotEmpty: B14, what cannot be read must never be taken for nothing.
func TestDamagedIsNotEmpty(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]string{
		"empty": "", "half": `{"version":1,"tenantUID":"x","slots":{"a":{"password":"hunter2`, "null": "null", "zeros": strings.Repeat("\x00", 100),
		"later version": `{"version":2}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, dir := open(t)
			if err := os.WriteFile(filepath.Join(dir, File), []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
			_, loading := s.Load(t.Context())
			_, updating := s.Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) {
				t.Error("asked about a record that cannot be read")
				return record(), nil
			})
			for _, err := range []error{loading, updating} {
				if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), File) || !strings.Contains(err.Error(), "restore it from a backup") {
					t.Errorf("got %v", err)
				} else if strings.Contains(err.Error(), "hunter2") {
					t.Errorf("shows a password: %v", err)
				}
			}
			if got, err := os.ReadFile(filepath.Join(dir, File)); err != nil || string(got) != data {
				t.Error("the damaged record was touched")
			}
		})
	}
}

func TestRefusedDirectories(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		if _, err := Open(dir); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), `DBCONNECTOR_STATE_DIR=`) {
			t.Errorf("%s: got %v", dir, err)
		}
	}
	for _, errno := range []error{syscall.EACCES, syscall.EROFS} {
		if err := classify("/state", "writing", errno); !fault.Is(err, fault.Refused) ||
			!strings.Contains(err.Error(), "must be a directory that this user can write to") {
			t.Errorf("%v: got %v", errno, err)
		}
	}
}

// TestManyGoroutines and TestManyProcesses: no writer's change is lost.
func TestManyGoroutines(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			other, err := Open(dir) // a store of its own, as another process has
			for range 10 {
				if err == nil {
					_, err = other.Update(t.Context(), increment)
				}
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if got := generation(t, s); got != 80 {
		t.Errorf("80 updates led to generation %d", got)
	}
}

func TestManyProcesses(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	const processes, times = 4, 25
	var group sync.WaitGroup
	for range processes {
		cmd, _, stderr := start(t, dir, times)
		group.Go(func() {
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v: %s", err, stderr)
			}
		})
	}
	group.Wait()
	if got := generation(t, s); got != processes*times {
		t.Errorf("%d updates led to generation %d", processes*times, got)
	}
}

// TestKilled: B12, wherever a process is killed, the record can be read, holds every change that was acknowledged, and can be
// changed; and the dead process's lock and temporary files block no writer.
func TestKilled(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	last := int64(0)
	for round := range 30 {
		cmd, stdout, stderr := start(t, dir, 0)
		acknowledged := int64(0)
		for range round%5 + 1 {
			if _, err := stdout.ReadString('\n'); err != nil {
				t.Fatalf("%v: %s", err, stderr)
			}
			acknowledged++
		}
		if err := cmd.Process.Kill(); err != nil { // somewhere in the next update
			t.Fatal(err)
		}
		_ = cmd.Wait()
		got := generation(t, s)
		if got < last+acknowledged {
			t.Fatalf("round %d: generation %d, want at least %d", round, got, last+acknowledged)
		}
		last = got
	}
	if err := os.WriteFile(filepath.Join(dir, ".dbconnector-tmp-0"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update(t.Context(), increment); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("want the record and the lock and nothing else, got %v, %v", entries, err)
	}
}

func TestWaitingForTheLockEndsWithTheContext(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	_, err := s.Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := s.Update(ctx, increment); !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		return record(), nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A lock that is free is got at the time limit as well: the message that another process holds it must be true.
func TestFreeLockAtTheTimeLimit(t *testing.T) {
	t.Parallel()
	store, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wanted := errors.New("asked")
	if _, err := store.Update(ctx, func(*tenant.Record) (*tenant.Record, error) { return nil, wanted }); !errors.Is(err, wanted) {
		t.Errorf("got %v", err)
	}
}
