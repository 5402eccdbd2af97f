// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"testing"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// Managed services give out their admin's rights through a role (rds_superuser_role, cloudsqlsuperuser). B36: what counts is
// what is in force, not how it was granted.
func TestAdminByRole(t *testing.T) {
	t.Parallel()
	for _, v := range bed.Versions {
		if v.Engine == bed.Postgres {
			continue // there, CREATEDB and CREATEROLE are not inherited
		}
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			server := newServer(t, v)
			rights := "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, PROCESS, CREATE USER"
			statements := []string{"CREATE ROLE managed", "CREATE USER byrole IDENTIFIED BY 'Test-1~byrole'", "GRANT managed TO byrole"}
			if v.Engine == bed.MySQL {
				rights += ", CREATE ROLE"
				statements = append(statements, "SET DEFAULT ROLE managed TO byrole")
			} else {
				statements = append(statements, "SET DEFAULT ROLE managed FOR byrole")
			}
			statements = append(statements, fmt.Sprintf("GRANT %s ON *.* TO managed WITH GRANT OPTION", rights))
			if err := server.Exec(t.Context(), statements...); err != nil {
				t.Fatal(err)
			}
			x := describe(server, "byrole", "Test-1~byrole").NewTenant()
			x.Ensure(t)
			x.Works(t)
			x.Session(t, x.Login(tenant.A))
			x.WithAdmin(t, func(admin tenant.Admin) {
				for slot, want := range map[tenant.Slot]bool{tenant.A: true, tenant.B: false} {
					if used, err := admin.InUse(t.Context(), x.User(slot)); err != nil || used != want {
						t.Errorf("slot %s: in use %t, %v", slot, used, err)
					}
				}
			})
		})
	}
}
