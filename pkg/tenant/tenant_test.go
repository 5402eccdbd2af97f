// SPDX-License-Identifier: Apache-2.0

package tenant

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
)

// TestNamesAreForGood: the names are an agreement with every server that holds a tenant. If this fails, every tenant has
// lost its database. B13, B16: they follow from the UID alone, with two logins for good, so that no retry makes a third one,
// and none is ever looked for by a pattern.
func TestNamesAreForGood(t *testing.T) {
	t.Parallel()
	got := NamesOf(UID("0b5ee28b-3f6e-4b3c-8d0c-0d6a4f0c9f11", "blue"))
	// Computed by another program.
	want := Names{
		Database: "vcvy6yawimtldhoehxgj3swoj3", Owner: "vcvy6yawimtldhoehxgj3swoj3o",
		Marker: "dbconnector:4b4dcbba18aece27013b0690b34c4e3d", Lock: "dbconnector/cd37f3f47910621054e8da3d392e9519",
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got.User(A) != want.Database+"a" || got.User(B) != want.Database+"b" {
		t.Errorf("users %q, %q", got.User(A), got.User(B))
	}
}

// FuzzNames: B26, B27, B28, B43: whatever the UID, the names fit every server, need no quotes, and are another tenant's never.
func FuzzNames(f *testing.F) {
	f.Add("a/b-c", "a-b/c") // B27
	f.Add("", "\x00")
	f.Add(strings.Repeat("x", 63), strings.Repeat("x", 64)) // B28
	f.Add("A", "a")
	pattern := regexp.MustCompile(NamePattern)
	f.Fuzz(func(t *testing.T, one, two string) {
		a, b := NamesOf(one), NamesOf(two)
		if a != NamesOf(one) {
			t.Fatal("the same UID gave two names")
		}
		if !pattern.MatchString(a.Database) || !IsDatabase(a.Database) || len(a.Database) != 26 {
			t.Errorf("database %q", a.Database)
		}
		for _, name := range []string{a.Owner, a.User(A), a.User(B)} {
			if len(name) > 32 || !strings.HasPrefix(name, a.Database) || IsDatabase(name) || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz234567") != "" {
				t.Errorf("name %q", name)
			}
		}
		if len(one) > 3 && (strings.Contains(a.Marker, one) || strings.Contains(a.Database, one)) {
			t.Errorf("%q tells the UID %q", a.Marker, one)
		}
		if one != two && (a.Database == b.Database || a.Marker == b.Marker || strings.HasPrefix(a.Owner, b.Database)) {
			t.Errorf("%q and %q share a name", one, two)
		}
	})
}

func TestIsDatabase(t *testing.T) {
	t.Parallel()
	name := NamesOf("x").Database
	for _, s := range []string{"", "postgres", name + "\n", " " + name, name + "a", name[:25], strings.ToUpper(name), "vc_" + name[3:], "vc1" + name[3:]} {
		if IsDatabase(s) {
			t.Errorf("%q is not a name that we make", s)
		}
	}
}

func TestCheckUID(t *testing.T) {
	t.Parallel()
	for uid, want := range map[string]string{
		"0b5e/blue": "", "a b ü": "", strings.Repeat("x", 1024): "",
		"": "must not be empty", " a": "white space", "a\n": "white space", "a\nb": "control character", "a\x7f": "control character",
		"a\xffb": "not UTF-8", strings.Repeat("x", 1025): "at most 1024",
	} {
		err := CheckUID(uid)
		if want == "" && err != nil || want != "" && (!fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", uid, err, want)
		}
		if err != nil && strings.ContainsFunc(err.Error(), unicode.IsControl) {
			t.Errorf("not one line: %q", err)
		}
	}
}

func TestNewPassword(t *testing.T) {
	t.Parallel()
	seen := map[dbserver.Password]bool{}
	used := map[rune]bool{}
	for range 2000 {
		p := NewPassword()
		if err := checkPassword(p); err != nil || seen[p] {
			t.Fatalf("%d characters, seen before: %v, %v", len(p), seen[p], err)
		}
		for _, class := range []string{lower, upper, digits, marks} {
			if !strings.ContainsAny(string(p), class) {
				t.Errorf("lacks one of %s", class)
			}
		}
		for _, r := range p.Reveal() {
			used[r] = true
		}
		seen[p] = true
	}
	if len(used) != len(alphabet) {
		t.Errorf("%d characters of %d are used", len(used), len(alphabet))
	}
}

func record() *Record {
	r := NewRecord("uid/blue", "team-a", "blue", dbserver.Server{Engine: dbserver.Postgres, Host: "db", Port: 5432, SSLMode: dbserver.Require}, 80)
	r.ProvisionedAt = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return r
}

func encode(t testing.TB, r *Record) []byte {
	t.Helper()
	data, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	r := record()
	r.Slots[B] = Credential{} // it is unknown
	r.Pending = &Change{Slot: B, Password: NewPassword(), Purpose: Activate}
	data := encode(t, r)
	got, err := DecodeRecord(data)
	if err != nil {
		t.Fatal(err)
	}
	if again := encode(t, got); !bytes.Equal(again, data) {
		t.Errorf("got %s\nwant %s", again, data)
	}
	if text := fmt.Sprintf("%v %+v %#v", *got, got, *got); strings.Contains(text, got.Slots[A].Password.Reveal()) {
		t.Errorf("a record that is printed shows a password: %s", text)
	}
}

// TestUnreadable: B14, a record that cannot be read is never an empty one.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	good := record()
	edit := func(change func(*Record)) string {
		r := good.Clone()
		change(r)
		data, err := json.Marshal(r) // not Encode, which would refuse it
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Encode(); err == nil {
			t.Errorf("written though it could not be read: %s", data)
		}
		return string(data)
	}
	text := string(encode(t, good))
	hunter := dbserver.Password("hunter2")
	for name, test := range map[string]struct{ data, want string }{
		"empty":         {"", "it is not JSON"},
		"null":          {"null", "format version 0"},
		"list":          {"[]", "it is not JSON"},
		"empty object":  {"{}", "format version 0"},
		"cut":           {text[:len(text)-1], "it is not JSON"},
		"more after it": {text + "{}", "it is not JSON"},
		"zeros":         {strings.Repeat("\x00", 10), "it is not JSON"},
		"later version": {
			strings.Replace(text, `"version":1`, `"version":2`, 1),
			"format version 2, this program knows version 1: use the dbconnector release that wrote it",
		},
		"unknown field":    {strings.Replace(text, `"version":1`, `"version":1,"hunter2":1`, 1), "a field that this version does not know"},
		"wrong type":       {strings.Replace(text, `"generation":1`, `"generation":"hunter2"`, 1), `field "generation" has the wrong type`},
		"wrong time":       {strings.Replace(text, `2026-01-02T`, `hunter2`, 1), "not of the field's form"},
		"no UID":           {edit(func(r *Record) { r.UID = "" }), "field tenantUID"},
		"another's names":  {edit(func(r *Record) { r.UID = "other" }), "field database: does not belong to field tenantUID"},
		"no engine":        {edit(func(r *Record) { r.Server.Engine = "" }), "field server.engine"},
		"no host":          {edit(func(r *Record) { r.Server.Host = "" }), "field server: host and port"},
		"no mode":          {edit(func(r *Record) { r.Server.SSLMode = "" }), "field server: sslMode"}, // B9
		"broken CA":        {edit(func(r *Record) { r.Server.CA = "hunter2" }), "field server: the CA bundle"},
		"third slot":       {edit(func(r *Record) { r.Slots["c"] = r.Slots[A] }), "field slots: must hold a and b"},
		"one slot":         {edit(func(r *Record) { delete(r.Slots, B) }), "field slots: must hold a and b"},
		"no slots":         {edit(func(r *Record) { r.Slots = nil }), "field slots: must hold a and b"},
		"slots misnamed":   {edit(func(r *Record) { r.Slots = map[Slot]Credential{A: r.Slots[A], "c": r.Slots[B]} }), "field slots: must hold a and b"},
		"no active slot":   {edit(func(r *Record) { r.Active = "" }), "field active"},
		"active, unknown":  {edit(func(r *Record) { r.Slots[A] = Credential{} }), "field slots.a"},
		"password edited":  {edit(func(r *Record) { r.Slots[B] = Credential{hunter} }), "field slots.b: a password does not consist of 40 characters"},
		"password injects": {edit(func(r *Record) { r.Slots[B] = Credential{dbserver.Password(strings.Repeat("'", 40))} }), "field slots.b"},
		"generation 0":     {edit(func(r *Record) { r.Generation = 0 }), "field generation"},
		"no limit":         {edit(func(r *Record) { r.ConnectionLimit = 0 }), "field connectionLimit"},
		"pending slot":     {edit(func(r *Record) { r.Pending = &Change{Slot: "c", Password: r.Slots[A].Password, Purpose: Activate} }), "field pending.slot"},
		"pending purpose":  {edit(func(r *Record) { r.Pending = &Change{Slot: B, Password: r.Slots[A].Password, Purpose: ""} }), "field pending.purpose"},
		"pending password": {edit(func(r *Record) { r.Pending = &Change{Slot: B, Password: hunter, Purpose: Retire} }), "field pending: a password"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeRecord([]byte(test.data))
			switch {
			case err == nil || got != nil:
				t.Fatalf("read: %v", got)
			case !fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), test.want):
				t.Errorf("got class %v: %v, want %q", fault.Of(err), err, test.want)
			case strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), good.Slots[A].Password.Reveal()):
				t.Errorf("shows a value: %v", err)
			}
		})
	}
}

// FuzzDecodeRecord: a record that is read can be written, and reads the same again; any other is refused in one line.
func FuzzDecodeRecord(f *testing.F) {
	r := record()
	f.Add(encode(f, r))
	r.Pending = &Change{Slot: B, Password: NewPassword(), Purpose: Retire}
	f.Add(encode(f, r))
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := DecodeRecord(data)
		if err != nil {
			if got != nil || !fault.Is(err, fault.Refused) || strings.ContainsFunc(err.Error(), unicode.IsControl) {
				t.Fatalf("got %v, class %v: %q", got, fault.Of(err), err)
			}
			return
		}
		first := encode(t, got)
		again, err := DecodeRecord(first)
		if err != nil {
			t.Fatal(err)
		}
		if second := encode(t, again); !bytes.Equal(first, second) {
			t.Fatalf("%s became %s", first, second)
		}
		for _, s := range []Slot{A, B} {
			if login := got.Login(s); !strings.HasPrefix(login.User, login.Database) || !IsDatabase(login.Database) {
				t.Fatalf("login %+v", login)
			}
		}
	})
}

func TestCommit(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	p := NewPassword()
	for name, test := range map[string]struct {
		reason  string
		pending *Change
		want    func(*Record)
	}{
		"nothing": {"nothing is pending: nothing changes", nil, func(*Record) {}},
		"rotation": {"the other slot becomes active, and a client may still use the old one", &Change{Slot: B, Password: p, Purpose: Activate}, func(r *Record) {
			r.Active, r.OtherRetired, r.Generation, r.RotatedAt = B, false, 2, now
			r.Slots[B] = Credential{p}
		}},
		"repair": {
			"the active slot has a new password: a new credential", &Change{Slot: A, Password: p, Purpose: Activate},
			func(r *Record) {
				r.Generation, r.RotatedAt = 2, now
				r.Slots[A] = Credential{p}
			},
		},
		"repaired": {
			"the server accepts the login again", &Change{Slot: B, Password: p, Purpose: Retire},
			func(r *Record) {
				r.OtherRefused = false
				r.Slots[B] = Credential{p}
			},
		},
		"doubtful": {
			"a repair of the active slot says nothing of the other", &Change{Slot: A, Password: p, Purpose: Activate},
			func(r *Record) {
				r.Generation, r.RotatedAt = 2, now
				r.Slots[A] = Credential{p}
			},
		},
		"retirement": {
			"the old slot's old password is dead", &Change{Slot: B, Password: p, Purpose: Retire},
			func(r *Record) {
				r.OtherRetired = true
				r.Slots[B] = Credential{p}
			},
		},
		"retired active": {
			"impossible, but it must not count as the other slot's", &Change{Slot: A, Password: p, Purpose: Retire},
			func(r *Record) { r.Slots[A] = Credential{p} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := record()
			r.OtherRetired = name != "retirement" && name != "retired active"
			r.OtherRefused = name == "repaired" || name == "doubtful"
			want := r.Clone()
			test.want(want)
			r.Pending = test.pending
			r.Commit(now)
			if got, want := encode(t, r), encode(t, want); !bytes.Equal(got, want) {
				t.Errorf("%s\ngot  %s\nwant %s", test.reason, got, want)
			}
		})
	}
}

func TestClone(t *testing.T) {
	t.Parallel()
	if (*Record)(nil).Clone() != nil {
		t.Error("a copy of nothing is nothing")
	}
	r := record()
	r.Pending = &Change{Slot: B, Password: NewPassword(), Purpose: Activate}
	before := encode(t, r)
	c := r.Clone()
	c.Commit(time.Now())
	c.Slots[A] = Credential{NewPassword()}
	if !bytes.Equal(encode(t, r), before) {
		t.Error("a change of the copy changed the original")
	}
}

func TestBinding(t *testing.T) {
	t.Parallel()
	r := record()
	r.Active = B
	want := map[string]string{
		"type": "postgresql", "provider": "dbconnector", "host": "db", "port": "5432", "database": r.Database,
		"username": r.Database + "b", "password": r.Slots[B].Password.Reveal(), "uri": "x://y",
	}
	if got := r.Binding("x://y"); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	r.Server.Engine = dbserver.MySQL
	if got := r.Binding("")["type"]; got != "mysql" {
		t.Errorf("got %q", got)
	}
}
