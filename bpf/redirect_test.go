package bpf

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/sockflow/sockflow/flowcache"
)

// TestRedirected: octets that a program of a sockmap redirects from one socket to the other, past TCP, count for both.
func TestRedirected(t *testing.T) {
	needRoot(t)
	sockets, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockMap, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer sockets.Close()
	redirect, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SkMsg, License: "GPL", Instructions: asm.Instructions{
		asm.LoadMapPtr(asm.R2, sockets.FD()),
		asm.Mov.Imm(asm.R3, 1), // to the server's socket
		asm.Mov.Imm(asm.R4, 1), // BPF_F_INGRESS: what it reads
		asm.FnMsgRedirectMap.Call(),
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer redirect.Close()
	if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: sockets.FD(), Program: redirect, Attach: ebpf.AttachSkMsgVerdict}); err != nil {
		t.Fatal(err)
	}
	stop := start(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []net.Conn{client, server} {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var failed error
		if err := raw.Control(func(fd uintptr) { failed = sockets.Put(uint32(i), uint32(fd)) }); err != nil || failed != nil {
			t.Fatal(err, failed)
		}
	}
	const turns, size = 300, 1000
	buf := make([]byte, size)
	for range turns {
		if _, err := client.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, buf); err != nil {
			t.Fatal(err)
		}
	}
	port := uint16(client.LocalAddr().(*net.TCPAddr).Port)
	client.Close()
	server.Close()
	time.Sleep(100 * time.Millisecond)
	obs, _ := stop()
	ends := 0
	for _, o := range obs {
		if o.Event != flowcache.EventEnd || o.Key.SrcPort != port && o.Key.DstPort != port {
			continue
		}
		ends++
		if o.Out.Payload+o.In.Payload != turns*size || (o.Key.SrcPort == port) != (o.Out.Payload > 0) {
			t.Errorf("%d octets out, %d in, of %d", o.Out.Payload, o.In.Payload, turns*size)
		}
	}
	if ends != 2 {
		t.Errorf("%d ends", ends)
	}
}
