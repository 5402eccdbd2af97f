// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"testing"

	"dbconnector/pkg/engine/enginetest"
	"dbconnector/test/bed"
)

// TestConformance runs every case that can share a server, for every version and both kinds of admin.
func TestConformance(t *testing.T) {
	t.Parallel()
	for _, v := range bed.Versions {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			enginetest.Run(t, admins(t, newServer(t, v)))
		})
	}
}
