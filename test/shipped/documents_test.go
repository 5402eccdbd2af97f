// SPDX-License-Identifier: Apache-2.0

// Package shipped_test holds what a release has besides the programs: the documentation to the code, and the manifests, alerts and
// dashboards to an API server and to what the programs say.
package shipped_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"dbconnector/pkg/config"
	"dbconnector/pkg/tenant"
)

const root = "../.."

// read reads a file of the repository. Its path is relative to the root, unless it begins with a slash.
func read(t *testing.T, path ...string) string {
	t.Helper()
	name := filepath.Join(path...)
	if !filepath.IsAbs(name) {
		name = filepath.Join(root, name)
	}
	data, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(data)
}

// files lists the files below dirs that end in suffix, relative to the root. A dir may also be a file.
func files(t *testing.T, suffix string, dirs ...string) []string {
	t.Helper()
	var list []string
	for _, dir := range dirs {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, suffix) {
				return err
			}
			relative, err := filepath.Rel(root, path)
			list = append(list, relative)
			return err
		})
		require.NoError(t, err)
	}
	return list
}

// said are the sources of what a program can say: those of packages that a program is made of. What no program uses has
// nothing to explain.
func said(t *testing.T) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", `{{if and .Module (eq .Module.Path "dbconnector")}}{{.ImportPath}}{{end}}`, "./cmd/...")
	cmd.Dir = root
	out, err := cmd.Output()
	require.NoError(t, err)
	var list []string
	for _, path := range files(t, ".go", "cmd", "pkg") {
		if slices.Contains(strings.Fields(string(out)), "dbconnector/"+filepath.ToSlash(filepath.Dir(path))) {
			list = append(list, path)
		}
	}
	if len(list) == 0 {
		t.Fatal("no program says anything")
	}
	return list
}

// documents are all that people read.
func documents(t *testing.T) []string {
	t.Helper()
	top, err := filepath.Glob(filepath.Join(root, "*.md"))
	if err != nil || len(top) == 0 {
		t.Fatalf("no documents at the top: %v", err)
	}
	list := files(t, ".md", "docs")
	for _, path := range top {
		list = append(list, filepath.Base(path))
	}
	return list
}

var (
	fence   = regexp.MustCompile("(?ms)^```.*?^```$")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
)

// slug is the anchor that GitHub and its kind make of a heading.
func slug(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			return unicode.ToLower(r)
		case r == ' ':
			return '-'
		}
		return -1
	}, strings.TrimSpace(heading))
}

func anchors(text string) []string {
	var list []string
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		list = append(list, slug(m[1]))
	}
	return list
}

func TestLinksResolve(t *testing.T) {
	t.Parallel()
	for _, document := range documents(t) {
		text := read(t, document)
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			path, anchor, _ := strings.Cut(m[1], "#")
			target := document
			if path != "" {
				target = filepath.Join(filepath.Dir(document), path)
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s: link to %s: no such file", document, m[1])
				continue
			}
			if anchor != "" && !slices.Contains(anchors(read(t, target)), anchor) {
				t.Errorf("%s: link to %s: no such heading", document, m[1])
			}
		}
	}
}

// TestVariablesExist: a name that is copied out of the documentation causes no warning.
func TestVariablesExist(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, v := range config.Variables() {
		known[v.Name] = true
	}
	name := regexp.MustCompile(`DBCONNECTOR_[A-Z0-9_]+`)
	for _, path := range append(documents(t), files(t, "", "deploy")...) {
		for _, variable := range name.FindAllString(read(t, path), -1) {
			if !known[variable] && !strings.HasPrefix(variable, "DBCONNECTOR_TEST_") {
				t.Errorf("%s names %s, which is no variable of pkg/config", path, variable)
			}
		}
	}
}

// TestNamedTestsExist: the threat model says which test holds a control.
func TestNamedTestsExist(t *testing.T) {
	t.Parallel()
	exist := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)[A-Za-z0-9_]+)\(`)
	for _, path := range files(t, ".go", "cmd", "pkg", "test") {
		for _, m := range function.FindAllStringSubmatch(read(t, path), -1) {
			exist[m[1]] = true
		}
	}
	name := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9_]*)`")
	for _, document := range documents(t) {
		for _, m := range name.FindAllStringSubmatch(read(t, document), -1) {
			if !exist[m[1]] {
				t.Errorf("%s names the test %s, which does not exist", document, m[1])
			}
		}
	}
}

// TestNamesOfTestsAreUnique: a document names a test by its function alone, so there is one of that name. (F30)
func TestNamesOfTestsAreUnique(t *testing.T) {
	t.Parallel()
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9_]*)\(`)
	where := map[string]string{}
	for _, path := range files(t, "_test.go", "cmd", "pkg", "test") {
		for _, m := range function.FindAllStringSubmatch(read(t, path), -1) {
			if other := where[m[1]]; other != "" && m[1] != "TestMain" {
				t.Errorf("%s and %s both have a %s: give one of them a name of its own", other, path, m[1])
			}
			where[m[1]] = path
		}
	}
	if len(where) < 100 {
		t.Fatalf("only %d tests found: this test looks in the wrong way", len(where))
	}
}

// TestNamedFilesExist: a path of ours in backquotes is a path that exists.
func TestNamedFilesExist(t *testing.T) {
	t.Parallel()
	name := regexp.MustCompile("`((?:cmd|pkg|deploy|test|docs)/[A-Za-z0-9_./-]+)`")
	for _, document := range documents(t) {
		for _, m := range name.FindAllStringSubmatch(read(t, document), -1) {
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
				t.Errorf("%s names %s, which does not exist", document, m[1])
			}
		}
	}
}

// TestTablesAreWhole: a row that a blank line cuts off from its table is not rendered as one. (F30)
func TestTablesAreWhole(t *testing.T) {
	t.Parallel()
	rows := 0
	for _, document := range documents(t) {
		inside, lines := false, strings.Split(fence.ReplaceAllString(read(t, document), ""), "\n")
		for i, line := range lines {
			is := strings.HasPrefix(line, "|")
			if is {
				rows++
			}
			if is && !inside && (i+1 == len(lines) || !strings.HasPrefix(lines[i+1], "|--")) {
				t.Errorf("%s: this row belongs to no table: %s", document, line)
			}
			inside = is
		}
	}
	if rows < 100 {
		t.Fatalf("only %d rows found: this test looks in the wrong way", rows)
	}
}

// message is a text of the program that an operator may meet, with what fmt puts into it left out.
type message struct {
	where  string
	pieces []string
}

var verb = regexp.MustCompile(`%[-+# 0-9.*\[\]]*[a-zA-Z]|\x00`)

func pieces(text string) []string {
	return verb.Split(strings.ReplaceAll(text, "%%", "%\x00"), -1)
}

// least is the length below which a piece of text is punctuation around other messages, and says nothing by itself.
const least = 8

// distinct is the length from which a fragment stands for every text that contains it.
const distinct = 16

// source is a parsed Go file.
type source struct {
	path   string
	file   *ast.File
	set    *token.FileSet
	consts map[string]string
}

func sources(t *testing.T) []source {
	t.Helper()
	var list []source
	for _, path := range said(t) {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, filepath.Join(root, path), nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		s := source{path: path, file: file, set: set, consts: map[string]string{}}
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok {
				for i, name := range spec.Names {
					if i < len(spec.Values) {
						s.consts[name.Name] = s.text(spec.Values[i])
					}
				}
			}
			return true
		})
		list = append(list, s)
	}
	return list
}

// text is what an expression says as far as the source tells; NUL stands for what only a run knows.
func (s source) text(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			if value, err := strconv.Unquote(e.Value); err == nil {
				return value
			}
		}
	case *ast.BinaryExpr:
		return s.text(e.X) + s.text(e.Y)
	case *ast.ParenExpr:
		return s.text(e.X)
	case *ast.Ident:
		if value, ok := s.consts[e.Name]; ok {
			return value
		}
	case *ast.CallExpr:
		if isCall(e, "fmt", "Sprintf") {
			return s.text(e.Args[0])
		}
	}
	return "\x00"
}

func isCall(call *ast.CallExpr, pkg, name string) bool {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || f.Sel.Name != name {
		return false
	}
	x, ok := f.X.(*ast.Ident)
	return ok && x.Name == pkg
}

// isRefused tells whether an expression is fault.Refused, or a variable that may be.
func isRefused(e ast.Expr, variables bool) bool {
	switch e := e.(type) {
	case *ast.SelectorExpr:
		x, ok := e.X.(*ast.Ident)
		return ok && x.Name == "fault" && e.Sel.Name == "Refused"
	case *ast.Ident:
		return variables
	}
	return false
}

// refusals finds every text that can end a run with exit code 2:
//   - the format of fault.New and fault.Translate, where the class is fault.Refused or a variable;
//   - what is assigned together with fault.Refused;
//   - what is given to a function called refuse or missing. Those of pkg/config are left out, because each begins with a
//     variable's name, and docs/configuration.md has its rule;
//   - the rules that pkg/connector returns.
func refusals(t *testing.T) []message {
	t.Helper()
	var list []message
	for _, s := range sources(t) {
		add := func(e ast.Expr) {
			if p := pieces(s.text(e)); slices.ContainsFunc(p, func(piece string) bool { return len(strings.TrimSpace(piece)) >= least }) {
				list = append(list, message{fmt.Sprintf("%s:%d", s.path, s.set.Position(e.Pos()).Line), p})
			}
		}
		function := ""
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				function = n.Name.Name
			case *ast.AssignStmt:
				if slices.ContainsFunc(n.Rhs, func(e ast.Expr) bool { return isRefused(e, false) }) {
					for _, e := range n.Rhs {
						add(e)
					}
				}
			case *ast.ReturnStmt:
				if strings.HasPrefix(s.path, "pkg/connector/") && (function == "textRule" || function == "parseHost") {
					for _, e := range n.Results {
						add(e)
					}
				}
			case *ast.CallExpr:
				name := ""
				said := n.Args
				switch f := n.Fun.(type) {
				case *ast.Ident:
					name, said = f.Name, said[:min(1, len(said))] // refuse(format, args...)
				case *ast.SelectorExpr:
					name, said = f.Sel.Name, said[max(0, len(said)-1):] // p.refuse(key, rule)
				}
				switch {
				case isCall(n, "fault", "New") && len(n.Args) > 1 && isRefused(n.Args[0], true):
					add(n.Args[1])
				case isCall(n, "fault", "Translate") && len(n.Args) > 2 && isRefused(n.Args[0], true):
					add(n.Args[2])
				case (name == "refuse" || name == "missing") && !strings.HasPrefix(s.path, "pkg/config/"):
					for _, e := range said {
						add(e)
					}
				}
			}
			return true
		})
	}
	if len(list) < 50 {
		t.Fatalf("only %d refusals found in the sources: this test looks in the wrong way", len(list))
	}
	return list
}

// rows are the fragments in the first column of the tables of docs/messages.md that begin with "message".
func rows(t *testing.T) []string {
	t.Helper()
	fragment := regexp.MustCompile("`([^`]+)`")
	var list []string
	inside := false
	for line := range strings.Lines(read(t, "docs/messages.md")) {
		cells := strings.Split(line, "|")
		switch {
		case len(cells) < 4:
			inside = false
		case strings.TrimSpace(cells[1]) == "message":
			inside = true
		case inside && !strings.HasPrefix(cells[1], "---"):
			found := fragment.FindAllStringSubmatch(cells[1], -1)
			if len(found) == 0 {
				t.Errorf("docs/messages.md: a row without a fragment of the message in backquotes: %s", line)
			}
			for _, m := range found {
				list = append(list, m[1])
			}
		}
	}
	if len(list) == 0 {
		t.Fatal("docs/messages.md has no table of messages")
	}
	return list
}

// TestEveryRefusalIsExplained: a message that ends a run, and that is not in docs/messages.md, leaves an operator alone.
func TestEveryRefusalIsExplained(t *testing.T) {
	t.Parallel()
	fragments := rows(t)
	for _, m := range refusals(t) {
		if !slices.ContainsFunc(m.pieces, func(piece string) bool {
			return slices.ContainsFunc(fragments, func(fragment string) bool {
				// A short fragment is a part of too many texts: it has to be the whole of one.
				return strings.Contains(piece, fragment) && (len(fragment) >= distinct || strings.TrimSpace(piece) == strings.TrimSpace(fragment))
			})
		}) {
			t.Errorf("%s: no row of docs/messages.md covers %q", m.where, m.pieces)
		}
	}
}

// TestExplainedMessagesExist: a row for a message that was reworded is of no use in a search for the new one.
func TestExplainedMessagesExist(t *testing.T) {
	t.Parallel()
	var said []string
	for _, s := range sources(t) {
		ast.Inspect(s.file, func(n ast.Node) bool {
			if e, ok := n.(ast.Expr); ok {
				if text := s.text(e); len(text) > 1 {
					said = append(said, pieces(text)...)
				}
			}
			return true
		})
	}
	seen := map[string]bool{}
	for _, fragment := range rows(t) {
		if len(fragment) < least {
			t.Errorf("docs/messages.md: %q is too short to be found by", fragment)
		}
		if seen[fragment] {
			t.Errorf("docs/messages.md explains %q twice", fragment)
		}
		seen[fragment] = true
		if !slices.ContainsFunc(said, func(text string) bool { return strings.Contains(text, fragment) }) {
			t.Errorf("docs/messages.md explains %q, which no program says", fragment)
		}
	}
}

// TestLogMessagesAreListed holds the table of log lines to what the programs log.
func TestLogMessagesAreListed(t *testing.T) {
	t.Parallel()
	text := read(t, "docs/messages.md")
	logs := regexp.MustCompile(`(?i)\blog(?:\.(?:Debug|Info|Warn|Error)\(|ging\.Last\(log, )"([^"]+)"`)
	found := 0
	for _, path := range said(t) {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		for _, m := range logs.FindAllStringSubmatch(read(t, path), -1) {
			found++
			if !strings.Contains(text, "`"+m[1]+"`") {
				t.Errorf("docs/messages.md does not explain the log line %q of %s", m[1], path)
			}
		}
	}
	if found == 0 {
		t.Error("no log lines found: this test looks in the wrong way")
	}
}

// TestReadmeShowsWhatIsShipped: a block whose first line names a file says the same as that file, comments aside. One that
// begins with "part of" says a part of it. Of the values README.md has the link and docs/install.md a part.
func TestReadmeShowsWhatIsShipped(t *testing.T) {
	t.Parallel()
	block := regexp.MustCompile("(?ms)^```yaml\n# (part of )?(deploy/[^\n]+)\n(.*?)^```$")
	for document, want := range map[string][]string{
		"README.md":       {"deploy/kustomize/examples/connectors/postgres.yaml", "deploy/kustomize/examples/open-source/vcluster.yaml"},
		"docs/install.md": {"part of deploy/kustomize/examples/open-source/values.yaml"},
	} {
		var got []string
		for _, m := range block.FindAllStringSubmatch(read(t, document), -1) {
			got = append(got, m[1]+m[2])
			var shown, shipped any
			assert.NoErrorf(t, yaml.Unmarshal([]byte(m[3]), &shown), "%s, %s", document, m[2])
			require.NoError(t, yaml.Unmarshal([]byte(read(t, m[2])), &shipped), m[2])
			if m[1] == "" && !reflect.DeepEqual(shown, shipped) || m[1] != "" && !isPart(shown, shipped) {
				t.Errorf("%s shows %s%s as\n%v\nand shipped is\n%v", document, m[1], m[2], shown, shipped)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s shows %q, want %q", document, got, want)
		}
	}
	if !strings.Contains(read(t, "README.md"), "](deploy/kustomize/examples/open-source/values.yaml)") {
		t.Error("README.md does not link the values")
	}
}

// isPart tells whether all that shown has is in whole: each key with its value, and the entries of a list in their order.
func isPart(shown, whole any) bool {
	switch shown := shown.(type) {
	case map[string]any:
		whole, ok := whole.(map[string]any)
		for key, value := range shown {
			other, there := whole[key]
			ok = ok && there && isPart(value, other)
		}
		return ok
	case []any:
		whole, ok := whole.([]any)
		for _, value := range shown {
			i := slices.IndexFunc(whole, func(other any) bool { return isPart(value, other) })
			if !ok || i < 0 {
				return false
			}
			whole = whole[i+1:]
		}
		return ok
	}
	return reflect.DeepEqual(shown, whole)
}

// TestReadmeListsTheTestedVersions holds the table of engines to the versions that the test bed starts.
func TestReadmeListsTheTestedVersions(t *testing.T) {
	t.Parallel()
	names := map[string]string{"Postgres": "PostgreSQL", "MySQL": "MySQL", "MariaDB": "MariaDB"}
	want := map[string]string{}
	for _, m := range regexp.MustCompile(`\{Engine: (\w+), Version: "([0-9.]+)"`).FindAllStringSubmatch(read(t, "test/bed/bed.go"), -1) {
		name := names[m[1]]
		want[name] = strings.TrimPrefix(want[name]+", "+m[2], ", ")
	}
	got := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^\| (PostgreSQL|MySQL|MariaDB) \| ([0-9., ]+) \|`).FindAllStringSubmatch(read(t, "README.md"), -1) {
		got[m[1]] = m[2]
	}
	if !maps.Equal(got, want) || len(want) != len(names) {
		t.Errorf("README.md lists %v as tested, test/bed starts %v", got, want)
	}
}

// TestReadmeNamesAreDerivedAsItSays: the example of the contract is a true one.
func TestReadmeNamesAreDerivedAsItSays(t *testing.T) {
	t.Parallel()
	m := regexp.MustCompile("tenant UID `([^`]+)`\\s+gives\\s+database `([^`]+)`").FindStringSubmatch(read(t, "README.md"))
	if m == nil {
		t.Fatal("README.md has no example of a tenant UID and its database")
	}
	if names := tenant.NamesOf(m[1]); names.Database != m[2] {
		t.Errorf("README.md says that %q gives %q, and it gives %q", m[1], m[2], names.Database)
	}
}

// TestAgentsListsTheLayerRules: the import table names each rule of the linter.
func TestAgentsListsTheLayerRules(t *testing.T) {
	t.Parallel()
	var lint struct {
		Linters struct {
			Settings struct {
				Depguard struct {
					Rules map[string]any `json:"rules"`
				} `json:"depguard"`
			} `json:"settings"`
		} `json:"linters"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(read(t, ".golangci.yml")), &lint))
	agents := read(t, "AGENTS.md")
	rules := slices.Sorted(maps.Keys(lint.Linters.Settings.Depguard.Rules))
	if len(rules) == 0 {
		t.Fatal("no depguard rules found")
	}
	for _, rule := range rules {
		if !strings.Contains(agents, "`"+rule+"`") {
			t.Errorf("AGENTS.md does not name the layer rule %s", rule)
		}
	}
}

// A number that a comment cites leads somewhere, and a rule that is stated is held by something.
func TestCasesAreListed(t *testing.T) {
	t.Parallel()
	number := regexp.MustCompile(`\b[BSF][1-9][0-9]?\b`)
	listed := map[string]bool{}
	for _, row := range regexp.MustCompile(`(?m)^\| ([BSF][0-9]+) \|`).FindAllStringSubmatch(read(t, "docs/failures.md"), -1) {
		listed[row[1]] = true
	}
	cited := map[string]bool{}
	for _, file := range files(t, ".go", "cmd", "pkg", "test") {
		for _, c := range number.FindAllString(read(t, file), -1) {
			cited[c] = true
			if !listed[c] {
				t.Errorf("%s cites case %s, which docs/failures.md does not list", file, c)
			}
		}
	}
	for c := range listed {
		if !cited[c] {
			t.Errorf("docs/failures.md lists case %s, which no test and no code cites", c)
		}
	}
}

// TestCasesNameTheirTests: each case names tests, or files of tests, and these cite it; and each test that cites a case is named there.
func TestCasesNameTheirTests(t *testing.T) {
	t.Parallel()
	sources := map[string]string{} // of the functions that are tests, and of the files that they are in
	in := map[string]string{}      // the file of a test
	function := regexp.MustCompile(`(?ms)^(?://[^\n]*\n)*func ((?:Test|Fuzz)\w+)\(.*?^}\n`)
	for _, path := range files(t, ".go", "cmd", "pkg", "test") {
		if !strings.HasSuffix(path, "_test.go") && !strings.HasPrefix(path, "pkg/engine/enginetest/") {
			continue
		}
		text := read(t, path)
		sources[path] = text
		for _, m := range function.FindAllStringSubmatch(text, -1) {
			sources[m[1]], in[m[1]] = sources[m[1]]+m[0], path
		}
	}
	rows := regexp.MustCompile(`(?m)^\| ([BSF][0-9]+) \|.*\| ([^|]*) \|$`).FindAllStringSubmatch(read(t, "docs/failures.md"), -1)
	if len(rows) < 40 {
		t.Fatalf("only %d cases found: this test looks in the wrong way", len(rows))
	}
	named := map[string]string{}
	for _, row := range rows {
		named[row[1]] = row[2]
	}
	for name, path := range in {
		for _, c := range regexp.MustCompile(`\b[BSF][1-9][0-9]?\b`).FindAllString(sources[name], -1) {
			if !strings.Contains(named[c], "`"+name+"`") && !strings.Contains(named[c], "`"+path+"`") {
				t.Errorf("%s (%s) cites case %s, whose row in docs/failures.md does not name it", name, path, c)
			}
		}
	}
	for _, row := range rows {
		tests := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[2], -1)
		if len(tests) == 0 {
			t.Errorf("docs/failures.md: case %s names no test", row[1])
		}
		for _, m := range tests {
			if !regexp.MustCompile(`\b` + row[1] + `\b`).MatchString(sources[m[1]]) {
				t.Errorf("docs/failures.md: case %s names %s, which does not cite it", row[1], m[1])
			}
		}
	}
}

// TestConnectorDirIsNoRemedy: wherever the documents speak of a mounted connector as a remedy for T06, they say for whom it is none (S16).
func TestConnectorDirIsNoRemedy(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"docs/threat-model.md":  "It is no remedy where the ServiceAccount may create or patch pods",
		"docs/configuration.md": "no remedy for T06 where the ServiceAccount may create or patch pods",
		"README.md":             "a mounted connector is no remedy with the chart's own Role",
	} {
		if !strings.Contains(strings.Join(strings.Fields(read(t, path)), " "), want) {
			t.Errorf("%s does not say %q", path, want)
		}
	}
}
