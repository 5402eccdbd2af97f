// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// TestVersion: both programs, built as `make build` builds them, name their build without any setting. So does a
// program that was built without version flags. Another argument ends the run, and the message names it. (F30)
func TestVersion(t *testing.T) {
	t.Parallel()
	root, err := bed.Root()
	require.NoError(t, err)
	plan := exec.CommandContext(t.Context(), "make", "--dry-run", "build", "VERSION=v1.2.3-4-gabcdef0")
	plan.Dir, plan.Env = root, append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
	commands, err := plan.Output()
	require.NoError(t, err)
	base := dir(t)
	for _, name := range []string{"init", "rotate"} {
		flags := regexp.MustCompile(`-ldflags '([^']*)' -o \S+ \./cmd/` + name + `\n`).FindSubmatch(commands)
		if flags == nil {
			t.Fatalf("`make build` does not build cmd/%s:\n%s", name, commands)
		}
		build := func(binary, flags string) string {
			t.Helper()
			binary = filepath.Join(base, binary)
			cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=auto", "-trimpath", "-ldflags="+flags, "-o", binary, "./cmd/"+name)
			cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			return binary
		}
		made := build(name, string(flags[1]))
		plain := build(name+"-plain", "-s -w")
		info, err := buildinfo.ReadFile(plain)
		require.NoError(t, err)
		for binary, version := range map[string]string{made: "v1.2.3-4-gabcdef0", plain: strings.Trim(info.Main.Version, "()")} {
			for _, argument := range []string{"-version", "--version"} {
				ask := exec.CommandContext(t.Context(), binary, argument)
				ask.Env = []string{"DBCONNECTOR_STATE_DIR=relative", "DBCONNECTOR_NAMESPAC=typo"} // each is refused by a run
				var said, complained strings.Builder
				ask.Stdout, ask.Stderr = &said, &complained
				err := ask.Run()
				if want := "dbconnector-" + name + " " + version + " " + runtime.Version() + "\n"; err != nil || said.String() != want || complained.String() != "" {
					t.Errorf("%s %s: got %q and %q, %v; want %q", binary, argument, said.String(), complained.String(), err, want)
				}
			}
		}
		wrong := exec.CommandContext(t.Context(), made, "--config=hunter2")
		wrong.Env = []string{}
		said, _ := wrong.CombinedOutput()
		if code := wrong.ProcessState.ExitCode(); code != human ||
			!strings.Contains(string(said), `the argument \"--config\" is not known`) ||
			strings.Contains(string(said), "hunter2") {
			t.Errorf("%s: exit code %d, and it says:\n%s", name, code, said)
		}
	}
}

// TestVersionOfInit: the first line of a run has the version, and so has the user agent that the API server sees. (F30)
func TestVersionOfInit(t *testing.T) {
	t.Parallel()
	server := postgres.Get(t)
	v := newVCluster(t, server, connectorFor(server))
	front := newCounter(t)
	v.useToken(t, front.url)
	v.env["DBCONNECTOR_UNKNOWN_SETTING"] = "1" // a warning, which comes after that line
	o := v.run(t)
	o.succeeded(t)
	version, err := exec.CommandContext(t.Context(), rig.Init, "-version").Output()
	require.NoError(t, err)
	words := strings.Fields(string(version))
	if first := o.lines[0]; first["msg"] != "starting" || first["version"] != words[1] {
		t.Errorf("the first line is %v, want the version %s", first, words[1])
	}
	if !o.said("configuration warning", "DBCONNECTOR_UNKNOWN_SETTING") {
		t.Errorf("there is no warning:\n%s", o.stderr)
	}
	if agents := front.agents(); !slices.Equal(agents, []string{words[0] + "/" + words[1]}) {
		t.Errorf("the API server sees %q, want %q", agents, words[:2])
	}
}
