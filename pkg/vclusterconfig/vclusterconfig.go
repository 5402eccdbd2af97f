// SPDX-License-Identifier: Apache-2.0

// Package vclusterconfig reads a vCluster config, the file that vCluster's chart makes of the Helm values, and makes the copy of it
// that carries the tenant's DSN.
//
// vCluster's chart writes plain YAML. A config with anchors, aliases or merges was not written by it, and is refused: to change
// one place of such a config alone, all that shares it has to be unfolded.
package vclusterconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"dbconnector/pkg/atomicfile"
	"dbconnector/pkg/fault"
)

// The paths in a vCluster config that matter here.
const (
	backingStore  = "controlPlane.backingStore"
	database      = backingStore + ".database"
	connectorPath = database + ".external.connector"
	logFile       = "logging.file.enabled"
)

// Placeholder is the dataSource of the shipped values, which Edit replaces. A control plane that is started without the
// hand-over finds it in its own config. With no dataSource there it would start on an empty SQLite, report ready, and its
// syncer would delete the tenant's workloads, of which an empty store knows nothing. With this one kine ends, of whatever
// version: each knows the scheme, none gets beyond parsing the rest, and the error repeats the text. (A scheme that kine
// does not know gives an error without the text, and older ones take it for an etcd, and dial for ever.)
const Placeholder = "postgres://started without the hand-over of dbconnector (see controlPlane.statefulSet.args)"

// stores are the stores that can be enabled, the ones that take a DSN first.
var stores = []string{
	database + ".external", database + ".embedded",
	backingStore + ".etcd.embedded", backingStore + ".etcd.deploy", backingStore + ".etcd.external",
}

// The budget of a vCluster config. A config is Helm values, a few KB of them, and some tens with manifests to deploy. The
// parser takes hundreds of bytes of memory for each byte of the worst input, its check for keys that are there twice takes
// time by the square of their number, and what it writes is indented by depth. The container has 64 MiB.
const (
	// MaxSize is the most bytes a vCluster config may have.
	MaxSize = 256 << 10
	// maxValues is the most keys and values it may have.
	maxValues = 8000
	// maxDepth is how deep they may be nested. A manifest in it is nested some twenty levels deep.
	maxDepth = 100
)

// Config is a vCluster config that was read once and can be edited many times. A nil Config is none: it asks for nothing. Errors
// are of class fault.Refused. They never repeat a value, which may be a DSN with a password.
type Config struct {
	// Socket says of a data source whether it is the one of a socket beside the control plane, and in words what is wrong with one that
	// only resembles it; dsn is what Edit was given, empty where that is not known. nil: the control plane uses no socket.
	Socket func(dataSource, dsn string) (own bool, conflict string)

	doc     *yaml.Node
	content any // the same, decoded; never changed

	// The store that the user enabled, set by prepare.
	path  string
	store *yaml.Node
	open  bool // the store without the hand-over's data source is SQLite
}

// Read reads the vCluster config at path; nil where there is none and named, whether the operator chose the path, is false.
func Read(path string, named bool) (*Config, error) {
	source, err := atomicfile.Read(path, MaxSize+1)
	if err == nil {
		return Parse(source)
	}
	if errors.Is(err, fs.ErrNotExist) && !named {
		return nil, nil
	}
	return nil, fault.New(fault.Refused, "reading the vCluster's config (DBCONNECTOR_VCLUSTER_CONFIG): %w", err)
}

// Parse reads a vCluster config.
func Parse(source []byte) (*Config, error) {
	if len(source) > MaxSize {
		return nil, refuse("is larger than %d bytes", MaxSize)
	}
	doc, content, err := parse(source)
	if err != nil {
		return nil, err
	}
	return &Config{doc: doc, content: content}, nil
}

// Edit sets dataSource (and caFile, where it is not empty) in the store that the user enabled, and removes connector from it.
// Nothing else changes its meaning; order, comments, quoting and unknown fields stay, too. Which store is enabled is the user's
// choice, and the licence's: none is enabled, and none is moved.
func (c *Config) Edit(dsn, caFile string) ([]byte, error) {
	if err := c.check(dsn); err != nil {
		return nil, err
	}
	before := slices.Clone(c.store.Content)
	defer func() { c.store.Content = before }()

	edits := map[string]*string{"dataSource": &dsn, "connector": nil}
	if caFile != "" {
		edits["caFile"] = &caFile
	}
	set(c.store, "dataSource", dsn)
	if caFile != "" {
		set(c.store, "caFile", caFile)
	}
	remove(c.store, "connector")

	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2) // as Helm writes it
	if err := errors.Join(encoder.Encode(c.doc), encoder.Close()); err != nil {
		return nil, refuse("cannot be written again")
	}
	if err := c.verify(out.Bytes(), edits); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// check refuses a config that could not be edited; dsn is what Edit will be given, empty where it is not known yet.
func (c *Config) check(dsn string) error {
	if c.store == nil {
		if err := c.prepare(); err != nil {
			return err
		}
	}
	return c.checkSource(dsn)
}

// prepare finds the store that is enabled.
func (c *Config) prepare() error {
	if err := checkCase(c.doc); err != nil {
		return err
	}
	path, err := enabledStore(c.doc)
	if err != nil {
		return err
	}
	store, err := walk(c.doc, path)
	if err != nil {
		return err
	}
	if err := checkStore(store, path); err != nil {
		return err
	}
	value := find(store, "dataSource")
	c.open = path == database+".embedded" && (value == nil || isNull(value) || value.Value == "")
	c.path, c.store = path, store
	return nil
}

// Warnings are what an operator should know of a config that Edit has accepted.
func (c *Config) Warnings() []string {
	if c == nil {
		return nil
	}
	var list []string
	if c.open {
		list = append(list, fmt.Sprintf("vCluster config: %s.dataSource is empty: a control plane that misses the hand-over would start on an empty SQLite; write "+
			"%q", c.path, Placeholder))
	}
	// vCluster logs kine's arguments (docs/failures.md F28). What is not a boolean here is vCluster's to refuse.
	if node, err := walk(c.doc, logFile); err == nil && c.Socket == nil {
		if on, _ := boolean(node); on {
			list = append(list, "vCluster config: "+logFile+" is true: vCluster writes kine's arguments, the tenant's password among them, to a log file that "+
				"outlives its rotation; switch it off, or keep the file where only admins read it")
		}
	}
	if c.Socket != nil && !c.hasArg(lifetime) {
		list = append(list, fmt.Sprintf("vCluster config: %s.extraArgs has no %s=5m: kine keeps its connections for ever, and those that are never idle stay on an "+
			"old login for a while after a rotation", c.path, lifetime))
	}
	return list
}

// lifetime is kine's flag for how long it keeps a connection.
const lifetime = "--datastore-connection-max-lifetime"

// hasArg says whether kine gets an argument of this name.
func (c *Config) hasArg(name string) bool {
	if args := find(c.store, "extraArgs"); args != nil {
		for _, arg := range args.Content {
			if is, _, _ := strings.Cut(arg.Value, "="); is == name {
				return true
			}
		}
	}
	return false
}

// Connector is the name of the connector that the config asks for, empty where it asks for none. As on vCluster Platform
// it does not matter whether the store is enabled.
func (c *Config) Connector() (string, error) {
	if c == nil {
		return "", nil
	}
	node, err := walk(c.doc, connectorPath)
	switch {
	case err != nil:
		return "", err
	case node == nil || isNull(node):
		return "", nil
	case node.Kind != yaml.ScalarNode || node.ShortTag() != "!!str":
		return "", refuse("%s: must be a string", connectorPath)
	}
	return node.Value, nil
}

// checkStore refuses what would lead kine elsewhere than to the tenant's database, or away from a store that has data.
func checkStore(store *yaml.Node, path string) error {
	if value := find(store, "dataSource"); value != nil && !isNull(value) && value.Kind != yaml.ScalarNode {
		return refuse("%s.dataSource: must be a string", path)
	}
	if value := find(store, "identityProvider"); value != nil && !isNull(value) && (value.Kind != yaml.ScalarNode || value.Value != "") {
		return refuse("%s.identityProvider: is set: kine would log in with the provider's tokens in place of the tenant's password; remove it", path)
	}
	args := find(store, "extraArgs")
	if args == nil || isNull(args) {
		return nil
	}
	if args.Kind != yaml.SequenceNode {
		return refuse("%s.extraArgs: must be a list of strings", path)
	}
	for _, arg := range args.Content {
		name, _, _ := strings.Cut(arg.Value, "=")
		if dashes := strings.TrimLeft(name, "-"); dashes == "endpoint" && name != dashes {
			return refuse("%s.extraArgs: has --endpoint, which outweighs dataSource: kine would not use the tenant's database; remove it", path)
		}
	}
	return nil
}

// checkSource refuses a data source that is not ours, which may be a DSN with a password. To a socket, TLS is the sidecar's.
func (c *Config) checkSource(dsn string) error {
	if c.Socket != nil {
		for _, key := range []string{"caFile", "certFile", "keyFile"} {
			if value := find(c.store, key); value != nil && !isNull(value) && value.Value != "" {
				return refuse("%s.%s: is set, and DBCONNECTOR_ADOPT=socket: kine would ask the socket for TLS, which is the sidecar's; remove it", c.path, key)
			}
		}
	}
	value := find(c.store, "dataSource")
	if value == nil || isNull(value) || value.Value == "" || value.Value == Placeholder {
		return nil
	}
	conflict := ""
	switch {
	case c.Socket != nil:
		own := false
		if own, conflict = c.Socket(value.Value, dsn); own {
			return nil
		}
	case socketSource.MatchString(value.Value):
		conflict = "names a socket, and DBCONNECTOR_ADOPT is not socket"
	}
	if conflict != "" {
		return refuse("%s.dataSource: %s; correct one of the two, or write %q here, which fits every mode", c.path, conflict, Placeholder)
	}
	return refuse("%s.dataSource: names a store of its own: a control plane with data there would start on an empty database; if this is what you want, "+
		"write %q", c.path, Placeholder)
}

// socketSource matches a data source without a password that leads to a program beside the control plane.
var socketSource = regexp.MustCompile(`^(postgres|mysql)://[^:@/]*@(/[^?]*\?host=|unix\(|127\.0\.0\.1:|tcp\(127\.0\.0\.1:)`)

// checkCase refuses a key on the way to a store, or in one, that is one of those that matter here but for its case:
// vCluster's decoder does not tell them apart, and of two it may take either. It refuses there what is no string, too.
func checkCase(doc *yaml.Node) error {
	for _, path := range stores {
		node, steps := doc.Content[0], strings.Split(path, ".")
		for i := 0; node != nil && node.Kind == yaml.MappingNode; i++ {
			if err := checkKeys(node, strings.Join(steps[:i], ".")); err != nil {
				return err
			}
			if i == len(steps) {
				break
			}
			node = find(node, steps[i])
		}
	}
	return nil
}

// known are the keys that matter here.
var known = append(strings.Split(strings.Join(stores, "."), "."), "enabled", "dataSource", "connector", "caFile", "certFile", "keyFile", "identityProvider",
	"extraArgs")

func checkKeys(mapping *yaml.Node, path string) error {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key := mapping.Content[i]
		if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" {
			return refuse("line %d: has a key that is not a string", key.Line)
		}
		for _, k := range known {
			if key.Value != k && strings.EqualFold(key.Value, k) {
				return refuse("%s: must be written %s", strings.TrimPrefix(path+"."+key.Value, "."), k)
			}
		}
	}
	return nil
}

// enabledStore is the path of the one store that the user enabled.
func enabledStore(doc *yaml.Node) (string, error) {
	var enabled []string
	for _, path := range stores {
		node, err := walk(doc, path+".enabled")
		if err != nil {
			return "", err
		}
		on, ok := boolean(node)
		if !ok {
			return "", refuse("%s.enabled: must be true or false", path)
		}
		if on {
			enabled = append(enabled, path)
		}
	}
	switch {
	case len(enabled) == 0:
		return "", refuse("no store is enabled: set %s.enabled or, with a licence, %s.enabled to true", stores[1], stores[0])
	case len(enabled) > 1:
		return "", refuse("more than one store is enabled: %s", strings.Join(enabled, ", "))
	case !strings.HasPrefix(enabled[0], database+"."):
		return "", refuse("%s is enabled, which takes no database: enable %s or, with a licence, %s instead", enabled[0], stores[1], stores[0])
	}
	return enabled[0], nil
}

// verify decodes what is to be written, and refuses a difference from what was read other than the edits. There are corners
// of YAML that a library writes differently from how it read them; a control plane must not be started on such a one.
func (c *Config) verify(result []byte, edits map[string]*string) error {
	rule := refuse("cannot be edited without changing its meaning: write it more simply (no tags)")
	var got any
	if yaml.Unmarshal(result, &got) != nil {
		return rule
	}
	// The edits must be there. Then they are undone, and nothing must differ any more.
	want, changed := at(c.content, c.path), at(got, c.path)
	if changed == nil {
		return rule
	}
	for key, value := range edits {
		is, ok := changed[key]
		if ok != (value != nil) || value != nil && is != any(*value) {
			return rule
		}
		delete(changed, key)
		if was, ok := want[key]; ok {
			changed[key] = was
		}
	}
	was, err := yaml.Marshal(c.content) // and not DeepEqual: .nan is the same as another one
	is, err2 := yaml.Marshal(got)
	if err != nil || err2 != nil || !bytes.Equal(was, is) {
		return rule
	}
	return nil
}

// at is the mapping at path of decoded content; nil where there is none.
func at(content any, path string) map[string]any {
	mapping, _ := content.(map[string]any)
	for _, key := range strings.Split(path, ".") {
		mapping, _ = mapping[key].(map[string]any)
	}
	return mapping
}

func refuse(format string, args ...any) error {
	return fault.New(fault.Refused, "vCluster config: "+format, args...)
}

var lineNumber = regexp.MustCompile(`line [0-9]+`)

// parse reads the one document of source. It decodes it once for good, too, which finds what a tree of nodes hides:
// duplicate keys and values that are not what their tags say.
func parse(source []byte) (*yaml.Node, any, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(source))
	var doc yaml.Node
	err := decoder.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return &yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{{Kind: yaml.MappingNode}}}, nil, nil
	}
	var content any
	if err == nil {
		left := maxValues
		if err := checkNode(&doc, &left, 0); err != nil {
			return nil, nil, err
		}
		err = doc.Decode(&content)
	}
	if err != nil {
		rule, where := "is not YAML", ""
		if strings.Contains(err.Error(), "already defined at line") {
			rule = "has a key twice"
		}
		if line := lineNumber.FindString(err.Error()); line != "" {
			where = ", " + line
		}
		return nil, nil, refuse("%s%s", rule, where) // not err itself, which may repeat values
	}
	var more yaml.Node
	if !errors.Is(decoder.Decode(&more), io.EOF) {
		return nil, nil, refuse("must be one YAML document, and nothing after it")
	}
	root := doc.Content[0]
	if isNull(root) {
		doc.Content[0] = &yaml.Node{Kind: yaml.MappingNode}
	} else if root.Kind != yaml.MappingNode {
		return nil, nil, refuse("must be a mapping")
	}
	return &doc, content, nil
}

// checkNode refuses anchors, aliases and merges, and counts a node and all below it off left.
func checkNode(node *yaml.Node, left *int, depth int) error {
	if *left--; *left < 0 || depth > maxDepth {
		return refuse("has more than %d values or more than %d levels", maxValues, maxDepth)
	}
	merges := false
	for i := 0; node.Kind == yaml.MappingNode && i < len(node.Content); i += 2 {
		merges = merges || node.Content[i].ShortTag() == "!!merge"
	}
	if node.Anchor != "" || node.Kind == yaml.AliasNode || merges {
		return refuse("line %d: has an anchor (&), an alias (*) or a merge (<<), which vCluster's chart never writes: write out what it stands for", node.Line)
	}
	for _, child := range node.Content {
		if err := checkNode(child, left, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// boolean is what vCluster's decoder, which reads YAML 1.1, takes for a boolean. Nothing and null are false.
func boolean(node *yaml.Node) (on, ok bool) {
	if node == nil || isNull(node) {
		return false, true
	}
	if node.Kind != yaml.ScalarNode || node.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return false, false
	}
	switch node.Value {
	case "true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON", "y", "Y":
		return true, true
	case "false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF", "n", "N":
		return false, true
	}
	return false, false
}

func isNull(node *yaml.Node) bool { return node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null" }

// walk finds what is at path; nil where nothing is there.
func walk(doc *yaml.Node, path string) (*yaml.Node, error) {
	node := doc.Content[0]
	done := ""
	for _, key := range strings.Split(path, ".") {
		if isNull(node) {
			return nil, nil
		}
		if node.Kind != yaml.MappingNode {
			return nil, refuse("%s: must be a mapping", done)
		}
		if node = find(node, key); node == nil {
			return nil, nil
		}
		done = strings.TrimPrefix(done+"."+key, ".")
	}
	return node, nil
}

// find is the value of a key of a mapping; nil where it has none.
func find(mapping *yaml.Node, key string) *yaml.Node {
	if i := index(mapping, key); i >= 0 {
		return mapping.Content[i+1]
	}
	return nil
}

// index is the place of a key in a mapping's content, or -1.
func index(mapping *yaml.Node, key string) int {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if k := mapping.Content[i]; k.Kind == yaml.ScalarNode && k.Value == key && k.ShortTag() == "!!str" {
			return i
		}
	}
	return -1
}

func scalar(value string, style yaml.Style) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value, Style: style}
}

// set gives a key a string, in quotes: no decoder takes it for anything else.
func set(mapping *yaml.Node, key, value string) {
	node := scalar(value, yaml.DoubleQuotedStyle)
	i := index(mapping, key)
	if i < 0 {
		mapping.Content = append(mapping.Content, scalar(key, 0), node)
		return
	}
	had := mapping.Content[i+1]
	node.HeadComment, node.LineComment, node.FootComment = had.HeadComment, had.LineComment, had.FootComment
	mapping.Content[i+1] = node
}

func remove(mapping *yaml.Node, key string) {
	if i := index(mapping, key); i >= 0 {
		mapping.Content = append(mapping.Content[:i], mapping.Content[i+2:]...)
	}
}
