// SPDX-License-Identifier: Apache-2.0

package tenant

import (
	"regexp"
	"strconv"
)

// Make is of which make the objects are that today's admin path leaves on a server: what a tenant's roles and rights are. A
// tenant of an earlier make is brought up to date at its next start, with the admin's credential. A record without one, of a
// release that kept no such number, counts as older than any. 2 is the make without inheritance between PostgreSQL's roles, 3
// the one without rights on MySQL and MariaDB that a login gave away or got (docs/failures.md S17).
const Make = 3

// Facts are what is known about a tenant beside its record. They are no part of the record's JSON, because a program of an
// earlier release refuses a field that it does not know: they are annotations of the record's Secret, or a file of their own
// in a state directory, and an earlier release leaves them alone. They are written in the same compare-and-swap as the
// record. What cannot be read of them counts as missing.
type Facts struct {
	// Make is of which make the tenant's objects on the server are; 0 where that is not known.
	Make int
	// NamespaceUID is the UID of the namespace that the record was written for; empty where that is not known.
	NamespaceUID string
	// Apply is the operator's request to apply the connector as it is now; empty where there is none. Any value is one, and
	// tells it from a later one.
	Apply string
	// Unclaimed: this is the tenant's own record, and what lies beside it does not say so yet (a restore, a record of an
	// earlier release). The next write corrects that; a program that clears it asks for one.
	Unclaimed bool
}

// The facts' names, as they are stored. ApplyFact is a request: people write it, and we remove it.
const (
	MakeFact         = "make"
	NamespaceUIDFact = "namespace-uid"
	ApplyFact        = "apply-connector"
)

// maxMake catches a number that no release ever wrote.
const maxMake = 1 << 20

// maxApply bounds what is kept of a request's value.
const maxApply = 64

var uidForm = regexp.MustCompile(`^[A-Za-z0-9-]{1,128}$`)

// Encode renders the facts for storage, by name. One that is not known is not there.
func (f Facts) Encode() map[string]string {
	m := map[string]string{}
	if f.Make > 0 {
		m[MakeFact] = strconv.Itoa(f.Make)
	}
	if f.NamespaceUID != "" {
		m[NamespaceUIDFact] = f.NamespaceUID
	}
	if f.Apply != "" {
		m[ApplyFact] = f.Apply
	}
	return m
}

// DecodeFacts reads what Encode wrote, or a person. It refuses nothing: a record must stay readable.
func DecodeFacts(m map[string]string) Facts {
	var f Facts
	if n, err := strconv.Atoi(m[MakeFact]); err == nil && n > 0 && n <= maxMake {
		f.Make = n
	}
	if uid := m[NamespaceUIDFact]; uidForm.MatchString(uid) {
		f.NamespaceUID = uid
	}
	if request, ok := m[ApplyFact]; ok {
		if f.Apply = request; f.Apply == "" {
			f.Apply = "true"
		}
		f.Apply = f.Apply[:min(len(f.Apply), maxApply)]
	}
	return f
}
