// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDialGivesUp: a server whose packets vanish is given up after half a minute, by a session that waits and by one that is idle. (35)
func TestDialGivesUp(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	conn, err := Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.(syscall.Conn).SyscallConn() //nolint:forcetypeassert // it is one of TCP
	if err != nil {
		t.Fatal(err)
	}
	value := func(level, option int) (v int) {
		t.Helper()
		var failed error
		if err := raw.Control(func(fd uintptr) { v, failed = unix.GetsockoptInt(int(fd), level, option) }); err != nil || failed != nil {
			t.Fatal(err, failed)
		}
		return v
	}
	seconds := int(silence.Seconds())
	if got := value(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); got != seconds*1000 {
		t.Errorf("TCP_USER_TIMEOUT is %d ms, want %d s", got, seconds)
	}
	idle, interval, count := value(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE), value(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL), value(unix.IPPROTO_TCP, unix.TCP_KEEPCNT)
	if value(unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 1 || idle+interval*count != seconds {
		t.Errorf("an idle session asks after %d s, %d times every %d s: want %d s in all", idle, count, interval, seconds)
	}
}
