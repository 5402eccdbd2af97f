// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"errors"
	"fmt"
	"net"
	"strconv"
)

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
	return &Error{Class: Unavailable, err: fmt.Errorf(`the server's name %s (the connector's key "endpoint") does not resolve: %s`, strconv.QuoteToASCII(dns.Name), why)}
}
