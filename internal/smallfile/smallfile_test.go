package smallfile

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRead: files and pipes that end are read; what has no end, or nobody at the other end, is an error at once.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(path("file"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", path("link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("most"), make([]byte, Most), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("large"), make([]byte, Most+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, want string
		octets     int
	}{
		{path("file"), "", 4}, {path("link"), "", 4}, {path("most"), "", Most}, {path("fifo"), "", 0}, {"/proc/self/stat", "", -1},
		{path("large"), "more than", 0}, {path("none"), "no such file", 0}, {dir, "is a directory", 0}, {"/dev/zero", "more than", 0}, {"/dev/null", "", 0},
	} {
		b, err := Read(tc.name)
		if tc.want == "" && (err != nil || tc.octets >= 0 && len(b) != tc.octets || tc.octets < 0 && len(b) == 0) {
			t.Errorf("%s: %d octets, %v", tc.name, len(b), err)
		}
		if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	// As of <(COMMAND), which a shell names /dev/fd/N.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() { // ends with the write
		w.Write([]byte("key"))
		w.Close()
	}()
	b, err := Read(filepath.Join("/dev/fd", fdOf(r)))
	if err != nil || !bytes.Equal(b, []byte("key")) {
		t.Errorf("%q, %v", b, err)
	}
}

func fdOf(f *os.File) string { return strconv.Itoa(int(f.Fd())) }
