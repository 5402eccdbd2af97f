// SPDX-License-Identifier: Apache-2.0

package shipped_test

import (
	"cmp"
	"fmt"
	goversion "go/version"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"dbconnector/pkg/config"
	"dbconnector/pkg/handover"
	"dbconnector/pkg/vclusterconfig"
	"dbconnector/test/bed"
	"dbconnector/test/shipped"
)

// Facts about the vCluster chart and about the programs that the manifests rely on.
const (
	outputDir     = "/var/run/dbconnector" // default of DBCONNECTOR_OUTPUT_DIR
	chartConfig   = "vcluster-config"      // the chart's volume with the vCluster's config.yaml
	chartConfigAt = "/var/lib/vcluster"    // default directory of DBCONNECTOR_VCLUSTER_CONFIG
	user          = int64(65532)           // USER of the Dockerfile
	connectorKey  = "loft.sh/connector-type"
	connectorType = "shared-database"
)

// values are the parts of the chart's values that ours set. They are decoded strictly: a key that is not here is a typo,
// or an addition that a maintainer has to check against the chart.
type values struct {
	ControlPlane struct {
		BackingStore struct {
			Database struct {
				Embedded store `json:"embedded"`
				External store `json:"external"`
			} `json:"database"`
		} `json:"backingStore"`
		StatefulSet struct {
			Args             []string `json:"args"`
			HighAvailability struct {
				Replicas int `json:"replicas"`
			} `json:"highAvailability"`
			Security struct {
				PodSecurityContext corev1.PodSecurityContext `json:"podSecurityContext"`
			} `json:"security"`
			Persistence struct {
				VolumeClaim struct {
					Enabled *bool `json:"enabled"`
				} `json:"volumeClaim"`
				AddVolumes      []corev1.Volume      `json:"addVolumes"`
				AddVolumeMounts []corev1.VolumeMount `json:"addVolumeMounts"`
			} `json:"persistence"`
			InitContainers    []corev1.Container `json:"initContainers"`
			SidecarContainers []corev1.Container `json:"sidecarContainers"`
		} `json:"statefulSet"`
	} `json:"controlPlane"`
}

type store struct {
	Enabled    bool     `json:"enabled"`
	DataSource string   `json:"dataSource"`
	ExtraArgs  []string `json:"extraArgs"`
}

// kustomize is a path below deploy/kustomize.
func kustomize(t *testing.T, path ...string) string {
	t.Helper()
	dir, err := bed.Root()
	require.NoError(t, err)
	return filepath.Join(append([]string{dir, "deploy", "kustomize"}, path...)...)
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	require.NoErrorf(t, yaml.UnmarshalStrict([]byte(text), into), "in\n%s", text)
}

// vcluster is the content of an example's file vcluster.yaml.
type vcluster struct{ release, namespace, connector, platform string }

// grants holds the Roles and bindings that a directory renders, by namespace.
type grants struct {
	roles    map[string]rbacv1.Role
	bindings map[string]rbacv1.RoleBinding
}

// rendered builds a directory and allows nothing in it but one Role and one RoleBinding in each namespace.
func rendered(t *testing.T, dir string) grants {
	t.Helper()
	out, err := shipped.Build(t.Context(), dir)
	require.NoError(t, err)
	got := grants{roles: map[string]rbacv1.Role{}, bindings: map[string]rbacv1.RoleBinding{}}
	for doc := range strings.SplitSeq(string(out), "\n---\n") {
		var kind metav1.TypeMeta
		require.NoError(t, yaml.Unmarshal([]byte(doc), &kind))
		switch kind.Kind {
		case "Role":
			var role rbacv1.Role
			decode(t, doc, &role)
			if _, twice := got.roles[role.Namespace]; twice {
				t.Errorf("two Roles in namespace %q", role.Namespace)
			}
			got.roles[role.Namespace] = role
		case "RoleBinding":
			var binding rbacv1.RoleBinding
			decode(t, doc, &binding)
			if _, twice := got.bindings[binding.Namespace]; twice {
				t.Errorf("two RoleBindings in namespace %q", binding.Namespace)
			}
			got.bindings[binding.Namespace] = binding
		default:
			t.Errorf("unexpected %s: a vCluster needs Roles and RoleBindings, and nothing for the whole cluster", kind.Kind)
		}
	}
	return got
}

// checkGrants compares the rendered rights with all the rights that a vCluster may have. Nothing is left out: a person who
// adds a right has to add it here, too.
func checkGrants(t *testing.T, got grants, v vcluster) {
	t.Helper()
	core := []string{""}
	want := map[string][]rbacv1.PolicyRule{
		v.platform: {
			{APIGroups: core, Resources: []string{"secrets"}, ResourceNames: []string{v.connector}, Verbs: []string{"get"}},
		},
		v.namespace: {
			{APIGroups: core, Resources: []string{"namespaces"}, ResourceNames: []string{v.namespace}, Verbs: []string{"get"}},
			{APIGroups: core, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
			{APIGroups: []string{"apps"}, Resources: []string{"statefulsets", "deployments"}, ResourceNames: []string{v.release}, Verbs: []string{"get", "patch"}},
		},
	}
	if g, w := slices.Sorted(maps.Keys(got.roles)), slices.Sorted(maps.Keys(want)); !slices.Equal(g, w) {
		t.Fatalf("Roles in namespaces %q, want %q", g, w)
	}
	subject := []rbacv1.Subject{{Kind: "ServiceAccount", Name: "vc-" + v.release, Namespace: v.namespace}}
	for namespace, rules := range want {
		role, binding := got.roles[namespace], got.bindings[namespace]
		if !reflect.DeepEqual(role.Rules, rules) {
			t.Errorf("Role %s/%s grants\n%+v\nwant\n%+v", namespace, role.Name, role.Rules, rules)
		}
		ref := rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "Role", Name: role.Name}
		if binding.RoleRef != ref {
			t.Errorf("RoleBinding %s/%s refers to %+v, want %+v", namespace, binding.Name, binding.RoleRef, ref)
		}
		if !reflect.DeepEqual(binding.Subjects, subject) {
			t.Errorf("RoleBinding %s/%s is for %+v, want %+v", namespace, binding.Name, binding.Subjects, subject)
		}
	}
	// All vClusters meet in the platform's namespace: one must not overwrite the other's Role.
	if g, w := got.roles[v.platform].Name, "dbconnector."+v.namespace+"."+v.release; g != w {
		t.Errorf("Role in the platform's namespace is called %q, want %q", g, w)
	}
}

func TestExamplesGrantOneConnectorSecret(t *testing.T) {
	t.Parallel()
	for example := range examples {
		t.Run(example, func(t *testing.T) {
			t.Parallel()
			dir := kustomize(t, "examples", example)
			var params corev1.ConfigMap
			decode(t, read(t, dir, "vcluster.yaml"), &params)
			checkGrants(t, rendered(t, dir), vcluster{
				release: params.Data["release"], namespace: params.Data["namespace"],
				connector: params.Data["connector"], platform: params.Data["platformNamespace"],
			})
		})
	}
}

// Names contain the characters that the component splits its own names at.
func TestAwkwardNamesAreFilledInWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rbac, err := filepath.Rel(dir, kustomize(t, "rbac"))
	require.NoError(t, err)
	v := vcluster{release: "vc-my-v-c", namespace: "ns-x-y", connector: "pg-1.example", platform: "the-platform"}
	files := map[string]string{
		"kustomization.yaml": "resources: [vcluster.yaml]\ncomponents: [" + rbac + "]\n",
		"vcluster.yaml": fmt.Sprintf(`
apiVersion: v1
kind: ConfigMap
metadata: {name: dbconnector, annotations: {config.kubernetes.io/local-config: "true"}}
data: {release: %q, namespace: %q, connector: %q, platformNamespace: %q}
`, v.release, v.namespace, v.connector, v.platform),
	}
	for name, content := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	checkGrants(t, rendered(t, dir), v)
}

func TestExampleConnectors(t *testing.T) {
	t.Parallel()
	out, err := shipped.Build(t.Context(), kustomize(t, "examples", "connectors"))
	require.NoError(t, err)
	types := map[string]bool{}
	for doc := range strings.SplitSeq(string(out), "\n---\n") {
		var secret corev1.Secret
		decode(t, doc, &secret)
		types[secret.StringData["type"]] = true
		if secret.Kind != "Secret" || secret.Namespace != "vcluster-platform" || secret.Labels[connectorKey] != connectorType {
			t.Errorf("%s %s/%s with labels %v: want a Secret in vcluster-platform with %s: %s",
				secret.Kind, secret.Namespace, secret.Name, secret.Labels, connectorKey, connectorType)
		}
		for _, key := range []string{"endpoint", "port", "user", "password"} {
			if secret.StringData[key] == "" {
				t.Errorf("connector %s: no key %q", secret.Name, key)
			}
		}
		if secret.StringData["sslMode"] == "disable" {
			t.Errorf("connector %s: an example must not switch TLS off", secret.Name)
		}
	}
	if want := map[string]bool{"postgres": true, "mysql": true}; !maps.Equal(types, want) {
		t.Errorf("connectors of types %v, want %v", types, want)
	}
}

// examples are the vClusters of deploy/kustomize/examples, and how each adopts a new password.
var examples = map[string]string{"open-source": "none", "licensed": "rollout"}

// exampleValues reads the values of an example, and where native is true those that make the sidecar a native one over them.
func exampleValues(t *testing.T, example string, native bool) values {
	t.Helper()
	dir := kustomize(t, "examples", example)
	var v values
	decode(t, read(t, dir, "values.yaml"), &v)
	if !native {
		return v
	}
	// As Helm does it: a list takes the place of the list before.
	var over values
	decode(t, read(t, dir, "values-native-sidecar.yaml"), &over)
	set := &v.ControlPlane.StatefulSet
	set.InitContainers, set.SidecarContainers = over.ControlPlane.StatefulSet.InitContainers, over.ControlPlane.StatefulSet.SidecarContainers
	over.ControlPlane.StatefulSet.InitContainers, over.ControlPlane.StatefulSet.SidecarContainers = nil, nil
	if !reflect.DeepEqual(over, values{}) {
		t.Errorf("%s/values-native-sidecar.yaml sets more than containers: %+v", example, over)
	}
	return v
}

func TestValues(t *testing.T) {
	t.Parallel()
	known := variables(t)
	containers := map[string][]corev1.Container{}
	for example, adopt := range examples {
		t.Run(example, func(t *testing.T) {
			var params corev1.ConfigMap
			decode(t, read(t, "deploy", "kustomize", "examples", example, "vcluster.yaml"), &params)
			v := exampleValues(t, example, false)

			set := v.ControlPlane.StatefulSet
			if len(set.InitContainers) != 1 || len(set.SidecarContainers) != 1 {
				t.Fatalf("%d init containers and %d others, want init and the sidecar", len(set.InitContainers), len(set.SidecarContainers))
			}
			init, rotate := set.InitContainers[0], set.SidecarContainers[0]
			env := checkEnvironment(t, init, known)
			checkStore(t, v, env, example, params.Data["connector"])
			checkHandOver(t, v)
			checkRestricted(t, init)
			if init.RestartPolicy != nil || len(init.Command) > 0 {
				t.Error("an init container that runs the image's entry point needs neither restartPolicy nor command")
			}
			checkRestricted(t, rotate)
			checkSidecar(t, init, rotate)
			if got := env["DBCONNECTOR_ADOPT"].Value; got != adopt {
				t.Errorf("DBCONNECTOR_ADOPT is %q, want %q", got, adopt)
			}
			limit := strconv.Itoa((max(1, set.HighAvailability.Replicas)+1)*pool(t, v) + 10)
			if got := cmp.Or(env["DBCONNECTOR_CONNECTION_LIMIT"].Value, known["DBCONNECTOR_CONNECTION_LIMIT"]); got != limit {
				t.Errorf("DBCONNECTOR_CONNECTION_LIMIT is %s, want %s: (replicas + 1) x kine's pool + 10 (docs/install.md)", got, limit)
			}

			if claim := set.Persistence.VolumeClaim.Enabled; claim == nil || *claim {
				t.Error("persistence.volumeClaim.enabled must be false: a claim makes a StatefulSet with an unused volume")
			}
			if group := set.Security.PodSecurityContext.FSGroup; group == nil {
				t.Error("security.podSecurityContext.fsGroup is not set: a rootless control plane cannot read the hand-over")
			}

			// Native, all is the same, but for what makes it so.
			native := exampleValues(t, example, true).ControlPlane.StatefulSet
			always := corev1.ContainerRestartPolicyAlways
			asNative := rotate
			asNative.RestartPolicy = &always
			if len(native.InitContainers) == 2 { // in socket mode kine needs a socket when it starts
				probe := native.InitContainers[1].StartupProbe
				if probe == nil || !reflect.DeepEqual(probe.HTTPGet, rotate.ReadinessProbe.HTTPGet) || probe.PeriodSeconds*probe.FailureThreshold < 120 {
					t.Errorf("the native sidecar's startup probe %+v: want the readiness probe's, for longer than init waits for a server", probe)
				}
				asNative.StartupProbe = probe
			}
			if !reflect.DeepEqual(native.InitContainers, []corev1.Container{init, asNative}) || len(native.SidecarContainers) > 0 {
				t.Errorf("values-native-sidecar.yaml makes\n%+v\n%+v\nwant\n%+v\n%+v", native.InitContainers, native.SidecarContainers, init, asNative)
			}

			// The parts that both examples share must stay the same.
			both := []corev1.Container{init, rotate}
			for i, c := range both {
				both[i].Env = slices.DeleteFunc(slices.Clone(c.Env), func(e corev1.EnvVar) bool {
					return slices.Contains([]string{"DBCONNECTOR_CONNECTOR", "DBCONNECTOR_ADOPT", "DBCONNECTOR_CONNECTION_LIMIT"}, e.Name)
				})
			}
			containers[example] = both
		})
	}
	if !reflect.DeepEqual(containers["open-source"], containers["licensed"]) {
		t.Errorf("the containers differ in more than connector, adoption and limit:\n%+v\n%+v", containers["open-source"], containers["licensed"])
	}
}

// checkSidecar: rotate has the same settings as init, and its own are right.
func checkSidecar(t *testing.T, init, c corev1.Container) {
	t.Helper()
	if c.RestartPolicy != nil {
		t.Error("an ordinary container has no restartPolicy of its own")
	}
	if want := []string{"/usr/local/bin/dbconnector-rotate"}; !slices.Equal(c.Command, want) || len(c.Args) > 0 {
		t.Errorf("command %q %q, want %q: the image's entry point is init", c.Command, c.Args, want)
	}
	if c.Image != init.Image || c.ImagePullPolicy != init.ImagePullPolicy {
		t.Errorf("image %s, and init's is %s: they share a record", c.Image, init.Image)
	}
	if !reflect.DeepEqual(c.Env, init.Env) {
		t.Errorf("environment\n%+v\nand init's is\n%+v", c.Env, init.Env)
	}
	if !reflect.DeepEqual(c.VolumeMounts, init.VolumeMounts) {
		t.Errorf("volume mounts\n%+v\nand init's are\n%+v", c.VolumeMounts, init.VolumeMounts)
	}
	address := variables(t)["DBCONNECTOR_HTTP_ADDRESS"]
	if len(c.Ports) != 1 || address != fmt.Sprintf(":%d", c.Ports[0].ContainerPort) {
		t.Fatalf("ports %+v, and it serves on %s", c.Ports, address)
	}
	for path, probe := range map[string]*corev1.Probe{"/healthz": c.LivenessProbe, "/readyz": c.ReadinessProbe} {
		if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != path || probe.HTTPGet.Port.StrVal != c.Ports[0].Name {
			t.Errorf("probe %+v, want GET %s on port %s", probe, path, c.Ports[0].Name)
			continue
		}
		if silence := probe.PeriodSeconds * probe.FailureThreshold; silence < 60 || probe.TimeoutSeconds < 5 {
			t.Errorf("%s: fails after %d s of silence, %d s each: a failure takes the control plane out of service", path, silence, probe.TimeoutSeconds)
		}
	}
	if c.StartupProbe != nil {
		t.Error("a startupProbe of a native sidecar holds the control plane back, which has all that it needs")
	}
}

// pool is how many connections one kine may have.
func pool(t *testing.T, v values) int {
	t.Helper()
	db := v.ControlPlane.BackingStore.Database
	for _, arg := range append(db.Embedded.ExtraArgs, db.External.ExtraArgs...) {
		if value, ok := strings.CutPrefix(arg, "--datastore-max-open-connections="); ok {
			n, err := strconv.Atoi(value)
			require.NoError(t, err)
			return n
		}
	}
	t.Fatal("kine's pool is not limited")
	return 0
}

// checkStore: one store is enabled, which leads nowhere without dbconnector (F1), and the connector is the one that RBAC
// allows. It is named to dbconnector alone: with external.connector, vCluster Platform would make a database by itself.
func checkStore(t *testing.T, v values, env map[string]corev1.EnvVar, example, connector string) {
	t.Helper()
	db := v.ControlPlane.BackingStore.Database
	used, other := db.Embedded, db.External
	if example == "licensed" {
		used, other = db.External, db.Embedded
	}
	if !used.Enabled || !reflect.DeepEqual(other, store{}) {
		t.Errorf("stores %+v: want one of them, and nothing said of the other", db)
	}
	if used.DataSource != vclusterconfig.Placeholder {
		t.Errorf("dataSource %q, want %q: a control plane that lost its hand-over would start on the database that is there",
			used.DataSource, vclusterconfig.Placeholder)
	}
	if named := env["DBCONNECTOR_CONNECTOR"].Value; named != connector {
		t.Errorf("values name the connector %q, vcluster.yaml allows to read %q", named, connector)
	}
	for _, flag := range []string{"--datastore-max-open-connections=", "--datastore-connection-max-lifetime="} {
		if !slices.ContainsFunc(used.ExtraArgs, func(arg string) bool { return strings.HasPrefix(arg, flag) }) {
			t.Errorf("extraArgs %q: no %s", used.ExtraArgs, flag)
		}
	}
}

// checkHandOver: the control plane reads the files that the init container writes.
func checkHandOver(t *testing.T, v values) {
	t.Helper()
	set := v.ControlPlane.StatefulSet
	if want := []string{"--config=" + outputDir + "/config.yaml"}; !slices.Equal(set.Args, want) {
		t.Errorf("args %q, want %q", set.Args, want)
	}
	if len(set.Persistence.AddVolumes) != 2 {
		t.Fatalf("addVolumes %+v: want two", set.Persistence.AddVolumes)
	}
	for _, volume := range set.Persistence.AddVolumes {
		if dir := volume.EmptyDir; dir == nil || dir.Medium != corev1.StorageMediumMemory || dir.SizeLimit == nil {
			t.Errorf("volume %+v: passwords belong in an emptyDir in memory, with a limit", volume)
		}
	}
	volume, private := set.Persistence.AddVolumes[0], set.Persistence.AddVolumes[1]
	reads := []corev1.VolumeMount{{Name: volume.Name, MountPath: outputDir, ReadOnly: true}}
	if got := set.Persistence.AddVolumeMounts; !reflect.DeepEqual(got, reads) {
		t.Errorf("the control plane mounts %+v, want %+v", got, reads)
	}
	writes := []corev1.VolumeMount{
		{Name: volume.Name, MountPath: outputDir},
		{Name: private.Name, MountPath: handover.PrivateDir(outputDir)},
		{Name: chartConfig, MountPath: chartConfigAt, ReadOnly: true},
	}
	if got := set.InitContainers[0].VolumeMounts; !reflect.DeepEqual(got, writes) {
		t.Errorf("the init container mounts %+v, want %+v", got, writes)
	}
}

// checkRestricted: the pod security standard `restricted` and a bit more, on the container itself, because the rest of
// the pod is the chart's. It names no user, which an SCC would refuse: the image has one (F24). And it has a limit of each
// kind that a quota may demand (F25).
func checkRestricted(t *testing.T, c corev1.Container) {
	t.Helper()
	yes, no := true, false
	want := &corev1.SecurityContext{
		RunAsNonRoot:             &yes,
		AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	if !reflect.DeepEqual(c.SecurityContext, want) {
		t.Errorf("securityContext %+v, want %+v", c.SecurityContext, want)
	}
	if c.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError {
		t.Errorf("terminationMessagePolicy %q: the reason of a failure would not reach `kubectl describe pod`",
			c.TerminationMessagePolicy)
	}
	for _, list := range []corev1.ResourceList{c.Resources.Requests, c.Resources.Limits} {
		if list.Cpu().IsZero() || list.Memory().IsZero() || list.StorageEphemeral().IsZero() || len(list) != 3 {
			t.Errorf("resources %+v: want a request and a limit for CPU, memory and ephemeral storage", c.Resources)
		}
	}
	if !regexp.MustCompile(`/dbconnector:[0-9]+\.[0-9]+\.[0-9]+$`).MatchString(c.Image) {
		t.Errorf("image %q: want an exact version", c.Image)
	}
}

// checkEnvironment: every variable is one that the program reads, and none carries a secret.
func checkEnvironment(t *testing.T, c corev1.Container, known map[string]string) map[string]corev1.EnvVar {
	t.Helper()
	env := map[string]corev1.EnvVar{}
	for _, e := range c.Env {
		if _, twice := env[e.Name]; twice {
			t.Errorf("%s is set twice", e.Name)
		}
		env[e.Name] = e
		if _, ok := known[e.Name]; !ok {
			t.Errorf("%s is no variable of pkg/config", e.Name)
		}
		if e.ValueFrom != nil && e.ValueFrom.FieldRef == nil {
			t.Errorf("%s comes from %+v: passwords in an environment show up in dumps and in children", e.Name, e.ValueFrom)
		}
	}
	fields := map[string]string{
		"DBCONNECTOR_VCLUSTER_NAME": "metadata.labels['release']",
		"DBCONNECTOR_NAMESPACE":     "metadata.namespace",
		"DBCONNECTOR_POD_NAME":      "metadata.name",
		"DBCONNECTOR_POD_UID":       "metadata.uid",
	}
	for name, path := range fields {
		if from := env[name].ValueFrom; from == nil || from.FieldRef == nil || from.FieldRef.FieldPath != path {
			t.Errorf("%s is %+v, want the field %s", name, env[name], path)
		}
	}
	return env
}

// variables are the programs' variables with their defaults.
func variables(t *testing.T) map[string]string {
	t.Helper()
	known := map[string]string{}
	for _, v := range config.Variables() {
		known[v.Name] = v.Default
	}
	if len(known) == 0 {
		t.Fatal("pkg/config has no variables")
	}
	return known
}

func TestDockerfile(t *testing.T) {
	t.Parallel()
	dockerfile := read(t, "Dockerfile")

	tag := regexp.MustCompile(`(?m)^FROM .*golang:([0-9.]+) AS build$`).FindStringSubmatch(dockerfile)
	module := regexp.MustCompile(`(?m)^go ([0-9.]+)$`).FindStringSubmatch(read(t, "go.mod"))
	if tag == nil || module == nil {
		t.Fatalf("compiler of the Dockerfile %q, of go.mod %q: want a version of each", tag, module)
	}
	if goversion.Compare("go"+tag[1], "go"+module[1]) < 0 {
		t.Errorf("the Dockerfile builds with Go %s, go.mod asks for %s", tag[1], module[1])
	}

	programs, err := filepath.Glob(filepath.Join(root, "cmd", "*", "main.go"))
	require.NoError(t, err)
	if len(programs) == 0 {
		t.Error("no programs in cmd")
	}
	for _, main := range programs {
		program := filepath.Base(filepath.Dir(main))
		if want := "-o /out/dbconnector-" + program + " ./cmd/" + program; !strings.Contains(dockerfile, want) {
			t.Errorf("cmd/%s is not in the image: no line with %q in the Dockerfile", program, want)
		}
	}

	_, final, _ := strings.Cut(dockerfile, "\nFROM scratch\n")
	if want := fmt.Sprintf("\nUSER %d:%d\n", user, user); !strings.Contains(final, want) {
		t.Errorf("the final stage is not scratch, or does not say %q", strings.TrimSpace(want))
	}
}
