package kube

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// parseKubeconfig reads the current context of one file.
func parseKubeconfig(b []byte, dir string) (*access, error) {
	k, err := readKubeconfig(b, dir)
	if err != nil {
		return nil, err
	}
	return k.access()
}

const kubeconfigFile = `
apiVersion: v1
kind: Config
current-context: b
contexts:
- {name: a, context: {cluster: ca, user: ua}}
- {name: b, context: {cluster: cb, user: ub}}
clusters:
- {name: ca, cluster: {server: "https://a:6443"}}
- {name: cb, cluster: {server: "https://b:6443/prefix", tls-server-name: api, certificate-authority-data: Q0VSVA==}}
users:
- {name: ua, user: {token: x}}
- {name: ub, user: {tokenFile: tok, client-certificate-data: Q0VSVA==, client-key: key.pem}}
`

func TestKubeconfig(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "tok"), []byte(" abc\n"), 0o600)
	os.WriteFile(filepath.Join(dir, "key.pem"), []byte("KEY"), 0o600)
	a, err := parseKubeconfig([]byte(kubeconfigFile), dir)
	if err != nil {
		t.Fatal(err)
	}
	token, err := a.token()
	ca, caErr := a.ca()
	if err != nil || caErr != nil || token != "abc" || a.server.String() != "https://b:6443/prefix" || a.serverName != "api" || string(ca) != "CERT" {
		t.Errorf("%q %v %+v", token, err, a)
	}
	cert, _ := a.cert()
	key, err := a.key()
	if string(cert) != "CERT" || string(key) != "KEY" || err != nil {
		t.Errorf("%q %q %v", cert, key, err)
	}
	for name, c := range map[string]struct{ old, new, want string }{
		"context":  {"current-context: b", "current-context: c", `no context "c"`},
		"cluster":  {"name: cb, cluster", "name: cc, cluster", `no cluster "cb"`},
		"server":   {"https://b:6443/prefix", "b:6443", "must be https"},
		"exec":     {"tokenFile: tok", "exec: {command: aws}", "only tokens and client certificates"},
		"key":      {", client-key: key.pem", "", "go together"},
		"base64":   {"certificate-authority-data: Q0VSVA==", "certificate-authority-data: '*'", "certificate-authority"},
		"not YAML": {"current-context: b", "current-context: [", "yaml"},
	} {
		if _, err := parseKubeconfig([]byte(strings.Replace(kubeconfigFile, c.old, c.new, 1)), dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	os.WriteFile(token, []byte("x"), 0o600)
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("KUBECONFIG", "")
	if _, err := New(Config{Server: "auto"}); !errors.Is(err, ErrNoCluster) {
		t.Errorf("auto: %v", err)
	}
	path := filepath.Join(dir, "config")
	os.WriteFile(path, []byte(strings.Replace(kubeconfigFile, "current-context: b", "current-context: a", 1)), 0o600)
	t.Setenv("KUBECONFIG", path+":other")
	if s, err := New(Config{Server: "auto"}); err != nil || s.Server() != "https://a:6443" {
		t.Errorf("auto: %v", err)
	}
	if s, err := New(Config{Server: path}); err != nil || s.Server() != "https://a:6443" {
		t.Errorf("file: %v", err)
	}
	for name, c := range map[string]struct {
		cfg  Config
		want string // empty: none
	}{
		"url":             {Config{Server: "https://10.0.0.1:6443", TokenFile: token}, ""},
		"proxy":           {Config{Server: "http://127.0.0.1:8001"}, ""},
		"token on a loop": {Config{Server: "http://[::1]:8001", TokenFile: token}, ""},
		"token in clear":  {Config{Server: "http://10.0.0.1:8001", TokenFile: token}, "https only"},
		"scheme":          {Config{Server: "ftp://x"}, "must be https"},
		"no host":         {Config{Server: "https://"}, "must be https"},
		"bad url":         {Config{Server: "https://%zz"}, "server"},
		"no token":        {Config{Server: "https://x", TokenFile: dir + "/none"}, "read token"},
		"empty token":     {Config{Server: "https://x", TokenFile: "/dev/null"}, "no token in it"},
		"no ca":           {Config{Server: "https://x", CAFile: dir + "/none"}, "read certificates"},
		"bad ca":          {Config{Server: "https://x", CAFile: token}, "no certificates"},
		"no file":         {Config{Server: dir + "/none"}, "read kubeconfig"},
	} {
		if _, err := New(c.cfg); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestSeveralKubeconfigs: what the first file says of a name holds, files that are not there are passed over, paths are relative to their file.
func TestSeveralKubeconfigs(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	write := func(path, text string) string { os.WriteFile(path, []byte(text), 0o600); return path }
	a := write(filepath.Join(one, "a"), "current-context: b\nusers:\n- {name: u, user: {tokenFile: tok}}\n")
	b := write(filepath.Join(two, "b"), "current-context: x\ncontexts:\n- {name: b, context: {cluster: c, user: u}}\nclusters:\n- {name: c, cluster: {server: \"https://b\"}}\nusers:\n- {name: u, user: {token: wrong}}\n")
	write(filepath.Join(one, "tok"), "right")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("KUBECONFIG", filepath.Join(one, "none")+":"+a+"::"+b)
	cfg := Config{Server: "auto"}
	got, err := cfg.resolve()
	if err != nil {
		t.Fatal(err)
	}
	if token, err := got.token(); token != "right" || err != nil || got.server.String() != "https://b" {
		t.Errorf("%q %v %v", token, err, got.server)
	}
	t.Setenv("KUBECONFIG", filepath.Join(one, "none")+":"+filepath.Join(one, "nothing"))
	if _, err := cfg.resolve(); err == nil || strings.Count(err.Error(), "\n") != 0 {
		t.Error(err)
	}
}
