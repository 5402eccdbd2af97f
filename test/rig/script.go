// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"sync"

	"dbconnector/test/bed"
)

// Chapter is the progress of a rotation on the server and in the record.
type Chapter int

// The chapters, in their order.
const (
	// Due: nothing has happened yet.
	Due Chapter = iota
	// Staged: the record has a new password for the new slot.
	Staged
	// Applied: the server has it, too.
	Applied
	// Committed: the new slot is the active one.
	Committed
	// Retiring: the record has a new password for the old slot.
	Retiring
	// Dead: the server has it, too.
	Dead
	// Retired: the record says so.
	Retired
)

// Script follows one dbconnector-rotate through one rotation by its questions. It gives each question a [Point] that is
// the same in every run, whatever passwords and addresses the question holds. Its Name is for a Front.
type Script struct {
	engine bed.Engine
	ctx    context.Context // its end releases the questions that are held back

	mu       sync.Mutex
	old, new string // the logins
	chapter  Chapter
	logins   int // to the slot whose password changes, in this chapter
	asked    int // questions about the workload, in this chapter
	conns    map[int]*talk
	changes  []string
	watching chan struct{} // closed when the watch has been asked for; nil between End and Begin
	hold     func(Point) <-chan struct{}
}

// talk is a connection to the database.
type talk struct {
	point  Point // of its login
	logged bool
	counts int
}

// Point is a question of a rotation.
type Point struct {
	Chapter Chapter
	// Step is the kind of step that asks (package rotation), or "start".
	Step string
	What string
}

// Name is the point in one line.
func (p Point) Name() string {
	return string(rune('0'+int(p.Chapter))) + " | " + p.Step + " | " + p.What
}

// PointOf reads Name.
func PointOf(name string) Point {
	part := strings.SplitN(name, " | ", 3)
	return Point{Chapter(part[0][0] - '0'), part[1], part[2]}
}

const (
	newSlot, oldSlot = "new slot", "old slot"
	// The questions that belong to no chapter; the process asks for the watch while it asks others.
	start = "start"
	watch = "watch the record"
)

// Watching says whether the point is the watch, which runs in parallel to everything else.
func (p Point) Watching() bool { return p.Step == start && p.What == watch }

// NewScript makes a script of a rotation between two logins. It releases the questions that it holds back when ctx
// ends.
func NewScript(ctx context.Context, engine bed.Engine) *Script {
	return &Script{ctx: ctx, engine: engine, conns: map[int]*talk{}}
}

// Begin announces the next process, which finds the rotation in a chapter. hold may return a channel; the question then
// waits until it is closed. A nil channel does not wait.
func (s *Script) Begin(old, next string, c Chapter, hold func(Point) <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.old, s.new, s.hold = old, next, hold
	s.changes, s.watching = nil, make(chan struct{})
	s.turn(c)
}

// End lets questions through without a name, until Begin.
func (s *Script) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watching = nil
}

func (s *Script) turn(c Chapter) { s.chapter, s.logins, s.asked = c, 0, 0 }

// Changes are the steps since Begin that change more than files.
func (s *Script) Changes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.changes...)
}

// Name names a question, and holds it back.
func (s *Script) Name(q Question) string {
	p, wait := s.point(q)
	for _, gate := range wait {
		select {
		case <-gate:
		case <-s.ctx.Done():
		}
	}
	if p.What == "" {
		return ""
	}
	return p.Name()
}

func (s *Script) point(q Question) (p Point, wait []<-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watching == nil {
		return Point{}, nil
	}
	if q.Request != nil {
		p = s.request(q.Request)
	} else {
		// The process asks for the watch during the first look. The script lets the watch go first, so that the order is
		// always the same.
		wait = append(wait, s.watching)
		p = s.statement(q)
	}
	if s.hold != nil && p.What != "" {
		if gate := s.hold(p); gate != nil {
			wait = append(wait, gate)
		}
	}
	return p, wait
}

func (s *Script) request(r *http.Request) Point {
	switch {
	case r.Method == http.MethodGet && r.URL.Query().Has("watch"):
		select {
		case <-s.watching: // again
		default:
			close(s.watching)
		}
		return Point{Step: start, What: watch}
	case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/secrets"):
		return Point{Step: start, What: "read the record"}
	case strings.HasPrefix(r.URL.Path, "/apis/apps/"):
		return s.workload(r.Method)
	case r.Method == http.MethodGet && s.chapter == Committed:
		return Point{s.chapter, "adopt", "read the record: is it still the active credential?"}
	case r.Method == http.MethodGet:
		return Point{s.chapter, "apply", "read the record: is the change still pending?"}
	case r.Method != http.MethodPut:
		return Point{s.chapter, "?", r.Method + " " + r.URL.Path}
	}
	p := Point{Chapter: s.chapter}
	switch s.chapter {
	case Due:
		p.Step, p.What = "stage", "write the record: a new password is pending, to activate"
	case Applied:
		p.Step, p.What = "commit", "write the record: the new slot is the active one"
	case Committed:
		p.Step, p.What = "stage", "write the record: a new password is pending, to retire"
	case Dead:
		p.Step, p.What = "commit", "write the record: the old slot is retired"
	default:
		return Point{s.chapter, "?", "write the record"}
	}
	s.change(p.Step)
	return p
}

// workload names the questions about the control plane's workload: whether a restart is needed, the same right before
// the restart, and whether the restart is done.
func (s *Script) workload(method string) Point {
	if method == http.MethodPatch {
		s.changes = append(s.changes, "adopt")
		s.asked = 2
		return Point{s.chapter, "adopt", "change the pod template"}
	}
	s.asked++
	switch s.asked {
	case 1:
		return Point{s.chapter, "look", "read the workload: does it ask for the active credential?"}
	case 2:
		return Point{s.chapter, "adopt", "read the workload"}
	}
	return Point{s.chapter, "look", "read the workload: have all pods been replaced?"}
}

// change moves to the next chapter.
func (s *Script) change(step string) {
	s.changes = append(s.changes, step)
	s.turn(s.chapter + 1)
}

func (s *Script) statement(q Question) Point {
	t := s.conns[q.Conn]
	if t == nil {
		t = &talk{point: s.login(q.Data)}
		s.conns[q.Conn] = t
		return t.point
	}
	if !t.logged && s.loggingIn(q.Data) {
		return t.point
	}
	t.logged = true
	if s.farewell(q.Data) {
		return Point{} // a kill there is the same as one before the next question
	}
	slot, _, _ := strings.Cut(t.point.What, ":")
	p := Point{Chapter: s.chapter, Step: t.point.Step}
	if s.changing(slot) {
		p.Step = "apply" // the pending password opens no session
	}
	is := func(word string) bool { return bytes.Contains(q.Data, []byte(word)) }
	switch {
	case is("ALTER ROLE"), is("ALTER USER"), is("SET PASSWORD"):
		p.What = "set the pending password"
		s.change("apply")
	case is("set_config('role'"):
		p.What = "leave the owner role, and bound the session"
	case is("BEGIN"):
		p.What = "begin a transaction"
	case is("pg_stat_clear_snapshot"):
		p.What = "have the sessions listed again"
	case is("authentication_timeout"), is("connect_timeout"):
		p.What = "ask how long a login may take"
	case is("pg_terminate_backend"), is("SELECT ID FROM"):
		p.What = "end what began before"
	case is("rolconfig"):
		p.What = "ask what was set for the login"
	case is("sql_mode"):
		p.What = "set the session's sql_mode"
	case is("VERSION()"):
		p.What = "ask for the server's version"
	case is("wsrep"):
		p.What = "ask whether it is a cluster of several nodes"
	case is("pg_stat_activity"), is("PROCESSLIST"):
		p.What = "count the login's other sessions"
		if t.counts++; t.counts > 1 {
			p.What = "count them again, a while later"
		}
	case is("has_schema_privilege"), is("SCHEMA_PRIVILEGES"):
		p.What = "ask for its rights"
	default:
		p.Step, p.What = "?", text(q.Data)
	}
	p.What = slot + ": " + p.What
	return p
}

// changing says whether a slot is the one whose password is pending, and not set yet.
func (s *Script) changing(slot string) bool {
	return s.chapter == Staged && slot == newSlot || s.chapter == Retiring && slot == oldSlot
}

// login names a connection by its first question, which holds the login in clear text in all three protocols.
func (s *Script) login(data []byte) Point {
	p := Point{Chapter: s.chapter, Step: "look"}
	switch {
	case bytes.Contains(data, []byte(s.new)):
		p.What = newSlot
	case bytes.Contains(data, []byte(s.old)):
		p.What = oldSlot
	default:
		return Point{s.chapter, "?", text(data)}
	}
	changing := s.changing(p.What)
	if changing {
		s.logins++
	}
	switch {
	case changing && s.logins%2 == 0:
		// A sidecar whose pending password is refused logs in again with the stored one. It may look again before it applies
		// the password, and the questions do not show which. In an undisturbed rotation it always applies it.
		p.Step = "apply"
		p.What += ": log in with the stored password"
	case changing, s.chapter == Applied && p.What == newSlot, s.chapter == Dead:
		p.What += ": log in with the pending password"
	default:
		p.What += ": log in"
	}
	return p
}

// loggingIn tells whether data still belongs to the login, which lasts from the first question until the server accepts
// it.
func (s *Script) loggingIn(data []byte) bool {
	if s.engine == bed.Postgres {
		return data[0] == 'p'
	}
	return len(data) > 3 && data[3] != 0 // a command begins a sequence, a login continues one
}

func (s *Script) farewell(data []byte) bool {
	if s.engine == bed.Postgres {
		return data[0] == 'X'
	}
	return len(data) == 5 && data[4] == 1
}
