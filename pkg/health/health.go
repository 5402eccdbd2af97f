// SPDX-License-Identifier: Apache-2.0

// Package health answers what kubelets and Prometheus ask of dbconnector-rotate: /healthz, /readyz and /metrics, on a mux of
// its own.
//
// Three questions, kept apart. Alive is whether the process answers: a sidecar that cannot reach a database must not be
// killed for it, since a new one could not either. Ready is whether there is a hand-over in this pod, by whomever, and in socket mode
// whether the socket accepts: a sidecar that has trouble must not take the control plane beside it out of service. How the rotation
// gets on is a metric, and an alert's business. No answer dials anything.
package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"dbconnector/pkg/fault"
)

// Metrics are what a rotation reports. No label and no value holds a secret or a tenant's name: the pod's labels say whose
// they are.
type Metrics struct {
	registry *prometheus.Registry
	ready    atomic.Bool

	Generation         prometheus.Gauge
	RotatedAt          prometheus.Gauge
	DueAt              prometheus.Gauge
	ChangePending      prometheus.Gauge
	OldCredentialValid prometheus.Gauge
	Rotations          prometheus.Counter
	Retirements        prometheus.Counter
	Postponed          *prometheus.GaugeVec
	Postponements      *prometheus.CounterVec
	Failing            prometheus.Gauge
	Failures           *prometheus.CounterVec
	LockedOut          *prometheus.GaugeVec
	AdoptInfo          *prometheus.GaugeVec
	BuildInfo          *prometheus.GaugeVec
}

// New registers the metrics. Series with labels whose values are known are there from the beginning, or no query would see their
// first increase: of LockedOut here, of the others by the code that knows the values.
func New() *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	factory := promauto.With(m.registry)
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return factory.NewGaugeVec(prometheus.GaugeOpts{Namespace: "dbconnector", Name: name, Help: help}, labels)
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return factory.NewCounterVec(prometheus.CounterOpts{Namespace: "dbconnector", Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge { return gauges(name, help).WithLabelValues() }
	counter := func(name, help string) prometheus.Counter { return counters(name, help).WithLabelValues() }
	m.Generation = gauge("credential_generation", "Generation of the active credential.")
	m.RotatedAt = gauge("credential_rotated_timestamp_seconds", "When the active credential became active, in Unix time.")
	m.DueAt = gauge("rotation_due_timestamp_seconds", "When the next rotation is due, in Unix time.")
	m.ChangePending = gauge("change_pending", "1 while a new password is on its way to the server.")
	m.OldCredentialValid = gauge("old_credential_valid", "1 while the credential before the active one still opens the database.")
	m.Failing = gauge("consecutive_failures", "Failures in a row; 0 when all that was to be done succeeded.")
	m.Rotations = counter("rotations_total", "Rotations that this replica committed.")
	m.Retirements = counter("retirements_total", "Old credentials that this replica made invalid.")
	m.Postponements = counters("postponements_total", "How often a step that was due was postponed, by reason.", "reason")
	m.Postponed = gauges("postponed", "1 while a step that is due is postponed, by reason; 0 while steps fail.", "reason")
	m.Failures = counters("failures_total", "Steps that failed, by step.", "step")
	m.LockedOut = gauges("locked_out", "1 while the server does not accept, or the record does not know, the password of the active or the inactive login: "+
		"the next run of init repairs it.", "login")
	m.AdoptInfo = gauges("adopt_info", "1 for the mode of adoption that is set: none, rollout or socket.", "mode")
	m.BuildInfo = gauges("build_info", "1 for the version of the program and that of its compiler.", "version", "goversion")
	for _, login := range []string{Active, Inactive} {
		m.LockedOut.WithLabelValues(login)
	}
	return m
}

// The values of the label login.
const (
	Active   = "active"
	Inactive = "inactive"
)

// SetReady says that there is a hand-over, and in socket mode a socket.
func (m *Metrics) SetReady() { m.ready.Store(true) }

// Handler serves the three paths.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !m.ready.Load() {
			http.Error(w, "the control plane cannot start yet: there is no hand-over, or no socket", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	// Not compressed: a few kilobytes gain nothing, and a compressor would stay in memory beside every control plane.
	// Few at once: to gather them is the one thing here that takes time and memory.
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{DisableCompression: true, MaxRequestsInFlight: 8}))
	return mux
}

// Listen takes the address. It is apart from Serve so that nothing is begun by a program that is going to fail for this.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error { // connections inherit it
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveBuffer)
		})
		return errors.Join(err, failed)
	}}
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("DBCONNECTOR_HTTP_ADDRESS=%s: %w", fault.Show(address), err)
	}
	return &limited{Listener: listener}, nil
}

// exchange bounds a request and its answer. The kubelet gives a probe 5 s in the shipped values.
const exchange = 5 * time.Second

// Serve serves until ctx ends, which is no error. Any client that reaches the pod reaches this port, so a connection is for one
// request, and lasts for seconds.
func (m *Metrics) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler: m.Handler(), ReadHeaderTimeout: exchange, ReadTimeout: exchange, WriteTimeout: exchange, MaxHeaderBytes: 4 << 10,
		ErrorLog: log.New(io.Discard, "", 0), // lines of another format, written as often as a client likes
	}
	server.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = server.Shutdown(limited) // what is still open then is cut
	})
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving health and metrics: %w", err)
	}
	return nil
}
