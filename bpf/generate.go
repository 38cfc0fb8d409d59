package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -go-package bpf program sockflow.bpf.c -- -O2 -mcpu=v3 -g -Wall -Werror -Iinclude -I/usr/include
