package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// notRun are the commands of the documentation that the test does not run, by how they begin, and why. Each must be in the documentation.
var notRun = []struct{ begins, why string }{
	{"docker ", "no Docker daemon that may load images; the image is tested in package deploy"},
	{"helm ", "Helm is not in Debian; the chart is tested in package deploy"},
	{"kubectl ", "needs a cluster; the manifests are tested in package deploy"},
	{"systemctl ", "needs systemd as the first process; the unit is tested in package deploy"},
	{"systemd-analyze security sockflow", "needs the unit to be installed; package deploy asks for its score"},
	{"editor ", "waits for a person"},
	{"apt install ./dist/", "needs the packages that `make dist` makes, and installs on the host"},
	{"ntopng ", "not in Debian; TestNtopng has libzmq in its place"},
	{"curl 'http://admin:admin@127.0.0.1:3000", "asks ntopng"},
	{"goflow2 ", "not in Debian; TestElementsGoflow2 has its producer, and `make test-collectors` the program"},
	{"logstash ", "not in Debian"},
	{"sysctl ", "changes the host"},
	{"go build", "the tests have built it"},
	{"ctr ", "containers are tested by TestContainerd"},
}

// others are programs that are run where the documentation has them, beside ours: true for one that goes on until it is ended.
var others = map[string]bool{
	"nfcapd": true, "nc": true, "nfacctd": true, "prometheus": true, "tcpdump": true,
	"nfdump": false, "ipfixDump": false, "curl": false, "head": false, "grep": false, "mkdir": false, "sleep": false, "promtool": false,
}

// documented is one command line, and where it is.
type documented struct {
	where, text string
	block       int // those of one code block, or of one line of text, are run one after the other, beside each other
}

var inlineCode = regexp.MustCompile("`([^`]+)`")

// commands returns the command lines of a page: every line of the blocks that are set in by four columns, and what code in a text begins with a
// program that is known here. Blocks of anything else are fenced and say what they are.
func commands(t *testing.T, page string) (list []documented) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../..", page))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(b), "\\\n", " ")
	block, inBlock, fenced, number := 0, false, false, 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimRight(line, "\n")
		where := fmt.Sprintf("%s:%d", page, number)
		if strings.HasPrefix(line, "```") {
			if fenced = !fenced; fenced && len(line) == 3 {
				t.Errorf("%s: a fenced block says what it is; commands are set in by four columns", where)
			}
			continue
		}
		if fenced || line == "" && inBlock {
			continue
		}
		code, ok := strings.CutPrefix(line, "    ")
		if ok {
			if !inBlock {
				block++
			}
			inBlock = true
			list = append(list, documented{where, strings.TrimSpace(code), block})
			continue
		}
		inBlock = false
		block++
		for _, m := range inlineCode.FindAllStringSubmatch(line, -1) {
			c := strings.ReplaceAll(m[1], `\|`, "|")
			if name, _, ok := strings.Cut(c, " "); ok && isProgram(c, name) {
				list = append(list, documented{where, c, block})
			}
		}
	}
	return list
}

func isProgram(line, name string) bool {
	if _, ok := others[name]; ok || ours[name] || name == "make" || name == "go" || strings.HasSuffix(name, ".sh") {
		return true
	}
	return slices.ContainsFunc(notRun, func(e struct{ begins, why string }) bool { return strings.HasPrefix(line, e.begins) })
}

var (
	ours       = map[string]bool{"sockflow": true, "exporter": true, "bin/sockflow": true}
	assignment = regexp.MustCompile(`^([A-Z_]+=\S* +)+`)
	comment    = regexp.MustCompile(`\s+# .*$`)
)

// pages are what is read by the people who run sockflow.
func pages(t *testing.T) []string {
	t.Helper()
	list := []string{"README.md", "bench/README.md"}
	for _, pattern := range []string{"docs/*.md", "deploy/*/README.md"} {
		files, err := filepath.Glob("../../" + pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, files, err)
		}
		for _, f := range files {
			list = append(list, strings.TrimPrefix(f, "../../"))
		}
	}
	return list
}

// sandboxEnv names the page whose commands are run by this process, which has namespaces of its own.
const sandboxEnv = "SOCKFLOW_TEST_PAGE"

// TestDocumentedCommands runs every command of the documentation as it stands there. Each page has a sandbox: a network where every collector
// of the page is the loopback, with /etc and /var of its own. What is not run is in notRun, with the reason.
func TestDocumentedCommands(t *testing.T) {
	if page := os.Getenv(sandboxEnv); page != "" {
		newSandbox(t).run(commands(t, page))
		return
	}
	needRoot(t)
	bin := buildExporter(t)
	excused, seen := map[string]bool{}, map[string]bool{}
	var wg sync.WaitGroup
	atOnce := make(chan struct{}, 6)
	for _, page := range pages(t) {
		n := 0
		for _, c := range commands(t, page) {
			n++
			for part := range strings.SplitSeq(c.text, "; ") {
				for _, e := range notRun {
					excused[e.begins] = excused[e.begins] || strings.HasPrefix(part, e.begins)
				}
			}
			if w := strings.Fields(assignment.ReplaceAllString(c.text, "")); ours[w[0]] && len(w) > 1 {
				seen[w[1]] = true
			}
		}
		if n == 0 {
			continue
		}
		wg.Go(func() {
			atOnce <- struct{}{}
			defer func() { <-atOnce }()
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestDocumentedCommands$", "-test.timeout=3m", "-test.v")
			cmd.Env = append(os.Environ(), sandboxEnv+"="+page, "SOCKFLOW_EXPORTER="+bin)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
			begin := time.Now()
			out, err := cmd.CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("--- PASS: TestDocumentedCommands")) {
				t.Errorf("%s: %v\n%s", page, err, out)
			}
			t.Logf("%s: %d commands in %s", page, n, time.Since(begin).Round(time.Millisecond))
		})
	}
	wg.Wait()
	for _, e := range notRun {
		if !excused[e.begins] {
			t.Errorf("notRun: no command begins with %q", e.begins)
		}
	}
	for _, name := range []string{"run", "list", "top", "doctor", "collect", "replay", "elements", "-c"} {
		if !seen[name] {
			t.Errorf("sockflow %s is not documented", name)
		}
	}
}
