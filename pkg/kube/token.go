// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/http"
	"os"
	"strings"
)

// tokenReader sends the ServiceAccount's token as it is in its file at that moment, for the kubelet renews it. client-go keeps to
// a token for a minute after it was read, even where it is refused: with a handful of requests there is nothing to gain by that.
type tokenReader struct {
	file string
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *tokenReader) RoundTrip(request *http.Request) (*http.Response, error) {
	token, err := os.ReadFile(t.file)
	if err != nil {
		if request.Body != nil {
			_ = request.Body.Close()
		}
		return nil, err
	}
	request = request.Clone(request.Context()) // the caller's is not ours to change
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	return t.next.RoundTrip(request)
}
