package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The test binary is also the programs that talk: copies of it run with trafficEnv set, under paths of their own.
const trafficEnv = "SOCKFLOW_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if mode := os.Getenv(trafficEnv); mode != "" {
		if err := traffic(mode, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if built != "" {
		os.RemoveAll(filepath.Dir(built))
	}
	os.Exit(code)
}

// counted is what a program knows of a flow by its own count.
type counted struct {
	Proto          string
	Local, Remote  netip.AddrPort
	Sent, Received uint64 // octets
	Out, In        uint64 // datagrams
	PID            int
}

// report is what a program prints at its end.
type report struct {
	PID, PPID, UID int
	Path           string
	Flows          []counted
	TCP, UDP       int // ports of a server, printed at its start
}

func newReport() *report {
	path, _ := os.Executable()
	return &report{PID: os.Getpid(), PPID: os.Getppid(), UID: os.Geteuid(), Path: path}
}

// print writes the report at once, though others write to the same pipe.
func (r *report) print() {
	// A description of its own of the pipe: those of a fork share theirs. Another program has another pipe, and may be read first.
	if f, err := os.OpenFile("/proc/self/fd/1", os.O_WRONLY, 0); err == nil {
		syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		defer f.Close()
	}
	json.NewEncoder(os.Stdout).Encode(r)
}

func addrOf(a net.Addr) netip.AddrPort {
	p := netip.MustParseAddrPort(a.String())
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// traffic is a program: server ADDR BACK; workers ADDR BACK; client ADDR TCPPORT UDPPORT CONNECTIONS SIZE; hold ADDR TCPPORT.
func traffic(mode string, args []string) error {
	switch mode {
	case "server":
		return server(args[0], args[1], args[2:]...)
	case "worker":
		return worker(args[0])
	case "workers":
		return workers(args[0], args[1])
	case "client":
		return client(args)
	case "kind":
		return kind(args[0])
	case "heir":
		return heir()
	case "idler":
		return idler(args[0])
	case "question":
		return question(args[0], args[1], args[2])
	case "refused":
		return refusedSender()
	case "unusual":
		return unusual(args[0])
	case "wire":
		return onTheWire(args[0], args[1:])
	case "mover":
		return mover(args[0], args[1])
	case "burst":
		return burst(args[0], args[1], args[2], args[3])
	case "relay":
		return relay(args[0])
	case "sidecar":
		return sidecar()
	case "hold":
		return hold(args[0], args[1])
	case "without":
		return without(args[0], args[1:])
	case "dropper":
		return dropper(args[0])
	case "headless":
		return headless(args[0])
	case "placed":
		return placed(args[0])
	}
	return fmt.Errorf("no program %q", mode)
}

func serve(l net.Listener, back int, r *report, mu *sync.Mutex) {
	var wg sync.WaitGroup
	for {
		c, err := l.Accept()
		if err != nil {
			wg.Wait()
			return
		}
		wg.Add(1)
		go func() { // ends with the connection
			defer wg.Done()
			n, _ := io.Copy(io.Discard, c)
			sent, _ := c.Write(make([]byte, back))
			c.Close()
			mu.Lock()
			r.Flows = append(r.Flows, counted{Proto: "tcp", Local: addrOf(c.LocalAddr()), Remote: addrOf(c.RemoteAddr()), Sent: uint64(sent), Received: uint64(n), PID: os.Getpid()})
			mu.Unlock()
		}()
	}
}

// server answers until its standard input ends. ports, if given, are those for TCP and UDP.
func server(ip, back string, ports ...string) error {
	n, _ := strconv.Atoi(back)
	if len(ports) == 0 {
		ports = []string{"0", "0"}
	}
	l, err := net.Listen("tcp", net.JoinHostPort(ip, ports[0]))
	if err != nil {
		return err
	}
	port, _ := strconv.Atoi(ports[1])
	u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(ip), Port: port})
	if err != nil {
		return err
	}
	r := newReport()
	r.TCP, r.UDP = l.Addr().(*net.TCPAddr).Port, u.LocalAddr().(*net.UDPAddr).Port
	r.print()
	var mu sync.Mutex
	var wg sync.WaitGroup
	wg.Add(2)
	go func() { defer wg.Done(); serve(l, n, r, &mu) }() // ends with l
	go func() {                                          // ends with u
		defer wg.Done()
		peers := map[netip.AddrPort]*counted{}
		buf := make([]byte, 65536)
		for {
			got, from, err := u.ReadFromUDPAddrPort(buf)
			if err != nil {
				mu.Lock()
				for _, c := range peers {
					r.Flows = append(r.Flows, *c)
				}
				mu.Unlock()
				return
			}
			p := peers[from]
			if p == nil {
				p = &counted{Proto: "udp", Local: addrOf(u.LocalAddr()), Remote: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), PID: os.Getpid()}
				peers[from] = p
			}
			p.In++
			p.Received += uint64(got)
			sent, _ := u.WriteToUDPAddrPort(buf[:got/2], from)
			p.Out++
			p.Sent += uint64(sent)
		}
	}()
	io.Copy(io.Discard, os.Stdin)
	l.Close()
	u.Close()
	wg.Wait()
	r.print()
	return nil
}

// workers listens and leaves accepting to two children.
func workers(ip, back string) error {
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		return err
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	r := newReport()
	r.TCP = l.Addr().(*net.TCPAddr).Port
	var kids []*exec.Cmd
	for range 2 {
		c := exec.Command(r.Path, back)
		c.Env = append(os.Environ(), trafficEnv+"=worker")
		c.ExtraFiles = []*os.File{f}
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		c.Stdin = os.Stdin
		if err := c.Start(); err != nil {
			return err
		}
		kids = append(kids, c)
	}
	r.print()
	for _, c := range kids {
		c.Wait()
	}
	return nil
}

func worker(back string) error {
	n, _ := strconv.Atoi(back)
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	r := newReport()
	var mu sync.Mutex
	done := make(chan struct{})
	go func() { serve(l, n, r, &mu); close(done) }() // ends with l
	io.Copy(io.Discard, os.Stdin)
	l.Close()
	<-done
	r.print()
	return nil
}

func client(args []string) error {
	ip := args[0]
	conns, _ := strconv.Atoi(args[3])
	size, _ := strconv.Atoi(args[4])
	r := newReport()
	for i := range conns {
		c, err := net.Dial("tcp", net.JoinHostPort(ip, args[1]))
		if err != nil {
			return err
		}
		sent, err := c.Write(make([]byte, size*(i+1)))
		if err != nil {
			return err
		}
		c.(*net.TCPConn).CloseWrite()
		n, _ := io.Copy(io.Discard, c)
		r.Flows = append(r.Flows, counted{Proto: "tcp", Local: addrOf(c.LocalAddr()), Remote: addrOf(c.RemoteAddr()), Sent: uint64(sent), Received: uint64(n), PID: r.PID})
		c.Close()
	}
	if args[2] == "0" {
		r.print()
		return nil
	}
	for i := range conns {
		connected := i%2 == 0
		var c *net.UDPConn
		var err error
		port, _ := strconv.Atoi(args[2])
		to := &net.UDPAddr{IP: net.ParseIP(ip), Port: port}
		if connected {
			c, err = net.DialUDP("udp", nil, to)
		} else {
			c, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv6unspecified})
		}
		if err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		f := counted{Proto: "udp", Local: addrOf(c.LocalAddr()), Remote: netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(port)), PID: r.PID}
		buf := make([]byte, 65536)
		for j := range i + 3 {
			n := 100 + j
			if j == 2 {
				n = 5000 // in fragments, where the MTU is less
			}
			if connected {
				n, err = c.Write(buf[:n])
			} else {
				n, err = c.WriteToUDP(buf[:n], to)
			}
			if err != nil {
				return err
			}
			f.Sent += uint64(n)
			f.Out++
			n, err = c.Read(buf)
			if err != nil {
				return err
			}
			f.Received += uint64(n)
			f.In++
		}
		c.Close()
		r.Flows = append(r.Flows, f)
	}
	r.print()
	return nil
}

// hold connects, and sends 1000 octets for each line of its standard input.
func hold(ip, port string) error {
	c, err := net.Dial("tcp", net.JoinHostPort(ip, port))
	if err != nil {
		return err
	}
	r := newReport()
	f := counted{Proto: "tcp", Local: addrOf(c.LocalAddr()), Remote: addrOf(c.RemoteAddr()), PID: r.PID}
	in := bufio.NewScanner(os.Stdin)
	fmt.Println("{}")
	for in.Scan() {
		n, err := c.Write(make([]byte, 1000))
		if err != nil {
			return err
		}
		f.Sent += uint64(n)
		fmt.Println("{}")
	}
	c.Close()
	r.Flows = []counted{f}
	r.print()
	return nil
}

// program is a running traffic program.
type program struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// start runs a copy of the test binary as the program name in a network namespace ("" is ours).
func start(t *testing.T, name, netns, mode string, args ...string) *program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.Link(self, path); err != nil { // on another file system
		b, err := os.ReadFile(self)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(filepath.Dir(path), 0o755)
	argv := append([]string{path}, args...)
	if netns != "" {
		argv = append([]string{"ip", "netns", "exec", netns}, argv...)
	}
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = append(os.Environ(), trafficEnv+"="+mode)
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	return &program{t, c, in, json.NewDecoder(out)}
}

// next reads the next report.
func (p *program) next() *report {
	p.t.Helper()
	var r report
	if err := p.out.Decode(&r); err != nil {
		p.t.Fatalf("%s: %v", strings.Join(p.cmd.Args, " "), err)
	}
	return &r
}

// advance writes a line to the program, and reads its next report.
func (p *program) advance() {
	p.t.Helper()
	if _, err := io.WriteString(p.in, "\n"); err != nil {
		p.t.Fatal(err)
	}
	p.next()
}

// end closes the program's input and returns its last report.
func (p *program) end() *report {
	p.t.Helper()
	p.in.Close()
	r := p.next()
	p.cmd.Wait()
	return r
}
