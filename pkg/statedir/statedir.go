// SPDX-License-Identifier: Apache-2.0

// Package statedir keeps a tenant's record in a directory, for runs without Kubernetes: standalone use, a demo, tests.
//
// It keeps the same promise as the record's Secret: Update is a compare-and-swap, between goroutines and between
// processes. Where the API server compares resource versions, this takes a lock (flock on a file beside the record, which
// the kernel lets go of when its holder dies), reads, asks, and replaces the file at once. So there is no moment at which a
// kill leaves a record that cannot be read, and no lock that outlives its holder. The directory has to be on a file system
// that knows flock: any local one, and NFS from version 4.
package statedir

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"dbconnector/pkg/atomicfile"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// File is the name of the record in the directory.
const File = "record.json"

// ApplyFile is the name of the file by which an operator asks for the connector to be applied; what is in it does not matter.
const ApplyFile = "apply-connector"

const (
	// maxRecord is what a Secret may hold, which a record must fit into as well.
	maxRecord = 1 << 20

	// factsFile holds what is known beside the record (tenant.Facts).
	factsFile = "facts.json"
	maxFacts  = 4096

	lockFile = ".lock"
	variable = "DBCONNECTOR_STATE_DIR"
)

// Store is the record of one tenant in a directory. It may be used by many goroutines.
type Store struct{ dir string }

// Open makes sure that the directory is there; a new one is open to no other user.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil { //nolint:gosec // the directory is the operator's setting
		return nil, classify(dir, "creating the state directory", err)
	}
	return &Store{dir: dir}, nil
}

// Load reads the record; nil where there is none. It takes no lock: the file is only ever replaced as a whole.
func (s *Store) Load(ctx context.Context) (*tenant.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("reading the tenant's record: %w", err)
	}
	r, _, err := s.read()
	return r, err
}

// Update stores what fn makes of the record. fn gets a copy that it may change, nil where there is no record, and runs
// under the lock: it must be quick and without effects. Where it returns an error, that error is returned and nothing is
// written; nothing is written either where the record stays the same.
func (s *Store) Update(ctx context.Context, fn func(old *tenant.Record) (*tenant.Record, error)) (*tenant.Record, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := atomicfile.Sweep(s.dir); err != nil { // under the lock, so that no temporary file belongs to a process that is alive
		return nil, classify(s.dir, "writing the tenant's record", err)
	}
	old, had, err := s.read()
	if err != nil {
		return nil, err
	}
	next, err := fn(old.Clone())
	if err != nil {
		return nil, err
	}
	if next == nil {
		if old != nil {
			return nil, errors.New("writing the tenant's record: a record cannot be removed")
		}
		return nil, nil
	}
	data, err := next.Encode()
	if err != nil {
		return nil, err
	}
	if bytes.Equal(data, had) && (old == nil || next.Facts == old.Facts) {
		return old, nil
	}
	// First the facts: each was true before the record was to be written, and stays true where a kill comes in between.
	if err := s.writeFacts(next.Facts); err != nil {
		return nil, err
	}
	if _, err := atomicfile.Replace(filepath.Join(s.dir, File), data, 0o600); err != nil {
		return nil, classify(s.dir, "writing the tenant's record", err)
	}
	if old != nil && old.Apply != "" && next.Apply == "" { // and what was asked for is done only now
		if _, err := atomicfile.Remove(filepath.Join(s.dir, ApplyFile)); err != nil {
			return nil, classify(s.dir, "writing the tenant's record", err)
		}
	}
	return next.Clone(), nil
}

func (s *Store) read() (*tenant.Record, []byte, error) {
	path := filepath.Join(s.dir, File)
	data, err := atomicfile.Read(path, maxRecord+1)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, nil
	case err != nil:
		return nil, nil, classify(s.dir, "reading the tenant's record", err)
	case len(data) > maxRecord:
		return nil, nil, fault.New(fault.Refused, "file %q has more than %d bytes, so it is not a tenant's record: restore it from a backup, or move it away",
			path, maxRecord)
	}
	r, err := tenant.DecodeRecord(data)
	if err != nil {
		return nil, nil, fault.New(fault.Refused, "file %q: %w; restore it from a backup, or move it away: then the password of the tenant's database is set "+
			"again", path, err)
	}
	r.Facts = s.readFacts()
	return r, data, nil
}

// readFacts reads what lies beside the record. What is not there, or cannot be read, is not known.
func (s *Store) readFacts() tenant.Facts {
	stored := map[string]string{}
	data, err := atomicfile.Read(filepath.Join(s.dir, factsFile), maxFacts)
	if err != nil || json.Unmarshal(data, &stored) != nil {
		stored = map[string]string{}
	}
	delete(stored, tenant.ApplyFact)
	if info, err := os.Lstat(filepath.Join(s.dir, ApplyFile)); err == nil { //nolint:gosec // as above
		stored[tenant.ApplyFact] = info.ModTime().UTC().Format(time.RFC3339Nano)
	}
	return tenant.DecodeFacts(stored)
}

// writeFacts stores what lies beside the record.
func (s *Store) writeFacts(facts tenant.Facts) error {
	path := filepath.Join(s.dir, factsFile)
	stored := facts.Encode()
	delete(stored, tenant.ApplyFact)
	if _, err := os.Lstat(path); len(stored) == 0 && errors.Is(err, fs.ErrNotExist) { //nolint:gosec // as above
		return nil
	}
	data, err := json.Marshal(stored)
	if err != nil {
		return fmt.Errorf("writing the tenant's record: %w", err)
	}
	if _, err := atomicfile.Replace(path, data, 0o600); err != nil {
		return classify(s.dir, "writing the tenant's record", err)
	}
	return nil
}

// lockWait is about the time between two attempts to get the lock: short, because no program holds it for longer than a few writes to
// the disk.
const lockWait = 20 * time.Millisecond

// lock waits for the lock until ctx ends. It asks again and again instead of waiting in the kernel, because a wait in the
// kernel cannot be given up.
func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	l := flock.New(filepath.Join(s.dir, lockFile), flock.SetFlag(os.O_CREATE|os.O_RDWR)) // NFS gives no exclusive lock on what was opened to be read
	got, err := l.TryLock()
	if !got && err == nil {
		got, err = l.TryLockContext(ctx, lockWait/2+rand.N(lockWait)) //nolint:gosec // jitter, no secret
	}
	switch {
	case got:
		return func() { _ = l.Unlock() }, nil
	case ctx.Err() == nil:
		return nil, classify(s.dir, "locking the tenant's record", err)
	}
	return nil, fault.New(fault.Unavailable, "locking the tenant's record: another process holds the lock %q: %w", l.Path(), context.Cause(ctx))
}

// classify names the setting and says which errors a repetition cannot repair.
func classify(dir, doing string, err error) error {
	class, rule := fault.Unknown, ""
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		class, rule = fault.Refused, ": must be a directory that this user can write to"
	case errors.Is(err, atomicfile.ErrNotRegular):
		class, rule = fault.Refused, ": the files in it must be regular files"
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), errors.Is(err, fs.ErrExist):
		class, rule = fault.Refused, ": must be a directory"
	}
	return fault.New(class, "%s: %s=%q%s: %w", doing, variable, dir, rule, err)
}
