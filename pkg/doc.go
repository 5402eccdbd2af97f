// SPDX-License-Identifier: Apache-2.0

// Package pkg holds the packages of the programs in cmd, and nothing by itself.
//
// None of it is a library. Go APIs are not stable and may change with any commit: what is released, and what versions
// promise something about, are the images, the variables they read, the connector's format, the record and the files of the
// hand-over. AGENTS.md says which package may import which.
package pkg
