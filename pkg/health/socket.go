// SPDX-License-Identifier: Apache-2.0

package health

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Socket are the metrics of a socket beside a control plane that holds no password.
type Socket struct {
	Connects       *prometheus.CounterVec
	ConnectSeconds prometheus.Histogram
	Drained        prometheus.Counter
	CancelRequests prometheus.Counter
}

// Socket registers them. A sidecar without a socket has none.
func (m *Metrics) Socket() *Socket {
	factory := promauto.With(m.registry)
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "dbconnector", Name: name, Help: help}
	}
	return &Socket{
		Connects: factory.NewCounterVec(
			counter("socket_connects_total", "Attempts of the control plane to open a session through the socket, by result."), []string{"result"}),
		ConnectSeconds: factory.NewHistogram(prometheus.HistogramOpts{
			Namespace: "dbconnector", Name: "socket_connect_seconds", Help: "How long it took to open a session through the socket.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		Drained: factory.NewCounter(
			counter("socket_drained_sessions_total", "Sessions that were ended because their login was not the active one any more.")),
		CancelRequests: factory.NewCounter(
			counter("socket_cancel_requests_total", "Requests of the control plane to cancel a statement of another session.")),
	}
}

// Group are the sessions of a socket whose login is of one generation.
type Group struct {
	Sessions int
	Oldest   time.Duration // since it was opened
}

// Source is what is asked of a socket at each scrape.
type Source struct {
	// Sessions are by the generation of their login, those that are about to be opened as 0.
	Sessions func() map[int64]Group
	// Bytes counts what was passed on to the server and to clients.
	Bytes func() (sent, received int64)
}

// Watch registers what is known of a socket only when it is asked.
func (m *Metrics) Watch(s Source) { m.registry.MustRegister(s) }

var (
	sessionsDesc = prometheus.NewDesc("dbconnector_socket_sessions",
		"Sessions through the socket, by the generation of their login; those that are about to be opened as 0.", []string{"generation"}, nil)
	oldestDesc = prometheus.NewDesc("dbconnector_socket_oldest_session_seconds",
		"How long the oldest session through the socket has been open, by the generation of its login.", []string{"generation"}, nil)
	bytesDesc = prometheus.NewDesc("dbconnector_socket_bytes_total",
		"Bytes that were passed on through the socket, by direction: sent to the server, or received from it.", []string{"direction"}, nil)
)

// Describe is prometheus.Collector's.
func (s Source) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{sessionsDesc, oldestDesc, bytesDesc} {
		out <- desc
	}
}

// Collect is prometheus.Collector's. A generation without a session has no series: there is a new one with each rotation.
func (s Source) Collect(out chan<- prometheus.Metric) {
	for generation, group := range s.Sessions() {
		label := strconv.FormatInt(generation, 10)
		out <- prometheus.MustNewConstMetric(sessionsDesc, prometheus.GaugeValue, float64(group.Sessions), label)
		out <- prometheus.MustNewConstMetric(oldestDesc, prometheus.GaugeValue, group.Oldest.Seconds(), label)
	}
	sent, received := s.Bytes()
	out <- prometheus.MustNewConstMetric(bytesDesc, prometheus.CounterValue, float64(sent), "sent")
	out <- prometheus.MustNewConstMetric(bytesDesc, prometheus.CounterValue, float64(received), "received")
}
