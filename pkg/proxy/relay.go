// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// buffers are used again by later sessions.
var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// farewell is how long one side may go on after the other has ended: the server still has to hear the last words, and the client may
// still read an answer.
const farewell = 5 * time.Second

// relay passes bytes until both sides have ended, or one has failed. fromClient and fromServer are shown what is about to be passed on.
func relay(client, server net.Conn, fromClient, fromServer func([]byte)) (up, down int64, err error) {
	var wg sync.WaitGroup
	var upErr, downErr error
	wg.Go(func() { up, upErr = pass(server, client, fromClient) })
	wg.Go(func() { down, downErr = pass(client, server, fromServer) })
	wg.Wait()
	return up, down, errors.Join(upErr, downErr)
}

// pass copies until from ends. Then it ends to's side of that direction, and gives the other direction a moment.
func pass(to, from net.Conn, seen func([]byte)) (n int64, err error) {
	buffer, ok := buffers.Get().(*[]byte)
	if !ok {
		return 0, errors.New("no buffer")
	}
	defer buffers.Put(buffer)
	for {
		read, readErr := from.Read(*buffer)
		if read > 0 {
			data := (*buffer)[:read]
			seen(data)
			written, writeErr := to.Write(data)
			n += int64(written)
			if writeErr != nil {
				end(to, from)
				return n, writeErr
			}
		}
		switch {
		case errors.Is(readErr, io.EOF):
			if half, ok := to.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
				_ = to.SetReadDeadline(time.Now().Add(farewell))
				return n, nil
			}
			end(to, from)
			return n, nil
		case readErr != nil:
			end(to, from)
			return n, readErr
		}
	}
}

func end(conns ...net.Conn) {
	for _, c := range conns {
		_ = c.Close()
	}
}
