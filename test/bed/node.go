// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// nodeName is what the node is called, by itself and by Kubernetes.
const nodeName = "node"

// Node is a Kubernetes cluster of one node, with real pods. It runs in namespaces and a root file system of its own: the
// machine's interfaces, mounts, firewall and settings stay as they are, several nodes are not in each other's way, and
// all is gone when the process that started it is.
//
// Its images are what [Node.Import] brings: there is no registry, nothing leaves the machine, and names are not resolved
// but those of the node itself.
type Node struct {
	*APIServer
	// Phases tell how long each part of the start took.
	Phases []Phase

	dir     string
	owner   *os.File
	helper  string // test/bed/nodeinit
	walls   *process
	network *os.File // its network namespace

	mu      sync.Mutex
	daemons map[string]*daemon

	life     context.Context // ends with the node
	end      context.CancelFunc
	forwards sync.WaitGroup
}

// Phase is a part of a node's start.
type Phase struct {
	Name string
	Took time.Duration
}

// daemon is a program of the node that is to run all the time.
type daemon struct {
	argv []string
	proc *process
}

// nodePackages are the programs that a node has besides Kubernetes: they run containers, and set up their network. They are
// of one release, whatever the machine runs, since they run in a root of their own. The kubelet still takes containerd 1.7
// until Kubernetes 1.38.
const nodeSuite = "trixie"

var nodePackages = []string{
	"containerd", "runc", "containernetworking-plugins", "nftables", "iproute2", "mount",
	"ca-certificates", // for images
	"busybox-static",  // for pods of tests that look around
}

func nodeItems() []item {
	return []item{{
		name: "node", key: "node-" + nodeSuite + "-1",
		build: func(ctx context.Context, dir string) error {
			return unpackDebs(ctx, filepath.Join(dir, "root"), nodeSuite, nodePackages...)
		},
	}}
}

// StartNode starts a node and waits until it is ready for pods.
func StartNode(ctx context.Context) (_ *Node, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("starting node: %w", err)
		}
	}()
	if os.Geteuid() != 0 {
		return nil, errors.New("only root can run containers here")
	}
	n := &Node{daemons: map[string]*daemon{}}
	// Not from ctx: the node outlives the context of its start.
	n.life, n.end = context.WithCancel(context.Background())
	began := time.Now()
	phase := func(name string) {
		n.Phases = append(n.Phases, Phase{name, time.Since(began)})
		began = time.Now()
	}
	if err := Fetch(ctx, append([]string{"node", "kine"}, kubePrograms...)...); err != nil {
		return nil, err
	}
	phase("fetch")
	sweepNodes()
	if n.dir, n.owner, err = tempDir("node"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.cleanUp(context.WithoutCancel(ctx)))
		}
	}()
	if err := os.Mkdir(n.file("bin"), 0o755); err != nil {
		return nil, fmt.Errorf("starting node: %w", err)
	}
	for _, program := range []string{"nodeinit", "pause"} {
		if err := Build(ctx, n.file("bin/"+program), "test/bed/"+program); err != nil {
			return nil, err
		}
	}
	n.helper = n.file("bin/nodeinit")
	phase("build")
	if err := n.buildWalls(ctx); err != nil {
		return nil, err
	}
	phase("walls")
	// The one needs the other only when there are pods.
	runtime := make(chan error, 1)
	go func() { runtime <- n.startRuntime(ctx) }()
	err = n.startControlPlane(ctx)
	if err := errors.Join(err, <-runtime); err != nil {
		return nil, err
	}
	phase("control plane and containerd")
	if err := n.startKubelet(ctx); err != nil {
		return nil, err
	}
	if err := n.waitReady(ctx); err != nil {
		return nil, err
	}
	phase("kubelet")
	return n, nil
}

// Dir is where the node keeps its files, among them its programs' logs.
func (n *Node) Dir() string { return n.dir }

// WriteKubeconfig writes a kubeconfig of the admin with another address of the API server, such as one of
// [Node.Publish].
func (n *Node) WriteKubeconfig(file, url string) error {
	text, err := os.ReadFile(n.Kubeconfig)
	if err == nil {
		err = os.WriteFile(file, bytes.ReplaceAll(text, []byte(n.URL), []byte(url)), 0o600)
	}
	if err != nil {
		return fmt.Errorf("writing kubeconfig: %w", err)
	}
	return nil
}

func (n *Node) file(name string) string { return filepath.Join(n.dir, name) }

// inside returns the command line that runs a program within the node.
func (n *Node) inside(argv ...string) []string {
	return append([]string{n.helper, "enter", n.dir}, argv...)
}

// inNetwork returns the command line that runs a program of the machine in the node's network.
func (n *Node) inNetwork(argv ...string) []string {
	return append([]string{n.helper, "net", n.dir}, argv...)
}

// buildWalls makes the node's namespaces.
func (n *Node) buildWalls(ctx context.Context) error {
	root, err := cached(ctx, items()["node"])
	if err != nil {
		return err
	}
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	settings, err := json.Marshal(map[string]string{
		"Root": filepath.Join(root, "root"), "Cache": cache, "Name": nodeName, "IP": nodeIP,
	})
	if err != nil {
		return fmt.Errorf("encoding settings: %w", err)
	}
	if err := n.writeFiles(map[string]string{
		"settings.json":   string(settings),
		"etc/passwd":      "root:x:0:0:root:/root:/bin/sh\n",
		"etc/group":       "root:x:0:\n",
		"etc/hosts":       "127.0.0.1 localhost\n" + nodeIP + " " + nodeName + "\n",
		"etc/resolv.conf": "", // no server to ask
		"etc/os-release":  "ID=dbconnector-bed\nPRETTY_NAME=\"dbconnector's test bed\"\n",
		"etc/machine-id":  "00000000000000000000000000000001\n",
	}); err != nil {
		return err
	}
	n.walls, err = startProcess(n.file("walls.log"), false, n.helper, "run", n.dir)
	if err != nil {
		return err
	}
	if err := n.walls.ready(ctx, func(context.Context) error {
		_, err := os.Stat(n.file("ready"))
		if err == nil {
			_, err = os.Stat(n.file("pid")) // another process writes it, maybe later
		}
		return err
	}); err != nil {
		return err
	}
	pid, err := os.ReadFile(n.file("pid"))
	if err == nil {
		n.network, err = os.Open(filepath.Join("/proc", string(pid), "ns", "net"))
	}
	if err != nil {
		return fmt.Errorf("finding the node's network: %w", err)
	}
	return nil
}

func (n *Node) writeFiles(files map[string]string) error {
	for name, content := range files {
		if err := os.MkdirAll(filepath.Dir(n.file(name)), 0o755); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
		if err := os.WriteFile(n.file(name), []byte(content), 0o600); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}

// startRuntime starts containerd, and brings the image that every pod needs.
func (n *Node) startRuntime(ctx context.Context) error {
	if err := n.writeFiles(map[string]string{
		"etc/containerd/config.toml": `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp",
]

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  # Without the capability SYS_RESOURCE, which containers often lack, a process cannot be shielded better than its parent.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
`,
		// Point to point: every packet from pod to pod is routed, so that Services work without the kernel's bridge and
		// its filter.
		"etc/cni/net.d/pods.conflist": `{
  "cniVersion": "0.4.0", "name": "pods",
  "plugins": [{
    "type": "ptp", "ipMasq": false,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "` + podCIDR + `"}]], "routes": [{"dst": "0.0.0.0/0"}]}
  }, {"type": "loopback"}]
}`,
	}); err != nil {
		return err
	}
	if err := n.startDaemon("containerd", n.inside("containerd")); err != nil {
		return err
	}
	pid, err := os.ReadFile(n.file("pid"))
	if err != nil {
		return fmt.Errorf("finding the node: %w", err)
	}
	socket := filepath.Join("/proc", string(pid), "root/run/containerd/containerd.sock")
	n.mu.Lock()
	containerd := n.daemons["containerd"].proc
	n.mu.Unlock()
	if err := containerd.ready(ctx, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	}); err != nil {
		return fmt.Errorf("starting containerd: %w", err)
	}
	return n.Import(ctx, &Image{
		Name:       pauseImage,
		Files:      map[string]ImageFile{"/pause": {Source: n.file("bin/pause")}},
		User:       "65535:65535",
		Entrypoint: []string{"/pause"},
	})
}

// pauseImage holds a pod's namespaces. The name cannot exist elsewhere.
const pauseImage = "bed.test/pause:1"

// Import gives images to the node. Pods must not ask for imagePullPolicy Always.
func (n *Node) Import(ctx context.Context, images ...*Image) error {
	for _, image := range images {
		file, err := os.CreateTemp(n.dir, "image-*.tar") // one for each: tests import at the same time
		if err != nil {
			return fmt.Errorf("importing image %s: %w", image.Name, err)
		}
		archive := file.Name()
		if err := errors.Join(file.Close(), image.WriteArchive(archive)); err != nil {
			return err
		}
		_, err = n.Run(ctx, "ctr", "--namespace", "k8s.io", "images", "import", archive)
		_ = os.Remove(archive)
		if err != nil {
			return fmt.Errorf("importing image %s: %w", image.Name, err)
		}
	}
	return nil
}

// Run runs a program of the node's Debian release within the node, and returns its output.
func (n *Node) Run(ctx context.Context, argv ...string) (string, error) {
	argv = n.inside(argv...)
	return run(ctx, "/", argv[0], argv[1:]...)
}

// Kubectl runs kubectl as the cluster's admin.
func (n *Node) Kubectl(ctx context.Context, input string, args ...string) (string, error) {
	program, err := Program(ctx, "kubectl")
	if err != nil {
		return "", err
	}
	argv := n.inNetwork(append([]string{program, "--kubeconfig", n.Kubeconfig, "--cache-dir", n.file("kubectl")}, args...)...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(input)
	return output(cmd)
}

// apiServerHosts are the names and addresses by which the API server is reached.
var apiServerHosts = []string{
	"127.0.0.1", "localhost", nodeIP, serviceIP,
	"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
}

// nodeArgs are what an API server with a node needs besides.
func (a *APIServer) nodeArgs() []string {
	return []string{
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--kubelet-client-certificate=" + a.node.file("pki/apiserver.crt"),
		"--kubelet-client-key=" + a.node.file("pki/apiserver.key"),
		"--kubelet-certificate-authority=" + a.node.file("pki/ca.crt"),
		"--kubelet-preferred-address-types=InternalIP",
	}
}

// startControlPlane starts the programs that a cluster has without nodes.
func (n *Node) startControlPlane(ctx context.Context) error {
	ca, err := Authority()
	if err != nil {
		return err
	}
	kubelet, err := ca.Issue(Request{CommonName: nodeName, Hosts: []string{nodeIP, nodeName, "127.0.0.1"}})
	if err != nil {
		return err
	}
	client, err := ca.Issue(Request{CommonName: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}, Client: true})
	if err != nil {
		return err
	}
	if err := n.writeFiles(map[string]string{
		"pki/ca.crt":        string(ca.PEM),
		"pki/kubelet.crt":   string(kubelet.Cert),
		"pki/kubelet.key":   string(kubelet.Key),
		"pki/apiserver.crt": string(client.Cert),
		"pki/apiserver.key": string(client.Key),
	}); err != nil {
		return err
	}
	if n.APIServer, err = StartAPIServer(ctx, APIServerOptions{node: n}); err != nil {
		return err
	}
	for user, group := range map[string]string{
		// With an account for each of its controllers, it would start seconds later.
		"system:kube-controller-manager": "system:masters",
		"system:kube-scheduler":          "",
		"system:kube-proxy":              "",
		"system:node:" + nodeName:        "system:nodes",
	} {
		request := Request{CommonName: user, Client: true}
		if group != "" {
			request.Groups = []string{group}
		}
		cert, err := ca.Issue(request)
		if err != nil {
			return err
		}
		file := "pki/" + strings.Split(user, ":")[1] + ".kubeconfig"
		if err := n.writeFiles(map[string]string{file: string(n.kubeconfig(certUser(cert)))}); err != nil {
			return err
		}
	}
	manager, err := Program(ctx, "kube-controller-manager")
	if err != nil {
		return err
	}
	scheduler, err := Program(ctx, "kube-scheduler")
	if err != nil {
		return err
	}
	return errors.Join(
		n.startDaemon("kube-controller-manager", n.inNetwork(manager,
			"--kubeconfig="+n.file("pki/kube-controller-manager.kubeconfig"),
			"--authentication-kubeconfig="+n.file("pki/kube-controller-manager.kubeconfig"),
			"--authorization-kubeconfig="+n.file("pki/kube-controller-manager.kubeconfig"),
			"--root-ca-file="+n.file("pki/ca.crt"),
			"--service-account-private-key-file="+n.APIServer.file("sa.key"),
			"--bind-address=127.0.0.1",
			"--leader-elect=false", // no other instance competes
			// All controllers start at once.
			"--kube-api-qps=200", "--kube-api-burst=400",
		)),
		n.startDaemon("kube-scheduler", n.inNetwork(scheduler,
			"--kubeconfig="+n.file("pki/kube-scheduler.kubeconfig"),
			"--authentication-kubeconfig="+n.file("pki/kube-scheduler.kubeconfig"),
			"--authorization-kubeconfig="+n.file("pki/kube-scheduler.kubeconfig"),
			"--bind-address=127.0.0.1",
			"--leader-elect=false",
		)),
	)
}

// startKubelet starts the programs that run pods and make Services reachable.
func (n *Node) startKubelet(ctx context.Context) error {
	if err := n.writeFiles(map[string]string{
		"etc/kubernetes/kubelet.yaml": `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: ` + nodeIP + `
healthzBindAddress: 127.0.0.1
tlsCertFile: ` + n.file("pki/kubelet.crt") + `
tlsPrivateKeyFile: ` + n.file("pki/kubelet.key") + `
authentication:
  x509: {clientCAFile: ` + n.file("pki/ca.crt") + `}
  webhook: {enabled: true}
  anonymous: {enabled: false}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
resolvConf: /etc/resolv.conf
# Machines with cgroup v1 or with swap will do.
failCgroupV1: false
failSwapOn: false
# The disk is the machine's and not ours to judge, nor is there an image that could be fetched again.
localStorageCapacityIsolation: false
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
imageMinimumGCAge: 1000h
# kube-proxy uses nftables, and no program uses iptables.
makeIPTablesUtilChains: false
serializeImagePulls: false
# Tests let containers fail. They wait seconds, where in production it is minutes.
crashLoopBackOff: {maxContainerRestartPeriod: 3s}
`,
		"etc/kubernetes/kube-proxy.yaml": `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: ` + podCIDR + `
bindAddress: ` + nodeIP + `
hostnameOverride: ` + nodeName + `
clientConnection: {kubeconfig: ` + n.file("pki/kube-proxy.kubeconfig") + `}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
# The first two are settings of the whole machine, and none can be set before the kernel has tracked a connection.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`,
	}); err != nil {
		return err
	}
	kubelet, err := Program(ctx, "kubelet")
	if err != nil {
		return err
	}
	proxy, err := Program(ctx, "kube-proxy")
	if err != nil {
		return err
	}
	return errors.Join(
		n.startDaemon("kube-proxy", n.inside(proxy, "--config=/etc/kubernetes/kube-proxy.yaml")),
		n.startDaemon("kubelet", n.inside(kubelet,
			"--config=/etc/kubernetes/kubelet.yaml",
			"--kubeconfig="+n.file("pki/node.kubeconfig"),
			"--root-dir=/var/lib/kubelet",
			"--hostname-override="+nodeName,
			"--node-ip="+nodeIP,
		)),
	)
}

// waitReady waits for the node, and for all else that pods need.
func (n *Node) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err := Wait(ctx, func(ctx context.Context) error {
		if err := n.Alive(); err != nil {
			return Permanent(err)
		}
		var node struct {
			Status struct {
				Conditions []struct{ Type, Status, Message string }
			}
			Spec struct {
				Taints []struct{ Key string }
			}
		}
		if err := n.Do(ctx, http.MethodGet, "/api/v1/nodes/"+nodeName, nil, &node); err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == "Ready" && c.Status != "True" {
				return errors.New(c.Message)
			}
		}
		if len(node.Status.Conditions) == 0 || len(node.Spec.Taints) > 0 {
			return fmt.Errorf("node has taints %v", node.Spec.Taints)
		}
		// Pods run as this account, and are refused without it.
		return n.Do(ctx, http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/default", nil, nil)
	})
	if err != nil {
		return fmt.Errorf("%w\nkubelet:\n%s", err, tail(n.DaemonLog("kubelet")))
	}
	return nil
}

// Alive returns an error when a program of the node has ended that should run.
func (n *Node) Alive() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, d := range n.daemons {
		select {
		case <-d.proc.done:
			return fmt.Errorf("%s has ended: %w\n%s", name, errors.Join(d.proc.err, errors.New("it should run")), tail(d.proc.text()))
		default:
		}
	}
	return nil
}

func (n *Node) startDaemon(name string, argv []string) error {
	proc, err := startProcess(n.file(name+".log"), false, argv...)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.daemons[name] = &daemon{argv, proc}
	return nil
}

// HaltDaemon ends a program of the node in order, such as "kubelet" for maintenance; pods go on.
// [Node.StartDaemon] brings it back.
func (n *Node) HaltDaemon(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	n.mu.Lock()
	d := n.daemons[name]
	n.mu.Unlock()
	if d == nil {
		return fmt.Errorf("the node has no %s", name)
	}
	return d.proc.stop(ctx, syscall.SIGTERM)
}

// StartDaemon starts a program of the node again.
func (n *Node) StartDaemon(name string) error {
	n.mu.Lock()
	d := n.daemons[name]
	n.mu.Unlock()
	if d == nil {
		return fmt.Errorf("the node has no %s", name)
	}
	return n.startDaemon(name, d.argv)
}

// DaemonLog returns what a program of the node has logged: containerd, kubelet, kube-proxy, kube-scheduler or
// kube-controller-manager.
func (n *Node) DaemonLog(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d := n.daemons[name]; d != nil {
		return d.proc.text()
	}
	return ""
}

// Stop ends the node with everything in it, at once: its pods are not asked.
func (n *Node) Stop(ctx context.Context) error {
	return n.cleanUp(ctx)
}

func (n *Node) cleanUp(ctx context.Context) error {
	n.end()
	n.forwards.Wait()
	var errs []error
	n.mu.Lock()
	for _, d := range n.daemons {
		d.proc.kill()
	}
	n.mu.Unlock()
	if n.APIServer != nil {
		n.Kill()
		n.APIServer.cleanUp()
	}
	if n.walls != nil {
		n.walls.kill()
	}
	if n.network != nil {
		errs = append(errs, n.network.Close())
	}
	if groups, err := os.ReadFile(n.file("cgroups")); err == nil {
		for group := range strings.FieldsSeq(string(groups)) {
			errs = append(errs, removeCgroup(ctx, group))
		}
	}
	if err := os.RemoveAll(n.dir); err != nil {
		errs = append(errs, fmt.Errorf("removing the node's directory: %w", err))
	}
	_ = n.owner.Close()
	return errors.Join(errs...)
}

// removeCgroup removes a group and those below it, as soon as the kernel is done with their processes.
func removeCgroup(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return Wait(ctx, func(context.Context) error {
		var groups []string
		_ = filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				groups = append(groups, name)
			}
			return nil // already gone, as wanted
		})
		for _, group := range slices.Backward(groups) {
			if err := syscall.Rmdir(group); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("removing cgroup %s: %w", group, err)
			}
		}
		return nil
	})
}

// sweepNodes removes the cgroups of nodes whose process was killed. All else of them went by itself.
func sweepNodes() {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(mounts)) {
		field := strings.Fields(line)
		if len(field) < 3 || !strings.HasPrefix(field[2], "cgroup") {
			continue
		}
		_ = filepath.WalkDir(field[1], func(name string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.IsDir() || !strings.HasPrefix(entry.Name(), tempPrefix+"node-") {
				return nil
			}
			// The owner of a node that lives has its mark. So has one that is just being made, without processes yet.
			mark, err := os.Open(filepath.Join(os.TempDir(), entry.Name(), ownerFile))
			if err == nil {
				lives := syscall.Flock(int(mark.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil
				_ = mark.Close()
				if lives {
					return filepath.SkipDir
				}
			}
			if !populated(name) {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				_ = removeCgroup(ctx, name)
				cancel()
			}
			return filepath.SkipDir
		})
	}
}

// populated tells whether there is a process in a group or below: one of a bed with another temporary directory.
func populated(dir string) (yes bool) {
	_ = filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "cgroup.procs" {
			pids, err := os.ReadFile(name)
			yes = yes || err == nil && len(pids) > 0
		}
		return nil
	})
	return yes
}
