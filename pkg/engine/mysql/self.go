// SPDX-License-Identifier: Apache-2.0

package mysql

import (
	"context"
	"errors"
	"fmt"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/engine"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// TenantSession is a session of a tenant's login that works on itself.
type TenantSession struct {
	session  *session
	user     string
	password dbserver.Password // as it is now
	database string
	dialect  dialect
}

// selfIdleLimit is after how many seconds the server ends such a session that does nothing (docs/failures.md S9).
const selfIdleLimit = "60"

// loginPackets is how many packets of a client a login can take after the server has looked at the password's verifier: the
// answer to a question for another plugin's scramble, the request for the server's key, and the password. Each may take
// connect_timeout; one more is for the TLS handshake's remainder and for clocks.
const loginPackets = 4

// TenantSession logs in as a tenant, without a database: that is how Sessions tells us from a control plane.
func (s *Server) TenantSession(ctx context.Context, login tenant.Login) (engine.TenantSession, error) {
	session, err := s.connectSure(ctx, login.User, login.Password, "", map[string]string{"sql_mode": sqlMode, "wait_timeout": selfIdleLimit})
	if err != nil {
		return nil, err
	}
	var version string
	if err := session.conn.QueryRowContext(ctx, "SELECT VERSION()").Scan(&version); err != nil {
		session.close()
		return nil, fmt.Errorf("asking for the server's version: %w", classify(err))
	}
	if err := oneNode(ctx, session.conn, login.User); err != nil {
		session.close()
		return nil, err
	}
	return &TenantSession{session: session, user: login.User, password: login.Password, database: login.Database, dialect: dialectOf(version)}, nil
}

// Sessions counts the login's other sessions: without PROCESS the list shows a user just his own. Only this very session is
// left out, but among the addresses, which are evidence that a control plane has moved, other sidecars do not count.
func (s *TenantSession) Sessions(ctx context.Context) (engine.Sessions, error) {
	var out engine.Sessions
	// HOST is address:port; what stands behind the last colon is cut off, since an IPv6 address has more of them. USER() ends
	// with this session's address.
	const address = "SUBSTRING(HOST, 1, CHAR_LENGTH(HOST) - LOCATE(':', REVERSE(HOST)))"
	err := s.session.conn.QueryRowContext(ctx, "SELECT COUNT(*), COUNT(DISTINCT IF(DB = ?, "+address+", NULL)), "+
		"COUNT(IF(DB = ? AND "+address+" = SUBSTRING_INDEX(USER(), '@', -1), 1, NULL)) "+
		"FROM information_schema.PROCESSLIST WHERE USER = ? AND ID <> CONNECTION_ID()", s.database, s.database, s.user).
		Scan(&out.Count, &out.Addresses, &out.Here)
	if err != nil {
		return out, fmt.Errorf("looking for sessions of login %q: %w", s.user, classify(err))
	}
	return out, nil
}

// Expel ends the login's older sessions. MySQL does not show a login that is not complete, so its time has to pass. MariaDB does,
// and takes any time that its client wants for it: there it is ended as a session is.
func (s *TenantSession) Expel(ctx context.Context) (engine.Remains, error) {
	var seconds int
	if err := s.session.conn.QueryRowContext(ctx, "SELECT @@global.connect_timeout").Scan(&seconds); err != nil {
		return engine.Remains{}, fmt.Errorf("asking how long a login may take: %w", classify(err))
	}
	ids, err := column(ctx, s.session.conn, "SELECT ID FROM information_schema.PROCESSLIST WHERE USER = ? AND ID < CONNECTION_ID()", s.user)
	if err != nil {
		return engine.Remains{}, fmt.Errorf("looking for sessions of login %q: %w", s.user, err)
	}
	for _, id := range ids {
		_, err := s.session.conn.ExecContext(ctx, "KILL "+id) // a number that the server gave
		var server *driver.MySQLError
		if err != nil && (!errors.As(err, &server) || server.Number != noSuchThread) {
			return engine.Remains{}, fmt.Errorf("ending sessions of login %q: %w", s.user, classify(err))
		}
	}
	return engine.Remains{Sessions: len(ids), LoginTime: time.Duration(loginPackets*seconds) * time.Second}, nil
}

// SetPassword changes the login's own password.
func (s *TenantSession) SetPassword(ctx context.Context, password dbserver.Password) error {
	args := []any{s.dialect.secret(password)}
	if s.dialect.current {
		args = append(args, s.dialect.secret(s.password))
	}
	if _, err := s.session.conn.ExecContext(ctx, s.dialect.ownPassword, args...); err != nil {
		classified := classify(err)
		var server *driver.MySQLError
		if errors.As(err, &server) {
			switch server.Number {
			case rejectedPassword, rejectedByHistory, rejectedAsSimilar:
				classified = fault.New(fault.Rejected, "%w", classified)
			}
		}
		return fmt.Errorf("changing the password of login %q as itself: %w", s.user, classified)
	}
	s.password = password
	return nil
}

// Close ends the session.
func (s *TenantSession) Close() { s.session.close() }
