// SPDX-License-Identifier: Apache-2.0

package report

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"dbconnector/pkg/proxy"
)

// TestSocketSeries: the series of a socket are there from the beginning, and count what it tells; one without a socket has none of them.
func TestSocketSeries(t *testing.T) {
	t.Parallel()
	o := NewObserver(nil)
	series := func() map[string]string {
		answer := httptest.NewRecorder()
		o.Metrics.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
		got := map[string]string{}
		for _, m := range regexp.MustCompile(`(?m)^(dbconnector_socket_\S+) (.*)$`).FindAllStringSubmatch(answer.Body.String(), -1) {
			if !strings.Contains(m[1], "_bucket") {
				got[m[1]] = m[2]
			}
		}
		return got
	}
	if got := series(); len(got) > 0 {
		t.Errorf("without a socket: %v", got)
	}
	s := NewSocket(o.Metrics)
	s.Watch(proxy.NewSocket(proxy.Options{}))
	want := map[string]string{
		`dbconnector_socket_bytes_total{direction="received"}`: "0", `dbconnector_socket_bytes_total{direction="sent"}`: "0",
		`dbconnector_socket_cancel_requests_total`: "0", `dbconnector_socket_drained_sessions_total`: "0",
		`dbconnector_socket_connect_seconds_sum`: "0", `dbconnector_socket_connect_seconds_count`: "0",
	}
	for _, result := range proxy.Results {
		want[`dbconnector_socket_connects_total{result="`+string(result)+`"}`] = "0"
	}
	check := func() {
		t.Helper()
		got := series()
		for name, value := range want {
			if got[name] != value {
				t.Errorf("%s is %q, want %s", name, got[name], value)
			}
			delete(got, name)
		}
		if len(got) > 0 {
			t.Errorf("there are more: %v", got)
		}
	}
	check()
	s.Connected(proxy.Opened, 2*time.Second)
	s.Connected(proxy.Refused, time.Second)
	s.Drained()
	s.Cancelled()
	want[`dbconnector_socket_connects_total{result="ok"}`], want[`dbconnector_socket_connects_total{result="refused"}`] = "1", "1"
	want[`dbconnector_socket_connect_seconds_sum`], want[`dbconnector_socket_connect_seconds_count`] = "2", "1"
	want[`dbconnector_socket_drained_sessions_total`], want[`dbconnector_socket_cancel_requests_total`] = "1", "1"
	check()
	if !slices.Contains(proxy.Results, proxy.NoRoom) {
		t.Error("a result is missing")
	}
}
