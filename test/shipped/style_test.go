// SPDX-License-Identifier: Apache-2.0

package shipped_test

import (
	"regexp"
	"strings"
	"testing"
)

var (
	span = regexp.MustCompile("`[^`]*`")
	// A sentence ends at a full stop, a question mark, an exclamation mark or a semicolon that white space follows.
	sentenceEnd = regexp.MustCompile(`[.?!;]["')*]*\s`)
	// The words that a document does not need: a named actor does something, and "again" and "fix" are the usual words.
	refusedWords = regexp.MustCompile(`(?i)\b(whoever|nobody|somebody|everybody|anybody|anew|mend|mended|mends)\b`)
)

// sentences counts those of a cell. A full stop inside of backquotes ends none.
func sentences(cell string) int {
	cell = strings.TrimSpace(span.ReplaceAllString(cell, "x"))
	return len(sentenceEnd.FindAllString(cell, -1)) + 1
}

func TestSentences(t *testing.T) {
	t.Parallel()
	for cell, want := range map[string]int{
		"nothing":                               1,
		"One.":                                  1,
		"one. Two":                              2,
		"one; two; three":                       3,
		"`a. b; c`, version 0.37. **Two.** Is?": 3,
	} {
		if got := sentences(cell); got != want {
			t.Errorf("%q has %d sentences, counted were %d", cell, want, got)
		}
	}
}

// TestCellsAreShort: a cell of a table has two sentences at most, and the rest is text below the table.
func TestCellsAreShort(t *testing.T) {
	t.Parallel()
	cells := 0
	for _, document := range documents(t) {
		for line := range strings.Lines(fence.ReplaceAllString(read(t, document), "")) {
			if !strings.HasPrefix(line, "|") {
				continue
			}
			for cell := range strings.SplitSeq(strings.ReplaceAll(line, `\|`, ""), "|") {
				cells++
				if n := sentences(cell); n > 2 {
					t.Errorf("%s: this cell has %d sentences: %s", document, n, strings.TrimSpace(cell))
				}
			}
		}
	}
	if cells < 500 {
		t.Fatalf("only %d cells found: this test looks in the wrong way", cells)
	}
}

// TestReadmeIsShort: longer text belongs on one of the pages that the README links.
func TestReadmeIsShort(t *testing.T) {
	t.Parallel()
	if lines := strings.Count(read(t, "README.md"), "\n"); lines >= 150 {
		t.Errorf("README.md has %d lines, and should have less than 150", lines)
	}
}

// TestDocumentsNameTheirActors: init, the sidecar, the operator or the server does something, and never "somebody". What is in
// backquotes may quote a program.
func TestDocumentsNameTheirActors(t *testing.T) {
	t.Parallel()
	for _, document := range documents(t) {
		if document == "CHANGELOG.md" {
			continue
		}
		for line := range strings.Lines(fence.ReplaceAllString(read(t, document), "")) {
			if word := refusedWords.FindString(span.ReplaceAllString(line, "")); word != "" {
				t.Errorf("%s says %q: %s", document, word, strings.TrimSpace(line))
			}
		}
	}
}
