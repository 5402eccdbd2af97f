// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"dbconnector/test/bed"
)

// Process is a run of dbconnector-init or dbconnector-rotate.
type Process struct {
	// Cmd may be changed before the start. Output, if set, gets what the process writes to its standard output, in place of the log.
	Cmd    *exec.Cmd
	Output io.Writer

	began, ended  time.Time
	started, done chan struct{}
	waited        error

	mu  sync.Mutex
	log bytes.Buffer
}

// NewProcess makes a run ready, with this environment and nothing else. It ends with ctx at the latest.
func NewProcess(ctx context.Context, binary string, env ...string) *Process {
	p := &Process{Cmd: exec.CommandContext(ctx, binary), started: make(chan struct{}), done: make(chan struct{})}
	p.Cmd.Env = append([]string{}, env...)
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's ^C goes to the test only
	return p
}

// Start starts the process.
func (p *Process) Start() error {
	p.Cmd.Stdout, p.Cmd.Stderr = p, p
	if p.Output != nil {
		p.Cmd.Stdout = p.Output
	}
	p.began = time.Now()
	err := bed.StartTied(p.Cmd, func(err error) {
		p.waited, p.ended = err, time.Now()
		close(p.done)
	})
	defer close(p.started)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("starting %s: %w", p.Cmd.Path, err)
	p.waited = err
	close(p.done)
	return err
}

// Write collects what the process logs.
func (p *Process) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(data)
}

// Result is how a run ended.
type Result struct {
	// Exit is the exit code; -1 for a process that was killed.
	Exit int
	Took time.Duration
	Log  string
}

// Err returns nil for a run that succeeded.
func (r Result) Err() error {
	if r.Exit == 0 {
		return nil
	}
	return fmt.Errorf("exit code %d after %s:\n%s", r.Exit, r.Took.Round(time.Millisecond), r.Log)
}

// Wait waits for the end of a process that was started.
func (p *Process) Wait() (Result, error) {
	<-p.done
	if exit := (*exec.ExitError)(nil); p.waited != nil && !errors.As(p.waited, &exit) {
		return Result{}, fmt.Errorf("running %s: %w", p.Cmd.Path, p.waited)
	}
	return Result{Exit: p.Exit(), Took: p.ended.Sub(p.began), Log: p.Log()}, nil
}

// Run starts the process and waits for its end.
func (p *Process) Run() (Result, error) {
	if err := p.Start(); err != nil {
		return Result{}, err
	}
	return p.Wait()
}

// Pid is the process ID.
func (p *Process) Pid() int { return p.Cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill ends the process with SIGKILL and waits until it is gone. It may be called before the start, for which it waits, and after the end.
func (p *Process) Kill() {
	<-p.started
	if p.Cmd.Process != nil {
		_ = p.Cmd.Process.Kill() // a process that has just ended is fine, too
	}
	<-p.done
}

// Terminate asks the process to end, as the kubelet does, and does not wait for it. A process that has ended is fine,
// too.
func (p *Process) Terminate() { _ = p.Cmd.Process.Signal(syscall.SIGTERM) }

// Stop asks the process to end, waits for it and returns its exit code, which should be 0.
func (p *Process) Stop(ctx context.Context) (exit int, err error) {
	p.Terminate()
	select {
	case <-p.done:
		return p.Exit(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("%s was asked to end, and runs on: %w", p.Cmd.Path, ctx.Err())
	}
}

// Exit is the exit code of a process that has ended; -1 for one that was killed.
func (p *Process) Exit() int {
	<-p.done
	return p.Cmd.ProcessState.ExitCode()
}

// Log returns what the process wrote so far.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// Visible is what every user of the node sees of the process: its arguments and its environment. Both are empty when it has ended.
func (p *Process) Visible() (argv, environ string) {
	proc := fmt.Sprintf("/proc/%d/", p.Pid())
	a, _ := os.ReadFile(proc + "cmdline")
	e, _ := os.ReadFile(proc + "environ")
	return string(a), string(e)
}

// Lines are the lines of the log with a message, as they were logged.
func (p *Process) Lines(message string) (list []map[string]any) {
	for _, fields := range Lines(p.Log()) {
		if fields != nil && fields["msg"] == message {
			list = append(list, fields)
		}
	}
	return list
}

// Lines decodes a log; a line that is no JSON object is nil.
func Lines(log string) (list []map[string]any) {
	for line := range strings.Lines(log) {
		var fields map[string]any
		_ = json.Unmarshal([]byte(line), &fields)
		list = append(list, fields)
	}
	return list
}

// Get requests a path from the sidecar's HTTP server. It waits until the server is up.
func (p *Process) Get(ctx context.Context, path string) (status int, body string, err error) {
	var address string
	err = bed.Wait(ctx, func(context.Context) error {
		if lines := p.Lines("serving"); len(lines) > 0 {
			address, _ = lines[0]["address"].(string)
			return nil
		}
		select {
		case <-p.done:
			return bed.Permanent(fmt.Errorf("dbconnector-rotate has ended:\n%s", p.Log()))
		default:
			return fmt.Errorf("dbconnector-rotate does not serve yet:\n%s", p.Log())
		}
	})
	if err != nil {
		return 0, "", err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return 0, "", err
	}
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	return response.StatusCode, string(data), err
}

// Metrics are its metrics by name and labels, as in the text format: `dbconnector_postponed{reason="NotAdopted"}`.
func (p *Process) Metrics(ctx context.Context) (map[string]float64, error) {
	status, body, err := p.Get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("/metrics answers %d:\n%s", status, body)
	}
	metrics := map[string]float64{}
	for lines := bufio.NewScanner(strings.NewReader(body)); lines.Scan(); {
		line := lines.Text()
		cut := strings.LastIndexByte(line, ' ')
		if cut < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		value, err := strconv.ParseFloat(line[cut+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("/metrics: %w", err)
		}
		metrics[line[:cut]] = value
	}
	return metrics, nil
}
