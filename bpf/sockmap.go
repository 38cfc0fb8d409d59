package bpf

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
)

// SocketMaps returns how many maps of sockets (BPF_MAP_TYPE_SOCKMAP, BPF_MAP_TYPE_SOCKHASH) there are on this host:
// what programs redirect through them is in no counter of TCP. Needs CAP_SYS_ADMIN (BPF_MAP_GET_NEXT_ID).
func SocketMaps() (n int, err error) {
	for id := ebpf.MapID(0); ; {
		id, err = ebpf.MapGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("list maps: %w", err)
		}
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue // gone meanwhile
		}
		if t := m.Type(); t == ebpf.SockMap || t == ebpf.SockHash {
			n++
		}
		m.Close()
	}
}
