// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"flag"
	"os"
	"testing"

	"dbconnector/test/bed"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Verbose() {
		bed.Progress = os.Stderr
	}
	os.Exit(m.Run())
}

func TestNode(t *testing.T) {
	n := bed.NewNode(t)
	for _, p := range n.Phases {
		t.Logf("%s: %s", p.Name, p.Took)
	}
	out, err := n.Kubectl(t.Context(), "", "get", "nodes,pods", "-A", "-o", "wide")
	t.Log(out, err)
}
