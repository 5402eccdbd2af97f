// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// TestClusterUp does what `make cluster-up` does, from the root of the repository: the node answers to the kubeconfig that is printed,
// and ^C leaves nothing of it behind.
func TestClusterUp(t *testing.T) {
	t.Parallel()
	root, err := bed.Root()
	require.NoError(t, err)
	program := filepath.Join(t.TempDir(), "cluster-up")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./test/cmd/cluster-up")
	build.Dir = root
	out, err := build.CombinedOutput()
	require.NoErrorf(t, err, "%s", out)

	up := rig.NewProcess(t.Context(), program, os.Environ()...)
	up.Cmd.Dir = root
	require.NoError(t, up.Start())
	t.Cleanup(up.Kill)
	settings := regexp.MustCompile(`export KUBECONFIG=(\S+) PATH=(\S+):\$PATH`)
	var found []string
	bed.Eventually(t, patience, func(context.Context) error {
		select {
		case <-up.Done():
			return bed.Permanent(fmt.Errorf("it ended:\n%s", up.Log()))
		default:
		}
		if found = settings.FindStringSubmatch(up.Log()); found == nil {
			return fmt.Errorf("it never says how to use it:\n%s", up.Log())
		}
		return nil
	})
	ask := exec.CommandContext(t.Context(), filepath.Join(found[2], "kubectl"), "--kubeconfig", found[1], "wait", "--for=condition=Ready", "nodes", "--all")
	out, err = ask.CombinedOutput()
	assert.NoErrorf(t, err, "%s", out)

	exit, err := up.Stop(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 0, exit, up.Log())
	assert.Contains(t, up.Log(), "nothing of it is left")
	assert.NoDirExists(t, filepath.Dir(found[1]))
}
