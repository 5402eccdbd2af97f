// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"

	"dbconnector/pkg/vclusterconfig"
	"dbconnector/test/bed"
)

// stores are the stores that the examples of this repository enable.
var stores = map[string]string{"open-source": "embedded", "licensed": "external"}

// TestShippedValues puts the Helm values of this repository through the hand-over: what
// vCluster is started with differs from them in the store, and in nothing else.
func TestShippedValues(t *testing.T) {
	t.Parallel()
	for example, kind := range stores {
		for _, caFile := range []string{"", "/var/run/dbconnector/ca.crt"} {
			t.Run(example+" "+caFile, func(t *testing.T) {
				t.Parallel()
				values, err := ShippedValues(t.Context(), example)
				require.NoError(t, err)
				// A field of a later chart, and one of the operator's own.
				values = append(values, "\nlaterChart:\n  field: [1, 2.50, \"on\", ~] # kept\n"...)
				const dsn = "postgres://vcxa:aB3-_.~x@db.example:5432/vcx?sslmode=verify-full"
				config, err := vclusterconfig.Parse(values)
				require.NoError(t, err)
				edited, err := config.Edit(dsn, caFile)
				require.NoError(t, err)

				store, err := ReadConfig(edited)
				require.NoError(t, err)
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
				want, ok := was[kind].(map[string]any)
				if !ok {
					t.Fatalf("the values have no store %s", kind)
				}
				want["dataSource"] = dsn
				if caFile != "" {
					want["caFile"] = caFile
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

// TestWithoutHandOver: a control plane that is started without the hand-over, on the config that the chart makes of the
// shipped values, comes up on no store at all, and kine's last line says why (F1).
func TestWithoutHandOver(t *testing.T) {
	t.Parallel()
	kine, err := bed.Program(t.Context(), "kine")
	require.NoError(t, err)
	ca, err := bed.Authority()
	require.NoError(t, err)
	caFile := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(caFile, ca.PEM, 0o600))
	for example := range stores {
		values, err := ShippedValues(t.Context(), example)
		require.NoError(t, err)
		store, err := ReadConfig(values)
		require.NoError(t, err)
		if store.DataSource != vclusterconfig.Placeholder {
			t.Errorf("%s: without the hand-over vCluster starts on %q", example, store.DataSource)
		}
		for name, with := range map[string]struct{ args, env []string }{
			"": {}, " with a CA": {args: []string{"--ca-file=" + caFile}}, " with an endpoint in the environment": {env: []string{"KINE_ENDPOINT=sqlite://other.db"}},
		} {
			t.Run(example+name, func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				dir := t.TempDir()
				argv := slices.Concat([]string{
					"--endpoint=" + store.DataSource, "--listen-address=unix://" + filepath.Join(dir, "kine.sock"), "--metrics-bind-address=0",
				}, with.args, store.ExtraArgs)
				cmd := exec.CommandContext(ctx, kine, argv...)
				cmd.Dir = dir // where it would make its SQLite
				cmd.Env = append(os.Environ(), with.env...)
				out, err := cmd.CombinedOutput()
				var failed *exec.ExitError
				if !errors.As(err, &failed) || ctx.Err() != nil {
					t.Errorf("kine: %v, %v; want that it ends with an error", err, ctx.Err())
				}
				if !strings.Contains(string(out), "started without the hand-over of dbconnector") {
					t.Errorf("kine does not say why:\n%s", out)
				}
				if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
					t.Errorf("kine made %v, %v", left, err)
				}
			})
		}
	}
}

// TestStandInKnowsSQLite: the stand-in for a vCluster treats a config as a vCluster does, or no test could see
// that a hand-over was missed (F1).
func TestStandInKnowsSQLite(t *testing.T) {
	t.Parallel()
	const database = "controlPlane: {backingStore: {database: {"
	for config, want := range map[string]string{ // part of an error, or none
		"":                 "",
		"controlPlane: {}": "",
		database + "embedded: {enabled: true}}}}":                                           "",
		database + "embedded: {enabled: true, dataSource: ''}}}}":                           "",
		database + "embedded: {enabled: false}}}}":                                          "",
		database + "external: {enabled: true}}}}":                                           "the external store has no dataSource",
		database + "external: {enabled: true, connector: c, dataSource: d}}}}":              "it still names a connector",
		database + "embedded: {enabled: true}, external: {enabled: true, dataSource: d}}}}": "two database stores",
	} {
		store, err := ReadConfig([]byte(config))
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: got %+v, %v; want %q", config, store, err, want)
			}
			continue
		}
		if err != nil || store.DataSource != "" {
			t.Errorf("%q: got %+v, %v; want SQLite", config, store, err)
		}
	}

	kine, err := Store{}.StartKine(t.Context())
	require.NoError(t, err)
	defer func() { _ = kine.Stop(context.Background()) }()
	client, err := Dial(kine.Endpoint)
	require.NoError(t, err)
	defer func() { _ = client.Close() }()
	if _, err := Put(t.Context(), client, "/registry/mine", "here", 0); err != nil {
		t.Error(err)
	}
}

// TestPoolIsNoTrap: many more clients may write at once than kine's pool has connections. There are versions of kine that
// stand still then on PostgreSQL, for good (docs/install.md), but not those of vCluster, which this one is like (F20).
func TestPoolIsNoTrap(t *testing.T) {
	t.Parallel()
	const pool, writers, each = 2, 16, 5
	s := settings[0]
	_, tenant := s.newTenant(t)
	kine := startKine(t, s, tenant, "--datastore-max-open-connections="+strconv.Itoa(pool)) // the last one counts
	client, err := Dial(kine.Endpoint)
	require.NoError(t, err)
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for writer := range writers {
		group.Go(func() error {
			for i := range each {
				if _, err := Put(ctx, client, fmt.Sprintf("/registry/pool/%d/%d", writer, i), "value", 0); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	if got, err := List(t.Context(), client, "/registry/pool/"); err != nil || len(got) != writers*each {
		t.Errorf("%d objects were written, %v; want %d", len(got), err, writers*each)
	}
}

func decode(t *testing.T, config []byte) map[string]any {
	t.Helper()
	var content map[string]any
	require.NoError(t, yaml.Unmarshal(config, &content))
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

// comments lists the comments of a config.
func comments(config []byte) []string {
	var list []string
	for line := range strings.Lines(string(config)) {
		if _, comment, ok := strings.Cut(line, "#"); ok {
			list = append(list, strings.TrimSpace(comment))
		}
	}
	return list
}
