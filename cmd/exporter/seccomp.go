package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// calls are the system calls that a command makes beyond those that every command does.
type calls struct {
	write   bool // files are made, written and removed
	seek    bool // files are read elsewhere than from their begin
	bpf     bool // maps, iterators, and attaching what is loaded
	tables  bool // descriptor tables of threads are compared
	setns   bool // network namespaces are entered
	netlink bool // sockets of these families are made
	inet    bool
	unix    bool
	listen  bool // sockets that are open already accept connections
}

// allowedCalls are made by every command: by the runtime of Go for memory, threads, signals, timers and waiting, and to
// use what is open. Those with conditions on their arguments are in seccompProgram. Everything else is refused with
// EPERM.
var allowedCalls = []uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_FUTEX, unix.SYS_EPOLL_PWAIT, unix.SYS_NANOSLEEP, unix.SYS_RECVMSG, unix.SYS_SENDMSG, unix.SYS_SENDMMSG,
	unix.SYS_RECVFROM, unix.SYS_SENDTO, unix.SYS_RECVMMSG, unix.SYS_CLOSE, unix.SYS_READV, unix.SYS_WRITEV,
	unix.SYS_MADVISE, unix.SYS_MUNMAP, unix.SYS_MREMAP, unix.SYS_BRK, unix.SYS_MINCORE, unix.SYS_MEMBARRIER,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
	unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETCPU, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_SET_TID_ADDRESS,
	unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_GETTIMEOFDAY,
	unix.SYS_SETITIMER, unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE, unix.SYS_GETRUSAGE, unix.SYS_TIMES,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EVENTFD2, unix.SYS_PPOLL, unix.SYS_PSELECT6, unix.SYS_PIPE2,
	unix.SYS_GETRANDOM, unix.SYS_UNAME, unix.SYS_SYSINFO, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_GETPPID, unix.SYS_CAPGET,
	unix.SYS_FSTAT, unix.SYS_NEWFSTATAT, unix.SYS_STATX, unix.SYS_STATFS, unix.SYS_READLINKAT, unix.SYS_GETDENTS64, unix.SYS_GETCWD,
	unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2,
	unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT, unix.SYS_SHUTDOWN,
}

var writeCalls = []uint32{
	unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_FLOCK,
	unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT,
}

// Commands of bpf(2) on what is open already: no program is loaded, and nothing of others is opened. The program for
// MPTCP is attached when MPTCP is first seen (RAW_TRACEPOINT_OPEN), where it was loaded for.
var bpfCommands = []uint32{
	unix.BPF_MAP_LOOKUP_ELEM, unix.BPF_MAP_UPDATE_ELEM, unix.BPF_MAP_DELETE_ELEM, unix.BPF_MAP_GET_NEXT_KEY, unix.BPF_MAP_LOOKUP_AND_DELETE_ELEM,
	unix.BPF_MAP_LOOKUP_BATCH, unix.BPF_MAP_LOOKUP_AND_DELETE_BATCH, unix.BPF_MAP_UPDATE_BATCH, unix.BPF_MAP_DELETE_BATCH,
	unix.BPF_OBJ_GET_INFO_BY_FD, unix.BPF_ITER_CREATE, unix.BPF_LINK_DETACH, unix.BPF_RAW_TRACEPOINT_OPEN,
}

const (
	cloneNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
	openForWriting  = unix.O_ACCMODE | unix.O_CREAT | unix.O_TRUNC
	farthest        = 7 // high half of the largest offset in a file: 32 GiB

	kcmpFiles = 2 // KCMP_FILES (include/uapi/linux/kcmp.h)

	// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h).
	seccompNumber = 0
	seccompArch   = 4
	x32           = 0x40000000
)

// seccompArg is the offset of the low half of an argument, on a little-endian machine; the high half is 4 further.
func seccompArg(n int) uint32 { return uint32(16 + 8*n) }

// filter is a seccomp program in the making (seccomp(2), classic BPF).
type filter struct{ p []unix.SockFilter }

func (f *filter) add(code uint16, k uint32, yes, no int) {
	f.p = append(f.p, unix.SockFilter{Code: code, K: k, Jt: uint8(yes), Jf: uint8(no)})
}

func (f *filter) load(offset uint32) { f.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset, 0, 0) }

func (f *filter) mask(k uint32) { f.add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, k, 0, 0) }

func (f *filter) allow() { f.add(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW, 0, 0) }

func (f *filter) refuse(errno unix.Errno) {
	f.add(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ERRNO|uint32(errno), 0, 0)
}

// allowIf allows if what is loaded is k, refuseIf refuses.
func (f *filter) allowIf(k uint32) {
	f.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, k, 0, 1)
	f.allow()
}

func (f *filter) refuseUnless(k uint32) {
	f.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, k, 1, 0)
	f.refuse(unix.EPERM)
}

// call does what condition adds for a system call, which ends in a verdict; without one it is refused.
func (f *filter) call(number uint32, condition func()) {
	at := len(f.p)
	f.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, number, 0, 0)
	condition()
	f.refuse(unix.EPERM)
	f.p[at].Jf = uint8(len(f.p) - at - 1)
}

// oneOf allows a call if an argument is one of these.
func (f *filter) oneOf(number uint32, arg int, values ...uint32) {
	f.call(number, func() {
		f.load(seccompArg(arg))
		for _, v := range values {
			f.allowIf(v)
		}
	})
}

// without allows a call if an argument has none of these bits.
func (f *filter) without(number uint32, arg int, bits uint32) {
	f.call(number, func() {
		f.load(seccompArg(arg))
		f.mask(bits)
		f.allowIf(0)
	})
}

// within allows a call if an offset in a file is small: others' memory is a file, too (/proc/PID/mem), whose offsets
// are addresses.
func (f *filter) within(number uint32, arg int, far bool) {
	f.call(number, func() {
		f.load(seccompArg(arg) + 4)
		if far {
			f.add(unix.BPF_JMP|unix.BPF_JGT|unix.BPF_K, farthest, 1, 0)
			f.allow()
			return
		}
		f.refuseUnless(0)
		f.load(seccompArg(arg))
		f.allowIf(0)
	})
}

// seccompProgram allows what c needs, and refuses everything else, also system calls by other numbers than this
// machine's own.
func seccompProgram(arch uint32, c calls) []unix.SockFilter {
	f := &filter{}
	f.load(seccompArch)
	f.refuseUnless(arch)
	f.load(seccompNumber)
	f.add(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, x32, 0, 1)
	f.refuse(unix.EPERM)
	for _, n := range slices.Concat(allowedCalls, machineCalls) {
		f.allowIf(n)
	}
	self := uint32(os.Getpid())
	f.oneOf(unix.SYS_TGKILL, 0, self)
	f.oneOf(unix.SYS_KILL, 0, self)
	f.oneOf(unix.SYS_PRLIMIT64, 0, 0)
	f.oneOf(unix.SYS_PRCTL, 0, unix.PR_SET_VMA)
	f.oneOf(unix.SYS_IOCTL, 1, unix.SIOCOUTQ, unix.SIOCINQ, unix.TCGETS, unix.TCSETS, unix.TCSETSW, unix.TCSETSF, unix.TIOCGWINSZ)
	f.oneOf(unix.SYS_FCNTL, 1, unix.F_DUPFD_CLOEXEC, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL)
	f.without(unix.SYS_MMAP, 2, unix.PROT_EXEC)
	f.without(unix.SYS_MPROTECT, 2, unix.PROT_EXEC)
	f.call(unix.SYS_CLONE, func() { // threads, and nothing else
		f.load(seccompArg(0))
		f.mask(unix.CLONE_THREAD | cloneNamespaces)
		f.allowIf(unix.CLONE_THREAD)
	})
	f.call(unix.SYS_CLONE3, func() { f.refuse(unix.ENOSYS) }) // its flags cannot be seen; libraries fall back
	f.within(unix.SYS_PREAD64, 3, c.write || c.seek)
	if c.write {
		f.allowIf(unix.SYS_OPENAT)
		f.within(unix.SYS_PWRITE64, 3, true)
		for _, n := range writeCalls {
			f.allowIf(n)
		}
	} else {
		f.without(unix.SYS_OPENAT, 2, openForWriting)
	}
	if c.write || c.seek {
		f.within(unix.SYS_LSEEK, 1, true)
	}
	if c.bpf {
		f.oneOf(unix.SYS_BPF, 0, bpfCommands...)
	}
	if c.tables {
		f.oneOf(unix.SYS_KCMP, 2, kcmpFiles)
	}
	if c.setns {
		f.oneOf(unix.SYS_SETNS, 1, unix.CLONE_NEWNET)
	}
	f.sockets(c)
	f.refuse(unix.EPERM)
	return f.p
}

func (f *filter) sockets(c calls) {
	if c.netlink || c.inet || c.unix {
		f.call(unix.SYS_SOCKET, func() {
			f.load(seccompArg(0))
			if c.unix {
				f.allowIf(unix.AF_UNIX)
			}
			if c.inet {
				f.allowIf(unix.AF_INET)
				f.allowIf(unix.AF_INET6)
			}
			if c.netlink {
				f.refuseUnless(unix.AF_NETLINK)
				f.load(seccompArg(2))
				for _, protocol := range []uint32{unix.NETLINK_ROUTE, unix.NETLINK_SOCK_DIAG, unix.NETLINK_NETFILTER} {
					f.allowIf(protocol)
				}
			}
		})
		f.allowIf(unix.SYS_BIND)
		f.allowIf(unix.SYS_CONNECT)
	}
	if c.inet {
		f.allowIf(unix.SYS_LISTEN)
	}
	if c.inet || c.listen {
		f.allowIf(unix.SYS_ACCEPT4)
	}
}

func filterSystemCalls(c calls) error {
	arch, ok := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("filter system calls: not known how on %s", runtime.GOARCH)
	}
	filter := seccompProgram(arch, c)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// TSYNC: for every thread, and those that come.
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("filter system calls: %w", errno)
	}
	return nil
}
