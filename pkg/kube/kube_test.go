// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// cluster is a real API server. client-go's fake has no optimistic locking, so nothing about a compare-and-swap can be
// learned from it.
type cluster struct{ *bed.APIServer }

func (c cluster) do(t *testing.T, method, path string, in, out any) {
	t.Helper()
	if err := c.Do(t.Context(), method, path, in, out); err != nil {
		t.Fatal(err)
	}
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

// client makes a client from a kubeconfig, as New does from the environment.
func client(t *testing.T, kubeconfig string) *Client {
	t.Helper()
	config, err := clientConfig(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newClient(config, "dbconnector-init")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c cluster) admin(t *testing.T) *Client { return client(t, c.Kubeconfig) }

// account makes a ServiceAccount without any right and a client with its token.
func (c cluster) account(t *testing.T, namespace, name string) *Client {
	t.Helper()
	c.do(t, http.MethodPost, "/api/v1/namespaces/"+namespace+"/serviceaccounts", map[string]any{"metadata": map[string]any{"name": name}}, nil)
	token, err := c.Token(t.Context(), namespace, name)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, c.KubeconfigFor(token), 0o600); err != nil {
		t.Fatal(err)
	}
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
	// The API server's authorizer learns of it by a watch, as everybody does.
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
			"what the Secret looks like":     testSecret,
			"nobody's update is lost":        testUpdates,
			"of many creators one wins":      testCreators,
			"what others write there stays":  testForeignEdits,
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
		if string(secret.Type) != "servicebinding.io/"+want || secret.Labels[managedByLabel] != "dbconnector" {
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

// testForeignEdits: B11, an edit of metadata changes nothing, and what others keep there is kept.
func testForeignEdits(t *testing.T, c cluster) {
	c.namespace(t, "edits")
	store := c.admin(t).Records("edits", "rec", dsn)
	before, err := store.Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) { return newRecord(), nil })
	if err != nil {
		t.Fatal(err)
	}
	path := "/api/v1/namespaces/edits/secrets/rec"
	c.do(t, http.MethodPatch, path, map[string]any{
		"metadata": map[string]any{"labels": map[string]any{"team": "a", managedByLabel: "helm"}, "annotations": map[string]any{"note": "n"}},
		"data":     map[string]any{"extra": base64.StdEncoding.EncodeToString([]byte("e"))},
	}, nil)
	version := c.secret(t, "edits", "rec").ResourceVersion

	got, err := store.Update(t.Context(), func(r *tenant.Record) (*tenant.Record, error) { return r, nil })
	if err != nil || got.Slots[tenant.A] != before.Slots[tenant.A] || got.Generation != before.Generation {
		t.Fatalf("an edit of labels changed the record: %v, %v", got, err)
	}
	if c.secret(t, "edits", "rec").ResourceVersion != version {
		t.Error("what stays the same was written")
	}
	c.do(t, http.MethodPatch, path, map[string]any{"metadata": map[string]any{"annotations": map[string]any{"note": "m"}}}, nil)
	if got, err = store.Update(t.Context(), increment); err != nil || got.Generation != before.Generation+1 {
		t.Fatalf("got %v, %v", got, err)
	}
	secret := c.secret(t, "edits", "rec")
	if secret.Labels["team"] != "a" || secret.Annotations["note"] != "m" || string(secret.Data["extra"]) != "e" || secret.Labels[managedByLabel] != "dbconnector" {
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
		"nothing": {map[string][]byte{recordKey: {}}, `key "record.json": reading the tenant's record: it is not JSON`},
		"corrupt": {map[string][]byte{recordKey: []byte(`{"version":1,"slots":{"a":{"password":"` + marker)}, `it is not JSON`},
		"later":   {map[string][]byte{recordKey: []byte(`{"version":2}`)}, `format version 2`},
	} {
		c.do(t, http.MethodPost, "/api/v1/namespaces/foreign/secrets", corev1.Secret{ObjectMeta: stored(t, newRecord(), "").ObjectMeta}, nil)
		c.do(t, http.MethodPatch, "/api/v1/namespaces/foreign/secrets/rec", map[string]any{"data": test.data}, nil)
		version := c.secret(t, "foreign", "rec").ResourceVersion
		store := c.admin(t).Records("foreign", "rec", dsn)
		_, loading := store.Load(t.Context())
		_, updating := store.Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) {
			t.Errorf("%s: asked about what cannot be read", name)
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
	if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), "secret foreign/rec") || !strings.Contains(err.Error(), "create it again without immutable: true") {
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
	nobody := c.account(t, "rights", "nobody")
	c.grant(t, "rights", "nobody") // a Role that allows nothing
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
			func(ctx context.Context) error { _, err := nobody.Connector(ctx, "kube-system", "pg"); return err },
			`verb "get" on resource "secrets" named "pg" in namespace "kube-system" (deploy/kustomize has`,
		},
		"namespace": {
			func(ctx context.Context) error { _, err := nobody.NamespaceUID(ctx, "rights"); return err },
			`verb "get" on resource "namespaces" named "rights" in namespace "rights" (a Role in the namespace itself is enough; or set DBCONNECTOR_TENANT_UID)`,
		},
		"reading the record": {
			func(ctx context.Context) error { _, err := nobody.Records("rights", "rec", nil).Load(ctx); return err },
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
				return nobody.Event(ctx, Pod{"rights", "p", "u"}, Normal, "Provisioned", "x")
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
	if err := os.WriteFile(path, c.KubeconfigFor("not-a-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := client(t, path).NamespaceUID(t.Context(), "rights"); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), "does not accept this program's credential") {
		t.Errorf("got class %v: %v", fault.Of(err), err)
	}
}

// testLeastRights: what the refusals ask for, and no more, is enough: a Namespace can be read by a Role in it, and the
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
	if err := account.Event(t.Context(), Pod{"least", "p", "u"}, Normal, "Provisioned", "x"); err != nil {
		t.Error(err)
	}
}

func testEnding(t *testing.T, c cluster) {
	c.namespace(t, "ending")
	// Nobody finalizes it here: it stays as it is.
	c.do(t, http.MethodDelete, "/api/v1/namespaces/ending", nil, nil)
	_, err := c.admin(t).Records("ending", "rec", nil).Update(t.Context(), func(*tenant.Record) (*tenant.Record, error) { return newRecord(), nil })
	if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), `the namespace "ending" is being deleted`) {
		t.Errorf("got class %v: %v", fault.Of(err), err)
	}
}

// testEvents: what is said again is one Event with a count, as far as it differs only in its numbers; without the right to patch
// each is one of its own (F35).
func testEvents(t *testing.T, c cluster) {
	c.namespace(t, "events")
	rule := rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"events"}}
	for account, verbs := range map[string][]string{"counts": {"patch", "create"}, "creates": {"create"}} {
		teller := c.account(t, "events", account)
		rule.Verbs = verbs
		c.grant(t, "events", account, rule)
		began := time.Now().Truncate(time.Second)
		pod := Pod{"events", account + "-0", "11111111-2222-3333-4444-555555555555"}
		for i := range 3 {
			if err := teller.Event(t.Context(), pod, Warning, "Waiting", fmt.Sprintf("port 4071%d is closed %s", i, strings.Repeat("ü", 2000))); err != nil {
				t.Fatal(err)
			}
		}
		replaced := pod
		replaced.UID = "66666666-2222-3333-4444-555555555555" // a pod of a StatefulSet that was made anew
		for pod, message := range map[Pod]string{pod: "the file is open", replaced: "port 40719 is closed " + strings.Repeat("ü", 2000)} {
			if err := teller.Event(t.Context(), pod, Warning, "Waiting", message); err != nil {
				t.Fatal(err)
			}
		}
		if err := teller.Event(t.Context(), pod, Warning, "Failed", "port 40710 is closed "+strings.Repeat("ü", 2000)); err != nil {
			t.Fatal(err)
		}
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
