// SPDX-License-Identifier: Apache-2.0

package rotate_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/bed/attack"
	"dbconnector/test/rig"
)

// assaults is the number of attacked rotations.
const assaults = 20

// TestTwentyHostileRotations: each DSN of a tenant leaks, and an attacker with it does everything that S3, S5 and S6
// allow, in each of twenty rotations. The attacker keeps a session, begins logins and does not end them, hides one,
// changes the settings of its login, and shuts databases. Each rotation finishes. Then the old password is dead and no
// session that began with it is left; a metric and an Event named the cause of the delay. The control plane and its
// neighbours lose nothing, and init provisions newcomers. The newcomer that finds the admins' database shut names the
// login that shuts it, and is provisioned when the database is open again.
func TestTwentyHostileRotations(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, engine bed.Engine, version string) {
		newSiege(t, engine, version).lay()
	}, "postgres-13", "postgres-18", "mysql-9.7", "mariadb-10.5", "mariadb-11.8")
}

// siege is a tenant and its neighbours. An attacker who gets each of the tenant's DSNs attacks it.
type siege struct {
	*testing.T
	engine            bed.Engine
	server            *bed.Server
	plane             *rig.Tenant
	sidecar           *rig.Process
	client, neighbour *consumer

	old []string // the DSNs that were rotated away
	got int      // sessions that a login with an old password became
}

// A retirement waits for as long as a login may take, so a login has little time here: on PostgreSQL three seconds in
// total, on the others two for each packet, which is the shortest time that they accept. The shipped sidecar allows for
// four packets there. The attacker holds one back, so a bit more than the time for one is enough.
const (
	loginSeconds  = "3s"
	packetSeconds = "2"
	packetTime    = 2500 * time.Millisecond
)

func newSiege(t *testing.T, engine bed.Engine, version string) *siege {
	t.Helper()
	settings, binary := map[string]string{"authentication_timeout": loginSeconds}, rig.Rotate
	if engine != bed.Postgres {
		settings = map[string]string{"connect_timeout": packetSeconds}
		var err error
		binary, err = rig.BuildBriefRotate(t.Context(), t.TempDir(), packetTime)
		require.NoError(t, err, "building dbconnector-rotate")
	}
	s := &siege{T: t, engine: engine, server: bed.NewServer(t, engine, version, bed.Options{NoTLS: true, Settings: settings})}
	s.plane = rig.NewKubeTenant(t, rig.Host(t), s.server)
	s.client = consume(t, s.plane, s.server, "127.0.0.1", false)
	s.neighbour = consume(t, rig.NewTenant(t, s.server, ""), s.server, "127.0.0.2", false)
	sidecar, err := s.plane.Rotate(context.Background(), binary, "ROTATION_PERIOD="+period.String(), "GRACE=100ms",
		"POD_NAME="+s.pod(), "POD_UID=8f1a6a2e-0000-4000-8000-000000000000")
	require.NoError(t, err, "dbconnector-rotate")
	s.sidecar = sidecar
	t.Cleanup(func() {
		sidecar.Kill()
		if t.Failed() {
			t.Logf("the log of dbconnector-rotate:\n%s", tail(sidecar.Log(), 60))
		}
	})
	return s
}

func (s *siege) pod() string { return s.plane.Name + "-0" }

func (s *siege) lay() {
	s.Helper()
	var newcomers sync.WaitGroup
	newcomers.Go(func() { s.Run("newcomers", s.newcomers) })
	defer newcomers.Wait()
	for n := range assaults {
		s.rotation(int64(n) + 2)
		if n%5 == 0 {
			rig.NewTenant(s, s.server, "")
		}
	}
	if s.got == 0 && s.engine != bed.MariaDB { // MariaDB shows such logins, so that the sidecar ends them before
		s.Error("no login with an old password became a session: the attack came to nothing")
	}
	for i, dsn := range s.old {
		s.dead(dsn, fmt.Sprint("password ", i+1))
	}
	healthy(s, s.sidecar)
	ready(s, s.sidecar)
	if n := len(s.sidecar.Lines("retired")); n != assaults {
		s.Errorf("retired %d times, want %d", n, assaults)
	}
	s.told("Postponed", "OldCredentialInUse")
}

// rotation runs one rotation. The attacker delays it by a session, and leaves. After that it only begins logins. Some
// end when the password is dead, and some when it counts as retired.
func (s *siege) rotation(n int64) {
	s.Helper()
	old, err := s.plane.DSN()
	require.NoError(s, err, "reading the hand-over")
	due(s, s.plane)
	r := rig.Until(s, s.plane, fmt.Sprint("generation ", n), generation(n))
	login := r.Login(r.Active.Other())

	pool, err := rig.OpenDSN(old, nil)
	require.NoError(s, err, "opening the old DSN")
	defer pool.Close()
	held, err := pool.Conn(s.Context())
	require.NoError(s, err, "logging in with the old DSN")
	if s.engine == bed.Postgres && n%5 == 0 {
		s.shut(old, r.Database, n == 5)
	}
	s.spoil(held, r, n)
	s.client.move(s)
	gauge(s, s.sidecar, `dbconnector_postponed{reason="OldCredentialInUse"}`, 1)
	gauge(s, s.sidecar, "dbconnector_old_credential_valid", 1)
	s.spoil(held, r, n+1)
	require.NoError(s, errors.Join(held.Close(), pool.Close()), "leaving")

	var hiding sync.WaitGroup
	defer hiding.Wait()
	while, leave := context.WithCancel(s.Context())
	defer leave()
	if s.engine == bed.Postgres {
		hiding.Go(func() { hide(while, old) })
	}
	late := besiege(s, s.engine, old)
	for _, h := range late[len(late)/2:] {
		if _, err := h.Finish(s.Context()); err == nil {
			s.got++
		}
	}
	r = rig.Until(s, s.plane, "retired", func(r *tenant.Record) bool { return r.OtherRetired && r.Pending == nil })
	if r.Generation != n {
		s.Errorf("generation %d, want %d", r.Generation, n)
	}
	s.dead(old, fmt.Sprint("the password before generation ", n))
	s.noSessions(login, "when it is retired")
	for _, h := range late {
		if conn, err := h.Finish(s.Context()); err == nil && conn.PingContext(s.Context()) == nil {
			s.Error("a login that began with the old password is a session after its retirement")
		}
		h.Close()
	}
	s.old = append(s.old, old)

	require.NoError(s, s.client.check(s.Context()), "the control plane")
	require.NoError(s, s.neighbour.check(s.Context()), "the neighbour")
	bed.Eventually(s, rig.Patience, func(ctx context.Context) error {
		dsn, err := s.plane.DSN()
		if err == nil {
			if err = rig.UseDSN(ctx, dsn, nil); wrongPassword(err) {
				err = bed.Permanent(err)
			}
		}
		return err
	})
}

// hide begins hidden logins, one after the other, until one of them outlives the password. It stays until the server
// ends it. The sidecar sees a login that the server has accepted and does not list by its lock.
func hide(ctx context.Context, dsn string) {
	for {
		hidden, err := attack.BeginLogin(ctx, dsn, map[string]string{"post_auth_delay": "2"})
		if err != nil {
			return
		}
		conn, err := hidden.Finish(ctx)
		dead, rerr := refused(ctx, dsn)
		for err == nil && dead {
			_, err = conn.ExecContext(ctx, "SELECT pg_sleep(60)")
		}
		hidden.Close()
		if dead || rerr != nil {
			return
		}
	}
}

// spoil sets something for the login, in an open session, another setting each time. It does so on PostgreSQL only: on
// the others a login can set nothing that lasts for itself except its password.
func (s *siege) spoil(held *sql.Conn, r *tenant.Record, n int64) {
	s.Helper()
	if s.engine != bed.Postgres {
		return
	}
	all := []string{
		"default_transaction_read_only = on", "search_path = pg_temp", "statement_timeout = 1", "role = 'none'",
		"local_preload_libraries = 'nosuch'", "lock_timeout = 1", "default_transaction_isolation = 'serializable'", "idle_in_transaction_session_timeout = 1",
	}
	if s.server.Version >= "14" {
		all = append(all, "idle_session_timeout = 1")
	}
	if s.server.Version >= "17" {
		all = append(all, "transaction_timeout = 1")
	}
	one := all[n%int64(len(all))]
	statements := []string{"SET ROLE NONE", "ALTER ROLE CURRENT_USER SET " + one, fmt.Sprintf("ALTER ROLE CURRENT_USER IN DATABASE %q SET %s", r.Database, one)}
	if s.server.Version < "15" { // S1
		statements = append(statements, fmt.Sprintf("GRANT %q TO %q", r.Login(r.Active.Other()).User, s.neighbour.plane.Names().User(tenant.A)))
	}
	for _, statement := range statements {
		_, err := held.ExecContext(s.Context(), statement)
		require.NoError(s, err, statement)
	}
}

// shut keeps the tenant's own database shut, and then all of them. named waits until the sidecar names the login that
// does it.
func (s *siege) shut(old, database string, named bool) {
	s.Helper()
	elsewhere, err := rig.OpenDSN(strings.Replace(old, "/"+database+"?", "/template1?", 1), nil)
	require.NoError(s, err, "opening the old DSN")
	defer elsewhere.Close()
	release := attack.Shut(s, elsewhere, database)
	if named {
		s.told("Failed", fmt.Sprintf("database %q is shut", database))
		metric(s, s.sidecar, "dbconnector_consecutive_failures", "is positive", func(v float64) bool { return v > 0 })
		ready(s, s.sidecar)
	}
	release()
	attack.ShutAll(s, elsewhere)()
}

// dead says whether the server refuses a DSN.
func (s *siege) dead(dsn, what string) {
	s.Helper()
	bed.Eventually(s, rig.Patience, func(ctx context.Context) error {
		is, err := refused(ctx, dsn)
		if err == nil && !is {
			err = bed.Permanent(fmt.Errorf("%s is retired, and opens a session", what))
		}
		return err
	})
}

// noSessions checks that the login has no sessions except the sidecar's.
func (s *siege) noSessions(login tenant.Login, when string) {
	s.Helper()
	query := "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = ? AND DB IS NOT NULL"
	if s.engine == bed.Postgres {
		query = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND application_name NOT LIKE 'dbconnector-%'"
	}
	database := ""
	if s.engine == bed.Postgres {
		database = "template1" // the other database may be shut
	}
	n, err := s.server.Query(s.Context(), database, query, login.User)
	require.NoError(s, err, "looking for sessions")
	if n != "0" {
		s.Errorf("%s sessions of login %s %s", n, login.User, when)
	}
}

// told waits for an Event about the pod with these words.
func (s *siege) told(reason, words string) {
	s.Helper()
	path := "/api/v1/namespaces/" + rig.Namespace + "/events?fieldSelector=" + url.QueryEscape("involvedObject.name="+s.pod())
	bed.Eventually(s, rig.Patience, func(ctx context.Context) error {
		var all struct{ Items []event }
		if err := s.plane.Cluster.API.Do(ctx, http.MethodGet, path, nil, &all); err != nil {
			return err
		}
		for _, e := range all.Items {
			if e.Reason == reason && strings.Contains(e.Message, words) {
				return nil
			}
		}
		return fmt.Errorf("no Event %s says %q: %+v", reason, words, all.Items)
	})
}

// newcomers: one finds the database of the admins shut by a tenant that works with the attacker.
func (s *siege) newcomers(t *testing.T) {
	if s.engine == bed.Postgres {
		ally := rig.NewTenant(t, s.server, "")
		dsn, err := ally.DSN()
		require.NoError(t, err, "reading the hand-over")
		elsewhere, err := rig.OpenDSN(strings.Replace(dsn, "/"+ally.Names().Database+"?", "/template1?", 1), nil)
		require.NoError(t, err, "opening a DSN")
		defer elsewhere.Close()
		newcomer := *ally
		newcomer.Name, newcomer.Out, newcomer.State, newcomer.Timeout = rig.Name(t, "t"), t.TempDir(), t.TempDir(), 15*time.Second
		release := attack.Shut(t, elsewhere, "postgres")
		result, err := newcomer.Run(t.Context())
		require.NoError(t, err, "dbconnector-init")
		by := fmt.Sprintf("of login %q (another's) holds a lock", ally.Names().User(tenant.A))
		if said := strings.ReplaceAll(result.Log, `\"`, `"`); result.Exit == 0 ||
			!strings.Contains(said, `database "postgres" is shut`) || !strings.Contains(said, by) {
			t.Errorf("exit code %d, want %q:\n%s", result.Exit, by, said)
		}
		release()
		newcomer.Timeout = 0
		rig.Provision(t, &newcomer)
	}
}
