package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/sockflow/sockflow/enrich/runtimes"
	"github.com/sockflow/sockflow/ipfix"
)

// eachCollector calls f for each URL that is valid; the others fail elsewhere. Of json: and zmq: URLs cfg is nil.
func (s *settings) eachCollector(f func(url string, cfg *ipfix.Config)) {
	base, err := s.base()
	if err != nil {
		return
	}
	for _, url := range s.collectors {
		if strings.HasPrefix(url, "json:") || strings.HasPrefix(url, "zmq:") {
			f(url, nil)
		} else if cfg, err := ipfix.ParseURL(url, base); err == nil {
			f(url, &cfg)
		}
	}
}

// outputs are the folders in which the settings have files written: of json: and file: collectors, and spools.
func (s *settings) outputs() (dirs []string) {
	add := func(dir string) {
		if abs, err := filepath.Abs(dir); err == nil {
			dirs = append(dirs, abs)
		}
	}
	s.eachCollector(func(url string, cfg *ipfix.Config) {
		switch {
		case cfg == nil:
			if path := jsonPath(url); path != "" {
				add(filepath.Dir(path))
			}
		case cfg.Network == "file":
			add(filepath.Dir(cfg.Address))
		case spools(cfg):
			add(cfg.Spool)
		}
	})
	return dirs
}

// spools reports whether a collector has a spool: those over streams may.
func spools(cfg *ipfix.Config) bool {
	return cfg.Spool != "" && (cfg.Network == "tcp" || cfg.Network == "tls" || cfg.Network == "sctp")
}

// readable are the paths that are read when everything is open: what the settings name and may change, and systemFiles.
func (s *settings) readable() []string {
	paths := slices.Clone(systemFiles)
	name := func(path string) {
		if path != "" {
			paths = append(paths, around(path)...)
		}
	}
	name("/etc/resolv.conf")
	name(s.config)
	name(s.selecting.anonymize)
	name(s.kube.token)
	name(s.kube.ca)
	if s.kube.server == "auto" {
		name("/var/run/secrets/kubernetes.io/serviceaccount/token")
		name(os.Getenv("KUBECONFIG"))
	} else if !strings.Contains(s.kube.server, "://") && s.kube.server != "none" {
		name(s.kube.server)
	}
	s.eachCollector(func(_ string, cfg *ipfix.Config) {
		if cfg != nil {
			name(cfg.CA)
			name(cfg.Cert)
			name(cfg.Key)
			name(cfg.Anonymize)
		}
	})
	return paths
}

// jsonPath is the file of a json: URL, empty for standard output.
func jsonPath(url string) string {
	path, _, _ := strings.Cut(strings.TrimPrefix(url, "json:"), "?")
	if path == "-" {
		return ""
	}
	return path
}

// watchesRuntimes reports whether any runtime may be spoken to, over its Unix socket.
func watchesRuntimes(c *runtimes.Config) bool {
	for _, sockets := range []string{c.Containerd, c.Docker, c.CRI, c.Podman} {
		if sockets != "none" {
			return true
		}
	}
	return false
}

// checkFolder reports whether root may write into dir: of it and every folder above, none may be another user's, who
// could put something else in its place or a link into it, nor may everyone write there, but for folders such as /tmp
// (sticky), above or with a file of its own. A folder that is not there yet is made below the last that is. Who is not
// root writes nothing that others could not have written.
func checkFolder(dir, file string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	real := abs
	for {
		r, err := filepath.EvalSymlinks(real)
		if err == nil {
			real = r
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || real == "/" {
			break // the error comes when it is opened
		}
		real = filepath.Dir(real)
	}
	for _, path := range []string{abs, real} {
		for d := path; ; d = filepath.Dir(d) {
			if err := checkOwner(d, d == path, file); err != nil {
				return err
			}
			if d == "/" {
				break
			}
		}
	}
	return nil
}

// checkOwner checks one folder, which may be missing; last is the one that is written into.
func checkOwner(dir string, last bool, file string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return nil // there is nothing yet, or opening it says what is wrong
	}
	owner := st.Sys().(*syscall.Stat_t)
	sticky := st.Mode()&os.ModeSticky != 0
	switch {
	case !st.IsDir():
		return nil
	case owner.Uid != 0:
		return fmt.Errorf("root does not write there: folder %s belongs to user %d, who could redirect it; let it belong to root", dir, owner.Uid)
	case st.Mode().Perm()&0o002 != 0 && !sticky:
		return fmt.Errorf("root does not write there: everyone may write into folder %s and redirect it; chmod o-w %s", dir, dir)
	case last && sticky && file == "":
		return fmt.Errorf("root does not write there: everyone may write into folder %s; name a folder of its own", dir)
	case last && sticky:
		if st, err := os.Lstat(filepath.Join(dir, filepath.Base(file))); err == nil {
			if owner := st.Sys().(*syscall.Stat_t); owner.Uid != 0 || st.Mode()&os.ModeSymlink != 0 || owner.Nlink > 1 {
				return fmt.Errorf("root does not write there: %s is another user's, or a link, in a folder where everyone may write", file)
			}
		}
	}
	return nil
}
