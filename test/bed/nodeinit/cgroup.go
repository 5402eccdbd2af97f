// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// hierarchy is a tree of cgroups that matters to a node: the one of cgroup v2 or, on a machine with v1, each that has
// controllers.
type hierarchy struct {
	controllers []string // none for v2
	mount       string   // where the machine has it
	dir         string   // the group of the process that was asked for, as far up as it can be seen
}

// cgroupsOf finds the hierarchies, and where a process is in them.
func cgroupsOf(pid string) ([]hierarchy, error) {
	membership, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	if err != nil {
		return nil, fmt.Errorf("reading cgroups: %w", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("reading mounts: %w", err)
	}
	var v1, v2 []hierarchy
	for line := range strings.Lines(string(membership)) {
		// number:controllers:/path
		field := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(field) != 3 || strings.HasPrefix(field[1], "name=") {
			continue
		}
		var h hierarchy
		kind := "cgroup2"
		if field[1] != "" {
			kind, h.controllers = "cgroup", strings.Split(field[1], ",")
		}
		for mount := range strings.Lines(string(mounts)) {
			// id parent device root mountpoint options [tags] - type source superoptions
			left, right, _ := strings.Cut(strings.TrimSpace(mount), " - ")
			l, r := strings.Fields(left), strings.Fields(right)
			if len(l) < 5 || len(r) < 3 || r[0] != kind {
				continue
			}
			if len(h.controllers) > 0 && !slices.Contains(strings.Split(r[2], ","), h.controllers[0]) {
				continue
			}
			h.mount, h.dir = l[4], l[4]
			if below, err := filepath.Rel(l[3], field[2]); err == nil && filepath.IsLocal(below) {
				if dir := filepath.Join(h.mount, below); exists(filepath.Join(dir, "cgroup.procs")) {
					h.dir = dir
				}
			}
			break
		}
		switch {
		case h.mount == "": // cannot be used
		case h.controllers == nil:
			v2 = append(v2, h)
		default:
			v1 = append(v1, h)
		}
	}
	// With both, the controllers that matter are v1's.
	if len(v1) > 0 {
		return v1, nil
	}
	if len(v2) > 0 {
		return v2, nil
	}
	return nil, errors.New("this machine has no cgroups mounted")
}

// makeCgroups makes a group in each hierarchy, below our own one where that can be, and returns the directories.
func makeCgroups(name string) ([]string, error) {
	hierarchies, err := cgroupsOf("self")
	if err != nil {
		return nil, err
	}
	var made []string
	for _, h := range hierarchies {
		parent := h.dir
		if h.controllers == nil {
			if parent, err = parentFor(h); err != nil {
				return made, err
			}
		}
		dir := filepath.Join(parent, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return made, fmt.Errorf("making cgroup: %w", err)
		}
		made = append(made, dir)
		// No process can enter a group of v1 without processors and memory.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if !slices.Contains(h.controllers, "cpuset") {
				continue
			}
			value, err := os.ReadFile(filepath.Join(parent, file))
			if err == nil {
				err = write(filepath.Join(dir, file), string(bytes.TrimSpace(value)))
			}
			if err != nil {
				return made, fmt.Errorf("filling cgroup: %w", err)
			}
		}
	}
	return made, nil
}

// needed are the controllers of v2 that a node cannot do without.
var needed = []string{"cpu", "memory", "pids"}

// parentFor finds the group nearest to ours that can hand controllers on to a child. A group with processes of its own
// cannot, unless it is the machine's root.
func parentFor(h hierarchy) (string, error) {
	var errs []error
	for dir := h.dir; ; dir = filepath.Dir(dir) {
		err := enable(dir)
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
		if dir == h.mount {
			break
		}
	}
	// In a container, the root that can be seen is an ordinary group and has all of the container's processes. They go
	// into a child, as every container runtime inside a container does it.
	if errors.Is(errs[len(errs)-1], unix.EBUSY) {
		child := filepath.Join(h.mount, "init")
		if err := os.MkdirAll(child, 0o755); err != nil {
			return "", fmt.Errorf("making cgroup: %w", err)
		}
		pids, err := os.ReadFile(filepath.Join(h.mount, "cgroup.procs"))
		if err != nil {
			return "", fmt.Errorf("reading cgroup: %w", err)
		}
		for pid := range strings.FieldsSeq(string(pids)) {
			_ = write(filepath.Join(child, "cgroup.procs"), pid) // it may have ended
		}
		err = enable(h.mount)
		if err == nil {
			return h.mount, nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("finding a cgroup that can have children with %s: %w", strings.Join(needed, ", "), errors.Join(errs...))
}

// enable hands a group's controllers on to its children.
func enable(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("reading cgroup: %w", err)
	}
	have := strings.Fields(string(text))
	for _, controller := range needed {
		if !slices.Contains(have, controller) {
			return fmt.Errorf("%s has no controller %s", dir, controller)
		}
	}
	// All at once, or some are handed on and others not.
	return write(filepath.Join(dir, "cgroup.subtree_control"), "+"+strings.Join(have, " +"))
}

// leaf is where in a node's group its daemons are: on v2 beside the pods', not above them.
func leaf(group string) string {
	if dir := filepath.Join(group, "daemons"); exists(dir) {
		return dir
	}
	return group
}

// join puts this process into groups.
func join(groups []string) error {
	for _, group := range groups {
		if err := write(filepath.Join(group, "cgroup.procs"), "0"); err != nil {
			return fmt.Errorf("joining cgroup: %w", err)
		}
	}
	return nil
}

// mountCgroups makes the node's cgroup what it sees as the root of all.
func mountCgroups(dir string) error {
	hierarchies, err := cgroupsOf("self")
	if err != nil {
		return err
	}
	if hierarchies[0].controllers == nil {
		if err := mount("cgroup2", dir, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return err
		}
		daemons := filepath.Join(dir, "daemons")
		if err := os.Mkdir(daemons, 0o755); err != nil {
			return fmt.Errorf("making cgroup: %w", err)
		}
		return join([]string{daemons})
	}
	if err := mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return err
	}
	for _, h := range hierarchies {
		name := strings.Join(h.controllers, ",")
		at := filepath.Join(dir, name)
		if err := os.Mkdir(at, 0o755); err != nil {
			return fmt.Errorf("mounting cgroup: %w", err)
		}
		if err := mount("cgroup", at, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, name); err != nil {
			return err
		}
		for _, controller := range h.controllers {
			if controller == name {
				continue
			}
			if err := os.Symlink(name, filepath.Join(dir, controller)); err != nil {
				return fmt.Errorf("mounting cgroup: %w", err)
			}
		}
	}
	return nil
}

func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}
