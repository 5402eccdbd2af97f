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
	"maps"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// Store keeps the tenant's record.
type Store interface {
	// Load reads the record; nil where there is none.
	Load(ctx context.Context) (*tenant.Record, error)
	// Update stores fn(old) if nobody else wrote meanwhile, else tries again: fn may run more than once and must have no
	// effects. old is nil where there is no record.
	Update(ctx context.Context, fn func(old *tenant.Record) (*tenant.Record, error)) (*tenant.Record, error)
}

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
	// restart of the server nobody has a session, and a running kine, which asks once a second, is back in a moment.
	Quiet time.Duration
	// Patience is how long a server that does not answer is waited for before the connector is asked whether the tenant has
	// moved: an outage alone must not put a control plane on a copy that somebody prepared.
	Patience time.Duration

	Store Store
	// RecordName and ForgetCommand name the record, and how to delete it, in messages.
	RecordName, ForgetCommand string
	// Connector reads and checks the connector. It is called only when it is needed.
	Connector func(ctx context.Context) (connector.Connector, error)
	// Publish writes the hand-over for a record.
	Publish func(r *tenant.Record) error

	Log *zap.Logger
	// Waiting is told of each try after which there is another one; nil: nobody is.
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
	// ran: see Init.First.
	ran string
	// born, created: this run made the record, the database.
	born, created bool
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
	if r.First != nil && !r.born && (record == nil || !record.Provisioned()) {
		if r.ran, err = r.First(ctx, record != nil); err != nil {
			return Result{}, err
		}
	}

	// The restart path.
	var refused error
	if record != nil && record.Provisioned() {
		var data bool
		data, refused = r.enter(ctx, r.open(record.Server), record.Login(record.Active))
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
			if data, err := r.enter(ctx, r.open(record.Server), record.Login(record.Active)); err == nil && (data || !record.DataSeen) {
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

// repairable says whether the admin path may mend what keeps a login out. Also where the class is unknown: a
// login's settings, which a tenant makes, decide with which code it fails (docs/failures.md S6).
func repairable(err error) bool {
	switch fault.Of(err) {
	case fault.WrongPassword, fault.NoAccess, fault.Unknown:
		return err != nil
	}
	return false
}

// belongs refuses a record of somebody else: restored under another name, or copied.
func (r *run) belongs(record *tenant.Record) error {
	switch {
	case record == nil || record.Of(r.Namespace, r.VCluster, r.TenantUID):
	case r.TenantUID != "":
		return fault.New(fault.Refused, "%s belongs to tenant UID %s, and DBCONNECTOR_TENANT_UID=%s: set the variable to the former to keep its data, or move the record out of the way: %s",
			r.RecordName, fault.Show(record.UID), fault.Show(r.TenantUID), r.ForgetCommand)
	default:
		return fault.New(fault.Refused, "%s was made for vCluster %q in namespace %q: if it was moved here and the old one is gone, set DBCONNECTOR_TENANT_UID=%s to go on with its data; if it was copied, delete it: %s",
			r.RecordName, record.VCluster, record.Namespace, record.UID, r.ForgetCommand)
	}
	return nil
}

// guard turns "the database is not there" into the refusal that promise 2 asks for. Every other error passes. A database that
// was never complete, and is dropped while it is set up, is made again.
func (r *run) guard(record *tenant.Record, at dbserver.Server, err error) error {
	switch {
	case !fault.Is(err, fault.NoDatabase):
		return err
	case !record.Provisioned() && r.ran != "" && !r.created:
		return fault.New(fault.Refused, "this control plane has run before (%s), and neither is there a record of its database nor is database %q on %s: refusing to start on an empty one; "+
			"if its data is in another store (SQLite, etcd, another database), it has to stay there; if the data is to be given up, set DBCONNECTOR_ALLOW_NEW=true for one start",
			r.ran, record.Database, at.Address())
	case !record.Provisioned():
		return fault.New(fault.Unavailable, "database %q vanished while it was set up: %w", record.Database, err)
	}
	return fault.New(fault.Refused, "%s says that database %q was provisioned on %s, and it is not on %s: refusing to start on an empty one; "+
		"bring the database back (restore it, or let the connector point at the server that has it); to give its data up and begin anew, set DBCONNECTOR_ALLOW_NEW=true for one start, and: %s",
		r.RecordName, record.Database, record.Server.Address(), at.Address(), r.ForgetCommand)
}

// empty is the same refusal for a database that is there and has lost its content: a restore that ended after its first
// statement looks like that.
func (r *run) empty(record *tenant.Record, at dbserver.Server) error {
	return fault.New(fault.Refused, "%s says that database %q held this control plane's data, and on %s it holds none: refusing to start on an empty one; "+
		"bring the data back (restore it, or let the connector point at the server that has it); to give it up and begin anew: %s",
		r.RecordName, record.Database, at.Address(), r.ForgetCommand)
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

func (r *run) enter(ctx context.Context, s engine.Engine, login tenant.Login) (data bool, err error) {
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
			r.Log.Warn("please look at this", zap.String("warning", w))
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
	data, err := r.enter(ctx, r.open(c.Server), record.Login(record.Active))
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
	// Only under the lock is the record what it will stay: whoever held it before may have moved it on, also one that we
	// have written ourselves.
	if record, err = r.intent(ctx, record, uid, c.Server); err != nil {
		return Result{}, err
	}

	outcome, err := admin.Ensure(ctx, engine.Spec{
		Names:           record.Names(),
		Passwords:       r.passwords(record),
		ConnectionLimit: r.ConnectionLimit,
		Provisioned:     record.Provisioned(),
		Existing:        r.ran != "" && !r.created,
	})
	r.created = r.created || slices.Contains(outcome.Changes, engine.CreateDatabase)
	if err != nil {
		return Result{}, r.guard(record, c.Server, fmt.Errorf("%s: %w", c.Server.Address(), err))
	}
	settled, err := r.settle(ctx, s, admin, record, &outcome)
	if err != nil {
		return Result{}, r.guard(record, c.Server, err)
	}
	record = settled
	if record.DataSeen {
		data, err := r.enter(ctx, s, record.Login(record.Active))
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
	result := Result{Record: record, Outcome: outcome, Created: r.created, TookOver: r.born && !r.created, Applied: differences(was, c.Server)}
	if len(result.Applied) > 0 {
		r.Log.Info("applied the connector", zap.Strings("changes", result.Applied))
	}
	return result, nil
}

// uid is the tenant's, and never what the record alone says: who may write Secrets in one namespace could write another
// tenant's UID into the record there, and have the admin open that tenant's database (S2).
func (r *run) uid(ctx context.Context, record *tenant.Record) (string, error) {
	uid := r.TenantUID
	if uid == "" {
		var err error
		if uid, err = r.UID(ctx); err != nil {
			return "", err
		}
	}
	if record != nil && record.UID != uid {
		return "", fault.New(fault.Refused, "%s names another tenant than this namespace and vCluster are, and with the admin's credential only the own one may be touched: if its database was moved here for good, set DBCONNECTOR_TENANT_UID=%s; if not, somebody has edited it: restore it from a backup, or delete it: %s",
			r.RecordName, fault.Show(record.UID), r.ForgetCommand)
	}
	return uid, nil
}

// same refuses a record that is gone, or is another tenant's than that of this attempt.
func (r *run) same(record *tenant.Record) error {
	switch {
	case record == nil:
		return fault.New(fault.Unavailable, "%s was deleted while it was in use", r.RecordName)
	case record.UID != r.tenant: // and so it is not this tenant's lock that is held
		return fault.New(fault.Unavailable, "%s was replaced while it was in use", r.RecordName)
	}
	return nil
}

// intent reads the record, and writes it where there was none: the passwords are in it before any server learns them, and
// of N replicas that start together one writes it, while the others use what it wrote.
func (r *run) intent(ctx context.Context, record *tenant.Record, uid string, at dbserver.Server) (*tenant.Record, error) {
	var err error
	if record != nil {
		record, err = r.Store.Load(ctx)
	} else {
		fresh := tenant.NewRecord(uid, r.Namespace, r.VCluster, at, r.ConnectionLimit)
		record, err = r.Store.Update(ctx, func(old *tenant.Record) (*tenant.Record, error) {
			if old == nil {
				return fresh, nil
			}
			return old, nil
		})
		r.born = r.born || err == nil && record.Slots[tenant.A] == fresh.Slots[tenant.A]
	}
	if err != nil {
		return nil, err
	}
	if err := r.belongs(record); err != nil {
		return nil, err
	}
	return record, r.same(record)
}

// passwords are for logins that have to be created; a slot whose password nobody knows gets one that nobody will, until
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

// admin opens the admin's session. What a server says of the admin's credential, only a human or whatever syncs the connector
// can mend.
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

// settle makes the active slot's login work, under the tenant's lock, and checks what the tenant can do with it.
func (r *run) settle(ctx context.Context, s engine.Engine, admin engine.Admin, record *tenant.Record, outcome *engine.Outcome) (*tenant.Record, error) {
	verify := func() error {
		return r.asActive(ctx, record.Login(record.Active), func(ctx context.Context) error {
			warnings, err := s.Verify(ctx, record.Login(record.Active), record.Names())
			if err == nil {
				outcome.Warnings = append(outcome.Warnings, warnings...)
			}
			return err
		})
	}
	err := verify()
	if err == nil {
		if p := record.Pending; p != nil && p.Slot == record.Active {
			// A repair that was cut short before it reached the server, and that nobody needs any more: the login test shows it.
			if record, err = r.change(ctx, func(old *tenant.Record) { old.Pending = nil }); err != nil {
				return nil, err
			}
		}
		return r.settleOther(ctx, s, admin, record, outcome)
	}
	if !fault.Is(err, fault.WrongPassword) {
		return nil, err
	}

	// The server does not know the record's password: the record was lost or is older than the server, or somebody changed
	// the password by hand (docs/failures.md B51). What is pending comes first.
	if record.Pending != nil {
		if record, err = r.rollForward(ctx, s, admin, record, true, outcome); err != nil {
			return nil, err
		}
		if err = verify(); err == nil {
			return r.settleOther(ctx, s, admin, record, outcome)
		}
		if !fault.Is(err, fault.WrongPassword) {
			return nil, err
		}
	}
	slot, err := r.unusedSlot(ctx, admin, record)
	if err != nil {
		return nil, err
	}
	if record, err = r.reset(ctx, s, admin, record, slot, tenant.Activate, outcome); err != nil {
		return nil, err
	}
	if err := verify(); fault.Is(err, fault.WrongPassword) {
		// The change was dropped: somebody began to use the slot after we had looked.
		return nil, fault.New(fault.Unavailable, "waiting for a login that nobody uses: %w", err)
	} else if err != nil {
		return nil, err
	}
	return r.settleOther(ctx, s, admin, record, outcome)
}

// unusedSlot chooses the slot that may get a new password: one without sessions, and of two such the active one, whose
// recorded password is known not to work.
func (r *run) unusedSlot(ctx context.Context, admin engine.Admin, record *tenant.Record) (tenant.Slot, error) {
	for _, slot := range []tenant.Slot{record.Active, record.Active.Other()} {
		used, err := admin.InUse(ctx, record.Names().User(slot))
		if err != nil {
			return "", err
		}
		if !used {
			return slot, nil
		}
	}
	return "", fault.New(fault.Unavailable, "the record's password is refused, and both logins %q and %q have sessions: waiting until one is free",
		record.Names().User(tenant.A), record.Names().User(tenant.B))
}

// settleOther gives the inactive slot a password that we know, where the record says that nobody does. A slot with sessions
// is left alone: the next start tries again.
func (r *run) settleOther(ctx context.Context, s engine.Engine, admin engine.Admin, record *tenant.Record, outcome *engine.Outcome) (*tenant.Record, error) {
	other := record.Active.Other()
	cut := record.Pending != nil && record.Pending.Admin
	if record.Slots[other].Password != "" && !record.OtherRefused && !cut {
		return record, nil
	}
	if record.Pending != nil {
		return r.rollForward(ctx, s, admin, record, false, outcome)
	}
	used, err := admin.InUse(ctx, record.Names().User(other))
	if err != nil || used {
		return record, err
	}
	return r.reset(ctx, s, admin, record, other, tenant.Retire, outcome)
}

// reset gives a slot a new password with the admin's credential: into the record, onto the server, and committed. seen is the
// record that this was decided on. Where servers have no lock for us, another init may have come to the end of the same repair
// since: its control plane is about to use what it was handed.
func (r *run) reset(ctx context.Context, s engine.Engine, admin engine.Admin, seen *tenant.Record, slot tenant.Slot, purpose tenant.Purpose, outcome *engine.Outcome) (*tenant.Record, error) {
	change := &tenant.Change{Slot: slot, Password: tenant.NewPassword(), Purpose: purpose, Admin: true}
	record, err := r.change(ctx, func(old *tenant.Record) {
		if old.Pending == nil && old.Active == seen.Active && maps.Equal(old.Slots, seen.Slots) { // never a second one
			old.Pending = change
		}
	})
	switch {
	case err != nil:
		return nil, err
	case record.Pending == nil:
		return nil, fault.New(fault.Unavailable, "%s was put right by somebody else at the same time", r.RecordName)
	}
	return r.rollForward(ctx, s, admin, record, purpose == tenant.Activate, outcome)
}

// rollForward brings the pending change to its end. A change that the server does not know and whose slot is in use is given
// back to the sidecar that began it, or dropped: the login test has shown that it was not applied, and applying it now would
// cut somebody off. wrong: the server refuses what the record holds for the active slot.
func (r *run) rollForward(ctx context.Context, s engine.Engine, admin engine.Admin, record *tenant.Record, wrong bool, outcome *engine.Outcome) (*tenant.Record, error) {
	// No sidecar knows of our lock. From this write on they leave the change to us, and whatever one of them did to it before
	// is in what it returns.
	pending := *record.Pending
	theirs := !pending.Admin // begun by a sidecar
	if theirs {
		claimed, err := r.change(ctx, func(old *tenant.Record) {
			if old.Pending != nil && *old.Pending == pending {
				old.Pending.Admin = true
			}
		})
		if err != nil || claimed.Pending == nil || claimed.Pending.Password != pending.Password {
			return claimed, err
		}
		pending.Admin = true
	}
	login := record.LoginWith(pending.Slot, pending.Password)
	err := r.login(ctx, s, login)
	if fault.Is(err, fault.WrongPassword) {
		used, err := r.inUse(ctx, admin, login.User)
		if err != nil {
			return nil, err
		}
		if used {
			return r.change(ctx, func(old *tenant.Record) {
				switch {
				case old.Pending == nil || *old.Pending != pending:
				case theirs && !wrong: // perhaps the session is of the sidecar that is about to set it
					old.Pending.Admin = false
				default:
					old.Pending = nil
				}
			})
		}
		if err := admin.SetPassword(ctx, login.User, pending.Password); err != nil {
			return nil, err
		}
		outcome.Changes = append(outcome.Changes, "set password of login "+string(pending.Slot))
		if err := r.login(ctx, s, login); fault.Is(err, fault.WrongPassword) {
			return nil, fault.New(fault.Unavailable, "login %q was given a new password, and is refused: %w", login.User, err)
		} else if err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	now := r.Now().UTC().Truncate(time.Second)
	return r.change(ctx, func(old *tenant.Record) {
		if old.Pending == nil || *old.Pending != pending {
			return
		}
		old.Commit(now)
		if pending.Purpose == tenant.Activate && wrong {
			// The record was wrong about one slot: it is not believed about the other, which settleOther asks about. In the
			// same write, so that no crash lets it be forgotten.
			old.Slots[old.Active.Other()] = tenant.Credential{}
			old.OtherRetired = false
		}
		if pending.Purpose == tenant.Retire && pending.Slot != old.Active && !wrong {
			// A login that began with the password before may still become a session (docs/failures.md S5). That takes longer than
			// a start may: the password is known now, and the retirement is left to the sidecar, which waits and ends it.
			old.Pending = &tenant.Change{Slot: pending.Slot, Password: pending.Password, Purpose: tenant.Retire}
		}
	})
}

// inUse says whether a login has a session now, or begins one within Quiet.
func (r *run) inUse(ctx context.Context, admin engine.Admin, user string) (bool, error) {
	const looks = 3
	for look := 1; ; look++ {
		used, err := admin.InUse(ctx, user)
		if err != nil || used || look == looks || r.Quiet <= 0 {
			return used, err
		}
		pause := time.NewTimer(r.Quiet / (looks - 1))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return false, fault.New(fault.Unavailable, "waiting for a login that nobody uses: %w", context.Cause(ctx))
		}
	}
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
