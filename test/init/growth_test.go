// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
)

// TestNeighboursCostNoQuestion: init asks a server with many tenants as many questions as an empty one (F19). This test
// does not measure how long the server takes to answer; docs/benchmarks.md has that, beside the same statements by its
// client.
func TestNeighboursCostNoQuestion(t *testing.T) {
	t.Parallel()
	const neighbours = 30
	for name, on := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// A server of its own: every statement counts.
			server := bed.NewServer(t, on.Version.Engine, on.Version.Version, bed.Options{LogStatements: true})
			user, password := newAdmin(t, server)
			connector := with(connectorFor(server), map[string]string{"user": user, "password": password})
			type cost struct{ connections, statements int }
			seen := func() (c cost) {
				var err error
				c.connections, err = server.Connections()
				require.NoError(t, err)
				c.statements, err = server.Statements()
				require.NoError(t, err)
				return c
			}
			provision := func() cost {
				before := seen()
				newVCluster(t, server, connector).provision(t)
				after := seen()
				return cost{after.connections - before.connections, after.statements - before.statements}
			}

			first := provision()
			for range neighbours {
				provision()
			}
			if last := provision(); last != first {
				t.Errorf("with %d neighbours init cost %+v, and %+v on an empty server", neighbours+1, last, first)
			}
			t.Logf("a first provision costs %+v", first)
		})
	}
}
