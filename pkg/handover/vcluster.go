// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

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
	// MaxConfig is the most bytes a vCluster config may have.
	MaxConfig = 256 << 10
	// maxValues is the most keys and values it may have, what aliases stand for counted each time.
	maxValues = 8000
	// maxDepth is how deep they may be nested. A manifest in it is nested some twenty levels deep.
	maxDepth = 100
)

// Config is a vCluster config that was read once and can be edited many times.
type Config struct {
	doc     *yaml.Node
	content any // the same, decoded; never changed

	// The store that the user enabled, set by prepare.
	path  string
	store *yaml.Node
	open  bool // the store without the hand-over's data source is SQLite
}

// ParseConfig reads a vCluster config. The errors of Config and its own are of class fault.Refused. They never repeat a
// value, which may be a DSN with a password.
func ParseConfig(source []byte) (*Config, error) {
	if len(source) > MaxConfig {
		return nil, refuse("is larger than %d bytes", MaxConfig)
	}
	doc, content, err := parseConfig(source)
	if err != nil {
		return nil, err
	}
	return &Config{doc: doc, content: content}, nil
}

// Edit sets dataSource (and caFile, where it is not empty) in the store that the user enabled in his vCluster config,
// and removes connector from it. Nothing else changes its meaning; order, comments, quoting, anchors and unknown fields
// stay, too, but for an anchor that the edit would have changed under somebody who shares it. Which store is enabled is
// the user's choice, and the licence's: none is enabled, and none is moved.
func (c *Config) Edit(dsn, caFile string) ([]byte, error) {
	if c.store == nil {
		if err := c.prepare(); err != nil {
			return nil, err
		}
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

// prepare finds the store that is enabled and makes it a mapping that can be changed without changing anything else.
func (c *Config) prepare() error {
	if err := checkCase(c.doc); err != nil {
		return err
	}
	path, err := enabledStore(c.doc)
	if err != nil {
		return err
	}
	fields, err := own(c.doc, strings.Split(path, "."))
	if err != nil {
		return err
	}
	store := fields[len(fields)-1]
	if err := checkStore(store, path); err != nil {
		return err
	}
	// What is about to change or to vanish, and what contains it, must not be shared.
	changing := fields
	for i := 0; i+1 < len(store.Content); i += 2 {
		if key := store.Content[i].Value; key == "dataSource" || key == "connector" || key == "caFile" || isMerge(store.Content[i]) {
			changing = append(changing, subtree(store.Content[i])...)
			changing = append(changing, subtree(store.Content[i+1])...)
		}
	}
	unshare(c.doc, changing)
	value := deref(find(store, "dataSource"))
	c.open = path == database+".embedded" && (value == nil || value.Value != Placeholder)
	flatten(store)
	c.path, c.store = path, store
	return nil
}

// Warnings are what an operator should know of a config that Edit has accepted.
func (c *Config) Warnings() []string {
	var list []string
	if c.open {
		list = append(list, fmt.Sprintf("vCluster config: %s.dataSource is empty: a control plane that misses the hand-over would start on an empty SQLite; write %q", c.path, Placeholder))
	}
	// vCluster logs kine's arguments (docs/failures.md F28). What is not a boolean here is vCluster's to refuse.
	if node, err := walk(c.doc, logFile); err == nil {
		if on, _ := boolean(node); on {
			list = append(list, "vCluster config: "+logFile+" is true: vCluster writes kine's arguments, the tenant's password among them, to a log file that outlives its rotation; switch it off, or keep the file where only admins read it")
		}
	}
	return list
}

// checkStore refuses what would lead kine elsewhere than to the tenant's database, or away from a store that has data.
func checkStore(store *yaml.Node, path string) error {
	if value := deref(find(store, "dataSource")); value != nil && !isNull(value) {
		switch {
		case value.Kind != yaml.ScalarNode:
			return refuse("%s.dataSource: must be a string", path)
		case value.Value != "" && value.Value != Placeholder: // which may be a DSN with a password
			return refuse("%s.dataSource: names a store of its own: a control plane with data there would start on an empty database; if this is what you want, write %q", path, Placeholder)
		}
	}
	if value := deref(find(store, "identityProvider")); value != nil && !isNull(value) && (value.Kind != yaml.ScalarNode || value.Value != "") {
		return refuse("%s.identityProvider: is set: kine would log in with the provider's tokens in place of the tenant's password; remove it", path)
	}
	args := deref(find(store, "extraArgs"))
	if args == nil || isNull(args) {
		return nil
	}
	if args.Kind != yaml.SequenceNode {
		return refuse("%s.extraArgs: must be a list of strings", path)
	}
	for _, arg := range args.Content {
		name, _, _ := strings.Cut(deref(arg).Value, "=")
		if dashes := strings.TrimLeft(name, "-"); dashes == "endpoint" && name != dashes {
			return refuse("%s.extraArgs: has --endpoint, which outweighs dataSource: kine would not use the tenant's database; remove it", path)
		}
	}
	return nil
}

// Connector is the name of the connector that the config asks for, empty where it asks for none. As on vCluster Platform
// it does not matter whether the store is enabled.
func (c *Config) Connector() (string, error) {
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

func refuse(format string, args ...any) error {
	return fault.New(fault.Refused, "vCluster config: "+format, args...)
}

var lineNumber = regexp.MustCompile(`line [0-9]+`)

// parseConfig reads the one document of source. It decodes it once for good, too, which finds what a tree of nodes hides:
// duplicate keys and values that are not what their tags say.
func parseConfig(source []byte) (*yaml.Node, any, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(source))
	var doc yaml.Node
	err := decoder.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return &yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{{Kind: yaml.MappingNode}}}, nil, nil
	}
	var content any
	if err == nil {
		if left := maxValues; !affordable(&doc, &left, 0) {
			return nil, nil, refuse("has more than %d values or more than %d levels, counted with what aliases stand for", maxValues, maxDepth)
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
	root := deref(doc.Content[0])
	if isNull(root) {
		doc.Content[0] = &yaml.Node{Kind: yaml.MappingNode}
	} else if root.Kind != yaml.MappingNode {
		return nil, nil, refuse("must be a mapping")
	}
	return &doc, content, nil
}

// affordable counts a node and all below it, through aliases, off left. It ends at the budget, whatever the aliases make of it.
func affordable(node *yaml.Node, left *int, depth int) bool {
	if *left--; *left < 0 || depth > maxDepth {
		return false
	}
	if node.Kind == yaml.AliasNode {
		return affordable(node.Alias, left, depth+1)
	}
	for _, child := range node.Content {
		if !affordable(child, left, depth+1) {
			return false
		}
	}
	return true
}

// checkCase refuses a key on the way to a store, or in one, that is one of those that matter here but for its case:
// vCluster's decoder does not tell them apart, and of two it may take either.
func checkCase(doc *yaml.Node) error {
	for _, path := range stores {
		node, steps := deref(doc.Content[0]), strings.Split(path, ".")
		for i := 0; node != nil && node.Kind == yaml.MappingNode; i++ {
			if err := checkKeys(node, strings.Join(steps[:i], ".")); err != nil {
				return err
			}
			if i == len(steps) {
				break
			}
			node = deref(find(node, steps[i]))
		}
	}
	return nil
}

// known are the keys that matter here.
var known = append(strings.Split(strings.Join(stores, "."), "."), "enabled", "dataSource", "connector", "caFile", "identityProvider", "extraArgs")

func checkKeys(mapping *yaml.Node, path string) error {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key := deref(mapping.Content[i]).Value
		for _, k := range known {
			if key != k && strings.EqualFold(key, k) {
				return refuse("%s: must be written %s", strings.TrimPrefix(path+"."+key, "."), k)
			}
		}
	}
	for _, merged := range merges(mapping) {
		if err := checkKeys(merged, path); err != nil {
			return err
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

func isMerge(key *yaml.Node) bool { return key.ShortTag() == "!!merge" }

// deref follows an alias.
func deref(node *yaml.Node) *yaml.Node {
	for node != nil && node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	return node
}

// walk finds what is at path, through aliases and merges; nil where nothing is there.
func walk(doc *yaml.Node, path string) (*yaml.Node, error) {
	node := deref(doc.Content[0])
	done := ""
	for _, key := range strings.Split(path, ".") {
		if isNull(node) {
			return nil, nil
		}
		if node.Kind != yaml.MappingNode {
			return nil, refuse("%s: must be a mapping", done)
		}
		if node = deref(find(node, key)); node == nil {
			return nil, nil
		}
		done = strings.TrimPrefix(done+"."+key, ".")
	}
	return node, nil
}

// find is the value of a key of a mapping, its own or else a merged one; nil where it has none.
func find(mapping *yaml.Node, key string) *yaml.Node {
	if i := index(mapping, key); i >= 0 {
		return mapping.Content[i+1]
	}
	for _, merged := range merges(mapping) {
		if value := find(merged, key); value != nil {
			return value
		}
	}
	return nil
}

// index is the place of a mapping's own key in its content, or -1.
func index(mapping *yaml.Node, key string) int {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if k := deref(mapping.Content[i]); k.Kind == yaml.ScalarNode && k.Value == key && k.ShortTag() == "!!str" {
			return i
		}
	}
	return -1
}

// merges are the mappings that are merged into one, the strongest first.
func merges(mapping *yaml.Node) []*yaml.Node {
	var list []*yaml.Node
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if !isMerge(mapping.Content[i]) {
			continue
		}
		switch value := deref(mapping.Content[i+1]); value.Kind {
		case yaml.MappingNode:
			list = append(list, value)
		case yaml.SequenceNode:
			for _, item := range value.Content {
				if item = deref(item); item.Kind == yaml.MappingNode {
					list = append(list, item)
				}
			}
		}
	}
	return list
}

// own walks along a path whose end is known to be a mapping and makes every mapping on it the document's own: what is an
// alias becomes a copy, what is merged becomes a key of its own, which outweighs the merged one. It returns the mappings,
// the one at the end last.
func own(doc *yaml.Node, path []string) ([]*yaml.Node, error) {
	if doc.Content[0].Kind == yaml.AliasNode {
		return nil, refuse("must be a mapping")
	}
	node := doc.Content[0]
	nodes := []*yaml.Node{node}
	for _, key := range path {
		i := index(node, key)
		if i < 0 {
			// After the merge keys: a decoder of YAML 1.1 lets the later one win.
			node.Content = append(node.Content, scalar(key, 0), clone(find(node, key), nil))
			i = len(node.Content) - 2
		}
		if node.Content[i+1].Kind == yaml.AliasNode {
			node.Content[i+1] = clone(node.Content[i+1], nil)
		}
		node = node.Content[i+1]
		nodes = append(nodes, node)
	}
	return nodes, nil
}

// clone copies a node without its anchors, an alias as what it stands for. Aliases inside of it stay aliases unless they
// stand for one of expand.
func clone(node *yaml.Node, expand map[*yaml.Node]bool) *yaml.Node {
	c := *deref(node)
	if node.Kind == yaml.AliasNode { // the comments of the place, not of the original
		c.HeadComment, c.LineComment, c.FootComment = node.HeadComment, node.LineComment, node.FootComment
	}
	c.Anchor = ""
	c.Content = make([]*yaml.Node, 0, len(c.Content))
	for _, child := range deref(node).Content {
		if child.Kind == yaml.AliasNode && !expand[child.Alias] {
			alias := *child
			c.Content = append(c.Content, &alias)
			continue
		}
		c.Content = append(c.Content, clone(child, expand))
	}
	return &c
}

// subtree lists a node and all below it, not through aliases.
func subtree(node *yaml.Node) []*yaml.Node {
	list := []*yaml.Node{node}
	for _, child := range node.Content {
		list = append(list, subtree(child)...)
	}
	return list
}

// unshare puts a copy in the place of every alias of the given nodes, so that they can be changed alone. The anchors
// themselves go: nobody refers to them any more.
func unshare(doc *yaml.Node, nodes []*yaml.Node) {
	changing := map[*yaml.Node]bool{}
	for _, node := range nodes {
		changing[node] = true
	}
	var visit func(*yaml.Node)
	visit = func(node *yaml.Node) {
		for i, child := range node.Content {
			if child.Kind == yaml.AliasNode && changing[child.Alias] {
				node.Content[i] = clone(child, changing)
			} else {
				visit(child)
			}
		}
	}
	visit(doc)
	for node := range changing {
		node.Anchor = ""
	}
}

// flatten makes all that is merged into a mapping its own. The mapping is the one that is edited: a merged key can be
// outweighed, but not removed.
func flatten(mapping *yaml.Node) {
	merged := merges(mapping)
	content := mapping.Content
	mapping.Content = nil
	for i := 0; i+1 < len(content); i += 2 {
		if !isMerge(content[i]) {
			mapping.Content = append(mapping.Content, content[i], content[i+1])
		}
	}
	for _, from := range merged {
		from = clone(from, nil)
		flatten(from)
		for i := 0; i+1 < len(from.Content); i += 2 {
			if index(mapping, deref(from.Content[i]).Value) < 0 {
				mapping.Content = append(mapping.Content, from.Content[i], from.Content[i+1])
			}
		}
	}
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

// verify decodes what is to be written, and refuses a difference from what was read other than the edits. There are corners
// of YAML that a library writes differently from how it read them; a control plane must not be started on such a one.
func (c *Config) verify(result []byte, edits map[string]*string) error {
	const rule = "cannot be edited without changing its meaning: write it more simply (no anchors, no tags)"
	var got any
	if yaml.Unmarshal(result, &got) != nil {
		return refuse(rule)
	}
	// The edits must be there. Then they are undone, and nothing must differ any more.
	want, changed := reflect.ValueOf(c.content), reflect.ValueOf(got) // maps are map[string]any, or map[any]any where a key is no string
	for _, key := range strings.Split(c.path, ".") {
		want = want.MapIndex(reflect.ValueOf(key)).Elem()
		if changed.Kind() != reflect.Map {
			return refuse(rule)
		}
		if changed = changed.MapIndex(reflect.ValueOf(key)); !changed.IsValid() {
			return refuse(rule)
		}
		changed = changed.Elem()
	}
	if changed.Kind() != reflect.Map {
		return refuse(rule)
	}
	for key, value := range edits {
		k := reflect.ValueOf(key)
		is := changed.MapIndex(k)
		if is.IsValid() != (value != nil) || value != nil && is.Interface() != any(*value) {
			return refuse(rule)
		}
		changed.SetMapIndex(k, want.MapIndex(k)) // one that is not there removes it
	}
	if !same(c.content, got) {
		return refuse(rule)
	}
	return nil
}

// same tells whether two decoded documents are the same, types included. A .nan is the same as another.
func same(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for key, value := range a {
			if other, ok := b[key]; !ok || !same(value, other) {
				return false
			}
		}
		return true
	case map[any]any:
		b, ok := b.(map[any]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for key, value := range a {
			if other, ok := b[key]; !ok || !same(value, other) {
				return false
			}
		}
		return true
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, same)
	case string:
		return any(a) == b
	}
	return fmt.Sprintf("%#v", a) == fmt.Sprintf("%#v", b) // shows the type, and of a float the sign of zero
}
