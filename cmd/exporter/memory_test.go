package main

import (
	"strconv"
	"strings"
	"testing"
)

// TestAtRest: what is resident while little happens, on a host where others run tests.
func TestAtRest(t *testing.T) {
	needRoot(t)
	r := runExporter(t, "--metrics", "none")
	kB := func() int {
		n, _ := strconv.Atoi(strings.TrimSuffix(threads(t, r.cmd.Process.Pid, "VmRSS")[0], " kB"))
		return n
	}
	eventually(t, "less than 40 MB", func() bool { n := kB(); return n > 1000 && n < 40*1000 })
	r.stop()
}
