// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Values are Helm values for the official vCluster chart. Those that [Values.Render] does not know are errors: a test with
// values that nobody heeds proves nothing.
type Values struct {
	ControlPlane struct {
		// BackingStore is vCluster's business. The chart only looks at which store it is.
		BackingStore struct {
			Database struct {
				Embedded map[string]any `json:"embedded,omitempty"`
				External map[string]any `json:"external,omitempty"`
			} `json:"database"`
		} `json:"backingStore"`
		Distro struct {
			K8s struct {
				SecurityContext map[string]any `json:"securityContext,omitempty"`
			} `json:"k8s"`
		} `json:"distro"`
		StatefulSet struct {
			Args             []string         `json:"args,omitempty"`
			Env              []map[string]any `json:"env,omitempty"`
			HighAvailability struct {
				Replicas *int `json:"replicas,omitempty"`
			} `json:"highAvailability"`
			Probes struct {
				StartupProbe   object `json:"startupProbe,omitempty"`
				ReadinessProbe object `json:"readinessProbe,omitempty"`
				LivenessProbe  object `json:"livenessProbe,omitempty"`
			} `json:"probes"`
			Security struct {
				PodSecurityContext       map[string]any `json:"podSecurityContext,omitempty"`
				ContainerSecurityContext map[string]any `json:"containerSecurityContext,omitempty"`
			} `json:"security"`
			Persistence struct {
				VolumeClaim struct {
					Enabled any `json:"enabled,omitempty"`
				} `json:"volumeClaim"`
				AddVolumes      []map[string]any `json:"addVolumes,omitempty"`
				AddVolumeMounts []map[string]any `json:"addVolumeMounts,omitempty"`
			} `json:"persistence"`
			Pods struct {
				Annotations map[string]string `json:"annotations,omitempty"`
			} `json:"pods"`
			InitContainers    []map[string]any `json:"initContainers,omitempty"`
			SidecarContainers []map[string]any `json:"sidecarContainers,omitempty"`
		} `json:"statefulSet"`
	} `json:"controlPlane"`
}

// SetEnv sets a variable of dbconnector's containers.
func (v *Values) SetEnv(name, value string) {
	set := &v.ControlPlane.StatefulSet
	for _, container := range slices.Concat(set.InitContainers, set.SidecarContainers) {
		if kind, _ := container["name"].(string); !strings.HasPrefix(kind, "dbconnector-") {
			continue
		}
		env, _ := container["env"].([]any)
		env = slices.DeleteFunc(env, func(e any) bool {
			variable, _ := e.(object)
			return variable["name"] == name
		})
		container["env"] = append(env, object{"name": name, "value": value})
	}
}

// SetConnector names the connector.
func (v *Values) SetConnector(name string) { v.SetEnv("DBCONNECTOR_CONNECTOR", name) }

// ParseValues reads a file of values.
func ParseValues(text []byte) (*Values, error) {
	v := &Values{}
	if err := yaml.UnmarshalStrict(text, v); err != nil {
		return nil, fmt.Errorf("reading values: %w", err)
	}
	return v, nil
}

type object = map[string]any

// Render returns what the chart makes of the values: ServiceAccount, Role, config, Services and the control plane, for
// `kubectl apply`. Its images are the stand-ins'.
func (v *Values) Render(release, namespace string) ([]byte, error) {
	config, err := yaml.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding values: %w", err)
	}
	set := &v.ControlPlane.StatefulSet
	if err := v.checkClaim(); err != nil {
		return nil, err
	}
	metadata := func(name string) object {
		return object{"name": name, "namespace": namespace, "labels": object{
			"app": "vcluster", "chart": "vcluster-0.37.0", "release": release, "heritage": "Helm",
		}}
	}
	selector := object{"app": "vcluster", "release": release}
	service := func(name string, spec object) object {
		spec["selector"] = selector
		spec["ports"] = []object{{"name": "https", "port": 443, "targetPort": 8443, "protocol": "TCP"}}
		return object{"apiVersion": "v1", "kind": "Service", "metadata": metadata(name), "spec": spec}
	}

	everything := []string{"create", "delete", "patch", "update", "get", "list", "watch"}
	look := []string{"get", "list", "watch"}
	rules := []object{
		{"apiGroups": []string{""}, "resources": []string{
			"configmaps", "secrets", "services", "pods", "pods/attach", "pods/portforward", "pods/exec", "persistentvolumeclaims",
		}, "verbs": everything},
		{"apiGroups": []string{""}, "resources": []string{"pods/status", "pods/ephemeralcontainers"}, "verbs": []string{"patch", "update"}},
		{"apiGroups": []string{"apps"}, "resources": []string{"statefulsets", "replicasets", "deployments"}, "verbs": append([]string{"patch", "update"}, look...)}, // F29
		{"apiGroups": []string{""}, "resources": []string{"endpoints", "events", "pods/log"}, "verbs": look},
		{"apiGroups": []string{""}, "resources": []string{"events"}, "verbs": []string{"create"}}, // F29
	}
	replicas := 1
	if set.HighAvailability.Replicas != nil {
		replicas = *set.HighAvailability.Replicas
	}
	if replicas > 1 {
		rules = append(rules, object{"apiGroups": []string{"coordination.k8s.io"}, "resources": []string{"leases"}, "verbs": everything})
	}
	annotations := object{"vClusterConfigHash": fmt.Sprintf("%x", sha256.Sum256(config))}
	for key, value := range set.Pods.Annotations {
		annotations[key] = value
	}
	unavailable := 1
	if replicas == 1 {
		unavailable = 0
	}
	workload := object{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(release),
		"spec": object{
			"replicas": replicas,
			"selector": object{"matchLabels": selector},
			"strategy": object{"type": "RollingUpdate", "rollingUpdate": object{"maxSurge": 1, "maxUnavailable": unavailable}},
			"template": object{
				"metadata": object{"labels": selector, "annotations": annotations},
				"spec":     v.pod(release),
			},
		},
	}

	account := "vc-" + release
	return yaml.Marshal(object{"apiVersion": "v1", "kind": "List", "items": []object{
		{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(account)},
		{"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata(account), "rules": rules},
		{
			"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata(account),
			"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
			"subjects": []object{{"kind": "ServiceAccount", "name": account, "namespace": namespace}},
		},
		{"apiVersion": "v1", "kind": "Secret", "metadata": metadata("vc-config-" + release), "stringData": object{"config.yaml": string(config)}},
		service(release, object{"type": "ClusterIP"}),
		service(release+"-headless", object{"clusterIP": "None", "publishNotReadyAddresses": true}),
		workload,
	}})
}

// checkClaim makes sure that no volume is claimed, with which the chart makes a StatefulSet: the bed's node has none.
func (v *Values) checkClaim() error {
	switch enabled := v.ControlPlane.StatefulSet.Persistence.VolumeClaim.Enabled; enabled {
	case false, "false":
		return nil
	case nil, "auto":
		if on, _ := v.ControlPlane.BackingStore.Database.External["enabled"].(bool); on {
			return nil
		}
	}
	return errors.New("the values claim a volume, and the bed's node has none")
}

// pod is the spec of the control plane's pods.
func (v *Values) pod(release string) object {
	set := &v.ControlPlane.StatefulSet
	volumes := []object{{"name": "vcluster-config", "secret": object{"secretName": "vc-config-" + release}}}
	for _, name := range []string{"helm-cache", "binaries", "tmp", "certs", "data"} {
		volumes = append(volumes, object{"name": name, "emptyDir": object{}})
	}
	mounts := []object{
		{"name": "data", "mountPath": "/data"},
		{"name": "binaries", "mountPath": "/binaries"},
		{"name": "certs", "mountPath": "/pki"},
		{"name": "helm-cache", "mountPath": "/.cache/helm"},
		{"name": "vcluster-config", "mountPath": "/var/lib/vcluster"},
		{"name": "tmp", "mountPath": "/tmp"},
	}
	field := func(name, path string) object {
		return object{"name": name, "valueFrom": object{"fieldRef": object{"fieldPath": path}}}
	}
	probe := func(path string, period, failures int, values object) object {
		p := object{
			"httpGet":       object{"path": path, "port": 8443, "scheme": "HTTPS"},
			"periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": failures,
		}
		maps.Copy(p, values)
		return p
	}
	liveness := object{"initialDelaySeconds": 60}
	maps.Copy(liveness, set.Probes.LivenessProbe)
	syncer := object{
		"name": "syncer", "image": vclusterImage, "imagePullPolicy": "IfNotPresent",
		"args": set.Args,
		"env": slices.Concat([]object{
			{"name": "VCLUSTER_NAME", "value": release},
			field("POD_NAME", "metadata.name"), field("POD_IP", "status.podIP"), field("NODE_NAME", "spec.nodeName"),
		}, set.Env),
		"volumeMounts":   slices.Concat(mounts, set.Persistence.AddVolumeMounts),
		"startupProbe":   probe("/readyz", 6, 300, set.Probes.StartupProbe),
		"readinessProbe": probe("/readyz", 2, 60, set.Probes.ReadinessProbe),
		"livenessProbe":  probe("/healthz", 2, 60, liveness),
	}
	if set.Security.ContainerSecurityContext != nil {
		syncer["securityContext"] = set.Security.ContainerSecurityContext
	}
	kubernetes := object{
		"name": "kubernetes", "image": kubernetesImage, "imagePullPolicy": "IfNotPresent",
		"command": []string{"cp"}, "args": []string{"-a", "/kubernetes/.", "/binaries/"},
		"volumeMounts": []object{{"name": "binaries", "mountPath": "/binaries"}},
	}
	if context := v.ControlPlane.Distro.K8s.SecurityContext; context != nil {
		kubernetes["securityContext"] = context
	}
	spec := object{
		"terminationGracePeriodSeconds": 15, // F29
		"serviceAccountName":            "vc-" + release,
		"enableServiceLinks":            true,
		"volumes":                       slices.Concat(volumes, set.Persistence.AddVolumes),
		"initContainers":                slices.Concat([]object{kubernetes}, set.InitContainers),
		"containers":                    slices.Concat([]object{syncer}, set.SidecarContainers),
	}
	if set.Security.PodSecurityContext != nil {
		spec["securityContext"] = set.Security.PodSecurityContext
	}
	return spec
}
