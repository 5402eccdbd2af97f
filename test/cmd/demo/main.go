// SPDX-License-Identifier: Apache-2.0

// Command demo shows dbconnector at work on this machine, with nothing to set up and
// nothing left behind: two tenants on one real database server, each with a real kine.
//
//	go run ./test/cmd/demo -engine postgres
//
// Every line of the table at its end was checked; if one did not hold, it exits with 1.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"dbconnector/test/bed"
)

// servers are the versions that the demo uses, by what -engine says.
var servers = map[string]struct {
	engine        bed.Engine
	version, name string
}{
	"postgres": {bed.Postgres, "17", "PostgreSQL"},
	"mariadb":  {bed.MariaDB, "11.8", "MariaDB"},
	"mysql":    {bed.MySQL, "9.7", "MySQL"},
}

func main() {
	var names []string
	for name := range servers {
		names = append(names, name)
	}
	slices.Sort(names)
	engine := flag.String("engine", "postgres", "database server: "+strings.Join(names, ", "))
	flag.Parse()
	if _, ok := servers[*engine]; !ok || flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: -engine must be one of: %s\n", strings.Join(names, ", "))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE) // clean up also if no program reads the output any more
	d := &demo{out: &console{w: os.Stdout}, server: servers[*engine].name}
	bed.Progress = d.out.progress()
	err := d.run(ctx, servers[*engine].engine, servers[*engine].version)
	interrupted := ctx.Err() != nil
	stop()
	if interrupted {
		d.out.line("Interrupted. Everything that was started has been stopped and removed.")
		os.Exit(130)
	}
	if err != nil {
		os.Exit(1) // the report has said why
	}
}
