// Package house_test checks the layout that docs/architecture.md describes, by reading the sources.
package house_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sockflow/sockflow/"

// may lists what each folder may import of ours. The order is the way of the data.
var may = map[string][]string{
	"flowcache":          {},
	"bpf":                {"flowcache"},
	"sockdiag":           {"flowcache"},
	"replay":             {"flowcache"},
	"enrich":             {"flowcache", "internal/testkit"},
	"enrich/values":      {},
	"enrich/runtimes":    {"flowcache", "enrich", "enrich/values"},
	"enrich/kube":        {"flowcache", "enrich/values", "internal/smallfile", "internal/testkit"},
	"selection":          {"flowcache", "internal/smallfile"},
	"templates":          {"flowcache"},
	"ipfix":              {"flowcache", "selection", "templates", "internal/smallfile"},
	"collector":          {"flowcache", "templates", "ipfix"},
	"internal/smallfile": {},
	"internal/testkit":   {},
	"deploy":             {},
	"bench/churn":        {},
	"bench/empty":        {},
	"bench/load":         {},
	"bench/packets":      {},
	"bench/pingpong":     {},
	"bench/sink":         {},
	"bench/sockets":      {},
	"bench/walk":         {"flowcache", "bpf"},
	"cmd/exporter":       {"flowcache", "bpf", "sockdiag", "replay", "enrich", "enrich/runtimes", "enrich/kube", "selection", "templates", "ipfix", "collector", "internal/smallfile"},
}

// only says where a library may appear outside tests.
var only = map[string][]string{
	"github.com/cilium/ebpf":        {"bpf", "bench/empty"},
	"github.com/klauspost/compress": {"replay"},
	"github.com/mdlayher/netlink":   {"sockdiag", "enrich"},
	"github.com/spf13/":             {"cmd/exporter"},
	"github.com/coreos/go-systemd":  {"cmd/exporter"},
	"github.com/gdamore/tcell":      {"cmd/exporter"},
	"github.com/landlock-lsm/":      {"cmd/exporter"},
	"github.com/netsampler/goflow":  {},
	"github.com/pion/":              {"ipfix", "collector"},
	"github.com/containerd/":        {"enrich/runtimes"},
	"google.golang.org/grpc":        {"enrich/runtimes"},
	"k8s.io/cri-api":                {"enrich/runtimes"},
	"net":                           {"ipfix", "enrich/runtimes", "enrich/kube", "collector", "cmd/exporter", "bench/churn", "bench/load", "bench/pingpong", "bench/sink", "bench/sockets"},
	"log":                           {"cmd/exporter"},
	"log/slog":                      {"cmd/exporter"},
}

// check returns what is wrong with the sources below root.
func check(root string) ([]string, error) {
	var wrong []string
	documented := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); path != root && (strings.HasPrefix(n, ".") || n == "testdata" || n == "bin" || n == "dist") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		rel, _ := filepath.Rel(root, path)
		dir := filepath.ToSlash(filepath.Dir(rel))
		if dir == "." {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		bad := func(format string, args ...any) { wrong = append(wrong, rel+": "+fmt.Sprintf(format, args...)) }
		allowed, known := may[dir]
		if !known {
			bad("folder %s has no place in the import order", dir)
			return nil
		}
		test := strings.HasSuffix(path, "_test.go")
		if file.Doc != nil && !test {
			documented[dir] = true
		}
		for _, im := range file.Imports {
			name := strings.Trim(im.Path.Value, `"`)
			if ours, ok := strings.CutPrefix(name, module); ok {
				if ours != dir && !slices.Contains(allowed, ours) { // itself: an external test
					bad("imports %s", ours)
				}
				continue
			}
			if dir == "flowcache" && !test && strings.Contains(name, ".") {
				bad("imports %s, not of the standard library", name)
			}
			for lib, where := range only {
				match := name == lib || strings.Contains(lib, ".") && strings.HasPrefix(name, lib)
				if match && !test && !slices.Contains(where, dir) {
					bad("imports %s", name)
				}
			}
		}
		if test || file.Name.Name == "main" {
			return nil
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil {
					bad("has an init function")
				}
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "os" && n.Sel.Name == "Exit" {
					bad("calls os.Exit")
				}
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.Ident); ok && f.Name == "panic" {
					bad("calls panic")
				}
			}
			return true
		})
		return nil
	})
	for dir := range may {
		if st, statErr := os.Stat(filepath.Join(root, dir)); statErr == nil && st.IsDir() && !documented[dir] {
			wrong = append(wrong, dir+": no package comment")
		}
	}
	slices.Sort(wrong)
	return wrong, err
}

func TestImportOrder(t *testing.T) {
	wrong, err := check(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range wrong {
		t.Error(w)
	}
	for _, dir := range []string{"bpf", "sockdiag", "replay", "flowcache", "enrich", "templates", "ipfix", "collector", "cmd/exporter", "testdata", "deploy", "docs"} {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
}

// TestCheckFindsViolations makes sure that the check can fail.
func TestCheckFindsViolations(t *testing.T) {
	for name, src := range map[string]struct{ dir, body, want string }{
		"sibling":  {"bpf", `import _ "github.com/sockflow/sockflow/enrich"`, "imports enrich"},
		"up":       {"flowcache", `import _ "github.com/sockflow/sockflow/ipfix"`, "imports ipfix"},
		"library":  {"enrich", `import _ "github.com/cilium/ebpf/link"`, "imports github.com/cilium/ebpf/link"},
		"stdlib":   {"flowcache", `import _ "golang.org/x/sys/unix"`, "not of the standard library"},
		"sockets":  {"templates", `import _ "net"`, "imports net"},
		"init":     {"ipfix", `func init() {}`, "init function"},
		"exit":     {"ipfix", "import \"os\"\nfunc f() { os.Exit(1) }", "os.Exit"},
		"panic":    {"ipfix", `func f() { panic(1) }`, "calls panic"},
		"stranger": {"util", ``, "no place"},
		"comment":  {"replay", ``, "no package comment"},
	} {
		root := t.TempDir()
		if err := os.MkdirAll(filepath.Join(root, src.dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, src.dir, "a.go"), []byte("package a\n"+src.body+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		wrong, err := check(root)
		if err != nil || !strings.Contains(strings.Join(wrong, "\n"), src.want) {
			t.Errorf("%s: %q, %v; want %q", name, wrong, err, src.want)
		}
	}
}
