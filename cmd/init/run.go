// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/config"
	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/handover"
	"dbconnector/pkg/kube"
	"dbconnector/pkg/provision"
	"dbconnector/pkg/statedir"
	"dbconnector/pkg/tenant"
	"dbconnector/pkg/vclusterconfig"
)

// loginTimeout bounds one login. The slowest honest one crosses an ocean with TLS and SCRAM, in about a second.
const loginTimeout = 10 * time.Second

// quiet is provision.Init.Quiet: a kine that lost its server asks for it again once a second. It is a variable so that the
// tests that kill a repair at each of its points need not wait for it each time (-ldflags -X).
var quiet = "5s"

// run does the work and says how it went.
func run(ctx context.Context, cfg config.Init, log *zap.Logger) error {
	var client *kube.Client
	if cfg.UsesKubernetes() {
		var err error
		if client, err = kube.New(program); err != nil {
			return err
		}
		client.OnWaiting(func(err error, attempt int, next time.Duration) {
			log.Warn("waiting", zap.String("error", err.Error()), zap.Int("attempt", attempt), zap.Duration("next", next))
		})
	}
	began := time.Now()
	result, err := work(ctx, cfg, client, log)
	if ctx.Err() == nil {
		announce(context.WithoutCancel(ctx), cfg, client, result, err, log)
	}
	if err != nil {
		return err
	}
	if result.TookOver {
		log.Warn("please look at this", zap.String("warning", provisioned(result)))
	}
	for _, w := range result.Outcome.Warnings {
		log.Warn("please look at this", zap.String("warning", w))
	}
	if len(result.Outcome.Changes) > 0 {
		log.Info("changed the server", zap.Strings("changes", result.Outcome.Changes))
	}
	log.Info("ready",
		zap.String("engine", string(result.Record.Server.Engine)), zap.String("server", result.Record.Server.Address()),
		zap.String("sslMode", string(result.Record.Server.SSLMode)), zap.String("database", result.Record.Database),
		zap.String("user", result.Record.Login(result.Record.Active).User), zap.Int64("generation", result.Record.Generation),
		zap.Bool("restart", result.Restarted), zap.Duration("took", time.Since(began)))
	return nil
}

// work wires the parts together. First everything that can be refused without touching a server, then the rest. client is nil
// where Kubernetes is not used.
func work(ctx context.Context, cfg config.Init, client *kube.Client, log *zap.Logger) (provision.Result, error) {
	vcluster, err := vclusterconfig.Read(cfg.VClusterConfig, cfg.VClusterConfigSet)
	if err != nil {
		return provision.Result{}, err
	}
	files, err := handover.New(cfg.OutputDir, cfg.FileMode, vcluster, open.DSN)
	if err != nil {
		return provision.Result{}, err
	}
	for _, w := range vcluster.Warnings() {
		log.Warn("please look at this", zap.String("warning", w))
	}
	pause, err := time.ParseDuration(quiet)
	if err != nil {
		return provision.Result{}, fmt.Errorf("this program was built with quiet=%q: %w", quiet, err)
	}
	job := provision.Init{
		Namespace: cfg.Namespace, VCluster: cfg.VCluster, TenantUID: cfg.TenantUID, ConnectionLimit: cfg.ConnectionLimit,
		Attempt:   min(loginTimeout, cfg.Timeout/2),
		Patience:  cfg.Timeout / 2,
		Quiet:     min(pause, cfg.Timeout/4),
		First:     firstStart(cfg, client, warner(log)),
		Publish:   files.Write,
		Connector: connectorReader(cfg, client, vcluster),
		UID: func(ctx context.Context) (string, error) {
			uid, err := client.NamespaceUID(ctx, cfg.Namespace)
			return tenant.UID(uid, cfg.VCluster), err
		},
		Log: log,
	}
	end := time.Now().Add(cfg.Timeout)
	job.Waiting = func(err error, attempt int) {
		if attempt == 2 { // what lasts; a moment is no news
			record(ctx, cfg, client, kube.Warning, "Waiting", err.Error()+"; tried again until "+end.UTC().Format(time.RFC3339), log)
		}
	}
	if cfg.StateDir == "" {
		job.Store = client.Records(cfg.Namespace, cfg.RecordSecret, open.DSN).Own(cfg.VCluster, cfg.TenantUID, warner(log))
		job.RecordName = "the record (secret " + cfg.Namespace + "/" + cfg.RecordSecret + ")"
		job.ForgetCommand = "kubectl --namespace " + cfg.Namespace + " delete secret " + cfg.RecordSecret
	} else {
		if job.Store, err = statedir.Open(cfg.StateDir); err != nil {
			return provision.Result{}, err
		}
		file := filepath.Join(cfg.StateDir, statedir.File)
		job.RecordName, job.ForgetCommand = "the record ("+file+")", "rm "+file
	}

	limited, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	return provision.Run(limited, job, func(s dbserver.Server) engine.Engine { return open.Engine(s, program) })
}

// warner tells of what an operator should look at.
func warner(log *zap.Logger) func(string) {
	return func(warning string) { log.Warn("please look at this", zap.String("warning", warning)) }
}

// connectorReader reads the connector from where the settings say, each time again: whatever syncs it may have mended it.
func connectorReader(cfg config.Init, client *kube.Client, vcluster *vclusterconfig.Config) func(context.Context) (connector.Connector, error) {
	return func(ctx context.Context) (connector.Connector, error) {
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
			return connector.Connector{}, fault.New(fault.Refused, "no connector is named: set DBCONNECTOR_CONNECTOR, or controlPlane.backingStore.database.external.connector in the vCluster's config")
		}
		data, err := client.Connector(ctx, cfg.ConnectorNamespace, name)
		if err != nil {
			return connector.Connector{}, err
		}
		return connector.Parse(kube.Source(cfg.ConnectorNamespace, name), data, time.Now())
	}
}

// provisioned says what the admin path has come to.
func provisioned(result provision.Result) string {
	database := result.Record.Database + " on " + result.Record.Server.Address()
	message := "database " + database + " is ready"
	switch {
	case result.Created:
		message = "created a new, empty database " + database
	case result.TookOver:
		message = "there was no record: took over the existing database " + database
	}
	if len(result.Applied) > 0 {
		message += "; applied the connector: " + strings.Join(result.Applied, ", ")
	}
	return message
}

// announce records an Event on the pod for what an operator must see. A restart that found everything in place is not news.
func announce(ctx context.Context, cfg config.Init, client *kube.Client, result provision.Result, failure error, log *zap.Logger) {
	if client == nil || cfg.PodName == "" || (failure == nil && result.Restarted && result.NotApplied == nil) {
		return
	}
	kind, reason, message := kube.Warning, "Failed", ""
	switch {
	case failure == nil && result.NotApplied != nil:
		reason, message = "NotApplied", "the connector was not applied, and the control plane starts with the settings that it had: "+result.NotApplied.Error()
	case failure == nil:
		kind, reason, message = kube.Normal, "Provisioned", provisioned(result)
	case fault.Is(failure, fault.Refused):
		reason, message = "Refused", failure.Error()
	default:
		message = failure.Error()
	}
	record(ctx, cfg, client, kind, reason, message, log)
}

// record makes an Event on the pod, where there is one to make it on.
func record(ctx context.Context, cfg config.Init, client *kube.Client, kind, reason, message string, log *zap.Logger) {
	if client == nil || cfg.PodName == "" {
		return
	}
	pod := kube.Pod{Namespace: cfg.Namespace, Name: cfg.PodName, UID: cfg.PodUID}
	if err := client.Event(ctx, pod, kind, reason, message); err != nil {
		log.Debug("could not record an event (continuing)", zap.String("error", err.Error()))
	}
}
