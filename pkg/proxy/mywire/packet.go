// SPDX-License-Identifier: Apache-2.0

// Package mywire is MySQL's and MariaDB's protocol for package proxy: the handshake, rewritten so that both sides agree on the same
// capabilities, and the state that later packets tell. The names and numbers are those of the servers' documentation, "Client/Server
// Protocol".
package mywire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"dbconnector/pkg/fault"
)

// longest is the length of the longest packet before a session that is read from either side. Attributes of the connection are the
// longest part of one, with 64 KiB at most (performance_schema_session_connect_attrs_size).
const longest = 128 << 10

const headSize = 4 // of a packet: three bytes of length, one of its number

var errTooLong = errors.New("a packet of the handshake is too long")

// readPacket reads one packet, to the byte.
func readPacket(r io.Reader) (number byte, payload []byte, err error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	length := int(head[0]) | int(head[1])<<8 | int(head[2])<<16
	if length > longest {
		return 0, nil, errTooLong
	}
	payload = make([]byte, length)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, err
	}
	return head[3], payload, nil
}

func writePacket(w io.Writer, number byte, payload []byte) error {
	packet := make([]byte, 0, headSize+len(payload))
	packet = append(packet, byte(len(payload)), byte(len(payload)>>8), byte(len(payload)>>16), number) //nolint:gosec // its three bytes
	_, err := w.Write(append(packet, payload...))
	return err
}

// The capabilities that matter here.
const (
	longPassword    = 1 << 0 // MariaDB leaves it out to say what it is
	connectWithDB   = 1 << 3
	compress        = 1 << 5
	localFiles      = 1 << 7
	protocol41      = 1 << 9
	useTLS          = 1 << 11
	secure          = 1 << 15
	pluginAuth      = 1 << 19
	attributes      = 1 << 20
	lenencAuth      = 1 << 21
	deprecateEOF    = 1 << 24
	optionalColumns = 1 << 25
	zstd            = 1 << 26
	multiFactor     = 1 << 28
	extensions      = 1<<29 | 1<<30 | 1<<31 // of clients among themselves, and of old MariaDB

	// refused is what no session through the proxy has: TLS is the proxy's, compressed packets could not be followed, LOCAL INFILE
	// is no business of a control plane's, and the password is the only factor.
	refused = useTLS | compress | zstd | localFiles | multiFactor | extensions

	cacheColumns = 1 << 4 // MariaDB's, of the extended ones
)

// The first byte of a packet of the server's.
const (
	okPacket     = 0x00
	moreData     = 0x01
	nextFactor   = 0x02
	switchPacket = 0xfe
	errPacket    = 0xff
)

// greeting is the server's first packet.
type greeting struct {
	head     []byte // the version of the protocol, the server's, and the connection's number
	caps     uint32
	middle   [3]byte  // character set and status
	reserved [10]byte // the last four are MariaDB's extended capabilities
	salt     []byte
	plugin   string
}

var errGreeting = errors.New("the server does not speak MySQL's protocol")

func parseGreeting(p []byte) (*greeting, error) {
	end := bytes.IndexByte(p, 0)
	if len(p) == 0 || p[0] != 10 || end < 0 {
		return nil, errGreeting
	}
	// connection number, salt, filler, capabilities, character set and status, capabilities, length of the salt, reserved
	const fixed = 4 + 8 + 1 + 2 + 3 + 2 + 1 + 10
	rest := p[end+1:]
	if len(rest) < fixed+12 {
		return nil, errGreeting
	}
	g := &greeting{head: p[:end+1+4], salt: bytes.Clone(rest[4:12])}
	rest = rest[13:]
	g.caps = uint32(binary.LittleEndian.Uint16(rest)) | uint32(binary.LittleEndian.Uint16(rest[5:]))<<16
	copy(g.middle[:], rest[2:5])
	length := max(13, int(rest[7])-8)
	copy(g.reserved[:], rest[8:18])
	rest = rest[18:]
	if g.caps&(protocol41|secure|pluginAuth) != protocol41|secure|pluginAuth {
		return nil, errGreeting
	}
	length = min(length, len(rest))
	g.salt = append(g.salt, bytes.TrimSuffix(rest[:length], []byte{0})...)
	g.plugin = string(bytes.TrimRight(rest[length:], "\x00"))
	return g, nil
}

// forClient is the greeting that the client gets: the server's, without what is refused, and with a salt of ours and a plugin that
// every client knows. The client has no password, and its answer does not matter.
func (g *greeting) forClient(salt []byte) []byte {
	caps := g.caps &^ refused
	out := bytes.Clone(g.head)
	out = append(append(out, salt[:8]...), 0)
	out = binary.LittleEndian.AppendUint16(out, uint16(caps&0xffff))
	out = append(out, g.middle[:]...)
	out = binary.LittleEndian.AppendUint16(out, uint16(caps>>16))
	out = append(append(out, saltSize+1), g.reserved[:]...)
	out = append(append(out, salt[8:saltSize]...), 0)
	return append(append(out, nativePassword...), 0)
}

const saltSize = 20

// answer is the client's HandshakeResponse41.
type answer struct {
	fixed    [32]byte // capabilities, the longest packet, character set, filler with MariaDB's extended capabilities
	caps     uint32
	extended uint32 // MariaDB's
	database []byte // with its end; empty for none
	tail     []byte // what comes after the plugin's name: attributes
}

var (
	errAnswer   = errors.New("the client does not speak MySQL's protocol")
	errTLS      = errors.New("the client asks for TLS, which is the sidecar's on this socket: use tls=false")
	errProtocol = errors.New("the client's protocol is older than MySQL 4.1's")
)

// extended are MariaDB's extended capabilities; 0 for MySQL.
func (g *greeting) extended() uint32 {
	if g.caps&longPassword != 0 {
		return 0
	}
	return binary.LittleEndian.Uint32(g.reserved[6:])
}

// parseAnswer reads what a client says to a greeting that offers some capabilities, and some extended ones.
func parseAnswer(p []byte, offered, extended uint32) (*answer, error) {
	const fixed = 32
	if len(p) >= 2 && binary.LittleEndian.Uint16(p)&protocol41 == 0 {
		return nil, errProtocol
	}
	if len(p) < fixed {
		return nil, errAnswer
	}
	caps := binary.LittleEndian.Uint32(p)
	if caps&useTLS != 0 {
		return nil, errTLS
	}
	a := &answer{caps: caps & (offered | longPassword)} // with that, a client says what it is, whatever the server is
	copy(a.fixed[:], p)
	if caps&longPassword == 0 { // else the server does not look there
		const at = 28
		a.extended = binary.LittleEndian.Uint32(a.fixed[at:]) & extended
		binary.LittleEndian.PutUint32(a.fixed[at:], a.extended)
	}
	rest := p[fixed:]
	_, rest, ok := cutZero(rest) // the user
	if !ok {
		return nil, errAnswer
	}
	switch { // what it answers to the salt
	case caps&lenencAuth != 0:
		length, n := lenenc(rest)
		if n == 0 || length > longest || int(length) > len(rest)-n {
			return nil, errAnswer
		}
		rest = rest[n+int(length):]
	case caps&secure != 0:
		if len(rest) == 0 || int(rest[0]) > len(rest)-1 {
			return nil, errAnswer
		}
		rest = rest[1+int(rest[0]):]
	default:
		if _, rest, ok = cutZero(rest); !ok {
			return nil, errAnswer
		}
	}
	if caps&connectWithDB != 0 {
		var name []byte
		name, rest, _ = cutZero(rest) // some clients leave the last end out
		if a.caps&connectWithDB != 0 {
			a.database = append(bytes.Clone(name), 0)
		}
	}
	if caps&pluginAuth != 0 {
		_, rest, _ = cutZero(rest)
	}
	if a.caps&attributes != 0 {
		a.tail = bytes.Clone(rest)
	}
	return a, nil
}

// forServer is what the server gets in place of the client's answer.
func (a *answer) forServer(user string, auth []byte, plugin string, more uint32) []byte {
	caps := a.caps | secure | pluginAuth | more
	out := binary.LittleEndian.AppendUint32(nil, caps)
	out = append(append(append(out, a.fixed[4:]...), user...), 0)
	out = append(out, byte(len(auth))) //nolint:gosec // a hash, a signature or one of our passwords: less than 251
	out = append(append(out, auth...), a.database...)
	return append(append(append(out, plugin...), 0), a.tail...)
}

func cutZero(p []byte) (before, after []byte, found bool) { return bytes.Cut(p, []byte{0}) }

// lenenc reads a length-encoded integer, and how many bytes it has; 0 where it is not whole, or none.
func lenenc(p []byte) (value uint64, n int) {
	if len(p) == 0 {
		return 0, 0
	}
	size := map[byte]int{0xfc: 2, 0xfd: 3, 0xfe: 8}[p[0]]
	switch {
	case p[0] < 0xfb:
		return uint64(p[0]), 1
	case size == 0 || len(p) < 1+size:
		return 0, 0
	}
	for i := size; i > 0; i-- {
		value = value<<8 | uint64(p[i])
	}
	return value, 1 + size
}

// serverError is an ERR packet.
type serverError struct {
	code    uint16
	payload []byte
	words   string
}

func (e *serverError) Error() string {
	return fmt.Sprintf("the server says: %s (error %d)", e.words, e.code)
}

func parseError(payload []byte) *serverError {
	e := &serverError{payload: payload}
	if len(payload) >= 3 {
		e.code = binary.LittleEndian.Uint16(payload[1:])
		words := payload[3:]
		if len(words) >= 6 && words[0] == '#' {
			words = words[6:]
		}
		e.words = fault.Words(string(words))
	}
	return e
}

// newError is an ERR packet of ours. In the place of a greeting there is no SQLSTATE yet.
func newError(code uint16, state, words string, early bool) []byte {
	out := binary.LittleEndian.AppendUint16([]byte{errPacket}, code)
	if !early {
		out = append(append(out, '#'), state...)
	}
	return append(out, words...)
}
