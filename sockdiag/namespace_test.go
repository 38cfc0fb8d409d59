package sockdiag

import (
	"os"
	"path/filepath"
	"testing"
)

// TestHidden: that other users' processes are not even listed (hidepid=2) is as little to see as those that may not be asked.
func TestHidden(t *testing.T) {
	proc := t.TempDir()
	link := func(pid string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(proc, pid, "ns"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("net:[4026531840]", filepath.Join(proc, pid, "ns", "net")); err != nil {
			t.Fatal(err)
		}
	}
	link("4711")
	if found, hidden := namespaces(proc); found[4026531840] == "" || !hidden {
		t.Errorf("without process 1: found %v, hidden %v", found, hidden)
	}
	link("1")
	if _, hidden := namespaces(proc); hidden {
		t.Error("hidden, and all were read")
	}
}
