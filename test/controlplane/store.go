// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.uber.org/zap"
	"sigs.k8s.io/yaml"

	"dbconnector/test/bed"
)

// Store is a database store of a vCluster config, with the fields that vCluster knows.
type Store struct {
	Enabled          bool     `json:"enabled"`
	DataSource       string   `json:"dataSource"`
	IdentityProvider string   `json:"identityProvider"`
	KeyFile          string   `json:"keyFile"`
	CertFile         string   `json:"certFile"`
	CAFile           string   `json:"caFile"`
	ExtraArgs        []string `json:"extraArgs"`
}

// ReadConfig finds the store that vCluster would use with a config. It is as strict as vCluster: a key that appears twice
// and a field of a store that vCluster does not know are errors, and so are a connector, which vCluster would act on by
// itself, and an external store without a dataSource. And it is as lax: an embedded store needs none, because without it is
// SQLite, and where no store is enabled it is the embedded one (F1).
func ReadConfig(config []byte) (Store, error) {
	asJSON, err := yaml.YAMLToJSONStrict(config)
	if err != nil {
		return Store{}, fmt.Errorf("reading vCluster config: %w", err)
	}
	var outer struct {
		ControlPlane struct {
			BackingStore struct{ Database json.RawMessage }
		}
	}
	if err := json.Unmarshal(asJSON, &outer); err != nil {
		return Store{}, fmt.Errorf("reading vCluster config: %w", err)
	}
	var database struct {
		Embedded Store `json:"embedded"`
		External struct {
			Store
			Connector *string `json:"connector"`
		} `json:"external"`
	}
	raw := outer.ControlPlane.BackingStore.Database
	if raw == nil {
		raw = json.RawMessage("{}")
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&database); err != nil {
		return Store{}, fmt.Errorf("reading database of vCluster config: %w", err)
	}
	switch {
	case database.External.Connector != nil:
		return Store{}, errors.New("reading vCluster config: it still names a connector")
	case database.Embedded.Enabled && database.External.Enabled:
		return Store{}, errors.New("reading vCluster config: two database stores are enabled")
	case database.External.Enabled && database.External.DataSource == "":
		return Store{}, errors.New("reading vCluster config: the external store has no dataSource")
	case database.External.Enabled:
		return database.External.Store, nil
	}
	return database.Embedded, nil
}

// StartKine starts kine as vCluster does: with what the store says, or on SQLite where it
// says nothing, and arguments that the caller adds.
func (s Store) StartKine(ctx context.Context, args ...string) (*bed.Kine, error) {
	return bed.StartKine(ctx, s.DataSource, s.CAFile, append(append([]string{}, s.ExtraArgs...), args...)...)
}

// Dial returns a client for an endpoint of the etcd API that does with it what
// Kubernetes does. That is all kine knows: objects are created, updated and deleted on
// the condition of their revision.
func Dial(endpoint string) (*kubernetes.Client, error) {
	client, err := kubernetes.New(clientv3.Config{
		Endpoints:   []string{endpoint},
		DialTimeout: 10 * time.Second,
		Logger:      zap.NewNop(), // errors are returned, too
	})
	if err != nil {
		return nil, fmt.Errorf("making etcd client: %w", err)
	}
	return client, nil
}

// Put creates an object, for revision 0, or updates the one that has this revision.
// It returns the new revision. Where kine refuses and the object is nevertheless as Put wants it, Put tries again, as a Kubernetes controller
// does: kine on MySQL and MariaDB refuses for nothing where it has filled what looked like a gap in the ids.
func Put(ctx context.Context, client *kubernetes.Client, key, value string, revision int64) (put int64, err error) {
	err = bed.Wait(ctx, func(ctx context.Context) error {
		response, err := client.OptimisticPut(ctx, key, []byte(value), revision, kubernetes.PutOptions{GetOnFailure: true})
		if err != nil {
			return bed.Permanent(fmt.Errorf("writing %s: %w", key, err))
		}
		if put = response.Revision; response.Succeeded {
			return nil
		}
		err = fmt.Errorf("writing %s: it does not have revision %d", key, revision)
		if now := response.KV.GetModRevision(); now != revision {
			return bed.Permanent(err)
		}
		return err
	})
	return put, err
}

// Delete deletes the object that has this revision.
func Delete(ctx context.Context, client *kubernetes.Client, key string, revision int64) error {
	response, err := client.OptimisticDelete(ctx, key, revision, kubernetes.DeleteOptions{GetOnFailure: true})
	if err != nil {
		return fmt.Errorf("deleting %s: %w", key, err)
	}
	if !response.Succeeded {
		return fmt.Errorf("deleting %s: it does not have revision %d", key, revision)
	}
	return nil
}

// List returns the objects below a prefix.
func List(ctx context.Context, client *kubernetes.Client, prefix string) (map[string]string, error) {
	response, err := client.Kubernetes.List(ctx, prefix, kubernetes.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", prefix, err)
	}
	objects := map[string]string{}
	for _, kv := range response.Kvs {
		objects[string(kv.Key)] = string(kv.Value)
	}
	return objects, nil
}
