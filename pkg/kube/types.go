// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"maps"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// The two kinds of the core API whose content is used here, with its fields and its names. k8s.io/api/core/v1 has them as
// well, and cannot be had without every other kind of that API: three megabytes in each program.
// Of a Namespace, only the metadata is used.

var coreV1 = schema.GroupVersion{Version: "v1"}

// namespaceTerminating is the cause of a refusal in a namespace that is being deleted.
const namespaceTerminating metav1.CauseType = "NamespaceTerminating"

// newScheme knows what is sent and what is answered.
func newScheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	for kind, object := range map[string]runtime.Object{
		"Secret": &apiSecret{}, "SecretList": &apiSecretList{}, "Namespace": &metav1.PartialObjectMetadata{}, "Event": &apiEvent{},
	} {
		scheme.AddKnownTypeWithName(coreV1.WithKind(kind), object)
	}
	metav1.AddToGroupVersion(scheme, coreV1) // get and create options, and Status, in which errors come
	return scheme
}

// apiSecret is a Secret, all of it: what is read is written again.
type apiSecret struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Immutable *bool             `json:"immutable,omitempty"`
	Data      map[string][]byte `json:"data,omitempty"`
	Type      string            `json:"type,omitempty"`
}

func (s *apiSecret) clone() *apiSecret {
	if s == nil {
		return nil
	}
	c := *s
	c.ObjectMeta = *s.DeepCopy() // the metadata's; so below
	if s.Immutable != nil {
		c.Immutable = new(*s.Immutable)
	}
	c.Data = maps.Clone(s.Data)
	for key, value := range c.Data {
		c.Data[key] = bytes.Clone(value)
	}
	return &c
}

// DeepCopyObject makes an apiSecret an API object.
func (s *apiSecret) DeepCopyObject() runtime.Object { return s.clone() }

type apiSecretList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []apiSecret `json:"items"`
}

// DeepCopyObject makes an apiSecretList an API object.
func (l *apiSecretList) DeepCopyObject() runtime.Object {
	c := *l
	c.ListMeta = *l.DeepCopy()
	c.Items = nil
	for i := range l.Items {
		c.Items = append(c.Items, *l.Items[i].clone())
	}
	return &c
}

// apiEvent is an Event, as far as one is written here.
type apiEvent struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	InvolvedObject      objectReference `json:"involvedObject"`
	Type                string          `json:"type"`
	Reason              string          `json:"reason"`
	Message             string          `json:"message"`
	Source              eventSource     `json:"source"`
	FirstTimestamp      metav1.Time     `json:"firstTimestamp"`
	LastTimestamp       metav1.Time     `json:"lastTimestamp"`
	Count               int32           `json:"count"`
	ReportingController string          `json:"reportingComponent"` // the API has two names for it
	ReportingInstance   string          `json:"reportingInstance"`
}

type objectReference struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Namespace  string    `json:"namespace"`
	Name       string    `json:"name"`
	UID        types.UID `json:"uid,omitempty"`
}

type eventSource struct {
	Component string `json:"component"`
}

// DeepCopyObject makes an apiEvent an API object.
func (e *apiEvent) DeepCopyObject() runtime.Object {
	c := *e
	c.ObjectMeta = *e.DeepCopy()
	c.FirstTimestamp, c.LastTimestamp = *e.FirstTimestamp.DeepCopy(), *e.LastTimestamp.DeepCopy()
	return &c
}
