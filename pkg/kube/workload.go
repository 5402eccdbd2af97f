// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"dbconnector/pkg/fault"
)

// GenerationAnnotation is what a rollout puts on the pod template: the generation of the credential that the pods are to
// adopt.
const GenerationAnnotation = "dbconnector/generation"

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
	kind     string // as in the path
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
		ObservedGeneration int64  `json:"observedGeneration"`
		Replicas           int32  `json:"replicas"`
		UpdatedReplicas    int32  `json:"updatedReplicas"`
		AvailableReplicas  int32  `json:"availableReplicas"`
		CurrentRevision    string `json:"currentRevision"` // StatefulSet
		UpdateRevision     string `json:"updateRevision"`  // StatefulSet
	} `json:"status"`
}

func (w *Workload) path(kind string) string {
	return "/apis/apps/v1/namespaces/" + w.namespace + "/" + kind + "/" + w.name
}

func (w *Workload) call(doing, verb, kind string) call {
	return call{
		doing: fmt.Sprintf("%s the workload, %s %s/%s", doing, kind, w.namespace, w.name), verb: verb, resource: kind + ".apps", namespace: w.namespace, name: w.name,
		hint: "deploy/kustomize has it",
	}
}

// get finds the workload, whichever it is.
func (w *Workload) get(ctx context.Context) (*workload, error) {
	for _, kind := range []string{"statefulsets", "deployments"} {
		var data []byte
		_, err := w.client.retry(ctx, w.call("reading", "get", kind), func(ctx context.Context) (err error) {
			data, err = w.client.rest.Get().AbsPath(w.path(kind)).MaxRetries(0).DoRaw(ctx)
			return err
		})
		switch {
		case apierrors.IsNotFound(err):
			continue
		case err != nil:
			return nil, err
		}
		o := &workload{kind: kind}
		if err := json.Unmarshal(data, o); err != nil {
			return nil, fmt.Errorf("reading the workload, %s %s/%s: %w", kind, w.namespace, w.name, err)
		}
		return o, nil
	}
	return nil, fault.New(fault.Refused, "there is neither a StatefulSet nor a Deployment %s/%s to restart: set DBCONNECTOR_ADOPT=none, or mend DBCONNECTOR_VCLUSTER_NAME", w.namespace, w.name)
}

func (o *workload) requested() int64 {
	n, err := strconv.ParseInt(o.Spec.Template.Metadata.Annotations[GenerationAnnotation], 10, 64)
	if err != nil {
		return 0 // not there, or somebody else's: a rollout writes it anew
	}
	return n
}

// rolled says what `kubectl rollout status` would: the controller has seen the template, all pods have it, all are
// available.
func (o *workload) rolled() bool {
	want := int32(1)
	if o.Spec.Replicas != nil {
		want = *o.Spec.Replicas
	}
	s := o.Status
	return s.ObservedGeneration >= o.Metadata.Generation && s.Replicas == want && s.UpdatedReplicas == want &&
		s.AvailableReplicas == want && s.CurrentRevision == s.UpdateRevision
}

// Status tells which generation the pod template asks for, and whether all pods have that template and are available.
func (w *Workload) Status(ctx context.Context) (requested int64, rolled bool, err error) {
	o, err := w.get(ctx)
	if err != nil {
		return 0, false, err
	}
	return o.requested(), o.rolled(), nil
}

// Request puts a generation on the pod template. Replicas that ask together write the same, so there is one rollout; one
// that comes late with an older generation changes nothing, which the resourceVersion makes sure of.
func (w *Workload) Request(ctx context.Context, generation int64) error {
	for backoff := newConflictBackoff(); ; {
		o, err := w.get(ctx)
		if err != nil {
			return err
		}
		if o.requested() >= generation {
			return nil
		}
		patch := fmt.Sprintf(`{"metadata":{"resourceVersion":%q},"spec":{"template":{"metadata":{"annotations":{%q:"%d"}}}}}`,
			o.Metadata.ResourceVersion, GenerationAnnotation, generation)
		_, err = w.client.retry(ctx, w.call("restarting", "patch", o.kind), func(ctx context.Context) error {
			return w.client.rest.Patch(types.MergePatchType).AbsPath(w.path(o.kind)).MaxRetries(0).Body([]byte(patch)).Do(ctx).Error()
		})
		if err == nil || !apierrors.IsConflict(err) {
			return err
		}
		if !pause(ctx, step(&backoff, err)) {
			return fault.New(fault.Unavailable, "restarting the workload, %s %s/%s: others keep writing it: %w", o.kind, w.namespace, w.name, context.Cause(ctx))
		}
	}
}
