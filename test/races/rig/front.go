// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

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

	target   string
	listener net.Listener
	api      *http.Server
	mu       sync.Mutex
	conns    map[net.Conn]struct{}
	closed   bool
	wg       sync.WaitGroup
}

// Question is a question that a process asks.
type Question struct {
	// Request is one of the API server's; nil for the database's.
	Request *http.Request
	// Conn numbers the connections to the database, and Data is the beginning of the question.
	Conn int
	Data []byte
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

// NewFront puts a front before a database and, unless that is nil, an API server. dir is for its kubeconfig.
func NewFront(ctx context.Context, dir, database string, api *bed.APIServer) (*Front, error) {
	f := &Front{target: database, conns: map[net.Conn]struct{}{}}
	var err error
	if f.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	f.Addr = f.listener.Addr().String()
	f.wg.Go(func() {
		for number := 0; ; {
			client, err := f.listener.Accept()
			if err != nil {
				return // closed
			}
			number++
			f.wg.Go(func() { f.serve(client, number) })
		}
	})
	if api == nil {
		return f, nil
	}
	// The front uses clear text and its own credential, so that one request is one question, independent of HTTP/2 and
	// TLS.
	to, err := url.Parse(api.URL)
	if err != nil {
		return nil, fmt.Errorf("reading the API server's address: %w", err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport:    api.Admin.Transport,
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	f.api = &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, die := f.ask(f.name(Question{Request: r}))
			if die {
				panic(http.ErrAbortHandler)
			}
			proxy.ServeHTTP(&lateWriter{w, func() bool { return f.answered(n) }}, r)
		}),
	}
	f.wg.Go(func() { _ = f.api.Serve(listener) })
	f.Kubeconfig = filepath.Join(dir, "kubeconfig")
	config := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: x, cluster: {server: \"http://%s\"}}]\n"+
		"users: [{name: x, user: {}}]\ncontexts: [{name: x, context: {cluster: x, user: x}}]\ncurrent-context: x\n", listener.Addr())
	if err := os.WriteFile(f.Kubeconfig, []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("writing a kubeconfig: %w", err)
	}
	return f, nil
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

// Close ends the front and all connections through it.
func (f *Front) Close() {
	_ = f.listener.Close()
	if f.api != nil {
		_ = f.api.Close()
	}
	f.mu.Lock()
	f.closed = true
	for c := range f.conns {
		_ = c.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
}

func (f *Front) track(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns[c] = struct{}{}
	return !f.closed
}

func (f *Front) forget(c net.Conn) {
	_ = c.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
}

func (f *Front) serve(client net.Conn, number int) {
	defer f.forget(client)
	if !f.track(client) {
		return
	}
	server, err := net.DialTimeout("tcp", f.target, 10*time.Second)
	if err != nil {
		return
	}
	defer f.forget(server)
	if !f.track(server) {
		return
	}
	// A question is all data that the process sends, in any number of pieces, until the server answers.
	var mu sync.Mutex
	question := 0
	ask := func(b []byte) (die bool) {
		mu.Lock()
		defer mu.Unlock()
		if question == 0 {
			question, die = f.ask(f.name(Question{Conn: number, Data: b}))
		}
		return die
	}
	answered := func() (die bool) {
		mu.Lock()
		defer mu.Unlock()
		n := question
		question = 0
		return f.answered(n)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := client.Read(buf)
			if n > 0 {
				if ask(buf[:n]) {
					break
				}
				if _, err := server.Write(buf[:n]); err != nil {
					break
				}
			}
			if err != nil {
				if tcp, ok := server.(*net.TCPConn); ok && errors.Is(err, io.EOF) {
					_ = tcp.CloseWrite() // the server still has to hear the last question
					return
				}
				break
			}
		}
		_ = server.Close()
		_ = client.Close()
	})
	wg.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			// The end of the connection is the answer to a farewell.
			if (n > 0 || err != nil) && answered() {
				break
			}
			if n > 0 {
				if _, err := client.Write(buf[:n]); err != nil {
					break
				}
			}
			if err != nil {
				break
			}
		}
		_ = client.Close()
		_ = server.Close()
	})
	wg.Wait()
}

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
