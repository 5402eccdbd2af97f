// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"strings"

	"dbconnector/pkg/config"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/kube"
)

// The ways out that a refusal of a first start names.
const (
	allowNew = "if a new, empty database is meant, set DBCONNECTOR_ALLOW_NEW=true for the first start"
	// maxGenerated is how much of a workload's name is left in a pod's (Kubernetes: names.SimpleNameGenerator).
	maxGenerated = 58
)

// firstStart is provision.Init.First: whether a control plane without a record is a new one, or one that has got a wrong name
// (F32). A vCluster that had data must not come up on an empty database. client is nil where Kubernetes is not used.
func firstStart(cfg config.Init, client *kube.Client, warn func(string)) func(context.Context, bool) (string, error) {
	return func(ctx context.Context, begun bool) (string, error) {
		switch {
		case cfg.AllowNew == config.AllowNewNo:
			return "", fault.New(fault.Refused, "there is no record of a database that was complete, and DBCONNECTOR_ALLOW_NEW=false forbids to begin with a new one: if there was a record, restore it from a backup; if it is lost and the database is there, or if a new one is meant, set DBCONNECTOR_ALLOW_NEW=true for one start")
		case cfg.AllowNew == config.AllowNewYes:
			return "", nil
		case begun:
			return ran(ctx, cfg, client, warn)
		case cfg.PodName != "" && !podOf(cfg.PodName, cfg.VCluster):
			return "", fault.New(fault.Refused, "there is no record for vCluster %q, and the pod %q is not one of that name's: DBCONNECTOR_VCLUSTER_NAME must be the name of the Helm release; %s", cfg.VCluster, cfg.PodName, allowNew)
		}
		if client == nil {
			return "", nil
		}
		if _, account := client.ServiceAccount(); strings.HasPrefix(account, "vc-") && account != "vc-"+cfg.VCluster {
			return "", fault.New(fault.Refused, "there is no record for vCluster %q, and the ServiceAccount %q is that of another one: DBCONNECTOR_VCLUSTER_NAME must be the name of the Helm release; %s", cfg.VCluster, account, allowNew)
		}
		if cfg.StateDir == "" {
			if err := orphans(ctx, cfg, client, warn); err != nil {
				return "", err
			}
		}
		return ran(ctx, cfg, client, warn)
	}
}

// ran is what shows that the control plane has run before, on another store than a database of ours: SQLite, etcd, or a database
// that was set by hand. "" where nothing does, or where it cannot be told.
func ran(ctx context.Context, cfg config.Init, client *kube.Client, warn func(string)) (string, error) {
	if client == nil || cfg.Namespace == "" {
		return "", nil
	}
	secret, err := client.Certificates(ctx, cfg.Namespace, cfg.VCluster)
	if fault.Is(err, fault.Refused) {
		warn("whether this control plane has run before cannot be told: " + err.Error())
		return "", nil
	}
	if err != nil || secret == "" {
		return "", err
	}
	return "there is secret " + cfg.Namespace + "/" + secret, nil
}

// orphans refuses where the namespace holds data of a control plane that is gone: a release that was renamed looks like that.
func orphans(ctx context.Context, cfg config.Init, client *kube.Client, warn func(string)) error {
	found, err := client.Orphans(ctx, cfg.Namespace, cfg.RecordSecret)
	switch {
	case fault.Is(err, fault.Refused): // a right that a first start did not need before
		warn("whether this release was renamed cannot be told: " + err.Error())
		return nil
	case err != nil || len(found) == 0:
		return err
	}
	return fault.New(fault.Refused, "there is no record for vCluster %q, and secret %s/%s is that of vCluster %q, which has data and is not there any more: was the release renamed? To go on with its data set DBCONNECTOR_VCLUSTER_NAME back, or DBCONNECTOR_RECORD_SECRET=%s and DBCONNECTOR_TENANT_UID to its tenantUID; %s",
		cfg.VCluster, cfg.Namespace, found[0].Secret, found[0].VCluster, found[0].Secret, allowNew)
}

// podOf says whether a pod can be one of a workload of this name.
func podOf(pod, workload string) bool {
	return strings.HasPrefix(pod, (workload + "-")[:min(len(workload)+1, maxGenerated)])
}
