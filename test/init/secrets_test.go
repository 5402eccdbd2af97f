// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
)

// TestSecretsOfInit is promise 5, over a tenant's life: however a run ends, and with the most detailed log, only
// readers of the record and of the hand-over see the passwords of admin and tenant (B18 to B21).
func TestSecretsOfInit(t *testing.T) {
	t.Parallel()
	for name, on := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := on.Get(t)
			user, password := newAdmin(t, server)
			var secrets []string
			good := with(connectorFor(server), map[string]string{"user": user, "password": password})
			v := newVCluster(t, server, good)
			config(embedded)(t, &site{env: v.env})
			// The statements of the test itself come before: making the admin had to tell the server its password.
			log := mark(t, server)

			step := func(what string, code int, reason string, want ...string) *outcome {
				t.Helper()
				o := v.run(t)
				secrets = append(secrets, password)
				if getSecret(t, v.namespace, v.recordName()) != nil {
					for _, p := range passwords(t, v.record(t)) {
						if !slices.Contains(secrets, p) {
							secrets = append(secrets, p)
						}
					}
				}
				if code == 0 {
					o.succeeded(t)
				} else {
					o.refused(t, code, want...)
				}
				o.hides(t, secrets...)
				reasons, text := v.events(t)
				if reason != "" && !slices.Contains(reasons, reason) {
					t.Errorf("%s: Events %q, want %q among them", what, reasons, reason)
				}
				hides(t, what+": an Event", text, secrets...)
				if t.Failed() {
					t.Fatalf("%s", what)
				}
				return o
			}

			step("first provision", 0, "Normal Provisioned")
			step("restart", 0, "")
			n := databaseOf(v.tenant())
			foreign := "Changed-by.Hand~" + user
			secrets = append(secrets, foreign)
			log.pause(t)
			require.NoError(t, server.SetPassword(t.Context(), n+"a", foreign)) // this statement is the test's own
			log.resume(t)
			if o := step("repair", 0, "Normal Provisioned"); !o.said("changed the server", "set password of login") {
				t.Errorf("the password was not repaired:\n%s", o.stderr)
			}
			log.pause(t)
			require.NoError(t, server.SetPassword(t.Context(), n+"a", foreign))
			require.NoError(t, server.SetPassword(t.Context(), n+"b", foreign))
			log.resume(t)
			v.setConnector(t, with(good, map[string]string{"password": "Wr0ng-" + password}))
			step("repair with a wrong password", human, "Warning Refused", `"password"`)
			v.setConnector(t, with(good, map[string]string{"caCert": "", "port": silent(t)}))
			v.env["DBCONNECTOR_TIMEOUT"] = "5s"
			step("time limit", moment, "Warning Failed", "time limit")
			v.env["DBCONNECTOR_TIMEOUT"] = "60s"
			v.setConnector(t, good)
			step("second repair", 0, "")
			log.pause(t)
			dropDatabase(t, server, n)
			log.resume(t)
			step("database gone", human, "Warning Refused", "refusing to start on an empty one")

			statements := log.text(t)
			if !strings.Contains(statements, n) {
				t.Error("the server's log does not name the tenant's database: it is the wrong log")
			}
			hides(t, "the server's log", statements, secrets...)
			if len(secrets) < 6 {
				t.Errorf("%d passwords were looked for, want admin's, both slots', and those of the repairs", len(secrets))
			}
		})
	}
}

// statementLog is what a server logged, without what it logged while it was paused. Other tests use the server at the same
// time, with other passwords.
type statementLog struct {
	server *bed.Server
	from   int
	kept   string
}

func mark(tb testing.TB, server *bed.Server) *statementLog {
	l := &statementLog{server: server}
	l.resume(tb)
	return l
}

func (l *statementLog) whole(tb testing.TB) string {
	tb.Helper()
	text, err := l.server.StatementLog()
	require.NoError(tb, err)
	return text
}

func (l *statementLog) pause(tb testing.TB) {
	tb.Helper()
	l.kept += l.whole(tb)[l.from:]
}

func (l *statementLog) resume(tb testing.TB) { tb.Helper(); l.from = len(l.whole(tb)) }

func (l *statementLog) text(tb testing.TB) string {
	tb.Helper()
	return l.kept + l.whole(tb)[l.from:]
}
