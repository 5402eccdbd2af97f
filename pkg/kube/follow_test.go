// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// TestFollowFaults: answers that a real API server does not give on demand.
func TestFollowFaults(t *testing.T) {
	t.Parallel()
	long := patience{watch: time.Hour, silence: time.Hour, start: time.Minute, outage: time.Minute, longOutage: time.Hour}
	send := func(w http.ResponseWriter, kind string, object any) {
		data, _ := json.Marshal(object)
		fmt.Fprintf(w, `{"type":%q,"object":%s}`+"\n", kind, data)
		_ = http.NewResponseController(w).Flush()
	}
	begin := func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
	}
	bookmark := corev1.Secret{TypeMeta: metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{ResourceVersion: "7"}}
	for name, test := range map[string]struct {
		patience func(*patience)
		list     func(n int64, w http.ResponseWriter) bool // false: as usual
		watch    func(n int64, w http.ResponseWriter, r *http.Request)
		want     []string // what is sent until the second watch is well
	}{
		"gone before the first word": {
			func(p *patience) { p.outage = 300 * time.Millisecond },
			func(n int64, _ http.ResponseWriter) bool {
				if n < 4 {
					panic(http.ErrAbortHandler)
				}
				return false
			},
			func(n int64, w http.ResponseWriter, r *http.Request) { begin(w) },
			[]string{"reading the tenant's record, secret team-a/rec: ", "record", "record"},
		},
		"gone in between": {
			func(p *patience) { p.outage = 300 * time.Millisecond },
			func(n int64, _ http.ResponseWriter) bool {
				if n > 1 && n < 6 {
					panic(http.ErrAbortHandler)
				}
				return false
			},
			func(n int64, w http.ResponseWriter, r *http.Request) { begin(w) },
			[]string{"record", "reading the tenant's record, secret team-a/rec: ", "record"},
		},
		"a watch that never begins": {
			func(p *patience) { p.start = time.Second }, nil,
			func(n int64, w http.ResponseWriter, r *http.Request) {
				if n == 1 {
					hang(w, r)
				}
				begin(w)
			},
			[]string{"record", "watching the tenant's record, secret team-a/rec: no answer", "record"},
		},
		"a watch that falls silent": {
			func(p *patience) { p.silence = 100 * time.Millisecond }, nil,
			func(n int64, w http.ResponseWriter, r *http.Request) {
				begin(w)
				send(w, "BOOKMARK", bookmark)
				if n == 1 {
					hang(w, r)
				}
			},
			[]string{"record", "record"},
		},
		"a watch that never ends": {
			func(p *patience) { p.watch = time.Second }, nil,
			func(n int64, w http.ResponseWriter, r *http.Request) {
				begin(w)
				if n == 1 {
					hang(w, r)
				}
			},
			[]string{"record", "record"},
		},
		"too late to go on from there": {
			nil, nil,
			func(n int64, w http.ResponseWriter, r *http.Request) {
				begin(w)
				send(
					w,
					"ERROR",
					metav1.Status{
						TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
						Status:   metav1.StatusFailure,
						Code:     http.StatusGone,
						Reason:   metav1.StatusReasonExpired,
					},
				)
			},
			[]string{"record", "record"},
		},
		"a server in trouble": {
			nil, nil,
			func(n int64, w http.ResponseWriter, r *http.Request) {
				begin(w)
				if n == 1 {
					send(w, "ERROR", metav1.Status{
						TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
						Status:   metav1.StatusFailure,
						Code:     http.StatusInternalServerError,
						Reason:   metav1.StatusReasonInternalError,
						Message:  "etcd",
					})
				}
			},
			[]string{"record", "watching the tenant's record, secret team-a/rec: etcd", "record"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var lists, watches atomic.Int64
			secret := *stored(t, newRecord(), "7")
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get("watch") != "" {
					test.watch(watches.Add(1), w, r)
					return
				}
				if n := lists.Add(1); test.list == nil || !test.list(n, w) {
					object(corev1.SecretList{
						TypeMeta: metav1.TypeMeta{Kind: "SecretList", APIVersion: "v1"},
						ListMeta: metav1.ListMeta{ResourceVersion: "7"},
						Items:    []corev1.Secret{secret},
					})(w, r)
				}
			}))
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.Start()
			t.Cleanup(s.Close)
			c, err := newClient(&rest.Config{Host: s.URL}, "dbconnector-rotate")
			if err != nil {
				t.Fatal(err)
			}
			records := c.Records("team-a", "rec", nil)
			records.patience = long
			if test.patience != nil {
				test.patience(&records.patience)
			}
			ctx, stop := context.WithCancel(within(t, time.Minute))
			defer stop()
			news := records.Follow(ctx)
			matches := func(n tenant.News, want string) bool {
				if want == "record" {
					return n.Err == nil && n.Record != nil
				}
				return fault.Is(n.Err, fault.Unavailable) && strings.HasPrefix(n.Err.Error(), want)
			}
			for i, want := range test.want {
				n, ok := <-news
				for ok && i > 0 && !matches(n, want) && matches(n, test.want[i-1]) { // on a slow machine an outage may be told of twice
					n, ok = <-news
				}
				if !ok || !matches(n, want) {
					t.Fatalf("got %+v (the end of time: %t), want %q", n, !ok, want)
				}
			}
		})
	}
}
