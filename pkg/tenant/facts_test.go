// SPDX-License-Identifier: Apache-2.0

package tenant

import (
	"bytes"
	"strings"
	"testing"
)

func TestFacts(t *testing.T) {
	t.Parallel()
	const uid = "8f1a6a2e-0000-4000-8000-000000000000"
	for name, test := range map[string]struct {
		stored map[string]string
		want   Facts
	}{
		"none": {nil, Facts{}},
		"all": {
			map[string]string{MakeFact: "2", NamespaceUIDFact: uid, ApplyFact: "2026-01-02"},
			Facts{Make: 2, NamespaceUID: uid, Apply: "2026-01-02"},
		},
		"of a later make":   {map[string]string{MakeFact: "7"}, Facts{Make: 7}},
		"no number":         {map[string]string{MakeFact: "two"}, Facts{}},
		"negative":          {map[string]string{MakeFact: "-1"}, Facts{}},
		"beyond all makes":  {map[string]string{MakeFact: "99999999999999999999"}, Facts{}},
		"no UID":            {map[string]string{NamespaceUIDFact: "a b\n"}, Facts{}},
		"endless UID":       {map[string]string{NamespaceUIDFact: strings.Repeat("a", 200)}, Facts{}},
		"request, no value": {map[string]string{ApplyFact: ""}, Facts{Apply: "true"}},
		"endless request":   {map[string]string{ApplyFact: strings.Repeat("a", 2000)}, Facts{Apply: strings.Repeat("a", maxApply)}},
	} {
		if got := DecodeFacts(test.stored); got != test.want {
			t.Errorf("%s: got %+v, want %+v", name, got, test.want)
		}
	}
	got := DecodeFacts((Facts{Make: Make, NamespaceUID: uid, Apply: "now", Unclaimed: true}).Encode())
	if got != (Facts{Make: Make, NamespaceUID: uid, Apply: "now"}) {
		t.Errorf("read back: %+v", got)
	}
}

// TestFactsAreNoPartOfTheRecord: a program of an earlier release refuses a field that it does not know.
func TestFactsAreNoPartOfTheRecord(t *testing.T) {
	t.Parallel()
	r := record()
	plain := encode(t, r)
	r.Facts = Facts{Make: Make, NamespaceUID: "u", Apply: "now", Unclaimed: true}
	if data := encode(t, r); !bytes.Equal(data, plain) {
		t.Errorf("the record became %s", data)
	}
	if r.Clone().Facts != r.Facts {
		t.Error("a copy lost the facts")
	}
}

// FuzzDecodeFacts: whatever stands beside a record is read, is bounded, and reads the same when it was written again.
func FuzzDecodeFacts(f *testing.F) {
	f.Add("2", "8f1a6a2e-0000-4000-8000-000000000000", "now")
	f.Add("-1", "\x00", "")
	f.Fuzz(func(t *testing.T, made, namespace, apply string) {
		got := DecodeFacts(map[string]string{MakeFact: made, NamespaceUIDFact: namespace, ApplyFact: apply})
		if got.Make < 0 || len(got.NamespaceUID) > 128 || len(got.Apply) > maxApply || got.Apply == "" || got.Unclaimed {
			t.Fatalf("read as %+v", got)
		}
		if again := DecodeFacts(got.Encode()); again != got {
			t.Fatalf("%+v became %+v", got, again)
		}
	})
}
