// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// buildMySQL makes root, the unpacked packages, and data, an initialised data
// directory; both for MySQL and MariaDB.
func (v Version) buildMySQL(ctx context.Context, dir string) error {
	root, data := filepath.Join(dir, "root"), filepath.Join(dir, "data")
	if err := unpackDebs(ctx, root, v.suite, v.debs...); err != nil {
		return err
	}
	argv, err := mysqld(v.Engine, root)
	if err != nil {
		return err
	}
	argv = append(argv, "--datadir="+data)
	if err := errors.Join(os.Mkdir(data, 0o700), give(data)); err != nil {
		return fmt.Errorf("preparing data directory: %w", err)
	}
	script := ""
	if v.Engine == MariaDB {
		// The work of mariadb-install-db, without the programs it needs around it.
		if script, err = mariadbScript(root); err != nil {
			return err
		}
		if err := errors.Join(os.Mkdir(filepath.Join(data, "mysql"), 0o700), give(filepath.Join(data, "mysql"))); err != nil {
			return fmt.Errorf("preparing data directory: %w", err)
		}
		argv = append(argv, "--bootstrap", "--max-allowed-packet=8M", "--net-buffer-length=16K")
	} else {
		argv = append(argv, "--initialize-insecure")
	}
	if err := runAs(ctx, script, argv...); err != nil {
		return fmt.Errorf("initialising data directory: %w", err)
	}
	return v.createAdmin(ctx, dir)
}

// mariadbScript is MariaDB's own SQL for a new data directory.
func mariadbScript(root string) (string, error) {
	// The files were renamed from mysql_* to mariadb_* on the way.
	share := filepath.Join(root, "usr/share")
	// Only root@localhost, by the password that it does not have yet.
	script := "SET @auth_root_socket=NULL;\nCREATE DATABASE IF NOT EXISTS mysql;\nUSE mysql;\nSET @skip_auth_anonymous=1;\n"
	for _, pattern := range []string{
		"*_system_tables.sql", "*_performance_tables.sql", "*_system_tables_data.sql", "fill_help_tables.sql",
		"maria_add_gis_sp_bootstrap.sql", "*_sys_schema.sql",
	} {
		files, _ := filepath.Glob(filepath.Join(share, "m[ya]*", pattern))
		for _, file := range files { // 10.5 has no sys schema
			sql, err := os.ReadFile(file)
			if err != nil {
				return "", fmt.Errorf("reading SQL of a new data directory: %w", err)
			}
			script += string(sql) + "\n"
		}
	}
	return script, nil
}

// createAdmin starts the server once on the new data directory to create an
// admin for TCP: with --skip-name-resolve, root@localhost is for the socket only.
func (v Version) createAdmin(ctx context.Context, dir string) error {
	s := &Server{
		Engine: v.Engine, Version: v.Version, Host: "127.0.0.1",
		AdminUser: adminUser(v.Engine), AdminPassword: adminPassword,
		DataDir: filepath.Join(dir, "data"), plaintext: true,
	}
	var err error
	if s.dir, s.owner, err = tempDir(v.String()); err != nil {
		return err
	}
	defer s.cleanUp()
	s.LogFile = s.file("server.log")
	initFile := s.file("init.sql")
	sql := fmt.Sprintf("CREATE USER '%s'@'%%' IDENTIFIED BY '%s';\nGRANT ALL PRIVILEGES ON *.* TO '%[1]s'@'%%' WITH GRANT OPTION;\n", s.AdminUser, s.AdminPassword)
	if err := errors.Join(os.WriteFile(initFile, []byte(sql), 0o644), give(s.dir)); err != nil {
		return fmt.Errorf("creating admin: %w", err)
	}
	if s.Port, err = freePort(); err != nil {
		return err
	}
	if s.argv, err = s.mysqlArgv(filepath.Join(dir, "root"), Options{NoTLS: true}); err != nil {
		return err
	}
	s.argv = append(s.argv, "--init-file="+initFile)
	if err := s.launch(ctx); err != nil {
		return fmt.Errorf("creating admin: %w", err)
	}
	if err := s.Halt(ctx); err != nil {
		return fmt.Errorf("creating admin: %w", err)
	}
	// Files that only this run needed, or that the server makes again.
	for _, pattern := range []string{"ib_buffer_pool", "ibtmp1", "auto.cnf", "*.pem"} {
		files, _ := filepath.Glob(filepath.Join(s.DataDir, pattern))
		for _, file := range files {
			_ = os.Remove(file)
		}
	}
	return nil
}

// mysqld is the beginning of a command line for MySQL's or MariaDB's server. What
// shapes the files of the data directory has to be here: it holds from
// initialisation on.
func mysqld(engine Engine, root string) ([]string, error) {
	argv, err := foreign(root)
	if err != nil {
		return nil, err
	}
	common := []string{
		"--no-defaults", "--basedir=" + filepath.Join(root, "usr"),
		"--skip-name-resolve", "--secure-file-priv=",
		"--innodb-buffer-pool-size=64M",
		// A killed server loses nothing by these, only a killed machine does.
		"--innodb-flush-log-at-trx-commit=2", "--innodb-doublewrite=0",
	}
	if engine == MariaDB {
		return append(append(append(argv, filepath.Join(root, "usr/sbin/mariadbd")), common...),
			"--innodb-log-file-size=16M"), nil
	}
	return append(append(append(argv, filepath.Join(root, "usr/sbin/mysqld")), common...),
		"--innodb-redo-log-capacity=16M", "--disable-log-bin", "--mysqlx=OFF"), nil
}

func (s *Server) mysqlArgv(root string, o Options) ([]string, error) {
	argv, err := mysqld(s.Engine, root)
	if err != nil {
		return nil, err
	}
	argv = append(argv,
		"--datadir="+s.DataDir,
		"--tmpdir="+s.dir,
		"--socket="+s.file("s.sock"),
		"--pid-file="+s.file("pid"),
		"--port="+strconv.Itoa(s.Port),
	)
	address := "127.0.0.1"
	if o.IPv6 {
		// MariaDB takes only one address before 10.11. "::" is both families.
		address = "127.0.0.1,::1"
		if s.Engine == MariaDB && s.Version == "10.5" {
			address = "::"
		}
	}
	argv = append(argv, "--bind-address="+address,
		"--connect-timeout=2") // a retirement waits for logins that were begun before
	switch {
	case !o.NoTLS:
		argv = append(argv, "--ssl-ca="+s.file("ca.crt"), "--ssl-cert="+s.file("tls.crt"), "--ssl-key="+s.file("tls.key"))
	case s.Engine == MySQL:
		argv = append(argv, "--tls-version=", "--auto-generate-certs=OFF")
	default:
		argv = append(argv, "--skip-ssl")
	}
	if o.RequireTLS {
		argv = append(argv, "--require-secure-transport=ON")
	}
	if o.MaxConnections > 0 {
		argv = append(argv, "--max-connections="+strconv.Itoa(o.MaxConnections))
	}
	if o.LogStatements {
		argv = append(argv, "--general-log=ON", "--general-log-file="+s.file("general.log"))
	}
	for key, value := range o.Settings {
		argv = append(argv, "--"+key+"="+value)
	}
	return argv, nil
}
