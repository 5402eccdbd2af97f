// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// syscallInfo is struct ptrace_syscall_info (linux/ptrace.h), whose layout is the same on every architecture.
type syscallInfo struct {
	op   uint8
	_    [3]uint8
	arch uint32
	ip   uint64
	sp   uint64
	nr   uint64 // of an entry; of an exit, the return value
	args [6]uint64
	_    [2]uint64
}

const (
	ptraceGetSyscallInfo = 0x420e
	infoEntry, infoExit  = 1, 2
	syscallStop          = syscall.SIGTRAP | 0x80
)

// Trace runs dbconnector-init and counts the system calls of all its threads that change the file system below one of
// dirs. It kills the process at call number at (from 1; 0 for none), before or after the kernel has carried it out. It
// uses ptrace, because no proxy can stand between a process and a directory.
func (t *Tenant) Trace(dirs []string, at int, moment Moment) (calls []string, exit int, err error) {
	// The kernel answers ptrace calls only from the thread that began the trace.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(cmp.Or(t.Binary, Init))
	cmd.Env = t.Environ()
	out, err := os.CreateTemp(filepath.Dir(t.Out), "trace-") // the thread that reads a pipe would wait for this one
	if err != nil {
		return nil, 0, fmt.Errorf("making a file for the output: %w", err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stderr = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, 0, fmt.Errorf("starting dbconnector-init: %w", err)
	}
	pid := cmd.Process.Pid
	_ = cmd.Process.Release() // this function waits for the process
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil { // the stop at its exec
		return nil, 0, fmt.Errorf("waiting for dbconnector-init: %w", err)
	}
	const options = syscall.PTRACE_O_TRACESYSGOOD | syscall.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	if err := syscall.PtraceSetOptions(pid, options); err != nil {
		return nil, 0, fmt.Errorf("tracing dbconnector-init: %w", err)
	}
	if err := syscall.PtraceSyscall(pid, 0); err != nil {
		return nil, 0, fmt.Errorf("tracing dbconnector-init: %w", err)
	}
	numbers := map[int]int{} // the call that each thread is in
	for {
		// Only the threads of the traced process. This thread may have started other processes before it came to be locked here: the
		// goroutines that started them wait for them.
		tid, err := syscall.Wait4(-pid, &status, syscall.WALL|unix.WNOTHREAD, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return nil, 0, fmt.Errorf("waiting for dbconnector-init: %w", err)
		}
		if status.Exited() || status.Signaled() {
			if tid != pid {
				continue
			}
			if status.Exited() && status.ExitStatus() != 0 {
				text, _ := os.ReadFile(out.Name())
				return calls, status.ExitStatus(), fmt.Errorf("exit code %d:\n%s", status.ExitStatus(), text)
			}
			return calls, status.ExitStatus(), nil
		}
		signal := 0
		switch s := status.StopSignal(); s {
		case syscallStop:
			var info syscallInfo
			if _, _, errno := syscall.Syscall6(
				syscall.SYS_PTRACE, ptraceGetSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0,
			); errno != 0 {
				break // it was killed
			}
			strike := false
			switch info.op {
			case infoEntry:
				if name := changing(pid, tid, info, dirs); name != "" {
					calls = append(calls, name)
					numbers[tid] = len(calls)
					strike = len(calls) == at && moment == Before
				}
			case infoExit:
				strike = numbers[tid] == at && at != 0 && moment == After
				delete(numbers, tid)
			}
			if strike {
				// The kernel no longer carries out a call that the process has only entered.
				_ = syscall.Kill(pid, syscall.SIGKILL)
				continue
			}
		case syscall.SIGTRAP, syscall.SIGSTOP: // a new thread
		default:
			signal = int(s)
		}
		if err := syscall.PtraceSyscall(tid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return nil, 0, fmt.Errorf("tracing dbconnector-init: %w", err)
		}
	}
}

// changing names a system call that changes files below one of dirs; "" for any other.
func changing(pid, tid int, info syscallInfo, dirs []string) string {
	file := func(fd uint64) string {
		path, _ := os.Readlink("/proc/" + strconv.Itoa(pid) + "/fd/" + strconv.Itoa(int(int32(fd))))
		return path
	}
	name, path := "", ""
	switch info.nr {
	case unix.SYS_OPENAT:
		if info.args[2]&(unix.O_CREAT|unix.O_TRUNC) != 0 {
			name, path = "open", word(tid, info.args[1])
		}
	case unix.SYS_MKDIRAT:
		name, path = "mkdir", word(tid, info.args[1])
	case unix.SYS_UNLINKAT:
		name, path = "unlink", word(tid, info.args[1])
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		name, path = "rename", word(tid, info.args[3])
	case unix.SYS_WRITE, unix.SYS_PWRITE64:
		name, path = "write", file(info.args[0])
	case unix.SYS_FSYNC:
		name, path = "fsync", file(info.args[0])
	case unix.SYS_FCHMOD:
		name, path = "chmod", file(info.args[0])
	case unix.SYS_FLOCK:
		name, path = "lock", file(info.args[0])
	}
	for _, dir := range dirs {
		if path != "" && (path == dir || strings.HasPrefix(path, dir+"/")) {
			return name + " " + filepath.Base(path)
		}
	}
	return ""
}

// word reads a string from a stopped thread's memory.
func word(tid int, address uint64) string {
	buf := make([]byte, 512)
	n, _ := syscall.PtracePeekData(tid, uintptr(address), buf)
	text, _, _ := strings.Cut(string(buf[:n]), "\x00")
	return text
}
