// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dbconnector/test/bed"
	"dbconnector/test/consumer"
)

// sampling is how often the connections are counted: a burst that lasts shorter than
// this is over before a limit would hurt.
const sampling = 10 * time.Millisecond

// measurement is one line of the table.
type measurement struct {
	options
	engine  bed.Engine
	version string
	pool    int
	program string
	values  []byte
	dir     string

	peak, busy       atomic.Int64 // connections, and those of them that work
	atStart          int64        // the peak before the load
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
	if err := consumer.WriteConnector(connector, server, server.AdminUser, server.AdminPassword); err != nil {
		return err
	}
	tenant, err := consumer.NewTenant("load", m.program, connector, filepath.Join(m.dir, "tenant"), m.values)
	if err != nil {
		return err
	}
	tenant.Env = []string{fmt.Sprintf("DBCONNECTOR_CONNECTION_LIMIT=%d", m.limit)}
	ready, err := tenant.Provision(ctx)
	if err != nil {
		return err
	}
	store, err := tenant.Store()
	if err != nil {
		return err
	}

	sampled, stopSampling := context.WithCancel(ctx)
	defer stopSampling()
	samples := make(chan error, 1)
	go func() { samples <- m.sample(sampled, server, ready.User) }()

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
	m.atStart = m.peak.Load()

	loaded, stopLoad := context.WithTimeout(ctx, m.duration)
	defer stopLoad()
	var wg sync.WaitGroup
	for i := range m.clients {
		wg.Go(func() { m.work(loaded, newClient(api), i) })
	}
	for range m.watchers {
		wg.Go(func() { m.watch(loaded, newClient(api)) })
	}
	wg.Wait()
	stopSampling()
	if err := errors.Join(ctx.Err(), <-samples); err != nil {
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

// sample counts the tenant's connections until the context ends.
func (m *measurement) sample(ctx context.Context, server *bed.Server, user string) error {
	db, err := server.Admin("")
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	query := "SELECT COUNT(*), COALESCE(SUM(COMMAND <> 'Sleep'), 0) FROM information_schema.PROCESSLIST WHERE USER = ?"
	switch m.engine {
	case bed.Postgres:
		query = "SELECT count(*), count(*) FILTER (WHERE state <> 'idle') FROM pg_stat_activity WHERE usename = $1"
	case bed.MySQL:
		query = strings.Replace(query, "information_schema.PROCESSLIST", "performance_schema.processlist", 1)
	}
	statement, err := db.PrepareContext(ctx, query)
	if err != nil {
		return fmt.Errorf("counting connections: %w", err)
	}
	defer statement.Close()
	tick := time.NewTicker(sampling)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		var all, busy int64
		if err := statement.QueryRowContext(ctx, user).Scan(&all, &busy); err != nil {
			if ctx.Err() != nil || errors.Is(err, sql.ErrConnDone) {
				return nil
			}
			return fmt.Errorf("counting connections: %w", err)
		}
		m.peak.Store(max(m.peak.Load(), all))
		m.busy.Store(max(m.busy.Load(), busy))
	}
}

// client is one client of the API server, with connections of its own.
type client struct {
	url  string
	http *http.Client
}

func newClient(api *bed.APIServer) *client {
	transport := &http.Transport{MaxIdleConnsPerHost: 4}
	if admin, ok := api.Admin.Transport.(*http.Transport); ok {
		transport.TLSClientConfig = admin.TLSClientConfig
	}
	return &client{url: api.URL + "/api/v1/namespaces/default/configmaps", http: &http.Client{Transport: transport}}
}

func (c *client) do(ctx context.Context, method, path string, in any) error {
	var body io.Reader = http.NoBody
	if in != nil {
		content, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(content)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.url+path, body)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %.200s", method, path, response.Status, answer)
	}
	return err
}

// work creates, reads, updates and now and then lists and deletes, until the context
// ends. A third of what it creates stays, so that lists grow.
func (m *measurement) work(ctx context.Context, c *client, number int) {
	defer c.http.CloseIdleConnections()
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
func (m *measurement) count(ctx context.Context, c *client, method, path string, in any) bool {
	err := c.do(ctx, method, path, in)
	switch {
	case err == nil:
		m.requests.Add(1)
		return true
	case ctx.Err() == nil:
		m.failed.Add(1)
		m.mu.Lock()
		if m.failure == nil {
			m.failure = err
		}
		m.mu.Unlock()
	}
	return false
}

// watch reads events until the context ends.
func (m *measurement) watch(ctx context.Context, c *client) {
	defer c.http.CloseIdleConnections()
	for ctx.Err() == nil {
		err := c.do(ctx, http.MethodGet, "?watch=true", nil)
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
