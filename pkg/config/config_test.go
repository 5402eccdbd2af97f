// SPDX-License-Identifier: Apache-2.0

package config

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"

	"dbconnector/pkg/fault"
)

// environment makes the process's environment hold these variables of ours and no others. Tests that call it cannot run
// in parallel.
func environment(t *testing.T, vars map[string]string) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, value, _ := strings.Cut(entry, "="); strings.HasPrefix(name, prefix) {
			t.Setenv(name, value) // so that it comes back
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, value := range vars {
		t.Setenv(name, value)
	}
}

// serviceAccount is a namespace file as the kubelet mounts it.
func serviceAccount(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "namespace")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func with(base, more map[string]string) map[string]string {
	m := maps.Clone(base)
	maps.Copy(m, more)
	return m
}

var (
	minimal    = map[string]string{"DBCONNECTOR_VCLUSTER_NAME": "blue"}
	standalone = map[string]string{
		"DBCONNECTOR_VCLUSTER_NAME": "blue", "DBCONNECTOR_CONNECTOR_DIR": "/c", "DBCONNECTOR_STATE_DIR": "/s",
		"DBCONNECTOR_TENANT_UID": "tenant 1",
	}
)

func TestDefaults(t *testing.T) {
	environment(t, minimal)
	got, warnings, err := load(serviceAccount(t, "team-a\n"))
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	want := Init{Timeout: 2 * time.Minute, Common: Common{
		ConnectorNamespace: "vcluster-platform", VCluster: "blue", Namespace: "team-a", RecordSecret: "dbconnector-blue",
		OutputDir: "/var/run/dbconnector", FileMode: 0o640, VClusterConfig: "/var/lib/vcluster/config.yaml",
		Adopt: AdoptNone, Socket: SocketUnix, ConnectionLimit: DefaultConnectionLimit, LogLevel: zapcore.InfoLevel, LogFormat: "json",
	}}
	if got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if !got.UsesKubernetes() {
		t.Error("the connector and the record are Secrets: this needs Kubernetes")
	}
}

func TestSetToNothingIsNotSet(t *testing.T) {
	environment(t, minimal)
	want, _, err := load(serviceAccount(t, "team-a"))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range Variables() {
		if v.Name != "DBCONNECTOR_VCLUSTER_NAME" {
			t.Setenv(v.Name, "")
		}
	}
	got, warnings, err := load(serviceAccount(t, "team-a"))
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestEverythingSet(t *testing.T) {
	environment(t, map[string]string{
		"DBCONNECTOR_CONNECTOR": "pg.main", "DBCONNECTOR_CONNECTOR_NAMESPACE": "platform", "DBCONNECTOR_VCLUSTER_NAME": "blue",
		"DBCONNECTOR_NAMESPACE": "team-a", "DBCONNECTOR_TENANT_UID": "old/uid", "DBCONNECTOR_RECORD_SECRET": "rec",
		"DBCONNECTOR_OUTPUT_DIR": "/out", "DBCONNECTOR_FILE_MODE": "600", "DBCONNECTOR_VCLUSTER_CONFIG": "/v.yaml",
		"DBCONNECTOR_TIMEOUT": "90s", "DBCONNECTOR_CONNECTION_LIMIT": "40", "DBCONNECTOR_LOG_LEVEL": "debug",
		"DBCONNECTOR_LOG_FORMAT": "console", "DBCONNECTOR_POD_NAME": "blue-0", "DBCONNECTOR_POD_UID": "ab-12", "DBCONNECTOR_ADOPT": "rollout",
	})
	got, warnings, err := load("/does/not/exist")
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	want := Init{Timeout: 90 * time.Second, Common: Common{
		Connector: "pg.main", ConnectorNamespace: "platform", VCluster: "blue", Namespace: "team-a", TenantUID: "old/uid",
		RecordSecret: "rec", OutputDir: "/out", FileMode: 0o600, VClusterConfig: "/v.yaml", VClusterConfigSet: true,
		Adopt: AdoptRollout, Socket: SocketUnix, ConnectionLimit: 40, LogLevel: zapcore.DebugLevel, LogFormat: "console", PodName: "blue-0", PodUID: "ab-12",
	}}
	if got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	effective := got.Effective()
	for name, value := range map[string]string{
		"DBCONNECTOR_FILE_MODE": "0600", "DBCONNECTOR_TIMEOUT": "1m30s", "DBCONNECTOR_CONNECTION_LIMIT": "40",
		"DBCONNECTOR_LOG_LEVEL": "debug", "DBCONNECTOR_CONNECTOR": "pg.main",
	} {
		if effective[name] != value {
			t.Errorf("effective %s=%q, want %q", name, effective[name], value)
		}
	}
	if _, ok := effective["DBCONNECTOR_STATE_DIR"]; ok {
		t.Error("a variable that is not set must not be in force")
	}
}

func TestStandaloneNeedsNoNamespace(t *testing.T) {
	environment(t, standalone)
	got, _, err := load("/does/not/exist")
	if err != nil {
		t.Fatal(err)
	}
	if got.UsesKubernetes() || got.Namespace != "" || got.RecordSecret != "" {
		t.Errorf("got %+v", got)
	}
}

func TestRefusals(t *testing.T) {
	long := strings.Repeat("a", 254)
	for name, test := range map[string]struct {
		vars map[string]string
		want string // of the whole error but its first word
	}{
		"name missing":     {map[string]string{}, `DBCONNECTOR_VCLUSTER_NAME is not set: must be the name`},
		"name empty":       {map[string]string{"DBCONNECTOR_VCLUSTER_NAME": ""}, `DBCONNECTOR_VCLUSTER_NAME is not set: must be the name`},
		"name upper case":  {map[string]string{"DBCONNECTOR_VCLUSTER_NAME": "Blue"}, `DBCONNECTOR_VCLUSTER_NAME="Blue": must be a Kubernetes name`},
		"name white space": {map[string]string{"DBCONNECTOR_VCLUSTER_NAME": " blue"}, `DBCONNECTOR_VCLUSTER_NAME=" blue": must be a Kubernetes name`},
		"name with line break": {
			map[string]string{"DBCONNECTOR_VCLUSTER_NAME": "blue\nexit=0"},
			`DBCONNECTOR_VCLUSTER_NAME="blue\nexit=0": must be a Kubernetes name`,
		},
		"name too long": {map[string]string{"DBCONNECTOR_VCLUSTER_NAME": long}, `…: must be a Kubernetes name`},
		"name too long for the record": {
			map[string]string{"DBCONNECTOR_VCLUSTER_NAME": long[:242]}, `…: is too long for the record's name`,
		},
		"record's name": {
			with(minimal, map[string]string{"DBCONNECTOR_RECORD_SECRET": "a_b"}),
			`DBCONNECTOR_RECORD_SECRET="a_b": must be a Kubernetes name`,
		},
		"namespace with dot": {
			with(minimal, map[string]string{"DBCONNECTOR_NAMESPACE": "a.b"}),
			`DBCONNECTOR_NAMESPACE="a.b": must be the name of a namespace`,
		},
		"namespace too long": {with(minimal, map[string]string{"DBCONNECTOR_NAMESPACE": long[:64]}), `must be the name of a namespace`},
		"connector's namespace": {
			with(minimal, map[string]string{"DBCONNECTOR_CONNECTOR_NAMESPACE": "-a"}),
			`DBCONNECTOR_CONNECTOR_NAMESPACE="-a": must be the name of a namespace`,
		},
		"connector's name is path": {
			with(minimal, map[string]string{"DBCONNECTOR_CONNECTOR": "../x"}),
			`DBCONNECTOR_CONNECTOR="../x": must be a Kubernetes name`,
		},
		"connector twice": {
			with(minimal, map[string]string{"DBCONNECTOR_CONNECTOR": "pg", "DBCONNECTOR_CONNECTOR_DIR": "/c"}),
			`DBCONNECTOR_CONNECTOR_DIR="/c": must not be set together with DBCONNECTOR_CONNECTOR`,
		},
		"relative path": {
			with(minimal, map[string]string{"DBCONNECTOR_OUTPUT_DIR": "out"}),
			`DBCONNECTOR_OUTPUT_DIR="out": must be an absolute path`,
		},
		"root as path": {
			with(minimal, map[string]string{"DBCONNECTOR_OUTPUT_DIR": "//"}),
			`DBCONNECTOR_OUTPUT_DIR="//": must not be the root directory`,
		},
		"relative config": {
			with(minimal, map[string]string{"DBCONNECTOR_VCLUSTER_CONFIG": "v.yaml"}),
			`DBCONNECTOR_VCLUSTER_CONFIG="v.yaml": must be an absolute path`,
		},
		"record in the hand-over": {
			with(standalone, map[string]string{"DBCONNECTOR_OUTPUT_DIR": "/s/"}),
			`DBCONNECTOR_STATE_DIR="/s": must not be DBCONNECTOR_OUTPUT_DIR`,
		},
		"no UID without Kubernetes": {with(standalone, map[string]string{"DBCONNECTOR_TENANT_UID": ""}), `DBCONNECTOR_TENANT_UID is not set: without Kubernetes`},
		"UID with control": {
			with(minimal, map[string]string{"DBCONNECTOR_TENANT_UID": "a\x1bb"}),
			`DBCONNECTOR_TENANT_UID: "a\x1bb" contains a control character`,
		},
		"UID too long": {with(minimal, map[string]string{"DBCONNECTOR_TENANT_UID": strings.Repeat("u", 1025)}), `at most 1024`},
		"mode is not octal": {
			with(minimal, map[string]string{"DBCONNECTOR_FILE_MODE": "0680"}),
			`DBCONNECTOR_FILE_MODE="0680": must be an octal file mode`,
		},
		"mode open to others":           {with(minimal, map[string]string{"DBCONNECTOR_FILE_MODE": "0644"}), `DBCONNECTOR_FILE_MODE="0644": must be`},
		"mode executable":               {with(minimal, map[string]string{"DBCONNECTOR_FILE_MODE": "0750"}), `DBCONNECTOR_FILE_MODE="0750": must be`},
		"mode executable for the owner": {with(minimal, map[string]string{"DBCONNECTOR_FILE_MODE": "0740"}), `DBCONNECTOR_FILE_MODE="0740": must be`},
		"mode not for the owner":        {with(minimal, map[string]string{"DBCONNECTOR_FILE_MODE": "0440"}), `DBCONNECTOR_FILE_MODE="0440": must be`},
		"mode setuid":                   {with(minimal, map[string]string{"DBCONNECTOR_FILE_MODE": "4640"}), `DBCONNECTOR_FILE_MODE="4640": must be`},
		"mode in words":                 {with(minimal, map[string]string{"DBCONNECTOR_FILE_MODE": "rw-r-----"}), `DBCONNECTOR_FILE_MODE="rw-r-----": must be`},
		"time limit is not one":         {with(minimal, map[string]string{"DBCONNECTOR_TIMEOUT": "120"}), `DBCONNECTOR_TIMEOUT="120": must be a duration`},
		"time limit too short":          {with(minimal, map[string]string{"DBCONNECTOR_TIMEOUT": "4999ms"}), `must be a duration`},
		"time limit too long":           {with(minimal, map[string]string{"DBCONNECTOR_TIMEOUT": "61m"}), `must be a duration`},
		"time limit negative":           {with(minimal, map[string]string{"DBCONNECTOR_TIMEOUT": "-1m"}), `must be a duration`},
		"limit is not a number": {
			with(minimal, map[string]string{"DBCONNECTOR_CONNECTION_LIMIT": "many"}),
			`DBCONNECTOR_CONNECTION_LIMIT="many": must be a number from 5 to 10000`,
		},
		"limit unlimited": {with(minimal, map[string]string{"DBCONNECTOR_CONNECTION_LIMIT": "-1"}), `must be a number from 5`},
		"limit with plus": {with(minimal, map[string]string{"DBCONNECTOR_CONNECTION_LIMIT": "+80"}), `must be a number from 5`},
		"limit too small": {with(minimal, map[string]string{"DBCONNECTOR_CONNECTION_LIMIT": "4"}), `must be a number from 5`},
		"limit too large": {with(minimal, map[string]string{"DBCONNECTOR_CONNECTION_LIMIT": "99999999999999999999"}), `must be a number from 5`},
		"log level": {
			with(minimal, map[string]string{"DBCONNECTOR_LOG_LEVEL": "loud"}),
			`DBCONNECTOR_LOG_LEVEL="loud": must be debug, info, warn or error`,
		},
		"log level that ends us": {with(minimal, map[string]string{"DBCONNECTOR_LOG_LEVEL": "panic"}), `DBCONNECTOR_LOG_LEVEL="panic": must be`},
		"log format": {
			with(minimal, map[string]string{"DBCONNECTOR_LOG_FORMAT": "JSON"}),
			`DBCONNECTOR_LOG_FORMAT="JSON": must be json or console`,
		},
		"pod without UID": {with(minimal, map[string]string{"DBCONNECTOR_POD_NAME": "blue-0"}), `DBCONNECTOR_POD_UID is not set: must be set together`},
		"UID without pod": {with(minimal, map[string]string{"DBCONNECTOR_POD_UID": "1"}), `DBCONNECTOR_POD_NAME is not set: must be set together`},
		"pod's UID": {
			with(minimal, map[string]string{"DBCONNECTOR_POD_NAME": "blue-0", "DBCONNECTOR_POD_UID": "a b"}),
			`DBCONNECTOR_POD_UID="a b": must be a pod's UID`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			environment(t, test.vars)
			got, _, err := load(serviceAccount(t, "team-a"))
			got.LogLevel, got.LogFormat = 0, "" // the refusal itself is logged by these
			switch {
			case err == nil:
				t.Fatal("accepted")
			case got != Init{}:
				t.Error("a refused configuration must not be usable")
			case !fault.Is(err, fault.Refused):
				t.Errorf("class %v, want Refused", fault.Of(err))
			case !strings.Contains(err.Error(), test.want):
				t.Errorf("got %q\nwant it to contain %q", err, test.want)
			case strings.Count(err.Error(), "DBCONNECTOR_") > 3 || strings.ContainsAny(err.Error(), "\n\x1b"):
				t.Errorf("more than one refusal, or more than one line: %q", err)
			}
		})
	}
}

func TestAllRefusalsAtOnce(t *testing.T) {
	environment(t, map[string]string{
		"DBCONNECTOR_TIMEOUT": "x", "DBCONNECTOR_FILE_MODE": "x", "DBCONNECTOR_CONNECTION_LIMIT": "x",
		"DBCONNECTOR_LOG_LEVEL": "x", "DBCONNECTOR_OUTPUT_DIR": "x", "DBCONNECTOR_NAMESPACE": "X",
	})
	_, _, err := load("/does/not/exist")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, name := range []string{"TIMEOUT", "FILE_MODE", "CONNECTION_LIMIT", "LOG_LEVEL", "OUTPUT_DIR", "NAMESPACE", "VCLUSTER_NAME"} {
		if !strings.Contains(err.Error(), prefix+name) {
			t.Errorf("%s is not named in %q", name, err)
		}
	}
}

func TestNamespaceOfTheServiceAccount(t *testing.T) {
	for name, test := range map[string]struct{ file, want string }{
		"not mounted": {"/does/not/exist", "DBCONNECTOR_NAMESPACE is not set: outside of a pod"},
		"empty":       {serviceAccount(t, "\n"), "does not hold the name of a namespace"},
		"binary":      {serviceAccount(t, "\x00\xff"), "does not hold the name of a namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			environment(t, minimal)
			if _, _, err := load(test.file); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	environment(t, with(standalone, map[string]string{
		"DBCONNECTOR_TIME_LIMIT": "1m", "DBCONNECTOR_RECORD_SECRET": "unused", "DBCONNECTOR_ADOPTION": "none", "DBCONNECTOR_GRACE": "1m",
		// The variables that the kubelet sets for Services called dbconnector and dbconnector-pg.
		"DBCONNECTOR_SERVICE_HOST": "10.0.0.1", "DBCONNECTOR_SERVICE_PORT": "5432", "DBCONNECTOR_SERVICE_PORT_SQL": "5432",
		"DBCONNECTOR_PORT": "tcp://10.0.0.1:5432", "DBCONNECTOR_PORT_5432_TCP": "tcp://10.0.0.1:5432",
		"DBCONNECTOR_PORT_5432_TCP_PROTO": "tcp", "DBCONNECTOR_PORT_5432_TCP_PORT": "5432", "DBCONNECTOR_PORT_5432_TCP_ADDR": "10.0.0.1",
		"DBCONNECTOR_PG_SERVICE_HOST": "10.0.0.2", "DBCONNECTOR_PG_PORT_1_UDP_ADDR": "10.0.0.2",
		"DBCONNECTOR_TEST_POSTGRES": "postgres://x",
	}))
	_, warnings, err := load("/does/not/exist")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"DBCONNECTOR_RECORD_SECRET has no effect: DBCONNECTOR_STATE_DIR is set",
		`"DBCONNECTOR_ADOPTION" is not a variable of this program and is ignored`,
		`"DBCONNECTOR_TIME_LIMIT" is not a variable of this program and is ignored`,
	}
	if !slices.Equal(warnings, want) {
		t.Errorf("got %q\nwant %q", warnings, want)
	}
}

// TestLogOfARefusal: a refusal is logged in the wanted format, and in the default one where the format itself is wrong.
func TestLogOfARefusal(t *testing.T) {
	for name, test := range map[string]struct {
		level, format string
		wantLevel     zapcore.Level
		wantFormat    string
	}{
		"asked for": {"error", "console", zapcore.ErrorLevel, Console},
		"default":   {"", "", zapcore.InfoLevel, JSON},
		"wrong":     {"fatal", "x", zapcore.InfoLevel, JSON},
	} {
		t.Run(name, func(t *testing.T) {
			environment(t, map[string]string{"DBCONNECTOR_LOG_LEVEL": test.level, "DBCONNECTOR_LOG_FORMAT": test.format})
			c, _, err := load("/does/not/exist")
			if err == nil || c.LogLevel != test.wantLevel || c.LogFormat != test.wantFormat {
				t.Errorf("got level %v, format %q, %v", c.LogLevel, c.LogFormat, err)
			}
		})
	}
}

// TestNoNameThatAServiceInjects: a Service called dbconnector must not be able to configure us.
func TestNoNameThatAServiceInjects(t *testing.T) {
	t.Parallel()
	for _, v := range Variables() {
		if foreign.MatchString(v.Name) {
			t.Errorf("Kubernetes sets %s for a Service", v.Name)
		}
	}
}

// TestDocumentation holds the table of docs/configuration.md to the code: every variable, no other, the same defaults.
func TestDocumentation(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []Variable
	for _, row := range regexp.MustCompile("(?m)^\\| `(DBCONNECTOR_[A-Z_]+)` \\| *([^|]*?) *\\|").FindAllStringSubmatch(string(doc), -1) {
		got = append(got, Variable{row[1], strings.Trim(strings.TrimPrefix(row[2], "required"), "`")})
	}
	if want := Variables(); !slices.Equal(got, want) {
		t.Errorf("the table says %v\nthe code says  %v", got, want)
	}
}

// TestTypingErrors: a name that is almost one of ours is refused, and both names are said. (F39)
func TestTypingErrors(t *testing.T) {
	for typed, meant := range map[string]string{
		"DBCONNECTOR_CONECTOR":        "DBCONNECTOR_CONNECTOR",
		"DBCONNECTOR_CONNETCOR":       "DBCONNECTOR_CONNECTOR",
		"DBCONNECTOR_CONNECTORS":      "DBCONNECTOR_CONNECTOR",
		"DBCONNECTOR_TENENT_UDI":      "DBCONNECTOR_TENANT_UID",
		"DBCONECTOR_TENANT_UID":       "DBCONNECTOR_TENANT_UID",
		"DB_CONNECTOR_TENANT_UID":     "DBCONNECTOR_TENANT_UID",
		"DBCONNECTOR-TENANT-UID":      "DBCONNECTOR_TENANT_UID",
		"dbconnector_tenant_uid":      "DBCONNECTOR_TENANT_UID",
		"DBCONNECTOR_ADOP":            "DBCONNECTOR_ADOPT",
		"DBCONNECTOR_ROTATION_PERIDO": "DBCONNECTOR_ROTATION_PERIOD",
	} {
		t.Run(typed, func(t *testing.T) {
			environment(t, with(minimal, map[string]string{typed: "x"}))
			want := `"` + typed + `" is not a variable of this program: ` + meant + " is meant"
			if _, _, err := load(serviceAccount(t, "a")); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), want) {
				t.Errorf("init: got %v, want %s", err, want)
			}
			if _, _, err := loadRotate(serviceAccount(t, "a")); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), want) {
				t.Errorf("rotate: got %v, want %s", err, want)
			}
		})
	}
	for _, other := range []string{
		"DBCONNECTOR_BROKER", "DBCONNECTOR_GRACE_SERVICE_HOST", "DBCONNECTOR_ADOP_PORT", "DBCONNECTOR_TEST_ADOPT", "ADOPT", "CONNECTOR",
		"MY_DBCONNECTOR_ADOPT", strings.Repeat("DBCONNECTOR_", 10000),
	} {
		t.Run(other[:min(40, len(other))], func(t *testing.T) {
			environment(t, with(minimal, map[string]string{other: "x"}))
			if _, _, err := load(serviceAccount(t, "a")); err != nil {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestVariablesAreFarApart: a variable of a later release must be no typing error to an earlier one, which would then refuse to
// start after a rollback. (F39)
func TestVariablesAreFarApart(t *testing.T) {
	t.Parallel()
	list := Variables()
	for i, a := range list {
		for _, b := range list[i+1:] {
			if d := distance(a.Name, b.Name); d <= typo {
				t.Errorf("%s and %s differ by %d letters: a typing error changes as many", a.Name, b.Name, d)
			}
		}
	}
	for _, test := range []struct {
		a, b string
		want int
	}{{"ab", "ab", 0}, {"ab", "ba", 1}, {"abc", "ac", 1}, {"ac", "abc", 1}, {"abcd", "badc", 2}, {"", "ab", 2}, {"abc", "xyz", 3}, {"a", "abcd", 3}} {
		if got := distance(test.a, test.b); got != test.want {
			t.Errorf("distance of %q and %q: %d, want %d", test.a, test.b, got, test.want)
		}
	}
}
