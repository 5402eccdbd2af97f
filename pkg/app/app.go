// SPDX-License-Identifier: Apache-2.0

// Package app is what every program of this project does around its work: it reads the settings, logs, turns signals into the end
// of a context and errors into exit codes, and knows where connector and record are.
package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/logging"
	"dbconnector/pkg/version"
)

// The exit codes; 0 is success.
const (
	exitFailed = 1 // the kubelet's next try may help
	exitHuman  = 2 // a human must change something
)

// Settings are what a program was told.
type Settings interface {
	// Logging is how to log. It is good also where the rest was refused.
	Logging() (level zapcore.Level, format string)
	// Effective is what is in force, by the variables' names. It holds no secret.
	Effective() map[string]string
}

// Program is one of this project's programs.
type Program[S Settings] struct {
	// Name is the one under which the server, the API server and Events see it.
	Name string
	// Load reads the settings. The warnings are about those that have no effect.
	Load func() (settings S, warnings []string, err error)
	// Run does the work, until ctx ends at the latest.
	Run func(ctx context.Context, settings S, log *zap.Logger) error
	// RunsUntilStopped: a signal is how it ends, and no failure. A pod must not start on an unfinished tenant; but a sidecar that
	// failed at the end of every pod would hide real failures.
	RunsUntilStopped bool
}

// Main runs a program and returns its exit code.
func Main[S Settings](p Program[S]) int {
	asked, refusal := version.Asked(os.Args[1:])
	if asked {
		_, _ = fmt.Fprintln(os.Stdout, p.Name, version.String(), version.Go())
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	settings, warnings, err := p.Load()
	log := logging.New(settings.Logging())
	defer log.Sync() //nolint:errcheck // stderr may not support it
	if err = cmp.Or(refusal, err); err == nil {
		log.Info("starting", zap.String("version", version.String()), zap.Any("settings", settings.Effective()))
		for _, w := range warnings {
			Warn(log, w)
		}
		err = p.Run(ctx, settings, log)
	}
	stopped := ctx.Err() != nil && errors.Is(err, context.Canceled)
	code := exitFailed
	switch {
	case p.RunsUntilStopped && (err == nil || stopped):
		log.Info("stopped")
		return 0
	case err == nil:
		return 0
	case fault.Is(err, fault.Refused) && !errors.Is(err, context.Canceled):
		code = exitHuman
	}
	logging.Last(log, strings.TrimPrefix(p.Name, "dbconnector-")+" failed", err, code)
	return code
}

// Warn logs what an operator should look at.
func Warn(log *zap.Logger, warning string) {
	log.Warn("configuration warning", zap.String("warning", warning))
}
