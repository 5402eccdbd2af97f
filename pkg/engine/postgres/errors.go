// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"bytes"
	"errors"
	"net"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"

	"dbconnector/pkg/fault"
)

// SQLSTATEs that have a meaning for us (https://www.postgresql.org/docs/current/errcodes-appendix.html).
const (
	protocolViolation     = "08P01" // PostgreSQL has no use for it here; PgBouncer refuses nearly everything with it
	invalidPassword       = "28P01"
	invalidAuthorization  = "28000" // no pg_hba.conf entry, role may not log in
	invalidCatalogName    = "3D000" // the database does not exist
	insufficientPrivilege = "42501"
	notInState            = "55000" // the database accepts no connections
	objectInUse           = "55006"
	lockNotAvailable      = "55P03" // lock_timeout
	syntaxError           = "42601"
	readOnlyTransaction   = "25006"
	duplicateDatabase     = "42P04"
	duplicateObject       = "42710"
	undefinedObject       = "42704" // a role that was there a moment ago
	uniqueViolation       = "23505"
	internalError         = "XX000" // "tuple concurrently updated" when two sessions change one catalog row
)

// lostRace says that another session did the same at the same time, or undid it: the next read of the catalog finds it done,
// or can try again. The codes are those that PostgreSQL gives for concurrent DDL (docs/failures.md B40, B41).
func lostRace(err error) bool {
	switch code(err) {
	case duplicateDatabase, duplicateObject, undefinedObject, uniqueViolation, internalError, objectInUse, "40001", "40P01":
		return true
	}
	return false
}

func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// classes are what SQLSTATEs mean for a login and for the statements that we run; those of two letters stand for all that begin
// with them. What is not here is fault.Unknown: it is said in full, ends the run with exit code 1, and the kubelet's next try may
// help. At a tenant's login it goes to the admin path, since a login's own settings can bring about any code (docs/failures.md
// F18). So the codes that such a setting causes have to stay out: 22023 (a value that is none), 58P01 (a library that is not
// there), 25P04 (transaction_timeout), 55P02. Out are also those of bugs of ours (42601, 25001, 26000 and other 22, 25, 42),
// and those that only queries on data can meet (21, 23 but for 23505, 24, 27, 34, 44, HV).
var classes = map[string]fault.Class{
	invalidPassword:       fault.WrongPassword,
	invalidCatalogName:    fault.NoDatabase,
	insufficientPrivilege: fault.NoAccess,
	notInState:            fault.NoAccess,

	invalidAuthorization: fault.Refused,
	readOnlyTransaction:  fault.Refused,
	"0A000":              fault.Refused, // a server that is not all that PostgreSQL is
	"0L":                 fault.Refused, // who grants may not
	"0P":                 fault.Refused, // a role that cannot be what it should: reserved, or in a circle
	"2B":                 fault.Refused, // others depend on what is to be taken away
	"42703":              fault.Refused, // a catalog without a column, or a server without a function, that PostgreSQL has
	"42883":              fault.Refused,
	"42939":              fault.Refused, // a name that the server keeps for itself
	"38":                 fault.Refused, // event triggers and hooks, in whatever language
	"39":                 fault.Refused,
	"P0":                 fault.Refused,
	"54":                 fault.Refused, // a limit of the program
	"58000":              fault.Refused, // the server's machine
	"58030":              fault.Refused,
	"F0":                 fault.Refused, // its configuration
	"XX001":              fault.Refused, // its data are damaged
	"XX002":              fault.Refused,

	// Another session does the same at this moment, or the opposite.
	objectInUse: fault.Unavailable, lockNotAvailable: fault.Unavailable, internalError: fault.Unavailable,
	duplicateDatabase: fault.Unavailable, duplicateObject: fault.Unavailable, undefinedObject: fault.Unavailable, uniqueViolation: fault.Unavailable,
	"3F000": fault.Unavailable, "42P01": fault.Unavailable, "25P03": fault.Unavailable,
	"72000": fault.Unavailable,

	"08": fault.Unavailable, // the connection; and whatever a pooler has to say
	"53": fault.Unavailable, // resources
	"57": fault.Unavailable, // starts, stops, cancellations
	"40": fault.Unavailable, // rollback
}

// classOf is the class of an SQLSTATE. Who else speaks the protocol may leave it out.
func classOf(code string) fault.Class {
	if class, ok := classes[code]; ok {
		return class
	}
	return classes[code[:min(2, len(code))]]
}

// classify gives a driver's error its class and a message of one line. A statement is never part of it.
func classify(err error) error {
	if err == nil {
		return nil
	}
	if fault.Of(err) != fault.Unknown {
		return err
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		class := classOf(pg.Code)
		said := fault.Words(pg.Message)
		if pg.Code == syntaxError {
			said = "it does not understand a statement" // its own words repeat a part of it, and that may be a verifier
		}
		return fault.Translate(class, pg, "the server says: %s (SQLSTATE %s)", said, pg.Code)
	}
	if network := fault.Network(err); network != nil {
		return network
	}
	if pgconn.SafeToRetry(err) { // "conn closed": the connection broke before
		return fault.New(fault.Unavailable, "the connection broke: %s", fault.Words(fault.Innermost(err).Error()))
	}
	return fault.New(fault.Unknown, "%s", fault.Words(fault.Innermost(err).Error()))
}

// classifyTheirs is classify for what may run a tenant's code: where public.kine is a view, its functions answer with any
// code and any words, and neither may decide anything or stand in our log. What ends the session is still the server's.
func classifyTheirs(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.SeverityUnlocalized != "FATAL" && pg.SeverityUnlocalized != "PANIC" {
		class := fault.Unknown
		switch pg.Code[:min(2, len(pg.Code))] { // perhaps the server's: waiting does no harm
		case "53", "40":
			class = fault.Unavailable
		}
		return fault.Translate(class, errTheirs, "table kine cannot be read (SQLSTATE %s)", fault.Words(pg.Code))
	}
	return classify(err)
}

// errTheirs stands for an error of a tenant's code.
var errTheirs = errors.New("a tenant's code")

// classifyChange is classify for the change of a password: there, these codes are about the new one.
func classifyChange(err error) error {
	classified := classify(err)
	switch code(err) {
	case "22023", invalidPassword: // what passwordcheck, credcheck and their like raise
		return fault.New(fault.Rejected, "%w", classified)
	}
	return classified
}

// sniffer remembers the first bytes that a server sends. pgconn reports a server that refuses TLS, and one that does not
// speak PostgreSQL at all, as plain text; these bytes tell without reading prose.
type sniffer struct {
	net.Conn
	first   atomic.Pointer[[]byte] // who asks for it does not wait for a read that is under way
	pending []byte
}

// Read hands out what came, and the first time takes as much as there is, so that a foreign greeting is seen whole.
func (s *sniffer) Read(p []byte) (int, error) {
	if s.first.Load() == nil {
		buf := make([]byte, 64)
		n, err := s.Conn.Read(buf)
		if n == 0 {
			return n, err
		}
		first := buf[:n]
		s.first.Store(&first)
		s.pending = first
	}
	if len(s.pending) > 0 {
		n := copy(p, s.pending)
		s.pending = s.pending[n:]
		return n, nil
	}
	return s.Conn.Read(p)
}

// answered says whether the server has sent anything.
func (s *sniffer) answered() bool { return s.first.Load() != nil }

// verdict is what the first bytes say about a connection that failed; nil where they say nothing.
func (s *sniffer) verdict(wantTLS bool) error {
	if !s.answered() {
		return nil
	}
	first := *s.first.Load()
	switch {
	case len(first) > 4 && first[3] == 0 && (first[4] == 10 || first[4] == 0xff):
		// A MySQL packet: three bytes of length, sequence number 0, protocol version 10 or an error.
		return fault.New(fault.Refused, `the server speaks MySQL's protocol, not PostgreSQL's: see the connector's key "type"`)
	case wantTLS && bytes.Equal(first, []byte("N")):
		return fault.NoTLS()
	case wantTLS && len(first) > 1 && (first[0] == 'S' || first[0] == 'N'), // its yes or no is one byte: SSH- and the like
		!bytes.ContainsAny(first[:1], "SNERv"): // SSL yes and no, error, authentication, protocol negotiation
		return fault.New(fault.Refused, `the server does not speak PostgreSQL's protocol: see the connector's keys "type", "endpoint" and "port"`)
	}
	return nil
}
