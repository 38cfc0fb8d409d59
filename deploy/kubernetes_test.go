package deploy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// objects are the documents of the manifests.
func objects(t *testing.T) []map[string]any {
	t.Helper()
	b, err := os.ReadFile("kubernetes/sockflow.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var list []map[string]any
	d := yaml.NewDecoder(bytes.NewReader(b))
	for {
		var o map[string]any
		if err := d.Decode(&o); err == io.EOF {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		if o != nil {
			list = append(list, o)
		}
	}
}

// at follows keys into a document.
func at(t *testing.T, o any, keys ...any) any {
	t.Helper()
	for _, k := range keys {
		switch k := k.(type) {
		case string:
			m, ok := o.(map[string]any)
			if !ok || m[k] == nil {
				t.Fatalf("no %v", keys)
			}
			o = m[k]
		case int:
			l, ok := o.([]any)
			if !ok || len(l) <= k {
				t.Fatalf("no %v", keys)
			}
			o = l[k]
		}
	}
	return o
}

// TestManifests: what the DaemonSet may do is what docs/security.md says, and no more.
func TestManifests(t *testing.T) {
	kinds := map[string]map[string]any{}
	for _, o := range objects(t) {
		kinds[fmt.Sprint(o["kind"])] = o
	}
	for _, kind := range []string{"Namespace", "ServiceAccount", "ConfigMap", "ClusterRole", "ClusterRoleBinding", "DaemonSet"} {
		if kinds[kind] == nil {
			t.Fatalf("no %s", kind)
		}
	}
	for i := range at(t, kinds["ClusterRole"], "rules").([]any) {
		for _, verb := range at(t, kinds["ClusterRole"], "rules", i, "verbs").([]any) {
			if verb != "list" && verb != "watch" {
				t.Errorf("the role may %v", verb)
			}
		}
	}
	pod := at(t, kinds["DaemonSet"], "spec", "template", "spec")
	security := at(t, pod, "containers", 0, "securityContext").(map[string]any)
	if security["privileged"] != false || security["allowPrivilegeEscalation"] != false || security["readOnlyRootFilesystem"] != true {
		t.Errorf("%v", security)
	}
	want := []any{"BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE", "SYS_ADMIN"}
	if got := at(t, security, "capabilities", "add").([]any); !slices.Equal(got, want) || at(t, security, "capabilities", "drop", 0) != "ALL" {
		t.Errorf("capabilities %v", got)
	}
	if at(t, pod, "hostPID") != true || at(t, pod, "hostNetwork") != true {
		t.Error("the host is not to be seen from there")
	}
	if env := at(t, pod, "containers", 0, "env", 1).(map[string]any); env["name"] != "SOCKFLOW_MEMORY_LIMIT" || at(t, env, "valueFrom", "resourceFieldRef", "resource") != "limits.memory" {
		t.Errorf("the program does not know its memory limit: %v", env)
	}
	var config map[string]any
	if err := yaml.Unmarshal([]byte(at(t, kinds["ConfigMap"], "data", "sockflow.yaml").(string)), &config); err != nil || config["collector"] == nil {
		t.Errorf("%v, %v", config, err)
	}
}

// TestHelm lints the chart and compares the manifests with it, where there is Helm.
func TestHelm(t *testing.T) {
	if _, err := exec.LookPath("helm"); err != nil {
		t.Skip("needs helm, which Debian does not have: go install helm.sh/helm/v3/cmd/helm@v3.16.4")
	}
	run(t, "helm", "lint", "--strict", "--kube-version", "1.29.0", "helm/sockflow")
	out := run(t, "helm", "template", "x", "helm/sockflow", "--kube-version", "1.29.0", "--set", "metrics.podMonitor=true,tlsSecret=a,metrics.address=127.0.0.1,kube.enabled=false")
	if strings.Contains(out, "ClusterRole") || !strings.Contains(out, "PodMonitor") || !strings.Contains(out, "secretName: a") {
		t.Error(out)
	}
	before, err := os.ReadFile("kubernetes/sockflow.yaml")
	if err != nil {
		t.Fatal(err)
	}
	run(t, "kubernetes/make.sh")
	after, _ := os.ReadFile("kubernetes/sockflow.yaml")
	if !bytes.Equal(before, after) {
		t.Error("kubernetes/sockflow.yaml is not what the chart makes: run deploy/kubernetes/make.sh")
	}
}

// TestManifestsByServer gives the manifests to a real API server for a dry run. SOCKFLOW_TEST_APISERVER is the program kube-apiserver; etcd is
// Debian's.
func TestManifestsByServer(t *testing.T) {
	server := os.Getenv("SOCKFLOW_TEST_APISERVER")
	if server == "" {
		t.Skip("SOCKFLOW_TEST_APISERVER names no kube-apiserver")
	}
	need(t, "etcd")
	need(t, "openssl")
	dir := t.TempDir()
	port := func() int {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().(*net.TCPAddr).Port
	}
	ctx, cancel := context.WithCancel(context.Background())
	background := func(name string, args ...string) {
		c := exec.CommandContext(ctx, name, args...)
		c.Dir = dir
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cancel(); c.Wait() })
	}
	client, peer, secure := port(), port(), port()
	etcd, peers := fmt.Sprintf("http://127.0.0.1:%d", client), fmt.Sprintf("http://127.0.0.1:%d", peer)
	background("etcd", "--data-dir", "etcd", "--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers)
	run(t, "openssl", "genrsa", "-out", filepath.Join(dir, "sa.key"), "2048")
	os.WriteFile(filepath.Join(dir, "tokens.csv"), []byte("admin,admin,uid1,\"system:masters\"\n"), 0o600)
	background(server, "--etcd-servers", etcd, "--bind-address", "127.0.0.1", "--secure-port", fmt.Sprint(secure), "--advertise-address", "127.0.0.1", "--endpoint-reconciler-type", "none",
		"--cert-dir", "certs", "--service-account-issuer", "https://k", "--service-account-key-file", "sa.key", "--service-account-signing-key-file", "sa.key",
		"--token-auth-file", "tokens.csv", "--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.0.0.0/24", "--disable-admission-plugins", "ServiceAccount", "--allow-privileged")
	web := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // its own, just made
	call := func(method, path string, body any) (int, string) {
		b, _ := json.Marshal(body)
		req, err := http.NewRequest(method, fmt.Sprintf("https://127.0.0.1:%d%s", secure, path), bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer admin")
		req.Header.Set("Content-Type", "application/json")
		res, err := web.Do(req)
		if err != nil {
			return 0, err.Error()
		}
		defer res.Body.Close()
		answer, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(answer)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if code, answer := call("GET", "/readyz", nil); code == 200 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the server is not ready: %s", answer)
		}
	}
	path := map[string]string{
		"Namespace": "/api/v1/namespaces", "ServiceAccount": "/api/v1/namespaces/sockflow/serviceaccounts", "ConfigMap": "/api/v1/namespaces/sockflow/configmaps",
		"ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles", "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
		"DaemonSet": "/apis/apps/v1/namespaces/sockflow/daemonsets",
	}
	for _, o := range objects(t) {
		kind := fmt.Sprint(o["kind"])
		query := "?dryRun=All&fieldValidation=Strict"
		if kind == "Namespace" {
			query = "?fieldValidation=Strict" // the others need it
		}
		if code, answer := call("POST", path[kind]+query, o); code != http.StatusCreated {
			t.Errorf("%s: %d %s", kind, code, answer)
		}
	}
}
