// SPDX-License-Identifier: Apache-2.0

package config

import (
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"

	"dbconnector/pkg/fault"
)

func TestRotateDefaults(t *testing.T) {
	environment(t, minimal)
	got, warnings, err := loadRotate(serviceAccount(t, "team-a\n"))
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	want := Rotate{
		Period: 30 * 24 * time.Hour, Grace: 10 * time.Minute, HTTPAddress: ":8085",
		Common: Common{
			ConnectorNamespace: "vcluster-platform", VCluster: "blue", Namespace: "team-a", RecordSecret: "dbconnector-blue",
			OutputDir: "/var/run/dbconnector", FileMode: 0o640, VClusterConfig: "/var/lib/vcluster/config.yaml",
			Adopt: AdoptNone, Socket: SocketUnix, ConnectionLimit: DefaultConnectionLimit, LogLevel: zapcore.InfoLevel, LogFormat: "json",
		},
	}
	if got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

// TestRotateStandalone: with the record in a directory neither a namespace nor a tenant UID is needed: the record has both.
func TestRotateStandalone(t *testing.T) {
	environment(t, map[string]string{
		"DBCONNECTOR_VCLUSTER_NAME": "blue", "DBCONNECTOR_STATE_DIR": "/s", "DBCONNECTOR_ROTATION_PERIOD": "2s", "DBCONNECTOR_GRACE": "0s",
		"DBCONNECTOR_HTTP_ADDRESS": "127.0.0.1:0",
	})
	got, warnings, err := loadRotate("/does/not/exist")
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if got.UsesKubernetes() || got.Period != 2*time.Second || got.Grace != 0 || got.HTTPAddress != "127.0.0.1:0" {
		t.Errorf("got %+v", got)
	}
	effective := got.Effective()
	for name, want := range map[string]string{
		"DBCONNECTOR_ROTATION_PERIOD": "2s", "DBCONNECTOR_GRACE": "0s", "DBCONNECTOR_ADOPT": "none",
		"DBCONNECTOR_HTTP_ADDRESS": "127.0.0.1:0", "DBCONNECTOR_STATE_DIR": "/s", "DBCONNECTOR_FILE_MODE": "0640",
	} {
		if effective[name] != want {
			t.Errorf("%s is said to be %q, want %q", name, effective[name], want)
		}
	}
}

// TestGraceAdapts: a short period alone is no mistake, and a grace that the operator has not set follows it (F38).
func TestGraceAdapts(t *testing.T) {
	for period, want := range map[string]time.Duration{"720h": 10 * time.Minute, "100m": 10 * time.Minute, "10m": time.Minute, "2s": 200 * time.Millisecond} {
		for _, grace := range []map[string]string{{}, {"DBCONNECTOR_GRACE": ""}} {
			environment(t, with(minimal, with(grace, map[string]string{"DBCONNECTOR_ROTATION_PERIOD": period})))
			if got, _, err := loadRotate(serviceAccount(t, "team-a")); err != nil || got.Grace != want {
				t.Errorf("period %s: grace %s, want %s; %v", period, got.Grace, want, err)
			}
		}
	}
}

func TestRotateRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		vars map[string]string
		want string
	}{
		"period is none":   {map[string]string{"DBCONNECTOR_ROTATION_PERIOD": "30d"}, `DBCONNECTOR_ROTATION_PERIOD="30d": must be a duration from 2s to 8784h`},
		"period too short": {map[string]string{"DBCONNECTOR_ROTATION_PERIOD": "1999ms", "DBCONNECTOR_GRACE": "0s"}, `must be a duration from 2s`},
		"period too long":  {map[string]string{"DBCONNECTOR_ROTATION_PERIOD": "8785h"}, `must be a duration from 2s to 8784h`},
		"grace negative":   {map[string]string{"DBCONNECTOR_GRACE": "-1s"}, `DBCONNECTOR_GRACE="-1s": must be a duration from 0s`},
		"grace as the period": {
			map[string]string{"DBCONNECTOR_ROTATION_PERIOD": "10m", "DBCONNECTOR_GRACE": "10m"},
			`DBCONNECTOR_GRACE="10m": must be shorter than DBCONNECTOR_ROTATION_PERIOD=10m`,
		},
		"adoption": {map[string]string{"DBCONNECTOR_ADOPT": "sockets"}, `DBCONNECTOR_ADOPT="sockets": must be none, rollout or socket`},
		"a socket on every address": {
			map[string]string{"DBCONNECTOR_ADOPT": "socket", "DBCONNECTOR_SOCKET": ":5432"},
			`DBCONNECTOR_SOCKET=":5432": must be unix, or an address on the pod's loopback interface, such as 127.0.0.1:5432`,
		},
		"a socket without a port": {map[string]string{"DBCONNECTOR_SOCKET": "127.0.0.1"}, `DBCONNECTOR_SOCKET="127.0.0.1": must be unix`},
		"a socket for other pods": {map[string]string{"DBCONNECTOR_SOCKET": "10.0.0.1:5432"}, `DBCONNECTOR_SOCKET="10.0.0.1:5432": must be unix`},
		"no path for a socket": {
			map[string]string{"DBCONNECTOR_ADOPT": "socket", "DBCONNECTOR_OUTPUT_DIR": "/" + strings.Repeat("d", 100)},
			`must have at most 89 bytes: there is to be a socket in it`,
		},
		"rollout of nothing": {
			map[string]string{"DBCONNECTOR_ADOPT": "rollout", "DBCONNECTOR_STATE_DIR": "/s"},
			`DBCONNECTOR_ADOPT="rollout": must be none or socket where DBCONNECTOR_STATE_DIR is set`,
		},
		"address without port": {map[string]string{"DBCONNECTOR_HTTP_ADDRESS": "localhost"}, `DBCONNECTOR_HTTP_ADDRESS="localhost": must be an address to listen on`},
		"address by name":      {map[string]string{"DBCONNECTOR_HTTP_ADDRESS": ":http"}, `DBCONNECTOR_HTTP_ADDRESS=":http": must be`},
		"address with a path":  {map[string]string{"DBCONNECTOR_HTTP_ADDRESS": "http://x/:80"}, `must be an address to listen on`},
		"port out of range":    {map[string]string{"DBCONNECTOR_HTTP_ADDRESS": ":65536"}, `DBCONNECTOR_HTTP_ADDRESS=":65536": must be`},
		"of all programs":      {map[string]string{"DBCONNECTOR_FILE_MODE": "0644"}, `DBCONNECTOR_FILE_MODE="0644": must be`},
		"all at once": {
			map[string]string{"DBCONNECTOR_ADOPT": "x", "DBCONNECTOR_GRACE": "y", "DBCONNECTOR_LOG_LEVEL": "z"},
			`DBCONNECTOR_ADOPT="x": must be none, rollout or socket; DBCONNECTOR_LOG_LEVEL="z": must be debug, info, warn or ` +
				`error; DBCONNECTOR_GRACE="y": must be a duration from 0s to 8784h, such as 10m`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			environment(t, with(minimal, test.vars))
			got, _, err := loadRotate(serviceAccount(t, "team-a"))
			switch {
			case err == nil:
				t.Fatal("accepted")
			case !fault.Is(err, fault.Refused):
				t.Errorf("class %v", fault.Of(err))
			case !strings.Contains(err.Error(), test.want):
				t.Errorf("got  %v\nwant %s", err, test.want)
			case got != Rotate{Common: got.logging()}:
				t.Errorf("settings came with the refusal: %+v", got)
			}
		})
	}
}

// TestSharedEnvironment: a variable that only the other program reads is no typing error.
func TestSharedEnvironment(t *testing.T) {
	environment(t, with(minimal, map[string]string{
		"DBCONNECTOR_CONNECTOR": "pg",
		"DBCONNECTOR_TIMEOUT":   "1m",
		"DBCONNECTOR_ADOPT":     "rollout",
		"DBCONNECTOR_GRACE_OF":  "1m",
	}))
	want := []string{`"DBCONNECTOR_GRACE_OF" is not a variable of this program and is ignored`}
	if _, warnings, err := loadRotate(serviceAccount(t, "a")); err != nil || !slices.Equal(warnings, want) {
		t.Errorf("rotate: %v, %q", err, warnings)
	}
	if _, warnings, err := load(serviceAccount(t, "a")); err != nil || !slices.Equal(warnings, want) {
		t.Errorf("init: %v, %q", err, warnings)
	}
}
