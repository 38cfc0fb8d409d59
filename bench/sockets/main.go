// Command sockets opens many established TCP connections over the loopback, prints "ready" and holds them until its standard input
// ends. A process may hold only so many files, so it starts copies of itself that hold a share each.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	n := flag.Int("n", 100000, "sockets; a connection is two, a listener of each process comes on top")
	namespaces := flag.String("namespaces", "", "names of `network namespaces` (ip netns) to spread them over, separated by commas; default: this one")
	share := flag.Bool("share", false, "hold all of them in this process (what the copies do)")
	flag.Parse()
	run := start
	if *share {
		run = hold
	}
	if err := run(*n, *namespaces); err != nil {
		fmt.Fprintln(os.Stderr, "sockets:", err)
		os.Exit(1)
	}
}

// start shares n sockets out to processes, in turn over the namespaces.
func start(n int, namespaces string) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	// Go raises the soft limit to the hard one. 50 are for other files; no more than 20000 a process, for the 28000
	// ports that one listener's clients can have.
	most := int(min(limit.Max, 20000)) - 50
	names := strings.Split(namespaces, ",")
	var copies []*exec.Cmd
	var outputs []*bufio.Reader
	var inputs []io.Closer // a copy ends when its input does, also if this process is killed
	for i, name := range names {
		left := n/len(names) + btoi(i < n%len(names))
		for left > 1 {
			part := min(left, most) / 2 * 2
			left -= part
			c := exec.Command("/proc/self/exe", "-share", "-n", strconv.Itoa(part), "-namespaces", name)
			c.Stderr = os.Stderr
			out, err := c.StdoutPipe()
			if err != nil {
				return fmt.Errorf("make pipe: %w", err)
			}
			in, err := c.StdinPipe()
			if err != nil {
				return fmt.Errorf("make pipe: %w", err)
			}
			if err := c.Start(); err != nil {
				return fmt.Errorf("start a copy: %w", err)
			}
			copies, outputs, inputs = append(copies, c), append(outputs, bufio.NewReader(out)), append(inputs, in)
		}
	}
	for _, o := range outputs {
		if _, err := o.ReadString('\n'); err != nil {
			return fmt.Errorf("wait for a copy: %w", err)
		}
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	for i, c := range copies {
		inputs[i].Close()
		if err := c.Wait(); err != nil {
			return fmt.Errorf("end a copy: %w", err)
		}
	}
	return nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// hold opens n sockets, two a connection, and keeps them until standard input ends.
func hold(n int, namespace string) error {
	runtime.LockOSThread() // a namespace is a thread's
	if namespace != "" {
		fd, err := unix.Open("/run/netns/"+namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open namespace %s: %w", namespace, err)
		}
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", namespace, err)
		}
		unix.Close(fd)
	}
	listener, err := socket()
	if err != nil {
		return err
	}
	if err := unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(listener, 128); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server, err := unix.Getsockname(listener)
	if err != nil {
		return fmt.Errorf("read address: %w", err)
	}
	for i := range n / 2 {
		client, err := socket()
		if err != nil {
			return err
		}
		// The backlog takes the connection, so that one thread can be both ends.
		if err := unix.Connect(client, server); err != nil {
			return fmt.Errorf("connect number %d: %w", i, err)
		}
		if _, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC); err != nil {
			return fmt.Errorf("accept number %d: %w", i, err)
		}
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func socket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	return fd, nil
}
