// SPDX-License-Identifier: Apache-2.0

// Package controlplane plays the part of a vCluster's pod for tests, the demo and the
// load measurement: it runs the real dbconnector-init, reads the config.yaml of the
// hand-over as strictly as vCluster does, and starts a real kine on what it finds.
//
// The connector is a directory here, and so is the record, unless replicas share one.
// Other tests cover the differences with Secrets; a control plane sees nothing of it.
package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"dbconnector/pkg/handover"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
	"dbconnector/test/shipped"
)

// ShippedValues is the vCluster config that the chart makes of the Helm values of an example of this repository: "open-source"
// or "licensed". Helm unfolds the anchors that are in them.
func ShippedValues(ctx context.Context, example string) ([]byte, error) {
	root, err := bed.Root()
	if err != nil {
		return nil, err
	}
	return shipped.Values(filepath.Join(root, "deploy", "kustomize", "examples", example, "values.yaml"))
}

// WriteConnector makes dir a connector for a server. A server with TLS is verified in
// full; for one without, the connector says so.
func WriteConnector(dir string, s *bed.Server, user, password string) error {
	return rig.WriteConnector(dir, rig.Connector(s, user, password, "", s.CA != nil))
}

// Tenant is one vCluster.
type Tenant struct{ *rig.Tenant }

// NewTenant prepares for a tenant in a new directory dir whose vCluster is installed
// with these Helm values. connector is a directory as [WriteConnector] makes it.
func NewTenant(name, connector, dir string, values []byte) (*Tenant, error) {
	t := &Tenant{&rig.Tenant{
		Name: name, Out: filepath.Join(dir, "handover"), State: filepath.Join(dir, "record"), ConnectorDir: connector,
		Config: filepath.Join(dir, "vcluster.yaml"), Timeout: 30 * time.Second,
	}}
	if err := errors.Join(os.MkdirAll(t.Out, 0o750), os.MkdirAll(handover.PrivateDir(t.Out), 0o700), os.WriteFile(t.Config, values, 0o600)); err != nil {
		return nil, fmt.Errorf("preparing tenant %s: %w", name, err)
	}
	return t, nil
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
	result, err := t.Tenant.Provision(ctx)
	if err != nil {
		return Ready{}, err
	}
	for line := range strings.Lines(result.Log) {
		var message struct {
			Msg string
			Ready
		}
		if err := json.Unmarshal([]byte(line), &message); err == nil && message.Msg == "ready" {
			message.Took = result.Took
			return message.Ready, nil
		}
	}
	return Ready{}, fmt.Errorf("running dbconnector-init for %s: it never says that it is ready\n%s", t.Name, result.Log)
}

// Record is [rig.Tenant.Record] where the lack of a record is an error.
func (t *Tenant) Record(ctx context.Context) (*tenant.Record, error) {
	record, err := t.Tenant.Record(ctx)
	if err == nil && record == nil {
		err = fmt.Errorf("tenant %s has no record", t.Name)
	}
	return record, err
}

// Store reads the store that the hand-over's config.yaml names, see [ReadConfig].
func (t *Tenant) Store() (Store, error) {
	config, err := os.ReadFile(filepath.Join(t.Out, handover.ConfigFile))
	if err != nil {
		return Store{}, fmt.Errorf("reading hand-over of %s: %w", t.Name, err)
	}
	return ReadConfig(config)
}

// Visible is everything in which a control plane could show a password: the files of the hand-over, and its kine's arguments,
// environment and log.
func (t *Tenant) Visible(kine *bed.Kine) (string, error) {
	var all strings.Builder
	files, err := os.ReadDir(t.Out)
	if err != nil {
		return "", fmt.Errorf("reading the hand-over: %w", err)
	}
	var paths []string
	for _, f := range files {
		if f.Type().IsRegular() { // not the socket
			paths = append(paths, filepath.Join(t.Out, f.Name()))
		}
	}
	process := filepath.Join("/proc", strconv.Itoa(kine.PID()))
	for _, path := range append(paths, filepath.Join(process, "cmdline"), filepath.Join(process, "environ")) {
		data, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("looking for passwords: %w", err)
		}
		all.Write(data)
	}
	all.WriteString(kine.Log())
	return all.String(), nil
}
