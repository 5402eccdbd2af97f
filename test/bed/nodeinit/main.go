// SPDX-License-Identifier: Apache-2.0

// Command nodeinit makes the walls around the bed's Kubernetes node and is the first process inside them:
//
//	nodeinit run DIR      makes the node's cgroup, and the node's first process in namespaces of its own; waits for it
//	nodeinit init DIR     is that process: root file system, network, and whatever orphans there are
//	nodeinit enter DIR …  runs a program inside, and ends as it does
//	nodeinit net DIR …    runs a program of the machine in the node's network only
//
// Everything that a node leaves about (mounts, interfaces, firewall rules, processes) belongs to these namespaces, so it
// is gone when the first process is, however that ended. Only the cgroup and DIR remain, for the bed to remove.
//
// DIR is a directory of the bed that has settings.json; run writes there pid, cgroups and, when all is up, ready.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// settings is what the bed says about the node.
type settings struct {
	Root  string // an unpacked Debian release, of which /usr is taken
	Cache string // the bed's cache, seen inside under the same name: programs are run from there
	Name  string // host name
	IP    string // address
}

// path is where programs are inside.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Namespaces belong to threads: everything happens on the main one, from which children are made, too.
func init() { runtime.LockOSThread() }

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: nodeinit run | init | enter | net DIR [ARG ...]")
		os.Exit(2)
	}
	dir, args := os.Args[2], os.Args[3:]
	var err error
	switch os.Args[1] {
	case "run":
		err = outside(dir)
	case "init":
		err = first(dir)
	case "enter":
		err = enter(dir, args)
	case "net":
		err = network(dir, args)
	default:
		err = fmt.Errorf("no mode %q", os.Args[1])
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() > 0 {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nodeinit:", err)
		os.Exit(1)
	}
}

// outside makes the cgroup and the first process, and waits for its end.
func outside(dir string) error {
	groups, err := makeCgroups(filepath.Base(dir))
	// Remove the remains of a failed start, too.
	if werr := os.WriteFile(filepath.Join(dir, "cgroups"), []byte(strings.Join(groups, "\n")), 0o644); werr != nil {
		err = errors.Join(err, fmt.Errorf("writing cgroups: %w", werr))
	}
	if err != nil {
		return err
	}
	// The root of the new cgroup namespace is where its maker is.
	home, err := cgroupsOf("self")
	if err != nil {
		return err
	}
	if err := join(groups); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "init", dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("making namespaces: %w", err)
	}
	var back []string
	for _, h := range home {
		back = append(back, h.dir)
	}
	// On cgroup v2 a group that has processes hands nothing on to its children.
	if err := join(back); err != nil {
		return err
	}
	pid := filepath.Join(dir, "pid")
	if err := errors.Join(
		os.WriteFile(pid+".new", []byte(strconv.Itoa(cmd.Process.Pid)), 0o644),
		os.Rename(pid+".new", pid),
	); err != nil {
		return fmt.Errorf("writing pid: %w", err)
	}
	return cmd.Wait()
}

// first is process 1 of the node.
func first(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "settings.json"))
	if err != nil {
		return fmt.Errorf("reading settings: %w", err)
	}
	var s settings
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("reading settings: %w", err)
	}
	if err := enterRoot(dir, s); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return fmt.Errorf("setting host name: %w", err)
	}
	if err := os.Setenv("PATH", path); err != nil {
		return fmt.Errorf("setting PATH: %w", err)
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		// A cable with both ends here: an interface that is up without a peer at its other end.
		{"link", "add", "eth0", "type", "veth", "peer", "name", "far0"},
		{"link", "set", "far0", "up"},
		{"link", "set", "eth0", "up"},
		{"address", "add", s.IP + "/32", "dev", "eth0"},
		// Leads nowhere. Without a route the node's own processes could not address a Service, whose address is
		// replaced only after the route was found.
		{"route", "add", "default", "dev", "eth0", "src", s.IP},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("switching on forwarding: %w", err)
	}
	orphans := make(chan os.Signal, 1)
	signal.Notify(orphans, syscall.SIGCHLD)
	if err := os.WriteFile(filepath.Join(dir, "ready"), nil, 0o644); err != nil {
		return fmt.Errorf("writing ready: %w", err)
	}
	for {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
		<-orphans
	}
}

// enter runs a program inside the node.
func enter(dir string, argv []string) error {
	groups, err := os.ReadFile(filepath.Join(dir, "cgroups"))
	if err != nil {
		return fmt.Errorf("reading cgroups: %w", err)
	}
	var leaves []string
	for _, group := range strings.Fields(string(groups)) {
		leaves = append(leaves, leaf(group))
	}
	if err := join(leaves); err != nil {
		return err
	}
	// All of them first: afterwards, /proc is another one.
	type namespace struct {
		kind int
		name string
		fd   int
	}
	namespaces := []*namespace{
		{kind: unix.CLONE_NEWCGROUP, name: "cgroup"},
		{kind: unix.CLONE_NEWIPC, name: "ipc"},
		{kind: unix.CLONE_NEWUTS, name: "uts"},
		{kind: unix.CLONE_NEWNET, name: "net"},
		{kind: unix.CLONE_NEWPID, name: "pid"},
		{kind: unix.CLONE_NEWNS, name: "mnt"},
	}
	for _, ns := range namespaces {
		if ns.fd, err = openNamespace(dir, ns.name); err != nil {
			return err
		}
	}
	// A thread that shares its working directory with others may not change its mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leaving the other threads: %w", err)
	}
	for _, ns := range namespaces {
		if err := unix.Setns(ns.fd, ns.kind); err != nil {
			return fmt.Errorf("entering namespace %s: %w", ns.name, err)
		}
	}
	if err := errors.Join(os.Chdir("/"), os.Setenv("PATH", path)); err != nil {
		return fmt.Errorf("entering: %w", err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	// Without Pdeathsig: Go would have the child look for its parent, which cannot be seen from inside, and kill itself.
	// At the latest, it ends with the node.
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	go func() {
		for sig := range signals {
			_ = cmd.Process.Signal(sig)
		}
	}()
	return cmd.Wait()
}

// network becomes a program in the node's network.
func network(dir string, argv []string) error {
	fd, err := openNamespace(dir, "net")
	if err != nil {
		return err
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering network: %w", err)
	}
	return syscall.Exec(argv[0], argv, os.Environ())
}

func openNamespace(dir, name string) (int, error) {
	pid, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		return 0, fmt.Errorf("reading pid: %w", err)
	}
	fd, err := unix.Open(filepath.Join("/proc", string(pid), "ns", name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("opening namespace %s: %w", name, err)
	}
	return fd, nil
}
