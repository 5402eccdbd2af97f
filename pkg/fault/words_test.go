// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"strings"
	"testing"
	"unicode"
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

// FuzzWords: whatever a server says becomes one line of at most maxWords bytes of UTF-8 that no terminal acts upon.
func FuzzWords(f *testing.F) {
	for _, seed := range []string{
		"", "a\n b", "a\xffb", "a\x1b[2Jb\x00\u202ec", strings.Repeat("ü", maxWords), strings.Repeat("\xff ", 4*maxWords),
		"\u2028\u2029\u0085",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Words(s)
		if len(got) > maxWords || !utf8.ValidString(got) {
			t.Errorf("%d bytes, valid: %t", len(got), utf8.ValidString(got))
		}
		for _, r := range got {
			if r != ' ' && !unicode.IsPrint(r) && (unicode.IsControl(r) || unicode.IsSpace(r) || unicode.Is(unicode.Cf, r)) {
				t.Errorf("%q holds %U", got, r)
			}
		}
		if strings.TrimSpace(got) != got {
			t.Errorf("%q is not trimmed", got)
		}
	})
}

func TestShow(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"a": `"a"`, "a\nb": `"a\nb"`, "ü\x1b": `"\u00fc\x1b"`, strings.Repeat("x", 65): `"` + strings.Repeat("x", 64) + `"…`,
	} {
		if got := Show(value); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
