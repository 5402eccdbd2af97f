// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/fault"
	"dbconnector/test/bed"
)

// F8: PgBouncer in front of the server. A restart works through it, as kine does. A step that needs a session of its
// own says so at once, and names the setting. init can then provision through a pool that keeps sessions, and refuses
// one that does not.
func TestPooler(t *testing.T) {
	t.Parallel()
	server := newServer(t, bed.Version{Engine: bed.Postgres, Version: "17"})
	s := admins(t, server)["cloud admin"]
	old := newJob(t, s)
	record := old.run(t)
	old.MustExec(t, record.Database, "CREATE TABLE kine (id INTEGER)", "GRANT ALL ON kine TO "+old.Owner)
	at := func(t *testing.T, port int) dbserver.Server {
		t.Helper()
		c := s.Connector.Server
		c.Port = uint16(port)
		return c
	}
	through := func(t *testing.T, port int) *job {
		t.Helper()
		j := newJob(t, s)
		c := s.Connector
		c.Server = at(t, port)
		j.Connector = func(context.Context) (connector.Connector, error) { return c, nil }
		return j
	}
	for _, mode := range []string{"session", "transaction", "statement"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			bare := bed.NewPooler(t, server, mode)
			e := open.Engine(at(t, bare), program)
			login := record.Login(record.Active)
			for range 3 {
				if _, err := e.HasData(t.Context(), login); err != nil {
					t.Errorf("a restart: %v", err)
				}
			}
			// The server's sessions go to the next client, and that is kine.
			kine, err := pgx.Connect(t.Context(), fmt.Sprintf("host=127.0.0.1 port=%d user=%s password=%s dbname=%s sslmode=require default_query_exec_mode=exec",
				bare, login.User, login.Password.Reveal(), login.Database))
			require.NoError(t, err)
			defer kine.Close(context.WithoutCancel(t.Context()))
			var limit string
			if err := kine.QueryRow(t.Context(), "SHOW lock_timeout").Scan(&limit); err != nil || limit != "0" {
				t.Errorf("init has left lock_timeout = %s to others: %v", limit, err)
			}
			const params = "ignore_startup_parameters = "
			said := through(t, bare).refused(t, "pooler", params)
			if _, err := e.TenantSession(t.Context(), login); !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), params) {
				t.Errorf("the login itself: got class %d: %v", fault.Of(err), err)
			}
			ignores := bed.NewPooler(
				t, server, mode,
				printed(t, said, params+`[a-z_,]+`)+",statement_timeout,default_transaction_isolation,default_transaction_deferrable",
			)
			if mode != "session" {
				through(t, ignores).refused(t, "does not keep sessions", "pool_mode = session")
				return
			}
			j := through(t, ignores)
			j.run(t)
			j.run(t)
			j.verified(t)
		})
	}
}
