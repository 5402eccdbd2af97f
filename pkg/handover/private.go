// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"dbconnector/pkg/atomicfile"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// Private is the directory of a copy of the record that init leaves for the sidecar of the same pod, and that the control plane does
// not mount: a sidecar that starts again serves from it while the API server is away.
type Private struct{ dir string }

// PrivateDir is where the copy lies that goes with the hand-over in a directory.
func PrivateDir(output string) string { return filepath.Clean(output) + "-private" }

const (
	copyFile = "record.json"
	maxCopy  = 1 << 20 // what a Secret may hold
)

// OpenPrivate finds the directory. Its error is of class fault.Refused.
func OpenPrivate(output string) (Private, error) {
	dir := PrivateDir(output)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return Private{}, fault.New(fault.Refused, "DBCONNECTOR_ADOPT=socket: %s must be a directory that exists: an emptyDir in memory which init and the sidecar "+
			"mount, and the control plane does not", fault.Show(dir))
	}
	return Private{dir}, nil
}

// Write makes the copy that of a record. It is for one goroutine, and one program at a time.
func (p Private) Write(r *tenant.Record) error {
	data, err := r.Encode()
	if err != nil {
		return err
	}
	_ = atomicfile.Sweep(p.dir) // what a killed program left behind
	if _, err := atomicfile.Replace(filepath.Join(p.dir, copyFile), data, 0o600); err != nil {
		class := fault.Unknown
		if errors.Is(err, fs.ErrPermission) {
			class = fault.Refused
		}
		return fault.New(class, "writing the sidecar's copy of the record: %w", err)
	}
	return nil
}

// Read gives the copy; nil where there is none.
func (p Private) Read() (*tenant.Record, error) {
	data, err := atomicfile.Read(filepath.Join(p.dir, copyFile), maxCopy)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the sidecar's copy of the record: %w", err)
	}
	r, err := tenant.DecodeRecord(data)
	if err != nil {
		return nil, fmt.Errorf("the sidecar's copy of the record: %w", err)
	}
	return r, nil
}
