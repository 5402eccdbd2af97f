// SPDX-License-Identifier: Apache-2.0

// Package engines runs the conformance suite, and provisioning as a whole, on real servers: every supported
// version, with a superuser and with the admin that managed services give out, always over TLS, which the server
// requires and the client verifies in full.
package engines

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine/enginetest"
	"dbconnector/pkg/engine/open"
	"dbconnector/test/bed"
)

// program is the name under which the servers see the engine.
const program = "dbconnector-engines"

// newServer starts a server that insists on TLS and logs every statement.
func newServer(t *testing.T, v bed.Version) *bed.Server {
	t.Helper()
	o := bed.Options{RequireTLS: true, LogStatements: true, MaxConnections: 500}
	if v.Engine == bed.Postgres {
		// Autovacuum would start a process every half second with a hundred databases, and there is nothing to clean.
		o.Settings = map[string]string{"autovacuum": "off"}
	}
	return bed.NewServer(t, v.Engine, v.Version, o)
}

// admins are the two kinds of admin that the tests use.
func admins(t *testing.T, s *bed.Server) map[string]*enginetest.Server {
	t.Helper()
	user, password, err := s.CloudAdmin(t.Context(), "cloud@admin") // the name needs quoting, as Azure's did
	require.NoError(t, err)
	return map[string]*enginetest.Server{
		"superuser":   describe(s, s.AdminUser, s.AdminPassword),
		"cloud admin": describe(s, user, password),
	}
}

// describe tells the suite about a server.
func describe(s *bed.Server, user, password string) *enginetest.Server {
	c := connector.Connector{
		Server: serverOf(s), User: user, Password: dbserver.Password(password), Source: "secret test/" + s.Version,
	}
	d := enginetest.Server{
		Connector: c, Engine: open.Engine(c.Server, program),
		Open: s.Open, Log: s.StatementLog,
		Exec: func(ctx context.Context, database string, statements ...string) error {
			if database != "" {
				return s.ExecIn(ctx, database, statements...)
			}
			db, err := superuser(s)
			if err != nil {
				return err
			}
			for _, statement := range statements {
				if _, err := db.ExecContext(ctx, statement); err != nil {
					return fmt.Errorf("executing %q: %w", statement, err)
				}
			}
			return nil
		},
	}
	if s.Engine == bed.Postgres {
		describePostgres(&d, s)
	} else {
		describeMySQL(&d, s)
	}
	return enginetest.New(d)
}

func serverOf(s *bed.Server) dbserver.Server {
	if s.Port < 1 || s.Port > math.MaxUint16 {
		panic("a port out of range")
	}
	out := dbserver.Server{Engine: dbserver.MySQL, Host: s.Host, Port: uint16(s.Port), SSLMode: dbserver.VerifyFull, CA: string(s.CA)}
	if s.Engine == bed.Postgres {
		out.Engine = dbserver.Postgres
	}
	if s.CA == nil {
		out.SSLMode = dbserver.Disable
	}
	return out
}

// superusers are the pools through which tests look at the servers. Without them, most of a test's time would go into
// logging in.
var superusers sync.Map // of *bed.Server to *sql.DB

func superuser(s *bed.Server) (*sql.DB, error) {
	if db, ok := superusers.Load(s); ok {
		return db.(*sql.DB), nil //nolint:forcetypeassert // nothing else is in there
	}
	db, err := s.Admin("")
	if err != nil {
		return nil, err
	}
	db.SetMaxIdleConns(4)
	if old, ok := superusers.LoadOrStore(s, db); ok {
		_ = db.Close()
		return old.(*sql.DB), nil //nolint:forcetypeassert // as above
	}
	return db, nil
}

// lines runs a query for lines of text as the superuser.
func lines(ctx context.Context, s *bed.Server, database, query string, args ...any) ([]string, error) {
	db, err := superuser(s)
	if err != nil {
		return nil, err
	}
	if database != "" {
		if db, err = s.Admin(database); err != nil {
			return nil, err
		}
		defer db.Close()
	}
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var line sql.NullString
		if err := rows.Scan(&line); err != nil {
			return nil, err
		}
		out = append(out, line.String)
	}
	return out, rows.Err()
}

func ptr(n int) *int { return &n }
