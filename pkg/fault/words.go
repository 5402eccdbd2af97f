// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxWords is the most of what a server says that an error repeats, in bytes: more than any server needs for a reason, and
// with what we say around it less than a termination message. What is longer is an admission policy's or a trigger's
// prose, or a web page.
const maxWords = 600

// maxShown is the most of a value that an error repeats, in bytes.
const maxShown = 64

// Words are the words of another program as an error may repeat them: on one line, without what a terminal would act upon,
// and not too many.
func Words(s string) string {
	if len(s) > 4*maxWords { // white space may go
		s = s[:4*maxWords]
	}
	line := strings.ToValidUTF8(strings.Join(strings.Fields(s), " "), "\uFFFD")
	return Cut(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) { // Cf turns the direction of what follows
			return '\uFFFD'
		}
		return r
	}, line), maxWords)
}

// Cut shortens s to at most n bytes, between two characters.
func Cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const dots = "…"
	for n -= len(dots); n > 0 && !utf8.RuneStart(s[n]); n-- {
	}
	return s[:n] + dots
}

// Show quotes a value for a message: one line, whatever is in it, and cut where it is long.
func Show(value string) string {
	if len(value) > maxShown {
		return strconv.QuoteToASCII(value[:maxShown]) + "…"
	}
	return strconv.QuoteToASCII(value)
}
