// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"dbconnector/pkg/tenant"
)

// testFollow: the record is sent as it is, when it changes, when it goes and when it comes back; a damaged one is an error
// and never no record (B14).
func testFollow(t *testing.T, c cluster) {
	c.namespace(t, "follow")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	news := c.admin(t).Records("follow", "rec", binding).Follow(ctx)
	writer := c.admin(t).Records("follow", "rec", binding)
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
	write := func(generation int64) {
		t.Helper()
		if _, err := writer.Update(ctx, func(old *tenant.Record) (*tenant.Record, error) {
			if old == nil {
				old = newRecord()
			}
			old.Generation = generation
			return old, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	path := "/api/v1/namespaces/follow/secrets/rec"

	until("no record", func(n tenant.News) bool { return n.Record == nil && n.Err == nil })
	for generation := int64(1); generation < 4; generation++ {
		write(generation)
		until(fmt.Sprint("generation ", generation), func(n tenant.News) bool { return n.Record != nil && n.Record.Generation == generation })
	}
	if err := c.Do(ctx, http.MethodPatch, path, map[string]any{"data": map[string]any{recordKey: "e30="}}, nil); err != nil {
		t.Fatal(err)
	}
	until("an error", func(n tenant.News) bool { return n.Err != nil && n.Record == nil })
	if err := c.Do(ctx, http.MethodDelete, path, nil, nil); err != nil {
		t.Fatal(err)
	}
	until("no record", func(n tenant.News) bool { return n.Record == nil && n.Err == nil })
	write(7)
	until("a new record", func(n tenant.News) bool { return n.Record != nil && n.Record.Generation == 7 })
}
