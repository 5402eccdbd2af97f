// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dbconnector/test/bed"
	"dbconnector/test/controlplane"
	"dbconnector/test/rig"
)

// measurement is one line of the table.
type measurement struct {
	options
	engine  bed.Engine
	version string
	pool    int
	values  []byte
	dir     string

	sessions         *rig.SessionWatch
	objects          string
	atStart          int // the most before the load
	requests, failed atomic.Int64

	mu      sync.Mutex
	creates []time.Duration
	failure error // the first one
}

func (m *measurement) run(ctx context.Context) error {
	server, err := bed.Start(ctx, m.engine, m.version, bed.Options{RequireTLS: true, MaxConnections: m.limit + 100})
	if err != nil {
		return err
	}
	clean := context.WithoutCancel(ctx)
	defer server.Stop(clean)
	connector := filepath.Join(m.dir, "connector")
	if err := controlplane.WriteConnector(connector, server, server.AdminUser, server.AdminPassword); err != nil {
		return err
	}
	tenant, err := controlplane.NewTenant("load", connector, filepath.Join(m.dir, "tenant"), m.values)
	if err != nil {
		return err
	}
	tenant.Settings = []string{fmt.Sprintf("DBCONNECTOR_CONNECTION_LIMIT=%d", m.limit)}
	ready, err := tenant.Provision(ctx)
	if err != nil {
		return err
	}
	store, err := tenant.Store()
	if err != nil {
		return err
	}

	if m.sessions, err = rig.WatchSessions(ctx, server, ready.User); err != nil {
		return err
	}
	defer m.sessions.Stop()

	// The last one counts, as with every flag.
	kine, err := store.StartKine(ctx, fmt.Sprintf("--datastore-max-open-connections=%d", m.pool))
	if err != nil {
		return err
	}
	defer kine.Stop(clean)
	api, err := bed.StartAPIServer(ctx, bed.APIServerOptions{Etcd: kine.Endpoint, Args: []string{
		// No client shall wait for the API server's own limits.
		"--max-requests-inflight=4000", "--max-mutating-requests-inflight=2000",
	}})
	if err != nil {
		return err
	}
	defer api.Stop(clean)
	m.objects = api.URL + "/api/v1/namespaces/default/configmaps"
	m.atStart = m.sessions.Most()

	loaded, stopLoad := context.WithTimeout(ctx, m.duration)
	defer stopLoad()
	var wg sync.WaitGroup
	for i := range m.clients {
		wg.Go(func() { m.work(loaded, api.Client(), i) })
	}
	for range m.watchers {
		wg.Go(func() { m.watch(loaded, api.Client()) })
	}
	wg.Wait()
	if err := errors.Join(ctx.Err(), m.sessions.Stop()); err != nil {
		return err
	}
	select {
	case <-kine.Done():
		return fmt.Errorf("kine ended under the load:\n%s", kine.Log())
	default:
	}
	if m.requests.Load() == 0 {
		return fmt.Errorf("not one request succeeded: %w", m.failure)
	}
	return nil
}

// work creates, reads, updates and now and then lists and deletes, until the context
// ends. A third of what it creates stays, so that lists grow.
func (m *measurement) work(ctx context.Context, c *http.Client, number int) {
	defer c.CloseIdleConnections()
	object := func(name, value string) any {
		return map[string]any{
			"metadata": map[string]any{"name": name},
			"data":     map[string]string{"value": value, "filling": strings.Repeat("x", 1000)},
		}
	}
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("load-%d-%d", number, i)
		began := time.Now()
		if m.count(ctx, c, http.MethodPost, "", object(name, "new")) {
			m.mu.Lock()
			m.creates = append(m.creates, time.Since(began))
			m.mu.Unlock()
		}
		m.count(ctx, c, http.MethodGet, "/"+name, nil)
		m.count(ctx, c, http.MethodPut, "/"+name, object(name, "changed"))
		if i%5 == 0 {
			m.count(ctx, c, http.MethodGet, "?limit=100", nil)
		}
		if i%3 != 0 {
			m.count(ctx, c, http.MethodDelete, "/"+name, nil)
		}
	}
}

// count makes a request and counts it, unless the end of the measurement cut it short.
func (m *measurement) count(ctx context.Context, c *http.Client, method, path string, in any) bool {
	err := bed.Ask(ctx, c, method, m.objects+path, in, nil)
	switch {
	case err == nil:
		m.requests.Add(1)
		return true
	case ctx.Err() == nil:
		m.failed.Add(1)
		m.mu.Lock()
		m.failure = cmp.Or(m.failure, err)
		m.mu.Unlock()
	}
	return false
}

// watch reads events until the context ends.
func (m *measurement) watch(ctx context.Context, c *http.Client) {
	defer c.CloseIdleConnections()
	for ctx.Err() == nil {
		err := bed.Ask(ctx, c, http.MethodGet, m.objects+"?watch=true", nil, nil)
		if err != nil && ctx.Err() == nil {
			m.failed.Add(1)
			return
		}
	}
}

func (m *measurement) percentile(p int) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.creates) == 0 {
		return 0
	}
	slices.Sort(m.creates)
	return m.creates[min(len(m.creates)-1, len(m.creates)*p/100)]
}
