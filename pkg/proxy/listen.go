// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"dbconnector/pkg/fault"
)

// longestPath is the longest path that a socket can have: sun_path of unix(7) has 108 bytes, and ends with a zero byte.
const longestPath = 107

// Listen makes a unix socket with a mode. It appears under its name when it accepts connections, and takes the place of one that
// has no listener any more. Its errors are of class fault.Refused where a human must act.
func Listen(ctx context.Context, path string, mode fs.FileMode) (net.Listener, error) {
	temporary := path + ".tmp"
	if len(temporary) > longestPath {
		return nil, fault.New(fault.Refused, "the socket's path %s has %d bytes, at most %d are possible: choose a shorter directory",
			fault.Show(path), len(path), longestPath-len(".tmp"))
	}
	if live, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
		_ = live.Close()
		return nil, fault.New(fault.Refused, "the socket %s is served already: two sidecars share a directory", fault.Show(path))
	}
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("making the socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("making the socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // the next sidecar may have its own there
	if err := errors.Join(os.Chmod(temporary, mode), os.Rename(temporary, path)); err != nil {
		_ = l.Close()
		_ = os.Remove(temporary)
		return nil, fmt.Errorf("making the socket: %w", err)
	}
	return l, nil
}
