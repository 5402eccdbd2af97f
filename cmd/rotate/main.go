// SPDX-License-Identifier: Apache-2.0

// Command rotate is dbconnector-rotate: it runs beside a vCluster's control plane, changes the tenant's password on a schedule
// without the admin's credential, and keeps the hand-over current. See docs/rotation.md.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"go.uber.org/zap"

	"dbconnector/pkg/config"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/logging"
	"dbconnector/pkg/version"
)

// program is the name under which the server, the API server and Events see us.
const program = "dbconnector-rotate"

// The exit codes: 0 is done.
const (
	exitFailed = 1 // the kubelet's next try may help
	exitHuman  = 2 // a human must change something
)

// gcPercent lets the heap grow by half before it is collected, and to 2 MiB at least, where Go's own figures are twice that.
// There is a sidecar beside every control plane, this saves a tenth of its memory, and it has no hurry.
const gcPercent = 50

func main() {
	asked, refusal := version.Asked(os.Args[1:])
	if asked {
		_, _ = fmt.Fprintln(os.Stdout, program, version.String(), version.Go())
		return
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	cfg, warnings, err := config.LoadRotate()
	log := logging.New(cfg.LogLevel, cfg.LogFormat)
	if err = cmp.Or(refusal, err); err == nil {
		log.Info("starting", zap.String("version", version.String()), zap.Any("settings", cfg.Effective()))
		for _, w := range warnings {
			log.Warn("please look at this", zap.String("warning", w))
		}
		err = run(ctx, cfg, log)
	}
	stopped := ctx.Err() != nil
	stop()
	code := 0
	switch {
	// A sidecar that fails at the end of every pod hides real failures: being stopped is no failure.
	case err == nil, stopped && errors.Is(err, context.Canceled):
		err = nil
		log.Info("stopped")
	case fault.Is(err, fault.Refused):
		code = exitHuman
	default:
		code = exitFailed
	}
	if err != nil {
		logging.Last(log, "rotate failed", err, code)
	}
	_ = log.Sync() // stderr may not support it
	os.Exit(code)
}
