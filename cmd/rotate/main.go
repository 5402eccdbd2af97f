// SPDX-License-Identifier: Apache-2.0

// Command rotate is dbconnector-rotate: it runs beside a vCluster's control plane, changes the tenant's password on a schedule
// without the admin's credential, and keeps the hand-over current. See docs/rotation.md.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"dbconnector/pkg/app"
	"dbconnector/pkg/config"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/handover"
	"dbconnector/pkg/health"
	"dbconnector/pkg/kube"
	"dbconnector/pkg/report"
	"dbconnector/pkg/rotation"
	"dbconnector/pkg/tenant"
	"dbconnector/pkg/vclusterconfig"
	"dbconnector/pkg/version"
)

const program = "dbconnector-rotate"

// gcPercent lets the heap grow by half before it is collected, and to 2 MiB at least, where Go's own figures are twice that.
// There is a sidecar beside every control plane, this saves a tenth of its memory, and it has no hurry.
const gcPercent = 50

// stepTimeout bounds one step: a login or two, or a request to the API server and its repetitions.
const stepTimeout = 20 * time.Second

// loginTime caps rotation.Rotation.LoginTime; empty is as long as the server says. It is a variable so that the test that kills
// a rotation at each of its points need not wait for it each time (-ldflags -X).
var loginTime = ""

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	os.Exit(app.Main(app.Program[config.Rotate]{Name: program, Load: config.LoadRotate, Run: run, RunsUntilStopped: true}))
}

// run wires the parts together.
func run(ctx context.Context, cfg config.Rotate, log *zap.Logger) error {
	vcluster, err := vclusterconfig.Read(cfg.VClusterConfig, cfg.VClusterConfigSet)
	if err != nil {
		return err
	}
	files, err := handover.New(cfg.OutputDir, cfg.FileMode, vcluster, open.DSN)
	if err != nil {
		return err
	}
	var client *kube.Client
	if cfg.UsesKubernetes() {
		if client, err = app.Kubernetes(program, log, false); err != nil {
			return err
		}
	}
	records, err := app.OpenRecords(cfg.Common, client, log)
	if err != nil {
		return err
	}
	events := app.NewEvents(cfg.Common, client, log)
	observer := report.NewObserver(events.Send)
	metrics := observer.Metrics
	metrics.AdoptInfo.WithLabelValues(cfg.Adopt).Set(1)
	metrics.BuildInfo.WithLabelValues(version.String(), version.Go()).Set(1)
	if files.Written() {
		metrics.SetReady()
	}
	job := rotation.Rotation{
		Policy:    rotation.Policy{Period: cfg.Period, Grace: cfg.Grace},
		Namespace: cfg.Namespace, VCluster: cfg.VCluster, TenantUID: cfg.TenantUID,
		Store: records, Observer: observer, Attempt: stepTimeout, Log: log,
		Publish: func(r *tenant.Record) error {
			if err := files.Write(r); err != nil {
				return err
			}
			metrics.SetReady()
			return nil
		},
		Replaces: files.Replaces,
	}
	if cfg.Adopt == config.AdoptRollout {
		job.Adoption = client.Workload(cfg.Namespace, cfg.VCluster)
	}
	if loginTime != "" {
		if job.LoginTime, err = time.ParseDuration(loginTime); err != nil {
			return fmt.Errorf("this program was built with loginTime=%q: %w", loginTime, err)
		}
	}

	listener, err := health.Listen(ctx, cfg.HTTPAddress)
	if err != nil {
		return err
	}
	log.Info("serving", zap.Stringer("address", listener.Addr()))
	group, ctx := errgroup.WithContext(ctx)
	working, done := context.WithCancel(context.WithoutCancel(ctx)) // a last step goes on for a while, and has something to tell
	group.Go(func() error { return metrics.Serve(ctx, listener) })
	group.Go(func() error {
		defer done()
		return rotation.Run(ctx, job, func(s dbserver.Server) rotation.Server { return open.Engine(s, program) })
	})
	group.Go(func() error { return events.Run(working) })
	return group.Wait()
}
