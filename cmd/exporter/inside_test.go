//go:build amd64

package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// insider makes system calls in a thread of another process, as an intruder would: by ptrace(2), and subject to all
// that the process has given up.
type insider struct {
	t       *testing.T
	tid     int
	regs    unix.PtraceRegs // as they were
	scratch uintptr         // a page for arguments
	number  uintptr         // of the call under way
}

// enter stops a thread of a process that waits in a system call. Only the calling goroutine may use it, until leave.
func enter(t *testing.T, pid int) *insider {
	t.Helper()
	runtime.LockOSThread()
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, task := range tasks {
		tid, _ := strconv.Atoi(filepath.Base(task))
		if tid == pid {
			continue // who waits for its child gets the stops of this thread, too
		}
		if err := unix.PtraceSeize(tid); err != nil {
			t.Fatalf("seize %d: %v", tid, err)
		}
		if err := unix.PtraceInterrupt(tid); err != nil {
			t.Fatal(err)
		}
		i := &insider{t: t, tid: tid}
		i.wait()
		if err := unix.PtraceGetRegs(tid, &i.regs); err != nil {
			t.Fatal(err)
		}
		if int64(i.regs.Orig_rax) < 0 {
			unix.PtraceDetach(tid)
			continue
		}
		page, err := i.call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
		if err != nil {
			t.Fatalf("mmap inside: %v", err)
		}
		i.scratch = page
		return i
	}
	t.Fatal("no thread waits")
	return nil
}

func (i *insider) wait() {
	i.t.Helper()
	var ws unix.WaitStatus
	for deadline := time.Now().Add(patience()); ; {
		if pid, err := unix.Wait4(i.tid, &ws, unix.WALL|unix.WNOHANG, nil); err != nil || pid != 0 && !ws.Stopped() {
			i.t.Fatalf("wait: %#x, %v", ws, err)
		} else if pid != 0 {
			return
		}
		if time.Now().After(deadline) {
			state, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", i.tid))
			i.t.Fatalf("the thread does not stop in call %d\n%s", i.number, state)
		}
		runtime.Gosched()
	}
}

// leave lets the thread go on.
func (i *insider) leave() {
	i.call(unix.SYS_MUNMAP, i.scratch, 4096)
	if err := unix.PtraceSetRegs(i.tid, &i.regs); err != nil {
		i.t.Fatal(err)
	}
	unix.PtraceDetach(i.tid)
	runtime.UnlockOSThread()
}

// call makes a system call. The thread stands behind an instruction that makes one.
func (i *insider) call(number uintptr, args ...uintptr) (uintptr, error) {
	i.t.Helper()
	i.number = number
	var a [6]uintptr
	copy(a[:], args)
	r := i.regs
	r.Rip -= 2
	r.Rax, r.Orig_rax = uint64(number), ^uint64(0)
	r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9 = uint64(a[0]), uint64(a[1]), uint64(a[2]), uint64(a[3]), uint64(a[4]), uint64(a[5])
	if err := unix.PtraceSetRegs(i.tid, &r); err != nil {
		i.t.Fatal(err)
	}
	if err := unix.PtraceSingleStep(i.tid); err != nil {
		i.t.Fatal(err)
	}
	i.wait()
	if err := unix.PtraceGetRegs(i.tid, &r); err != nil {
		i.t.Fatal(err)
	}
	if n := int64(r.Rax); n < 0 && n > -4096 {
		return 0, syscall.Errno(-n)
	}
	return uintptr(r.Rax), nil
}

// put writes into the page of arguments, and returns where.
func (i *insider) put(at int, b []byte) uintptr {
	i.t.Helper()
	if _, err := unix.PtracePokeData(i.tid, i.scratch+uintptr(at), b); err != nil {
		i.t.Fatal(err)
	}
	return i.scratch + uintptr(at)
}

func (i *insider) path(s string) uintptr { return i.put(0, append([]byte(s), 0)) }

// open opens a file and closes it again.
func (i *insider) open(path string, flags int) error {
	i.t.Helper()
	at := unix.AT_FDCWD
	fd, err := i.call(unix.SYS_OPENAT, uintptr(at), i.path(path), uintptr(flags|unix.O_CLOEXEC), 0o600)
	if err == nil {
		i.call(unix.SYS_CLOSE, fd)
	}
	return err
}

func (i *insider) socket(family, kind, protocol int) error {
	fd, err := i.call(unix.SYS_SOCKET, uintptr(family), uintptr(kind), uintptr(protocol))
	if err == nil {
		i.call(unix.SYS_CLOSE, fd)
	}
	return err
}

// readlink reads a link.
func (i *insider) readlink(path string) error {
	at := unix.AT_FDCWD
	_, err := i.call(unix.SYS_READLINKAT, uintptr(at), i.path(path), i.scratch+2048, 1024)
	return err
}

// memory reads eight octets at an address of another process by /proc/PID/mem, in every way to choose a place in a
// file.
func (i *insider) memory(pid int, address uintptr) error {
	at := unix.AT_FDCWD
	fd, err := i.call(unix.SYS_OPENAT, uintptr(at), i.path(fmt.Sprintf("/proc/%d/mem", pid)), unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer i.call(unix.SYS_CLOSE, fd)
	if n, err := i.call(unix.SYS_PREAD64, fd, i.scratch+2048, 8, address); err == nil && n > 0 {
		return nil
	}
	iov := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(i.scratch+2048)), 8)
	if n, err := i.call(unix.SYS_PREADV, fd, i.put(1024, iov), 1, address, 0); err == nil && n > 0 {
		return nil
	}
	if n, err := i.call(unix.SYS_PREADV2, fd, i.put(1024, iov), 1, address, 0, 0); err == nil && n > 0 {
		return nil
	}
	if _, err := i.call(unix.SYS_LSEEK, fd, address, 0); err != nil {
		return err
	}
	_, err = i.call(unix.SYS_READ, fd, i.scratch+2048, 8)
	return err
}

// mappedAt returns the lowest address of a process's stack, heap or text, as maps names them.
func mappedAt(t *testing.T, pid int, name string) uintptr {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasSuffix(strings.TrimSpace(line), name) {
			from, _, _ := strings.Cut(line, "-")
			n, _ := strconv.ParseUint(from, 16, 64)
			return uintptr(n)
		}
	}
	t.Fatalf("no %s in %s", name, b)
	return 0
}
