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
	"dbconnector/pkg/proxy"
	"dbconnector/pkg/proxy/mywire"
	"dbconnector/pkg/proxy/pgwire"
	"dbconnector/pkg/report"
	"dbconnector/pkg/rotation"
	"dbconnector/pkg/tenant"
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
	vcluster, err := app.VClusterConfig(cfg.Common)
	if err != nil {
		return err
	}
	files, err := app.HandOver(cfg.Common, vcluster)
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
	if files.Written() && cfg.Adopt != config.AdoptSocket {
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
			if cfg.Adopt != config.AdoptSocket {
				metrics.SetReady()
			}
			return nil
		},
		Replaces: files.Replaces,
	}
	var socket *proxy.Socket
	switch cfg.Adopt {
	case config.AdoptRollout:
		job.Adoption = client.Workload(cfg.Namespace, cfg.VCluster)
	case config.AdoptSocket:
		if socket, err = openSocket(ctx, cfg, records, metrics, log); err != nil {
			return err
		}
		job.Socket = socket
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
	if socket != nil {
		group.Go(func() error { return socket.Run(ctx) })
	}
	return group.Wait()
}

// openSocket makes the socket of a control plane that holds no password. It serves at once where the record is at hand.
func openSocket(ctx context.Context, cfg config.Rotate, records app.Records, metrics *health.Metrics, log *zap.Logger) (*proxy.Socket, error) {
	observer := report.NewSocket(metrics)
	options := proxy.Options{
		Place: app.Socket(cfg.Common).Listen, Mode: socketMode, Wire: wire, Ready: metrics.SetReady, Observer: observer, Log: log,
	}
	read := func() (*tenant.Record, error) { return records.Load(ctx) }
	if cfg.UsesKubernetes() {
		private, err := handover.OpenPrivate(cfg.OutputDir)
		if err != nil {
			return nil, err
		}
		options.Keep, read = private.Write, private.Read
	}
	socket := proxy.NewSocket(options)
	observer.Watch(socket)
	switch r, err := read(); {
	case err != nil: // the record that is followed will do
		log.Warn("the record that was kept cannot be read (continuing)", zap.String("error", err.Error()))
	case r != nil && r.Provisioned() && r.Of(cfg.Namespace, cfg.VCluster, cfg.TenantUID):
		socket.Set(r)
	}
	return socket, nil
}

// socketMode is the socket's: for the sidecar's user, and for the control plane's by the group of the volume.
const socketMode = 0o660

// wire is the protocol of an engine.
func wire(engine dbserver.Engine) proxy.Wire {
	if engine == dbserver.Postgres {
		return pgwire.New()
	}
	return mywire.New()
}
