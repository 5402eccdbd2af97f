// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"dbconnector/pkg/fault"
)

// F18: each code that a login, DDL, or a statement about a role or a password can meet.
func TestClassifyPostgres(t *testing.T) {
	t.Parallel()
	server := func(code string) error {
		return fmt.Errorf("driver: %w", &pgconn.PgError{Code: code, Message: "said\nso"})
	}
	tests := map[string]struct {
		reason string
		err    error
		want   fault.Class
	}{
		"28P01":           {"the one code for a wrong password", server("28P01"), fault.WrongPassword},
		"28000":           {"no entry in pg_hba.conf, or the role may not log in: not a wrong password", server("28000"), fault.Refused},
		"3D000":           {"the database is not there", server("3D000"), fault.NoDatabase},
		"42501":           {"a right is missing", server("42501"), fault.NoAccess},
		"55000":           {"the database takes no connections", server("55000"), fault.NoAccess},
		"25006":           {"B47: the server is read-only", server("25006"), fault.Refused},
		"53300":           {"B45: full servers empty again", server("53300"), fault.Unavailable},
		"57P03":           {"a server that starts is there in a moment", server("57P03"), fault.Unavailable},
		"57P01":           {"a server that goes down comes back", server("57P01"), fault.Unavailable},
		"57014":           {"the statement was cancelled", server("57014"), fault.Unavailable},
		"08006":           {"the connection broke", server("08006"), fault.Unavailable},
		"40P01":           {"a deadlock", server("40P01"), fault.Unavailable},
		"XX000":           {"B41: tuple concurrently updated", server("XX000"), fault.Unavailable},
		"42P04":           {"B40: another session created the database just now", server("42P04"), fault.Unavailable},
		"42704":           {"another session dropped the role just now", server("42704"), fault.Unavailable},
		"42710":           {"B40: another session created the role just now", server("42710"), fault.Unavailable},
		"23505":           {"B40: and in the same instant", server("23505"), fault.Unavailable},
		"55006":           {"the database is in use just now", server("55006"), fault.Unavailable},
		"55P03":           {"the server's limit for waiting for a lock", server("55P03"), fault.Unavailable},
		"0A000":           {"F18: a server that is not all that PostgreSQL is", server("0A000"), fault.Refused},
		"0L000":           {"the admin may not grant this", server("0L000"), fault.Refused},
		"0LP01":           {"a circle of roles", server("0LP01"), fault.Refused},
		"0P000":           {"a role that cannot be used like this", server("0P000"), fault.Refused},
		"2BP01":           {"others depend on it", server("2BP01"), fault.Refused},
		"38000":           {"an event trigger's function", server("38000"), fault.Refused},
		"39P03":           {"an event trigger's function is none", server("39P03"), fault.Refused},
		"P0001":           {"a hook or an event trigger says no", server("P0001"), fault.Refused},
		"42703":           {"a catalog without a column", server("42703"), fault.Refused},
		"42883":           {"a server without a function", server("42883"), fault.Refused},
		"42939":           {"a reserved name", server("42939"), fault.Refused},
		"54000":           {"a limit of the program", server("54000"), fault.Refused},
		"58000":           {"the server's machine", server("58000"), fault.Refused},
		"58030":           {"the server's disk", server("58030"), fault.Refused},
		"F0000":           {"the server's configuration", server("F0000"), fault.Refused},
		"XX001":           {"damaged data", server("XX001"), fault.Refused},
		"XX002":           {"a damaged index", server("XX002"), fault.Refused},
		"08P01":           {"F8: a pooler's word for everything", server("08P01"), fault.Unavailable},
		"53100":           {"the disk is full", server("53100"), fault.Unavailable},
		"53200":           {"out of memory", server("53200"), fault.Unavailable},
		"53400":           {"a limit of the configuration", server("53400"), fault.Unavailable},
		"57P02":           {"another process crashed", server("57P02"), fault.Unavailable},
		"57P04":           {"the database was dropped: the next try finds out", server("57P04"), fault.Unavailable},
		"57P05":           {"idle_session_timeout", server("57P05"), fault.Unavailable},
		"25P03":           {"idle_in_transaction_session_timeout", server("25P03"), fault.Unavailable},
		"40001":           {"a rival", server("40001"), fault.Unavailable},
		"42P01":           {"another session dropped the table just now", server("42P01"), fault.Unavailable},
		"3F000":           {"another session dropped the schema just now", server("3F000"), fault.Unavailable},
		"72000":           {"the snapshot is too old", server("72000"), fault.Unavailable},
		"58P01":           {"a login's own setting can cause it", server("58P01"), fault.Unknown},
		"22023":           {"a login's own setting can cause it", server("22023"), fault.Unknown},
		"55P02":           {"a login's own setting can cause it", server("55P02"), fault.Unknown},
		"25P04":           {"a login's own setting can cause it", server("25P04"), fault.Unknown},
		"99999":           {"a code that no PostgreSQL has", server("99999"), fault.Unknown},
		"42601":           {"a syntax error is our bug", server("42601"), fault.Unknown},
		"no code":         {"a server that is none", server(""), fault.Unknown},
		"certificate":     {"it does not verify", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, fault.Refused},
		"refused":         {"nothing listens yet", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, fault.Unavailable},
		"no such host":    {"DNS comes and goes", &net.DNSError{Err: "no such host", Name: "db"}, fault.Unavailable},
		"stopped early":   {"the stop came before the statement", tooEarlyError{context.Canceled}, fault.Unknown},
		"broke early":     {"the connection broke before the statement", tooEarlyError{errors.New("conn closed")}, fault.Unavailable},
		"end":             {"the connection broke", io.ErrUnexpectedEOF, fault.Unavailable},
		"cancelled":       {"a stop is no failure of the server", context.Canceled, fault.Unknown},
		"anything else":   {"an error of an unknown kind", errors.New("what?"), fault.Unknown},
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

// tooEarlyError is what pgconn says of a statement that it never sent.
type tooEarlyError struct{ error }

func (tooEarlyError) SafeToRetry() bool { return true }
func (e tooEarlyError) Unwrap() error   { return e.error }

// The codes of a lost race must survive classify, which comes before the question.
func TestLostRace(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"42P04", "42704", "42710", "23505", "XX000", "55006", "40001", "40P01"} {
		if err := fmt.Errorf("creating: %w", classify(&pgconn.PgError{Code: code})); !lostRace(err) {
			t.Errorf("%s: not seen as a lost race", code)
		}
	}
	for _, err := range []error{nil, errors.New("x"), classify(&pgconn.PgError{Code: "42501"})} {
		if lostRace(err) {
			t.Errorf("%v: seen as a lost race", err)
		}
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		reason, first string
		tls           bool
		want          string // "" for no verdict
	}{
		{"nothing came: a network's fault", "", true, ""},
		{"MySQL greets first", "\x4a\x00\x00\x00\x0a8.0.36", true, "MySQL"},
		{"MySQL refuses first", "\x10\x00\x00\x00\xff\x10\x04", true, "MySQL"},
		{"PostgreSQL without TLS, which we want", "N", true, "sslMode"},
		{"PostgreSQL without TLS, as we said", "N", false, ""},
		{"PostgreSQL with TLS", "S", true, ""},
		{"PostgreSQL has an error", "E\x00\x00\x00\x40", true, ""},
		{"a web server", "HTTP/1.1 400 Bad Request", true, "type"},
		{"an SSH server, whose S is no yes to TLS", "SSH-2.0-OpenSSH_9.2", true, "type"},
	} {
		var s sniffer
		if first := []byte(tc.first); len(first) > 0 {
			s.first.Store(&first)
		}
		err := s.verdict(tc.tls)
		if (err == nil) != (tc.want == "") || (err != nil && (!strings.Contains(err.Error(), tc.want) || !fault.Is(err, fault.Refused))) {
			t.Errorf("%s: got %v, want %q", tc.reason, err, tc.want)
		}
	}
}

// B18: a server of another kind repeats the statement that it does not understand.
func TestSyntaxErrorPostgres(t *testing.T) {
	t.Parallel()
	err := classify(&pgconn.PgError{Code: "42601", Message: `syntax error at or near "'SCRAM-SHA-256$4096:x'"`})
	if fault.Of(err) != fault.Unknown || strings.Contains(err.Error(), "SCRAM") || !strings.Contains(err.Error(), "42601") {
		t.Errorf("got %v (class %d)", err, fault.Of(err))
	}
}

// What the server says to the admin about a new password: a policy's no needs a human, whatever code it comes with, and is
// never a wrong password of the admin's.
func TestAdminsNewPassword(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]fault.Class{
		"22023": fault.Refused, "28P01": fault.Refused, "42501": fault.Refused, "XX000": fault.Unavailable, "42704": fault.Unavailable,
	} {
		if err := explain(classifyChange(&pgconn.PgError{Code: code}), "admin", ""); fault.Of(err) != want {
			t.Errorf("%s: class %d, want %d: %v", code, fault.Of(err), want, err)
		}
	}
}
