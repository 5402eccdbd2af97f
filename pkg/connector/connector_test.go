// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
)

const secretPassword = "hunter2 hunter2" // inner white space is allowed

var now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// authority makes a CA certificate that ends at this time.
func authority(t testing.TB, end time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: end.AddDate(-10, 0, 0), NotAfter: end,
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// good is the data of a connector that is accepted without a warning, with these changes; nil removes a key.
func good(t testing.TB, changes map[string]any) map[string][]byte {
	t.Helper()
	data := map[string][]byte{
		"type": []byte("postgres"), "endpoint": []byte("db.example"), "port": []byte("5432"), "user": []byte("admin"),
		"password": []byte(secretPassword), "caCert": []byte(authority(t, now.AddDate(1, 0, 0))),
	}
	for key, value := range changes {
		if value == nil {
			delete(data, key)
		} else {
			data[key] = fmt.Append(nil, value)
		}
	}
	return data
}

type keys = map[string]any

func TestParse(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change   keys
		want     func(*Connector)
		warnings []string // the beginning of each
	}{
		"complete":         {nil, func(*Connector) {}, nil},
		"type is mysql":    {keys{"type": "mysql"}, func(c *Connector) { c.Server.Engine = dbserver.MySQL }, nil},
		"no type":          {keys{"type": nil}, func(c *Connector) { c.Server.Engine = dbserver.MySQL }, nil}, // the platform's rule
		"empty type":       {keys{"type": ""}, func(c *Connector) { c.Server.Engine = dbserver.MySQL }, nil},
		"upper-case host":  {keys{"endpoint": "DB.Example"}, func(*Connector) {}, nil},
		"absolute host":    {keys{"endpoint": "db.example."}, func(c *Connector) { c.Server.Host = "db.example." }, nil},
		"IPv4":             {keys{"endpoint": "10.0.0.1"}, func(c *Connector) { c.Server.Host = "10.0.0.1" }, nil},
		"IPv6":             {keys{"endpoint": "2001:DB8:0::1"}, func(c *Connector) { c.Server.Host = "2001:db8::1" }, nil},
		"IPv6 in brackets": {keys{"endpoint": "[::1]"}, func(c *Connector) { c.Server.Host = "::1" }, nil},
		"IDN in ASCII":     {keys{"endpoint": "xn--dtenbank-2za.example"}, func(c *Connector) { c.Server.Host = "xn--dtenbank-2za.example" }, nil},
		"greatest port":    {keys{"port": "65535"}, func(c *Connector) { c.Server.Port = 65535 }, nil},
		"odd password":     {keys{"password": `'"\;%{}@:/?#ü` + "`"}, func(c *Connector) { c.Password = dbserver.Password(`'"\;%{}@:/?#ü` + "`") }, nil}, // B23
		// Azure has the @
		"odd user":          {keys{"user": `ad'min"@server`}, func(c *Connector) { c.User = `ad'min"@server` }, nil},
		"empty mode":        {keys{"sslMode": ""}, func(*Connector) {}, nil},
		"require with a CA": {keys{"sslMode": "require"}, func(*Connector) {}, nil},
		"verify-ca":         {keys{"sslMode": "verify-ca"}, func(c *Connector) { c.Server.SSLMode = dbserver.VerifyCA }, nil},
		"require without CA": {
			keys{"caCert": nil},
			func(c *Connector) {
				c.Server.CA = ""
				c.Server.SSLMode = dbserver.Require
			},
			[]string{`key "caCert" is not set: the connection is encrypted`},
		},
		"system's roots": {keys{"caCert": nil, "sslMode": "verify-full"}, func(c *Connector) { c.Server.CA = "" }, nil},
		"clear text": {
			keys{"caCert": nil, "sslMode": "disable"},
			func(c *Connector) {
				c.Server.CA = ""
				c.Server.SSLMode = dbserver.Disable
			},
			[]string{`key "sslMode" "disable": passwords`},
		},
		"empty CA": {
			keys{"caCert": ""},
			func(c *Connector) {
				c.Server.CA = ""
				c.Server.SSLMode = dbserver.Require
			},
			[]string{`key "caCert" is empty`, `key "caCert" is not set`},
		},
		"unknown keys": {
			keys{"sslmode": "disable", "b\nc": "x"},
			func(*Connector) {},
			[]string{`key "b\nc" is not a key of a connector`, `key "sslmode" is not`},
		},
		"verify-ca on MySQL": {
			keys{"type": "mysql", "sslMode": "verify-ca"},
			func(c *Connector) { c.Server.Engine = dbserver.MySQL },
			[]string{`key "sslMode" "verify-ca" does not exist`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := good(t, test.change)
			want := Connector{
				Server: dbserver.Server{Engine: dbserver.Postgres, Host: "db.example", Port: 5432, SSLMode: dbserver.VerifyFull, CA: string(data["caCert"])},
				User:   "admin", Password: secretPassword, Source: "secret ns/pg",
			}
			test.want(&want)
			got, err := Parse("secret ns/pg", data, now)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(got.Warnings, test.warnings, strings.HasPrefix) {
				t.Errorf("warnings: got %q, want %q", got.Warnings, test.warnings)
			}
			got.Warnings = nil
			if fmt.Sprintf("%#v %s", got, got.Password.Reveal()) != fmt.Sprintf("%#v %s", want, want.Password.Reveal()) {
				t.Errorf("got  %#v\nwant %#v", got, want)
			}
			if _, err := got.Server.TLSConfig(); err != nil {
				t.Errorf("an accepted connector must make a TLS configuration: %v", err)
			}
		})
	}
}

// TestParseAsThePlatformDoes: the program accepts a connector that vCluster Platform accepts, or names the difference. (F16)
func TestParseAsThePlatformDoes(t *testing.T) {
	t.Parallel()
	for engine, want := range map[string]uint16{"postgres": 5432, "mysql": 3306, "": 3306} {
		for _, port := range []any{nil, ""} {
			got, err := Parse("s", good(t, keys{"type": engine, "port": port}), now)
			if err != nil || got.Server.Port != want || len(got.Warnings) > 0 {
				t.Errorf("type %q, port %v: got %d, %q, %v; want %d", engine, port, got.Server.Port, got.Warnings, err, want)
			}
		}
	}
	_, err := Parse("s", good(t, keys{"identityProvider": "aws", "password": nil}), now)
	if want := `key "identityProvider": "aws" is not supported: the admin has to log in with a password`; err == nil ||
		!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), `"password": is missing`) {
		t.Errorf("got %v, want %s", err, want)
	}
	got, err := Parse("s", good(t, keys{"identityProvider": "aws"}), now)
	if want := []string{`key "identityProvider" is ignored: the admin logs in with the password`}; err != nil || !slices.Equal(got.Warnings, want) {
		t.Errorf("got %q, %v", got.Warnings, err)
	}
	if got, err := Parse("s", good(t, keys{"identityProvider": ""}), now); err != nil || len(got.Warnings) > 0 {
		t.Errorf("got %q, %v", got.Warnings, err)
	}
}

// TestParseBundles: a bundle may have text around its certificates and blocks of other kinds; the part that is handed on is
// one that Go's library, and so kine, takes whole. (F15)
func TestParseBundles(t *testing.T) {
	t.Parallel()
	one, two := authority(t, now.AddDate(1, 0, 0)), authority(t, now.AddDate(2, 0, 0))
	broken := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}))
	other := string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte("x")}))
	for name, test := range map[string]struct {
		bundle, want string
		left         int // blocks that are left out
	}{
		"as it should be":        {one + two, one + two, 0},
		"white space":            {"\n \n" + one + "\r\n\r\n" + two + " \n", "\n \n" + one + "\r\n\r\n" + two + " \n", 0},
		"a comment at the end":   {one + two + "# of 2025\n", one + two, 0},
		"text between":           {"Root CA 1\n=========\n" + one + "\nRoot CA 2\n" + two, one + two, 0},
		"one that is unreadable": {one + broken + two, one + two, 1},
		"the first unreadable":   {broken + one, one, 1},
		"a list of revocations":  {one + other + two, one + two, 1},
		"another name":           {strings.ReplaceAll(one, "CERTIFICATE", "X509 CERTIFICATE") + two, one + two, 0},
		"headers":                {strings.Replace(one, "-----\n", "-----\nsubject: x\n\n", 1) + two, one + two, 0},
		"one indented":           {" " + one + two, two, 1},
		"the last one cut":       {one + two[:200], one, 1},
		"one in between cut":     {one + two[:200] + "\n" + one, one + one, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse("s", good(t, keys{"caCert": test.bundle}), now)
			if err != nil {
				t.Fatal(err)
			}
			if got.Server.CA != test.want {
				t.Errorf("got  %q\nwant %q", got.Server.CA, test.want)
			}
			want := fmt.Sprintf(`key "caCert" holds %d blocks that are left out`, test.left)
			if (test.left > 0) != (len(got.Warnings) == 1 && strings.HasPrefix(got.Warnings[0], want)) {
				t.Errorf("warnings %q", got.Warnings)
			}
			if pool := x509.NewCertPool(); !pool.AppendCertsFromPEM([]byte(got.Server.CA)) {
				t.Error("Go's library takes nothing of it")
			}
		})
	}
}

func TestParseOneExpiredOfTwo(t *testing.T) {
	t.Parallel()
	bundle := authority(t, now.AddDate(-1, 0, 0)) + "\n \n" + authority(t, now.AddDate(1, 0, 0)) + "\r\n"
	got, err := Parse("s", good(t, keys{"caCert": bundle}), now)
	if err != nil || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "1 certificates that have expired") {
		t.Errorf("got %q, %v", got.Warnings, err)
	}
}

func TestParseRefusals(t *testing.T) {
	t.Parallel()
	huge := strings.Repeat("x", 64<<10)
	private := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("hunter2 hunter2")}))
	broken := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("hunter2 hunter2")}))
	for name, test := range map[string]struct {
		change keys
		want   string
	}{
		"no endpoint":               {keys{"endpoint": nil}, `key "endpoint": is missing`},
		"empty endpoint":            {keys{"endpoint": ""}, `key "endpoint": is empty`},
		"endpoint white":            {keys{"endpoint": "  "}, `key "endpoint": "  " begins or ends with white space`},
		"endpoint with CRLF":        {keys{"endpoint": "db\r\n"}, `key "endpoint": "db\r\n" ends in a line break (made with echo? use printf)`},
		"endpoint with scheme":      {keys{"endpoint": "https://db"}, `key "endpoint": "https://db" has a scheme`},
		"endpoint with port":        {keys{"endpoint": "db:5432"}, `key "endpoint": "db:5432" has a port in it`},
		"endpoint IPv4 and port":    {keys{"endpoint": "10.0.0.1:5432"}, `has a port in it`},
		"endpoint IPv6 and port":    {keys{"endpoint": "[::1]:5432"}, `has a port in it`},
		"endpoint with user":        {keys{"endpoint": "admin@db"}, `has a user in it`},
		"endpoint with path":        {keys{"endpoint": "db/postgres"}, `has a path in it`},
		"endpoint with query":       {keys{"endpoint": "db?sslmode=disable"}, `has a path in it`},
		"endpoint is a list":        {keys{"endpoint": "db1,db2"}, `names more than one host`},
		"endpoint is a socket":      {keys{"endpoint": "/var/run/postgresql"}, `has a path in it`},
		"endpoint with zone":        {keys{"endpoint": "fe80::1%eth0"}, `has an IPv6 zone`},
		"endpoint IPv4 in brackets": {keys{"endpoint": "[10.0.0.1]"}, `has brackets around what is not an IPv6 address`},
		"endpoint half IPv4":        {keys{"endpoint": "10.0.0.256"}, `is neither a host name nor an IP address`},
		"endpoint IDN":              {keys{"endpoint": "dätenbank.example"}, `has letters outside ASCII`},
		"endpoint with blank":       {keys{"endpoint": "db example"}, `is neither a host name nor an IP address`},
		"endpoint with quote":       {keys{"endpoint": "db'; DROP"}, `is neither a host name nor an IP address`},
		"endpoint with line break":  {keys{"endpoint": "db\nlevel=fatal"}, `"db\nlevel=fatal" contains a control character`},
		"endpoint empty label":      {keys{"endpoint": "db..example"}, `is neither a host name nor an IP address`},
		"endpoint hyphen first":     {keys{"endpoint": "-db"}, `is neither a host name nor an IP address`},
		"endpoint label too long":   {keys{"endpoint": huge[:64]}, `is neither a host name nor an IP address`},
		"endpoint 64 KiB":           {keys{"endpoint": huge}, `has 65536 bytes, a host name has at most 253`},
		"endpoint binary":           {keys{"endpoint": "\xff\xfe\x00"}, `is not UTF-8 text`},

		"port 0":               {keys{"port": "0"}, `key "port": "0" is not a port: must be a number from 1 to 65535`},
		"port 65536":           {keys{"port": "65536"}, `"65536" is not a port`},
		"port in letters":      {keys{"port": "abc"}, `"abc" is not a port`},
		"port with plus":       {keys{"port": "+5432"}, `"+5432" is not a port`},
		"port negative":        {keys{"port": "-1"}, `"-1" is not a port`},
		"port with zero":       {keys{"port": "05432"}, `"05432" is not a port`},
		"port with fraction":   {keys{"port": "5432.0"}, `"5432.0" is not a port`},
		"port in hex":          {keys{"port": "0x1538"}, `"0x1538" is not a port`},
		"port in other digits": {keys{"port": "٥٤٣٢"}, `is not a port`},
		"port with line break": {keys{"port": "5432\n"}, `ends in a line break`},
		"port 64 KiB":          {keys{"port": huge}, `…`},

		"no user":              {keys{"user": nil}, `key "user": is missing`},
		"empty user":           {keys{"user": ""}, `key "user": is empty`},
		"user with blank":      {keys{"user": " admin"}, `key "user": " admin" begins or ends with white space`},
		"user with NUL":        {keys{"user": "ad\x00min"}, `"ad\x00min" contains a control character`},
		"user 64 KiB":          {keys{"user": huge}, `has 65536 bytes, at most 128 are allowed`},
		"no password":          {keys{"password": nil}, `key "password": is missing`},
		"empty password":       {keys{"password": ""}, `key "password": is empty`}, // B14
		"password, line break": {keys{"password": "hunter2\n"}, `key "password": ends in a line break`},
		"password, CRLF":       {keys{"password": "hunter2\r\n"}, `key "password": ends in a line break`},
		"password with blank":  {keys{"password": "hunter2 "}, `key "password": begins or ends with white space`},
		"password with escape": {keys{"password": "hunter2\x1b[0m"}, `key "password": contains a control character`},
		"password binary":      {keys{"password": "hunter2\xff"}, `key "password": is not UTF-8 text`},
		"password 64 KiB":      {keys{"password": "hunter2" + huge}, `key "password": has 65543 bytes, at most 4096 are allowed`},

		"type unknown":       {keys{"type": "oracle"}, `key "type": "oracle" is not a type: must be "postgres" or "mysql"`},
		"type upper case":    {keys{"type": "Postgres"}, `"Postgres" is not a type`},
		"type postgresql":    {keys{"type": "postgresql"}, `"postgresql" is not a type`},
		"type mariadb":       {keys{"type": "mariadb"}, `"mysql" (which stands for MariaDB, too)`},
		"type, line break":   {keys{"type": "mysql\n"}, `"mysql\n" is not a type`},
		"mode prefer":        {keys{"sslMode": "prefer"}, `key "sslMode": "prefer" would fall back to clear text`}, // B9
		"mode allow":         {keys{"sslMode": "allow"}, `"allow" would fall back to clear text`},
		"mode upper case":    {keys{"sslMode": "REQUIRE"}, `"REQUIRE" is not a mode: must be one of disable, require, verify-ca, verify-full`},
		"mode false":         {keys{"sslMode": "false"}, `"false" is not a mode`},
		"CA and clear text":  {keys{"sslMode": "disable"}, `key "sslMode": "disable" contradicts key "caCert"`},
		"CA is no PEM":       {keys{"caCert": "hunter2"}, `key "caCert": is not a PEM bundle: it holds no certificate`},
		"CA white":           {keys{"caCert": " \n"}, `key "caCert": holds white space only`},
		"CA is a path":       {keys{"caCert": "/etc/ssl/ca.pem"}, `is not a PEM bundle`},
		"CA is a key":        {keys{"caCert": private}, `holds a PEM block "EC PRIVATE KEY": only CERTIFICATE blocks belong here`},
		"CA broken":          {keys{"caCert": broken}, `block 1 cannot be read`},
		"CA of parameters":   {keys{"caCert": "-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n"}, `it is a PEM block "DH PARAMETERS"`},
		"CA cut":             {keys{"caCert": authority(t, now.AddDate(1, 0, 0))[:200]}, `is not a PEM bundle`},
		"CA, text and a key": {keys{"caCert": authority(t, now.AddDate(1, 0, 0)) + "rubbish\n" + private}, `holds a PEM block "EC PRIVATE KEY"`},
		"CA and its key":     {keys{"caCert": authority(t, now.AddDate(1, 0, 0)) + private}, `holds a PEM block "EC PRIVATE KEY"`},
		"CA expired":         {keys{"caCert": authority(t, now.Add(-time.Hour))}, `has expired on 2025-12-31T23:00:00Z`},
		"CA, both expired":   {keys{"caCert": authority(t, now.AddDate(-2, 0, 0)) + authority(t, now.Add(-time.Hour))}, `has expired on 2025-12-31T23:00:00Z`},
		"CA of a megabyte":   {keys{"caCert": strings.Repeat(huge, 16)}, `key "caCert": has more than 262144 bytes`},
		"everything missing": {
			keys{"endpoint": nil, "port": nil, "user": nil, "password": nil},
			`secret ns/pg: key "endpoint": is missing; key "user": is missing; key "password": is missing`,
		},
		"everything wrong": {
			keys{"type": "x", "endpoint": "a b", "port": "x", "user": " ", "password": "hunter2\n", "sslMode": "x", "caCert": "x"},
			`key "type": "x" is not a type: must be "postgres" or "mysql" (which stands for MariaDB, too); key "endpoint": ` +
				`"a b" is neither a host name nor an IP address; key "port": "x" is not a port: must be a number from 1 to ` +
				`65535; key "user": " " begins or ends with white space; key "password": ends in a line break (made with echo? ` +
				`use printf); key "sslMode": "x" is not a mode: must be one of disable, require, verify-ca, verify-full; key ` +
				`"caCert": is not a PEM bundle: it holds no certificate`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse("secret ns/pg", good(t, test.change), now)
			if err == nil {
				t.Fatalf("accepted: %#v", got)
			}
			text := err.Error()
			switch {
			case fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", Connector{}):
				t.Error("a refused connector must not be usable")
			case !fault.Is(err, fault.Refused):
				t.Errorf("class %v, want Refused", fault.Of(err))
			case !strings.HasPrefix(text, "secret ns/pg: ") || !strings.Contains(text, test.want):
				t.Errorf("got %q\nwant %q", text, test.want)
			case strings.Contains(text, "hunter2") || strings.Contains(text, "aHVudGVy"):
				t.Errorf("shows a secret: %q", text)
			case strings.ContainsFunc(text, unicode.IsControl) || len(text) > 2000:
				t.Errorf("not one short line: %q", text)
			}
		})
	}
}

// FuzzParse: whatever the bytes are, the answer is one line without the password, or a server that can be dialled.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"db", "::1", "[::1]:5", "a.b.", "1.2.3.4", "xn--a", "a_b", "\x00", "ü", "0x1.", "1"} {
		f.Add(s, "5432", "admin", "secret-password", "require", "")
	}
	f.Fuzz(func(t *testing.T, endpoint, port, user, password, mode, ca string) {
		got, err := Parse("s", map[string][]byte{
			"endpoint": []byte(endpoint), "port": []byte(port), "user": []byte(user), "password": []byte(password),
			"sslMode": []byte(mode), "caCert": []byte(ca),
		}, now)
		if err != nil {
			if !fault.Is(err, fault.Refused) || strings.ContainsFunc(err.Error(), unicode.IsControl) {
				t.Errorf("class %v: %q", fault.Of(err), err)
			}
			return
		}
		if host, rule := parseHost(got.Server.Host); rule != "" || host != got.Server.Host {
			t.Errorf("%q became %q, which is %q or breaks %q", endpoint, got.Server.Host, host, rule)
		}
		if strings.ContainsAny(got.Server.Host, "/@?#,[]% \"'\\") || got.Server.Port == 0 {
			t.Errorf("a host that a connection string cannot carry: %q:%d", got.Server.Host, got.Server.Port)
		}
		if _, err := got.Server.TLSConfig(); err != nil {
			t.Error(err)
		}
	})
}

func TestCheckLabel(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		labels map[string]string
		want   string
	}{
		"right":   {map[string]string{LabelKey: LabelValue, "other": "x"}, ""},
		"none":    {nil, `s: label "loft.sh/connector-type" is missing`},
		"wrong":   {map[string]string{LabelKey: "database"}, `s: label loft.sh/connector-type="database": must be "shared-database"`},
		"strange": {map[string]string{LabelKey: "\n"}, `loft.sh/connector-type="\n": must be`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := CheckLabel("s", test.labels)
			if test.want == "" && err != nil || test.want != "" && (!fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// TestReadDir reads a directory as the kubelet mounts a Secret: links into a directory that is replaced at once.
func TestReadDir(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data := good(t, nil)
	if err := os.MkdirAll(filepath.Join(dir, "..2026", "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, link := range [][2]string{{"..2026", "..data"}, {"..data/sub", "sub"}} {
		if err := os.Symlink(link[0], filepath.Join(dir, link[1])); err != nil {
			t.Fatal(err)
		}
	}
	for key, value := range data {
		if err := os.WriteFile(filepath.Join(dir, "..2026", key), value, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..data", key), filepath.Join(dir, key)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadDir(dir)
	if err != nil || !maps.EqualFunc(got, data, bytes.Equal) {
		t.Errorf("got %v, %v", slices.Collect(maps.Keys(got)), err)
	}

	if err := os.WriteFile(filepath.Join(dir, "caCert2"), bytes.Repeat([]byte("x"), maxCA+10), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err = ReadDir(dir); err != nil || len(got["caCert2"]) != maxCA+1 {
		t.Errorf("a file that is too large for any key: got %d bytes, %v", len(got["caCert2"]), err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{dir, filepath.Join(dir, "none"), filepath.Join(dir, "user")} {
		if _, err := ReadDir(bad); !fault.Is(err, fault.Refused) {
			t.Errorf("%s: got %v", bad, err)
		}
	}
}
