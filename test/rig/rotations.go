// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"dbconnector/pkg/handover"
	"dbconnector/pkg/rotation"
	"dbconnector/pkg/statedir"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// SetDue shifts the time of a tenant's last rotation, so that the next one is due at a moment under a policy. A running
// sidecar takes this for another record, as from a backup, and tries the active login once.
func (t *Tenant) SetDue(ctx context.Context, at time.Time, p rotation.Policy) error {
	set := func(r *tenant.Record) { r.RotatedAt = r.RotatedAt.Add(at.Sub(rotation.Due(r, p))) }
	if t.State != "" {
		store, err := statedir.Open(t.State)
		if err != nil {
			return err
		}
		_, err = store.Update(ctx, func(r *tenant.Record) (*tenant.Record, error) {
			if r == nil {
				return nil, errors.New("there is no record")
			}
			set(r)
			return r, nil
		})
		return err
	}
	var secret map[string]any
	if err := t.Cluster.API.Do(ctx, http.MethodGet, record(t.Name), nil, &secret); err != nil {
		return fmt.Errorf("reading the record: %w", err)
	}
	r, err := t.Record(ctx)
	if err != nil {
		return err
	}
	set(r)
	encoded, err := r.Encode()
	if err != nil {
		return err
	}
	data, ok := secret["data"].(map[string]any)
	if !ok {
		return errors.New("the record's Secret has no data")
	}
	data["record.json"] = base64.StdEncoding.EncodeToString(encoded)
	// The update carries the resourceVersion that was read, so that no other program's change is lost.
	if err := t.Cluster.API.Do(ctx, http.MethodPut, record(t.Name), secret, nil); err != nil {
		return fmt.Errorf("writing the record: %w", err)
	}
	return nil
}

// HandedOver is the time at which the hand-over was last written, which is the purpose of a rotation.
func (t *Tenant) HandedOver() (time.Time, error) {
	info, err := os.Stat(filepath.Join(t.Out, handover.DSNFile))
	if err != nil {
		return time.Time{}, fmt.Errorf("looking at the hand-over: %w", err)
	}
	return info.ModTime(), nil
}

// HerdRotation is the result of a herd whose passwords became due at the same instant.
type HerdRotation struct {
	Failed []error
	// P50, P99 and Longest are times from due to handed over.
	P50, P99, Longest time.Duration
	// Again counts the steps that a sidecar had to try again.
	Again int
	// Peak is the most connections that all tenants together had at once.
	Peak int
}

// RotateHerd starts a sidecar for each of a herd of tenants, with the settings that are shipped, makes all passwords
// due at one instant, and waits until each is rotated or within has passed. It tries each new hand-over.
func RotateHerd(ctx context.Context, s *bed.Server, herd []*Tenant, within time.Duration) (out HerdRotation, err error) {
	sidecars, before := make([]*Process, len(herd)), make([]string, len(herd))
	defer func() {
		for _, x := range sidecars {
			if x != nil {
				x.Kill()
			}
		}
	}()
	// The instant is far enough away for all sidecars to be up; otherwise the last ones are a little late.
	due := time.Now().Add(time.Duration(len(herd)) * 50 * time.Millisecond)
	shipped := rotation.Policy{Period: 720 * time.Hour}
	for i, t := range herd {
		if before[i], err = t.DSN(); err != nil {
			return out, err
		}
		if err = t.SetDue(ctx, due, shipped); err != nil {
			return out, err
		}
	}
	watch, err := WatchSessions(ctx, s, "vc%")
	if err != nil {
		return out, err
	}
	defer func() { _ = watch.Stop() }()
	for i, t := range herd {
		if sidecars[i], err = t.Rotate(ctx, ""); err != nil {
			return out, err
		}
	}
	limited, cancel := context.WithDeadline(ctx, due.Add(within))
	defer cancel()
	took, errs := make([]time.Duration, len(herd)), make([]error, len(herd))
	var wg sync.WaitGroup
	for i, t := range herd {
		wg.Go(func() {
			errs[i] = bed.Wait(limited, func(context.Context) error {
				now, err := t.DSN()
				if err == nil && now == before[i] {
					err = errors.New("the password is not rotated")
				}
				return err
			})
			if errs[i] != nil {
				errs[i] = fmt.Errorf("tenant %s: %w\n%s", t.Name, errs[i], sidecars[i].Log())
				return
			}
			at, err := t.HandedOver()
			took[i], errs[i] = at.Sub(due), err
		})
	}
	wg.Wait()
	if err := watch.Stop(); err != nil {
		return out, err
	}
	out.Peak = watch.Most()
	for i, t := range herd {
		out.Again += len(sidecars[i].Lines("a step failed (continuing)"))
		if errs[i] == nil {
			dsn, err := t.DSN()
			if err == nil {
				err = UseDSN(ctx, dsn, s.CA)
			}
			errs[i] = err
		}
		if errs[i] != nil {
			out.Failed = append(out.Failed, errs[i])
		}
	}
	out.P50, out.P99, out.Longest = Quantile(took, 0.5), Quantile(took, 0.99), Quantile(took, 1)
	return out, nil
}
