// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// console writes plain lines. A step's line is begun when the step begins and ended
// with its outcome, so that the reader sees which step is awaited.
type console struct {
	w io.Writer

	mu      sync.Mutex
	pending string // of a line that was begun and not ended
}

const (
	// width is where the outcome of a step stands.
	width = 62
	// columns is how long a line may become.
	columns = 100
)

func (c *console) line(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.interrupt()
	fmt.Fprintf(c.w, format+"\n", args...)
}

// note is a remark on the line before, in as many lines as it needs.
func (c *console) note(text string) {
	line := "        "
	for _, word := range strings.Fields(text) {
		if len(line)+1+len(word) > columns {
			c.line("%s", line)
			line = "          "
		}
		line += " " + word
	}
	c.line("%s", line)
}

func (c *console) begin(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.interrupt()
	c.pending = "  " + what + " " + strings.Repeat(".", max(3, width-len(what))) + " "
	fmt.Fprint(c.w, c.pending)
}

func (c *console) end(outcome string, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == "" { // another line came between: name the step again
		fmt.Fprint(c.w, "  ... ")
	}
	c.pending = ""
	fmt.Fprintf(c.w, "%s, %s\n", outcome, short(took))
}

// interrupt ends a line that was begun, before another one.
func (c *console) interrupt() {
	if c.pending != "" {
		fmt.Fprintln(c.w)
		c.pending = ""
	}
}

// progress is a writer for the test bed's remarks on long steps.
func (c *console) progress() io.Writer { return &remarks{c: c} }

type remarks struct {
	c    *console
	once sync.Once
}

func (r *remarks) Write(p []byte) (int, error) {
	r.once.Do(func() {
		r.c.line("  The first run fetches servers and builds programs, which takes a minute or two:")
	})
	for line := range bytes.Lines(p) {
		r.c.line("      %s", strings.TrimPrefix(string(bytes.TrimSpace(line)), "bed: "))
	}
	return len(p), nil
}

func short(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// row is a line of the table.
type row struct{ step, tenant, result, time string }

func (c *console) table(rows []row) {
	head := row{"STEP", "TENANT", "RESULT", "TIME"}
	step, tenant, result := 0, 0, 0
	for _, r := range append([]row{head}, rows...) {
		step, tenant, result = max(step, len(r.step)), max(tenant, len(r.tenant)), max(result, len(r.result))
	}
	for _, r := range append([]row{head}, rows...) {
		c.line("%-*s  %-*s  %-*s  %7s", step, r.step, tenant, r.tenant, result, r.result, r.time)
	}
}
