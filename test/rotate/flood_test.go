// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
	"dbconnector/test/bed/attack"
	"dbconnector/test/rig"
)

// peak is the most memory that a process has had in RAM, in KiB.
func peak(tb testing.TB, pid int) int {
	tb.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(tb, err, "looking at the process")
	for line := range strings.Lines(string(status)) {
		var kib int
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			return kib
		}
	}
	tb.Fatal("the kernel does not report the peak memory of the process")
	return 0
}

// address is the address on which a sidecar serves.
func address(tb testing.TB, s *rig.Process) string {
	tb.Helper()
	if _, _, err := s.Get(tb.Context(), "/healthz"); err != nil {
		tb.Fatal(err)
	}
	address, ok := s.Lines("serving")[0]["address"].(string)
	if !ok {
		tb.Fatal("the sidecar does not say where it serves")
	}
	return address
}

// TestFlood: a client that reaches the port keeps 3,000 connections open, and opens another for each that is closed.
// The sidecar stays far below the memory of its container, and the kubelet, which comes from an address of its own,
// gets its answers: it never misses as many in a row as the shipped probes tolerate. (S8)
func TestFlood(t *testing.T) {
	t.Parallel()
	const limit, probes, threshold = 64 << 10, 10, 4 // of the shipped values, the first in KiB
	for name, habit := range map[string]func(context.Context, net.Conn){
		"idle": attack.Idle, "slow to write": attack.SlowWriter, "slow to read": attack.SlowReader, "stuffing": attack.Stuffer,
	} {
		t.Run(name, func(t *testing.T) {
			p := rig.NewTenant(t, rig.Server(t, bed.Postgres, "17"), "")
			sidecar := rig.Sidecar(t, p)
			target := address(t, sidecar)
			before := peak(t, sidecar.Pid())

			ctx, stop := context.WithCancel(t.Context())
			var flooding sync.WaitGroup
			flooding.Go(func() { attack.Flood{Address: target, Count: 3000, Habit: habit}.Run(ctx) })
			kubelet := http.Client{
				Timeout: 5 * time.Second, // of the shipped probes
				Transport: &http.Transport{
					DisableKeepAlives: true,
					DialContext:       (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 99)}}).DialContext,
				},
			}
			missed, worst := map[string]int{}, 0
			for pace, i := time.NewTicker(500*time.Millisecond), 0; i < probes; i++ {
				<-pace.C
				for _, path := range []string{"/healthz", "/readyz"} {
					response, err := kubelet.Get("http://" + target + path)
					if err != nil || response.StatusCode != http.StatusOK {
						missed[path]++
						worst = max(worst, missed[path])
						t.Logf("%s, at probe %d: %v", path, i, err)
					} else {
						missed[path] = 0
					}
					if err == nil {
						response.Body.Close()
					}
				}
			}
			stop()
			flooding.Wait()
			if worst >= threshold {
				t.Errorf("%d probes in a row failed", worst)
			}
			if most := peak(t, sidecar.Pid()); most > limit*3/4 {
				t.Errorf("the sidecar took %d KiB of memory, %d KiB before the flood; the limit of its container is %d KiB", most, before, limit)
			} else {
				t.Logf("%d KiB at most, %d KiB before", most, before)
			}
			// When the flood is over, and the sidecar has seen the end of its connections, everything is as before.
			bed.Eventually(t, time.Minute, func(ctx context.Context) error {
				_, _, err := sidecar.Get(ctx, "/readyz")
				return err
			})
			ready(t, sidecar)
			gauge(t, sidecar, "dbconnector_consecutive_failures", 0)
		})
	}
}
