// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"context"
	"strings"
	"testing"
	"time"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// (F7) A server that resolves the names of its clients speaks seconds after a client has connected. init waits for it
// nearly as long as an attempt lasts, over one connection, because each connection that init breaks off counts against
// the host (max_connect_errors).
func TestSlowGreeting(t *testing.T) {
	t.Parallel()
	const attempt, greeting = 10 * time.Second, 6 * time.Second // init's own limit, and the delay that was reported
	for _, v := range bed.Versions {
		if v.Engine == bed.Postgres {
			continue
		}
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			server := newServer(t, v)
			s := describe(server, server.AdminUser, server.AdminPassword)
			x := s.NewTenant()
			x.Ensure(t)
			proxy := bed.NewProxy(t, server.Addr())
			far := s.Connector.Server
			far.Port = uint16(proxy.Port())
			try := func(limit time.Duration) (int, error) {
				before := proxy.Connections()
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				_, err := open.Engine(far, program).HasData(ctx, x.Login(tenant.A))
				return proxy.Connections() - before, err
			}
			proxy.BlackHole()
			late := time.AfterFunc(greeting, proxy.Pass)
			defer late.Stop()
			if connections, err := try(attempt); err != nil || connections != 1 {
				t.Errorf("a greeting after %s: %d connections, %v", greeting, connections, err)
			}
			proxy.BlackHole() // now for good
			if connections, err := try(time.Second); !fault.Is(err, fault.Unavailable) || connections != 1 {
				t.Errorf("no greeting: %d connections, class %d: %v", connections, fault.Of(err), err)
			}
		})
	}
}

// (F7) A PostgreSQL server that is taken for MySQL is silent in the same way. init still reports it, and asks over the
// one connection as long as it lasts.
func TestSilentPostgres(t *testing.T) {
	t.Parallel()
	// PostgreSQL hangs up without a word when its authentication_timeout ends, which is usually a minute.
	server := bed.NewServer(t, bed.Postgres, "17", bed.Options{Settings: map[string]string{"authentication_timeout": "5s"}})
	for name, test := range map[string]struct {
		attempt     time.Duration
		connections int
	}{
		"asked while it waits":   {4 * time.Second, 1},
		"asked after it hung up": {9 * time.Second, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := bed.NewProxy(t, server.Addr())
			wrong := dbserver.Server{Engine: dbserver.MySQL, Host: proxy.Host(), Port: uint16(proxy.Port()), SSLMode: dbserver.Require}
			ctx, cancel := context.WithTimeout(t.Context(), test.attempt)
			defer cancel()
			_, err := open.Engine(wrong, program).Admin(ctx, server.AdminUser, dbserver.Password(server.AdminPassword))
			if !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), `"postgres"`) || int(proxy.Connections()) != test.connections {
				t.Errorf("%d connections, class %d: %v", proxy.Connections(), fault.Of(err), err)
			}
		})
	}
}
