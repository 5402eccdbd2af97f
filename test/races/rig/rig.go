// SPDX-License-Identifier: Apache-2.0

// Package rig runs dbconnector-init as it is shipped, as a process of its own, on real servers, and can end it at any
// moment at which it talks to one of them or touches a file. The tests of races and crashes and the benchmarks use it.
package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"dbconnector/pkg/statedir"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// Build builds a command of this module into dir, with the flags with which dbconnector-init is shipped.
func Build(ctx context.Context, dir, name, pkg string) (string, error) {
	return build(ctx, dir, name, pkg)
}

func build(ctx context.Context, dir, name, pkg string, flags ...string) (string, error) {
	path := filepath.Join(dir, name)
	return path, bed.Build(ctx, path, pkg, flags...)
}

// BuildInit builds dbconnector-init into dir, as shipped, except for the time for which a login must be without
// sessions before init resets its password. The tests kill a repair at each of its many points, and their sessions
// never come and go.
func BuildInit(ctx context.Context, dir string) (string, error) {
	return build(ctx, dir, "dbconnector-init", "cmd/init", "-X main.quiet=10ms")
}

// BuildBriefRotate builds dbconnector-rotate into dir, as shipped, except for the longest time for which a retirement
// waits for earlier logins that have not ended.
func BuildBriefRotate(ctx context.Context, dir string, loginTime time.Duration) (string, error) {
	return build(ctx, dir, "dbconnector-rotate-brief", "cmd/rotate", "-X main.loginTime="+loginTime.String())
}

// Connector is the data of a connector for a server. If addr is not empty, it replaces the server's own address. Where
// tls is false the connection is in clear text; otherwise the client verifies the server.
func Connector(s *bed.Server, user, password, addr string, tls bool) map[string]string {
	host, port := s.Host, strconv.Itoa(s.Port)
	if addr != "" {
		host, port, _ = strings.Cut(addr, ":")
	}
	kind := "mysql"
	if s.Engine == bed.Postgres {
		kind = "postgres"
	}
	data := map[string]string{"type": kind, "endpoint": host, "port": port, "user": user, "password": password}
	if tls {
		data["caCert"] = string(s.CA)
	} else {
		data["sslMode"] = "disable"
	}
	return data
}

// WriteConnector writes a connector as the kubelet mounts one: a file a key.
func WriteConnector(dir string, data map[string]string) error {
	for key, value := range data {
		if err := os.WriteFile(filepath.Join(dir, key), []byte(value), 0o600); err != nil {
			return fmt.Errorf("writing the connector: %w", err)
		}
	}
	return nil
}

// Tenant is a control plane for which dbconnector-init runs.
type Tenant struct {
	Binary string
	// Name is the vCluster's name and, without a Cluster, the tenant UID.
	Name string
	// Out is the directory of the hand-over.
	Out string
	// State is the record's directory; empty: the record is a Secret in Cluster.
	State string
	// ConnectorDir is the connector's directory; empty: it is the Secret ConnectorName in Cluster.
	ConnectorDir, ConnectorName string

	Cluster *Cluster
	// Kubeconfig is the kubeconfig for the API server; Cluster's own by default.
	Kubeconfig string
	Timeout    time.Duration
	// Settings are further variables, such as "DBCONNECTOR_CONNECTION_LIMIT=60".
	Settings []string
}

// Environ is the environment of a run. It takes only the path from the environment of the tests.
func (t *Tenant) Environ() []string {
	timeout := t.Timeout
	if timeout == 0 {
		timeout = 2 * time.Minute
	}
	env := append([]string{
		"PATH=" + os.Getenv("PATH"), "DBCONNECTOR_VCLUSTER_NAME=" + t.Name, "DBCONNECTOR_OUTPUT_DIR=" + t.Out,
		"DBCONNECTOR_TIMEOUT=" + timeout.String(),
	}, t.Settings...)
	if t.State != "" {
		env = append(env, "DBCONNECTOR_STATE_DIR="+t.State)
	}
	if t.ConnectorDir != "" {
		env = append(env, "DBCONNECTOR_CONNECTOR_DIR="+t.ConnectorDir)
	}
	if t.State != "" && t.ConnectorDir != "" {
		return append(env, "DBCONNECTOR_TENANT_UID="+t.Name)
	}
	kubeconfig := t.Kubeconfig
	if kubeconfig == "" {
		kubeconfig = t.Cluster.API.Kubeconfig
	}
	// All control planes share the one namespace, and none has a workload: to a new one, the others look like leftovers of
	// a renamed release.
	env = append(env, "KUBECONFIG="+kubeconfig, "DBCONNECTOR_NAMESPACE="+Namespace, "DBCONNECTOR_ALLOW_NEW=true")
	if t.ConnectorDir == "" {
		env = append(env, "DBCONNECTOR_CONNECTOR="+t.ConnectorName)
	}
	return env
}

// UID is the tenant's UID.
func (t *Tenant) UID() string {
	if t.State != "" && t.ConnectorDir != "" {
		return t.Name
	}
	return tenant.UID(t.Cluster.UID, t.Name)
}

// Names are the tenant's names on the server.
func (t *Tenant) Names() tenant.Names { return tenant.NamesOf(t.UID()) }

// Record reads the tenant's record; nil where there is none.
func (t *Tenant) Record(ctx context.Context) (*tenant.Record, error) {
	if t.State == "" {
		return t.Cluster.Record(ctx, t.Name)
	}
	data, err := os.ReadFile(filepath.Join(t.State, statedir.File))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the record: %w", err)
	}
	return tenant.DecodeRecord(data)
}

// Forget deletes the tenant's record.
func (t *Tenant) Forget(ctx context.Context) error {
	if t.State == "" {
		return t.Cluster.Forget(ctx, t.Name)
	}
	return os.Remove(filepath.Join(t.State, statedir.File))
}

// DSN is the connection string that was handed over.
func (t *Tenant) DSN() (string, error) {
	dsn, err := os.ReadFile(filepath.Join(t.Out, "dsn"))
	if err != nil {
		return "", fmt.Errorf("reading the hand-over: %w", err)
	}
	return string(dsn), nil
}

// Process is a run of dbconnector-init.
type Process struct {
	cmd     *exec.Cmd
	stderr  bytes.Buffer
	began   time.Time
	started chan struct{}
}

// Result is how a run ended.
type Result struct {
	// Exit is the exit code; -1 for a process that was killed.
	Exit   int
	Took   time.Duration
	Stderr string
}

// Err returns nil for a run that succeeded.
func (r Result) Err() error {
	if r.Exit == 0 {
		return nil
	}
	return fmt.Errorf("exit code %d after %s:\n%s", r.Exit, r.Took.Round(time.Millisecond), r.Stderr)
}

// Prepare makes a run ready; Kill may be handed out before it has started.
func (t *Tenant) Prepare(ctx context.Context) *Process {
	p := &Process{cmd: exec.CommandContext(ctx, t.Binary), started: make(chan struct{})}
	p.cmd.Env, p.cmd.Stderr, p.cmd.Stdout = t.Environ(), &p.stderr, &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's ^C goes to the test only
	return p
}

// Run starts the process and waits for its end.
func (p *Process) Run() (Result, error) {
	p.began = time.Now()
	if err := p.cmd.Start(); err != nil {
		return Result{}, fmt.Errorf("starting dbconnector-init: %w", err)
	}
	close(p.started)
	err := p.cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return Result{}, fmt.Errorf("running dbconnector-init: %w", err)
	}
	return Result{Exit: p.cmd.ProcessState.ExitCode(), Took: time.Since(p.began), Stderr: p.stderr.String()}, nil
}

// Kill ends the process with SIGKILL and returns when the kernel has sent it.
func (p *Process) Kill() {
	<-p.started
	_ = p.cmd.Process.Kill() // a process that has just ended is fine, too
}

// Run runs dbconnector-init for the tenant.
func (t *Tenant) Run(ctx context.Context) (Result, error) { return t.Prepare(ctx).Run() }

// Together runs dbconnector-init for all tenants at once, and waits for all.
func Together(ctx context.Context, tenants []*Tenant) ([]Result, error) {
	results, errs := make([]Result, len(tenants)), make([]error, len(tenants))
	gate := make(chan struct{})
	var wg sync.WaitGroup
	for i, t := range tenants {
		wg.Go(func() {
			<-gate
			results[i], errs[i] = t.Run(ctx)
		})
	}
	close(gate)
	wg.Wait()
	return results, errors.Join(errs...)
}
