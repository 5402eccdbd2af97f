// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// buildPostgres makes root, the programs, and data, an initialised cluster.
func (v Version) buildPostgres(ctx context.Context, dir string) error {
	haveNPM := func() bool { _, err := exec.LookPath("npm"); return err == nil }
	if err := need(ctx, haveNPM, "npm"); err != nil {
		return err
	}
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	out, err := run(ctx, dir, "npm", "pack", "--silent", "@embedded-postgres/linux-"+arch+"@"+v.npm)
	if err != nil {
		return fmt.Errorf("downloading: %w", err)
	}
	archive := filepath.Join(dir, filepath.Base(strings.TrimSpace(out)))
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return fmt.Errorf("making %s: %w", root, err)
	}
	if _, err := run(ctx, dir, "tar", "--extract", "--no-same-owner", "--strip-components=2",
		"--file", archive, "--directory", root, "package/native"); err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	if err := os.Remove(archive); err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	if err := linkLibraries(root); err != nil {
		return err
	}
	for _, program := range []string{"initdb", "postgres"} {
		if err := os.Chmod(filepath.Join(root, "bin", program), 0o755); err != nil {
			return fmt.Errorf("unpacking: %w", err)
		}
	}
	data, password := filepath.Join(dir, "data"), filepath.Join(dir, "password")
	if err := errors.Join(
		os.Mkdir(data, 0o700),
		os.WriteFile(password, []byte(adminPassword), 0o644),
		give(data),
	); err != nil {
		return fmt.Errorf("preparing data directory: %w", err)
	}
	if err := runAs(ctx, "", filepath.Join(root, "bin", "initdb"), "--pgdata="+data,
		"--username="+adminUser(Postgres), "--pwfile="+password, "--auth=scram-sha-256",
		"--encoding=UTF8", "--locale=C", "--no-sync"); err != nil {
		return fmt.Errorf("initialising data directory: %w", err)
	}
	return os.Remove(password)
}

// linkLibraries makes the symbolic links that an npm package cannot carry.
func linkLibraries(root string) error {
	list, err := os.ReadFile(filepath.Join(root, "pg-symlinks.json"))
	if err != nil {
		return fmt.Errorf("reading list of links: %w", err)
	}
	var links []struct{ Source, Target string }
	if err := json.Unmarshal(list, &links); err != nil {
		return fmt.Errorf("reading list of links: %w", err)
	}
	for _, l := range links {
		// Both are paths like native/lib/x, and so stay below root.
		source := filepath.Join(root, strings.TrimPrefix(l.Source, "native/"))
		target := filepath.Join(root, strings.TrimPrefix(l.Target, "native/"))
		relative, err := filepath.Rel(filepath.Dir(target), source)
		if err != nil {
			return fmt.Errorf("linking %s: %w", l.Target, err)
		}
		if err := os.Symlink(relative, target); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("linking %s: %w", l.Target, err)
		}
	}
	return nil
}

// postgresArgv configures the server in its data directory, not on the command line,
// so that ALTER SYSTEM still works.
func (s *Server) postgresArgv(root string, o Options) ([]string, error) {
	settings := map[string]string{
		"port":                    strconv.Itoa(s.Port),
		"listen_addresses":        "127.0.0.1",
		"unix_socket_directories": s.dir,
		"password_encryption":     "scram-sha-256", // the default only from 14 on
		"shared_buffers":          "32MB",
		"max_wal_size":            "64MB",
		"min_wal_size":            "32MB",
		// A killed server loses nothing by these, only a killed machine does.
		"fsync":            "off",
		"full_page_writes": "off",
		"log_line_prefix":  "%m [%p] %q%u@%d ",
		// So long a retirement waits for logins that were begun before.
		"authentication_timeout": "5s",
		// In the data directory, which is removed; in /dev/shm the segments of a killed server would stay.
		"dynamic_shared_memory_type": "mmap",
	}
	host := "host"
	if !o.NoTLS {
		settings["ssl"] = "on"
		settings["ssl_cert_file"] = s.file("tls.crt")
		settings["ssl_key_file"] = s.file("tls.key")
	}
	if o.RequireTLS {
		host = "hostssl"
	}
	if o.IPv6 {
		settings["listen_addresses"] = "127.0.0.1,::1"
	}
	if o.MaxConnections > 0 {
		settings["max_connections"] = strconv.Itoa(o.MaxConnections)
	}
	if o.LogStatements {
		settings["log_connections"] = "on"
		settings["log_disconnections"] = "on"
		settings["log_statement"] = "all"
	}
	for key, value := range o.Settings {
		settings[key] = value
	}
	var conf strings.Builder
	for key, value := range settings {
		fmt.Fprintf(&conf, "%s = '%s'\n", key, strings.ReplaceAll(value, "'", "''"))
	}
	hba := "local all all scram-sha-256\n" + host + " all all all scram-sha-256\n"
	config, err := os.OpenFile(filepath.Join(s.DataDir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("configuring: %w", err)
	}
	_, err = config.WriteString("\n" + conf.String())
	if err := errors.Join(err, config.Close(),
		os.WriteFile(filepath.Join(s.DataDir, "pg_hba.conf"), []byte(hba), 0o600)); err != nil {
		return nil, fmt.Errorf("configuring: %w", err)
	}
	return []string{filepath.Join(root, "bin", "postgres"), "-D", s.DataDir}, nil
}
