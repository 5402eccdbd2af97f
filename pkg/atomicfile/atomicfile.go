// SPDX-License-Identifier: Apache-2.0

// Package atomicfile replaces a file at once: a reader sees the old content or the new one, never a part of either, and
// after a crash one of the two is on the disk.
//
// The directories are shared with programs that are not ours, and these may put anything there under any name. So nothing
// here waits for a file: a FIFO is not opened for good, and no more is read than was asked for.
//
// The steps are the usual ones: (1) a temporary file in the same directory, since rename does not cross file systems;
// (2) its mode; (3) its content; (4) fsync of the file, or a crash could leave the new name on empty blocks; (5) rename;
// (6) fsync of the directory, or the rename itself could be lost. A process that is killed between (1) and (5) leaves the
// temporary file behind, which holds what the file was to hold: here that is a password, so Sweep removes it.
package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// tempPrefix begins the name of every temporary file of ours: with a dot, so that who lists the directory passes it over.
const tempPrefix = ".dbconnector-tmp-"

// Replace gives the file at path this content and mode. A file that has both already is not touched, so that who watches
// it is not woken for nothing.
func Replace(path string, content []byte, mode fs.FileMode) (changed bool, err error) {
	same, err := is(path, content, mode)
	if err != nil || same {
		return false, err
	}
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, tempPrefix+"*") // (1), with mode 0600
	if err != nil {
		return false, fmt.Errorf("creating a temporary file: %w", err)
	}
	defer func() {
		if err != nil {
			_ = temp.Close()
			_ = os.Remove(temp.Name())
		}
	}()
	if err = temp.Chmod(mode); err != nil { // (2): explicitly, for the umask has no say in it
		return false, fmt.Errorf("setting the mode of a temporary file: %w", err)
	}
	if _, err = temp.Write(content); err != nil { // (3)
		return false, fmt.Errorf("writing a temporary file: %w", err)
	}
	if err = temp.Sync(); err != nil { // (4)
		return false, fmt.Errorf("writing a temporary file to disk: %w", err)
	}
	if err = temp.Close(); err != nil {
		return false, fmt.Errorf("closing a temporary file: %w", err)
	}
	if err = os.Rename(temp.Name(), path); err != nil { // (5)
		return false, fmt.Errorf("replacing a file: %w", err)
	}
	return true, syncDir(dir) // (6)
}

// Remove removes the file at path. One that is not there is success: the removal may have been cut short before.
func Remove(path string) (changed bool, err error) {
	err = os.Remove(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("removing a file: %w", err)
	}
	return true, syncDir(filepath.Dir(path))
}

// ErrNotRegular is what Read says of a FIFO, a socket or a device.
var ErrNotRegular = errors.New("not a regular file")

// Read reads the regular file at path, which may be a symbolic link to one, and at most limit bytes of it: what is longer
// is cut there, which the caller sees by its length. It does not wait for the writer of a FIFO.
func Read(path string, limit int) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) //nolint:gosec // the caller's path
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // it was only read
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, &fs.PathError{Op: "read", Path: path, Err: syscall.EISDIR}
	case !info.Mode().IsRegular():
		return nil, &fs.PathError{Op: "read", Path: path, Err: ErrNotRegular}
	}
	return io.ReadAll(io.LimitReader(file, int64(limit)))
}

// maxEntries is how many entries of a directory Sweep looks at: others can fill it faster than it can be read.
const maxEntries = 10000

// Sweep removes the temporary files that killed processes left in dir. The caller makes sure that no other program is at work
// in dir at that moment. What has such a name and is no file is not ours.
func Sweep(dir string) error {
	d, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY, 0) //nolint:gosec // the caller's path
	if err != nil {
		return fmt.Errorf("looking for temporary files: %w", err)
	}
	defer d.Close() //nolint:errcheck // it was only read
	entries, err := d.ReadDir(maxEntries)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("looking for temporary files: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) || e.IsDir() {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing a temporary file: %w", err)
		}
	}
	return nil
}

// is tells whether path is a regular file with this content and mode. What is there and is no regular file (a symbolic
// link) is replaced like any other content.
func is(path string, content []byte, mode fs.FileMode) (bool, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("looking at a file: %w", err)
	case info.IsDir():
		return false, &fs.PathError{Op: "replace", Path: path, Err: syscall.EISDIR}
	case !info.Mode().IsRegular() || info.Mode().Perm() != mode.Perm() || info.Size() != int64(len(content)):
		return false, nil
	}
	have, err := Read(path, len(content)+1)
	if err != nil {
		return false, nil //nolint:nilerr // what cannot be read may still be replaced
	}
	return bytes.Equal(have, content), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // the caller's path
	if err != nil {
		return fmt.Errorf("opening a directory: %w", err)
	}
	err = d.Sync()
	if closing := d.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return fmt.Errorf("writing a directory to disk: %w", err)
	}
	return nil
}
