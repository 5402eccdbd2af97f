// SPDX-License-Identifier: Apache-2.0

package atomicfile

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReplace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for i, test := range []struct {
		reason  string
		content string
		mode    os.FileMode
		want    bool
	}{
		{"a new file", "one", 0o600, true},
		{"the same again", "one", 0o600, false},
		{"other content of the same length", "two", 0o600, true},
		{"another mode", "two", 0o666, true},
		{"nothing in it", "", 0o600, true},
	} {
		changed, err := Replace(path, []byte(test.content), test.mode)
		if err != nil || changed != test.want {
			t.Fatalf("%d, %s: got %v, %v", i, test.reason, changed, err)
		}
		data, err := os.ReadFile(path)
		info, staterr := os.Stat(path)
		if err != nil || staterr != nil || string(data) != test.content || info.Mode() != test.mode {
			t.Fatalf("%d, %s: got %q, %v, %v", i, test.reason, data, info.Mode(), err)
		}
	}
}

// TestReplaceLink: a symbolic link is replaced and its target is left alone.
func TestReplaceLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	if err := os.WriteFile(target, []byte("same"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if changed, err := Replace(link, []byte("same"), 0o600); err != nil || !changed {
		t.Fatalf("got %v, %v", changed, err)
	}
	if info, err := os.Lstat(link); err != nil || !info.Mode().IsRegular() {
		t.Errorf("got %v, %v", info.Mode(), err)
	}
}

func TestFailureLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Replace(path, []byte("x"), 0o600); err == nil {
		t.Fatal("a directory was replaced")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("got %v, %v", entries, err)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		if changed, err := Remove(path); err != nil || changed != want {
			t.Errorf("time %d: got %v, %v", i+1, changed, err)
		}
	}
}
