// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// Namespace holds all control planes of the rig, and platform the connectors.
const (
	Namespace = "tenants"
	platform  = "vcluster-platform"
)

// Cluster is an API server that holds connectors and records.
type Cluster struct {
	API *bed.APIServer
	// UID is Namespace's.
	UID string
}

// NewCluster prepares an API server.
func NewCluster(ctx context.Context, api *bed.APIServer) (*Cluster, error) {
	c := &Cluster{API: api}
	for _, name := range []string{Namespace, platform} {
		var made struct{ Metadata struct{ UID string } }
		object := map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name}}
		if err := api.Do(ctx, http.MethodPost, "/api/v1/namespaces", object, &made); err != nil {
			return nil, fmt.Errorf("creating a namespace: %w", err)
		}
		if name == Namespace {
			c.UID = made.Metadata.UID
		}
	}
	return c, nil
}

// named counts the names that Name made.
var named atomic.Int64

// Name makes a name for a tenant or connector of a test. Each call returns another name, because the shared servers
// outlive each test, and a test may run more than once (-count).
func Name(tb testing.TB, suffix string) string {
	test := strings.NewReplacer("/", "-", "_", "-", ".", "-", " ", "-").Replace(strings.TrimPrefix(tb.Name(), "Test"))
	return fmt.Sprintf("%s-%s-%d", strings.ToLower(test), suffix, named.Add(1))
}

// Connector creates a connector Secret.
func (c *Cluster) Connector(ctx context.Context, name string, data map[string]string) error {
	object := map[string]any{
		"apiVersion": "v1", "kind": "Secret", "stringData": data,
		"metadata": map[string]any{"name": name, "labels": map[string]string{connector.LabelKey: connector.LabelValue}},
	}
	if err := c.API.Do(ctx, http.MethodPost, "/api/v1/namespaces/"+platform+"/secrets", object, nil); err != nil {
		return fmt.Errorf("creating connector %s: %w", name, err)
	}
	return nil
}

func record(vcluster string) string {
	return "/api/v1/namespaces/" + Namespace + "/secrets/dbconnector-" + vcluster
}

// Record reads a tenant's record; nil where there is none.
func (c *Cluster) Record(ctx context.Context, vcluster string) (*tenant.Record, error) {
	var secret struct{ Data map[string]string }
	err := c.API.Do(ctx, http.MethodGet, record(vcluster), nil, &secret)
	if bed.Code(err) == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the record: %w", err)
	}
	data, err := base64.StdEncoding.DecodeString(secret.Data["record.json"])
	if err != nil {
		return nil, fmt.Errorf("reading the record: %w", err)
	}
	return tenant.DecodeRecord(data)
}

// Records counts the Secrets in Namespace whose names begin with that of a tenant's record.
func (c *Cluster) Records(ctx context.Context, vcluster string) (int, error) {
	var list struct {
		Items []struct{ Metadata struct{ Name string } }
	}
	if err := c.API.Do(ctx, http.MethodGet, "/api/v1/namespaces/"+Namespace+"/secrets", nil, &list); err != nil {
		return 0, fmt.Errorf("listing records: %w", err)
	}
	n := 0
	for _, item := range list.Items {
		if strings.HasPrefix(item.Metadata.Name, "dbconnector-"+vcluster) {
			n++
		}
	}
	return n, nil
}

// Forget deletes a tenant's record.
func (c *Cluster) Forget(ctx context.Context, vcluster string) error {
	return c.API.Do(ctx, http.MethodDelete, record(vcluster), nil, nil)
}
