// SPDX-License-Identifier: Apache-2.0

package pgwire

import (
	"encoding/binary"
	"sync"
)

// frames follows a stream of messages: a type, a length of four bytes that counts itself, and a body. It keeps no bodies.
type frames struct {
	head [5]byte
	have int // bytes of head
	// length is the body's, and rest how much of it is still to come.
	length, rest uint32
	first        byte // of the body; 0 as long as none has come
}

// next calls message for each message that is complete, with its type and the first byte of its body (0 where it has none).
func (f *frames) next(data []byte, message func(kind, first byte)) {
	for len(data) > 0 {
		if f.have < len(f.head) {
			n := copy(f.head[f.have:], data)
			f.have, data = f.have+n, data[n:]
			if f.have < len(f.head) {
				return
			}
			f.rest = max(binary.BigEndian.Uint32(f.head[1:]), 4) - 4 // below 4 is the peer's mistake, and the other one ends the session
			f.length, f.first = f.rest, 0
		}
		if n := min(uint32(len(data)), f.rest); n > 0 { //nolint:gosec // a buffer's length
			if f.rest == f.length {
				f.first = data[0]
			}
			f.rest, data = f.rest-n, data[n:]
		}
		if f.rest == 0 {
			f.have = 0
			message(f.head[0], f.first)
		}
	}
}

// between says whether the stream is between two messages.
func (f *frames) between() bool { return f.have == 0 }

// state knows what is under way in a session, by its messages.
type state struct {
	mu             sync.Mutex
	client, server frames
	// pending is how many ReadyForQuery the server owes. loose: the client has sent something since the last message that asks for one.
	pending int
	loose   bool
	status  byte // of the last ReadyForQuery
}

func (s *state) fromClient(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client.next(data, func(kind, _ byte) {
		switch kind {
		case 'Q', 'S', 'F': // Query, Sync, FunctionCall
			s.pending++
			s.loose = false
		default:
			s.loose = true
		}
	})
}

func (s *state) fromServer(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server.next(data, func(kind, first byte) {
		if kind == 'Z' { // ReadyForQuery
			s.pending--
			s.status = first
		}
	})
}

// idle says whether the session is outside a transaction, and nothing is under way in either direction.
func (s *state) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pending == 0 && !s.loose && s.status == 'I' && s.client.between() && s.server.between()
}
