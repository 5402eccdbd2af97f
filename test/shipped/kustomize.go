// SPDX-License-Identifier: Apache-2.0

// Package shipped renders the manifests in deploy/, for the tests that check them and for those that install them in a cluster.
package shipped

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"sigs.k8s.io/yaml"
)

// kustomize is run as the program that users run.
// Newer versions than this one ask for a newer Go than the programs do.
const kustomize = "sigs.k8s.io/kustomize/kustomize/v5@v5.8.2"

// Build returns the objects that `kubectl apply -k dir` would send. The first call on a machine builds kustomize, in about a
// minute.
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

// Values reads Helm values, the later files over the former ones, as `helm --values A --values B` does: mappings are
// merged, and all else, lists too, replaces the old value. A null stays one: it takes a default of the chart away.
func Values(files ...string) ([]byte, error) {
	all := map[string]any{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading values: %w", err)
		}
		var over map[string]any
		if err := yaml.Unmarshal(text, &over); err != nil {
			return nil, fmt.Errorf("reading values %s: %w", file, err)
		}
		merge(all, over)
	}
	text, err := yaml.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("encoding values: %w", err)
	}
	return text, nil
}

func merge(into, over map[string]any) {
	for key, value := range over {
		below, both := into[key].(map[string]any)
		if more, ok := value.(map[string]any); ok && both {
			merge(below, more)
			continue
		}
		into[key] = value
	}
}

// BindAccount puts the patch in force that an example's kustomization.yaml has as a comment, for a ServiceAccount of that
// name.
func BindAccount(kustomization, account string) error {
	text, err := os.ReadFile(kustomization)
	if err != nil {
		return fmt.Errorf("reading kustomization: %w", err)
	}
	before, comment, ok := strings.Cut(string(text), "\n# patches:\n")
	if !ok || strings.Count(comment, "my-account") != 1 {
		return fmt.Errorf("%s has no patch for the ServiceAccount's name", kustomization)
	}
	patch := strings.ReplaceAll("\n"+comment, "\n# ", "\n")
	text = []byte(before + "\npatches:\n" + strings.ReplaceAll(patch, "my-account", account))
	if err := os.WriteFile(kustomization, text, 0o600); err != nil {
		return fmt.Errorf("writing kustomization: %w", err)
	}
	return nil
}
