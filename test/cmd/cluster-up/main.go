// SPDX-License-Identifier: Apache-2.0

// Command up starts the cluster of the tests for a developer, with the shipped image on it and a connector to a PostgreSQL,
// and keeps it until it is interrupted:
//
//	go run ./test/cmd/cluster-up
//
// In place of Helm, it prints what the chart makes of a file of values:
//
//	go run ./test/cmd/cluster-up render RELEASE NAMESPACE VALUES
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"dbconnector/test/bed"
	"dbconnector/test/pods"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE) // clean up also if no program reads the output any more
	bed.Progress = os.Stderr
	var err error
	switch {
	case len(os.Args) == 1:
		err = run(ctx)
	case len(os.Args) == 5 && os.Args[1] == "render":
		err = render(os.Args[2], os.Args[3], os.Args[4])
	default:
		err = errors.New("usage: up [render RELEASE NAMESPACE VALUES]")
	}
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case interrupted && err != nil:
		fmt.Fprintln(os.Stderr, "interrupted:", err)
		os.Exit(130)
	case interrupted:
		fmt.Println("The cluster has ended, and nothing of it is left.")
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func render(release, namespace, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading values: %w", err)
	}
	values, err := pods.ParseValues(text)
	if err != nil {
		return err
	}
	manifests, err := values.RenderForNode(release, namespace)
	if err == nil {
		_, err = os.Stdout.Write(manifests)
	}
	return err
}

func run(ctx context.Context) (err error) {
	c, err := pods.Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop(context.WithoutCancel(ctx))) }()
	options, err := c.Options()
	if err != nil {
		return err
	}
	options.MaxConnections = 400 // each kine keeps up to 20
	server, err := bed.Start(ctx, bed.Postgres, "17", options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop(context.WithoutCancel(ctx))) }()
	user, password, err := server.CloudAdmin(ctx, "platform")
	if err != nil {
		return err
	}
	if err := c.Connect(ctx, "postgres", "postgres", server, user, password); err != nil {
		return err
	}
	port, err := c.Publish(ctx, c.Addr())
	if err != nil {
		return err
	}
	kubeconfig := filepath.Join(c.Dir(), "kubeconfig")
	if err := c.WriteKubeconfig(kubeconfig, fmt.Sprintf("https://127.0.0.1:%d", port)); err != nil {
		return err
	}
	kubectl, err := bed.Program(ctx, "kubectl")
	if err != nil {
		return err
	}
	fmt.Printf(`
A Kubernetes node is ready, with the image of the Dockerfile. The connector "postgres" leads to a PostgreSQL 17
on 127.0.0.1:%d. There is no registry, no name service and no way out. In another shell, from this directory:

  export KUBECONFIG=%s PATH=%s:$PATH
  kubectl create namespace team-a
  kubectl apply --kustomize deploy/kustomize/examples/open-source
  go run ./test/cmd/cluster-up render team-a team-a deploy/kustomize/examples/open-source/values.yaml | kubectl apply --filename -
  kubectl get pods --namespace team-a --watch
  kubectl logs --namespace team-a deployment/team-a --container dbconnector-init
  kubectl describe pods --namespace team-a
  kubectl get secret --namespace team-a dbconnector-team-a --output yaml
  kubectl run look --image bed.test/busybox:1 --restart Never --rm --stdin --tty

Its own API, and a rotation every minute adopted by a rollout:

  kubectl port-forward --namespace team-a service/team-a 8443:443 &
  kubectl --server https://127.0.0.1:8443 --token %s --insecure-skip-tls-verify get namespaces
  kubectl set env --namespace team-a deployment/team-a --containers 'dbconnector-*' \
    DBCONNECTOR_ADOPT=rollout DBCONNECTOR_ROTATION_PERIOD=1m DBCONNECTOR_GRACE=10s
  kubectl get events --namespace team-a --watch

What the node logs: %s/*.log
^C ends it, with all that it has.
`, server.Port, kubeconfig, filepath.Dir(kubectl), pods.Token, c.Dir())
	for look := time.NewTicker(time.Second); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			if err := c.Alive(); err != nil {
				return err
			}
		}
	}
}
