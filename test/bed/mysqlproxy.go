// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// ForbidMySQL puts a proxy before a MySQL or MariaDB server that answers each query with a word in it as an error and does not pass it
// on. It is for statements that servers forbid that cannot be had here, such as those of a cluster. The client must speak in clear text,
// and use no commands without an answer, as prepared statements have. It returns the proxy's port; the proxy ends with the test.
func ForbidMySQL(tb testing.TB, target, word string, number uint16, message string) int {
	tb.Helper()
	refusal := binary.LittleEndian.AppendUint16([]byte{0xff}, number)
	refusal = append(append(refusal, "#HY000"...), message...)
	refusal = append([]byte{byte(len(refusal)), byte(len(refusal) >> 8), 0, 1}, refusal...)
	p := NewProxy(tb, target)
	p.Intercept(func(q Question) Reply {
		const query = 3 // in the first packet of its exchange, number 0
		if len(q.Data) > 4 && q.Data[3] == 0 && q.Data[4] == query && bytes.Contains(q.Data, []byte(word)) {
			return Reply{Instead: refusal}
		}
		return Reply{}
	})
	return p.Port()
}
