// SPDX-License-Identifier: Apache-2.0

// Package dbserver is a database server as everything else speaks of it: which engine, where, and how to talk to it. It connects to
// nothing.
package dbserver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strconv"
)

// Engine is the kind of a database server, as the connector's key "type" names it.
type Engine string

// The engines. MariaDB is MySQL here: both speak one protocol, and the server itself says which it is.
const (
	Postgres Engine = "postgres"
	MySQL    Engine = "mysql"
)

// BindingType is the engine's name in the Service Binding specification (https://github.com/servicebinding/spec).
func (e Engine) BindingType() string {
	if e == Postgres {
		return "postgresql"
	}
	return string(e)
}

// SSLMode says how a connection is secured. The words are libpq's.
type SSLMode string

// The modes. There is none that falls back to clear text.
const (
	Disable    SSLMode = "disable"     // clear text
	Require    SSLMode = "require"     // encrypted, the server not verified
	VerifyCA   SSLMode = "verify-ca"   // encrypted, its certificate verified, its name not
	VerifyFull SSLMode = "verify-full" // encrypted, certificate and name verified
)

// Server is where a database server is and how to talk to it: everything but a credential.
type Server struct {
	Engine  Engine  `json:"engine"`
	Host    string  `json:"host"` // host name or IP address, IPv6 without brackets
	Port    uint16  `json:"port"`
	SSLMode SSLMode `json:"sslMode"`
	// CA is a PEM bundle; empty means the system's roots.
	CA string `json:"ca,omitempty"`
}

// Address is host:port, IPv6 in brackets.
func (s Server) Address() string { return net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port))) }

// TLSConfig is the client's side of TLS; nil where the mode is Disable.
// It fails on a CA bundle without a certificate and on a mode that does not exist: the zero value is not clear text.
func (s Server) TLSConfig() (*tls.Config, error) {
	if s.SSLMode == Disable {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.Host}
	if s.CA != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM([]byte(s.CA)) {
			return nil, errors.New("the CA bundle holds no certificate")
		}
	}
	switch s.SSLMode {
	case VerifyFull:
	case Require:
		config.InsecureSkipVerify = true // the admin's choice; the connector's parser warns of it
	case VerifyCA:
		roots := config.RootCAs
		config.InsecureSkipVerify = true // the chain is verified below, the name on purpose not
		config.VerifyConnection = func(state tls.ConnectionState) error {
			options := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
			for _, cert := range state.PeerCertificates[1:] {
				options.Intermediates.AddCert(cert)
			}
			if _, err := state.PeerCertificates[0].Verify(options); err != nil {
				// As the library itself reports it, so that it is recognised.
				return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
			}
			return nil
		}
	default:
		return nil, fmt.Errorf("sslMode %q is not a mode", s.SSLMode)
	}
	return config, nil
}

// Password is a secret. It prints as stars, so that no error and no dump of a struct by %v shows it by accident; JSON keeps it,
// for the record must, and so does zap.Any of a struct, which is JSON: a struct that holds one is never logged. Reveal is
// the one way to its content, and easy to search for.
type Password string

// String hides the password. It also serves %v, and zap.Stringer.
func (Password) String() string { return "***" }

// GoString hides the password from %#v.
func (Password) GoString() string { return "***" }

// Reveal is the password itself.
func (p Password) Reveal() string { return string(p) }
