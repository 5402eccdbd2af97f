// SPDX-License-Identifier: Apache-2.0

// Package version knows which build of a program runs, and what a program answers when it is asked for that.
package version

import (
	"runtime"
	"runtime/debug"
	"strings"

	"dbconnector/pkg/fault"
)

// version is what the build says (-ldflags "-X dbconnector/pkg/version.version=…"); empty where it says nothing.
var version string

// String is the version of this build. Without the build's word it is that of the module, which Go makes from the checkout that
// was built: a tag, or the time and the commit, with "+dirty" where files were changed. Outside of a checkout it is "devel".
func String() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		if known := strings.Trim(info.Main.Version, "()"); known != "" {
			return known
		}
	}
	return "devel"
}

// Go is the version of the compiler.
func Go() string { return runtime.Version() }

// Asked tells whether the command line asks for the version. It is the one thing that the programs can be asked there: another
// argument is refused, for who gives one takes it to be in force. Only the beginning of an argument is shown, without what
// may be a value.
func Asked(arguments []string) (bool, error) {
	for _, argument := range arguments {
		if argument == "-version" || argument == "--version" {
			continue
		}
		if end := strings.IndexAny(argument, "=:"); end >= 0 {
			argument = argument[:end]
		}
		return false, fault.New(fault.Refused, "the argument %s is not known: settings are environment variables, and the only argument is -version",
			fault.Show(argument))
	}
	return len(arguments) > 0, nil
}
