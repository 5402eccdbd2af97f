// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// The servers of this file are scripts: each request gets the next answer. They stand for what goes wrong between us and an
// API server. That our compare-and-swap is one is shown on a real API server, in kube_test.go.

type answer func(w http.ResponseWriter, r *http.Request)

type script struct {
	*httptest.Server
	mu       sync.Mutex
	answers  []answer
	requests []string
}

// play answers with the script; when it is at its end, with its last line again.
func play(t *testing.T, answers ...answer) (*Client, *script) {
	t.Helper()
	s := &script{answers: answers}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Method)
		next := s.answers[0]
		if len(s.answers) > 1 {
			s.answers = s.answers[1:]
		}
		s.mu.Unlock()
		next(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	c, err := newClient(&rest.Config{Host: s.URL}, "dbconnector-init")
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

func (s *script) count(t *testing.T, want ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := fmt.Sprint(s.requests); got != fmt.Sprint(want) {
		t.Errorf("requests: got %v, want %v", got, want)
	}
}

func object(v any) answer {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
}

func status(code int, reason metav1.StatusReason, message string, causes ...metav1.StatusCause) answer {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
			Code: int32(code), Reason: reason, Message: message, Details: &metav1.StatusDetails{Causes: causes},
		})
	}
}

func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

var notFound = status(404, metav1.StatusReasonNotFound, "not found")

const marker = "hunter2hunter2hunter2"

func newRecord() *tenant.Record {
	return tenant.NewRecord("uid/blue", "team-a", "blue",
		dbserver.Server{Engine: dbserver.Postgres, Host: "db", Port: 5432, SSLMode: dbserver.Require}, 80)
}

func dsn(r *tenant.Record) (string, error) {
	return "postgres://" + r.Login(r.Active).Password.Reveal(), nil
}

// stored is the Secret of a record as an API server has it.
func stored(t *testing.T, r *tenant.Record, version string) *corev1.Secret {
	t.Helper()
	data, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return &corev1.Secret{
		TypeMeta: metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "rec", ResourceVersion: version},
		Data: map[string][]byte{recordKey: data},
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// An answer that no API server has written gives up no record, and sets no pause beyond reason.
func TestStrangersAnswers(t *testing.T) {
	t.Parallel()
	page := func(code int, header ...string) answer {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			for _, h := range header {
				w.Header().Set("Retry-After", h)
			}
			w.WriteHeader(code)
			_, _ = io.WriteString(w, "<html>no such page</html>")
		}
	}
	record := newRecord()
	c, s := play(t, page(404), object(stored(t, record, "1")))
	got, err := c.Records("team-a", "rec", dsn).Load(within(t, 10*time.Second))
	if err != nil || !got.Equal(record) {
		t.Errorf("after a proxy's 404: %v, %v", got, err)
	}
	s.count(t, "GET", "GET")
	for _, after := range []string{"3600", "1316133900"} {
		c, _ := play(t, page(503, after), notFound)
		var next time.Duration
		c.OnWaiting(func(_ error, _ int, d time.Duration) { next = d })
		if _, err := c.Records("team-a", "rec", dsn).Load(within(t, 50*time.Millisecond)); err == nil || next > longestDelay {
			t.Errorf("Retry-After %s: waits %s, %v", after, next, err)
		}
	}
	c, _ = play(t, status(429, "", ""), notFound)
	if _, err := c.Records("team-a", "rec", dsn).Load(within(t, 50*time.Millisecond)); err == nil || !strings.Contains(err.Error(), "429") {
		t.Errorf("without a word: %v", err)
	}
}

func TestWhatPassesIsRepeated(t *testing.T) {
	t.Parallel()
	c, s := play(t, status(503, metav1.StatusReasonServiceUnavailable, "starting"), hangUp,
		status(500, metav1.StatusReasonInternalError, "etcdserver: leader changed"), notFound)
	var waited []string // without a log line, the operator would not know why it takes so long
	c.OnWaiting(func(err error, attempt int, next time.Duration) {
		if !fault.Is(err, fault.Unavailable) || next <= 0 || next > 10*time.Second {
			t.Errorf("waits %v for class %v: %v", next, fault.Of(err), err)
		}
		waited = append(waited, fmt.Sprint(attempt, " ", err))
	})
	if r, err := c.Records("team-a", "rec", nil).Load(t.Context()); r != nil || err != nil {
		t.Errorf("got %v, %v", r, err)
	}
	s.count(t, "GET", "GET", "GET", "GET")
	// net/http itself asks a server again, at once, if that hung up on a connection that was kept.
	if len(waited) < 2 || !strings.HasPrefix(waited[0], "1 reading the tenant's record, secret team-a/rec: ") || !strings.HasPrefix(waited[1], "2 ") {
		t.Errorf("told of %q", waited)
	}
}

func TestUnavailableUntilTheEnd(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(nil)
	gone.Close()
	refusing, err := newClient(&rest.Config{Host: gone.URL}, "x")
	if err != nil {
		t.Fatal(err)
	}
	nowhere, err := newClient(&rest.Config{Host: "http://does-not-exist.invalid"}, "x")
	if err != nil {
		t.Fatal(err)
	}
	hanging, _ := play(t, hang)
	busy, _ := play(t, status(429, metav1.StatusReasonTooManyRequests, "too many requests"))
	failing, _ := play(t, status(500, metav1.StatusReasonInternalError, "broken"), hang)
	for name, test := range map[string]struct {
		client *Client
		want   string
	}{
		"connection refused":              {refusing, "connection refused"},
		"no such name":                    {nowhere, "lookup"},
		"no answer":                       {hanging, "deadline exceeded"},
		"too many requests":               {busy, "too many requests"},
		"the reason, not that time is up": {failing, "broken"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			_, err := test.client.NamespaceUID(within(t, 3*time.Second), "team-a")
			if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "reading the namespace team-a") {
				t.Errorf("got class %v: %v", fault.Of(err), err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestRefusedByTheServer(t *testing.T) {
	t.Parallel()
	forbidden := `secrets "pg" is forbidden: User "system:serviceaccount:team-a:vc-blue" cannot get resource "secrets"`
	for name, test := range map[string]struct {
		answer answer
		want   string
	}{
		"no credential": {status(401, metav1.StatusReasonUnauthorized, "Unauthorized"), "does not accept this program's credential"},
		"no rule": {
			status(403, metav1.StatusReasonForbidden, forbidden),
			`an RBAC rule is missing, verb "get" on resource "secrets" named "pg" in namespace "platform" ` +
				`(deploy/kustomize has the Role and the RoleBinding)`,
		},
		"no connector": {notFound, "secret platform/pg does not exist: create it, or correct its name (DBCONNECTOR_CONNECTOR"},
		"no label": {
			object(&corev1.Secret{TypeMeta: metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"}, Data: map[string][]byte{"password": []byte(marker)}}),
			`label "loft.sh/connector-type" is missing`,
		},
		"wrong label": {
			object(&corev1.Secret{
				TypeMeta:   metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"},
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{connector.LabelKey: "x"}},
				Data:       map[string][]byte{"password": []byte(marker)},
			}),
			`label loft.sh/connector-type="x": must be "shared-database"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, s := play(t, test.answer)
			_, err := c.Connector(t.Context(), "platform", "pg")
			if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got class %v: %v\nwant %s", fault.Of(err), err, test.want)
			}
			if strings.Contains(err.Error(), marker) {
				t.Errorf("shows the password: %v", err)
			}
			s.count(t, "GET") // a refusal is not repeated
		})
	}
	c, s := play(t, notFound)
	if _, err := c.Connector(t.Context(), "platform", "../../x"); !fault.Is(err, fault.Refused) {
		t.Errorf("got %v", err)
	}
	s.count(t)
}

func TestRefusedWrites(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer answer
		want   string
	}{
		"no rule": {
			status(403, metav1.StatusReasonForbidden, `User "x" cannot create resource "secrets"`),
			`an RBAC rule is missing, verb "create" on resource "secrets" in namespace "team-a"`,
		},
		"quota": {status(403, metav1.StatusReasonForbidden, "exceeded quota: secrets"), "the API server refuses it: exceeded quota"},
		"ending": {
			status(403, metav1.StatusReasonForbidden, "being terminated", metav1.StatusCause{Type: corev1.NamespaceTerminatingCause}),
			`the namespace "team-a" is being deleted`,
		},
		"not valid": {
			status(422, metav1.StatusReasonInvalid, "data: "+marker, metav1.StatusCause{Field: "data", Type: "FieldValueTooLong", Message: marker}),
			"the API server answers 422 Invalid [data: FieldValueTooLong]",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, s := play(t, notFound, test.answer)
			r := newRecord()
			_, err := c.Records("team-a", "rec", dsn).Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) { return r, nil })
			if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "secret team-a/rec") {
				t.Errorf("got class %v: %v\nwant %s", fault.Of(err), err, test.want)
			}
			if strings.Contains(err.Error(), marker) || strings.Contains(err.Error(), r.Slots[tenant.A].Password.Reveal()) {
				t.Errorf("shows a password: %v", err)
			}
			s.count(t, "GET", "POST")
		})
	}
}

// TestLongWords: a server that refuses may say very much; an operator wants the beginning of it, and all of our own message.
func TestLongWords(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("policy says no\n", 1<<16)
	for name, answer := range map[string]answer{
		"forbidden":   status(403, metav1.StatusReasonForbidden, long),
		"no rule":     status(403, metav1.StatusReasonForbidden, "cannot get "+long),
		"unavailable": status(503, metav1.StatusReasonServiceUnavailable, long),
		"invalid":     status(422, metav1.StatusReasonInvalid, long, metav1.StatusCause{Field: long}),
		"a web page": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			_, _ = io.WriteString(w, long)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := play(t, answer)
			_, err := c.NamespaceUID(within(t, 300*time.Millisecond), "team-a")
			if err == nil || len(err.Error()) > 1000 || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "reading the namespace team-a: ") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestForeignAnswers: something answers, and well, but it is no API server, or one from another world.
func TestForeignAnswers(t *testing.T) {
	t.Parallel()
	text := func(contentType, body string) answer {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			_, _ = io.WriteString(w, body)
		}
	}
	for name, answer := range map[string]answer{
		"a web page":          text("text/html", "<html>"+marker),
		"a web page as JSON":  text("application/json", "<html>"+marker),
		"text":                text("text/plain", marker),
		"JSON":                text("application/json", `{"ok":"`+marker+`"}`),
		"no content":          text("application/json", ""),
		"no content, no type": text("", ""),
		"an unknown kind":     text("application/json", `{"kind":"Pod","apiVersion":"v1"}`),
		"another group":       text("application/json", `{"kind":"Secret","apiVersion":"example.com/v1"}`),
		"another kind":        object(&corev1.Event{TypeMeta: metav1.TypeMeta{Kind: "Event", APIVersion: "v1"}}),
		"a status":            object(&metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := play(t, answer)
			r := newRecord()
			update := func(*tenant.Record) (*tenant.Record, error) { return r, nil }
			_, ofConnector := c.Connector(t.Context(), "platform", "pg")
			_, ofNamespace := c.NamespaceUID(t.Context(), "team-a")
			_, ofRecord := c.Records("team-a", "rec", nil).Load(t.Context())
			w, _ := play(t, notFound, answer)
			_, ofWriting := w.Records("team-a", "rec", nil).Update(t.Context(), update)
			for doing, err := range map[string]error{
				"reading the connector":       ofConnector,
				"reading the namespace":       ofNamespace,
				"reading the tenant's record": ofRecord,
				"writing the tenant's record": ofWriting,
			} {
				if !fault.Is(err, fault.Refused) || !strings.HasPrefix(err.Error(), doing) || !strings.Contains(err.Error(), ": what answers is not an API server") {
					t.Errorf("class %v: %v", fault.Of(err), err)
				} else if strings.Contains(err.Error(), marker) || strings.Contains(err.Error(), ".go") {
					t.Errorf("says too much: %v", err)
				}
			}
		})
	}
}

// TestBrokenAnswer: an answer that breaks off is asked for again.
func TestBrokenAnswer(t *testing.T) {
	t.Parallel()
	c, s := play(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, `{"kind":`)
	}, notFound)
	if r, err := c.Records("team-a", "rec", nil).Load(t.Context()); r != nil || err != nil {
		t.Errorf("got %v, %v", r, err)
	}
	s.count(t, "GET", "GET")
}

func TestIdentityOfTheServer(t *testing.T) {
	t.Parallel()
	quiet := log.New(io.Discard, "", 0)
	strangers := httptest.NewTLSServer(nil)
	strangers.Config.ErrorLog = quiet
	t.Cleanup(strangers.Close)
	plain := httptest.NewServer(nil)
	plain.Config.ErrorLog = quiet
	t.Cleanup(plain.Close)
	for name, test := range map[string]struct{ host, want string }{
		"certificate of an unknown CA": {strangers.URL, "identity cannot be verified"},
		"no TLS":                       {strings.Replace(plain.URL, "http://", "https://", 1), "what answers is not an API server"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := newClient(&rest.Config{Host: test.host}, "x")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.NamespaceUID(within(t, 5*time.Second), "team-a"); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got class %v: %v", fault.Of(err), err)
			}
		})
	}
}

// TestRequests counts what a store costs: the restart path may read once.
func TestRequests(t *testing.T) {
	t.Parallel()
	r := newRecord()
	same := func(old *tenant.Record) (*tenant.Record, error) { return old, nil }
	next := func(old *tenant.Record) (*tenant.Record, error) { old.Generation++; return old, nil }

	c, s := play(t, object(stored(t, r, "7")))
	store := c.Records("team-a", "rec", dsn)
	if _, err := store.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.count(t, "GET")
	if _, err := store.Update(t.Context(), next); err != nil { // no read first: Load saw it
		t.Fatal(err)
	}
	s.count(t, "GET", "PUT")
	if _, err := store.Update(t.Context(), same); err != nil { // only the server can say that nothing is to be done
		t.Fatal(err)
	}
	s.count(t, "GET", "PUT", "GET")

	c, s = play(t, notFound, object(stored(t, r, "1")))
	store = c.Records("team-a", "rec", dsn)
	if got, err := store.Load(t.Context()); got != nil || err != nil {
		t.Fatalf("got %v, %v", got, err)
	}
	if _, err := store.Update(t.Context(), func(old *tenant.Record) (*tenant.Record, error) {
		if old != nil {
			t.Error("there is no record yet")
		}
		return r, nil
	}); err != nil {
		t.Fatal(err)
	}
	s.count(t, "GET", "POST")
}

// TestStaleGuess: the record that the store saw last may be old, and neither an error nor a "nothing to do" may rest on it.
func TestStaleGuess(t *testing.T) {
	t.Parallel()
	old, current := newRecord(), newRecord()
	current.Generation = 5
	c, s := play(t, object(stored(t, old, "1")), object(stored(t, current, "2")))
	store := c.Records("team-a", "rec", nil)
	if _, err := store.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := store.Update(t.Context(), func(r *tenant.Record) (*tenant.Record, error) {
		if r.Generation == 1 {
			return nil, fmt.Errorf("too old")
		}
		return r, nil
	})
	if err != nil || got.Generation != 5 {
		t.Errorf("got %v, %v", got, err)
	}
	s.count(t, "GET", "GET")
}

// TestWrittenButNotAnswered: the connection breaks after the server has stored what we sent. The repeated write conflicts
// with our own, and the change must be neither lost nor made twice.
func TestWrittenButNotAnswered(t *testing.T) {
	t.Parallel()
	first := newRecord()
	second := first.Clone()
	second.Generation = 2
	conflict := status(409, metav1.StatusReasonConflict, "the object has been modified")
	c, s := play(t, object(stored(t, first, "1")), hangUp, conflict, object(stored(t, second, "2")))
	asked := 0
	got, err := c.Records("team-a", "rec", dsn).Update(t.Context(), func(r *tenant.Record) (*tenant.Record, error) {
		asked++
		r.Generation++
		return r, nil
	})
	if err != nil || got.Generation != 2 || asked != 1 {
		t.Errorf("got %v, %v, asked %d times", got, err, asked)
	}
	s.count(t, "GET", "PUT", "PUT", "GET")
}

func TestConflictsWithoutEnd(t *testing.T) {
	t.Parallel()
	r := newRecord()
	read := object(stored(t, r, "1"))
	c, s := play(t, func(w http.ResponseWriter, q *http.Request) {
		if q.Method == http.MethodGet {
			read(w, q)
			return
		}
		status(409, metav1.StatusReasonConflict, "the object has been modified")(w, q)
	})
	_, err := c.Records("team-a", "rec", nil).Update(within(t, 3*time.Second), func(r *tenant.Record) (*tenant.Record, error) {
		r.Generation++
		return r, nil
	})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "others keep writing it") && !strings.Contains(err.Error(), "deadline") {
		t.Errorf("got class %v: %v", fault.Of(err), err)
	}
	if n := len(s.requests); n < 4 || n > 60 {
		t.Errorf("%d requests in three seconds: want some, with a growing pause between them", n)
	}
}

func TestEvent(t *testing.T) {
	t.Parallel()
	var got corev1.Event
	c, s := play(t, func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewDecoder(r.Body).Decode(&got)
		object(got)(w, r)
	}, status(503, metav1.StatusReasonServiceUnavailable, "starting"))
	pod := Pod{Namespace: "team-a", Name: strings.Repeat("p", 253), UID: "u-1"}
	if err := c.Event(t.Context(), pod, Warning, "Refused", strings.Repeat("ü", 1000)); err != nil {
		t.Fatal(err)
	}
	if len(got.Name) > 253 || len(got.Message) > 1024 || !utf8.ValidString(got.Message) || !strings.HasSuffix(got.Message, "ü…") {
		t.Errorf("name of %d, message of %d bytes: %q", len(got.Name), len(got.Message), got.Message)
	}
	if got.InvolvedObject.UID != "u-1" || got.InvolvedObject.Kind != "Pod" || got.Source.Component != "dbconnector-init" ||
		got.Type != "Warning" || got.Reason != "Refused" {
		t.Errorf("got %+v", got)
	}
	if err := c.Event(t.Context(), pod, Normal, "Provisioned", "x"); err == nil {
		t.Error("want the error, for a debug line")
	}
	s.count(t, "POST", "POST") // once each: no program waits for an Event
}

func TestKubeconfig(t *testing.T) {
	write := func(content string) string {
		path := filepath.Join(t.TempDir(), "kubeconfig")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for name, test := range map[string]struct{ path, want string }{
		"none and no pod": {"", "KUBECONFIG must be set outside of a pod"},
		"missing":         {"/does/not/exist", `KUBECONFIG="/does/not/exist": the file does not exist or says nothing`},
		"empty":           {write(""), "the file does not exist or says nothing"},
		"not YAML":        {write("a: ["), "reading KUBECONFIG="},
		"no such context": {
			write("apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: [{name: c, cluster: {server: 'https://h'}}]\n"),
			"reading KUBECONFIG=",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", test.path)
			if _, err := New("x"); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got class %v: %v", fault.Of(err), err)
			}
		})
	}
	t.Run("good", func(t *testing.T) {
		t.Setenv(
			"KUBECONFIG",
			write(
				"apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{name: x, context: {cluster: c}}]\n"+
					"clusters: [{name: c, cluster: {server: 'https://h'}}]\n",
			),
		)
		if _, err := New("x"); err != nil {
			t.Error(err)
		}
	})
}

// TestRefusedConnections: an API server is there before any pod, so a refused connection may be that of a mesh whose proxy does not
// run yet; and on the pod's own address that of a proxy in it (F23).
func TestRefusedConnections(t *testing.T) {
	t.Parallel()
	refusal := func(ip net.IP, errno syscall.Errno) error {
		return &url.Error{
			Op:  "Get",
			URL: "https://api",
			Err: &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: ip, Port: 443}, Err: os.NewSyscallError("connect", errno)},
		}
	}
	const mesh, own = "where a mesh redirects this pod's traffic", "the address is this pod itself"
	for _, tc := range []struct {
		err       error
		mesh, own bool
	}{
		{refusal(net.IPv4(10, 96, 0, 1), syscall.ECONNREFUSED), true, false},
		{refusal(net.IPv4(127, 0, 0, 1), syscall.ECONNREFUSED), false, true},
		{refusal(net.IPv6loopback, syscall.ECONNREFUSED), false, true},
		{refusal(net.IPv4(10, 96, 0, 1), syscall.EHOSTUNREACH), false, false},
		{refusal(net.IPv4(127, 0, 0, 1), syscall.ECONNRESET), false, false},
	} {
		got := classify(tc.err, call{doing: "reading"})
		if !fault.Is(got, fault.Unavailable) || strings.Contains(got.Error(), mesh) != tc.mesh || strings.Contains(got.Error(), own) != tc.own {
			t.Errorf("%v: got %v", tc.err, got)
		}
	}
}
