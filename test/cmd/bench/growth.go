// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// tenantCounts are the numbers of tenants that a server has when its next ones are timed.
var tenantCounts = []int{100, 500, 1000, 2000}

// growthPairs is how many pairs are timed at each size: each one is two tenants more.
const growthPairs = 7

// runGrowth measures the cost of a tenant on a server that has many.
func runGrowth(ctx context.Context, write bool) (err error) {
	b, end, err := newBench(ctx, growthPairs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	var columns [][]ratio
	versions := make([]string, 0, len(engines))
	for i := range engines {
		ratios, version, err := b.growth(ctx, i)
		if err != nil {
			return fmt.Errorf("%s: %w", engines[i].name, err)
		}
		columns, versions = append(columns, ratios), append(versions, version)
	}
	return report(growth, renderGrowth(columns, versions), nil, write)
}

// growth fills a server with tenants and compares, at each size, a first provision by init with the same statements by the
// engine's client. The admin is one of those that providers give: no superuser.
func (b *bench) growth(ctx context.Context, i int) (ratios []ratio, version string, err error) {
	e := engines[i]
	s, err := bed.Start(ctx, e.engine, e.version, bed.Options{LogStatements: true})
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, s.Stop(context.WithoutCancel(ctx))) }()
	user, password, err := s.CloudAdmin(ctx, "cloudadmin")
	if err != nil {
		return nil, "", err
	}
	connector := "growth-" + string(e.engine)
	if err := b.cluster.Connector(ctx, connector, rig.Connector(s, user, password, "", true)); err != nil {
		return nil, "", err
	}
	t, err := b.tenant(connector)
	if err != nil {
		return nil, "", err
	}
	_, log, err := b.count(ctx, s, t)
	if err != nil {
		return nil, "", err
	}
	client, err := b.newRival(ctx, s, t, user, password, log)
	if err != nil {
		return nil, "", err
	}
	defer client.close()
	has := 1
	for _, size := range tenantCounts {
		progress("%s: %d tenants", e.name, size)
		if err := b.fill(ctx, client, size-has); err != nil {
			return nil, "", err
		}
		r, err := client.compare(ctx, b.pairs, true, 2)
		if err != nil {
			return nil, "", err
		}
		ratios = append(ratios, r)
		has = size + 2*(b.pairs+1)
	}
	return ratios, s.FullVersion, nil
}

// fill has init make n tenants more, a few at once.
func (b *bench) fill(ctx context.Context, client *rival, n int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * runtime.NumCPU())
	for range n {
		t, err := b.tenant(client.connector)
		if err != nil {
			return err
		}
		t.ConnectorDir, t.State = client.dir, filepath.Join(b.volume, "state-"+t.Name)
		g.Go(func() error {
			r, err := t.Run(ctx)
			return errors.Join(err, r.Err())
		})
	}
	return g.Wait()
}

func renderGrowth(columns [][]ratio, versions []string) string {
	var out strings.Builder
	fmt.Fprintf(&out, "Measured on %s, %d cores, %s; %d pairs for each ratio.\n\n", cpu(), runtime.NumCPU(), runtime.Version(), growthPairs)
	out.WriteString("| Tenants on the server |")
	for i, version := range versions {
		fmt.Fprintf(&out, " %s %s |", engines[i].name, short(version))
	}
	out.WriteString("\n|---:|" + strings.Repeat("---:|", len(versions)) + "\n")
	for n, size := range tenantCounts {
		fmt.Fprintf(&out, "| %d |", size)
		for _, column := range columns {
			fmt.Fprintf(&out, " %s |", column[n])
		}
		out.WriteString("\n")
	}
	return out.String()
}
