// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"dbconnector/test/bed"
)

// BuildRotate builds dbconnector-rotate into dir, as shipped.
func BuildRotate(ctx context.Context, dir string) (string, error) {
	return Build(ctx, dir, "dbconnector-rotate", "cmd/rotate")
}

// Sidecar is a run of dbconnector-rotate.
type Sidecar struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex
	log bytes.Buffer
}

// Write collects what the process logs.
func (s *Sidecar) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

// Rotate starts dbconnector-rotate beside a replica of the tenant's control plane, with the hand-over in t.Out, on a
// free port. env holds further settings, such as "DBCONNECTOR_ROTATION_PERIOD=2s"; the last of two with the same name
// wins. Rotate does not wait. The process ends with ctx at the latest.
func (t *Tenant) Rotate(ctx context.Context, binary string, env ...string) (*Sidecar, error) {
	return StartSidecar(ctx, binary, append(t.Environ(), env...)...)
}

// StartSidecar is [Tenant.Rotate] with the whole environment except the port.
func StartSidecar(ctx context.Context, binary string, env ...string) (*Sidecar, error) {
	s := &Sidecar{cmd: exec.CommandContext(ctx, binary), done: make(chan struct{})}
	s.cmd.Env = append([]string{"DBCONNECTOR_HTTP_ADDRESS=127.0.0.1:0"}, env...)
	s.cmd.Stdout, s.cmd.Stderr = s, s
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := bed.StartTied(s.cmd, func(error) { close(s.done) }); err != nil { // Exit returns the result of Wait
		return nil, fmt.Errorf("starting dbconnector-rotate: %w", err)
	}
	return s, nil
}

// Pid is the process ID.
func (s *Sidecar) Pid() int { return s.cmd.Process.Pid }

// Done is closed when the process has ended.
func (s *Sidecar) Done() <-chan struct{} { return s.done }

// Kill ends the process with SIGKILL and waits until it is gone.
func (s *Sidecar) Kill() {
	_ = s.cmd.Process.Kill() // a process that has just ended is fine, too
	<-s.done
}

// Terminate asks the process to end, as the kubelet does, and does not wait for it. A process that has ended is fine,
// too.
func (s *Sidecar) Terminate() { _ = s.cmd.Process.Signal(syscall.SIGTERM) }

// Stop asks the process to end, waits for it and returns its exit code, which should be 0.
func (s *Sidecar) Stop(ctx context.Context) (exit int, err error) {
	s.Terminate()
	select {
	case <-s.done:
		return s.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("dbconnector-rotate was asked to end, and runs on: %w", ctx.Err())
	}
}

// Exit is the exit code of a process that has ended; -1 for one that was killed.
func (s *Sidecar) Exit() int {
	<-s.done
	return s.cmd.ProcessState.ExitCode()
}

// Log returns the log of the process so far.
func (s *Sidecar) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// Lines are the lines of the log with a message, as they were logged.
func (s *Sidecar) Lines(message string) []map[string]any {
	var out []map[string]any
	for line := range strings.Lines(s.Log()) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) == nil && fields["msg"] == message {
			out = append(out, fields)
		}
	}
	return out
}

// Get requests a path from the sidecar's HTTP server. It waits until the server is up.
func (s *Sidecar) Get(ctx context.Context, path string) (status int, body string, err error) {
	var address string
	err = bed.Wait(ctx, func(context.Context) error {
		if lines := s.Lines("serving"); len(lines) > 0 {
			address, _ = lines[0]["address"].(string)
			return nil
		}
		select {
		case <-s.done:
			return bed.Permanent(fmt.Errorf("dbconnector-rotate has ended:\n%s", s.Log()))
		default:
			return fmt.Errorf("dbconnector-rotate does not serve yet:\n%s", s.Log())
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
func (s *Sidecar) Metrics(ctx context.Context) (map[string]float64, error) {
	status, body, err := s.Get(ctx, "/metrics")
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
