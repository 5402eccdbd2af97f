// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"context"

	"dbconnector/pkg/tenant"
)

// Store holds one record. A test may change all of it between two calls; after it has set Record or Down it calls Changed.
type Store struct {
	Record *tenant.Record
	Down   bool

	// Loses says of a write that another one comes first, so that what it made is thrown away and made again.
	Loses func(by Link) bool
	// Writes is called before a record is replaced.
	Writes func(by Link, old, next *tenant.Record)

	changed chan struct{} // closed when the record has changed
}

// Records is the store for one process.
type Records struct {
	*Store
	link Link
}

// For is the store for one process.
func (s *Store) For(link Link) Records { return Records{s, link} }

// Load reads the record; nil where there is none.
func (r Records) Load(ctx context.Context) (record *tenant.Record, err error) {
	err = r.link.Call(ctx, "read record", nil, func() error {
		if r.Down {
			return away()
		}
		record = r.Record.Clone()
		return nil
	})
	return record, err
}

// Update replaces the record by what fn makes of it.
func (r Records) Update(ctx context.Context, fn func(*tenant.Record) (*tenant.Record, error)) (record *tenant.Record, err error) {
	err = r.link.Call(ctx, "write record", nil, func() error {
		if r.Down {
			return away()
		}
		if r.Loses != nil && r.Loses(r.link) {
			if _, err := fn(r.Record.Clone()); err != nil {
				return err
			}
		}
		next, err := fn(r.Record.Clone())
		if err != nil {
			return err
		}
		if r.Writes != nil {
			r.Writes(r.link, r.Record, next)
		}
		if r.Record == nil || !r.Record.Equal(next) || r.Record.Facts != next.Facts {
			r.Record = next.Clone()
			r.Changed()
		}
		record = next.Clone()
		return nil
	})
	return record, err
}

// Changed tells those who follow.
func (s *Store) Changed() {
	if s.changed != nil {
		close(s.changed)
	}
	s.changed = nil
}

// Follow sends the record as it is, and again when it has changed. It may be behind, but the last word comes through.
func (r Records) Follow(ctx context.Context) <-chan tenant.News {
	out := make(chan tenant.News, 1)
	go func() {
		defer close(out)
		for {
			var news tenant.News
			var changed chan struct{}
			r.link.Do(func() {
				if r.changed == nil {
					r.changed = make(chan struct{})
				}
				news, changed = tenant.News{Record: r.Record.Clone()}, r.changed
				if r.Down {
					news = tenant.News{Err: away()}
				}
			})
			if !r.link.Wait(ctx, "news") {
				return
			}
			select {
			case <-out:
			default:
			}
			out <- news
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
