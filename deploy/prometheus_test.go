package deploy

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// need skips a test without a tool, and fails it where CI promised the tool.
func need(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			t.Fatalf("needs %s", tool)
		}
		t.Skipf("needs %s", tool)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestPrometheusRules(t *testing.T) {
	need(t, "promtool")
	run(t, "promtool", "check", "config", "prometheus/prometheus.yml")
	run(t, "promtool", "check", "rules", "prometheus/rules.yml")
	run(t, "promtool", "test", "rules", "prometheus/rules_test.yml")
}

// described are the names of all metrics, as the sources of the program describe them.
func described(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("../cmd/exporter/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	names := map[string]bool{"up": true, "process_cpu_seconds_total": true, "process_resident_memory_bytes": true}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`describe\(prometheus\.(\w+), "(\w+)"`).FindAllStringSubmatch(string(b), -1) {
			names["sockflow_"+m[2]] = true
			if m[1] == "UntypedValue" { // a summary
				names["sockflow_"+m[2]+"_sum"], names["sockflow_"+m[2]+"_count"] = true, true
			}
		}
	}
	return names
}

// TestMetricNames: rules and dashboard ask for nothing that is not there.
func TestMetricNames(t *testing.T) {
	names := described(t)
	if len(names) < 20 {
		t.Fatalf("%d names", len(names))
	}
	dashboard, err := os.ReadFile("grafana/sockflow.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Name, Query string }
		}
	}
	if err := json.Unmarshal(dashboard, &d); err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile("prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	exprs := map[string]string{}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if len(p.Targets) == 0 || ids[p.ID] {
			t.Errorf("panel %d %q has no expression, or an id twice", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, e := range p.Targets {
			exprs["panel "+p.Title+": "+e.Expr] = e.Expr
		}
	}
	for _, v := range d.Templating.List {
		if v.Query != "prometheus" {
			exprs["variable "+v.Name] = v.Query
		}
	}
	for _, m := range regexp.MustCompile(`expr: (.*)`).FindAllStringSubmatch(string(rules), -1) {
		exprs["rule "+m[1]] = m[1]
	}
	if len(exprs) < 20 {
		t.Errorf("%d expressions", len(exprs))
	}
	word := regexp.MustCompile(`\b(sockflow_\w+|process_\w+)\b`)
	for where, e := range exprs {
		found := word.FindAllString(e, -1)
		if len(found) == 0 && !strings.Contains(e, "up{") {
			t.Errorf("%s asks for no metric", where)
		}
		for _, name := range found {
			if !names[name] {
				t.Errorf("%s: there is no %s", where, name)
			}
		}
	}
}
