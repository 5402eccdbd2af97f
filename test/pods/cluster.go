// SPDX-License-Identifier: Apache-2.0

// Package pods runs the shipped image and the shipped manifests in real pods, on the bed's node.
//
// It takes from this repository: the image built from the Dockerfile, the Helm values, the connectors and the Roles from
// deploy. It stands in for: the chart ([Values.Render]) and the control plane (vcluster, kubernetes).
package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/yaml"

	"dbconnector/test/bed"
	"dbconnector/test/shipped"
)

// Images of the stand-ins. The names cannot exist elsewhere.
const (
	kubernetesImage = "bed.test/kubernetes:1"
	vclusterImage   = "bed.test/vcluster:1"
)

// Token is the admin's, for the API of every stand-in for a vCluster.
const Token = "stand-in"

// vCluster's syncer puts these on an object that it makes on the host: the label says whose it is, the annotations of which
// virtual object.
const (
	ManagedBy       = "vcluster.loft.sh/managed-by"
	ObjectName      = "vcluster.loft.sh/object-name"
	ObjectNamespace = "vcluster.loft.sh/object-namespace"
)

// PlatformNamespace is where connectors are.
const PlatformNamespace = "vcluster-platform"

// Cluster is a node with the images, and the namespace of the connectors.
type Cluster struct {
	*bed.Node
	kustomize string // deploy/kustomize of this repository
}

// Start starts a cluster.
func Start(ctx context.Context) (_ *Cluster, err error) {
	root, err := bed.Root()
	if err != nil {
		return nil, err
	}
	c := &Cluster{kustomize: filepath.Join(root, "deploy", "kustomize")}
	// The images while the node starts, which waits most of its time.
	var images []*bed.Image
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		images, err = allImages(groupCtx)
		return err
	})
	group.Go(func() (err error) {
		c.Node, err = bed.StartNode(groupCtx)
		return err
	})
	err = group.Wait()
	if c.Node != nil {
		defer func() {
			if err != nil {
				err = errors.Join(err, c.Stop(context.WithoutCancel(ctx)))
			}
		}()
	}
	if err != nil {
		return nil, err
	}
	if err := c.Import(ctx, images...); err != nil {
		return nil, err
	}
	return c, c.Namespace(ctx, PlatformNamespace)
}

// allImages makes every image of a cluster.
func allImages(ctx context.Context) ([]*bed.Image, error) {
	busybox, err := bed.Busybox(ctx)
	if err != nil {
		return nil, err
	}
	ours, err := Image(ctx)
	if err != nil {
		return nil, err
	}
	standIns, err := standIns(ctx, busybox)
	return append(standIns, ours, busybox), err
}

// Image builds the image of the Dockerfile, under the name that the shipped Helm values call it.
func Image(ctx context.Context) (*bed.Image, error) {
	root, err := bed.Root()
	if err != nil {
		return nil, err
	}
	return imageOf(ctx, root, "")
}

// imageOf is [Image] for the source tree in a directory, with an addition to the image's name.
func imageOf(ctx context.Context, root, addition string) (*bed.Image, error) {
	values, err := readValues(filepath.Join(root, "deploy", "kustomize"), "open-source", "values.yaml")
	if err != nil {
		return nil, err
	}
	name, _ := values.ControlPlane.StatefulSet.InitContainers[0]["image"].(string)
	_, tag, _ := strings.Cut(filepath.Base(name), ":")
	return bed.BuildDockerfile(ctx, filepath.Join(root, "Dockerfile"), name+addition, map[string]string{"VERSION": tag})
}

// standIns makes the images of the control plane.
func standIns(ctx context.Context, busybox *bed.Image) ([]*bed.Image, error) {
	kine, err := bed.Program(ctx, "kine")
	if err != nil {
		return nil, err
	}
	apiServer, err := bed.Program(ctx, "kube-apiserver")
	if err != nil {
		return nil, err
	}
	dir, remove, err := bed.TempDir("vcluster")
	if err != nil {
		return nil, fmt.Errorf("building the stand-in: %w", err)
	}
	defer remove()
	program := filepath.Join(dir, "vcluster")
	if err := bed.Build(ctx, program, "test/pods/vcluster"); err != nil {
		return nil, err
	}
	vcluster, err := os.ReadFile(program)
	if err != nil {
		return nil, fmt.Errorf("building the stand-in: %w", err)
	}
	return []*bed.Image{{
		Name: kubernetesImage,
		Files: map[string]bed.ImageFile{
			"/bin/busybox":               busybox.Files["/bin/busybox"],
			"/bin/cp":                    {Link: "busybox"},
			"/kubernetes/kine":           {Source: kine},
			"/kubernetes/kube-apiserver": {Source: apiServer},
		},
	}, {
		Name: vclusterImage,
		Files: map[string]bed.ImageFile{
			"/vcluster":    {Content: vcluster, Mode: 0o755},
			"/bin/busybox": busybox.Files["/bin/busybox"],
			"/bin/sh":      {Link: "busybox"}, // as in vCluster's own
		},
		Entrypoint: []string{"/vcluster", "start"},
	}}, nil
}

// Apply applies manifests.
func (c *Cluster) Apply(ctx context.Context, manifests []byte, args ...string) error {
	_, err := c.Kubectl(ctx, string(manifests), append([]string{"apply", "--filename", "-"}, args...)...)
	return err
}

// Namespace makes a namespace.
func (c *Cluster) Namespace(ctx context.Context, name string) error {
	_, err := c.Kubectl(ctx, "", "create", "namespace", name)
	return err
}

// Options are a database server's that pods can verify.
func (c *Cluster) Options() (bed.Options, error) {
	ca, err := bed.Authority()
	if err != nil {
		return bed.Options{}, err
	}
	cert, err := ca.Issue(bed.Request{Hosts: []string{"127.0.0.1", "localhost", c.Host()}})
	return bed.Options{Cert: cert}, err
}

// Connect applies the shipped connector of an example, "postgres" or "mysql", under a name of its own and with the address of
// a server and a login for it.
func (c *Cluster) Connect(ctx context.Context, example, name string, s *bed.Server, user, password string) error {
	text, err := os.ReadFile(filepath.Join(c.kustomize, "examples", "connectors", example+".yaml"))
	if err != nil {
		return fmt.Errorf("reading connector: %w", err)
	}
	var secret map[string]any
	if err := yaml.Unmarshal(text, &secret); err != nil {
		return fmt.Errorf("reading connector: %w", err)
	}
	data, ok := secret["stringData"].(map[string]any)
	metadata, named := secret["metadata"].(map[string]any)
	if !ok || !named {
		return fmt.Errorf("connector %s has no metadata or no stringData", example)
	}
	metadata["name"] = name
	port, err := c.Expose(ctx, s.Addr())
	if err != nil {
		return err
	}
	for key, value := range map[string]string{
		"endpoint": c.Host(), "port": strconv.Itoa(port), "user": user, "password": password, "caCert": string(s.CA),
	} {
		data[key] = value
	}
	if text, err = yaml.Marshal(secret); err != nil {
		return fmt.Errorf("encoding connector: %w", err)
	}
	return c.Apply(ctx, text, "--namespace", PlatformNamespace)
}

// Names are the names that a user writes into vcluster.yaml.
type Names struct {
	Release, Namespace, Connector string
	// ServiceAccount, unless it is the chart's.
	ServiceAccount string
}

// Permit applies the shipped Roles for a vCluster, from a copy of an example's directory, as the README says.
func (c *Cluster) Permit(ctx context.Context, example string, names Names) error {
	dir, err := os.MkdirTemp(c.Dir(), "kustomize-")
	if err != nil {
		return fmt.Errorf("copying %s: %w", example, err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.CopyFS(dir, os.DirFS(c.kustomize)); err != nil {
		return fmt.Errorf("copying %s: %w", example, err)
	}
	file := filepath.Join(dir, "examples", example, "vcluster.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading names: %w", err)
	}
	var config map[string]any
	if err := yaml.Unmarshal(text, &config); err != nil {
		return fmt.Errorf("reading names: %w", err)
	}
	config["data"] = map[string]string{
		"release": names.Release, "namespace": names.Namespace, "connector": names.Connector, "platformNamespace": PlatformNamespace,
	}
	if text, err = yaml.Marshal(config); err != nil {
		return fmt.Errorf("encoding names: %w", err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return fmt.Errorf("writing names: %w", err)
	}
	if names.ServiceAccount != "" {
		if err := shipped.BindAccount(filepath.Join(filepath.Dir(file), "kustomization.yaml"), names.ServiceAccount); err != nil {
			return err
		}
	}
	_, err = c.Kubectl(ctx, "", "apply", "--kustomize", filepath.Dir(file))
	return err
}

// Variant reads the shipped Helm values of an example with files of deploy/kustomize/variants over them.
func (c *Cluster) Variant(example string, variants ...string) (*Values, error) {
	files := []string{filepath.Join(c.kustomize, "examples", example, "values.yaml")}
	for _, variant := range variants {
		files = append(files, filepath.Join(c.kustomize, "variants", variant+".yaml"))
	}
	text, err := shipped.Values(files...)
	if err != nil {
		return nil, err
	}
	return ParseValues(text)
}

// Values reads the shipped Helm values of an example, "open-source" or "licensed".
func (c *Cluster) Values(example string) (*Values, error) {
	return readValues(c.kustomize, example, "values.yaml")
}

// NativeSidecar reads them as they are with a native sidecar. As with Helm, the later file's lists take the place of the
// former's; test/shipped checks that it has nothing else.
func (c *Cluster) NativeSidecar(example string) (*Values, error) {
	values, err := c.Values(example)
	if err != nil {
		return nil, err
	}
	native, err := readValues(c.kustomize, example, "values-native-sidecar.yaml")
	if err != nil {
		return nil, err
	}
	set, over := &values.ControlPlane.StatefulSet, &native.ControlPlane.StatefulSet
	set.InitContainers, set.SidecarContainers = over.InitContainers, over.SidecarContainers
	return values, nil
}

// WaitForSocket reads the shipped Helm values of an example, and over them those with which a control plane waits for the socket.
func (c *Cluster) WaitForSocket(example string) (*Values, error) {
	values, err := c.Values(example)
	if err != nil {
		return nil, err
	}
	over, err := parseFile(c.kustomize, "", "values-wait-for-socket.yaml")
	if err == nil {
		values.ControlPlane.StatefulSet.Command = over.ControlPlane.StatefulSet.Command
	}
	return values, err
}

func parseFile(kustomize, example, file string) (*Values, error) {
	text, err := os.ReadFile(filepath.Join(kustomize, "examples", example, file))
	if err != nil {
		return nil, fmt.Errorf("reading values: %w", err)
	}
	return ParseValues(text)
}

func readValues(kustomize, example, file string) (*Values, error) {
	values, err := parseFile(kustomize, example, file)
	if err != nil {
		return nil, err
	}
	if len(values.ControlPlane.StatefulSet.InitContainers) == 0 {
		return nil, fmt.Errorf("%s of %s has no init containers", file, example)
	}
	return values, nil
}

// Install is `helm upgrade --install`.
func (c *Cluster) Install(ctx context.Context, release, namespace string, values *Values) error {
	manifests, err := values.RenderForNode(release, namespace)
	if err != nil {
		return err
	}
	return c.Apply(ctx, manifests)
}
