// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// Wait calls cond until it returns nil. When the context ends first, Wait returns
// cond's last error along with the context's, so that the failure says what was missing:
// the last but one, where the context cut cond short.
// An error wrapped by [Permanent] ends the wait at once.
func Wait(ctx context.Context, cond func(context.Context) error) error {
	const least, most = 5 * time.Millisecond, 200 * time.Millisecond
	var last error
	for pause := least; ; pause = min(pause*3/2, most) {
		err := cond(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if permanent := (*permanentError)(nil); errors.As(err, &permanent) {
			return permanent.err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w, waiting: %w", context.Cause(ctx), last)
		}
	}
}

// Permanent marks an error that waiting longer cannot cure.
func Permanent(err error) error { return &permanentError{err} }

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }

// Eventually fails the test unless cond returns nil within the time.
func Eventually(tb testing.TB, within time.Duration, cond func(context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), within)
	defer cancel()
	if err := Wait(ctx, cond); err != nil {
		tb.Fatal(err)
	}
}
