// Package bpf is the default source: socket life-cycle, datagram counters and the process table from eBPF tracepoints, cgroup hooks
// and iterators; kretprobes only where a kernel has no better hook. It alone imports cilium/ebpf.
package bpf
