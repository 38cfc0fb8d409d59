package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// groups makes the proc of a process, and the files of control groups in dir/cg. Mounts name dir as DIR.
func groups(t *testing.T, cgroup, mounts string, files map[string]string) (proc, dir string) {
	t.Helper()
	dir = t.TempDir()
	all := map[string]string{"proc/self/cgroup": cgroup, "proc/self/mountinfo": strings.ReplaceAll(mounts, "DIR", dir)}
	for name, content := range files {
		all["cg/"+name] = content
	}
	for name, content := range all {
		file := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(file), 0o755)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir + "/proc", dir
}

func TestCGroupMemory(t *testing.T) {
	const second = "30 23 0:26 / DIR/cg rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	const first = "31 23 0:27 / DIR/cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n32 23 0:28 / DIR/cg/memory rw - cgroup cgroup rw,memory\n" +
		"33 23 0:29 / DIR/cg/unified rw - cgroup2 none rw\n"
	for _, tc := range []struct {
		name, cgroup, mounts string
		files                map[string]string
		want                 int64
		from                 string
	}{
		{"a unit", "0::/system.slice/sockflow.service\n", second, map[string]string{
			"system.slice/memory.max": "max\n", "system.slice/sockflow.service/memory.max": "536870912\n", "other/memory.max": "1\n",
		}, 512 << 20, "/system.slice/sockflow.service/memory.max"},
		{"its slice has less", "0::/system.slice/sockflow.service\n", second, map[string]string{
			"system.slice/memory.max": "1000000\n", "system.slice/sockflow.service/memory.max": "536870912\n",
		}, 1000000, "/system.slice/memory.max"},
		{"it is slowed down before", "0::/u\n", second, map[string]string{"u/memory.max": "536870912\n", "u/memory.high": "1000\n"}, 1000, "/u/memory.high"},
		{"a container, at the root of its namespace", "0::/\n", second, map[string]string{"memory.max": "1000000\n"}, 1000000, "/memory.max"},
		{"a container that sees the host's tree, and not where it is", "0::/\n", strings.Replace(second, " / DIR", " /../.. DIR", 1),
			map[string]string{"memory.max": "1000000\n"}, 0, ""},
		{"a mount of another group", "0::/ab\n", strings.Replace(second, " / DIR", " /a DIR", 1), map[string]string{"memory.max": "1000000\n"}, 0, ""},
		{"cgroup v1 in a container without a namespace", "4:memory:/docker/1\n0::/docker/1\n", strings.ReplaceAll(first, " / DIR", " /docker/1 DIR"),
			map[string]string{"memory/memory.limit_in_bytes": "1000000\n"}, 1000000, "/memory/memory.limit_in_bytes"},
		{"hybrid", "5:cpu,cpuacct:/c\n4:memory:/m/n\n0::/\n", first,
			map[string]string{"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/m/memory.limit_in_bytes": "1000000\n", "cpu/c/memory.limit_in_bytes": "5\n"},
			1000000, "/memory/m/memory.limit_in_bytes"},
		{"no limit", "0::/u\n", second, map[string]string{"u/memory.max": "max\n"}, 0, ""},
		{"nothing mounted", "0::/u\n", "", nil, 0, ""},
	} {
		proc, dir := groups(t, tc.cgroup, tc.mounts, tc.files)
		got := cgroupMemory(proc)
		if got.octets != tc.want || got.from != "" && got.from != dir+"/cg"+tc.from {
			t.Errorf("%s: %+v, want %d of %s", tc.name, got, tc.want, tc.from)
		}
	}
}

func TestFlowBound(t *testing.T) {
	for _, tc := range []struct {
		args  string
		bound int
		fit   bool
	}{
		{"--memory-limit none", 1_000_000, true},
		{"--memory-limit 512M", 225693, true},
		{"--memory-limit 512M --interface lo", 195043, true},
		{"--memory-limit 512M --interface lo --source none", 1_000_000, true},
		{"--memory-limit 4G", 1_000_000, true},
		{"--memory-limit 8M", 1000, true},
		{"--memory-limit 512M --max-flows 200000", 200_000, true},
		{"--memory-limit 512M --max-flows 1000000", 1_000_000, false},
	} {
		var s settings
		f := pflag.NewFlagSet("", pflag.ContinueOnError)
		s.addFlags(f)
		if err := f.Parse(strings.Fields(tc.args)); err != nil {
			t.Fatal(err)
		}
		if err := s.load(f); err != nil {
			t.Fatal(err)
		}
		if bound, fit := s.flowBound(s.memory()); bound != tc.bound || fit != tc.fit {
			t.Errorf("%s: %d %t, want %d %t", tc.args, bound, fit, tc.bound, tc.fit)
		}
	}
}

// TestMemoryLimit: the bound is said once, and shown.
func TestMemoryLimit(t *testing.T) {
	needRoot(t)
	port := freePort(t)
	r := runExporter(t, "--metrics", fmt.Sprintf("127.0.0.1:%d", port), "--memory-limit", "64M")
	if bound := scrape(t, port)["sockflow_flows_max"]; bound != 1997 {
		t.Errorf("bound %.0f", bound)
	}
	r.stop()
	if n := strings.Count(r.errs.String(), "the memory limit bounds the flows"); n != 1 {
		t.Errorf("said %d times\n%s", n, r.errs.String())
	}
	for args, v := range map[string]verdict{"--memory-limit 64M": good, "--memory-limit 64M --max-flows 2000": reduced, "--memory-limit none": note} {
		checks, _, _ := runDoctor(t, nil, strings.Fields(args)...)
		want(t, checks, "Control groups/memory limit", v, "flows at most")
	}
}
