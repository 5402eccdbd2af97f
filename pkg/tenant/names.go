// SPDX-License-Identifier: Apache-2.0

// Package tenant is what we know about one tenant: its names on the server, its credentials, and the record of both.
//
// The package is pure: no clock, no network, no client-go. The record is the truth about a tenant and everything else
// (the files of the hand-over, the keys for other consumers) is derived from it. A change of a password is written into
// the record before a server learns of it, so that the next run that finds the record, after any crash, can finish the work.
package tenant

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
)

// maxUID bounds a tenant UID: a namespace's UID (36) and a name (253), several times over.
const maxUID = 1024

// Names are a tenant's names on the server. They are derived from a hash of its UID: they fit MySQL's 32 characters for a
// user, hold no character that GRANT reads as a wildcard or that needs quoting or folding, cannot collide by truncation,
// and tell a neighbour who lists them nothing.
type Names struct {
	// Database is "vc" and 24 characters of lower-case base32.
	Database string
	// Owner is the role without login that owns what the tenant creates (PostgreSQL) and that marks the tenant as ours
	// (MySQL).
	Owner string
	// Marker is what we write beside our objects where an engine has room for a comment. It is derived from the UID, so that
	// a database of another tenant is never taken for this one's, and cannot be read backwards.
	Marker string
	// Lock names the tenant's lock on the server. It is derived from the UID and stands nowhere on the server, because
	// any login may take a lock whose name it knows, and one tenant must not hold up another's start.
	Lock string
}

// NamePattern matches the database names that we make, and no name that a person would choose. It is a regular
// expression for Go, PostgreSQL and MySQL alike.
const NamePattern = "^vc[a-z2-7]{24}$"

var namePattern = regexp.MustCompile(NamePattern)

// IsDatabase says whether a database's name is one of ours.
func IsDatabase(name string) bool { return namePattern.MatchString(name) }

// NamesOf derives the names of the tenant with this UID.
func NamesOf(uid string) Names {
	sum := sha256.Sum256([]byte(uid))
	n := "vc" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:24]
	mark := sha256.Sum256([]byte("dbconnector marker\n" + uid))
	lock := sha256.Sum256([]byte("dbconnector lock\n" + uid))
	return Names{Database: n, Owner: OwnerOf(n), Marker: "dbconnector:" + hex.EncodeToString(mark[:16]), Lock: "dbconnector/" + hex.EncodeToString(lock[:16])}
}

// OwnerOf is the name of the owner role that goes with a database.
func OwnerOf(database string) string { return database + "o" }

// User is the login of a slot.
func (n Names) User(s Slot) string { return n.Database + string(s) }

// UID makes the tenant UID that is used unless the operator sets one.
func UID(namespaceUID, vcluster string) string { return namespaceUID + "/" + vcluster }

// CheckUID refuses what cannot be a tenant UID: empty, white space around it, control characters, too long.
// The error does not name the setting it came from.
func CheckUID(uid string) error {
	switch {
	case uid == "":
		return fault.New(fault.Refused, "must not be empty")
	case len(uid) > maxUID:
		return fault.New(fault.Refused, "has %d bytes, at most %d are allowed", len(uid), maxUID)
	case strings.TrimSpace(uid) != uid:
		return fault.New(fault.Refused, "%s begins or ends with white space", fault.Show(uid))
	case strings.ContainsFunc(uid, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }):
		return fault.New(fault.Refused, "%s contains a control character or is not UTF-8", fault.Show(uid))
	}
	return nil
}

// Slot is one of the two logins of a tenant.
type Slot string

// The slots. A rotation changes the one that is not active.
const (
	A Slot = "a"
	B Slot = "b"
)

// Other is the other slot.
func (s Slot) Other() Slot {
	if s == A {
		return B
	}
	return A
}

// Login is all that is needed to log in as a tenant.
type Login struct {
	User     string
	Password dbserver.Password
	Database string
}

const (
	passwordLength = 40
	lower          = "abcdefghijklmnopqrstuvwxyz"
	upper          = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits         = "0123456789"
	marks          = "-_.~" // unreserved in URLs (RFC 3986), inert in SQL, in a MySQL DSN and in a shell
	alphabet       = lower + upper + digits + marks
)

// NewPassword makes a password of 40 characters from 66, each drawn evenly from crypto/rand (241 bits), with at least one of
// each class, which is what password policies ask for.
func NewPassword() dbserver.Password {
	for {
		p := draw()
		if strings.ContainsAny(p, lower) && strings.ContainsAny(p, upper) && strings.ContainsAny(p, digits) && strings.ContainsAny(p, marks) {
			return dbserver.Password(p)
		}
	}
}

func draw() string {
	out := make([]byte, 0, passwordLength)
	buf := make([]byte, 2*passwordLength)
	for {
		_, _ = rand.Read(buf) // never fails: it ends the program where the system has no randomness
		for _, b := range buf {
			if int(b) >= 256/len(alphabet)*len(alphabet) {
				continue // would prefer the alphabet's beginning
			}
			if out = append(out, alphabet[int(b)%len(alphabet)]); len(out) == passwordLength {
				return string(out)
			}
		}
	}
}

// checkPassword refuses a password that we did not make. It guards against an edited or damaged record: everything that
// renders a password relies on its alphabet.
func checkPassword(p dbserver.Password) error {
	if len(p) != passwordLength || strings.Trim(string(p), alphabet) != "" {
		return fmt.Errorf("a password does not consist of %d characters of the alphabet", passwordLength)
	}
	return nil
}
