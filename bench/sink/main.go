// Command sink holds a UDP port of the loopback and reads nothing: the kernel drops what comes. It stands for a collector on another
// machine, whose work must not be counted as the exporter's. A port that nobody holds would not do: ICMP errors would come back.
package main

import (
	"flag"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func main() {
	port := flag.Int("port", 9995, "UDP port on 127.0.0.1")
	flag.Parse()
	if err := run(*port); err != nil {
		fmt.Fprintln(os.Stderr, "sink:", err)
		os.Exit(1)
	}
}

// run holds the port until a signal ends the process.
func run(port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0); err != nil { // the kernel makes it its least
		return fmt.Errorf("shrink receive buffer: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fmt.Errorf("bind port %d: %w", port, err)
	}
	return unix.Pause()
}
