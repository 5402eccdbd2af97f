// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

// bench is the state that all measurements share.
type bench struct {
	dir, minimal string
	// volume is where hand-overs go: memory where there is some, as in the pod (emptyDir, medium: Memory).
	volume     string
	pairs      int
	cluster    *rig.Cluster
	audit      string
	kubeconfig string
	tenants    int
}

const (
	auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [ResponseStarted, ResponseComplete, Panic]
rules: [{level: Metadata}]
`
	account = "bench"
)

// startAPI starts an API server that writes every request down, and an account with a token, as a pod has one.
func (b *bench) startAPI(ctx context.Context) error {
	policy := filepath.Join(b.dir, "policy.yaml")
	b.audit, b.kubeconfig = filepath.Join(b.dir, "audit.log"), filepath.Join(b.dir, "kubeconfig")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return err
	}
	api, err := bed.StartAPIServer(ctx, bed.APIServerOptions{Args: []string{"--audit-policy-file=" + policy, "--audit-log-path=" + b.audit}})
	if err != nil {
		return err
	}
	if b.cluster, err = rig.NewCluster(ctx, api); err != nil {
		return errors.Join(err, api.Stop(context.WithoutCancel(ctx)))
	}
	serviceAccount := map[string]any{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"name": account}}
	binding := map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": map[string]any{"name": account},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
		"subjects": []any{map[string]any{"kind": "ServiceAccount", "name": account, "namespace": rig.Namespace}},
	}
	err = api.Do(ctx, http.MethodPost, "/api/v1/namespaces/"+rig.Namespace+"/serviceaccounts", serviceAccount, nil)
	if err == nil {
		err = api.Do(ctx, http.MethodPost, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding, nil)
	}
	var token string
	if err == nil {
		token, err = api.Token(ctx, rig.Namespace, account)
	}
	if err == nil {
		err = errors.Join(
			os.WriteFile(b.kubeconfig, api.KubeconfigFor(token), 0o600),
			os.WriteFile(filepath.Join(b.dir, "token"), []byte(token), 0o600),
			os.WriteFile(filepath.Join(b.dir, "api-ca.crt"), api.CA, 0o600),
		)
	}
	if err != nil {
		return errors.Join(err, api.Stop(context.WithoutCancel(ctx)))
	}
	return nil
}

func (b *bench) tenant(connector string) (*rig.Tenant, error) {
	b.tenants++
	t := &rig.Tenant{
		Name: fmt.Sprintf("t%d", b.tenants), Out: filepath.Join(b.volume, fmt.Sprintf("out-%d", b.tenants)),
		Cluster: b.cluster, Kubeconfig: b.kubeconfig, ConnectorName: connector,
	}
	return t, os.Mkdir(t.Out, 0o755)
}

// counts are the requests and connections that the servers saw of one run.
type counts struct{ API, Connections, Admin, Statements int }

func (b *bench) engine(ctx context.Context, i int, herd bool) (f figures, off []string, err error) {
	e := engines[i]
	progress("%s: counting", e.name)
	s, err := bed.Start(ctx, e.engine, e.version, bed.Options{LogStatements: true})
	if err != nil {
		return f, nil, err
	}
	defer func() { err = errors.Join(err, s.Stop(context.WithoutCancel(ctx))) }()
	f.version = s.FullVersion
	connector := string(e.engine)
	if err := b.cluster.Connector(ctx, connector, rig.Connector(s, s.AdminUser, s.AdminPassword, "", true)); err != nil {
		return f, nil, err
	}

	t, err := b.tenant(connector)
	if err != nil {
		return f, nil, err
	}
	statements := ""
	if f.first, statements, err = b.count(ctx, s, t); err != nil {
		return f, nil, err
	}
	if f.restart, _, err = b.count(ctx, s, t); err != nil {
		return f, nil, err
	}
	if f.first != e.want {
		off = append(off, fmt.Sprintf("%s: first provision: got %+v, want %+v", e.name, f.first, e.want))
	}
	f.restart.Statements = 0 // the drivers' own; the restart path may cost connections only
	if f.restart != restart {
		off = append(off, fmt.Sprintf("%s: restart: got %+v, want %+v", e.name, f.restart, restart))
	}

	idle, err := b.sidecars(ctx, s, connector, &f)
	if err != nil {
		return f, off, err
	}
	defer idle.p.close()
	off = append(off, f.offRotation(i)...)

	progress("%s: memory", e.name)
	x, err := b.tenant(connector)
	if err != nil {
		return f, off, err
	}
	for n := range f.memory {
		if f.memory[n], err = memory(ctx, x); err != nil {
			return f, off, err
		}
		if f.memory[n] > maxMemory {
			off = append(off, fmt.Sprintf("%s: a run took %s of memory", e.name, mib(f.memory[n])))
		}
	}

	progress("%s: restart against a minimal program", e.name)
	if f.overMinimal, err = b.againstMinimal(ctx, t); err != nil {
		return f, off, err
	}
	progress("%s: first provision against the same statements", e.name)
	client, err := b.newRival(ctx, s, t, s.AdminUser, s.AdminPassword, statements)
	if err != nil {
		return f, off, err
	}
	defer client.close()
	if f.overClient, err = client.compare(ctx, b.pairs, true, 2); err != nil {
		return f, off, err
	}
	if f.strict, err = client.compare(ctx, b.pairs, true, 1); err != nil {
		return f, off, err
	}
	if f.direct, err = client.compare(ctx, b.pairs, false, 2); err != nil {
		return f, off, err
	}
	progress("%s: the idle sidecar", e.name)
	if f.idle, err = idle.end(ctx); err != nil {
		return f, off, err
	}
	off = append(off, f.idle.off(e.name)...)
	if !herd {
		return f, off, nil
	}
	progress("%s: the herd", e.name)
	f.herdWasLetLoose = true
	if err = b.letLoose(ctx, i, &f); err != nil {
		return f, off, err
	}
	for _, r := range f.herd.Failed[:min(len(f.herd.Failed), 1)] {
		off = append(off, fmt.Sprintf("%s: %d tenants of the herd failed, for example: %v", e.name, len(f.herd.Failed), r.Err()))
	}
	for _, err := range f.herdRotation.Failed[:min(len(f.herdRotation.Failed), 1)] {
		off = append(off, fmt.Sprintf("%s: %d rotations of the herd failed, for example: %v", e.name, len(f.herdRotation.Failed), err))
	}
	return f, off, nil
}

// count runs init once and counts on the servers' side. log is what the database server wrote meanwhile.
func (b *bench) count(ctx context.Context, s *bed.Server, t *rig.Tenant) (c counts, log string, err error) {
	before, err := s.StatementLog()
	if err != nil {
		return c, "", err
	}
	api, err := b.requestsOf("dbconnector-init")
	if err != nil {
		return c, "", err
	}
	connections, err := s.Connections()
	if err != nil {
		return c, "", err
	}
	statements, err := s.Statements()
	if err != nil {
		return c, "", err
	}
	r, err := t.Run(ctx)
	if err = errors.Join(err, r.Err()); err != nil {
		return c, "", err
	}
	if c.API, err = b.requestsOf("dbconnector-init"); err != nil {
		return c, "", err
	}
	if c.Connections, err = s.Connections(); err != nil {
		return c, "", err
	}
	if c.Statements, err = s.Statements(); err != nil {
		return c, "", err
	}
	c.API, c.Connections, c.Statements = c.API-api, c.Connections-connections, c.Statements-statements
	if log, err = s.StatementLog(); err != nil {
		return c, "", err
	}
	log = log[len(before):]
	who := regexp.MustCompile(`connection authorized: user=` + s.AdminUser + ` `)
	if s.Engine != bed.Postgres {
		who = regexp.MustCompile(`Connect\t` + s.AdminUser + `@`)
	}
	c.Admin = len(who.FindAllString(log, -1))
	return c, log, nil
}

// ratio is the outcome of a comparison in pairs.
type ratio struct {
	a, b   time.Duration // medians
	median float64       // of a/b over the pairs
}

func (r ratio) String() string {
	return fmt.Sprintf("**%.2f** (%.0f ms / %.0f ms)", r.median, r.a.Seconds()*1000, r.b.Seconds()*1000)
}

// compare times a and b by turns, first one and then the other ahead.
func compare(pairs int, first, second func() (time.Duration, error)) (ratio, error) {
	var as, bs []time.Duration
	var ratios []float64
	for n := range pairs + 1 {
		one, two := first, second
		if n%2 == 1 {
			one, two = second, first
		}
		x, err := one()
		if err != nil {
			return ratio{}, err
		}
		y, err := two()
		if err != nil {
			return ratio{}, err
		}
		if n%2 == 1 {
			x, y = y, x
		}
		if n == 0 {
			continue // warms caches up
		}
		as, bs, ratios = append(as, x), append(bs, y), append(ratios, x.Seconds()/y.Seconds())
	}
	slices.Sort(ratios)
	return ratio{rig.Quantile(as, 0.5), rig.Quantile(bs, 0.5), ratios[len(ratios)/2]}, nil
}

// timed runs a command and says how long it took.
func timed(cmd *exec.Cmd) (time.Duration, error) {
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("running %s: %w\n%s", filepath.Base(cmd.Path), err, out)
	}
	return since(began), nil
}

// againstMinimal compares a restart with the minimal program, both with a hand-over to write.
func (b *bench) againstMinimal(ctx context.Context, t *rig.Tenant) (ratio, error) {
	clean := func() error {
		for _, name := range []string{"dsn", "ca.crt"} {
			if err := os.Remove(filepath.Join(t.Out, name)); err != nil {
				return err
			}
		}
		return nil
	}
	return compare(b.pairs, func() (time.Duration, error) {
		if err := clean(); err != nil {
			return 0, err
		}
		cmd := exec.CommandContext(ctx, rig.Init)
		cmd.Env = t.Environ()
		return timed(cmd)
	}, func() (time.Duration, error) {
		if err := clean(); err != nil {
			return 0, err
		}
		cmd := exec.CommandContext(ctx, b.minimal)
		cmd.Env = []string{
			"PATH=" + os.Getenv("PATH"), "MINIMAL_OUT=" + t.Out,
			"MINIMAL_API_CA=" + filepath.Join(b.dir, "api-ca.crt"), "MINIMAL_API_TOKEN=" + filepath.Join(b.dir, "token"),
			"MINIMAL_SECRET=" + b.cluster.API.URL + "/api/v1/namespaces/" + rig.Namespace + "/secrets/dbconnector-" + t.Name,
		}
		return timed(cmd)
	})
}

// rival is the engine's own client as a rival of init: it sends what the server logged of a first provision, in as many
// sessions, those of the admin and then the tenant's own, in which init asks what the tenant may do.
type rival struct {
	b                         *bench
	s                         *bed.Server
	connector, user, password string // the connector, and the admin that it names
	ca, dir, script           string // files, and the connector as a directory
	from                      tenant.Names
	login                     tenant.Login
	scripts                   map[string]string
	look                      *rig.Inspector
	sent                      int
}

// newRival makes a rival of the log that a server wrote when init first provisioned t.
func (b *bench) newRival(ctx context.Context, s *bed.Server, t *rig.Tenant, user, password, log string) (*rival, error) {
	record, err := t.Record(ctx)
	if err != nil {
		return nil, err
	}
	connector := t.ConnectorName
	r := &rival{
		b: b, s: s, connector: connector, user: user, password: password, from: t.Names(), login: record.Login(record.Active),
		ca: filepath.Join(b.dir, connector+"-ca.crt"), dir: filepath.Join(b.dir, "connector-"+connector), script: filepath.Join(b.dir, "script.sql"),
		scripts: map[string]string{},
	}
	for _, as := range []string{user, r.login.User} {
		if s.Engine == bed.Postgres {
			r.scripts[as] = postgresScript(log, as)
		} else {
			r.scripts[as] = mysqlScript(log, as, r.login.Password.Reveal())
		}
	}
	err = os.WriteFile(r.ca, s.CA, 0o600)
	if err == nil {
		err = rig.WriteConnector(r.dir, rig.Connector(s, user, password, "", true))
	}
	if err == nil {
		r.look, err = rig.Inspect(s)
	}
	return r, err
}

func (r *rival) close() { r.look.Close() }

// send has the client make one more tenant, in so many of the sessions, and says how long that took.
func (r *rival) send(ctx context.Context, sessions int) (time.Duration, error) {
	r.sent++
	from, to := r.from, tenant.NamesOf(fmt.Sprintf("client %s %d", r.connector, r.sent))
	other := strings.NewReplacer(from.Database, to.Database, from.Marker, to.Marker, from.Lock, to.Lock)
	var took time.Duration
	logins := []struct{ user, script, password, database string }{
		{r.user, r.scripts[r.user], r.password, ""},
		{other.Replace(r.login.User), r.scripts[r.login.User], r.login.Password.Reveal(), to.Database},
	}
	for _, as := range logins[:sessions] {
		if err := os.WriteFile(r.script, []byte(other.Replace(as.script)), 0o600); err != nil {
			return 0, err
		}
		cmd, err := clientCommand(ctx, r.s, r.ca, r.script, as.user, as.password, as.database)
		if err != nil {
			return 0, err
		}
		one, err := timed(cmd)
		if err != nil {
			return 0, err
		}
		took += one
	}
	// It did what init did.
	want, err := r.look.Facts(ctx, from)
	if err != nil {
		return 0, err
	}
	got, err := r.look.Facts(ctx, to)
	if err != nil {
		return 0, err
	}
	if got != want {
		return 0, fmt.Errorf("the client's statements lead to\n%s\nand init's to\n%s", got, want)
	}
	return took, nil
}

// provision has init make one more tenant, and says how long that took; without Kubernetes connector and record are directories.
func (r *rival) provision(ctx context.Context, kubernetes bool) (time.Duration, error) {
	x, err := r.b.tenant(r.connector)
	if err != nil {
		return 0, err
	}
	if !kubernetes {
		x.ConnectorDir, x.State = r.dir, filepath.Join(r.b.volume, "state-"+x.Name)
	}
	cmd := exec.CommandContext(ctx, rig.Init)
	cmd.Env = x.Environ()
	return timed(cmd)
}

// compare is of first provisions by init, with or without Kubernetes, and by the client in so many sessions.
func (r *rival) compare(ctx context.Context, pairs int, kubernetes bool, sessions int) (ratio, error) {
	return compare(pairs, func() (time.Duration, error) { return r.provision(ctx, kubernetes) },
		func() (time.Duration, error) { return r.send(ctx, sessions) })
}

func clientCommand(ctx context.Context, s *bed.Server, ca, file, user, password, database string) (*exec.Cmd, error) {
	if s.Engine == bed.Postgres {
		cmd, err := bed.Client(ctx, "psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file="+file)
		if err != nil {
			return nil, err
		}
		cmd.Env = []string{
			"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "PGHOST=" + s.Host, "PGPORT=" + strconv.Itoa(s.Port), "PGUSER=" + user,
			"PGPASSWORD=" + password, "PGDATABASE=" + cmp.Or(database, "postgres"), "PGSSLMODE=verify-full", "PGSSLROOTCERT=" + ca,
		}
		return cmd, nil
	}
	cmd, err := bed.Client(ctx, "mariadb", "--host="+s.Host, "--port="+strconv.Itoa(s.Port), "--protocol=tcp",
		"--user="+user, "--database="+database, "--ssl-ca="+ca, "--ssl-verify-server-cert", "--batch", "--silent", "--execute=source "+file)
	if err != nil {
		return nil, err
	}
	// MySQL's way of logging in is a plugin of the client's library, beside its other libraries.
	for _, arg := range cmd.Args {
		for _, lib := range strings.Split(arg, ":") {
			if plugins := filepath.Join(lib, "libmariadb3", "plugin"); strings.Contains(lib, "/usr/lib/") && isDir(plugins) {
				cmd.Args = append(cmd.Args, "--plugin-dir="+plugins)
			}
		}
	}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=/nonexistent", "MYSQL_PWD=" + password}
	return cmd, nil
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

var (
	postgresLine  = regexp.MustCompile(`^\S+ \S+ \S+ \[\d+\] (\S+)@(\S+) (LOG|DETAIL):  (.*)$`)
	postgresParam = regexp.MustCompile(`\$(\d+) = ('(?:[^']|'')*'|NULL)`)
)

// postgresScript makes a script for psql of what a server logged of a login's sessions. What went as one request goes as
// one request: psql does not split at an escaped semicolon.
func postgresScript(log, user string) string {
	type statement struct{ database, sql string }
	var all []statement
	var last *string
	for line := range strings.Lines(log) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "\t") {
			if last != nil {
				*last += "\n" + line[1:]
			}
			continue
		}
		last = nil
		m := postgresLine.FindStringSubmatch(line)
		if m == nil || m[1] != user {
			continue
		}
		text, isStatement := strings.CutPrefix(m[4], "statement: ")
		if !isStatement {
			text, isStatement = strings.CutPrefix(m[4], "execute <unnamed>: ")
		}
		switch {
		case m[3] == "LOG" && isStatement:
			all = append(all, statement{m[2], text})
			last = &all[len(all)-1].sql
		case m[3] == "DETAIL" && len(all) > 0:
			s := &all[len(all)-1]
			params := postgresParam.FindAllStringSubmatch(m[4], -1)
			slices.Reverse(params) // $10 before $1
			for _, p := range params {
				s.sql = strings.ReplaceAll(s.sql, "$"+p[1], p[2])
			}
		}
	}
	var out strings.Builder
	// The session that takes the lock is open all the time; psql has one session, so it ends the one and begins the other
	// where the database changes.
	database := ""
	for _, s := range all {
		database = cmp.Or(database, s.database)
		if s.database != database {
			database = s.database
			fmt.Fprintf(&out, "\\connect %s\n", database)
		}
		out.WriteString(strings.ReplaceAll(s.sql, ";\n", "\\;\n") + ";\n")
	}
	return out.String()
}

var mysqlLine = regexp.MustCompile(`^[^\t]*\t+\s*(\d+) (Connect|Query|Quit)\t(.*)$`)

// mysqlScript makes a script of what a server logged of a login's session. MySQL hides passwords in its log.
func mysqlScript(log, user, password string) string {
	var out strings.Builder
	session, mine := "", false
	for line := range strings.Lines(log) {
		m := mysqlLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			if mine {
				out.WriteString(line) // a statement of several lines
			}
			continue
		}
		if m[2] == "Connect" && strings.HasPrefix(m[3], user+"@") {
			session = m[1]
		}
		if mine {
			out.WriteString(";\n")
		}
		if mine = m[1] == session && m[2] == "Query"; mine {
			out.WriteString(strings.ReplaceAll(m[3], "<secret>", "'"+password+"'"))
		}
	}
	if mine {
		out.WriteString(";\n")
	}
	return out.String()
}

// letLoose lets a herd loose on a server of its own: first each gets a database, then all passwords are due.
func (b *bench) letLoose(ctx context.Context, i int, f *figures) (err error) {
	e := engines[i]
	s, err := bed.Start(ctx, e.engine, e.version, bed.Options{MaxConnections: rig.HerdLimit})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop(context.WithoutCancel(ctx))) }()
	user, password, err := s.CloudAdmin(ctx, "cloudadmin")
	if err != nil {
		return err
	}
	connector := "herd-" + string(e.engine)
	if err := b.cluster.Connector(ctx, connector, rig.Connector(s, user, password, "", true)); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(b.dir, "herd-")
	if err != nil {
		return err
	}
	herd, err := rig.NewHerd(b.cluster, connector, connector, dir)
	if err != nil {
		return err
	}
	if f.herd, err = rig.RunHerd(ctx, s, user, herd); err != nil || len(f.herd.Failed) > 0 {
		return err
	}
	progress("%s: the rotation of the herd", e.name)
	f.herdRotation, err = rig.RotateHerd(ctx, s, herd, 5*time.Minute)
	return err
}

const (
	measureFlag  = "-measure"
	measurements = 3
)

// memory is the most resident memory that a run took, of a few. The kernel counts the parent's memory
// into the maximum of that process, and we are large: so a copy of ourselves, that has done nothing yet, starts it.
func memory(ctx context.Context, t *rig.Tenant) (int64, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, self, measureFlag, rig.Init)
	cmd.Env = t.Environ()
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("measuring memory: %w", err)
	}
	return strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
}

// measured runs a program and prints its ru_maxrss in bytes; what it logs is dropped unless it fails.
func measured(program string) int {
	cmd := exec.Command(program)
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err, log.String())
		return 1
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return 1
	}
	out := bufio.NewWriter(os.Stdout)
	fmt.Fprintln(out, usage.Maxrss*1024)
	if err := out.Flush(); err != nil {
		return 1
	}
	return 0
}
