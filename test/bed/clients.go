// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// clients are command line programs that only tests of documents, of the socket, benchmarks and people want.
var clients = []struct {
	name, suite, pkg, path string
	// of is the client whose package this one comes with.
	of string
}{
	{"psql", "trixie", "postgresql-client-17", "usr/lib/postgresql/17/bin/psql", ""},
	{"pg_dump", "", "", "usr/lib/postgresql/17/bin/pg_dump", "psql"},
	{"pgbench", "trixie", "postgresql-17", "usr/lib/postgresql/17/bin/pgbench", ""},
	{"mariadb", "trixie", "mariadb-client-core", "usr/bin/mariadb", ""},
	{"mariadb-dump", "trixie", "mariadb-client", "usr/bin/mariadb-dump", ""},
	{"sysbench", "trixie", "sysbench", "usr/bin/sysbench", ""},
	{"pgbouncer", "trixie", "pgbouncer", "usr/sbin/pgbouncer", ""},
	{"promtool", "trixie", "prometheus", "usr/bin/promtool", ""},
}

func clientItems() []item {
	var all []item
	for _, c := range clients {
		if c.of != "" {
			continue
		}
		all = append(all, item{
			name: c.name,
			key:  c.name + "-" + c.suite + "-1",
			build: func(ctx context.Context, dir string) error {
				return unpackDebs(ctx, filepath.Join(dir, "root"), c.suite, c.pkg)
			},
		})
	}
	return all
}

// Client returns a command that runs a command line client: one of the list above.
// MariaDB's clients also talk to MySQL, and read no option files. sysbench runs beside its
// scripts, and needs the plugins that Env names.
func Client(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	for _, c := range clients {
		if c.name != name {
			continue
		}
		dir, err := cached(ctx, items()[cmp.Or(c.of, name)])
		if err != nil {
			return nil, err
		}
		root := filepath.Join(dir, "root")
		argv, err := foreign(root)
		if err != nil {
			return nil, err
		}
		argv = append(argv, filepath.Join(root, c.path))
		// MySQL's authentication is a plugin to MariaDB's library, which it would look for below /usr.
		plugins, _ := filepath.Glob(filepath.Join(root, "usr/lib/*/libmariadb3/plugin"))
		if strings.HasPrefix(name, "mariadb") {
			args = append([]string{"--no-defaults", "--plugin-dir=" + strings.Join(plugins, "")}, args...)
		}
		argv = append(argv, args...)
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		if name == "sysbench" {
			cmd.Dir, cmd.Env = filepath.Join(root, "usr/share/sysbench"), []string{"MARIADB_PLUGIN_DIR=" + strings.Join(plugins, "")}
		}
		return cmd, nil
	}
	return nil, fmt.Errorf("no client %q", name)
}
