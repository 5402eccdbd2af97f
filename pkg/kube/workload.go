// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// The annotations that a rollout puts on the pod template: which credential the pods are to adopt. The generation alone would
// not tell: after a record was lost, the next one counts from 1 again.
const (
	GenerationAnnotation = "dbconnector/generation"
	RotatedAtAnnotation  = "dbconnector/rotated-at"
)

// Workload is the StatefulSet or Deployment of a control plane. vCluster's chart makes the one or the other, by whether it
// has a volume claim, under the name of the release.
type Workload struct {
	client          *Client
	namespace, name string
}

// Workload names the workload of a control plane.
func (c *Client) Workload(namespace, name string) *Workload {
	return &Workload{client: c, namespace: namespace, name: name}
}

// workload is what a rollout needs to know of either kind.
type workload struct {
	resource string // as in the path
	Kind     string `json:"kind"`
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
		Generation      int64  `json:"generation"`
	} `json:"metadata"`
	Spec struct {
		Replicas *int32 `json:"replicas"`
		Template struct {
			Metadata struct {
				Annotations map[string]string `json:"annotations"`
			} `json:"metadata"`
		} `json:"template"`
	} `json:"spec"`
	Status struct {
		ObservedGeneration int64 `json:"observedGeneration"`
		Replicas           int32 `json:"replicas"`
		UpdatedReplicas    int32 `json:"updatedReplicas"`
		AvailableReplicas  int32 `json:"availableReplicas"`
	} `json:"status"`
}

func (w *Workload) path(resource string) string {
	return "/apis/apps/v1/namespaces/" + w.namespace + "/" + resource + "/" + w.name
}

func (w *Workload) call(doing, verb, resource string) call {
	return call{
		doing: fmt.Sprintf("%s the workload, %s %s/%s", doing, resource, w.namespace, w.name),
		verb:  verb, resource: resource + ".apps", namespace: w.namespace, name: w.name,
		hint: "deploy/kustomize/rbac has it",
	}
}

// get finds the workload, whichever it is.
func (w *Workload) get(ctx context.Context) (*workload, error) {
	for _, k := range []struct{ kind, resource string }{{"StatefulSet", "statefulsets"}, {"Deployment", "deployments"}} {
		o := &workload{}
		_, err := w.client.retry(ctx, w.call("reading", "get", k.resource), func(ctx context.Context) error {
			// Not DoRaw: that would leave the words of a refusal unread, and with them which rule is missing.
			*o = workload{resource: k.resource}
			err := unpack(w.client.rest.Get().AbsPath(w.path(k.resource)).MaxRetries(0).Do(ctx), o)
			if err == nil && (o.Kind != k.kind || o.Metadata.ResourceVersion == "") {
				return errForeign
			}
			return err
		})
		if !apierrors.IsNotFound(err) {
			return o, err
		}
	}
	return nil, fault.New(fault.Refused, "there is neither a StatefulSet nor a Deployment %s/%s to restart: set DBCONNECTOR_ADOPT=none, or correct "+
		"DBCONNECTOR_VCLUSTER_NAME", w.namespace, w.name)
}

// marks are the annotations for a record's active credential.
func marks(r *tenant.Record) map[string]string {
	return map[string]string{
		GenerationAnnotation: strconv.FormatInt(r.Generation, 10),
		RotatedAtAnnotation:  r.RotatedAt.UTC().Format(time.RFC3339Nano),
	}
}

func (o *workload) asks(r *tenant.Record) bool {
	for key, value := range marks(r) {
		if o.Spec.Template.Metadata.Annotations[key] != value {
			return false
		}
	}
	return true
}

// rolled says what `kubectl rollout status` would: the controller has seen the template, all pods have it, all are
// available. It does not compare a StatefulSet's revisions: with the strategy OnDelete they stay different.
func (o *workload) rolled() bool {
	want, s := o.replicas(), o.Status
	return s.ObservedGeneration >= o.Metadata.Generation && s.Replicas == want && s.UpdatedReplicas == want && s.AvailableReplicas == want
}

func (o *workload) replicas() int32 {
	if o.Spec.Replicas == nil {
		return 1
	}
	return *o.Spec.Replicas
}

// Status tells whether the pod template asks for the record's active credential, and whether all pods have the template and are
// available; and how many have and are, with the command that shows what holds it up.
func (w *Workload) Status(ctx context.Context, r *tenant.Record) (asked, rolled bool, progress string, err error) {
	o, err := w.get(ctx)
	if err != nil {
		return false, false, "", err
	}
	updated := o.Status.UpdatedReplicas
	if o.Status.ObservedGeneration < o.Metadata.Generation {
		updated = 0 // what it counts is of an earlier template
	}
	progress = fmt.Sprintf("%s %s/%s: %d of %d pods replaced, %d available; to see why: kubectl --namespace %s rollout status %s %s",
		o.Kind, w.namespace, w.name, updated, o.replicas(), o.Status.AvailableReplicas, w.namespace, strings.ToLower(o.Kind), w.name)
	return o.asks(r), o.rolled(), progress, nil
}

// Request makes the pod template ask for the record's active credential. Replicas that ask together write the same, so there is
// one rollout. What the template asked for before is replaced only if current, which is called after it was read, finds nothing
// newer, and no other program has written it since: that the resourceVersion makes sure of. So one that comes late changes nothing.
func (w *Workload) Request(ctx context.Context, r *tenant.Record, current func(context.Context) error) error {
	for backoff := newConflictBackoff(); ; {
		o, err := w.get(ctx)
		if err != nil || o.asks(r) {
			return err
		}
		if err := current(ctx); err != nil {
			return err
		}
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"resourceVersion": o.Metadata.ResourceVersion},
			"spec":     map[string]any{"template": map[string]any{"metadata": map[string]any{"annotations": marks(r)}}},
		})
		if err != nil {
			return fmt.Errorf("restarting the workload: %w", err)
		}
		_, err = w.client.retry(ctx, w.call("restarting", "patch", o.resource), func(ctx context.Context) error {
			return w.client.rest.Patch(types.MergePatchType).AbsPath(w.path(o.resource)).MaxRetries(0).Body(patch).Do(ctx).Error()
		})
		if err == nil || !apierrors.IsConflict(err) {
			return err
		}
		if !pause(ctx, step(&backoff, err)) {
			return fault.New(fault.Unavailable, "restarting the workload, %s %s/%s: others keep writing it: %w", o.resource, w.namespace, w.name, context.Cause(ctx))
		}
	}
}
