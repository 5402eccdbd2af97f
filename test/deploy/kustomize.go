// SPDX-License-Identifier: Apache-2.0

// Package deploy renders what deploy/ ships, for the tests that check it and for those that install it in a cluster.
package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// kustomize is run from the module cache: as a library it would put its dependencies into the go.mod of the programs.
// Newer versions than this one ask for a newer Go than the programs do.
const kustomize = "sigs.k8s.io/kustomize/kustomize/v5@v5.8.2"

// Build returns what `kubectl apply -k dir` would send. The first call on a machine builds kustomize, in about a minute.
func Build(ctx context.Context, dir string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", "run", kustomize, "build", dir)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// Flags of the caller, such as -mod or -race, are not meant for the tool.
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0")
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("building kustomization %s: %w\n%s", dir, err, stderr.Bytes())
	}
	return stdout.Bytes(), nil
}

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
