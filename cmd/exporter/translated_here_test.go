package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// question sends 60 octets by UDP from one address to another, where a server on a third has 30 for an answer: one program is both.
func question(from, to, at string) error {
	server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
	if err != nil {
		return err
	}
	defer server.Close()
	client, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from)), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
	if err != nil {
		return err
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(10 * time.Second))
	server.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := client.Write(make([]byte, 60)); err != nil {
		return err
	}
	buf := make([]byte, 100)
	_, peer, err := server.ReadFromUDP(buf)
	if err != nil {
		return err
	}
	if _, err := server.WriteToUDP(buf[:30], peer); err != nil {
		return err
	}
	if _, err := client.Read(buf); err != nil {
		return err
	}
	r := newReport()
	r.Flows = []counted{{Proto: "udp", Local: addrOf(client.LocalAddr()), Remote: addrOf(client.RemoteAddr()), Sent: 60, Received: 30, PID: r.PID}}
	// What the server saw of it, in the direction of the question.
	r.Flows = append(r.Flows, counted{Proto: "udp", Local: addrOf(peer), Remote: netip.MustParseAddrPort(at), PID: r.PID})
	r.print()
	return nil
}

// TestTranslatedHere: the sender's own host translates the addresses of a datagram. Question and answer are one record of what the sender's
// socket saw, with both ends and with what the server's socket saw.
func TestTranslatedHere(t *testing.T) {
	needRoot(t)
	needTool(t, "iptables")
	for _, tc := range []struct {
		name, from, to, at string
		rules              []string
	}{
		{"embedded DNS", "127.0.0.1:28101", "127.0.0.11:53", "127.0.0.11:45678", []string{
			"iptables -t nat -A OUTPUT -d 127.0.0.11/32 -p udp --dport 53 -j DNAT --to-destination 127.0.0.11:45678",
			"iptables -t nat -A POSTROUTING -s 127.0.0.11/32 -p udp --sport 45678 -j SNAT --to-source :53",
		}},
		{"cluster address", "10.97.0.1:28102", "10.96.0.10:53", "10.97.0.2:5353", []string{
			"iptables -t nat -A OUTPUT -d 10.96.0.10 -p udp --dport 53 -j DNAT --to-destination 10.97.0.2:5353",
		}},
		{"redirect", "127.0.0.1:28103", "127.0.0.1:80", "127.0.0.1:15001", []string{
			"iptables -t nat -A OUTPUT -p udp --dport 80 -j REDIRECT --to-ports 15001",
		}},
		{"local SNAT", "10.97.0.1:28104", "10.97.0.2:5354", "10.97.0.2:5354", []string{
			"iptables -t nat -A POSTROUTING -p udp --dport 5354 -j SNAT --to-source 10.97.0.3:1024-2000",
		}},
		{"hairpin", "10.97.0.2:28105", "10.97.0.1:8053", "10.97.0.2:5355", []string{
			"iptables -t nat -A OUTPUT -d 10.97.0.1 -p udp --dport 8053 -j DNAT --to-destination 10.97.0.2:5355",
			"iptables -t nat -A POSTROUTING -d 10.97.0.2 -p udp --dport 5355 -j SNAT --to-source 10.97.0.1",
		}},
		{"zone", "10.97.0.1:28106", "10.97.0.2:5356", "10.97.0.2:5357", []string{
			"iptables -t raw -A OUTPUT -p udp -j CT --zone 7", "iptables -t raw -A PREROUTING -p udp -j CT --zone 7",
			"iptables -t nat -A OUTPUT -p udp --dport 5356 -j DNAT --to-destination 10.97.0.2:5357",
		}},
		{"IPv6", "[fd97::1]:28107", "[fd97::2]:53", "[fd97::2]:5358", []string{
			"ip6tables -t nat -A OUTPUT -p udp --dport 53 -j DNAT --to-destination [fd97::2]:5358",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ns := fmt.Sprintf("sfhere%d", os.Getpid())
			newNamespace(t, ns)
			for _, a := range []string{"10.97.0.1/32", "10.97.0.2/32", "10.97.0.3/32", "fd97::1/128 nodad", "fd97::2/128 nodad"} {
				ip(t, "-n "+ns+" addr add "+a+" dev lo")
			}
			ip(t, "-n "+ns+" route add 10.96.0.0/16 dev lo")
			for _, rule := range tc.rules {
				ip(t, "netns exec "+ns+" "+rule)
			}
			r := runExporter(t, "--metrics", "none", "--interface-interval", "0")
			q := start(t, "question", ns, "question", tc.from, tc.to, tc.at).end()
			time.Sleep(300 * time.Millisecond)
			r.stop()
			asked, served := q.Flows[0], q.Flows[1]
			n := 0
			for _, j := range r.json() {
				if j.Protocol != "udp" || j.SourceEnd == nil && j.DestEnd == nil ||
					(j.SourceEnd == nil || int(j.SourceEnd.PID) != q.PID) && (j.DestEnd == nil || int(j.DestEnd.PID) != q.PID) {
					continue
				}
				n++
				if netip.AddrPortFrom(j.Source, j.SourcePort) != asked.Local || netip.AddrPortFrom(j.Dest, j.DestPort) != asked.Remote ||
					j.Forward.Payload != asked.Sent || j.Reverse.Payload != asked.Received {
					t.Errorf("%v:%d to %v:%d, %d and %d octets; the program counted %+v", j.Source, j.SourcePort, j.Dest, j.DestPort, j.Forward.Payload, j.Reverse.Payload, asked)
				}
				if j.SourceEnd == nil || j.DestEnd == nil || int(j.SourceEnd.PID) != q.PID || int(j.DestEnd.PID) != q.PID {
					t.Errorf("ends %+v and %+v, both are of process %d", j.SourceEnd, j.DestEnd, q.PID)
				}
				if p := j.PostNAT; p == nil || netip.AddrPortFrom(p.Source, p.SourcePort) != served.Local || netip.AddrPortFrom(p.Dest, p.DestPort) != served.Remote {
					t.Errorf("after translation %+v, the server saw %+v", p, served)
				}
			}
			if n != 1 {
				t.Errorf("%d records of one conversation", n)
			}
		})
	}
}

// TestRefusedDatagrams: what another control-group program refuses was not sent, and what it lets pass was.
func TestRefusedDatagrams(t *testing.T) {
	needRoot(t)
	group := filepath.Join(cgroup2(t), fmt.Sprintf("sockflow-refuse-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { eventually(t, "the control group is empty", func() bool { return os.Remove(group) == nil }) })
	dir, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	// It lets pass what has fewer than 500 octets.
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress, License: "GPL", Instructions: asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // __sk_buff.len
		asm.Mov.Imm(asm.R0, 1),
		asm.JLT.Imm(asm.R2, 500, "out"),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return().WithSymbol("out"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: group, Attach: ebpf.AttachCGroupInetEgress, Program: p})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := runExporter(t, "--metrics", "none", "--interface-interval", "0")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self)
	c.Env = append(os.Environ(), trafficEnv+"=refused")
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	pid, want := 0, uint64(0)
	if _, err := fmt.Sscan(string(out), &pid, &want); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	r.stop()
	var got, packets uint64
	for _, j := range r.json() {
		if j.SourceEnd != nil && int(j.SourceEnd.PID) == pid {
			got, packets = got+j.Forward.Payload, packets+j.Forward.Packets
		}
	}
	if got != want || packets != 10 {
		t.Errorf("%d octets in %d packets, the kernel took %d in 10", got, packets, want)
	}
}

// refusedSender sends 20 datagrams from one socket, of 100 and 1000 octets in turn, and prints its PID and the octets that the kernel took.
func refusedSender() error {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer server.Close()
	c, err := net.Dial("udp", server.LocalAddr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	sent, refused := 0, 0
	for i := range 20 {
		n, err := c.Write(make([]byte, 100+900*(i%2)))
		switch {
		case err == nil:
			sent += n
		case errors.Is(err, syscall.EPERM):
			refused++
		default:
			return err
		}
	}
	if refused != 10 {
		return fmt.Errorf("%d datagrams were refused", refused)
	}
	_, err = fmt.Println(os.Getpid(), sent)
	return err
}

// TestRouteMTU: a datagram travels in fragments of the MTU of its route, as the interface counts them.
func TestRouteMTU(t *testing.T) {
	a, b := netns(t)
	ip(t, "-n "+a+" route add 10.99.0.2/32 dev sfv0 mtu 1000")
	r := runExporter(t, "--metrics", "none", "--interface-interval", "0")
	srv := start(t, "mtu-server", b, "server", "10.99.0.2", "10")
	ports := srv.next()
	cl := start(t, "mtu-client", a, "client", "10.99.0.2", fmt.Sprint(ports.TCP), fmt.Sprint(ports.UDP), "1", "10").end()
	srv.end()
	time.Sleep(300 * time.Millisecond)
	r.stop()
	// 100, 101 and 5000 octets: fragments carry 976 each, (5000 + 8) / 976 makes 6.
	want := uint64(1 + 1 + 6)
	for _, j := range r.json() {
		if j.Protocol == "udp" && j.SourceEnd != nil && int(j.SourceEnd.PID) == cl.PID {
			if j.Forward.Packets != want || j.Forward.Octets != 100+101+5000+3*8+want*20 {
				t.Errorf("%+v, want %d packets", j.Forward, want)
			}
			return
		}
	}
	t.Error("no record")
}

// TestPing: echoes and their answers are one conversation, each counted once, whichever CPU answers.
func TestPing(t *testing.T) {
	a, b := netns(t)
	needTool(t, "busybox")
	must(t, "ip", "netns", "exec", b, "sh", "-c", "echo 3 >/sys/class/net/sfv1/queues/rx-0/rps_cpus")
	r := runExporter(t, "--metrics", "none", "--interface-interval", "0")
	for _, cpu := range []string{"0", "1"} {
		must(t, "ip", "netns", "exec", a, "taskset", "-c", cpu, "busybox", "ping", "-c", "3", "10.99.0.2")
	}
	time.Sleep(300 * time.Millisecond)
	r.stop()
	n := 0
	for _, j := range r.json() {
		if j.Protocol != "icmp" || j.Source.String() != "10.99.0.1" {
			continue
		}
		n++
		if j.SourceEnd == nil || j.SourceEnd.Kernel || j.DestEnd == nil || !j.DestEnd.Kernel || j.Forward.Packets != 3 || j.Reverse.Packets != 3 {
			t.Errorf("%+v %+v %+v %+v", j, j.SourceEnd, j.DestEnd, j.Reverse)
		}
	}
	if n != 2 {
		t.Errorf("%d records of two pings", n)
	}
}
