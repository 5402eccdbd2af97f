// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// caBundle is where Debian has its CA bundle.
const caBundle = "/etc/ssl/certs/ca-certificates.crt"

// The directories of the machine that the build stage sees. Both caches are the machine's own, so that a build compiles only
// what has changed, and asks no one for a module.
const (
	builderGo      = "/usr/local/go"
	builderModules = "/machine/modules"
	builderCache   = "/machine/build"
)

// BuildDockerfile builds the image of a Dockerfile with buildah, as a release is built, but for the base image of the build
// stage. That cannot be pulled without a registry: a shell, the machine's Go and a CA bundle stand for it, under its name.
// Nothing is pulled, and no module is downloaded within. The same sources make the same image.
//
// It needs root, because the build stage runs in a root file system of its own, and Debian's package buildah, which it installs.
func BuildDockerfile(ctx context.Context, file, name string, args map[string]string) (_ *Image, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("building image %s from %s: %w", name, file, err)
		}
	}()
	if os.Geteuid() != 0 {
		return nil, errors.New("only root can build images here")
	}
	if err := need(ctx, func() bool { _, err := exec.LookPath("buildah"); return err == nil }, "buildah"); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	base := regexp.MustCompile(`(?m)^FROM (?:--\S+ )?(golang:\S+) AS `).FindSubmatch(text)
	if base == nil {
		return nil, errors.New("no build stage is FROM golang")
	}
	dir, remove, err := TempDir("image")
	if err != nil {
		return nil, err
	}
	defer remove()
	// buildah's layers and all that it writes are in the directory, so that builds side by side do not meet.
	buildah := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "buildah", append([]string{
			"--root", filepath.Join(dir, "storage"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs",
		}, args...)...)
		cmd.Env = append(os.Environ(), "TMPDIR="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET} // with nothing in it: a build asks no one
		_, err := output(cmd)
		return err
	}
	if err := baseImage(ctx, dir, "docker.io/library/"+string(base[1])); err != nil {
		return nil, err
	}
	if err := buildah("pull", "--quiet", "docker-archive:"+filepath.Join(dir, "base.tar")); err != nil {
		return nil, err
	}
	mounts, err := builderMounts(ctx, filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	build := append([]string{
		// Platform: without it, buildah 1.28 leaves TARGETOS and TARGETARCH empty.
		"build", "--isolation", "chroot", "--pull-never", "--platform", "linux/" + runtime.GOARCH,
		"--timestamp", "0", "--identity-label=false", "--file", file, "--tag", name,
	}, mounts...)
	for _, key := range slices.Sorted(maps.Keys(args)) {
		build = append(build, "--build-arg", key+"="+args[key])
	}
	if err := buildah(append(build, filepath.Dir(file))...); err != nil {
		return nil, err
	}
	archive := filepath.Join(dir, "image.tar")
	if err := buildah("push", "--quiet", name, "docker-archive:"+archive+":"+name); err != nil {
		return nil, err
	}
	content, err := os.ReadFile(archive)
	if err != nil {
		return nil, err
	}
	return readArchive(name, content)
}

// baseImage writes the archive base.tar, which stands for the build stage's base image.
func baseImage(ctx context.Context, dir, name string) error {
	image, err := Busybox(ctx)
	if err != nil {
		return err
	}
	bundle, err := debianCABundle(ctx)
	if err != nil {
		return err
	}
	image.Name = name
	image.Files[caBundle] = ImageFile{Content: bundle}
	image.Files["/tmp/.keep"] = ImageFile{} // go build wants the directory
	image.Env = []string{
		"PATH=" + builderGo + "/bin:/bin", "GOROOT=" + builderGo, "GOTOOLCHAIN=local", "GOPROXY=off",
		"GOMODCACHE=" + builderModules, "GOCACHE=" + builderCache,
	}
	return image.WriteArchive(filepath.Join(dir, "base.tar"))
}

// builderMounts are buildah's options that show the build stage the machine's Go, with the modules of a source tree.
func builderMounts(ctx context.Context, source string) ([]string, error) {
	if _, err := run(ctx, source, "go", "mod", "download"); err != nil {
		return nil, err
	}
	out, err := run(ctx, source, "go", "env", "GOROOT", "GOMODCACHE", "GOCACHE")
	if err != nil {
		return nil, err
	}
	dirs := strings.Fields(out)
	if len(dirs) != 3 {
		return nil, fmt.Errorf("go env says %q", out)
	}
	return []string{
		"--volume", dirs[0] + ":" + builderGo + ":ro", "--volume", dirs[1] + ":" + builderModules, "--volume", dirs[2] + ":" + builderCache,
	}, nil
}

// debianCABundle returns what Debian's update-ca-certificates makes where no certificate was added or taken away.
func debianCABundle(ctx context.Context) ([]byte, error) {
	dir, err := cached(ctx, items()["node"])
	if err != nil {
		return nil, err
	}
	var bundle []byte
	err = filepath.WalkDir(filepath.Join(dir, "root/usr/share/ca-certificates"), func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(name) != ".crt" {
			return err
		}
		cert, err := os.ReadFile(name)
		bundle = append(bundle, cert...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("collecting CA certificates: %w", err)
	}
	return bundle, nil
}
