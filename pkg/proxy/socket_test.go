// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	"go.uber.org/zap"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/tenant"
)

// echo is a protocol whose server says what it hears.
type echo struct{}

func (echo) Open(ctx context.Context, _ net.Conn, next Next) (*Session, error) {
	login, err := next(ctx, nil)
	if err != nil {
		return nil, &OpenError{Result: Refused, Err: err}
	}
	here, there := net.Pipe()
	go func() {
		buffer := make([]byte, 16)
		for {
			n, err := there.Read(buffer)
			if err != nil {
				return
			}
			_, _ = there.Write(buffer[:n])
		}
	}()
	ignore := func([]byte) {}
	return &Session{
		Server: here, Login: login, FromClient: ignore, FromServer: ignore, Idle: func() bool { return true },
		Close: func() { _ = there.Close() },
	}, nil
}

func (echo) Refuse(context.Context, net.Conn) {}

// TestSocketServes: a socket accepts when the first record is known, keeps each record for the next sidecar, and goes on after it was
// asked to end as long as there is a session.
func TestSocketServes(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	kept, ready := 0, make(chan struct{})
	s := NewSocket(Options{
		Place: func(engine dbserver.Engine) (network, address string) {
			if engine != dbserver.Postgres {
				t.Errorf("asked for the place of %q", engine)
			}
			return "unix", path
		},
		Mode: 0o600, Wire: func(dbserver.Engine) Wire { return echo{} }, Observer: unobserved{}, Log: zap.NewNop(),
		Keep:  func(*tenant.Record) error { kept++; return errors.New("no space") }, // which is no reason not to serve
		Ready: func() { close(ready) },
	})
	if sent, received := s.Bytes(); sent+received != 0 || s.Sessions() != nil {
		t.Error("a socket without a record has sessions")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- s.Run(ctx) }()
	r := record()
	s.Set(r)
	s.Set(r)
	<-ready
	if kept != 2 {
		t.Errorf("kept %d records, want 2", kept)
	}
	s.Set(record()) // of a backup, or of another life
	if kept != 2 {
		t.Errorf("kept %d records, and the last one is no successor of the one before", kept)
	}
	s.Set(r)
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	say := func() {
		t.Helper()
		buffer := make([]byte, 2)
		_, err := client.Write([]byte("hi"))
		if err == nil {
			_, err = client.Read(buffer)
		}
		if err != nil || string(buffer) != "hi" {
			t.Errorf("heard %q, %v", buffer, err)
		}
	}
	say()
	cancel()
	say()
	if got := s.Sessions()[1]; got.Sessions != 1 || got.Oldest <= 0 {
		t.Errorf("sessions of generation 1: %+v", got)
	}
	select {
	case err := <-served:
		t.Fatalf("ended beside a session: %v", err)
	default:
	}
	_ = client.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if sent, received := s.Bytes(); sent != 4 || received != 4 {
		t.Errorf("passed on %d and %d bytes, want 4 and 4", sent, received)
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("accepts after its end")
	}
}

// TestSocketEndsEarly: a socket that never got a record ends when it is asked to.
func TestSocketEndsEarly(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := NewSocket(Options{}).Run(ctx); err != nil {
		t.Error(err)
	}
}
