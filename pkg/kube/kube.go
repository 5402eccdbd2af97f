// SPDX-License-Identifier: Apache-2.0

// Package kube is the only package that knows Kubernetes: it reads the connector, keeps the record, and tells a pod's
// story in Events.
//
// It uses client-go's REST client with a few types of its own (types.go) instead of the typed clientset, which links every
// API group there is: that is half of the binary and of its memory, in a container that runs for a second. A call that fails
// for a reason of the moment is repeated until its context ends. A call that is refused says what an admin has to grant. No
// error holds the content of a Secret.
package kube

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/klog/v2"

	"dbconnector/pkg/connector"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/version"
)

const (
	// requestTimeout bounds one request. The API server itself gives up after 60 s; ours are answered in milliseconds, and
	// one that hangs (a load balancer with a dead backend) should leave time for another.
	requestTimeout = 10 * time.Second
)

// Client talks to the API server.
type Client struct {
	rest      rest.Interface
	watcher   rest.Interface // like rest, but for requests that are meant to last
	component string
	waiting   func(err error, attempt int, next time.Duration)
	// token or tokenFile is the credential, where it is a token.
	token, tokenFile string

	mu sync.Mutex
	// uids are the UIDs of namespaces that were read: none changes while this program runs in it.
	uids map[string]string
}

// OnWaiting sets what is told of each try that failed for a reason of the moment, and how long the pause before the next
// one is. Without it a client waits in silence. Set it before the first call.
func (c *Client) OnWaiting(f func(err error, attempt int, next time.Duration)) { c.waiting = f }

// silenceClientGo drops what client-go thinks of the world, which it logs through klog, in another format than ours and
// without knowing what is a secret. All that matters comes back as an error. Once, because klog does not lock.
var silenceClientGo = sync.OnceFunc(func() { klog.SetLogger(logr.Discard()) })

// New makes a client from KUBECONFIG where that is set, or else from the pod's ServiceAccount. component is the program's
// name, as Events show it and, with its version, the API server's audit log. It sends nothing yet.
func New(component string) (*Client, error) {
	return Open(os.Getenv(clientcmd.RecommendedConfigPathEnvVar), component)
}

// Open is New with a kubeconfig in place of KUBECONFIG; empty for the pod's ServiceAccount.
func Open(kubeconfig, component string) (*Client, error) {
	silenceClientGo()
	config, err := clientConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	return newClient(config, component)
}

func clientConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fault.New(fault.Refused, "finding the API server: %w: KUBECONFIG must be set outside of a pod; in a pod, a ServiceAccount token must be "+
				"mounted", err)
		}
		return config, nil
	}
	rules := clientcmd.ClientConfigLoadingRules{Precedence: filepath.SplitList(kubeconfig)}
	content, err := rules.Load()
	if err != nil {
		return nil, fault.New(fault.Refused, "reading KUBECONFIG=%s: %v", fault.Show(kubeconfig), err)
	}
	if clientcmdapi.IsConfigEmpty(content) {
		return nil, fault.New(fault.Refused, "reading KUBECONFIG=%s: the file does not exist or says nothing", fault.Show(kubeconfig))
	}
	config, err := clientcmd.NewDefaultClientConfig(*content, nil).ClientConfig()
	if err != nil {
		return nil, fault.New(fault.Refused, "reading KUBECONFIG=%s: %v", fault.Show(kubeconfig), err)
	}
	return config, nil
}

func newClient(config *rest.Config, component string) (*Client, error) {
	config = rest.CopyConfig(config)
	config.GroupVersion = &coreV1
	config.APIPath = "/api"
	config.NegotiatedSerializer = serializer.NewCodecFactory(newScheme()).WithoutConversion()
	config.UserAgent = component + "/" + version.String()
	config.Timeout = requestTimeout
	config.NextProtos = []string{"http/1.1"} // what HTTP/2 costs at its start, a handful of requests one after the other never brings in
	config.QPS = -1                          // a handful of requests in all: nothing to limit
	config.WarningHandlerWithContext = rest.NoWarnings{}
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fault.New(fault.Refused, "preparing the API client: %v", err)
	}
	config.Timeout = 0
	watcher, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fault.New(fault.Refused, "preparing the API client: %v", err)
	}
	return &Client{rest: client, watcher: watcher, component: component, token: config.BearerToken, tokenFile: config.BearerTokenFile}, nil
}

// Source names a connector Secret for messages, as connector.Parse wants it.
func Source(namespace, name string) string { return "secret " + namespace + "/" + name }

// Connector reads the data of a connector Secret and checks its label.
func (c *Client) Connector(ctx context.Context, namespace, name string) (map[string][]byte, error) {
	source := Source(namespace, name)
	if rules := validation.IsDNS1123Subdomain(name); len(rules) > 0 {
		return nil, fault.New(fault.Refused, "reading the connector: %s is not the name of a Secret: set DBCONNECTOR_CONNECTOR, or "+
			"controlPlane.backingStore.database.external.connector in the vCluster's config", fault.Show(name))
	}
	var secret apiSecret
	call := call{
		doing: "reading the connector, " + source, verb: "get", resource: "secrets", namespace: namespace, name: name,
		hint: "deploy/kustomize has the Role and the RoleBinding",
	}
	_, err := c.retry(ctx, call, func(ctx context.Context) error {
		return into(c.rest.Get().Namespace(namespace).Resource("secrets").Name(name).MaxRetries(0).Do(ctx), &secret)
	})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fault.New(fault.Refused, "reading the connector: %s does not exist: create it, or correct its name (DBCONNECTOR_CONNECTOR, or "+
			"controlPlane.backingStore.database.external.connector in the vCluster's config) or its namespace (DBCONNECTOR_CONNECTOR_NAMESPACE)", source)
	case err != nil:
		return nil, err
	}
	if err := connector.CheckLabel(source, secret.Labels); err != nil {
		return nil, err
	}
	return secret.Data, nil
}

// NamespaceUID reads the UID of a Namespace, once.
func (c *Client) NamespaceUID(ctx context.Context, namespace string) (string, error) {
	c.mu.Lock()
	uid := c.uids[namespace]
	c.mu.Unlock()
	if uid != "" {
		return uid, nil
	}
	var object metav1.PartialObjectMetadata
	call := call{
		doing: "reading the namespace " + namespace, verb: "get", resource: "namespaces", namespace: namespace, name: namespace,
		hint: "a Role in the namespace itself is enough; or set DBCONNECTOR_TENANT_UID",
	}
	_, err := c.retry(ctx, call, func(ctx context.Context) error {
		return into(c.rest.Get().Resource("namespaces").Name(namespace).MaxRetries(0).Do(ctx), &object)
	})
	switch {
	case apierrors.IsNotFound(err):
		return "", fault.New(fault.Refused, "reading the namespace: %s does not exist: correct DBCONNECTOR_NAMESPACE", fault.Show(namespace))
	case err != nil:
		return "", err
	case object.UID == "":
		return "", fault.New(fault.Unknown, "reading the namespace %s: the API server gave it no UID", namespace)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.uids == nil {
		c.uids = map[string]string{}
	}
	c.uids[namespace] = string(object.UID)
	return c.uids[namespace], nil
}
