// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
)

// TestApplyConnector is F3: a connector that is corrected later is applied when the operator asks for it, and the
// operator sees whether it was applied. Until then the record's settings hold, and a restart costs no more than before.
func TestApplyConnector(t *testing.T) {
	t.Parallel()
	for name, on := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := on.Get(t)
			good := connectorFor(server)
			v := newVCluster(t, server, with(good, map[string]string{"caCert": "", "sslMode": "require"}))
			front := newCounter(t)
			v.useToken(t, front.url)
			request := func() {
				t.Helper()
				do(
					t, http.MethodPatch, secretPath(v.namespace, v.recordName()),
					object{"metadata": object{"annotations": object{"dbconnector/apply-connector": "2026-01-02"}}}, nil,
				)
			}
			requested := func() bool {
				t.Helper()
				var secret struct {
					Metadata struct{ Annotations map[string]string }
				}
				do(t, http.MethodGet, secretPath(v.namespace, v.recordName()), nil, &secret)
				_, there := secret.Metadata.Annotations["dbconnector/apply-connector"]
				return there
			}
			ready := func(o *outcome, what, sslMode string) {
				t.Helper()
				o.succeeded(t)
				if !o.said("ready", "restart:true") || !o.said("ready", "sslMode:"+sslMode) {
					t.Errorf("%s: want a restart with sslMode %s:\n%s", what, sslMode, o.stderr)
				}
				if got, want := front.take(), []string{"GET " + secretPath(v.namespace, v.recordName())}; !slices.Equal(got, want) {
					t.Errorf("%s: API requests %q, want %q", what, got, want)
				}
			}

			v.provision(t)
			put(t, server, v, "mine")
			front.take()
			v.setConnector(t, good)
			ready(v.run(t), "not asked for", "require")

			request()
			o := v.run(t)
			o.succeeded(t)
			if !o.said("applied the connector", "sslMode require -> verify-full") ||
				!o.said("applied the connector", "caCert added") || !o.said("ready", "sslMode:verify-full") {
				t.Errorf("the log does not say what was applied:\n%s", o.stderr)
			}
			if _, all := v.events(t); !strings.Contains(all, "applied the connector: sslMode require -> verify-full, caCert added") {
				t.Errorf("no Event says so: %s", all)
			}
			if requested() {
				t.Error("the request is still there")
			}
			if !slices.Contains(names(t, v.outputDir), "ca.crt") {
				t.Errorf("the hand-over has the files %q, want a CA among them", names(t, v.outputDir))
			}
			front.take()
			ready(v.run(t), "applied", "verify-full")

			// Another name of the same server.
			v.setConnector(t, with(good, map[string]string{"endpoint": "localhost"}))
			request()
			v.provision(t)
			if host := part(v.record(t), "server")["host"]; host != "localhost" {
				t.Errorf("the record's host is %q", host)
			}
			if got := get(t, server, v); got != "mine" {
				t.Errorf("the data is %q, want \"mine\"", got)
			}
			front.take()

			// A server without this tenant's data is not applied, and the attempt changes nothing.
			for what, change := range map[string]map[string]string{
				"a server without it":  connectorFor(engines[map[string]string{"postgres": "mariadb", "mysql": "postgres", "mariadb": "mysql"}[name]].Get(t)),
				"no listener there":    with(good, map[string]string{"port": closedPort(t)}),
				"a CA that is not its": with(good, map[string]string{"caCert": string(strangersCA(t))}),
			} {
				record, dsn := getSecret(t, v.namespace, v.recordName())["record.json"], read(t, v.outputDir, "dsn")
				v.setConnector(t, change)
				request()
				before, _ := v.events(t)
				o := v.run(t)
				o.succeeded(t)
				if !o.said("could not finish what is left to do (continuing)", "apply the connector") || !o.said("ready", "restart:true") {
					t.Errorf("%s: the log does not say so:\n%s", what, o.stderr)
				}
				reasons, _ := v.events(t)
				if count(reasons, "Warning NotApplied") != count(before, "Warning NotApplied")+1 {
					t.Errorf("%s: Events %q, want one more that says NotApplied", what, reasons)
				}
				if getSecret(t, v.namespace, v.recordName())["record.json"] != record || read(t, v.outputDir, "dsn") != dsn || !requested() {
					t.Errorf("%s: something was changed, or the request is gone", what)
				}
			}
		})
	}
}

func count(list []string, what string) (n int) {
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

func strangersCA(tb testing.TB) []byte {
	tb.Helper()
	ca, err := bed.NewCA()
	require.NoError(tb, err)
	return ca.PEM
}

// TestApplyConnectorWithoutKubernetes: the request is a file beside the record (F3).
func TestApplyConnectorWithoutKubernetes(t *testing.T) {
	t.Parallel()
	server := mariadb.Get(t)
	s := newSite(t, server)
	good := s.connector
	s.connector = with(good, map[string]string{"caCert": "", "sslMode": "require"})
	s.provision(t)
	s.connector = good
	if o := s.run(t); !o.said("ready", "sslMode:require") {
		t.Errorf("init applied the connector without a request:\n%s", o.stderr)
	}
	file := filepath.Join(s.stateDir, "apply-connector")
	write(t, file, "")
	if o := s.run(t); o.code != 0 || !o.said("applied the connector", "sslMode require -> verify-full") {
		t.Errorf("not applied:\n%s", o.stderr)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the request is still there")
	}
	if o := s.run(t); !o.said("ready", "sslMode:verify-full") || !o.said("ready", "restart:true") {
		t.Errorf("not applied for good:\n%s", o.stderr)
	}
}
