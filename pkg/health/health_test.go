// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHandler(t *testing.T) {
	t.Parallel()
	m := New()
	ask := func(method, path string, code int, body string) {
		t.Helper()
		answer := httptest.NewRecorder()
		m.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), method, path, nil))
		if answer.Code != code || !strings.HasPrefix(answer.Body.String(), body) {
			t.Errorf("%s %s: got %d %q, want %d %q", method, path, answer.Code, answer.Body, code, body)
		}
	}
	ask(http.MethodGet, "/healthz", http.StatusOK, "ok\n") // a process that waits for a hand-over is not to be killed
	ask(http.MethodGet, "/readyz", http.StatusServiceUnavailable, "the control plane cannot start yet: there is no hand-over, or no socket\n")
	ask(http.MethodGet, "/metrics", http.StatusOK, "# HELP dbconnector_")
	for range 2 {
		m.SetReady()
		ask(http.MethodGet, "/readyz", http.StatusOK, "ok\n")
	}
	m.Failing.Set(9)
	ask(http.MethodGet, "/healthz", http.StatusOK, "ok\n")
	ask(http.MethodGet, "/readyz", http.StatusOK, "ok\n")
	ask(http.MethodPost, "/healthz", http.StatusMethodNotAllowed, "")
	ask(http.MethodGet, "/debug/pprof/", http.StatusNotFound, "")
	ask(http.MethodGet, "/", http.StatusNotFound, "")
}

// TestServe: it serves until it is asked to end, and an address that is taken is an error that names the setting.
func TestServe(t *testing.T) {
	t.Parallel()
	listener, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if _, err := Listen(t.Context(), address); err == nil || !strings.Contains(err.Error(), `DBCONNECTOR_HTTP_ADDRESS="`+address+`": `) {
		t.Errorf("an address that is taken: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- New().Serve(ctx, listener) }()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if _, err := io.ReadAll(answer.Body); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	_ = listener.Close()
	listener, err = Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close() // under it
	if err := New().Serve(t.Context(), listener); err == nil {
		t.Error("an error of a server that cannot serve any more is lost")
	}
}

// TestAdmit: a newcomer whose address has its share is turned away, any other gets in, and where there are too many in all, the
// address that has the most loses its oldest one. (S8)
func TestAdmit(t *testing.T) {
	t.Parallel()
	l := &limited{}
	come := func(from string) (conn, victim *limitedConn) {
		conn = &limitedConn{listener: l, from: from}
		if victim = l.admit(conn); victim != nil {
			l.forget(victim)
		}
		return conn, victim
	}
	var first *limitedConn
	for i := range 2 * maxFromOne {
		conn, victim := come("attacker")
		if i == 0 {
			first = conn
		}
		if turned := victim == conn; turned != (i >= maxFromOne) || (!turned && victim != nil) {
			t.Fatalf("connection %d: turned away %t, %v", i, turned, victim)
		}
	}
	for i := range maxConnections - maxFromOne {
		if _, victim := come(string(rune('a' + i))); victim != nil {
			t.Fatalf("%d are open, and %s had to go", len(l.open), victim.from)
		}
	}
	if _, victim := come("kubelet"); victim != first {
		t.Errorf("for the kubelet had to go %+v, want the oldest of the attacker", victim)
	}
	if conn, victim := come("attacker"); victim == conn || victim == nil || len(l.open) != maxConnections {
		t.Errorf("%d are open, victim %+v", len(l.open), victim)
	}
}
