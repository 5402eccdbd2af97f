// SPDX-License-Identifier: Apache-2.0

//go:build race

package rotation

// The race detector makes a schedule about eight times as dear.
func init() { defaultSchedules = 400 }
