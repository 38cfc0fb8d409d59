// Command empty measures what eBPF costs before any program does anything. Without flags it prints what the kernel counts for a program that
// does nothing, in nanoseconds a run: the time that reading the clock itself takes. It turns the counting on while it runs. With -hooks it
// attaches such programs to the hooks of the exporter that connections and datagrams pass, until it gets a signal: a
// null control for overhead.sh.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

func main() {
	hooks := flag.Bool("hooks", false, "attach programs that do nothing to the exporter's hooks")
	flag.Parse()
	if err := run(*hooks); err != nil {
		fmt.Fprintln(os.Stderr, "empty:", err)
		os.Exit(1)
	}
}

func run(hooks bool) error {
	if hooks {
		return attach()
	}
	ns, err := measure()
	if err != nil {
		return err
	}
	fmt.Printf("%.1f\n", ns)
	return nil
}

// returns is a program of nothing but a result.
func returns(result int32) asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, result), asm.Return()}
}

func measure() (float64, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.RawTracepoint, License: "GPL", Instructions: returns(0)})
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

// attach holds the hooks until a signal.
func attach() error {
	for _, name := range []string{"inet_sock_set_state", "sock_send_length", "sock_recv_length"} {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: name, License: "GPL", Instructions: returns(0),
		})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		l, err := link.AttachTracing(link.TracingOptions{Program: p})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer l.Close()
	}
	root, err := cgroup2Root()
	if err != nil {
		return err
	}
	for _, at := range []struct {
		program ebpf.ProgramType
		attach  ebpf.AttachType
	}{
		{ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress},
		{ebpf.CGroupSKB, ebpf.AttachCGroupInetIngress},
		{ebpf.CGroupSock, ebpf.AttachCgroupInetSockRelease},
	} {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: at.program, AttachType: at.attach, License: "GPL", Instructions: returns(1)})
		if err != nil {
			return fmt.Errorf("%s: %w", at.attach, err)
		}
		l, err := link.AttachCgroup(link.CgroupOptions{Path: root, Attach: at.attach, Program: p})
		if err != nil {
			return fmt.Errorf("%s: %w", at.attach, err)
		}
		defer l.Close()
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
	return nil
}

func cgroup2Root() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(mounts) {
		if f := bytes.Fields(line); len(f) > 2 && string(f[2]) == "cgroup2" {
			return string(f[1]), nil
		}
	}
	return "", fmt.Errorf("no cgroup2 hierarchy is mounted")
}
