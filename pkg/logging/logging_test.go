// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"dbconnector/pkg/fault"
)

func TestShorten(t *testing.T) {
	t.Parallel()
	for name, reason := range map[string]string{
		"empty":              "",
		"short":              "reading the connector, secret a/b: it does not exist",
		"just fits":          strings.Repeat("x", maxReason-2), // and two quotes
		"one too many":       strings.Repeat("x", maxReason-1),
		"an API server's":    "writing the record: " + strings.Repeat("policy says no ", 20000),
		"of several bytes":   "at: " + strings.Repeat("ü€", 2000),
		"escaped":            "at: " + strings.Repeat("\"\\\n\x01<&>", 2000),
		"no UTF-8":           "at: " + strings.Repeat("\xff\xc3", 2000),
		"escaped, and short": strings.Repeat("\x01", maxReason/6+1),
	} {
		short := shorten(reason)
		line, err := json.Marshal(short)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := json.Marshal(reason)
		if err != nil {
			t.Fatal(err)
		}
		if fits := len(whole) <= maxReason; fits != (short == reason) {
			t.Errorf("%s: fits %t, and became %q", name, fits, short)
		}
		if len(line) > maxReason {
			t.Errorf("%s: %d bytes, want at most %d", name, len(line), maxReason)
		}
		if cut, was := strings.CutSuffix(short, "… (cut; the line before has all of it)"); was && !strings.HasPrefix(reason, cut) {
			t.Errorf("%s: begins %.40q, want %.40q", name, short, reason)
		}
		if utf8.ValidString(reason) && !utf8.ValidString(short) {
			t.Errorf("%s: cut inside of a character: %q", name, short)
		}
	}
}

// TestTerminate: the reason is left where the kubelet has made a file for it, and nowhere else. (F36)
func TestTerminate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, missing, fifo := filepath.Join(dir, "f"), filepath.Join(dir, "none"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.WriteFile(file, []byte(strings.Repeat("before ", 1000)), 0o600), syscall.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, reason := range []string{"a reason with \"quotes\" and ü", strings.Repeat("long ", 5000)} {
		terminate(file, reason)
		got, err := os.ReadFile(file)
		if want := fault.Cut(reason, 4096); err != nil || string(got) != want {
			t.Errorf("got %.100q, %v; want %.100q", got, err, want)
		}
	}
	for _, path := range []string{missing, fifo, dir} {
		terminate(path, "x") // returns
	}
	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("made a file that no program reads: %v", err)
	}
}
