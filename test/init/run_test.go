// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"dbconnector/test/rig"
)

// user is the user of the image.
const user = 65532

// credential is that of the image's user where the tests run as root, and else nil: the program then runs as the user
// of the tests.
func credential() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	return &syscall.Credential{Uid: user, Gid: user}
}

// dir makes a directory that belongs to the program's user.
func dir(tb testing.TB) string {
	tb.Helper()
	name, err := os.MkdirTemp(scratch, "") //nolint:usetesting // other users may not look into TempDir
	require.NoError(tb, err)
	give(tb, name)
	return name
}

func give(tb testing.TB, name string) {
	tb.Helper()
	if c := credential(); c != nil {
		require.NoError(tb, os.Chown(name, int(c.Uid), int(c.Gid)))
	}
}

// write makes a file that the program's user owns.
func write(tb testing.TB, path, content string) {
	tb.Helper()
	require.NoError(tb, os.WriteFile(path, []byte(content), 0o644))
	give(tb, path)
}

// shut closes a file or connection that is no longer needed.
func shut(c io.Closer) { _ = c.Close() }

func read(tb testing.TB, path ...string) string {
	tb.Helper()
	data, err := os.ReadFile(filepath.Join(path...))
	require.NoError(tb, err)
	return string(data)
}

func names(tb testing.TB, dir string) []string {
	tb.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(tb, err)
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// child is the program at work.
type child struct {
	*rig.Process
	stdout bytes.Buffer
	// argv and environ are visible to every user of the node.
	argv, environ string
}

// start runs the program with this environment and nothing else.
func start(tb testing.TB, env map[string]string) *child {
	tb.Helper()
	c := &child{Process: rig.NewProcess(tb.Context(), rig.Init)}
	c.Cmd.Dir, c.Output = "/", &c.stdout
	for _, name := range slices.Sorted(maps.Keys(env)) {
		c.Cmd.Env = append(c.Cmd.Env, name+"="+env[name])
	}
	c.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential()}
	require.NoError(tb, c.Start())
	c.argv, c.environ = c.Visible()
	return c
}

// outcome is the result of a run.
type outcome struct {
	code           int
	stdout, stderr string
	argv, environ  string
	took           time.Duration
	lines          []map[string]any // stderr, decoded; nil for a line that is not JSON
}

func (c *child) wait(tb testing.TB) *outcome {
	tb.Helper()
	r, err := c.Wait()
	require.NoError(tb, err)
	return &outcome{
		code: r.Exit, stdout: c.stdout.String(), stderr: r.Log, argv: c.argv, environ: c.environ, took: r.Took, lines: rig.Lines(r.Log),
	}
}

func run(tb testing.TB, env map[string]string) *outcome {
	tb.Helper()
	return start(tb, env).wait(tb)
}

// message describes the fault: the last line does or, where the text is too long for it, the line before.
func (o *outcome) message() string {
	if len(o.lines) == 0 {
		return ""
	}
	line := o.lines[len(o.lines)-1]
	if before := len(o.lines) - 2; before >= 0 && o.lines[before]["msg"] == "init failed, in full" {
		line = o.lines[before]
	}
	text, _ := line["error"].(string)
	return text
}

// lastLine is how the log ends.
func (o *outcome) lastLine() string {
	text := strings.TrimSuffix(o.stderr, "\n")
	return text[strings.LastIndex(text, "\n")+1:]
}

// said tells whether any line has this message and, among its fields, this text.
func (o *outcome) said(message, text string) bool {
	for _, line := range o.lines {
		if line["msg"] == message && strings.Contains(fmt.Sprint(line), text) {
			return true
		}
	}
	return false
}

// trace matches text that belongs in a stack trace and not in a log for operators.
var trace = regexp.MustCompile(`goroutine |panic:|\.go:[0-9]|runtime error|0x[0-9a-f]{8}`)

// wellBehaved checks the rules for every run, however it ends.
func (o *outcome) wellBehaved(tb testing.TB) {
	tb.Helper()
	if o.stdout != "" {
		tb.Errorf("stdout: %q, want nothing", o.stdout)
	}
	if found := trace.FindString(o.stderr); found != "" {
		tb.Errorf("stderr has a part of a stack trace: %q", found)
	}
	for i, line := range o.lines {
		if line == nil {
			tb.Errorf("line %d of stderr is no JSON object", i+1)
		}
	}
	if argv := strings.Trim(o.argv, "\x00"); argv != "" && argv != rig.Init {
		tb.Errorf("argv %q, want the program's name alone", argv)
	}
	if tb.Failed() {
		tb.Logf("stderr:\n%s", o.stderr)
	}
}

// succeeded checks a run that did its work.
func (o *outcome) succeeded(tb testing.TB) {
	tb.Helper()
	if o.code != 0 {
		tb.Fatalf("exit code %d, want 0\n%s", o.code, o.stderr)
	}
	o.wellBehaved(tb)
	if last := o.lines[len(o.lines)-1]; last["msg"] != "ready" {
		tb.Errorf("the last line is %v, want \"ready\"", last)
	}
}

// refused checks that a run ended with this code, and that its last line holds all of these texts.
func (o *outcome) refused(tb testing.TB, code int, want ...string) {
	tb.Helper()
	if o.code != code {
		tb.Errorf("exit code %d, want %d", o.code, code)
	}
	message := o.message()
	for _, text := range want {
		if !strings.Contains(message, text) {
			tb.Errorf("the message does not say %q:\n%s", text, message)
		}
	}
	if strings.ContainsAny(message, "\r\n\x00") {
		tb.Errorf("the message has more than one line: %q", message)
	}
	if len(o.lines) > 0 && o.lines[len(o.lines)-1]["exitCode"] != float64(code) {
		tb.Errorf("the last line does not give the exit code: %v", o.lines[len(o.lines)-1])
	}
	if n := len(o.lastLine()); n > 2048 {
		tb.Errorf("the last line has %d bytes: the kubelet shows the last 2048, and so not its beginning", n)
	}
	o.wellBehaved(tb)
}

// within checks that a run kept to its time limit. The margin is for a machine with more work than cores.
func (o *outcome) within(tb testing.TB, limit time.Duration) {
	tb.Helper()
	const margin = 10 * time.Second
	if o.took > limit+margin {
		tb.Errorf("took %s, with a time limit of %s", o.took.Round(time.Millisecond), limit)
	}
}

// hides checks that no secret is in a text, in any form from which a reader could recover it.
func hides(tb testing.TB, where, text string, secrets ...string) {
	tb.Helper()
	for _, secret := range secrets {
		for form, value := range forms(secret) {
			if strings.Contains(text, value) {
				tb.Errorf("%s shows a password (%s)", where, form)
			}
		}
	}
}

// hides checks everything that a run leaves where others can see it.
func (o *outcome) hides(tb testing.TB, secrets ...string) {
	tb.Helper()
	hides(tb, "stdout", o.stdout, secrets...)
	hides(tb, "stderr", o.stderr, secrets...)
	hides(tb, "argv", o.argv, secrets...)
	hides(tb, "the environment", o.environ, secrets...)
}

// forms are the spellings of a secret to look for. Base64 has three, by where in the encoded text the secret begins; its
// first and last characters there depend on the neighbours and are left out.
func forms(secret string) map[string]string {
	all := map[string]string{
		"as it is": secret, "in hexadecimal": hex.EncodeToString([]byte(secret)),
		"URL-encoded": url.QueryEscape(secret), "path-encoded": url.PathEscape(secret),
	}
	quoted, _ := json.Marshal(secret)
	all["quoted"] = strings.Trim(string(quoted), `"`)
	for offset := range 3 {
		for name, encoding := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
			text := encoding.EncodeToString(append(make([]byte, offset), secret...))
			begin := []int{0, 2, 3}[offset]
			all[fmt.Sprintf("%s at %d", name, offset)] = text[begin : len(text)-len(text)%4-2]
		}
	}
	return all
}
