// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func init() { roles["node"] = runPodUntilKilled }

// TestNodeKilled checks that a node with a pod in it leaves nothing on the machine when the process that started it is
// killed, but for what the next bed removes.
func TestNodeKilled(t *testing.T) {
	temp := t.TempDir()
	interfaces, err := net.Interfaces()
	require.NoError(t, err)
	cmd := play(t, "node", "TMPDIR="+temp)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err, cmd.Wait())
	}
	dir := strings.TrimSpace(line)
	text, err := os.ReadFile(filepath.Join(dir, "cgroups"))
	groups := strings.Fields(string(text))
	if err != nil || len(groups) == 0 || !populated(groups[0]) {
		t.Fatalf("the node has no cgroups: %q, %v", groups, err)
	}
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	Eventually(t, time.Minute, func(context.Context) error {
		for _, group := range groups {
			if populated(group) {
				return fmt.Errorf("there are processes in %s", group)
			}
		}
		environments, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, name := range environments {
			if text, _ := os.ReadFile(name); strings.Contains(string(text), "TMPDIR="+temp) {
				return fmt.Errorf("%s is still there", filepath.Dir(name))
			}
		}
		return nil
	})
	if now, err := net.Interfaces(); err != nil || len(now) != len(interfaces) {
		t.Errorf("got interfaces %v, %v, want %v", now, err, interfaces)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), temp) {
		t.Errorf("got mounts\n%s, %v, want none below %s", mounts, err, temp)
	}
	sweepNodes()
	for _, group := range groups {
		if exists(group) {
			t.Errorf("the sweep left %s there", group)
		}
	}
	sweep(temp)
	if left, _ := filepath.Glob(filepath.Join(temp, "*")); len(left) > 0 {
		t.Errorf("the sweep left %v there", left)
	}
}

func runPodUntilKilled(ctx context.Context) error {
	n, err := StartNode(ctx)
	if err != nil {
		return err
	}
	image, err := Busybox(ctx)
	if err != nil {
		return err
	}
	if err := n.Import(ctx, image); err != nil {
		return err
	}
	if err := n.Do(ctx, http.MethodPost, "/api/v1/namespaces/default/pods", map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": "pod"},
		"spec": map[string]any{
			"containers": []any{map[string]any{
				"name": "main", "image": image.Name, "args": []string{"-c", "sleep 1000"},
				"volumeMounts": []any{map[string]any{"name": "memory", "mountPath": "/memory"}},
			}},
			"volumes": []any{map[string]any{"name": "memory", "emptyDir": map[string]any{"medium": "Memory"}}},
		},
	}, nil); err != nil {
		return err
	}
	if err := Wait(ctx, func(ctx context.Context) error {
		var pod struct{ Status struct{ Phase string } }
		if err := n.Do(ctx, http.MethodGet, "/api/v1/namespaces/default/pods/pod", nil, &pod); err != nil {
			return err
		}
		if pod.Status.Phase != "Running" {
			return errors.New(pod.Status.Phase)
		}
		return nil
	}); err != nil {
		return err
	}
	fmt.Println(n.Dir())
	select {}
}
