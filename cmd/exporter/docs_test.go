package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
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

// shows is what the output of a reader has to show, by how its command begins: what was sent has arrived.
var shows = map[string]*regexp.Regexp{
	"nfdump ":      regexp.MustCompile(`127\.0\.0\.1[.:0-9 ]* +-> +127\.0\.0\.1:(8000|9469.* curl>sockflow/root>root)`),
	"ipfixDump ":   regexp.MustCompile(`--- data record`),
	"curl 127.0.0": regexp.MustCompile(`sockflow_`),
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

// sandbox is the world of a page.
type sandbox struct {
	t      *testing.T
	dir    string
	beside []*process // what goes on until the end of the block
}

// newSandbox makes the network and the files that the documentation takes for granted. This process is already in namespaces of its own.
func newSandbox(t *testing.T) *sandbox {
	t.Helper()
	for _, ns := range []string{"net", "mnt"} {
		own, err1 := os.Readlink("/proc/self/ns/" + ns)
		parents, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", os.Getppid(), ns))
		if err1 != nil || err2 != nil || own == parents {
			t.Fatalf("no namespaces of its own: %s, %v, %v", own, err1, err2)
		}
	}
	s := &sandbox{t: t, dir: t.TempDir()}
	os.Chmod(filepath.Dir(s.dir), 0o755) // for the user nobody
	os.Chmod(s.dir, 0o755)
	captures, err := filepath.Abs("../../testdata/captures")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`set -eu
cd %[1]s
mount --make-rprivate /
ip link set lo up
ip addr add 10.0.0.1/32 dev lo
ip link add eth1 type veth peer name eth0
ip addr add 192.0.2.1/24 dev eth0
ip link set eth0 up
ip link set eth1 up
ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0
cp -a /etc etc
mount --bind etc /etc
rm -f /etc/hosts
echo 127.0.0.1 localhost collector.example first.example second.example security.example all.example elsewhere.example >/etc/hosts
mkdir -p lib/sockflow lib/pmacct log/pmacct cache/nfdump /etc/sockflow /etc/pmacct /etc/logstash bin docs DIR
for d in lib log cache; do mount --bind $d /var/$d; done
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=sockflow -keyout c.key -out c.pem \
	-addext subjectAltName=DNS:localhost,DNS:collector.example,IP:10.0.0.1,IP:127.0.0.1 2>/dev/null
for f in ca.pem ca.crt host.pem exporters.pem; do cp c.pem $f; done
cp c.key host.key
cp ca.pem ca.crt host.pem host.key /etc/sockflow/
echo secret >/etc/sockflow/token
printf 'current-context: a\nclusters: [{name: b, cluster: {server: "http://127.0.0.1:8001"}}]\nusers: [{name: c, user: {token: secret}}]\ncontexts: [{name: a, context: {cluster: b, user: c}}]\n' >/etc/sockflow/kubeconfig
cp %[3]s/deploy/systemd/sockflow.yaml /etc/sockflow/
cp %[2]s/http.pcap a.pcap
cp %[2]s/http.pcap FILE
cp %[2]s/interfaces.pcapng b.pcapng
zstd -q <%[2]s/dns.pcap >old.pcap.zst
cp %[3]s/deploy/collectors/nfacctd.conf .
cp -r %[3]s/deploy %[3]s/templates .
for n in sockflow exporter; do ln -s %[4]s bin/$n; done
bin/sockflow replay a.pcap -c file:flows.ipfix
`, s.dir, captures, root, buildExporter(t))
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("the sandbox: %v\n%s", err, out)
	}
	t.Cleanup(s.empty)
	os.Setenv("PATH", filepath.Join(s.dir, "bin")+":"+os.Getenv("PATH"))
	os.Setenv("KUBECONFIG", "/etc/sockflow/kubeconfig")
	os.Setenv("TERM", "xterm")
	serveKube(t, s.dir)
	for _, port := range []string{"22", "8000"} {
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") })) // ends with l
	}
	return s
}

// empty ends what is left in this network, as a daemon that left its group.
func (s *sandbox) empty() {
	here, _ := os.Readlink("/proc/self/ns/net")
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, l := range links {
		pid, _ := strconv.Atoi(strings.Split(l, "/")[2])
		if ns, err := os.Readlink(l); err == nil && ns == here && pid != os.Getpid() {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// serveKube is an API server that has nothing.
func serveKube(t *testing.T, dir string) {
	t.Helper()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") == "" {
			io.WriteString(w, `{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[]}`)
			return
		}
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	for _, addr := range []string{"127.0.0.1:8001", "10.0.0.1:6443"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if addr == "127.0.0.1:8001" {
			go http.Serve(l, handler) // ends with l
			continue
		}
		go http.ServeTLS(l, handler, dir+"/c.pem", dir+"/c.key") // ends with l
	}
}

// traffic is what there is to be metered: two connections on the loopback, and datagrams that leave by eth0.
func (s *sandbox) traffic() {
	for _, port := range []string{"22", "8000"} {
		tr := &http.Transport{DisableKeepAlives: true}
		if r, err := (&http.Client{Transport: tr}).Get("http://127.0.0.1:" + port); err != nil {
			s.t.Fatal(err)
		} else {
			r.Body.Close()
		}
	}
	c, err := net.Dial("udp", "192.0.2.9:53")
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("hello"))
}

// process is a command line under way, in a process group of its own.
type process struct {
	line   documented
	cmd    *exec.Cmd
	out    syncBuffer
	errs   syncBuffer
	exited chan error
}

// start runs a line by the shell, as it stands in the documentation.
func (s *sandbox) start(line documented, text string) *process {
	s.t.Helper()
	p := &process{line: line, exited: make(chan error, 1)}
	p.cmd = exec.Command("sh", "-c", text)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = s.dir, &p.out, &p.errs
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() { p.exited <- p.cmd.Wait() }() // ends with the process
	s.t.Cleanup(func() { syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) })
	return p
}

// until waits for ok while the process runs.
func (s *sandbox) until(p *process, what string, ok func() bool) bool {
	s.t.Helper()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return true
		}
		select {
		case err := <-p.exited:
			p.exited <- err
			if ok() {
				return true
			}
			s.fail(p, "ended (%v) before %s", err, what)
			return false
		default:
		}
	}
	s.fail(p, "not in time: %s", what)
	return false
}

func (s *sandbox) fail(p *process, format string, args ...any) {
	s.t.Helper()
	s.t.Errorf("%s: %s\n  %s\n%s%s", p.line.where, p.line.text, fmt.Sprintf(format, args...), tail(p.out.String()), tail(p.errs.String()))
}

func tail(s string) string { return s[max(0, len(s)-1500):] }

// end asks the process, of a pipeline the first one, to end as an administrator does, and expects that ours ends in order.
func (s *sandbox) end(p *process, others bool) {
	s.t.Helper()
	for i, pid := range members(p.cmd.Process.Pid) {
		if i == 0 || others {
			syscall.Kill(pid, syscall.SIGTERM)
		}
	}
	select {
	case err := <-p.exited:
		p.exited <- err
		if err != nil && !others {
			s.fail(p, "%v", err)
		}
	case <-time.After(5 * time.Second):
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		if !others {
			s.fail(p, "does not end")
		}
	}
}

// members are the processes of a group, oldest first, without a shell that only waits for the others.
func members(group int) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, d := range dirs {
		b, err := os.ReadFile(d)
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if f[2] != strconv.Itoa(group) || bytes.Contains(b, []byte("(sh)")) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(d)))
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// listening are the ports that somebody in this network listens at.
func listening() (ports []string) {
	for _, name := range []string{"udp", "udp6", "tcp", "tcp6", "packet"} {
		b, _ := os.ReadFile("/proc/self/net/" + name)
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if name == "packet" || len(f) > 3 && (strings.HasPrefix(name, "udp") && f[3] == "07" || f[3] == "0A") {
				ports = append(ports, name+f[1])
			}
		}
	}
	return ports
}

func (s *sandbox) run(list []documented) {
	done := map[string]bool{}
	for i, c := range list {
		if i > 0 && c.block != list[i-1].block {
			s.endBlock()
		}
		alone := (i == 0 || list[i-1].block != c.block) && (i == len(list)-1 || list[i+1].block != c.block)
		if alone && done[c.text] {
			continue
		}
		done[c.text] = true
		s.command(c)
	}
	s.endBlock()
}

func (s *sandbox) endBlock() {
	for _, p := range slices.Backward(s.beside) {
		s.end(p, !ours[strings.Fields(p.line.text)[0]])
	}
	s.beside = nil
}

// command runs one command line, or checks one of those whose running is a matter of minutes.
func (s *sandbox) command(c documented) {
	s.t.Helper()
	text := comment.ReplaceAllString(assignment.ReplaceAllString(c.text, ""), "")
	for part := range strings.SplitSeq(text, "; ") {
		name := strings.Fields(part)[0]
		switch {
		case excusedCommand(part):
		case name == "make":
			s.targets(c, strings.Fields(part)[1:])
		case name == "go":
			s.goTest(c, part)
		case strings.HasSuffix(name, ".sh"):
			if out, err := exec.Command("bash", "-n", filepath.Join("../..", name)).CombinedOutput(); err != nil {
				s.t.Errorf("%s: %s: %v\n%s", c.where, name, err, out)
			}
		case strings.HasPrefix(part, "apt-get install "):
			s.packages(c, part)
		case part == "chmod 600 /etc/sockflow/key":
			s.once(c, part)
		case strings.HasPrefix(part, "setpriv ") || ours[name] || strings.Contains(part, "| sockflow "):
			s.ours(c, part)
		default:
			goesOn, ok := others[name]
			if !ok {
				s.t.Errorf("%s: %s: is it to be run? Say so in others or notRun", c.where, part)
				continue
			}
			needTool(s.t, name)
			if goesOn && !strings.Contains(part, " -D ") {
				s.background(c, part)
			} else {
				s.once(c, part)
			}
		}
	}
}

func excusedCommand(text string) bool {
	return slices.ContainsFunc(notRun, func(e struct{ begins, why string }) bool { return strings.HasPrefix(text, e.begins) })
}

// targets checks that a Makefile has what is to be made.
func (s *sandbox) targets(c documented, words []string) {
	b, err := os.ReadFile("../../Makefile")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, w := range words {
		if !strings.Contains(w, "=") && !bytes.Contains(b, []byte("\n"+w+":")) {
			s.t.Errorf("%s: the Makefile has no target %q", c.where, w)
		}
	}
}

var (
	goDir  = regexp.MustCompile(` \./(\S+)`)
	goName = regexp.MustCompile(`-(?:run|bench) '?\^?(\w+)`)
)

// goTest checks that there are the tests that are to be run: they take minutes, or are run anyway.
func (s *sandbox) goTest(c documented, text string) {
	dir := goDir.FindStringSubmatch(text)
	if dir == nil {
		s.t.Errorf("%s: %s: which package?", c.where, text)
		return
	}
	want := regexp.MustCompile(`flag\.Bool\("` + text[strings.LastIndex(text, "-")+1:] + `"`)
	if m := goName.FindStringSubmatch(text); m != nil {
		want = regexp.MustCompile(`(?m)^func (Test|Benchmark)?` + m[1])
	}
	files, _ := filepath.Glob(filepath.Join("../..", dir[1], "*_test.go"))
	for _, f := range files {
		if b, _ := os.ReadFile(f); want.Match(b) {
			return
		}
	}
	s.t.Errorf("%s: %s: no %s there", c.where, text, want)
}

// packages checks that the Debian packages are those that the tests have installed.
func (s *sandbox) packages(c documented, text string) {
	for _, p := range strings.Fields(text)[2:] {
		if strings.HasPrefix(p, "-") {
			continue
		}
		b, err := os.ReadFile("../../Makefile")
		if err != nil || !regexp.MustCompile(`(?m)^TEST_PACKAGES := .*\b`+regexp.QuoteMeta(p)+`\b`).Match(b) {
			s.t.Errorf("%s: %s is not among the packages of the tests", c.where, p)
		}
	}
}

// once runs a command to its end, again while a reader does not show yet what was sent.
func (s *sandbox) once(c documented, text string) {
	s.t.Helper()
	metrics := func(p string) bool { return strings.HasSuffix(p, ":24FD") } // 9469
	if (strings.Contains(text, ":9469/") || strings.Contains(text, "pidof")) && !slices.ContainsFunc(listening(), metrics) {
		s.background(documented{c.where, "sockflow -c json:/dev/null", c.block}, "sockflow -c json:/dev/null")
	}
	if strings.Contains(text, "/var/lib/sockflow/") { // what a collector that was away has not taken
		cmd := exec.Command("sh", "-c", "rm -rf /var/lib/sockflow/* && timeout 1 sockflow replay a.pcap -c tcp://collector.example --spool /var/lib/sockflow")
		cmd.Dir = s.dir
		if out, err := cmd.CombinedOutput(); err == nil {
			s.t.Errorf("a collector that is away took it:\n%s", out)
		}
	}
	var want *regexp.Regexp
	for begins, re := range shows {
		if strings.HasPrefix(text, begins) {
			want = re
		}
	}
	for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		p := s.start(c, text)
		var err error
		select {
		case err = <-p.exited:
		case <-time.After(20 * time.Second):
			s.fail(p, "does not end")
			return
		}
		if err == nil && (want == nil || want.MatchString(p.out.String())) {
			return
		}
		if want == nil || time.Since(begin) > 15*time.Second {
			s.fail(p, "%v; to be shown: %v", err, want)
			return
		}
		if len(s.beside) > 0 && !slices.ContainsFunc(s.beside, func(p *process) bool { return ours[strings.Fields(p.line.text)[0]] }) {
			s.endBlock() // what waits for the end of its interval
		}
	}
}

// background starts what goes on until the end of the block, and waits until it listens, or meters.
func (s *sandbox) background(c documented, text string) {
	s.t.Helper()
	before := len(listening())
	p := s.start(documented{c.where, text, c.block}, strings.TrimSuffix(text, "&"))
	s.beside = append(s.beside, p)
	if ours[strings.Fields(text)[0]] {
		s.until(p, "it meters", func() bool { return strings.Contains(p.errs.String(), "metering by") })
		return
	}
	s.until(p, "it listens", func() bool { return len(listening()) > before })
}

// ours runs a command of this program: one that ends until it does, others until what they send or print has come, and then ends them as an
// administrator does.
func (s *sandbox) ours(c documented, text string) {
	s.t.Helper()
	sinks := s.receive(text)
	defer func() {
		for _, k := range sinks {
			k.close()
		}
	}()
	words := strings.Fields(text)
	sub := words[min(1, len(words)-1)]
	received := func() bool {
		anything := strings.Contains(text, "filter") || sub == "doctor"
		return !slices.ContainsFunc(sinks, func(k *sink) bool { return !k.satisfied(anything) })
	}
	switch {
	case strings.HasSuffix(text, "&"):
		s.background(c, text)
	case strings.Contains(text, "|"):
		p := s.start(c, text)
		if strings.HasPrefix(text, "nc ") {
			s.until(p, "nc listens", func() bool {
				return slices.ContainsFunc(listening(), func(p string) bool { return strings.HasSuffix(p, ":1283") })
			})
			s.feed(p)
			s.until(p, "it prints what came", func() bool { return strings.Contains(p.out.String(), "octetDeltaCount") })
		} else {
			s.until(p, "tcpdump listens", func() bool { return strings.Contains(p.errs.String(), "listening on") })
			s.traffic()
			time.Sleep(1200 * time.Millisecond) // tcpdump takes packets once a second
		}
		s.end(p, false)
		if p.out.String() == "" {
			s.fail(p, "prints nothing")
		}
	case slices.Contains([]string{"list", "doctor", "elements", "completion", "man", "replay"}, sub) || strings.Contains(text, "--help") || strings.Contains(text, ".ipfix") && sub == "collect":
		p := s.start(c, text)
		select {
		case err := <-p.exited:
			if err != nil {
				s.fail(p, "%v", err)
			}
		case <-time.After(20 * time.Second):
			s.fail(p, "does not end")
		}
		if p.out.String() == "" && len(sinks) == 0 && !strings.Contains(text, ">") {
			s.fail(p, "prints nothing")
		}
		s.until(p, "collectors have it", received)
	case sub == "collect":
		p := s.start(c, text)
		s.until(p, "it listens", func() bool { return strings.Contains(p.errs.String(), "msg=listening") })
		to := "udp://localhost"
		if m := regexp.MustCompile(`(\w+)://\*(:\d+)?`).FindStringSubmatch(text); m != nil {
			to = m[1] + "://localhost" + m[2] + "?ca=ca.pem&cert=host.pem&key=host.key"
			if m[1] == "udp" {
				to = m[1] + "://localhost" + m[2]
			}
		}
		sender := s.start(c, "sockflow replay a.pcap -c '"+to+"'")
		s.until(p, "it prints what came", func() bool { return strings.Contains(p.out.String(), "80") })
		<-sender.exited
		s.end(p, false)
	case sub == "top" && !strings.Contains(text, "--batch"):
		cmd := exec.Command("sh", "-c", text)
		v := startTerminal(s.t, cmd)
		v.shows("PROTO")
		v.press("q")
		if err := cmd.Wait(); err != nil {
			s.t.Errorf("%s: %s: %v", c.where, text, err)
		}
	default:
		p := s.start(c, text)
		if !s.until(p, "it meters", func() bool {
			return strings.Contains(p.errs.String(), "metering") || sub == "top" && p.out.String() != ""
		}) {
			return
		}
		told := func() bool {
			return received() && (p.out.String() != "" || strings.Contains(text, "-c ") || strings.Contains(text, "filter"))
		}
		for i := 0; i == 0 || i < 4 && !told(); i++ {
			s.traffic()
			time.Sleep(250 * time.Millisecond)
		}
		s.end(p, false) // and tells the rest
		s.until(p, "what it meters is told", told)
		if strings.Contains(p.errs.String(), "level=ERROR") {
			s.fail(p, "says that something is wrong")
		}
	}
}

// feed sends a file to who listens on port 4739.
func (s *sandbox) feed(p *process) {
	b, err := os.ReadFile(filepath.Join(s.dir, "flows.ipfix"))
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := net.Dial("tcp", "127.0.0.1:4739")
	if err != nil {
		s.fail(p, "%v", err)
		return
	}
	defer c.Close()
	c.Write(b)
}

// sink is what stands for a collector that is none of the page's.
type sink struct {
	t      *testing.T
	udp    *udpSink
	stream *tcpSink
}

var collectorURL = regexp.MustCompile(`-c '?([a-z0-9+]+)://([^'? ]*)`)

// receive listens where a command sends to, unless a collector of the page does.
func (s *sandbox) receive(text string) (list []*sink) {
	s.t.Helper()
	ports := map[string]string{"udp": "4739", "netflow9+udp": "2055", "tcp": "4739", "tls": "4740", "zmq": "5556"}
	if strings.Contains(text, "--config") {
		text += " -c udp://127.0.0.1:4739" // of the example
	}
	for _, m := range collectorURL.FindAllStringSubmatch(text, -1) {
		port, ok := ports[m[1]]
		if !ok {
			s.t.Fatalf("no sink for %s", m[0])
		}
		if strings.HasPrefix(m[2], "*") {
			continue // it waits for subscribers
		}
		if _, p, err := net.SplitHostPort(m[2]); err == nil {
			port = p
		}
		k := &sink{t: s.t}
		addr := "127.0.0.1:" + port
		if strings.HasSuffix(m[1], "udp") {
			c, err := net.ListenPacket("udp", addr)
			if err != nil {
				continue
			}
			k.udp = newUDPSinkOn(s.t, c.(*net.UDPConn))
		} else {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				continue
			}
			if m[1] == "tls" {
				pair, err := tls.LoadX509KeyPair(s.dir+"/c.pem", s.dir+"/c.key")
				if err != nil {
					s.t.Fatal(err)
				}
				l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert})
			}
			k.stream = newTCPSinkOn(s.t, l)
		}
		list = append(list, k)
	}
	return list
}

func (k *sink) close() {
	if k.udp != nil {
		k.udp.conn.Close()
	} else {
		k.stream.l.Close()
	}
}

// satisfied says that a flow of the traffic, or of a capture, has come, or anything.
func (k *sink) satisfied(anything bool) bool {
	if k.udp == nil {
		return len(k.stream.bytes()) > 0
	}
	if anything {
		return len(k.udp.messages()) > 0
	}
	for _, f := range goflow2(k.t, k.udp.messages()) {
		if port := f["0:11"]; port == "8000" || port == "53" || port == "80" {
			return true
		}
	}
	return false
}
