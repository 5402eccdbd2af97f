// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"go.uber.org/zap"

	"dbconnector/pkg/config"
	"dbconnector/pkg/kube"
)

// TestEventsInTheBackground: they are sent in the background, each tried for a moment and once. At the end what is left is sent,
// and no program waits for an API server that does not answer.
func TestEventsInTheBackground(t *testing.T) {
	arrived := make(chan string, 100)
	away := make(chan struct{})
	var hanging atomic.Int32
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var event struct{ Reason string }
		_ = json.NewDecoder(r.Body).Decode(&event)
		select {
		case <-away:
			hanging.Add(1)
			<-r.Context().Done() // an API server that does not answer
		default:
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","code":403,"reason":"Forbidden","message":"no"}`))
			arrived <- event.Reason
		}
	}))
	t.Cleanup(api.Close)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "x", "cluster": {"server": "`+api.URL+`"}}],
		"users": [{"name": "x", "user": {}}], "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}], "current-context": "x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", kubeconfig)
	client, err := kube.New("test")
	if err != nil {
		t.Fatal(err)
	}
	events := NewEvents(config.Common{Namespace: "ns", PodName: "pod"}, client, zap.NewNop())
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- events.Run(ctx) }()

	events.Send(kube.Normal, "Rotated", "the password was rotated")
	events.Send(kube.Normal, "Retired", "the old password is dead") // that one was refused is no reason not to try the next
	for _, want := range []string{"Rotated", "Retired"} {
		if got := <-arrived; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}

	// What is left at the end.
	for range 8 {
		events.Send(kube.Normal, "Retired", "the old password is dead")
	}
	if err := events.Run(ctx); err != nil {
		t.Error(err)
	}
	if n := len(arrived); n != 8 {
		t.Errorf("%d of the last 8 Events were sent", n)
	}
	close(away)
	for range 2 * cap(events.queue) { // none waits for an API server that takes no Events
		events.Send(kube.Normal, "Rotated", "the password was rotated")
	}
	if err := events.Run(ctx); err != nil {
		t.Error(err)
	}
	if n := hanging.Load(); n > 1 { // the first one takes what time there is
		t.Errorf("%d Events were tried at the end on an API server that does not answer", n)
	}
}
