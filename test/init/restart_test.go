// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"net/http"
	"regexp"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
)

// TestRestartPath is promise 7: a control plane starts again on the day that the admin's password was rotated, the
// connector deleted and the right to read it withdrawn. One API request, one database connection, no admin.
func TestRestartPath(t *testing.T) {
	t.Parallel()
	for name, on := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// A server of its own: every connection counts.
			server := bed.NewServer(t, on.Version.Engine, on.Version.Version, bed.Options{LogStatements: true})
			user, password := newAdmin(t, server)
			v := newVCluster(t, server, with(connectorFor(server), map[string]string{"user": user, "password": password}))
			config(embedded)(t, &site{env: v.env})
			front := newCounter(t)
			v.useToken(t, front.url)
			v.provision(t)
			t.Logf("first provision: %q", front.take())
			before := handOver(t, v.outputDir)
			record := getSecret(t, v.namespace, v.recordName())["record.json"]

			require.NoError(t, server.SetPassword(t.Context(), user, "Rotated-"+password))
			v.unbind(t)
			do(t, http.MethodDelete, secretPath(v.platform, v.connector), nil, nil)

			for _, how := range []string{"with the old hand-over", "with an empty directory"} {
				if how == "with an empty directory" {
					v.outputDir = dir(t)
					v.env["DBCONNECTOR_OUTPUT_DIR"] = v.outputDir
				}
				connections, err := server.Connections()
				require.NoError(t, err)
				log := mark(t, server)

				o := v.run(t)

				o.succeeded(t)
				if got, want := front.take(), []string{"GET " + secretPath(v.namespace, v.recordName())}; !slices.Equal(got, want) {
					t.Errorf("%s: API requests %q, want %q", how, got, want)
				}
				after, err := server.Connections()
				require.NoError(t, err)
				if after-connections != 1 {
					t.Errorf("%s: %d connections to the server, want 1:\n%s", how, after-connections, log.text(t))
				}
				if got, want := logins(log.text(t)), []string{databaseOf(v.tenant()) + "a"}; !slices.Equal(got, want) {
					t.Errorf("%s: logged in as %q, want %q", how, got, want)
				}
				if !o.said("ready", "restart:true") {
					t.Errorf("%s: not the restart path:\n%s", how, o.stderr)
				}
				if read(t, v.outputDir, "dsn") != before["dsn"] {
					t.Errorf("%s: the DSN changed", how)
				}
				if getSecret(t, v.namespace, v.recordName())["record.json"] != record {
					t.Errorf("%s: the record changed", how)
				}
			}
			if reasons, _ := v.events(t); !slices.Equal(reasons, []string{"Normal Provisioned"}) {
				t.Errorf("Events %q: a restart is no news", reasons)
			}
		})
	}
}

// login lines of PostgreSQL's log, and of the general log of the others.
var loginLine = regexp.MustCompile(`(?m)connection authorized: user=(\S+)|\sConnect\t([^@\s]+)@`)

// logins are the logins in a log, in order. A login that ended in that time is not among them.
func logins(log string) (users []string) {
	for _, match := range loginLine.FindAllStringSubmatch(log, -1) {
		users = append(users, match[1]+match[2])
	}
	return users
}

// handOver reads all files of a directory.
func handOver(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	files := map[string]string{}
	for _, name := range names(tb, dir) {
		files[name] = read(tb, dir, name)
	}
	return files
}

// TestIdentityOfATenant: each record belongs to one tenant, and only an operator can move it.
func TestIdentityOfATenant(t *testing.T) {
	t.Parallel()
	server := postgres.Get(t)
	v := newVCluster(t, server, connectorFor(server))
	v.provision(t)
	n := databaseOf(v.tenant())
	if got := v.record(t)["tenantUID"]; got != v.tenant() {
		t.Errorf("tenant UID %q, want %q: the namespace's UID and the vCluster's name", got, v.tenant())
	}
	put(t, server, v, "mine")

	t.Run("edited labels", func(t *testing.T) { // B11
		do(t, http.MethodPatch, secretPath(v.namespace, v.recordName()), object{"metadata": object{
			"labels": object{"team": "a"}, "annotations": object{"note": "by hand"},
		}}, nil)
		before := getSecret(t, v.namespace, v.recordName())["record.json"]
		dsn := read(t, v.outputDir, "dsn")
		v.provision(t)
		if getSecret(t, v.namespace, v.recordName())["record.json"] != before || read(t, v.outputDir, "dsn") != dsn {
			t.Error("an edited label changed the credential")
		}
	})

	t.Run("other namespace, same name", func(t *testing.T) {
		w := newVCluster(t, server, connectorFor(server))
		w.provision(t)
		if w.release != v.release || databaseOf(w.tenant()) == n {
			t.Fatal("this is not the case that the test needs")
		}
		if name, err := login(t, server, read(t, w.outputDir, "dsn")); err != nil || name != databaseOf(w.tenant()) {
			t.Errorf("the hand-over leads to database %q, %v; want %q", name, err, databaseOf(w.tenant()))
		}
	})

	t.Run("other UID", func(t *testing.T) {
		v.env["DBCONNECTOR_TENANT_UID"] = "somebody else"
		v.outputDir = dir(t)
		v.env["DBCONNECTOR_OUTPUT_DIR"] = v.outputDir
		v.run(t).refused(t, human, `"`+v.tenant()+`"`, `DBCONNECTOR_TENANT_UID="somebody else"`, "kubectl --namespace "+v.namespace+" delete secret "+v.recordName())
		if left := names(t, v.outputDir); len(left) > 0 {
			t.Errorf("left in the output directory: %q", left)
		}
		if left := objects(t, server, "somebody else"); len(left) > 0 {
			t.Errorf("left on the server: %q", left)
		}
		// The way out: the former value.
		v.env["DBCONNECTOR_TENANT_UID"] = v.tenant()
		v.provision(t)
		delete(v.env, "DBCONNECTOR_TENANT_UID")
	})

	// The record is restored or copied to another namespace, as a backup tool does it.
	copied := func(t *testing.T) *vcluster {
		w := newVCluster(t, server, connectorFor(server))
		data := getSecret(t, v.namespace, v.recordName())
		makeSecret(t, w.namespace, w.recordName(), nil, data)
		o := w.run(t)
		o.refused(t, human, `"`+v.namespace+`"`, "DBCONNECTOR_TENANT_UID="+v.tenant(), "kubectl --namespace "+w.namespace+" delete secret "+w.recordName())
		o.hides(t, passwords(t, v.record(t))...)
		if left := names(t, w.outputDir); len(left) > 0 {
			t.Errorf("left in the output directory: %q", left)
		}
		return w
	}
	t.Run("moved", func(t *testing.T) {
		w := copied(t)
		w.env["DBCONNECTOR_TENANT_UID"] = v.tenant()
		w.provision(t)
		if got := get(t, server, w); got != "mine" {
			t.Errorf("the data is %q, want \"mine\"", got)
		}
		w.provision(t) // and again
	})
	t.Run("copied", func(t *testing.T) {
		w := copied(t)
		do(t, http.MethodDelete, secretPath(w.namespace, w.recordName()), nil, nil)
		w.provision(t)
		if name := databaseIn(t, read(t, w.outputDir, "dsn")); name != databaseOf(w.tenant()) || name == n {
			t.Errorf("the hand-over leads to database %q, want %q", name, databaseOf(w.tenant()))
		}
		if got := get(t, server, v); got != "mine" {
			t.Errorf("the original's data is %q, want \"mine\"", got)
		}
	})
}

// put and get write and read as the tenant.
func put(tb testing.TB, server *bed.Server, v *vcluster, text string) {
	tb.Helper()
	asTenant(tb, server, v, func(exec func(string) string) {
		exec("CREATE TABLE data (x text)")
		exec("INSERT INTO data VALUES ('" + text + "')")
	})
}

func get(tb testing.TB, server *bed.Server, v *vcluster) (text string) {
	tb.Helper()
	asTenant(tb, server, v, func(exec func(string) string) { text = exec("SELECT x FROM data") })
	return text
}

func asTenant(tb testing.TB, server *bed.Server, v *vcluster, do func(exec func(string) string)) {
	tb.Helper()
	dsn := read(tb, v.outputDir, "dsn")
	user, password := credentialOf(tb, dsn)
	db, err := server.Open(user, password, databaseIn(tb, dsn))
	require.NoError(tb, err)
	defer shut(db)
	do(func(statement string) (value string) {
		rows, err := db.QueryContext(tb.Context(), statement)
		require.NoError(tb, err, statement)
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			require.NoError(tb, rows.Scan(&value))
		}
		require.NoError(tb, rows.Err(), statement)
		return value
	})
}
