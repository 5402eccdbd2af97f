// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	settings "dbconnector/pkg/config"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// The exit codes that bad input may have: a human must change something, or the moment is wrong.
const (
	human  = 2
	moment = 1
)

// badInput is one fault in the input, and the message that the operator gets. The zero code is human.
type badInput struct {
	name   string
	reason string // why it happens, or the reason for the answer
	// on is the server of the connector that is made bad; PostgreSQL by default.
	on     *rig.Shared
	change func(tb testing.TB, s *site)
	code   int
	want   []string
	// waits says that the program is right to try until its time limit.
	waits bool
	// late says that the fault shows only after the work has begun. Even then no hand-over is left.
	late bool
}

// key sets a key of the connector.
func key(name, value string) func(testing.TB, *site) {
	return func(_ testing.TB, s *site) { s.connector[name] = value }
}

// unset removes keys from the connector.
func unset(names ...string) func(testing.TB, *site) {
	return func(_ testing.TB, s *site) {
		for _, name := range names {
			delete(s.connector, name)
		}
	}
}

// variable sets a variable of the environment.
func variable(name, value string) func(testing.TB, *site) {
	return func(_ testing.TB, s *site) { s.env[name] = value }
}

func all(changes ...func(testing.TB, *site)) func(testing.TB, *site) {
	return func(tb testing.TB, s *site) {
		for _, change := range changes {
			change(tb, s)
		}
	}
}

// admin makes the connector name another admin.
func admin(user, password string) func(testing.TB, *site) {
	return all(key("user", user), key("password", password))
}

// at lets the connector point at something that is not the server. The connector does not verify it, so only the answer
// from there matters.
func at(kind string, port func(testing.TB) string) func(testing.TB, *site) {
	return func(tb testing.TB, s *site) {
		s.connector["type"], s.connector["port"] = kind, port(tb)
		delete(s.connector, "caCert")
	}
}

// crossed lets the connector name the type of another engine.
func crossed(kind string) func(testing.TB, *site) { return all(key("type", kind), unset("caCert")) }

// on lets the connector point at a server that the case starts on its own.
func on(start func(tb testing.TB) *bed.Server, changes ...func(testing.TB, *site)) func(testing.TB, *site) {
	return func(tb testing.TB, s *site) {
		s.server = start(tb)
		s.connector = connectorFor(s.server)
		all(changes...)(tb, s)
	}
}

// config makes a vCluster config.
func config(content string) func(testing.TB, *site) {
	return func(tb testing.TB, s *site) {
		file := filepath.Join(dir(tb), "config.yaml")
		write(tb, file, content)
		s.env["DBCONNECTOR_VCLUSTER_CONFIG"] = file
	}
}

// record makes a record from a good one of this provisioned tenant, and puts it in place.
func record(change func(content string) string) func(testing.TB, *site) {
	return func(tb testing.TB, s *site) { s.put(tb, change(goodRecord(tb, s))) }
}

func field(change func(r map[string]any)) func(testing.TB, *site) {
	return func(tb testing.TB, s *site) {
		s.put(tb, goodRecord(tb, s))
		s.edit(tb, change)
	}
}

var model struct {
	once    sync.Once
	content string
}

// goodRecord is a record as the program would have written it for this site. But the tenant's database was never made.
func goodRecord(tb testing.TB, s *site) string {
	tb.Helper()
	model.once.Do(func() {
		m := newSite(tb, postgres.Get(tb))
		m.provision(tb)
		model.content = read(tb, m.recordFile())
	})
	if model.content == "" {
		tb.Fatal("the record to begin with was not made")
	}
	r := decodeRecord(tb, []byte(model.content))
	r["tenantUID"], r["database"] = s.uid, databaseOf(s.uid)
	data, err := json.Marshal(r)
	require.NoError(tb, err)
	return string(data)
}

// large is longer than any input that a person writes, and short enough for the kernel and Kubernetes to accept.
var large = strings.Repeat("x", 64<<10)

// binary is no text in any encoding, and holds the bytes that end strings and lines.
const binary = "\x00\x01\xff\xfe\x80\n\r\x1b[31m"

const injection = `'; DROP DATABASE postgres; -- "\`

var badConnectors = []badInput{
	{
		name: "no keys at all", reason: "an empty Secret; all refusals come at once", change: unset("type", "endpoint", "port", "user", "password", "caCert"),
		want: []string{`key "endpoint": is missing`, `key "user": is missing`, `key "password": is missing`},
	},
	{
		name: "all keys empty", reason: "a template that was rendered without values", change: all(
			key("endpoint", ""), key("port", ""), key("user", ""), key("password", ""),
		),
		want: []string{`key "endpoint": is empty`, `key "user": is empty`, `key "password": is empty`},
	},
	{
		name: "everything wrong", reason: "one round of fixes must be enough",
		change: all(
			key("type", "oracle"), key("endpoint", "http://x"), key("port", "0"), key("user", ""), key("password", "x\n"),
			key("sslMode", "maybe"), key("caCert", "no"),
		),
		want: []string{`key "type": `, `key "endpoint": `, `key "port": `, `key "user": `, `key "password": `, `key "sslMode": `, `key "caCert": `},
	},

	{name: "endpoint missing", reason: "a typing error in the key", change: unset("endpoint"), want: []string{`key "endpoint": is missing`}},
	{
		name: "endpoint of white space", reason: "an empty value in a template with indentation",
		change: key("endpoint", "   "), want: []string{`key "endpoint": `, "white space"},
	},
	{
		name: "endpoint with a line break", reason: "made with echo",
		change: key("endpoint", "127.0.0.1\n"), want: []string{`key "endpoint": `, "ends in a line break"},
	},
	{
		name: "endpoint with CRLF", reason: "a file from Windows",
		change: key("endpoint", "127.0.0.1\r\n"), want: []string{`key "endpoint": `, "ends in a line break"},
	},
	{
		name: "endpoint with a scheme", reason: "a URL copied from a console",
		change: key("endpoint", "postgres://127.0.0.1"), want: []string{`key "endpoint": `, "has a scheme"},
	},
	{
		name: "endpoint with a port", reason: "host:port, as most consoles show it",
		change: key("endpoint", "127.0.0.1:5432"), want: []string{`key "endpoint": `, `the port goes into key "port"`},
	},
	{
		name: "endpoint with a user", reason: "half of a URL",
		change: key("endpoint", "admin@127.0.0.1"), want: []string{`key "endpoint": `, `the user goes into key "user"`},
	},
	{
		name: "endpoint with a path", reason: "the other half of a URL",
		change: key("endpoint", "127.0.0.1/postgres"), want: []string{`key "endpoint": `, "has a path"},
	},
	{
		name: "two endpoints", reason: "libpq takes a list, kine's drivers do not",
		change: key("endpoint", "db-0,db-1"), want: []string{`key "endpoint": `, "more than one host"},
	},
	{name: "IDN endpoint", reason: "resolvers want the ASCII form", change: key("endpoint", "datenbänke.example"), want: []string{`key "endpoint": `, "xn--"}},
	{name: "IPv6 with a zone", reason: "no DSN can carry it", change: key("endpoint", "fe80::1%eth0"), want: []string{`key "endpoint": `, "zone"}},
	{
		name: "IPv6 with a port", reason: "brackets invite it",
		change: key("endpoint", "[::1]:5432"), want: []string{`key "endpoint": `, `the port goes into key "port"`},
	},
	{name: "brackets around IPv4", reason: "one rule too many remembered", change: key("endpoint", "[127.0.0.1]"), want: []string{`key "endpoint": `, "brackets"}},
	{
		name: "address out of range", reason: "a typing error that a resolver would look up as a name",
		change: key("endpoint", "127.0.0.256"), want: []string{`key "endpoint": `, "neither a host name nor an IP address"},
	},
	{
		name: "endpoint of 64 KiB", reason: "a file in the wrong key; the message must stay short",
		change: key("endpoint", large), want: []string{`key "endpoint": `, "65536 bytes"},
	},
	{
		name: "binary endpoint", reason: "an encrypted value that was not decrypted",
		change: key("endpoint", binary), want: []string{`key "endpoint": `, "not UTF-8"},
	},
	{name: "endpoint with a quote", reason: "injection (B29)", change: key("endpoint", injection), want: []string{`key "endpoint": `}},
	{
		name: "endpoint with DSN syntax", reason: "must not become a part of the DSN",
		change: key("endpoint", "127.0.0.1)/mysql?tls=false"), want: []string{`key "endpoint": `},
	},
	{
		name: "two lines in the endpoint", reason: "must not become two lines of a log",
		change: key("endpoint", "127.0.0.1\n{\"level\":\"info\"}"), want: []string{`key "endpoint": `, "control character"},
	},

	{
		name: "tokens of a cloud", reason: "the platform's way without a password", // F16
		change: all(unset("password"), key("identityProvider", "aws")),
		want:   []string{`key "identityProvider": "aws" is not supported`},
	},
	{name: "port 0", reason: "a zero value in a generator", change: key("port", "0"), want: []string{`key "port": "0" is not a port`}},
	{name: "port 65536", reason: "one more than there are", change: key("port", "65536"), want: []string{`key "port": "65536" is not a port`}},
	{name: "port abc", reason: "not a number", change: key("port", "abc"), want: []string{`key "port": "abc" is not a port`}},
	{name: "negative port", reason: "not a port", change: key("port", "-1"), want: []string{`key "port": "-1" is not a port`}},
	{
		name: "port as a float", reason: "a careless template writes a number this way",
		change: key("port", "5432.0"), want: []string{`key "port": "5432.0" is not a port`},
	},
	{name: "port with a line break", reason: "made with echo", change: key("port", "5432\n"), want: []string{`key "port": "5432\n" ends in a line break`}},
	{
		name: "port of full-width digits", reason: "digits for unicode.IsDigit, not for a port",
		change: key("port", "５４３２"), want: []string{`key "port": `, "is not a port"},
	},
	{name: "port of 64 KiB", reason: "the message must stay short", change: key("port", large), want: []string{`key "port": `}},

	{name: "user missing", reason: "a typing error in the key", change: unset("user"), want: []string{`key "user": is missing`}},
	{
		name: "user with CRLF", reason: "a file from Windows",
		change: key("user", "postgres\r\n"), want: []string{`key "user": "postgres\r\n" ends in a line break`},
	},
	{
		name: "user with a NUL", reason: "would end the name early in the protocol",
		change: key("user", "post\x00gres"), want: []string{`key "user": `, "control character"},
	},
	{name: "user of 64 KiB", reason: "longer than any server takes", change: key("user", large), want: []string{`key "user": `, "65536 bytes"}},
	{name: "binary user", reason: "not text", change: key("user", binary), want: []string{`key "user": `, "not UTF-8"}},

	{name: "password missing", reason: "a typing error in the key", change: unset("password"), want: []string{`key "password": is missing`}},
	{
		name: "password with a line break", reason: "made with echo: a wrong password at best",
		change: key("password", chosen+"\n"), want: []string{`key "password": ends in a line break`},
	},
	{
		name: "password with white space", reason: "copied with a blank",
		change: key("password", " "+chosen), want: []string{`key "password": begins or ends with white space`},
	},
	{
		name: "two lines in the password", reason: "could be two of them",
		change: key("password", chosen+"\n"+chosen), want: []string{`key "password": contains a control character`},
	},
	{
		name: "password of 64 KiB", reason: "a file in the wrong key, and still a secret",
		change: key("password", strings.Repeat(chosen, 2000)), want: []string{`key "password": has `},
	},
	{name: "binary password", reason: "still a secret", change: key("password", chosen+binary), want: []string{`key "password": is not UTF-8`}},

	{
		name: "unknown type", reason: "not a supported server",
		change: key("type", "oracle"), want: []string{`key "type": "oracle" is not a type`, `"postgres" or "mysql"`},
	},
	{
		name: "type mariadb", reason: "an obvious guess: the message must say what to write",
		change: key("type", "mariadb"), want: []string{`key "type": "mariadb" is not a type`, "which stands for MariaDB"},
	},
	{name: "type with a line break", reason: "made with echo", change: key("type", "postgres\n"), want: []string{`key "type": "postgres\n" is not a type`}},
	{name: "type with an injection", reason: "B29", change: key("type", injection), want: []string{`key "type": `}},
	{
		name: "sslMode prefer", reason: "promise 6: nothing falls back to clear text (B9)",
		change: key("sslMode", "prefer"), want: []string{`key "sslMode": "prefer" would fall back to clear text`},
	},
	{name: "unknown sslMode", reason: "a boolean from another product", change: key("sslMode", "true"), want: []string{`key "sslMode": "true" is not a mode`}},
	{
		name:   "sslMode disable with a CA",
		reason: "one of the two is a mistake, and guessing which could send a password in clear text",
		change: key("sslMode", "disable"), want: []string{`key "sslMode": "disable" contradicts key "caCert"`},
	},

	{
		name: "CA is no PEM", reason: "DER, or a path instead of the file",
		change: key("caCert", "/etc/ssl/ca.crt"), want: []string{`key "caCert": is not a PEM bundle`},
	},
	{
		name: "CA is a private key", reason: "the neighbour in the directory; it must not be shown",
		change: key("caCert", "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAAA\n-----END PRIVATE KEY-----\n"),
		want:   []string{`key "caCert": holds a PEM block "PRIVATE KEY"`},
	},
	{
		name: "broken certificate", reason: "PEM around bytes that are no certificate",
		change: key("caCert", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("rubbish")}))),
		want:   []string{`key "caCert": `, `block 1 cannot be read`},
	},
	{
		name: "truncated CA", reason: "cut at a size limit",
		change: func(_ testing.TB, s *site) { s.connector["caCert"] = s.connector["caCert"][:200] },
		want:   []string{`key "caCert": is not a PEM bundle`},
	},
	{name: "CA of white space", reason: "an indented empty block", change: key("caCert", " \n \n"), want: []string{`key "caCert": `}},
	{name: "binary CA", reason: "DER", change: key("caCert", binary), want: []string{`key "caCert": is not a PEM bundle`}},
	{name: "CA of 512 KiB", reason: "not a CA", change: key("caCert", strings.Repeat(large, 8)), want: []string{`key "caCert": has more than`}},
	{name: "expired CA", reason: "no server can be verified by it: said before a connection fails for it", change: func(tb testing.TB, s *site) {
		s.connector["caCert"] = string(selfSigned(tb, time.Date(2020, 2, 3, 0, 0, 0, 0, time.UTC)).Cert)
	}, want: []string{`key "caCert": has expired on 2020-02-03`}},

	{
		name: "connector directory missing", reason: "a mount that was forgotten",
		change: variable("DBCONNECTOR_CONNECTOR_DIR", "/nonexistent/connector"),
		want:   []string{"DBCONNECTOR_CONNECTOR_DIR", "/nonexistent/connector"},
	},
	{name: "connector directory is a file", reason: "subPath", change: func(tb testing.TB, s *site) {
		file := filepath.Join(dir(tb), "connector")
		write(tb, file, "")
		s.env["DBCONNECTOR_CONNECTOR_DIR"] = file
	}, want: []string{"DBCONNECTOR_CONNECTOR_DIR"}},
}

var badServers = []badInput{
	{
		name: "no listener", reason: "the server is starting, or the port is wrong: init cannot tell",
		change: at("postgres", closedPort), code: moment, waits: true, want: []string{"connection refused", "time limit"},
	},
	{
		name: "no listener, mysql", reason: "as above", on: mariadb,
		change: at("mysql", closedPort), code: moment, waits: true, want: []string{"connection refused", "time limit"},
	},
	{
		name: "no such name", reason: "DNS may be late, too",
		change: key("endpoint", "no-such-name.invalid"), code: moment, waits: true, want: []string{"no-such-name.invalid"},
	},
	{
		name: "black hole", reason: "a firewall, a load balancer without a backend",
		change: at("postgres", silent), code: moment, waits: true, want: []string{"no answer"},
	},
	{name: "black hole, mysql", reason: "as above", on: mariadb, change: at("mysql", silent), code: moment, waits: true, want: []string{"no answer"}},
	{
		name: "server stopped", reason: "the kernel still accepts for it",
		change: on(stopped(bed.Postgres, "17")), code: moment, waits: true, want: []string{"no answer"},
	},
	{
		name: "server stopped, mysql", reason: "as above", on: mariadb,
		change: on(stopped(bed.MariaDB, "10.5")), code: moment, waits: true, want: []string{"no answer"},
	},
	{name: "hangs up", reason: "a load balancer whose backends are down", change: at("postgres", rude), code: moment, waits: true, want: []string{"connection"}},
	{name: "hangs up, mysql", reason: "as above", on: mariadb, change: at("mysql", rude), code: moment, waits: true, want: []string{"connection"}},
	{name: "server full", reason: "53300 passes (B45)", change: on(full(bed.Postgres, "17")), code: moment, waits: true, want: []string{"53300"}},
	{name: "server full, mysql", reason: "1040 passes (B45)", on: mysql, change: on(full(bed.MySQL, "9.7")), code: moment, waits: true, want: []string{"1040"}},
	{
		name: "server full, mariadb", reason: "1040 passes (B45)", on: mariadb,
		change: on(full(bed.MariaDB, "10.11")), code: moment, waits: true, want: []string{"1040"},
	},

	{
		name: "MySQL, and PostgreSQL was said", reason: "the key type was copied", on: mysql,
		change: crossed("postgres"), want: []string{`MySQL's protocol`, `key "type"`},
	},
	{name: "MariaDB, and PostgreSQL was said", reason: "as above", on: mariadb, change: crossed("postgres"), want: []string{`MySQL's protocol`, `key "type"`}},
	{
		name: "PostgreSQL, and MySQL was said", reason: "a missing type means mysql", on: postgres,
		change: crossed("mysql"), want: []string{`PostgreSQL's protocol`, `key "type"`},
	},
	{
		name: "HTTP server", reason: "a console's address",
		change: at("postgres", answers("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")),
		want:   []string{`does not speak PostgreSQL's protocol`, `"port"`},
	},
	{
		name: "HTTP server, mysql", reason: "it waits to be spoken to, and MySQL's client does, too", on: mariadb,
		change: at("mysql", answers("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")),
		want:   []string{`does not speak MySQL's protocol`, `"port"`},
	},
	{
		name: "patient HTTP server", reason: "it waits for the rest of the request: it looks like a black hole",
		change: at("postgres", web), code: moment, waits: true, want: []string{"no answer"},
	},
	{
		name:   "HTTPS server",
		reason: "hangs up on a client that does not begin with TLS, as a load balancer does whose backends are down",
		change: at("postgres", secureWeb), code: moment, waits: true, want: []string{"connection broke"},
	},
	{
		name: "TLS alert", reason: "most other servers that begin with TLS answer this",
		change: at("postgres", answers("\x15\x03\x01\x00\x02\x02\x46")),
		want:   []string{`does not speak PostgreSQL's protocol`},
	},
	{
		name: "TLS alert, mysql", reason: "as above", on: mariadb,
		change: at("mysql", answers("\x15\x03\x01\x00\x02\x02\x46")), want: []string{`does not speak MySQL's protocol`},
	},
	{
		name: "greeting cut short, mysql", reason: "a protocol version and nothing behind it", on: mariadb,
		change: at("mysql", greets("\x01\x00\x00\x00\x0a")), want: []string{`does not speak MySQL's protocol`},
	},
	{
		name: "SSH server", reason: "its greeting begins like PostgreSQL's yes to TLS",
		change: at("postgres", greets("SSH-2.0-OpenSSH_9.2p1 Debian\r\n")),
		want:   []string{`does not speak PostgreSQL's protocol`},
	},
	{
		name: "SSH server, mysql", reason: "its greeting is no packet of MySQL's", on: mariadb,
		change: at("mysql", greets("SSH-2.0-OpenSSH_9.2p1 Debian\r\n")), want: []string{`does not speak MySQL's protocol`},
	},
	{
		name: "SMTP server, mysql", reason: "the same with other bytes", on: mariadb,
		change: at("mysql", greets("220 mail.example ESMTP\r\n")), want: []string{`does not speak MySQL's protocol`},
	},
	{
		name: "random bytes", reason: "anything may listen there",
		change: at("postgres", answers("\xfe\xed\xfa\xce\x00\x01\x02\x03\xff\x80\x81\x82 not a database")),
		want:   []string{`does not speak PostgreSQL's protocol`},
	},
	{
		name: "random bytes, mysql", reason: "anything may listen there", on: mariadb,
		change: at("mysql", greets("\x07\x00\x00\x00\x63\xfe\xed\xfa\xce\xff\x00")),
		want:   []string{`does not speak MySQL's protocol`},
	},

	{name: "no TLS", reason: "promise 6", change: on(plain(bed.Postgres, "17"), unset("sslMode")), want: []string{"does not offer TLS", `"sslMode"`}},
	{
		name: "no TLS, mysql", reason: "promise 6", on: mysql,
		change: on(plain(bed.MySQL, "9.7"), unset("sslMode")), want: []string{"does not offer TLS", `"sslMode"`},
	},
	{
		name: "no TLS, mariadb", reason: "promise 6", on: mariadb,
		change: on(plain(bed.MariaDB, "10.5"), unset("sslMode")), want: []string{"does not offer TLS", `"sslMode"`},
	},
	{
		name: "clear text not allowed", reason: "forced TLS, and the connector switches it off",
		change: on(strict(bed.Postgres, "17"), unset("caCert"), key("sslMode", "disable")),
		want:   []string{"28000", `"sslMode"`},
	},
	{
		name: "clear text not allowed, mariadb", reason: "B48", on: mariadb,
		change: on(strict(bed.MariaDB, "10.11"), unset("caCert"), key("sslMode", "disable")), want: []string{`"sslMode"`},
	},
	{
		name: "foreign CA", reason: "another server's CA, or an attacker in between",
		change: foreignCA, want: []string{"certificate is not accepted", "unknown authority", `"caCert"`},
	},
	{name: "foreign CA, mysql", reason: "as above", on: mysql, change: foreignCA, want: []string{"certificate is not accepted", "unknown authority", `"caCert"`}},
	{
		name: "foreign CA, mariadb", reason: "as above", on: mariadb,
		change: foreignCA, want: []string{"certificate is not accepted", "unknown authority", `"caCert"`},
	},
	{
		name: "foreign CA, verify-ca", reason: "the name is not checked, the chain is",
		change: all(foreignCA, key("sslMode", "verify-ca")), want: []string{"certificate is not accepted", `"caCert"`},
	},
	{
		name: "self-signed without a CA", reason: "verify-full and the system's roots",
		change: all(unset("caCert"), key("sslMode", "verify-full")),
		want:   []string{"certificate is not accepted", `"caCert"`},
	},
	{
		name: "certificate for another name", reason: "an alias, or an attacker in between",
		change: on(func(tb testing.TB) *bed.Server { return withCert(tb, bed.Postgres, "17", otherName) }),
		want:   []string{"certificate is not accepted", "127.0.0.1", `"endpoint"`},
	},
	{
		name: "certificate for another name, mariadb", reason: "as above", on: mariadb,
		change: on(func(tb testing.TB) *bed.Server { return withCert(tb, bed.MariaDB, "11.8", otherName) }),
		want:   []string{"certificate is not accepted", "127.0.0.1", `"endpoint"`},
	},
	{
		name: "expired certificate", reason: "the operator did not renew it",
		change: on(func(tb testing.TB) *bed.Server { return withCert(tb, bed.Postgres, "17", outdated) }),
		want:   []string{"certificate is not accepted", "expired"},
	},
	{
		name: "expired certificate, mariadb", reason: "as above", on: mariadb,
		change: on(func(tb testing.TB) *bed.Server { return withCert(tb, bed.MariaDB, "11.8", outdated) }),
		want:   []string{"certificate is not accepted", "expired"},
	},

	{name: "wrong password", reason: "B37", change: key("password", "Wr0ng-"+chosen), want: []string{`keys "user" and "password"`, "28P01"}},
	{name: "wrong password, mysql", reason: "B37", on: mysql, change: key("password", "Wr0ng-"+chosen), want: []string{`keys "user" and "password"`, "1045"}},
	{name: "wrong password, mariadb", reason: "B37", on: mariadb, change: key("password", "Wr0ng-"+chosen), want: []string{`keys "user" and "password"`, "1045"}},
	{
		name: "unknown admin", reason: "servers do not tell it from a wrong password",
		change: admin("nobody", chosen), want: []string{`keys "user" and "password"`, "nobody"},
	},
	{name: "unknown admin, mysql", reason: "as above", on: mysql, change: admin("nobody", chosen), want: []string{`keys "user" and "password"`, "nobody"}},
	{name: "unknown admin, mariadb", reason: "as above", on: mariadb, change: admin("nobody", chosen), want: []string{`keys "user" and "password"`, "nobody"}},
	{name: "SQL in the user", reason: "B29: just a wrong login", change: key("user", injection), want: []string{`keys "user" and "password"`}},
	{name: "SQL in the user, mysql", reason: "B52: the backslash at the end", on: mysql, change: key("user", injection), want: []string{`"user"`}},
	{name: "SQL in the user, mariadb", reason: "B52", on: mariadb, change: key("user", injection), want: []string{`"user"`}},
	{name: "SQL in the password", reason: "B29: just a wrong password", change: key("password", injection), want: []string{`keys "user" and "password"`}},
	{name: "SQL in the password, mysql", reason: "B52", on: mysql, change: key("password", injection), want: []string{`keys "user" and "password"`}},
	{name: "SQL in the password, mariadb", reason: "B52", on: mariadb, change: key("password", injection), want: []string{`keys "user" and "password"`}},
	{
		name: "expired admin", reason: "VALID UNTIL: the server says wrong password",
		change: admin("expired", chosen), want: []string{`keys "user" and "password"`, "expired"},
	},
	{name: "expired admin, mysql", reason: "PASSWORD EXPIRE", on: mysql, change: admin("expired", chosen), want: []string{"expired"}},
	{
		name: "expired admin, mariadb", reason: "PASSWORD EXPIRE: it may log in, and nothing else", on: mariadb,
		change: admin("expired", chosen), want: []string{"expired"},
	},
	{name: "locked admin", reason: "NOLOGIN", change: admin("locked", chosen), want: []string{`"locked"`, "not permitted to log in"}},
	{name: "locked admin, mysql", reason: "ACCOUNT LOCK", on: mysql, change: admin("locked", chosen), want: []string{"locked", "3118"}},
	{name: "locked admin, mariadb", reason: "ACCOUNT LOCK", on: mariadb, change: admin("locked", chosen), want: []string{"locked", "4151"}},
	{
		name: "admin without rights", reason: "the tenant's credential in the connector, say",
		change: admin("powerless", chosen), want: []string{"ALTER ROLE \"powerless\" CREATEDB CREATEROLE"},
	},
	{
		name: "admin without rights, mysql", reason: "as above", on: mysql,
		change: admin("powerless", chosen), late: true, want: []string{`the admin "powerless" may not`, "CREATE USER"},
	},
	{
		name: "admin without rights, mariadb", reason: "as above", on: mariadb,
		change: admin("powerless", chosen), late: true, want: []string{`the admin "powerless" may not`, "CREATE USER"},
	},
	{
		name: "admin with half of the rights", reason: "CREATEDB alone",
		change: admin("createdb", chosen), want: []string{"ALTER ROLE \"createdb\" CREATEDB CREATEROLE"},
	},
	{
		name: "admin with half of the rights, mysql", reason: "CREATE alone: nothing is made by halves", on: mysql,
		change: admin("createdb", chosen), late: true, want: []string{`the admin "createdb" may not`, "CREATE USER"},
	},
	{
		name: "admin with half of the rights, mariadb", reason: "as above", on: mariadb,
		change: admin("createdb", chosen), late: true, want: []string{`the admin "createdb" may not`, "CREATE USER"},
	},
	{name: "pg_hba rejects", reason: "28000 is no wrong password", change: admin("barred", chosen), want: []string{"pg_hba.conf", "28000"}},
}

var badRecords = []badInput{
	{
		name: "empty record", reason: "a disk that was full: not the same as no record",
		change: record(func(string) string { return "" }),
		want:   []string{"record.json", "not JSON", "restore it from a backup"},
	},
	{name: "binary record", reason: "not ours", change: record(func(string) string { return binary }), want: []string{"record.json", "not JSON"}},
	{
		name: "truncated record", reason: "a copy that was cut short",
		change: record(func(s string) string { return s[:len(s)/2] }), want: []string{"record.json", "not JSON"},
	},
	{name: "two records", reason: "a bad merge", change: record(func(s string) string { return s + s }), want: []string{"record.json", "not JSON"}},
	{
		name: "later version", reason: "written by a later release: rewriting it would lose the later release's data",
		change: field(func(r map[string]any) { r["version"] = 2 }), want: []string{"format version 2", "knows version 1"},
	},
	{
		name: "unknown field", reason: "as above, without the courtesy",
		change: field(func(r map[string]any) { r["colour"] = "red" }),
		want:   []string{"a field that this version does not know"},
	},
	{name: "edited password", reason: "everything that renders one relies on its alphabet", change: field(func(r map[string]any) {
		part(r, "slots", "a")["password"] = injection
	}), want: []string{"slots.a", "password"}},
	{
		name: "edited database", reason: "a path to another tenant's data",
		change: field(func(r map[string]any) { r["database"] = "postgres" }), want: []string{"field database"},
	},
	{
		name: "edited engine", reason: "not an engine",
		change: field(func(r map[string]any) { part(r, "server")["engine"] = "oracle" }),
		want:   []string{"field server.engine"},
	},
	{
		name: "edited TLS mode", reason: "promise 6 holds for the record, too",
		change: field(func(r map[string]any) { part(r, "server")["sslMode"] = "prefer" }),
		want:   []string{"field server", "sslMode"},
	},
	{name: "field of another type", reason: "edited by hand", change: field(func(r map[string]any) { r["generation"] = "one" }), want: []string{`"generation"`}},
	{
		name: "record of another tenant", reason: "a state directory that was mounted twice", change: field(
			func(r map[string]any) { r["tenantUID"], r["database"] = "other", databaseOf("other") },
		),
		want: []string{`"other"`, "DBCONNECTOR_TENANT_UID", "rm "},
	},
	{
		name: "database gone", reason: "promise 2: never on an empty database",
		change: record(func(s string) string { return s }), want: []string{"refusing to start on an empty one", "rm "},
	},
	{name: "record is a directory", reason: "made by a mount", change: func(tb testing.TB, s *site) {
		require.NoError(tb, os.MkdirAll(s.recordFile(), 0o755))
	}, want: []string{"DBCONNECTOR_STATE_DIR"}},
	{name: "record that cannot be read", reason: "another user's file", change: func(tb testing.TB, s *site) {
		s.put(tb, "{}")
		require.NoError(tb, os.Chown(s.recordFile(), 0, 0))
		require.NoError(tb, os.Chmod(s.recordFile(), 0o600))
	}, want: []string{"DBCONNECTOR_STATE_DIR", "permission denied"}},

	{
		name: "state directory is a file", reason: "subPath",
		change: func(tb testing.TB, s *site) { write(tb, s.stateDir, "") },
		want:   []string{"DBCONNECTOR_STATE_DIR", "must be a directory"},
	},
	{name: "state directory not writable", reason: "readOnly: true on the mount", change: func(tb testing.TB, s *site) {
		require.NoError(tb, os.Mkdir(s.stateDir, 0o555))
	}, want: []string{"DBCONNECTOR_STATE_DIR", "can write to"}},
	{
		name: "state directory cannot be made", reason: "its parent belongs to root",
		change: variable("DBCONNECTOR_STATE_DIR", "/usr/dbconnector/state"),
		want:   []string{"DBCONNECTOR_STATE_DIR", "can write to"},
	},
	{name: "parent of the state directory is a file", reason: "a typing error in the path", change: func(tb testing.TB, s *site) {
		file := filepath.Join(dir(tb), "file")
		write(tb, file, "")
		s.env["DBCONNECTOR_STATE_DIR"] = filepath.Join(file, "state")
	}, want: []string{"DBCONNECTOR_STATE_DIR", "must be a directory"}},
	{name: "state directory full", reason: "the moment is wrong, and a record cut short must not be left", change: func(tb testing.TB, s *site) {
		s.stateDir = fullDisk(tb)
		s.env["DBCONNECTOR_STATE_DIR"] = s.stateDir
	}, code: moment, want: []string{"DBCONNECTOR_STATE_DIR", "no space left"}},
}

var badOutputs = []badInput{
	{
		name: "output directory missing", reason: "a volume that was forgotten",
		change: variable("DBCONNECTOR_OUTPUT_DIR", "/nonexistent/out"),
		want:   []string{"DBCONNECTOR_OUTPUT_DIR", "must be a directory that exists"},
	},
	{name: "output directory is a file", reason: "subPath", change: func(tb testing.TB, s *site) {
		file := filepath.Join(dir(tb), "out")
		write(tb, file, "")
		s.env["DBCONNECTOR_OUTPUT_DIR"] = file
	}, want: []string{"DBCONNECTOR_OUTPUT_DIR", "must be a directory"}},
	{name: "output directory not writable", reason: "another user's volume without fsGroup: said before anything is made", change: func(tb testing.TB, s *site) {
		require.NoError(tb, os.Chown(s.outputDir, 0, 0))
	}, want: []string{"DBCONNECTOR_OUTPUT_DIR", "can write to"}},
	{name: "output directory read-only", reason: "readOnly: true on the mount", change: func(tb testing.TB, s *site) {
		s.outputDir = mount(tb, syscall.MS_RDONLY, "")
		s.env["DBCONNECTOR_OUTPUT_DIR"] = s.outputDir
	}, want: []string{"DBCONNECTOR_OUTPUT_DIR", "can write to"}},
	{name: "output directory full", reason: "sizeLimit of the emptyDir: only writing shows it", change: func(tb testing.TB, s *site) {
		s.outputDir = fullDisk(tb)
		s.env["DBCONNECTOR_OUTPUT_DIR"] = s.outputDir
	}, code: moment, late: true, want: []string{"DBCONNECTOR_OUTPUT_DIR", "is full"}},

	{
		name: "config missing", reason: "a file that was named must be there",
		change: variable("DBCONNECTOR_VCLUSTER_CONFIG", "/nonexistent/config.yaml"),
		want:   []string{"DBCONNECTOR_VCLUSTER_CONFIG", "/nonexistent/config.yaml"},
	},
	{
		name: "config is a directory", reason: "the mount instead of the file",
		change: variable("DBCONNECTOR_VCLUSTER_CONFIG", "/etc"), want: []string{"DBCONNECTOR_VCLUSTER_CONFIG", "directory"},
	},
	{name: "config that cannot be read", reason: "defaultMode 0400 and another user", change: func(tb testing.TB, s *site) {
		config(embedded)(tb, s)
		require.NoError(tb, os.Chown(s.env["DBCONNECTOR_VCLUSTER_CONFIG"], 0, 0))
		require.NoError(tb, os.Chmod(s.env["DBCONNECTOR_VCLUSTER_CONFIG"], 0o400))
	}, want: []string{"DBCONNECTOR_VCLUSTER_CONFIG", "permission denied"}},
	{
		name: "config is not YAML", reason: "a template that was not rendered",
		change: config("controlPlane: {{ .Values.x }}\n  bad\n"), want: []string{"vCluster config", "not YAML"},
	},
	{name: "config is binary", reason: "a gzipped Helm release", change: config("\x1f\x8b\x08" + binary), want: []string{"vCluster config", "not YAML"}},
	{name: "config is a list", reason: "a values file of another chart", change: config("- a\n- b\n"), want: []string{"vCluster config", "must be a mapping"}},
	{
		name: "config of two documents", reason: "which of them counts?",
		change: config(embedded + "---\n" + embedded), want: []string{"vCluster config", "one YAML document"},
	},
	{name: "a key twice in the config", reason: "which of them counts?", change: config(embedded + embedded), want: []string{"vCluster config", "twice"}},
	{name: "config with an alias bomb", reason: "1 KiB that becomes gigabytes", change: config(bomb), want: []string{"vCluster config"}},
	{
		name: "256 KiB of rubbish as config", reason: "as large as it can be",
		change: config(strings.Repeat(large, 4)), want: []string{"vCluster config", "must be a mapping"},
	},
	{
		name:   "1 MiB of config",
		reason: "as much as a Secret holds: to parse the worst of it takes more than the container has",
		change: config(embedded + "x: [" + strings.Repeat("a,", 512<<10-100) + "]\n"),
		want:   []string{"vCluster config", "larger than 262144 bytes"},
	},
	{
		name: "config without an end", reason: "must not be read to its end",
		change: variable("DBCONNECTOR_VCLUSTER_CONFIG", "/dev/zero"),
		want:   []string{"reading the vCluster's config", "not a regular file"},
	},
	{
		name: "config of very many keys", reason: "the parser compares each with each",
		change: config(embedded + manyKeys), want: []string{"vCluster config", "more than 8000 values"},
	},
	{
		name: "empty config", reason: "no store is enabled, and init does not choose one silently",
		change: config(""), want: []string{"vCluster config", "no store is enabled"},
	},
	{
		name: "no store enabled", reason: "as above",
		change: config("controlPlane: {backingStore: {database: {embedded: {enabled: false}}}}\n"),
		want:   []string{"vCluster config", "no store is enabled", "embedded"},
	},
	{
		name: "two stores enabled", reason: "vCluster refuses it as well",
		change: config("controlPlane: {backingStore: {database: {embedded: {enabled: true}, external: {enabled: true}}}}\n"),
		want:   []string{"vCluster config", "more than one store"},
	},
	{
		name: "etcd enabled", reason: "it takes no database",
		change: config("controlPlane: {backingStore: {etcd: {deploy: {enabled: true}}}}\n"),
		want:   []string{"vCluster config", "takes no database"},
	},
	{
		name: "dataSource is set", reason: "promise 2: the data there would be gone; it may hold a password, too",
		change: config("controlPlane: {backingStore: {database: {embedded: {enabled: true, dataSource: \"mysql://u:" + chosen + "@tcp(db)/d\"}}}}\n"),
		want:   []string{"dataSource", "names a store of its own", "if this is what you want"},
	},
	{
		name: "enabled is a word", reason: "a typing error must not choose a store",
		change: config("controlPlane: {backingStore: {database: {embedded: {enabled: treu}}}}\n"),
		want:   []string{"embedded.enabled", "true or false"},
	},
	{
		name: "connector is a list", reason: "not a name",
		change: config("controlPlane: {backingStore: {database: {external: {enabled: [true]}}}}\n"),
		want:   []string{"external.enabled"},
	},
}

var badEnvironments = []badInput{
	{
		name: "no environment", reason: "a container without env",
		change: func(_ testing.TB, s *site) { clear(s.env) },
		want:   []string{"DBCONNECTOR_VCLUSTER_NAME is not set", "DBCONNECTOR_NAMESPACE is not set"},
	},
	{
		name: "many variables at once", reason: "one round of fixes must be enough", change: all(
			variable("DBCONNECTOR_VCLUSTER_NAME", "Demo_1"), variable("DBCONNECTOR_TIMEOUT", "soon"),
			variable("DBCONNECTOR_FILE_MODE", "rw-"), variable("DBCONNECTOR_CONNECTION_LIMIT", "many"),
			variable("DBCONNECTOR_LOG_LEVEL", "loud"), variable("DBCONNECTOR_OUTPUT_DIR", "out"),
			variable("DBCONNECTOR_POD_NAME", "demo-0"),
		),
		want: []string{
			`DBCONNECTOR_VCLUSTER_NAME="Demo_1"`, `DBCONNECTOR_TIMEOUT="soon"`, `DBCONNECTOR_FILE_MODE="rw-"`,
			`DBCONNECTOR_CONNECTION_LIMIT="many"`, `DBCONNECTOR_LOG_LEVEL="loud"`, `DBCONNECTOR_OUTPUT_DIR="out"`,
			"DBCONNECTOR_POD_UID",
		},
	},
	{
		name: "vCluster name missing", reason: "a guess could give one tenant another's database",
		change: variable("DBCONNECTOR_VCLUSTER_NAME", ""), want: []string{"DBCONNECTOR_VCLUSTER_NAME is not set"},
	},
	{
		name: "vCluster name of white space", reason: "a template without a value",
		change: variable("DBCONNECTOR_VCLUSTER_NAME", " "),
		want:   []string{`DBCONNECTOR_VCLUSTER_NAME=" "`, "Kubernetes name"},
	},
	{
		name: "vCluster name with a path", reason: "must not leave the record's directory",
		change: variable("DBCONNECTOR_VCLUSTER_NAME", "../../etc"), want: []string{`DBCONNECTOR_VCLUSTER_NAME="../../etc"`},
	},
	{
		name: "vCluster name with an injection", reason: "B29",
		change: variable("DBCONNECTOR_VCLUSTER_NAME", injection), want: []string{"DBCONNECTOR_VCLUSTER_NAME="},
	},
	{
		name: "vCluster name of 64 KiB", reason: "the message must stay short",
		change: variable("DBCONNECTOR_VCLUSTER_NAME", large), want: []string{"DBCONNECTOR_VCLUSTER_NAME="},
	},
	{
		name: "two lines in the vCluster name", reason: "must not become two lines of a log",
		change: variable("DBCONNECTOR_VCLUSTER_NAME", "demo\n{}"), want: []string{`DBCONNECTOR_VCLUSTER_NAME="demo\n{}"`},
	},
	{
		name: "libpq's variables", reason: "it names files that do not exist, and is meant for another program in the image",
		change: variable("PGSERVICE", "x"), want: []string{"PG variables", "remove them"},
	},
	{
		name: "namespace", reason: "not a name",
		change: variable("DBCONNECTOR_NAMESPACE", "Team A"),
		want:   []string{`DBCONNECTOR_NAMESPACE="Team A"`, "name of a namespace"},
	},
	{
		name: "connector's name", reason: "a path would be another API call",
		change: all(variable("DBCONNECTOR_CONNECTOR_DIR", ""), variable("DBCONNECTOR_CONNECTOR", "../secrets/other")),
		want:   []string{`DBCONNECTOR_CONNECTOR="../secrets/other"`},
	},
	{
		name: "connector's namespace", reason: "not a name",
		change: variable("DBCONNECTOR_CONNECTOR_NAMESPACE", "a/b"), want: []string{`DBCONNECTOR_CONNECTOR_NAMESPACE="a/b"`},
	},
	{
		name: "connector twice", reason: "which of the two is meant?",
		change: variable("DBCONNECTOR_CONNECTOR", "pg"),
		want:   []string{"DBCONNECTOR_CONNECTOR_DIR=", "together with DBCONNECTOR_CONNECTOR"},
	},
	{
		name: "connector directory relative", reason: "depends on a working directory that the operator does not see",
		change: variable("DBCONNECTOR_CONNECTOR_DIR", "connector"),
		want:   []string{`DBCONNECTOR_CONNECTOR_DIR="connector"`, "absolute path"},
	},
	{
		name: "state directory relative", reason: "as above",
		change: variable("DBCONNECTOR_STATE_DIR", "./state"),
		want:   []string{`DBCONNECTOR_STATE_DIR="./state"`, "absolute path"},
	},
	{
		name: "state directory is the output directory", reason: "the control plane would read both slots' passwords",
		change: func(_ testing.TB, s *site) { s.env["DBCONNECTOR_STATE_DIR"] = s.outputDir + "/" },
		want:   []string{"DBCONNECTOR_STATE_DIR", "DBCONNECTOR_OUTPUT_DIR"},
	},
	{
		name: "output directory is the root", reason: "a variable in a path that was empty",
		change: variable("DBCONNECTOR_OUTPUT_DIR", "/"), want: []string{`DBCONNECTOR_OUTPUT_DIR="/"`},
	},
	{
		name: "config's path relative", reason: "as above",
		change: variable("DBCONNECTOR_VCLUSTER_CONFIG", "config.yaml"),
		want:   []string{`DBCONNECTOR_VCLUSTER_CONFIG="config.yaml"`},
	},
	{
		name: "tenant UID missing", reason: "without Kubernetes nothing else tells tenants apart",
		change: variable("DBCONNECTOR_TENANT_UID", ""), want: []string{"DBCONNECTOR_TENANT_UID is not set"},
	},
	{
		name: "tenant UID of white space", reason: "it would be a tenant of its own",
		change: variable("DBCONNECTOR_TENANT_UID", " x"), want: []string{"DBCONNECTOR_TENANT_UID", "white space"},
	},
	{
		name: "tenant UID with a control character", reason: "it would not be seen",
		change: variable("DBCONNECTOR_TENANT_UID", "a\nb"), want: []string{"DBCONNECTOR_TENANT_UID", "control character"},
	},
	{
		name: "tenant UID of 64 KiB", reason: "the message must stay short",
		change: variable("DBCONNECTOR_TENANT_UID", large), want: []string{"DBCONNECTOR_TENANT_UID", "65536 bytes"},
	},
	{
		name: "record's name", reason: "not a name",
		change: variable("DBCONNECTOR_RECORD_SECRET", "My Record"), want: []string{`DBCONNECTOR_RECORD_SECRET="My Record"`},
	},
	{
		name: "file mode for all users", reason: "a password that all users can read",
		change: variable("DBCONNECTOR_FILE_MODE", "0644"),
		want:   []string{`DBCONNECTOR_FILE_MODE="0644"`, "nothing for others"},
	},
	{
		name: "file mode that is decimal", reason: "a YAML number turns into this",
		change: variable("DBCONNECTOR_FILE_MODE", "416"), want: []string{`DBCONNECTOR_FILE_MODE="416"`, "octal"},
	},
	{
		name: "timeout without a unit", reason: "seconds, or minutes?",
		change: variable("DBCONNECTOR_TIMEOUT", "30"), want: []string{`DBCONNECTOR_TIMEOUT="30"`, "from 5s to 1h"},
	},
	{name: "timeout too short", reason: "no login would fit into it", change: variable("DBCONNECTOR_TIMEOUT", "1ms"), want: []string{`DBCONNECTOR_TIMEOUT="1ms"`}},
	{
		name: "timeout too long", reason: "a pod that waits for ever",
		change: variable("DBCONNECTOR_TIMEOUT", "9999h"), want: []string{`DBCONNECTOR_TIMEOUT="9999h"`},
	},
	{
		name: "connection limit 0", reason: "PostgreSQL takes it for none, MySQL for no limit",
		change: variable("DBCONNECTOR_CONNECTION_LIMIT", "0"), want: []string{`DBCONNECTOR_CONNECTION_LIMIT="0"`},
	},
	{
		name: "connection limit beyond integers", reason: "must not wrap around",
		change: variable("DBCONNECTOR_CONNECTION_LIMIT", "18446744073709551617"),
		want:   []string{"DBCONNECTOR_CONNECTION_LIMIT="},
	},
	{
		name: "log level", reason: "not a level",
		change: variable("DBCONNECTOR_LOG_LEVEL", "trace"),
		want:   []string{`DBCONNECTOR_LOG_LEVEL="trace"`, "debug, info, warn or error"},
	},
	{
		name: "log format", reason: "not a format",
		change: variable("DBCONNECTOR_LOG_FORMAT", "logfmt"),
		want:   []string{`DBCONNECTOR_LOG_FORMAT="logfmt"`, "json or console"},
	},
	{name: "pod UID alone", reason: "an Event needs both", change: variable("DBCONNECTOR_POD_UID", "1"), want: []string{"DBCONNECTOR_POD_NAME is not set"}},
	{
		name: "pod's name", reason: "not a name",
		change: all(variable("DBCONNECTOR_POD_NAME", "a b"), variable("DBCONNECTOR_POD_UID", "a b")),
		want:   []string{`DBCONNECTOR_POD_NAME="a b"`, `DBCONNECTOR_POD_UID="a b"`},
	},
}

const embedded = "controlPlane:\n  backingStore:\n    database:\n      embedded:\n        enabled: true\n"

var manyKeys = func() string {
	var b strings.Builder
	for i := range 20000 {
		b.WriteString("k" + strconv.Itoa(i) + ":\n")
	}
	return b.String()
}()

// bomb is "billion laughs" in YAML.
var bomb = func() string {
	var b strings.Builder
	b.WriteString("a0: &a0 [x,x,x,x,x,x,x,x,x]\n")
	for i := range 9 {
		before, after := string(rune('0'+i)), string(rune('1'+i))
		b.WriteString("a" + after + ": &a" + after + " [" + strings.TrimSuffix(strings.Repeat("*a"+before+",", 9), ",") + "]\n")
	}
	return b.String()
}()

func TestBadInput(t *testing.T) {
	t.Parallel()
	for group, cases := range map[string][]badInput{
		"connector": badConnectors, "server": badServers, "record": badRecords, "output": badOutputs, "environment": badEnvironments,
	} {
		t.Run(group, func(t *testing.T) {
			t.Parallel()
			for _, test := range cases {
				t.Run(test.name, func(t *testing.T) {
					t.Parallel()
					test.check(t)
				})
			}
		})
	}
}

func (b badInput) check(t *testing.T) {
	server := b.on
	if server == nil {
		server = postgres
	}
	s := newSite(t, server.Get(t))
	limit := 60 * time.Second
	if b.waits {
		limit = 5 * time.Second
		s.env["DBCONNECTOR_TIMEOUT"] = limit.String()
	}
	b.change(t, s)
	code := b.code
	if code == 0 {
		code = human
	}
	before := recordBytes(s)

	o := s.run(t)

	t.Logf("%s: %s", b.reason, o.message())
	o.refused(t, code, b.want...)
	o.within(t, limit)
	if b.waits && o.took < limit-100*time.Millisecond {
		t.Errorf("gave up after %s, although the time limit was %s", o.took, limit)
	}
	if !b.waits && o.took > 30*time.Second {
		t.Errorf("took %s to see that waiting does not help", o.took)
	}
	secrets := []string{chosen, server.Get(t).AdminPassword}
	if password := strings.TrimSpace(s.connector["password"]); len(password) > 8 && password != injection && len(password) < 100 {
		secrets = append(secrets, password)
	}
	if len(before) > 1000 {
		secrets = append(secrets, passwords(t, decodeRecord(t, []byte(goodRecord(t, s))))...)
	}
	o.hides(t, secrets...)
	s.untouchedBut(t, b.late)
	if after := recordBytes(s); before != nil && !bytes.Equal(before, after) {
		t.Errorf("the record was changed")
	} else if before == nil && after != nil && !b.late {
		t.Errorf("a record was made: %s", after)
	}
}

func recordBytes(s *site) []byte {
	data, err := os.ReadFile(s.recordFile())
	if err != nil {
		return nil
	}
	return data
}

// untouchedBut is untouched for a refusal that may come late: objects may have been made then, a hand-over never.
func (s *site) untouchedBut(tb testing.TB, late bool) {
	tb.Helper()
	if late {
		if left := slices.DeleteFunc(names(tb, s.outputDir), func(name string) bool { return name == "filler" }); len(left) > 0 {
			tb.Errorf("left in the output directory: %q", left)
		}
		return
	}
	if s.server != nil && !reachable(s.server) {
		s = &site{outputDir: s.outputDir}
	}
	s.untouched(tb)
}

// reachable tells whether a server can be asked: not one that a case has stopped or filled, or that no client trusts.
func reachable(s *bed.Server) bool {
	busy.Lock()
	defer busy.Unlock()
	return !busy.servers[s]
}

var busy = struct {
	sync.Mutex
	servers map[*bed.Server]bool
}{servers: map[*bed.Server]bool{}}

func markBusy(s *bed.Server) *bed.Server {
	busy.Lock()
	defer busy.Unlock()
	busy.servers[s] = true
	return s
}

func stopped(engine bed.Engine, version string) func(testing.TB) *bed.Server {
	return func(tb testing.TB) *bed.Server {
		s := bed.NewServer(tb, engine, version, bed.Options{})
		require.NoError(tb, s.Pause())
		return markBusy(s)
	}
}

// full starts a server and takes all of its connections. It also takes the last one, which a server keeps for its
// superuser.
func full(engine bed.Engine, version string) func(testing.TB) *bed.Server {
	return func(tb testing.TB) *bed.Server {
		s := bed.NewServer(tb, engine, version, bed.Options{MaxConnections: 5})
		for {
			db, err := s.Admin("")
			require.NoError(tb, err)
			tb.Cleanup(func() { shut(db) })
			db.SetMaxOpenConns(1)
			if err := db.PingContext(tb.Context()); err != nil {
				if text := err.Error(); !strings.Contains(text, "53300") && !strings.Contains(text, "1040") {
					tb.Fatal(err)
				}
				return markBusy(s)
			}
		}
	}
}

func plain(engine bed.Engine, version string) func(testing.TB) *bed.Server {
	return func(tb testing.TB) *bed.Server { return bed.NewServer(tb, engine, version, bed.Options{NoTLS: true}) }
}

func strict(engine bed.Engine, version string) func(testing.TB) *bed.Server {
	return func(tb testing.TB) *bed.Server {
		return bed.NewServer(tb, engine, version, bed.Options{RequireTLS: true})
	}
}

func foreignCA(tb testing.TB, s *site) {
	ca, err := bed.NewCA()
	require.NoError(tb, err)
	s.connector["caCert"] = string(ca.PEM)
}

// mount mounts a small file system in memory.
func mount(tb testing.TB, flags uintptr, options string) string {
	tb.Helper()
	target := dir(tb)
	require.NoError(tb, syscall.Mount("tmpfs", target, "tmpfs", flags, options), "mounting a file system (the tests run as root)")
	tb.Cleanup(func() {
		assert.NoError(tb, syscall.Unmount(target, syscall.MNT_DETACH))
	})
	return target
}

// fullDisk is a directory that accepts new names, but no data.
func fullDisk(tb testing.TB) string {
	tb.Helper()
	target := mount(tb, 0, "size=4k,mode=0777")
	write(tb, filepath.Join(target, "filler"), strings.Repeat("x", 4096))
	return target
}

// TestLooksBad: input that looks wrong and is right.
func TestLooksBad(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, reason string
		on           *rig.Shared
		change       func(testing.TB, *site)
		warns        []string
		dsn          string
	}{
		{"IPv6", "an address without brackets", postgres, key("endpoint", "::1"), nil, "@[::1]:"},
		{"IPv6 in brackets", "an address with brackets", postgres, key("endpoint", "[::1]"), nil, "@[::1]:"},
		{"IPv6, mysql", "as above", mysql, key("endpoint", "::1"), nil, "@tcp([::1]:"},
		{"IPv6, mariadb", "as above", mariadb, key("endpoint", "0:0::1"), nil, "@tcp([::1]:"},
		{"name in capitals", "names have no case", postgres, key("endpoint", "LOCALHOST"), nil, "@localhost:"},
		{"odd password", "nothing in an admin's password may matter (B23)", postgres, admin("marked", odd), nil, ""},
		{"odd password, mysql", "as above", mysql, admin("marked", odd), nil, ""},
		{"odd password, mariadb", "as above", mariadb, admin("marked", odd), nil, ""},
		{"no type", "stands for mysql, as on the platform", mariadb, unset("type"), nil, "mysql://"},
		{"empty optional keys", "a template without values", mysql, all(key("type", ""), key("sslMode", "")), nil, "mysql://"},
		{"unknown key", "something for another product", postgres, key("database", "x"), []string{`key "database"`}, ""},
		{"no CA", "encrypted, not verified: said, and done", postgres, unset("caCert"), []string{`"caCert"`, "not verified"}, "sslmode=require"},
		{"verify-ca, mysql", "kine's driver knows no such mode", mysql, key("sslMode", "verify-ca"), []string{`"verify-ca"`}, ""},
		{"clear text", "it was said", postgres, all(unset("caCert"), key("sslMode", "disable")), []string{"clear text"}, "sslmode=disable"},
		{
			"unknown variable", "several programs write a pod's environment", postgres,
			variable("DBCONNECTOR_TIME_LIMIT", "1h"),
			[]string{"DBCONNECTOR_TIME_LIMIT", "ignored"},
			"",
		},
		{
			"empty variables", "set to nothing counts as not set", postgres,
			all(variable("DBCONNECTOR_TIMEOUT", ""), variable("DBCONNECTOR_CONNECTOR", ""), variable("DBCONNECTOR_LOG_FORMAT", "")),
			nil, "",
		},
		{
			"a Service called dbconnector", "the kubelet injects these variables, not the operator", postgres,
			all(
				variable("DBCONNECTOR_PORT", "tcp://10.96.0.7:5432"), variable("DBCONNECTOR_SERVICE_HOST", "10.96.0.7"),
				variable("DBCONNECTOR_SERVICE_PORT", "5432"), variable("DBCONNECTOR_PORT_5432_TCP", "tcp://10.96.0.7:5432"),
				variable("DBCONNECTOR_PORT_5432_TCP_ADDR", "10.96.0.7"), variable("DBCONNECTOR_SERVICE_PORT_PG", "5432"),
			),
			nil, "",
		},
		{
			"libpq's variables", "meant for another program in the image", postgres,
			all(
				variable("PGHOST", "10.255.255.1"), variable("PGSSLMODE", "disable"), variable("PGPASSWORD", "x"),
				variable("PGDATABASE", "nope"), variable("PGPASSFILE", "/nope"),
			),
			nil, "",
		},
		{
			"proxy variables", "a database is not reached over HTTP", postgres,
			all(variable("HTTPS_PROXY", "http://10.255.255.1:1"), variable("HTTP_PROXY", "http://10.255.255.1:1")), nil, "",
		},
		{
			"config of 256 KiB", "as large as it can be", postgres,
			config(embedded + "# " + strings.Repeat("x", 256<<10-len(embedded)-3) + "\n"),
			[]string{"dataSource is empty"},
			"",
		},
		{"long tenant UID", "as long as it may be", postgres, func(_ testing.TB, s *site) {
			s.uid += strings.Repeat("ü", (1024-len(s.uid))/2)
			s.env["DBCONNECTOR_TENANT_UID"] = s.uid
		}, nil, ""},
		{"tenant UID with SQL in it", "it is only ever hashed (B29)", postgres, func(_ testing.TB, s *site) {
			s.uid += injection
			s.env["DBCONNECTOR_TENANT_UID"] = s.uid
		}, nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, test.on.Get(t))
			test.change(t, s)
			o := s.run(t)
			o.succeeded(t)
			for _, text := range test.warns {
				if !o.said("configuration warning", text) {
					t.Errorf("%s: no warning says %q:\n%s", test.reason, text, o.stderr)
				}
			}
			dsn := read(t, s.outputDir, "dsn")
			if !strings.Contains(dsn, test.dsn) {
				t.Errorf("%s: the DSN does not hold %q", test.reason, test.dsn)
			}
			if _, password := credentialOf(t, dsn); password != "" {
				o.hides(t, password, odd, chosen, test.on.Get(t).AdminPassword)
			}
			if name, err := login(t, s.server, dsn); err != nil || name != databaseOf(s.uid) {
				t.Errorf("%s: the hand-over leads to database %q, %v; want %q", test.reason, name, err, databaseOf(s.uid))
			}
			if test.warns == nil && test.name == "a Service called dbconnector" && o.said("configuration warning", "DBCONNECTOR_") {
				t.Errorf("%s: warned of it:\n%s", test.reason, o.stderr)
			}
		})
	}
}

// TestAllVariablesBad: the faults of all variables do not fit into a termination message. The last line still fits, and
// the log has the rest.
func TestAllVariablesBad(t *testing.T) {
	t.Parallel()
	env := map[string]string{}
	for _, variable := range settings.Variables() {
		env[variable.Name] = strings.Repeat("\x01<&>\"\\\xff ü", 1000)
	}

	o := run(t, env)

	var all []string
	for name := range env {
		switch name {
		case "DBCONNECTOR_GRACE", "DBCONNECTOR_HTTP_ADDRESS", "DBCONNECTOR_ROTATION_PERIOD": // read by the other program
		default:
			all = append(all, name)
		}
	}
	o.refused(t, human, all...)
	last, _ := o.lines[len(o.lines)-1]["error"].(string)
	if !strings.HasPrefix(last, "environment: DBCONNECTOR_") || !strings.Contains(last, "cut") || len(o.lines) != 2 {
		t.Errorf("the last of %d lines is %q, want the beginning of the line before", len(o.lines), last)
	}
}
