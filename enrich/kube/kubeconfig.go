package kube

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// kubeconfig is the part of a kubeconfig file (client.config v1) that is used.
type kubeconfig struct {
	CurrentContext string `yaml:"current-context"`
	Contexts       []struct {
		Name    string
		Context struct{ Cluster, User string }
	}
	Clusters []struct {
		Name    string
		Cluster struct {
			Server     string
			CA         string `yaml:"certificate-authority"`
			CAData     string `yaml:"certificate-authority-data"`
			Insecure   bool   `yaml:"insecure-skip-tls-verify"`
			ServerName string `yaml:"tls-server-name"`
		}
	}
	Users []struct {
		Name string
		User struct {
			Token     string
			TokenFile string         `yaml:"tokenFile"`
			Cert      string         `yaml:"client-certificate"`
			CertData  string         `yaml:"client-certificate-data"`
			Key       string         `yaml:"client-key"`
			KeyData   string         `yaml:"client-key-data"`
			Exec      map[string]any `yaml:"exec"`
			Provider  map[string]any `yaml:"auth-provider"`
			Username  string
		}
	}
}

// file is the server of a kubeconfig file's current context.
func (cfg *Config) file(path string) (*access, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	a, err := parseKubeconfig(b, filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return a, cfg.files(a)
}

// parseKubeconfig reads the current context; relative paths are relative to dir.
func parseKubeconfig(b []byte, dir string) (*access, error) {
	var k kubeconfig
	if err := yaml.Unmarshal(b, &k); err != nil {
		return nil, err
	}
	a := &access{}
	cluster, user := "", ""
	for _, c := range k.Contexts {
		if c.Name == k.CurrentContext {
			cluster, user = c.Context.Cluster, c.Context.User
		}
	}
	if cluster == "" {
		return nil, fmt.Errorf("no context %q", k.CurrentContext)
	}
	in := func(path string) string {
		if filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(dir, path)
	}
	// either is the bytes of the data, or of the file: read when they are needed, as files are rotated.
	either := func(data, path string) func() ([]byte, error) {
		switch {
		case data != "":
			return func() ([]byte, error) { return base64.StdEncoding.DecodeString(data) }
		case path != "":
			return func() ([]byte, error) { return os.ReadFile(in(path)) }
		}
		return nil
	}
	for _, c := range k.Clusters {
		if c.Name != cluster {
			continue
		}
		if err := a.setServer(c.Cluster.Server); err != nil {
			return nil, err
		}
		a.insecure, a.serverName = c.Cluster.Insecure, c.Cluster.ServerName
		if ca := either(c.Cluster.CAData, c.Cluster.CA); ca != nil {
			var err error
			if a.ca, err = ca(); err != nil {
				return nil, fmt.Errorf("certificate-authority of %q: %w", cluster, err)
			}
		}
	}
	if a.server == nil {
		return nil, fmt.Errorf("no cluster %q", cluster)
	}
	for _, u := range k.Users {
		if u.Name != user {
			continue
		}
		switch {
		case u.User.Exec != nil || u.User.Provider != nil || u.User.Username != "":
			return nil, fmt.Errorf("user %q: only tokens and client certificates are used; give a token by --kube-token", user)
		case u.User.TokenFile != "":
			a.token = tokenFrom(in(u.User.TokenFile))
		case u.User.Token != "":
			a.token = func() (string, error) { return u.User.Token, nil }
		}
		a.cert, a.key = either(u.User.CertData, u.User.Cert), either(u.User.KeyData, u.User.Key)
		if (a.cert == nil) != (a.key == nil) {
			return nil, fmt.Errorf("user %q: client certificate and key go together", user)
		}
	}
	return a, nil
}
