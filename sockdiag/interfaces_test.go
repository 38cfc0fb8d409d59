package sockdiag

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/sockflow/sockflow/flowcache"
)

func shell(t *testing.T, line string) []byte {
	t.Helper()
	f := strings.Fields(line)
	out, err := exec.Command(f[0], f[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

// ipLink is what ip -s -j link prints.
type ipLink struct {
	Index uint32 `json:"ifindex"`
	Name  string `json:"ifname"`
	MTU   uint32
	Flags []string
	Link  string
	Stats struct{ RX, TX ipCounters } `json:"stats64"`
	Info  struct {
		Kind string `json:"info_kind"`
	} `json:"linkinfo"`
}

type ipCounters struct{ Bytes, Packets, Errors, Dropped uint64 }

func (c ipCounters) same(i flowcache.InterfaceCounters) bool {
	return c.Bytes == i.Octets && c.Packets == i.Packets && c.Errors == i.Errors && c.Dropped == i.Drops
}

// TestInterfaces: two namespaces like those of containers, one like a host's between them, and what ip(8) says of all.
func TestInterfaces(t *testing.T) {
	needRoot(t)
	pid := os.Getpid()
	names := map[string]string{}
	inode := map[string]uint32{}
	var members []*exec.Cmd
	for _, n := range []string{"host", "a", "b"} {
		ns := fmt.Sprintf("sdi%d%s", pid, n)
		names[n] = ns
		shell(t, "ip netns add "+ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
		shell(t, "ip -n "+ns+" link set lo up")
		var st syscall.Stat_t
		if err := syscall.Stat("/run/netns/"+ns, &st); err != nil {
			t.Fatal(err)
		}
		inode[n] = uint32(st.Ino)
	}
	for i, n := range []string{"a", "b"} {
		// In a container's namespace there are processes.
		cmd := exec.Command("ip", "netns", "exec", names[n], "sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		members = append(members, cmd)
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		shell(t, fmt.Sprintf("ip link add eth0 netns %s type veth peer name v%s netns %s", names[n], n, names["host"]))
		shell(t, fmt.Sprintf("ip -n %s addr add 10.97.%d.2/24 dev eth0", names[n], i))
		shell(t, fmt.Sprintf("ip -n %s addr add 10.97.%d.1/24 dev v%s", names["host"], i, n))
		shell(t, fmt.Sprintf("ip -n %s link set eth0 up", names[n]))
		shell(t, fmt.Sprintf("ip -n %s link set v%s up", names["host"], n))
	}
	shell(t, "ip -n "+names["host"]+" link add br0 mtu 1400 type bridge")
	for i := range 2 { // and what is dropped: nobody takes the address
		exec.Command("ip", "netns", "exec", names["host"], "bash", "-c", fmt.Sprintf("for n in 1 2 3 4 5; do head -c 700 /dev/zero >/dev/udp/10.97.%d.2/9; done", i)).Run()
	}
	r, err := NewInterfaces(InterfacesConfig{})
	if err != nil {
		t.Fatal(err)
	}
	// Counters move while the kernel still talks to itself (neighbour discovery): until both agree.
	var wrong []string
	for range 20 {
		wrong = nil
		reading := r.Read()
		found := map[string]int{}
		for at, i := range reading.List {
			for n, ino := range inode {
				if i.NetNS == ino {
					found[n+" "+i.Name] = at + 1
				}
			}
		}
		for n, ns := range names {
			var links []ipLink
			if err := json.Unmarshal(shell(t, "ip -n "+ns+" -s -j -d link"), &links); err != nil {
				t.Fatal(err)
			}
			for _, l := range links {
				at := found[n+" "+l.Name] - 1
				if at < 0 {
					t.Fatalf("%s: no %s in %+v", n, l.Name, found)
				}
				i := reading.List[at]
				delete(found, n+" "+l.Name)
				if i.Index != l.Index || i.MTU != l.MTU || i.Kind != l.Info.Kind || i.Time == 0 || !l.Stats.RX.same(i.In) || !l.Stats.TX.same(i.Out) {
					wrong = append(wrong, fmt.Sprintf("%s %s: %+v, ip says %+v", n, l.Name, i, l))
				}
				want := map[string]uint32{"host va": inode["a"], "host vb": inode["b"], "a eth0": inode["host"], "b eth0": inode["host"]}
				if peer := reading.Peers[at]; peer != want[n+" "+l.Name] {
					t.Errorf("%s %s leads to %d, want %d", n, l.Name, peer, want[n+" "+l.Name])
				}
			}
		}
		if len(found) > 0 {
			t.Errorf("ip does not know %v", found)
		}
		for k, n := range []string{"a", "b"} {
			if got := fmt.Sprint(reading.Members[inode[n]]); got != fmt.Sprintf("[%d]", members[k].Process.Pid) {
				t.Errorf("%s: members %s", n, got)
			}
		}
		for at, i := range reading.List {
			if i.NetNS == inode["host"] && (i.Name == "va") && (i.Out.Octets < 5*700 || i.Out.Packets < 5 || !i.Up || i.Type != 1) {
				t.Errorf("%+v", reading.List[at])
			}
		}
		if len(wrong) == 0 {
			break
		}
	}
	for _, w := range wrong {
		t.Error(w)
	}
	if st := r.Stats(); st.Readings == 0 || st.Interfaces == 0 {
		t.Errorf("%+v", st)
	}
}

// TestInterfacesOwn: where no namespace can be found there is nothing to read, and no error.
func TestInterfacesOwn(t *testing.T) {
	r, err := NewInterfaces(InterfacesConfig{Proc: t.TempDir()}) // no other namespace can be found there
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Read(); len(got.List) != 0 {
		t.Errorf("%+v", got)
	}
	if _, err := NewInterfaces(InterfacesConfig{Interval: -1}); err == nil {
		t.Error("a negative interval is accepted")
	}
}

func FuzzLink(f *testing.F) {
	b := make([]byte, ifinfomsgLen)
	for _, a := range []struct {
		kind  uint16
		value []byte
	}{{iflaIfname, []byte("eth0\x00")}, {iflaMTU, []byte{1, 2, 3, 4}}, {iflaStats64, make([]byte, 200)}, {iflaLinkNetNSID, []byte{1, 0, 0, 0}}} {
		b = ne.AppendUint16(b, uint16(4+len(a.value)))
		b = ne.AppendUint16(b, a.kind)
		b = append(b, a.value...)
		b = append(b, make([]byte, -len(a.value)&3)...)
	}
	f.Add(b)
	f.Add(b[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		var l link
		if err := l.parse(b); err == nil && len(l.Name) > len(b) {
			t.Fatal(l)
		}
	})
}

// BenchmarkInterfaces reads what there is on this host; ns/interface is the figure.
func BenchmarkInterfaces(b *testing.B) {
	r, err := NewInterfaces(InterfacesConfig{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n = len(r.Read().List)
	}
	b.ReportMetric(float64(n), "interfaces")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(max(n, 1)), "ns/interface")
}
