// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

// (F31) A busy machine may have a sidecar come again, at the known price; any other price, and one that is paid each time, is told.
func TestOffCost(t *testing.T) {
	t.Parallel()
	want, again := cost{Connections: 5, Statements: 14}, cost{Connections: 2, Statements: 4}
	for name, tc := range map[string]struct {
		got []cost
		off int
	}{
		"exact":                           {[]cost{{5, 14, 9}, {5, 14, 7}}, 0},
		"once more, in one round":         {[]cost{{7, 18, 9}, {5, 14, 7}}, 0},
		"twice more, in one round":        {[]cost{{5, 14, 7}, {9, 22, 9}}, 0},
		"once more, each time":            {[]cost{{7, 18, 9}, {7, 18, 9}}, 1},
		"a connection more":               {[]cost{{6, 14, 9}, {5, 14, 7}}, 1},
		"a statement more":                {[]cost{{5, 15, 9}, {5, 15, 7}}, 2},
		"once more, and dearer":           {[]cost{{7, 19, 9}, {5, 14, 7}}, 1},
		"less":                            {[]cost{{4, 14, 9}, {5, 14, 7}}, 1},
		"statements of it without logins": {[]cost{{5, 18, 9}, {5, 14, 7}}, 1},
		"logins of it without statements": {[]cost{{7, 14, 9}, {5, 14, 7}}, 1},
	} {
		if off := offCost(name, tc.got, want, again); len(off) != tc.off {
			t.Errorf("got %q, want %d complaints", off, tc.off)
		}
	}
	if off := offCost("an engine that ends sessions at once", []cost{{7, 18, 9}, {5, 14, 7}}, want, cost{}); len(off) != 1 {
		t.Errorf("got %q", off)
	}
}
