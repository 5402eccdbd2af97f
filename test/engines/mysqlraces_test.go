// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine/enginetest"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// An admin drops a login after init has read it and before init acts on it. This passes, so init tries again. In no
// case does a GRANT create the login again without a password, which MariaDB would allow.
func TestLoginDroppedMeanwhile(t *testing.T) {
	t.Parallel()
	cases := []struct{ before, broken string }{
		{"ALTER USER ", "ALTER USER {b} WITH MAX_USER_CONNECTIONS 1"},
		{"GRANT ", "REVOKE ALL ON {db}.* FROM {b}"},
		{"REVOKE ", "GRANT DROP ON {db}.* TO {b}"},
	}
	for _, v := range bed.Versions {
		if v.Engine == bed.Postgres {
			continue
		}
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			var drop atomic.Pointer[func(question []byte) bool] // says whether it was this question
			s := overheard(t, v, func(q rig.Question) {
				if f := drop.Load(); f != nil && (*f)(q.Data) {
					drop.Store(nil)
				}
			})
			for _, c := range cases {
				x := s.NewTenant()
				x.Ensure(t)
				x.MustExec(t, "", x.SQL([]string{c.broken})...)
				now := func(question []byte) bool {
					if !bytes.Contains(question, []byte(c.before)) {
						return false
					}
					assert.NoError(t, x.Exec(t.Context(), "", x.SQL([]string{"DROP USER {b}"})...))
					return true
				}
				drop.Store(&now)
				if _, err := x.TryEnsure(t.Context()); !fault.Is(err, fault.Unavailable) {
					t.Errorf("dropped before %s: class %d: %v", c.before, fault.Of(err), err)
				}
				if drop.Load() != nil {
					t.Fatalf("no question with %s", c.before)
				}
				passwordless := x.Login(tenant.B)
				passwordless.Password = ""
				if err := x.Engine.Login(t.Context(), passwordless); !fault.Is(err, fault.WrongPassword) {
					t.Errorf("dropped before %s: a login without a password: %v", c.before, err)
				}
				x.Ensure(t)
				x.Works(t)
			}
		})
	}
}

// MariaDB refuses a right password while an admin reloads the privileges. init must not treat this as a wrong password,
// and must not set another one because of it. Here the login has another password for the length of one login attempt.
func TestRefusedForAMoment(t *testing.T) {
	t.Parallel()
	for _, v := range bed.Versions {
		if v.Engine != bed.MariaDB {
			continue
		}
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			var connection atomic.Pointer[func()] // is called once for each
			last := 0
			s := overheard(t, v, func(q rig.Question) {
				if q.Conn <= last {
					return
				}
				last = q.Conn
				if f := connection.Load(); f != nil {
					(*f)()
				}
			})
			x := s.NewTenant()
			x.Ensure(t)
			login := x.Login(tenant.A)
			j := newJob(t, s)
			r := j.run(t)
			lonely := r.Login(r.Active)
			j.Connector = func(context.Context) (connector.Connector, error) {
				return connector.Connector{}, fault.New(fault.Refused, "there is none")
			}
			for name, c := range map[string]struct {
				user     string
				password dbserver.Password
				try      func() error
			}{
				// Where there is a connector, Verify comes after it and is the second try.
				"a restart without a connector": {lonely.User, lonely.Password, func() error { _, err := j.try(t); return err }},
				"Verify":                        {login.User, login.Password, func() error { _, err := x.Engine.Verify(t.Context(), login, x.Names); return err }},
				"Self": {login.User, login.Password, func() error {
					self, err := x.Engine.TenantSession(t.Context(), login)
					if err == nil {
						self.Close()
					}
					return err
				}},
				"Admin": {s.Connector.User, s.Connector.Password, func() error {
					admin, err := x.Engine.Admin(t.Context(), s.Connector.User, s.Connector.Password)
					if err == nil {
						admin.Close()
					}
					return err
				}},
			} {
				number := 0
				change := func() {
					password := c.password.Reveal()
					if number++; number == 1 {
						password = "Another-password1"
					}
					assert.NoError(t, x.Exec(t.Context(), "", fmt.Sprintf("ALTER USER '%s'@'%%' IDENTIFIED BY '%s'", c.user, password)))
				}
				connection.Store(&change)
				assert.NoError(t, c.try(), name)
				connection.Store(nil)
				if number < 2 {
					t.Fatalf("%s: %d logins: the first one was to be refused", name, number)
				}
			}
		})
	}
}

// overheard is a server whose admin and tenants come through a front. The front calls heard with each question, and
// holds the question back until heard returns. The connection is in clear text, so that the front can tell the
// questions apart.
func overheard(t *testing.T, v bed.Version, heard func(rig.Question)) *enginetest.Server {
	t.Helper()
	server := bed.NewServer(t, v.Engine, v.Version, bed.Options{NoTLS: true})
	front := rig.NewFront(t, server.Addr(), nil)
	var mu sync.Mutex
	front.Name = func(q rig.Question) string {
		mu.Lock()
		defer mu.Unlock()
		heard(q)
		return ""
	}
	user, password, err := server.CloudAdmin(t.Context(), "cloudadmin")
	require.NoError(t, err)
	s := describe(server, user, password)
	_, port, err := net.SplitHostPort(front.Addr)
	require.NoError(t, err)
	n, err := strconv.ParseUint(port, 10, 16)
	require.NoError(t, err)
	s.Connector.Server.Port = uint16(n)
	s.Engine = open.Engine(s.Connector.Server, program)
	return s
}

// While an admin reloads the privileges, MariaDB 10.5 tells a client that its host may not connect. This passes by
// itself.
func TestPrivilegesFlushed(t *testing.T) {
	t.Parallel()
	const clients, times = 4, 100
	for _, v := range bed.Versions {
		if v.Engine == bed.Postgres {
			continue
		}
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			server := bed.NewServer(t, v.Engine, v.Version, bed.Options{NoTLS: true})
			x := describe(server, server.AdminUser, server.AdminPassword).NewTenant()
			x.Ensure(t)
			try := func(_ any, err error) {
				if fault.Is(err, fault.Refused) { // the server may also refuse a right password, rarely twice: the test above covers that
					t.Error(err)
				}
			}
			var clientsEnd, flushesEnd sync.WaitGroup
			defer flushesEnd.Wait()
			done := make(chan struct{})
			defer close(done)
			flushesEnd.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					if err := x.Exec(t.Context(), "", slices.Repeat([]string{"FLUSH PRIVILEGES"}, 5)...); err != nil {
						t.Error(err)
						return
					}
					try(x.TryEnsure(t.Context()))
				}
			})
			for range clients {
				clientsEnd.Go(func() {
					for range times {
						try(x.Engine.Verify(t.Context(), x.Login(tenant.A), x.Names))
					}
				})
			}
			clientsEnd.Wait()
		})
	}
}
