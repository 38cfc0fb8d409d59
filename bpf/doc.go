// Package bpf is the default source: socket life-cycle, datagram counters and the process table from eBPF tracepoints, cgroup hooks
// and iterators (no kprobe). It alone imports cilium/ebpf.
package bpf
