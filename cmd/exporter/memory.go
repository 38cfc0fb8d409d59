package main

import (
	"bytes"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// shedStart gives back what only the start needed: the heap that the kernel's types took while programs were loaded, and the pages of the
// program itself, of which most ran once. Those that are needed again come back from the page cache. It halves what is resident.
func shedStart() {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range bytes.Lines(maps) {
		// start-end permissions offset device inode path
		f := strings.Fields(string(line))
		if len(f) < 6 || f[5] != exe || strings.Contains(f[1], "w") {
			continue // what was written is not in the file
		}
		from, to, _ := strings.Cut(f[0], "-")
		begin, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil && end > begin {
			// A hint to the kernel about unchanged pages of a file: nothing is lost where it is refused.
			unix.Syscall(unix.SYS_MADVISE, uintptr(begin), uintptr(end-begin), unix.MADV_DONTNEED)
		}
	}
}
