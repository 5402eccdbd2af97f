// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// BuildDockerfile makes the image that a Dockerfile describes, without Docker: the tested image cannot differ from the
// shipped one in a user, an entry point or a file, because there is no second description of it.
//
// It knows as much of Dockerfiles as ours needs, and refuses what it does not know: a build stage in which `go build`
// makes programs of what was copied there, and a last stage from scratch. The Go compiler is the machine's. What comes out
// of the build stage's base image can only be the CA bundle, which is Debian's in both.
func BuildDockerfile(ctx context.Context, file, name string, args map[string]string) (_ *Image, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("building image %s from %s: %w", name, file, err)
		}
	}()
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	dir, remove, err := TempDir("image")
	if err != nil {
		return nil, err
	}
	defer remove()
	b := &dockerfile{
		context: filepath.Dir(file), args: map[string]string{}, src: filepath.Join(dir, "src"), out: filepath.Join(dir, "out"), tmp: dir,
		image: &Image{Name: name, Files: map[string]ImageFile{}, Labels: map[string]string{}},
	}
	for _, dir := range []string{b.src, b.out} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
	}
	maps.Copy(b.args, args)
	for _, line := range instructions(string(text)) {
		instruction, rest, _ := strings.Cut(line, " ")
		if err := b.do(ctx, instruction, strings.TrimSpace(rest)); err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
	}
	if b.stage != "scratch" {
		return nil, errors.New("the last stage is not from scratch")
	}
	// The files move in with the image, so that the directory can go.
	for name, file := range b.image.Files {
		if file.Content, err = os.ReadFile(file.Source); err != nil {
			return nil, err
		}
		b.image.Files[name] = ImageFile{Content: file.Content, Mode: file.Mode}
	}
	return b.image, nil
}

// dockerfile is a build under way.
type dockerfile struct {
	context string            // where the Dockerfile is
	src     string            // stands for the build stage's WORKDIR: it has what was copied there, and nothing else
	out     string            // stands for the build stage's /out
	tmp     string            // has both
	args    map[string]string // of the build
	known   []string          // arguments that this stage has declared
	stage   string            // what it is from
	env     []string          // of the build stage
	image   *Image
}

// instructions returns a Dockerfile's instructions, each on one line, without comments.
func instructions(text string) []string {
	var list []string
	var open strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		part, more := strings.CutSuffix(line, "\\")
		open.WriteString(part)
		if !more {
			list = append(list, open.String())
			open.Reset()
		}
	}
	return list
}

// buildOut is where the build stage puts its programs.
const buildOut = "/out/"

func (b *dockerfile) do(ctx context.Context, instruction, rest string) error {
	scratch := b.stage == "scratch"
	switch {
	case instruction == "FROM":
		field := strings.Fields(regexp.MustCompile(`--\w+=\S+`).ReplaceAllString(rest, ""))
		b.stage, b.known = field[0], nil
		return nil
	case instruction == "ARG":
		key, value, _ := strings.Cut(rest, "=")
		b.known = append(b.known, key)
		if _, given := b.args[key]; !given {
			b.args[key] = value
		}
		return nil

	case !scratch && instruction == "WORKDIR":
		return nil // src stands for it
	case !scratch && instruction == "COPY":
		return b.copySources(strings.Fields(rest))
	case !scratch && instruction == "ENV":
		for assignment := range strings.FieldsSeq(b.expand(rest)) {
			if !strings.HasSuffix(assignment, "=") { // TARGETOS and the like: this machine's
				b.env = append(b.env, assignment)
			}
		}
		return nil
	case !scratch && instruction == "RUN":
		return b.runBuild(ctx, rest)

	case scratch && instruction == "LABEL":
		for _, m := range regexp.MustCompile(`([\w.-]+)="([^"]*)"`).FindAllStringSubmatch(rest, -1) {
			b.image.Labels[m[1]] = b.expand(m[2])
		}
		return nil
	case scratch && instruction == "COPY":
		return b.copy(ctx, strings.Fields(rest))
	case scratch && instruction == "USER":
		b.image.User = rest
		return nil
	case scratch && instruction == "ENTRYPOINT":
		return json.Unmarshal([]byte(rest), &b.image.Entrypoint)
	case scratch && instruction == "CMD":
		return json.Unmarshal([]byte(rest), &b.image.Cmd)
	}
	return errors.New("the bed does not know this instruction")
}

// expand replaces the arguments that the stage has declared.
func (b *dockerfile) expand(text string) string {
	return os.Expand(text, func(name string) string {
		if slices.Contains(b.known, name) {
			return b.args[name]
		}
		return ""
	})
}

// copySources copies files and directories of the context into the build stage, as far as go build reads them.
func (b *dockerfile) copySources(field []string) error {
	if len(field) < 2 {
		return errors.New("the bed copies sources to a destination")
	}
	to := field[len(field)-1]
	for _, from := range field[:len(field)-1] {
		source := filepath.Join(b.context, from)
		info, err := os.Stat(source)
		switch {
		case err != nil:
		case info.IsDir(): // its content, as COPY has it
			err = os.CopyFS(filepath.Join(b.src, to), os.DirFS(source))
		case to == "./":
			var content []byte
			if content, err = os.ReadFile(source); err == nil {
				err = os.WriteFile(filepath.Join(b.src, filepath.Base(from)), content, 0o600)
			}
		default:
			err = errors.New("the bed copies files to ./ only")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// runBuild runs what a RUN of the build stage compiles.
func (b *dockerfile) runBuild(ctx context.Context, script string) error {
	script = regexp.MustCompile(`--mount=\S+`).ReplaceAllString(script, "")
	for command := range strings.SplitSeq(script, "&&") {
		command = strings.TrimSpace(command)
		if command == "go mod download" {
			continue // the machine has its own cache
		}
		if !strings.HasPrefix(command, "go build ") {
			return errors.New("the bed runs nothing but go build")
		}
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", strings.ReplaceAll(command, buildOut, b.out+"/"))
		cmd.Dir = b.src
		// What go build leaves there when it is interrupted, goes with the rest.
		cmd.Env = append(append(os.Environ(), "GOWORK=off", "GOTMPDIR="+b.tmp), b.env...)
		if _, err := output(cmd); err != nil {
			return err
		}
	}
	return nil
}

// caBundle is where Debian has its CA bundle.
const caBundle = "/etc/ssl/certs/ca-certificates.crt"

// copy copies from the build stage into the image.
func (b *dockerfile) copy(ctx context.Context, field []string) error {
	if len(field) != 3 || field[0] != "--from=build" {
		return errors.New("the bed copies one path from the stage build")
	}
	from, to := field[1], field[2]
	if from == caBundle {
		file := filepath.Join(b.tmp, "ca")
		if err := writeCABundle(ctx, file); err != nil {
			return err
		}
		b.image.Files[to] = ImageFile{Source: file, Mode: 0o644}
		return nil
	}
	if from != buildOut || !strings.HasSuffix(to, "/") {
		return errors.New("the bed copies the CA bundle and the directory of the programs")
	}
	entries, err := os.ReadDir(b.out)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		b.image.Files[path.Join(to, entry.Name())] = ImageFile{Source: filepath.Join(b.out, entry.Name()), Mode: 0o755}
	}
	return nil
}

// writeCABundle does what Debian's update-ca-certificates does when nobody has configured anything.
func writeCABundle(ctx context.Context, file string) error {
	dir, err := cached(ctx, items()["node"])
	if err != nil {
		return err
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
		return fmt.Errorf("collecting CA certificates: %w", err)
	}
	return os.WriteFile(file, bundle, 0o644)
}
