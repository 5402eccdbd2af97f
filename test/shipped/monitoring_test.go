// SPDX-License-Identifier: Apache-2.0

package shipped_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"dbconnector/pkg/health"
	"dbconnector/pkg/proxy"
	"dbconnector/pkg/rotation"
	"dbconnector/test/bed"
	"dbconnector/test/shipped"
)

// operator is the release of the Prometheus Operator whose resource definitions the manifests are held to. Its module is
// only downloaded.
const operator = "github.com/prometheus-operator/prometheus-operator@v0.85.0"

// rule is an alert rule, as Prometheus reads it.
type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type rules struct {
	Groups []struct {
		Name  string `json:"name"`
		Rules []rule `json:"rules"`
	} `json:"groups"`
}

// dashboard are the parts of Grafana's format that we use, and that it cannot do without.
type dashboard struct {
	UID           string `json:"uid"`
	Title         string `json:"title"`
	SchemaVersion int    `json:"schemaVersion"`
	Templating    struct {
		List []struct {
			Name       string      `json:"name"`
			Type       string      `json:"type"`
			Query      any         `json:"query"`
			Definition string      `json:"definition"`
			Datasource *datasource `json:"datasource"`
		} `json:"list"`
	} `json:"templating"`
	Panels []struct {
		ID          int         `json:"id"`
		Type        string      `json:"type"`
		Title       string      `json:"title"`
		Description string      `json:"description"`
		Datasource  *datasource `json:"datasource"`
		GridPos     struct{ X, Y, W, H int }
		Targets     []struct {
			RefID      string      `json:"refId"`
			Expr       string      `json:"expr"`
			Datasource *datasource `json:"datasource"`
		} `json:"targets"`
	} `json:"panels"`
}

type datasource struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

// monitoring is what examples/monitoring renders.
type monitoring struct {
	monitor, rule object // as rendered
	rules         rules
	dashboard     dashboard
}

func renderMonitoring(t *testing.T) monitoring {
	t.Helper()
	out, err := shipped.Build(t.Context(), kustomize(t, "examples", "monitoring"))
	require.NoError(t, err)
	var m monitoring
	var kinds []string
	for doc := range strings.SplitSeq(string(out), "\n---\n") {
		var head struct {
			metav1.TypeMeta   `json:",inline"`
			metav1.ObjectMeta `json:"metadata"`
		}
		require.NoError(t, yaml.Unmarshal([]byte(doc), &head))
		kinds = append(kinds, head.Kind)
		if head.Namespace != "monitoring" || head.Labels["release"] == "" {
			t.Errorf("%s %s/%s, labels %v: want the example's namespace and labels", head.Kind, head.Namespace, head.Name, head.Labels)
		}
		switch head.Kind {
		case "PodMonitor":
			decode(t, doc, &m.monitor)
		case "PrometheusRule":
			decode(t, doc, &m.rule)
			spec, err := yaml.Marshal(m.rule["spec"])
			require.NoError(t, err)
			decode(t, string(spec), &m.rules)
		case "ConfigMap":
			var config corev1.ConfigMap
			decode(t, doc, &config)
			if config.Name != "dbconnector-dashboard" || config.Labels["grafana_dashboard"] != "1" {
				t.Errorf("ConfigMap %s with labels %v: Grafana's sidecar would not find it", config.Name, config.Labels)
			}
			require.NoError(t, json.Unmarshal([]byte(config.Data["dashboard.json"]), &m.dashboard))
		}
	}
	slices.Sort(kinds)
	if want := []string{"ConfigMap", "PodMonitor", "PrometheusRule"}; !slices.Equal(kinds, want) {
		t.Fatalf("rendered %q, want %q", kinds, want)
	}
	return m
}

// promtool runs Prometheus' own tool in dir.
func promtool(t *testing.T, dir, stdin string, args ...string) {
	t.Helper()
	cmd, err := bed.Client(t.Context(), "promtool", args...)
	require.NoError(t, err)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func write(t *testing.T, path string, content any) {
	t.Helper()
	data, ok := content.([]byte)
	if !ok {
		var err error
		data, err = yaml.Marshal(content)
		require.NoError(t, err)
	}
	require.NoError(t, os.WriteFile(path, data, 0o600))
}

// reasons are the values of the label reason.
func reasons(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ Reason = "(\w+)"$`).FindAllStringSubmatch(read(t, "pkg", "rotation", "next.go"), -1) {
		list = append(list, m[1])
	}
	if !slices.Contains(list, string(rotation.OtherInUse)) {
		t.Fatalf("the reasons in pkg/rotation are %q: this test looks in the wrong way", list)
	}
	return list
}

// exposition is the answer of /metrics when everything has happened once.
func exposition(t *testing.T) string {
	t.Helper()
	m := health.New()
	for _, reason := range reasons(t) {
		m.Postponements.WithLabelValues(reason).Inc()
		m.Postponed.WithLabelValues(reason).Set(1)
	}
	m.Failures.WithLabelValues("apply").Inc()
	m.LockedOut.WithLabelValues("active").Set(1)
	m.LockedOut.WithLabelValues("inactive").Set(1)
	m.AdoptInfo.WithLabelValues("none").Set(1)
	socket := m.Socket()
	for _, result := range proxy.Results {
		socket.Connects.WithLabelValues(string(result)).Inc()
	}
	socket.ConnectSeconds.Observe(.01)
	m.Watch(health.Source{
		Sessions: func() map[int64]health.Group { return map[int64]health.Group{1: {Sessions: 1, Oldest: time.Minute}} },
		Bytes:    func() (sent, received int64) { return 1, 1 },
	})
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if answer.Code != http.StatusOK {
		t.Fatalf("/metrics answers %d", answer.Code)
	}
	return answer.Body.String()
}

// served are the names of the metrics that are served, with their types.
func served(t *testing.T) map[string]string {
	t.Helper()
	list := map[string]string{"up": "gauge"} // Prometheus' own, of every target
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(exposition(t), -1) {
		if m[2] == "histogram" { // which is counters, by their limits
			m[1], m[2] = m[1]+"_bucket", "counter"
		}
		list[m[1]] = m[2]
	}
	return list
}

// checkNames: the sidecar serves the metrics that an expression asks for, and the reasons that it tells apart exist.
func checkNames(t *testing.T, where, expr string, served map[string]string) {
	t.Helper()
	bare := regexp.MustCompile(`"[^"]*"|\$\w+`).ReplaceAllString(expr, "")
	found := 0
	for _, name := range regexp.MustCompile(`\b(?:dbconnector|process|go)_\w+|\bup\b`).FindAllString(bare, -1) {
		found++
		if served[name] == "" || strings.HasPrefix(name, "go_") { // which the PodMonitor drops
			t.Errorf("%s asks for %s, which is not served", where, name)
		}
	}
	if found == 0 {
		t.Errorf("%s asks for no metric of ours: %s", where, expr)
	}
	for _, m := range regexp.MustCompile(`\breason[!=]~?"([^"]+)"`).FindAllStringSubmatch(expr, -1) {
		for reason := range strings.SplitSeq(m[1], "|") {
			if !slices.Contains(reasons(t), reason) {
				t.Errorf("%s knows the reason %s, and pkg/rotation does not", where, reason)
			}
		}
	}
}

// TestAlerts: Prometheus takes the rules, and each of them fires when it should, and not before; none for a fleet that is as it
// should be (F34).
func TestAlerts(t *testing.T) {
	t.Parallel()
	m := renderMonitoring(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "rules.yaml"), m.rules)
	promtool(t, dir, "", "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml")

	names, alerts := served(t), map[string]bool{}
	operations := read(t, "docs", "operate.md")
	for _, group := range m.rules.Groups {
		for i, r := range group.Rules {
			alerts[r.Alert] = true
			checkNames(t, r.Alert, r.Expr, names)
			if r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s: labels %v, annotations %v", r.Alert, r.Labels, r.Annotations)
			}
			file, heading, _ := strings.Cut(r.Annotations["runbook"], "#")
			heading = "\n### " + strings.ToUpper(heading[:1]) + strings.ReplaceAll(heading[1:], "-", " ") + "\n"
			if file != "docs/operate.md" || !strings.Contains(operations, heading) {
				t.Errorf("%s: runbook %q leads nowhere", r.Alert, r.Annotations["runbook"])
			}
			if !strings.Contains(operations, "`"+r.Alert+"`") {
				t.Errorf("docs/operate.md does not name %s", r.Alert)
			}
			group.Rules[i].Annotations = nil // promtool would compare every word
		}
	}

	tests := read(t, "test", "shipped", "testdata", "alerts.yaml")
	var cases struct {
		Tests []struct {
			Alerts []struct {
				Name string `json:"alertname"`
				Want []any  `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		} `json:"tests"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(tests), &cases))
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, c := range cases.Tests {
		for _, a := range c.Alerts {
			if len(a.Want) > 0 {
				fires[a.Name] = true
			} else {
				silent[a.Name] = true
			}
		}
	}
	for _, shown := range []map[string]bool{fires, silent} {
		if g, w := slices.Sorted(maps.Keys(shown)), slices.Sorted(maps.Keys(alerts)); !slices.Equal(g, w) {
			t.Errorf("testdata/alerts.yaml shows %q, and there are %q: each has to be shown firing, and silent", g, w)
		}
	}
	write(t, filepath.Join(dir, "rules.yaml"), m.rules)
	write(t, filepath.Join(dir, "alerts.yaml"), []byte(tests))
	promtool(t, dir, "", "test", "rules", "alerts.yaml")
}

// TestDashboard: Grafana can show it, and each of its questions has an answer.
func TestDashboard(t *testing.T) {
	t.Parallel()
	d := renderMonitoring(t).dashboard
	if d.UID == "" || d.Title == "" || d.SchemaVersion == 0 {
		t.Errorf("uid %q, title %q, schemaVersion %d", d.UID, d.Title, d.SchemaVersion)
	}
	ours := datasource{Type: "prometheus", UID: "${datasource}"}
	names := served(t)
	variables := map[string]string{"__rate_interval": "5m"}
	for i, v := range d.Templating.List {
		switch {
		case i == 0 && v.Name == "datasource" && v.Type == "datasource" && v.Query == "prometheus":
		case v.Type == "query" && v.Datasource != nil && *v.Datasource == ours:
			checkNames(t, "variable "+v.Name, v.Definition, names)
			variables[v.Name] = ".*"
		default:
			t.Errorf("variable %d is %+v: want the data source first, and then questions to it", i, v)
		}
	}

	ids, cells, asked := map[int]bool{}, map[[2]int]string{}, map[string]bool{}
	var recorded []object // each question as a recording rule, so that Prometheus answers it
	var expected []object
	for _, p := range d.Panels {
		if p.ID <= 0 || ids[p.ID] || p.Title == "" {
			t.Errorf("panel %q has id %d: want one of its own", p.Title, p.ID)
		}
		ids[p.ID] = true
		g := p.GridPos
		if g.X < 0 || g.W <= 0 || g.H <= 0 || g.X+g.W > 24 {
			t.Errorf("panel %q is at %+v, and there are 24 columns", p.Title, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" {
					t.Fatalf("panels %q and %q overlap", other, p.Title)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Description == "" || p.Datasource == nil || *p.Datasource != ours || len(p.Targets) == 0 {
			t.Errorf("panel %q: description %q, data source %+v, %d questions", p.Title, p.Description, p.Datasource, len(p.Targets))
		}
		refs := map[string]bool{}
		for _, target := range p.Targets {
			if target.RefID == "" || refs[target.RefID] || target.Datasource == nil || *target.Datasource != ours {
				t.Errorf("panel %q: question %+v", p.Title, target)
			}
			refs[target.RefID] = true
			checkNames(t, "panel "+p.Title, target.Expr, names)
			for name := range names {
				asked[name] = asked[name] || regexp.MustCompile(`\b`+name+`\b`).MatchString(target.Expr)
			}
			expr := regexp.MustCompile(`\$(\w+)`).ReplaceAllStringFunc(target.Expr, func(v string) string {
				value, ok := variables[v[1:]]
				if !ok {
					t.Errorf("panel %q uses %s, which is no variable", p.Title, v)
				}
				return value
			})
			recorded = append(recorded, object{"record": fmt.Sprintf("panel_%d:%s", p.ID, target.RefID), "expr": expr})
			expected = append(expected, object{
				"expr": "count(" + strings.TrimSuffix(expr, " or vector(0)") + ") > bool 0", "eval_time": "2h", "exp_samples": []object{{"labels": "{}", "value": 1}},
			})
		}
	}
	for name := range names {
		if strings.HasPrefix(name, "dbconnector_") && !asked[name] {
			t.Errorf("no panel shows %s", name)
		}
	}

	// Two hours of a control plane that has every trouble at once.
	var series []object
	types := regexp.MustCompile(`(?m)^((?:dbconnector|process)_\w+)(\{[^}]*\})? `)
	for _, m := range types.FindAllStringSubmatch(exposition(t), -1) {
		labels := `namespace="n",vcluster="v",pod="v-1",container="dbconnector-rotate"`
		if m[2] != "" {
			labels += "," + strings.Trim(m[2], "{}")
		}
		values := "1x120"
		if names[m[1]] == "counter" {
			values = "0+1x120"
		}
		series = append(series, object{"series": m[1] + "{" + labels + "}", "values": values})
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "rules.yaml"), object{"groups": []object{{"name": "panels", "rules": recorded}}})
	promtool(t, dir, "", "check", "rules", "--lint=none", "rules.yaml")
	write(t, filepath.Join(dir, "test.yaml"), object{
		"evaluation_interval": "1m",
		"tests":               []object{{"interval": "1m", "input_series": series, "promql_expr_test": expected}},
	})
	promtool(t, dir, "", "test", "rules", "test.yaml")
}

// TestMetricsAreWellFormed: names, types and help as Prometheus wants them.
func TestMetricsAreWellFormed(t *testing.T) {
	t.Parallel()
	var ours strings.Builder // the Go runtime's are not of our making
	for line := range strings.Lines(exposition(t)) {
		if strings.Contains(line, "dbconnector_") {
			ours.WriteString(line)
		}
	}
	if ours.Len() == 0 {
		t.Fatal("no metric of ours")
	}
	promtool(t, t.TempDir(), ours.String(), "check", "metrics")
}

// monitored makes the PodMonitor and the PrometheusRule on an API server that knows the operator's definitions of them.
func monitored(t *testing.T, api *bed.APIServer) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", operator)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("downloading %s: %v\n%s", operator, err, out)
	}
	var module struct{ Dir string }
	require.NoError(t, json.Unmarshal(out, &module))
	m := renderMonitoring(t)
	post(t, api, "/api/v1/namespaces", object{"metadata": object{"name": "monitoring"}}, nil)
	for plural, o := range map[string]object{"podmonitors": m.monitor, "prometheusrules": m.rule} {
		var definition object
		decode(t, read(t, module.Dir, "example", "prometheus-operator-crd", "monitoring.coreos.com_"+plural+".yaml"), &definition)
		post(t, api, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition, nil)
		path := "/apis/monitoring.coreos.com/v1/namespaces/monitoring/" + plural
		bed.Eventually(t, time.Minute, func(ctx context.Context) error { return api.Do(ctx, http.MethodGet, path, nil, nil) })
		post(t, api, path, o, nil)
	}

	// What it looks for is what the values make.
	var monitor struct {
		Spec struct {
			Selector  metav1.LabelSelector `json:"selector"`
			Endpoints []struct {
				Port string `json:"port"`
				Path string `json:"path"`
			} `json:"podMetricsEndpoints"`
		} `json:"spec"`
	}
	data, err := yaml.Marshal(m.monitor)
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(data, &monitor))
	for example := range examples {
		port := exampleValues(t, example, false).ControlPlane.StatefulSet.SidecarContainers[0].Ports[0].Name
		if e := monitor.Spec.Endpoints; len(e) != 1 || e[0].Port != port || e[0].Path != "/metrics" {
			t.Errorf("the PodMonitor looks at %+v, and the values of %s name the port %s", e, example, port)
		}
	}
	if app := monitor.Spec.Selector.MatchLabels; !maps.Equal(app, map[string]string{"app": "vcluster"}) {
		t.Errorf("the PodMonitor selects %v, and the chart labels its pods app: vcluster", app)
	}
}
