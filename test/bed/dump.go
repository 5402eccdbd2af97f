// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// harmless are the errors that a restore has in the ordinary course: the bootstrap superuser is there already, and pg_dump sets
// what only its own version knows.
var harmless = regexp.MustCompile(`role "postgres" already exists|unrecognized configuration parameter "transaction_timeout"`)

// MoveTo brings all that is on a PostgreSQL server to a newer one, as an upgrade by pg_dumpall does. pg_upgrade, whose programs
// are in none of the bed's packages, takes roles, memberships, databases and their rights from that very dump.
func (s *Server) MoveTo(ctx context.Context, newer *Server) error {
	dump, err := s.dumpAll(ctx)
	if err != nil {
		return err
	}
	psql, err := Client(ctx, "psql", append(newer.clientArgs(), "--no-psqlrc", "--quiet", "--output", os.DevNull, "--dbname", "postgres")...)
	if err != nil {
		return err
	}
	psql.Env, psql.Stdin = newer.clientEnv(), strings.NewReader(dump)
	var said bytes.Buffer
	psql.Stdout, psql.Stderr = &said, &said
	if err := psql.Run(); err != nil {
		return fmt.Errorf("restoring: %w\n%s", err, tail(said.String()))
	}
	for line := range strings.Lines(said.String()) {
		if strings.Contains(line, "ERROR:") && !harmless.MatchString(line) {
			return fmt.Errorf("restoring: %s", strings.TrimSpace(line))
		}
	}
	return nil
}

// dumpAll is what pg_dumpall says. It runs the pg_dump beside it, which needs the dynamic loader of its own release as well, so
// that both get a directory in which pg_dump is a script.
func (s *Server) dumpAll(ctx context.Context) (string, error) {
	dump, err := Client(ctx, "psql")
	if err != nil {
		return "", err
	}
	dir, remove, err := TempDir("dump")
	if err != nil {
		return "", err
	}
	defer remove()
	last := len(dump.Args) - 1 // the program, behind its loader
	beside := func(name string) string { return filepath.Join(filepath.Dir(dump.Args[last]), name) }
	script := "#!/bin/sh\nexec '" + strings.Join(append(dump.Args[:last:last], beside("pg_dump")), "' '") + "' \"$@\"\n"
	program, err := os.ReadFile(beside("pg_dumpall"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "pg_dumpall"), program, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "pg_dump"), []byte(script), 0o755)
	}
	if err != nil {
		return "", fmt.Errorf("preparing pg_dumpall: %w", err)
	}
	dump.Args = append(append(dump.Args[:last:last], filepath.Join(dir, "pg_dumpall")), s.clientArgs()...)
	dump.Env = s.clientEnv()
	var said bytes.Buffer
	dump.Stderr = &said
	out, err := dump.Output()
	if err != nil {
		return "", fmt.Errorf("running pg_dumpall: %w\n%s", err, tail(said.String()))
	}
	return string(out), nil
}

// clientArgs and clientEnv lead PostgreSQL's own clients to a server, as its admin.
func (s *Server) clientArgs() []string {
	return []string{"--host", s.Host, "--port", strconv.Itoa(s.Port), "--username", s.AdminUser}
}

func (s *Server) clientEnv() []string { return append(serverEnv(), "PGPASSWORD="+s.AdminPassword) }
