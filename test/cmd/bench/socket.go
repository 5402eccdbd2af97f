// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"dbconnector/pkg/handover"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/controlplane"
	"dbconnector/test/rig"
)

const (
	// loadTime is how long a load lasts each time, and loadRounds how often each way has its turn.
	loadTime   = 2 * time.Second
	loadRounds = 5
	// busy is how many sessions the sidecar's memory is measured with.
	busy = 40
	// maxBusyMemory is a goal.
	maxBusyMemory = 40 << 20
	// querySize is how much the queries return whose latency is measured, in bytes.
	querySize = 200
	// latencyBlock is how many queries go one way before it is the other's turn.
	latencyBlock, latencyBlocks = 500, 40
	// kineWriters write at the same time.
	kineWriters = 8
	// sessionRotations is how often the first session with a new login is waited for.
	sessionRotations = 5
)

// A load is a tool's, with a number of clients.
type load struct {
	name    string
	script  string // as the tool knows it
	clients int
}

// loadsOf are what the tools offer: one query by its key, and a transaction of several statements.
func loadsOf(engine bed.Engine) (all []load) {
	scripts := [][2]string{{"sysbench, point select", "oltp_point_select.lua"}, {"sysbench, read and write", "oltp_read_write.lua"}}
	if engine == bed.Postgres {
		scripts = [][2]string{{"pgbench, select only", "select-only"}, {"pgbench, TPC-B", "tpcb-like"}}
	}
	for _, script := range scripts {
		for _, clients := range []int{1, 8, 20} {
			all = append(all, load{script[0], script[1], clients})
		}
	}
	return all
}

// loadFigures are of one load.
type loadFigures struct {
	load
	direct         float64 // transactions in a second, in the median
	socket, pooler float64 // of that; the medians of the rounds' ratios
	own, poolers   time.Duration
}

// socketFigures are of one engine.
type socketFigures struct {
	name, version string
	loads         []loadFigures
	median, p99   [2]time.Duration // of a query: directly, and through the socket
	session       ratio
	kine          float64 // operations through the socket / directly
	kineDirect    float64 // in a second
	memory, own   int64
	firstSession  []time.Duration
}

// socketBench is a tenant whose sidecar serves a socket, and one with the server in its connection string.
type socketBench struct {
	b              *bench
	s              *bed.Server
	socket, direct *rig.Tenant
	sidecar        *rig.Process
	record         *tenant.Record // of socket
	ca             string
	pooler         *bed.Pooler // PostgreSQL only
	home           string      // of the tools
}

func runSocket(ctx context.Context, write bool) (err error) {
	b, end, err := newBench(ctx, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	var all []socketFigures
	var off []string
	for i := range engines {
		f, err := b.bySocket(ctx, i)
		if err != nil {
			return fmt.Errorf("%s: %w", engines[i].name, err)
		}
		if f.memory > maxBusyMemory {
			off = append(off, fmt.Sprintf("%s: a sidecar with %d busy sessions takes %s of memory", f.name, busy, mib(f.memory)))
		}
		all = append(all, f)
	}
	return report(bySocket, renderSocket(all), off, write)
}

func (b *bench) bySocket(ctx context.Context, i int) (f socketFigures, err error) {
	e := engines[i]
	s, err := bed.Start(ctx, e.engine, e.version, bed.Options{MaxConnections: 300})
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, s.Stop(context.WithoutCancel(ctx))) }()
	f.name, f.version = e.name, s.FullVersion
	x, err := b.newSocketBench(ctx, s)
	if err != nil {
		return f, err
	}
	defer x.close()
	for _, step := range []struct {
		name string
		do   func(context.Context, *socketFigures) error
	}{
		{"latency", x.latency},
		{"new sessions", x.newSessions},
		{"kine", x.kine},
		{"memory", x.memory}, // prepares what the tools read
		{"tools", x.tools},
		{"rotations", x.rotations},
	} {
		progress("%s, socket: %s", e.name, step.name)
		if err := step.do(ctx, &f); err != nil {
			return f, fmt.Errorf("%s: %w\n%s", step.name, err, x.sidecar.Log())
		}
	}
	return f, nil
}

func (b *bench) newSocketBench(ctx context.Context, s *bed.Server) (x *socketBench, err error) {
	connector := "socket-" + string(s.Engine)
	if err := b.cluster.Connector(ctx, connector, rig.Connector(s, s.AdminUser, s.AdminPassword, "", true)); err != nil {
		return nil, err
	}
	x = &socketBench{b: b, s: s, ca: filepath.Join(b.dir, connector+".crt"), home: filepath.Join(b.dir, connector)}
	for _, t := range []**rig.Tenant{&x.direct, &x.socket} {
		if *t, err = b.tenant(connector); err != nil {
			return nil, err
		}
		(*t).Settings = []string{"DBCONNECTOR_CONNECTION_LIMIT=100"}
	}
	x.socket.Settings = append(x.socket.Settings, "DBCONNECTOR_ADOPT=socket")
	for _, t := range []*rig.Tenant{x.direct, x.socket} {
		if err := os.MkdirAll(handover.PrivateDir(t.Out), 0o700); err != nil {
			return nil, err
		}
		if _, err := t.Provision(ctx); err != nil {
			return nil, err
		}
	}
	if x.record, err = x.socket.Record(ctx); err != nil {
		return nil, err
	}
	if err := errors.Join(os.WriteFile(x.ca, s.CA, 0o600), x.prepareTools(ctx)); err != nil {
		return nil, err
	}
	if s.Engine == bed.Postgres {
		if x.pooler, err = bed.StartPooler(ctx, s, "session", "default_pool_size = 100", "max_client_conn = 200"); err != nil {
			return nil, err
		}
	}
	x.sidecar, err = x.socket.Rotate(ctx, "", "ROTATION_PERIOD="+policy.Period.String(), "GRACE="+policy.Grace.String())
	if err == nil {
		err = x.ready(ctx)
	}
	if err != nil {
		x.close()
	}
	return x, err
}

// prepareTools makes the directory where the tools run. sysbench takes its scripts and the certificates for TLS from there, under fixed
// names, and wants one of its own.
func (x *socketBench) prepareTools(ctx context.Context) error {
	authority, err := bed.Authority()
	if err != nil {
		return err
	}
	own, err := authority.Issue(bed.Request{Client: true})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(x.home, 0o700); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"cacert.pem": x.s.CA, "client-cert.pem": own.Cert, "client-key.pem": own.Key} {
		if err := os.WriteFile(filepath.Join(x.home, name), data, 0o600); err != nil {
			return err
		}
	}
	sysbench, err := bed.Client(ctx, "sysbench")
	if err != nil {
		return err
	}
	scripts, err := filepath.Glob(filepath.Join(sysbench.Dir, "*.lua"))
	for _, script := range scripts {
		err = errors.Join(err, os.Symlink(script, filepath.Join(x.home, filepath.Base(script))))
	}
	return err
}

func (x *socketBench) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, rig.Patience)
	defer cancel()
	return bed.Wait(ctx, func(ctx context.Context) error {
		status, body, err := x.sidecar.Get(ctx, "/readyz")
		if err == nil && status/100 != 2 {
			err = fmt.Errorf("the sidecar is not ready: %s", body)
		}
		return err
	})
}

func (x *socketBench) close() {
	if x.sidecar != nil {
		x.sidecar.Kill()
	}
	if x.pooler != nil {
		x.pooler.Stop()
	}
}

// open opens the pools that a client has without and with the socket: of the same database, with the same login.
func (x *socketBench) open() (direct, socket *sql.DB, err error) {
	login := x.record.Login(x.record.Active)
	if direct, err = x.s.Open(login.User, login.Password.Reveal(), x.record.Database); err != nil {
		return nil, nil, err
	}
	dsn, err := x.socket.DSN()
	if err != nil {
		return nil, nil, err
	}
	socket, err = rig.OpenDSN(dsn, nil)
	return direct, socket, err
}

// latency is of queries one after the other, by turns directly and through the socket.
func (x *socketBench) latency(ctx context.Context, f *socketFigures) error {
	direct, socket, err := x.open()
	if err != nil {
		return err
	}
	defer direct.Close()
	defer socket.Close()
	query := "SELECT '" + strings.Repeat("x", querySize) + "'"
	var took [2][]time.Duration
	for n := range 2 * (latencyBlocks + 1) {
		way, warm := n%2, n < 2
		conn, err := []*sql.DB{direct, socket}[way].Conn(ctx)
		if err != nil {
			return err
		}
		for range latencyBlock {
			var got string
			began := time.Now()
			if err := conn.QueryRowContext(ctx, query).Scan(&got); err != nil {
				return err
			}
			if !warm {
				took[way] = append(took[way], since(began))
			}
		}
		if err := conn.Close(); err != nil {
			return err
		}
	}
	for way := range took {
		f.median[way], f.p99[way] = rig.Quantile(took[way], 0.5), rig.Quantile(took[way], 0.99)
	}
	return nil
}

// newSessions are opened and ended, one after the other.
func (x *socketBench) newSessions(ctx context.Context, f *socketFigures) (err error) {
	const pairs = 100
	direct, socket, err := x.open()
	if err != nil {
		return err
	}
	defer direct.Close()
	defer socket.Close()
	open := func(db *sql.DB) func() (time.Duration, error) {
		db.SetMaxIdleConns(0)
		return func() (time.Duration, error) {
			began := time.Now()
			conn, err := db.Conn(ctx)
			if err != nil {
				return 0, err
			}
			took := since(began)
			return took, conn.Close()
		}
	}
	f.session, err = compare(pairs, open(socket), open(direct))
	return err
}

// kine is kine's own operations: writers create objects and change them, by turns of one kine on the socket and one on the server.
func (x *socketBench) kine(ctx context.Context, f *socketFigures) (err error) {
	var ends [2]string
	for i, t := range []*rig.Tenant{x.direct, x.socket} {
		dsn, err := t.DSN()
		if err != nil {
			return err
		}
		ca := ""
		if t == x.direct {
			ca = x.ca
		}
		kine, err := bed.StartKine(ctx, dsn, ca)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, kine.Stop(context.WithoutCancel(ctx))) }()
		ends[i] = kine.Endpoint
	}
	var rates, ratios []float64
	for n := range loadRounds + 1 {
		var rate [2]float64
		for _, way := range order(n, len(ends)) {
			var err error
			if rate[way], err = kineLoad(ctx, ends[way], n); err != nil {
				return err
			}
		}
		if n > 0 { // the first warms caches up
			rates, ratios = append(rates, rate[0]), append(ratios, rate[1]/rate[0])
		}
	}
	f.kineDirect, f.kine = median(rates), median(ratios)
	return nil
}

// kineLoad returns the operations in a second.
func kineLoad(ctx context.Context, endpoint string, round int) (float64, error) {
	client, err := controlplane.Dial(endpoint)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	var done atomic.Int64
	began := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for writer := range kineWriters {
		group.Go(func() error {
			value := strings.Repeat("v", 1000) // of the size of a small object
			for i := 0; since(began) < loadTime; i++ {
				key := fmt.Sprintf("/registry/bench/%d-%d-%d", round, writer, i)
				revision, err := controlplane.Put(ctx, client, key, value, 0)
				if err != nil {
					return err
				}
				if _, err := controlplane.Put(ctx, client, key, value, revision); err != nil {
					return err
				}
				done.Add(2)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return float64(done.Load()) / since(began).Seconds(), nil
}

// order is that of n ways in a round: each is the first one now and then.
func order(round, n int) []int {
	ways := make([]int, n)
	for i := range ways {
		ways[i] = (i + round) % n
	}
	return ways
}

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

// tool is a command that puts load on a database.
type tool struct {
	argv    []string
	environ []string
}

// rate is where a tool says how many transactions in a second it has had.
var rate = regexp.MustCompile(`(?m)(?:^tps = |^ +transactions: .*\()(\d+(?:\.\d+)?)`)

// run returns what a tool says.
func (x *socketBench) run(ctx context.Context, t tool) (string, error) {
	cmd, err := bed.Client(ctx, t.argv[0], t.argv[1:]...)
	if err != nil {
		return "", err
	}
	cmd.Dir = x.home
	cmd.Env = append(append(cmd.Env, "PATH="+os.Getenv("PATH"), "HOME="+x.home, "LC_ALL=C"), t.environ...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("running %s: %w\n%s", t.argv[0], err, said.String())
	}
	return said.String(), nil
}

// load runs a load, and returns its transactions in a second.
func (x *socketBench) load(ctx context.Context, w way, l load, lasts time.Duration) (float64, error) {
	t := x.command(w, l, lasts)
	said, err := x.run(ctx, t)
	if err != nil {
		return 0, err
	}
	m := rate.FindStringSubmatch(said)
	if m == nil {
		return 0, fmt.Errorf("%s does not say how many transactions it has had:\n%s", t.argv[0], said)
	}
	return strconv.ParseFloat(m[1], 64)
}

// way is how a tool reaches the database.
type way struct {
	args    []string
	environ []string
	pid     int // of what is between; 0 for nothing
}

func (x *socketBench) ways() []way {
	login := x.record.Login(x.record.Active)
	port := strconv.Itoa(x.s.Port)
	if x.s.Engine == bed.Postgres {
		to := func(host, port string, more ...string) []string {
			return append([]string{"PGHOST=" + host, "PGPORT=" + port, "PGUSER=" + login.User, "PGDATABASE=" + x.record.Database}, more...)
		}
		password := "PGPASSWORD=" + login.Password.Reveal()
		return []way{
			{environ: to(x.s.Host, port, password, "PGSSLMODE=verify-full", "PGSSLROOTCERT="+x.ca)},
			{environ: to(x.socket.Out, "5432", "PGSSLMODE=disable"), pid: x.sidecar.Pid()},
			{environ: to(x.pooler.Dir, strconv.Itoa(x.pooler.Port), password), pid: x.pooler.PID()},
		}
	}
	to := func(args ...string) []string {
		return append(args, "--db-driver=mysql", "--mysql-user="+login.User, "--mysql-db="+x.record.Database)
	}
	return []way{
		// sysbench takes a password as an argument. Only this machine reaches the bench's server, which ends with the bench.
		{args: to("--mysql-host="+x.s.Host, "--mysql-port="+port, "--mysql-password="+login.Password.Reveal(), "--mysql-ssl=on")},
		{args: to("--mysql-socket=" + filepath.Join(x.socket.Out, "mysql.sock")), pid: x.sidecar.Pid()},
	}
}

// command is a load on a way; the zero load prepares the tables.
func (x *socketBench) command(w way, l load, lasts time.Duration) tool {
	seconds := fmt.Sprint(lasts.Seconds())
	if x.s.Engine == bed.Postgres {
		if l.clients == 0 {
			return tool{[]string{"pgbench", "--initialize", "--quiet", "--scale=10"}, w.environ}
		}
		return tool{[]string{
			"pgbench", "--no-vacuum", "--builtin=" + l.script, "--protocol=prepared", "--jobs=" + strconv.Itoa(min(l.clients, 2)),
			"--client=" + strconv.Itoa(l.clients), "--time=" + seconds,
		}, w.environ}
	}
	argv := append([]string{"sysbench", "oltp_read_write.lua", "--tables=4", "--table-size=25000"}, w.args...)
	if l.clients == 0 {
		return tool{append(argv, "prepare"), w.environ}
	}
	argv[1] = l.script
	return tool{append(argv, "--threads="+strconv.Itoa(l.clients), "--time="+seconds, "run"), w.environ}
}

// tools has the standard tools put load on the database, by turns directly, through the socket and, on PostgreSQL, through PgBouncer.
func (x *socketBench) tools(ctx context.Context, f *socketFigures) error {
	ways := x.ways()
	defer func() { // it keeps sessions, and no login is retired that is in use
		if x.pooler != nil {
			x.pooler.Stop()
			x.pooler = nil
		}
	}()
	for _, l := range loadsOf(x.s.Engine) {
		figures := loadFigures{load: l}
		rates, ratios, cpu := make([][]float64, len(ways)), make([][]float64, len(ways)), make([][]float64, len(ways))
		for n := range loadRounds {
			tps := make([]float64, len(ways))
			for _, i := range order(n, len(ways)) {
				before, err := spent(ways[i].pid)
				if err != nil {
					return err
				}
				if tps[i], err = x.load(ctx, ways[i], l, loadTime); err != nil {
					return err
				}
				after, err := spent(ways[i].pid)
				if err != nil {
					return err
				}
				rates[i] = append(rates[i], tps[i])
				cpu[i] = append(cpu[i], float64(after-before)/(tps[i]*loadTime.Seconds()))
			}
			for i := range ways {
				ratios[i] = append(ratios[i], tps[i]/tps[0])
			}
		}
		figures.direct, figures.socket, figures.own = median(rates[0]), median(ratios[1]), time.Duration(median(cpu[1]))
		if x.pooler != nil {
			figures.pooler, figures.poolers = median(ratios[2]), time.Duration(median(cpu[2]))
		}
		progress("%s: %d clients: %.0f per s, socket %.2f, PgBouncer %.2f", l.name, l.clients, figures.direct, figures.socket, figures.pooler)
		f.loads = append(f.loads, figures)
	}
	return nil
}

// spent is a process's CPU time, 0 for no process.
func spent(pid int) (time.Duration, error) {
	if pid == 0 {
		return 0, nil
	}
	return cpuTime(pid)
}

// memory is the sidecar's with many sessions that are busy.
func (x *socketBench) memory(ctx context.Context, f *socketFigures) error {
	if _, err := x.run(ctx, x.command(x.ways()[0], load{}, 0)); err != nil {
		return err
	}
	l := loadsOf(x.s.Engine)[0]
	l.clients = busy
	sessions := 0
	var loading atomic.Bool
	loading.Store(true)
	group, both := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer loading.Store(false)
		_, err := x.load(both, x.ways()[1], l, 5*loadTime) // 40 logins take a while on a busy machine
		return err
	})
	group.Go(func() error {
		for loading.Load() {
			all, own, err := resident(x.sidecar.Pid())
			if err != nil {
				return err
			}
			f.memory, f.own = max(f.memory, all), max(f.own, own)
			metrics, err := x.sidecar.Metrics(both)
			if err != nil {
				return err
			}
			for name, value := range metrics {
				if strings.HasPrefix(name, "dbconnector_socket_sessions") {
					sessions = max(sessions, int(value))
				}
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if sessions < busy {
		return fmt.Errorf("the sidecar had %d sessions at most", sessions)
	}
	return nil
}

// rotations is how long after the commit the first session has the new login.
func (x *socketBench) rotations(ctx context.Context, f *socketFigures) error {
	_, socket, err := x.open()
	if err != nil {
		return err
	}
	defer socket.Close()
	socket.SetMaxIdleConns(0) // each query has a session of its own
	for range sessionRotations {
		took, err := x.rotation(ctx, socket)
		if err != nil {
			return err
		}
		f.firstSession = append(f.firstSession, took)
	}
	return nil
}

func (x *socketBench) rotation(ctx context.Context, socket *sql.DB) (time.Duration, error) {
	before, err := x.socket.Record(ctx)
	if err != nil {
		return 0, err
	}
	if err := x.socket.SetDue(ctx, time.Now().Add(time.Second), policy); err != nil {
		return 0, err
	}
	asked := "SELECT session_user::text"
	if x.s.Engine != bed.Postgres {
		asked = "SELECT SUBSTRING_INDEX(CURRENT_USER(), '@', 1)"
	}
	var committed, first time.Time
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	group, both := errgroup.WithContext(ctx)
	group.Go(func() error {
		for {
			began := time.Now()
			now, err := x.socket.Record(both)
			if err != nil || now.Generation > before.Generation {
				committed = began
				return err
			}
		}
	})
	group.Go(func() error {
		for {
			var name string
			if err := socket.QueryRowContext(both, asked).Scan(&name); err != nil {
				return err
			}
			if name == before.Login(before.Active.Other()).User {
				first = time.Now()
				return nil
			}
		}
	})
	if err := group.Wait(); err != nil {
		return 0, err
	}
	held, err := socket.Conn(ctx) // the sidecar wants to see that its control plane has adopted the login
	if err != nil {
		return 0, err
	}
	defer held.Close()
	err = bed.Wait(ctx, func(ctx context.Context) error {
		record, err := x.socket.Record(ctx)
		if err == nil && !record.OtherRetired {
			err = errors.New("the old password is never retired")
		}
		return err
	})
	return max(0, first.Sub(committed)), err
}

func renderSocket(all []socketFigures) string {
	var s strings.Builder
	fmt.Fprintf(&s, "Measured on %s, %d cores, %s; clients, sidecar and server on the same cores. Each way had %d turns of %s.\n",
		cpu(), runtime.NumCPU(), runtime.Version(), loadRounds, loadTime)
	s.WriteString("\n| Load | Clients | Directly, per s | Socket / directly | PgBouncer / directly | Sidecar's CPU per transaction | PgBouncer's |\n" +
		"|---|---:|---:|---:|---:|---:|---:|\n")
	for _, f := range all {
		for _, l := range f.loads {
			pooler, poolers := "", ""
			if l.pooler > 0 {
				pooler, poolers = fmt.Sprintf("%.2f", l.pooler), micro(l.poolers)
			}
			fmt.Fprintf(&s, "| %s, %s | %d | %.0f | **%.2f** | %s | %s | %s |\n", f.name, l.name, l.clients, l.direct, l.socket, pooler, micro(l.own), poolers)
		}
	}
	s.WriteString("\n| Figure | Goal |")
	for _, f := range all {
		fmt.Fprintf(&s, " %s %s |", f.name, short(f.version))
	}
	s.WriteString("\n|---|---|" + strings.Repeat("---:|", len(all)) + "\n")
	row := func(what, goal string, cell func(f socketFigures) string) {
		fmt.Fprintf(&s, "| %s | %s |", what, goal)
		for _, f := range all {
			fmt.Fprintf(&s, " %s |", cell(f))
		}
		s.WriteString("\n")
	}
	added := func(took [2]time.Duration) string {
		return fmt.Sprintf("**%s** (%s / %s)", micro(took[1]-took[0]), micro(took[1]), micro(took[0]))
	}
	row(fmt.Sprintf("A query of %d bytes: added in the median", querySize), "≤ 20 µs", func(f socketFigures) string { return added(f.median) })
	row("The same: added at p99", "≤ 100 µs", func(f socketFigures) string { return added(f.p99) })
	row("A new session: socket / directly", "≤ 1.2", func(f socketFigures) string {
		return fmt.Sprintf("**%.2f** (%s / %s)", f.session.median, micro(f.session.a), micro(f.session.b))
	})
	row(fmt.Sprintf("kine's writes, %d at once: socket / directly", kineWriters), "≥ 0.97", func(f socketFigures) string {
		return fmt.Sprintf("**%.2f** (of %.0f per s)", f.kine, f.kineDirect)
	})
	row(fmt.Sprintf("Memory with %d busy sessions (without the program's pages)", busy), "≤ 40 MiB", func(f socketFigures) string {
		return fmt.Sprintf("%s (%s)", mib(f.memory), mib(f.own))
	})
	row("From commit to the first session with the new login: median (longest)", "≤ 50 ms", func(f socketFigures) string {
		return fmt.Sprintf("%s (%s)", milli(rig.Quantile(f.firstSession, 0.5)), milli(rig.Quantile(f.firstSession, 1)))
	})
	return s.String()
}

func micro(d time.Duration) string {
	return fmt.Sprintf("%.0f µs", float64(d)/float64(time.Microsecond))
}

func milli(d time.Duration) string { return fmt.Sprintf("%.0f ms", d.Seconds()*1000) }
