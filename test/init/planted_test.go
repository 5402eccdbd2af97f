// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
)

// intruder is a tenant whose connector is a directory, out of reach of an attacker who may write Secrets in its
// namespace. It has an admin of its own, so that a log shows what that admin did.
type intruder struct {
	*vcluster
	admin string
}

func newIntruder(tb testing.TB, server *bed.Server) *intruder {
	tb.Helper()
	v := newVCluster(tb, server, nil)
	user, password := newAdmin(tb, server)
	delete(v.env, "DBCONNECTOR_CONNECTOR")
	v.env["DBCONNECTOR_CONNECTOR_DIR"] = dir(tb)
	for key, value := range with(connectorFor(server), map[string]string{"user": user, "password": password}) {
		write(tb, filepath.Join(v.env["DBCONNECTOR_CONNECTOR_DIR"], key), value)
	}
	v.provision(tb)
	v.outputDir = dir(tb)
	v.env["DBCONNECTOR_OUTPUT_DIR"] = v.outputDir
	return &intruder{v, user}
}

// plant replaces the record by the result of change.
func (v *vcluster) plant(tb testing.TB, change func(record map[string]any)) {
	tb.Helper()
	record := v.record(tb)
	change(record)
	content, err := json.Marshal(record)
	require.NoError(tb, err)
	do(tb, http.MethodPatch, secretPath(v.namespace, v.recordName()), object{"data": object{"record.json": base64.StdEncoding.EncodeToString(content)}}, nil)
}

// TestRecordNamesAnother is S2: an attacker who may write Secrets in one namespace writes another tenant's UID and
// passwords of its own into the record there. The admin's credential is out of its reach, and the admin does nothing
// for the attacker.
func TestRecordNamesAnother(t *testing.T) {
	t.Parallel()
	for name, on := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := on.Get(t)
			victim := newVCluster(t, server, connectorFor(server))
			victim.provision(t)
			put(t, server, victim, "of the victim")
			for form, change := range map[string]func(record map[string]any){
				"provisioned":          func(map[string]any) {},
				"as for a first start": func(r map[string]any) { delete(r, "provisionedAt") },
				"with a change that init has begun": func(r map[string]any) {
					r["pending"] = object{"slot": "b", "password": part(r, "slots", "a")["password"], "purpose": "activate", "admin": true}
				},
			} {
				t.Run(form, func(t *testing.T) {
					v := newIntruder(t, server)
					v.plant(t, func(r map[string]any) {
						r["tenantUID"], r["database"] = victim.tenant(), databaseOf(victim.tenant())
						change(r)
					})
					log := mark(t, server)

					o := v.run(t)

					o.refused(t, human, "names another tenant", `DBCONNECTOR_TENANT_UID="`+victim.tenant()+`"`)
					o.hides(t, passwords(t, v.record(t))...)
					if users := logins(log.text(t)); slices.Contains(users, v.admin) {
						t.Errorf("the admin logged in")
					}
					if left := names(t, v.outputDir); len(left) > 0 {
						t.Errorf("left in the output directory: %q", left)
					}
					if got := get(t, server, victim); got != "of the victim" {
						t.Errorf("the victim's login reads %q", got)
					}
				})
			}
		})
	}
}

// TestAddressInTheRecord: the record may name any address. init sends the tenant's own login there and never the
// admin's, and provisions nothing there (S2).
func TestAddressInTheRecord(t *testing.T) {
	t.Parallel()
	for name, on := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := on.Get(t)
			v := newIntruder(t, server)
			var mu sync.Mutex
			var heard strings.Builder
			trap := listen(t, func(conn net.Conn) {
				if server.Engine != bed.Postgres {
					// The first words of a MySQL server, so that the client goes on to say who it is.
					_, _ = io.WriteString(conn, mysqlGreeting())
				}
				buffer := make([]byte, 4096)
				for {
					n, err := conn.Read(buffer)
					mu.Lock()
					heard.Write(buffer[:n])
					mu.Unlock()
					if err != nil {
						return
					}
					if server.Engine == bed.Postgres { // asks for the password in the clear
						_, _ = io.WriteString(conn, "R\x00\x00\x00\x08\x00\x00\x00\x03")
					}
				}
			})
			v.plant(t, func(r map[string]any) {
				r["server"] = object{"engine": part(r, "server")["engine"], "host": "127.0.0.1", "port": json.Number(trap), "sslMode": "disable"}
			})
			v.env["DBCONNECTOR_TIMEOUT"] = "10s"
			v.run(t)
			mu.Lock()
			defer mu.Unlock()
			switch text := heard.String(); {
			case !strings.Contains(text, databaseOf(v.tenant())+"a"):
				t.Errorf("the login of the record was not tried there: this test looks in the wrong way: %q", text)
			case strings.Contains(text, v.admin):
				t.Error("the admin logged in at the record's address")
			}
		})
	}
}

// mysqlGreeting is the first packet of a MySQL server that takes mysql_native_password and no TLS.
func mysqlGreeting() string {
	payload := "\x0a8.0.99\x00" + "\x01\x00\x00\x00" + "12345678\x00" + "\x08\x82" + "\x2d" + "\x02\x00" + "\x08\x00" + "\x15" +
		strings.Repeat("\x00", 10) + "123456789012\x00" + "mysql_native_password\x00"
	return string(rune(len(payload))) + "\x00\x00\x00" + payload
}
