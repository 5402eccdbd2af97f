// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"strings"

	"dbconnector/pkg/fault"
)

// AllowNew says whether a control plane without a record may begin with a new, empty database.
type AllowNew int

// The answers.
const (
	NewUnlessSuspicious AllowNew = iota // yes, unless something speaks for a wrong name, or for data elsewhere
	NewAlways
	NewNever
)

// FirstStart tells whether a control plane without a record is a new one, or one that has got a wrong name (docs/failures.md F32): a
// vCluster that had data must not come up on an empty database. A func is nil where Kubernetes is not used, and its error
// of class fault.Refused, a right that is missing, leaves the question open.
type FirstStart struct {
	AllowNew  AllowNew
	Namespace string
	VCluster  string
	// Pod and ServiceAccount are the names of those that init runs with; empty where they are not known.
	Pod, ServiceAccount string
	// Orphan finds a record of this namespace that holds data of a vCluster which is not there any more; "" for none.
	Orphan func(ctx context.Context) (secret, vcluster string, err error)
	// Certificates is the name of the Secret that a control plane makes when it starts for the first time; "" for none.
	Certificates func(ctx context.Context) (secret string, err error)
	// Warn tells of a question that was left open.
	Warn func(string)
}

// maxGenerated is how much of a workload's name is left in a pod's (Kubernetes: names.SimpleNameGenerator).
const maxGenerated = 58

// allowNew is the way out that a refusal names.
const allowNew = "if a new, empty database is meant, set DBCONNECTOR_ALLOW_NEW=true for the first start"

// Check is Init.First.
func (f *FirstStart) Check(ctx context.Context, begun bool) (ran string, err error) {
	switch {
	case f.AllowNew == NewNever:
		return "", fault.New(fault.Refused, "there is no record of a database that was complete, and DBCONNECTOR_ALLOW_NEW=false forbids to begin with a new one: "+
			"if there was a record, restore it from a backup; if it is lost and the database is there, or if a new one is meant, set DBCONNECTOR_ALLOW_NEW=true for "+
			"one start")
	case f.AllowNew == NewAlways:
		return "", nil
	case begun:
		return f.ranBefore(ctx)
	case f.Pod != "" && !podOf(f.Pod, f.VCluster):
		return "", fault.New(fault.Refused, "there is no record for vCluster %q, and the pod %q is not one of that name's: DBCONNECTOR_VCLUSTER_NAME must be the "+
			"name of the Helm release; %s", f.VCluster, f.Pod, allowNew)
	case strings.HasPrefix(f.ServiceAccount, "vc-") && f.ServiceAccount != "vc-"+f.VCluster:
		return "", fault.New(fault.Refused, "there is no record for vCluster %q, and the ServiceAccount %q is that of another one: DBCONNECTOR_VCLUSTER_NAME must "+
			"be the name of the Helm release; %s", f.VCluster, f.ServiceAccount, allowNew)
	}
	if err := f.renamed(ctx); err != nil {
		return "", err
	}
	return f.ranBefore(ctx)
}

// ranBefore is what shows that the control plane has run before, on another store than a database of dbconnector's: SQLite, etcd,
// or a database that was set by hand. "" where nothing does, or where it cannot be told.
func (f *FirstStart) ranBefore(ctx context.Context) (string, error) {
	if f.Certificates == nil {
		return "", nil
	}
	secret, err := f.Certificates(ctx)
	switch {
	case fault.Is(err, fault.Refused):
		f.Warn("whether this control plane has run before cannot be told: " + err.Error())
		return "", nil
	case err != nil || secret == "":
		return "", err
	}
	return "there is secret " + f.Namespace + "/" + secret, nil
}

// renamed refuses where the namespace holds data of a control plane that is gone: a release that was renamed looks like that.
func (f *FirstStart) renamed(ctx context.Context) error {
	if f.Orphan == nil {
		return nil
	}
	secret, vcluster, err := f.Orphan(ctx)
	switch {
	case fault.Is(err, fault.Refused): // a right that a first start did not need before
		f.Warn("whether this release was renamed cannot be told: " + err.Error())
		return nil
	case err != nil || secret == "":
		return err
	}
	return fault.New(fault.Refused, "there is no record for vCluster %q, and secret %s/%s is that of vCluster %q, which has data and is not there any more: "+
		"was the release renamed? To go on with its data set DBCONNECTOR_VCLUSTER_NAME back, or DBCONNECTOR_RECORD_SECRET=%s and DBCONNECTOR_TENANT_UID to its "+
		"tenantUID; %s",
		f.VCluster, f.Namespace, secret, vcluster, secret, allowNew)
}

// podOf says whether a pod can be one of a workload of this name.
func podOf(pod, workload string) bool {
	return strings.HasPrefix(pod, (workload + "-")[:min(len(workload)+1, maxGenerated)])
}
