package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
)

// received are the messages that a sink has.
type received struct {
	mu   sync.Mutex
	list [][]byte
}

func (r *received) add(msg []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, bytes.Clone(msg))
}

func (r *received) messages() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

// udpSink receives datagrams, for decoders that want them in a file or in memory.
type udpSink struct {
	conn *net.UDPConn
	received
}

func newUDPSink(t *testing.T) *udpSink {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return newUDPSinkOn(t, c)
}

func newUDPSinkOn(t *testing.T, c *net.UDPConn) *udpSink {
	t.Helper()
	c.SetReadBuffer(8 << 20)
	s := &udpSink{conn: c}
	t.Cleanup(func() { c.Close() })
	go func() { // ends with c
		buf := make([]byte, 65536)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			s.add(buf[:n])
		}
	}()
	return s
}

func (s *udpSink) port() int { return s.conn.LocalAddr().(*net.UDPAddr).Port }

// tcpSink stores what one connection after the other brings.
type tcpSink struct {
	l    net.Listener
	data syncBuffer
}

func newTCPSink(t *testing.T, addr string) *tcpSink {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return newTCPSinkOn(t, l)
}

func newTCPSinkOn(t *testing.T, l net.Listener) *tcpSink {
	t.Helper()
	s := &tcpSink{l: l}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(&s.data, c)
			c.Close()
		}
	}()
	return s
}

func (s *tcpSink) bytes() []byte { return []byte(s.data.String()) }

// freePort returns a port that nobody has, below those that connections take.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 10000 + rand.IntN(20000)
		u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			continue
		}
		u.Close()
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		return port
	}
	t.Fatal("no free port")
	return 0
}
