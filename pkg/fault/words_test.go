// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestWords(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ in, want string }{
		"nothing":      {"", ""},
		"short":        {"no", "no"},
		"lines":        {" no,\r\n\tnever\n", "no, never"},
		"just fits":    {strings.Repeat("x", maxWords), strings.Repeat("x", maxWords)},
		"one too many": {strings.Repeat("x", maxWords+1), strings.Repeat("x", maxWords-3) + "…"},
		"characters":   {strings.Repeat("ü", maxWords), strings.Repeat("ü", (maxWords-3)/2) + "…"},
		"no UTF-8":     {"a\xffb", "a\uFFFDb"},
		"control":      {"a\x1b[2Jb\x00\u202ec", "a\uFFFD[2Jb\uFFFD\uFFFDc"}, // S6: a login names the library that it cannot load
	} {
		if got := Words(test.in); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
	if got := Words(strings.Repeat("\xff€ ", 1<<20)); len(got) > maxWords || !utf8.ValidString(got) {
		t.Errorf("got %d bytes, %q", len(got), got)
	}
}
