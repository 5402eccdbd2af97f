// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"

	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// Client does what kine does with a DSN: it has read it once, holds a session, and opens others at any time.
type Client struct {
	DSN  string
	ca   []byte
	db   *sql.DB // which keeps no session
	held *sql.Conn
}

// Connect starts a client at an address of its own; empty for any. ca is as for [OpenDSN].
func Connect(ctx context.Context, address, dsn string, ca []byte) (*Client, error) {
	db, err := OpenDSNFrom(address, dsn, ca)
	if err != nil {
		return nil, err
	}
	db.SetMaxIdleConns(-1)
	held, err := db.Conn(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("its first session: %w", err), db.Close())
	}
	return &Client{DSN: dsn, ca: ca, db: db, held: held}, nil
}

// Check uses the session and makes another one.
func (c *Client) Check(ctx context.Context) error {
	if err := c.held.PingContext(ctx); err != nil {
		return fmt.Errorf("its session: %w", err)
	}
	if err := c.db.PingContext(ctx); err != nil {
		return fmt.Errorf("a new session: %w", err)
	}
	return nil
}

// Use is [Client.Check] and [UseDSN].
func (c *Client) Use(ctx context.Context) error {
	if err := c.Check(ctx); err != nil {
		return err
	}
	return UseDSN(ctx, c.DSN, c.ca)
}

// Close ends its sessions.
func (c *Client) Close() { _ = errors.Join(c.held.Close(), c.db.Close()) }

// CheckRefused returns nil where the record's server refuses a login because of its password.
func CheckRefused(ctx context.Context, r *tenant.Record, login tenant.Login) error {
	if err := open.Engine(r.Server, "test").Login(ctx, login); !fault.Is(err, fault.WrongPassword) {
		return fmt.Errorf("a password that was rotated away: the server answers %w", cmp.Or(err, errors.New("with a session")))
	}
	return nil
}

// UseDSN logs in with a DSN and writes and reads a table, as kine would.
func UseDSN(ctx context.Context, dsn string, ca []byte) error {
	db, err := OpenDSN(dsn, ca)
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, statement := range []string{"CREATE TABLE IF NOT EXISTS rig (i int)", "INSERT INTO rig VALUES (1)", "SELECT count(*) FROM rig"} {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("using the hand-over's DSN: %w", err)
		}
	}
	return nil
}
