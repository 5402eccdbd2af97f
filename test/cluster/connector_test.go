// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"dbconnector/test/bed"
)

// TestConnectorIsMended starts a vCluster before its connector is there, then gives it one with a wrong password, and then
// the right one. The pod shows what is the matter each time, and comes up in the end without anybody touching it.
func TestConnectorIsMended(t *testing.T) {
	t.Parallel()
	lap := stopwatch(t)
	c, server := newConnector(t, "mended")
	kubectl(t, c, "delete", "secret", "--namespace", PlatformNamespace, "mended")
	v := install(t, c, "open-source", Names{Release: "team-a", Namespace: "mended", Connector: "mended"}, func(values *Values) {
		values.SetEnv("DBCONNECTOR_TIMEOUT", "5s") // it tries again for two minutes otherwise
	})
	// says waits until the pod and an Event on it say why there is no control plane.
	says := func(want string) {
		t.Helper()
		bed.Eventually(t, patience, func(ctx context.Context) error {
			pod, err := onePod(ctx, v)
			if err != nil {
				return err
			}
			s := containerOf(pod, "dbconnector-init")
			for _, at := range []string{state(s.State), state(s.LastTerminationState)} {
				if strings.HasPrefix(at, "ended with ") && strings.Contains(at, want) {
					return nil
				}
			}
			return fmt.Errorf("dbconnector-init: %s; before, %s", state(s.State), state(s.LastTerminationState))
		})
		bed.Eventually(t, patience, func(ctx context.Context) error {
			all, err := events(ctx, v)
			if err != nil {
				return err
			}
			for line := range strings.Lines(all) {
				if field := strings.Fields(line); len(field) > 1 && (field[0] == "Failed" || field[0] == "Refused") && field[1] == "Pod" && strings.Contains(line, want) {
					return nil
				}
			}
			return fmt.Errorf("no Event says %q:\n%s", want, all)
		})
		if got := kubectl(t, c, "describe", "pods", "--namespace", v.Namespace); !strings.Contains(got, want) {
			t.Errorf("kubectl describe does not say %q:\n%s", want, got)
		}
		lap(want)
	}
	says("secret vcluster-platform/mended does not exist")
	if err := c.Connect(t.Context(), "postgres", "mended", server, "mended", "wrong"); err != nil {
		t.Fatal(err)
	}
	says("28P01")
	if err := server.Exec(t.Context(), "ALTER ROLE mended PASSWORD 'wrong'"); err != nil { // what was right is wrong, and so the other way round
		t.Fatal(err)
	}
	ready(t, v)
	lap("ready")
}
