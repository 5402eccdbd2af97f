// SPDX-License-Identifier: Apache-2.0

package statedir

import (
	"context"
	"time"

	"dbconnector/pkg/tenant"
)

// look is how often the file is looked at. A look is one stat: nothing that a machine notices.
const look = 500 * time.Millisecond

// Follow sends the record as it is now and whenever it changes, until ctx ends; of records that were not received, the latest.
// It compares contents and not times, which a file system may round.
func (s *Store) Follow(ctx context.Context) <-chan tenant.News {
	out := make(chan tenant.News, 1)
	go func() {
		defer close(out)
		ticker := time.NewTicker(look)
		defer ticker.Stop()
		var last string
		for first := true; ; first = false {
			r, data, err := s.read()
			now := string(data)
			if err != nil {
				now = err.Error()
			}
			if first || now != last {
				select {
				case <-out:
				default:
				}
				out <- tenant.News{Record: r, Err: err}
				last = now
			}
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	}()
	return out
}
