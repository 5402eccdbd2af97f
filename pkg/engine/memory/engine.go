// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// ErrIgnored is for Server.Refuses: the server says yes to a new password and does nothing.
var ErrIgnored = errors.New("ignored")

// client is the server as one process sees it.
type client struct {
	*Server
	link Link
}

var _ engine.Engine = client{}

// For is the server for one process.
func (s *Server) For(link Link) engine.Engine { return client{s, link} }

// Login, Ready, HasData and Verify are one call each; see package engine.
func (c client) Login(ctx context.Context, l tenant.Login) error {
	return c.link.Call(ctx, "login", nil, func() error { return c.login(l) })
}

// Ready is Login, and finds the rights that the login has lost.
func (c client) Ready(ctx context.Context, l tenant.Login, _ tenant.Names) error {
	return c.link.Call(ctx, "login", nil, func() error {
		if err := c.login(l); err != nil {
			return err
		}
		if c.Databases[l.Database].Lost[l.User] {
			return fault.New(fault.NoAccess, "login %q has lost its rights", l.User)
		}
		return nil
	})
}

// HasData is Login, and says what the database holds.
func (c client) HasData(ctx context.Context, l tenant.Login) (data bool, err error) {
	err = c.link.Call(ctx, "login", nil, func() error {
		if err := c.login(l); err != nil {
			return err
		}
		data = c.Databases[l.Database].Data
		return nil
	})
	return data, err
}

// Verify is Login: here a login can never do too much.
func (c client) Verify(ctx context.Context, l tenant.Login, _ tenant.Names) ([]string, error) {
	return nil, c.link.Call(ctx, "verify", nil, func() error { return c.login(l) })
}

// DSN is no endpoint of a real server.
func (c client) DSN(l tenant.Login) (string, error) {
	return "memory://" + l.User + "@" + l.Database, nil
}

// open opens a session by one call. If the process does not get to know of it, the server ends it.
func (c client) open(ctx context.Context, what, user string, check func() error) (session *Session, err error) {
	err = c.link.Call(ctx, what, nil, func() error {
		if err := check(); err != nil {
			return err
		}
		session = c.Open(c.link, user, c.link.Address())
		return nil
	})
	if err != nil && session != nil {
		c.link.Do(func() { c.end(session) })
	}
	return session, err
}

// over is a call over a session that has to be there.
func (c client) over(ctx context.Context, session *Session, what string, effect func() error) error {
	return c.link.Call(ctx, what, session, func() error {
		if c.Down || !session.Alive() {
			return away()
		}
		return effect()
	})
}

// tenantSession is a session of a tenant's login.
type tenantSession struct {
	client
	session *Session
}

// TenantSession opens a session of a tenant's login.
func (c client) TenantSession(ctx context.Context, l tenant.Login) (engine.TenantSession, error) {
	session, err := c.open(ctx, "open session", l.User, func() error { return c.login(l) })
	if err != nil {
		return nil, err
	}
	return &tenantSession{c, session}, nil
}

// Sessions counts the login's other sessions; see package engine.
func (t *tenantSession) Sessions(ctx context.Context) (out engine.Sessions, err error) {
	err = t.over(ctx, t.session, "count sessions", func() error {
		addresses := map[string]bool{}
		for _, other := range t.Server.Sessions {
			if other.User != t.session.User || other == t.session {
				continue
			}
			out.Count++
			if other.Owner == nil {
				addresses[other.Address] = true
				if here := t.link.Address(); here == "" || here == other.Address {
					out.Here++
				}
			}
		}
		out.Addresses = len(addresses)
		return nil
	})
	return out, err
}

// Expel ends the login's older sessions; see package engine.
func (t *tenantSession) Expel(ctx context.Context) (out engine.Remains, err error) {
	out.LoginTime = t.LoginTime
	err = t.over(ctx, t.session, "end sessions", func() error {
		for _, other := range slices.Clone(t.Server.Sessions) {
			if other.User == t.session.User && other.Number < t.session.Number {
				out.Sessions++
				t.end(other)
			}
		}
		for _, l := range t.Begun {
			if l.In {
				out.Entering = append(out.Entering, strconv.Itoa(l.Number))
			}
		}
		return nil
	})
	return out, err
}

// SetPassword changes the login's own password.
func (t *tenantSession) SetPassword(ctx context.Context, p dbserver.Password) error {
	return t.over(ctx, t.session, "set password", func() error {
		if t.Refuses != nil {
			switch err := t.Refuses(t.link); {
			case errors.Is(err, ErrIgnored):
				return nil
			case err != nil:
				return err
			}
		}
		t.learn(t.link, t.session.User, p)
		return nil
	})
}

// Close ends the session.
func (t *tenantSession) Close() { t.link.Do(func() { t.close(t.session) }) }

// learn gives a login a password.
func (s *Server) learn(by Link, user string, p dbserver.Password) {
	if s.Learns != nil {
		s.Learns(by, user, p)
	}
	s.Users[user] = p
}

// admin is a session of the admin.
type admin struct {
	client
	session *Session
}

// Admin opens a session of the admin.
func (c client) Admin(ctx context.Context, user string, password dbserver.Password) (engine.Admin, error) {
	session, err := c.open(ctx, "open admin session", "", func() error {
		switch {
		case c.Down:
			return away()
		case c.AdminPassword != "" && password != c.AdminPassword:
			return fault.New(fault.WrongPassword, "wrong password of the admin %q", user)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &admin{c, session}, nil
}

// Lock waits for the tenant's lock.
func (a *admin) Lock(ctx context.Context, names tenant.Names) error {
	for {
		got := false
		err := a.over(ctx, a.session, "lock", func() error {
			if holder := a.Locks[names.Lock]; holder == nil || holder == a.session {
				a.Locks[names.Lock], got = a.session, true
			}
			return nil
		})
		if err != nil || got {
			return err
		}
		if !a.link.Wait(ctx, "lock") {
			return fault.New(fault.Unavailable, "waiting for the tenant's lock: another session holds it")
		}
	}
}

// Ensure brings about what is wanted, each step by a call of its own.
func (a *admin) Ensure(ctx context.Context, spec engine.Spec) (out engine.Outcome, err error) {
	changed := func(name string) {
		out.Changes = append(out.Changes, name)
		a.Log = append(a.Log, name+" of "+spec.Database)
	}
	missing := func() error {
		if a.Databases[spec.Database] == nil && (spec.Provisioned || spec.Existing) {
			return fault.New(fault.NoDatabase, "database %q is not on this server", spec.Database)
		}
		return nil
	}
	steps := []struct {
		name   string
		effect func() error
	}{
		{"look", func() error {
			if d := a.Databases[spec.Database]; d != nil && d.Marker != spec.Marker && !spec.Provisioned {
				return fault.New(fault.Refused, "database %q exists and carries no mark of this tenant", spec.Database)
			}
			return missing()
		}},
		{"create login a", func() error { a.createLogin(spec, tenant.A, changed); return nil }},
		{"create login b", func() error { a.createLogin(spec, tenant.B, changed); return nil }},
		{engine.CreateDatabase, func() error {
			if err := missing(); err != nil { // it may have gone meanwhile
				return err
			}
			d := a.Databases[spec.Database]
			if d == nil {
				d = &Database{Marker: spec.Marker, Limit: spec.ConnectionLimit}
				a.Databases[spec.Database] = d
				changed(engine.CreateDatabase)
			}
			if d.Marker != spec.Marker || d.Limit != spec.ConnectionLimit || d.Closed || len(d.Lost) > 0 {
				d.Marker, d.Limit, d.Closed, d.Lost = spec.Marker, spec.ConnectionLimit, false, nil
				changed("set the database right")
			}
			return nil
		}},
	}
	for _, step := range steps {
		if err := a.over(ctx, a.session, "ensure: "+step.name, step.effect); err != nil {
			return out, err
		}
	}
	return out, nil
}

func (a *admin) createLogin(spec engine.Spec, slot tenant.Slot, changed func(string)) {
	if _, ok := a.Users[spec.User(slot)]; !ok {
		a.learn(a.link, spec.User(slot), spec.Passwords[slot])
		changed("create login " + string(slot))
	}
}

// InUse says whether a login has a session.
func (a *admin) InUse(ctx context.Context, user string) (used bool, err error) {
	err = a.over(ctx, a.session, "in use", func() error {
		used = a.Used(user) > 0
		if a.Looked != nil {
			a.Looked(user)
		}
		return nil
	})
	return used, err
}

// SetPassword sets the password of a login that exists.
func (a *admin) SetPassword(ctx context.Context, user string, p dbserver.Password) error {
	return a.over(ctx, a.session, "admin sets password", func() error {
		if _, ok := a.Users[user]; !ok {
			return fault.New(fault.Unavailable, "login %q is gone", user)
		}
		a.learn(a.link, user, p)
		return nil
	})
}

// Close ends the session and with it its lock.
func (a *admin) Close() { a.link.Do(func() { a.close(a.session) }) }
