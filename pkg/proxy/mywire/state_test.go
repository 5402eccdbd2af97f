// SPDX-License-Identifier: Apache-2.0

package mywire

import (
	"bytes"
	"fmt"
	"testing"
)

func packetOf(payload string) []byte {
	var out bytes.Buffer
	_ = writePacket(&out, 1, []byte(payload)) // to memory
	return out.Bytes()
}

// The server's packets. A status of 2 is autocommit.
const (
	okIdle    = "\x00\x00\x00\x02\x00\x00\x00"
	okOpen    = "\x00\x00\x00\x03\x00\x00\x00"
	okMore    = "\x00\x01\x00\x0a\x00\x00\x00"
	okManual  = "\x00\x00\x00\x00\x00\x00\x00"
	endIdle   = "\xfe\x00\x00\x02\x00" // EOF, and a short OK of the same first byte
	endAsOK   = "\xfe\x00\x00\x02\x00\x00\x00"
	failed    = "\xff\x15\x04#28000no"
	oneColumn = "\x01"
	column    = "\x03def definition"
	textRow   = "\x01x"
)

// TestIdleByPackets: a session is idle only when the server has answered all that was asked, outside a transaction.
func TestIdleByPackets(t *testing.T) {
	t.Parallel()
	const idle, busy = true, false
	type step struct {
		client bool
		data   string
		want   bool
	}
	asks := func(data string, want bool) step { return step{true, data, want} }
	says := func(data string, want bool) step { return step{false, data, want} }
	query := "\x03SELECT 1"
	for name, test := range map[string]struct {
		caps, extended uint32
		steps          []step
	}{
		"a statement":        {0, 0, []step{asks(query, busy), says(okIdle, idle)}},
		"a transaction":      {0, 0, []step{asks(query, busy), says(okOpen, busy), asks("\x03COMMIT", busy), says(okIdle, idle)}},
		"without autocommit": {0, 0, []step{asks(query, busy), says(okManual, busy)}},
		"an error":           {0, 0, []step{asks(query, busy), says(failed, busy), asks("\x0e", busy), says(okIdle, idle)}},
		"rows": {0, 0, []step{
			asks(query, busy), says(oneColumn, busy), says(column, busy), says(endIdle, busy), says(textRow, busy), says(endIdle, idle),
		}},
		"rows, no EOF":        {deprecateEOF, 0, []step{asks(query, busy), says(oneColumn, busy), says(column, busy), says(textRow, busy), says(endAsOK, idle)}},
		"an error among rows": {deprecateEOF, 0, []step{asks(query, busy), says(oneColumn, busy), says(column, busy), says(textRow, busy), says(failed, busy)}},
		"columns known":       {deprecateEOF, cacheColumns, []step{asks(query, busy), says("\x01\x00", busy), says(textRow, busy), says(endAsOK, idle)}},
		"columns not known":   {deprecateEOF, cacheColumns, []step{asks(query, busy), says("\x01\x01", busy), says(column, busy), says(endAsOK, idle)}},
		"columns known, EOF":  {0, cacheColumns, []step{asks(query, busy), says("\x01\x00", busy), says(endIdle, busy), says(endIdle, idle)}},
		"two results":         {0, 0, []step{asks(query, busy), says(okMore, busy), says(okIdle, idle)}},
		"prepared": {0, 0, []step{
			asks("\x16SELECT ?", busy), says("\x00\x01\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00", busy),
			says(column, busy), says(endIdle, busy), says(column, busy), says(endIdle, idle),
		}},
		"prepared, no EOF": {deprecateEOF, 0, []step{
			asks("\x16SELECT ?", busy), says("\x00\x01\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00", busy), says(column, busy), says(column, idle),
		}},
		"prepared, nothing":    {0, 0, []step{asks("\x16SET x", busy), says("\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", idle)}},
		"executed":             {0, 0, []step{asks("\x17\x01\x00\x00\x00\x00\x01\x00\x00\x00", busy), says(okIdle, idle)}},
		"executed, counted":    {0, 0, []step{asks("\x17\x01\x00\x00\x00\x08\x01\x00\x00\x00", busy), says(okIdle, idle)}},
		"a cursor":             {0, 0, []step{asks("\x17\x01\x00\x00\x00\x01\x01\x00\x00\x00", busy), says(okIdle, busy)}},
		"closed":               {0, 0, []step{asks("\x19\x01\x00\x00\x00", idle)}},
		"closed in between":    {0, 0, []step{asks(query, busy), asks("\x19\x01\x00\x00\x00", busy), says(okIdle, idle)}},
		"two at once":          {0, 0, []step{asks(query, busy), asks(query, busy), says(okIdle, busy), says(okIdle, busy)}},
		"another command":      {0, 0, []step{asks("\x09", busy), says("Uptime: 1", busy), asks(query, busy), says(okIdle, busy)}},
		"a file is asked for":  {0, 0, []step{asks(query, busy), says("\xfbfile", busy), says(okIdle, busy)}},
		"not asked":            {0, 0, []step{says(failed, busy)}},
		"goodbye":              {0, 0, []step{asks("\x01", busy)}},
		"optional definitions": {optionalColumns, 0, []step{asks(query, busy), says(okIdle, busy)}},
	} {
		a := &answer{caps: test.caps, extended: test.extended}
		s := newState(a, []byte(okIdle))
		if s.idle() != (test.caps&optionalColumns == 0) {
			t.Fatalf("%s: a new session is idle: %t", name, s.idle())
		}
		for i, step := range test.steps {
			follow := s.fromServer
			if step.client {
				follow = s.fromClient
			}
			data := packetOf(step.data)
			follow(data[:3])
			if s.idle() {
				t.Errorf("%s, step %d: idle with half a packet", name, i+1)
			}
			follow(data[3:])
			if got := s.idle(); got != step.want {
				t.Errorf("%s, step %d: idle %t, want %t", name, i+1, got, step.want)
			}
		}
	}
}

// FuzzPackets: however a stream is cut, the packets are the same, and nothing makes the proxy panic.
func FuzzPackets(f *testing.F) {
	f.Add(append(packetOf(okIdle), packetOf("\x03SELECT 1")...), 3)
	f.Add([]byte("\x00\x00\x00\x00\x01\x00\x00\x01x"), 1)
	f.Add([]byte("\xff\xff\xff\x00abc"), 2)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		var whole, parts bytes.Buffer
		collect := func(into *bytes.Buffer) func([]byte, int) {
			return func(begin []byte, length int) { fmt.Fprintf(into, "%q %d\n", begin, length) }
		}
		var once, often packets
		once.next(data, collect(&whole))
		size := max(1, cut%7)
		s := newState(&answer{caps: uint32(len(data)) << 24}, []byte(okIdle))
		for rest := data; len(rest) > 0; {
			n := min(size, len(rest))
			often.next(rest[:n], collect(&parts))
			if n%2 == 0 {
				s.fromClient(rest[:n])
			} else {
				s.fromServer(rest[:n])
			}
			rest = rest[n:]
		}
		_ = s.idle()
		if whole.String() != parts.String() || once.between() != often.between() {
			t.Errorf("at once:\n%s in parts of %d:\n%s", whole.String(), size, parts.String())
		}
	})
}
