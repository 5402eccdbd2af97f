// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
)

const (
	loadWriters  = 4
	loadWatchers = 3
	// pace is the time between two requests of a writer: a busy control plane, and not a benchmark.
	pace = 20 * time.Millisecond
	// lastObject is written when the writers are done: a watch that has seen it has seen everything before it.
	lastObject = "last"
)

// authentication is how PostgreSQL, MySQL and MariaDB refuse a login, in the words of the drivers that kine has.
var authentication = regexp.MustCompile(`SQLSTATE 28|password authentication failed|Error 1045|Access denied`)

// object is a writer's knowledge of a ConfigMap: its value and its resourceVersion, both empty while there is none.
type object struct{ value, version string }

// traffic stands for the clients of an API server: they write and read ConfigMaps in the namespace default, list them and
// watch them. They keep track of the writes that the API server acknowledged.
//
// A client goes on after a failure like a Kubernetes controller does: it reads what is there now, and if that is what was
// there before, it tries again. So it knows at any time what there is, and everything else is an error.
//
// Two things are not asked of kine, since it does not do them, with or without a rotation (0.16). Where several kines share a
// database, a list may be a second behind: kine answers the API server's question for the latest revision from its memory.
// And a watch that begins while two writes are under way may miss the one that ends last, because kine takes the highest
// revision that it sees for the end of what it sends. So the writes, which go to all kines in turn, go one at a time.
type traffic struct {
	api    *bed.APIServer
	client *http.Client
	began  string // the resourceVersion before the first write
	stop   chan struct{}
	wg     sync.WaitGroup

	writing  sync.Mutex
	written  atomic.Int64 // writes that were acknowledged
	watchers [loadWatchers]watcher

	mu       sync.Mutex
	versions map[string]string // the resourceVersion of each value that was acknowledged
	deleted  map[string]bool   // the names that were acknowledged to be gone
	failures map[string]int    // requests that got no answer, by reason
	refused  int               // requests that were refused because of a conflict
	errs     []error           // the first errors that must not happen
}

// watcher is a client that watches; it is one goroutine's until that has ended.
type watcher struct {
	events  []event
	resumed int
}

type event struct {
	Type   string
	Object configMap
}

// startTraffic starts the clients of an API server. They end with the test.
func startTraffic(t *testing.T, api *bed.APIServer) *traffic {
	t.Helper()
	l := &traffic{
		api: api, client: api.Client(), stop: make(chan struct{}),
		versions: map[string]string{}, deleted: map[string]bool{}, failures: map[string]int{},
	}
	err := api.Do(t.Context(), http.MethodPost, "/api/v1/namespaces", map[string]any{"metadata": map[string]any{"name": "default"}}, nil)
	if err != nil && !strings.Contains(err.Error(), "AlreadyExists") {
		t.Fatal(err)
	}
	var list struct {
		Metadata struct{ ResourceVersion string }
	}
	require.NoError(t, api.Do(t.Context(), http.MethodGet, path, nil, &list))
	l.began = list.Metadata.ResourceVersion
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	for i := range l.watchers {
		l.wg.Go(func() { l.watch(ctx, &l.watchers[i]) })
	}
	var writers sync.WaitGroup
	for i := range loadWriters {
		writers.Go(func() { l.work(ctx, i) })
	}
	l.wg.Go(func() {
		writers.Wait()
		l.attempt(l.change(ctx, lastObject, object{}, lastObject))
		time.AfterFunc(patience, cancel) // for a watch that does not see it
	})
	t.Cleanup(func() {
		cancel()
		l.end()
		l.client.CloseIdleConnections()
	})
	return l
}

// end stops the writers, and returns when all watches have seen all they did.
func (l *traffic) end() {
	l.mu.Lock()
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.mu.Unlock()
	l.wg.Wait()
}

func (l *traffic) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failLocked(err)
}

func (l *traffic) failLocked(err error) {
	if len(l.errs) < 10 {
		l.errs = append(l.errs, err)
	}
}

// attempt takes a writer's result, and says whether the writer can go on.
func (l *traffic) attempt(o object, err error) (object, bool) {
	if err != nil {
		l.fail(err)
	}
	return o, err == nil
}

// do makes a request. It counts a request without an answer, or with one that asks to try again later. A refusal by the
// database must not happen, nor any other answer that a client should not get.
func (l *traffic) do(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := bed.Ask(ctx, l.client, method, l.api.URL+path, in, out)
	if err == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	status := bed.Code(err)
	switch {
	case authentication.MatchString(err.Error()):
		l.failLocked(fmt.Errorf("a request failed for the credential: %w", err))
	case status == http.StatusNotFound || status == http.StatusConflict:
		l.refused++
	case status == 0 || status == http.StatusTooManyRequests || status >= 500:
		l.failures[reason(err)]++
	default:
		l.failLocked(fmt.Errorf("a request was answered in an unexpected way: %w", err))
	}
	return err
}

// reason is the text of a Status.
func reason(err error) string {
	var answer *bed.StatusError
	var status struct{ Message string }
	if !errors.As(err, &answer) || json.Unmarshal(answer.Body, &status) != nil || status.Message == "" {
		return err.Error()
	}
	return strconv.Itoa(answer.Code) + " " + status.Message
}

// read returns the object of a name. It asks until it gets an answer.
func (l *traffic) read(ctx context.Context, name string) (now object, err error) {
	err = bed.Wait(ctx, func(ctx context.Context) error {
		var c configMap
		err := l.do(ctx, http.MethodGet, path+"/"+name, nil, &c)
		if bed.Code(err) == http.StatusNotFound {
			now = object{}
			return nil
		}
		now = object{c.Data["value"], c.Metadata.ResourceVersion}
		return err
	})
	return now, err
}

// change brings an object from what there is to a value, which is "" for none. It returns when that has been acknowledged,
// or has been read after a request whose answer was lost.
//
// A request can also be refused for nothing, see createConfigMap; kine then says that the object was changed, too.
func (l *traffic) change(ctx context.Context, name string, before object, value string) (now object, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	err = bed.Wait(ctx, func(ctx context.Context) error {
		err := l.request(ctx, name, before, value, &now)
		if err == nil {
			return nil
		}
		var lost error
		if now, lost = l.read(ctx, name); lost != nil {
			return bed.Permanent(errors.Join(err, lost))
		}
		switch {
		case now.value == value:
			return nil
		case now == before:
			return err
		}
		return bed.Permanent(fmt.Errorf("object %s was %+v, was to become %q (%w), and is %+v", name, before, value, err, now))
	})
	if err != nil {
		return object{}, fmt.Errorf("changing %s to %q: %w", name, value, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.written.Add(1)
	if value == "" {
		l.deleted[name] = true
	} else {
		l.versions[value] = now.version
	}
	return now, nil
}

func (l *traffic) request(ctx context.Context, name string, before object, value string, now *object) error {
	c := newConfigMap(name, value)
	c.Metadata.ResourceVersion = before.version
	l.writing.Lock()
	defer l.writing.Unlock()
	var out configMap
	var err error
	switch {
	case value == "":
		err = l.do(ctx, http.MethodDelete, path+"/"+name, nil, &out)
		out = configMap{}
	case before.value == "":
		err = l.do(ctx, http.MethodPost, path, c, &out)
	default:
		err = l.do(ctx, http.MethodPut, path+"/"+name, c, &out)
	}
	*now = object{value, out.Metadata.ResourceVersion}
	return err
}

// work creates objects, changes them, reads them back, alone and in a list, and deletes two thirds of them.
func (l *traffic) work(ctx context.Context, writer int) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for i := 0; ; i++ {
		name := fmt.Sprintf("w%d-%d", writer, i)
		var there object
		var ok bool
		for version := range 3 {
			if there, ok = l.attempt(l.change(ctx, name, there, fmt.Sprintf("%s/%d", name, version))); !ok {
				return
			}
			<-tick.C
			now, err := l.read(ctx, name)
			if err == nil && now != there {
				err = fmt.Errorf("object %s was acknowledged to be %+v, and is %+v", name, there, now)
			}
			if _, ok := l.attempt(now, err); !ok {
				return
			}
			<-tick.C
		}
		if i%10 == 0 {
			if _, err := l.list(ctx); err != nil {
				l.fail(err)
			}
		}
		if i%3 != 0 {
			if _, ok := l.attempt(l.change(ctx, name, there, "")); !ok {
				return
			}
		}
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
	}
}

// list asks for all objects until it is told.
func (l *traffic) list(ctx context.Context) (map[string]object, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	var list struct{ Items []configMap }
	err := bed.Wait(ctx, func(ctx context.Context) error { return l.do(ctx, http.MethodGet, path, nil, &list) })
	objects := map[string]object{}
	for _, c := range list.Items {
		if value := c.Data["value"]; value != "" { // not one that the API server made
			objects[c.Metadata.Name] = object{value, c.Metadata.ResourceVersion}
		}
	}
	return objects, err
}

// watch watches from the beginning to the last object. A watch that ends is taken up again where it ended; one that cannot
// be, because the API server no longer knows what came then, has missed events.
func (l *traffic) watch(ctx context.Context, w *watcher) {
	last := l.began
	err := bed.Wait(ctx, func(ctx context.Context) error {
		err := l.stream(ctx, last, func(e event) {
			w.events = append(w.events, e)
			last = e.Object.Metadata.ResourceVersion
		})
		switch {
		case err == nil:
			return nil
		case bed.Code(err) == http.StatusGone || authentication.MatchString(err.Error()):
			return bed.Permanent(err)
		}
		w.resumed++
		return err
	})
	if err != nil {
		l.fail(fmt.Errorf("a watch failed: %w", err))
	}
}

// stream reads one watch until the last object.
func (l *traffic) stream(ctx context.Context, from string, take func(event)) error {
	query := url.Values{"watch": {"true"}, "resourceVersion": {from}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, l.api.URL+path+"?"+query.Encode(), http.NoBody)
	if err != nil {
		return bed.Permanent(err)
	}
	response, err := l.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		answer, _ := io.ReadAll(response.Body) // the status says enough
		return &bed.StatusError{Code: response.StatusCode, Body: answer}
	}
	for decoder := json.NewDecoder(response.Body); ; {
		var raw struct {
			Type   string
			Object json.RawMessage
		}
		if err := decoder.Decode(&raw); err != nil {
			return fmt.Errorf("watching: %w", err)
		}
		if raw.Type == "ERROR" {
			var status struct{ Code int }
			_ = json.Unmarshal(raw.Object, &status) // a code of 0 is as good
			return &bed.StatusError{Code: status.Code, Body: raw.Object}
		}
		e := event{Type: raw.Type}
		if err := json.Unmarshal(raw.Object, &e.Object); err != nil {
			return bed.Permanent(fmt.Errorf("watching: %w", err))
		}
		if e.Object.Data["value"] == "" {
			continue // not one of ours
		}
		take(e)
		if e.Object.Metadata.Name == lastObject {
			return nil
		}
	}
}

// progress waits for more acknowledged writes.
func (l *traffic) progress(t *testing.T, writes int64) {
	t.Helper()
	before := l.written.Load()
	bed.Eventually(t, patience, func(context.Context) error {
		if err := l.err(); err != nil {
			return bed.Permanent(err)
		}
		if got := l.written.Load() - before; got < writes {
			return fmt.Errorf("of %d writes, %d were acknowledged", writes, got)
		}
		return nil
	})
}

func (l *traffic) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.errs...)
}

// failed counts the requests that got no answer.
func (l *traffic) failed() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, times := range l.failures {
		n += times
	}
	return n
}

// check ends the traffic and compares the events of the watches, and the objects, with the acknowledged writes.
func (l *traffic) check(t *testing.T) {
	t.Helper()
	l.end()
	assert.NoError(t, l.err())
	resumed := 0
	for i := range l.watchers {
		w := &l.watchers[i]
		resumed += w.resumed
		assert.NoErrorf(t, l.compare(w.events), "watch %d of %d events, taken up %d times", i, len(w.events), w.resumed)
	}
	objects, err := l.list(t.Context())
	require.NoError(t, err)
	want := map[string]object{}
	for value, version := range l.versions {
		name, number, _ := strings.Cut(value, "/")
		if !l.deleted[name] && (number == "2" || name == lastObject) {
			want[name] = object{value, version}
		}
	}
	if !maps.Equal(objects, want) {
		t.Errorf("in the end there are %d objects, want the %d that were acknowledged", len(objects), len(want))
	}
	t.Logf("%d acknowledged writes; %d requests failed for a moment, %d were refused and repeated; watches saw %d events and were taken up %d times",
		l.written.Load(), l.failed(), l.refused, len(l.watchers[0].events), resumed)
	for _, reason := range slices.Sorted(maps.Keys(l.failures)) {
		t.Logf("%d times: %s", l.failures[reason], reason)
	}
}

// compare holds the events of a watch against what was acknowledged: every write is there, once, as what it was, and in the
// order of the resourceVersions.
func (l *traffic) compare(events []event) error {
	var errs []error
	complain := func(format string, args ...any) {
		if len(errs) < 10 {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	last, seen, gone := int64(0), map[string]bool{}, map[string]bool{}
	for _, e := range events {
		name, value, version := e.Object.Metadata.Name, e.Object.Data["value"], e.Object.Metadata.ResourceVersion
		number, err := strconv.ParseInt(version, 10, 64)
		if err != nil || number <= last {
			complain("%s %s has resourceVersion %s after %d", e.Type, value, version, last)
		}
		last = number
		want := "MODIFIED"
		if name == lastObject || strings.HasSuffix(value, "/0") {
			want = "ADDED"
		}
		switch {
		case e.Type == "DELETED" && l.deleted[name] && !gone[name]:
			gone[name] = true
		case e.Type != want || seen[value] || gone[name]:
			complain("%s %s came where it has no place", e.Type, value)
		case l.versions[value] != version:
			complain("%s %s has resourceVersion %s, acknowledged was %q", e.Type, value, version, l.versions[value])
		default:
			seen[value] = true
		}
	}
	for value, version := range l.versions {
		if !seen[value] {
			complain("missed %s of resourceVersion %s", value, version)
		}
	}
	for name := range l.deleted {
		if !gone[name] {
			complain("missed the end of %s", name)
		}
	}
	return errors.Join(errs...)
}
