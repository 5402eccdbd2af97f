// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// The facts in the annotations of the record's Secret, and what they say of whose record it is (F2).

const (
	homeUID = "11111111-0000-4000-8000-000000000000"
	ownUID  = "22222222-0000-4000-8000-000000000000"
)

// TestWhoseRecord goes through what can stand beside a record, and counts the requests (F2).
func TestWhoseRecord(t *testing.T) {
	t.Parallel()
	home := object(metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{Kind: "Namespace", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "team-a", UID: homeUID},
	})
	forbidden := status(403, metav1.StatusReasonForbidden, `namespaces "team-a" is forbidden: User "x" cannot get resource "namespaces"`)
	for name, test := range map[string]struct {
		reason    string
		uid       string // the record's; "" for the one that is derived here
		facts     map[string]string
		tenantUID string
		namespace func(http.ResponseWriter, *http.Request) // nil: is not asked for

		want      string // part of the refusal; "" for none
		unclaimed bool
	}{
		"ordinary":                    {reason: "one read says all", facts: map[string]string{"namespace-uid": homeUID, "secret-uid": ownUID}},
		"restored in place":           {reason: "the Secret is another object", facts: map[string]string{"namespace-uid": homeUID, "secret-uid": "gone"}, namespace: home, unclaimed: true},
		"never written since created": {reason: "a first start that was cut short", facts: map[string]string{"namespace-uid": homeUID}, namespace: home, unclaimed: true},
		"copied":                      {reason: "the same names in another cluster", facts: map[string]string{"namespace-uid": "other", "secret-uid": "gone"}, namespace: home, want: "dbconnector/namespace-uid=" + homeUID},
		"copied, with the variable":   {reason: "the values were copied as well", uid: "mine", tenantUID: "mine", facts: map[string]string{"namespace-uid": "other", "secret-uid": "gone"}, namespace: home, want: "dbconnector/namespace-uid=" + homeUID},
		"copied, cannot be told":      {reason: "the right to read the namespace is missing", facts: map[string]string{"namespace-uid": homeUID, "secret-uid": "gone"}, namespace: forbidden, want: `verb "get" on resource "namespaces" named "team-a"`},
		"taken over":                  {reason: "by the annotation that the refusal names", uid: "of another namespace", facts: map[string]string{"namespace-uid": homeUID, "secret-uid": "gone"}, namespace: home, unclaimed: true},
		"of an earlier release":       {reason: "its UID says whose it is", namespace: home, unclaimed: true},
		"of an earlier release, moved here": {
			reason: "the operator says whose it is", uid: "mine", tenantUID: "mine", namespace: home, unclaimed: true,
		},
		"of an earlier release, copied": {reason: "its UID is another namespace's", uid: "other/blue", namespace: home, want: "DBCONNECTOR_TENANT_UID=other/blue"},
		"of an earlier release, cannot be told": {
			reason: "a right that it did not need must not keep a control plane down", namespace: forbidden, unclaimed: true,
		},
		"damaged annotation": {reason: "counts as none", facts: map[string]string{"namespace-uid": "a b", "secret-uid": "", "make": "x"}, namespace: home, unclaimed: true},
		"of another name":    {reason: "its reader refuses it, in words of its own", uid: "u", tenantUID: "v", facts: map[string]string{"namespace-uid": "other"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			uid := test.uid
			if uid == "" {
				uid = tenant.UID(homeUID, "blue")
			}
			r := tenant.NewRecord(uid, "team-a", "blue", dbserver.Server{Engine: dbserver.Postgres, Host: "db", Port: 5432, SSLMode: dbserver.Require}, 80)
			secret := stored(t, r, "7")
			secret.UID = types.UID(ownUID)
			secret.Annotations = map[string]string{"note": "of somebody else"}
			for key, value := range test.facts {
				secret.Annotations["dbconnector/"+key] = value
			}
			var requests []string
			answer := func(w http.ResponseWriter, q *http.Request) {
				requests = append(requests, q.Method+" "+q.URL.Path)
				switch {
				case q.URL.Path != "/api/v1/namespaces/team-a":
					object(secret)(w, q)
				case test.namespace == nil:
					forbidden(w, q)
				default:
					test.namespace(w, q)
				}
			}
			c, _ := play(t, answer)
			var warned []string
			store := c.Records("team-a", "rec", nil).Own("blue", test.tenantUID, func(w string) { warned = append(warned, w) })

			got, err := store.Load(t.Context())

			if test.want != "" {
				if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%s: got %v, class %v: %v; want %q", test.reason, got, fault.Of(err), err, test.want)
				}
				_, err := store.Update(t.Context(), func(old *tenant.Record) (*tenant.Record, error) { old.Generation++; return old, nil })
				if !fault.Is(err, fault.Refused) {
					t.Errorf("it was written: %v", err)
				}
				return
			}
			if err != nil || got.Unclaimed != test.unclaimed {
				t.Fatalf("%s: got %+v, %v", test.reason, got, err)
			}
			want := []string{"GET /api/v1/namespaces/team-a/secrets/rec"}
			if test.namespace != nil {
				want = append(want, "GET /api/v1/namespaces/team-a")
			}
			if !slices.Equal(requests, want) {
				t.Errorf("requests %q, want %q", requests, want)
			}
			if strings.Contains(name, "cannot be told") != (len(warned) == 1) {
				t.Errorf("warned %q", warned)
			}
		})
	}
}

// testCopies is the same on an API server: a record is restored in place, outlives its namespace, is copied, and taken over.
// A copy of what was taken over is refused again.
func testCopies(t *testing.T, c cluster) {
	make := func(name string) (uid string) {
		var made struct{ Metadata struct{ UID string } }
		c.do(t, http.MethodPost, "/api/v1/namespaces", map[string]any{"metadata": map[string]any{"name": name}}, &made)
		return made.Metadata.UID
	}
	uid := make("copies")
	path := "/api/v1/namespaces/copies/secrets/rec"
	store := func() *Records { // each a program of its own
		return c.admin(t).Records("copies", "rec", dsn).Own("blue", "", func(w string) { t.Errorf("warned: %s", w) })
	}
	update := func(s *Records, change func(*tenant.Record)) error {
		_, err := s.Update(t.Context(), func(old *tenant.Record) (*tenant.Record, error) {
			if old == nil {
				old = tenant.NewRecord(tenant.UID(uid, "blue"), "copies", "blue", dbserver.Server{Engine: dbserver.Postgres, Host: "db", Port: 5432, SSLMode: dbserver.Require}, 80)
			}
			change(old)
			return old, nil
		})
		return err
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fact := func(name string) string { return c.secret(t, "copies", "rec").Annotations["dbconnector/"+name] }
	replace := func(secret corev1.Secret) {
		t.Helper()
		c.do(t, http.MethodDelete, path, nil, nil)
		secret.ResourceVersion, secret.UID = "", ""
		c.do(t, http.MethodPost, "/api/v1/namespaces/copies/secrets", secret, nil)
	}
	claimed := func(what string) {
		t.Helper()
		secret := c.secret(t, "copies", "rec")
		if secret.Annotations["dbconnector/namespace-uid"] == "" || secret.Annotations["dbconnector/secret-uid"] != string(secret.UID) {
			t.Errorf("%s: the annotations are %v, the Secret's UID %s", what, secret.Annotations, secret.UID)
		}
	}

	writer := store()
	must(update(writer, func(*tenant.Record) {}))
	if fact("namespace-uid") != uid || fact("secret-uid") != "" || fact("make") != "" {
		t.Errorf("a new record carries %v", c.secret(t, "copies", "rec").Annotations)
	}
	must(update(writer, func(r *tenant.Record) { r.Make = tenant.Make })) // nothing else changes
	claimed("second write")
	if fact("make") != strconv.Itoa(tenant.Make) {
		t.Errorf("make is %q", fact("make"))
	}
	before := c.secret(t, "copies", "rec").ResourceVersion
	must(update(store(), func(*tenant.Record) {}))
	if c.secret(t, "copies", "rec").ResourceVersion != before {
		t.Error("what stays the same was written")
	}

	replace(c.secret(t, "copies", "rec"))
	r, err := store().Load(t.Context())
	if err != nil || !r.Unclaimed || r.Make != tenant.Make {
		t.Fatalf("restored in place: %+v, %v", r, err)
	}
	must(update(store(), func(r *tenant.Record) { r.Unclaimed = false }))
	claimed("restored in place")

	c.do(t, http.MethodPatch, path, map[string]any{"metadata": map[string]any{"annotations": map[string]any{"dbconnector/apply-connector": "", "dbconnector/later": "kept", "note": "kept"}}}, nil)
	r, err = store().Load(t.Context())
	if err != nil || r.Apply == "" {
		t.Fatalf("the request is not seen: %+v, %v", r, err)
	}
	must(update(store(), func(r *tenant.Record) { r.Apply = "" }))
	if a := c.secret(t, "copies", "rec").Annotations; a["dbconnector/later"] != "kept" || a["note"] != "kept" || a["dbconnector/make"] != strconv.Itoa(tenant.Make) {
		t.Errorf("annotations of others are gone: %v", a)
	} else if _, there := a["dbconnector/apply-connector"]; there {
		t.Error("the request is still there")
	}

	copied := c.secret(t, "copies", "rec")
	for _, facts := range []bool{true, false} { // false: of an earlier release
		secret := *copied.DeepCopy()
		secret.Annotations["dbconnector/namespace-uid"] = "99999999-0000-4000-8000-000000000000"
		if !facts {
			secret.Annotations = nil
			foreign := tenant.NewRecord("99999999-0000-4000-8000-000000000000/blue", "copies", "blue", dbserver.Server{Engine: dbserver.Postgres, Host: "db", Port: 5432, SSLMode: dbserver.Require}, 80)
			secret.Data[recordKey], err = foreign.Encode()
			must(err)
		}
		replace(secret)
		for who, try := range map[string]func() error{
			"reading": func() error { _, err := store().Load(t.Context()); return err },
			"writing": func() error { return update(store(), func(r *tenant.Record) { r.Generation++ }) },
			"following": func() error {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				return (<-store().Follow(ctx)).Err
			},
		} {
			if err := try(); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), "kubectl --namespace copies annotate --overwrite secret rec dbconnector/namespace-uid="+uid) {
				t.Errorf("%s a copy: class %v: %v", who, fault.Of(err), err)
			}
		}
		// Who follows it learns of the taking over.
		news := store().Follow(within(t, 2*time.Minute))
		if n := <-news; n.Err == nil {
			t.Errorf("following a copy: %+v", n)
		}
		c.do(t, http.MethodPatch, path, map[string]any{"metadata": map[string]any{"annotations": map[string]any{"dbconnector/namespace-uid": uid}}}, nil)
		if n := <-news; n.Err != nil || n.Record == nil {
			t.Errorf("following what was taken over: %+v", n)
		}
		must(update(store(), func(r *tenant.Record) { r.Unclaimed = false }))
		claimed("taken over")
	}
}
