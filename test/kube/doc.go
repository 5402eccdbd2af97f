// SPDX-License-Identifier: Apache-2.0

// Package kube holds the tests of dbconnector/pkg/kube on a real API server.
package kube
