// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
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
func NewHerd(c *Cluster, binary, prefix, connector, dir string) ([]*Tenant, error) {
	var herd []*Tenant
	for i := range Herd {
		t := &Tenant{
			Binary: binary, Name: fmt.Sprintf("%s-%d", prefix, i), Out: filepath.Join(dir, fmt.Sprint(i)),
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
	watch, err := watchConnections(ctx, s, admin)
	if err != nil {
		return out, err
	}
	results, err := Together(ctx, herd)
	peak, werr := watch()
	if err != nil {
		return out, err
	}
	if werr != nil {
		return out, werr
	}
	out.Peak = peak
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

// watchConnections asks the server again and again how many sessions the logins have whose names are LIKE user. It
// keeps one connection, which every server reserves for its superuser. stop ends it and returns the highest number.
func watchConnections(ctx context.Context, s *bed.Server, user string) (stop func() (int, error), err error) {
	db, err := s.Admin("")
	if err != nil {
		return nil, err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("watching connections: %w", err)
	}
	query := "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE $1"
	if s.Engine != bed.Postgres {
		query = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER LIKE ?"
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	most, failure := 0, error(nil)
	wg.Go(func() {
		every := time.NewTicker(10 * time.Millisecond)
		defer every.Stop()
		for {
			n := 0
			if err := conn.QueryRowContext(ctx, query, user).Scan(&n); err != nil {
				if ctx.Err() == nil {
					failure = fmt.Errorf("watching connections: %w", err)
				}
				return
			}
			most = max(most, n)
			select {
			case <-every.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() (int, error) {
		cancel()
		wg.Wait()
		closeAll(conn, db)
		return most, failure
	}, nil
}

func closeAll(conn *sql.Conn, db *sql.DB) {
	_ = conn.Close()
	_ = db.Close()
}
