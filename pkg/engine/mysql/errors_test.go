// SPDX-License-Identifier: Apache-2.0

package mysql

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	mysqldriver "github.com/go-sql-driver/mysql"

	"dbconnector/pkg/fault"
)

func TestClassifyMySQL(t *testing.T) {
	t.Parallel()
	server := func(number uint16) error {
		return fmt.Errorf("driver: %w", &mysqldriver.MySQLError{Number: number, Message: "said\nso"})
	}
	tests := map[string]struct {
		reason string
		err    error
		want   fault.Class
	}{
		"1045":            {"the one number for a wrong password", server(1045), fault.WrongPassword},
		"1049":            {"the database is not there", server(1049), fault.NoDatabase},
		"1044":            {"not open to this login", server(1044), fault.NoAccess},
		"1142":            {"a table is not open", server(1142), fault.NoAccess},
		"1227":            {"a right is missing", server(1227), fault.NoAccess},
		"3879":            {"a role may not be granted", server(3879), fault.NoAccess},
		"1040":            {"full servers empty again", server(1040), fault.Unavailable},
		"1053":            {"a server that goes down comes back", server(1053), fault.Unavailable},
		"1203":            {"the login's own limit", server(1203), fault.Unavailable},
		"1226":            {"the login's own limit, by its other number", server(1226), fault.Unavailable},
		"1205":            {"a lock is held", server(1205), fault.Unavailable},
		"1213":            {"a deadlock", server(1213), fault.Unavailable},
		"1007":            {"somebody else created the database just now", server(1007), fault.Unavailable},
		"1396":            {"somebody else created the login just now", server(1396), fault.Unavailable},
		"1094":            {"a thread that ended while it was looked at", server(1094), fault.Unavailable},
		"1047":            {"a node of Galera that is not ready yet", server(1047), fault.Unavailable},
		"1317":            {"somebody interrupted the statement", server(1317), fault.Unavailable},
		"1927":            {"somebody ended the session", server(1927), fault.Unavailable},
		"1969":            {"the server's limit for a statement, on MariaDB", server(1969), fault.Unavailable},
		"3024":            {"the server's limit for a statement, on MySQL", server(3024), fault.Unavailable},
		"3032":            {"a server that is offline for maintenance", server(3032), fault.Unavailable},
		"4031":            {"the session was idle for too long", server(4031), fault.Unavailable},
		"1129":            {"blocked until a human unblocks", server(1129), fault.Refused},
		"1130":            {"the host may not connect, or the privileges are just read anew", server(1130), fault.Unavailable},
		"1133":            {"somebody else dropped the login just now", server(1133), fault.Unavailable},
		"1141":            {"somebody else revoked the right just now", server(1141), fault.Unavailable},
		"1410":            {"somebody else dropped the login just now, on MySQL", server(1410), fault.Unavailable},
		"1290":            {"an option of the server forbids it", server(1290), fault.Refused},
		"1819":            {"the policy rejects the password", server(1819), fault.Refused},
		"1820":            {"the password must be changed first", server(1820), fault.WrongPassword},
		"1862":            {"the password has expired", server(1862), fault.WrongPassword},
		"3118":            {"locked, on MySQL", server(3118), fault.Refused},
		"4151":            {"locked, on MariaDB", server(4151), fault.Refused},
		"3159":            {"B48: the server wants TLS", server(3159), fault.Refused},
		"1064":            {"a syntax error is our bug", server(1064), fault.Unknown},
		"no TLS":          {"the server has none, and we do not fall back (B9)", mysqldriver.ErrNoTLS, fault.Refused},
		"certificate":     {"it does not verify", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, fault.Refused},
		"alert":           {"the server ends the handshake", tls.AlertError(40), fault.Refused},
		"not TLS":         {"something else answers", tls.RecordHeaderError{Msg: "first record"}, fault.Refused},
		"not MySQL":       {"something else answers", mysqldriver.ErrMalformPkt, fault.Refused},
		"cleartext":       {"a plugin that sends the password in clear text", mysqldriver.ErrCleartextPassword, fault.Refused},
		"deadline":        {"no answer", context.DeadlineExceeded, fault.Unavailable},
		"timeout":         {"no answer", &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, fault.Unavailable},
		"refused":         {"nothing listens yet", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, fault.Unavailable},
		"no such host":    {"DNS comes and goes", &net.DNSError{Err: "no such host", Name: "db"}, fault.Unavailable},
		"reset":           {"the connection broke", os.NewSyscallError("read", syscall.ECONNRESET), fault.Unavailable},
		"end":             {"the connection broke", io.ErrUnexpectedEOF, fault.Unavailable},
		"bad connection":  {"the connection broke", driver.ErrBadConn, fault.Unavailable},
		"invalid":         {"the connection broke", mysqldriver.ErrInvalidConn, fault.Unavailable},
		"cancelled":       {"a stop is no failure of the server", context.Canceled, fault.Unknown},
		"anything else":   {"nobody knows", errors.New("what?"), fault.Unknown},
		"classified once": {"the first word counts", fault.New(fault.Refused, "no"), fault.Refused},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := classify(tc.err)
			if fault.Of(got) != tc.want {
				t.Errorf("%s: got class %d (%v), want %d", tc.reason, fault.Of(got), got, tc.want)
			}
			if strings.Contains(got.Error(), "\n") {
				t.Errorf("not one line: %q", got)
			}
		})
	}
	if classify(nil) != nil {
		t.Error("no error became one")
	}
	if !errors.Is(classify(fmt.Errorf("x: %w", context.Canceled)), context.Canceled) {
		t.Error("main could not tell that it was stopped")
	}
}

// B18: a server that is not quite what it says repeats what it does not understand.
func TestSyntaxErrorMySQL(t *testing.T) {
	t.Parallel()
	err := classify(&mysqldriver.MySQLError{Number: 1064, Message: "You have an error in your SQL syntax; … near 'BY 'hunter2' REQUIRE SSL' at line 1"})
	if fault.Of(err) != fault.Unknown || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "1064") {
		t.Errorf("got %v (class %d)", err, fault.Of(err))
	}
}
