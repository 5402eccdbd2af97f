// SPDX-License-Identifier: Apache-2.0

package statedir

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"dbconnector/pkg/tenant"
)

// The record is sent as it is, when it changes, and when it goes; a damaged one is an error and never no record (B14).
func TestFollow(t *testing.T) {
	t.Parallel()
	store, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	news := store.Follow(ctx)
	until := func(what string, is func(tenant.News) bool) {
		t.Helper()
		for {
			n, ok := <-news
			if !ok {
				t.Fatalf("waiting for %s: the end of time", what)
			}
			if is(n) {
				return
			}
		}
	}
	until("no record", func(n tenant.News) bool { return n.Record == nil && n.Err == nil })
	for generation := int64(1); generation < 3; generation++ {
		if _, err := store.Update(ctx, func(old *tenant.Record) (*tenant.Record, error) {
			if old == nil {
				old = record()
			}
			old.Generation = generation
			return old, nil
		}); err != nil {
			t.Fatal(err)
		}
		until("a record", func(n tenant.News) bool { return n.Record != nil && n.Record.Generation == generation })
	}
	path := filepath.Join(store.dir, File)
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	until("an error", func(n tenant.News) bool { return n.Err != nil && n.Record == nil })
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	until("no record", func(n tenant.News) bool { return n.Record == nil && n.Err == nil })
	cancel()
	for range news {
		t.Log("the last news, which no reader had taken")
	}
}

// TestFollowNothing: a state that stays the same is told once, also that there is no record.
func TestFollowNothing(t *testing.T) {
	t.Parallel()
	store, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		news := store.Follow(ctx)
		if n := <-news; n.Record != nil || n.Err != nil {
			t.Errorf("got %+v", n)
		}
		<-time.After(20 * look) // of the bubble's time
		synctest.Wait()
		select {
		case n := <-news:
			t.Errorf("told again: %+v", n)
		default:
		}
	})
}
