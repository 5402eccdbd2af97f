// SPDX-License-Identifier: Apache-2.0

package pods

import corev1 "k8s.io/api/core/v1"

// AsSCC does to a pod what OpenShift's admission does for the SCC restricted-v2: where the pod names no user, it becomes
// the first id of the namespace's range, which is the pod's fsGroup, too; all capabilities go. A user that the pod names stays,
// and is refused later if it does not fit. No group is set: a process has the group 0, and fsGroup beside it.
func AsSCC(spec *corev1.PodSpec, id int64) {
	if spec.SecurityContext == nil {
		spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	pod := spec.SecurityContext
	if pod.FSGroup == nil {
		pod.FSGroup = &id
	}
	if pod.SeccompProfile == nil {
		pod.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
	}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			if list[i].SecurityContext == nil {
				list[i].SecurityContext = &corev1.SecurityContext{}
			}
			sc := list[i].SecurityContext
			if sc.RunAsUser == nil {
				sc.RunAsUser = &id
			}
			yes := true
			if sc.RunAsNonRoot == nil && *sc.RunAsUser != 0 {
				sc.RunAsNonRoot = &yes
			}
			if sc.Capabilities == nil {
				sc.Capabilities = &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}
			}
		}
	}
}
