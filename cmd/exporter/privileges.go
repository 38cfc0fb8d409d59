package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What is kept once everything is attached. CAP_SYS_ADMIN is what the kernel asks of who enters another network
// namespace (setns(2)), for audits, conntrack, interfaces, and all of netlink mode.
var keptCapabilities = []uint{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_SYS_ADMIN}

// Values of --privileges. Of collect and replay, which need none, drop is least.
const (
	privilegesDrop  = "drop"
	privilegesLeast = "least"
	privilegesKeep  = "keep"
)

// confinement is what a command still needs once everything is open.
type confinement struct {
	mode         string   // of --privileges
	capabilities []uint   // kept
	calls        calls    // system calls beyond those that every command makes
	closed       bool     // only the paths below can be opened (Landlock)
	read, write  []string // paths, with what is below them
	alone        bool     // no TCP connection is made and none is listened for beside those that are open (Landlock)
}

// confine gives up everything else, for all threads and for good. What the kernel does not take is logged, and the
// program goes on.
func (c *confinement) confine(log *slog.Logger) {
	if c.mode == privilegesKeep {
		return
	}
	failed := errors.Join(dropCapabilities(c.capabilities), noNewPrivileges())
	if c.closed {
		failed = errors.Join(failed, c.closePaths(log))
	}
	if failed = errors.Join(failed, filterSystemCalls(c.calls)); failed != nil {
		log.Warn("privileges are not given up", "reason", failed)
	}
}

// onlyIn returns mode, or keep where other work of the process, such as a test, needs what would be given up.
func onlyIn(ctx context.Context, mode string) string {
	if ctx.Value(wholeProcess{}) == nil {
		return privilegesKeep
	}
	return mode
}

// allows reports whether files can be made in dir.
func (c *confinement) allows(dir string) bool {
	switch {
	case c.mode == privilegesKeep:
		return true
	case !c.closed:
		return c.calls.write
	}
	return slices.ContainsFunc(c.write, func(w string) bool { return dir == w || strings.HasPrefix(dir, strings.TrimSuffix(w, "/")+"/") })
}

// confinement is that of run and top.
func (x *probe) confinement() *confinement {
	s := x.s
	c := &confinement{
		mode: s.privileges, capabilities: keptCapabilities, write: s.outputs(),
		calls: calls{
			bpf: x.ebpf != nil, tables: x.owners != nil, setns: true, netlink: true, inet: true, unix: watchesRuntimes(&s.runtimes) || os.Getenv("NOTIFY_SOCKET") != "",
		},
	}
	c.calls.write = len(c.write) > 0
	if s.privileges != privilegesLeast {
		return c
	}
	c.calls.setns = false
	kept := []uint{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN}
	if x.owners != nil {
		// Who holds a socket is read in /proc/PID/fd, which Landlock forbids whatever its rules are: to it that is
		// tracing.
		x.log.Warn("files are not closed by Landlock: netlink snapshots find the owners of sockets in /proc")
		kept = append(kept, unix.CAP_SYS_PTRACE)
	} else {
		c.closed, c.read = true, append(s.readable(), "/proc", s.proc)
	}
	c.capabilities = kept
	return c
}

// allThreads makes a system call in every thread. A Go program with cgo cannot.
func allThreads(what string, trap, a, b, c uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall(trap, a, b, c); errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	return nil
}

// dropCapabilities keeps of the permitted, effective and inheritable ones what is in kept, and of the bounding and
// ambient sets nothing else.
func dropCapabilities(kept []uint) error {
	have, err := permitted()
	if err != nil {
		return err
	}
	if have == 0 {
		return nil
	}
	var keep uint64
	for _, c := range kept {
		keep |= 1 << c
	}
	keep &= have
	if have&(1<<unix.CAP_SETPCAP) != 0 {
		for c := uint(0); c < 64; c++ {
			if keep&(1<<c) != 0 {
				continue
			}
			// EINVAL: the kernel has no more capabilities.
			if err := allThreads("drop from the bounding set", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0); errors.Is(err, syscall.EINVAL) {
				break
			} else if err != nil {
				return err
			}
		}
	}
	if err := allThreads("clear the ambient set", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil {
		return err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(keep), Permitted: uint32(keep)},
		{Effective: uint32(keep >> 32), Permitted: uint32(keep >> 32)},
	}
	err = allThreads("set capabilities", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	runtime.KeepAlive(&header)
	runtime.KeepAlive(&data)
	return err
}

// permitted returns the permitted capabilities of this process.
func permitted() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("get capabilities: %w", err)
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32, nil
}

func noNewPrivileges() error {
	return allThreads("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
}
