// SPDX-License-Identifier: Apache-2.0

// Command load measures how many connections a loaded control plane needs, which is what
// the default of DBCONNECTOR_CONNECTION_LIMIT and the limit of kine's pool in the Helm
// values come from.
//
//	go run ./test/cmd/load -server postgres-17,mysql-9.7 -pool 0,20 -clients 20 -duration 20s
//
// For each server and each limit of kine's pool (0: none), a kube-apiserver runs on a kine
// on a fresh hand-over, and clients create, read, list, update, watch and delete
// ConfigMaps as fast as they can. The connections are counted on the server, idle ones
// among them, since these count towards the limit, too.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"dbconnector/test/bed"
	"dbconnector/test/controlplane"
	"dbconnector/test/rig"
)

type options struct {
	servers, pools    string
	clients, watchers int
	duration          time.Duration
	limit             int
}

func main() {
	var o options
	flag.StringVar(&o.servers, "server", "postgres-17,mysql-9.7,mariadb-11.8", "servers, as in the test bed")
	flag.StringVar(&o.pools, "pool", "0,10,20,40", "limits of kine's pool (--datastore-max-open-connections)")
	flag.IntVar(&o.clients, "clients", 20, "clients that write and read at the same time")
	flag.IntVar(&o.watchers, "watchers", 20, "clients that watch all the while")
	flag.DurationVar(&o.duration, "duration", 20*time.Second, "how long each measurement takes")
	flag.IntVar(&o.limit, "limit", 500, "DBCONNECTOR_CONNECTION_LIMIT; high enough not to disturb the measurement")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	bed.Progress = os.Stderr
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "dbconnector-load-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := rig.Build(ctx, dir); err != nil {
		return err
	}
	values, err := controlplane.ShippedValues(ctx, "open-source")
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer table.Flush() // print the figures, also if a later step fails
	fmt.Fprintln(table, "server\tpool\tpeak connections\tpeak at start\tpeak busy\trequests/s\tcreate p50\tcreate p99\tfailed\t")
	for _, name := range strings.Split(o.servers, ",") {
		engine, version, _ := strings.Cut(name, "-")
		for _, limit := range strings.Split(o.pools, ",") {
			pool, err := strconv.Atoi(limit)
			if err != nil {
				return fmt.Errorf("-pool: %w", err)
			}
			fmt.Fprintf(os.Stderr, "load: %s with a pool of %s (0: unlimited) for %s\n", name, limit, o.duration)
			work, err := os.MkdirTemp(dir, "tenant-")
			if err != nil {
				return err
			}
			m := measurement{options: o, engine: bed.Engine(engine), version: version, pool: pool, values: values, dir: work}
			if err := m.run(ctx); err != nil {
				return fmt.Errorf("%s with a pool of %s: %w", name, limit, err)
			}
			if m.failure != nil {
				fmt.Fprintf(os.Stderr, "load: the first of %d failures: %v\n", m.failed.Load(), m.failure)
			}
			if pool == 0 {
				limit = "unlimited"
			}
			fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\t%.0f\t%d ms\t%d ms\t%d\t\n", name, limit, m.sessions.Most(), m.atStart, m.sessions.Busy(),
				float64(m.requests.Load())/o.duration.Seconds(), m.percentile(50).Milliseconds(), m.percentile(99).Milliseconds(), m.failed.Load())
		}
	}
	return nil
}
