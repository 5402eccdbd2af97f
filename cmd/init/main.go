// SPDX-License-Identifier: Apache-2.0

// Command init is dbconnector-init: it runs before a vCluster's control plane, makes sure that the tenant's database and
// logins exist, and hands the control plane the connection string. See the repository's README and docs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"dbconnector/pkg/config"
	"dbconnector/pkg/fault"
)

// program is the name under which the server, the API server and Events see us.
const program = "dbconnector-init"

// The exit codes: 0 is done.
const (
	exitFailed = 1 // the kubelet's next try may help
	exitHuman  = 2 // a human must change something
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	cfg, warnings, err := config.Load()
	log := newLogger(cfg.LogLevel, cfg.LogFormat)
	if err == nil {
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
		// The kubelet shows the end of the log as the termination message: the last line says it all, or what fits.
		reason := err.Error()
		short := shorten(reason)
		if short != reason {
			log.Error("init failed, in full", zap.String("error", reason))
		}
		log.Error("init failed", zap.String("error", short), zap.Int("exitCode", code))
	}
	_ = log.Sync() // stderr may not support it
	os.Exit(code)
}

// maxReason is how much of an error the last line may hold, as JSON. The kubelet shows the last 2048 bytes of the log
// (MaxContainerTerminationMessageLogLength); the rest is for the line's other fields. What is longer repeats an admission
// policy's or a server's words, or lists very many mistakes.
const maxReason = 1800

// shorten cuts an error so that it fits into the last line. Its beginning says what was done and where.
func shorten(reason string) string {
	quoted := func(s string) int {
		text, _ := json.Marshal(s) // escapes at least what the logger escapes; a string cannot fail
		return len(text)
	}
	if quoted(reason) <= maxReason {
		return reason
	}
	const more = "… (cut; the line before has all of it)"
	// No character becomes shorter, so what is beyond this cannot fit.
	cut := reason[:min(len(reason), maxReason)]
	for cut != "" && quoted(cut+more) > maxReason {
		_, size := utf8.DecodeLastRuneInString(cut)
		cut = cut[:len(cut)-size]
	}
	return cut + more
}

// newLogger logs to stderr, without sampling, callers and stack traces: there are few lines, and each is for an operator.
func newLogger(level zapcore.Level, format string) *zap.Logger {
	encoding := zap.NewProductionEncoderConfig()
	encoding.EncodeTime = zapcore.ISO8601TimeEncoder
	encoding.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(encoding)
	if format == config.Console {
		encoder = zapcore.NewConsoleEncoder(encoding)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(os.Stderr), level))
}
