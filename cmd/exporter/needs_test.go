package main

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

// needRoot and needTool skip a test, and fail it where CI promised that it can run.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		miss(t, "needs root")
	}
}

func needTool(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		miss(t, "needs "+name)
	}
}

func miss(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("REQUIRE_ROOT") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// patience is how long anything may take: ten seconds, and a minute in an emulated machine.
func patience() time.Duration {
	if os.Getenv("SOCKFLOW_EXPORTER") != "" {
		return time.Minute
	}
	return 10 * time.Second
}

// eventually waits for f.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience()); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not within %s: %s", patience(), what)
}
