// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// scratch is where the tests' directories are. Other accounts may look into it, unlike into those of T.TempDir.
var scratch string

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	flag.Parse()
	// Most runs wait for a time limit or for a server, so more of them than cores run side by side.
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		if err := flag.Set("test.parallel", "8"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	dir, remove, err := bed.TempDir("init")
	if err == nil {
		defer remove()
		scratch, err = dir, os.Chmod(dir, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "preparing:", err)
		return 1
	}
	return rig.Run(m)
}

// The shared servers. Each logs all statements, so that tests see what a program asked of it.
var (
	logged   = bed.Options{LogStatements: true, IPv6: true}
	postgres = &rig.Shared{Version: bed.Usual()[0], Options: logged, Prepare: preparePostgres}
	mysql    = &rig.Shared{Version: bed.Usual()[1], Options: logged, Prepare: prepareMySQL}
	mariadb  = &rig.Shared{Version: bed.Usual()[2], Options: logged, Prepare: prepareMySQL}
)

var engines = map[string]*rig.Shared{"postgres": postgres, "mysql": mysql, "mariadb": mariadb}
