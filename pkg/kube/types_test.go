// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestTypes holds the package's types against those of the API: nothing of a Secret is lost, and an Event means what it says.
func TestTypes(t *testing.T) {
	now := metav1.Now().Rfc3339Copy()
	metadata := metav1.ObjectMeta{
		Name: "name", Namespace: "team-a", UID: "uid", ResourceVersion: "7", CreationTimestamp: now,
		Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"}, Finalizers: []string{"e/f"},
		OwnerReferences: []metav1.OwnerReference{{Kind: "Deployment", Name: "g"}},
		ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "h", FieldsV1: metav1.NewFieldsV1(`{}`)}},
	}
	whole := corev1.Secret{
		TypeMeta: metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"}, ObjectMeta: metadata,
		Immutable: new(true), Data: map[string][]byte{"i": {0, 255}}, Type: "j",
	}
	// StringData is only ever written; another field that the API may get one day is to be noticed here.
	for i := range reflect.TypeFor[corev1.Secret]().NumField() {
		if name := reflect.TypeFor[corev1.Secret]().Field(i).Name; name != "StringData" && reflect.ValueOf(whole).Field(i).IsZero() {
			t.Errorf("a Secret has a field %s, which is not tried", name)
		}
	}
	var secret apiSecret
	var back corev1.Secret
	convert(t, whole, &secret)
	convert(t, secret, &back)
	if !equality.Semantic.DeepEqual(back, whole) {
		t.Errorf("got\n%+v\nfrom\n%+v", back, whole)
	}
	list := &apiSecretList{ListMeta: metav1.ListMeta{ResourceVersion: "8"}, Items: []apiSecret{secret}}
	clone, ok := list.DeepCopyObject().(*apiSecretList)
	if !ok || !equality.Semantic.DeepEqual(clone, list) {
		t.Fatalf("got\n%+v\nfrom\n%+v", clone, list)
	}
	clone.Items[0].Data["i"][0], clone.Items[0].Labels["a"], *clone.Items[0].Immutable = 1, "", false
	convert(t, list.Items[0], &back)
	if !equality.Semantic.DeepEqual(back, whole) {
		t.Error("a change of a copy changes the original")
	}

	sent := &apiEvent{
		TypeMeta: metav1.TypeMeta{Kind: "Event", APIVersion: "v1"}, ObjectMeta: metadata,
		InvolvedObject: objectReference{APIVersion: "v1", Kind: "Pod", Namespace: "team-a", Name: "k", UID: "l"},
		Type:           Warning, Reason: "m", Message: "n", Source: eventSource{Component: "o"}, Count: 1,
		FirstTimestamp: now, LastTimestamp: now, ReportingController: "p", ReportingInstance: "q",
	}
	var got corev1.Event
	convert(t, sent.DeepCopyObject(), &got)
	want := corev1.Event{
		TypeMeta: sent.TypeMeta, ObjectMeta: metadata,
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "team-a", Name: "k", UID: types.UID("l")},
		Type:           corev1.EventTypeWarning, Reason: "m", Message: "n", Source: corev1.EventSource{Component: "o"}, Count: 1,
		FirstTimestamp: now, LastTimestamp: now, ReportingController: "p", ReportingInstance: "q",
	}
	if !equality.Semantic.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if namespaceTerminating != corev1.NamespaceTerminatingCause || Normal != corev1.EventTypeNormal {
		t.Error("a constant is another one in the API")
	}
}

// convert turns one type into the other by way of JSON; a field that the other does not have is an error.
func convert(t *testing.T, from, to any) {
	t.Helper()
	text, err := json.Marshal(from)
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(to); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}
