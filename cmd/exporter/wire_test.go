package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Connections whose packets the socket does not count itself, held to what tcpdump saw of them.

// onTheWire is a program for each test.
func onTheWire(name string, args []string) error {
	l := lines{bufio.NewReader(os.Stdin)}
	r := newReport()
	var err error
	switch name {
	case "fast-open":
		err = fastOpens(r, args[0])
	case "closed-first":
		err = closedFirst(r)
	case "given-up":
		err = givenUp(r, args)
	case "mptcp":
		err = overMPTCP(r)
	case "silent-receiver":
		err = silentReceiver(l, r)
	default:
		err = errors.New("no such program")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r.print()
	return nil
}

func tcpSocket(at netip.Addr, proto int) (int, error) {
	family := unix.AF_INET6
	if at.Is4() {
		family = unix.AF_INET
	}
	return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, proto)
}

// connectAccepted returns the sockets of a connection to the listener ln at to: the client's and the server's.
func connectAccepted(ln int, to netip.AddrPort, proto int) (client, server int, err error) {
	if client, err = tcpSocket(to.Addr(), proto); err != nil {
		return -1, -1, err
	}
	if err = unix.Connect(client, sockaddrOf(to)); err != nil {
		return -1, -1, err
	}
	server, _, err = unix.Accept(ln)
	return client, server, err
}

func sockaddrOf(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func localOf(fd int) netip.AddrPort {
	switch a, _ := unix.Getsockname(fd); a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}

func listenAt(at netip.Addr, proto int) (fd int, addr netip.AddrPort, err error) {
	if fd, err = tcpSocket(at, proto); err != nil {
		return
	}
	if err = unix.Bind(fd, sockaddrOf(netip.AddrPortFrom(at, 0))); err != nil {
		return
	}
	return fd, localOf(fd), unix.Listen(fd, 8)
}

// readOctets reads n octets, or to the end.
func readOctets(fd, n int) error {
	for buf := make([]byte, 4096); n > 0; {
		got, err := unix.Read(fd, buf[:min(n, len(buf))])
		if err != nil || got == 0 {
			return err
		}
		n -= got
	}
	return nil
}

// fastOpens makes connections by TCP Fast Open: the first asks for a cookie, the others have data and the cookie in their SYN.
func fastOpens(r *report, at string) error {
	ln, to, err := listenAt(netip.MustParseAddr(at), 0)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(ln, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 8); err != nil {
		return err
	}
	for range 4 {
		c, err := tcpSocket(to.Addr(), 0)
		if err != nil {
			return err
		}
		if err := unix.Sendto(c, make([]byte, 100), unix.MSG_FASTOPEN, sockaddrOf(to)); err != nil {
			return err
		}
		s, _, err := unix.Accept(ln)
		if err != nil {
			return err
		}
		r.Flows = append(r.Flows, counted{Proto: "tcp", Local: localOf(c), Remote: to, Sent: 100, Received: 50, PID: r.PID})
		err = errors.Join(readOctets(s, 100), second(unix.Write(s, make([]byte, 50))), readOctets(c, 50), unix.Shutdown(c, unix.SHUT_WR), readOctets(s, 1), unix.Close(s), readOctets(c, 1), unix.Close(c))
		if err != nil {
			return err
		}
	}
	return nil
}

func second(_ int, err error) error { return err }

var abort = &unix.Linger{Onoff: 1}

// closedFirst has connections whose client closes first: a TIME_WAIT socket is there when the server closes, aborts or sends on, at once or when the
// client's end has been reported.
func closedFirst(r *report) error {
	ln, to, err := listenAt(netip.MustParseAddr("127.0.0.1"), 0)
	if err != nil {
		return err
	}
	for _, wait := range []time.Duration{10 * time.Millisecond, 1500 * time.Millisecond} {
		for _, how := range []string{"closes", "aborts", "sends", "has more to read"} {
			c, s, err := connectAccepted(ln, to, 0)
			if err != nil {
				return err
			}
			f := counted{Proto: "tcp", Local: localOf(c), Remote: to, Sent: 100, PID: r.PID}
			if _, err := unix.Write(c, make([]byte, 100)); err != nil {
				return err
			}
			if how != "has more to read" {
				if err := readOctets(s, 100); err != nil {
					return err
				}
			}
			unix.Close(c)
			time.Sleep(wait)
			switch how {
			case "aborts":
				unix.SetsockoptLinger(s, unix.SOL_SOCKET, unix.SO_LINGER, abort)
			case "sends":
				unix.Write(s, make([]byte, 30))
				f.Received = 30
				readOctets(s, 1) // until the reset
			}
			unix.Close(s)
			r.Flows = append(r.Flows, f)
		}
	}
	return nil
}

// givenUp has connections that never get an answer, and gives them up in every way, at once and when a SYN has been sent again.
func givenUp(r *report, to []string) error {
	for _, wait := range []time.Duration{0, 2500 * time.Millisecond} {
		for _, at := range to {
			for _, how := range []string{"close", "linger", "shutdown", "disconnect"} {
				remote := netip.MustParseAddrPort(at)
				c, err := tcpSocket(remote.Addr(), 0)
				if err != nil {
					return err
				}
				unix.SetNonblock(c, true)
				if err := unix.Connect(c, sockaddrOf(remote)); !errors.Is(err, unix.EINPROGRESS) {
					return fmt.Errorf("connect to %s: %w", at, err)
				}
				r.Flows = append(r.Flows, counted{Proto: "tcp", Local: localOf(c), Remote: remote, PID: r.PID})
				time.Sleep(wait)
				switch how {
				case "linger":
					unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, abort)
				case "shutdown":
					unix.Shutdown(c, unix.SHUT_RDWR)
				case "disconnect":
					none := unix.RawSockaddr{Family: unix.AF_UNSPEC}
					unix.Syscall(unix.SYS_CONNECT, uintptr(c), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none))
				}
				unix.Close(c)
			}
		}
	}
	return nil
}

// overMPTCP has short connections, each closed by another end.
func overMPTCP(r *report) error {
	ln, to, err := listenAt(netip.MustParseAddr("127.0.0.1"), unix.IPPROTO_MPTCP)
	if err != nil {
		return err
	}
	for i := range 4 {
		c, s, err := connectAccepted(ln, to, unix.IPPROTO_MPTCP)
		if err != nil {
			return err
		}
		r.Flows = append(r.Flows, counted{Proto: "tcp", Local: localOf(c), Remote: to, Sent: 100, Received: 50, PID: r.PID})
		first, last := c, s
		if i%2 == 1 {
			first, last = s, c
		}
		err = errors.Join(second(unix.Write(c, make([]byte, 100))), readOctets(s, 100), second(unix.Write(s, make([]byte, 50))), readOctets(c, 50), unix.Close(first), readOctets(last, 1), unix.Close(last))
		if err != nil {
			return err
		}
	}
	return nil
}

// silentReceiver binds a socket, and long after that, when the exporter has started, is sent datagrams that it reads late or never.
func silentReceiver(l lines, r *report) error {
	var sockets []*net.UDPConn
	for range 2 {
		u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return err
		}
		sockets = append(sockets, u)
		r.Flows = append(r.Flows, counted{Proto: "udp", Local: addrOf(u.LocalAddr()), In: 10, Received: 1000, PID: r.PID})
	}
	r.print()
	if err := l.wait(); err != nil { // all has been sent
		return err
	}
	_, err := sockets[0].Read(make([]byte, 100))
	return err
}

type wireCount struct{ packets, octets uint64 }

// byTuple counts what it saw from one address and port to another.
func (c *capture) byTuple() map[[2]netip.AddrPort]wireCount {
	c.t.Helper()
	needTool(c.t, "tshark")
	out, err := exec.Command("tshark", "-r", c.file, "-Y", "tcp", "-T", "fields", "-e", "ip.src", "-e", "ipv6.src", "-e", "tcp.srcport", "-e", "ip.dst", "-e", "ipv6.dst",
		"-e", "tcp.dstport", "-e", "ip.len", "-e", "ipv6.plen").Output()
	if err != nil {
		c.t.Fatal(err)
	}
	all := map[[2]netip.AddrPort]wireCount{}
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimRight(line, "\n"), "\t")
		n, err := strconv.Atoi(f[6])
		if err != nil {
			n, _ = strconv.Atoi(f[7])
			n += 40
		}
		k := [2]netip.AddrPort{netip.MustParseAddrPort(net.JoinHostPort(f[0]+f[1], f[2])), netip.MustParseAddrPort(net.JoinHostPort(f[3]+f[4], f[5]))}
		all[k] = wireCount{all[k].packets + 1, all[k].octets + uint64(n)}
	}
	return all
}

// of sums the records of a connection, there and back, that the test wants.
func of(recs []jsonRecord, c counted, want func(*jsonRecord) bool) (there, back wireCount, n int) {
	for i := range recs {
		j := &recs[i]
		if netip.AddrPortFrom(j.Source, j.SourcePort) == c.Local && netip.AddrPortFrom(j.Dest, j.DestPort) == c.Remote && want(j) {
			there = wireCount{there.packets + j.Forward.Packets, there.octets + j.Forward.Octets}
			back = wireCount{back.packets + j.Reverse.Packets, back.octets + j.Reverse.Octets}
			n++
		}
	}
	return
}

func every(*jsonRecord) bool { return true }

// TestFastOpen: each end's packets and octets of TCP Fast Open. What neither socket knows is what the first connection, which asks for a cookie, gets
// (12 octets in the SYN-ACK), and the server's also that it was asked (4 in the SYN).
func TestFastOpen(t *testing.T) {
	a, _ := netns(t)
	must(t, "ip", "netns", "exec", a, "sysctl", "-qw", "net.ipv4.tcp_fastopen=3")
	r := runExporter(t, "--metrics", "none", "--interface-interval", "0", "--local-pairs", "separate")
	wire := startCapture(t, a, "lo")
	var flows []counted
	for _, at := range []string{"127.0.0.1", "::1"} {
		flows = append(flows, start(t, "fast-open", a, "wire", "fast-open", at).end().Flows...)
	}
	time.Sleep(500 * time.Millisecond)
	r.stop()
	wire.stop()
	recs, seen := r.json(), wire.byTuple()
	for i, c := range flows {
		there, back := seen[[2]netip.AddrPort{c.Local, c.Remote}], seen[[2]netip.AddrPort{c.Remote, c.Local}]
		client := [2]wireCount{there, back}
		server := client
		if i%4 == 0 {
			client[1].octets -= 12
			server[0].octets -= 4
			server[1].octets -= 12
		}
		for _, end := range []struct {
			name string
			want [2]wireCount
			is   func(j *jsonRecord) bool
		}{{"client", client, func(j *jsonRecord) bool { return j.SourceEnd != nil }}, {"server", server, func(j *jsonRecord) bool { return j.DestEnd != nil }}} {
			out, in, n := of(recs, c, end.is)
			if got := [2]wireCount{out, in}; n != 1 || got != end.want {
				t.Errorf("connection %d to %v, %s: %+v in %d records, want %+v", i, c.Remote, end.name, got, n, end.want)
			}
		}
	}
}

// TestClosedFirst: what follows when the client's socket is gone is counted as it was, whatever the server does.
func TestClosedFirst(t *testing.T) {
	a, _ := netns(t)
	r := runExporter(t, "--metrics", "none", "--interface-interval", "0")
	wire := startCapture(t, a, "lo")
	flows := start(t, "closed-first", a, "wire", "closed-first").end().Flows
	time.Sleep(500 * time.Millisecond)
	r.stop()
	wire.stop()
	recs, seen := r.json(), wire.byTuple()
	for i, c := range flows {
		there, back, n := of(recs, c, every)
		if w := [2]wireCount{seen[[2]netip.AddrPort{c.Local, c.Remote}], seen[[2]netip.AddrPort{c.Remote, c.Local}]}; n == 0 || w != [2]wireCount{there, back} {
			t.Errorf("connection %d: %+v and %+v in %d records, on the wire %+v", i, there, back, n, w)
		}
	}
}

// TestGivenUp: a connection that is given up before there was an answer is one record, with the SYNs that were sent and its owner.
func TestGivenUp(t *testing.T) {
	a, _ := netns(t)
	ip(t, "-n "+a+" neigh add 10.99.0.77 lladdr 02:00:00:00:00:77 dev sfv0 nud permanent")
	ip(t, "-n "+a+" neigh add fd99::77 lladdr 02:00:00:00:00:77 dev sfv0 nud permanent")
	r := runExporter(t, "--metrics", "none", "--interface-interval", "0", "--snapshot-interval", "1s", "--audit-interval", "1s")
	wire := startCapture(t, a, "sfv0")
	p := start(t, "given-up", a, "wire", "given-up", "10.99.0.77:99", "[fd99::77]:99")
	flows := p.end().Flows
	time.Sleep(2500 * time.Millisecond) // audits find no more
	r.stop()
	wire.stop()
	recs, seen := r.json(), wire.byTuple()
	for i, c := range flows {
		is := []counted{c}
		if c.Local.Addr().Is6() { // given up before a pass has seen it
			is = append(is, c)
			is[1].Local = netip.AddrPortFrom(netip.IPv6Unspecified(), c.Local.Port())
		}
		var there, back wireCount
		var n int
		for _, c := range is {
			x, y, m := of(recs, c, func(j *jsonRecord) bool { return j.SourceEnd != nil && int(j.SourceEnd.PID) == c.PID })
			there, back, n = wireCount{there.packets + x.packets, there.octets + x.octets}, wireCount{back.packets + y.packets, back.octets + y.octets}, n+m
		}
		if w := seen[[2]netip.AddrPort{c.Local, c.Remote}]; n != 1 || w != there || back != (wireCount{}) || w.packets == 0 {
			t.Errorf("connection %d from %v: %+v and %+v in %d records, on the wire %+v", i, c.Local, there, back, n, w)
		}
	}
}

// TestFirstMPTCP: every end of the first MPTCP connections after the start is reported, or counted as lost.
func TestFirstMPTCP(t *testing.T) {
	needRoot(t)
	if b, err := os.ReadFile("/proc/sys/net/mptcp/enabled"); err != nil || strings.TrimSpace(string(b)) != "1" {
		t.Skip("no MPTCP here")
	}
	port := freePort(t)
	r := runExporter(t, "--metrics", fmt.Sprintf("127.0.0.1:%d", port), "--interface-interval", "0", "--snapshot-interval", "1s", "--audit-interval", "1s")
	flows := start(t, "first-mptcp", "", "wire", "mptcp").end().Flows
	time.Sleep(2500 * time.Millisecond) // audits find no more
	causes := scrape(t, port)
	lost := sum(causes, "sockflow_lost_total", `"mptcp_subflow"`) + sum(causes, "sockflow_lost_total", `"unseen_end"`)
	r.stop()
	ends := 0
	for _, j := range r.json() {
		if !slices.ContainsFunc(flows, func(c counted) bool { return j.SourcePort == c.Local.Port() && j.DestPort == c.Remote.Port() }) {
			continue
		}
		for _, e := range []*jsonEnd{j.SourceEnd, j.DestEnd} {
			if e != nil {
				ends++
			}
		}
	}
	t.Logf("%d connections: %d ends, %v counted as lost", len(flows), ends, lost)
	if want := 2 * len(flows); ends > want || float64(ends)+lost < float64(want) {
		t.Errorf("%d connections: %d ends, %v counted as lost", len(flows), ends, lost)
		for cause, n := range causes {
			if strings.HasPrefix(cause, "sockflow_lost_total") && n > 0 {
				t.Log(cause, n)
			}
		}
	}
}

// TestSilentReceiver: who owns a socket that was bound before the exporter started, or after its latest pass, and was sent datagrams which it reads
// late, or never.
func TestSilentReceiver(t *testing.T) {
	needRoot(t)
	older := start(t, "silent-older", "", "wire", "silent-receiver")
	flows := older.next().Flows
	r := runExporter(t, "--metrics", "none", "--interface-interval", "0", "--snapshot-interval", "1h")
	younger := start(t, "silent-younger", "", "wire", "silent-receiver")
	flows = append(flows, younger.next().Flows...)
	for _, c := range flows {
		s, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(c.Local))
		if err != nil {
			t.Fatal(err)
		}
		for range c.In {
			if _, err := s.Write(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
	}
	time.Sleep(2500 * time.Millisecond) // their senders are gone, and the records have left
	older.advance()
	younger.advance()
	older.end()
	younger.end()
	time.Sleep(500 * time.Millisecond)
	r.stop()
	recs := r.json()
	for _, c := range flows {
		var n uint64
		for _, j := range recs {
			if j.DestPort != c.Local.Port() || j.Protocol != "udp" {
				continue
			}
			n += j.Forward.Packets
			if j.DestEnd == nil || int(j.DestEnd.PID) != c.PID {
				t.Errorf("the receiver of %+v is %+v, not process %d", j.Forward, j.DestEnd, c.PID)
			}
		}
		if n != c.In {
			t.Errorf("%d datagrams, want %d", n, c.In)
		}
	}
}
