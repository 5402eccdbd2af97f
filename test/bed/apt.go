// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// keyring verifies the Debian archive's releases, older and newer ones included.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// mirror finds the Debian archive that this machine's apt sources name, whatever
// their format. The archive carries every release, so it also has those the machine
// itself does not run. On a machine without one, $DBCONNECTOR_TEST_DEBIAN_MIRROR names it.
func mirror(ctx context.Context) (string, error) {
	if uri := os.Getenv("DBCONNECTOR_TEST_DEBIAN_MIRROR"); uri != "" {
		return uri, nil
	}
	for _, updated := range []bool{false, true} {
		if updated {
			// Fresh containers have no package lists, and these hold the origin.
			if err := aptGet(ctx, "update"); err != nil {
				return "", fmt.Errorf("updating package lists: %w", err)
			}
		}
		out, err := run(ctx, "", "apt-get", "indextargets",
			"--format", "$(REPO_URI)|$(ORIGIN)|$(LABEL)|$(COMPONENT)", "Created-By: Packages")
		if err != nil {
			return "", fmt.Errorf("reading apt sources: %w", err)
		}
		for line := range strings.Lines(out) {
			field := strings.Split(strings.TrimSpace(line), "|")
			// Origin and label are the archive's own words, where third-party
			// repositories may well use the same suites, components and paths.
			if len(field) == 4 && field[1] == "Debian" && field[2] == "Debian" && field[3] == "main" {
				return field[0], nil
			}
		}
	}
	return "", errors.New("no apt source of this machine is the Debian archive: set DBCONNECTOR_TEST_DEBIAN_MIRROR")
}

// unpackDebs puts packages of a Debian release, and what they depend on, below
// dir. apt resolves and verifies them as for an empty machine; nothing is installed
// and no maintainer script runs.
func unpackDebs(ctx context.Context, dir, suite string, pkgs ...string) error {
	uri, err := mirror(ctx)
	if err != nil {
		return err
	}
	if err := need(ctx, func() bool { return exists(keyring) }, "debian-archive-keyring"); err != nil {
		return err
	}
	state, err := os.MkdirTemp(filepath.Dir(dir), ".apt-")
	if err != nil {
		return fmt.Errorf("making apt's directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(state) }()
	source := fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, uri, suite)
	if err := errors.Join(
		os.MkdirAll(filepath.Join(state, "lists", "partial"), 0o755),
		os.MkdirAll(filepath.Join(state, "archives", "partial"), 0o755),
		os.WriteFile(filepath.Join(state, "status"), nil, 0o644),
		os.WriteFile(filepath.Join(state, "sources.list"), []byte(source), 0o644),
	); err != nil {
		return fmt.Errorf("preparing apt's directory: %w", err)
	}
	// Options on the command line win over the machine's configuration, of which
	// only what we leave alone (proxies, say) is still in force.
	apt := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{
			"-o", "Dir::State=" + state,
			"-o", "Dir::State::lists=lists",
			"-o", "Dir::State::status=" + filepath.Join(state, "status"),
			"-o", "Dir::Cache=" + state,
			"-o", "Dir::Cache::archives=archives",
			"-o", "Dir::Log=" + state,
			"-o", "Dir::Etc::sourcelist=" + filepath.Join(state, "sources.list"),
			"-o", "Dir::Etc::sourceparts=-",
			"-o", "Dir::Etc::preferences=-",
			"-o", "Dir::Etc::preferencesparts=-",
			"-o", "Acquire::Languages=none",
			"-o", "Acquire::Retries=3",
			"-o", "APT::Update::Error-Mode=any",
			"-o", "APT::Sandbox::User=", // state belongs to us, _apt cannot write it
			"-o", "Debug::NoLocking=1", // no other program knows this state
		}, args...)...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
		_, err := output(cmd)
		return err
	}
	if err := apt("update"); err != nil {
		return fmt.Errorf("updating package lists of %s: %w", suite, err)
	}
	install := append([]string{"install", "--yes", "--download-only", "--no-install-recommends"}, pkgs...)
	if err := apt(install...); err != nil {
		return fmt.Errorf("downloading packages of %s: %w", suite, err)
	}
	debs, err := filepath.Glob(filepath.Join(state, "archives", "*.deb"))
	if err != nil {
		return fmt.Errorf("listing packages of %s: %w", suite, err)
	}
	if len(debs) == 0 {
		return fmt.Errorf("downloading packages of %s: apt left none", suite)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making %s: %w", dir, err)
	}
	for _, deb := range debs {
		if err := unpackDeb(ctx, deb, dir); err != nil {
			return err
		}
	}
	return nil
}

func unpackDeb(ctx context.Context, deb, dir string) error {
	unpack := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	files, err := unpack.StdoutPipe()
	if err != nil {
		return fmt.Errorf("unpacking %s: %w", filepath.Base(deb), err)
	}
	if err := unpack.Start(); err != nil {
		return fmt.Errorf("unpacking %s: %w", filepath.Base(deb), err)
	}
	tar := exec.CommandContext(ctx, "tar", "--extract", "--no-same-owner", "--directory", dir,
		"--exclude=./usr/share/doc", "--exclude=./usr/share/man", "--exclude=./usr/share/locale", "--exclude=./usr/share/perl")
	tar.Stdin = files
	_, err = output(tar)
	if err := errors.Join(err, unpack.Wait()); err != nil {
		return fmt.Errorf("unpacking %s: %w", filepath.Base(deb), err)
	}
	return nil
}

// foreign returns the beginning of a command line that runs a program of an
// unpacked release: by that release's own loader with its own libraries, for the
// machine's may be older or newer.
func foreign(root string) ([]string, error) {
	triplet, loader := "x86_64-linux-gnu", "ld-linux-x86-64.so.2"
	if runtime.GOARCH == "arm64" {
		triplet, loader = "aarch64-linux-gnu", "ld-linux-aarch64.so.1"
	}
	// Before Debian 12, /lib was not yet /usr/lib.
	usr, old := filepath.Join(root, "usr/lib", triplet), filepath.Join(root, "lib", triplet)
	for _, dir := range []string{usr, old} {
		if ld := filepath.Join(dir, loader); exists(ld) {
			return []string{ld, "--library-path", usr + ":" + old}, nil
		}
	}
	return nil, fmt.Errorf("no dynamic loader %s in %s", loader, root)
}
