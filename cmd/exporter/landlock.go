package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/landlock-lsm/go-landlock/landlock"
	landlocksys "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// What versions of Landlock bring (landlock(7)): 1 (Linux 5.13) files; 4 (6.7) TCP; 6 (6.12) signals and abstract
// sockets.
const (
	landlockTCP    = 4
	landlockScopes = 6
)

// closePaths lets the program open the paths of c and nothing else, and send signals to nobody else (Landlock). What
// this kernel does not have is logged.
func (c *confinement) closePaths(log *slog.Logger) error {
	version, err := landlocksys.LandlockGetABIVersion()
	switch {
	case err != nil || version < 1:
		log.Warn("files are not closed: this kernel has no Landlock (Linux 5.13, and in the list of lsm=)")
		return nil
	case version < landlockScopes:
		log.Info("this kernel's Landlock closes files alone: signals and abstract sockets since Linux 6.12, TCP since 6.7", "version", version)
	}
	zone, _ := time.Now().Zone() // which reads the zone's file, once
	log.Debug("files are closed", "read", c.read, "written", c.write, "zone", zone)
	var rules []landlock.Rule
	for _, path := range c.read {
		rules = append(rules, readRule(path))
	}
	for _, path := range c.write {
		rules = append(rules, landlock.RWDirs(path).IgnoreIfMissing())
	}
	// Version 7 and not the newest: what later ones restrict (Unix sockets by path, UDP) is not said here.
	rights := landlock.V7.BestEffort()
	err = rights.RestrictPaths(rules...)
	if os.Getenv("NOTIFY_SOCKET") == "" || !strings.HasPrefix(os.Getenv("NOTIFY_SOCKET"), "@") {
		err = errors.Join(err, rights.RestrictScoped())
	}
	if c.alone {
		err = errors.Join(err, rights.RestrictNet())
	}
	if err != nil {
		return fmt.Errorf("close files: %w", err)
	}
	return nil
}

func readRule(path string) landlock.Rule {
	if st, err := os.Stat(path); err == nil && !st.IsDir() {
		return landlock.ROFiles(path).IgnoreIfMissing()
	}
	return landlock.RODirs(path).IgnoreIfMissing()
}

// systemFiles are read by names, certificates and times of day: what package net, crypto/x509 and time read.
var systemFiles = []string{
	"/etc/passwd", "/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/services", "/etc/protocols", "/etc/localtime",
	"/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/pki/tls/certs", "/etc/pki/tls/cert.pem", "/etc/pki/ca-trust/extracted", "/etc/ca-certificates",
	"/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/zoneinfo",
}

// around is what is to be readable for a file that a setting names: the folder with it, because a file that changes is
// put in its place by rename; of a folder of the system, such as /etc, the file alone. Links are followed, and both
// ends of them are.
func around(path string) (paths []string) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		real = path
	}
	for _, p := range []string{path, real} {
		if dir := filepath.Dir(p); strings.Count(dir, "/") >= 2 {
			p = dir
		}
		paths = append(paths, p)
	}
	return paths
}
