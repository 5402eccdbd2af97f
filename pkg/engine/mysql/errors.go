// SPDX-License-Identifier: Apache-2.0

package mysql

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	mysqldriver "github.com/go-sql-driver/mysql"

	"dbconnector/pkg/fault"
)

// Error numbers that have a meaning for us (MySQL: mysqld_error.h; MariaDB: "MariaDB Error Codes"; where the two give one
// number two meanings, both names stand here).
const (
	conCountError        = 1040 // too many connections
	dbAccessDenied       = 1044
	accessDenied         = 1045
	dbCreateExists       = 1007
	badDB                = 1049
	serverShutdown       = 1053
	hostBlocked          = 1129
	hostNotPrivileged    = 1130
	noSuchUser           = 1133
	noSuchGrant          = 1141
	tableAccessDenied    = 1142
	tooManyUserConns     = 1203
	specificAccessDenied = 1227
	userLimitReached     = 1226
	lockWaitTimeout      = 1205
	deadlock             = 1213
	optionPrevents       = 1290 // --read-only, --super-read-only
	cannotUser           = 1396 // CREATE USER/ROLE failed: it exists, or is gone
	cannotCreateByGrant  = 1410 // the account is gone
	rejectedPassword     = 1819
	mustChangePassword   = 1820
	passwordExpired      = 1862
	lockedMySQL          = 3118
	insecureTransport    = 3159
	rejectedByHistory    = 3638 // password_history, password_reuse_interval
	roleAccessDenied     = 3879
	rejectedAsSimilar    = 4165 // validate_password.changed_characters_percentage
	lockedMariaDB        = 4151
	noSuchThread         = 1094
	parseError           = 1064
	notReady             = 1047 // of a Galera node; elsewhere an unknown command
	queryInterrupted     = 1317
	killedMariaDB        = 1927
	timedOutMariaDB      = 1969 // max_statement_time
	timedOutMySQL        = 3024 // max_execution_time
	offline              = 3032 // offline_mode
	idleTooLong          = 4031 // wait_timeout
)

// classify gives a driver's error its class and a message of one line. A statement is never part of it.
func classify(err error) error {
	if err == nil || fault.Of(err) != fault.Unknown {
		return err
	}
	var server *mysqldriver.MySQLError
	if errors.As(err, &server) {
		class := fault.Unknown
		switch server.Number {
		case accessDenied, mustChangePassword, passwordExpired: // a new password mends them all
			class = fault.WrongPassword
		case badDB:
			class = fault.NoDatabase
		case dbAccessDenied, tableAccessDenied, specificAccessDenied, roleAccessDenied:
			class = fault.NoAccess
		case conCountError, serverShutdown, tooManyUserConns, userLimitReached, lockWaitTimeout, deadlock, dbCreateExists, cannotUser, noSuchThread,
			notReady, queryInterrupted, killedMariaDB, timedOutMariaDB, timedOutMySQL, offline, idleTooLong,
			noSuchUser, noSuchGrant, cannotCreateByGrant,
			hostNotPrivileged: // MariaDB tells so everybody who comes while somebody else has the privileges read anew
			class = fault.Unavailable
		case hostBlocked, optionPrevents, rejectedPassword,
			lockedMySQL, lockedMariaDB, insecureTransport:
			class = fault.Refused
		}
		said, hint := fault.Words(server.Message), ""
		if server.Number == parseError {
			said = "it does not understand a statement" // its own words repeat 80 characters of it, and these may hold a password
		}
		if server.Number == mustChangePassword || server.Number == passwordExpired {
			hint = ": the password of this login has expired, set a new one"
		}
		return fault.Translate(class, server, "the server says: %s (error %d)%s", said, server.Number, hint)
	}
	var (
		verification *tls.CertificateVerificationError
		record       tls.RecordHeaderError
		alert        tls.AlertError
		network      net.Error
		syscall      *os.SyscallError
	)
	switch {
	case errors.Is(err, mysqldriver.ErrNoTLS):
		return fault.New(fault.Refused, `the server does not offer TLS: switch it on there, or set the connector's key "sslMode" to "disable"`)
	case errors.As(err, &verification):
		return fault.New(fault.Refused, `the server's certificate is not accepted: %s; see the connector's keys "caCert", "sslMode" and "endpoint"`,
			fault.Words(verification.Err.Error()))
	case errors.As(err, &alert):
		return fault.New(fault.Refused, "the server ends the TLS handshake: %s", fault.Words(alert.Error()))
	case errors.As(err, &record):
		return fault.New(fault.Refused, "the server answers TLS with something else")
	case errors.Is(err, mysqldriver.ErrMalformPkt), errors.Is(err, mysqldriver.ErrPktSync), errors.Is(err, mysqldriver.ErrPktSyncMul),
		errors.Is(err, mysqldriver.ErrOldProtocol), errors.Is(err, mysqldriver.ErrPktTooLarge):
		return errForeign
	case errors.Is(err, mysqldriver.ErrUnknownPlugin), errors.Is(err, mysqldriver.ErrCleartextPassword), errors.Is(err, mysqldriver.ErrOldPassword),
		errors.Is(err, mysqldriver.ErrNativePassword):
		return fault.New(fault.Refused, "the server asks for a way of logging in that is not supported: %s", fault.Words(err.Error()))
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return fault.New(fault.Unavailable, "no answer within the time limit")
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.As(err, &network):
		return fault.New(fault.Unavailable, "%s", fault.Words(network.Error()))
	case errors.As(err, &syscall), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, mysqldriver.ErrInvalidConn), errors.Is(err, driver.ErrBadConn):
		return fault.New(fault.Unavailable, "the connection broke")
	}
	return fault.New(fault.Unknown, "%s", fault.Words(err.Error()))
}

var errForeign = fault.New(fault.Refused, `the server does not speak MySQL's protocol: see the connector's keys "type", "endpoint" and "port"`)

// greeting is what is known of the first bytes from a server. A MySQL server speaks first; one that stays silent may be
// waiting to be spoken to.
type greeting struct {
	patience time.Time // when a silent server is asked what it is; zero for never
	anything atomic.Bool
	verdict  atomic.Pointer[error] // why this is no MySQL server
}

func (g *greeting) judge(err error) { g.verdict.Store(&err) }

// isMySQL says whether bytes are the beginning of a MySQL server's greeting: three bytes of length, sequence number 0, and
// then the protocol version or an error. Fewer than five bytes say nothing, and may be.
func isMySQL(first []byte) bool {
	return len(first) < 5 || first[3] == 0 && (first[4] == 10 || first[4] == 9 || first[4] == 0xff)
}

// sniffer looks at the greeting before the driver does: the driver takes the first bytes of whatever speaks for a length, and
// waits for that much.
type sniffer struct {
	net.Conn
	heard   *greeting
	mariadb *atomic.Bool
}

func (s *sniffer) Read(p []byte) (int, error) {
	if s.heard.anything.Load() {
		return s.Conn.Read(p)
	}
	n, err := s.first(p)
	if n > 0 {
		s.heard.anything.Store(true)
		if !isMySQL(p[:n]) {
			s.heard.judge(errForeign)
			return 0, io.ErrUnexpectedEOF
		}
		s.mariadb.Store(dialectOf(string(p[:n])).hashes) // its version stands there
	}
	return n, err
}

// first waits for the greeting. Where there is none in time, the server is asked PostgreSQL's first question (SSLRequest, "Message
// Formats" in its manual), over this very connection: it is lost by then, and a server that counts broken connections and
// blocks a host for them (max_connect_errors) has one less to count.
func (s *sniffer) first(p []byte) (int, error) {
	if s.heard.patience.IsZero() {
		return s.Conn.Read(p)
	}
	_ = s.Conn.SetReadDeadline(s.heard.patience)
	n, err := s.Conn.Read(p)
	_ = s.Conn.SetReadDeadline(time.Time{}) // from here on the driver ends the connection when its context ends
	if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		return n, err
	}
	if _, werr := s.Conn.Write([]byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}); werr != nil {
		return 0, err
	}
	answer := make([]byte, 64)
	n, _ = s.Conn.Read(answer)
	switch answer = answer[:n]; {
	case n == 1 && (answer[0] == 'S' || answer[0] == 'N'):
		s.heard.judge(fault.New(fault.Refused, `the server speaks PostgreSQL's protocol, not MySQL's: set the connector's key "type" to "postgres"`))
	case !isMySQL(answer): // a MySQL server that was merely late is none of these
		s.heard.judge(errForeign)
	}
	return 0, err
}

// careful turns the driver's panic on a greeting that is cut short into an error.
type careful struct{ driver.Connector }

func (c careful) Connect(ctx context.Context) (conn driver.Conn, err error) {
	defer func() {
		if recover() != nil {
			conn, err = nil, mysqldriver.ErrMalformPkt
		}
	}()
	return c.Connector.Connect(ctx)
}
