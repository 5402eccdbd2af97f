// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/bits"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"dbconnector/pkg/config"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/handover"
	"dbconnector/pkg/health"
	"dbconnector/pkg/kube"
	"dbconnector/pkg/rotation"
	"dbconnector/pkg/statedir"
	"dbconnector/pkg/tenant"
	"dbconnector/pkg/vclusterconfig"
	"dbconnector/pkg/version"
)

// stepTimeout bounds one step: a login or two, or a request to the API server and its repetitions.
const stepTimeout = 20 * time.Second

// loginTime caps rotation.Rotation.LoginTime; empty is as long as the server says. It is a variable so that the test that kills
// a rotation at each of its points need not wait for it each time (-ldflags -X).
var loginTime = ""

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
	observer := newObserver()
	metrics := observer.metrics
	metrics.AdoptInfo.WithLabelValues(cfg.Adopt).Set(1)
	metrics.BuildInfo.WithLabelValues(version.String(), version.Go()).Set(1)
	if files.Written() {
		metrics.SetReady()
	}
	job := rotation.Rotation{
		Policy:    rotation.Policy{Period: cfg.Period, Grace: cfg.Grace, Rollout: cfg.Adopt == config.AdoptRollout},
		Namespace: cfg.Namespace, VCluster: cfg.VCluster, TenantUID: cfg.TenantUID,
		Observer: observer, Attempt: stepTimeout, Log: log,
		Publish: func(r *tenant.Record) error {
			if err := files.Write(r); err != nil {
				return err
			}
			metrics.SetReady()
			return nil
		},
		Replaces: files.Replaces,
	}
	if loginTime != "" {
		if job.LoginTime, err = time.ParseDuration(loginTime); err != nil {
			return fmt.Errorf("this program was built with loginTime=%q: %w", loginTime, err)
		}
	}
	if cfg.UsesKubernetes() {
		client, err := kube.New(program)
		if err != nil {
			return err
		}
		client.OnWaiting(func(err error, attempt int, next time.Duration) {
			if bits.OnesCount(uint(attempt)) == 1 { // an outage may last, and a thousand sidecars log it
				log.Warn("waiting", zap.String("error", err.Error()), zap.Int("attempt", attempt), zap.Duration("next", next))
			}
		})
		job.Store = client.Records(cfg.Namespace, cfg.RecordSecret, open.DSN).Own(cfg.VCluster, cfg.TenantUID, func(warning string) {
			log.Warn("please look at this", zap.String("warning", warning))
		})
		if job.Rollout {
			job.Workload = client.Workload(cfg.Namespace, cfg.VCluster)
		}
		if cfg.PodName != "" {
			observer.events = newEvents(client, kube.Pod{Namespace: cfg.Namespace, Name: cfg.PodName, UID: cfg.PodUID}, log)
		}
	} else if job.Store, err = statedir.Open(cfg.StateDir); err != nil {
		return err
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
		return rotation.Run(ctx, job, func(s dbserver.Server) engine.Engine { return open.Engine(s, program) })
	})
	if observer.events != nil {
		group.Go(func() error { return observer.events.run(working) })
	}
	return group.Wait()
}
