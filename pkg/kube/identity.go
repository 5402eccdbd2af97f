// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"maps"
	"strings"
	"sync"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// factPrefix begins the annotations of the record's Secret that hold the tenant's facts.
const factPrefix = "dbconnector/"

// secretUIDFact is the Secret's own UID when a program of ours last wrote it. A Secret that was copied or restored has
// another UID and still this annotation, which tells the two apart without a further request.
const secretUIDFact = "secret-uid"

// owner is the control plane that a record has to belong to.
type owner struct {
	vcluster, tenantUID string
	warn                func(string)
	once                sync.Once
}

// Own lets the store refuse a record that was written for another namespace of the same name, which is what a copy in
// another cluster is, or one that outlived its namespace: two control planes on one database destroy each other's data.
// vcluster and tenantUID are what tenant.Record.Of wants; a record of another name is left to the reader. warn is told once
// where the right to read the namespace is missing.
func (s *Records) Own(vcluster, tenantUID string, warn func(string)) *Records {
	s.owner = &owner{vcluster: vcluster, tenantUID: tenantUID, warn: warn}
	return s
}

// factsOf are the facts in a Secret's annotations.
func factsOf(secret *apiSecret) tenant.Facts {
	m := map[string]string{}
	for key, value := range secret.Annotations {
		if name, ours := strings.CutPrefix(key, factPrefix); ours {
			m[name] = value
		}
	}
	return tenant.DecodeFacts(m)
}

// annotate writes the facts into a Secret that is about to be stored. Annotations of others stay, and so do those of ours
// that a later release may have.
func annotate(secret *apiSecret, facts tenant.Facts) {
	if secret.Annotations == nil {
		secret.Annotations = map[string]string{}
	}
	maps.DeleteFunc(secret.Annotations, func(key, _ string) bool {
		name, ours := strings.CutPrefix(key, factPrefix)
		return ours && (name == tenant.MakeFact || name == tenant.NamespaceUIDFact || name == tenant.ApplyFact || name == secretUIDFact)
	})
	for name, value := range facts.Encode() {
		secret.Annotations[factPrefix+name] = value
	}
	if secret.UID != "" { // none before it was created
		secret.Annotations[factPrefix+secretUIDFact] = string(secret.UID)
	}
}

// original says whether a Secret is the one that a program of ours wrote, and no copy of it.
func original(secret *apiSecret) bool {
	return secret.UID != "" && secret.Annotations[factPrefix+secretUIDFact] == string(secret.UID)
}

// identify refuses a record of another namespace that has this one's name. In the ordinary case the Secret's annotations say
// enough; else the namespace is read, once. What they do not say yet is left to the next write.
func (s *Records) identify(ctx context.Context, secret *apiSecret, r *tenant.Record) error {
	if s.owner == nil || !r.Of(s.namespace, s.owner.vcluster, s.owner.tenantUID) || original(secret) {
		return nil
	}
	r.Unclaimed = true
	uid, err := s.client.NamespaceUID(ctx, s.namespace)
	switch {
	case err == nil:
	case !fault.Is(err, fault.Refused):
		return err
	case r.NamespaceUID != "": // and it may be a copy
		return fault.New(fault.Refused, "%s was restored or copied, and whether it belongs here cannot be told: %w", s.source(), err)
	default:
		s.owner.tell(err)
		return nil
	}
	own := r.UID == tenant.UID(uid, s.owner.vcluster)
	// A record of an earlier release says nothing of its namespace. Then its tenant UID tells, or the operator.
	if r.NamespaceUID == uid || r.NamespaceUID == "" && (own || s.owner.tenantUID != "") {
		return nil
	}
	variable := ""
	if !own && s.owner.tenantUID == "" {
		variable = "; and set DBCONNECTOR_TENANT_UID=" + r.UID + ", without which nothing can be repaired"
	}
	return fault.New(fault.Refused, "%s was written for another namespace %q, not for this one (whose UID is %s): it is a copy, or the namespace was made "+
		"again, and two control planes must not share a database; "+
		"if the other one is gone for good, take its database over: kubectl --namespace %s annotate --overwrite secret %s %s=%s%s; if not, delete this copy",
		s.source(), s.namespace, uid, s.namespace, s.name, factPrefix+tenant.NamespaceUIDFact, uid, variable)
}

// claim completes the facts of a record that is about to be written: from then on it is known to be this namespace's.
func (s *Records) claim(ctx context.Context, secret *apiSecret, next *tenant.Record) error {
	if s.owner == nil || secret != nil && original(secret) && next.NamespaceUID != "" {
		next.Unclaimed = false
		return nil
	}
	if secret == nil {
		next.NamespaceUID = ""
	}
	next.Unclaimed = false
	uid, err := s.client.NamespaceUID(ctx, s.namespace)
	switch {
	case err == nil:
		next.NamespaceUID = uid
	case fault.Is(err, fault.Refused):
		s.owner.tell(err)
	default:
		return err
	}
	return nil
}

// tell warns once.
func (o *owner) tell(err error) {
	o.once.Do(func() {
		if o.warn != nil {
			o.warn("a copy of the record cannot be told from the original: " + err.Error())
		}
	})
}
