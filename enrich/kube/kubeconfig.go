package kube

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/sockflow/sockflow/internal/smallfile"
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

// kubeconfigs is the server of the current context of several files, read as kubectl does: what the first says of a name holds, and one that is not
// there is passed over, but not all.
func (cfg *Config) kubeconfigs(paths []string) (*access, error) {
	var all kubeconfig
	var missing error
	found := ""
	for _, path := range paths {
		if path == "" {
			continue
		}
		b, err := smallfile.Read(path)
		if errors.Is(err, fs.ErrNotExist) && len(paths) > 1 {
			missing = err
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read kubeconfig: %w", err)
		}
		k, err := readKubeconfig(b, filepath.Dir(path))
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
		}
		if found == "" {
			found = path
		}
		if all.CurrentContext == "" {
			all.CurrentContext = k.CurrentContext
		}
		all.Contexts = append(all.Contexts, k.Contexts...)
		all.Clusters = append(all.Clusters, k.Clusters...)
		all.Users = append(all.Users, k.Users...)
	}
	if found == "" {
		return nil, fmt.Errorf("read kubeconfig: %w", cmp.Or(missing, ErrNoCluster))
	}
	a, err := all.access()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", strings.Join(paths, ":"), err)
	}
	return a, cfg.files(a)
}

// readKubeconfig reads one file. Relative paths in it are relative to its folder, dir.
func readKubeconfig(b []byte, dir string) (*kubeconfig, error) {
	k := new(kubeconfig)
	if err := yaml.Unmarshal(b, k); err != nil {
		return nil, err
	}
	in := func(path *string) {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(dir, *path)
		}
	}
	for i := range k.Clusters {
		in(&k.Clusters[i].Cluster.CA)
	}
	for i := range k.Users {
		u := &k.Users[i].User
		in(&u.TokenFile)
		in(&u.Cert)
		in(&u.Key)
	}
	return k, nil
}

// either returns the octets of the data, or of the file: read when they are needed, as files are rotated.
func either(data, path string) func() ([]byte, error) {
	switch {
	case data != "":
		return func() ([]byte, error) { return base64.StdEncoding.DecodeString(data) }
	case path != "":
		return func() ([]byte, error) { return smallfile.Read(path) }
	}
	return nil
}

// access is how to reach the server of the current context. Of several with one name the first holds.
func (k *kubeconfig) access() (*access, error) {
	a := &access{}
	cluster, user := "", ""
	for _, c := range k.Contexts {
		if c.Name == k.CurrentContext {
			cluster, user = c.Context.Cluster, c.Context.User
			break
		}
	}
	if cluster == "" {
		return nil, fmt.Errorf("no context %q", k.CurrentContext)
	}
	for _, c := range k.Clusters {
		if c.Name != cluster {
			continue
		}
		if err := a.setServer(c.Cluster.Server); err != nil {
			return nil, err
		}
		a.insecure, a.serverName = c.Cluster.Insecure, c.Cluster.ServerName
		if a.ca = either(c.Cluster.CAData, c.Cluster.CA); a.ca != nil {
			if _, err := a.ca(); err != nil {
				return nil, fmt.Errorf("certificate-authority of %q: %w", cluster, err)
			}
		}
		break
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
			a.token = tokenFrom(u.User.TokenFile)
		case u.User.Token != "":
			a.token = func() (string, error) { return u.User.Token, nil }
		}
		a.cert, a.key = either(u.User.CertData, u.User.Cert), either(u.User.KeyData, u.User.Key)
		if (a.cert == nil) != (a.key == nil) {
			return nil, fmt.Errorf("user %q: client certificate and key go together", user)
		}
		break
	}
	return a, nil
}
