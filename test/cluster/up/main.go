// SPDX-License-Identifier: Apache-2.0

// Command up starts the node of the cluster tests for a developer, with the shipped image on it, and keeps it until it is
// interrupted:
//
//	make cluster-up
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"dbconnector/test/bed"
	"dbconnector/test/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	bed.Progress = os.Stderr
	err := run(ctx)
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	node, err := bed.StartNode(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Stop(context.WithoutCancel(ctx))) }()
	image, err := cluster.Image(ctx)
	if err != nil {
		return err
	}
	busybox, err := bed.Busybox(ctx)
	if err != nil {
		return err
	}
	if err := node.Import(ctx, image, busybox); err != nil {
		return err
	}
	kubeconfig, err := publish(ctx, node)
	if err != nil {
		return err
	}
	kubectl, err := bed.Program(ctx, "kubectl")
	if err != nil {
		return err
	}
	fmt.Printf(`
The node is ready. In another shell:

  export KUBECONFIG=%s PATH=%s:$PATH
  kubectl get pods --all-namespaces
  kubectl run try --image=%s --restart=Never --command -- sh -c 'ls -l /; sleep 1000'
  kubectl logs try; kubectl exec try -- ps; kubectl delete pod try --now

It has the image %s, which the Dockerfile of this directory describes, and nothing else:
no registry, no name service, no way out. Logs of the node: %s/*.log
^C ends it, with all that it has.
`, kubeconfig, filepath.Dir(kubectl), busybox.Name, image.Name, node.Dir())
	<-ctx.Done()
	return ctx.Err()
}

// publish makes the API server reachable for programs of this machine, and returns the kubeconfig for them.
func publish(ctx context.Context, node *bed.Node) (string, error) {
	port, err := node.Publish(ctx, node.Addr())
	if err != nil {
		return "", err
	}
	file := filepath.Join(node.Dir(), "kubeconfig")
	return file, node.WriteKubeconfig(file, fmt.Sprintf("https://127.0.0.1:%d", port))
}
