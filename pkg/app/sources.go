// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"math/bits"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/config"
	"dbconnector/pkg/connector"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/handover"
	"dbconnector/pkg/kube"
	"dbconnector/pkg/statedir"
	"dbconnector/pkg/tenant"
	"dbconnector/pkg/vclusterconfig"
)

// Kubernetes makes a client that logs what it waits for: all of it, or with growing gaps, because a wait may last and a thousand
// sidecars log it.
func Kubernetes(program string, log *zap.Logger, all bool) (*kube.Client, error) {
	client, err := kube.New(program)
	if err != nil {
		return nil, err
	}
	client.OnWaiting(func(err error, attempt int, next time.Duration) {
		if all || bits.OnesCount(uint(attempt)) == 1 {
			log.Warn("waiting", zap.String("error", err.Error()), zap.Int("attempt", attempt), zap.Duration("next", next))
		}
	})
	return client, nil
}

// Records is where the tenant's record is kept.
type Records struct {
	tenant.FollowedStore
	// Name and ForgetCommand are how messages call the record, and how to delete it.
	Name, ForgetCommand string
}

// OpenRecords opens what the settings name: a Secret or a directory. client may be nil for a directory.
func OpenRecords(cfg config.Common, client *kube.Client, log *zap.Logger) (Records, error) {
	if cfg.StateDir == "" {
		store := client.Records(cfg.Namespace, cfg.RecordSecret, open.DSN).Own(cfg.VCluster, cfg.TenantUID, func(w string) { Warn(log, w) })
		return Records{
			store, "the record (secret " + cfg.Namespace + "/" + cfg.RecordSecret + ")",
			"kubectl --namespace " + cfg.Namespace + " delete secret " + cfg.RecordSecret,
		}, nil
	}
	store, err := statedir.Open(cfg.StateDir)
	file := filepath.Join(cfg.StateDir, statedir.File)
	return Records{store, "the record (" + file + ")", "rm " + file}, err
}

// Socket is where the sidecar listens for a control plane that holds no password.
func Socket(cfg config.Common) open.Socket {
	if cfg.Socket != config.SocketUnix {
		return open.Socket{Address: cfg.Socket}
	}
	return open.Socket{Dir: filepath.Clean(cfg.OutputDir)}
}

// VClusterConfig reads the vCluster's config; nil where there is none.
func VClusterConfig(cfg config.Common) (*vclusterconfig.Config, error) {
	vcluster, err := vclusterconfig.Read(cfg.VClusterConfig, cfg.VClusterConfigSet)
	if vcluster != nil && cfg.Adopt == config.AdoptSocket {
		vcluster.Socket = Socket(cfg).Own
	}
	return vcluster, err
}

// HandOver makes the writer of the hand-over: with the server's DSN, or with that of the socket.
func HandOver(cfg config.Common, vcluster *vclusterconfig.Config) (*handover.Writer, error) {
	if cfg.Adopt == config.AdoptSocket {
		return handover.New(cfg.OutputDir, cfg.FileMode, vcluster, Socket(cfg).DSN, true)
	}
	return handover.New(cfg.OutputDir, cfg.FileMode, vcluster, open.DSN, false)
}

// Connector reads the connector that the settings or the vCluster's config name. client may be nil where it is in a directory.
func Connector(ctx context.Context, cfg config.Common, client *kube.Client, vcluster *vclusterconfig.Config) (connector.Connector, error) {
	if cfg.ConnectorDir != "" {
		data, err := connector.ReadDir(cfg.ConnectorDir)
		if err != nil {
			return connector.Connector{}, fmt.Errorf("DBCONNECTOR_CONNECTOR_DIR: %w", err)
		}
		return connector.Parse("directory "+fault.Show(cfg.ConnectorDir), data, time.Now())
	}
	name := cfg.Connector
	if name == "" {
		var err error
		if name, err = vcluster.Connector(); err != nil {
			return connector.Connector{}, err
		}
	}
	if name == "" {
		return connector.Connector{}, fault.New(fault.Refused, "no connector is named: set DBCONNECTOR_CONNECTOR, or "+
			"controlPlane.backingStore.database.external.connector in the vCluster's config")
	}
	data, err := client.Connector(ctx, cfg.ConnectorNamespace, name)
	if err != nil {
		return connector.Connector{}, err
	}
	return connector.Parse(kube.Source(cfg.ConnectorNamespace, name), data, time.Now())
}
