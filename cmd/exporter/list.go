package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"sort"
	"time"

	"github.com/spf13/cobra"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/enrich/runtimes"
	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/sockdiag"
)

func newListCommand(stdout, stderr io.Writer) *cobra.Command {
	var proc string
	var listening, all bool
	var where runtimes.Config
	cmd := &cobra.Command{
		Use:   "list",
		Short: "sockets now, with process and container",
		Long: `Lists the TCP and UDP sockets of every network namespace that may be seen, once, with the process and the container
that hold them. Without privileges: of this namespace, with the processes of this user.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return list(proc, where, listening, all, stdout, stderr) },
	}
	cmd.Flags().StringVar(&proc, "proc", "/proc", "where proc is mounted")
	cmd.Flags().BoolVarP(&listening, "listening", "l", false, "only listening sockets, and UDP sockets that are not connected")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "both kinds")
	addRuntimeFlags(cmd.Flags(), &where)
	return cmd
}

const listFormat = "%-5s %-10s %-28s %-28s %9s %9s %8s %s\n"

func list(proc string, where runtimes.Config, listening, all bool, stdout, stderr io.Writer) error {
	src, err := sockdiag.New(sockdiag.Config{Proc: proc, Notify: func(line string) { fmt.Fprintln(stderr, "note: "+line) }})
	if err != nil {
		return err
	}
	var socks []flowcache.Observation
	if err := src.Each(func(o *flowcache.Observation) { socks = append(socks, *o) }); err != nil {
		return err
	}
	sort.SliceStable(socks, func(i, j int) bool {
		a, b := &socks[i].Key, &socks[j].Key
		if a.NetNS != b.NetNS {
			return a.NetNS < b.NetNS
		}
		if a.Proto != b.Proto {
			return a.Proto < b.Proto
		}
		return a.SrcPort < b.SrcPort
	})
	cgroups := enrich.NewCGroups(proc)
	where.Notify = func(ok bool, line string) {
		if !ok {
			fmt.Fprintln(stderr, "note: "+line)
		}
	}
	if err := askRuntimes(where, cgroups); err != nil {
		return err
	}
	processes := enrich.NewProcesses(enrich.ProcConfig{Proc: proc}, cgroups)
	enricher := enrich.Enricher{Processes: processes, CGroups: cgroups}
	owners := enrich.NewOwners(proc)
	w := bufio.NewWriter(stdout)
	fmt.Fprintf(w, listFormat, "PROTO", "STATE", "LOCAL", "REMOTE", "SENT", "RECEIVED", "RTT-MS", "WHO")
	for i := range socks {
		o := &socks[i]
		if passive := o.Key.DstPort == 0; !all && passive != listening {
			continue
		}
		rec := flowcache.Record{Key: o.Key, Source: flowcache.End{
			Local: true, Process: owners.Lookup(o.Inode), UID: o.UID, GID: flowcache.NoID, CGroup: o.CGroup, NetNS: o.Key.NetNS,
		}}
		enricher.Enrich(&rec)
		state, rtt, sent, received := "UNCONN", "-", "-", "-"
		if o.Key.Proto == flowcache.ProtoTCP {
			state = stateName(o.TCP.State)
		} else if o.Key.DstPort != 0 {
			state = "ESTAB"
		}
		if o.Key.Proto == flowcache.ProtoTCP && o.TCP.State != flowcache.TCPListen {
			rtt = fmt.Sprintf("%.3f", float64(o.TCP.SRTT)/1000)
			sent, received = octets(o.Out.Payload), octets(o.In.Payload)
		}
		remote := "*"
		if o.Key.DstPort != 0 {
			remote = endpoint(o.Key.Dst, o.Key.DstPort)
		}
		fmt.Fprintf(w, listFormat, protocol(o.Key.Proto), state, endpoint(o.Key.Src, o.Key.SrcPort), remote, sent, received, rtt, whoIs(&rec.Source))
	}
	return w.Flush()
}

// askRuntimes lets cgroups learn the containers that there are now. A runtime that takes longer than two seconds is not waited for.
func askRuntimes(where runtimes.Config, cgroups *enrich.CGroups) error {
	w, err := runtimes.New(where)
	if err != nil {
		return usageError{err}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	updates := make(chan *enrich.ContainerUpdate)
	go func() { // ends with ctx
		w.Run(ctx, updates)
		close(updates)
	}()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case u, ok := <-updates:
			if !ok {
				return nil
			}
			cgroups.Apply(u)
		case <-look.C:
			if w.Settled() {
				cancel()
			}
		}
	}
}
