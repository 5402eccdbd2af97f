// SPDX-License-Identifier: Apache-2.0

// Package logging is how the programs log: few lines, each for an operator, so without sampling, callers or stack traces; and
// a last one that says it all.
package logging

import (
	"encoding/json"
	"os"
	"syscall"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"dbconnector/pkg/config"
	"dbconnector/pkg/fault"
)

// New logs to standard error.
func New(level zapcore.Level, format string) *zap.Logger {
	encoding := zap.NewProductionEncoderConfig()
	encoding.EncodeTime = zapcore.ISO8601TimeEncoder
	encoding.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(encoding)
	if format == config.Console {
		encoder = zapcore.NewConsoleEncoder(encoding)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(os.Stderr), level))
}

// Last logs why a program ends. The kubelet shows the end of the log as the termination message, so the last line says it
// all, or what fits; what does not is in a line before. message is the program's own and constant.
func Last(log *zap.Logger, message string, err error, exitCode int) {
	reason := err.Error()
	short := shorten(reason)
	if short != reason {
		log.Error(message+", in full", zap.String("error", reason))
	}
	log.Error(message, zap.String("error", short), zap.Int("exitCode", exitCode))
	terminate(terminationLog, reason)
}

// terminationLog is the kubelet's default for a container's terminationMessagePath. It mounts a file there, also where the root
// file system is read-only. It is a variable so that a test can name another one (-ldflags -X).
var terminationLog = "/dev/termination-log"

// maxTermination is the most that the kubelet reads of it (MaxContainerTerminationMessageLength).
const maxTermination = 4096

// terminate leaves the reason as plain text for the kubelet, which else shows the end of the log: the reason would stand there
// behind what was logged before, as JSON. Where the kubelet has made no file, there is none to fill.
func terminate(path, reason string) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC|syscall.O_NONBLOCK, 0) //nolint:gosec // a constant but in tests
	if err != nil {
		return
	}
	defer file.Close() //nolint:errcheck // the log has it, too
	if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
		_, _ = file.WriteString(fault.Cut(reason, maxTermination))
	}
}

// maxReason is how much of an error the last line may hold, as JSON. The kubelet shows the last 2048 bytes of the log
// (MaxContainerTerminationMessageLogLength); the rest is for the line's other fields. What is longer repeats an admission
// policy's or a server's words, or lists very many mistakes.
const maxReason = 1800

// shorten cuts an error so that it fits into the last line. Its beginning says what was done and where.
func shorten(reason string) string {
	quoted := func(s string) int {
		text, _ := json.Marshal(s) // escapes at least what the logger escapes; a string cannot fail
		return len(text)
	}
	if quoted(reason) <= maxReason {
		return reason
	}
	const more = "… (cut; the line before has all of it)"
	// No character becomes shorter, so what is beyond this cannot fit.
	cut := reason[:min(len(reason), maxReason)]
	for cut != "" && quoted(cut+more) > maxReason {
		_, size := utf8.DecodeLastRuneInString(cut)
		cut = cut[:len(cut)-size]
	}
	return cut + more
}
