// Command pod talks TCP and UDP as the tests of containers want: it serves at one port, and talks to each address on
// its command line.
//
//	pod [-serve PORT] [-for DURATION] [-wait DURATION] [-times N | -every DURATION] [-hold] HOST:PORT...
package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

func main() {
	port := flag.Int("serve", 0, "serve TCP and UDP at this port")
	life := flag.Duration("for", 0, "how long to live")
	wait := flag.Duration("wait", 0, "how long to wait before talking")
	times := flag.Int("times", 1, "how often to talk to each")
	every := flag.Duration("every", 0, "talk to each again and again, so often, by new sockets, for as long as it lives")
	hold := flag.Bool("hold", false, "with -every, keep one connection to each besides, and make another when it fails")
	flag.Parse()
	end := time.Now().Add(*life)
	if *port != 0 {
		if err := serve(*port); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	time.Sleep(*wait)
	if *every != 0 {
		for _, to := range flag.Args() {
			go again(to, *every, shortTCP)
			go again(to, *every, shortUDP)
			if *hold {
				go again(to, *every, func(to string) { held(to, *every) })
			}
		}
		time.Sleep(time.Until(end))
		return
	}
	var wg sync.WaitGroup
	for _, to := range flag.Args() {
		wg.Add(2)
		for _, talk := range []func(string){tcp, udp} {
			go func() { // ends with its conversations
				defer wg.Done()
				for range *times {
					talk(to)
				}
			}()
		}
	}
	wg.Wait()
	time.Sleep(time.Until(end))
}

func serve(port int) error {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	u, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		return err
	}
	go func() { // ends with the program
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				io.Copy(io.Discard, c)
				c.Write([]byte("and good bye"))
				c.Close()
			}()
		}
	}()
	go func() { // ends with the program
		b := make([]byte, 2048)
		for {
			n, from, err := u.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			u.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	return nil
}

func tcp(to string) {
	c, err := net.DialTimeout("tcp", to, 2*time.Second)
	if err != nil {
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	c.Write([]byte("hello"))
	c.(*net.TCPConn).CloseWrite()
	io.Copy(io.Discard, c)
}

func udp(to string) {
	c, err := net.Dial("udp", to)
	if err != nil {
		return
	}
	defer c.Close()
	b := make([]byte, 2048)
	for range 2 {
		c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		c.Write(b[:100])
		c.Read(b)
	}
}

// again talks until the program ends.
func again(to string, every time.Duration, talk func(string)) {
	for {
		next := time.Now().Add(every)
		talk(to)
		time.Sleep(time.Until(next))
	}
}

func shortTCP(to string) {
	c, err := net.DialTimeout("tcp", to, 200*time.Millisecond)
	if err != nil {
		return
	}
	c.SetDeadline(time.Now().Add(200 * time.Millisecond))
	c.Write([]byte("hello"))
	c.(*net.TCPConn).CloseWrite()
	io.Copy(io.Discard, c)
	c.Close()
}

func shortUDP(to string) {
	c, err := net.Dial("udp", to)
	if err != nil {
		return
	}
	c.SetDeadline(time.Now().Add(50 * time.Millisecond))
	c.Write([]byte("hello"))
	c.Read(make([]byte, 100))
	c.Close()
}

// held keeps a connection for as long as the kernel does, though nobody answers any more.
func held(to string, every time.Duration) {
	c, err := net.DialTimeout("tcp", to, 200*time.Millisecond)
	if err != nil {
		return
	}
	defer c.Close()
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			return
		}
		time.Sleep(every)
	}
}
