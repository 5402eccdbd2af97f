// SPDX-License-Identifier: Apache-2.0

// Package provision is what init does, in order.
//
// The restart path comes first: read the record, log in with it, publish. It needs no connector and no admin credential, for
// a control plane has to come up on the day the admin's password was rotated. Everything else is the admin path. It writes
// the record before the server learns of a password, and works under a lock on the server, so that any number of inits that
// start together, and any that were killed at any point, end in the same state.
//
// One promise governs the decisions: a control plane that had data never starts on an empty database. A record that says
// "provisioned" and a server without the database is an error, never a beginning.
package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// Init provisions one tenant. A field is required unless it says what its zero value means.
type Init struct {
	// Namespace and VCluster name the control plane.
	Namespace, VCluster string
	// TenantUID is the operator's choice; empty means that it is derived.
	TenantUID string
	// UID derives the tenant UID. It is called only on the admin path, and only without a TenantUID.
	UID func(ctx context.Context) (string, error)
	// First is asked before a tenant begins: where there is no record, or, begun, one whose database was never complete. Its
	// error ends the run, and nothing was made. ran is what shows that this control plane has run before: its database must be
	// on the server then, and a new one is refused. "" and nil allow it.
	First func(ctx context.Context, begun bool) (ran string, err error)
	// ConnectionLimit is for the tenant's database or accounts.
	ConnectionLimit int
	// Attempt bounds one login; the context given to Run bounds everything.
	Attempt time.Duration
	// Quiet is how long a login must have had no session before its password is reset. One look is not enough: after a
	// restart of the server no client has a session, and a running kine, which asks once a second, is back in a moment.
	Quiet time.Duration
	// Patience is how long a server that does not answer is waited for before the connector is asked whether the tenant has
	// moved: an outage alone must not put a control plane on a copy that is being prepared.
	Patience time.Duration

	Store tenant.Store
	// RecordName and ForgetCommand name the record, and how to delete it, in messages.
	RecordName, ForgetCommand string
	// Connector reads and checks the connector. It is called only when it is needed.
	Connector func(ctx context.Context) (connector.Connector, error)
	// Publish writes the hand-over for a record.
	Publish func(r *tenant.Record) error

	Log *zap.Logger
	// Waiting is told of each try after which there is another one; nil for none.
	Waiting func(err error, attempt int)
	// Now is the clock; nil: the real one.
	Now func() time.Time
}

// Result says what was done.
type Result struct {
	Record *tenant.Record
	// Restarted: the restart path sufficed.
	Restarted bool
	// Outcome is what changed on the server and what the admin should look at.
	Outcome engine.Outcome
	// Created: this run created the database. TookOver: there was no record, and the database was there.
	Created, TookOver bool
	// Applied is what the record says otherwise now than before of how to reach the server, as the connector says it.
	Applied []string
	// NotApplied is why what the operator asked for, to apply the connector, could not be done.
	NotApplied error
}

// String says what the admin path has come to.
func (r Result) String() string {
	database := r.Record.Database + " on " + r.Record.Server.Address()
	message := "database " + database + " is ready"
	switch {
	case r.Created:
		message = "created a new, empty database " + database
	case r.TookOver:
		message = "there was no record: took over the existing database " + database
	}
	if len(r.Applied) > 0 {
		message += "; applied the connector: " + strings.Join(r.Applied, ", ")
	}
	return message
}

// Run provisions the tenant and publishes the hand-over. open gives access to a server.
//
// It repeats what failed for lack of the moment (fault.Unavailable), with backoff and jitter, until ctx ends; any other
// failure ends it at once. Nothing is published unless all of it succeeded.
func Run(ctx context.Context, p Init, open func(dbserver.Server) engine.Engine) (Result, error) {
	r := run{Init: p, began: time.Now(), open: open, warned: map[string]bool{}, refusals: map[tenant.Login][]error{}}
	if r.Now == nil {
		r.Now = time.Now
	}
	var last error
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 200*time.Millisecond, 10*time.Second
	attempt := 0
	result, err := backoff.Retry(ctx, func() (Result, error) {
		attempt++
		result, err := r.attempt(ctx)
		switch {
		case err == nil:
			return result, nil
		case over(ctx) && last != nil:
			// The end of time cut this attempt short; the one before says more.
			return result, backoff.Permanent(last)
		case fault.Is(err, fault.Unavailable):
			last = err
			return result, err
		}
		last = err
		return result, backoff.Permanent(err)
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(0), // ctx is the limit
		backoff.WithNotify(func(err error, next time.Duration) {
			r.Log.Warn("waiting", zap.String("error", err.Error()), zap.Int("attempt", attempt), zap.Duration("next", next))
			if r.Waiting != nil {
				r.Waiting(err, attempt)
			}
		}))
	if err == nil {
		return result, nil
	}
	if last == nil {
		last = err
	}
	if over(ctx) && !errors.Is(ctx.Err(), context.Canceled) {
		return Result{}, fmt.Errorf("gave up when the time limit was reached: %w", last)
	}
	if ctx.Err() != nil {
		return Result{}, fmt.Errorf("stopped on request: %w", context.Cause(ctx))
	}
	return Result{}, last
}

// over says whether ctx has ended, or is about to: a connection notices the deadline by its own clock, at times a moment
// before the context does.
func over(ctx context.Context) bool {
	deadline, limited := ctx.Deadline()
	return ctx.Err() != nil || limited && !time.Now().Before(deadline)
}

type run struct {
	Init
	began  time.Time
	open   func(dbserver.Server) engine.Engine
	warned map[string]bool
	// tenant is the UID that this attempt is for. A record that says another one has been put in its place meanwhile.
	tenant string
	// refusals are the server's answers to active logins whose password it calls wrong.
	refusals map[tenant.Login][]error
	// request is the operator's request to apply the connector that this attempt saw; a later one is left to a later start.
	request string
	// ranBefore is what shows that the control plane has run before; see Init.First.
	ranBefore string
	// wroteRecord, createdDatabase: this run did.
	wroteRecord, createdDatabase bool
}

func (r *run) attempt(ctx context.Context) (Result, error) {
	record, err := r.Store.Load(ctx)
	if err != nil {
		return Result{}, err
	}
	if err := r.belongs(record); err != nil {
		return Result{}, err
	}
	r.tenant, r.request = "", ""
	if record != nil {
		r.tenant, r.request = record.UID, record.Apply
	}
	if r.First != nil && !r.wroteRecord && (record == nil || !record.Provisioned()) {
		if r.ranBefore, err = r.First(ctx, record != nil); err != nil {
			return Result{}, err
		}
	}

	// The restart path.
	var refused error
	if record != nil && record.Provisioned() {
		var data bool
		data, refused = r.hasData(ctx, r.open(record.Server), record.Login(record.Active))
		switch {
		case refused == nil && record.DataSeen && !data:
			return Result{}, r.empty(record, record.Server)
		case refused == nil:
			return r.restart(ctx, record, data)
		case fault.Is(refused, fault.Unavailable) && time.Since(r.began) < r.Patience:
			return Result{}, refused
		}
	}

	// From here on the connector is needed.
	c, err := r.Connector(ctx)
	if err != nil {
		if repairable(refused) {
			// Some servers refuse a right password for a moment (MariaDB, FLUSH PRIVILEGES). Where there is a connector, the admin path
			// asks again before it believes that.
			if data, err := r.hasData(ctx, r.open(record.Server), record.Login(record.Active)); err == nil && (data || !record.DataSeen) {
				return r.restart(ctx, record, data)
			}
			return Result{}, fmt.Errorf("the record's login is refused (%s), and to repair it the connector is needed: %w", refused.Error(), err)
		}
		if refused != nil {
			return Result{}, r.guard(record, record.Server, refused)
		}
		return Result{}, err
	}
	r.warn(c.Warnings)
	// A server that does not answer, or that cannot be verified any more, may have moved: the connector knows where to.
	moved := record != nil && record.Server != c.Server
	if refused != nil && !moved && !repairable(refused) {
		return Result{}, r.guard(record, record.Server, refused)
	}
	return r.provision(ctx, record, c)
}

// repairable says whether the admin path may repair what keeps a login out. Also where the class is unknown: a
// login's settings, which a tenant makes, decide with which code it fails (docs/failures.md S6).
func repairable(err error) bool {
	switch fault.Of(err) {
	case fault.WrongPassword, fault.NoAccess, fault.Unknown:
		return err != nil
	}
	return false
}

// tries is how often a run presents an active login that the server refuses for its password. Servers count that and block the
// account (MariaDB's max_password_errors, MySQL's FAILED_LOGIN_ATTEMPTS), and with it a control plane that uses it with another
// password, while init waits for a login that is free.
const tries = 2

// asActive limits what logs in with the active login, in time and in number.
func (r *run) asActive(ctx context.Context, login tenant.Login, do func(context.Context) error) error {
	if refusals := r.refusals[login]; len(refusals) >= tries {
		return refusals[tries-1]
	}
	ctx, cancel := context.WithTimeout(ctx, r.Attempt)
	defer cancel()
	err := do(ctx)
	if fault.Is(err, fault.WrongPassword) {
		r.refusals[login] = append(r.refusals[login], err)
	}
	return err
}

// hasData logs in with the active login, and says whether its database holds a store with data.
func (r *run) hasData(ctx context.Context, s engine.Engine, login tenant.Login) (data bool, err error) {
	err = r.asActive(ctx, login, func(ctx context.Context) error {
		data, err = s.HasData(ctx, login)
		return err
	})
	return data, err
}

func (r *run) login(ctx context.Context, s engine.Engine, login tenant.Login) error {
	ctx, cancel := context.WithTimeout(ctx, r.Attempt)
	defer cancel()
	return s.Login(ctx, login)
}

// warn says each warning once, however often the connector is read.
func (r *run) warn(warnings []string) {
	for _, w := range warnings {
		if !r.warned[w] {
			r.warned[w] = true
			r.Log.Warn("configuration warning", zap.String("warning", w))
		}
	}
}

// restart publishes a record whose login works. Where something is left to do for which only the admin has the right, it is
// tried; a failure must not keep a control plane from coming up.
func (r *run) restart(ctx context.Context, record *tenant.Record, data bool) (Result, error) {
	if data && !record.DataSeen || record.Unclaimed {
		// Once in a tenant's life: from now on an empty database is a loss. And once after a restore: from now on the record is
		// known to be this one's.
		limited, cancel := context.WithTimeout(ctx, r.Attempt) // the store would try as long as it may
		seen, err := r.change(limited, func(old *tenant.Record) { old.DataSeen, old.Unclaimed = old.DataSeen || data, false })
		cancel()
		if err == nil {
			record = seen
		} else {
			r.Log.Warn("could not note what was found (continuing)", zap.String("error", err.Error()))
		}
	}
	var notApplied error
	if todo := r.unfinished(record); todo != "" {
		result, err := r.finish(ctx, record)
		if err == nil {
			return result, nil
		}
		if record.Apply != "" {
			notApplied = err
		}
		r.Log.Warn("could not finish what is left to do (continuing)", zap.String("todo", todo), zap.String("error", err.Error()))
		// It may have come far enough to change the active credential.
		limited, cancel := context.WithTimeout(ctx, r.Attempt)
		now, err := r.Store.Load(limited)
		cancel()
		if err == nil && now != nil && r.same(now) == nil {
			record = now
		}
	}
	if err := r.Publish(record); err != nil {
		return Result{}, err
	}
	return Result{Record: record, Restarted: true, NotApplied: notApplied}, nil
}

// unfinished says what the admin path would still do for a tenant whose login works; "" where nothing.
func (r *run) unfinished(record *tenant.Record) string {
	switch {
	case record.Apply != "":
		return "apply the connector"
	case record.Make < tenant.Make:
		return "bring the tenant's objects up to date"
	case record.ConnectionLimit != r.ConnectionLimit:
		return "set the connection limit"
	case record.Slots[record.Active.Other()].Password == "" || record.OtherRefused:
		return "set the password of the inactive slot"
	case record.Pending != nil && (record.Pending.Admin || record.Pending.Slot == record.Active):
		return "settle a repair that was cut short"
	}
	return ""
}

func (r *run) finish(ctx context.Context, record *tenant.Record) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*r.Attempt)
	defer cancel()
	c, err := r.Connector(ctx)
	if err != nil {
		return Result{}, err
	}
	if c.Server == record.Server {
		return r.provision(ctx, record, c)
	}
	if record.Apply == "" && (c.Server.Engine != record.Server.Engine || c.Server.Address() != record.Server.Address()) {
		return Result{}, errors.New("the connector points at another server than the record, whose login still works")
	}
	// Before anything is changed, what works here has to work there: the same login, on the same data.
	data, err := r.hasData(ctx, r.open(c.Server), record.Login(record.Active))
	switch {
	case err != nil:
		return Result{}, r.guard(record, c.Server, fmt.Errorf("%s: with the settings of the connector: %w", c.Server.Address(), err))
	case record.DataSeen && !data:
		return Result{}, r.empty(record, c.Server)
	}
	return r.provision(ctx, record, c)
}

// differences are what an operator must see when a control plane is led by other settings than before.
func differences(was, is dbserver.Server) (list []string) {
	for _, d := range []struct{ what, was, is string }{
		{"type", string(was.Engine), string(is.Engine)},
		{"address", was.Address(), is.Address()},
		{"sslMode", string(was.SSLMode), string(is.SSLMode)},
	} {
		if d.was != d.is {
			list = append(list, d.what+" "+d.was+" -> "+d.is)
		}
	}
	switch {
	case was.CA == is.CA:
	case was.CA == "":
		list = append(list, "caCert added")
	case is.CA == "":
		list = append(list, "caCert removed")
	default:
		list = append(list, "caCert replaced")
	}
	return list
}

// provision is the admin path.
func (r *run) provision(ctx context.Context, record *tenant.Record, c connector.Connector) (Result, error) {
	uid, err := r.uid(ctx, record)
	if err != nil {
		return Result{}, err
	}
	r.tenant = uid
	s := r.open(c.Server)
	admin, err := r.admin(ctx, s, c)
	if err != nil {
		return Result{}, err
	}
	defer admin.Close()
	if err := admin.Lock(ctx, tenant.NamesOf(uid)); err != nil {
		return Result{}, err
	}
	// Only under the lock is the record what it will stay: the init that held it before may have moved it on, also one that
	// this init has written itself.
	if record, err = r.intent(ctx, record, uid, c.Server); err != nil {
		return Result{}, err
	}

	outcome, err := admin.Ensure(ctx, engine.Spec{
		Names:           record.Names(),
		Passwords:       r.passwords(record),
		ConnectionLimit: r.ConnectionLimit,
		Provisioned:     record.Provisioned(),
		Existing:        r.ranBefore != "" && !r.createdDatabase,
	})
	r.createdDatabase = r.createdDatabase || slices.Contains(outcome.Changes, engine.CreateDatabase)
	if err != nil {
		return Result{}, r.guard(record, c.Server, fmt.Errorf("%s: %w", c.Server.Address(), err))
	}
	repair := repair{run: r, server: s, admin: admin, record: record, outcome: &outcome}
	if err := repair.settle(ctx); err != nil {
		return Result{}, r.guard(record, c.Server, err)
	}
	record = repair.record
	if record.DataSeen {
		data, err := r.hasData(ctx, s, record.Login(record.Active))
		if err != nil {
			return Result{}, r.guard(record, c.Server, err)
		}
		if !data {
			return Result{}, r.empty(record, c.Server)
		}
	}
	was := record.Server
	record, err = r.Store.Update(ctx, func(old *tenant.Record) (*tenant.Record, error) {
		if err := r.same(old); err != nil {
			return nil, err
		}
		if old.Apply == r.request {
			old.Apply = ""
		}
		old.Server, old.ConnectionLimit = c.Server, r.ConnectionLimit
		old.Make = max(old.Make, tenant.Make) // what a later release made stays: Ensure takes nothing back
		if !old.Provisioned() {
			old.ProvisionedAt = r.Now().UTC().Truncate(time.Second)
			old.RotatedAt = old.ProvisionedAt
		}
		return old, nil
	})
	if err != nil {
		return Result{}, err
	}
	if err := r.Publish(record); err != nil {
		return Result{}, err
	}
	result := Result{
		Record: record, Outcome: outcome, Applied: differences(was, c.Server),
		Created: r.createdDatabase, TookOver: r.wroteRecord && !r.createdDatabase,
	}
	if len(result.Applied) > 0 {
		r.Log.Info("applied the connector", zap.Strings("changes", result.Applied))
	}
	return result, nil
}

// intent reads the record, and writes it where there was none: the passwords are in it before any server learns them, and
// of N replicas that start together one writes it, while the others use what it wrote.
func (r *run) intent(ctx context.Context, record *tenant.Record, uid string, at dbserver.Server) (*tenant.Record, error) {
	var err error
	seen := record != nil
	if seen {
		record, err = r.Store.Load(ctx)
	} else {
		fresh := tenant.NewRecord(uid, r.Namespace, r.VCluster, at, r.ConnectionLimit)
		record, err = r.Store.Update(ctx, func(old *tenant.Record) (*tenant.Record, error) {
			if old == nil {
				return fresh, nil
			}
			return old, nil
		})
		r.wroteRecord = r.wroteRecord || err == nil && record.Slots[tenant.A] == fresh.Slots[tenant.A]
	}
	if err != nil {
		return nil, err
	}
	if err := r.belongs(record); err != nil {
		return nil, err
	}
	if err := r.same(record); err != nil {
		return nil, err
	}
	if !seen && record.Server != at {
		// The record was away for a moment. Its server comes first: what works there must not be left for the connector's.
		return nil, fault.New(fault.Unavailable, "the tenant's record was not there, and is there now, with another server than the connector's: looking at it again")
	}
	return record, nil
}

// passwords are for logins that have to be created; a slot whose password is not known gets one that is not kept, until
// settleOther replaces it.
func (r *run) passwords(record *tenant.Record) map[tenant.Slot]dbserver.Password {
	out := map[tenant.Slot]dbserver.Password{}
	for slot, credential := range record.Slots {
		out[slot] = credential.Password
		if credential.Password == "" {
			out[slot] = tenant.NewPassword()
		}
	}
	return out
}

// admin opens the admin's session. What a server says of the admin's credential, only a human, or the program that syncs the connector,
// can correct.
func (r *run) admin(ctx context.Context, s engine.Engine, c connector.Connector) (engine.Admin, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Attempt)
	defer cancel()
	admin, err := s.Admin(ctx, c.User, c.Password)
	switch fault.Of(err) {
	case fault.WrongPassword:
		return nil, fault.New(fault.Refused, `%s: the server refuses the admin: %w; see keys "user" and "password"`, c.Source, err)
	case fault.NoDatabase, fault.NoAccess:
		return nil, fault.New(fault.Refused, `%s: the admin cannot do its work: %w`, c.Source, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Source, err)
	}
	return admin, nil
}

// change is Update for a record that is there, and still the same tenant's.
func (r *run) change(ctx context.Context, fn func(old *tenant.Record)) (*tenant.Record, error) {
	return r.Store.Update(ctx, func(old *tenant.Record) (*tenant.Record, error) {
		if err := r.same(old); err != nil {
			return nil, err
		}
		fn(old)
		return old, nil
	})
}
