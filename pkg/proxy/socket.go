// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

const (
	// afterLast is for how long there has to be no session before a sidecar that is to end takes the control plane for gone.
	afterLast = time.Second
	// longestEnd bounds that wait. The kubelet ends the pod long before, after its grace period.
	longestEnd = 10 * time.Minute
)

// Options are what a Socket is made of. A field is required unless it says what its zero value means.
type Options struct {
	// Place is where to listen for the clients of an engine.
	Place func(dbserver.Engine) (network, address string)
	Mode  fs.FileMode // of a unix socket
	Wire  func(dbserver.Engine) Wire
	// Keep keeps a record for the next sidecar of this pod; nil for not.
	Keep func(*tenant.Record) error
	// Ready is called when the socket accepts clients.
	Ready    func()
	Observer Observer
	Log      *zap.Logger
}

// Socket serves one tenant from the first record on, for until then it is not known which protocol to speak.
type Socket struct {
	Options
	server atomic.Pointer[Server]
	first  chan struct{} // closed when there is a server
}

// NewSocket makes one that serves nothing yet.
func NewSocket(o Options) *Socket { return &Socket{Options: o, first: make(chan struct{})} }

// Set has new sessions use the logins of a record. It is for one goroutine.
func (s *Socket) Set(r *tenant.Record) {
	server := s.server.Load()
	first := server == nil
	if first {
		server = &Server{
			Wire: s.Wire(r.Server.Engine), Logins: NewLogins(), MaxSessions: r.ConnectionLimit, Observer: s.Observer, Log: s.Log,
		}
	}
	trusted := server.Logins.Set(r)
	if first {
		s.server.Store(server)
		close(s.first)
	}
	if s.Keep != nil && trusted { // a backup's, with passwords that may be dead, must not replace what worked
		if err := s.Keep(r); err != nil {
			s.Log.Warn("the record could not be kept for the next start (continuing)", zap.String("error", err.Error()))
		}
	}
}

// Sessions is Server.Sessions; empty before the first record.
func (s *Socket) Sessions() map[int64]Group {
	if server := s.server.Load(); server != nil {
		return server.Sessions()
	}
	return nil
}

// Bytes is Server.Bytes.
func (s *Socket) Bytes() (sent, received int64) {
	if server := s.server.Load(); server != nil {
		return server.Bytes()
	}
	return 0, 0
}

// Run serves until ctx ends, and then as long as there are sessions: in the pod of a sidecar that is asked to end, the control plane may
// be at work still, and needs its database to its last moment.
func (s *Socket) Run(ctx context.Context) error {
	select {
	case <-s.first:
	case <-ctx.Done():
		return nil
	}
	server := s.server.Load()
	network, address := s.Place(server.Logins.engine())
	l, err := s.listen(ctx, network, address)
	if err != nil {
		return err
	}
	s.Log.Info("serving the control plane", zap.String("network", network), zap.String("address", address))
	sessions, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	defer context.AfterFunc(ctx, func() {
		last, over := context.WithTimeout(sessions, longestEnd)
		defer over()
		server.Quiet(last, afterLast)
		_ = l.Close()
		end()
	})()
	s.Ready()
	return server.Serve(sessions, l)
}

func (s *Socket) listen(ctx context.Context, network, address string) (net.Listener, error) {
	if network == "unix" {
		return Listen(ctx, address, s.Mode)
	}
	l, err := new(net.ListenConfig).Listen(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("DBCONNECTOR_SOCKET=%s: %w", fault.Show(address), err)
	}
	return l, nil
}
