// Command pod talks TCP and UDP as the tests of containers want: it serves at one port, and talks to each address it is told.
//
//	pod [-serve PORT] [-for DURATION] [-wait DURATION] [-times N] HOST:PORT...
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
	flag.Parse()
	end := time.Now().Add(*life)
	if *port != 0 {
		if err := serve(*port); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	time.Sleep(*wait)
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
