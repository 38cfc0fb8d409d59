package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Cases that tests once missed: a wrong owner, or a conversation reported twice.

// unused has a child accept connections that it never sends or receives through: they are the child's.
func unused(r *report) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	defer f.Close()
	for _, how := range []string{"close", "reset", "unread", "splice", "hold"} {
		child := exec.Command(r.Path, how)
		child.Env = append(os.Environ(), trafficEnv+"=idler")
		child.ExtraFiles = []*os.File{f}
		child.Stderr = os.Stderr
		accepted, err := child.StdoutPipe()
		if err != nil {
			return err
		}
		if err := child.Start(); err != nil {
			return err
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		sent := 0
		if how == "unread" || how == "splice" {
			sent, _ = c.Write(make([]byte, 77))
		}
		if _, err := accepted.Read(make([]byte, 1)); err != nil {
			return err
		}
		if how == "hold" {
			child.Process.Kill()
		}
		if how == "splice" {
			c.(*net.TCPConn).CloseWrite()
		}
		io.Copy(io.Discard, c)
		c.Close()
		if err := child.Wait(); err != nil && how != "hold" {
			return fmt.Errorf("%s: %w", how, err)
		}
		client, server := addrOf(c.LocalAddr()), addrOf(c.RemoteAddr())
		r.tcp(client, server, sent, 0)
		r.Flows[len(r.Flows)-1].PID = child.Process.Pid
	}
	return nil
}

// idler accepts a connection of the listener that it was given, and uses it as little as how says.
func idler(how string) error {
	s, _, err := unix.Accept4(3, unix.SOCK_CLOEXEC)
	for errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		unix.Poll([]unix.PollFd{{Fd: 3, Events: unix.POLLIN}}, -1)
		s, _, err = unix.Accept4(3, unix.SOCK_CLOEXEC)
	}
	if err != nil {
		return err
	}
	switch how {
	case "unread":
		unix.Poll([]unix.PollFd{{Fd: int32(s), Events: unix.POLLIN}}, -1)
	case "reset":
		unix.SetsockoptLinger(s, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	fmt.Print(".")
	switch how {
	case "splice":
		var p [2]int
		if err := unix.Pipe(p[:]); err != nil {
			return err
		}
		for {
			n, err := unix.Splice(s, nil, p[1], nil, 1<<16, 0)
			if n == 0 && err == nil {
				break
			}
			if err != nil && err != unix.EINTR {
				return err
			}
			unix.Read(p[0], make([]byte, max(n, 0)))
		}
	case "hold":
		select {} // until it is killed
	}
	return unix.Close(s)
}

// self is a socket of TCP and one of UDP, each connected to itself: what it says and what it hears are the same octets.
func self(r *report) error {
	for proto, kind := range map[string]int{"tcp": unix.SOCK_STREAM, "udp": unix.SOCK_DGRAM} {
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		at, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		if err := unix.Connect(fd, at); err != nil {
			return err
		}
		if _, err := unix.Write(fd, make([]byte, 55)); err != nil {
			return err
		}
		if n, err := unix.Read(fd, make([]byte, 100)); n != 55 {
			return fmt.Errorf("%s: %d octets: %v", proto, n, err)
		}
		unix.Close(fd)
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(at.(*unix.SockaddrInet4).Port))
		r.Flows = append(r.Flows, counted{Proto: proto, Local: a, Remote: a, Sent: 55, Out: 1, PID: r.PID})
	}
	return nil
}

// mover puts itself into a control group and connects.
func mover(group, addr string) error {
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	r := newReport()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	n, _ := c.Write([]byte("x"))
	c.Close()
	r.Flows = []counted{{Proto: "tcp", Local: addrOf(c.LocalAddr()), Remote: addrOf(c.RemoteAddr()), Sent: uint64(n), PID: r.PID}}
	r.print()
	return nil
}

// TestMoved: a process that was put into another control group while it ran is there.
func TestMoved(t *testing.T) {
	needRoot(t)
	root := cgroup2(t)
	group := filepath.Join(root, fmt.Sprintf("sockflow-test-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { eventually(t, "the control group is empty", func() bool { return os.Remove(group) == nil }) })
	st, err := os.Stat(group)
	if err != nil {
		t.Fatal(err)
	}
	r := runExporter(t, "--metrics", "none")
	srv := start(t, "moved-server", "", "server", "127.0.0.1", "10")
	ports := srv.next()
	m := start(t, "mover", "", "mover", group, fmt.Sprintf("127.0.0.1:%d", ports.TCP)).end()
	srv.end()
	time.Sleep(200 * time.Millisecond)
	r.stop()
	_, _, ends, _ := sumJSON(r.json(), m.Flows[0])
	if len(ends) != 1 || ends[0].CGroup != st.Sys().(*syscall.Stat_t).Ino {
		t.Errorf("%+v, want control group %d", ends, st.Sys().(*syscall.Stat_t).Ino)
	}
}

// TestLossyPath: where segments are lost on the way, or refused before they leave, every octet is still reported once,
// though one end may be reported well after the other. The second end's record has no octet of the first end's record.
func TestLossyPath(t *testing.T) {
	a, b := netns(t)
	needTool(t, "iptables")
	const programs, conns, size = 24, 1, 5000
	for _, tc := range []struct {
		name  string
		rules map[string]string // by namespace
	}{
		{"lost", map[string]string{
			a: "-A INPUT -p tcp -m statistic --mode random --probability 0.2 -j DROP",
			b: "-A INPUT -p tcp -m statistic --mode random --probability 0.2 -j DROP",
		}},
		{"refused", map[string]string{a: "-A OUTPUT -p tcp -m length --length 100:65535 -m statistic --mode random --probability 0.3 -j DROP"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for ns, rule := range tc.rules {
				ip(t, "netns exec "+ns+" iptables "+rule)
				defer exec.Command("ip", "netns", "exec", ns, "iptables", "-F").Run()
			}
			r := runExporter(t, "--metrics", "none", "--snapshot-interval", "1s")
			srv := start(t, "lossy-server", b, "server", "10.99.0.2", "500")
			port := strconv.Itoa(srv.next().TCP)
			var clients []*program
			for range programs {
				clients = append(clients, start(t, "lossy-client", a, "client", "10.99.0.2", port, "0", strconv.Itoa(conns), strconv.Itoa(size)))
			}
			var flows []counted
			for _, c := range clients {
				flows = append(flows, c.end().Flows...)
			}
			srv.end()
			time.Sleep(2 * time.Second) // for a FIN to be sent again, if its acknowledgement was lost
			r.stop()
			recs := r.json()
			late := 0
			for _, c := range flows {
				var there, back uint64
				n := 0
				for _, j := range recs {
					if j.SourcePort == c.Local.Port() && j.DestPort == c.Remote.Port() {
						there, back, n = there+j.Forward.Payload, back+j.Reverse.Payload, n+1
					}
				}
				if n > 1 {
					late++
				}
				if there != c.Sent || back != c.Received || n == 0 || n > 3 {
					t.Errorf("%d records, %d octets there, %d back; the program counted %+v", n, there, back, c)
				}
			}
			t.Logf("%d connections, %d with a record for each end", len(flows), late)
		})
	}
}

// TestNamespaceLeft: the exporter does not keep a network namespace alive that everybody else has left, and with it its devices.
func TestNamespaceLeft(t *testing.T) {
	needRoot(t)
	for _, source := range []string{"ebpf", "netlink"} {
		t.Run(source, func(t *testing.T) {
			ns := fmt.Sprintf("sfleft%d", os.Getpid())
			r := runExporter(t, "--metrics", "none", "--source", source, "--snapshot-interval", "1s", "--audit-interval", "1h")
			newNamespace(t, ns)
			// A flow, so that conntrack is asked, and a pass.
			exec.Command("ip", "netns", "exec", ns, "nc", "-u", "-w", "1", "127.0.0.1", "9").Run()
			time.Sleep(1500 * time.Millisecond)
			st := namespaceOf(t, "/run/netns/"+ns)
			ip(t, "netns del "+ns)
			eventually(t, "the exporter has left", func() bool { return !holds(t, r.cmd.Process.Pid, st) })
			r.stop()
		})
	}
}

func namespaceOf(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// holds reports whether a process has a socket in a network namespace.
func holds(t *testing.T, pid int, namespace uint64) bool {
	t.Helper()
	p, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p)
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fds {
		n, _ := strconv.Atoi(f.Name())
		fd, err := unix.PidfdGetfd(p, n, 0)
		if err != nil {
			continue // closed meanwhile
		}
		ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
		unix.Close(fd)
		if err != nil {
			continue // not a socket
		}
		var st unix.Stat_t
		err = unix.Fstat(ns, &st)
		unix.Close(ns)
		if err == nil && st.Ino == namespace {
			return true
		}
	}
	return false
}
