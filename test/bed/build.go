// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Root returns the directory of the repository, from any directory below it.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the repository: %w", err)
	}
	for {
		// Not go.mod: there are modules below the repository's own.
		_, err := os.Stat(filepath.Join(dir, "deploy", "kustomize"))
		if err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || parent == dir {
			return "", fmt.Errorf("finding the repository: no directory deploy/kustomize above the working directory: %w", err)
		}
		dir = parent
	}
}

// Build builds a command of the repository, which its directory there names, into the file output: as what is shipped is built,
// and with the dependencies of the command's own module, whatever the tests' module needs. flags are the linker's, besides -s -w.
func Build(ctx context.Context, output, command string, flags ...string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	module := root
	if inside, ok := strings.CutPrefix(command, "test/"); ok {
		module, command = filepath.Join(root, "test"), inside
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", strings.Join(append([]string{"-s", "-w"}, flags...), " "), "-o", output, "./"+command)
	cmd.Dir = module
	// Go leaves things in its temporary directory when it is interrupted.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GOTMPDIR="+filepath.Dir(output))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", command, err, out)
	}
	return nil
}
