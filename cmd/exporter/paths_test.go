package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFolders: root writes into no folder that another user could exchange, nor through another user's file; and says
// which.
func TestFolders(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	make := func(name string, mode os.FileMode, uid int) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		os.Chmod(path, mode)
		os.Chown(path, uid, -1)
		return path
	}
	own := make("own", 0o755, 0)
	theirs := make("theirs", 0o755, 65534)
	below := make("theirs/below", 0o755, 0)
	open := make("open", 0o777, 0)
	sticky := make("sticky", 0o777|os.ModeSticky, 0)
	inSticky := make("sticky/own", 0o700, 0)
	link := filepath.Join(dir, "link")
	os.Symlink(theirs, link)
	through := filepath.Join(theirs, "link")
	os.Symlink(own, through)
	for name, target := range map[string]string{"file": "", "linked": "/etc/passwd"} {
		path := filepath.Join(sticky, name)
		if target != "" {
			os.Symlink(target, path)
		} else {
			os.WriteFile(path, nil, 0o644)
			os.Chown(path, 65534, -1)
		}
	}
	for _, tc := range []struct {
		folder string
		ok     bool
	}{
		{own, true}, {own + "/new/deep", true}, {theirs, false}, {theirs + "/new", false}, {below, false}, {open, false}, {open + "/new", false}, {inSticky, true}, {link, false}, {through, false},
	} {
		for _, url := range []string{"json:" + tc.folder + "/x.json", "file:" + tc.folder + "/x.ipfix", "tcp://127.0.0.1:1?spool=" + tc.folder} {
			if !strings.HasPrefix(url, "tcp") && strings.Contains(tc.folder, "new") && tc.ok {
				continue // files are not made in folders that are not there
			}
			try(t, url, tc.ok)
		}
	}
	try(t, "json:"+sticky+"/mine", true)
	try(t, "file:"+sticky+"/mine.ipfix", true)
	try(t, "tcp://127.0.0.1:1?spool="+sticky, false)
	for _, name := range []string{"file", "linked"} {
		try(t, "json:"+sticky+"/"+name, false)
		try(t, "file:"+sticky+"/"+name, false)
	}
}

// try makes the exporter of a URL.
func try(t *testing.T, url string, ok bool) {
	t.Helper()
	var out, errs bytes.Buffer
	s := &settings{}
	s.exporting.spoolSize, s.exporting.policy = "1M", "all"
	s.dialect, s.direction, s.pen, s.v9Base = "known", "biflow", 32473, 30000
	s.collectors = []string{url}
	_, err := destinations(s, &out, newLogger(&errs, "info"))
	if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "root does not write there") {
		t.Errorf("%s: %v; should work: %v", url, err, ok)
	}
}
