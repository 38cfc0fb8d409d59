// Command walk times the eBPF source's passes over all sockets of the host. For each pass it prints the seconds and the sockets seen.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/sockflow/sockflow/bpf"
	"github.com/sockflow/sockflow/flowcache"
)

func main() {
	passes := flag.Int("passes", 3, "how many passes")
	flag.Parse()
	if err := run(*passes); err != nil {
		fmt.Fprintln(os.Stderr, "walk:", err)
		os.Exit(1)
	}
}

func run(passes int) error {
	// Nobody runs the source: its events are lost, which the passes do not notice.
	src, err := bpf.New(bpf.Config{})
	if err != nil {
		return err
	}
	defer src.Close()
	if !src.CanWalk() {
		return fmt.Errorf("the kernel lets no iterator be attached: %v", src.Hooks())
	}
	for range passes {
		n := 0
		begin := time.Now()
		if err := src.Walk(func(*flowcache.Observation) { n++ }); err != nil {
			return err
		}
		fmt.Printf("%.6f\t%d\n", time.Since(begin).Seconds(), n)
	}
	return nil
}
