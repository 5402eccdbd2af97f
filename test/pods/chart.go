// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Values are Helm values for the official vCluster chart. Those that [Values.Render] does not know are errors: a test with
// values that are not heeded proves nothing.
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
		Advanced struct {
			ServiceAccount struct {
				Name string `json:"name,omitempty"`
			} `json:"serviceAccount"`
		} `json:"advanced"`
		StatefulSet struct {
			Command          []string         `json:"command,omitempty"`
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
			Resources struct {
				Limits   map[string]any `json:"limits,omitempty"`
				Requests map[string]any `json:"requests,omitempty"`
			} `json:"resources"`
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
	Policies struct {
		NetworkPolicy struct {
			Enabled      bool `json:"enabled,omitempty"`
			ControlPlane struct {
				Egress  []map[string]any `json:"egress,omitempty"`
				Ingress []map[string]any `json:"ingress,omitempty"`
			} `json:"controlPlane"`
		} `json:"networkPolicy"`
	} `json:"policies"`
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
		{ // F29
			"apiGroups": []string{"apps"},
			"resources": []string{"statefulsets", "replicasets", "deployments"},
			"verbs":     append([]string{"patch", "update"}, look...),
		},
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

	account := v.account(release)
	return yaml.Marshal(object{"apiVersion": "v1", "kind": "List", "items": append(v.networkPolicy(metadata("vc-cp-"+release), release), []object{
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
	}...)})
}

// RenderForNode is [Values.Render] for the bed's node, which keeps no account of its disk: none of its pods may ask for
// ephemeral storage.
func (v *Values) RenderForNode(release, namespace string) ([]byte, error) {
	text, err := yaml.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding values: %w", err)
	}
	copied, err := ParseValues(text)
	if err != nil {
		return nil, err
	}
	set := &copied.ControlPlane.StatefulSet
	for _, container := range slices.Concat(set.InitContainers, set.SidecarContainers) {
		resources, _ := container["resources"].(object)
		for _, kind := range resources {
			if list, ok := kind.(object); ok {
				delete(list, "ephemeral-storage")
			}
		}
	}
	return copied.Render(release, namespace)
}

// account is the name of the control plane's ServiceAccount.
func (v *Values) account(release string) string {
	return cmp.Or(v.ControlPlane.Advanced.ServiceAccount.Name, "vc-"+release)
}

// networkPolicy is the control plane's, as chart 0.37 has it: what it lets through by itself, and the values' rules.
// The bed's node enforces none.
func (v *Values) networkPolicy(metadata object, release string) []object {
	policy := &v.Policies.NetworkPolicy
	if !policy.Enabled {
		return nil
	}
	pods := func(key, value string) object {
		return object{"podSelector": object{"matchLabels": object{key: value}}}
	}
	platform := pods("app", "loft")
	platform["namespaceSelector"] = object{}
	dns := pods("k8s-app", "kube-dns")
	dns["namespaceSelector"] = object{"matchLabels": object{"kubernetes.io/metadata.name": "kube-system"}}
	self, workloads := pods("release", release), pods("vcluster.loft.sh/managed-by", release)
	port := func(protocol string, number int) object { return object{"protocol": protocol, "port": number} }
	return []object{{
		"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata,
		"spec": object{
			"podSelector": self["podSelector"], "policyTypes": []string{"Egress", "Ingress"},
			"egress": slices.Concat([]object{
				{"to": []object{dns}},
				{"ports": []object{port("TCP", 443), port("TCP", 8443), port("TCP", 6443)}},
				{"to": []object{self}},
				{"to": []object{workloads}},
				{"to": []object{platform}},
			}, policy.ControlPlane.Egress),
			"ingress": slices.Concat([]object{
				{"from": []object{self}},
				{"from": []object{workloads}, "ports": []object{port("UDP", 1053), port("TCP", 1053), port("TCP", 8443)}},
				{"from": []object{pods("app", "vcluster-snapshot")}},
				{"from": []object{platform}},
			}, policy.ControlPlane.Ingress),
		},
	}}
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
		"command": set.Command, "args": set.Args,
		"env": slices.Concat([]object{
			{"name": "VCLUSTER_NAME", "value": release},
			field("POD_NAME", "metadata.name"), field("POD_IP", "status.podIP"), field("NODE_NAME", "spec.nodeName"),
		}, set.Env),
		"volumeMounts":   slices.Concat(mounts, set.Persistence.AddVolumeMounts),
		"startupProbe":   probe("/readyz", 6, 300, set.Probes.StartupProbe),
		"readinessProbe": probe("/readyz", 2, 60, set.Probes.ReadinessProbe),
		"livenessProbe":  probe("/healthz", 2, 60, liveness),
	}
	// The chart's default is root. A null takes a default away.
	context := object{"allowPrivilegeEscalation": false, "runAsUser": 0, "runAsGroup": 0}
	maps.Copy(context, set.Security.ContainerSecurityContext)
	maps.DeleteFunc(context, func(_ string, value any) bool { return value == nil })
	syncer["securityContext"] = context
	if len(set.Resources.Limits) > 0 {
		// Beside the chart's defaults. Without any, there are none here: the bed's node is small.
		limits, requests := object{"memory": "2Gi"}, object{"cpu": "200m", "memory": "256Mi"}
		maps.Copy(limits, set.Resources.Limits)
		maps.Copy(requests, set.Resources.Requests)
		syncer["resources"] = object{"limits": limits, "requests": requests}
	}
	kubernetes := object{
		"name": "kubernetes", "image": kubernetesImage, "imagePullPolicy": "IfNotPresent",
		"command": []string{"cp"}, "args": []string{"-a", "/kubernetes/.", "/binaries/"},
		"volumeMounts": []object{{"name": "binaries", "mountPath": "/binaries"}},
	}
	if context := v.ControlPlane.Distro.K8s.SecurityContext; context != nil {
		kubernetes["securityContext"] = context
	}
	if len(set.Resources.Limits) > 0 {
		kubernetes["resources"] = object{
			"limits": object{"cpu": "100m", "memory": "256Mi"}, "requests": object{"cpu": "40m", "memory": "64Mi"},
		}
	}
	spec := object{
		"terminationGracePeriodSeconds": 15, // F29
		"serviceAccountName":            v.account(release),
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
