// SPDX-License-Identifier: Apache-2.0

package mysql

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	mysqldriver "github.com/go-sql-driver/mysql"

	"dbconnector/pkg/fault"
)

// Error numbers that more than their class is decided by.
const (
	accessDenied        = 1045
	noSuchThread        = 1094
	optionPrevents      = 1290
	noPlugin            = 1524
	noSuchGrant         = 1141
	noSuchTableGrant    = 1147
	proxyDenied         = 1698 // also the answer to GRANT PROXY and REVOKE PROXY without the right for it
	parseError          = 1064
	rejectedPassword    = 1819
	mustChangePassword  = 1820
	passwordExpired     = 1862
	rejectedByHistory   = 3638 // password_history, password_reuse_interval
	rejectedAsSimilar   = 4165 // validate_password.changed_characters_percentage
	tablesNeedUpgrade   = 1558
	tablesNeedUpgrade2  = 1805
	initConnectFails    = 1184
	pluginTakesNone     = 1699 // MariaDB: the account's plugin has no password to be changed
	pluginTakesNoneToo  = 4102 // MySQL
	schemaReadOnly      = 3989
	readOnlyTransaction = 1792
	lockWaitTimeout     = 1205
)

// noLocks are what servers say that have no GET_LOCK to offer: Percona XtraDB Cluster with pxc_strict_mode=ENFORCING (1105), Galera
// of older MariaDB (1235), and what only resembles MySQL (1289, 1305).
var noLocks = []uint16{1105, 1235, 1289, 1305}

// classes are those of the servers' errors (docs/failures.md F18: mysqld_error.h of MySQL 9.7 and errmsg.sys of MariaDB 11.8 were gone
// through for what a login and our statements can meet). Where the two give one number two meanings, ours can be met and the other
// one not. What is not here is Unknown: it is told with its number, and ends the run.
var classes = map[uint16]fault.Class{
	// The login cannot be used with what we have, and a new password cures it.
	accessDenied:       fault.WrongPassword,
	mustChangePassword: fault.WrongPassword,
	passwordExpired:    fault.WrongPassword,
	1251:               fault.WrongPassword, // ER_NOT_SUPPORTED_AUTH_MODE: a plugin that no client of today speaks
	1275:               fault.WrongPassword, // ER_SERVER_IS_IN_SECURE_AUTH_MODE: a hash of before 4.1
	noPlugin:           fault.WrongPassword, // ER_PLUGIN_IS_NOT_LOADED: the account's (F6)
	proxyDenied:        fault.WrongPassword, // ER_ACCESS_DENIED_NO_PASSWORD_ERROR: the account takes no password (unix_socket)
	3955:               fault.WrongPassword, // blocked after failed logins, MySQL
	4150:               fault.WrongPassword, // ER_USER_IS_BLOCKED: blocked after failed logins, MariaDB (F13)

	1049: fault.NoDatabase, // ER_BAD_DB_ERROR

	1044:               fault.NoAccess, // ER_DBACCESS_DENIED_ERROR
	1132:               fault.NoAccess, // ER_PASSWORD_NOT_ALLOWED
	1142:               fault.NoAccess, // ER_TABLEACCESS_DENIED_ERROR
	1143:               fault.NoAccess, // ER_COLUMNACCESS_DENIED_ERROR
	1211:               fault.NoAccess, // ER_NO_PERMISSION_TO_CREATE_USER
	1227:               fault.NoAccess, // ER_SPECIFIC_ACCESS_DENIED_ERROR
	3554:               fault.NoAccess, // ER_NO_SYSTEM_TABLE_ACCESS
	3879:               fault.NoAccess, // ER_DB_ACCESS_DENIED
	6038:               fault.NoAccess, // ER_SPECIFIC_ACCESS_DENIED
	pluginTakesNone:    fault.NoAccess, // of a login that changes its own password
	pluginTakesNoneToo: fault.NoAccess,

	// The server is short of something, or on its way up or down.
	1006: fault.Unavailable, // ER_CANT_CREATE_DB, with the system's reason
	1021: fault.Unavailable, // ER_DISK_FULL
	1037: fault.Unavailable, // ER_OUTOFMEMORY
	1038: fault.Unavailable, // ER_OUT_OF_SORTMEMORY
	1040: fault.Unavailable, // ER_CON_COUNT_ERROR
	1041: fault.Unavailable, // ER_OUT_OF_RESOURCES
	1042: fault.Unavailable, // ER_BAD_HOST_ERROR: it could not resolve our address
	1047: fault.Unavailable, // a node of Galera that is not ready; elsewhere an unknown command
	1053: fault.Unavailable, // ER_SERVER_SHUTDOWN
	1079: fault.Unavailable, // ER_SHUTDOWN_COMPLETE
	1114: fault.Unavailable, // ER_RECORD_FILE_FULL
	1135: fault.Unavailable, // ER_CANT_CREATE_THREAD
	1203: fault.Unavailable, // ER_TOO_MANY_USER_CONNECTIONS
	1226: fault.Unavailable, // ER_USER_LIMIT_REACHED
	1297: fault.Unavailable, // ER_GET_TEMPORARY_ERRMSG
	1637: fault.Unavailable, // ER_TOO_MANY_CONCURRENT_TRXS
	3015: fault.Unavailable, // ER_ENGINE_OUT_OF_MEMORY
	3032: fault.Unavailable, // ER_SERVER_OFFLINE_MODE
	3100: fault.Unavailable, // ER_RUN_HOOK_ERROR: a member of a replication group that may not commit now
	3168: fault.Unavailable, // ER_SERVER_ISNT_AVAILABLE
	4081: fault.Unavailable, // ER_DA_GLOBAL_CONN_LIMIT: memory of all connections
	4082: fault.Unavailable, // ER_DA_CONN_LIMIT
	6400: fault.Unavailable, // ER_SERVER_OFFLINE_MODE_REASON

	// A session or a statement was ended.
	1080:         fault.Unavailable, // ER_FORCING_CLOSE
	noSuchThread: fault.Unavailable, // ER_NO_SUCH_THREAD
	1158:         fault.Unavailable, // ER_NET_READ_ERROR
	1159:         fault.Unavailable, // ER_NET_READ_INTERRUPTED: connect_timeout among them
	1160:         fault.Unavailable, // ER_NET_ERROR_ON_WRITE
	1161:         fault.Unavailable, // ER_NET_WRITE_INTERRUPTED
	1317:         fault.Unavailable, // ER_QUERY_INTERRUPTED
	1927:         fault.Unavailable, // ER_CONNECTION_KILLED, MariaDB
	1969:         fault.Unavailable, // ER_STATEMENT_TIMEOUT: max_statement_time, MariaDB
	3024:         fault.Unavailable, // ER_QUERY_TIMEOUT: max_execution_time, MySQL
	3169:         fault.Unavailable, // ER_SESSION_WAS_KILLED
	4031:         fault.Unavailable, // ER_CLIENT_INTERACTION_TIMEOUT: wait_timeout, MySQL

	// Another session was faster, or is in the way.
	1007:            fault.Unavailable, // ER_DB_CREATE_EXISTS
	1020:            fault.Unavailable, // ER_CHECKREAD: the row has changed (F10)
	1133:            fault.Unavailable, // ER_PASSWORD_NO_MATCH: the login is gone
	noSuchGrant:     fault.Unavailable, // ER_NONEXISTING_GRANT
	1180:            fault.Unavailable, // ER_ERROR_DURING_COMMIT
	lockWaitTimeout: fault.Unavailable, // ER_LOCK_WAIT_TIMEOUT
	1213:            fault.Unavailable, // ER_LOCK_DEADLOCK
	1396:            fault.Unavailable, // ER_CANNOT_USER: it exists, or is gone
	1410:            fault.Unavailable, // ER_CANT_CREATE_USER_WITH_GRANT: it is gone, MySQL
	1689:            fault.Unavailable, // ER_LOCK_ABORTED
	3058:            fault.Unavailable, // ER_USER_LOCK_DEADLOCK
	3101:            fault.Unavailable, // ER_TRANSACTION_ROLLBACK_DURING_COMMIT: a conflict in a replication group
	3547:            fault.Unavailable, // ER_CANNOT_LOCK_USER_MANAGEMENT_CACHES
	3891:            fault.Unavailable, // ER_INCORRECT_CURRENT_PASSWORD: changed since we logged in with it
	1130:            fault.Unavailable, // ER_HOST_NOT_PRIVILEGED: MariaDB tells so every client while it reads its privileges again

	1043:                fault.Refused, // ER_HANDSHAKE_ERROR: a proxy in between
	1129:                fault.Refused, // ER_HOST_IS_BLOCKED
	1131:                fault.Refused, // ER_PASSWORD_ANONYMOUS_USER: taken for another account
	initConnectFails:    fault.Refused, // ER_NEW_ABORTING_CONNECTION
	optionPrevents:      fault.Refused, // ER_OPTION_PREVENTS_STATEMENT: --read-only, --super-read-only, --skip-grant-tables
	1372:                fault.Refused, // ER_PASSWD_LENGTH: it takes no hash of ours
	tablesNeedUpgrade:   fault.Refused, // ER_COL_COUNT_DOESNT_MATCH_PLEASE_UPDATE
	1728:                fault.Refused, // ER_CANNOT_LOAD_FROM_TABLE_V2
	readOnlyTransaction: fault.Refused, // ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION (F12)
	tablesNeedUpgrade2:  fault.Refused, // ER_COL_COUNT_DOESNT_MATCH_CORRUPTED_V2
	rejectedPassword:    fault.Refused, // ER_NOT_VALID_PASSWORD
	1827:                fault.Refused, // ER_PASSWORD_FORMAT
	1836:                fault.Refused, // ER_READ_ONLY_MODE: of InnoDB
	3118:                fault.Refused, // ER_ACCOUNT_HAS_BEEN_LOCKED, MySQL
	3159:                fault.Refused, // ER_SECURE_TRANSPORT_REQUIRED
	rejectedByHistory:   fault.Refused, // ER_CREDENTIALS_CONTRADICT_TO_HISTORY
	3892:                fault.Refused, // ER_MISSING_CURRENT_PASSWORD
	schemaReadOnly:      fault.Refused, // ER_SCHEMA_READ_ONLY
	4058:                fault.Refused, // ER_AUTHENTICATION_POLICY_MISMATCH
	4151:                fault.Refused, // ER_ACCOUNT_HAS_BEEN_LOCKED, MariaDB
	6444:                fault.Refused, // ER_ACCESS_DENIED_FIREWALL
}

// hints say what the server's words leave open.
var hints = map[uint16]string{
	mustChangePassword:  ": the password of this login has expired, set a new one",
	passwordExpired:     ": the password of this login has expired, set a new one",
	initConnectFails:    ": what the server runs for each new session (init_connect) fails, and ends it: SET GLOBAL init_connect = ''",
	readOnlyTransaction: ": the server is read-only (transaction_read_only): point the connector at the primary",
	tablesNeedUpgrade:   ": the server's own tables are of another version: run mariadb-upgrade or mysql_upgrade",
	tablesNeedUpgrade2:  ": the server's own tables are of another version: run mariadb-upgrade or mysql_upgrade",
}

// numberOf is the number of a server's error; 0 for every other error.
func numberOf(err error) uint16 {
	var server *mysqldriver.MySQLError
	if errors.As(err, &server) {
		return server.Number
	}
	return 0
}

// classify gives a driver's error its class and a message of one line. A statement is never part of it.
func classify(err error) error {
	if err == nil || fault.Of(err) != fault.Unknown {
		return err
	}
	var server *mysqldriver.MySQLError
	if errors.As(err, &server) {
		said := fault.Words(server.Message)
		if server.Number == parseError {
			said = "it does not understand a statement" // its own words repeat 80 characters of it, and these may hold a password
		}
		return fault.Translate(classes[server.Number], server, "the server says: %s (error %d)%s", said, server.Number, hints[server.Number])
	}
	switch network := fault.Network(err); {
	case errors.Is(err, mysqldriver.ErrNoTLS):
		return fault.NoTLS()
	case errors.Is(err, mysqldriver.ErrMalformPkt), errors.Is(err, mysqldriver.ErrPktSync), errors.Is(err, mysqldriver.ErrPktSyncMul),
		errors.Is(err, mysqldriver.ErrOldProtocol), errors.Is(err, mysqldriver.ErrPktTooLarge):
		return errForeign
	case errors.Is(err, mysqldriver.ErrUnknownPlugin), errors.Is(err, mysqldriver.ErrCleartextPassword), errors.Is(err, mysqldriver.ErrOldPassword),
		errors.Is(err, mysqldriver.ErrNativePassword):
		return fault.New(fault.Refused, "the server asks for a way of logging in that is not supported: %s", fault.Words(err.Error()))
	case network != nil:
		return network
	case errors.Is(err, mysqldriver.ErrInvalidConn), errors.Is(err, driver.ErrBadConn):
		return fault.New(fault.Unavailable, "the connection broke")
	}
	return fault.New(fault.Unknown, "%s", fault.Words(err.Error()))
}

var errForeign = fault.New(fault.Refused, `the server does not speak MySQL's protocol: see the connector's keys "type", "endpoint" and "port"`)

// greeting is what is known of the first bytes from a server. A MySQL server speaks first; one that stays silent may be
// waiting to be spoken to.
type greeting struct {
	patience time.Time                // when a silent server is asked what it is; zero for never
	redial   func() (net.Conn, error) // another connection, for as long as the attempt lasts
	anything atomic.Bool
	verdict  atomic.Pointer[error] // why this is no MySQL server
}

func (g *greeting) judge(err error) { g.verdict.Store(&err) }

// isMySQL says whether bytes are the beginning of a MySQL server's greeting: three bytes of length, sequence number 0, and
// then the protocol version or an error. Fewer than five bytes say nothing, and may be.
func isMySQL(first []byte) bool {
	return len(first) < 5 || first[3] == 0 && (first[4] == 10 || first[4] == 9 || first[4] == 0xff)
}

// sniffer looks at the greeting before the driver does: the driver takes the first bytes of whatever speaks for a length, and
// waits for that much.
type sniffer struct {
	net.Conn
	heard   *greeting
	mariadb *atomic.Bool
}

func (s *sniffer) Read(p []byte) (int, error) {
	if s.heard.anything.Load() {
		return s.Conn.Read(p)
	}
	n, err := s.first(p)
	if n > 0 {
		s.heard.anything.Store(true)
		if !isMySQL(p[:n]) {
			s.heard.judge(errForeign)
			return 0, io.ErrUnexpectedEOF
		}
		s.mariadb.Store(dialectOf(string(p[:n])).hashes) // its version stands there
	}
	return n, err
}

// first waits for the greeting. Where there is none in time, the server is asked what it is over this very connection: it is lost
// by then, and a server that counts broken connections and blocks a host for them (max_connect_errors) has one less to count.
// One that hangs up without a word is asked over another: PostgreSQL does so, where its authentication_timeout is shorter than
// our patience.
func (s *sniffer) first(p []byte) (int, error) {
	if s.heard.patience.IsZero() {
		return s.Conn.Read(p)
	}
	_ = s.SetReadDeadline(s.heard.patience)
	n, err := s.Conn.Read(p)
	_ = s.SetReadDeadline(time.Time{}) // from here on the driver ends the connection when its context ends
	switch {
	case n > 0:
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.heard.ask(s.Conn)
	case errors.Is(err, io.EOF):
		if conn, derr := s.heard.redial(); derr == nil {
			s.heard.ask(conn)
			_ = conn.Close() // nothing was written that counts
		}
	}
	return n, err
}

// ask asks a silent server PostgreSQL's first question (SSLRequest, "Message Formats" in its manual).
func (g *greeting) ask(conn net.Conn) {
	if _, err := conn.Write([]byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}); err != nil {
		return
	}
	answer := make([]byte, 64)
	n, _ := conn.Read(answer)
	switch answer = answer[:n]; {
	case n == 1 && (answer[0] == 'S' || answer[0] == 'N'):
		g.judge(fault.New(fault.Refused, `the server speaks PostgreSQL's protocol, not MySQL's: set the connector's key "type" to "postgres"`))
	case !isMySQL(answer): // a MySQL server that was merely late is none of these
		g.judge(errForeign)
	}
}

// careful turns the driver's panic on a greeting that is cut short into an error.
type careful struct{ driver.Connector }

func (c careful) Connect(ctx context.Context) (conn driver.Conn, err error) {
	defer func() {
		if recover() != nil {
			conn, err = nil, mysqldriver.ErrMalformPkt
		}
	}()
	return c.Connector.Connect(ctx)
}
