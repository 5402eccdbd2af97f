// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine/enginetest"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// TestConformanceInMemory holds the server in memory to the same rules as real servers. Its language has two statements.
func TestConformanceInMemory(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	link := Direct{&mu, "here"}
	s := NewServer()
	s.AdminPassword = "the-admin's"
	enginetest.RunBehaviour(t, enginetest.New(enginetest.Server{
		Connector: connector.Connector{User: "admin", Password: s.AdminPassword, Source: "memory"},
		Engine:    s.For(link),
		Connect: func(ctx context.Context, login tenant.Login) (enginetest.Connection, error) {
			session, err := client{s, link}.open(ctx, "login", login.User, func() error { return s.login(login) })
			if err != nil {
				return nil, err
			}
			session.Owner = nil
			return connection{session, link}, nil
		},
		Exec: func(_ context.Context, _ string, statements ...string) error {
			mu.Lock()
			defer mu.Unlock()
			for _, statement := range statements {
				verb, database, _ := strings.Cut(statement, " ")
				switch verb {
				case "drop":
					delete(s.Databases, database)
				case "close":
					s.Databases[database].Closed = true
				default:
					return fmt.Errorf("no statement: %q", statement)
				}
			}
			return nil
		},
		Snapshot: func(_ context.Context, n tenant.Names) (string, error) {
			mu.Lock()
			defer mu.Unlock()
			return fmt.Sprintf("%+v %t %t", s.Databases[n.Database], s.Users[n.User(tenant.A)] != "", s.Users[n.User(tenant.B)] != ""), nil
		},
		Log: func() (string, error) {
			mu.Lock()
			defer mu.Unlock()
			return strings.Join(slices.Clone(s.Log), "\n"), nil
		},
		Changing:     func(line string, n tenant.Names) bool { return strings.Contains(line, n.Database) },
		DropDatabase: []string{"drop {db}"},
		Close:        []string{"close {db}"},
	}))
}

// connection is a session of a control plane.
type connection struct {
	*Session
	link Direct
}

func (c connection) PingContext(ctx context.Context) error {
	return c.link.Call(ctx, "ping", c.Session, func() error {
		if !c.Alive() {
			return away()
		}
		return nil
	})
}

func (c connection) Close() error {
	c.link.Do(c.End)
	return nil
}

// crossed is a link on which calls fail as a test says.
type crossed struct {
	Direct
	fails func(what string) (before, after bool)
}

func (c crossed) Call(ctx context.Context, what string, on *Session, effect func() error) error {
	before, after := c.fails(what)
	if before {
		return fault.New(fault.Unavailable, "%s: failed", what)
	}
	if err := c.Direct.Call(ctx, what, on, effect); err != nil || !after {
		return err
	}
	return fault.New(fault.Unavailable, "%s: failed afterwards", what)
}

// TestCrossed: a call that fails before its effect has none, and one that fails afterwards has it. A session of which its process
// does not know is ended.
func TestCrossed(t *testing.T) {
	t.Parallel()
	names := tenant.NamesOf("crossed")
	for _, after := range []bool{false, true} {
		var mu sync.Mutex
		s := NewServer()
		s.Users[names.User(tenant.A)] = "right"
		s.Databases[names.Database] = &Database{Marker: names.Marker}
		fails := ""
		e := s.For(crossed{Direct{&mu, ""}, func(what string) (bool, bool) { return what == fails && !after, what == fails && after }})
		login := tenant.Login{User: names.User(tenant.A), Password: "right", Database: names.Database}

		fails = "open session"
		if _, err := e.TenantSession(t.Context(), login); !fault.Is(err, fault.Unavailable) || len(s.Sessions) > 0 {
			t.Errorf("after %t: %v, %d sessions", after, err, len(s.Sessions))
		}
		fails = "set password"
		self, err := e.TenantSession(t.Context(), login)
		if err != nil {
			t.Fatal(err)
		}
		err = self.SetPassword(t.Context(), dbserver.Password("fresh"))
		if changed := s.Users[login.User] == "fresh"; !fault.Is(err, fault.Unavailable) || changed != after {
			t.Errorf("after %t: %v, changed %t", after, err, changed)
		}
		self.Close()
		if len(s.Sessions) > 0 {
			t.Errorf("after %t: %d sessions", after, len(s.Sessions))
		}
	}
}
