// SPDX-License-Identifier: Apache-2.0

package tenant

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
)

// RecordVersion is the version of the record's format. A program refuses a record of a later version, since writing it back
// would lose what it does not know.
const RecordVersion = 1

// Record is the truth about one tenant. It is written only by compare-and-swap.
type Record struct {
	Version int `json:"version"`
	// UID is the tenant UID that the names are derived from.
	UID string `json:"tenantUID"`
	// Namespace and VCluster say whose record it is, so that a copy in another namespace is noticed.
	Namespace string `json:"namespace"`
	VCluster  string `json:"vcluster"`
	// Server is all that a restart needs to reach the database without the connector.
	Server dbserver.Server `json:"server"`
	// Database is kept beside UID so that a reader of the record needs no hash.
	Database string `json:"database"`
	// Slots hold the passwords. An empty password means that it is not known: the login was there before this record.
	Slots map[Slot]Credential `json:"slots"`
	// Active is the slot that the hand-over carries.
	Active Slot `json:"active"`
	// OtherRetired says that no client uses the inactive slot any more: a rotation may take it.
	OtherRetired bool `json:"otherRetired"`
	// OtherRefused says that the server refused what is held here for the inactive slot, or does not let it change its own
	// password: the next run of init sets it with the admin's credential.
	OtherRefused bool `json:"otherRefused,omitempty"`
	// Clients is from how many addresses the slot was used that the active one replaced: so many have to move.
	Clients int `json:"clients,omitempty"`
	// Generation numbers the active credential, from 1. It is the credential's identity.
	Generation int64 `json:"generation"`
	// ConnectionLimit is the limit that was last set on the server.
	ConnectionLimit int `json:"connectionLimit"`
	// Pending is a change that was decided and perhaps already applied; nil where there is none.
	Pending *Change `json:"pending,omitempty"`
	// ProvisionedAt is when the tenant's database was first found complete; zero before. Once it is set, a missing database
	// is data loss and not a beginning.
	ProvisionedAt time.Time `json:"provisionedAt,omitzero"`
	// DataSeen says that a restart found a store with data in the database. From then on an empty database is data loss, too.
	DataSeen bool `json:"dataSeen,omitempty"`
	// RotatedAt is when the active credential became active.
	RotatedAt time.Time `json:"rotatedAt,omitzero"`

	// Facts lie beside the record: see facts.go.
	Facts `json:"-"`
}

// Credential is what is kept of a slot.
type Credential struct {
	Password dbserver.Password `json:"password"`
}

// Change is a password on its way to the server.
type Change struct {
	Slot     Slot              `json:"slot"`
	Password dbserver.Password `json:"password"`
	Purpose  Purpose           `json:"purpose"`
	// Admin: init has taken it over, with the admin's credential and under the tenant's lock on the server. No sidecar
	// touches it any more: the admin has no session on the slot that would tell one to keep off.
	Admin bool `json:"admin,omitempty"`
}

// Purpose says what follows when a change has been applied.
type Purpose string

// The purposes.
const (
	// Activate: the slot becomes the active one.
	Activate Purpose = "activate"
	// Retire: the slot's old password is dead, and nothing else changes.
	Retire Purpose = "retire"
)

// NewRecord is the first record of a tenant: two fresh passwords, slot a active, nothing provisioned.
func NewRecord(uid, namespace, vcluster string, server dbserver.Server, limit int) *Record {
	return &Record{
		Version: RecordVersion, UID: uid, Namespace: namespace, VCluster: vcluster, Server: server,
		Database: NamesOf(uid).Database, Active: A, OtherRetired: true, Generation: 1, ConnectionLimit: limit,
		Slots: map[Slot]Credential{A: {NewPassword()}, B: {NewPassword()}},
	}
}

// Of says whether this is the record of a control plane, and not one that was copied or restored under another name. uid is
// the tenant UID that the operator set; where he set none, the names have to match.
func (r *Record) Of(namespace, vcluster, uid string) bool {
	if uid != "" {
		return r.UID == uid
	}
	return r.Namespace == namespace && r.VCluster == vcluster
}

// Equal says whether two records say the same. Their facts do not count: they are no part of a record.
func (r *Record) Equal(other *Record) bool {
	a, err := r.Encode()
	if err != nil {
		return false
	}
	b, err := other.Encode()
	return err == nil && bytes.Equal(a, b)
}

// SameCredential says whether two records have the same active credential. The generation alone would not tell: after a record
// was lost, the next one counts from 1 again.
func (r *Record) SameCredential(other *Record) bool {
	return r.Generation == other.Generation && r.Active == other.Active && r.RotatedAt.Equal(other.RotatedAt)
}

// Succeeds says whether r can be what became of an earlier record. A record from a backup may have a higher generation, where the
// earlier one was made again since the backup; and the password may have been edited by hand. Where a clock runs behind, a
// successor is not taken for one.
func (r *Record) Succeeds(earlier *Record) bool {
	if r.SameCredential(earlier) {
		return r.Slots[r.Active] == earlier.Slots[earlier.Active]
	}
	return r.Generation > earlier.Generation && !r.RotatedAt.Before(earlier.RotatedAt)
}

// Names are the tenant's names on the server.
func (r *Record) Names() Names { return NamesOf(r.UID) }

// Provisioned says whether the database was once complete.
func (r *Record) Provisioned() bool { return !r.ProvisionedAt.IsZero() }

// Login is the login of a slot with the password that the record holds for it.
func (r *Record) Login(s Slot) Login { return r.LoginWith(s, r.Slots[s].Password) }

// LoginWith is the login of a slot with another password.
func (r *Record) LoginWith(s Slot, p dbserver.Password) Login {
	return Login{User: r.Names().User(s), Password: p, Database: r.Database}
}

// Commit makes the pending change the record's state: call it when the server accepts the pending password.
// It does nothing where nothing is pending.
func (r *Record) Commit(now time.Time) {
	if r.Pending == nil {
		return
	}
	change := *r.Pending
	r.Pending = nil
	r.Slots[change.Slot] = Credential{change.Password}
	if change.Slot != r.Active {
		r.OtherRefused = false // the server was seen to accept it
	}
	switch {
	case change.Purpose == Retire:
		r.OtherRetired = r.OtherRetired || change.Slot != r.Active
	case change.Slot == r.Active:
		r.Generation++
		r.RotatedAt = now
	default:
		r.Active = change.Slot
		r.OtherRetired = false // a client may still use the slot that was active
		r.Generation++
		r.RotatedAt = now
	}
}

// Clone is a deep copy.
func (r *Record) Clone() *Record {
	if r == nil {
		return nil
	}
	c := *r
	c.Slots = make(map[Slot]Credential, len(r.Slots))
	for s, cred := range r.Slots {
		c.Slots[s] = cred
	}
	if r.Pending != nil {
		p := *r.Pending
		c.Pending = &p
	}
	return &c
}

// Store keeps the record of one tenant.
type Store interface {
	// Load reads the record; nil where there is none.
	Load(ctx context.Context) (*Record, error)
	// Update stores fn(old) if no other program wrote meanwhile, else tries again: fn may run more than once and must have no
	// effects. old is nil where there is no record.
	Update(ctx context.Context, fn func(old *Record) (*Record, error)) (*Record, error)
}

// FollowedStore is a store that tells of changes.
type FollowedStore interface {
	Store
	// Follow sends the record as it is now and every time it changed, until ctx ends. It never blocks the writer: of records
	// that were not received yet, the latest is sent. What goes wrong is sent, too, and following goes on.
	Follow(ctx context.Context) <-chan News
}

// News is a record that changed, nil where there is none any more, or why it could not be read.
type News struct {
	Record *Record
	Err    error
}

// Encode renders the record for storage.
func (r *Record) Encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("encoding the tenant's record: %w", err)
	}
	return json.Marshal(r)
}

// DecodeRecord reads what Encode wrote. Whatever it cannot make sense of is an error of class fault.Refused: a record that
// cannot be read is never an empty record. The error repeats nothing of the input, which holds passwords.
func DecodeRecord(data []byte) (*Record, error) {
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return nil, fault.New(fault.Refused, "reading the tenant's record: it is not JSON")
	}
	if version.Version != RecordVersion {
		return nil, fault.New(fault.Refused, "reading the tenant's record: it has format version %d, this program knows version %d: use the dbconnector release "+
			"that wrote it, or a later one",
			version.Version, RecordVersion)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	var r Record
	if err := decoder.Decode(&r); err != nil {
		return nil, fault.New(fault.Refused, "reading the tenant's record: %s", jsonRule(err))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Refused, "reading the tenant's record: it goes on after its end")
	}
	if err := r.check(); err != nil {
		return nil, fault.New(fault.Refused, "reading the tenant's record: %w", err)
	}
	return &r, nil
}

// jsonRule says what is wrong without repeating a value, as the library's own errors do.
func jsonRule(err error) string {
	var typ *json.UnmarshalTypeError
	if errors.As(err, &typ) {
		return fmt.Sprintf("field %q has the wrong type", typ.Field)
	}
	return "it has a field that this version does not know, or a value that is not of the field's form"
}

// check holds the record to what every reader of it relies on.
func (r *Record) check() error {
	if err := CheckUID(r.UID); err != nil {
		return fmt.Errorf("field tenantUID: %w", err)
	}
	switch {
	case r.Version != RecordVersion:
		return fmt.Errorf("field version: must be %d", RecordVersion)
	case r.Database != r.Names().Database:
		return errors.New("field database: does not belong to field tenantUID")
	case r.Server.Engine != dbserver.Postgres && r.Server.Engine != dbserver.MySQL:
		return errors.New("field server.engine: must be postgres or mysql")
	case r.Server.Host == "" || r.Server.Port == 0:
		return errors.New("field server: host and port must be set")
	case r.Active != A && r.Active != B:
		return errors.New("field active: must be a or b")
	case len(r.Slots) != 2:
		return errors.New("field slots: must hold a and b")
	case r.Generation < 1:
		return errors.New("field generation: must be at least 1")
	case r.ConnectionLimit < 1:
		return errors.New("field connectionLimit: must be at least 1")
	}
	if _, err := r.Server.TLSConfig(); err != nil {
		return fmt.Errorf("field server: %w", err)
	}
	for _, s := range []Slot{A, B} {
		cred, ok := r.Slots[s]
		if !ok {
			return errors.New("field slots: must hold a and b")
		}
		if cred.Password == "" && s != r.Active {
			continue // it is not known
		}
		if err := checkPassword(cred.Password); err != nil {
			return fmt.Errorf("field slots.%s: %w", s, err)
		}
	}
	if r.Pending != nil {
		if r.Pending.Slot != A && r.Pending.Slot != B {
			return errors.New("field pending.slot: must be a or b")
		}
		if r.Pending.Purpose != Activate && r.Pending.Purpose != Retire {
			return errors.New("field pending.purpose: must be activate or retire")
		}
		if err := checkPassword(r.Pending.Password); err != nil {
			return fmt.Errorf("field pending: %w", err)
		}
	}
	return nil
}

// Binding renders the active credential under the well-known keys of the Service Binding specification
// (https://github.com/servicebinding/spec, "Well-known Secret Entries"), for other consumers than the control plane.
// provider says who made it; uri is the connection string of the engine.
func (r *Record) Binding(uri string) map[string]string {
	login := r.Login(r.Active)
	return map[string]string{
		"type": r.Server.Engine.BindingType(), "provider": "dbconnector", "host": r.Server.Host, "port": strconv.Itoa(int(r.Server.Port)),
		"database": login.Database, "username": login.User, "password": login.Password.Reveal(), "uri": uri,
	}
}
