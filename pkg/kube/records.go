// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

const (
	recordKey      = "record.json"
	managedByLabel = "app.kubernetes.io/managed-by"
	managedBy      = "dbconnector"
	// typePrefix and the engine's name make the Secret's type, as the Service Binding specification wants it.
	typePrefix = "servicebinding.io/"
)

// Records keeps the record of one tenant in a Secret. It may be used by many goroutines.
type Records struct {
	client          *Client
	namespace, name string
	dsn             func(*tenant.Record) (string, error) // nil: no keys for other consumers
	owner           *owner                               // nil: whose record it is, is not asked
	patience        patience

	mu sync.Mutex
	// seen is the Secret as this store last saw it, nil where it was not there; known says that it was looked at.
	// It is only ever a guess, which spares a read: the API server decides.
	seen  *apiSecret
	known bool
}

// Records makes the store of the record in a Secret. dsn makes the connection string for other consumers, whose keys lie beside the
// record; nil for none.
func (c *Client) Records(namespace, name string, dsn func(*tenant.Record) (string, error)) *Records {
	return &Records{client: c, namespace: namespace, name: name, dsn: dsn, patience: usualPatience}
}

// Load reads the record; nil where the Secret does not exist.
func (s *Records) Load(ctx context.Context) (*tenant.Record, error) {
	secret, err := s.get(ctx)
	if err != nil {
		return nil, err
	}
	r, _, err := s.decode(ctx, secret)
	return r, err
}

// Update stores what fn makes of the record, if no other program wrote meanwhile, and otherwise asks fn again: it is a
// compare-and-swap on the Secret's resourceVersion. fn gets a copy that it may change, nil where there is no record. It may
// run more than once and must have no effects: a password, for example, is made before and not in it. Where fn returns an
// error, that error is returned and nothing is written; nothing is written either where the record stays the same.
//
// The first try is made on what this store last saw, which spares a read. Only a write can show that it was still true, so
// where fn wants none, it is asked again on what the API server has now.
func (s *Records) Update(ctx context.Context, fn func(old *tenant.Record) (*tenant.Record, error)) (*tenant.Record, error) {
	secret, known := s.lastSeen()
	// The record whose write ended without an answer that can be trusted, and what lies beside it.
	var uncertain []byte
	var uncertainFacts tenant.Facts
	for backoff := newConflictBackoff(); ; {
		guess := known
		known = false // whatever follows, another round reads
		if !guess {
			var err error
			if secret, err = s.get(ctx); err != nil {
				return nil, err
			}
		}
		old, had, err := s.decode(ctx, secret)
		if err != nil {
			return nil, err
		}
		if uncertain != nil && bytes.Equal(had, uncertain) && old.Facts == uncertainFacts {
			return old, nil
		}
		next, data, err := ask(fn, old)
		if err != nil || bytes.Equal(data, had) && (next == nil || next.Facts == old.Facts) {
			if guess {
				continue
			}
			return old, err
		}
		if err := s.claim(ctx, secret, next); err != nil {
			return nil, err
		}
		tries, err := s.write(ctx, secret, next, data)
		switch {
		case err == nil:
			return next.Clone(), nil
		case !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err):
			return nil, err
		case tries > 1:
			// An earlier try was not answered. It may have been carried out all the same, and what conflicts may be our own.
			uncertain, uncertainFacts = data, next.Facts
		}
		if !guess && !pause(ctx, step(&backoff, err)) {
			return nil, fault.New(fault.Unavailable, "writing the tenant's record, %s: others keep writing it: %w", s.source(), context.Cause(ctx))
		}
	}
}

// ask calls fn and encodes its answer; data is nil where there is no record to be.
func ask(fn func(*tenant.Record) (*tenant.Record, error), old *tenant.Record) (next *tenant.Record, data []byte, err error) {
	next, err = fn(old.Clone())
	switch {
	case err != nil:
		return nil, nil, err
	case next == nil && old != nil:
		return nil, nil, errors.New("writing the tenant's record: a record cannot be removed")
	case next == nil:
		return nil, nil, nil
	}
	data, err = next.Encode()
	return next, data, err
}

func (s *Records) source() string { return Source(s.namespace, s.name) }

// lastSeen is the Secret to begin with, and whether there is a guess at all.
func (s *Records) lastSeen() (*apiSecret, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen, s.known
}

func (s *Records) see(secret *apiSecret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen, s.known = secret, true
}

// get reads the Secret from the API server's quorum, not from its cache; nil where it does not exist.
func (s *Records) get(ctx context.Context) (*apiSecret, error) {
	secret := &apiSecret{}
	call := s.call("reading", "get")
	_, err := s.client.retry(ctx, call, func(ctx context.Context) error {
		return into(s.client.rest.Get().Namespace(s.namespace).Resource("secrets").Name(s.name).MaxRetries(0).Do(ctx), secret)
	})
	switch {
	case apierrors.IsNotFound(err):
		secret = nil
	case err != nil:
		return nil, err
	}
	s.see(secret)
	return secret, nil
}

// decode reads the record in a Secret and what lies beside it; nil for nil. A Secret without a record that can be read is an
// error: to take it for an empty one would give the tenant a second database. So is a copy of another control plane's.
func (s *Records) decode(ctx context.Context, secret *apiSecret) (*tenant.Record, []byte, error) {
	if secret == nil {
		return nil, nil, nil
	}
	data, ok := secret.Data[recordKey]
	if !ok {
		return nil, nil, fault.New(fault.Refused, "%s has no key %q, so it is not a tenant's record, or a damaged one: restore it from a backup, or set "+
			"DBCONNECTOR_RECORD_SECRET to another name, or delete it if nothing needs it", s.source(), recordKey)
	}
	r, err := tenant.DecodeRecord(data)
	if err != nil {
		return nil, nil, fault.New(fault.Refused, "%s: key %q: %w; restore it from a backup, or delete the Secret: then the password of the tenant's database is "+
			"set again", s.source(), recordKey, err)
	}
	r.Facts = factsOf(secret)
	if err := s.identify(ctx, secret, r); err != nil {
		return nil, nil, err
	}
	return r, data, nil
}

// write creates the Secret where old is nil, and else replaces old, which fails with a conflict where it is not the newest
// any more. Labels, annotations and keys of others are kept. tries is how often it was sent.
func (s *Records) write(ctx context.Context, old *apiSecret, next *tenant.Record, data []byte) (tries int, err error) {
	keys := map[string]string{}
	if s.dsn != nil {
		dsn, err := s.dsn(next)
		if err != nil {
			return 0, fmt.Errorf("writing the tenant's record: %w", err)
		}
		keys = next.Binding(dsn)
	}
	secret := old.clone()
	call := s.call("writing", "update")
	if secret == nil {
		call.verb = "create"
		secret = &apiSecret{
			ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: s.name},
			Type:       typePrefix + next.Server.Engine.BindingType(), // cannot be changed later
		}
	}
	if secret.Labels == nil {
		secret.Labels = map[string]string{}
	}
	secret.Labels[managedByLabel] = managedBy
	annotate(secret, next.Facts)
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	for key, value := range keys {
		secret.Data[key] = []byte(value)
	}
	secret.Data[recordKey] = data

	written := &apiSecret{}
	tries, err = s.client.retry(ctx, call, func(ctx context.Context) error {
		request := s.client.rest.Post()
		if old != nil {
			request = s.client.rest.Put().Name(s.name)
		}
		return into(request.Namespace(s.namespace).Resource("secrets").MaxRetries(0).Body(secret).Do(ctx), written)
	})
	switch {
	case err == nil:
		s.see(written)
	case fault.Is(err, fault.Refused) && old != nil && old.Immutable != nil && *old.Immutable:
		// The API server does not say so in words that could be passed on.
		err = fault.New(fault.Refused, "%w: it is immutable, and has to change: keep its content, delete it, and create it again without immutable: true", err)
	}
	return tries, err
}

func (s *Records) call(doing, verb string) call {
	return call{
		doing: doing + " the tenant's record, " + s.source(), verb: verb, resource: "secrets", namespace: s.namespace, name: s.name,
		hint: "vCluster's own Role in its namespace has it; deploy/kustomize/rbac/tenant.yaml says what is needed without that",
	}
}
