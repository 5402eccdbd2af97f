// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strconv"
)

var (
	postgresConnection = regexp.MustCompile(`(?m)LOG:  connection received: `)
	postgresStatement  = regexp.MustCompile(`(?m)LOG:  (statement: |execute [^:]*: )`)
	// A line of the general log: time (MariaDB leaves it out when it is the same as
	// before), thread, command, argument.
	mysqlConnection = regexp.MustCompile(`(?m)^[^\t]*\t+\s*\d+ Connect\t`)
	mysqlRefusal    = regexp.MustCompile(`(?m)^[^\t]*\t+\s*\d+ Connect\tAccess denied`)
	mysqlStatement  = regexp.MustCompile(`(?m)^[^\t]*\t+\s*\d+ (Query|Execute)\t`)
)

// StatementLog returns the log that has the statements: the server's own on
// PostgreSQL, the general log on MySQL and MariaDB. It needs [Options.LogStatements].
func (s *Server) StatementLog() (string, error) {
	if s.dir == "" {
		return "", errors.New("reading statement log: the server is not the bed's own")
	}
	name := s.LogFile
	if s.Engine != Postgres {
		name = s.file("general.log")
	}
	log, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w (was the server started with LogStatements?)", err)
	}
	if err != nil {
		return "", fmt.Errorf("reading statement log: %w", err)
	}
	return string(log), nil
}

// Connections returns how many connections the server has seen since it was
// started, refused ones and the bed's own among them: count before and after, and call
// nothing of the server's that logs in between. It needs [Options.LogStatements], and
// counts what the log holds rather than ask the server, since asking would count.
//
// MySQL and MariaDB log a connection only when the client has said who it is.
func (s *Server) Connections() (int, error) {
	log, err := s.StatementLog()
	if err != nil {
		return 0, err
	}
	if s.Engine == Postgres {
		return len(postgresConnection.FindAllString(log, -1)), nil
	}
	// A refused login has two lines.
	return len(mysqlConnection.FindAllString(log, -1)) - len(mysqlRefusal.FindAllString(log, -1)), nil
}

// Statements is [Server.Connections] for statements. Those that the server could not
// parse may be missing.
func (s *Server) Statements() (int, error) {
	log, err := s.StatementLog()
	if err != nil {
		return 0, err
	}
	if s.Engine == Postgres {
		return len(postgresStatement.FindAllString(log, -1)), nil
	}
	return len(mysqlStatement.FindAllString(log, -1)), nil
}

// Status returns one of the server's counters, on MySQL and MariaDB only:
// "Connections", "Questions". Asking is itself a connection and some questions.
func (s *Server) Status(ctx context.Context, name string) (int64, error) {
	db, err := s.Admin("")
	if err != nil {
		return 0, err
	}
	defer func() { _ = db.Close() }()
	var key, value string
	if err := db.QueryRowContext(ctx, "SHOW GLOBAL STATUS LIKE '"+name+"'").Scan(&key, &value); err != nil {
		return 0, fmt.Errorf("asking for status %s: %w", name, err)
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("asking for status %s: %w", name, err)
	}
	return n, nil
}
