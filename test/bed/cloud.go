// SPDX-License-Identifier: Apache-2.0

package bed

import "fmt"

// cloudAdmin returns the statements that create the login that managed databases call the
// master user.
func cloudAdmin(engine Engine, name, password string) []string {
	if engine == Postgres {
		// RDS, Aurora, Azure flexible server, Cloud SQL.
		return []string{fmt.Sprintf(`CREATE ROLE "%s" LOGIN CREATEDB CREATEROLE PASSWORD '%s'`, name, password)}
	}
	account := fmt.Sprintf("'%s'@'%%'", name)
	privileges := "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, RELOAD, PROCESS, REFERENCES, INDEX, ALTER, " +
		"SHOW DATABASES, CREATE TEMPORARY TABLES, LOCK TABLES, EXECUTE, REPLICATION CLIENT, CREATE VIEW, " +
		"SHOW VIEW, CREATE ROUTINE, ALTER ROUTINE, CREATE USER, EVENT, TRIGGER"
	create := fmt.Sprintf("CREATE USER %s IDENTIFIED BY '%s'", account, password)
	if engine == MariaDB {
		// RDS. MariaDB has no partial revokes.
		return []string{create, fmt.Sprintf("GRANT %s ON *.* TO %s WITH GRANT OPTION", privileges, account)}
	}
	// RDS, Azure flexible server: no SUPER, and the system schema is read only.
	return []string{
		"SET GLOBAL partial_revokes = ON",
		create,
		fmt.Sprintf("GRANT %s, CREATE ROLE, DROP ROLE ON *.* TO %s WITH GRANT OPTION", privileges, account),
		fmt.Sprintf(
			"REVOKE INSERT, UPDATE, DELETE, CREATE, DROP, ALTER, INDEX, REFERENCES, TRIGGER, CREATE VIEW, CREATE ROUTINE, "+
				"ALTER ROUTINE ON mysql.* FROM %s",
			account,
		),
	}
}
