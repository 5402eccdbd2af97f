// SPDX-License-Identifier: Apache-2.0

package shipped_test

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dbconnector/pkg/health"
)

// metrics are those of ours that /metrics serves when everything has happened once, with the names of their labels in braces
// where there are any.
func metrics(t *testing.T) []string {
	t.Helper()
	m := health.New()
	m.Postponements.WithLabelValues("x")
	m.Postponed.WithLabelValues("x")
	m.Failures.WithLabelValues("x")
	m.AdoptInfo.WithLabelValues("x")
	m.BuildInfo.WithLabelValues("x", "x")
	socket := m.Socket()
	socket.Connects.WithLabelValues("x")
	m.Watch(health.Source{
		Sessions: func() map[int64]health.Group { return map[int64]health.Group{1: {}} }, Bytes: func() (sent, received int64) { return 0, 0 },
	})
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	body := answer.Body.String()
	var list []string
	for _, m := range regexp.MustCompile(`(?m)^(dbconnector_\w+)(?:\{(.*)\})? `).FindAllStringSubmatch(body, -1) {
		if m[2] != "" {
			m[1] += "{" + regexp.MustCompile(`="[^"]*"`).ReplaceAllString(m[2], "") + "}"
		}
		list = append(list, m[1])
	}
	// What a histogram is made of is one metric.
	list = slices.DeleteFunc(list, func(name string) bool { return strings.Contains(name, "_bucket{") || strings.HasSuffix(name, "_sum") })
	for i, name := range list {
		list[i] = strings.TrimSuffix(name, "_count")
	}
	list = slices.Compact(list) // a series of each of several labels is one metric
	if declared := strings.Count(body, "# TYPE dbconnector_"); declared == 0 || declared != len(list) {
		t.Fatalf("%d metrics, and these have a value: %q", declared, list)
	}
	return list
}

// TestMetricsAreExplained compares the table of metrics with the metrics that are served, in both directions.
func TestMetricsAreExplained(t *testing.T) {
	t.Parallel()
	text := read(t, "docs/operate.md")
	served := metrics(t)
	for _, metric := range served {
		if !regexp.MustCompile("(?m)^\\| .*`" + regexp.QuoteMeta(metric) + "`.* \\|").MatchString(text) {
			t.Errorf("docs/operate.md has no row for the metric %s", metric)
		}
	}
	for _, document := range documents(t) {
		for _, name := range regexp.MustCompile(`dbconnector_[a-z_]+[a-z]`).FindAllString(read(t, document), -1) {
			if !slices.ContainsFunc(served, func(m string) bool { m, _, _ = strings.Cut(m, "{"); return m == name }) {
				t.Errorf("%s names the metric %s, which is not served", document, name)
			}
		}
	}
}

// TestStepsAndReasonsAreExplained: each step and reason in a log, an Event or a label is in the documentation, too.
func TestStepsAndReasonsAreExplained(t *testing.T) {
	t.Parallel()
	operate, rotation, source := read(t, "docs/operate.md"), read(t, "docs/rotation.md"), read(t, "pkg/rotation/next.go")
	reasons := regexp.MustCompile(`(?m)^\t\w+ Reason = "(\w+)"$`).FindAllStringSubmatch(source, -1)
	if len(reasons) == 0 {
		t.Fatal("no reasons found in pkg/rotation/next.go: this test looks in the wrong way")
	}
	for _, m := range reasons {
		if !regexp.MustCompile("(?m)^\\| [^|]*`" + m[1] + "`").MatchString(operate) {
			t.Errorf("docs/operate.md has no row for the reason %s", m[1])
		}
		if !strings.Contains(rotation, "`"+m[1]+"`") {
			t.Errorf("docs/rotation.md does not say when a step is postponed for %s", m[1])
		}
	}
	kinds := regexp.MustCompile(`(?m)^var kinds = \[\.\.\.\]string\{(.*)\}$`).FindStringSubmatch(source)
	if kinds == nil {
		t.Fatal("no kinds of steps found in pkg/rotation/next.go: this test looks in the wrong way")
	}
	for kind := range strings.SplitSeq(kinds[1], ", ") {
		kind = strings.Trim(kind, `"`)
		if !regexp.MustCompile(`(?m)^\| .*\*\*` + kind + `\*\*`).MatchString(rotation) {
			t.Errorf("docs/rotation.md has no row for the step %s", kind)
		}
		if kind != "wait" && kind != "postpone" && !regexp.MustCompile("(?m)^\\| `dbconnector_failures_total.*`"+kind+"`").MatchString(operate) {
			t.Errorf("docs/operate.md does not list the step %s among those that fail", kind)
		}
	}
}

// TestEventsAreExplained: each reason of an Event has a row.
func TestEventsAreExplained(t *testing.T) {
	t.Parallel()
	text := read(t, "docs/messages.md")
	found := 0
	for _, path := range files(t, ".go", "cmd", "pkg/report") {
		for _, m := range regexp.MustCompile(`kube\.(Normal|Warning), "(\w+)"`).FindAllStringSubmatch(read(t, path), -1) {
			found++
			if !strings.Contains(text, "\n| `"+m[2]+"` | "+m[1]+" |") {
				t.Errorf("docs/messages.md has no row for the Event %s (%s) of %s", m[2], m[1], path)
			}
		}
	}
	if found == 0 {
		t.Error("no Events found: this test looks in the wrong way")
	}
}
