// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/statedir"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// These tests cover faults of the database server: gone, hanging, read-only, full.

// each runs a test on the newest server of each kind, or on the named ones. It runs all of them at once, as one of the
// parallel tests, because they wait for most of their time.
func each(t *testing.T, test func(t *testing.T, engine bed.Engine, version string), names ...string) {
	t.Helper()
	if len(names) == 0 {
		names = []string{"postgres-17", "mysql-9.7", "mariadb-11.8"}
	}
	var all sync.WaitGroup
	defer all.Wait()
	for _, name := range names {
		engine, version, _ := strings.Cut(name, "-")
		all.Go(func() {
			t.Run(name, func(t *testing.T) { test(t, bed.Engine(engine), version) })
		})
	}
}

// rewrite changes a record in a directory as another program would, by compare-and-swap.
func rewrite(tb testing.TB, p *rig.Tenant, change func(r *tenant.Record)) {
	tb.Helper()
	store, err := statedir.Open(p.State)
	require.NoError(tb, err, "opening the record")
	_, err = store.Update(tb.Context(), func(old *tenant.Record) (*tenant.Record, error) {
		change(old)
		return old, nil
	})
	require.NoError(tb, err, "changing the record")
}

// overdue makes a rotation due now that would be due in an hour.
func overdue(r *tenant.Record) {
	r.RotatedAt = time.Now().Add(-2 * time.Hour).UTC().Truncate(time.Second)
}

func recordOf(tb testing.TB, p *rig.Tenant) *tenant.Record {
	tb.Helper()
	r, err := p.Record(tb.Context())
	require.NoError(tb, err, "reading the record")
	return r
}

// wrongPassword says whether a server said so.
func wrongPassword(err error) bool {
	var postgres *pgconn.PgError
	var other *mysql.MySQLError
	return errors.As(err, &postgres) && postgres.Code == "28P01" || errors.As(err, &other) && other.Number == 1045
}

// consumer stands in for a control plane: it reads its DSN once, keeps a session, and comes back at once when it loses
// the session. The server must never refuse its password; a refusal fails the test.
type consumer struct {
	plane *rig.Tenant
	from  string              // its address
	dial  func(string) string // the DSN that it uses, made from the one that it reads
	ca    []byte

	mu  sync.Mutex
	dsn string
	db  *sql.DB // nil while it is away
	end chan struct{}
}

// consume starts a consumer with an address of its own.
func consume(tb testing.TB, p *rig.Tenant, s *bed.Server, from string, follows bool) *consumer {
	tb.Helper()
	c := &consumer{plane: p, from: from, ca: s.CA, end: make(chan struct{})}
	if r := recordOf(tb, p); r.Server.Address() != s.Addr() {
		// A proxy between a sidecar and the server is for the sidecar alone.
		c.dial = func(dsn string) string { return strings.Replace(dsn, r.Server.Address(), s.Addr(), 1) }
	}
	require.NoError(tb, c.adopt(), "starting a control plane")
	require.NoError(tb, c.check(tb.Context()), "starting a control plane")
	var done sync.WaitGroup
	done.Go(func() {
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-c.end:
				return
			case <-ticker.C:
			}
			if dsn, err := p.DSN(); follows && err == nil && dsn != c.read() {
				assert.NoError(tb, c.adopt(), "a control plane does not start")
			}
			if err := c.check(context.Background()); wrongPassword(err) {
				tb.Errorf("a control plane at %s was cut off: %v", from, err)
				return
			}
		}
	})
	tb.Cleanup(func() {
		close(c.end)
		c.leave()
		done.Wait()
	})
	return c
}

func (c *consumer) read() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dsn
}

// adopt is a restart: the consumer reads the DSN again.
func (c *consumer) adopt() error {
	dsn, err := c.plane.DSN()
	if err != nil {
		return err
	}
	c.leave()
	c.mu.Lock()
	c.dsn = dsn
	c.mu.Unlock()
	return c.comeBack()
}

// leave ends the session of the consumer, which stays away.
func (c *consumer) leave() {
	c.mu.Lock()
	db := c.db
	c.db = nil
	c.mu.Unlock()
	if db != nil {
		_ = db.Close()
	}
}

// comeBack connects with the DSN that the consumer had.
func (c *consumer) comeBack() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	dsn := c.dsn
	if c.dial != nil {
		dsn = c.dial(dsn)
	}
	db, err := rig.OpenDSNFrom(c.from, dsn, c.ca)
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	c.db = db
	return nil
}

// check uses the session, and opens another one if it is lost.
func (c *consumer) check(ctx context.Context) error {
	c.mu.Lock()
	db := c.db
	c.mu.Unlock()
	if db == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return db.PingContext(ctx)
}

// connected waits until the consumer has a session.
func (c *consumer) connected(tb testing.TB) {
	tb.Helper()
	bed.Eventually(tb, rig.Patience, c.check)
}

// move restarts the consumer until it has adopted the record's active credential.
func (c *consumer) move(tb testing.TB) {
	tb.Helper()
	bed.Eventually(tb, rig.Patience, func(ctx context.Context) error {
		if err := c.adopt(); err != nil {
			return err
		}
		r, err := c.plane.Record(ctx)
		if err == nil && c.read() != rig.WithLogin(c.read(), r.Login(r.Active)) {
			err = errors.New("the hand-over has another credential")
		}
		return err
	})
	c.connected(tb)
}

// healthy waits until a sidecar says that all is well.
func healthy(tb testing.TB, s *rig.Process) {
	tb.Helper()
	gauge(tb, s, "dbconnector_consecutive_failures", 0)
}

// killAt calls kill when the n-th question from now has been answered, and returns when it has. A question that gets no
// answer, such as the one to end a session, is passed over.
func killAt(tb testing.TB, proxy *bed.Proxy, n int, kill func() error) {
	tb.Helper()
	struck := make(chan error, 2)
	var armed int
	arm := func() {
		armed = proxy.Flights()
		proxy.KillAfter(n, func() { struck <- kill() })
	}
	arm()
	bed.Eventually(tb, rig.Patience, func(context.Context) error {
		select {
		case err := <-struck:
			proxy.KillAfter(0, nil)
			if err != nil {
				err = bed.Permanent(err)
			}
			return err
		default:
		}
		if proxy.Flights() > armed+n+10 {
			n++
			arm()
		}
		return errors.New("no program asks the server anything")
	})
}

// TestServerRestarted stops the server at one question of a sidecar after the other, during rotations and retirements,
// and starts it again. The server always accepts the active credential, and no human has to help.
func TestServerRestarted(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		ctx := t.Context()
		server := bed.NewServer(t, engine, version, bed.Options{})
		proxy := bed.NewProxy(t, server.Addr())
		plane := rig.NewTenant(t, server, proxy.Addr())
		consume(t, plane, server, "127.0.0.1", true)
		sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=2s", "GRACE=1s")
		done := func(r *tenant.Record) bool { return r.Generation > 1 && r.OtherRetired }
		// A rotation and a retirement have some seventy questions.
		for at := 3; at < 75; at += 14 {
			killAt(t, proxy, at, server.Kill)
			require.NoError(t, server.Restart(ctx), "starting the server again")
			// A new pod would find this.
			r := recordOf(t, plane)
			dsn, err := plane.DSN()
			require.NoError(t, err, "reading the hand-over")
			bed.Eventually(t, rig.Patience, func(ctx context.Context) error {
				db, err := rig.OpenDSN(rig.WithLogin(dsn, r.Login(r.Active)), server.CA)
				if err != nil {
					return bed.Permanent(err)
				}
				defer db.Close()
				if err = db.PingContext(ctx); wrongPassword(err) {
					err = bed.Permanent(fmt.Errorf("killed at question %d: %w", at, err))
				}
				return err
			})
		}
		require.NoError(t, server.Restart(ctx), "restarting the server in order")
		last := recordOf(t, plane).Generation
		rig.Until(t, plane, "a rotation after all that", generation(last+1))
		rig.Until(t, plane, "retired", done)
		healthy(t, sidecar)
		if exit, err := sidecar.Stop(ctx); err != nil || exit != 0 {
			t.Errorf("asked to end: exit code %d, %v", exit, err)
		}
	})
}

// TestServerGone: an outage ends all sessions, and that is no evidence that a client has moved. The old slot stays
// valid for a control plane that was only cut off: one that stays away longer than the others, and one that comes back
// when a sidecar has already decided the end of its password.
func TestServerGone(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		server := bed.NewServer(t, engine, version, bed.Options{})
		plane := rig.NewTenant(t, server, "")
		moved, cut := consume(t, plane, server, "127.0.0.1", false), consume(t, plane, server, "127.0.0.3", false)
		rewrite(t, plane, overdue)
		// Two clients have to move, and the sidecar stops counting them only after six times the grace.
		sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=4s")
		if r := rig.Until(t, plane, "generation 2", generation(2)); r.Clients != 2 {
			t.Fatalf("%d clients, want 2", r.Clients)
		}
		moved.move(t)
		gauge(t, sidecar, `dbconnector_postponed{reason="OldCredentialInUse"}`, 1)
		outage := func() {
			require.NoError(t, server.Kill(), "killing the server")
			cut.leave()
			metric(t, sidecar, "dbconnector_consecutive_failures", "is positive", func(v float64) bool { return v > 0 })
			ready(t, sidecar)
			require.NoError(t, server.Restart(t.Context()), "starting the server again")
			moved.connected(t)
		}
		valid := func(what string) {
			if r := recordOf(t, plane); r.OtherRetired || r.Generation != 2 {
				t.Fatalf("%s: generation %d, old slot retired: %t", what, r.Generation, r.OtherRetired)
			}
			require.NoError(t, cut.comeBack(), what)
			cut.connected(t)
			gauge(t, sidecar, `dbconnector_postponed{reason="OldCredentialInUse"}`, 1)
			healthy(t, sidecar)
		}

		outage()
		gauge(t, sidecar, `dbconnector_postponed{reason="NotAdopted"}`, 1)
		valid("a client that was away for longer than the others")

		// With a third one, as many are on the new slot as were on the old one.
		third := consume(t, plane, server, "127.0.0.4", false)
		outage()
		third.connected(t)
		rig.Until(t, plane, "the old slot's end is decided", func(r *tenant.Record) bool { return r.Pending != nil })
		valid("a client that was away while the end of its password was decided")

		cut.move(t)
		rig.Until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired })
		healthy(t, sidecar)
	})
}

// changes says whether a login asks to change its own password.
func changes(engine bed.Engine, asked []byte) bool {
	words := map[bed.Engine]string{bed.Postgres: "ALTER ROLE", bed.MySQL: "ALTER USER USER()", bed.MariaDB: "SET PASSWORD"}
	return bytes.Contains(asked, []byte(words[engine]))
}

// received waits for a message from a hook of the test.
func received(tb testing.TB, from <-chan error) error {
	tb.Helper()
	select {
	case err := <-from:
		return err
	case <-time.After(rig.Patience):
		tb.Fatal("the hook was never called")
		return nil
	}
}

// TestServerHangs stops the server when a login is about to set a password. The server has the statement, and may carry
// it out long after the sidecar has stopped waiting for it.
func TestServerHangs(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		server := bed.NewServer(t, engine, version, bed.Options{NoTLS: true})
		hung := make(chan error, 1)
		var once sync.Once
		address := intercept(t, server.Addr(), func(asked []byte) []byte {
			if changes(engine, asked) {
				once.Do(func() { hung <- server.Pause() })
			}
			return nil
		})
		plane := rig.NewTenant(t, server, address)
		client := consume(t, plane, server, "127.0.0.1", false)
		sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=1s")
		ready(t, sidecar)
		rewrite(t, plane, overdue)
		require.NoError(t, received(t, hung), "stopping the server")
		metric(t, sidecar, "dbconnector_consecutive_failures", "is positive", func(v float64) bool { return v > 0 })
		ready(t, sidecar)
		if r := recordOf(t, plane); r.Generation != 1 || r.Pending == nil {
			t.Errorf("generation %d, pending %t: the server hung at another moment", r.Generation, r.Pending != nil)
		}
		require.NoError(t, server.Resume(), "waking the server up")
		rig.Until(t, plane, "generation 2", generation(2))
		client.move(t)
		accepts(t, rig.Until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired }))
		healthy(t, sidecar)
	})
}

// TestFailover: the server takes no writes for a while, as a standby that is about to be promoted, or a primary that
// was demoted. The sidecar puts the rotation off, no client is harmed, and it rotates when the server takes writes
// again (B47).
func TestFailover(t *testing.T) {
	t.Parallel()
	set := func(settings ...string) func(*testing.T, *bed.Server) {
		return func(t *testing.T, s *bed.Server) {
			t.Helper()
			require.NoError(t, s.Exec(t.Context(), settings...), "setting it")
		}
	}
	standby := func(t *testing.T, s *bed.Server) {
		t.Helper()
		// With this file, and without a primary, the server stays in recovery.
		require.NoError(t, s.Halt(t.Context()), "stopping the server")
		require.NoError(t, os.WriteFile(filepath.Join(s.DataDir, "standby.signal"), nil, 0o644), "making a standby")
		require.NoError(t, s.Restart(t.Context()), "starting a standby")
	}
	for name, mode := range map[string]struct {
		servers         []string
		demote, promote func(*testing.T, *bed.Server)
	}{
		"standby": {
			[]string{"postgres-13", "postgres-17", "postgres-18"}, standby, set("SELECT pg_promote()"),
		},
		"default_transaction_read_only": {
			[]string{"postgres-17"},
			set("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"),
			set("SET default_transaction_read_only = off", "ALTER SYSTEM SET default_transaction_read_only = off", "SELECT pg_reload_conf()"),
		},
		"super_read_only": {[]string{"mysql-9.7"}, set("SET GLOBAL super_read_only = ON"), set("SET GLOBAL super_read_only = OFF", "SET GLOBAL read_only = OFF")},
		"read_only":       {[]string{"mariadb-10.5", "mariadb-11.8"}, set("SET GLOBAL read_only = ON"), set("SET GLOBAL read_only = OFF")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, engine bed.Engine, version string) {
				server := bed.NewServer(t, engine, version, bed.Options{})
				plane := rig.NewTenant(t, server, "")
				client := consume(t, plane, server, "127.0.0.1", false)
				before := recordOf(t, plane)
				sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=1s")
				ready(t, sidecar)
				mode.demote(t, server)
				rewrite(t, plane, overdue)
				metric(t, sidecar, "dbconnector_consecutive_failures", "is positive", func(v float64) bool { return v > 0 })
				if log := sidecar.Log(); !strings.Contains(log, "SQLSTATE 25006") && !strings.Contains(log, "is a standby") && !strings.Contains(log, "error 1290") {
					t.Error("the sidecar fails for another reason")
				}
				client.connected(t)
				r := recordOf(t, plane)
				if r.Generation != 1 || r.OtherRefused || r.Slots[tenant.B] != before.Slots[tenant.B] {
					t.Errorf("generation %d, inactive slot refused: %t", r.Generation, r.OtherRefused)
				}
				mode.promote(t, server)
				// The longest pause between two tries is five minutes, give or take a half.
				bed.Eventually(t, 8*time.Minute+rig.Patience, func(ctx context.Context) error {
					r, err := plane.Record(ctx)
					if err == nil && r.Generation < 2 {
						err = errors.New("not rotated")
					}
					return err
				})
				client.move(t)
				accepts(t, rig.Until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired }))
				healthy(t, sidecar)
			}, mode.servers...)
		})
	}
}

// TestCommitLostInFailover: an asynchronous standby without the last rotation took over, so the active password is not
// on the server. The previous login still opens new connections for a client that has it, and no sidecar touches it.
// The next start of init gives the active login a new password, and the control plane moves then. The start after
// that retires the previous login.
func TestCommitLostInFailover(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		server := rig.Server(t, engine, version)
		plane := rig.NewTenant(t, server, "")
		client := consume(t, plane, server, "127.0.0.1", false)
		dsn, err := plane.DSN() // the previous DSN, which a restarted container may have
		require.NoError(t, err, "reading the hand-over")
		opens := func(dsn string) error {
			db, err := rig.OpenDSN(dsn, server.CA)
			if err != nil {
				return err
			}
			return errors.Join(db.PingContext(t.Context()), db.Close())
		}
		rewrite(t, plane, overdue)
		sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=1s")
		r := rig.Until(t, plane, "generation 2", generation(2))
		require.NoError(t, server.SetPassword(t.Context(), plane.Names().User(r.Active), "Of-the.standby"), "going back to what the standby has")
		dead(t, r, r.Active)
		gauge(t, sidecar, `dbconnector_postponed{reason="OldCredentialInUse"}`, 1)
		require.NoError(t, opens(dsn), "using the password of before")
		client.connected(t)
		if r := recordOf(t, plane); r.OtherRetired || r.Pending != nil {
			t.Errorf("retired: %t, pending: %t", r.OtherRetired, r.Pending != nil)
		}

		rig.Provision(t, plane)
		now, err := plane.DSN()
		require.NoError(t, err, "reading the hand-over")
		require.NoError(t, opens(now), "using the active password")
		require.NoError(t, opens(dsn), "using the password of before") // the control plane still does
		gauge(t, sidecar, `dbconnector_postponed{reason="InactiveSlotUnknown"}`, 1)
		client.move(t)
		rig.Provision(t, plane)
		accepts(t, rig.Until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired }))
		if opens(dsn) == nil {
			t.Error("the password of before still works")
		}
		healthy(t, sidecar)
	}, "postgres-17", "mysql-9.7", "mariadb-11.8")
}

// fill opens sessions until the server takes no more, and returns a function that ends them.
func fill(tb testing.TB, s *bed.Server, login tenant.Login) (empty func()) {
	tb.Helper()
	db, err := s.Open(login.User, login.Password.Reveal(), login.Database)
	require.NoError(tb, err, "opening sessions")
	var held []*sql.Conn
	empty = func() {
		for _, conn := range held {
			_ = conn.Close() // returns it to the pool, which closes it
		}
		_ = db.Close()
	}
	tb.Cleanup(empty)
	for len(held) < 100 {
		conn, err := db.Conn(tb.Context())
		switch {
		case err == nil:
			held = append(held, conn)
		case len(held) == 0 || wrongPassword(err):
			tb.Fatalf("opening session %d: %v", len(held), err)
		default:
			return empty
		}
	}
	tb.Fatal("the server takes sessions without an end")
	return nil
}

// TestConnectionsExhausted: the server takes no more sessions, not even the sidecar's. The sidecar waits in either half
// of a rotation, and goes on when there is room. No human has to help, and nothing is retired (B45).
func TestConnectionsExhausted(t *testing.T) {
	t.Parallel()
	for _, whose := range []string{"tenant", "server"} {
		t.Run(whose, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, engine bed.Engine, version string) {
				options := bed.Options{}
				if whose == "server" {
					options.MaxConnections = 20 // less than the tenant's limit
				}
				server := bed.NewServer(t, engine, version, options)
				plane := rig.NewTenant(t, server, "")
				client := consume(t, plane, server, "127.0.0.1", false)
				sidecar := rig.Sidecar(t, plane, "ROTATION_PERIOD=1h", "GRACE=1s")
				ready(t, sidecar)
				if whose == "tenant" {
					names := plane.Names()
					limit := []string{`ALTER DATABASE "` + names.Database + `" CONNECTION LIMIT 5`}
					if engine != bed.Postgres {
						limit = []string{
							"ALTER USER '" + names.User(tenant.A) + "'@'%' WITH MAX_USER_CONNECTIONS 5",
							"ALTER USER '" + names.User(tenant.B) + "'@'%' WITH MAX_USER_CONNECTIONS 5",
						}
					}
					require.NoError(t, server.Exec(t.Context(), limit...), "limiting the tenant")
				}
				waits := func(what string) *tenant.Record {
					t.Helper()
					metric(t, sidecar, "dbconnector_consecutive_failures", "is positive", func(v float64) bool { return v > 0 })
					ready(t, sidecar)
					client.connected(t)
					r := recordOf(t, plane)
					if r.OtherRefused {
						t.Errorf("%s: the server was taken to refuse a password", what)
					}
					return r
				}

				before := recordOf(t, plane)
				empty := fill(t, server, before.Login(before.Active))
				rewrite(t, plane, overdue)
				if r := waits("rotation"); r.Generation != 1 {
					t.Errorf("generation %d: rotated without a look at the clients that have to move", r.Generation)
				}
				empty()
				r := rig.Until(t, plane, "generation 2", generation(2))
				healthy(t, sidecar)

				empty = fill(t, server, r.Login(r.Active.Other()))
				if r := waits("retirement"); r.OtherRetired || r.Generation != 2 {
					t.Error("retired or rotated, although no sidecar could look")
				}
				empty()
				gauge(t, sidecar, `dbconnector_postponed{reason="OldCredentialInUse"}`, 1)
				client.move(t)
				accepts(t, rig.Until(t, plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired }))
				healthy(t, sidecar)
			})
		})
	}
}
