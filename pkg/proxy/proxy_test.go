// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
)

// stuck is a protocol whose clients say nothing.
type stuck struct{ opening, refusing chan struct{} }

func (w stuck) Open(_ context.Context, client net.Conn, _ Next) (*Session, error) {
	w.opening <- struct{}{}
	_, err := client.Read(make([]byte, 1))
	return nil, err
}

func (w stuck) Refuse(_ context.Context, client net.Conn) {
	w.refusing <- struct{}{}
	_, _ = client.Read(make([]byte, 1))
}

// unobserved is the observer of a test that needs none.
type unobserved struct{}

func (unobserved) Connected(Result, time.Duration) {}
func (unobserved) Drained()                        {}
func (unobserved) Cancelled()                      {}

// TestNoRoom: what clients that say nothing can take is bounded, and all of it ends with the proxy. (36, 37)
func TestNoRoom(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(t.Context(), path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wire := stuck{make(chan struct{}), make(chan struct{})}
	s := &Server{Wire: wire, Logins: NewLogins(), MaxSessions: 1, Observer: unobserved{}, Log: zap.NewNop()}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	dial := func() net.Conn {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	ended := func(what string, conn net.Conn) {
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s: read %d bytes, %v", what, n, err)
		}
	}
	first := dial()
	<-wire.opening
	second := dial()
	<-wire.refusing
	ended("one more than can be told", dial())
	if got := s.Sessions(); len(got) != 1 || got[0].Sessions != 1 {
		t.Errorf("sessions %v, want the one that is being opened", got)
	}
	cancel()
	ended("the one that was being opened", first)
	ended("the one that was being told", second)
	if err := errors.Join(l.Close(), <-served); err != nil {
		t.Error(err)
	}
}

// TestListenTwice: a socket that is served is left alone; one that a killed sidecar left behind is replaced. (31)
func TestListenTwice(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	first, err := Listen(t.Context(), path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), path, 0o600); err == nil {
		t.Error("took the place of a socket that is served")
	}
	_ = first.Close()
	second, err := Listen(t.Context(), path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_ = second.Close()
	if _, err := Listen(t.Context(), "/"+string(make([]byte, 200)), 0o600); err == nil {
		t.Error("accepted a path that no socket can have")
	}
}
