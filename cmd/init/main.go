// SPDX-License-Identifier: Apache-2.0

// Command init is dbconnector-init: it runs before a vCluster's control plane, makes sure that the tenant's database and
// logins exist, and hands the control plane the connection string. See the repository's README and docs.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"go.uber.org/zap"

	"dbconnector/pkg/config"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/logging"
	"dbconnector/pkg/version"
)

// program is the name under which the server, the API server and Events see us.
const program = "dbconnector-init"

// The exit codes: 0 is done.
const (
	exitFailed = 1 // the kubelet's next try may help
	exitHuman  = 2 // a human must change something
)

func main() {
	asked, refusal := version.Asked(os.Args[1:])
	if asked {
		_, _ = fmt.Fprintln(os.Stdout, program, version.String(), version.Go())
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	cfg, warnings, err := config.Load()
	log := logging.New(cfg.LogLevel, cfg.LogFormat)
	if err = cmp.Or(refusal, err); err == nil {
		log.Info("starting", zap.String("version", version.String()), zap.Any("settings", cfg.Effective()))
		for _, w := range warnings {
			log.Warn("please look at this", zap.String("warning", w))
		}
		err = run(ctx, cfg, log)
	}
	stop()
	// A pod must not start on an unfinished tenant: here, unlike in a sidecar, being stopped is a failure.
	code := 0
	switch {
	case err == nil:
	case fault.Is(err, fault.Refused) && !errors.Is(err, context.Canceled):
		code = exitHuman
	default:
		code = exitFailed
	}
	if err != nil {
		logging.Last(log, "init failed", err, code)
	}
	_ = log.Sync() // stderr may not support it
	os.Exit(code)
}
