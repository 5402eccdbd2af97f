// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// The facts in the annotations of the record's Secret, and which tenant they give the record to (F2).

const (
	homeUID = "11111111-0000-4000-8000-000000000000"
	ownUID  = "22222222-0000-4000-8000-000000000000"
)

// TestWhoseRecord goes through the facts that can stand beside a record, and counts the requests (F2).
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
		"ordinary": {reason: "one read says all", facts: map[string]string{"namespace-uid": homeUID, "secret-uid": ownUID}},
		"restored in place": {
			reason:    "the Secret is another object",
			facts:     map[string]string{"namespace-uid": homeUID, "secret-uid": "gone"},
			namespace: home,
			unclaimed: true,
		},
		"never written since created": {
			reason:    "a first start that was cut short",
			facts:     map[string]string{"namespace-uid": homeUID},
			namespace: home,
			unclaimed: true,
		},
		"copied": {
			reason:    "the same names in another cluster",
			facts:     map[string]string{"namespace-uid": "other", "secret-uid": "gone"},
			namespace: home,
			want:      "dbconnector/namespace-uid=" + homeUID,
		},
		"copied, with the variable": {
			reason:    "the values were copied as well",
			uid:       "mine",
			tenantUID: "mine",
			facts:     map[string]string{"namespace-uid": "other", "secret-uid": "gone"},
			namespace: home,
			want:      "dbconnector/namespace-uid=" + homeUID,
		},
		"copied, cannot be told": {
			reason:    "the right to read the namespace is missing",
			facts:     map[string]string{"namespace-uid": homeUID, "secret-uid": "gone"},
			namespace: forbidden,
			want:      `verb "get" on resource "namespaces" named "team-a"`,
		},
		"taken over": {
			reason:    "by the annotation that the refusal names",
			uid:       "of another namespace",
			facts:     map[string]string{"namespace-uid": homeUID, "secret-uid": "gone"},
			namespace: home,
			unclaimed: true,
		},
		"of an earlier release": {reason: "its UID says whose it is", namespace: home, unclaimed: true},
		"of an earlier release, moved here": {
			reason: "the operator says whose it is", uid: "mine", tenantUID: "mine", namespace: home, unclaimed: true,
		},
		"of an earlier release, copied": {reason: "its UID is another namespace's", uid: "other/blue", namespace: home, want: "DBCONNECTOR_TENANT_UID=other/blue"},
		"of an earlier release, cannot be told": {
			reason: "a right that it did not need must not keep a control plane down", namespace: forbidden, unclaimed: true,
		},
		"damaged annotation": {
			reason:    "counts as none",
			facts:     map[string]string{"namespace-uid": "a b", "secret-uid": "", "make": "x"},
			namespace: home,
			unclaimed: true,
		},
		"of another name": {reason: "its reader refuses it, in words of its own", uid: "u", tenantUID: "v", facts: map[string]string{"namespace-uid": "other"}},
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
			secret.Annotations = map[string]string{"note": "of another tool"}
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
