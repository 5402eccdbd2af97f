// SPDX-License-Identifier: Apache-2.0

// Package connector knows what a connector Secret means.
//
// The format is vCluster Platform's (label loft.sh/connector-type: shared-database), so that an admin who has one needs
// nothing new. It takes the Secret's data as a map and knows neither Kubernetes nor a driver. Two rules govern the
// parsing. A refusal names the Secret, the key and the rule, and all refusals come at once, because an operator who corrects a
// Secret by hand should need one round. And no value is corrected silently: a stray newline in a password is a 28P01 at
// three in the morning, so it is refused here, where it can still be named.
package connector

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"dbconnector/pkg/atomicfile"
	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
)

// LabelKey and LabelValue mark a connector Secret. Source: vCluster Platform, "Database connector".
const (
	LabelKey   = "loft.sh/connector-type"
	LabelValue = "shared-database"
)

// The keys of a connector Secret.
const (
	keyType     = "type"
	keyEndpoint = "endpoint"
	keyPort     = "port"
	keyUser     = "user"
	keyPassword = "password"
	keyCA       = "caCert"
	keySSLMode  = "sslMode"
	keyIdentity = "identityProvider" // of the platform: log in with a cloud's tokens, and without a password
)

const (
	maxName     = 253       // of a host: RFC 1035 with its dots
	maxUser     = 128       // longer than any server's (PostgreSQL 63, MySQL 32, MariaDB 128)
	maxPassword = 4096      // longer than any token that a cloud gives out as a password
	maxCA       = 256 << 10 // bytes; the largest public bundle in use, that of RDS, has 165 KiB. A Secret holds 1 MiB
)

// Connector is the content of a connector Secret: a server and the credential of its admin.
type Connector struct {
	Server   dbserver.Server
	User     string
	Password dbserver.Password
	// Source says where it came from, for messages: "secret ns/name" or `directory "path"`.
	Source string
	// Warnings are what was accepted but should be looked at. They hold no secret.
	Warnings []string
}

// CheckLabel refuses a Secret that does not carry the connector's label. source is as in Connector.Source.
func CheckLabel(source string, labels map[string]string) error {
	got, ok := labels[LabelKey]
	switch {
	case !ok:
		return fault.New(fault.Refused, "%s: label %q is missing: a connector carries %s=%s", source, LabelKey, LabelKey, LabelValue)
	case got != LabelValue:
		return fault.New(fault.Refused, "%s: label %s=%s: must be %q", source, LabelKey, fault.Show(got), LabelValue)
	}
	return nil
}

// ReadDir reads the keys of a connector from the files of a directory, as the kubelet mounts a Secret: one regular file
// a key; entries that begin with a dot belong to the kubelet's way of replacing them at once.
func ReadDir(dir string) (map[string][]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.New(fault.Refused, "reading the connector's directory: %w", err)
	}
	data := map[string][]byte{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		info, err := os.Stat(path) // follows the kubelet's symbolic link
		if err != nil {
			return nil, fault.New(fault.Refused, "reading the connector's directory: %w", err)
		}
		if !info.Mode().IsRegular() {
			continue
		}
		if data[e.Name()], err = atomicfile.Read(path, maxCA+1); err != nil {
			return nil, fault.New(fault.Refused, "reading the connector's directory: %w", err)
		}
	}
	return data, nil
}

// Parse turns the data of a connector Secret into a Connector. Its error is of class fault.Refused and lists every
// refused key; it never contains a password. now decides which certificates have expired.
func Parse(source string, data map[string][]byte, now time.Time) (Connector, error) {
	p := parser{data: data}
	c := Connector{Source: source}

	c.Server.Engine = p.engine()
	c.Server.Host = p.host()
	c.Server.Port = p.port(c.Server.Engine)
	c.User = p.text(keyUser, maxUser, fault.Show)
	if p.hasPassword() {
		c.Password = dbserver.Password(p.text(keyPassword, maxPassword, nil))
	}
	c.Server.SSLMode = p.sslMode()
	c.Server.CA = p.ca(now)

	if c.Server.CA != "" && c.Server.SSLMode == dbserver.Disable {
		p.refuse(keySSLMode, `"disable" contradicts key "caCert": remove one of them`)
	}
	switch {
	case c.Server.SSLMode == dbserver.Require && c.Server.CA != "":
		c.Server.SSLMode = dbserver.VerifyFull // who gives a CA wants the server verified
	case c.Server.SSLMode == dbserver.VerifyCA && c.Server.Engine == dbserver.MySQL:
		// kine's MySQL driver knows only "verified in full" and "not verified". Upwards is the safe direction.
		c.Server.SSLMode = dbserver.VerifyFull
		p.warn(keySSLMode, `"verify-ca" does not exist for kine on MySQL: the server is verified in full, its name included`)
	}
	switch c.Server.SSLMode {
	case dbserver.Disable:
		p.warn(keySSLMode, `"disable": passwords and data cross the network in clear text`)
	case dbserver.Require:
		p.warn(keyCA, "is not set: the connection is encrypted, but the server's identity is not verified")
	}
	known := []string{keyType, keyEndpoint, keyPort, keyUser, keyPassword, keyCA, keySSLMode, keyIdentity}
	for key := range data {
		if !slices.Contains(known, key) {
			p.warn(key, "is not a key of a connector and is ignored")
		}
	}
	slices.Sort(p.warnings)
	c.Warnings = p.warnings
	if len(p.refusals) > 0 {
		return Connector{}, fault.New(fault.Refused, "%s: %s", source, strings.Join(p.refusals, "; "))
	}
	return c, nil
}

type parser struct {
	data               map[string][]byte
	refusals, warnings []string
}

func (p *parser) refuse(key, rule string) {
	p.refusals = append(p.refusals, fmt.Sprintf("key %q: %s", key, rule))
}

func (p *parser) warn(key, rule string) {
	p.warnings = append(p.warnings, fmt.Sprintf("key %s %s", fault.Show(key), rule))
}

// text is a required value of printable characters. show renders it for an error; nil for a secret.
func (p *parser) text(key string, limit int, show func(string) string) string {
	raw, ok := p.data[key]
	value := string(raw)
	switch {
	case !ok:
		p.refuse(key, "is missing")
	case value == "":
		p.refuse(key, "is empty")
	default:
		if rule := textRule(value, limit); rule != "" {
			if show != nil {
				rule = show(value) + " " + rule
			}
			p.refuse(key, rule)
			return ""
		}
		return value
	}
	return ""
}

// textRule is the rule that a value breaks, or "".
func textRule(value string, limit int) string {
	switch {
	case len(value) > limit:
		return fmt.Sprintf("has %d bytes, at most %d are allowed", len(value), limit)
	case !utf8.ValidString(value):
		return "is not UTF-8 text"
	case strings.TrimRight(value, "\r\n") != value:
		return "ends in a line break (made with echo? use printf)"
	case strings.TrimSpace(value) != value:
		return "begins or ends with white space"
	case strings.ContainsFunc(value, unicode.IsControl):
		return "contains a control character"
	}
	return ""
}

// optional is the value of a key that may be missing or empty.
func (p *parser) optional(key string) (string, bool) {
	value := string(p.data[key])
	return value, value != ""
}

// hasPassword tells whether the admin logs in with a password, and refuses what the platform can do instead.
func (p *parser) hasPassword() bool {
	provider, ok := p.optional(keyIdentity)
	if !ok {
		return true
	}
	if _, ok := p.optional(keyPassword); ok {
		p.warn(keyIdentity, "is ignored: the admin logs in with the password")
		return true
	}
	p.refuse(keyIdentity, fault.Show(provider)+` is not supported: the admin has to log in with a password; make a login that has one, and set key "password"`)
	return false
}

func (p *parser) engine() dbserver.Engine {
	value, ok := p.optional(keyType)
	if !ok {
		return dbserver.MySQL // the platform's rule
	}
	switch e := dbserver.Engine(value); e {
	case dbserver.Postgres, dbserver.MySQL:
		return e
	}
	p.refuse(keyType, fault.Show(value)+` is not a type: must be "postgres" or "mysql" (which stands for MariaDB, too)`)
	return ""
}

func (p *parser) sslMode() dbserver.SSLMode {
	value, ok := p.optional(keySSLMode)
	if !ok {
		return dbserver.Require
	}
	switch m := dbserver.SSLMode(value); m {
	case dbserver.Disable, dbserver.Require, dbserver.VerifyCA, dbserver.VerifyFull:
		return m
	case "prefer", "allow":
		p.refuse(keySSLMode, fault.Show(value)+" would fall back to clear text: must be one of disable, require, verify-ca, verify-full")
		return ""
	}
	p.refuse(keySSLMode, fault.Show(value)+" is not a mode: must be one of disable, require, verify-ca, verify-full")
	return ""
}

var portForm = regexp.MustCompile(`^[1-9][0-9]{0,4}$`)

// The ports that are meant where none is set, as on the platform.
const (
	defaultPostgres = 5432
	defaultMySQL    = 3306
)

func (p *parser) port(engine dbserver.Engine) uint16 {
	if _, ok := p.optional(keyPort); !ok {
		if engine == dbserver.Postgres {
			return defaultPostgres
		}
		return defaultMySQL
	}
	value := p.text(keyPort, maxCA, fault.Show)
	if value == "" {
		return 0
	}
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil || !portForm.MatchString(value) {
		p.refuse(keyPort, fault.Show(value)+" is not a port: must be a number from 1 to 65535")
		return 0
	}
	return uint16(n)
}

// hostLabel is a label of a host name by RFC 1123, and the underscore that many resolvers and mesh names allow.
var hostLabel = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$`)

func (p *parser) host() string {
	value := p.text(keyEndpoint, maxCA, fault.Show)
	if value == "" {
		return ""
	}
	host, rule := parseHost(value)
	if rule != "" {
		p.refuse(keyEndpoint, fault.Show(value)+" "+rule)
	}
	return host
}

// parseHost returns a host name in lower case or an IP address in its canonical form, without brackets, or else the rule
// that value breaks.
func parseHost(value string) (host, rule string) {
	bare := value
	if strings.HasPrefix(value, "[") && strings.HasSuffix(value, "]") {
		bare = value[1 : len(value)-1]
	}
	if addr, err := netip.ParseAddr(bare); err == nil {
		if addr.Zone() != "" {
			return "", "has an IPv6 zone, which no connection string can carry"
		}
		if bare != value && !addr.Is6() {
			return "", "has brackets around what is not an IPv6 address"
		}
		return addr.String(), ""
	}
	switch {
	case len(value) > maxName:
		return "", fmt.Sprintf("has %d bytes, a host name has at most %d", len(value), maxName)
	case strings.Contains(value, "://"):
		return "", "has a scheme: must be a host name or an IP address alone"
	case strings.Contains(value, "@"):
		return "", `has a user in it: must be a host name or an IP address alone; the user goes into key "user"`
	case strings.ContainsAny(value, "/?#"):
		return "", "has a path in it: must be a host name or an IP address alone"
	case strings.Contains(value, ","):
		return "", "names more than one host: must be one host name or IP address"
	case strings.Contains(value, ":"):
		return "", `has a port in it, or is no IPv6 address: the port goes into key "port"`
	case strings.ContainsFunc(value, func(r rune) bool { return r > unicode.MaxASCII }):
		return "", "has letters outside ASCII: use the name's ASCII form (xn--…)"
	}
	labels := strings.Split(strings.TrimSuffix(value, "."), ".")
	for _, label := range labels {
		if !hostLabel.MatchString(label) {
			return "", "is neither a host name nor an IP address"
		}
	}
	if _, err := strconv.Atoi(labels[len(labels)-1]); err == nil {
		return "", "is neither a host name nor an IP address" // 10.0.0.256, 5432
	}
	return strings.ToLower(value), ""
}

func (p *parser) ca(now time.Time) string {
	value, ok := p.optional(keyCA)
	if !ok {
		if _, there := p.data[keyCA]; there {
			p.warn(keyCA, "is empty, as if it were not there")
		}
		return ""
	}
	if len(value) > maxCA {
		p.refuse(keyCA, fmt.Sprintf("has more than %d bytes", maxCA))
		return ""
	}
	certs, value := p.certificates(value)
	if len(certs) == 0 {
		return ""
	}
	expired := 0
	var last time.Time
	for _, cert := range certs {
		if now.After(cert.NotAfter) {
			expired++
		}
		if cert.NotAfter.After(last) {
			last = cert.NotAfter
		}
	}
	switch expired {
	case 0:
	case len(certs):
		p.refuse(keyCA, "has expired on "+last.UTC().Format(time.RFC3339)+": no server can be verified by it")
		return ""
	default:
		p.warn(keyCA, fmt.Sprintf("holds %d certificates that have expired", expired))
	}
	return value
}

// certificates reads a bundle as OpenSSL does: text around the blocks is for people, and what is no certificate, or one that
// cannot be read, is left out with a warning as long as there is another. kine and this program read bundles with Go's library,
// which leaves out more without a word (blocks with headers), so what is handed on holds nothing but what was read here. A bundle
// that is nothing else already stays as it is. Without a certificate a refusal is noted.
func (p *parser) certificates(value string) (certs []*x509.Certificate, bundle string) {
	var clean bytes.Buffer
	blocks, out, reason, asIs := 0, 0, "", true
	for rest := []byte(value); ; {
		text := bytes.TrimSpace(rest)
		block, next := pem.Decode(rest)
		if block == nil {
			asIs = asIs && len(text) == 0
			break
		}
		blocks++
		rest = next
		if strings.Contains(block.Type, "PRIVATE") {
			// Its content is not shown.
			p.refuse(keyCA, fmt.Sprintf("holds a PEM block %s: only CERTIFICATE blocks belong here", fault.Show(block.Type)))
			return nil, ""
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case block.Type != "CERTIFICATE" && block.Type != "X509 CERTIFICATE":
			err = fmt.Errorf("it is a PEM block %s", fault.Show(block.Type))
			fallthrough
		case err != nil:
			if out++; reason == "" {
				reason = fmt.Sprintf("block %d cannot be read: %v", blocks, err)
			}
			asIs = false
			continue
		}
		asIs = asIs && bytes.HasPrefix(text, []byte("-----BEGIN CERTIFICATE-----")) && len(block.Headers) == 0
		certs = append(certs, cert)
		clean.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes}))
	}
	if broken := strings.Count(value, "-----BEGIN ") - blocks; broken > 0 {
		asIs, out = false, out+broken
		reason = cmp.Or(reason, "a block is indented, has no end, or is no base64")
	}
	switch {
	case strings.TrimSpace(value) == "":
		p.refuse(keyCA, "holds white space only")
	case len(certs) == 0 && out == 0:
		p.refuse(keyCA, "is not a PEM bundle: it holds no certificate")
	case len(certs) == 0:
		p.refuse(keyCA, "is not a PEM bundle of certificates that can be read: "+reason)
	case out > 0:
		p.warn(keyCA, fmt.Sprintf("holds %d blocks that are left out, and %d certificates; of the former, %s", out, len(certs), reason))
	}
	if !asIs {
		value = clean.String()
	}
	return certs, value
}
