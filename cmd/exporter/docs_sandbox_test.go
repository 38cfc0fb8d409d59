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
	"syscall"
	"testing"
	"time"
)

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

// listening returns the ports that processes in this network namespace listen at.
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
