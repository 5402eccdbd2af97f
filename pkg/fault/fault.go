// SPDX-License-Identifier: Apache-2.0

// Package fault sorts errors by what is to be done about them.
//
// A database driver speaks in SQLSTATEs and error numbers, the API server in HTTP codes, a parser in prose. The logic
// above them (provision, rotation, main) must not know any of these languages, and must not guess from text: so the
// code that meets a foreign error first gives it one of the few classes below, and all other code asks Of. An error that was not
// classified is Unknown, which ends a run and leaves the next try to the kubelet.
package fault

import (
	"errors"
	"fmt"
)

// Class says what is to be done about an error.
type Class int

// The classes. Their order has no meaning.
const (
	// Unknown: it was not classified. Not repeated within a run; the kubelet's next try may help.
	Unknown Class = iota
	// Unavailable: nothing is wrong but the moment (no network, server starting, too many connections).
	// Worth repeating, with backoff, within the time limit.
	Unavailable
	// WrongPassword: the server said that the password of this login is wrong, and nothing else
	// (PostgreSQL 28P01, MySQL 1045), or that it has expired (MySQL 1862, MariaDB 1820). Note that both say so for a login that does not exist, too.
	WrongPassword
	// NoDatabase: the login is fine, the database is not there (PostgreSQL 3D000, MySQL 1049).
	NoDatabase
	// NoAccess: the login is fine, the database is not open to it (PostgreSQL 42501, 55000, 28000 after the fact; MySQL 1044).
	// Either a provisioning that was cut short, or a right that was taken away.
	NoAccess
	// Rejected: the server's password policy refuses this password (PostgreSQL 22023 and what a hook raises, MySQL 1819).
	// Another one may pass.
	Rejected
	// Refused: a human must change something: a setting, the connector, the server. Repeating is useless.
	Refused
)

// Error is an error with its class.
type Error struct {
	Class Class
	err   error // its words
	cause error // what it was made from; nil where the words wrap it
}

// New makes an error of class c. The format is fmt.Errorf's, %w included.
func New(c Class, format string, args ...any) error {
	return &Error{Class: c, err: fmt.Errorf(format, args...)}
}

// Translate makes an error of class c that says what the format says, and nothing of what cause says. errors.As still finds
// cause. It is for foreign errors whose text is too long, too technical or not safe.
func Translate(c Class, cause error, format string, args ...any) error {
	return &Error{Class: c, err: fmt.Errorf(format, args...), cause: cause}
}

func (e *Error) Error() string { return e.err.Error() }

// Unwrap gives the words' error and the cause.
func (e *Error) Unwrap() []error {
	if e.cause == nil {
		return []error{e.err}
	}
	return []error{e.err, e.cause}
}

// Of is the class of the outermost classified error in err's chain; Unknown where there is none.
func Of(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		return e.Class
	}
	return Unknown
}

// Is tells whether err is of class c.
func Is(err error, c Class) bool { return err != nil && Of(err) == c }
