// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"crypto/tls"
	"net/http"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
)

// VCluster is an installed vCluster.
type VCluster struct {
	Names
	c *Cluster
}

// New does for a vCluster what the README tells a newcomer to do, with the given values: namespace, Roles, chart. The
// namespace may have labels, key=value.
func (c *Cluster) New(ctx context.Context, example string, names Names, values *Values, labels ...string) (*VCluster, error) {
	if err := c.Namespace(ctx, names.Namespace); err != nil {
		return nil, err
	}
	if len(labels) > 0 {
		if _, err := c.Kubectl(ctx, "", append([]string{"label", "namespace", names.Namespace}, labels...)...); err != nil {
			return nil, err
		}
	}
	if err := c.Permit(ctx, example, names); err != nil {
		return nil, err
	}
	return &VCluster{names, c}, c.Install(ctx, names.Release, names.Namespace, values)
}

// Pods returns the pods of the control plane.
func (v *VCluster) Pods(ctx context.Context) ([]corev1.Pod, error) {
	var list corev1.PodList
	err := v.c.Do(ctx, http.MethodGet, "/api/v1/namespaces/"+v.Namespace+"/pods?labelSelector=app=vcluster,release="+v.Release, nil, &list)
	return list.Items, err
}

// Deployment returns the control plane's workload.
func (v *VCluster) Deployment(ctx context.Context) (*appsv1.Deployment, error) {
	var deployment appsv1.Deployment
	err := v.c.Do(ctx, http.MethodGet, "/apis/apps/v1/namespaces/"+v.Namespace+"/deployments/"+v.Release, nil, &deployment)
	return &deployment, err
}

// Record returns the tenant's record.
func (v *VCluster) Record(ctx context.Context) (*tenant.Record, error) {
	var secret corev1.Secret
	if err := v.c.Do(ctx, http.MethodGet, "/api/v1/namespaces/"+v.Namespace+"/secrets/dbconnector-"+v.Release, nil, &secret); err != nil {
		return nil, err
	}
	return tenant.DecodeRecord(secret.Data["record.json"])
}

// Do makes a request to the vCluster's own API, through its Service, as its admin. in is sent as JSON unless nil, and the
// answer decoded into out unless nil.
func (v *VCluster) Do(ctx context.Context, method, path string, in, out any) error {
	var service corev1.Service
	if err := v.c.Do(ctx, http.MethodGet, "/api/v1/namespaces/"+v.Namespace+"/services/"+v.Release, nil, &service); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	// A connection for each request, so that each may reach another replica.
	client := &http.Client{Transport: bearer{&http.Transport{
		DialContext: v.c.Dial, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // it vouches for itself
	}}}
	return bed.Ask(ctx, client, method, "https://"+service.Spec.ClusterIP+path, in, out)
}

// bearer sends the admin's token.
type bearer struct{ http.RoundTripper }

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+Token)
	return b.RoundTripper.RoundTrip(r)
}
