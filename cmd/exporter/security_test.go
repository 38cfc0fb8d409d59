package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// proofs are the claims of docs/security.md about what is given up and what remains, and the test that fails where one
// is false.
var proofs = map[string]string{
	"give up for good, in every thread":     "TestConfined",
	"What the kernel does not take is one":  "TestNoLandlock",
	"A test takes over each command":        "TestConfined",
	"Capabilities":                          "TestConfined",
	"CAP_":                                  "TestPrivileges",
	"no_new_privs":                          "TestConfined",
	"everything else fails with EPERM":      "TestConfined",
	"Not on the list":                       "TestConfined",
	"arguments are checked":                 "TestConfined",
	"openat(2)":                             "TestConfined",
	"pread(2), lseek(2)":                    "TestConfined",
	"mmap(2), mprotect(2)":                  "TestConfined",
	"bpf(2)":                                "TestConfined",
	"kcmp(2)":                               "TestConfined",
	"socket(2)":                             "TestConfined",
	"setns(2)":                              "TestConfined",
	"ioctl(2), fcntl(2)":                    "TestConfined",
	"closes all files by Landlock":          "TestConfined",
	"/etc/shadow cannot be read":            "TestConfined",
	"eBPF meters all namespaces as before":  "TestPrivileges",
	"A file of /etc that is exchanged":      "TestAround",
	"Landlock, reading /proc/PID/exe":       "TestConfined",
	"In netlink mode":                       "TestLeastNetlink",
	"Landlock needs Linux 5.13":             "TestNoLandlock",
	"keeps everything":                      "TestKeep",
	"which read what anybody may have made": "TestConfined",
	"With collectors of its own":            "TestConfined",
	"cannot take back what was given up":    "TestReloadConfined",
	"CAP_DAC_OVERRIDE is given up":          "TestConfined",
	"runtime's socket must be readable":     "TestContainerd",
	"Root refuses to write into a folder":   "TestFolders",
	"gives up a client that asks nothing":   "TestMetricsServer",
	"shows what is left":                    "TestPrivileges",
	"Whoever took over `run` with `drop`":   "TestConfined",
	"what the paths above hold":             "TestConfined",
	"ProtectSystem=strict":                  "TestSystemdUnit",
}

// TestSecurityPage: no sentence of the page is without a test that tries it.
func TestSecurityPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, page, _ := strings.Cut(string(b), "## Privileges")
	page, _, _ = strings.Cut(page, "## Without root")
	tests := map[string]bool{}
	for _, dir := range []string{".", "../../deploy"} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			src, _ := os.ReadFile(dir + "/" + e.Name())
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(src, -1) {
				tests[string(m[1])] = true
			}
		}
	}
	used := map[string]bool{}
	for _, block := range regexp.MustCompile(`\n\n|\n\||: not |\. `).Split(page, -1) {
		s := strings.Join(strings.Fields(block), " ")
		if len(s) < 20 || strings.HasPrefix(s, "---") || strings.HasPrefix(s, "## ") {
			continue
		}
		ok := false
		for claim, test := range proofs {
			if strings.Contains(s, claim) {
				ok, used[claim] = true, true
				if !tests[test] {
					t.Errorf("no test %s, which %q needs", test, claim)
				}
			}
		}
		if !ok {
			t.Errorf("nothing tries: %s", s)
		}
	}
	for claim := range proofs {
		if !used[claim] {
			t.Errorf("the page does not say %q any more", claim)
		}
	}
}
