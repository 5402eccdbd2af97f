// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"dbconnector/test/pods"
)

// The kubelet puts here the files that a pod needs to speak to its API server.
const account = "/var/run/secrets/kubernetes.io/serviceaccount"

// syncer does the one thing of vCluster's syncer that destroys: what is on the host in the vCluster's name, and has no virtual
// object in the vCluster, it deletes. A vCluster that starts on an empty store loses its tenant's workloads by that (F1).
type syncer struct {
	host, virtual side
	namespace     string
	release       string
}

// side is an API server, as the syncer reaches it.
type side struct {
	url    string
	token  func() (string, error)
	client *http.Client
}

func newSyncer() *syncer {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // on a node of its own
	}}
	return &syncer{
		host: side{
			url:    "https://" + os.Getenv("KUBERNETES_SERVICE_HOST") + ":" + os.Getenv("KUBERNETES_SERVICE_PORT"),
			token:  func() (string, error) { return read("token") },
			client: client,
		},
		virtual: side{url: "https://127.0.0.1:8443", token: func() (string, error) { return pods.Token, nil }, client: client},
		release: os.Getenv("VCLUSTER_NAME"),
	}
}

func read(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(account, name))
	return strings.TrimSpace(string(text)), err
}

// run looks once a second, as long as the control plane runs. The real one is told, and is faster.
func (s *syncer) run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, kind := range []string{"pods", "configmaps"} {
			if err := s.sync(ctx, kind); err != nil && ctx.Err() == nil {
				log.Printf("syncing %s: %v", kind, err)
			}
		}
	}
}

var errNotThere = errors.New("not there")

func (s *syncer) sync(ctx context.Context, kind string) (err error) {
	if s.namespace, err = read("namespace"); err != nil {
		return err
	}
	var list struct {
		Items []struct {
			Metadata struct {
				Name        string
				Annotations map[string]string
			}
		}
	}
	path := "/api/v1/namespaces/" + s.namespace + "/" + kind
	query := url.Values{"labelSelector": {pods.ManagedBy + "=" + s.release}}
	if err := s.host.do(ctx, http.MethodGet, path+"?"+query.Encode(), &list); err != nil {
		return err
	}
	for _, item := range list.Items {
		of := item.Metadata.Annotations
		err := s.virtual.do(ctx, http.MethodGet, "/api/v1/namespaces/"+of[pods.ObjectNamespace]+"/"+kind+"/"+of[pods.ObjectName], nil)
		if !errors.Is(err, errNotThere) {
			continue // it is there, or that is unknown
		}
		log.Printf("deleting %s %s: the vCluster has none", kind, item.Metadata.Name)
		if err := s.host.do(ctx, http.MethodDelete, path+"/"+item.Metadata.Name, nil); err != nil && !errors.Is(err, errNotThere) {
			return err
		}
	}
	return nil
}

// do makes a request, and decodes the answer into out unless that is nil.
func (s side) do(ctx context.Context, method, path string, out any) error {
	request, err := http.NewRequestWithContext(ctx, method, s.url+path, http.NoBody)
	if err != nil {
		return err
	}
	token, err := s.token()
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := s.client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	switch {
	case response.StatusCode == http.StatusNotFound:
		return errNotThere
	case response.StatusCode/100 != 2:
		return fmt.Errorf("%s %s: %s", method, path, response.Status)
	case out == nil:
		return nil
	}
	return json.NewDecoder(response.Body).Decode(out)
}
