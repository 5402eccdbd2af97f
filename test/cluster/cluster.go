// SPDX-License-Identifier: Apache-2.0

// Package cluster runs the shipped image and the shipped manifests in real pods, on the bed's node.
package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"dbconnector/test/bed"
	"dbconnector/test/deploy"
)

// Image makes the image that the Dockerfile describes, under the name that the shipped Helm values call it.
func Image(ctx context.Context) (*bed.Image, error) {
	root, err := deploy.Root()
	if err != nil {
		return nil, err
	}
	name, err := imageName(filepath.Join(root, "deploy/kustomize/examples/open-source/values.yaml"))
	if err != nil {
		return nil, err
	}
	_, tag, _ := strings.Cut(filepath.Base(name), ":")
	return bed.BuildDockerfile(ctx, filepath.Join(root, "Dockerfile"), name, map[string]string{"VERSION": tag})
}

// imageName reads the image of the first init container in a file of values.
func imageName(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("reading values: %w", err)
	}
	var values struct {
		ControlPlane struct {
			StatefulSet struct {
				InitContainers []struct{ Image string }
			}
		}
	}
	if err := yaml.Unmarshal(text, &values); err != nil {
		return "", fmt.Errorf("reading values: %w", err)
	}
	containers := values.ControlPlane.StatefulSet.InitContainers
	if len(containers) == 0 || containers[0].Image == "" {
		return "", fmt.Errorf("%s has no init container with an image", file)
	}
	return containers[0].Image, nil
}
