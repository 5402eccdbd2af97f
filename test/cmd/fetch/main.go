// SPDX-License-Identifier: Apache-2.0

// Command fetch fills the test bed's cache, so that tests need no network:
//
//	go run ./test/cmd/fetch postgres-17 mysql-9.7 kube-apiserver kine
//	go run ./test/cmd/fetch all
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"dbconnector/test/bed"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintf(os.Stderr, "usage: fetch all | %s ...\n", strings.Join(bed.Items(), " | "))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	bed.Progress = os.Stderr
	err := bed.Fetch(ctx, os.Args[1:]...)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
