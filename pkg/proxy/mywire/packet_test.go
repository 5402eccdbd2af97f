// SPDX-License-Identifier: Apache-2.0

package mywire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// hail is a server's greeting, as MySQL and MariaDB write it.
func hail(caps uint32, extended uint32, plugin string) []byte {
	p := append([]byte{10}, "9.7.0\x00"...)
	p = binary.LittleEndian.AppendUint32(p, 4711)
	p = append(append(p, "saltsalt"...), 0)
	p = binary.LittleEndian.AppendUint16(p, uint16(caps))
	p = append(p, 255, 2, 0)
	p = binary.LittleEndian.AppendUint16(p, uint16(caps>>16))
	p = append(append(p, 21), make([]byte, 6)...)
	p = binary.LittleEndian.AppendUint32(p, extended)
	p = append(append(p, "morSaltmorSa"...), 0)
	return append(append(p, plugin...), 0)
}

const usual = longPassword | connectWithDB | protocol41 | useTLS | secure | pluginAuth | lenencAuth | deprecateEOF | attributes |
	localFiles | compress | zstd | multiFactor

// TestGreeting: the client gets the server's greeting but for what is refused, and no salt of the server's. (14, 16)
func TestGreeting(t *testing.T) {
	t.Parallel()
	const extended = 0x1d
	g, err := parseGreeting(hail(usual, extended, cachingSHA2))
	if err != nil {
		t.Fatal(err)
	}
	if g.extended() != 0 {
		t.Error("MySQL has extended capabilities")
	}
	if maria, err := parseGreeting(hail(usual&^longPassword, extended, nativePassword)); err != nil || maria.extended() != extended {
		t.Errorf("MariaDB's extended capabilities are %#x, %v", maria.extended(), err)
	}
	if g.plugin != cachingSHA2 || string(g.salt) != "saltsaltmorSaltmorSa" || g.caps != usual {
		t.Errorf("read %+v", g)
	}
	own := bytes.Repeat([]byte{9}, saltSize)
	again, err := parseGreeting(g.forClient(own))
	if err != nil {
		t.Fatal(err)
	}
	if again.caps != usual&^refused || again.plugin != nativePassword || !bytes.Equal(again.salt, own) {
		t.Errorf("the client reads %+v", again)
	}
	if !bytes.Equal(again.head, g.head) || again.middle != g.middle || again.reserved != g.reserved {
		t.Error("the client reads another version, number, character set, status or extended capabilities")
	}
	for name, p := range map[string][]byte{
		"nothing": {}, "another protocol": append([]byte{9}, hail(usual, 0, "")[1:]...), "no version": []byte("\x0a1234"),
		"cut": hail(usual, 0, "")[:30], "without plugins": hail(usual&^pluginAuth, 0, ""), "of before 4.1": hail(usual&^protocol41, 0, ""),
	} {
		if _, err := parseGreeting(p); !errors.Is(err, errGreeting) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if g, err := parseGreeting(bytes.TrimSuffix(hail(usual, 0, "x"), []byte{0})); err != nil || g.plugin != "x" {
		t.Errorf("a plugin without an end: %+v, %v", g, err)
	}
}

// reply is a client's answer; auth is with its length.
func reply(caps uint32, user, auth, rest string) []byte {
	p := binary.LittleEndian.AppendUint32(nil, caps)
	p = append(p, 0, 0, 0, 1, 45)
	p = append(append(p, make([]byte, 19)...), 0x10, 0, 0, 0) // MariaDB's extended capabilities
	return append(append(append(append(p, user...), 0), auth...), rest...)
}

// TestAnswer: what a client says of itself reaches the server, but for the user and the answer to the salt. (14, 16, 17)
func TestAnswer(t *testing.T) {
	t.Parallel()
	const offered = usual &^ refused
	const base = protocol41 | secure | pluginAuth
	for name, test := range map[string]struct {
		said     []byte
		database string
		tail     string
		err      error
	}{
		"all of it":         {reply(base|attributes|lenencAuth|connectWithDB, "u", "\x03abc", "db\x00plugin\x00attributes"), "db\x00", "attributes", nil},
		"no database":       {reply(base|lenencAuth, "u", "\x00", "plugin\x00"), "", "", nil},
		"one byte":          {reply(base|attributes|connectWithDB, "u", "\x02ab", "db\x00plugin\x00t"), "db\x00", "t", nil},
		"ended by zero":     {reply(protocol41|connectWithDB, "u", "ab\x00", "db\x00"), "db\x00", "", nil},
		"no end":            {reply(base|connectWithDB, "u", "\x00", "db"), "db\x00", "", nil},
		"long auth":         {reply(base|lenencAuth, "u", "\xfc\x2c\x01"+strings.Repeat("a", 300), "plugin\x00"), "", "", nil},
		"TLS":               {reply(base|useTLS, "", "", "")[:32], "", "", errTLS},
		"TLS, all of it":    {reply(base|useTLS, "u", "\x00", "plugin\x00"), "", "", errTLS},
		"before 4.1":        {[]byte{5, 0, 0, 0, 0}, "", "", errProtocol},
		"cut":               {reply(base, "u", "\x00", "")[:31], "", "", errAnswer},
		"no user":           {reply(base, "", "", "")[:32], "", "", errAnswer},
		"longer than it is": {reply(base, "u", "\xf0", "x"), "", "", errAnswer},
		"a length too long": {reply(base|lenencAuth, "u", "\xfe\xff\xff\xff\xff\xff\xff\xff\xff", "x"), "", "", errAnswer},
		"half a length":     {reply(base|lenencAuth, "u", "\xfd\x01", ""), "", "", errAnswer},
		"HTTP":              {[]byte("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"), "", "", errTLS},
	} {
		a, err := parseAnswer(test.said, offered, 0x1d)
		if name == "HTTP" && err != nil {
			continue // it has no form of its own, and is refused all the same
		}
		if !errors.Is(err, test.err) {
			t.Errorf("%s: %v, want %v", name, err, test.err)
			continue
		}
		if err != nil {
			continue
		}
		if string(a.database) != test.database || string(a.tail) != test.tail {
			t.Errorf("%s: database %q, tail %q", name, a.database, a.tail)
		}
		// The server reads the login in the client's place, and the rest as it was.
		sent := a.forServer("login", []byte("secret"), cachingSHA2, useTLS)
		caps := binary.LittleEndian.Uint32(sent)
		if caps&^(a.caps|secure|pluginAuth) != useTLS || caps&useTLS == 0 || !bytes.Equal(sent[4:32], test.said[4:32]) {
			t.Errorf("%s: capabilities %#x of %#x, or the fixed part changed", name, caps, a.caps)
		}
		want := "login\x00\x06secret" + test.database + cachingSHA2 + "\x00" + test.tail
		if string(sent[32:]) != want {
			t.Errorf("%s: the server reads %q, want %q", name, sent[32:], want)
		}
		if a.extended != 0x10 {
			t.Errorf("%s: extended capabilities %#x", name, a.extended)
		}
	}
	if a, err := parseAnswer(reply(base|attributes|connectWithDB, "u", "\x00", "db\x00p\x00t"), base, 0); err != nil || len(a.database)+len(a.tail) > 0 {
		t.Errorf("what was not offered is kept: %+v, %v", a, err)
	}
	if a, err := parseAnswer(reply(base|longPassword, "u", "\x00", ""), offered, 0x1d); err != nil || a.extended != 0 {
		t.Errorf("a client of MySQL has no extended capabilities: %v", err)
	}
	if a, err := parseAnswer(reply(base, "u", "\x00", ""), offered, 0x0d); err != nil || a.extended != 0 || a.fixed[28] != 0 {
		t.Errorf("an extended capability that was not offered is kept: %v", err)
	}
}

// TestReadPacket: exactly one packet is read, and none that is too long.
func TestReadPacket(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := writePacket(&out, 3, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	out.WriteString("next")
	number, payload, err := readPacket(iotest.OneByteReader(&out))
	if err != nil || number != 3 || string(payload) != "hello" || out.String() != "next" {
		t.Errorf("read %d %q, %v, and left %q", number, payload, err, out.String())
	}
	if _, _, err := readPacket(strings.NewReader("\xff\xff\xff\x00")); !errors.Is(err, errTooLong) {
		t.Errorf("a packet of 16 MiB: %v", err)
	}
	if _, _, err := readPacket(strings.NewReader("\x05\x00\x00\x00hel")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half a packet: %v", err)
	}
}

// FuzzHandshake: nothing that a server or a client says makes the proxy panic, or keep more than it was sent; and what it says itself can be
// read again.
func FuzzHandshake(f *testing.F) {
	f.Add(hail(usual, 0x1d, cachingSHA2), reply(protocol41|secure|pluginAuth|attributes|lenencAuth|connectWithDB, "u", "\x03abc", "db\x00plugin\x00attributes"))
	f.Add(hail(usual&^longPassword, 0, nativePassword), reply(protocol41, "u", "x\x00", ""))
	f.Add([]byte("\xff\x10\x04Too many connections"), []byte{5, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, fromServer, fromClient []byte) {
		offered, extended := uint32(usual)&^refused, uint32(0x1d)
		if g, err := parseGreeting(fromServer); err == nil {
			again, err := parseGreeting(g.forClient(bytes.Repeat([]byte{1}, saltSize)))
			if err != nil || again.caps&refused != 0 {
				t.Fatalf("the client cannot read its greeting: %v", err)
			}
			offered, extended = again.caps, again.extended()
		}
		_ = parseError(fromServer).Error()
		a, err := parseAnswer(fromClient, offered, extended)
		if err != nil {
			return
		}
		if len(a.tail)+len(a.database) > len(fromClient) || a.caps&^longPassword&^offered != 0 {
			t.Errorf("kept %d bytes and capabilities %#x", len(a.tail)+len(a.database), a.caps)
		}
		again, err := parseAnswer(a.forServer("login", []byte("secret"), nativePassword, 0), offered, extended)
		if err != nil || !bytes.Equal(again.database, a.database) || !bytes.Equal(again.tail, a.tail) {
			t.Errorf("the server reads %+v, %v; said was %+v", again, err, a)
		}
	})
}
