// SPDX-License-Identifier: Apache-2.0

// Package rig runs the programs as they are shipped, as processes of their own, on real servers. It can end them at any moment at which
// they talk to a server or touch a file, play the clients of a tenant, and look at what a server holds of one.
package rig

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"dbconnector/pkg/statedir"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

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

// WriteConnector writes a connector as the kubelet mounts one: a file a key. It makes the directory.
func WriteConnector(dir string, data map[string]string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("writing the connector: %w", err)
	}
	for key, value := range data {
		if err := os.WriteFile(filepath.Join(dir, key), []byte(value), 0o600); err != nil {
			return fmt.Errorf("writing the connector: %w", err)
		}
	}
	return nil
}

// Tenant is a control plane for which dbconnector-init runs.
type Tenant struct {
	// Name is the vCluster's name and, without a Cluster, the tenant UID.
	Name string
	// Binary is dbconnector-init; Init by default.
	Binary string
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
	// Config is the file with the vCluster's config; empty: init hands over the DSN alone.
	Config string
	// Settings are further variables, such as "DBCONNECTOR_CONNECTION_LIMIT=60".
	Settings []string
}

// Environ is the environment of a run. It takes only the path from the environment of the tests.
func (t *Tenant) Environ() []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "DBCONNECTOR_VCLUSTER_NAME=" + t.Name, "DBCONNECTOR_OUTPUT_DIR=" + t.Out,
		"DBCONNECTOR_TIMEOUT=" + cmp.Or(t.Timeout, 2*time.Minute).String(),
	}
	if t.Config != "" {
		env = append(env, "DBCONNECTOR_VCLUSTER_CONFIG="+t.Config)
	}
	env = append(env, t.Settings...)
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

// Prepare makes a run of dbconnector-init ready.
func (t *Tenant) Prepare(ctx context.Context) *Process {
	return NewProcess(ctx, cmp.Or(t.Binary, Init), t.Environ()...)
}

// Run runs dbconnector-init for the tenant.
func (t *Tenant) Run(ctx context.Context) (Result, error) { return t.Prepare(ctx).Run() }

// Provision is [Tenant.Run] where anything but success is an error.
func (t *Tenant) Provision(ctx context.Context) (Result, error) {
	r, err := t.Run(ctx)
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		err = fmt.Errorf("running dbconnector-init for %s: %w", t.Name, err)
	}
	return r, err
}

// Rotate starts dbconnector-rotate beside a replica of the tenant's control plane, with the hand-over in t.Out, on a
// free port. Settings are NAME=value without the prefix; the last of two with the same name wins. An empty binary is Rotate. Rotate does
// not wait. The process ends with ctx at the latest.
func (t *Tenant) Rotate(ctx context.Context, binary string, settings ...string) (*Process, error) {
	env := append(t.Environ(), "DBCONNECTOR_HTTP_ADDRESS=127.0.0.1:0")
	for _, s := range settings {
		env = append(env, "DBCONNECTOR_"+s)
	}
	p := NewProcess(ctx, cmp.Or(binary, Rotate), env...)
	if err := p.Start(); err != nil {
		return nil, err
	}
	return p, nil
}

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
