// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// upstream is a server that does what real ones do seldom. It keeps all that it hears, as it comes over the network.
type upstream struct {
	port   uint16
	mu     sync.Mutex
	heard  []byte
	logins int // that were begun
	passes []string
}

// newUpstream starts one. cert, unless nil, is for TLS; first is what it says when it is ready, in one piece with that.
func newUpstream(tb testing.TB, cert *bed.Cert, first ...pgproto3.BackendMessage) *upstream {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	u := &upstream{}
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(tb, err)
	_, err = fmt.Sscan(port, &u.port)
	require.NoError(tb, err)
	var config *tls.Config
	if cert != nil {
		pair, err := tls.X509KeyPair(cert.Cert, cert.Key)
		require.NoError(tb, err)
		config = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(rig.Patience))
				_ = u.serve(recorded{conn, u}, config, first)
			})
		}
	})
	tb.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	return u
}

// recorded keeps what it reads.
type recorded struct {
	net.Conn
	u *upstream
}

func (r recorded) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.u.mu.Lock()
	defer r.u.mu.Unlock()
	r.u.heard = append(r.u.heard, p[:n]...)
	return n, err
}

func (u *upstream) serve(conn net.Conn, config *tls.Config, first []pgproto3.BackendMessage) error {
	var request [8]byte
	if _, err := io.ReadFull(conn, request[:]); err != nil {
		return err
	}
	if config == nil {
		if _, err := conn.Write([]byte("N")); err != nil {
			return err
		}
	} else {
		if _, err := conn.Write([]byte("S")); err != nil {
			return err
		}
		secure := tls.Server(conn, config)
		if err := secure.Handshake(); err != nil {
			return err
		}
		conn = secure
	}
	backend := pgproto3.NewBackend(conn, conn)
	if _, err := backend.ReceiveStartupMessage(); err != nil {
		return err
	}
	u.mu.Lock()
	u.logins++
	u.mu.Unlock()
	backend.Send(&pgproto3.AuthenticationCleartextPassword{})
	if err := backend.Flush(); err != nil {
		return err
	}
	if err := backend.SetAuthType(pgproto3.AuthTypeCleartextPassword); err != nil {
		return err
	}
	answer, err := backend.Receive()
	if err != nil {
		return err
	}
	if said, ok := answer.(*pgproto3.PasswordMessage); ok {
		u.mu.Lock()
		u.passes = append(u.passes, said.Password)
		u.mu.Unlock()
	}
	ready := &pgproto3.ReadyForQuery{TxStatus: 'I'}
	backend.Send(&pgproto3.AuthenticationOk{})
	backend.Send(&pgproto3.ParameterStatus{Name: "mood", Value: "early"})
	backend.Send(ready)
	for _, message := range first {
		backend.Send(message)
	}
	if err := backend.Flush(); err != nil {
		return err
	}
	for {
		message, err := backend.Receive()
		if err != nil {
			return err
		}
		switch message.(type) {
		case *pgproto3.Query:
			backend.Send(&pgproto3.EmptyQueryResponse{})
			backend.Send(ready)
		case *pgproto3.Sync:
			backend.Send(ready)
		case *pgproto3.Terminate:
			return nil
		}
		if err := backend.Flush(); err != nil {
			return err
		}
	}
}

// TestSocketUpstreamTLS: the password goes to no server whose certificate does not verify, or that has none, and not a byte of the login goes
// over the network in clear text. (11, 12)
func TestSocketUpstreamTLS(t *testing.T) {
	t.Parallel()
	good, err := bed.NewCA()
	require.NoError(t, err)
	other, err := bed.NewCA()
	require.NoError(t, err)
	const works, fails = true, false
	for name, test := range map[string]struct {
		mode  dbserver.SSLMode
		by    *bed.CA // nil: no TLS
		cert  bed.Request
		works bool
	}{
		"verify-full":                {dbserver.VerifyFull, good, bed.Request{}, works},
		"verify-full another CA":     {dbserver.VerifyFull, other, bed.Request{}, fails},
		"verify-full another name":   {dbserver.VerifyFull, good, bed.Request{Hosts: []string{"db.example"}}, fails},
		"verify-full expired":        {dbserver.VerifyFull, good, bed.Request{NotAfter: time.Now().Add(-time.Hour)}, fails},
		"verify-full without TLS":    {dbserver.VerifyFull, nil, bed.Request{}, fails},
		"verify-ca another name":     {dbserver.VerifyCA, good, bed.Request{Hosts: []string{"db.example"}}, works},
		"verify-ca another CA":       {dbserver.VerifyCA, other, bed.Request{}, fails},
		"verify-ca without TLS":      {dbserver.VerifyCA, nil, bed.Request{}, fails},
		"require another CA":         {dbserver.Require, other, bed.Request{}, works},
		"require without TLS":        {dbserver.Require, nil, bed.Request{}, fails},
		"a mode that does not exist": {"prefer", nil, bed.Request{}, fails},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var cert *bed.Cert
			if test.by != nil {
				var err error
				cert, err = test.by.Issue(test.cert)
				require.NoError(t, err)
			}
			u := newUpstream(t, cert)
			server := dbserver.Server{Engine: dbserver.Postgres, Host: "127.0.0.1", Port: u.port, SSLMode: test.mode, CA: string(good.PEM)}
			s := serve(t, nil, tenant.NewRecord(t.Name(), "n", "v", server, 10), nil)
			conn, err := pgx.Connect(t.Context(), s.dsn())
			if test.works {
				require.NoError(t, err)
				require.NoError(t, conn.Close(t.Context()))
			} else {
				assert.Equal(t, "08001", code(err), "%v", err)
			}
			s.stop()
			u.mu.Lock()
			defer u.mu.Unlock()
			login := s.record.Login(tenant.A)
			for _, secret := range []string{login.Password.Reveal(), login.User, login.Database} {
				assert.NotContains(t, string(u.heard), secret)
			}
			if test.works {
				assert.Equal(t, []string{login.Password.Reveal()}, u.passes, "encrypted")
				return
			}
			assert.Zero(t, u.logins)
			if test.by == nil && test.mode != "prefer" {
				const sslRequest = 80877103
				assert.Equal(t, binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, sslRequest), u.heard)
				assert.ErrorContains(t, err, "dbconnector: "+fault.NoTLS().Error())
			}
		})
	}
}

// TestSocketUpstreamFirst: a server that gives no key to cancel by has the session serve without one; what it says on its own when a session
// begins reaches the client, in order. (6, 13)
func TestSocketUpstreamFirst(t *testing.T) {
	t.Parallel()
	ca, err := bed.NewCA()
	require.NoError(t, err)
	cert, err := ca.Issue(bed.Request{})
	require.NoError(t, err)
	u := newUpstream(t, cert,
		&pgproto3.NoticeResponse{Severity: "WARNING", SeverityUnlocalized: "WARNING", Code: "01000", Message: "first"},
		&pgproto3.ParameterStatus{Name: "mood", Value: "late"},
		&pgproto3.NoticeResponse{Severity: "NOTICE", SeverityUnlocalized: "NOTICE", Code: "00000", Message: "second", Hint: "none"})
	server := dbserver.Server{Engine: dbserver.Postgres, Host: "127.0.0.1", Port: u.port, SSLMode: dbserver.VerifyFull, CA: string(ca.PEM)}
	s := serve(t, nil, tenant.NewRecord(t.Name(), "n", "v", server, 10), nil)
	config, err := pgconn.ParseConfig(s.dsn())
	require.NoError(t, err)
	var notices []string
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		notices = append(notices, n.Severity+" "+n.Code+" "+n.Message+" "+n.Hint)
	}
	conn, err := pgconn.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	require.NoError(t, conn.Exec(t.Context(), "").Close())
	assert.Empty(t, conn.SecretKey())
	assert.Equal(t, []string{"WARNING 01000 first ", "NOTICE 00000 second none"}, notices)
	assert.Equal(t, "late", conn.ParameterStatus("mood"))
	require.NoError(t, conn.Close(t.Context()))
}

// TestSocketUpstreamAuth: the proxy logs in by each method that a server may ask for. (12)
func TestSocketUpstreamAuth(t *testing.T) {
	t.Parallel()
	server := bed.NewServer(t, bed.Postgres, "17", bed.Options{LogStatements: true})
	s := newSocket(t, server, nil)
	login := s.record.Login(tenant.A)
	file := filepath.Join(server.DataDir, "pg_hba.conf")
	usual, err := os.ReadFile(file)
	require.NoError(t, err)
	for _, method := range []string{"scram-sha-256", "md5", "password", "trust"} {
		encryption := "scram-sha-256"
		if method == "md5" {
			encryption = method
		}
		rule := "hostssl all " + login.User + " all " + method + "\n"
		require.NoError(t, os.WriteFile(file, append([]byte(rule), usual...), 0o600))
		loaded := func() string {
			at, err := server.Query(t.Context(), "", "SELECT pg_conf_load_time()::text")
			require.NoError(t, err)
			return at
		}
		before := loaded()
		require.NoError(t, server.Exec(t.Context(), "SET password_encryption = '"+encryption+"'",
			fmt.Sprintf("ALTER ROLE %q PASSWORD '%s'", login.User, login.Password.Reveal()), "SELECT pg_reload_conf()"))
		bed.Eventually(t, rig.Patience, func(context.Context) error {
			if loaded() == before {
				return errors.New("the server has not read its rules")
			}
			return nil
		})
		assert.Equal(t, login.User, one(t, s.connect(t), "SELECT session_user::text"), method)
		log, err := server.StatementLog()
		require.NoError(t, err)
		said := fmt.Sprintf("connection authenticated: identity=%q method=%s", login.User, method)
		if method == "trust" {
			said = fmt.Sprintf("connection authenticated: user=%q method=trust", login.User)
		}
		assert.True(t, strings.Contains(log, said), "the server's log does not say: %s", said)
	}
}
