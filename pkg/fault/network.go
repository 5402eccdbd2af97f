// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
)

// Proxied is what to add to the message of a connection that was refused, "" where it says nothing more (docs/failures.md F23).
// An address of the pod itself is that of a proxy beside this program, such as cloud-sql-proxy.
func Proxied(err error) string {
	var op *net.OpError
	if !errors.Is(err, syscall.ECONNREFUSED) || !errors.As(err, &op) {
		return ""
	}
	if to, ok := op.Addr.(*net.TCPAddr); ok && to.IP.IsLoopback() {
		return ": the address is this pod itself, and a proxy that runs as an ordinary container starts after init: run it as a native sidecar"
	}
	return ""
}

// unresolved says of an error whether a server's name could not be resolved, and gives its words. It may be a moment (a Service
// that was just made, a slow name service), so its class is Unavailable; where it lasts, the name is wrong.
func unresolved(err error) error {
	var dns *net.DNSError
	if !errors.As(err, &dns) {
		return nil
	}
	why := "there is no such name"
	if !dns.IsNotFound {
		why = "the name service says: " + Words(dns.Err)
	}
	return &Error{Class: Unavailable, err: fmt.Errorf(`the server's name %s (the connector's key "endpoint") does not resolve: %s`,
		strconv.QuoteToASCII(dns.Name), why)}
}

// Network gives an error of a connection to a database server its class and a message of one line: TLS, names, time limits, a connection
// that broke. A context that was cancelled stays context.Canceled, without a class. It returns nil for any other error.
func Network(err error) error {
	var (
		verification *tls.CertificateVerificationError
		record       tls.RecordHeaderError
		alert        tls.AlertError
		network      net.Error
	)
	switch {
	case errors.As(err, &verification):
		return New(Refused, `the server's certificate is not accepted: %s; see the connector's keys "caCert", "sslMode" and "endpoint"`,
			Words(verification.Err.Error()))
	case errors.As(err, &alert):
		return New(Refused, "the server ends the TLS handshake: %s", Words(alert.Error()))
	case errors.As(err, &record):
		return New(Refused, "the server answers TLS with something else")
	case unresolved(err) != nil:
		return unresolved(err)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return New(Unavailable, "no answer within the time limit")
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.As(err, &network): // a system call's error, too
		return New(Unavailable, "%s%s", Words(network.Error()), Proxied(err))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return New(Unavailable, "the connection broke: %s", Words(Innermost(err).Error()))
	}
	return nil
}

// NoTLS is the error where a database server does not offer TLS.
func NoTLS() error {
	return New(Refused, `the server does not offer TLS: switch it on there, or set the connector's key "sslMode" to "disable"`)
}

// Innermost is the last cause of a chain of errors.
func Innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
