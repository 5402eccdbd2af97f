// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dbconnector/pkg/fault"
)

// What tells a control plane that is new from one that has got a wrong name (F32).

// maxToken is longer than any token of a ServiceAccount.
const maxToken = 64 << 10

// ServiceAccount is what the credential's token says of itself; empty where there is no such token. It is not verified, which
// the API server does with every request: here it only has to find a mistake.
func (c *Client) ServiceAccount() (namespace, name string) {
	token := c.token
	if token == "" && c.tokenFile != "" {
		data, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return "", ""
		}
		token = string(data)
	}
	return serviceAccount(token)
}

func serviceAccount(token string) (namespace, name string) {
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(token) > maxToken || len(parts) != 3 {
		return "", ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", ""
	}
	var claims struct {
		Subject string `json:"sub"`
	}
	if json.Unmarshal(payload, &claims) != nil {
		return "", ""
	}
	subject, ok := strings.CutPrefix(claims.Subject, "system:serviceaccount:")
	if !ok {
		return "", ""
	}
	namespace, name, _ = strings.Cut(subject, ":")
	return namespace, name
}

const (
	// maxListed and maxRead bound what is asked of a namespace with many control planes.
	maxListed = 500
	maxRead   = 20
)

// Orphan finds a record in a namespace, other than the one called own, that holds data of a vCluster without a workload: what a
// release that was renamed leaves behind. secret is "" where there is none. Secrets and workloads are listed without their content; a record is read only where
// its name does not tell that its control plane is there.
func (c *Client) Orphan(ctx context.Context, namespace, own string) (secret, vcluster string, err error) {
	records, err := c.names(ctx, "/api/v1", namespace, "secrets", managedByLabel+"="+managedBy)
	if err != nil {
		return "", "", err
	}
	alive := map[string]bool{}
	for _, resource := range []string{"statefulsets", "deployments"} {
		if len(records) == 0 || len(records) == 1 && records[0] == own {
			return "", "", nil // as in most namespaces
		}
		workloads, err := c.names(ctx, "/apis/apps/v1", namespace, resource, "")
		if err != nil {
			return "", "", err
		}
		for _, name := range workloads {
			alive[name] = true
		}
	}
	read := 0
	for _, name := range records {
		if name == own || alive[strings.TrimPrefix(name, "dbconnector-")] || read == maxRead {
			continue
		}
		read++
		store := c.Records(namespace, name, nil)
		r, err := store.Load(ctx)
		switch {
		case fault.Is(err, fault.Refused) || err == nil && r == nil: // no record that could be read: not ours to judge
		case err != nil:
			return "", "", err
		case r.Namespace == namespace && !alive[r.VCluster] && (r.Provisioned() || r.DataSeen):
			return name, r.VCluster, nil
		}
	}
	return "", "", nil
}

// Certificates is the name of the Secret that a vCluster's control plane makes when it starts for the first time, or "" where it
// is not there (vCluster: pkg/certs, CertSecretName). Its content is not asked for.
func (c *Client) Certificates(ctx context.Context, namespace, vcluster string) (string, error) {
	name := vcluster + "-certs"
	call := call{doing: "looking for the control plane's certificates", verb: "get", resource: "secrets", name: name, namespace: namespace}
	var found struct {
		Metadata struct{ Labels map[string]string }
	}
	_, err := c.retry(ctx, call, func(ctx context.Context) error {
		err := unpack(c.rest.Get().AbsPath("/api/v1/namespaces/"+namespace+"/secrets/"+name).
			SetHeader("Accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1").MaxRetries(0).Do(ctx), &found)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
	if err != nil || found.Metadata.Labels["vcluster-name"] != vcluster {
		return "", err
	}
	return name, nil
}

// names lists the names of objects, and nothing else of them.
func (c *Client) names(ctx context.Context, group, namespace, resource, labels string) ([]string, error) {
	var list struct {
		Items []struct{ Metadata struct{ Name string } }
	}
	call := call{doing: "looking for other control planes in the namespace " + namespace, verb: "list", resource: resource, namespace: namespace}
	_, err := c.retry(ctx, call, func(ctx context.Context) error {
		request := c.rest.Get().AbsPath(group+"/namespaces/"+namespace+"/"+resource).
			SetHeader("Accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1").Param("limit", strconv.Itoa(maxListed))
		if labels != "" {
			request = request.Param("labelSelector", labels)
		}
		return unpack(request.MaxRetries(0).Do(ctx), &list)
	})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, item := range list.Items {
		names = append(names, item.Metadata.Name)
	}
	return names, nil
}
