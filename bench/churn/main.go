// Command churn makes what comes and goes on a host with containers, for bench/soak.sh: UDP flows, each of a socket of its own; processes, each
// with a connection; and containers, each a control group named as Docker names them and a network namespace, with a process that talks to
// itself there. All rates are per second. It prints one JSON line: how many it made.
package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// counts is what was made, and what failed.
type counts struct {
	Datagrams, Processes, Containers, Failed atomic.Uint64
}

func main() {
	datagrams := flag.Int("udp", 300, "UDP flows")
	processes := flag.Int("processes", 20, "processes")
	containers := flag.Int("containers", 2, "containers")
	duration := flag.Duration("duration", 10*time.Second, "how long")
	cgroups := flag.String("cgroups", "", "control group (v2) to make containers in; it must exist")
	connect := flag.String("connect", "", "be such a process: connect to this address")
	contained := flag.Bool("contained", false, "be the process of a container")
	flag.Parse()
	var err error
	switch {
	case *connect != "":
		err = talk(*connect)
	case *contained:
		err = live()
	default:
		err = run(*datagrams, *processes, *containers, *duration, *cgroups)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "churn:", err)
		os.Exit(1)
	}
}

func run(datagrams, processes, containers int, duration time.Duration, cgroups string) error {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go answer(tcp) // ends with the program
	udp, err := echo("127.0.0.1:0")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var made counts
	var wg sync.WaitGroup
	every := func(rate int, n *atomic.Uint64, f func() error) {
		if rate == 0 {
			return
		}
		wg.Go(func() {
			tick := time.NewTicker(time.Second / time.Duration(rate))
			defer tick.Stop()
			for end := time.After(duration); ; {
				select {
				case <-end:
					return
				case <-tick.C:
				}
				wg.Go(func() {
					if err := f(); err != nil {
						made.Failed.Add(1)
						return
					}
					n.Add(1)
				})
			}
		})
	}
	every(datagrams, &made.Datagrams, func() error { return ask(udp) })
	every(processes, &made.Processes, func() error { return exec.Command(self, "-connect", tcp.Addr().String()).Run() })
	every(containers, &made.Containers, func() error { return contain(self, cgroups) })
	wg.Wait()
	return json.NewEncoder(os.Stdout).Encode(map[string]uint64{
		"datagram_flows": made.Datagrams.Load(), "processes": made.Processes.Load(), "containers": made.Containers.Load(), "failed": made.Failed.Load(),
	})
}

// answer sends back what comes until l is closed.
func answer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() { // ends with the connection
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

// echo sends datagrams back, until the program ends.
func echo(addr string) (string, error) {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return "", err
	}
	go func() { // ends with the program
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(buf[:n], from)
		}
	}()
	return c.LocalAddr().String(), nil
}

// ask makes a UDP flow.
func ask(addr string) error {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	return exchange(c)
}

// talk makes a TCP connection.
func talk(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	return exchange(c)
}

func exchange(c net.Conn) error {
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write(make([]byte, 100)); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 100))
	return err
}

// contain runs a container to its end.
func contain(self, cgroups string) error {
	var id [32]byte
	rand.Read(id[:])
	dir := filepath.Join(cgroups, "docker-"+hex.EncodeToString(id[:])+".scope")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	group, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer group.Close()
	cmd := exec.Command(self, "-contained")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	err = cmd.Run()
	return errors.Join(err, os.Remove(dir))
}

// live is the life of a container: two seconds, with a connection and a UDP flow in each half.
func live() error {
	if err := loopbackUp(); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go answer(l) // ends with the program
	udp, err := echo("127.0.0.1:0")
	if err != nil {
		return err
	}
	for range 2 {
		if err := errors.Join(talk(l.Addr().String()), ask(udp)); err != nil {
			return err
		}
		time.Sleep(time.Second)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring the loopback up: %w", err)
	}
	return nil
}
