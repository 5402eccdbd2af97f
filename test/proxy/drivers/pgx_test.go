// SPDX-License-Identifier: Apache-2.0

package drivers_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// pgx are the tests of its packages that use one database. pgproto3 has none that do.
var pgx = suite{
	module:   "github.com/jackc/pgx/v5",
	packages: []string{".", "pgconn", "pgtype", "pgtype/zeronull", "pgxpool", "stdlib", "tracelog"},
	options:  bed.Options{MaxConnections: most},
	prepare: func(t *testing.T, server *bed.Server, r *tenant.Record) {
		t.Helper()
		// What testsetup/postgresql_setup.sql makes in the database, and what the tests do of what only its superuser may: they make schemas,
		// end each other's sessions, and open more of them than a tenant has.
		login := r.Login(r.Active)
		require.NoError(t, server.ExecIn(t.Context(), r.Database, "CREATE EXTENSION hstore", "CREATE EXTENSION ltree", "CREATE DOMAIN uint64 AS numeric(20,0)",
			fmt.Sprintf("GRANT CREATE ON DATABASE %q TO %q", r.Database, r.Names().Owner),
			fmt.Sprintf("GRANT pg_signal_backend TO %q WITH INHERIT TRUE", r.Names().Owner),
			fmt.Sprintf("ALTER ROLE %q CONNECTION LIMIT -1", login.User), fmt.Sprintf("ALTER DATABASE %q CONNECTION LIMIT -1", r.Database)))
	},
	direct: func(t *testing.T, server *bed.Server, r *tenant.Record) []string {
		t.Helper()
		ca := filepath.Join(t.TempDir(), "ca.crt")
		require.NoError(t, os.WriteFile(ca, server.CA, 0o644))
		login := r.Login(r.Active)
		return []string{fmt.Sprintf("PGX_TEST_DATABASE=host=%s port=%d user=%s password=%s dbname=%s sslmode=verify-full sslrootcert=%s",
			server.Host, server.Port, login.User, login.Password.Reveal(), r.Database, ca)}
	},
	// The user's name means nothing to the socket. The tests compare it with the session's.
	socket: func(path string, r *tenant.Record) []string {
		return []string{fmt.Sprintf("PGX_TEST_DATABASE=host=%s user=%s dbname=%s sslmode=disable", filepath.Dir(path), r.Login(r.Active).User, r.Database)}
	},
	failing: []exception{
		{`[.]:TestConnect`, "it wants the current user to be the login, and a tenant's sessions act as the role that owns the database"},
	},
}
