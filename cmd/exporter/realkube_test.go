package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// apiServer is a real kube-apiserver with its etcd.
type apiServer struct {
	t         *testing.T
	binary    string
	dir, etcd string // of etcd the URL of clients
	port      int
	cmd       *exec.Cmd
	http      *http.Client
}

func (s *apiServer) run(name string, args ...string) *exec.Cmd {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, filepath.Base(name)+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func newAPIServer(t *testing.T, binary string) *apiServer {
	s := &apiServer{t: t, binary: binary, dir: t.TempDir(), port: freePort(t)}
	client, peer := freePort(t), freePort(t)
	s.etcd = fmt.Sprintf("http://127.0.0.1:%d", client)
	other := fmt.Sprintf("http://127.0.0.1:%d", peer)
	s.run("etcd", "--data-dir", s.dir+"/etcd", "--listen-client-urls", s.etcd, "--advertise-client-urls", s.etcd, "--name", "e",
		"--listen-peer-urls", other, "--initial-advertise-peer-urls", other, "--initial-cluster", "e="+other, "--unsafe-no-fsync")
	if out, err := exec.Command("openssl", "genrsa", "-out", s.dir+"/sa.key", "2048").CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	os.WriteFile(s.dir+"/tokens.csv", []byte("tok-admin,admin,uid1,\"system:masters\"\ntok-sockflow,sockflow,uid2\n"), 0o600)
	os.WriteFile(s.dir+"/token", []byte("tok-sockflow\n"), 0o600)
	s.start()
	return s
}

func (s *apiServer) start() {
	s.t.Helper()
	s.cmd = s.run(s.binary, "--etcd-servers", s.etcd, "--bind-address", "127.0.0.1", "--secure-port", fmt.Sprint(s.port), "--advertise-address", "127.0.0.1",
		"--endpoint-reconciler-type", "none", "--cert-dir", s.dir+"/certs", "--service-account-issuer", "https://k", "--service-account-key-file", s.dir+"/sa.key",
		"--service-account-signing-key-file", s.dir+"/sa.key", "--token-auth-file", s.dir+"/tokens.csv", "--authorization-mode", "RBAC",
		"--service-cluster-ip-range", "10.0.0.0/24", "--disable-admission-plugins", "ServiceAccount", "--allow-privileged")
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		pem, err := os.ReadFile(s.dir + "/certs/apiserver.crt")
		if err == nil {
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(pem)
			s.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, Timeout: 10 * time.Second}
			if code, _ := s.ask("GET", "/readyz", nil); code == 200 {
				return
			}
		}
		if time.Now().After(end) {
			log, _ := os.ReadFile(s.dir + "/" + filepath.Base(s.binary) + ".log")
			s.t.Fatalf("the API server is not ready: %s", log[max(0, len(log)-2000):])
		}
	}
}

// ask asks as the administrator.
func (s *apiServer) ask(method, path string, body any) (int, map[string]any) {
	s.t.Helper()
	var b []byte
	if body != nil { // with a body, a DELETE's query would not count
		b, _ = json.Marshal(body)
	}
	req, err := http.NewRequest(method, fmt.Sprintf("https://127.0.0.1:%d%s", s.port, path), bytes.NewReader(b))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer tok-admin")
	req.Header.Set("Content-Type", "application/json")
	if method == "PATCH" {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	var m map[string]any
	b, _ = io.ReadAll(resp.Body)
	json.Unmarshal(b, &m)
	return resp.StatusCode, m
}

func (s *apiServer) must(method, path string, body any) map[string]any {
	s.t.Helper()
	code, m := s.ask(method, path, body)
	if code/100 != 2 {
		s.t.Fatalf("%s %s: %d %v", method, path, code, m["message"])
	}
	return m
}

type obj = map[string]any

func (s *apiServer) pod(name, node, ip string) (uid string) {
	s.t.Helper()
	m := s.must("POST", "/api/v1/namespaces/shop/pods", obj{
		"metadata": obj{"name": name}, "spec": obj{"nodeName": node, "containers": []any{obj{"name": "c", "image": "i"}}},
	})
	s.must("PATCH", "/api/v1/namespaces/shop/pods/"+name+"/status", obj{"status": obj{"phase": "Running", "podIP": ip, "podIPs": []any{obj{"ip": ip}}}})
	return m["metadata"].(obj)["uid"].(string)
}

// compact makes etcd forget all but the present.
func (s *apiServer) compact() {
	s.t.Helper()
	post := func(path string, body string) (m obj) {
		resp, err := http.Post(s.etcd+path, "application/json", strings.NewReader(body))
		if err != nil {
			s.t.Fatal(err)
		}
		defer resp.Body.Close()
		json.NewDecoder(resp.Body).Decode(&m)
		return m
	}
	revision := post("/v3/maintenance/status", "{}")["header"].(obj)["revision"].(string)
	post("/v3/kv/compaction", fmt.Sprintf(`{"revision":%q,"physical":true}`, revision))
}

// TestRealKube: the whole program against a real kube-apiserver, RBAC and all. make test-kube runs it.
func TestRealKube(t *testing.T) {
	binary := os.Getenv("SOCKFLOW_TEST_APISERVER")
	if binary == "" {
		t.Skip("no SOCKFLOW_TEST_APISERVER: see make test-kube")
	}
	ns, _ := netns(t)
	ip(t, "-n "+ns+" neigh add 10.99.0.77 lladdr 02:00:00:00:00:77 dev sfv0 nud permanent")
	ip(t, "-n "+ns+" route add default via 10.99.0.77")
	s := newAPIServer(t, binary)
	s.must("POST", "/api/v1/namespaces", obj{"metadata": obj{"name": "shop"}})
	s.must("POST", "/api/v1/nodes", obj{"metadata": obj{"name": "n7"}})
	s.must("PATCH", "/api/v1/nodes/n7/status", obj{"status": obj{"addresses": []any{obj{"type": "InternalIP", "address": "10.97.0.7"}, obj{"type": "Hostname", "address": "n7"}}}})
	web := s.must("POST", "/api/v1/namespaces/shop/services", obj{
		"metadata": obj{"name": "web"}, "spec": obj{"type": "NodePort", "selector": obj{"app": "web"}, "ports": []any{obj{"port": 53, "protocol": "UDP"}}},
	})
	clusterIP := web["spec"].(obj)["clusterIP"].(string)
	nodePort := fmt.Sprint(web["spec"].(obj)["ports"].([]any)[0].(obj)["nodePort"])
	const pods = 620 // more than a page
	uid := ""
	for i := range pods {
		u := s.pod(fmt.Sprintf("p%d", i), "n7", fmt.Sprintf("10.96.%d.%d", i/250, i%250+1))
		if i == 600 {
			uid = u
		}
	}
	port := freePort(t)
	r := runExporter(t, "--metrics", fmt.Sprintf("127.0.0.1:%d", port), "--kube", fmt.Sprintf("https://127.0.0.1:%d", s.port), "--kube-token", s.dir+"/token",
		"--kube-ca", s.dir+"/certs/apiserver.crt", "--idle-timeout", "500ms")
	// slow waits longer than eventually: a refusal is tried again after a minute.
	slow := func(what string, f func() bool) {
		t.Helper()
		for end := time.Now().Add(3 * time.Minute); !f(); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not in time: %s\n%s", what, r.errs.String())
			}
		}
	}
	metric := func(line string) bool {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return strings.Contains(string(b), line+"\n")
	}
	slow("all three are refused", func() bool { return strings.Count(r.errs.String(), "forbidden") == 3 })
	s.must("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", obj{
		"metadata": obj{"name": "sockflow"}, "rules": []any{obj{"apiGroups": []any{""}, "resources": []any{"pods", "services", "nodes"}, "verbs": []any{"list", "watch"}}},
	})
	s.must("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", obj{
		"metadata": obj{"name": "sockflow"}, "roleRef": obj{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "sockflow"},
		"subjects": []any{obj{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "sockflow"}},
	})
	slow("all is read", func() bool {
		return metric(fmt.Sprintf(`sockflow_kube_objects{kind="pods"} %d`, pods)) && metric(`sockflow_kube_objects{kind="nodes"} 1`) && metric(`sockflow_kube_objects{kind="services"} 2`)
	})
	// named sends a datagram to somewhere, and returns what the record calls its end.
	named := func(to, port string) string {
		t.Helper()
		if out, err := exec.Command("ip", "netns", "exec", ns, "bash", "-c", "echo x >/dev/udp/"+to+"/"+port).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		seen := len(r.json())
		name := ""
		eventually(t, "a record of "+to, func() bool {
			for _, j := range r.json()[max(0, seen-1):] {
				if j.Dest.String() != to || j.SourceEnd == nil {
					continue
				}
				if name = "-"; j.DestEnd != nil {
					name = j.DestEnd.Service + "@" + j.DestEnd.Node
					if c := j.DestEnd.Container; c != nil {
						name += " " + c.Namespace + "/" + c.Pod + " " + c.PodUID
					}
				}
				return true
			}
			return false
		})
		time.Sleep(time.Second) // the flow ends
		return name
	}
	check := func(to, port, want string) {
		t.Helper()
		if got := named(to, port); got != want {
			t.Errorf("%s:%s is %q, want %q", to, port, got, want)
		}
	}
	check("10.96.2.101", "9", "@n7 shop/p600 "+uid)
	check(clusterIP, "53", "shop/web@")
	check("10.0.0.1", "443", "default/kubernetes@")
	check("10.97.0.7", nodePort, "shop/web@n7")
	check("10.97.0.8", nodePort, "-")
	late := s.pod("late", "n8", "10.95.0.1")
	slow("it is told", func() bool { return metric(fmt.Sprintf(`sockflow_kube_objects{kind="pods"} %d`, pods+1)) })
	check("10.95.0.1", "9", "@n8 shop/late "+late)
	s.must("DELETE", "/api/v1/namespaces/shop/pods/late?gracePeriodSeconds=0", nil)
	slow("its end is told", func() bool { return metric(fmt.Sprintf(`sockflow_kube_objects{kind="pods"} %d`, pods)) })
	check("10.95.0.1", "10", "-")

	// What happens while nobody looks, and is forgotten: 410 Gone. (Of pods the last changes may have reached the socket that nobody reads.)
	r.cmd.Process.Signal(syscall.SIGSTOP)
	s.must("DELETE", "/api/v1/namespaces/shop/pods/p600?gracePeriodSeconds=0", nil)
	next := s.pod("next", "n7", "10.95.0.2")
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s.compact()
	s.start()
	r.cmd.Process.Signal(syscall.SIGCONT)
	slow("it is gone", func() bool { return metric(`sockflow_kube_errors_total{cause="gone",kind="nodes"} 1`) })
	slow("the new one is named", func() bool { return named("10.95.0.2", "9") == "@n7 shop/next "+next })
	check("10.96.2.101", "11", "-")
	r.stop()
	if log := r.errs.String(); strings.Count(log, "forbidden") != 3 || strings.Count(log, "are read") != 3 {
		t.Error("each refusal and its end are to be told once")
	}
	t.Log(r.errs.String())
}
