package main

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What is kept once everything is attached. CAP_SYS_ADMIN is what the kernel asks of who enters another network namespace (setns(2)),
// for audits, conntrack, interfaces, and all of netlink mode.
var keptCapabilities = []uint{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_SYS_ADMIN}

// Values of --privileges.
const (
	privilegesDrop  = "drop"
	privilegesLeast = "least"
	privilegesKeep  = "keep"
)

// confine gives up what is not needed any more, for all threads and for good: capabilities, new privileges (PR_SET_NO_NEW_PRIVS), and
// system calls that the program never makes. What is refused is told, and the program goes on.
func confine(mode string, log *slog.Logger) {
	if mode == privilegesKeep {
		return
	}
	kept := keptCapabilities
	if mode == privilegesLeast {
		kept = slices.DeleteFunc(slices.Clone(kept), func(c uint) bool { return c == unix.CAP_SYS_ADMIN })
	}
	if err := errors.Join(dropCapabilities(kept), noNewPrivileges(), filterSystemCalls()); err != nil {
		log.Warn("privileges are not given up", "reason", err)
	}
}

// allThreads makes a system call in every thread. A Go program with cgo cannot.
func allThreads(what string, trap, a, b, c uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall(trap, a, b, c); errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	return nil
}

// dropCapabilities keeps of the permitted, effective and inheritable ones what is in kept, and of the bounding and ambient sets nothing
// else.
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

// refusedCalls are system calls that the program never makes, and that whoever took it over would: to run another program, to change what is
// mounted, loaded or running, to read others' memory, to become somebody else.
var refusedCalls = []uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_FSOPEN, unix.SYS_FSMOUNT,
	unix.SYS_FSPICK, unix.SYS_FSCONFIG, unix.SYS_MOUNT_SETATTR, unix.SYS_UNSHARE,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME,
	unix.SYS_ADJTIMEX, unix.SYS_ACCT, unix.SYS_SYSLOG, unix.SYS_QUOTACTL, unix.SYS_VHANGUP,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_USERFAULTFD, unix.SYS_MKNODAT,
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETGROUPS, unix.SYS_SETFSUID,
	unix.SYS_SETFSGID,
}

// families are what sockets may be of.
var families = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h); of arguments the low half, on a little-endian machine.
const (
	seccompNumber = 0
	seccompArch   = 4
	seccompArg0   = 16
	x32           = 0x40000000

	// Command of bpf(2) that no one needs once everything is attached.
	bpfProgLoad = 5
)

// seccompProgram refuses with EPERM what is in refusedCalls, loading of eBPF programs, sockets of other families, and system calls by other
// numbers than this machine's own.
func seccompProgram(arch uint32) []unix.SockFilter {
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		above = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
	)
	no := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	yes := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW}
	p := []unix.SockFilter{
		{Code: load, K: seccompArch}, {Code: equal, K: arch, Jt: 1}, no,
		{Code: load, K: seccompNumber}, {Code: above, K: x32, Jf: 1}, no,
		// bpf(BPF_PROG_LOAD, ...)
		{Code: equal, K: unix.SYS_BPF, Jf: 4}, {Code: load, K: seccompArg0}, {Code: equal, K: bpfProgLoad, Jf: 1}, no, yes,
		// socket(family, ...)
		{Code: equal, K: unix.SYS_SOCKET, Jf: uint8(2*len(families) + 2)}, {Code: load, K: seccompArg0},
	}
	for _, f := range families {
		p = append(p, unix.SockFilter{Code: equal, K: f, Jf: 1}, yes)
	}
	p = append(p, no)
	for _, n := range refusedCalls {
		p = append(p, unix.SockFilter{Code: equal, K: n, Jf: 1}, no)
	}
	return append(p, yes)
}

func filterSystemCalls() error {
	arch, ok := map[string]uint32{"amd64": 0xc000003e, "arm64": 0xc00000b7}[runtime.GOARCH] // AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64
	if !ok {
		return fmt.Errorf("filter system calls: not known how on %s", runtime.GOARCH)
	}
	filter := seccompProgram(arch)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// TSYNC: for every thread, and those that come.
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("filter system calls: %w", errno)
	}
	return nil
}
