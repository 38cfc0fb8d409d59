// Command empty prints what the kernel counts for an eBPF program that does nothing, in nanoseconds a run: the time that reading the clock
// itself takes. It turns the counting on while it runs.
package main

import (
	"fmt"
	"os"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

func main() {
	ns, err := measure()
	if err != nil {
		fmt.Fprintln(os.Stderr, "empty:", err)
		os.Exit(1)
	}
	fmt.Printf("%.1f\n", ns)
}

func measure() (float64, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.RawTracepoint, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return 0, err
	}
	defer p.Close()
	counting, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return 0, err
	}
	defer counting.Close()
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sys_enter", Program: p})
	if err != nil {
		return 0, err
	}
	defer l.Close()
	for range 1_000_000 {
		syscall.Getppid()
	}
	st, err := p.Stats()
	if err != nil || st.RunCount == 0 {
		return 0, fmt.Errorf("it never ran: %w", err)
	}
	return float64(st.Runtime.Nanoseconds()) / float64(st.RunCount), nil
}
