// SPDX-License-Identifier: Apache-2.0

package tenant

import (
	"testing"
	"time"

	"dbconnector/pkg/dbserver"
)

// TestSucceeds: which record can be what became of an earlier one.
func TestSucceeds(t *testing.T) {
	t.Parallel()
	earlier := NewRecord("uid", "ns", "blue", dbserver.Server{Engine: dbserver.Postgres, Host: "db", Port: 5432}, 10)
	earlier.Generation, earlier.RotatedAt = 3, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, test := range map[string]struct {
		change func(*Record)
		want   bool
	}{
		"the same":                     {func(*Record) {}, true},
		"another limit":                {func(r *Record) { r.ConnectionLimit = 5 }, true},
		"its password edited by hand":  {func(r *Record) { r.Slots[r.Active] = Credential{NewPassword()} }, false},
		"the other's password changed": {func(r *Record) { r.Slots[r.Active.Other()] = Credential{NewPassword()} }, true},
		"rotated":                      {func(r *Record) { r.Active, r.Generation, r.RotatedAt = B, 4, r.RotatedAt.Add(time.Hour) }, true},
		"a clock that stood still":     {func(r *Record) { r.Active, r.Generation = B, 4 }, true},
		"a clock that runs behind":     {func(r *Record) { r.Active, r.Generation, r.RotatedAt = B, 4, r.RotatedAt.Add(-time.Hour) }, false},
		"from a backup":                {func(r *Record) { r.Active, r.Generation = B, 2 }, false},
		"made again after a loss":      {func(r *Record) { r.Generation, r.RotatedAt = 1, r.RotatedAt.Add(time.Hour) }, false},
	} {
		r := earlier.Clone()
		test.change(r)
		if got := r.Succeeds(earlier); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
