// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestOf(t *testing.T) {
	t.Parallel()
	inner := New(Unavailable, "dialling: %w", io.EOF)
	for name, test := range map[string]struct {
		err  error
		want Class
	}{
		"nothing":                   {nil, Unknown},
		"unclassified":              {io.EOF, Unknown},
		"classified":                {inner, Unavailable},
		"wrapped":                   {fmt.Errorf("logging in: %w", inner), Unavailable},
		"joined":                    {errors.Join(io.EOF, inner), Unavailable},
		"the outermost counts":      {New(Refused, "giving up: %w", inner), Refused},
		"outermost, unknown":        {New(Unknown, "giving up: %w", inner), Unknown},
		"translated":                {Translate(NoAccess, inner, "no way in"), NoAccess},
		"the first of two in words": {New(Refused, "%w and %w", io.EOF, inner), Refused},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := Of(test.err); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
			for c := Unknown; c <= Refused; c++ {
				if want := test.err != nil && c == test.want; Is(test.err, c) != want {
					t.Errorf("Is(err, %v) is %v", c, !want)
				}
			}
		})
	}
}

func TestCauseIsFound(t *testing.T) {
	t.Parallel()
	if err := New(Refused, "reading: %w", io.EOF); !errors.Is(err, io.EOF) || err.Error() != "reading: EOF" {
		t.Errorf("got %v", err)
	}
	// Translate repeats nothing of the cause, because the cause may hold a secret.
	cause := fmt.Errorf("password hunter2: %w", io.EOF)
	err := fmt.Errorf("logging in: %w", Translate(Refused, cause, "the server says no: %w", io.ErrNoProgress))
	if !errors.Is(err, io.EOF) || !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("got %v: the cause is not found", err)
	}
	if text := err.Error(); strings.Contains(text, "hunter2") || text != "logging in: the server says no: "+io.ErrNoProgress.Error() {
		t.Errorf("got %q", text)
	}
}

// TestNetwork: what can go wrong between a program and a database server, whatever protocol they speak.
func TestNetwork(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err  error
		want Class
		says string
	}{
		"certificate":  {&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, Refused, `"caCert"`},
		"alert":        {tls.AlertError(40), Refused, "the server ends the TLS handshake: "},
		"not TLS":      {tls.RecordHeaderError{Msg: "first record"}, Refused, "something else"},
		"deadline":     {context.DeadlineExceeded, Unavailable, "no answer"},
		"timeout":      {&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, Unavailable, "no answer"},
		"refused":      {&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, Unavailable, "connection refused"},
		"no such host": {&net.DNSError{Err: "no such host", Name: "db", IsNotFound: true}, Unavailable, `"db"`},
		"reset":        {os.NewSyscallError("read", syscall.ECONNRESET), Unavailable, "connection reset by peer"},
		"end":          {io.ErrUnexpectedEOF, Unavailable, "the connection broke: unexpected EOF"},
		"closed":       {net.ErrClosed, Unavailable, "use of closed"},
		"cancelled":    {context.Canceled, Unknown, context.Canceled.Error()},
	} {
		got := Network(fmt.Errorf("logging in\nas a tenant: %w", test.err))
		if Of(got) != test.want || !strings.Contains(got.Error(), test.says) || strings.Contains(got.Error(), "\n") {
			t.Errorf("%s: got class %d (%v), want %d and %q", name, Of(got), got, test.want, test.says)
		}
	}
	if got := Network(errors.New("what?")); got != nil {
		t.Errorf("an error of no network: %v", got)
	}
}
