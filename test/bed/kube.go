// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What the bed builds. kubeVersion is the version that test/tools/go.mod requires,
// which a build checks. kine is of the line that vCluster 0.37 carries: the consumer
// is what users run, and not the newest. (0.16.6, and 0.17.3 to 0.17.5, stand still on
// PostgreSQL when as many clients write as the pool has connections, since each write
// holds one and waits for another: F20.)
const (
	kubeVersion = "v1.37.2"
	kineVersion = "v0.16.4"
)

// kubePrograms are the commands of k8s.io/kubernetes that the bed builds: an API
// server without nodes needs only itself, a [Node] all of them.
var kubePrograms = []string{
	"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
}

func kubeItems() []item {
	all := []item{{name: "kine", key: "kine-" + kineVersion, build: buildKine}}
	for _, name := range kubePrograms {
		all = append(all, item{
			name: name, key: name + "-" + kubeVersion,
			build: func(ctx context.Context, dir string) error { return buildKube(ctx, dir, name) },
		})
	}
	return all
}

// Program returns the path of a Go program of the cache: "kine", "kube-apiserver", "kubectl" and so on.
// Its directory is named after its version.
func Program(ctx context.Context, name string) (string, error) {
	for _, it := range kubeItems() {
		if it.name == name {
			dir, err := cached(ctx, it)
			return filepath.Join(dir, name), err
		}
	}
	return "", fmt.Errorf("no program %q", name)
}

// buildKine builds kine with the dependencies of its own go.mod, which is what its
// users run.
func buildKine(ctx context.Context, dir string) error {
	return goBuild(ctx, "", []string{"GOBIN=" + dir}, "install", "-trimpath",
		"-ldflags", "-s -w -X github.com/k3s-io/kine/pkg/version.Version="+kineVersion,
		"github.com/k3s-io/kine@"+kineVersion)
}

func buildKube(ctx context.Context, dir, name string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	tools := filepath.Join(root, "test", "tools")
	version, err := run(ctx, tools, "go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	if err != nil {
		return fmt.Errorf("reading version in test/tools: %w", err)
	}
	if v := strings.TrimSpace(version); v != kubeVersion {
		return fmt.Errorf("test/tools/go.mod has k8s.io/kubernetes %s, the bed's constant is %s", v, kubeVersion)
	}
	return goBuild(ctx, tools, nil, "build", "-trimpath",
		"-ldflags", "-s -w -X k8s.io/component-base/version.gitVersion="+kubeVersion,
		"-o", dir, "k8s.io/kubernetes/cmd/"+name)
}

// goBuild runs the go command, one at a time: each uses every core, and a gigabyte
// or two.
func goBuild(ctx context.Context, dir string, env []string, args ...string) error {
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	unlock, err := lock(ctx, filepath.Join(cache, "go-build.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	temp, owner, err := tempDir("build") // which go build leaves there when it is interrupted
	if err != nil {
		return err
	}
	defer func() { _, _ = os.RemoveAll(temp), owner.Close() }()
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOTMPDIR="+temp)
	cmd.Env = append(cmd.Env, env...)
	_, err = output(cmd)
	return err
}

// Kine is a running kine, which serves the etcd API from a database.
type Kine struct {
	// Endpoint is where it serves, for --etcd-servers: "unix:///…/kine.sock".
	Endpoint string

	dir   string
	owner *os.File
	proc  *process
}

// StartKine runs kine on an endpoint, such as "postgres://…" or "mysql://…", and waits
// until it serves; an empty endpoint is SQLite in a temporary directory. caFile, if not
// empty, is what it verifies the database's server with.
func StartKine(ctx context.Context, endpoint, caFile string, args ...string) (_ *Kine, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("starting kine: %w", err)
		}
	}()
	k := &Kine{}
	if k.dir, k.owner, err = tempDir("kine"); err != nil {
		return nil, err
	}
	k.Endpoint = "unix://" + k.socket()
	if err := k.launch(ctx, endpoint, caFile, args); err != nil {
		k.cleanUp()
		return nil, err
	}
	return k, nil
}

func (k *Kine) socket() string { return filepath.Join(k.dir, "kine.sock") }

func (k *Kine) launch(ctx context.Context, endpoint, caFile string, args []string) error {
	program, err := Program(ctx, "kine")
	if err != nil {
		return err
	}
	argv := []string{program, "--listen-address=" + k.Endpoint, "--metrics-bind-address=0"}
	if endpoint != "" {
		argv = append(argv, "--endpoint="+endpoint)
	}
	if caFile != "" {
		argv = append(argv, "--ca-file="+caFile)
	}
	proc, err := startProcess(filepath.Join(k.dir, "kine.log"), false, append(argv, args...)...)
	if err != nil {
		return err
	}
	k.proc = proc
	return k.proc.ready(ctx, func(ctx context.Context) error { return speaksHTTP2(ctx, k.socket()) })
}

// NewKine is [StartKine] for tests.
func NewKine(tb testing.TB, endpoint, caFile string, args ...string) *Kine {
	tb.Helper()
	k, err := StartKine(tb.Context(), endpoint, caFile, args...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("log of kine:\n%s", tail(k.Log()))
		}
		_ = k.Stop(context.Background()) // it may well have ended by itself
	})
	return k
}

// speaksHTTP2 tells whether a gRPC server answers: kine makes its tables before it
// serves, and a server's first word is a settings frame. Less than an etcd client, of
// which this is the only use.
func speaksHTTP2(ctx context.Context, socket string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("dialing: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return fmt.Errorf("setting deadline: %w", err)
		}
	}
	const settings = 4
	emptySettings := []byte{0, 0, 0, settings, 0, 0, 0, 0, 0}
	if _, err := conn.Write(append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), emptySettings...)); err != nil {
		return fmt.Errorf("writing preface: %w", err)
	}
	frame := make([]byte, len(emptySettings))
	if _, err := io.ReadFull(conn, frame); err != nil {
		return fmt.Errorf("reading settings: %w", err)
	}
	if frame[3] != settings {
		return fmt.Errorf("got frame of type %d, want settings", frame[3])
	}
	return nil
}

// PID is kine's process.
func (k *Kine) PID() int { return k.proc.cmd.Process.Pid }

// Log returns what kine has logged.
func (k *Kine) Log() string { return k.proc.text() }

// Done is closed when kine has ended, by itself or otherwise.
func (k *Kine) Done() <-chan struct{} { return k.proc.done }

// Kill ends kine at once; [Kine.Stop] still has to clean up.
func (k *Kine) Kill() { k.proc.kill() }

// Halt ends kine in order; [Kine.Restart] brings it back.
func (k *Kine) Halt(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return k.proc.stop(ctx, syscall.SIGTERM)
}

// Restart ends kine, if it runs, and starts it on an endpoint, perhaps another one. It serves where it did, and its log
// goes on.
func (k *Kine) Restart(ctx context.Context, endpoint, caFile string, args ...string) error {
	if err := k.Halt(ctx); err != nil {
		return err
	}
	if err := k.launch(ctx, endpoint, caFile, args); err != nil {
		return fmt.Errorf("restarting kine: %w", err)
	}
	return nil
}

// Stop ends kine and removes its directory.
func (k *Kine) Stop(ctx context.Context) error {
	err := k.Halt(ctx)
	k.cleanUp()
	return err
}

func (k *Kine) cleanUp() {
	_ = os.RemoveAll(k.dir)
	_ = k.owner.Close()
}

// APIServerOptions say how an API server differs from the usual one.
type APIServerOptions struct {
	// Etcd is the endpoint of its store, such as [Kine.Endpoint]; a kine of its own
	// on SQLite by default.
	Etcd string
	// Args are added to its command line.
	Args []string

	node *Node // whose network it shall be in
}

// APIServer is a running kube-apiserver with RBAC and service account tokens, but, unless
// it is a [Node]'s, without controllers and nodes: nothing makes tokens for Secrets, fills
// namespaces with default accounts, or collects garbage.
type APIServer struct {
	URL        string
	CA         []byte // PEM
	Kubeconfig string // file for an admin, in the group system:masters
	// Admin is a client with the admin's certificate.
	Admin *http.Client

	dir   string
	owner *os.File
	kine  *Kine
	ca    *CA
	node  *Node
	proc  *process
	argv  []string
}

// StartAPIServer starts an API server and waits until it is ready.
func StartAPIServer(ctx context.Context, o APIServerOptions) (_ *APIServer, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("starting kube-apiserver: %w", err)
		}
	}()
	program, err := Program(ctx, "kube-apiserver")
	if err != nil {
		return nil, err
	}
	a := &APIServer{node: o.node}
	if a.dir, a.owner, err = tempDir("kube"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.cleanUp()
		}
	}()
	if o.Etcd == "" {
		if a.kine, err = StartKine(ctx, "", ""); err != nil {
			return nil, err
		}
		o.Etcd = a.kine.Endpoint
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	ip := "127.0.0.1"
	// It would refuse to publish a loopback address.
	args := []string{"--authorization-mode=RBAC", "--endpoint-reconciler-type=none"}
	if a.node != nil {
		ip, port, args = nodeIP, 6443, a.nodeArgs()
	}
	a.URL = "https://" + net.JoinHostPort(ip, strconv.Itoa(port))
	if err := a.writeFiles(); err != nil {
		return nil, err
	}
	a.argv = slices.Concat([]string{
		program,
		"--etcd-servers=" + o.Etcd,
		"--bind-address=" + ip,
		"--advertise-address=" + ip,
		"--secure-port=" + strconv.Itoa(port),
		"--cert-dir=" + a.dir,
		"--tls-cert-file=" + a.file("tls.crt"),
		"--tls-private-key-file=" + a.file("tls.key"),
		"--client-ca-file=" + a.file("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + a.file("sa.crt"),
		"--service-account-signing-key-file=" + a.file("sa.key"),
		"--service-cluster-ip-range=10.96.0.0/16",
		"--allow-privileged=true",
		"--profiling=false",
	}, args, o.Args)
	if a.node != nil {
		a.argv = a.node.inNetwork(a.argv...)
	}
	if err := a.launch(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// NewAPIServer is [StartAPIServer] for tests.
func NewAPIServer(tb testing.TB, o APIServerOptions) *APIServer {
	tb.Helper()
	a, err := StartAPIServer(tb.Context(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("log of kube-apiserver:\n%s", tail(a.Log()))
		}
		if err := a.Stop(context.Background()); err != nil {
			tb.Error(err)
		}
	})
	return a
}

func (a *APIServer) launch(ctx context.Context) error {
	var err error
	if a.proc, err = startProcess(a.file("server.log"), false, a.argv...); err != nil {
		return err
	}
	return a.proc.ready(ctx, func(ctx context.Context) error {
		return a.Do(ctx, http.MethodGet, "/readyz", nil, nil)
	})
}

// writeFiles makes certificates, keys and the admin's kubeconfig and client.
func (a *APIServer) writeFiles() error {
	ca, err := Authority()
	if err != nil {
		return err
	}
	a.CA, a.ca = ca.PEM, ca
	request := Request{CommonName: "kube-apiserver"}
	if a.node != nil {
		request.Hosts = apiServerHosts
	}
	server, err := ca.Issue(request)
	if err != nil {
		return err
	}
	admin, err := ca.Issue(Request{CommonName: "admin", Groups: []string{"system:masters"}, Client: true})
	if err != nil {
		return err
	}
	a.Kubeconfig = a.file("kubeconfig")
	for name, content := range map[string][]byte{
		"ca.crt":     a.CA,
		"tls.crt":    server.Cert,
		"tls.key":    server.Key,
		"kubeconfig": a.kubeconfig(certUser(admin)),
	} {
		if err := os.WriteFile(a.file(name), content, 0o600); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	if err := a.ReplaceTokenKey(); err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(admin.Cert, admin.Key)
	if err != nil {
		return fmt.Errorf("loading admin's certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.CA)
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
	}
	if a.node != nil {
		transport.DialContext = a.node.Dial
	}
	a.Admin = &http.Client{Transport: transport}
	return nil
}

// ReplaceTokenKey makes another key for the tokens of service accounts. From its next start on, the API server signs with
// that one and refuses what was signed with the one before. The controller manager of a [Node] knows the one with which it
// was started; it only needs it for tokens in Secrets.
func (a *APIServer) ReplaceTokenKey() error {
	accounts, err := a.ca.Issue(Request{CommonName: "service-accounts"})
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"sa.crt": accounts.Cert, "sa.key": accounts.Key} {
		if err := os.WriteFile(a.file(name), content, 0o600); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}

// certUser is what a kubeconfig says of a user with a certificate.
func certUser(c *Cert) string {
	return fmt.Sprintf("client-certificate-data: %s\n    client-key-data: %s",
		base64.StdEncoding.EncodeToString(c.Cert), base64.StdEncoding.EncodeToString(c.Key))
}

func (a *APIServer) kubeconfig(user string) []byte {
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: bed
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: bed
  user:
    %s
contexts:
- name: bed
  context: {cluster: bed, user: bed}
current-context: bed
`, a.URL, base64.StdEncoding.EncodeToString(a.CA), user)
}

// KubeconfigFor returns a kubeconfig for a bearer token. To go through a [Proxy],
// replace [APIServer.URL] in it: the certificate holds for every loopback port.
func (a *APIServer) KubeconfigFor(token string) []byte {
	return a.kubeconfig("token: " + token)
}

// Token returns a token for a service account, which must exist, by TokenRequest.
func (a *APIServer) Token(ctx context.Context, namespace, serviceAccount string) (string, error) {
	request := map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
		"spec": map[string]any{"expirationSeconds": 3600},
	}
	var answer struct{ Status struct{ Token string } }
	path := "/api/v1/namespaces/" + namespace + "/serviceaccounts/" + serviceAccount + "/token"
	if err := a.Do(ctx, http.MethodPost, path, request, &answer); err != nil {
		return "", fmt.Errorf("requesting token of %s/%s: %w", namespace, serviceAccount, err)
	}
	return answer.Status.Token, nil
}

// Do makes a request to the API as the admin: in is sent as JSON unless nil, and the
// answer is decoded into out unless nil. It keeps the bed, and tests that need
// just a namespace and an account, free of client-go.
func (a *APIServer) Do(ctx context.Context, method, path string, in, out any) error {
	return Ask(ctx, a.Admin, method, a.URL+path, in, out)
}

// Client is a client of the API server as its admin, with connections of its own.
func (a *APIServer) Client() *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 10}
	if admin, ok := a.Admin.Transport.(*http.Transport); ok {
		transport.TLSClientConfig = admin.TLSClientConfig
	}
	return &http.Client{Transport: transport}
}

// StatusError is an answer that is no success.
type StatusError struct {
	Code int
	Body []byte
	text string
}

func (e *StatusError) Error() string {
	return cmp.Or(e.text, fmt.Sprintf("the answer %d: %.1000s", e.Code, e.Body))
}

// Code is the status of an answer that is no success; 0 where there was no answer at all.
func Code(err error) int {
	var status *StatusError
	if errors.As(err, &status) {
		return status.Code
	}
	return 0
}

// Ask makes a request to an API. in is sent as JSON unless nil, and the answer decoded into out unless nil. An answer that is no
// success is a [StatusError].
func Ask(ctx context.Context, client *http.Client, method, url string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encoding request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return fmt.Errorf("making request: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("requesting: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("reading answer: %w", err)
	}
	if response.StatusCode/100 != 2 {
		return &StatusError{response.StatusCode, answer, fmt.Sprintf("%s %s: %s: %.1000s", method, request.URL.RequestURI(), response.Status, answer)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("decoding answer: %w", err)
	}
	return nil
}

func (a *APIServer) file(name string) string { return filepath.Join(a.dir, name) }

// Log returns what the API server has logged.
func (a *APIServer) Log() string { return a.proc.text() }

// Addr is the API server's host:port, a target for [StartProxy].
func (a *APIServer) Addr() string { return strings.TrimPrefix(a.URL, "https://") }

// Kill ends the API server as a crash would.
func (a *APIServer) Kill() { a.proc.kill() }

// Restart ends the API server, if it runs, and starts it again on the same store.
func (a *APIServer) Restart(ctx context.Context) error {
	if err := a.Halt(ctx); err != nil {
		return err
	}
	a.Admin.CloseIdleConnections()
	if err := a.launch(ctx); err != nil {
		return fmt.Errorf("restarting kube-apiserver: %w", err)
	}
	return nil
}

// Halt ends the API server in order; [APIServer.Restart] brings it back.
func (a *APIServer) Halt(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return a.proc.stop(ctx, syscall.SIGTERM)
}

// Stop ends the API server in order, since its store may live on, and its kine if it
// has one of its own.
func (a *APIServer) Stop(ctx context.Context) error {
	err := a.Halt(ctx)
	a.cleanUp()
	return err
}

func (a *APIServer) cleanUp() {
	if a.kine != nil {
		a.kine.Kill()
		a.kine.cleanUp()
	}
	_ = os.RemoveAll(a.dir)
	_ = a.owner.Close()
}
