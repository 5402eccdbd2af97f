// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"

	"dbconnector/test/bed"
)

// Main is TestMain for a package whose tests run the programs. It builds them once, and sets their paths; rotateBinary
// may be nil. stop ends the servers that the tests share.
func Main(m *testing.M, initBinary, rotateBinary *string, stop func()) {
	flag.Parse()
	if testing.Verbose() {
		bed.Progress = os.Stderr
	}
	os.Exit(run(m, initBinary, rotateBinary, stop))
}

func run(m *testing.M, initBinary, rotateBinary *string, stop func()) int {
	dir, remove, err := bed.TempDir("programs")
	if err == nil {
		defer remove()
		*initBinary, err = BuildInit(context.Background(), dir)
	}
	if err == nil && rotateBinary != nil {
		*rotateBinary, err = BuildRotate(context.Background(), dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer stop()
	return m.Run()
}
