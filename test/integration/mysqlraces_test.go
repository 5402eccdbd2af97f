// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"net"
	"strconv"
	"sync/atomic"
	"testing"

	"dbconnector/pkg/engine"
	"dbconnector/pkg/engine/enginetest"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/races/rig"
)

// A login is dropped between what init reads of it and what init does about it. That is a moment like any other: init comes
// again. In no case does a GRANT make the login anew, as MariaDB lets it: without a password.
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
					if err := x.Exec(t.Context(), "", x.SQL([]string{"DROP USER {b}"})...); err != nil {
						t.Error(err)
					}
					return true
				}
				drop.Store(&now)
				if _, err := x.TryEnsure(t.Context()); !fault.Is(err, fault.Unavailable) {
					t.Errorf("dropped before %s: class %d: %v", c.before, fault.Of(err), err)
				}
				if drop.Load() != nil {
					t.Fatalf("no question with %s", c.before)
				}
				nobody := x.Login(tenant.B)
				nobody.Password = ""
				if err := x.Engine.Login(t.Context(), nobody); !fault.Is(err, fault.WrongPassword) {
					t.Errorf("dropped before %s: a login without a password: %v", c.before, err)
				}
				x.Ensure(t)
				x.Works(t)
			}
		})
	}
}

// overheard is a server whose superuser, and whose tenants, come through a front that calls heard with each question, and holds the
// question back so long. It is spoken to in clear text, so that a question can be told from another one.
func overheard(t *testing.T, v bed.Version, heard func(rig.Question)) *enginetest.Server {
	t.Helper()
	server := bed.NewServer(t, v.Engine, v.Version, bed.Options{NoTLS: true})
	front, err := rig.NewFront(t.Context(), "", server.Addr(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(front.Close)
	front.Name = func(q rig.Question) string {
		heard(q)
		return ""
	}
	s := describe(server, server.AdminUser, server.AdminPassword)
	_, port, err := net.SplitHostPort(front.Addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	s.Connector.Server.Port = uint16(n)
	s.Engine = engine.Open(s.Connector.Server, program)
	return s
}
