// SPDX-License-Identifier: Apache-2.0

package mysql

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	mysqldriver "github.com/go-sql-driver/mysql"

	"dbconnector/pkg/fault"
)

func TestClassifyMySQL(t *testing.T) {
	t.Parallel()
	server := func(number uint16) error {
		return fmt.Errorf("driver: %w", &mysqldriver.MySQLError{Number: number, Message: "said\nso"})
	}
	tests := map[string]struct {
		reason string
		err    error
		want   fault.Class
	}{
		"1045":            {"the one number for a wrong password", server(1045), fault.WrongPassword},
		"1049":            {"the database is not there", server(1049), fault.NoDatabase},
		"1044":            {"not open to this login", server(1044), fault.NoAccess},
		"1142":            {"a table is not open", server(1142), fault.NoAccess},
		"1227":            {"a right is missing", server(1227), fault.NoAccess},
		"3879":            {"a role may not be granted", server(3879), fault.NoAccess},
		"1040":            {"full servers empty again", server(1040), fault.Unavailable},
		"1053":            {"a server that goes down comes back", server(1053), fault.Unavailable},
		"1203":            {"the login's own limit", server(1203), fault.Unavailable},
		"1226":            {"the login's own limit, by its other number", server(1226), fault.Unavailable},
		"1205":            {"a lock is held", server(1205), fault.Unavailable},
		"1213":            {"a deadlock", server(1213), fault.Unavailable},
		"1007":            {"somebody else created the database just now", server(1007), fault.Unavailable},
		"1396":            {"somebody else created the login just now", server(1396), fault.Unavailable},
		"1094":            {"a thread that ended while it was looked at", server(1094), fault.Unavailable},
		"1047":            {"a node of Galera that is not ready yet", server(1047), fault.Unavailable},
		"1317":            {"somebody interrupted the statement", server(1317), fault.Unavailable},
		"1927":            {"somebody ended the session", server(1927), fault.Unavailable},
		"1969":            {"the server's limit for a statement, on MariaDB", server(1969), fault.Unavailable},
		"3024":            {"the server's limit for a statement, on MySQL", server(3024), fault.Unavailable},
		"3032":            {"a server that is offline for maintenance", server(3032), fault.Unavailable},
		"4031":            {"the session was idle for too long", server(4031), fault.Unavailable},
		"1129":            {"blocked until a human unblocks", server(1129), fault.Refused},
		"1130":            {"the host may not connect, or the privileges are just read anew", server(1130), fault.Unavailable},
		"1133":            {"somebody else dropped the login just now", server(1133), fault.Unavailable},
		"1141":            {"somebody else revoked the right just now", server(1141), fault.Unavailable},
		"1410":            {"somebody else dropped the login just now, on MySQL", server(1410), fault.Unavailable},
		"1290":            {"an option of the server forbids it", server(1290), fault.Refused},
		"1819":            {"the policy rejects the password", server(1819), fault.Refused},
		"1820":            {"the password must be changed first", server(1820), fault.WrongPassword},
		"1862":            {"the password has expired", server(1862), fault.WrongPassword},
		"3118":            {"locked, on MySQL", server(3118), fault.Refused},
		"4151":            {"locked, on MariaDB", server(4151), fault.Refused},
		"3159":            {"B48: the server wants TLS", server(3159), fault.Refused},
		"1064":            {"a syntax error is our bug", server(1064), fault.Unknown},
		"no TLS":          {"the server has none, and we do not fall back (B9)", mysqldriver.ErrNoTLS, fault.Refused},
		"certificate":     {"it does not verify", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, fault.Refused},
		"not MySQL":       {"something else answers", mysqldriver.ErrMalformPkt, fault.Refused},
		"cleartext":       {"a plugin that sends the password in clear text", mysqldriver.ErrCleartextPassword, fault.Refused},
		"refused":         {"nothing listens yet", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, fault.Unavailable},
		"no such host":    {"DNS comes and goes", &net.DNSError{Err: "no such host", Name: "db"}, fault.Unavailable},
		"end":             {"the connection broke", io.ErrUnexpectedEOF, fault.Unavailable},
		"bad connection":  {"the connection broke", driver.ErrBadConn, fault.Unavailable},
		"invalid":         {"the connection broke", mysqldriver.ErrInvalidConn, fault.Unavailable},
		"cancelled":       {"a stop is no failure of the server", context.Canceled, fault.Unknown},
		"anything else":   {"nobody knows", errors.New("what?"), fault.Unknown},
		"classified once": {"the first word counts", fault.New(fault.Refused, "no"), fault.Refused},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := classify(tc.err)
			if fault.Of(got) != tc.want {
				t.Errorf("%s: got class %d (%v), want %d", tc.reason, fault.Of(got), got, tc.want)
			}
			if strings.Contains(got.Error(), "\n") {
				t.Errorf("not one line: %q", got)
			}
		})
	}
	// (F18) The rest of what servers say to logins and to our statements, by the names of mysqld_error.h and of MariaDB's errmsg-utf8.txt.
	for class, numbers := range map[fault.Class]map[uint16]string{
		fault.WrongPassword: { // a new password cures them all
			1251: "ER_NOT_SUPPORTED_AUTH_MODE", 1275: "ER_SERVER_IS_IN_SECURE_AUTH_MODE", 1524: "ER_PLUGIN_IS_NOT_LOADED (F6)",
			1698: "ER_ACCESS_DENIED_NO_PASSWORD_ERROR", 3955: "ER_USER_ACCESS_DENIED_FOR_USER_ACCOUNT_BLOCKED_BY_PASSWORD_LOCK (F13)",
			4150: "ER_USER_IS_BLOCKED (F13)",
		},
		fault.NoAccess: {
			1132: "ER_PASSWORD_NOT_ALLOWED", 1143: "ER_COLUMNACCESS_DENIED_ERROR", 1211: "ER_NO_PERMISSION_TO_CREATE_USER",
			1699: "ER_SET_PASSWORD_AUTH_PLUGIN", 3554: "ER_NO_SYSTEM_TABLE_ACCESS", 4102: "ER_SET_PASSWORD_AUTH_PLUGIN_ERROR",
			6038: "ER_SPECIFIC_ACCESS_DENIED",
		},
		fault.Unavailable: {
			1006: "ER_CANT_CREATE_DB", 1020: "ER_CHECKREAD (F10)", 1021: "ER_DISK_FULL", 1037: "ER_OUTOFMEMORY", 1038: "ER_OUT_OF_SORTMEMORY",
			1041: "ER_OUT_OF_RESOURCES", 1042: "ER_BAD_HOST_ERROR", 1079: "ER_SHUTDOWN_COMPLETE", 1080: "ER_FORCING_CLOSE",
			1114: "ER_RECORD_FILE_FULL", 1135: "ER_CANT_CREATE_THREAD", 1158: "ER_NET_READ_ERROR", 1159: "ER_NET_READ_INTERRUPTED",
			1160: "ER_NET_ERROR_ON_WRITE", 1161: "ER_NET_WRITE_INTERRUPTED", 1180: "ER_ERROR_DURING_COMMIT", 1297: "ER_GET_TEMPORARY_ERRMSG",
			1637: "ER_TOO_MANY_CONCURRENT_TRXS", 1689: "ER_LOCK_ABORTED", 3015: "ER_ENGINE_OUT_OF_MEMORY", 3058: "ER_USER_LOCK_DEADLOCK",
			3100: "ER_RUN_HOOK_ERROR", 3101: "ER_TRANSACTION_ROLLBACK_DURING_COMMIT", 3168: "ER_SERVER_ISNT_AVAILABLE",
			3169: "ER_SESSION_WAS_KILLED", 3547: "ER_CANNOT_LOCK_USER_MANAGEMENT_CACHES", 3891: "ER_INCORRECT_CURRENT_PASSWORD",
			4081: "ER_DA_GLOBAL_CONN_LIMIT", 4082: "ER_DA_CONN_LIMIT", 6400: "ER_SERVER_OFFLINE_MODE_REASON",
		},
		fault.Refused: {
			1043: "ER_HANDSHAKE_ERROR", 1131: "ER_PASSWORD_ANONYMOUS_USER", 1184: "ER_NEW_ABORTING_CONNECTION", 1372: "ER_PASSWD_LENGTH",
			1558: "ER_COL_COUNT_DOESNT_MATCH_PLEASE_UPDATE", 1728: "ER_CANNOT_LOAD_FROM_TABLE_V2",
			1792: "ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION (F12)", 1805: "ER_COL_COUNT_DOESNT_MATCH_CORRUPTED_V2", 1827: "ER_PASSWORD_FORMAT",
			1836: "ER_READ_ONLY_MODE", 3638: "ER_CREDENTIALS_CONTRADICT_TO_HISTORY", 3892: "ER_MISSING_CURRENT_PASSWORD",
			3989: "ER_SCHEMA_READ_ONLY", 4058: "ER_AUTHENTICATION_POLICY_MISMATCH", 6444: "ER_ACCESS_DENIED_FIREWALL",
		},
		fault.Unknown: { // they say nothing about what to do: told in full, and the run ends
			1105: "ER_UNKNOWN_ERROR (F5: of GET_LOCK it is no error)", 1193: "ER_UNKNOWN_SYSTEM_VARIABLE", 1235: "ER_NOT_SUPPORTED_YET",
			1289: "ER_FEATURE_DISABLED", 1305: "ER_SP_DOES_NOT_EXIST", 1231: "ER_WRONG_VALUE_FOR_VAR",
		},
	} {
		for number, name := range numbers {
			if got := classify(server(number)); fault.Of(got) != class || !strings.Contains(got.Error(), fmt.Sprintf("said so (error %d)", number)) {
				t.Errorf("%d, %s: got class %d (%v), want %d", number, name, fault.Of(got), got, class)
			}
		}
	}
	if classify(nil) != nil {
		t.Error("no error became one")
	}
	if !errors.Is(classify(fmt.Errorf("x: %w", context.Canceled)), context.Canceled) {
		t.Error("main could not tell that it was stopped")
	}
}

// B18: a server that is not quite what it says repeats what it does not understand.
func TestSyntaxErrorMySQL(t *testing.T) {
	t.Parallel()
	err := classify(&mysqldriver.MySQLError{Number: 1064, Message: "You have an error in your SQL syntax; … near 'BY 'hunter2' REQUIRE SSL' at line 1"})
	if fault.Of(err) != fault.Unknown || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "1064") {
		t.Errorf("got %v (class %d)", err, fault.Of(err))
	}
}
