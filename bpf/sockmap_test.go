package bpf

import (
	"testing"

	"github.com/cilium/ebpf"
)

func TestSocketMaps(t *testing.T) {
	needRoot(t)
	before, err := SocketMaps()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []ebpf.MapType{ebpf.SockMap, ebpf.SockHash, ebpf.Array} {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: kind, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
	}
	if n, err := SocketMaps(); err != nil || n != before+2 {
		t.Errorf("%d maps of sockets, %d before; %v", n, before, err)
	}
}
