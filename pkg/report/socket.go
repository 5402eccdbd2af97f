// SPDX-License-Identifier: Apache-2.0

package report

import (
	"time"

	"dbconnector/pkg/health"
	"dbconnector/pkg/proxy"
)

// Socket turns what happens at a socket into metrics.
type Socket struct {
	all     *health.Metrics
	metrics *health.Socket
}

var _ proxy.Observer = Socket{}

// NewSocket makes one with all series from the beginning.
func NewSocket(metrics *health.Metrics) Socket {
	s := Socket{metrics, metrics.Socket()}
	for _, result := range proxy.Results {
		s.metrics.Connects.WithLabelValues(string(result))
	}
	return s
}

// Watch has the metrics ask a socket for its sessions.
func (s Socket) Watch(socket *proxy.Socket) {
	s.all.Watch(health.Source{
		Sessions: func() map[int64]health.Group {
			groups := map[int64]health.Group{}
			for generation, group := range socket.Sessions() {
				groups[generation] = health.Group(group)
			}
			return groups
		},
		Bytes: socket.Bytes,
	})
}

// Connected is proxy.Observer's.
func (s Socket) Connected(result proxy.Result, took time.Duration) {
	s.metrics.Connects.WithLabelValues(string(result)).Inc()
	if result == proxy.Opened {
		s.metrics.ConnectSeconds.Observe(took.Seconds())
	}
}

// Drained is proxy.Observer's.
func (s Socket) Drained() { s.metrics.Drained.Inc() }

// Cancelled is proxy.Observer's.
func (s Socket) Cancelled() { s.metrics.CancelRequests.Inc() }
