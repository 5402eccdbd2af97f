// SPDX-License-Identifier: Apache-2.0

package mysql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"testing"

	"dbconnector/pkg/fault"
)

// node is a server that answers every question with the size of its Galera cluster; "" for no such status. None of the
// test bed's servers is in a cluster.
type node string

func (n node) Connect(context.Context) (driver.Conn, error) { return answer{size: n}, nil }
func (n node) Driver() driver.Driver                        { return nil }

// answer is connection and rows in one.
type answer struct {
	size node
	done *bool
}

func (answer) Prepare(string) (driver.Stmt, error) { return nil, errors.ErrUnsupported }
func (answer) Begin() (driver.Tx, error)           { return nil, errors.ErrUnsupported }
func (answer) Close() error                        { return nil }
func (answer) Columns() []string                   { return []string{"Variable_name", "Value"} }

func (a answer) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	done := a.size == ""
	return answer{size: a.size, done: &done}, nil
}

func (a answer) Next(row []driver.Value) error {
	if *a.done {
		return io.EOF
	}
	*a.done, row[0], row[1] = true, "wsrep_cluster_size", string(a.size)
	return nil
}

// TestGalera: sessions on another node cannot be seen, so a login there is never taken for one that nobody uses.
func TestGalera(t *testing.T) {
	t.Parallel()
	for size, refused := range map[node]bool{"": false, "0": false, "1": false, "2": true, "3": true, "11": true} {
		db := sql.OpenDB(size)
		defer db.Close()
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := oneNode(t.Context(), conn, "vcxa"); fault.Is(err, fault.Refused) != refused || (err != nil) != refused {
			t.Errorf("a cluster of %q nodes: %v, want a refusal %t", size, err, refused)
		}
	}
}
