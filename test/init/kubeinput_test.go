// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
)

// TestBadObjects is the part of the bad input that comes from the API server.
func TestBadObjects(t *testing.T) {
	t.Parallel()
	connector := func(change func(c map[string]string)) func(testing.TB, *vcluster) {
		return func(tb testing.TB, v *vcluster) {
			c := connectorFor(v.server)
			change(c)
			v.setConnector(tb, c)
		}
	}
	label := func(labels map[string]string) func(testing.TB, *vcluster) {
		return func(tb testing.TB, v *vcluster) {
			do(tb, http.MethodDelete, secretPath(v.platform, v.connector), nil, nil)
			makeSecret(tb, v.platform, v.connector, labels, connectorFor(v.server))
		}
	}
	recordSecret := func(data map[string]string) func(testing.TB, *vcluster) {
		return func(tb testing.TB, v *vcluster) { makeSecret(tb, v.namespace, v.recordName(), nil, data) }
	}
	env := func(name, value string) func(testing.TB, *vcluster) {
		return func(_ testing.TB, v *vcluster) { v.env[name] = value }
	}
	kubeconfig := func(change func(tb testing.TB, content string) string) func(testing.TB, *vcluster) {
		return func(tb testing.TB, v *vcluster) { v.useKubeconfig(tb, change(tb, read(tb, cluster(tb).Kubeconfig))) }
	}
	elsewhere := func(port func(testing.TB) string) func(testing.TB, *vcluster) {
		return kubeconfig(func(tb testing.TB, content string) string {
			return strings.ReplaceAll(content, cluster(tb).URL, "https://127.0.0.1:"+port(tb))
		})
	}
	for _, test := range []struct {
		name, reason string
		change       func(testing.TB, *vcluster)
		code         int
		want         []string
		waits        bool
		// event says that an operator who looks at the pod must see an Event. It is false where init cannot write one.
		event bool
	}{
		{
			name: "connector missing", reason: "a typing error in its name",
			change: env("DBCONNECTOR_CONNECTOR", "pg-2"), want: []string{"/pg-2 does not exist", "DBCONNECTOR_CONNECTOR"},
			event: true,
		},
		{
			name: "connector's namespace missing", reason: "the platform is elsewhere",
			change: env("DBCONNECTOR_CONNECTOR_NAMESPACE", "nowhere"),
			want:   []string{"secret nowhere/", "does not exist", "DBCONNECTOR_CONNECTOR_NAMESPACE"}, event: true,
		},
		{
			name: "label missing", reason: "some other Secret of the platform",
			change: label(nil), want: []string{`label "loft.sh/connector-type" is missing`, "shared-database"}, event: true,
		},
		{
			name: "wrong label", reason: "a connector of another kind",
			change: label(map[string]string{"loft.sh/connector-type": "oidc"}),
			want:   []string{`loft.sh/connector-type="oidc"`, "shared-database"}, event: true,
		},
		{
			name: "empty Secret", reason: "not filled in yet",
			change: connector(func(c map[string]string) { clear(c) }),
			want:   []string{`key "endpoint": is missing`, `key "password": is missing`}, event: true,
		},
		{
			name: "password with a line break", reason: "made with echo and --from-file",
			change: connector(func(c map[string]string) { c["password"] += "\n" }),
			want:   []string{"secret ", `key "password": ends in a line break`}, event: true,
		},
		{
			name: "binary value", reason: "encoded twice, or not at all",
			change: connector(func(c map[string]string) { c["endpoint"] = binary }),
			want:   []string{`key "endpoint": `, "is not UTF-8"}, event: true,
		},
		{
			name: "1 MiB value", reason: "as much as a Secret holds",
			change: connector(func(c map[string]string) { c["caCert"] = strings.Repeat(large, 15) }),
			want:   []string{`key "caCert": has more than`}, event: true,
		},
		{name: "every key wrong", reason: "one round of fixes, and an Event that is not too long for the API server", change: connector(func(c map[string]string) {
			for k := range c {
				c[k] = injection + strings.Repeat("\n<&>", 200)
			}
		}), want: []string{`key "endpoint"`, `key "port"`, `key "user"`, `key "password"`, `key "type"`, `key "caCert"`}, event: true},
		{
			name: "no connector named", reason: "neither the variable nor the config",
			change: env("DBCONNECTOR_CONNECTOR", ""),
			want:   []string{"no connector is named", "DBCONNECTOR_CONNECTOR", "external.connector"}, event: true,
		},
		{name: "connector's name in the config is a path", reason: "must not become another API call", change: func(tb testing.TB, v *vcluster) {
			delete(v.env, "DBCONNECTOR_CONNECTOR")
			s := &site{env: v.env}
			config("controlPlane: {backingStore: {database: {external: {enabled: true, connector: ../configmaps/x}}}}\n")(tb, s)
		}, want: []string{`"../configmaps/x"`, "external.connector"}, event: true},

		{name: "config that is refused", reason: "before anything is asked of a server, and yet an operator must see it", change: func(tb testing.TB, v *vcluster) {
			s := &site{env: v.env}
			config("controlPlane: {backingStore: {database: {external: {enabled: true, dataSource: \"postgres://kept/d\"}}}}\n")(tb, s)
		}, want: []string{"external.dataSource", "names a store of its own"}, event: true},

		{
			name: "namespace missing", reason: "the UID is asked for there",
			change: env("DBCONNECTOR_NAMESPACE", "nowhere"), want: []string{`"nowhere" does not exist`, "DBCONNECTOR_NAMESPACE"},
		},
		{name: "namespace is being deleted", reason: "nothing can be made in it any more", change: func(tb testing.TB, v *vcluster) {
			do(tb, http.MethodDelete, "/api/v1/namespaces/"+v.namespace, nil, nil)
		}, want: []string{v1Namespace, "is being deleted"}},
		{
			name: "record without a record", reason: "a Secret of another program",
			change: recordSecret(map[string]string{"x": "y"}),
			want:   []string{`no key "record.json"`, "DBCONNECTOR_RECORD_SECRET"}, event: true,
		},
		{
			name: "empty record", reason: "never the same as none",
			change: recordSecret(map[string]string{"record.json": ""}),
			want:   []string{`"record.json"`, "not JSON", "restore it from a backup"}, event: true,
		},
		{
			name: "damaged record", reason: "never the same as none",
			change: recordSecret(map[string]string{"record.json": `{"version":1,"tenantUID":"` + chosen}),
			want:   []string{`"record.json"`, "not JSON"}, event: true,
		},
		{
			name: "later record", reason: "written by a later release",
			change: recordSecret(map[string]string{"record.json": `{"version":2,"new":"` + chosen + `"}`}),
			want:   []string{"format version 2"}, event: true,
		},

		{name: "no API server is named", reason: "no KUBECONFIG, no ServiceAccount", change: env("KUBECONFIG", ""), want: []string{"KUBECONFIG", "ServiceAccount"}},
		{
			name: "kubeconfig missing", reason: "a mount that was forgotten",
			change: env("KUBECONFIG", "/nonexistent/kubeconfig"), want: []string{`KUBECONFIG="/nonexistent/kubeconfig"`},
		},
		{
			name: "kubeconfig is rubbish", reason: "it may hold a token, which must not be shown",
			change: kubeconfig(func(testing.TB, string) string { return "token: " + chosen + "\n\t- {" }),
			want:   []string{"KUBECONFIG="},
		},
		{
			name: "kubeconfig is binary", reason: "as above",
			change: kubeconfig(func(testing.TB, string) string { return binary + chosen }), want: []string{"KUBECONFIG="},
		},
		{name: "foreign API server", reason: "an attacker in between", change: kubeconfig(func(tb testing.TB, content string) string {
			ca, err := bed.NewCA()
			require.NoError(tb, err)
			encode := base64.StdEncoding.EncodeToString
			return strings.ReplaceAll(content, encode(cluster(tb).CA), encode(ca.PEM))
		}), want: []string{"API server's identity cannot be verified"}},
		{name: "unknown token", reason: "a ServiceAccount that was deleted", change: func(tb testing.TB, v *vcluster) {
			v.useKubeconfig(tb, string(cluster(tb).KubeconfigFor(chosen)))
		}, want: []string{"does not accept this program's credential"}},
		{
			name: "API server away", reason: "it restarts",
			change: elsewhere(closedPort), code: moment, waits: true,
			want: []string{"connection refused", "reading the tenant's record"},
		},
		{
			name: "API server is a black hole", reason: "a load balancer without a backend",
			change: elsewhere(silent), code: moment, waits: true, want: []string{"reading the tenant's record"},
		},
		{name: "API server is something else", reason: "a wrong port", change: elsewhere(web), want: []string{"API server"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			v := prepared(t, postgres.Get(t), connectorFor(postgres.Get(t)))
			limit := 60 * time.Second
			if test.waits {
				limit = 5 * time.Second
				v.env["DBCONNECTOR_TIMEOUT"] = limit.String()
			}
			test.change(t, v)
			before := getSecret(t, v.namespace, v.recordName())
			code := test.code
			if code == 0 {
				code = human
			}

			o := v.run(t)

			t.Logf("%s: %s", test.reason, o.message())
			want := strings.Split(strings.ReplaceAll(strings.Join(test.want, "\x00"), v1Namespace, v.namespace), "\x00")
			o.refused(t, code, want...)
			o.within(t, limit)
			o.hides(t, chosen, v.server.AdminPassword)
			if left := names(t, v.outputDir); len(left) > 0 {
				t.Errorf("left in the output directory: %q", left)
			}
			if left := objects(t, v.server, v.tenant()); len(left) > 0 {
				t.Errorf("left on the server: %q", left)
			}
			if after := getSecret(t, v.namespace, v.recordName()); len(after) != len(before) || after["record.json"] != before["record.json"] {
				t.Errorf("the record was changed")
			}
			reasons, text := v.events(t)
			if test.event && (len(reasons) != 1 || reasons[0] != "Warning Refused") {
				t.Errorf("Events %q, want one that says Refused", reasons)
			}
			hides(t, "an Event", text, chosen, v.server.AdminPassword)
		})
	}
}

// v1Namespace stands for the vCluster's namespace in a wanted text.
const v1Namespace = "\x01namespace"

// TestConnectorSecret: the same keys from a Secret, named by the variable or, as on the platform, by the vCluster's config.
func TestConnectorSecret(t *testing.T) {
	t.Parallel()
	v := newVCluster(t, mariadb.Get(t), connectorFor(mariadb.Get(t)))
	delete(v.env, "DBCONNECTOR_CONNECTOR")
	config("controlPlane: {backingStore: {database: {external: {enabled: true, connector: "+v.connector+"}}}}\n")(t, &site{env: v.env})
	v.provision(t)
	if name, err := login(t, v.server, read(t, v.outputDir, "dsn")); err != nil || name != databaseOf(v.tenant()) {
		t.Errorf("the hand-over leads to database %q, %v; want %q", name, err, databaseOf(v.tenant()))
	}
	// A backup job reads these keys (Service Binding specification).
	binding := getSecret(t, v.namespace, v.recordName())
	user, password := credentialOf(t, read(t, v.outputDir, "dsn"))
	for key, want := range map[string]string{
		"type": "mysql", "provider": "dbconnector", "host": v.server.Host, "database": databaseOf(v.tenant()),
		"username": user, "password": password, "uri": read(t, v.outputDir, "dsn"),
	} {
		if binding[key] != want {
			t.Errorf("key %q of the record's Secret: %q, want %q", key, binding[key], want)
		}
	}
}
