// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// TestPrivate: the copy of the record is there for the next sidecar of the pod, in a directory that is not the hand-over's; one that is
// damaged is an error, and no record.
func TestPrivate(t *testing.T) {
	t.Parallel()
	output := filepath.Join(t.TempDir(), "out") + "/"
	if _, err := OpenPrivate(output); !fault.Is(err, fault.Refused) {
		t.Errorf("without the directory: %v", err)
	}
	dir := PrivateDir(output)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := OpenPrivate(output)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := p.Read(); r != nil || err != nil {
		t.Errorf("before the first copy: %v, %v", r, err)
	}
	r := tenant.NewRecord("uid", "ns", "vc", dbserver.Server{Engine: dbserver.Postgres, Host: "h", Port: 1, SSLMode: dbserver.Require}, 10)
	for range 2 {
		r.ProvisionedAt = time.Now().UTC().Truncate(time.Second)
		r.Generation++
		if err := p.Write(r); err != nil {
			t.Fatal(err)
		}
		if got, err := p.Read(); err != nil || !got.Equal(r) {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	path := filepath.Join(dir, copyFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy is %v, %v", info, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := p.Read(); r != nil || err == nil {
		t.Errorf("of a damaged copy: %v, %v", r, err)
	}
}
