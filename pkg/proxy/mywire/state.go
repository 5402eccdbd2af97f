// SPDX-License-Identifier: Apache-2.0

package mywire

import (
	"encoding/binary"
	"sync"
)

// packets follows a stream of packets. It keeps the beginning of each.
type packets struct {
	head    [headSize]byte
	have    int // bytes of head
	rest    int // of the payload, still to come
	length  int
	begin   [32]byte // of the payload
	kept    int
	goesOn  bool // this one continues the one before, which was as long as a packet can be
	partial bool // of a packet, some has come
}

const fullPacket = 1<<24 - 1

// next calls packet for each packet that is complete, with the beginning of its payload and its length; of one in several parts, with the first.
func (f *packets) next(data []byte, packet func(begin []byte, length int)) {
	for len(data) > 0 {
		if f.have < headSize {
			n := copy(f.head[f.have:], data)
			f.have, data, f.partial = f.have+n, data[n:], true
			if f.have < headSize {
				return
			}
			f.length = int(f.head[0]) | int(f.head[1])<<8 | int(f.head[2])<<16
			f.rest = f.length
			if !f.goesOn {
				f.kept = 0
			}
		}
		n := min(len(data), f.rest)
		if !f.goesOn {
			f.kept += copy(f.begin[f.kept:], data[:n])
		}
		f.rest, data = f.rest-n, data[n:]
		if f.rest > 0 {
			return
		}
		f.have = 0
		first := !f.goesOn
		if f.goesOn = f.length == fullPacket; f.goesOn {
			if first {
				packet(f.begin[:f.kept], f.length)
			}
			continue
		}
		f.partial = false
		if first {
			packet(f.begin[:f.kept], f.length)
		}
	}
}

// between says whether the stream is between two packets.
func (f *packets) between() bool { return !f.partial && !f.goesOn }

// phase is what the server is to send next.
type phase int

const (
	ready    phase = iota // nothing: the last answer was complete
	result                // OK, an error, or the number of columns
	columns               // so many definitions, and their end
	rows                  // rows, and their end
	simple                // OK, an end, or an error
	prepared              // what a statement has
	parts                 // so many definitions of it
	unknown               // it cannot be told any more
)

// The commands whose answers are followed.
const (
	comQuit         = 0x01
	comInitDB       = 0x02
	comQuery        = 0x03
	comPing         = 0x0e
	comPrepare      = 0x16
	comExecute      = 0x17
	comSendLongData = 0x18
	comCloseStmt    = 0x19
	comResetStmt    = 0x1a
	comSetOption    = 0x1b
	comReset        = 0x1f
)

// Flags of a status.
const (
	inTransaction         = 0x0001
	autocommit            = 0x0002
	moreResults           = 0x0008
	cursorExists          = 0x0040
	inReadOnlyTransaction = 0x2000
)

// state knows what is under way in a session, by its packets. What is not certain counts as under way.
type state struct {
	mu             sync.Mutex
	client, server packets
	caps, extended uint32
	phase          phase
	left           int // definitions
	status         uint16
	known          bool // the status
}

// newState begins after the login, with the server's OK packet.
func newState(a *answer, ok []byte) *state {
	s := &state{caps: a.caps, extended: a.extended}
	if a.caps&optionalColumns != 0 {
		s.phase = unknown
	}
	s.took(ok)
	return s
}

func (s *state) fromClient(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client.next(data, s.command)
}

func (s *state) fromServer(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server.next(data, s.said)
}

// idle says whether the session is outside a transaction, and nothing is under way in either direction.
func (s *state) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	const flags = inTransaction | inReadOnlyTransaction | autocommit
	return s.phase == ready && s.known && s.status&flags == autocommit && s.client.between() && s.server.between()
}

// command follows what the client sends.
func (s *state) command(begin []byte, _ int) {
	if len(begin) == 0 || s.phase != ready { // a client that does not wait for the answer
		if len(begin) == 0 || begin[0] != comCloseStmt && begin[0] != comSendLongData {
			s.phase = unknown
		}
		return
	}
	switch begin[0] {
	case comCloseStmt, comSendLongData: // have no answer
	case comQuery:
		s.phase = result
	case comExecute:
		const flags, withCount = 5, 8 // of the parameters; the other flags open a cursor, whose rows are asked for later
		if s.phase = result; len(begin) <= flags || begin[flags]&^withCount != 0 {
			s.phase = unknown
		}
	case comPrepare:
		s.phase = prepared
	case comPing, comInitDB, comReset, comResetStmt, comSetOption:
		s.phase = simple
	default: // comQuit among them
		s.phase = unknown
	}
}

// said follows what the server sends.
func (s *state) said(begin []byte, length int) {
	if len(begin) == 0 || s.phase == ready || s.phase == unknown {
		s.phase = unknown
		return
	}
	if begin[0] == errPacket && s.phase != columns && s.phase != parts {
		s.phase, s.known = ready, false // what became of the transaction, the next status says
		return
	}
	switch s.phase {
	case result:
		s.header(begin)
	case columns:
		if s.left--; s.left == 0 {
			s.phase = rows
		}
	case rows:
		end := begin[0] == switchPacket && (length < 9 || s.caps&deprecateEOF != 0 && length < fullPacket)
		switch {
		case !end:
		case s.caps&deprecateEOF != 0:
			s.took(begin)
		default:
			s.tookEnd(begin)
		}
	case simple:
		if begin[0] == switchPacket && s.caps&deprecateEOF == 0 {
			s.tookEnd(begin)
			return
		}
		s.took(begin)
	case prepared:
		s.statement(begin)
	case parts:
		if s.left--; s.left == 0 {
			s.phase = ready
		}
	}
}

// header is the first packet of a result.
func (s *state) header(begin []byte) {
	if begin[0] == okPacket {
		s.took(begin)
		return
	}
	count, n := lenenc(begin)
	const most = 1 << 16 // more than any table has
	if n == 0 || count == 0 || count > most {
		s.phase = unknown
		return
	}
	s.left = int(count)
	if s.extended&cacheColumns != 0 {
		if len(begin) <= n {
			s.phase = unknown
			return
		}
		if begin[n] == 0 {
			s.left = 0
		}
	}
	if s.caps&deprecateEOF == 0 {
		s.left++
	}
	if s.phase = columns; s.left == 0 {
		s.phase = rows
	}
}

// statement is the first packet of the answer to comPrepare.
func (s *state) statement(begin []byte) {
	const fixed = 9
	if begin[0] != okPacket || len(begin) < fixed {
		s.phase = unknown
		return
	}
	s.left = 0
	for _, at := range []int{5, 7} { // columns, parameters
		if n := int(binary.LittleEndian.Uint16(begin[at:])); n > 0 {
			if s.left += n; s.caps&deprecateEOF == 0 {
				s.left++
			}
		}
	}
	if s.phase = parts; s.left == 0 {
		s.phase = ready
	}
}

// took reads an OK packet, of whatever first byte, at the end of a result.
func (s *state) took(begin []byte) {
	rest := begin[min(1, len(begin)):]
	for range 2 { // affected rows, the last id
		_, n := lenenc(rest)
		if n == 0 {
			s.phase = unknown
			return
		}
		rest = rest[n:]
	}
	if len(rest) < 2 {
		s.phase = unknown
		return
	}
	s.ended(binary.LittleEndian.Uint16(rest))
}

// tookEnd reads an EOF packet at the end of rows.
func (s *state) tookEnd(begin []byte) {
	const at = 3
	if len(begin) < at+2 {
		s.phase = unknown
		return
	}
	s.ended(binary.LittleEndian.Uint16(begin[at:]))
}

func (s *state) ended(status uint16) {
	if s.phase == unknown {
		return
	}
	s.status, s.known, s.phase = status, true, ready
	switch {
	case status&cursorExists != 0:
		s.phase = unknown
	case status&moreResults != 0:
		s.phase = result
	}
}
