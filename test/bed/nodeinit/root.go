// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// sysctls are settings that the kubelet insists on and would change for the whole machine. It finds them set.
var sysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// enterRoot makes the node's root file system and changes to it: programs of the Debian release, no file of the machine
// but the bed's.
func enterRoot(dir string, s settings) error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	root := filepath.Join(dir, "root")
	if err := errors.Join(os.MkdirAll(root, 0o755), os.MkdirAll(filepath.Join(dir, "var"), 0o755)); err != nil {
		return fmt.Errorf("making root: %w", err)
	}
	if err := mount("tmpfs", root, "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(root, name) }
	for _, name := range []string{"usr", "etc", "var", "run", "tmp", "opt", "proc", "sys", "dev", "root"} {
		if err := os.MkdirAll(in(name), 0o755); err != nil {
			return fmt.Errorf("making root: %w", err)
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink(filepath.Join("usr", name), in(name)); err != nil {
			return fmt.Errorf("making root: %w", err)
		}
	}
	if err := errors.Join(
		bindReadOnly(filepath.Join(s.Root, "usr"), in("usr")), // shared with the machine: no node may change it
		bind(filepath.Join(dir, "etc"), in("etc")),
		mountVar(filepath.Join(dir, "var"), in("var")),
		mount("tmpfs", in("run"), "tmpfs", unix.MS_NOSUID, "mode=755"),
		mount("proc", in("proc"), "proc", 0, ""),
		mount("sysfs", in("sys"), "sysfs", 0, ""),
		mountDevices(in("dev")),
		mountCgroups(in("sys/fs/cgroup")),
	); err != nil {
		return err
	}
	// A path of the bed has the same name inside. Last, since it may be below one of the above.
	if err := errors.Join(os.MkdirAll(in(dir), 0o755), os.MkdirAll(in(s.Cache), 0o755)); err != nil {
		return fmt.Errorf("making root: %w", err)
	}
	if err := errors.Join(bind(dir, in(dir)), bindReadOnly(s.Cache, in(s.Cache))); err != nil {
		return err
	}
	for name, value := range sysctls {
		real, mask := in(filepath.Join("proc/sys", name)), in(filepath.Join("run/sysctl", name))
		if _, err := os.Stat(real); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(mask), 0o755), os.WriteFile(mask, []byte(value+"\n"), 0o644)); err != nil {
			return fmt.Errorf("hiding sysctl %s: %w", name, err)
		}
		if err := bind(mask, real); err != nil {
			return err
		}
	}
	// The old root is stacked below the new one, and then taken away.
	if err := os.Chdir(root); err != nil {
		return fmt.Errorf("changing root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("changing root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("changing root: %w", err)
	}
	return nil
}

// mountVar puts the directory of the node's state in its place, or memory if containers' layers cannot be stacked there:
// where the bed itself is in a container, its directory is stacked already.
func mountVar(from, to string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(from, &stat); err != nil {
		return fmt.Errorf("looking at %s: %w", from, err)
	}
	if stat.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return mount("tmpfs", to, "tmpfs", 0, "mode=755")
	}
	return bind(from, to)
}

// mountDevices makes a /dev with the few devices that every program expects.
func mountDevices(dev string) error {
	if err := mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return err
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty", "kmsg"} {
		file := filepath.Join(dev, name)
		if err := os.WriteFile(file, nil, 0o666); err != nil {
			return fmt.Errorf("making device: %w", err)
		}
		// Not made again: that may be forbidden where using them is not.
		if err := bind(filepath.Join("/dev", name), file); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, filepath.Join(dev, link)); err != nil {
			return fmt.Errorf("making device: %w", err)
		}
	}
	for _, name := range []string{"pts", "shm", "mqueue"} {
		if err := os.Mkdir(filepath.Join(dev, name), 0o755); err != nil {
			return fmt.Errorf("making device: %w", err)
		}
	}
	return errors.Join(
		mount("devpts", filepath.Join(dev, "pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"),
		mount("tmpfs", filepath.Join(dev, "shm"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"),
		mount("mqueue", filepath.Join(dev, "mqueue"), "mqueue", 0, ""),
	)
}

func bind(from, to string) error { return mount(from, to, "", unix.MS_BIND, "") }

func bindReadOnly(from, to string) error {
	if err := bind(from, to); err != nil {
		return err
	}
	return mount("", to, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mounting %s%s on %s: %w", source, kind, target, err)
	}
	return nil
}
