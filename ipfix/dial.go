package ipfix

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// dialer dials from the source address, and by the device, that the configuration names.
func (c *Config) dialer(network string) net.Dialer {
	return newDialer(network, c.Source, c.Device, c.resolver)
}

func newDialer(network string, source netip.Addr, device string, resolver *net.Resolver) net.Dialer {
	d := net.Dialer{Timeout: dialTimeout, Resolver: resolver, Control: func(_, _ string, raw syscall.RawConn) error { return bindToDevice(raw, device) }}
	switch {
	case !source.IsValid():
	case network == "udp":
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	default:
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	return d
}

// bindToDevice makes a socket send by a network interface or VRF alone (SO_BINDTODEVICE, socket(7)), for which Linux 5.7 wants no privilege.
func bindToDevice(raw syscall.RawConn, device string) error {
	if device == "" {
		return nil
	}
	var err error
	if e := raw.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), device) }); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("device %s: %w", device, os.NewSyscallError("setsockopt", err))
	}
	return nil
}

func parseSource(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, fmt.Errorf("%q must be an IP address of this host", s)
	}
	return a.Unmap(), nil
}

func parseDevice(s string) (string, error) {
	if s == "" || len(s) >= unix.IFNAMSIZ {
		return "", errors.New("must be the name of a network interface")
	}
	return s, nil
}
