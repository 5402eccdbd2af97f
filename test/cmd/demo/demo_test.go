// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
)

// demoTemp is a directory for temporary files of a demo, so that what it leaves behind
// can be seen. The servers' account must be able to enter it, unlike t.TempDir.
func demoTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dbconnector-demo-test-") //nolint:usetesting // see above
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

func command(t *testing.T, program, temp string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	return cmd
}

func checkEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("the demo left behind %v, %v", left, err)
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	program := build(t)
	for engine, refusal := range map[string]string{
		"postgres": `PostgreSQL says: 42501 permission denied for database "vc`,
		"mariadb":  "MariaDB says: 1044 Access denied for user 'vc",
		"mysql":    "MySQL says: 1044 Access denied for user 'vc",
	} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			temp := demoTemp(t)
			out, err := command(t, program, temp, "-engine", engine).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			checkEmpty(t, temp)
			_, table, ok := strings.Cut(string(out), "STEP ")
			if !ok {
				t.Fatalf("there is no table:\n%s", out)
			}
			for _, tenant := range []string{"blue", "green"} {
				for _, want := range []string{
					`provision +` + tenant + ` +database vc[a-z2-7]{24} +\d`,
					`start kine on the hand-over +` + tenant + ` +up, by TLS`,
					`create, update, delete, watch +` + tenant + ` +5 changes, and the watch saw 5`,
					`list +` + tenant + ` +its own 2 objects and nothing else`,
					`enter the other's database +` + tenant + ` +refused by the server, error \d+`,
					`create a database +` + tenant + ` +refused by the server, error \d+`,
					`provision again \(restart\) +` + tenant + ` +logins counted: 1 as tenant, 0 as admin`,
					`start kine again, list +` + tenant + ` +its own 2 objects and nothing else`,
					`rotate 3 times, under load +` + tenant + ` +[1-9]\d+ requests, 0 failed`,
					`use a rotated-away password +` + tenant + ` +3 of 3 refused by the server, error (28P01|1045)`,
					`rotate [23] times in socket mode +` + tenant + ` +[1-9]\d+ requests, 0 failed, one kine: process \d+`,
					`use a password of before +` + tenant + ` +refused by the server, error (28P01|1045)`,
					`search kine for [5-9] passwords +` + tenant + ` +none in its arguments, environment, files, log`,
					`list after the rotations +` + tenant + ` +its own [1-9]\d+ objects and nothing else`,
				} {
					if !regexp.MustCompile(`(?m)^` + want).MatchString(table) {
						t.Errorf("the table has no line like %q:\n%s", want, table)
					}
				}
			}
			checkTimeline(t, string(out))
			// It may be in two lines, with more blanks than one between them.
			if !strings.Contains(strings.Join(strings.Fields(string(out)), " "), refusal) || !strings.Contains(table, "All of it held.") {
				t.Errorf("the output does not have the refusal %q, or not the last line:\n%s", refusal, out)
			}
			if bytes.ContainsAny(out, "\x1b\r") {
				t.Errorf("the output has control characters:\n%q", out)
			}
			for line := range strings.Lines(string(out)) {
				if len(strings.TrimSuffix(line, "\n")) > 100 {
					t.Errorf("a line of %d characters: %s", len(line), line)
				}
			}
			for _, word := range regexp.MustCompile(`[A-Za-z0-9._~-]{40,}`).FindAllString(string(out), -1) {
				if strings.ContainsAny(word, "0123456789") {
					t.Errorf("this looks like a password: %s", word)
				}
			}
		})
	}
}

// checkTimeline makes sure that each tenant went through its rotations in order, and that no request failed.
func checkTimeline(t *testing.T, out string) {
	t.Helper()
	event := regexp.MustCompile(`(?m)^ +\d+\.\d s  (blue|green) +(begins|rotated|adopted|retired) +\S.* (\d+) +(\d+)$`)
	seen, requests := map[string]string{}, map[string]int{}
	for _, m := range event.FindAllStringSubmatch(out, -1) {
		tenant := m[1]
		seen[tenant] += m[2] + " "
		n, err := strconv.Atoi(m[3])
		if err != nil || n < requests[tenant] || m[4] != "0" {
			t.Errorf("after %d requests of %s: %s", requests[tenant], tenant, m[0])
		}
		requests[tenant] = n
	}
	for _, tenant := range []string{"blue", "green"} {
		if got, want := seen[tenant], "begins "+strings.Repeat("rotated adopted retired ", 3); got != want {
			t.Errorf("the timeline of %s is\n%s\nwant\n%s\n%s", tenant, got, want, out)
		}
	}
}

// TestInterrupted stops the demo in the middle: when a server and two kines run, and when the passwords change.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	program := build(t)
	for name, at := range map[string]string{"start": "green  start kine", "rotation": "green   rotated"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkInterrupted(t, program, at)
		})
	}
}

func checkInterrupted(t *testing.T, program, at string) {
	t.Helper()
	require.NoError(t, bed.Fetch(t.Context(), "postgres-17", "kine"))
	temp := demoTemp(t)
	cmd := command(t, program, temp)
	pipe, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var out strings.Builder
	buffer := make([]byte, 1024)
	for sent := false; ; {
		n, err := pipe.Read(buffer)
		out.Write(buffer[:n])
		if !sent && strings.Contains(out.String(), at) {
			sent = true
			assert.NoError(t, cmd.Process.Signal(syscall.SIGINT))
		}
		if err != nil {
			if err != io.EOF {
				t.Error(err)
			}
			break
		}
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("got %v, want exit code 130\n%s", err, out.String())
	}
	if !strings.Contains(out.String(), "Interrupted.") || strings.Contains(out.String(), "NOT hold") {
		t.Errorf("the output does not say just that it was interrupted:\n%s", out.String())
	}
	checkEmpty(t, temp)
}

func TestUsage(t *testing.T) {
	t.Parallel()
	program := build(t)
	for _, args := range [][]string{{"-engine", "oracle"}, {"postgres"}, {"-engine"}} {
		cmd := exec.CommandContext(t.Context(), program, args...)
		if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "-engine") {
			t.Errorf("%q: got %v, want exit code 2 and a hint\n%s", args, err, out)
		}
	}
}
