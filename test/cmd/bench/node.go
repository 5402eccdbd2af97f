// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dbconnector/pkg/rotation"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/pods"
	"dbconnector/test/rig"
)

const (
	// podStarts is how often each kind of pod is started. The kubelet looks once a second what its containers do, so a single
	// start says little.
	podStarts = 11
	maxImage  = 40e6
)

// nodeFigures are measured in real pods.
type nodeFigures struct {
	kubelet, runtime, server string
	first, later             starts
	without                  []time.Duration
	sidecar                  cgroup
	limit                    int64
	image                    int64
	files                    map[string]int64 // by name, without the directory
}

// starts are starts of a pod with our containers, and what they took more than the pod without them that was started beside
// each.
type starts struct{ whole, added, container, work []time.Duration }

// cgroup is a container's memory, as the kubelet tells it.
type cgroup struct{ workingSet, usage, most, anonymous int64 }

// onNode measures the figures that only pods can show.
func onNode(ctx context.Context) (f nodeFigures, off []string, err error) {
	progress("starting a node")
	c, err := pods.Start(ctx)
	if err != nil {
		return f, nil, err
	}
	defer func() { err = errors.Join(err, c.Stop(context.WithoutCancel(ctx))) }()
	var node corev1.Node
	if err := c.Do(ctx, http.MethodGet, "/api/v1/nodes/node", nil, &node); err != nil {
		return f, nil, err
	}
	f.kubelet, f.runtime = node.Status.NodeInfo.KubeletVersion, strings.Replace(node.Status.NodeInfo.ContainerRuntimeVersion, "://", " ", 1)
	options, err := c.Options()
	if err != nil {
		return f, nil, err
	}
	s, err := bed.Start(ctx, bed.Postgres, "17", options)
	if err != nil {
		return f, nil, err
	}
	defer func() { err = errors.Join(err, s.Stop(context.WithoutCancel(ctx))) }()
	f.server = "PostgreSQL " + short(s.FullVersion)
	user, password, err := s.CloudAdmin(ctx, "platform")
	if err != nil {
		return f, nil, err
	}
	if err := c.Connect(ctx, "postgres", "postgres", s, user, password); err != nil {
		return f, nil, err
	}

	if off, err = f.weigh(ctx); err != nil {
		return f, off, err
	}
	progress("starts of pods")
	if err := f.startPods(ctx, c); err != nil {
		return f, off, err
	}
	progress("an idle sidecar in its cgroup")
	if err := f.idleSidecar(ctx, c); err != nil {
		return f, off, err
	}
	if f.sidecar.workingSet > maxIdleMemory {
		off = append(off, fmt.Sprintf("an idle sidecar's working set is %s", mib(f.sidecar.workingSet)))
	}
	return f, off, nil
}

// weigh looks at the image's size.
func (f *nodeFigures) weigh(ctx context.Context) (off []string, err error) {
	image, err := pods.Image(ctx)
	if err != nil {
		return nil, err
	}
	if f.image, err = image.Size(); err != nil {
		return nil, err
	}
	f.files = map[string]int64{}
	for name, file := range image.Files {
		f.files[path.Base(name)] = int64(len(file.Content))
	}
	if f.image > maxImage {
		off = append(off, fmt.Sprintf("the image has %d bytes, at most %d are allowed", f.image, int64(maxImage)))
	}
	return off, nil
}

// startPods starts the shipped pod as a new tenant, the same pod once more, and the same without our containers, by turns.
func (f *nodeFigures) startPods(ctx context.Context, c *pods.Cluster) error {
	values, err := c.NativeSidecar("open-source") // of the form that docs/benchmarks.md describes
	if err != nil {
		return err
	}
	none := 0
	values.ControlPlane.StatefulSet.HighAvailability.Replicas = &none // the pods are made here, one at a time
	v, err := c.New(ctx, "open-source", pods.Names{Release: "team-a", Namespace: "starts", Connector: "postgres"}, values)
	if err != nil {
		return err
	}
	deployment, err := v.Deployment(ctx)
	if err != nil {
		return err
	}
	p := &podStarter{c: c, v: v, template: deployment.Spec.Template}
	for n := range podStarts + 1 {
		var without time.Duration
		var first, later started
		steps := []func() error{
			func() (err error) { without, err = p.without(ctx); return err },
			func() (err error) { first, err = p.first(ctx); return err },
			func() (err error) { later, err = p.with(ctx); return err },
		}
		if n > 0 { // later measurements have a tenant
			steps = slices.Concat(steps[n%3:], steps[:n%3])
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
		if n == 0 {
			continue // warms caches up
		}
		f.without = append(f.without, without)
		f.first.add(first, without)
		f.later.add(later, without)
	}
	return nil
}

func (s *starts) add(one started, without time.Duration) {
	s.whole = append(s.whole, one.whole)
	s.added = append(s.added, one.whole-without)
	s.container = append(s.container, one.container)
	s.work = append(s.work, one.work)
}

// started is one start of a pod.
type started struct {
	whole     time.Duration // from the scheduler's decision to the start of the control plane's container
	container time.Duration // init's container, from its start to its end
	work      time.Duration // by init's own log
}

// podStarter starts pods from a template.
type podStarter struct {
	c        *pods.Cluster
	v        *pods.VCluster
	template corev1.PodTemplateSpec
	uid      string // the tenant's
	pods     int
}

func (p *podStarter) without(ctx context.Context) (time.Duration, error) {
	one, err := p.start(ctx, func(spec *corev1.PodSpec) {
		spec.InitContainers = slices.DeleteFunc(spec.InitContainers, func(c corev1.Container) bool { return strings.HasPrefix(c.Name, "dbconnector-") })
	})
	return one.whole, err
}

// first starts the pod of a tenant that does not exist yet.
func (p *podStarter) first(ctx context.Context) (started, error) {
	if p.uid != "" {
		if _, err := p.c.Kubectl(ctx, "", "delete", "secret", "--namespace", p.v.Namespace, "dbconnector-"+p.v.Release); err != nil {
			return started{}, err
		}
	}
	p.uid = fmt.Sprintf("tenant %d", p.pods)
	return p.with(ctx)
}

// with starts the pod as it is shipped.
func (p *podStarter) with(ctx context.Context) (started, error) {
	return p.start(ctx, func(spec *corev1.PodSpec) {
		for i := range spec.InitContainers {
			c := &spec.InitContainers[i]
			c.Env = append(c.Env, corev1.EnvVar{Name: "DBCONNECTOR_TENANT_UID", Value: p.uid})
		}
	})
}

func (p *podStarter) start(ctx context.Context, change func(*corev1.PodSpec)) (one started, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	p.pods++
	template := p.template.DeepCopy()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", p.v.Release, p.pods), Labels: template.Labels}, Spec: template.Spec}
	change(&pod.Spec)
	// The control plane ends at once: its own start is not to be measured, nor to slow the next pod's down.
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.Containers[0].Command = []string{"/vcluster", "nothing"}
	pods := "/api/v1/namespaces/" + p.v.Namespace + "/pods"
	if err := p.c.Do(ctx, http.MethodPost, pods, pod, nil); err != nil {
		return one, err
	}
	if err := bed.Wait(ctx, func(ctx context.Context) error {
		now := &corev1.Pod{} // or a field that is gone from the status would stay
		if err := p.c.Do(ctx, http.MethodGet, pods+"/"+pod.Name, nil, now); err != nil {
			return err
		}
		pod = now
		status := statusOf(pod, "syncer")
		if status.ContainerID == "" || status.State.Waiting != nil {
			return fmt.Errorf("pod %s is %s: %+v", pod.Name, pod.Status.Phase, pod.Status.InitContainerStatuses)
		}
		return nil
	}); err != nil {
		return one, err
	}
	scheduled, err := p.scheduled(ctx, pod)
	if err != nil {
		return one, err
	}
	begin, _, err := containerTimes(p.c, statusOf(pod, "syncer").ContainerID)
	if err != nil {
		return one, err
	}
	one.whole = begin.Sub(scheduled)
	if status := statusOf(pod, "dbconnector-init"); status.ContainerID != "" {
		begin, end, err := containerTimes(p.c, status.ContainerID)
		if err != nil {
			return one, err
		}
		one.container = end.Sub(begin)
		if one.work, err = p.took(ctx, pod); err != nil {
			return one, err
		}
	}
	_, err = p.c.Kubectl(ctx, "", "delete", "pod", "--namespace", p.v.Namespace, pod.Name)
	return one, err
}

func statusOf(pod *corev1.Pod, name string) corev1.ContainerStatus {
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if s.Name == name {
			return s
		}
	}
	return corev1.ContainerStatus{}
}

// scheduled is when the scheduler said where a pod goes: its Events have microseconds.
func (p *podStarter) scheduled(ctx context.Context, pod *corev1.Pod) (at time.Time, err error) {
	err = bed.Wait(ctx, func(ctx context.Context) error {
		var list corev1.EventList
		if err := p.c.Do(
			ctx, http.MethodGet, "/api/v1/namespaces/"+p.v.Namespace+"/events?fieldSelector=reason=Scheduled,involvedObject.name="+pod.Name,
			nil, &list,
		); err != nil {
			return err
		}
		if len(list.Items) != 1 || list.Items[0].EventTime.IsZero() {
			return fmt.Errorf("%d Events say that %s was scheduled", len(list.Items), pod.Name)
		}
		at = list.Items[0].EventTime.Time
		return nil
	})
	return at, err
}

// containerTimes are a container's start and end as containerd keeps them: to the nanosecond, where a pod's status has seconds.
func containerTimes(c *pods.Cluster, id string) (began, ended time.Time, err error) {
	_, id, _ = strings.Cut(id, "://")
	text, err := os.ReadFile(filepath.Join(c.Dir(), "var/lib/containerd/io.containerd.grpc.v1.cri/containers", id, "status"))
	if err != nil {
		return began, ended, fmt.Errorf("reading containerd's state: %w", err)
	}
	var status struct{ StartedAt, FinishedAt int64 }
	if err := json.Unmarshal(text, &status); err != nil || status.StartedAt == 0 {
		return began, ended, fmt.Errorf("containerd's state of %s: %s: %w", id, text, errors.Join(err, errors.New("it has no start")))
	}
	return time.Unix(0, status.StartedAt), time.Unix(0, status.FinishedAt), nil
}

// took is how long init was busy by its own log.
func (p *podStarter) took(ctx context.Context, pod *corev1.Pod) (time.Duration, error) {
	log, err := p.c.Kubectl(ctx, "", "logs", "--namespace", p.v.Namespace, pod.Name, "--container=dbconnector-init", "--tail=1")
	if err != nil {
		return 0, err
	}
	var line struct{ Took string }
	if err := json.Unmarshal([]byte(log), &line); err != nil {
		return 0, fmt.Errorf("init's last line is %q: %w", log, err)
	}
	return time.ParseDuration(line.Took)
}

// idleSidecar rotates a control plane's password, and then looks at the sidecar's memory.
func (f *nodeFigures) idleSidecar(ctx context.Context, c *pods.Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := forgetProgram(c); err != nil {
		return err
	}
	values, err := c.NativeSidecar("open-source") // of the form that docs/benchmarks.md describes
	if err != nil {
		return err
	}
	values.SetEnv("DBCONNECTOR_GRACE", "1s")
	v, err := c.New(ctx, "open-source", pods.Names{Release: "team-a", Namespace: "idle", Connector: "postgres"}, values)
	if err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, "", "rollout", "status", "--namespace", v.Namespace, "deployment/"+v.Release); err != nil {
		return err
	}
	pods, err := v.Pods(ctx)
	if err != nil {
		return err
	}
	if len(pods) != 1 {
		return fmt.Errorf("there are %d pods", len(pods))
	}
	pod := &pods[0]
	sidecar := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == sidecarName })
	limit := pod.Spec.InitContainers[sidecar].Resources.Limits.Memory()
	f.limit = limit.Value()

	if err := setDue(ctx, c, v); err != nil {
		return err
	}
	if err := waitRecord(ctx, v, func(r *tenant.Record) bool { return r.Generation == 2 }); err != nil {
		return err
	}
	// The control plane adopts the new password at its next start.
	_, id, _ := strings.Cut(statusOf(pod, "syncer").ContainerID, "://")
	if _, err := c.Run(ctx, "ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", id); err != nil {
		return err
	}
	if err := waitRecord(ctx, v, func(r *tenant.Record) bool { return r.OtherRetired }); err != nil {
		return err
	}
	// The kubelet has looked twice since: it does so every ten seconds or so, and there may be something on its way.
	for range 2 {
		now := time.Now()
		err := bed.Wait(ctx, func(ctx context.Context) error {
			at, err := f.sidecar.read(ctx, c, v.Namespace)
			if err == nil && at.Before(now) {
				err = errors.New("the kubelet never looks at the sidecar again")
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	var now corev1.Pod
	if err := c.Do(ctx, http.MethodGet, "/api/v1/namespaces/"+v.Namespace+"/pods/"+pod.Name, nil, &now); err != nil {
		return err
	}
	if s := statusOf(&now, sidecarName); s.RestartCount > 0 || s.ContainerID != statusOf(pod, sidecarName).ContainerID {
		return fmt.Errorf("the sidecar was restarted %d times", s.RestartCount)
	}
	return nil
}

const sidecarName = "dbconnector-rotate"

// forgetProgram drops the sidecar's program from the page cache, where it is on the account of the process that wrote it, so
// that it is on the sidecar's: the worst case, a node on which no other sidecar runs.
func forgetProgram(c *pods.Cluster) error {
	files, err := filepath.Glob(filepath.Join(c.Dir(), "var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs/usr/local/bin", sidecarName))
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return fmt.Errorf("the image's program is in %q", files)
	}
	f, err := os.Open(files[0])
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fsync(int(f.Fd())); err != nil { // a page that is not written cannot be dropped
		return fmt.Errorf("writing the program: %w", err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("dropping the program: %w", err)
	}
	return nil
}

// setDue makes the password due, with the sidecar's default settings.
func setDue(ctx context.Context, c *pods.Cluster, v *pods.VCluster) error {
	name := "/api/v1/namespaces/" + v.Namespace + "/secrets/dbconnector-" + v.Release
	var secret corev1.Secret
	if err := c.Do(ctx, http.MethodGet, name, nil, &secret); err != nil {
		return err
	}
	r, err := tenant.DecodeRecord(secret.Data["record.json"])
	if err != nil {
		return err
	}
	r.RotatedAt = r.RotatedAt.Add(time.Since(rotation.Due(r, rotation.Policy{Period: 30 * 24 * time.Hour}))) // back in time
	if secret.Data["record.json"], err = r.Encode(); err != nil {
		return err
	}
	return c.Do(ctx, http.MethodPut, name, &secret, nil)
}

func waitRecord(ctx context.Context, v *pods.VCluster, ok func(*tenant.Record) bool) error {
	return bed.Wait(ctx, func(ctx context.Context) error {
		r, err := v.Record(ctx)
		if err == nil && !ok(r) {
			err = fmt.Errorf("generation %d, the password before is dead: %v", r.Generation, r.OtherRetired)
		}
		return err
	})
}

// read asks the kubelet for the sidecar's memory, and returns when it looked.
func (m *cgroup) read(ctx context.Context, c *pods.Cluster, namespace string) (at time.Time, err error) {
	text, err := c.Kubectl(ctx, "", "get", "--raw", "/api/v1/nodes/node/proxy/metrics/cadvisor")
	if err != nil {
		return at, err
	}
	for metric, into := range map[string]*int64{
		"working_set_bytes": &m.workingSet, "usage_bytes": &m.usage, "max_usage_bytes": &m.most, "rss": &m.anonymous,
	} {
		line := regexp.MustCompile(`(?m)^container_memory_` + metric + `{container="` + sidecarName + `",.*namespace="` + namespace + `",.*} (\S+) (\d+)$`)
		found := line.FindAllStringSubmatch(text, -1)
		if len(found) != 1 {
			return at, fmt.Errorf("the kubelet has %d values for %s", len(found), metric)
		}
		value, err := strconv.ParseFloat(found[0][1], 64)
		if err != nil {
			return at, fmt.Errorf("%s: %w", metric, err)
		}
		*into = int64(value)
		ms, err := strconv.ParseInt(found[0][2], 10, 64)
		if err != nil {
			return at, fmt.Errorf("%s: %w", metric, err)
		}
		at = time.UnixMilli(ms)
	}
	return at, nil
}

func renderNode(f nodeFigures) string {
	var s strings.Builder
	fmt.Fprintf(&s, "Measured on %s, %d cores; kubelet %s, %s, %s; %d starts of each pod, by turns.\n\n",
		cpu(), runtime.NumCPU(), f.kubelet, f.runtime, f.server, podStarts)
	s.WriteString("| Start of a pod: median (least to most) | first | later |\n|---|---:|---:|\n")
	row := func(what string, cell func(starts) []time.Duration) {
		fmt.Fprintf(&s, "| %s | %s | %s |\n", what, spread(cell(f.first)), spread(cell(f.later)))
	}
	row("Scheduled to control plane's container", func(x starts) []time.Duration { return x.whole })
	row("The same pod without our containers", func(starts) []time.Duration { return f.without })
	row("**Added**", func(x starts) []time.Duration { return x.added })
	row("Of it, init's container from start to end", func(x starts) []time.Duration { return x.container })
	row("Of that, init's own work", func(x starts) []time.Duration { return x.work })
	s.WriteString("\n| Figure | Goal | |\n|---|---|---:|\n")
	fmt.Fprintf(&s, "| Idle sidecar after a rotation: working set (without the program's pages) | ≤ 25 MiB | %s (%s) |\n",
		mib(f.sidecar.workingSet), mib(f.sidecar.anonymous))
	fmt.Fprintf(&s, "| Its cgroup: usage now, most since its start, limit |  | %s, %s, %s |\n", mib(f.sidecar.usage), mib(f.sidecar.most), mib(f.limit))
	fmt.Fprintf(&s, "| Image, uncompressed | ≤ 40 MB | %s |\n", mb(f.image))
	for _, name := range []string{"dbconnector-init", "dbconnector-rotate", "ca-certificates.crt"} {
		fmt.Fprintf(&s, "| Of it, `%s` |  | %s |\n", name, mb(f.files[name]))
	}
	return s.String()
}

func mb(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

func spread(all []time.Duration) string {
	return fmt.Sprintf("%s (%s to %s)", brief(rig.Quantile(all, 0.5)), brief(slices.Min(all)), brief(slices.Max(all)))
}

func brief(d time.Duration) string {
	if d.Abs() < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
