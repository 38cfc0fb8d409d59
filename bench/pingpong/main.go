// Command pingpong sends a datagram back and forth between two UDP sockets of the loopback for a fixed time and prints the exchanges
// (four system calls, two datagrams) a second. One thread does both ends: the loopback delivers within the send, so that nothing
// sleeps or wakes, the scheduler adds no noise, and what a probe adds to a datagram shows in full.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	duration := flag.Duration("duration", 3*time.Second, "how long")
	size := flag.Int("size", 64, "octets in a datagram")
	flag.Parse()
	if err := run(*duration, *size); err != nil {
		fmt.Fprintln(os.Stderr, "pingpong:", err)
		os.Exit(1)
	}
}

func run(duration time.Duration, size int) error {
	a, aAddr, err := bind()
	if err != nil {
		return err
	}
	b, bAddr, err := bind()
	if err != nil {
		return err
	}
	if err := unix.Connect(a, bAddr); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if err := unix.Connect(b, aAddr); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	ball := make([]byte, size)
	begin := time.Now()
	n := 0
	for ; n%64 != 0 || time.Since(begin) < duration; n++ { // the clock is read once in 64
		for _, way := range [2][2]int{{a, b}, {b, a}} {
			if _, err := unix.Write(way[0], ball); err != nil {
				return fmt.Errorf("send: %w", err)
			}
			if _, err := unix.Read(way[1], ball); err != nil {
				return fmt.Errorf("receive: %w", err)
			}
		}
	}
	fmt.Printf("%.1f\n", float64(n)/time.Since(begin).Seconds())
	return nil
}

// bind opens a UDP socket on the loopback. A read gives up after a second, in case a datagram was lost.
func bind() (int, unix.Sockaddr, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("open socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, nil, fmt.Errorf("bind: %w", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return 0, nil, fmt.Errorf("set receive timeout: %w", err)
	}
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return 0, nil, fmt.Errorf("read address: %w", err)
	}
	return fd, addr, nil
}
