// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"errors"
	"strings"
	"testing"

	"dbconnector/pkg/fault"
)

// TestFirstStart: which control planes without a record may begin with an empty database (F32).
func TestFirstStart(t *testing.T) {
	t.Parallel()
	refused := fault.New(fault.Refused, "no right")
	orphan := func(secret, vcluster string, err error) func(context.Context) (string, string, error) {
		return func(context.Context) (string, string, error) { return secret, vcluster, err }
	}
	certificates := func(secret string, err error) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return secret, err }
	}
	for name, test := range map[string]struct {
		first  FirstStart
		begun  bool
		ran    string
		says   string // of the error
		warned string
	}{
		"nothing speaks against it":         {first: FirstStart{Orphan: orphan("", "", nil), Certificates: certificates("", nil)}},
		"outside of Kubernetes":             {},
		"forbidden":                         {first: FirstStart{AllowNew: NewNever}, says: "DBCONNECTOR_ALLOW_NEW=false forbids"},
		"forbidden, begun":                  {first: FirstStart{AllowNew: NewNever}, begun: true, says: "DBCONNECTOR_ALLOW_NEW=false forbids"},
		"allowed, whatever speaks against":  {first: FirstStart{AllowNew: NewAlways, Pod: "other-0", Certificates: certificates("certs", nil)}},
		"a pod of another name":             {first: FirstStart{Pod: "other-0"}, says: `the pod "other-0" is not one of that name's`},
		"its own pod":                       {first: FirstStart{Pod: "blue-7d4b9c-x2k4q"}},
		"another's ServiceAccount":          {first: FirstStart{ServiceAccount: "vc-other"}, says: `the ServiceAccount "vc-other" is that of another one`},
		"a ServiceAccount of its own name":  {first: FirstStart{ServiceAccount: "vc-blue"}},
		"a ServiceAccount by an operator":   {first: FirstStart{ServiceAccount: "accounts"}},
		"renamed":                           {first: FirstStart{Orphan: orphan("dbconnector-old", "old", nil)}, says: "was the release renamed?"},
		"renamed, but begun":                {first: FirstStart{Orphan: orphan("dbconnector-old", "old", nil)}, begun: true},
		"cannot tell whether renamed":       {first: FirstStart{Orphan: orphan("", "", refused)}, warned: "whether this release was renamed cannot be told"},
		"the API server is away":            {first: FirstStart{Orphan: orphan("", "", errors.New("away"))}, says: "away"},
		"has run before":                    {first: FirstStart{Certificates: certificates("certs", nil)}, ran: "there is secret ns/certs"},
		"cannot tell whether it has run":    {first: FirstStart{Certificates: certificates("", refused)}, warned: "has run before cannot be told"},
		"the API server is away, afterward": {first: FirstStart{Certificates: certificates("", errors.New("away"))}, says: "away"},
	} {
		warned := ""
		test.first.Namespace, test.first.VCluster, test.first.Warn = "ns", "blue", func(w string) { warned += w }
		ran, err := test.first.Check(t.Context(), test.begun)
		if ran != test.ran || (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %q, %v", name, ran, err)
		}
		if (warned == "") != (test.warned == "") || !strings.Contains(warned, test.warned) {
			t.Errorf("%s: warned %q", name, warned)
		}
	}
}
