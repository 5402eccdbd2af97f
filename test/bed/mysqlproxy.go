// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
)

// ForbidMySQL puts a proxy before a MySQL or MariaDB server that answers each query with a word in it as an error and does not pass it
// on. It is for statements that servers forbid that cannot be had here, such as those of a cluster. It must be spoken to in clear
// text. It returns the proxy's port; the proxy ends with the test.
func ForbidMySQL(tb testing.TB, target, word string, number uint16, message string) int {
	tb.Helper()
	refusal := binary.LittleEndian.AppendUint16([]byte{0xff}, number)
	refusal = append(append(refusal, "#HY000"...), message...)
	port, err := freePort()
	if err != nil {
		tb.Fatal(err)
	}
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		tb.Fatal(err)
	}
	var all sync.WaitGroup
	ctx, end := context.WithCancel(context.Background())
	tb.Cleanup(func() {
		_ = l.Close()
		end()
		all.Wait()
	})
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed
			}
			all.Go(func() { forbid(ctx, client, target, word, refusal) })
		}
	})
	return port
}

// forbid serves one connection. The client speaks in packets, of which a query is the first of its exchange (number 0).
func forbid(ctx context.Context, client net.Conn, target, word string, refusal []byte) {
	defer client.Close()
	server, err := new(net.Dialer).DialContext(ctx, "tcp", target)
	if err != nil {
		return
	}
	defer server.Close()
	defer context.AfterFunc(ctx, func() { _, _ = client.Close(), server.Close() })()
	go func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	}()
	for {
		packet := make([]byte, 4)
		if _, err := io.ReadFull(client, packet); err != nil {
			return
		}
		packet = append(packet, make([]byte, length(packet))...)
		if _, err := io.ReadFull(client, packet[4:]); err != nil {
			return
		}
		const query = 3
		to, out := server, packet
		if packet[3] == 0 && len(packet) > 4 && packet[4] == query && bytes.Contains(packet, []byte(word)) {
			to, out = client, append([]byte{byte(len(refusal)), byte(len(refusal) >> 8), 0, 1}, refusal...)
		}
		if _, err := to.Write(out); err != nil {
			return
		}
	}
}

func length(head []byte) int { return int(head[0]) | int(head[1])<<8 | int(head[2])<<16 }
