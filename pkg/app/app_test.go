// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"dbconnector/pkg/fault"
)

type told struct{}

func (told) Logging() (zapcore.Level, string) { return zapcore.FatalLevel, "json" }
func (told) Effective() map[string]string     { return nil }

// TestMainEnds: the exit code tells whether another try can help (1) or a human must act (2). A signal is no reason to call a human,
// and for a program that runs until it is stopped no failure at all.
func TestMainEnds(t *testing.T) {
	refused := fault.New(fault.Refused, "a setting is wrong")
	stopped := func(ctx context.Context) error {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			return err
		}
		<-ctx.Done()
		return fmt.Errorf("waiting: %w", ctx.Err())
	}
	fails := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	for name, test := range map[string]struct {
		args    []string
		load    error
		run     func(context.Context) error // nil: it must not run
		forever bool                        // RunsUntilStopped
		want    int
	}{
		"success":                      {run: fails(nil), want: 0},
		"settings refused":             {load: refused, want: 2},
		"unknown argument":             {args: []string{"--config=x"}, want: 2},
		"asked for the version":        {args: []string{"-version"}, want: 0},
		"refused at work":              {run: fails(refused), want: 2},
		"failed at work":               {run: fails(errors.New("away")), want: 1},
		"stopped at work":              {run: stopped, want: 1},
		"refused because it was ended": {run: fails(fault.New(fault.Refused, "ended: %w", context.Canceled)), want: 1},
		"sidecar ended":                {run: fails(nil), forever: true, want: 0},
		"sidecar stopped":              {run: stopped, forever: true, want: 0},
		"sidecar failed":               {run: fails(errors.New("away")), forever: true, want: 1},
		"sidecar refused":              {run: fails(refused), forever: true, want: 2},
	} {
		t.Run(name, func(t *testing.T) {
			program := os.Args
			defer func() { os.Args = program }()
			os.Args = append([]string{"program"}, test.args...)
			ran := false
			got := Main(Program[told]{
				Name: "dbconnector-test", RunsUntilStopped: test.forever,
				Load: func() (told, []string, error) { return told{}, nil, test.load },
				Run: func(ctx context.Context, _ told, _ *zap.Logger) error {
					ran = true
					if test.run == nil {
						return nil
					}
					return test.run(ctx)
				},
			})
			if got != test.want || ran != (test.run != nil) {
				t.Errorf("exit code %d, ran %t; want %d, %t", got, ran, test.want, test.run != nil)
			}
		})
	}
}
