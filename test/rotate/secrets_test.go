// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// TestSecrets is promise 5 for rotation: whatever happens to a password, only the readers of the record and the
// hand-over see it. It is not in the most detailed log of a sidecar, in either format, nor in its metrics, its Events,
// its arguments and its environment, nor in a server's log with all statements. This holds when a login sets a
// password, when the server refuses a login, and when the server rejects a new password (B18 to B21).
func TestSecrets(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		server := bed.NewServer(t, engine, version, bed.Options{LogStatements: true})
		plane := rig.NewKubeTenant(t, rig.Host(t), server)
		seen := collect(t, plane)
		client := consume(t, plane, server, "127.0.0.1", false)
		pod := func(name string) []string {
			return append([]string{"LOG_LEVEL=debug", "POD_NAME=" + plane.Name + "-" + name, "POD_UID=11111111-2222-3333-4444-555555555555"}, hourly...)
		}
		sidecar := rig.Sidecar(t, plane, pod("json")...)
		console := rig.Sidecar(t, rig.Replica(t, plane), append(pod("console"), "LOG_FORMAT=console")...)
		as := func(statements ...string) {
			t.Helper()
			require.NoError(t, server.Exec(t.Context(), statements...), "doing it to the server")
		}
		retired := func(r *tenant.Record) bool { return r.OtherRetired && r.Pending == nil }
		fails := func() {
			t.Helper()
			metric(t, sidecar, "dbconnector_consecutive_failures", "is positive", func(v float64) bool { return v > 0 })
		}

		// An ordinary rotation.
		due(t, plane)
		rig.Until(t, plane, "generation 2", generation(2))
		client.move(t)
		rig.Until(t, plane, "retired", retired)

		// The server rejects the new password, because it takes no writes or because the password is too short.
		refuse, allow := []string{"SET GLOBAL read_only = ON"}, []string{"SET GLOBAL read_only = OFF"}
		if engine == bed.Postgres {
			refuse = []string{"ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"}
			allow = []string{"SET default_transaction_read_only = off", "ALTER SYSTEM SET default_transaction_read_only = off", "SELECT pg_reload_conf()"}
		}
		if engine == bed.MySQL {
			refuse = []string{"INSTALL COMPONENT 'file://component_validate_password'", "SET GLOBAL validate_password.length = 41"}
			allow = []string{"UNINSTALL COMPONENT 'file://component_validate_password'"}
		}
		as(refuse...)
		due(t, plane)
		fails()
		as(allow...)
		rig.Until(t, plane, "generation 3", generation(3))
		client.move(t)
		rig.Until(t, plane, "retired", retired)
		healthy(t, sidecar)

		// Neither password in the record is right.
		client.leave()
		for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
			change := "ALTER ROLE \"%s\" PASSWORD 'By-hand.1'"
			if engine != bed.Postgres {
				change = "ALTER USER '%s'@'%%' IDENTIFIED BY 'By-hand.1'"
			}
			as(fmt.Sprintf(change, plane.Names().User(slot)))
		}
		due(t, plane)
		gauge(t, sidecar, `dbconnector_locked_out{login="active"}`, 1)
		rig.Provision(t, plane)
		healthy(t, sidecar)
		client.move(t)

		secrets := seen.of(tenant.A, tenant.B)
		// Two from the beginning, two for each of two rotations, and two from the repair.
		if len(secrets) < 8 {
			t.Errorf("%d passwords to look for, want at least 8", len(secrets))
		}
		hides := func(where, text, known string) {
			t.Helper()
			if !strings.Contains(text, known) {
				t.Errorf("%s does not hold %q: it is not what it should be", where, known)
			}
			for _, secret := range secrets {
				if at := strings.Index(text, secret.Reveal()); at >= 0 {
					line := strings.Count(text[:at], "\n")
					t.Errorf("%s holds a password: %s", where, strings.ReplaceAll(strings.Split(text, "\n")[line], secret.Reveal(), "THE-PASSWORD"))
				}
			}
		}
		login := plane.Names().User(tenant.A)
		for name, s := range map[string]*rig.Process{"json": sidecar, "console": console} {
			hides("the log ("+name+")", s.Log(), login)
			for file, known := range map[string]string{"cmdline": "dbconnector-rotate", "environ": "DBCONNECTOR_VCLUSTER_NAME"} {
				data, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(s.Pid()), file))
				require.NoError(t, err, "reading /proc")
				hides("/proc/"+file, string(data), known)
			}
		}
		_, body, err := sidecar.Get(t.Context(), "/metrics")
		require.NoError(t, err, "reading metrics")
		hides("/metrics", body, "dbconnector_locked_out")
		bed.Eventually(t, rig.Patience, func(ctx context.Context) error { // the sidecar sends Events in the background
			var events json.RawMessage
			if err := plane.Cluster.API.Do(ctx, http.MethodGet, "/api/v1/namespaces/"+rig.Namespace+"/events", nil, &events); err != nil {
				return err
			}
			if !strings.Contains(string(events), plane.Name+"-json") {
				return errors.New("no Event was recorded")
			}
			hides("an Event", string(events), "Failed")
			return nil
		})
		log, err := server.StatementLog()
		require.NoError(t, err, "reading the server's log")
		hides("the log of statements", log, login)
		hides("the server's log", server.Log(), "ready ")
	}, "postgres-17", "mysql-9.7", "mariadb-10.5", "mariadb-10.11", "mariadb-11.8")
}
