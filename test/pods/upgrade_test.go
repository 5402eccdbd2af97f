// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"dbconnector/test/bed"
)

// sources are the files that an image is made of, for git.
var sources = []string{"cmd", "pkg", "go.mod", "go.sum", "Dockerfile", ":(exclude)*_test.go"}

// sourceBefore returns a directory with the source tree of the newest commit that would make another image than the working
// tree. Where there is none, because the clone is shallow or no clone at all, it is the working tree.
func sourceBefore(t *testing.T) string {
	t.Helper()
	root, err := bed.Root()
	require.NoError(t, err)
	git := func(args ...string) *exec.Cmd {
		// Any user may own the checkout: the test runs nothing in it but git itself.
		return exec.CommandContext(t.Context(), "git", append([]string{"-C", root, "-c", "safe.directory=*"}, args...)...)
	}
	if _, err := os.Stat(filepath.Join(root, ".git")); errors.Is(err, os.ErrNotExist) {
		t.Log("no clone, so there is no commit before: both images are made from this source tree")
		return root
	}
	commits, err := git(append([]string{"log", "--format=%H", "--"}, sources...)...).Output()
	require.NoError(t, err, "git log")
	for commit := range strings.FieldsSeq(string(commits)) {
		err := git(append([]string{"diff", "--quiet", commit, "--"}, sources...)...).Run()
		if err == nil {
			continue // as it is now
		}
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Fatalf("git diff: %v", err)
		}
		t.Logf("the commit before is %s", commit)
		dir := t.TempDir()
		archive := filepath.Join(dir, "source.tar")
		require.NoError(t, git("archive", "--output", archive, commit).Run(), "git archive")
		if out, err := exec.CommandContext(t.Context(), "tar", "--extract", "--file", archive, "--directory", dir).CombinedOutput(); err != nil {
			t.Fatalf("unpacking %s: %v\n%s", commit, err, out)
		}
		return dir
	}
	t.Log("a clone without a commit before: both images are made from this source tree")
	return root
}

// setImage sets the image of dbconnector's containers, and nothing else.
func setImage(values *Values, image string) {
	set := &values.ControlPlane.StatefulSet
	for _, container := range slices.Concat(set.InitContainers, set.SidecarContainers) {
		if name, _ := container["name"].(string); strings.HasPrefix(name, "dbconnector-") {
			container["image"] = image
		}
	}
}

// imageOfPod returns the image of a pod's sidecar.
func imageOfPod(pod *corev1.Pod) string {
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if container.Name == "dbconnector-rotate" {
			return container.Image
		}
	}
	return ""
}

// makeDue dates the record back, without making it again, so that the next rotation begins when the test wants it to.
func makeDue(t *testing.T, v *VCluster) {
	t.Helper()
	path := "/api/v1/namespaces/" + v.Namespace + "/secrets/dbconnector-" + v.Release
	bed.Eventually(t, patience, func(ctx context.Context) error { // a sidecar may write meanwhile
		var secret corev1.Secret
		if err := v.c.Do(ctx, http.MethodGet, path, nil, &secret); err != nil {
			return err
		}
		now := secret.Data["record.json"]
		back := regexp.MustCompile(`"rotatedAt":"[^"]*"`).ReplaceAll(now, []byte(`"rotatedAt":"2000-01-01T00:00:00Z"`))
		if string(back) == string(now) {
			return bed.Permanent(errors.New("the record does not say when it was rotated"))
		}
		// A patch of this key alone, of just this version.
		return v.c.Do(ctx, http.MethodPatch, path, map[string]any{
			"metadata": map[string]string{"resourceVersion": secret.ResourceVersion},
			"data":     map[string]string{"record.json": base64.StdEncoding.EncodeToString(back)},
		}, nil)
	})
}

// follows returns nil if a pod's sidecar knows the credential of a generation, and nothing fails.
func follows(ctx context.Context, v *VCluster, pod *corev1.Pod, generation int64) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(pod.Status.PodIP, "8085")+"/metrics", nil)
	if err != nil {
		return bed.Permanent(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: v.c.Dial, DisableKeepAlives: true}, Timeout: 20 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	metrics, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	for _, line := range []string{fmt.Sprintf("dbconnector_credential_generation %d", generation), "dbconnector_consecutive_failures 0"} {
		if !strings.Contains(string(metrics), "\n"+line+"\n") {
			return fmt.Errorf("the sidecar of pod %s does not say %q:\n%s", pod.Name, line, metrics)
		}
	}
	return nil
}

// TestUpgrade installs what the commit before shipped, with three replicas, and changes the image to today's; and back. A
// client writes through it all.
//
// Shown is, with an image of each side running in the same control plane: today's init takes over the old one's record and
// makes its own hand-over of it; replicas of both sides rotate a password together and all of them hand it over, one rollout
// ends it, and the old one is dead. Changed is the image alone: today's programs find their way with the Roles and values of
// the commit before. And the way back: the programs of the commit before go on with the record that today's have written, and
// rotate. None of it needs the admin, restarts a container, or loses an acknowledged write.
//
// A commit whose record is refused by the programs before it, on purpose, has to say here what holds instead: today a rolling
// upgrade and a rollback are promised for records of the same format alone (docs/lifecycle.md, "Upgrade and rollback").
// test/upgrade has the records that earlier releases wrote.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	lap := stopwatch(t)
	c, server := newConnector(t, "upgrade")
	source := sourceBefore(t)
	before := &Cluster{Node: c.Node, kustomize: filepath.Join(source, "deploy", "kustomize")}
	image, err := imageOf(t.Context(), source, "-before")
	require.NoError(t, err)
	require.NoError(t, c.Import(t.Context(), image))
	today, err := c.Values("licensed")
	require.NoError(t, err)
	todays := fmt.Sprint(today.ControlPlane.StatefulSet.InitContainers[0]["image"])
	lap("image of before")

	var values *Values
	v := install(t, before, "licensed", Names{Release: "team-u", Namespace: "upgrade", Connector: "upgrade"}, func(shipped *Values) {
		// The test says when a password is rotated.
		shipped.SetEnv("DBCONNECTOR_ROTATION_PERIOD", "1000h")
		shipped.SetEnv("DBCONNECTOR_GRACE", "1s")
		setImage(shipped, image.Name)
		values = shipped
	})
	answers(t, v)
	ctx, stop := context.WithCancel(t.Context())
	w := &writer{v: v}
	var client sync.WaitGroup
	client.Go(func() { w.run(ctx) })
	defer client.Wait()
	defer stop()

	// replicas waits until pods of just these images are there, all ready, all at the same generation. None of their
	// containers may have been restarted, but for those of the first replicas before they were ready: of several kines that
	// make their table at once, on an empty database, one may fail and come again.
	var restarts map[string]int32
	replicas := func(generation int64, images ...string) {
		t.Helper()
		var pods []corev1.Pod
		bed.Eventually(t, patience, func(ctx context.Context) error {
			all, err := v.Pods(ctx)
			if err != nil {
				return err
			}
			pods = alive(all)
			there := map[string]bool{}
			for _, pod := range pods {
				there[imageOfPod(&pod)] = true
				for _, name := range []string{"syncer", "dbconnector-rotate"} {
					if s := containerOf(&pod, name); !s.Ready {
						return fmt.Errorf("pod %s: container %s is not ready: %s", pod.Name, name, state(s.State))
					}
				}
				if err := follows(ctx, v, &pod, generation); err != nil {
					return err
				}
			}
			for _, image := range images {
				if !there[image] {
					return fmt.Errorf("no pod has image %s, of %d", image, len(pods))
				}
			}
			if len(pods) < 3 || len(there) != len(images) {
				return fmt.Errorf("%d pods with %d images", len(pods), len(there))
			}
			return nil
		})
		first := restarts == nil
		if first {
			restarts = map[string]int32{}
		}
		for _, pod := range pods {
			for _, name := range []string{"syncer", "dbconnector-init", "dbconnector-rotate"} {
				s, key := containerOf(&pod, name), pod.Name+"/"+name
				switch {
				case first && name == "syncer":
					restarts[key] = s.RestartCount
				case s.RestartCount != restarts[key]:
					t.Errorf("container %s was restarted %d times: %s", key, s.RestartCount, state(s.LastTerminationState))
				}
			}
		}
	}
	rolledOut := func() {
		t.Helper()
		kubectl(t, c, "rollout", "status", "--namespace", v.Namespace, "deployment/"+v.Release, "--timeout="+patience.String())
	}
	rolledOut()
	replicas(1, image.Name)
	admin, first := adminLogins(server, "upgrade"), record(t, v)
	if admin == 0 {
		t.Error("the admin has not made the database")
	}
	lap("three replicas of before")

	// helm upgrade, which comes no further than its first pods.
	setImage(values, todays)
	require.NoError(t, c.Install(t.Context(), v.Release, v.Namespace, values))
	bed.Eventually(t, patience, func(ctx context.Context) error {
		pods, err := v.Pods(ctx)
		if err != nil {
			return err
		}
		for _, pod := range pods {
			if imageOfPod(&pod) == todays {
				return nil
			}
		}
		return errors.New("no pod has today's image")
	})
	kubectl(t, c, "rollout", "pause", "--namespace", v.Namespace, "deployment/"+v.Release)
	replicas(1, image.Name, todays)
	lap("side by side")

	makeDue(t, v)
	replicas(2, image.Name, todays)
	lap("rotated")
	kubectl(t, c, "rollout", "resume", "--namespace", v.Namespace, "deployment/"+v.Release)
	bed.Eventually(t, patience, func(ctx context.Context) error {
		r, err := v.Record(ctx)
		if err == nil && !r.OtherRetired {
			err = fmt.Errorf("generation %d, the one before is not retired", r.Generation)
		}
		return err
	})
	rolledOut()
	replicas(2, todays)
	if d, err := v.Deployment(t.Context()); err != nil || d.Spec.Template.Annotations[generationAnnotation] != "2" {
		t.Errorf("the rollout was not asked for: %v", err)
	}
	if err := enters(t.Context(), server, first.Login(first.Active), first.Database); err == nil || !strings.Contains(err.Error(), "28P01") {
		t.Errorf("the password before: %v", err)
	}
	lap("upgraded")

	// helm rollback.
	setImage(values, image.Name)
	require.NoError(t, c.Install(t.Context(), v.Release, v.Namespace, values))
	rolledOut()
	replicas(2, image.Name)
	lap("rolled back")
	w.goesOn(t, w.acknowledged())
	stop()
	client.Wait()
	w.lostNothing(t)
	makeDue(t, v)
	bed.Eventually(t, patience, func(ctx context.Context) error {
		r, err := v.Record(ctx)
		if err == nil && r.Generation != 3 {
			err = fmt.Errorf("generation %d", r.Generation)
		}
		return err
	})
	lap("rotated by the old ones")
	if now := record(t, v); now.Database != first.Database || now.UID != first.UID {
		t.Errorf("got database %s, want %s", now.Database, first.Database)
	}
	if now := adminLogins(server, "upgrade"); now != admin {
		t.Errorf("the admin logged in %d times more", now-admin)
	}
}
