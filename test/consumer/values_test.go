// SPDX-License-Identifier: Apache-2.0

package consumer

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"dbconnector/pkg/handover"
)

// TestShippedValues puts the Helm values of this repository through the hand-over: what
// vCluster is started with differs from them in the store, and in nothing else.
func TestShippedValues(t *testing.T) {
	t.Parallel()
	for example, tc := range map[string]struct {
		store   string
		removed []string
	}{
		"open-source": {"embedded", nil},
		"licensed":    {"external", []string{"connector"}},
	} {
		for _, caFile := range []string{"", "/var/run/dbconnector/ca.crt"} {
			t.Run(example+" "+caFile, func(t *testing.T) {
				t.Parallel()
				values, err := ShippedValues(t.Context(), example)
				if err != nil {
					t.Fatal(err)
				}
				// A field of a later chart, and one of somebody's own.
				values = append(values, "\nlaterChart:\n  field: [1, 2.50, \"on\", ~] # kept\n"...)
				const dsn = "postgres://vcxa:aB3-_.~x@db.example:5432/vcx?sslmode=verify-full"
				config, err := handover.ParseConfig(values)
				if err != nil {
					t.Fatal(err)
				}
				edited, err := config.Edit(dsn, caFile)
				if err != nil {
					t.Fatal(err)
				}

				store, err := ReadConfig(edited)
				if err != nil {
					t.Fatal(err)
				}
				if store.DataSource != dsn || store.CAFile != caFile || !store.Enabled {
					t.Errorf("vCluster reads %+v", store)
				}
				if !slices.ContainsFunc(store.ExtraArgs, func(arg string) bool { return strings.HasPrefix(arg, "--datastore-max-open-connections=") }) {
					t.Errorf("kine's arguments %q lost the limit of its pool", store.ExtraArgs)
				}

				before, after := decode(t, values), decode(t, edited)
				was, is := database(t, before), database(t, after)
				if len(is) != len(was) {
					t.Errorf("the stores are %v, want %v", slices.Sorted(maps.Keys(is)), slices.Sorted(maps.Keys(was)))
				}
				want, ok := was[tc.store].(map[string]any)
				if !ok {
					t.Fatalf("the values have no store %s", tc.store)
				}
				want["dataSource"] = dsn
				if caFile != "" {
					want["caFile"] = caFile
				}
				for _, key := range tc.removed {
					if want[key] == nil {
						t.Errorf("the values have no %s to begin with", key)
					}
					delete(want, key)
				}
				if !reflect.DeepEqual(after, before) {
					t.Errorf("the config differs in more than the store:\n%s", edited)
				}
				if was, is := comments(values), comments(edited); !slices.Equal(is, was) {
					t.Errorf("comments changed:\n%s", edited)
				}
			})
		}
	}
}

func decode(t *testing.T, config []byte) map[string]any {
	t.Helper()
	var content map[string]any
	if err := yaml.Unmarshal(config, &content); err != nil {
		t.Fatal(err)
	}
	return content
}

func database(t *testing.T, config map[string]any) map[string]any {
	t.Helper()
	at := config
	for _, key := range []string{"controlPlane", "backingStore", "database"} {
		next, ok := at[key].(map[string]any)
		if !ok {
			t.Fatalf("the values have no %s", key)
		}
		at = next
	}
	return at
}

// comments lists what a config says to people.
func comments(config []byte) []string {
	var list []string
	for line := range strings.Lines(string(config)) {
		if _, comment, ok := strings.Cut(line, "#"); ok {
			list = append(list, strings.TrimSpace(comment))
		}
	}
	return list
}
