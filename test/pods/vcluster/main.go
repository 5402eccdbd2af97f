// SPDX-License-Identifier: Apache-2.0

// Command vcluster stands in for the control plane of a vCluster: it reads its config as strictly, starts kine on the store
// that it finds there (on an empty SQLite where it finds none) and kube-apiserver on kine, and ends when one of them does. It
// has no controllers, and of the syncer only what is dangerous: see [syncer].
//
//	vcluster start [--config=FILE]
//	vcluster restore
//
// The latter is what the pods of `vcluster restore` run: it reads the fixed config, whatever args the control plane has, and
// starts kine alone.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"dbconnector/test/controlplane"
	"dbconnector/test/pods"
)

// Where the chart mounts its volumes.
const (
	data     = "/data"
	binaries = "/binaries"
	pki      = "/pki"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

// fixed is the config that the chart makes of the values.
const fixed = "/var/lib/vcluster/config.yaml"

func run(ctx context.Context) error {
	usage := errors.New("usage: vcluster start [--config=FILE] | vcluster restore")
	if len(os.Args) < 2 {
		return usage
	}
	switch os.Args[1] {
	case "start":
		flags := flag.NewFlagSet("start", flag.ContinueOnError)
		config := flags.String("config", fixed, "the vCluster's config")
		if err := flags.Parse(os.Args[2:]); err != nil {
			return err
		}
		return controlPlane(ctx, *config)
	case "restore":
		kine, err := startKine(ctx, fixed)
		if err != nil {
			return err
		}
		kine.stop()
		return nil
	}
	return usage
}

const socket = data + "/kine.sock"

// startKine starts kine on the store of a config, and waits until it serves.
func startKine(ctx context.Context, config string) (*child, error) {
	text, err := os.ReadFile(config)
	if err != nil {
		return nil, fmt.Errorf("reading config: %w", err)
	}
	store, err := controlplane.ReadConfig(text)
	if err != nil {
		return nil, err
	}
	if store.DataSource == "" {
		store.DataSource = "sqlite://" + data + "/state.db?_journal=WAL&cache=shared&_busy_timeout=30000&_txlock=immediate" // as vCluster does
	}
	// Left by a container that ended in the same pod.
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing old socket: %w", err)
	}
	args := []string{
		"--endpoint=" + store.DataSource, "--listen-address=unix://" + socket, "--metrics-bind-address=127.0.0.1:2381",
	}
	for option, file := range map[string]string{"--ca-file=": store.CAFile, "--cert-file=": store.CertFile, "--key-file=": store.KeyFile} {
		if file != "" {
			args = append(args, option+file)
		}
	}
	kine, err := start("kine", append(args, store.ExtraArgs...)...)
	if err != nil {
		return nil, err
	}
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err == nil {
			_ = conn.Close()
			return kine, nil
		}
		select {
		case <-kine.done:
			return nil, kine.err
		case <-ctx.Done():
			kine.stop()
			return nil, fmt.Errorf("starting kine: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func controlPlane(ctx context.Context, config string) error {
	if err := writeFiles(); err != nil {
		return err
	}
	kine, err := startKine(ctx, config)
	if err != nil {
		return err
	}
	defer kine.stop()

	api, err := start("kube-apiserver",
		"--etcd-servers=unix://"+socket,
		"--bind-address=0.0.0.0",
		"--secure-port=8443",
		"--advertise-address="+os.Getenv("POD_IP"),
		"--endpoint-reconciler-type=none", // several replicas would fight for the one Service
		"--cert-dir="+pki,
		"--token-auth-file="+filepath.Join(pki, "tokens.csv"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+filepath.Join(pki, "sa.key"),
		"--service-account-signing-key-file="+filepath.Join(pki, "sa.key"),
		"--service-cluster-ip-range=10.97.0.0/16",
		"--authorization-mode=RBAC",
		"--profiling=false",
	)
	if err != nil {
		return err
	}
	defer api.stop() // before kine, which it needs to the end
	syncing, cancel := context.WithCancel(ctx)
	defer cancel()
	go newSyncer().run(syncing)
	select {
	case <-kine.done:
		return kine.err
	case <-api.done:
		return api.err
	case <-ctx.Done():
		return nil
	}
}

// child is a running program.
type child struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // says that it has ended; to be read after done
}

// start starts one of the binaries that the init container brought.
func start(name string, args ...string) (*child, error) {
	c := &child{cmd: exec.Command(filepath.Join(binaries, name), args...), done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = os.Stdout, os.Stderr
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		defer close(c.done)
		c.err = fmt.Errorf("%s has ended", name)
		if err := c.cmd.Wait(); err != nil {
			c.err = fmt.Errorf("%s has ended: %w", name, err)
		}
	}()
	return c, nil
}

// stop ends a program in order.
func (c *child) stop() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	<-c.done
}

// writeFiles makes what the API server needs. A vCluster would keep its certificates in Secrets; no client verifies these.
func writeFiles() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generating key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key) // the form from which the API server reads the public key, too
	if err != nil {
		return fmt.Errorf("encoding key: %w", err)
	}
	for name, content := range map[string][]byte{
		"sa.key":     pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
		"tokens.csv": []byte(pods.Token + ",admin,admin,system:masters\n"),
	} {
		if err := os.WriteFile(filepath.Join(pki, name), content, 0o600); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}
