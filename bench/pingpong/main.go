// Command pingpong sends a datagram back and forth between two UDP sockets of the loopback for a fixed time and prints the exchanges
// (four system calls, two datagrams) a second. One thread for each end, which sleeps until the other has sent, as programs do; or one
// for both (-one): the loopback delivers within the send, so that nothing sleeps or wakes, and what a probe adds to a datagram shows in full.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	duration := flag.Duration("duration", 3*time.Second, "how long")
	size := flag.Int("size", 64, "octets in a datagram")
	one := flag.Bool("one", false, "one thread does both ends")
	flag.Parse()
	if err := run(*duration, *size, *one); err != nil {
		fmt.Fprintln(os.Stderr, "pingpong:", err)
		os.Exit(1)
	}
}

func run(duration time.Duration, size int, one bool) error {
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
	exchange := func() error {
		if err := send(a, ball); err != nil {
			return err
		}
		return receive(a, ball)
	}
	if one {
		exchange = func() error {
			for _, way := range [2][2]int{{a, b}, {b, a}} {
				if err := send(way[0], ball); err != nil {
					return err
				}
				if err := receive(way[1], ball); err != nil {
					return err
				}
			}
			return nil
		}
	} else {
		runtime.LockOSThread()
		go echo(b, size) // ends with the program
	}
	begin := time.Now()
	n := 0
	for ; n%64 != 0 || time.Since(begin) < duration; n++ { // the clock is read once in 64
		if err := exchange(); err != nil {
			return err
		}
	}
	fmt.Printf("%.1f\n", float64(n)/time.Since(begin).Seconds())
	return nil
}

// echo sends back what comes, until nothing does.
func echo(fd, size int) {
	runtime.LockOSThread()
	ball := make([]byte, size)
	for receive(fd, ball) == nil && send(fd, ball) == nil {
	}
}

// The system calls bypass Go's scheduler, which would wake other threads to no purpose.
func send(fd int, ball []byte) error {
	if n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&ball[0])), uintptr(len(ball))); errno != 0 || int(n) != len(ball) {
		return fmt.Errorf("send: %w", errno)
	}
	return nil
}

func receive(fd int, ball []byte) error {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&ball[0])), uintptr(len(ball)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR: // Go's scheduler signals threads
		default:
			return fmt.Errorf("receive: %w", errno)
		}
	}
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
