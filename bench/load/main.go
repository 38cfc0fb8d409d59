// Command load makes short TCP connections over the loopback at a given rate, for the scripts of bench/. It prints one JSON line: what it
// counted itself.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	rate := flag.Int("rate", 1000, "connections a second; 0 as many as go")
	duration := flag.Duration("duration", 10*time.Second, "how long")
	count := flag.Int64("count", 0, "end after so many connections; 0 when the duration is over")
	size := flag.Int("size", 200, "octets to the server; five times as many come back")
	workers := flag.Int("workers", 8, "connections at once")
	flag.Parse()
	if err := run(*rate, *duration, *count, *size, *workers); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(rate int, duration time.Duration, count int64, size, workers int) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	answer := make([]byte, 5*size)
	go func() { // ends with the program
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				io.CopyN(io.Discard, c, int64(size))
				c.Write(answer)
				c.Close()
			}()
		}
	}()
	var done, failed, sent, received atomic.Uint64
	var wg sync.WaitGroup
	begin := time.Now()
	var next atomic.Int64
	for range workers {
		wg.Add(1)
		go func() { // ends after duration or count
			defer wg.Done()
			request := make([]byte, size)
			for {
				n := next.Add(1) - 1
				if count > 0 && n >= count {
					return
				}
				if rate > 0 {
					time.Sleep(time.Until(begin.Add(time.Duration(n) * time.Second / time.Duration(rate))))
				}
				if time.Since(begin) > duration {
					return
				}
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					failed.Add(1)
					continue
				}
				w, _ := c.Write(request)
				r, _ := io.Copy(io.Discard, c)
				c.Close()
				sent.Add(uint64(w))
				received.Add(uint64(r))
				done.Add(1)
			}
		}()
	}
	wg.Wait()
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"port": l.Addr().(*net.TCPAddr).Port, "connections": done.Load(), "failed": failed.Load(),
		"sent": sent.Load(), "received": received.Load(), "perSecond": float64(done.Load()) / time.Since(begin).Seconds(),
	})
}
