// SPDX-License-Identifier: Apache-2.0

// Package attack has the clients that hostile tenants and broken networks use: they speak PostgreSQL's and MySQL's protocol by
// hand, or hold locks that others wait for. One file has one attack. Each is bounded in count and time, and ends with its test.
package attack
