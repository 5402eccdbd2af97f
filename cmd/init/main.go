// SPDX-License-Identifier: Apache-2.0

// Command init is dbconnector-init: it runs before a vCluster's control plane, makes sure that the tenant's database and
// logins exist, and hands the control plane the connection string. See the repository's README and docs.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/app"
	"dbconnector/pkg/config"
	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/handover"
	"dbconnector/pkg/kube"
	"dbconnector/pkg/provision"
	"dbconnector/pkg/tenant"
)

const program = "dbconnector-init"

// loginTimeout bounds one login. The slowest honest one crosses an ocean with TLS and SCRAM, in about a second.
const loginTimeout = 10 * time.Second

// quiet is provision.Init.Quiet: a kine that lost its server asks for it again once a second. It is a variable so that the
// tests that kill a repair at each of its points need not wait for it each time (-ldflags -X).
var quiet = "5s"

func main() {
	os.Exit(app.Main(app.Program[config.Init]{Name: program, Load: config.Load, Run: run}))
}

// run provisions the tenant, and tells how it went.
func run(ctx context.Context, cfg config.Init, log *zap.Logger) error {
	var client *kube.Client
	if cfg.UsesKubernetes() {
		var err error
		if client, err = app.Kubernetes(program, log, true); err != nil {
			return err
		}
	}
	began := time.Now()
	events := app.NewEvents(cfg.Common, client, log)
	result, err := work(ctx, cfg, client, events, log)
	if ctx.Err() == nil {
		announce(context.WithoutCancel(ctx), events, result, err)
	}
	if err != nil {
		return err
	}
	if result.TookOver {
		app.Warn(log, result.String())
	}
	for _, w := range result.Outcome.Warnings {
		app.Warn(log, w)
	}
	if len(result.Outcome.Changes) > 0 {
		log.Info("changed the server", zap.Strings("changes", result.Outcome.Changes))
	}
	record := result.Record
	log.Info("ready",
		zap.String("engine", string(record.Server.Engine)), zap.String("server", record.Server.Address()),
		zap.String("sslMode", string(record.Server.SSLMode)), zap.String("database", record.Database),
		zap.String("user", record.Login(record.Active).User), zap.Int64("generation", record.Generation),
		zap.Bool("restart", result.Restarted), zap.Duration("took", time.Since(began)))
	return nil
}

// announce records an Event for the outcome. A restart that found everything in place is not news.
func announce(ctx context.Context, events *app.Events, result provision.Result, failure error) {
	switch {
	case failure == nil && result.NotApplied != nil:
		events.Record(ctx, kube.Warning, "NotApplied",
			"the connector was not applied, and the control plane starts with the settings that it had: "+result.NotApplied.Error())
	case failure == nil && result.Restarted:
	case failure == nil:
		events.Record(ctx, kube.Normal, "Provisioned", result.String())
	case fault.Is(failure, fault.Refused):
		events.Record(ctx, kube.Warning, "Refused", failure.Error())
	default:
		events.Record(ctx, kube.Warning, "Failed", failure.Error())
	}
}

// work wires the parts together. First everything that can be refused without touching a server, then the rest. client is nil
// where Kubernetes is not used.
func work(ctx context.Context, cfg config.Init, client *kube.Client, events *app.Events, log *zap.Logger) (provision.Result, error) {
	vcluster, err := app.VClusterConfig(cfg.Common)
	if err != nil {
		return provision.Result{}, err
	}
	files, err := app.HandOver(cfg.Common, vcluster)
	if err != nil {
		return provision.Result{}, err
	}
	publish := files.Write
	if cfg.Adopt == config.AdoptSocket && cfg.StateDir == "" {
		private, err := handover.OpenPrivate(cfg.OutputDir)
		if err != nil {
			return provision.Result{}, err
		}
		publish = func(r *tenant.Record) error {
			if err := private.Write(r); err != nil {
				return err
			}
			return files.Write(r)
		}
	}
	for _, w := range vcluster.Warnings() {
		app.Warn(log, w)
	}
	pause, err := time.ParseDuration(quiet)
	if err != nil {
		return provision.Result{}, fmt.Errorf("this program was built with quiet=%q: %w", quiet, err)
	}
	records, err := app.OpenRecords(cfg.Common, client, log)
	if err != nil {
		return provision.Result{}, err
	}
	end := time.Now().Add(cfg.Timeout)
	limited, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	return provision.Run(limited, provision.Init{
		Namespace: cfg.Namespace, VCluster: cfg.VCluster, TenantUID: cfg.TenantUID, ConnectionLimit: cfg.ConnectionLimit,
		Attempt:  min(loginTimeout, cfg.Timeout/2),
		Patience: cfg.Timeout / 2,
		Quiet:    min(pause, cfg.Timeout/4),
		First:    firstStart(cfg, client, log).Check,
		Publish:  publish,
		Connector: func(ctx context.Context) (connector.Connector, error) {
			return app.Connector(ctx, cfg.Common, client, vcluster)
		},
		UID: func(ctx context.Context) (string, error) {
			uid, err := client.NamespaceUID(ctx, cfg.Namespace)
			return tenant.UID(uid, cfg.VCluster), err
		},
		Store: records, RecordName: records.Name, ForgetCommand: records.ForgetCommand,
		Waiting: func(err error, attempt int) {
			if attempt == 2 { // what lasts; a moment is not news
				events.Record(ctx, kube.Warning, "Waiting", err.Error()+"; tried again until "+end.UTC().Format(time.RFC3339))
			}
		},
		Log: log,
	}, func(s dbserver.Server) engine.Engine { return open.Engine(s, program) })
}

// firstStart asks the namespace what speaks for another name, or for data elsewhere.
func firstStart(cfg config.Init, client *kube.Client, log *zap.Logger) *provision.FirstStart {
	f := &provision.FirstStart{
		Namespace: cfg.Namespace, VCluster: cfg.VCluster, Pod: cfg.PodName, Warn: func(w string) { app.Warn(log, w) },
	}
	switch cfg.AllowNew {
	case config.AllowNewYes:
		f.AllowNew = provision.NewAlways
	case config.AllowNewNo:
		f.AllowNew = provision.NewNever
	}
	if client == nil {
		return f
	}
	_, f.ServiceAccount = client.ServiceAccount()
	if cfg.StateDir == "" {
		f.Orphan = func(ctx context.Context) (string, string, error) {
			return client.Orphan(ctx, cfg.Namespace, cfg.RecordSecret)
		}
	}
	if cfg.Namespace != "" {
		f.Certificates = func(ctx context.Context) (string, error) {
			return client.Certificates(ctx, cfg.Namespace, cfg.VCluster)
		}
	}
	return f
}
