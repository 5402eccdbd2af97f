// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Image is a container image of one layer, put together from files without Docker and without a registry.
type Image struct {
	// Name is what a pod calls it, with its tag: "bed.test/pause:1".
	Name  string
	Files map[string]ImageFile // by absolute path
	// USER, ENTRYPOINT, CMD, ENV and LABEL of a Dockerfile.
	User            string
	Entrypoint, Cmd []string
	Env             []string
	Labels          map[string]string

	// archive has all of it as another builder wrote it. Then that is the image, byte by byte, and the rest tells what is
	// in it.
	archive []byte
}

// ImageFile is a file of an image. It belongs to root.
type ImageFile struct {
	// Source is the file to copy; without one, Content is what is in it.
	Source  string
	Content []byte
	// Mode are its permissions; those of Source by default, or 0644.
	Mode os.FileMode
	// Link makes it a symbolic link to there.
	Link string
}

// Size is the space that the image's files take, uncompressed.
func (i *Image) Size() (int64, error) {
	var size int64
	for name, file := range i.Files {
		if file.Source == "" {
			size += int64(len(file.Content))
			continue
		}
		info, err := os.Stat(file.Source)
		if err != nil {
			return 0, fmt.Errorf("adding up %s: %w", name, err)
		}
		size += info.Size()
	}
	return size, nil
}

// WriteArchive writes the image as `docker save` would, for `ctr images import` and `docker load`. The same files make the
// same image.
func (i *Image) WriteArchive(file string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing image %s: %w", i.Name, err)
		}
	}()
	if i.archive != nil {
		return os.WriteFile(file, i.archive, 0o600)
	}
	// The layer's hash is in the config, and its size comes before it: it is written twice.
	sum, size := sha256.New(), counter(0)
	if err := i.writeLayer(io.MultiWriter(sum, &size)); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config": map[string]any{
			"User": i.User, "Entrypoint": i.Entrypoint, "Cmd": i.Cmd, "Env": i.Env, "Labels": i.Labels,
		},
		"rootfs": map[string]any{
			"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum.Sum(nil))},
		},
	})
	if err != nil {
		return err
	}
	id := sha256.Sum256(config)
	configName := hex.EncodeToString(id[:]) + ".json"
	manifest, err := json.Marshal([]map[string]any{{
		"Config": configName, "RepoTags": []string{i.Name}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return err
	}

	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	w := tar.NewWriter(out)
	for _, part := range []struct {
		name    string
		content []byte
	}{{"manifest.json", manifest}, {configName, config}} {
		if err := w.WriteHeader(&tar.Header{Name: part.name, Size: int64(len(part.content)), Mode: 0o644}); err != nil {
			return err
		}
		if _, err := w.Write(part.content); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Name: "layer.tar", Size: int64(size), Mode: 0o644}); err != nil {
		return err
	}
	if err := i.writeLayer(w); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Close()
}

// readArchive reads an image of one platform that `docker save` or another builder wrote.
func readArchive(name string, archive []byte) (_ *Image, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("reading image %s: %w", name, err)
		}
	}()
	i := &Image{Name: name, Files: map[string]ImageFile{}, archive: archive}
	parts := map[string]ImageFile{}
	if err := readTar(archive, parts); err != nil {
		return nil, err
	}
	var manifests []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(parts["/manifest.json"].Content, &manifests); err != nil {
		return nil, err
	}
	if len(manifests) != 1 || !slices.Equal(manifests[0].RepoTags, []string{name}) {
		return nil, fmt.Errorf("the archive has %+v", manifests)
	}
	var described struct {
		Config struct {
			User                 string
			Entrypoint, Cmd, Env []string
			Labels               map[string]string
		} `json:"config"`
	}
	if err := json.Unmarshal(parts[path.Join("/", manifests[0].Config)].Content, &described); err != nil {
		return nil, err
	}
	config := described.Config
	i.User, i.Entrypoint, i.Cmd, i.Env, i.Labels = config.User, config.Entrypoint, config.Cmd, config.Env, config.Labels
	for _, layer := range manifests[0].Layers {
		if err := readTar(parts[path.Join("/", layer)].Content, i.Files); err != nil {
			return nil, err
		}
	}
	return i, nil
}

// readTar reads the files of an archive.
func readTar(archive []byte, into map[string]ImageFile) error {
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		file := ImageFile{Mode: header.FileInfo().Mode().Perm()}
		switch header.Typeflag {
		case tar.TypeDir:
			continue
		case tar.TypeSymlink:
			file.Link = header.Linkname
		case tar.TypeReg:
			if file.Content, err = io.ReadAll(r); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s is neither file nor link", header.Name)
		}
		if strings.HasPrefix(path.Base(header.Name), ".wh.") {
			return fmt.Errorf("%s takes a file away again, which the bed does not know", header.Name)
		}
		if header.Uid != 0 || header.Gid != 0 {
			return fmt.Errorf("%s belongs to %d:%d, and an image's files are root's", header.Name, header.Uid, header.Gid)
		}
		into[path.Join("/", header.Name)] = file
	}
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func (i *Image) writeLayer(out io.Writer) error {
	w := tar.NewWriter(out)
	made := map[string]bool{".": true, "/": true}
	for _, name := range slices.Sorted(maps.Keys(i.Files)) {
		// Directories above, from the top.
		var above []string
		for dir := path.Dir(name); !made[dir]; dir = path.Dir(dir) {
			above = append(above, dir)
			made[dir] = true
		}
		for _, dir := range slices.Backward(above) {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: inTar(dir) + "/", Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
				return err
			}
		}
		if err := writeFile(w, name, i.Files[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return w.Close()
}

func writeFile(w *tar.Writer, name string, file ImageFile) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: inTar(name), Size: int64(len(file.Content)), Mode: 0o644, ModTime: time.Unix(0, 0)}
	if file.Link != "" {
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, file.Link, 0o777
		return w.WriteHeader(header)
	}
	var content io.Reader = bytes.NewReader(file.Content)
	if file.Source != "" {
		f, err := os.Open(file.Source)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		header.Size, header.Mode, content = info.Size(), int64(info.Mode().Perm()), f
	}
	if file.Mode != 0 {
		header.Mode = int64(file.Mode.Perm())
	}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(w, content)
	return err
}

func inTar(name string) string { return strings.TrimPrefix(name, "/") }

// Busybox returns an image with a shell and the usual small programs, for pods of tests that look around: "bed.test/busybox:1".
func Busybox(ctx context.Context) (*Image, error) {
	dir, err := cached(ctx, items()["node"])
	if err != nil {
		return nil, err
	}
	program := filepath.Join(dir, "root/usr/bin/busybox")
	applets, err := run(ctx, "", program, "--list")
	if err != nil {
		return nil, err
	}
	image := &Image{Name: "bed.test/busybox:1", Files: map[string]ImageFile{"/bin/busybox": {Source: program}}, Entrypoint: []string{"/bin/sh"}}
	for applet := range strings.FieldsSeq(applets) {
		if applet != "busybox" {
			image.Files["/bin/"+applet] = ImageFile{Link: "busybox"}
		}
	}
	return image, nil
}
