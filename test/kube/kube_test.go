// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/kube"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// cluster is a real API server. client-go's fake has no optimistic locking, so nothing about a compare-and-swap can be
// learned from it.
type cluster struct{ *bed.APIServer }

func (c cluster) do(t *testing.T, method, path string, in, out any) {
	t.Helper()
	require.NoError(t, c.Do(t.Context(), method, path, in, out))
}

func (c cluster) namespace(t *testing.T, name string) {
	t.Helper()
	c.do(t, http.MethodPost, "/api/v1/namespaces", map[string]any{"metadata": map[string]any{"name": name}}, nil)
}

func (c cluster) secret(t *testing.T, namespace, name string) corev1.Secret {
	t.Helper()
	var secret corev1.Secret
	c.do(t, http.MethodGet, "/api/v1/namespaces/"+namespace+"/secrets/"+name, nil, &secret)
	return secret
}

// client makes a client from a kubeconfig.
func client(t *testing.T, kubeconfig string) *kube.Client {
	t.Helper()
	c, err := kube.Open(kubeconfig, "dbconnector-init")
	require.NoError(t, err)
	return c
}

func (c cluster) admin(t *testing.T) *kube.Client { return client(t, c.Kubeconfig) }

// account makes a ServiceAccount without any right and a client with its token.
func (c cluster) account(t *testing.T, namespace, name string) *kube.Client {
	t.Helper()
	c.do(t, http.MethodPost, "/api/v1/namespaces/"+namespace+"/serviceaccounts", map[string]any{"metadata": map[string]any{"name": name}}, nil)
	token, err := c.Token(t.Context(), namespace, name)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path, c.KubeconfigFor(token), 0o600))
	return client(t, path)
}

// grant gives an account rights by a Role in its namespace.
func (c cluster) grant(t *testing.T, namespace, account string, rules ...rbacv1.PolicyRule) {
	t.Helper()
	base := "/apis/rbac.authorization.k8s.io/v1/namespaces/" + namespace
	meta := map[string]any{"name": account}
	c.do(t, http.MethodPost, base+"/roles", map[string]any{"metadata": meta, "rules": rules}, nil)
	c.do(t, http.MethodPost, base+"/rolebindings", map[string]any{
		"metadata": meta,
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
		"subjects": []any{map[string]any{"kind": "ServiceAccount", "name": account, "namespace": namespace}},
	}, nil)
	// The API server's authorizer learns of it by a watch, as every client does.
	for _, rule := range rules {
		attributes := map[string]any{"namespace": namespace, "group": rule.APIGroups[0], "resource": rule.Resources[0], "verb": rule.Verbs[0]}
		if len(rule.ResourceNames) > 0 {
			attributes["name"] = rule.ResourceNames[0]
		}
		review := map[string]any{"spec": map[string]any{
			"user": "system:serviceaccount:" + namespace + ":" + account, "resourceAttributes": attributes,
		}}
		bed.Eventually(t, time.Minute, func(ctx context.Context) error {
			var answer struct{ Status struct{ Allowed bool } }
			if err := c.Do(ctx, http.MethodPost, "/apis/authorization.k8s.io/v1/subjectaccessreviews", review, &answer); err != nil {
				return err
			}
			if !answer.Status.Allowed {
				return fmt.Errorf("not allowed yet: %v", attributes)
			}
			return nil
		})
	}
}

func increment(r *tenant.Record) (*tenant.Record, error) {
	r.Generation++
	return r, nil
}

func TestOnAnAPIServer(t *testing.T) {
	t.Parallel()
	c := cluster{bed.NewAPIServer(t, bed.APIServerOptions{})}
	// A group, so that the server outlives its parallel members.
	t.Run("group", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, cluster){
			"the form of the Secret":         testSecret,
			"no writer's update is lost":     testUpdates,
			"of many creators one wins":      testCreators,
			"edits of other tools stay":      testForeignEdits,
			"deleted between read and write": testDeleted,
			"a copy is told from the record": testCopies,
			"not a record":                   testNotARecord,
			"the connector":                  testConnector,
			"missing rights are named":       testRights,
			"the least rights are enough":    testLeastRights,
			"a namespace that is ending":     testEnding,
			"events":                         testEvents,
			"following a record":             testFollow,
			"following without the right to": testFollowRights,
			"the workload":                   testWorkload,
			"rights on the workload":         testWorkloadRights,
		} {
			t.Run(name, func(t *testing.T) { t.Parallel(); test(t, c) })
		}
	})
}

func testSecret(t *testing.T, c cluster) {
	c.namespace(t, "looks")
	for engine, want := range map[dbserver.Engine]string{dbserver.Postgres: "postgresql", dbserver.MySQL: "mysql"} {
		r := newRecord()
		r.Server.Engine = engine
		store := c.admin(t).Records("looks", "rec-"+want, dsn)
		if got, err := store.Load(t.Context()); got != nil || err != nil {
			t.Fatalf("no Secret yet: got %v, %v", got, err)
		}
		if _, err := store.Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) { return r, nil }); err != nil {
			t.Fatal(err)
		}
		secret := c.secret(t, "looks", "rec-"+want)
		if string(secret.Type) != "servicebinding.io/"+want || secret.Labels["app.kubernetes.io/managed-by"] != "dbconnector" {
			t.Errorf("type %q, labels %v", secret.Type, secret.Labels)
		}
		for key, value := range map[string]string{
			"type": want, "provider": "dbconnector", "host": "db", "port": "5432", "database": r.Database,
			"username": r.Login(tenant.A).User, "password": r.Slots[tenant.A].Password.Reveal(),
		} {
			if string(secret.Data[key]) != value {
				t.Errorf("key %s: got %q, want %q", key, secret.Data[key], value)
			}
		}
		// The keys for others follow the active slot.
		if _, err := store.Update(t.Context(), func(r *tenant.Record) (*tenant.Record, error) { r.Active = tenant.B; return r, nil }); err != nil {
			t.Fatal(err)
		}
		if got := string(c.secret(t, "looks", "rec-"+want).Data["username"]); got != r.Login(tenant.B).User {
			t.Errorf("username %q after the slots changed", got)
		}
	}
	broken := errors.New("cannot be rendered")
	store := c.admin(t).Records("looks", "never", func(*tenant.Record) (string, error) { return "", broken })
	if _, err := store.Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) { return newRecord(), nil }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// testUpdates is the proof of the compare-and-swap.
func testUpdates(t *testing.T, c cluster) {
	c.namespace(t, "updates")
	const updaters, times = 20, 3
	first := c.admin(t).Records("updates", "rec", dsn)
	if _, err := first.Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) { return newRecord(), nil }); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for range updaters {
		store := c.admin(t).Records("updates", "rec", dsn)
		group.Go(func() {
			for range times {
				if _, err := store.Update(t.Context(), increment); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	got, err := first.Load(t.Context())
	if err != nil || got.Generation != updaters*times+1 {
		t.Errorf("%d updates led to generation %d, %v", updaters*times, got.Generation, err)
	}
}

func testCreators(t *testing.T, c cluster) {
	c.namespace(t, "creators")
	var mu sync.Mutex
	seen := map[dbserver.Password]int{}
	var group sync.WaitGroup
	for range 20 {
		store := c.admin(t).Records("creators", "rec", dsn)
		mine := newRecord() // made before, as Update asks
		group.Go(func() {
			if _, err := store.Load(t.Context()); err != nil {
				t.Error(err)
			}
			got, err := store.Update(t.Context(), func(old *tenant.Record) (*tenant.Record, error) {
				if old != nil {
					return old, nil
				}
				return mine, nil
			})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			seen[got.Slots[tenant.A].Password]++
		})
	}
	group.Wait()
	if len(seen) != 1 {
		t.Errorf("%d creators have won", len(seen))
	}
}

// testForeignEdits: B11, an edit of metadata changes nothing, and the keys of other tools stay.
func testForeignEdits(t *testing.T, c cluster) {
	c.namespace(t, "edits")
	store := c.admin(t).Records("edits", "rec", dsn)
	before, err := store.Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) { return newRecord(), nil })
	require.NoError(t, err)
	path := "/api/v1/namespaces/edits/secrets/rec"
	c.do(t, http.MethodPatch, path, map[string]any{
		"metadata": map[string]any{"labels": map[string]any{"team": "a", "app.kubernetes.io/managed-by": "helm"}, "annotations": map[string]any{"note": "n"}},
		"data":     map[string]any{"extra": base64.StdEncoding.EncodeToString([]byte("e"))},
	}, nil)
	version := c.secret(t, "edits", "rec").ResourceVersion

	got, err := store.Update(t.Context(), func(r *tenant.Record) (*tenant.Record, error) { return r, nil })
	if err != nil || got.Slots[tenant.A] != before.Slots[tenant.A] || got.Generation != before.Generation {
		t.Fatalf("an edit of labels changed the record: %v, %v", got, err)
	}
	if c.secret(t, "edits", "rec").ResourceVersion != version {
		t.Error("an unchanged record was written")
	}
	c.do(t, http.MethodPatch, path, map[string]any{"metadata": map[string]any{"annotations": map[string]any{"note": "m"}}}, nil)
	if got, err = store.Update(t.Context(), increment); err != nil || got.Generation != before.Generation+1 {
		t.Fatalf("got %v, %v", got, err)
	}
	secret := c.secret(t, "edits", "rec")
	if secret.Labels["team"] != "a" || secret.Annotations["note"] != "m" || string(secret.Data["extra"]) != "e" ||
		secret.Labels["app.kubernetes.io/managed-by"] != "dbconnector" {
		t.Errorf("labels %v, annotations %v, extra %q", secret.Labels, secret.Annotations, secret.Data["extra"])
	}
}

// testDeleted: the Secret goes while an update is decided. It must be asked again, about nothing, and not be revived.
func testDeleted(t *testing.T, c cluster) {
	c.namespace(t, "deleted")
	store := c.admin(t).Records("deleted", "rec", dsn)
	if _, err := store.Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) { return newRecord(), nil }); err != nil {
		t.Fatal(err)
	}
	gone := errors.New("gone")
	_, err := store.Update(t.Context(), func(r *tenant.Record) (*tenant.Record, error) {
		if r == nil {
			return nil, gone
		}
		c.do(t, http.MethodDelete, "/api/v1/namespaces/deleted/secrets/rec", nil, nil)
		return increment(r)
	})
	if !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
}

// testNotARecord: B14, what cannot be read must never be taken for nothing.
func testNotARecord(t *testing.T, c cluster) {
	c.namespace(t, "foreign")
	for name, test := range map[string]struct {
		data map[string][]byte
		want string
	}{
		"empty":   {nil, `has no key "record.json"`},
		"foreign": {map[string][]byte{"password": []byte(marker)}, `has no key "record.json"`},
		"nothing": {map[string][]byte{"record.json": {}}, `key "record.json": reading the tenant's record: it is not JSON`},
		"corrupt": {map[string][]byte{"record.json": []byte(`{"version":1,"slots":{"a":{"password":"` + marker)}, `it is not JSON`},
		"later":   {map[string][]byte{"record.json": []byte(`{"version":2}`)}, `format version 2`},
	} {
		c.do(t, http.MethodPost, "/api/v1/namespaces/foreign/secrets", corev1.Secret{ObjectMeta: stored(t, newRecord(), "").ObjectMeta}, nil)
		c.do(t, http.MethodPatch, "/api/v1/namespaces/foreign/secrets/rec", map[string]any{"data": test.data}, nil)
		version := c.secret(t, "foreign", "rec").ResourceVersion
		store := c.admin(t).Records("foreign", "rec", dsn)
		_, loading := store.Load(t.Context())
		_, updating := store.Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) {
			t.Errorf("%s: asked about a record that cannot be read", name)
			return newRecord(), nil
		})
		for _, err := range []error{loading, updating} {
			switch {
			case !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "secret foreign/rec"):
				t.Errorf("%s: got class %v: %v", name, fault.Of(err), err)
			case !strings.Contains(err.Error(), "restore it from a backup"):
				t.Errorf("%s: names no way out: %v", name, err)
			case strings.Contains(err.Error(), marker):
				t.Errorf("%s: shows a value: %v", name, err)
			}
		}
		if c.secret(t, "foreign", "rec").ResourceVersion != version {
			t.Errorf("%s: the Secret was touched", name)
		}
		c.do(t, http.MethodDelete, "/api/v1/namespaces/foreign/secrets/rec", nil, nil)
	}
	// One that cannot be changed, because its owner said so.
	c.do(t, http.MethodPost, "/api/v1/namespaces/foreign/secrets", func() any {
		secret, yes := stored(t, newRecord(), ""), true
		secret.Immutable = &yes
		return secret
	}(), nil)
	_, err := c.admin(t).Records("foreign", "rec", nil).Update(t.Context(), increment)
	if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), "secret foreign/rec") ||
		!strings.Contains(err.Error(), "create it again without immutable: true") {
		t.Errorf("immutable: got class %v: %v", fault.Of(err), err)
	}
}

func testConnector(t *testing.T, c cluster) {
	c.namespace(t, "platform")
	for name, labels := range map[string]map[string]string{"good": {connector.LabelKey: connector.LabelValue}, "bare": nil} {
		c.do(t, http.MethodPost, "/api/v1/namespaces/platform/secrets", map[string]any{
			"metadata": map[string]any{"name": name, "labels": labels}, "stringData": map[string]string{"endpoint": "db", "password": marker},
		}, nil)
	}
	admin := c.admin(t)
	data, err := admin.Connector(t.Context(), "platform", "good")
	if err != nil || string(data["endpoint"]) != "db" || string(data["password"]) != marker {
		t.Errorf("got %v", err)
	}
	for name, want := range map[string]string{"bare": "secret platform/bare: label", "none": "secret platform/none does not exist"} {
		if _, err := admin.Connector(t.Context(), "platform", name); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got class %v: %v", name, fault.Of(err), err)
		}
	}
	var namespace struct{ Metadata struct{ UID string } }
	c.do(t, http.MethodGet, "/api/v1/namespaces/platform", nil, &namespace)
	if uid, err := admin.NamespaceUID(t.Context(), "platform"); err != nil || uid != namespace.Metadata.UID || uid == "" {
		t.Errorf("got %q, %v", uid, err)
	}
	if _, err := admin.NamespaceUID(t.Context(), "nowhere"); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), "DBCONNECTOR_NAMESPACE") {
		t.Errorf("got class %v: %v", fault.Of(err), err)
	}
}

func testRights(t *testing.T, c cluster) {
	c.namespace(t, "rights")
	powerless := c.account(t, "rights", "powerless")
	c.grant(t, "rights", "powerless") // a Role that allows nothing
	reader := c.account(t, "rights", "reads")
	c.grant(t, "rights", "reads", rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"}})

	create := func(*tenant.Record) (*tenant.Record, error) { return newRecord(), nil }
	if _, err := c.admin(t).Records("rights", "there", nil).Update(t.Context(), create); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		run  func(context.Context) error
		want string
	}{
		"connector": {
			func(ctx context.Context) error { _, err := powerless.Connector(ctx, "kube-system", "pg"); return err },
			`verb "get" on resource "secrets" named "pg" in namespace "kube-system" (deploy/kustomize has`,
		},
		"namespace": {
			func(ctx context.Context) error { _, err := powerless.NamespaceUID(ctx, "rights"); return err },
			`verb "get" on resource "namespaces" named "rights" in namespace "rights" (a Role in the namespace itself is enough; or set DBCONNECTOR_TENANT_UID)`,
		},
		"reading the record": {
			func(ctx context.Context) error {
				_, err := powerless.Records("rights", "rec", nil).Load(ctx)
				return err
			},
			`verb "get" on resource "secrets" named "rec" in namespace "rights"`,
		},
		"creating the record": {
			func(ctx context.Context) error {
				_, err := reader.Records("rights", "rec", nil).Update(ctx, create)
				return err
			},
			`verb "create" on resource "secrets" in namespace "rights"`,
		},
		"updating the record": {
			func(ctx context.Context) error {
				_, err := reader.Records("rights", "there", nil).Update(ctx, increment)
				return err
			},
			`verb "update" on resource "secrets" named "there" in namespace "rights"`,
		},
		"event": {
			func(ctx context.Context) error {
				return powerless.Event(ctx, kube.Pod{Namespace: "rights", Name: "p", UID: "u"}, kube.Normal, "Provisioned", "x")
			},
			`verb "create" on resource "events" in namespace "rights"`,
		},
	} {
		if err := test.run(t.Context()); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got class %v: %v\nwant %s", name, fault.Of(err), err, test.want)
		}
	}
	// A token that is none.
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path, c.KubeconfigFor("not-a-token"), 0o600))
	if _, err := client(t, path).NamespaceUID(t.Context(), "rights"); !fault.Is(err, fault.Refused) ||
		!strings.Contains(err.Error(), "does not accept this program's credential") {
		t.Errorf("got class %v: %v", fault.Of(err), err)
	}
}

// testLeastRights: the rights that the refusals ask for are enough: a Namespace can be read by a Role in it, and the
// record needs get and update by name.
func testLeastRights(t *testing.T, c cluster) {
	c.namespace(t, "least")
	account := c.account(t, "least", "vc-blue")
	rule := func(resource, name string, verbs ...string) rbacv1.PolicyRule {
		r := rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{resource}, Verbs: verbs}
		if name != "" {
			r.ResourceNames = []string{name}
		}
		return r
	}
	c.grant(t, "least", "vc-blue", rule("secrets", "rec", "get", "update"), rule("secrets", "", "create"),
		rule("namespaces", "least", "get"), rule("events", "", "patch", "create"))
	if _, err := account.NamespaceUID(t.Context(), "least"); err != nil {
		t.Error(err)
	}
	store := account.Records("least", "rec", dsn)
	if got, err := store.Load(t.Context()); got != nil || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	for _, fn := range []func(*tenant.Record) (*tenant.Record, error){
		func(*tenant.Record) (*tenant.Record, error) { return newRecord(), nil }, increment,
	} {
		if _, err := store.Update(t.Context(), fn); err != nil {
			t.Error(err)
		}
	}
	assert.NoError(t, account.Event(t.Context(), kube.Pod{Namespace: "least", Name: "p", UID: "u"}, kube.Normal, "Provisioned", "x"))
}

func testEnding(t *testing.T, c cluster) {
	c.namespace(t, "ending")
	// No controller finalizes it here: it stays as it is.
	c.do(t, http.MethodDelete, "/api/v1/namespaces/ending", nil, nil)
	_, err := c.admin(t).Records("ending", "rec", nil).Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) { return newRecord(), nil })
	if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), `the namespace "ending" is being deleted`) {
		t.Errorf("got class %v: %v", fault.Of(err), err)
	}
}

// testEvents: a repeated message is one Event with a count, if only its numbers differ; without the right to patch
// each is one of its own (F35).
func testEvents(t *testing.T, c cluster) {
	c.namespace(t, "events")
	rule := rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"events"}}
	for account, verbs := range map[string][]string{"counts": {"patch", "create"}, "creates": {"create"}} {
		teller := c.account(t, "events", account)
		rule.Verbs = verbs
		c.grant(t, "events", account, rule)
		began := time.Now().Truncate(time.Second)
		pod := kube.Pod{Namespace: "events", Name: account + "-0", UID: "11111111-2222-3333-4444-555555555555"}
		for i := range 3 {
			require.NoError(t, teller.Event(t.Context(), pod, kube.Warning, "Waiting", fmt.Sprintf("port 4071%d is closed %s", i, strings.Repeat("ü", 2000))))
		}
		replaced := pod
		replaced.UID = "66666666-2222-3333-4444-555555555555" // a pod of a StatefulSet that was made again
		for pod, message := range map[kube.Pod]string{pod: "the file is open", replaced: "port 40719 is closed " + strings.Repeat("ü", 2000)} {
			require.NoError(t, teller.Event(t.Context(), pod, kube.Warning, "Waiting", message))
		}
		require.NoError(t, teller.Event(t.Context(), pod, kube.Warning, "Failed", "port 40710 is closed "+strings.Repeat("ü", 2000)))
		var list corev1.EventList
		c.do(t, http.MethodGet, "/api/v1/namespaces/events/events?fieldSelector=involvedObject.name="+pod.Name, nil, &list)
		var got []string
		for _, event := range list.Items {
			got = append(got, fmt.Sprintf("%s of %s %dx: %.20s", event.Reason, event.InvolvedObject.UID[:8], event.Count, event.Message))
			if event.Source.Component != "dbconnector-init" || event.FirstTimestamp.Time.Before(began) || event.LastTimestamp.Before(&event.FirstTimestamp) {
				t.Errorf("%s: got %+v", account, event)
			}
		}
		want := []string{"Failed of 11111111 1x: port 40710 is closed", "Waiting of 11111111 1x: the file is open", "Waiting of 66666666 1x: port 40719 is closed"}
		if account == "counts" {
			want = append(want, "Waiting of 11111111 3x: port 40712 is closed") // the words of the last time
		} else {
			for i := range 3 {
				want = append(want, fmt.Sprintf("Waiting of 11111111 1x: port 4071%d is closed", i))
			}
		}
		slices.Sort(got)
		if slices.Sort(want); !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", account, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// testFollow: the record is sent as it is, when it changes, when it goes and when it comes back; a damaged one is an error
// and never no record (B14).
func testFollow(t *testing.T, c cluster) {
	c.namespace(t, "follow")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	news := c.admin(t).Records("follow", "rec", dsn).Follow(ctx)
	writer := c.admin(t).Records("follow", "rec", dsn)
	until := func(what string, is func(tenant.News) bool) {
		t.Helper()
		for {
			n, ok := <-news
			if !ok {
				t.Fatalf("waiting for %s: the end of time", what)
			}
			if is(n) {
				return
			}
		}
	}
	write := func(generation int64) {
		t.Helper()
		if _, err := writer.Update(ctx, func(old *tenant.Record) (*tenant.Record, error) {
			if old == nil {
				old = newRecord()
			}
			old.Generation = generation
			return old, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	path := "/api/v1/namespaces/follow/secrets/rec"

	until("no record", func(n tenant.News) bool { return n.Record == nil && n.Err == nil })
	for generation := int64(1); generation < 4; generation++ {
		write(generation)
		until(fmt.Sprint("generation ", generation), func(n tenant.News) bool { return n.Record != nil && n.Record.Generation == generation })
	}
	require.NoError(t, c.Do(ctx, http.MethodPatch, path, map[string]any{"data": map[string]any{"record.json": "e30="}}, nil))
	until("an error", func(n tenant.News) bool { return n.Err != nil && n.Record == nil })
	require.NoError(t, c.Do(ctx, http.MethodDelete, path, nil, nil))
	until("no record", func(n tenant.News) bool { return n.Record == nil && n.Err == nil })
	write(7)
	until("a new record", func(n tenant.News) bool { return n.Record != nil && n.Record.Generation == 7 })
}

// testFollowRights: a sidecar that may read but not watch gets the record, and each try reports the missing rule once. In between
// the sidecar does not say that all is well, or there would be an Event for every try.
func testFollowRights(t *testing.T, c cluster) {
	c.namespace(t, "follow-rights")
	store := c.admin(t).Records("follow-rights", "rec", dsn)
	if _, err := store.Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) { return newRecord(), nil }); err != nil {
		t.Fatal(err)
	}
	rule := func(verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: verbs}
	}
	reader := c.account(t, "follow-rights", "reads")
	c.grant(t, "follow-rights", "reads", rule("get", "list"))
	news := reader.Records("follow-rights", "rec", nil).Follow(within(t, 5*time.Minute)) // each try waits twice as long
	if n := <-news; n.Err != nil || n.Record.Generation != 1 {
		t.Fatalf("first: got %+v", n)
	}
	for range 2 {
		if n := <-news; !fault.Is(n.Err, fault.Refused) ||
			!strings.Contains(n.Err.Error(), `verb "watch" on resource "secrets" named "rec" in namespace "follow-rights"`) {
			t.Fatalf("got %+v", n)
		}
	}
	// The sidecar reports a change all the same: then it can read the record, if not watch it.
	if _, err := store.Update(t.Context(), increment); err != nil {
		t.Fatal(err)
	}
	for n := range news {
		if n.Record != nil {
			if n.Record.Generation != 2 {
				t.Errorf("got %+v", n)
			}
			break
		}
	}
	c.do(t, http.MethodPatch, "/apis/rbac.authorization.k8s.io/v1/namespaces/follow-rights/roles/reads",
		map[string]any{"rules": []any{rule("get", "list", "watch")}}, nil)
	if _, err := store.Update(t.Context(), increment); err != nil {
		t.Fatal(err)
	}
	for n := range news {
		if n.Record != nil && n.Record.Generation == 3 {
			return
		}
	}
	t.Error("it never goes on")
}

// testCopies is the same on an API server: a record is restored in place, outlives its namespace, is copied, and taken over.
// A copy of a record that was taken over is refused again.
func testCopies(t *testing.T, c cluster) {
	make := func(name string) (uid string) {
		var made struct{ Metadata struct{ UID string } }
		c.do(t, http.MethodPost, "/api/v1/namespaces", map[string]any{"metadata": map[string]any{"name": name}}, &made)
		return made.Metadata.UID
	}
	uid := make("copies")
	path := "/api/v1/namespaces/copies/secrets/rec"
	store := func() *kube.Records { // each a program of its own
		return c.admin(t).Records("copies", "rec", dsn).Own("blue", "", func(w string) { t.Errorf("warned: %s", w) })
	}
	update := func(s *kube.Records, change func(*tenant.Record)) error {
		_, err := s.Update(t.Context(), func(old *tenant.Record) (*tenant.Record, error) {
			if old == nil {
				old = tenant.NewRecord(tenant.UID(uid, "blue"), "copies", "blue",
					dbserver.Server{Engine: dbserver.Postgres, Host: "db", Port: 5432, SSLMode: dbserver.Require}, 80)
			}
			change(old)
			return old, nil
		})
		return err
	}
	must := func(err error) {
		t.Helper()
		require.NoError(t, err)
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
		t.Error("an unchanged record was written")
	}

	replace(c.secret(t, "copies", "rec"))
	r, err := store().Load(t.Context())
	if err != nil || !r.Unclaimed || r.Make != tenant.Make {
		t.Fatalf("restored in place: %+v, %v", r, err)
	}
	must(update(store(), func(r *tenant.Record) { r.Unclaimed = false }))
	claimed("restored in place")

	c.do(t, http.MethodPatch, path, map[string]any{"metadata": map[string]any{"annotations": map[string]any{
		"dbconnector/apply-connector": "",
		"dbconnector/later":           "kept",
		"note":                        "kept",
	}}}, nil)
	r, err = store().Load(t.Context())
	if err != nil || r.Apply == "" {
		t.Fatalf("the request is not seen: %+v, %v", r, err)
	}
	must(update(store(), func(r *tenant.Record) { r.Apply = "" }))
	if a := c.secret(t, "copies", "rec").Annotations; a["dbconnector/later"] != "kept" || a["note"] != "kept" ||
		a["dbconnector/make"] != strconv.Itoa(tenant.Make) {
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
			foreign := tenant.NewRecord("99999999-0000-4000-8000-000000000000/blue", "copies", "blue",
				dbserver.Server{Engine: dbserver.Postgres, Host: "db", Port: 5432, SSLMode: dbserver.Require}, 80)
			secret.Data["record.json"], err = foreign.Encode()
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
			if err := try(); !fault.Is(err, fault.Refused) ||
				!strings.Contains(err.Error(), "kubectl --namespace copies annotate --overwrite secret rec dbconnector/namespace-uid="+uid) {
				t.Errorf("%s a copy: class %v: %v", who, fault.Of(err), err)
			}
		}
		// A follower learns that the record was taken over.
		news := store().Follow(within(t, 2*time.Minute))
		if n := <-news; n.Err == nil {
			t.Errorf("following a copy: %+v", n)
		}
		c.do(t, http.MethodPatch, path, map[string]any{"metadata": map[string]any{"annotations": map[string]any{"dbconnector/namespace-uid": uid}}}, nil)
		if n := <-news; n.Err != nil || n.Record == nil {
			t.Errorf("following the record that was taken over: %+v", n)
		}
		must(update(store(), func(r *tenant.Record) { r.Unclaimed = false }))
		claimed("taken over")
	}
}

// deployed makes a workload, and returns its path.
func (c cluster) deployed(t *testing.T, namespace, kind, name string) (path string) {
	t.Helper()
	labels := map[string]any{"app": name}
	path = "/apis/apps/v1/namespaces/" + namespace + "/" + strings.ToLower(kind) + "s"
	c.do(t, http.MethodPost, path, map[string]any{
		"apiVersion": "apps/v1", "kind": kind, "metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"selector": map[string]any{"matchLabels": labels}, "replicas": 2,
			"template": map[string]any{
				"metadata": map[string]any{"labels": labels, "annotations": map[string]any{"theirs": "stays"}},
				"spec":     map[string]any{"containers": []any{map[string]any{"name": "c", "image": "example.com/i"}}},
			},
		},
	}, nil)
	return path + "/" + name
}

// template is how often the object was changed, and the annotations of its pod template.
func (c cluster) template(t *testing.T, path string) (generation int64, annotations map[string]string) {
	t.Helper()
	var o appsv1.Deployment // or a StatefulSet: the fields that the test reads are the same
	c.do(t, http.MethodGet, path, nil, &o)
	return o.Generation, o.Spec.Template.Annotations
}

func testWorkload(t *testing.T, c cluster) {
	c.namespace(t, "workload")
	_, _, _, err := c.admin(t).Workload("workload", "none").Status(t.Context(), of(1))
	if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), "neither a StatefulSet nor a Deployment workload/none") {
		t.Errorf("none: got class %v: %v", fault.Of(err), err)
	}
	for _, kind := range []string{"StatefulSet", "Deployment"} {
		name := strings.ToLower(kind)
		path := c.deployed(t, "workload", kind, name)
		generation, _ := c.template(t, path)
		changes := int64(0)
		changed := func(what string, n int64, want *tenant.Record) {
			t.Helper()
			changes += n
			now, annotations := c.template(t, path)
			if now != generation+changes {
				t.Errorf("%s, %s: changed %d times, want %d", kind, what, now-generation, changes)
			}
			all := map[string]string{
				kube.GenerationAnnotation: strconv.FormatInt(want.Generation, 10), kube.RotatedAtAnnotation: want.RotatedAt.UTC().Format(time.RFC3339Nano),
			}
			all["theirs"] = "stays"
			if !maps.Equal(annotations, all) {
				t.Errorf("%s, %s: got %v, want %v", kind, what, annotations, all)
			}
			if asked, _, _, err := c.admin(t).Workload("workload", name).Status(t.Context(), want); err != nil || !asked {
				t.Errorf("%s, %s: asks for it: %t, %v", kind, what, asked, err)
			}
		}
		w := c.admin(t).Workload("workload", name)
		if asked, _, _, err := w.Status(t.Context(), of(1)); err != nil || asked {
			t.Errorf("%s: asked before it was: %t, %v", kind, asked, err)
		}

		var group sync.WaitGroup
		for range 10 {
			rival := c.admin(t).Workload("workload", name)
			group.Go(func() {
				assert.NoError(t, rival.Request(t.Context(), of(5), newest))
			})
		}
		group.Wait()
		changed("ten at once", 1, of(5))

		if err := w.Request(t.Context(), of(4), late); !errors.Is(err, errLate) {
			t.Errorf("%s, a late one: got %v", kind, err)
		}
		changed("a late one", 0, of(5))

		// The same number, but of another record.
		other := of(5)
		other.RotatedAt = other.RotatedAt.Add(time.Hour)
		if asked, _, _, err := w.Status(t.Context(), other); err != nil || asked {
			t.Errorf("%s: another record's: %t, %v", kind, asked, err)
		}
		assert.NoError(t, w.Request(t.Context(), other, newest))
		changed("another record, the same number", 1, other)
		assert.NoError(t, w.Request(t.Context(), of(2), newest))
		changed("another record, a lower number", 1, of(2))

		// Others write the object between the look and the deed: the controller, or a rival with the next generation.
		calls := 0
		err := w.Request(t.Context(), of(3), func(ctx context.Context) error {
			if calls++; calls > 2 {
				return nil
			}
			return c.Do(ctx, http.MethodPatch, path+"/status", map[string]any{"status": map[string]any{"observedGeneration": calls}}, nil)
		})
		if err != nil || calls != 3 {
			t.Errorf("%s, conflicts: asked %d times, %v", kind, calls, err)
		}
		changed("conflicts", 1, of(3))
		calls = 0
		err = w.Request(t.Context(), of(4), func(ctx context.Context) error {
			if calls++; calls > 1 {
				return errLate
			}
			return c.admin(t).Workload("workload", name).Request(ctx, of(6), newest)
		})
		if !errors.Is(err, errLate) || calls != 2 {
			t.Errorf("%s, overtaken: asked %d times, %v", kind, calls, err)
		}
		changed("overtaken", 1, of(6))

		generation, changes = generation+changes, 0
		for _, test := range []struct {
			what     string
			observed int64
			replicas, updated,
			available int
			want     bool
			progress string
		}{
			{"no controller looks after it", 0, 0, 0, 0, false, "0 of 2 pods replaced, 0 available"},
			{"the controller has not seen it", generation - 1, 2, 2, 2, false, "0 of 2 pods replaced, 2 available"},
			{"the old pods", generation, 2, 0, 2, false, "0 of 2 pods replaced, 2 available"},
			{"one of two", generation, 2, 1, 2, false, "1 of 2 pods replaced, 2 available"},
			{"a new one besides", generation, 3, 2, 3, false, "2 of 2 pods replaced, 3 available"},
			{"not available", generation, 2, 2, 1, false, "2 of 2 pods replaced, 1 available"},
			{"done", generation, 2, 2, 2, true, "kubectl --namespace workload rollout status " + strings.ToLower(kind) + " " + name},
		} {
			status := map[string]any{
				"observedGeneration": test.observed, "replicas": test.replicas, "updatedReplicas": test.updated,
				"readyReplicas": test.available, "availableReplicas": test.available,
			}
			if kind == "StatefulSet" { // with the strategy OnDelete the revisions stay different
				status["currentRevision"], status["updateRevision"] = "one", "two"
			}
			c.do(t, http.MethodPatch, path+"/status", map[string]any{"status": status}, nil)
			if asked, rolled, progress, err := w.Status(t.Context(), of(6)); err != nil || !asked || rolled != test.want || !strings.Contains(progress, test.progress) {
				t.Errorf("%s, %s: asked %t, rolled %t, %q, %v; want %t, %q", kind, test.what, asked, rolled, progress, err, test.want, test.progress)
			}
		}
	}
}

// testWorkloadRights: a sidecar that may not restart the workload learns which rule it lacks.
func testWorkloadRights(t *testing.T, c cluster) {
	c.namespace(t, "workload-rights")
	path := c.deployed(t, "workload-rights", "StatefulSet", "w")
	powerless, reader := c.account(t, "workload-rights", "powerless"), c.account(t, "workload-rights", "reads")
	c.grant(t, "workload-rights", "powerless")
	c.grant(t, "workload-rights", "reads", rbacv1.PolicyRule{APIGroups: []string{"apps"}, Resources: []string{"statefulsets"}, Verbs: []string{"get"}})
	for verb, who := range map[string]*kube.Client{"get": powerless, "patch": reader} {
		want := `an RBAC rule is missing, verb "` + verb + `" on resource "statefulsets.apps" named "w" in namespace "workload-rights" (deploy/kustomize/rbac has it)`
		err := who.Workload("workload-rights", "w").Request(t.Context(), of(2), newest)
		if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), want) {
			t.Errorf("got class %v: %v\nwant %s", fault.Of(err), err, want)
		}
	}
	if _, annotations := c.template(t, path); len(annotations) != 1 {
		t.Errorf("the template was changed: %v", annotations)
	}
}

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
	require.NoError(t, err)
	return &corev1.Secret{
		TypeMeta: metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "rec", ResourceVersion: version},
		Data: map[string][]byte{"record.json": data},
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// of is a record of a generation. Each became active at a time of its own.
func of(generation int64) *tenant.Record {
	r := newRecord()
	r.Generation = generation
	r.RotatedAt = time.Date(2020, 1, 1, 0, 0, int(generation), 0, time.UTC)
	return r
}

func newest(context.Context) error { return nil }

var errLate = errors.New("the record has moved on")

func late(context.Context) error { return errLate }

const marker = "hunter2hunter2hunter2"
