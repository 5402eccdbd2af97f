// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/handover"
	"dbconnector/pkg/rotation"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// These tests cover faults of the directory of the hand-over. As in a pod, it is a file system of its own, in memory.

// inMemory mounts a small tmpfs as the hand-over of a control plane, and fills it as init does.
func inMemory(tb testing.TB, p *rig.Tenant) {
	tb.Helper()
	require.NoError(tb, unix.Mount("tmpfs", p.Out, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=64k,mode=755"), "mounting a tmpfs")
	tb.Cleanup(func() {
		assert.NoError(tb, unix.Unmount(p.Out, unix.MNT_DETACH))
	})
	rig.Provision(tb, p)
}

// handed are the files of a hand-over, by name.
func handed(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(tb, err, "reading the hand-over")
	files := map[string]string{}
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		require.NoError(tb, err, "reading the hand-over")
		files[entry.Name()] = string(content)
	}
	return files
}

// TestDirectoryFull: the emptyDir is full when the sidecar has to hand the new password over. The old files stay whole
// and work. The sidecar describes the fault, and hands over as soon as there is room.
func TestDirectoryFull(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	inMemory(t, p)
	second := rig.Replica(t, p)
	full, well := rig.Sidecar(t, p, hourly...), rig.Sidecar(t, second, hourly...)
	release := hold(t, server, p, full, well)
	filler, err := os.Create(filepath.Join(p.Out, "of-another-container"))
	require.NoError(t, err, "filling the directory")
	for err == nil {
		_, err = filler.Write(bytes.Repeat([]byte("x"), 4<<10))
	}
	require.NoError(t, filler.Close(), "filling the directory")
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the directory: %v", err)
	}
	before := handed(t, p.Out)

	release()
	rotated := rig.Until(t, p, "generation 2", generation(2))
	failing(t, full, "project")
	if !strings.Contains(full.Log(), `is full: `) || !strings.Contains(full.Log(), "no space left on device") {
		t.Errorf("the sidecar does not say so:\n%s", full.Log())
	}
	if now := handed(t, p.Out); !maps.Equal(now, before) {
		t.Errorf("the hand-over was damaged: %v", slices.Sorted(maps.Keys(now)))
	}
	works(t, p, server)
	accepts(t, rotated)
	ready(t, full)
	handsOver(t, second, server)

	require.NoError(t, os.Remove(filler.Name()), "making room")
	handsOver(t, p, server)
	gauge(t, full, "dbconnector_consecutive_failures", 0)
	if left, want := slices.Sorted(maps.Keys(handed(t, p.Out))), slices.Sorted(maps.Keys(handed(t, second.Out))); !slices.Equal(left, want) {
		t.Errorf("left behind: %q, want %q", left, want)
	}
}

// TestDirectoryReadOnly: the same with a directory that is read-only for a while. A directory that is read-only from
// the beginning is a mistake in the manifest.
func TestDirectoryReadOnly(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	inMemory(t, p)
	sidecar := rig.Sidecar(t, p, hourly...)
	release := hold(t, server, p, sidecar)
	before := handed(t, p.Out)
	require.NoError(t, unix.Mount("", p.Out, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""), "making the directory read-only")
	release()
	rotated := rig.Until(t, p, "generation 2", generation(2))
	failing(t, sidecar, "project")
	if !strings.Contains(sidecar.Log(), "must be a directory that this user can write to") || !strings.Contains(sidecar.Log(), "read-only file system") {
		t.Errorf("the sidecar does not say so:\n%s", sidecar.Log())
	}
	if now := handed(t, p.Out); !maps.Equal(now, before) {
		t.Errorf("the hand-over was damaged: %v", slices.Sorted(maps.Keys(now)))
	}
	works(t, p, server)
	accepts(t, rotated)
	ready(t, sidecar)

	late := rig.Sidecar(t, p, hourly...)
	<-late.Done()
	if last := lastLine(t, late); late.Exit() != 2 || !strings.Contains(fmt.Sprint(last["error"]), "must be a directory that this user can write to") {
		t.Errorf("exit code %d, the last line is %v", late.Exit(), last)
	}

	require.NoError(t, unix.Mount("", p.Out, "", unix.MS_REMOUNT, ""), "making the directory writable")
	nudge(t, p)
	handsOver(t, p, server)
	gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
}

// tamperings are the changes that another container may make to the hand-over.
var tamperings = map[string]func(dir string) error{
	"a mode":          func(dir string) error { return os.Chmod(filepath.Join(dir, handover.DSNFile), 0o644) },
	"a file deleted":  func(dir string) error { return os.Remove(filepath.Join(dir, handover.DSNFile)) },
	"another deleted": func(dir string) error { return os.Remove(filepath.Join(dir, handover.CAFile)) },
	"a file overwritten": func(dir string) error {
		return os.WriteFile(filepath.Join(dir, handover.DSNFile), []byte("postgres://somewhere/else"), 0o640)
	},
	"a byte changed": func(dir string) error {
		file := filepath.Join(dir, handover.CAFile)
		content, err := os.ReadFile(file)
		if err == nil {
			content[40] ^= 1
			err = os.WriteFile(file, content, 0o640)
		}
		return err
	},
	"a link": func(dir string) error {
		file := filepath.Join(dir, handover.CAFile)
		return errors.Join(os.Remove(file), os.Symlink("/etc/hostname", file))
	},
	"a FIFO": func(dir string) error { // (S13)
		file := filepath.Join(dir, handover.DSNFile)
		return errors.Join(os.Remove(file), unix.Mkfifo(file, 0o640))
	},
}

// tampered describes how a hand-over differs from its former state, in content or mode.
func tampered(dir string, was map[string]string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) != len(was) {
		return fmt.Errorf("%d files, want %d", len(entries), len(was))
	}
	for name, content := range was {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if info.Mode() != 0o640 {
			return fmt.Errorf("%s has mode %s", name, info.Mode())
		}
		now, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(now) != content {
			return fmt.Errorf("%s has changed: %w", name, err)
		}
	}
	return nil
}

// TestFilesChanged: another container changes the files of the hand-over. The next look of the sidecar, which a changed
// record causes here, restores them.
func TestFilesChanged(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	sidecar := rig.Sidecar(t, p, hourly...)
	gauge(t, sidecar, "dbconnector_credential_generation", 1)
	before := handed(t, p.Out)
	require.NoError(t, tampered(p.Out, before), "looking at the hand-over")
	for what, tamper := range tamperings {
		require.NoError(t, tamper(p.Out), what)
		if tampered(p.Out, before) == nil {
			t.Errorf("%s: nothing has changed", what)
		}
		nudge(t, p)
		bed.Eventually(t, rig.Patience, func(context.Context) error {
			if err := tampered(p.Out, before); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		})
	}
	works(t, p, server)
	gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
}

// TestDirectoryLocked: another container of the pod holds a lock on the output directory, and puts a FIFO where the
// hand-over belongs. The sidecar still hands a rotation over, and ends when it is asked to. (S13)
func TestDirectoryLocked(t *testing.T) {
	t.Parallel()
	p, server := plane(t, rig.Host(t))
	lock, err := os.Open(p.Out)
	require.NoError(t, err, "opening the directory")
	t.Cleanup(func() { lock.Close() })
	sidecar := rig.Sidecar(t, p, hourly...)
	release := hold(t, server, p, sidecar)
	require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX), "locking the directory")
	for _, file := range []string{handover.DSNFile, handover.CAFile} {
		require.NoError(t, errors.Join(os.Remove(filepath.Join(p.Out, file)), unix.Mkfifo(filepath.Join(p.Out, file), 0o640)), "making a FIFO")
	}
	release()
	rig.Until(t, p, "generation 2", generation(2))
	bed.Eventually(t, rig.Patience, func(context.Context) error {
		if info, err := os.Lstat(filepath.Join(p.Out, handover.DSNFile)); err != nil || !info.Mode().IsRegular() {
			return fmt.Errorf("there is no hand-over: %w", err)
		}
		return nil
	})
	handsOver(t, p, server)
	gauge(t, sidecar, "dbconnector_consecutive_failures", 0)

	// A new sidecar begins under the lock, and both end while it is held.
	second := rig.Sidecar(t, p, hourly...)
	gauge(t, second, "dbconnector_credential_generation", 2)
	for _, s := range []*rig.Process{sidecar, second} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if exit, err := s.Stop(ctx); err != nil || exit != 0 {
			t.Errorf("asked to end: exit code %d, %v", exit, err)
		}
		cancel()
	}
}

// TestFilesAreLookedAfter: the record does not change for weeks, and the sidecar still checks the files every minute.
// The test runs the loop and the writer of the program with a clock that moves at once. The sidecar does not rewrite a
// correct file, and asks no server about it.
func TestFilesAreLookedAfter(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, err := handover.New(dir, 0o640, nil, open.DSN, false)
	require.NoError(t, err, "preparing the hand-over")
	ca, err := bed.Authority()
	require.NoError(t, err, "making a CA")
	r := tenant.NewRecord(
		"uid", "ns", "v",
		dbserver.Server{Engine: dbserver.Postgres, Host: "db.example", Port: 5432, SSLMode: dbserver.VerifyFull, CA: string(ca.PEM)},
		10,
	)
	require.NoError(t, p.Write(r), "handing over, as init does")
	synctest.Test(t, func(t *testing.T) {
		r.ProvisionedAt, r.RotatedAt = time.Now(), time.Now()
		ctx, stop := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() {
			err := rotation.Run(ctx, rotation.Rotation{
				Policy: rotation.Policy{Period: 1000 * time.Hour, Grace: time.Minute}, Namespace: "ns", VCluster: "v",
				Store: quiet{record: r}, Publish: p.Write, Replaces: p.Replaces, Observer: uneventful{t}, Attempt: time.Second, Log: zap.NewNop(),
			}, func(dbserver.Server) rotation.Server {
				t.Error("the server was asked")
				return nil
			})
			assert.NoError(t, err)
		})
		synctest.Wait()
		before := handed(t, dir)
		if len(before) != 2 {
			t.Fatalf("handed over: %v", slices.Sorted(maps.Keys(before)))
		}
		files := stat(t, dir)
		<-time.After(24 * time.Hour)
		synctest.Wait()
		if now := stat(t, dir); now != files {
			t.Errorf("the hand-over was written:\n%s\nbefore:\n%s", now, files)
		}
		for what, tamper := range tamperings {
			require.NoError(t, tamper(dir), what)
			<-time.After(61 * time.Second)
			synctest.Wait()
			assert.NoErrorf(t, tampered(dir, before), "%s, and a minute later", what)
		}
		stop()
		group.Wait()
	})
}

// quiet is a store whose record never changes.
type quiet struct{ record *tenant.Record }

func (q quiet) Follow(ctx context.Context) <-chan tenant.News {
	news := make(chan tenant.News, 1)
	news <- tenant.News{Record: q.record.Clone()}
	context.AfterFunc(ctx, func() { close(news) })
	return news
}

func (quiet) Load(context.Context) (*tenant.Record, error) {
	return nil, errors.New("the sidecar read the record again")
}

func (quiet) Update(context.Context, func(*tenant.Record) (*tenant.Record, error)) (*tenant.Record, error) {
	return nil, errors.New("the sidecar wrote the record")
}

// uneventful is an observer of a run in which nothing may happen.
type uneventful struct{ testing.TB }

func (uneventful) Record(*tenant.Record, time.Time) {}
func (n uneventful) Rotated(*tenant.Record)         { n.Error("rotated") }
func (n uneventful) Retired(*tenant.Record)         { n.Error("retired") }
func (n uneventful) Postponed(why rotation.Reason, _ string) {
	if why != "" {
		n.Errorf("postponed: %s", why)
	}
}
func (n uneventful) Failed(step string, err error) { n.Errorf("%s failed: %v", step, err) }
func (n uneventful) Healthy()                      { n.Error("healthy again") }
