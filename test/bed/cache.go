// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// item is something the cache can hold.
type item struct {
	name  string // what users say: "postgres-17"
	key   string // its directory; changes with everything that changes the contents
	build func(ctx context.Context, dir string) error
}

// items lists all items by name.
func items() map[string]item {
	all := map[string]item{}
	for _, v := range Versions {
		all[v.String()] = databaseItem(v)
	}
	for _, it := range kubeItems() {
		all[it.name] = it
	}
	for _, it := range clientItems() {
		all[it.name] = it
	}
	for _, it := range nodeItems() {
		all[it.name] = it
	}
	return all
}

// Items lists the names that [Fetch] knows.
func Items() []string {
	var names []string
	for name := range items() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Fetch makes sure that the items are in the cache, so that nothing has to be
// downloaded or built later. "all" stands for all of them.
//
// Downloads run side by side. Builds of Go programs wait for each other: the
// compiler uses every core by itself.
func Fetch(ctx context.Context, names ...string) error {
	known := items()
	if slices.Contains(names, "all") {
		names = Items()
	}
	for _, name := range names {
		if _, ok := known[name]; !ok {
			return fmt.Errorf("no item %q; there are %s", name, strings.Join(Items(), " "))
		}
	}
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { _, errs[i] = cached(ctx, known[name]) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// CacheDir returns the cache's directory: $DBCONNECTOR_TEST_CACHE, else
// dbconnector-test in the user's cache directory, for root /var/cache.
//
// Root's own cache directory will not do: the servers refuse to run as root, and
// no other account may look into root's home.
func CacheDir() (string, error) {
	dir := os.Getenv("DBCONNECTOR_TEST_CACHE")
	switch {
	case dir != "":
	case os.Geteuid() == 0:
		dir = "/var/cache/dbconnector-test"
	default:
		base, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("finding cache directory (set DBCONNECTOR_TEST_CACHE): %w", err)
		}
		dir = filepath.Join(base, "dbconnector-test")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("finding cache directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making cache directory: %w", err)
	}
	if os.Geteuid() == 0 {
		for d := dir; d != "/"; d = filepath.Dir(d) {
			if info, err := os.Stat(d); err != nil {
				return "", fmt.Errorf("checking cache directory: %w", err)
			} else if info.Mode().Perm()&0o001 == 0 {
				return "", fmt.Errorf("cache directory %s: %s is closed to other accounts, and the servers do not run as root", dir, d)
			}
		}
	}
	return dir, nil
}

// cached returns the item's directory, building it first if need be.
func cached(ctx context.Context, it item) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	return cachedIn(ctx, cache, it)
}

func cachedIn(ctx context.Context, cache string, it item) (string, error) {
	dir := filepath.Join(cache, it.key)
	if exists(dir) { // it got there by rename, so it is complete
		return dir, nil
	}
	unlock, err := lock(ctx, filepath.Join(cache, it.key+".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(dir) {
		return dir, nil
	}
	// The process that left one of these is dead: we hold the lock.
	left, _ := filepath.Glob(filepath.Join(cache, ".tmp-"+it.key+"-*"))
	for _, l := range left {
		_ = os.RemoveAll(l)
	}
	tmp, err := os.MkdirTemp(cache, ".tmp-"+it.key+"-")
	if err != nil {
		return "", fmt.Errorf("making directory for %s: %w", it.name, err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", fmt.Errorf("opening directory for %s: %w", it.name, err)
	}
	progress("fetching %s", it.name)
	start := time.Now()
	if err := it.build(ctx, tmp); err != nil {
		return "", fmt.Errorf("fetching %s: %w", it.name, err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", fmt.Errorf("keeping %s: %w", it.name, err)
	}
	progress("fetched %s in %s", it.name, time.Since(start).Round(time.Second))
	return dir, nil
}

// lock takes an exclusive lock that ends with the process at the latest. The
// descriptor is new for each call, so it also excludes other goroutines.
func lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	err = Wait(ctx, func(context.Context) error {
		return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	})
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	return func() { _ = f.Close() }, nil
}

const (
	tempPrefix = "dbconnector-bed-"
	ownerFile  = "owner"
)

// holdDir marks dir as in use until the file is closed or the process ends. The
// mark is locked before it gets its name, so the sweep never sees it unlocked.
func holdDir(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ownerFile+"-")
	if err != nil {
		return nil, fmt.Errorf("marking %s: %w", dir, err)
	}
	if err := errors.Join(
		syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB),
		os.Rename(f.Name(), filepath.Join(dir, ownerFile)),
	); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("marking %s: %w", dir, err)
	}
	return f, nil
}

// sweepOnce sweeps before this process's first directory.
var sweepOnce = sync.OnceFunc(func() { sweep(os.TempDir()) })

// sweep removes the remains of beds that were killed: tests of crashes kill
// often, and a MySQL data directory has a hundred megabytes.
func sweep(temp string) {
	owners, _ := filepath.Glob(filepath.Join(temp, tempPrefix+"*", ownerFile))
	for _, name := range owners {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.RemoveAll(filepath.Dir(name))
		}
		_ = f.Close()
	}
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

// run runs a command; its output is part of the error.
func run(ctx context.Context, dir string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off") // a command that runs go runs it in one module
	return output(cmd)
}

func output(cmd *exec.Cmd) (string, error) {
	var out, all strings.Builder
	var mu sync.Mutex // the two streams are copied side by side
	cmd.Stdout = &lockedWriter{&mu, io.MultiWriter(&out, &all)}
	cmd.Stderr = &lockedWriter{&mu, &all}
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("running %s: %w\n%s", strings.Join(cmd.Args, " "), err, tail(all.String()))
	}
	return out.String(), nil
}

// lockedWriter shares a writer with others.
type lockedWriter struct {
	mu *sync.Mutex
	io.Writer
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Writer.Write(p)
}

// tail returns the last lines of a log, which is what an error has room for.
func tail(log string) string {
	lines := strings.Split(strings.TrimRight(log, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// need makes sure that a Debian package is installed on this machine, unless what it
// would bring is there already.
func need(ctx context.Context, there func() bool, pkg string) error {
	if there() {
		return nil
	}
	progress("installing %s", pkg)
	if err := aptGet(ctx, "update"); err != nil {
		return fmt.Errorf("installing %s: %w", pkg, err)
	}
	if err := aptGet(ctx, "install", "--yes", "--no-install-recommends", pkg); err != nil {
		return fmt.Errorf("installing %s: %w", pkg, err)
	}
	return nil
}

// aptGet runs apt-get on this machine. It waits for dpkg's lock by itself but not for that
// of the package lists, hence ours.
func aptGet(ctx context.Context, args ...string) error {
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	unlock, err := lock(ctx, filepath.Join(cache, "apt-get.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-o", "DPkg::Lock::Timeout=300"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	_, err = output(cmd)
	return err
}
