// SPDX-License-Identifier: Apache-2.0

// Command bench measures what docs/benchmarks.md states and prints it as tables:
//
//	go run ./test/cmd/bench                    # print
//	go run ./test/cmd/bench -write             # and put them into docs/benchmarks.md
//	go run ./test/cmd/bench -only pods -write  # only what is measured in real pods; or processes, or socket
//	go run ./test/cmd/bench -only growth       # with up to 2,000 tenants on a server, a quarter of an hour; not part of the others
//
// Times are noise on a machine that does something else as well: compared programs run in pairs, one beside the other in
// changing order, and the result is the median of the pairs' ratios. Counts are exact, and a count that is off ends the
// program with exit code 1.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == measureFlag {
		os.Exit(measured(os.Args[2]))
	}
	write := flag.Bool("write", false, "put the tables into docs/benchmarks.md")
	only := flag.String("only", "", "measure one part alone: processes, pods, socket or growth")
	pairs := flag.Int("pairs", 25, "how many pairs are timed")
	herd := flag.Bool("herd", true, "let the herds loose")
	flag.Parse()
	if !slices.Contains([]string{"", processes, inPods, bySocket, growth}, *only) || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	bed.Progress = os.Stderr
	var errs []error
	if *only == "" || *only == processes {
		errs = append(errs, run(ctx, *pairs, *herd, *write))
	}
	if (*only == "" || *only == inPods) && ctx.Err() == nil {
		errs = append(errs, runPods(ctx, *write))
	}
	if (*only == "" || *only == bySocket) && ctx.Err() == nil {
		errs = append(errs, runSocket(ctx, *write))
	}
	if *only == growth {
		errs = append(errs, runGrowth(ctx, *write))
	}
	err := errors.Join(errs...)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// The parts, by the name of their markers in docs/benchmarks.md.
const (
	processes = "processes"
	inPods    = "pods"
	bySocket  = "socket"
	growth    = "growth"
)

// engines are the servers that are measured, with the counts that they must show.
var engines = []struct {
	engine  bed.Engine
	version string
	name    string
	// want is of a first provision; rotate and retire are of one sidecar. again is what it costs more when the sidecar meets a
	// session of its own that the server has not ended yet, and comes again: a refused login, and a session that looks around.
	want                  counts
	rotate, retire, again cost
}{
	{
		bed.Postgres, "17", "PostgreSQL",
		counts{API: 5, Connections: 3, Admin: 2, Statements: 22},
		cost{Connections: 5, Statements: 15},
		cost{Connections: 8, Statements: 26},
		cost{},
	},
	{
		bed.MySQL, "9.7", "MySQL",
		counts{API: 5, Connections: 2, Admin: 1, Statements: 19},
		cost{Connections: 5, Statements: 14},
		cost{Connections: 8, Statements: 24},
		cost{Connections: 2, Statements: 4},
	},
	{
		bed.MariaDB, "11.8", "MariaDB",
		counts{API: 5, Connections: 2, Admin: 1, Statements: 19},
		cost{Connections: 5, Statements: 14},
		cost{Connections: 8, Statements: 24},
		cost{Connections: 2, Statements: 4},
	},
}

// restart has the counts that a restart must show, with every engine.
var restart = counts{API: 1, Connections: 1}

const (
	maxSize   = 25e6
	maxMemory = 30 << 20
)

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }

// newBench builds the programs and starts an API server; end stops it and removes all.
func newBench(ctx context.Context, pairs int) (b *bench, end func() error, err error) {
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return nil, nil, err
	}
	b = &bench{dir: dir, volume: dir, pairs: pairs}
	remove := func() error { return errors.Join(os.RemoveAll(b.dir), os.RemoveAll(b.volume)) }
	defer func() {
		if err != nil {
			err = errors.Join(err, remove())
		}
	}()
	if memory, err := os.MkdirTemp("/dev/shm", "bench-"); err == nil {
		b.volume = memory
	}
	progress("building")
	b.minimal = filepath.Join(dir, "minimal")
	if err := errors.Join(rig.Build(ctx, dir, rig.BriefQuiet), bed.Build(ctx, b.minimal, "test/cmd/bench/minimal")); err != nil {
		return nil, nil, err
	}
	progress("starting an API server")
	if err := b.startAPI(ctx); err != nil {
		return nil, nil, err
	}
	return b, func() error { return errors.Join(b.cluster.API.Stop(context.WithoutCancel(ctx)), remove()) }, nil
}

func run(ctx context.Context, pairs int, herd, write bool) (err error) {
	b, end, err := newBench(ctx, pairs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()

	var off []string
	var sizes [2]int64
	for i, name := range []string{rig.Init, rig.Rotate} {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		sizes[i] = info.Size()
		if sizes[i] > maxSize {
			off = append(off, fmt.Sprintf("%s has %d bytes, at most %d are allowed", filepath.Base(name), sizes[i], int64(maxSize)))
		}
	}
	var figures []figures
	for i := range engines {
		f, wrong, err := b.engine(ctx, i, herd)
		if err != nil {
			return fmt.Errorf("%s: %w", engines[i].name, err)
		}
		figures, off = append(figures, f), append(off, wrong...)
	}
	return report(processes, render(figures, sizes, pairs), off, write)
}

// runPods measures the figures that only real pods can show.
func runPods(ctx context.Context, write bool) error {
	f, off, err := onNode(ctx)
	if err != nil {
		return err
	}
	return report(inPods, renderNode(f), off, write)
}

// report shows a part's figures, and marks those that are off.
func report(part, table string, off []string, write bool) error {
	fmt.Println(table)
	if write {
		if err := writeTable(part, table); err != nil {
			return err
		}
	}
	if len(off) > 0 {
		return fmt.Errorf("figures are off:\n%s", strings.Join(off, "\n"))
	}
	return nil
}

// figures are the results for one engine.
type figures struct {
	version        string
	first, restart counts
	overMinimal    ratio
	// overClient is of a first provision; strict against a client that leaves the verification out; direct without Kubernetes.
	overClient, strict, direct ratio
	memory                     [2]int64 // of a first provision and of a restart
	// one and three are rotations with so many sidecars.
	one, three      rotations
	perHour         float64 // API requests of an idle sidecar
	idle            idleFigures
	herd            rig.HerdResult
	herdRotation    rig.HerdRotation
	herdWasLetLoose bool
}

func render(all []figures, sizes [2]int64, pairs int) string {
	var s strings.Builder
	row := func(what, goal string, cell func(f figures) string) {
		fmt.Fprintf(&s, "| %s | %s |", what, goal)
		for _, f := range all {
			fmt.Fprintf(&s, " %s |", cell(f))
		}
		s.WriteString("\n")
	}
	fmt.Fprintf(&s, "Measured on %s, %d cores, %s; %d pairs for each ratio.\n\n", cpu(), runtime.NumCPU(), runtime.Version(), pairs)
	s.WriteString("| Figure | Goal |")
	for i, f := range all {
		fmt.Fprintf(&s, " %s %s |", engines[i].name, short(f.version))
	}
	s.WriteString("\n|---|---|" + strings.Repeat("---:|", len(all)) + "\n")
	row("Restart: API requests", "1", func(f figures) string { return fmt.Sprint(f.restart.API) })
	row("Restart: database connections", "1", func(f figures) string { return fmt.Sprint(f.restart.Connections) })
	row("Restart: connections of the admin", "0", func(f figures) string { return fmt.Sprint(f.restart.Admin) })
	row("Restart: time / minimal program", "≤ 1.5", func(f figures) string { return f.overMinimal.String() })
	row("First provision: API requests", "", func(f figures) string { return fmt.Sprint(f.first.API) })
	row("First provision: database connections (of the admin)", "", func(f figures) string {
		return fmt.Sprintf("%d (%d)", f.first.Connections, f.first.Admin)
	})
	row("First provision: requests with SQL", "", func(f figures) string { return fmt.Sprint(f.first.Statements) })
	row("First provision: time / same statements by psql, mariadb", "≤ 1.3", func(f figures) string { return f.overClient.String() })
	row("Against the admin's statements alone, one client process", "", func(f figures) string { return f.strict.String() })
	row("All statements, without Kubernetes", "≤ 1.3", func(f figures) string { return f.direct.String() })
	row("Peak memory, first provision", "≤ 30 MiB", func(f figures) string { return mib(f.memory[0]) })
	row("Peak memory, restart", "≤ 30 MiB", func(f figures) string { return mib(f.memory[1]) })
	if all[0].herdWasLetLoose {
		row(fmt.Sprintf("Herd of %d, max_connections=%d: failed", rig.Herd, rig.HerdLimit), "0", func(f figures) string { return fmt.Sprint(len(f.herd.Failed)) })
		row("Herd: p50 / p99", "", func(f figures) string {
			return fmt.Sprintf("%.1f s / %.1f s", f.herd.P50.Seconds(), f.herd.P99.Seconds())
		})
		row("Herd: most connections of the admin at once", "", func(f figures) string { return fmt.Sprint(f.herd.Peak) })
	}
	row("Rotation: connections, requests with SQL, API requests", "", func(f figures) string { return spans(f.one.rotate) })
	row("Retirement: the same", "", func(f figures) string { return spans(f.one.retire) })
	row(fmt.Sprintf("Rotation, %d replicas", replicas), "", func(f figures) string { return spans(f.three.rotate) })
	row(fmt.Sprintf("Retirement, %d replicas", replicas), "", func(f figures) string { return spans(f.three.retire) })
	row("From due to handed over: median (longest)", "", func(f figures) string { return f.one.times() })
	row(fmt.Sprintf("The same, %d replicas, to the last of them", replicas), "", func(f figures) string { return f.three.times() })
	row("Idle sidecar: memory (without the program's pages)", "≤ 25 MiB", func(f figures) string {
		return fmt.Sprintf("%s (%s)", mib(f.idle.memory), mib(f.idle.own))
	})
	row("Idle sidecar: CPU per hour", "", func(f figures) string { return fmt.Sprintf("%.1f s", f.idle.cpu.Seconds()) })
	row("Idle sidecar: API requests per hour", "≤ 5", func(f figures) string { return fmt.Sprintf("%.1f", f.perHour) })
	row("Idle sidecar: database connections", "0", func(f figures) string { return fmt.Sprint(f.idle.logins) })
	if all[0].herdWasLetLoose {
		row(fmt.Sprintf("%d rotations due at once, max_connections=%d: failed", rig.Herd, rig.HerdLimit), "0",
			func(f figures) string { return fmt.Sprint(len(f.herdRotation.Failed)) })
		row("From due to handed over: p50 / p99", "", func(f figures) string {
			return fmt.Sprintf("%.1f s / %.1f s", f.herdRotation.P50.Seconds(), f.herdRotation.P99.Seconds())
		})
		row("Most connections of all tenants at once", "", func(f figures) string { return fmt.Sprint(f.herdRotation.Peak) })
	}
	row("Binaries, stripped: init, rotate", "≤ 25 MB", func(figures) string {
		return fmt.Sprintf("%.1f MB, %.1f MB", float64(sizes[0])/1e6, float64(sizes[1])/1e6)
	})
	return s.String()
}

func short(version string) string {
	version, _, _ = strings.Cut(version, "-")
	return version
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// cpu is the processor's name, as the kernel has it.
func cpu() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// writeTable puts a part's table between its markers in docs/benchmarks.md.
func writeTable(part, table string) error {
	begin, end := "<!-- "+part+": begin -->", "<!-- "+part+": end -->"
	name := filepath.Join("docs", "benchmarks.md")
	text, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("%w (is this the module's root?)", err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no markers %s and %s", name, begin, end)
	}
	return os.WriteFile(name, []byte(before+begin+"\n"+table+"\n"+end+after), 0o644)
}

func since(began time.Time) time.Duration { return time.Since(began) }
