// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a server's process, which does not outlive ours.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how; to be read after done
	log  string
}

// startProcess runs argv, a program's absolute path and its arguments, with its output appended to the file log. With drop, and
// if we are root, it runs as an unprivileged account.
func startProcess(log string, drop bool, argv ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening log: %w", err)
	}
	defer func() { _ = out.Close() }()
	// Without a context: the process outlives that of its start.
	cmd := &exec.Cmd{Path: argv[0], Args: argv}
	cmd.Dir = filepath.Dir(log)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = serverEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid: true, // a terminal's ^C is for us; we stop the server in order
	}
	if drop {
		if cmd.SysProcAttr.Credential, err = account(); err != nil {
			return nil, err
		}
	}
	p := &process{cmd: cmd, done: make(chan struct{}), log: log}
	if err := StartTied(cmd, func(err error) { p.err = err; close(p.done) }); err != nil {
		return nil, fmt.Errorf("starting %s: %w", argv[0], err)
	}
	return p, nil
}

// StartTied starts a process that the kernel kills when this one ends, however that comes about. When the process itself has
// ended, and if it was started at all, ended is called with what Wait says.
func StartTied(cmd *exec.Cmd, ended func(error)) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that forked ends, and threads do end before the process, others' that
		// were locked to a goroutine for one. So this one is the goroutine's own for as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended(cmd.Wait())
		}
	}()
	return <-started
}

// runAs runs a short command as the servers' account, with input from a string.
func runAs(ctx context.Context, input string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = serverEnv()
	cmd.Stdin = strings.NewReader(input)
	credential, err := account()
	if err != nil {
		return err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	_, err = output(cmd)
	return err
}

// serverEnv is the environment of servers: nothing of ours, since PGDATA, MYSQL_HOME
// or a locale would change what they do.
func serverEnv() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC", "HOME=/", "TMPDIR=" + os.TempDir()}
}

// account is the user that the database servers run as: ourselves, or if we are root the
// account nobody. It must have an entry in passwd, initdb looks.
var account = sync.OnceValues(func() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		return nil, fmt.Errorf("finding account for servers: %w", err)
	}
	uid, uerr := strconv.ParseUint(nobody.Uid, 10, 32)
	gid, gerr := strconv.ParseUint(nobody.Gid, 10, 32)
	if err := errors.Join(uerr, gerr); err != nil {
		return nil, fmt.Errorf("finding account for servers: %w", err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
})

// give makes the servers' account the owner of files.
func give(names ...string) error {
	credential, err := account()
	if err != nil || credential == nil {
		return err
	}
	for _, name := range names {
		if err := os.Chown(name, int(credential.Uid), int(credential.Gid)); err != nil {
			return fmt.Errorf("giving file to servers' account: %w", err)
		}
	}
	return nil
}

// stop asks the process to end, and insists when the context does.
func (p *process) stop(ctx context.Context, sig syscall.Signal) error {
	p.signal(sig)
	p.resume() // a paused process handles no signal
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		p.kill()
		return fmt.Errorf("stopping process, killed it: %w\n%s", context.Cause(ctx), tail(p.text()))
	}
}

// kill ends the process and all of its descendants at once. PostgreSQL's backends are
// sessions of their own, out of reach of a signal to the process group; and as long as
// one of them lives, the server does not start again.
func (p *process) kill() {
	p.pause() // so that it makes no more of them meanwhile
	family := p.descendants()
	p.signal(syscall.SIGKILL)
	for _, pid := range family {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.done
	for _, pid := range family { // not our children: all we can do is look
		for state := "R"; state != "" && state != "Z"; state, _ = processState(pid) {
			time.Sleep(time.Millisecond)
		}
	}
}

// pause stops the process and all of its descendants.
func (p *process) pause() {
	p.signal(syscall.SIGSTOP) // first, so that it makes no more of them meanwhile
	for _, pid := range p.descendants() {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
}

func (p *process) resume() {
	for _, pid := range p.descendants() {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	p.signal(syscall.SIGCONT)
}

func (p *process) signal(sig syscall.Signal) {
	// Process remembers that it was waited for, when the id may be another process's.
	_ = p.cmd.Process.Signal(sig)
}

func (p *process) descendants() []int {
	select {
	case <-p.done:
		return nil // the id may be another process's by now
	default:
	}
	children := map[int][]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if state, parent := processState(pid); state != "" {
			children[parent] = append(children[parent], pid)
		}
	}
	found := children[p.cmd.Process.Pid]
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i]]...)
	}
	return found
}

// processState returns a process's state, Z for one that is dead and not yet waited for,
// empty for none, and its parent.
func processState(pid int) (state string, parent int) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0
	}
	// "pid (command) state ppid ..."; the command may contain anything.
	field := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	parent, _ = strconv.Atoi(field[1])
	return field[0], parent
}

// ready waits until check succeeds, or the process ends, or the context or a
// generous time does.
func (p *process) ready(ctx context.Context, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := Wait(ctx, func(ctx context.Context) error {
		select {
		case <-p.done:
			return Permanent(fmt.Errorf("process ended: %w", errors.Join(p.err, errors.New("before it was ready"))))
		default:
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return check(ctx)
	})
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, tail(p.text()))
		p.kill()
	}
	return err
}

func (p *process) text() string {
	log, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(log)
}

// freePort finds a port that no process listens on, below those the kernel gives to
// outgoing connections: one of these could take it before the server does.
func freePort() (int, error) {
	// A child that is forked meanwhile would keep the port busy until it is another
	// program. The lock is what package syscall has for such cases.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	for range 100 {
		port := 10000 + rand.IntN(20000)
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			continue
		}
		_ = l.Close()
		return port, nil
	}
	return 0, errors.New("finding a free port: none in a hundred tries")
}

// FreeAddress is one on the loopback interface that no process listens on.
func FreeAddress(tb testing.TB) string {
	tb.Helper()
	port, err := freePort()
	if err != nil {
		tb.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}
