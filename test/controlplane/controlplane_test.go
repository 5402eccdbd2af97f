// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"

	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/handover"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// patience bounds a wait that takes a moment on an idle machine.
const patience = time.Minute

// TestControlPlane runs a kine and a kube-apiserver on the hand-over of each engine, takes
// both down, lets dbconnector-init run again and finds the data where it was.
func TestControlPlane(t *testing.T) {
	t.Parallel()
	for _, s := range settings {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			_, tenant := s.newTenant(t)
			before := handOver(t, tenant)

			// kine by itself: the etcd API, and kine's own compaction.
			kine := startKine(t, s, tenant, "--compact-interval=500ms", "--compact-min-retain=20")
			checkEtcd(t, kine.Endpoint)
			checkCompaction(t, kine.Endpoint)
			require.NoError(t, kine.Stop(t.Context()))

			// A control plane. Here the API server asks for compaction.
			kine = startKine(t, s, tenant, "--compact-min-retain=20")
			api := bed.NewAPIServer(t, bed.APIServerOptions{Etcd: kine.Endpoint, Args: []string{"--etcd-compaction-interval=2s"}})
			want := checkAPI(t, api)
			require.NoError(t, api.Stop(t.Context()))
			require.NoError(t, kine.Stop(t.Context()))

			// The pod starts again, on a day on which the connector is not to be had.
			require.NoError(t, os.RemoveAll(tenant.ConnectorDir))
			ready, err := tenant.Provision(t.Context())
			require.NoError(t, err)
			if !ready.Restart {
				t.Error("the second run did not take the restart path")
			}
			if after := handOver(t, tenant); after != before {
				t.Error("the second run changed the hand-over")
			}
			kine = startKine(t, s, tenant)
			api = bed.NewAPIServer(t, bed.APIServerOptions{Etcd: kine.Endpoint})
			if got := listConfigMaps(t, api); !maps.Equal(got, want) {
				t.Errorf("after the restart there are %d ConfigMaps, want the %d of before, unchanged", len(got), len(want))
			}
			client := dial(t, kine.Endpoint)
			if got := get(t, client, "/check/kept"); got != "second" {
				t.Errorf("after the restart, the object that was written through the etcd API is %q", got)
			}
		})
	}
}

// handOver is the hand-over's config.yaml.
func handOver(t *testing.T, tenant *Tenant) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(tenant.Out, handover.ConfigFile))
	require.NoError(t, err)
	return string(content)
}

func dial(t *testing.T, endpoint string) *kubernetes.Client {
	t.Helper()
	client, err := Dial(endpoint)
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func get(t *testing.T, client *kubernetes.Client, key string) string {
	t.Helper()
	response, err := client.Kubernetes.Get(t.Context(), key, kubernetes.GetOptions{})
	require.NoError(t, err)
	if response.KV == nil {
		return ""
	}
	return string(response.KV.Value)
}

// checkEtcd creates, updates, deletes, lists and watches below /check/.
func checkEtcd(t *testing.T, endpoint string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := dial(t, endpoint)
	kept, err := Put(ctx, client, "/check/kept", "first", 0)
	require.NoError(t, err)
	if _, err := Put(ctx, client, "/check/kept", "again", 0); err == nil {
		t.Error("an object that exists was created")
	}
	events := client.Watch(ctx, "/check/", clientv3.WithPrefix(), clientv3.WithRev(kept+1))
	if _, err := Put(ctx, client, "/check/kept", "second", kept); err != nil {
		t.Fatal(err)
	}
	if _, err := Put(ctx, client, "/check/kept", "third", kept); err == nil {
		t.Error("an object was updated on the condition of a revision that it no longer has")
	}
	gone, err := Put(ctx, client, "/check/gone", "first", 0)
	require.NoError(t, err)
	require.NoError(t, Delete(ctx, client, "/check/gone", gone))
	var seen []string
	for len(seen) < 3 {
		response, ok := <-events
		if err := response.Err(); err != nil || !ok {
			t.Fatalf("the watch ended after %v: %v", seen, errors.Join(err, ctx.Err()))
		}
		for _, e := range response.Events {
			seen = append(seen, e.Type.String()+" "+string(e.Kv.Key))
		}
	}
	if got, want := strings.Join(seen, ", "), "PUT /check/kept, PUT /check/gone, DELETE /check/gone"; got != want {
		t.Errorf("the watch saw %s, want %s", got, want)
	}
	got, err := List(ctx, client, "/check/")
	require.NoError(t, err)
	if want := map[string]string{"/check/kept": "second"}; !maps.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
}

// checkCompaction makes history, and waits until kine has compacted it.
func checkCompaction(t *testing.T, endpoint string) {
	t.Helper()
	client := dial(t, endpoint)
	var first, revision int64
	for i := range 60 {
		// On MySQL and MariaDB kine can call a write a conflict that is none while another kine works on the same table. The answer
		// to a conflict, here as in every client of Kubernetes, is to read and to write again.
		bed.Eventually(t, patience, func(ctx context.Context) error {
			next, err := Put(ctx, client, "/compacted/key", fmt.Sprint(i), revision)
			if err == nil {
				revision = next
				return nil
			}
			if now, failed := client.Kubernetes.Get(ctx, "/compacted/key", kubernetes.GetOptions{}); failed == nil && now.KV != nil {
				revision = now.KV.ModRevision
			}
			return err
		})
		if i == 0 {
			first = revision
		}
	}
	bed.Eventually(t, patience, func(ctx context.Context) error {
		_, err := client.Kubernetes.Get(ctx, "/compacted/key", kubernetes.GetOptions{Revision: first})
		switch {
		case err == nil:
			return fmt.Errorf("waiting for compaction: a revision of %d writes ago can still be read", revision-first)
		case errors.Is(err, rpctypes.ErrCompacted):
			return nil
		}
		return fmt.Errorf("waiting for compaction: reading an old revision: %w, want %w", err, rpctypes.ErrCompacted)
	})
	if got := get(t, client, "/compacted/key"); got != "59" {
		t.Errorf("after compaction, the object is %q, want the latest version", got)
	}
}

const (
	writers   = 6
	perWriter = 50
	path      = "/api/v1/namespaces/default/configmaps"
)

type configMap struct {
	Metadata struct {
		Name            string `json:"name"`
		ResourceVersion string `json:"resourceVersion,omitempty"`
	} `json:"metadata"`
	Data map[string]string `json:"data"`
}

func newConfigMap(name, value string) configMap {
	var c configMap
	c.Metadata.Name = name
	c.Data = map[string]string{"value": value}
	return c
}

// checkAPI has many writers create, update and delete ConfigMaps through an API server,
// watches them do it, and waits until the API server has compacted. It returns what
// must be there afterwards.
func checkAPI(t *testing.T, api *bed.APIServer) map[string]string {
	t.Helper()
	err := api.Do(t.Context(), http.MethodPost, "/api/v1/namespaces", map[string]any{"metadata": map[string]any{"name": "default"}}, nil)
	if err != nil && !strings.Contains(err.Error(), "AlreadyExists") {
		t.Fatal(err)
	}
	var list struct {
		Metadata struct{ ResourceVersion string }
	}
	require.NoError(t, api.Do(t.Context(), http.MethodGet, path, nil, &list))
	began := list.Metadata.ResourceVersion
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events := watchConfigMaps(ctx, t, api, began)

	var wg sync.WaitGroup
	errs := make([]error, writers)
	want := map[string]string{}
	for w := range writers {
		for i := range perWriter {
			if name := fmt.Sprintf("w%d-%d", w, i); i%10 != 9 {
				want[name] = map[bool]string{true: "changed", false: "new"}[i%10 == 0]
			}
		}
		wg.Go(func() {
			for i := range perWriter {
				if errs[w] = errors.Join(errs[w], writeConfigMap(ctx, api, fmt.Sprintf("w%d-%d", w, i), i)); errs[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	if got := listConfigMaps(t, api); !maps.Equal(got, want) {
		t.Errorf("listed %d ConfigMaps, want %d, some of them changed", len(got), len(want))
	}
	counts := map[string]int{}
	for e := range events {
		counts[e]++
		if counts["DELETED"] == writers*perWriter/10 && counts["ADDED"] == writers*perWriter && counts["MODIFIED"] == writers*perWriter/10 {
			break
		}
	}
	if ctx.Err() != nil {
		t.Errorf("the watch saw %v of %d creations, a tenth of them followed by updates, a tenth by deletions", counts, writers*perWriter)
	}

	// The API server forgets a revision, and its store with it.
	bed.Eventually(t, patience, func(ctx context.Context) error {
		// Something must happen in between, or there is nothing to compact.
		if err := api.Do(
			ctx, http.MethodPatch, path+"/w0-0",
			map[string]any{"metadata": map[string]any{"annotations": map[string]any{"at": time.Now().String()}}}, nil,
		); err != nil {
			return bed.Permanent(err)
		}
		query := url.Values{"resourceVersion": {began}, "resourceVersionMatch": {"Exact"}, "limit": {"1"}}
		err := api.Do(ctx, http.MethodGet, path+"?"+query.Encode(), nil, nil)
		switch {
		case err == nil:
			return errors.New("waiting for compaction: an old revision can still be listed")
		case strings.Contains(err.Error(), "410 Gone"):
			return nil
		}
		return fmt.Errorf("waiting for compaction: listing an old revision: %w, want 410 Gone", err)
	})
	return want
}

// writeConfigMap creates a ConfigMap; of ten, one is also updated, and one deleted.
func writeConfigMap(ctx context.Context, api *bed.APIServer, name string, i int) error {
	created, err := createConfigMap(ctx, api, name)
	if err != nil {
		return err
	}
	switch i % 10 {
	case 0:
		created.Data["value"] = "changed"
		return write(ctx, api, http.MethodPut, path+"/"+name, created, nil)
	case 9:
		return write(ctx, api, http.MethodDelete, path+"/"+name, nil, nil)
	}
	return nil
}

// write makes a request that ends in an insert of kine's, and makes it again where MariaDB found a deadlock on the table's
// auto-increment lock: it calls that error 1467 (MDEV-33593), which kine does not know and passes on. Nothing was written then.
func write(ctx context.Context, api *bed.APIServer, method, path string, in, out any) error {
	return bed.Wait(ctx, func(ctx context.Context) error {
		err := api.Do(ctx, method, path, in, out)
		if err != nil && !strings.Contains(err.Error(), "Error 1467 ") {
			return bed.Permanent(err)
		}
		return err
	})
}

// createConfigMap tries again where the API server says that an object exists which does not. kine on MySQL and MariaDB says
// so: where an insert takes long to commit, kine fills what looks like a gap in the ids, and the insert then fails on the
// primary key, which kine 0.16 takes for the object's own key (pkg/drivers/mysql, TranslateErr; on PostgreSQL it knows the
// two apart). A Kubernetes controller tries again, too. An object that is there after all is an error.
func createConfigMap(ctx context.Context, api *bed.APIServer, name string) (created configMap, err error) {
	err = bed.Wait(ctx, func(ctx context.Context) error {
		err := write(ctx, api, http.MethodPost, path, newConfigMap(name, "new"), &created)
		switch {
		case err == nil:
			return nil
		case !strings.Contains(err.Error(), "AlreadyExists"):
			return bed.Permanent(err)
		}
		if there := api.Do(ctx, http.MethodGet, path+"/"+name, nil, nil); bed.Code(there) != http.StatusNotFound {
			return bed.Permanent(errors.Join(err, there))
		}
		return err
	})
	return created, err
}

// watchConfigMaps sends the types of all events on the writers' ConfigMaps from a
// revision on, until the context ends.
func watchConfigMaps(ctx context.Context, t *testing.T, api *bed.APIServer, revision string) <-chan string {
	t.Helper()
	query := url.Values{"watch": {"true"}, "resourceVersion": {revision}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, api.URL+path+"?"+query.Encode(), http.NoBody)
	require.NoError(t, err)
	response, err := api.Admin.Do(request)
	require.NoError(t, err)
	if response.StatusCode != http.StatusOK {
		_ = response.Body.Close()
		t.Fatalf("watching: %s", response.Status)
	}
	events := make(chan string, 10*writers*perWriter)
	go func() {
		defer response.Body.Close()
		defer close(events)
		decoder := json.NewDecoder(response.Body)
		for {
			var event struct {
				Type   string
				Object configMap
			}
			if decoder.Decode(&event) != nil {
				return // the context has ended
			}
			if strings.HasPrefix(event.Object.Metadata.Name, "w") {
				events <- event.Type
			}
		}
	}()
	return events
}

// listConfigMaps lists the writers' ConfigMaps, in pages.
func listConfigMaps(t *testing.T, api *bed.APIServer) map[string]string {
	t.Helper()
	objects := map[string]string{}
	for next := ""; ; {
		var list struct {
			Metadata struct{ Continue string }
			Items    []configMap
		}
		query := url.Values{"limit": {"70"}, "continue": {next}}
		require.NoError(t, api.Do(t.Context(), http.MethodGet, path+"?"+query.Encode(), nil, &list))
		for _, item := range list.Items {
			if strings.HasPrefix(item.Metadata.Name, "w") {
				objects[item.Metadata.Name] = item.Data["value"]
			}
		}
		if next = list.Metadata.Continue; next == "" {
			return objects
		}
	}
}

// TestBothSlots runs a kine on each login of a tenant on the same database at the same
// time, as in the middle of a rotation: what one creates, tables among it, is the
// other's, too.
func TestBothSlots(t *testing.T) {
	t.Parallel()
	for _, s := range settings[:3] {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			server, member := s.newTenant(t)
			store, err := member.Store()
			require.NoError(t, err)
			record, err := member.Record(t.Context())
			require.NoError(t, err)
			dsn, err := open.Engine(record.Server, "").DSN(record.Login(tenant.B))
			require.NoError(t, err)
			if dsn == store.DataSource {
				t.Fatal("both slots have the same DSN")
			}
			// The inactive slot comes first: it makes the tables. It compacts, too, which
			// deletes the other's rows.
			b := dial(t, bed.NewKine(t, dsn, store.CAFile, "--compact-interval=500ms", "--compact-min-retain=20").Endpoint)
			kineA := startKine(t, s, member)
			a := dial(t, kineA.Endpoint)

			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			events := b.Watch(ctx, "/shared/", clientv3.WithPrefix())
			revision, err := Put(ctx, a, "/shared/key", "a", 0)
			require.NoError(t, err)
			if got := get(t, b, "/shared/key"); got != "a" {
				t.Errorf("slot b reads %q, want the value that slot a wrote", got)
			}
			if response := <-events; len(response.Events) == 0 || string(response.Events[0].Kv.Key) != "/shared/key" {
				t.Errorf("slot b's watch does not see the value that slot a wrote: %v", errors.Join(response.Err(), ctx.Err()))
			}
			_, err = Put(ctx, b, "/shared/key", "b", revision)
			assert.NoError(t, err, "slot b updates the object that slot a created")
			if got := get(t, a, "/shared/key"); got != "b" {
				t.Errorf("slot a reads %q, want the value that slot b wrote", got)
			}

			// Both write at once.
			var wg sync.WaitGroup
			errs := make([]error, 2)
			for i, client := range []*kubernetes.Client{a, b} {
				wg.Go(func() {
					for n := range 50 {
						if _, err := Put(ctx, client, fmt.Sprintf("/many/%d-%d", i, n), "x", 0); err != nil {
							errs[i] = errors.Join(errs[i], err)
						}
					}
				})
			}
			wg.Wait()
			assert.NoError(t, errors.Join(errs...))
			for name, client := range map[string]*kubernetes.Client{"a": a, "b": b} {
				objects, err := List(ctx, client, "/many/")
				if err != nil || len(objects) != 100 {
					t.Errorf("slot %s lists %d objects, %v, want 100", name, len(objects), err)
				}
			}
			checkCompaction(t, kineA.Endpoint)

			// A later kine may alter the table, whichever slot it runs on.
			login := record.Login(tenant.A)
			db, err := server.Open(login.User, login.Password.Reveal(), login.Database)
			require.NoError(t, err)
			defer db.Close()
			for _, statement := range []string{"ALTER TABLE kine ADD COLUMN later INTEGER", "CREATE INDEX kine_later ON kine (later)"} {
				if _, err := db.ExecContext(ctx, statement); err != nil {
					t.Errorf("slot a, on the table that slot b created: %s: %v", statement, err)
				}
			}
		})
	}
}

// TestServerIsVerified makes sure that the tests above prove what they say: kine refuses a
// server with the right name, but from another CA than the hand-over's.
func TestServerIsVerified(t *testing.T) {
	t.Parallel()
	for _, s := range settings[:3] {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			_, member := s.newTenant(t)
			store, err := member.Store()
			require.NoError(t, err)
			foreign, err := bed.NewCA()
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(store.CAFile, foreign.PEM, 0o600))
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			kine, err := bed.Program(ctx, "kine")
			require.NoError(t, err)
			// On PostgreSQL it goes on trying for five minutes, so its log has to do.
			cmd := exec.CommandContext(ctx, kine, "--endpoint="+store.DataSource, "--ca-file="+store.CAFile,
				"--listen-address=unix://"+filepath.Join(t.TempDir(), "kine.sock"), "--metrics-bind-address=0")
			log, err := cmd.StderrPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			lines := bufio.NewScanner(log)
			refused := false
			for !refused && lines.Scan() {
				refused = strings.Contains(lines.Text(), "certificate signed by unknown authority")
				if strings.Contains(lines.Text(), "Kine available at") {
					t.Error("kine runs on a server that its CA does not vouch for")
				}
			}
			if !refused {
				t.Errorf("kine does not say that the certificate is wrong: %v", ctx.Err())
			}
			cancel()
			_ = cmd.Wait() // it was killed
		})
	}
}
