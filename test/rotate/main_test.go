// SPDX-License-Identifier: Apache-2.0

// Package rotate_test runs dbconnector-rotate as its users do: several of them beside one tenant, on real servers.
// The tests kill them, cut them off and send them false answers.
package rotate_test

import (
	"testing"

	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m, rig.BriefQuiet) }

// servers are the servers on which the tests run a rotation.
var servers = []struct {
	engine  bed.Engine
	version string
}{
	{bed.Postgres, "13"},
	{bed.Postgres, "15"},
	{bed.Postgres, "17"},
	{bed.Postgres, "18"},
	{bed.MySQL, "9.7"},
	{bed.MariaDB, "10.5"},
	{bed.MariaDB, "10.11"},
	{bed.MariaDB, "11.8"},
}
