// SPDX-License-Identifier: Apache-2.0

// Package consumer plays the part of a vCluster's pod for tests, the demo and the
// load measurement: it runs the real dbconnector-init, reads the config.yaml of the
// hand-over as strictly as vCluster does, and starts a real kine on what it finds.
//
// The connector is a directory here, and so is the record, unless replicas share one.
// Other tests cover the differences with Secrets; a consumer sees nothing of it.
package consumer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"dbconnector/pkg/handover"
	"dbconnector/pkg/statedir"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/deploy"
	"dbconnector/test/races/rig"
)

// Build builds dbconnector-init in dir, as a release is built, and returns its path.
func Build(ctx context.Context, dir string) (string, error) { return build(ctx, dir, "init") }

// BuildRotate is [Build] for dbconnector-rotate.
func BuildRotate(ctx context.Context, dir string) (string, error) { return build(ctx, dir, "rotate") }

func build(ctx context.Context, dir, name string) (string, error) {
	program := filepath.Join(dir, "dbconnector-"+name)
	return program, bed.Build(ctx, program, "cmd/"+name)
}

// ShippedValues is the vCluster config that the chart makes of the Helm values of an example of this repository: "open-source"
// or "licensed". Helm unfolds the anchors that are in them.
func ShippedValues(ctx context.Context, example string) ([]byte, error) {
	root, err := bed.Root()
	if err != nil {
		return nil, err
	}
	return deploy.Values(filepath.Join(root, "deploy", "kustomize", "examples", example, "values.yaml"))
}

// WriteConnector makes dir a connector for a server. A server with TLS is verified in
// full; for one without, the connector says so.
func WriteConnector(dir string, s *bed.Server, user, password string) error {
	kind := "mysql" // MariaDB, too
	if s.Engine == bed.Postgres {
		kind = "postgres"
	}
	keys := map[string]string{
		"type": kind, "endpoint": s.Host, "port": strconv.Itoa(s.Port), "user": user, "password": password,
	}
	if s.CA == nil {
		keys["sslMode"] = "disable"
	} else {
		keys["caCert"] = string(s.CA)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("writing connector: %w", err)
	}
	for key, value := range keys {
		if err := os.WriteFile(filepath.Join(dir, key), []byte(value), 0o600); err != nil {
			return fmt.Errorf("writing connector: %w", err)
		}
	}
	return nil
}

// Tenant is one vCluster.
type Tenant struct {
	Name string
	// Program is dbconnector-init.
	Program string
	// Connector is a directory as [WriteConnector] makes it.
	Connector string
	// Dir is where the tenant keeps its vCluster config, its record and its hand-over.
	Dir string
	// Env are further settings for the programs.
	Env []string
	// Cluster keeps the record; nil: it is a directory in Dir. Tenants with the same name
	// in one cluster are replicas of one vCluster.
	Cluster *rig.Cluster
}

// NewTenant prepares for a tenant in a new directory dir whose vCluster is installed
// with these Helm values.
func NewTenant(name, program, connector, dir string, values []byte) (*Tenant, error) {
	t := &Tenant{Name: name, Program: program, Connector: connector, Dir: dir}
	if err := errors.Join(
		os.MkdirAll(t.Output(), 0o750),
		os.WriteFile(t.values(), values, 0o600),
	); err != nil {
		return nil, fmt.Errorf("preparing tenant %s: %w", name, err)
	}
	return t, nil
}

// Output is the directory of the hand-over.
func (t *Tenant) Output() string { return filepath.Join(t.Dir, "handover") }

func (t *Tenant) values() string { return filepath.Join(t.Dir, "vcluster.yaml") }
func (t *Tenant) state() string  { return filepath.Join(t.Dir, "record") }

// Environ is the environment of both programs.
func (t *Tenant) Environ() []string {
	env := []string{
		"DBCONNECTOR_VCLUSTER_NAME=" + t.Name,
		"DBCONNECTOR_CONNECTOR_DIR=" + t.Connector,
		"DBCONNECTOR_OUTPUT_DIR=" + t.Output(),
		"DBCONNECTOR_VCLUSTER_CONFIG=" + t.values(),
		"DBCONNECTOR_TIMEOUT=30s",
	}
	if t.Cluster == nil {
		env = append(env, "DBCONNECTOR_TENANT_UID=consumer/"+t.Name, "DBCONNECTOR_STATE_DIR="+t.state())
	} else {
		env = append(env, "KUBECONFIG="+t.Cluster.API.Kubeconfig, "DBCONNECTOR_NAMESPACE="+rig.Namespace, "DBCONNECTOR_ALLOW_NEW=true")
	}
	return append(env, t.Env...)
}

// Ready is the message of dbconnector-init when it has succeeded.
type Ready struct {
	Database, User string
	// Restart: the restart path sufficed.
	Restart bool
	// Took is the run's time as seen from outside.
	Took time.Duration `json:"-"`
}

// Provision runs dbconnector-init to its end.
func (t *Tenant) Provision(ctx context.Context) (Ready, error) {
	cmd := exec.CommandContext(ctx, t.Program)
	cmd.Env = t.Environ()
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	if err != nil {
		return Ready{}, fmt.Errorf("running dbconnector-init for %s: %w\n%s", t.Name, err, log.Bytes())
	}
	for line := range bytes.Lines(log.Bytes()) {
		var message struct {
			Msg string
			Ready
		}
		if err := json.Unmarshal(line, &message); err == nil && message.Msg == "ready" {
			message.Took = took
			return message.Ready, nil
		}
	}
	return Ready{}, fmt.Errorf("running dbconnector-init for %s: it never says that it is ready\n%s", t.Name, log.Bytes())
}

// Record reads the tenant's record, for credentials that no consumer would see.
func (t *Tenant) Record(ctx context.Context) (record *tenant.Record, err error) {
	if t.Cluster != nil {
		record, err = t.Cluster.Record(ctx, t.Name)
	} else {
		var store *statedir.Store
		if store, err = statedir.Open(t.state()); err == nil {
			record, err = store.Load(ctx)
		}
	}
	if err == nil && record == nil {
		err = fmt.Errorf("tenant %s has no record", t.Name)
	}
	return record, err
}

// Store reads the store that the hand-over's config.yaml names, see [ReadConfig].
func (t *Tenant) Store() (Store, error) {
	config, err := os.ReadFile(filepath.Join(t.Output(), handover.ConfigFile))
	if err != nil {
		return Store{}, fmt.Errorf("reading hand-over of %s: %w", t.Name, err)
	}
	return ReadConfig(config)
}
