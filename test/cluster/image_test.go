// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"crypto/x509"
	"debug/elf"
	"encoding/pem"
	"maps"
	"slices"
	"strings"
	"testing"
)

// mostBytes is how large the image may be, uncompressed. A larger one is not wrong, but nobody should make it by accident.
const mostBytes = 40_000_000

// TestImage holds the image that the cluster's tests run, which is what the Dockerfile says, against what the
// documentation promises of it.
func TestImage(t *testing.T) {
	t.Parallel()
	image, err := Image(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if image.User != "65532:65532" {
		t.Errorf("it runs as %q, which the kubelet cannot tell from root or nobody can tell from the manifests", image.User)
	}
	if want := []string{"/usr/local/bin/dbconnector-init"}; !slices.Equal(image.Entrypoint, want) || image.Cmd != nil {
		t.Errorf("its entry point is %q %q, want %q", image.Entrypoint, image.Cmd, want)
	}
	if len(image.Env) > 0 {
		t.Errorf("it sets the environment %q", image.Env)
	}
	for key, value := range image.Labels {
		if value == "" || strings.Contains(value, "$") {
			t.Errorf("label %s is %q", key, value)
		}
	}
	// No shell, no package manager, nothing else.
	const bundle = "/etc/ssl/certs/ca-certificates.crt"
	programs := []string{"/usr/local/bin/dbconnector-init", "/usr/local/bin/dbconnector-rotate"}
	if got, want := slices.Sorted(maps.Keys(image.Files)), append([]string{bundle}, programs...); !slices.Equal(got, want) {
		t.Fatalf("its files are %q, want %q", got, want)
	}
	for _, program := range programs {
		file := image.Files[program]
		if file.Mode != 0o755 {
			t.Errorf("%s has mode %o", program, file.Mode)
		}
		binary, err := elf.NewFile(bytes.NewReader(file.Content))
		if err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		if libraries, err := binary.ImportedLibraries(); len(libraries) > 0 || err != nil {
			t.Errorf("%s needs libraries that are not there: %q, %v", program, libraries, err)
		}
	}
	if image.Files[bundle].Mode != 0o644 {
		t.Errorf("the CA bundle has mode %o: the programs are not root", image.Files[bundle].Mode)
	}
	certs := 0
	for rest := image.Files[bundle].Content; ; certs++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			t.Errorf("CA bundle, certificate %d: %v", certs, err)
		}
	}
	if certs < 100 {
		t.Errorf("the CA bundle has %d certificates", certs)
	}
	size, err := image.Size()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s has %.1f MB", image.Name, float64(size)/1e6)
	if size > mostBytes {
		t.Errorf("it has %d bytes, more than %d", size, mostBytes)
	}
}
