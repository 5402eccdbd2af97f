// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"errors"
	"fmt"
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

// Unresolved says of an error whether a server's name could not be resolved, and gives its words. It may be a moment (a Service
// that was just made, a slow name service), so its class is Unavailable; where it lasts, the name is wrong.
func Unresolved(err error) error {
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
