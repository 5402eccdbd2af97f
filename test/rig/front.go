// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"net/http"
	"sync"
	"testing"

	"dbconnector/test/bed"
)

// Moment is the time of a kill relative to one question of the process.
type Moment int

// The moments.
const (
	// Before: the server never hears the question.
	Before Moment = iota
	// After: the server has answered, and the process does not hear it.
	After
)

func (m Moment) String() string { return [...]string{"before", "after"}[m] }

// Points numbers the questions that a process asks of the database and of the API server, in one count for both, and
// kills it at one of them. So a first run finds the points of a crash, and no list of them is needed.
type Points struct {
	mu     sync.Mutex
	names  []string // of the questions so far
	at     int      // from 1; 0 for none
	want   string   // the name whose first question sets at
	moment Moment
	kill   func()
	fired  bool
}

// Watch begins a new count, and calls kill at question at. No question has the number 0.
func (p *Points) Watch(at int, moment Moment, kill func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.names, p.at, p.want, p.moment, p.kill, p.fired = nil, at, "", moment, kill, false
}

// WatchFor is [Points.Watch] for the first question of a name.
func (p *Points) WatchFor(name string, moment Moment, kill func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.names, p.at, p.want, p.moment, p.kill, p.fired = nil, 0, name, moment, kill, false
}

// Names are the questions since Watch.
func (p *Points) Names() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.names...)
}

// Fired says whether the kill has been called.
func (p *Points) Fired() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fired
}

// ask counts a question that has a name. die says that it must not go on to the server.
func (p *Points) ask(name string) (n int, die bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fired { // the process is dead, and its last questions are lost
		return 0, true
	}
	if name == "" {
		return 0, false
	}
	p.names = append(p.names, name)
	n = len(p.names)
	if p.at == 0 && name == p.want {
		p.at = n
	}
	return n, p.strike(n, Before)
}

// answered says whether the answer to question n must not go on to the process.
func (p *Points) answered(n int) (die bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fired || p.strike(n, After)
}

func (p *Points) strike(n int, m Moment) bool {
	if n == 0 || n != p.at || m != p.moment || p.fired {
		return false
	}
	p.fired = true
	p.kill()
	return true
}

// Front stands between a process on one side, a database and an API server on the other, and counts questions.
type Front struct {
	Points
	// Addr is the database's address for the process. The process must not use TLS there, because the front could not tell
	// a question from a part of one.
	Addr string
	// Kubeconfig is how the process reaches the API server. Empty where there is none.
	Kubeconfig string
	// Name, if set before the first question, gives each question a name in place of its own text. The front does not
	// count a question without a name. Name may block; the front holds the question back until it returns.
	Name func(q Question) string
}

// Question is a question that a process asks.
type Question struct {
	// Request is one of the API server's; nil for the database's.
	Request *http.Request
	bed.Question
}

func (f *Front) name(q Question) string {
	switch {
	case f.Name != nil:
		return f.Name(q)
	case q.Request != nil:
		return q.Request.Method + " " + q.Request.URL.Path
	}
	return text(q.Data)
}

// NewFront puts a front before a database and, unless that is nil, an API server. It ends with the test.
func NewFront(tb testing.TB, database string, api *bed.APIServer) *Front {
	tb.Helper()
	db := bed.NewProxy(tb, database)
	f := &Front{Addr: db.Addr()}
	db.Intercept(func(q bed.Question) bed.Reply {
		n, die := f.ask(f.name(Question{Question: q}))
		return bed.Reply{Drop: die, Answered: func() bool { return !f.answered(n) }}
	})
	if api != nil {
		f.Kubeconfig = api.NewProxy(tb, func(pass http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n, die := f.ask(f.name(Question{Request: r}))
				if die {
					panic(http.ErrAbortHandler)
				}
				pass.ServeHTTP(&lateWriter{w, func() bool { return f.answered(n) }}, r)
			})
		}).Kubeconfig
	}
	return f
}

// lateWriter asks, before the answer begins, whether it may send it.
type lateWriter struct {
	http.ResponseWriter
	die func() bool
}

func (w *lateWriter) WriteHeader(code int) {
	if w.die() {
		panic(http.ErrAbortHandler)
	}
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap lets the proxy flush: the events of a watch must not wait for each other.
func (w *lateWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// text is the readable part of a question, for the name of a point.
func text(b []byte) string {
	const most = 90
	var out []byte
	for _, c := range b {
		if len(out) == most {
			break
		}
		switch {
		case c > ' ' && c <= '~':
			out = append(out, c)
		case len(out) > 0 && out[len(out)-1] != ' ':
			out = append(out, ' ')
		}
	}
	return string(out)
}
