// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"testing"
)

// APIProxy stands before an API server, in clear text and as its admin, so that one request is one question, whatever HTTP/2 and TLS
// make of it.
type APIProxy struct {
	// Kubeconfig is how a client reaches it.
	Kubeconfig string

	server *httptest.Server
}

// StartProxy puts a proxy before the API server. around gets the handler that passes requests on. dir is for the kubeconfig.
func (a *APIServer) StartProxy(dir string, around func(pass http.Handler) http.Handler) (*APIProxy, error) {
	to, err := url.Parse(a.URL)
	if err != nil {
		return nil, fmt.Errorf("reading the API server's address: %w", err)
	}
	pass := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport:     a.Admin.Transport,
		FlushInterval: -1,
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	p := &APIProxy{Kubeconfig: filepath.Join(dir, "kubeconfig-proxy"), server: httptest.NewServer(around(pass))}
	config := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: x, cluster: {server: %q}}]\n"+
		"users: [{name: x, user: {}}]\ncontexts: [{name: x, context: {cluster: x, user: x}}]\ncurrent-context: x\n", p.server.URL)
	if err := os.WriteFile(p.Kubeconfig, []byte(config), 0o600); err != nil {
		p.Close()
		return nil, fmt.Errorf("writing a kubeconfig: %w", err)
	}
	return p, nil
}

// NewProxy is [APIServer.StartProxy] for tests.
func (a *APIServer) NewProxy(tb testing.TB, around func(pass http.Handler) http.Handler) *APIProxy {
	tb.Helper()
	p, err := a.StartProxy(tb.TempDir(), around)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.Close)
	return p
}

// Close ends all connections through the proxy, waits for its handlers, and ends it.
func (p *APIProxy) Close() {
	p.server.CloseClientConnections()
	p.server.Close()
}
