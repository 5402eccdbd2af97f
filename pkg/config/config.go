// SPDX-License-Identifier: Apache-2.0

// Package config is the environment of the programs: every variable, its default and its refusals.
//
// Our variables, DBCONNECTOR_…, are read here and nowhere else, by their full names, so that a search for one finds it; messages
// elsewhere repeat a name where they say what to correct. An operator who corrects a manifest wants to know all that is wrong with
// it at once, so nothing is parsed by envconfig itself, which ends at the first value that it cannot convert: it only collects
// strings, and validate says what they mean. No variable holds a secret (a variable is seen in the pod's spec), so an error may
// repeat its value. A variable that is set to nothing counts as not set.
package config

import (
	"cmp"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"
	"go.uber.org/zap/zapcore"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

const (
	// DefaultConnectionLimit is how many connections a tenant may have open at once: a loaded control plane gains nothing by
	// more than 20 (docs/benchmarks.md); twice over, because during a rolling update or a rotation two run side by side;
	// and some for init, a backup and a person who looks.
	DefaultConnectionLimit = 50
	minConnectionLimit     = 5     // kine, the next pod's kine beside it, and one of ours
	maxConnectionLimit     = 10000 // more than a server can be given; catches a figure with a digit too many

	minTimeout = 5 * time.Second // one connection with TLS over a slow network
	maxTimeout = time.Hour       // an operator who waits longer should see a pod that failed

	// namespaceFile is where the kubelet writes the namespace of the pod's ServiceAccount.
	namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
)

// The log formats.
const (
	JSON    = "json"
	Console = "console"
)

// The values of DBCONNECTOR_ALLOW_NEW.
const (
	AllowNewYes = "true"
	AllowNewNo  = "false"
)

// The modes of adoption.
const (
	AdoptNone    = "none"
	AdoptRollout = "rollout"
	AdoptSocket  = "socket"
)

// SocketUnix is the default of DBCONNECTOR_SOCKET.
const SocketUnix = "unix"

// Common is what every program of this project is told.
type Common struct {
	// Connector is the name of the connector Secret. No default: where it is not set, the vCluster's own config names it, as on
	// vCluster Platform.
	Connector string `envconfig:"DBCONNECTOR_CONNECTOR"`
	// ConnectorNamespace is the connector Secret's namespace: that of vCluster Platform, so that a connector made there serves
	// as it is.
	ConnectorNamespace string `envconfig:"DBCONNECTOR_CONNECTOR_NAMESPACE" default:"vcluster-platform"`
	// ConnectorDir is a directory with the connector's keys as files, in place of the Secret: it needs no API access. No
	// default, for it is the exception.
	ConnectorDir string `envconfig:"DBCONNECTOR_CONNECTOR_DIR"`

	// VCluster is the name of the vCluster, which is its Helm release. Required: nothing else tells it surely, and a guess
	// could give one tenant another's database.
	VCluster string `envconfig:"DBCONNECTOR_VCLUSTER_NAME"`
	// Namespace is the vCluster's namespace on the host cluster. Default: that of the pod's ServiceAccount.
	Namespace string `envconfig:"DBCONNECTOR_NAMESPACE"`
	// TenantUID overrides what the tenant's names are derived from. Default: the namespace's UID and the vCluster's name, so
	// that a namespace which was deleted and made again is a new tenant. Set it to keep a database through a restore or a
	// move to another cluster.
	TenantUID string `envconfig:"DBCONNECTOR_TENANT_UID"`

	// RecordSecret is the name of the Secret that holds the tenant's record. Default: dbconnector-<vCluster name>, unique in a
	// namespace because release names are.
	RecordSecret string `envconfig:"DBCONNECTOR_RECORD_SECRET"`
	// StateDir is a directory for the record, in place of the Secret. No default, for it is the exception.
	StateDir string `envconfig:"DBCONNECTOR_STATE_DIR"`

	// OutputDir is where the hand-over is written. Default: outside of anything an image brings with it.
	OutputDir string `envconfig:"DBCONNECTOR_OUTPUT_DIR" default:"/var/run/dbconnector"`
	// FileMode is the mode of the files of the hand-over. Default 0640: the control plane may run as another user who shares
	// the volume's group (fsGroup), and no other user is to read a password.
	FileMode fs.FileMode `ignored:"true"`
	// VClusterConfig is the vCluster's config. Default: where its chart mounts it.
	VClusterConfig string `envconfig:"DBCONNECTOR_VCLUSTER_CONFIG" default:"/var/lib/vcluster/config.yaml"`
	// VClusterConfigSet says that VClusterConfig is not the default: a default that is not there means a control plane without
	// such a file, a named file that is not there is a mistake.
	VClusterConfigSet bool `ignored:"true"`

	// Adopt is how the control plane gets to use a new password: none (its next restart), rollout (its pods are
	// restarted one after the other) or socket (it has none: the sidecar logs in for it). Default none: what restarts a control
	// plane, or stands between it and its database, is switched on by hand.
	Adopt string `envconfig:"DBCONNECTOR_ADOPT" default:"none"`
	// Socket is where the sidecar listens with AdoptSocket: SocketUnix is a unix socket in OutputDir, which only containers that mount
	// it reach; else it is an address on the pod's loopback interface, for a control plane that takes no unix socket.
	Socket string `envconfig:"DBCONNECTOR_SOCKET" default:"unix"`

	// ConnectionLimit is how many connections the tenant may have open on the server at once.
	ConnectionLimit int `ignored:"true"`

	// LogLevel is the least level that is logged. Default info: a run that goes well says what it did in a few lines.
	LogLevel zapcore.Level `ignored:"true"`
	// LogFormat is json, for machines, or console, for people. Default json: in a pod the reader is a machine.
	LogFormat string `envconfig:"DBCONNECTOR_LOG_FORMAT" default:"json"`

	// PodName and PodUID say which pod Events are about (downward API). No default: without them there are no Events.
	PodName string `envconfig:"DBCONNECTOR_POD_NAME"`
	PodUID  string `envconfig:"DBCONNECTOR_POD_UID"`
}

// Init is what dbconnector-init is told.
type Init struct {
	Common
	// AllowNew says whether a control plane without a record may begin with a new, empty database. Default: yes, unless something
	// speaks for a wrong name. AllowNewYes: even then. AllowNewNo: never.
	AllowNew string `envconfig:"DBCONNECTOR_ALLOW_NEW"`
	// Timeout bounds a whole run. Default 2m: a first provisioning takes seconds; the rest is patience with a server that is
	// just starting. After it the kubelet tries again, with its own backoff.
	Timeout time.Duration `ignored:"true"`
}

// texts are the variables that are more than a string, as they were written.
type texts struct {
	FileMode        string `envconfig:"DBCONNECTOR_FILE_MODE" default:"0640"`
	ConnectionLimit string `envconfig:"DBCONNECTOR_CONNECTION_LIMIT"`
	LogLevel        string `envconfig:"DBCONNECTOR_LOG_LEVEL" default:"info"`
}

type initTexts struct {
	texts
	Timeout string `envconfig:"DBCONNECTOR_TIMEOUT" default:"2m"`
}

// Load reads the environment of dbconnector-init. Its error is of class fault.Refused and lists every refusal; of the
// settings that come with it only those of the log are good, and these for the error's own line. The warnings are about
// variables that have no effect.
func Load() (c Init, warnings []string, err error) { return load(namespaceFile) }

func load(namespaceFile string) (Init, []string, error) {
	var c Init
	var t initTexts
	v := validator{}
	if err := v.read(&c, &t.texts, &t); err != nil {
		return Init{}, nil, err
	}
	v.common(&c.Common, t.texts, namespaceFile, c.UsesKubernetes())
	if !c.UsesKubernetes() && c.TenantUID == "" {
		v.missing("DBCONNECTOR_TENANT_UID", "without Kubernetes (DBCONNECTOR_CONNECTOR_DIR and DBCONNECTOR_STATE_DIR are set) nothing else tells tenants apart")
	}
	if c.AllowNew != "" && c.AllowNew != AllowNewYes && c.AllowNew != AllowNewNo {
		v.refuse("DBCONNECTOR_ALLOW_NEW", c.AllowNew, "must be true or false")
	}
	c.Timeout = v.duration("DBCONNECTOR_TIMEOUT", t.Timeout, minTimeout, maxTimeout, "from 5s to 1h, such as 90s or 2m")
	if err := v.verdict(); err != nil {
		return Init{Common: c.logging()}, nil, err
	}
	return c, v.warnings, nil
}

// Logging is how to log; also where other settings were refused.
func (c Common) Logging() (level zapcore.Level, format string) { return c.LogLevel, c.LogFormat }

// logging is all that is good of settings that were refused.
func (c Common) logging() Common { return Common{LogLevel: c.LogLevel, LogFormat: c.LogFormat} }

// read collects the variables of some structs, as they were written.
func (v *validator) read(specs ...any) error {
	for _, spec := range specs {
		if err := envconfig.Process("", spec); err != nil { // cannot happen: all are strings
			return fault.New(fault.Refused, "reading the environment: %w", err)
		}
		fillDefaults(reflect.ValueOf(spec).Elem())
	}
	return nil
}

// verdict is the one error of all refusals.
func (v *validator) verdict() error {
	v.unknown()
	if len(v.refusals) > 0 {
		return fault.New(fault.Refused, "environment: %s", strings.Join(v.refusals, "; "))
	}
	return nil
}

// fillDefaults gives a variable that is set to nothing its default, which envconfig does only for one that is not set.
func fillDefaults(v reflect.Value) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		switch value, def := v.Field(i), field.Tag.Get("default"); {
		case field.Anonymous:
			fillDefaults(value)
		case def != "" && value.String() == "":
			value.SetString(def)
		}
	}
}

type validator struct {
	refusals, warnings []string
}

// refuse notes a refusal of a variable that has a value.
func (v *validator) refuse(name, value, rule string) {
	v.refusals = append(v.refusals, fmt.Sprintf("%s=%s: %s", name, fault.Show(value), rule))
}

// missing notes that a variable has no value.
func (v *validator) missing(name, rule string) {
	v.refusals = append(v.refusals, fmt.Sprintf("%s is not set: %s", name, rule))
}

func (v *validator) warn(name, what string) { v.warnings = append(v.warnings, name+" "+what) }

// The forms of names. Kubernetes: "Object Names and IDs".
var (
	dnsLabel     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	dnsSubdomain = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
	uidForm      = regexp.MustCompile(`^[A-Za-z0-9-]{1,128}$`)
	modeForm     = regexp.MustCompile(`^(0o?)?[0-7]{3}$`)
	limitForm    = regexp.MustCompile(`^[1-9][0-9]*$`)
)

const (
	maxSubdomain  = 253
	subdomainRule = "must be a Kubernetes name: lower-case letters, digits, - and ., at most 253 of them, a letter or digit first and last"
	labelRule     = "must be the name of a namespace: lower-case letters, digits and -, at most 63 of them, a letter or digit first and last"
)

// subdomain, label and path check a variable that is set; one that is not is the caller's matter.
func (v *validator) subdomain(name, value string) {
	if value != "" && (len(value) > maxSubdomain || !dnsSubdomain.MatchString(value)) {
		v.refuse(name, value, subdomainRule)
	}
}

func (v *validator) label(name, value string) {
	if value != "" && !dnsLabel.MatchString(value) {
		v.refuse(name, value, labelRule)
	}
}

func (v *validator) path(name, value string) {
	switch {
	case value == "":
	case !filepath.IsAbs(value):
		v.refuse(name, value, "must be an absolute path")
	case filepath.Clean(value) == "/":
		v.refuse(name, value, "must not be the root directory")
	}
}

// common checks and completes what every program is told.
func (v *validator) common(c *Common, t texts, namespaceFile string, kubernetes bool) {
	v.subdomain("DBCONNECTOR_CONNECTOR", c.Connector)
	v.label("DBCONNECTOR_CONNECTOR_NAMESPACE", c.ConnectorNamespace)
	v.path("DBCONNECTOR_CONNECTOR_DIR", c.ConnectorDir)
	v.subdomain("DBCONNECTOR_RECORD_SECRET", c.RecordSecret)
	v.path("DBCONNECTOR_STATE_DIR", c.StateDir)
	v.path("DBCONNECTOR_OUTPUT_DIR", c.OutputDir)
	v.path("DBCONNECTOR_VCLUSTER_CONFIG", c.VClusterConfig)
	v.subdomain("DBCONNECTOR_POD_NAME", c.PodName)
	c.VClusterConfigSet = os.Getenv("DBCONNECTOR_VCLUSTER_CONFIG") != ""

	if c.ConnectorDir != "" && c.Connector != "" {
		v.refuse("DBCONNECTOR_CONNECTOR_DIR", c.ConnectorDir, "must not be set together with DBCONNECTOR_CONNECTOR: which of the two is meant?")
	}
	v.tenant(c, namespaceFile, kubernetes)
	if c.StateDir != "" && c.RecordSecret != "" {
		v.warn("DBCONNECTOR_RECORD_SECRET", "has no effect: DBCONNECTOR_STATE_DIR is set")
	}
	if c.StateDir != "" && filepath.Clean(c.StateDir) == filepath.Clean(c.OutputDir) {
		v.refuse("DBCONNECTOR_STATE_DIR", c.StateDir, "must not be DBCONNECTOR_OUTPUT_DIR: the control plane, which reads that, has no business with the record")
	}
	switch {
	case c.PodName != "" && c.PodUID == "":
		v.missing("DBCONNECTOR_POD_UID", "must be set together with DBCONNECTOR_POD_NAME")
	case c.PodName == "" && c.PodUID != "":
		v.missing("DBCONNECTOR_POD_NAME", "must be set together with DBCONNECTOR_POD_UID")
	}
	if c.PodUID != "" && !uidForm.MatchString(c.PodUID) {
		v.refuse("DBCONNECTOR_POD_UID", c.PodUID, "must be a pod's UID: letters, digits and -")
	}
	switch {
	case c.Adopt != AdoptNone && c.Adopt != AdoptRollout && c.Adopt != AdoptSocket:
		v.refuse("DBCONNECTOR_ADOPT", c.Adopt, "must be none, rollout or socket")
	case c.Adopt == AdoptRollout && c.StateDir != "":
		v.refuse("DBCONNECTOR_ADOPT", c.Adopt, "must be none or socket where DBCONNECTOR_STATE_DIR is set: a rollout needs Kubernetes")
	}
	v.socket(*c)
	if c.LogFormat != JSON && c.LogFormat != Console {
		v.refuse("DBCONNECTOR_LOG_FORMAT", c.LogFormat, "must be json or console")
		c.LogFormat = JSON
	}
	v.numbers(c, t)
}

// socket checks where the sidecar is to listen.
func (v *validator) socket(c Common) {
	if c.Socket == SocketUnix {
		// sun_path of unix(7) has 108 bytes, and ends with a zero byte; the file is made under another name and renamed.
		const most = 107 - len("/.s.PGSQL.5432.tmp")
		if c.Adopt == AdoptSocket && len(c.OutputDir) > most {
			v.refuse("DBCONNECTOR_OUTPUT_DIR", c.OutputDir, fmt.Sprintf("must have at most %d bytes: there is to be a socket in it", most))
		}
		return
	}
	host, port, err := net.SplitHostPort(c.Socket)
	ip := net.ParseIP(host)
	if number, wrong := strconv.ParseUint(port, 10, 16); err != nil || wrong != nil || number == 0 || ip == nil || !ip.IsLoopback() || ip.To4() == nil {
		v.refuse("DBCONNECTOR_SOCKET", c.Socket, "must be unix, or an address on the pod's loopback interface, such as 127.0.0.1:5432")
		return
	}
	if c.Adopt != AdoptSocket {
		v.warn("DBCONNECTOR_SOCKET", "has no effect: DBCONNECTOR_ADOPT is not socket")
	}
}

// restoreRule is about the pods of `vcluster restore` as well, where nothing else shows what they are: they copy the control
// plane's init containers and not its label, from which the shipped values take the name. Nor do they read the hand-over, so
// that what they restored would not be in the tenant's database.
const restoreRule = "must be the name of the vCluster (its Helm release); the shipped values take it from the pod's label release. " +
	"If this pod has app=vcluster-snapshot: `vcluster restore` is not supported outside of socket mode, for it would not reach the tenant's database; " +
	"restore that with the server's own means"

// tenant checks and completes what says which tenant this is.
func (v *validator) tenant(c *Common, namespaceFile string, kubernetes bool) {
	v.subdomain("DBCONNECTOR_VCLUSTER_NAME", c.VCluster)
	v.label("DBCONNECTOR_NAMESPACE", c.Namespace)
	switch {
	case c.VCluster == "":
		v.missing("DBCONNECTOR_VCLUSTER_NAME", restoreRule)
	case c.RecordSecret == "" && c.StateDir == "":
		if c.RecordSecret = "dbconnector-" + c.VCluster; len(c.RecordSecret) > maxSubdomain && len(c.VCluster) <= maxSubdomain {
			v.refuse("DBCONNECTOR_VCLUSTER_NAME", c.VCluster, "is too long for the record's name made of it (dbconnector-…, at most 253 characters): "+
				"set DBCONNECTOR_RECORD_SECRET")
		}
	}
	if c.TenantUID != "" {
		if err := tenant.CheckUID(c.TenantUID); err != nil {
			v.refusals = append(v.refusals, "DBCONNECTOR_TENANT_UID: "+err.Error())
		}
	}
	if kubernetes && c.Namespace == "" {
		data, err := os.ReadFile(namespaceFile) //nolint:gosec // a constant but in tests
		c.Namespace = strings.TrimSpace(string(data))
		switch {
		case err != nil:
			v.missing("DBCONNECTOR_NAMESPACE", "outside of a pod with a ServiceAccount it must be the vCluster's namespace ("+err.Error()+")")
		case !dnsLabel.MatchString(c.Namespace):
			v.missing("DBCONNECTOR_NAMESPACE", "and "+namespaceFile+" does not hold the name of a namespace")
		}
	}
}

// numbers parses what is more than a string.
func (v *validator) numbers(c *Common, t texts) {
	const modeRule = "must be an octal file mode such as 0640: read and write for the owner, nothing for others, execute for none"
	mode, err := strconv.ParseUint(strings.TrimPrefix(t.FileMode, "0o"), 8, 32)
	if c.FileMode = fs.FileMode(mode); err != nil || !modeForm.MatchString(t.FileMode) || mode&0o117 != 0 || mode&0o600 != 0o600 {
		v.refuse("DBCONNECTOR_FILE_MODE", t.FileMode, modeRule)
	}
	t.ConnectionLimit = cmp.Or(t.ConnectionLimit, strconv.Itoa(DefaultConnectionLimit))
	c.ConnectionLimit, err = strconv.Atoi(t.ConnectionLimit)
	if err != nil || !limitForm.MatchString(t.ConnectionLimit) || c.ConnectionLimit < minConnectionLimit || c.ConnectionLimit > maxConnectionLimit {
		v.refuse("DBCONNECTOR_CONNECTION_LIMIT", t.ConnectionLimit, fmt.Sprintf("must be a number from %d to %d", minConnectionLimit, maxConnectionLimit))
	}
	if c.LogLevel, err = zapcore.ParseLevel(t.LogLevel); err != nil || c.LogLevel > zapcore.ErrorLevel {
		v.refuse("DBCONNECTOR_LOG_LEVEL", t.LogLevel, "must be debug, info, warn or error")
		c.LogLevel = zapcore.InfoLevel
	}
}

// duration parses a duration within bounds; 0 where it is refused.
func (v *validator) duration(name, value string, least, most time.Duration, rule string) time.Duration {
	d, err := time.ParseDuration(value)
	if err != nil || d < least || d > most {
		v.refuse(name, value, "must be a duration "+rule)
		return 0
	}
	return d
}

const prefix = "DBCONNECTOR_"

// foreign matches names that are not ours though they begin with our prefix: what the kubelet sets for a Service called
// dbconnector or dbconnector-something (Kubernetes: "Accessing the Service", environment variables), and what our tests use.
var foreign = regexp.MustCompile(`^DBCONNECTOR_(TEST_.*|(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?))$`)

// unknown warns of variables that no program reads: a pod's environment is not made by one hand, and may be that of a later release.
// A name that is almost one of ours is a typing error, though, and a refusal: the setting that it was to be is not in force, and
// the log of a container that has ended is no place to find out.
func (v *validator) unknown() {
	var known, names []string
	for _, variable := range Variables() {
		known = append(known, variable.Name)
	}
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if len(name) <= longestName && !slices.Contains(known, name) && !foreign.MatchString(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		near := slices.IndexFunc(known, func(k string) bool { return distance(strings.ToUpper(name), k) <= typo })
		switch {
		case near >= 0:
			v.refusals = append(v.refusals, fmt.Sprintf("%s is not a variable of this program: %s is meant, or the name has to be another one",
				fault.Show(name), known[near]))
		case strings.HasPrefix(name, prefix):
			v.warn(fault.Show(name), "is not a variable of this program and is ignored")
		}
	}
}

const (
	// typo is how many letters a typing error changes. Two variables must differ by more, or an older release would refuse what
	// a later one reads.
	typo = 2
	// longestName bounds the work for what others put into an environment.
	longestName = 256
)

// distance is how many letters have to be inserted, removed, changed or swapped with their neighbour to make b of a ("optimal
// string alignment").
func distance(a, b string) int {
	if d := len(a) - len(b); d > typo || -d > typo {
		return typo + 1 // at least
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		last[j] = j
	}
	for i := range a {
		row[0] = i + 1
		for j := range b {
			change := 1
			if a[i] == b[j] {
				change = 0
			}
			row[j+1] = min(last[j]+change, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// Variable is a variable as the documentation lists it.
type Variable struct {
	Name string
	// Default is empty where there is none or where it depends on something else.
	Default string
}

// Variables lists the variables of all programs by name. They share a pod's environment, so a variable of one is no typing
// error to the other.
func Variables() []Variable {
	var list []Variable
	for _, t := range []reflect.Type{reflect.TypeFor[Init](), reflect.TypeFor[initTexts](), reflect.TypeFor[Rotate](), reflect.TypeFor[rotateTexts]()} {
		list = append(list, variables(t)...)
	}
	slices.SortFunc(list, func(a, b Variable) int { return cmp.Compare(a.Name, b.Name) })
	return slices.Compact(list)
}

func variables(t reflect.Type) []Variable {
	var list []Variable
	for i := range t.NumField() {
		field := t.Field(i)
		name, ok := field.Tag.Lookup("envconfig")
		switch {
		case field.Anonymous:
			list = append(list, variables(field.Type)...)
		case name == "DBCONNECTOR_CONNECTION_LIMIT": // a constant that others need, too, and not a tag
			list = append(list, Variable{name, strconv.Itoa(DefaultConnectionLimit)})
		case ok:
			list = append(list, Variable{name, field.Tag.Get("default")})
		}
	}
	return list
}

// UsesKubernetes tells whether anything has to be asked of the API server.
func (c Init) UsesKubernetes() bool { return c.ConnectorDir == "" || c.StateDir == "" }

// Effective is the configuration that is in force, by the variables' names, for the one log line at start. It holds no
// secret, because no variable does; a tenant UID is not one, but who has it can do more than who has not, so the names that
// follow from it stand in its place (S15).
func (c Init) Effective() map[string]string {
	m := c.effective()
	m["DBCONNECTOR_TIMEOUT"] = c.Timeout.String()
	if c.AllowNew != "" {
		m["DBCONNECTOR_ALLOW_NEW"] = c.AllowNew
	}
	return m
}

func (c Common) effective() map[string]string {
	m := map[string]string{
		"DBCONNECTOR_FILE_MODE":        fmt.Sprintf("%04o", c.FileMode),
		"DBCONNECTOR_CONNECTION_LIMIT": strconv.Itoa(c.ConnectionLimit),
		"DBCONNECTOR_LOG_LEVEL":        c.LogLevel.String(),
	}
	common := reflect.ValueOf(c)
	for i := range common.NumField() {
		if name, ok := common.Type().Field(i).Tag.Lookup("envconfig"); ok && common.Field(i).String() != "" {
			m[name] = common.Field(i).String()
		}
	}
	if c.TenantUID != "" {
		m["DBCONNECTOR_TENANT_UID"] = "that of " + tenant.NamesOf(c.TenantUID).Database
	}
	return m
}
