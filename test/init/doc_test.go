// SPDX-License-Identifier: Apache-2.0

// Package init_test tests dbconnector-init from outside: the binary as it is shipped runs as a child process, as the
// user of the image and with an empty environment, against real servers. The tests check what an operator sees: the
// exit code, the last line on stderr, the files, and what is on the servers afterwards.
//
// Numbers such as B40 in comments are those of docs/failures.md.
package init_test
