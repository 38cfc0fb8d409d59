// Command packets writes a capture for bench/replay.sh: so many packets of so many flows, interleaved at random, most of them TCP. The
// same arguments make the same file.
package main

import (
	"bufio"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
)

const (
	captured = 94 // octets of each packet
	seconds  = 10 // all packets are within
	epoch    = 1_700_000_000
)

func main() {
	packets := flag.Int("packets", 5_000_000, "`number` of packets")
	flows := flag.Int("flows", 100_000, "`number` of flows")
	out := flag.String("o", "", "`file` to write")
	flag.Parse()
	if *out == "" || *flows < 1 || *packets < *flows {
		fmt.Fprintln(os.Stderr, "packets: -o FILE, and at least as many packets as flows")
		os.Exit(2)
	}
	if err := write(*out, *packets, *flows); err != nil {
		fmt.Fprintln(os.Stderr, "packets:", err)
		os.Exit(1)
	}
}

// flow is where a flow stands.
type flow struct {
	sent [2]uint32 // sequence numbers
	n    uint32
}

func write(path string, packets, flows int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	head := make([]byte, 24)
	binary.LittleEndian.PutUint32(head, 0xa1b2c3d4)
	binary.LittleEndian.PutUint16(head[4:], 2)
	binary.LittleEndian.PutUint16(head[6:], 4)
	binary.LittleEndian.PutUint32(head[16:], captured)
	binary.LittleEndian.PutUint32(head[20:], 1)
	w.Write(head)

	rnd := rand.New(rand.NewPCG(1, 2))
	order := rnd.Perm(flows) // every flow has a packet
	state := make([]flow, flows)
	b := make([]byte, 16+captured)
	for i := range packets {
		n := 0
		if i < flows {
			n = order[i]
		} else {
			n = rnd.IntN(flows)
		}
		packet(b[16:], n, &state[n], rnd)
		µs := uint64(i) * seconds * 1e6 / uint64(packets)
		binary.LittleEndian.PutUint32(b, epoch+uint32(µs/1e6))
		binary.LittleEndian.PutUint32(b[4:], uint32(µs%1e6))
		length := 14 + int(binary.BigEndian.Uint16(b[16+16:]))
		binary.LittleEndian.PutUint32(b[8:], uint32(min(length, captured)))
		binary.LittleEndian.PutUint32(b[12:], uint32(length))
		w.Write(b[:16+min(length, captured)])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// packet writes the next packet of flow n: every fourth flow is UDP, the others are TCP from their handshake on.
func packet(b []byte, n int, f *flow, rnd *rand.Rand) {
	clear(b)
	udp := n%4 == 3
	back := 0
	if f.n > 0 && rnd.IntN(5) < 2 || f.n == 1 {
		back = 1
	}
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip := b[14:]
	ip[0], ip[8] = 0x45, 64
	length := [...]int{60, 200, 576, 1500}[rnd.IntN(4)]
	if !udp && f.n < 3 {
		length = 40
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(length))
	// A thousand servers; clients and ports make the rest.
	client, server := 0x0a000000|uint32(n/20)&0xffffff, 0xc0a80000|uint32(n%1000)
	port, service := uint16(20000+n%40000), uint16(443)
	l4 := ip[20:]
	if udp {
		ip[9], service = 17, 53
		binary.BigEndian.PutUint16(l4[4:], uint16(length-20))
	} else {
		ip[9] = 6
		l4[12], l4[13] = 5<<4, 0x10
		binary.BigEndian.PutUint32(l4[4:], f.sent[back])
		binary.BigEndian.PutUint32(l4[8:], f.sent[1-back])
		f.sent[back] += uint32(length - 40)
		switch f.n {
		case 0:
			l4[13] = 0x02
			f.sent[back]++
		case 1:
			l4[13] = 0x12
			f.sent[back]++
		}
	}
	if back == 1 {
		client, server, port, service = server, client, service, port
	}
	binary.BigEndian.PutUint32(ip[12:], client)
	binary.BigEndian.PutUint32(ip[16:], server)
	binary.BigEndian.PutUint16(l4, port)
	binary.BigEndian.PutUint16(l4[2:], service)
	f.n++
}
