// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"bytes"
	"crypto/x509"
	"debug/elf"
	"encoding/pem"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
)

// mostBytes is how large the image may be, uncompressed. A larger one is not wrong, but no change should make it by accident.
const mostBytes = 40_000_000

// TestImage holds the image that the cluster's tests run, which is built from the Dockerfile, against what the documentation
// promises of it. A build of a copy of the sources, in another directory and at another time, is the same to the byte. (F30)
func TestImage(t *testing.T) {
	t.Parallel()
	image, err := Image(t.Context())
	require.NoError(t, err)
	if image.User != "65532:65532" {
		t.Errorf("it runs as %q, which the kubelet cannot tell from root, or a reader cannot tell from the manifests", image.User)
	}
	if want := []string{"/usr/local/bin/dbconnector-init"}; !slices.Equal(image.Entrypoint, want) || image.Cmd != nil {
		t.Errorf("its entry point is %q %q, want %q", image.Entrypoint, image.Cmd, want)
	}
	if len(image.Env) > 1 || len(image.Env) == 1 && !strings.HasPrefix(image.Env[0], "PATH=") { // builders set that one by themselves
		t.Errorf("it sets the environment %q", image.Env)
	}
	_, version, _ := strings.Cut(filepath.Base(image.Name), ":")
	if got := image.Labels["org.opencontainers.image.version"]; got != version {
		t.Errorf("its label says version %q, and it is built as %q", got, version)
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
		require.NoError(t, err, program)
		if libraries, err := binary.ImportedLibraries(); len(libraries) > 0 || err != nil {
			t.Errorf("%s needs libraries that are not there: %q, %v", program, libraries, err)
		}
		executable := filepath.Join(t.TempDir(), "program")
		require.NoError(t, os.WriteFile(executable, file.Content, 0o755))
		said, err := exec.CommandContext(t.Context(), executable, "-version").Output()
		if want := filepath.Base(program) + " " + version + " go"; err != nil || !strings.HasPrefix(string(said), want) {
			t.Errorf("%s says of itself %q, %v; want %q", program, said, err, want)
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
	require.NoError(t, err)
	t.Logf("%s has %.1f MB", image.Name, float64(size)/1e6)
	if size > mostBytes {
		t.Errorf("it has %d bytes, more than %d", size, mostBytes)
	}
	again := copyOfSources(t)
	second, err := imageOf(t.Context(), again, "")
	require.NoError(t, err)
	archives := [2][]byte{}
	for i, image := range []*bed.Image{image, second} {
		file := filepath.Join(t.TempDir(), "image.tar")
		require.NoError(t, image.WriteArchive(file))
		archives[i], err = os.ReadFile(file)
		require.NoError(t, err)
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two builds of the same sources differ")
	}
}

// copyOfSources copies the sources of an image.
func copyOfSources(t *testing.T) string {
	t.Helper()
	root, err := bed.Root()
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "copy")
	for _, name := range []string{"cmd", "pkg", "deploy"} {
		require.NoError(t, os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(root, name))))
	}
	for _, name := range []string{"go.mod", "go.sum", "Dockerfile", ".dockerignore"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o644)
		}
		require.NoError(t, err)
	}
	return dir
}
