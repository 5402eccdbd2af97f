// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"os/exec"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Threads end while a process runs: those of the servers that are stopped, for one. That ends no process which such a
// thread happens to have started.
func TestTiedProcessOutlivesThreads(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	defer all.Wait()
	for range 50 {
		all.Go(func() {
			done := make(chan error, 1)
			cmd := exec.CommandContext(t.Context(), "cat") // ends with its input
			input, err := cmd.StdinPipe()
			if err != nil {
				t.Error(err)
				return
			}
			if err := StartTied(cmd, func(err error) { done <- err }); err != nil {
				t.Error(err)
				return
			}
			var threads sync.WaitGroup
			for range 20 {
				threads.Go(func() {
					ended := make(chan struct{})
					go func() {
						runtime.LockOSThread() // and its thread ends with it
						close(ended)
					}()
					<-ended
				})
			}
			threads.Wait()
			_ = input.Close()
			assert.NoError(t, <-done, "it was ended by a thread's end")
		})
	}
}
