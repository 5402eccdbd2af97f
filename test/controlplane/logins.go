// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"

	"dbconnector/test/bed"
)

// Logins counts the logins of a user since the server was started, by the server's own
// log: bed.Options.LogStatements must be set. On MySQL and MariaDB those that were refused
// count, too.
func Logins(s *bed.Server, user string) (int, error) {
	log, err := s.StatementLog()
	if err != nil {
		return 0, err
	}
	pattern := `(?m)\d Connect\t` + regexp.QuoteMeta(user) + `@`
	if s.Engine == bed.Postgres {
		pattern = `(?m)LOG:  connection authorized: user=` + regexp.QuoteMeta(user) + ` `
	}
	return len(regexp.MustCompile(pattern).FindAllString(log, -1)), nil
}

// Refusal is a server's message when it refused a statement; empty if the error has
// another reason. It begins with the code that identifies it to a machine.
func Refusal(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return fmt.Sprintf("%s %s", pg.Code, pg.Message)
	}
	var my *mysql.MySQLError
	if errors.As(err, &my) {
		return fmt.Sprintf("%d %s", my.Number, my.Message)
	}
	return ""
}
