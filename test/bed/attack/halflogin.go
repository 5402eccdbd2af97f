// SPDX-License-Identifier: Apache-2.0

package attack

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// HalfLogin is a login that was begun with a password, and stopped before the client's last answer: the server has read the
// password's verifier and waits. It has ended when Close returns.
type HalfLogin struct {
	db      *sql.DB
	release context.CancelFunc
	abandon context.CancelFunc
	done    chan struct{}
	conn    *sql.Conn
	err     error
}

// BeginLogin begins a login with a DSN as kine has it, without TLS. settings are PostgreSQL's, in the start-up packet. It returns
// when the server has sent its challenge.
func BeginLogin(ctx context.Context, dsn string, settings map[string]string) (*HalfLogin, error) {
	hold, release := context.WithCancel(context.WithoutCancel(ctx)) // it outlives the call
	life, abandon := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Minute)
	reached := make(chan struct{})
	var once sync.Once
	gate := func(conn net.Conn, answer int, rewrite func([]byte) []byte) net.Conn {
		return &gated{Conn: conn, answer: answer, rewrite: rewrite, hold: hold, life: life, reached: func() { once.Do(func() { close(reached) }) }}
	}
	db, err := openGated(dsn, settings, gate)
	if err != nil {
		abandon()
		release()
		return nil, err
	}
	h := &HalfLogin{db: db, release: release, abandon: abandon, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		h.conn, h.err = db.Conn(life)
	}()
	select {
	case <-reached:
		return h, nil
	case <-h.done:
		err = fmt.Errorf("beginning a login: %w", h.err)
	case <-ctx.Done():
		err = fmt.Errorf("beginning a login: %w", ctx.Err())
	}
	h.Close()
	return nil, err
}

// openGated opens a pool whose connections pass through gate.
func openGated(dsn string, settings map[string]string, gate func(net.Conn, int, func([]byte) []byte) net.Conn) (*sql.DB, error) {
	dial := func(ctx context.Context, network, address string, answer int, rewrite func([]byte) []byte) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return gate(conn, answer, rewrite), nil
	}
	if strings.HasPrefix(dsn, "postgres://") {
		config, err := pgx.ParseConfig(dsn)
		if err != nil {
			return nil, fmt.Errorf("reading the DSN: %w", err)
		}
		for name, value := range settings {
			config.RuntimeParams[name] = value
		}
		// The login's name, the choice of SCRAM, the proof.
		config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
			return dial(ctx, network, address, 3, func(b []byte) []byte { return b })
		}
		return stdlib.OpenDB(*config), nil
	}
	config, err := mysql.ParseDSN(strings.TrimPrefix(dsn, "mysql://"))
	if err != nil {
		return nil, fmt.Errorf("reading the DSN: %w", err)
	}
	config.Logger = &mysql.NopLogger{}
	config.AllowNativePasswords = true
	// The login's name, with the name of a plugin that no server has, so that the server asks once more; the answer.
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		return dial(ctx, network, address, 2, func(b []byte) []byte {
			b = bytes.Replace(b, []byte("caching_sha2_password\x00"), []byte("another_sha2_password\x00"), 1)
			return bytes.Replace(b, []byte("mysql_native_password\x00"), []byte("other_native_password\x00"), 1)
		})
	}
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return nil, fmt.Errorf("reading the DSN: %w", err)
	}
	return sql.OpenDB(connector), nil
}

// Finish sends the answer, and returns the session if it became one.
func (h *HalfLogin) Finish(ctx context.Context) (*sql.Conn, error) {
	h.release()
	select {
	case <-h.done:
		return h.conn, h.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close ends the login, or the session that it became.
func (h *HalfLogin) Close() {
	h.abandon()
	<-h.done
	h.release()
	if h.conn != nil {
		_ = h.conn.Close()
	}
	_ = h.db.Close()
}

// gated holds back one of the client's flights.
type gated struct {
	net.Conn
	answer  int // which one, from 1
	flights int
	rewrite func([]byte) []byte // the first one
	hold    context.Context
	life    context.Context
	reached func()
}

func (g *gated) Write(b []byte) (int, error) {
	g.flights++
	out := b
	switch g.flights {
	case 1:
		out = g.rewrite(b)
	case g.answer:
		g.reached()
		select {
		case <-g.hold.Done():
		case <-g.life.Done():
			return 0, errors.Join(g.life.Err(), g.Close())
		}
	}
	if _, err := g.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}
