// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dbconnector/test/bed"
)

// Herd is how many tenants come at once, and HerdLimit the max_connections of the server that they meet.
const (
	Herd      = 200
	HerdLimit = 50
)

// HerdResult is the result of a herd.
type HerdResult struct {
	Failed   []Result
	P50, P99 time.Duration
	// Peak is the most connections that the admin had at once.
	Peak int
}

// NewHerd makes the tenants of a herd, with hand-over directories below dir.
func NewHerd(c *Cluster, prefix, connector, dir string) ([]*Tenant, error) {
	var herd []*Tenant
	for i := range Herd {
		t := &Tenant{
			Name: fmt.Sprintf("%s-%d", prefix, i), Out: filepath.Join(dir, fmt.Sprint(i)),
			Cluster: c, ConnectorName: connector, Timeout: 5 * time.Minute,
		}
		if err := os.Mkdir(t.Out, 0o755); err != nil {
			return nil, fmt.Errorf("making a directory: %w", err)
		}
		herd = append(herd, t)
	}
	return herd, nil
}

// RunHerd runs all tenants at once and watches on the server how many connections the admin has.
func RunHerd(ctx context.Context, s *bed.Server, admin string, herd []*Tenant) (HerdResult, error) {
	var out HerdResult
	watch, err := WatchSessions(ctx, s, admin)
	if err != nil {
		return out, err
	}
	results, err := Together(ctx, herd)
	if err := errors.Join(err, watch.Stop()); err != nil {
		return out, err
	}
	out.Peak = watch.Most()
	var took []time.Duration
	for _, r := range results {
		took = append(took, r.Took)
		if r.Exit != 0 {
			out.Failed = append(out.Failed, r)
		}
	}
	out.P50, out.P99 = Quantile(took, 0.5), Quantile(took, 0.99)
	return out, nil
}

// Quantile is the smallest duration that at least the share q of all does not exceed.
func Quantile(all []time.Duration, q float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	n := int(q*float64(len(sorted)) + 0.999999)
	return sorted[min(max(n, 1), len(sorted))-1]
}

// SessionWatch counts sessions again and again: a burst that is shorter than the time between two counts is over before a limit hurts.
type SessionWatch struct {
	most, busy atomic.Int64
	stop       func() error
}

// WatchSessions counts the sessions of the logins whose names are LIKE user, until Stop. It keeps one connection, which every server
// reserves for its superuser.
func WatchSessions(ctx context.Context, s *bed.Server, user string) (*SessionWatch, error) {
	db, err := s.Admin("")
	if err != nil {
		return nil, err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watching sessions: %w", err), db.Close())
	}
	query := "SELECT COUNT(*), COALESCE(SUM(COMMAND <> 'Sleep'), 0) FROM information_schema.PROCESSLIST WHERE USER LIKE ?"
	switch s.Engine {
	case bed.Postgres:
		query = "SELECT count(*), count(*) FILTER (WHERE state <> 'idle') FROM pg_stat_activity WHERE usename LIKE $1"
	case bed.MySQL:
		query = strings.Replace(query, "information_schema.PROCESSLIST", "performance_schema.processlist", 1)
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &SessionWatch{}
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		every := time.NewTicker(10 * time.Millisecond)
		defer every.Stop()
		for {
			var all, busy int64
			if err := conn.QueryRowContext(ctx, query, user).Scan(&all, &busy); err != nil {
				if ctx.Err() == nil {
					failed <- fmt.Errorf("watching sessions: %w", err)
				}
				return
			}
			w.most.Store(max(w.most.Load(), all))
			w.busy.Store(max(w.busy.Load(), busy))
			select {
			case <-every.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	w.stop = sync.OnceValue(func() error {
		cancel()
		err := <-failed
		_, _ = conn.Close(), db.Close()
		return err
	})
	return w, nil
}

// Most is the highest number so far, and Busy the highest of those that were at work at once.
func (w *SessionWatch) Most() int { return int(w.most.Load()) }

// Busy is described at Most.
func (w *SessionWatch) Busy() int { return int(w.busy.Load()) }

// Stop ends the watch, and says whether it was interrupted.
func (w *SessionWatch) Stop() error { return w.stop() }
