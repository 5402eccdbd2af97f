// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"errors"
	"testing"
)

// TestWaitSaysWhatIsMissing checks that a condition which the end of the time cut short does not hide what it said before.
func TestWaitSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	missing := errors.New("something is missing")
	asked := false
	err := Wait(ctx, func(ctx context.Context) error {
		if !asked {
			asked = true
			return missing
		}
		cancel()
		return ctx.Err()
	})
	if !errors.Is(err, missing) {
		t.Errorf("got %v, want it to say that %v", err, missing)
	}
}
