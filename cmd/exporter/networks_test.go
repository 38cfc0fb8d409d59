package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// must runs a command and returns what it printed.
func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// ip runs ip(8) with the words of a line.
func ip(t *testing.T, line string) {
	t.Helper()
	must(t, "ip", strings.Fields(line)...)
}

// newNamespace makes a network namespace whose loopback is up.
func newNamespace(t *testing.T, name string) {
	t.Helper()
	needRoot(t)
	needTool(t, "ip")
	exec.Command("ip", "netns", "del", name).Run() // of a run that was killed
	ip(t, "netns add "+name)
	t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
	ip(t, "-n "+name+" link set lo up")
}

// netns makes two namespaces with a veth pair and returns their names; the first has .1, the second .2.
func netns(t *testing.T) (a, b string) {
	t.Helper()
	a, b = fmt.Sprintf("sf%da", os.Getpid()), fmt.Sprintf("sf%db", os.Getpid())
	for _, ns := range []string{a, b} {
		newNamespace(t, ns)
		// The kernel does not count SACK options, which come and go with reordering between two CPUs: up to 0.3 % here.
		ip(t, "netns exec "+ns+" sysctl -qw net.ipv4.tcp_sack=0")
	}
	ip(t, "link add sfv0 netns "+a+" type veth peer name sfv1 netns "+b)
	for i, ns := range []string{a, b} {
		ip(t, fmt.Sprintf("-n %s addr add 10.99.0.%d/24 dev sfv%d", ns, i+1, i))
		ip(t, fmt.Sprintf("-n %s addr add fd99::%d/64 dev sfv%d nodad", ns, i+1, i))
		// A capture sees what the kernel hands to the device: with segmentation offload that is not what a wire carries.
		ip(t, fmt.Sprintf("-n %s link set sfv%d gso_max_segs 1 up", ns, i))
	}
	return a, b
}

// family is how the networks of a router are addressed: on each side the router has 1, and who is there 2.
type family struct {
	near, far, mask    string // the first side's network, and the second's
	flags              string // of an address
	iptables, forwards string // the command, and the setting by which a namespace is a router
}

var (
	ipv4 = family{"10.98.0.", "10.98.1.", "/24", "", "iptables", "net.ipv4.ip_forward"}
	ipv6 = family{"fd98::", "fd98:1::", "/64", " nodad", "ip6tables", "net.ipv6.conf.all.forwarding"}
)

// router puts a namespace with DNAT between two others: what goes to its near address and port+1 reaches the second one's port, and comes
// from its far address.
func router(t *testing.T, f family, tcp, udp int) (a, b string) {
	t.Helper()
	needTool(t, f.iptables)
	pid := os.Getpid()
	a, b, r := fmt.Sprintf("sfn%da", pid), fmt.Sprintf("sfn%db", pid), fmt.Sprintf("sfn%dr", pid)
	for _, ns := range []string{a, b, r} {
		newNamespace(t, ns)
	}
	for i, side := range []struct{ ns, network string }{{a, f.near}, {b, f.far}} {
		ip(t, fmt.Sprintf("link add sfd%d netns %s type veth peer name sfr%d netns %s", i, side.ns, i, r))
		ip(t, fmt.Sprintf("-n %s addr add %s1%s dev sfr%d%s", r, side.network, f.mask, i, f.flags))
		ip(t, fmt.Sprintf("-n %s link set sfr%d up", r, i))
		ip(t, fmt.Sprintf("-n %s addr add %s2%s dev sfd%d%s", side.ns, side.network, f.mask, i, f.flags))
		ip(t, fmt.Sprintf("-n %s link set sfd%d up", side.ns, i))
		ip(t, fmt.Sprintf("-n %s route add default via %s1", side.ns, side.network))
	}
	ip(t, "netns exec "+r+" sysctl -qw "+f.forwards+"=1")
	for proto, port := range map[string]int{"tcp": tcp, "udp": udp} {
		ip(t, fmt.Sprintf("netns exec %s %s -t nat -A PREROUTING -d %s1 -p %s --dport %d -j DNAT --to-destination %s",
			r, f.iptables, f.near, proto, port+1, net.JoinHostPort(f.far+"2", strconv.Itoa(port))))
	}
	ip(t, "netns exec "+r+" "+f.iptables+" -t nat -A POSTROUTING -o sfr1 -j MASQUERADE")
	return a, b
}

// container is a process in a control group and a network namespace of its own, as runtimes make them, and a veth that leads to it.
func container(t *testing.T) (id, ns, veth string) {
	t.Helper()
	id = fmt.Sprintf("%064x", os.Getpid())
	dir := dockerGroup(t, id)
	ns, veth = fmt.Sprintf("sfi%d", os.Getpid()), fmt.Sprintf("sfi%d", os.Getpid()%100000)
	newNamespace(t, ns)
	t.Cleanup(func() { exec.Command("ip", "link", "del", veth).Run() }) // a namespace takes its time
	for _, line := range []string{
		"link add " + veth + " type veth peer name eth0 netns " + ns,
		"link set " + veth + " up", "addr add 10.96.0.1/30 dev " + veth,
		"-n " + ns + " addr add 10.96.0.2/30 dev eth0", "-n " + ns + " link set eth0 up",
	} {
		ip(t, line)
	}
	cmd := exec.Command("sh", "-c", fmt.Sprintf("echo $$ > %s/cgroup.procs && exec ip netns exec %s sleep 120", dir, ns))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	eventually(t, "the container runs", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
		return string(b) == "sleep\n"
	})
	return id, ns, veth
}

// dockerGroup makes the control group of a container of Docker, and returns its folder.
func dockerGroup(t *testing.T, id string) (dir string) {
	t.Helper()
	dir = filepath.Join(cgroup2(t), "docker", id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		eventually(t, "the control group is empty", func() bool { return os.Remove(dir) == nil })
		os.Remove(filepath.Dir(dir))
	})
	return dir
}

// cgroup2 is where the cgroup2 hierarchy is mounted.
func cgroup2(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup2 ") && f[3] == "/" {
			return f[4]
		}
	}
	t.Fatal("no cgroup2 is mounted")
	return ""
}
