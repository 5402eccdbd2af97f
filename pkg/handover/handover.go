// SPDX-License-Identifier: Apache-2.0

// Package handover writes what a control plane starts from: its DSN, the CA it verifies the server with, and a vCluster
// config that carries both.
//
// The three files are a projection of the tenant's record: they can be made again at any time, and the program that wrote them last
// wrote what the record said. Each is replaced at once. They are written in the order ca.crt, config.yaml, dsn, and what is
// no longer wanted is removed last, so that a program that finds a dsn finds all that belongs to it.
package handover

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"dbconnector/pkg/atomicfile"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
	"dbconnector/pkg/vclusterconfig"
)

// The names of the files.
const (
	DSNFile    = "dsn"
	CAFile     = "ca.crt"
	ConfigFile = "config.yaml"
)

const variable = "DBCONNECTOR_OUTPUT_DIR"

// Writer writes the hand-over of one control plane. It is for one goroutine.
type Writer struct {
	dir    string
	mode   fs.FileMode
	config *vclusterconfig.Config
	dsn    func(*tenant.Record) (string, error)
	socket bool
}

// New makes the writer of the hand-over in dir, whose files have this mode. config is the vCluster's, read once, because the control
// plane does not read it a second time either; nil for none. dsn makes kine's endpoint of a record; socket says that it leads to a socket
// beside the control plane, and not to the server. New refuses, before anything is done, what could not be written at the end, and leaves
// no trace in dir. Its errors are of class fault.Refused.
func New(dir string, mode fs.FileMode, config *vclusterconfig.Config, dsn func(*tenant.Record) (string, error), socket bool) (*Writer, error) {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, fault.New(fault.Refused, "%s=%s: must be a directory that exists: a volume which the control plane mounts, too", variable, fault.Show(dir))
	}
	const write, enter = 2, 1 // access(2)
	if err := syscall.Access(dir, write|enter); err != nil {
		return nil, classify(dir, &fs.PathError{Op: "access", Path: dir, Err: err})
	}
	if config != nil {
		if _, err := config.Edit("", ""); err != nil {
			return nil, err
		}
	}
	return &Writer{dir: dir, mode: mode, config: config, dsn: dsn, socket: socket}, nil
}

// Written says whether a hand-over is there: written by this program or by one before it in the same pod.
func (w *Writer) Written() bool {
	info, err := os.Lstat(filepath.Join(w.dir, DSNFile))
	return err == nil && info.Mode().IsRegular()
}

// Replaces says whether Write would replace a DSN by another one. Where it cannot tell, it says yes.
func (w *Writer) Replaces(r *tenant.Record) bool {
	dsn, failed := w.dsn(r)
	old, err := atomicfile.Read(filepath.Join(w.dir, DSNFile), len(dsn)+1)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	return err != nil || failed != nil || string(old) != dsn
}

// Write brings the hand-over to the record's state. A file that has its content and mode is not touched.
func (w *Writer) Write(r *tenant.Record) error {
	dsn, err := w.dsn(r)
	if err != nil {
		return err
	}
	content := files{dsn: dsn, ca: r.Server.CA}
	if w.socket {
		content.ca = "" // TLS is the sidecar's
	}
	if w.config != nil {
		ca := ""
		if content.ca != "" {
			ca = filepath.Join(w.dir, CAFile)
		}
		if content.config, err = w.config.Edit(dsn, ca); err != nil {
			return err
		}
	}
	_, err = write(w.dir, w.mode, content)
	return err
}

// files is the content of a hand-over.
type files struct {
	dsn    string
	ca     string // a PEM bundle; empty: no file
	config []byte // the edited vCluster config; nil: no file
}

// write brings the directory to this state and tells whether anything in it changed. A file that has its content and mode
// is not touched. The directory has to exist: it is a volume, and a directory made in its place would be a part of the
// container that no other container sees.
func write(dir string, mode fs.FileMode, want files) (changed bool, err error) {
	if want.dsn == "" || strings.ContainsAny(want.dsn, "\r\n\x00") {
		return false, errors.New("writing the hand-over: the DSN is not one line") // its content is a secret
	}
	unlock, err := enter(dir)
	if err != nil {
		return false, classify(dir, err)
	}
	defer unlock()

	type file struct {
		name    string
		content []byte
		wanted  bool
	}
	ca := file{CAFile, []byte(want.ca), want.ca != ""}
	config := file{ConfigFile, want.config, want.config != nil}
	dsn := file{DSNFile, []byte(want.dsn), true}
	for _, f := range []file{ca, config, dsn} {
		if !f.wanted {
			continue
		}
		did, err := replace(filepath.Join(dir, f.name), f.content, mode)
		if err != nil {
			return changed, classify(dir, err)
		}
		changed = changed || did
	}
	for _, f := range []file{config, ca} {
		if f.wanted {
			continue
		}
		did, err := atomicfile.Remove(filepath.Join(dir, f.name))
		if err != nil {
			return changed, classify(dir, err)
		}
		changed = changed || did
	}
	return changed, nil
}

// lockPatience is how long a writer waits for a sweeper of ours, which is done in milliseconds.
const lockPatience = time.Second

// enter announces a writer in dir and, where it is the only one, removes what killed ones left behind. Writers share a lock
// on the directory itself; who sweeps needs it alone, so that no temporary file is swept away under its owner.
//
// The lock is a courtesy among our own programs. Any container that mounts the directory may hold it for ever, and a wait in
// the kernel knows neither time limit nor SIGTERM: so it is asked for a while, and then done without. A file system without
// flock, a lock that another program holds, or a file that cannot be removed costs the sweeping, and nothing else.
func enter(dir string) (leave func(), err error) {
	d, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY, 0) //nolint:gosec // the directory is the operator's setting
	if err != nil {
		return nil, err
	}
	if syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		_ = atomicfile.Sweep(dir)
	}
	const least = 5 * time.Millisecond
	for end := time.Now().Add(lockPatience); time.Now().Before(end); {
		if err := syscall.Flock(int(d.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			break
		}
		<-time.After(least + rand.N(least)) //nolint:gosec // jitter, no secret
	}
	return func() { _ = d.Close() }, nil // lets go of the lock, too
}

// replace is atomicfile.Replace for a writer that may be without the lock: a sweeper may take its temporary file, and then
// it makes another.
func replace(path string, content []byte, mode fs.FileMode) (changed bool, err error) {
	for range 3 {
		if changed, err = atomicfile.Replace(path, content, mode); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return changed, err
}

// classify names the setting and the rule, and says which errors a repetition cannot repair.
func classify(dir string, err error) error {
	class, rule := fault.Unknown, ""
	switch {
	case errors.Is(err, syscall.EBUSY):
		class, rule = fault.Refused, ": its files must not be mounted one by one (subPath): they could not be replaced"
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		class, rule = fault.Refused, ": must be a directory that this user can write to"
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		class, rule = fault.Refused, ": must be a directory, and the hand-over in it regular files"
	case errors.Is(err, fs.ErrNotExist):
		class, rule = fault.Refused, ": must exist: mount an emptyDir there"
	case errors.Is(err, syscall.ENOSPC):
		rule = ": is full"
	}
	return fault.New(class, "writing the hand-over: %s=%s%s: %w", variable, fault.Show(dir), rule, err)
}
