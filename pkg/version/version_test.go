// SPDX-License-Identifier: Apache-2.0

package version

import (
	"strings"
	"testing"

	"dbconnector/pkg/fault"
)

// TestAsked: -version is the one argument; another one is refused by its name, and a value that may be in it is not repeated. (F30)
func TestAsked(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		arguments string
		want      bool
		refused   string
	}{
		{"", false, ""},
		{"-version", true, ""},
		{"--version", true, ""},
		{"-v", false, `the argument "-v" is not known`},
		{"version", false, `the argument "version" is not known`},
		{"-version now", false, `the argument "now" is not known`},
		{"--dsn=postgres://u:hunter2@h", false, `the argument "--dsn" is not known`},
		{"postgres://u:hunter2@h", false, `the argument "postgres" is not known`},
	} {
		got, err := Asked(strings.Fields(test.arguments))
		if got != test.want || (err == nil) != (test.refused == "") {
			t.Errorf("%q: got %t, %v", test.arguments, got, err)
		}
		if err != nil && (!fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), test.refused) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%q: got class %v: %v, want %q", test.arguments, fault.Of(err), err, test.refused)
		}
	}
}

// TestVersionOfABuild: the build's own version counts; without it there is a version all the same. It can stand in a user
// agent. (F30)
func TestVersionOfABuild(t *testing.T) {
	if got := String(); got == "" || strings.ContainsAny(got, "() /") {
		t.Errorf("without the build's word it is %q", got)
	}
	version = "v1.2.3"
	t.Cleanup(func() { version = "" })
	if got := String(); got != "v1.2.3" {
		t.Errorf("got %q", got)
	}
}
