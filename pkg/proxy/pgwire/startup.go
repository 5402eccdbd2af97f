// SPDX-License-Identifier: Apache-2.0

// Package pgwire is PostgreSQL's protocol for package proxy: the messages with which a session begins, and the state that later ones tell.
// The names and numbers are those of PostgreSQL's documentation, "Frontend/Backend Protocol".
package pgwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"
)

// The codes of the packets that have no type.
const (
	cancelCode = 80877102
	sslCode    = 80877103
	gssCode    = 80877104
	protocol3  = 3 // the major version
)

// longest is the length of the longest packet before a session: PostgreSQL's own limit (MAX_STARTUP_PACKET_LENGTH).
const longest = 10000

// hello is what a client wants.
type hello struct {
	// cancel: another session's statement is to be cancelled. The rest is empty then.
	cancel *pgproto3.CancelRequest

	database string
	params   map[string]string // without user, database and protocol options
	// unknown are protocol options that no version knows; newer says that a later minor version was asked for.
	unknown []string
	newer   bool
}

// errors of a hello. PostgreSQL closes the connection without a word on the first, and so does the proxy.
var (
	errNoHello  = errors.New("the client does not speak PostgreSQL's protocol")
	errProtocol = errors.New("the client asks for a version of the protocol that is not 3")
)

// readHello reads what a client says first, to the byte, and declines to encrypt the socket.
func readHello(client io.ReadWriter) (*hello, error) {
	declined := map[uint32]bool{}
	for {
		code, body, err := readPacket(client)
		if err != nil {
			return nil, err
		}
		switch {
		case (code == sslCode || code == gssCode) && !declined[code] && len(body) == 0:
			declined[code] = true
			if _, err := client.Write([]byte{'N'}); err != nil {
				return nil, fmt.Errorf("declining encryption: %w", err)
			}
		case code == cancelCode && len(body) > 4 && len(body) <= 4+256:
			return &hello{cancel: &pgproto3.CancelRequest{ProcessID: binary.BigEndian.Uint32(body), SecretKey: body[4:]}}, nil
		case code>>16 == protocol3:
			return parseStartup(code&0xffff, body)
		case code == sslCode || code == gssCode || code == cancelCode:
			return nil, errNoHello
		default:
			return nil, errProtocol
		}
	}
}

// readPacket reads a packet without a type.
func readPacket(r io.Reader) (code uint32, body []byte, err error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, fmt.Errorf("reading the client's first packet: %w", err)
	}
	length := binary.BigEndian.Uint32(head[:])
	if length < uint32(len(head)) || length > longest {
		return 0, nil, errNoHello
	}
	body = make([]byte, length-uint32(len(head)))
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, fmt.Errorf("reading the client's first packet: %w", err)
	}
	return binary.BigEndian.Uint32(head[4:]), body, nil
}

// parseStartup reads the parameters of a StartupMessage: names and values, each ended by a zero byte, and one zero byte more.
func parseStartup(minor uint32, body []byte) (*hello, error) {
	h := &hello{params: map[string]string{}, newer: minor > 0}
	for {
		name, rest, found := bytes.Cut(body, []byte{0})
		if !found {
			return nil, errNoHello
		}
		if len(name) == 0 {
			if len(rest) > 0 {
				return nil, errNoHello
			}
			return h, nil
		}
		value, rest, found := bytes.Cut(rest, []byte{0})
		if !found {
			return nil, errNoHello
		}
		body = rest
		switch key := string(name); {
		case key == "user": // the login is the proxy's business
		case key == "database":
			h.database = string(value)
		case strings.HasPrefix(key, "_pq_."):
			h.unknown = append(h.unknown, key)
		default:
			h.params[key] = string(value)
		}
	}
}
