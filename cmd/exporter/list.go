package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/enrich/runtimes"
	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/sockdiag"
)

// listed is a socket and who holds it, and who holds the other end if that is on this host.
type listed struct {
	o    flowcache.Observation
	end  *flowcache.End
	peer *flowcache.End
}

// listens reports whether the socket has no peer: it listens, or it is a datagram socket that is not connected.
func (l *listed) listens() bool { return l.o.Key.DstPort == 0 }

// counted reports whether the kernel keeps counters of the socket.
func (l *listed) counted() bool { return l.o.Key.Proto == flowcache.ProtoTCP && !l.listens() }

func (l *listed) state() string {
	switch {
	case l.o.Key.Proto == flowcache.ProtoTCP:
		return stateName(l.o.TCP.State)
	case l.listens():
		return "UNCONN"
	}
	return "ESTAB"
}

func newListCommand(stdout, stderr io.Writer) *cobra.Command {
	var proc, output string
	var f listFilter
	var where runtimes.Config
	cmd := &cobra.Command{
		Use:   "list",
		Short: "sockets now, with process, container and pod",
		Long: `Lists the TCP and UDP sockets of every network namespace that may be seen, once, with state, counters, round-trip time and
the process and container that hold them; where the other end is on this host, that one's too. Without privileges: of this namespace,
with the processes of this user.

Filters are all to be met; of one that is given several times or with commas, one.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := f.check(); err != nil {
				return err
			}
			print, ok := listOutputs[output]
			if !ok {
				return usagef("--output %q: must be table, wide, json or csv", output)
			}
			socks, err := listSockets(proc, where, stderr)
			if err != nil {
				return err
			}
			return print(stdout, slices.DeleteFunc(socks, func(l listed) bool { return !f.match(&l) }))
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, wide (every column), json (lines) or csv")
	f.addFlags(cmd.Flags())
	cmd.Flags().StringVar(&proc, "proc", "/proc", "where proc is mounted")
	addRuntimeFlags(cmd.Flags(), &where)
	return cmd
}

// listSockets reads all sockets and finds out whose they are. Notes go to stderr.
func listSockets(proc string, where runtimes.Config, stderr io.Writer) ([]listed, error) {
	src, err := sockdiag.New(sockdiag.Config{Proc: proc, Notify: func(line string) { fmt.Fprintln(stderr, printable("note: "+line)) }})
	if err != nil {
		return nil, err
	}
	var socks []listed
	if err := src.Each(func(o *flowcache.Observation) { socks = append(socks, listed{o: *o}) }); err != nil {
		return nil, err
	}
	slices.SortStableFunc(socks, func(a, b listed) int {
		x, y := &a.o.Key, &b.o.Key
		switch {
		case x.NetNS != y.NetNS:
			return int(int64(x.NetNS) - int64(y.NetNS))
		case x.Proto != y.Proto:
			return int(x.Proto) - int(y.Proto)
		}
		return int(x.SrcPort) - int(y.SrcPort)
	})
	cgroups := enrich.NewCGroups(proc)
	where.Notify = func(ok bool, line string) {
		if !ok {
			fmt.Fprintln(stderr, printable("note: "+line))
		}
	}
	if err := askRuntimes(where, cgroups); err != nil {
		return nil, err
	}
	enricher := enrich.Enricher{Processes: enrich.NewProcesses(enrich.ProcConfig{Proc: proc}, cgroups), CGroups: cgroups}
	owners := enrich.NewOwners(proc)
	byKey := make(map[flowcache.Key]int, len(socks))
	for i := range socks {
		l := &socks[i]
		rec := &flowcache.Record{Key: l.o.Key, Source: flowcache.End{
			Local: true, Process: owners.Lookup(l.o.Inode), UID: l.o.UID, GID: flowcache.NoID, CGroup: l.o.CGroup, NetNS: l.o.Key.NetNS, Cookie: l.o.Cookie,
		}}
		enricher.Enrich(rec)
		l.end = &rec.Source
		byKey[pairKey(l.o.Key)] = i
	}
	for i := range socks {
		if j, ok := byKey[pairKey(socks[i].o.Key.Reverse())]; ok && j != i && !socks[i].listens() {
			socks[i].peer = socks[j].end
		}
	}
	return socks, nil
}

// pairKey is the key by which the two sockets of a conversation find each other: loopback addresses are those of a namespace, others
// of the host. Translated addresses are not followed here.
func pairKey(k flowcache.Key) flowcache.Key {
	if !k.Src.IsLoopback() && !k.Dst.IsLoopback() {
		k.NetNS = 0
	}
	return k
}

// column is a column of the list.
type column struct {
	name  string
	wide  bool // not in the narrow table
	value func(l *listed) string
	short func(l *listed) string // in the narrow table; nil: as elsewhere
}

// ifCounted returns f for a connection whose counters the kernel keeps, and an empty string for other sockets.
func ifCounted(f func(l *listed) string) func(l *listed) string {
	return func(l *listed) string {
		if !l.counted() {
			return ""
		}
		return f(l)
	}
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }

func milliseconds(us uint32) string { return strconv.FormatFloat(float64(us)/1000, 'f', 3, 64) }

var columns = []column{
	{name: "PROTO", value: func(l *listed) string { return protocol(l.o.Key.Proto) }},
	{name: "STATE", value: (*listed).state},
	{name: "LOCAL", value: func(l *listed) string { return endpoint(l.o.Key.Src, l.o.Key.SrcPort) }},
	{name: "REMOTE", value: func(l *listed) string {
		if l.listens() {
			return "*"
		}
		return endpoint(l.o.Key.Dst, l.o.Key.DstPort)
	}},
	{name: "SENT", value: ifCounted(func(l *listed) string { return decimal(l.o.Out.Payload) }), short: ifCounted(func(l *listed) string { return octets(l.o.Out.Payload) })},
	{name: "RECEIVED", value: ifCounted(func(l *listed) string { return decimal(l.o.In.Payload) }), short: ifCounted(func(l *listed) string { return octets(l.o.In.Payload) })},
	{name: "RTT-MS", value: ifCounted(func(l *listed) string { return milliseconds(l.o.TCP.SRTT) })},
	{name: "RTTVAR-MS", wide: true, value: ifCounted(func(l *listed) string { return milliseconds(l.o.TCP.RTTVar) })},
	{name: "MINRTT-MS", wide: true, value: ifCounted(func(l *listed) string { return milliseconds(l.o.TCP.MinRTT) })},
	{name: "RETRANS", value: ifCounted(func(l *listed) string { return decimal(l.o.Out.RetransPackets) })},
	{name: "LOST", wide: true, value: ifCounted(func(l *listed) string { return decimal(uint64(l.o.TCP.Lost)) })},
	{name: "UNACKED", wide: true, value: ifCounted(func(l *listed) string { return decimal(uint64(l.o.TCP.Unacked)) })},
	{name: "CWND", wide: true, value: ifCounted(func(l *listed) string { return decimal(uint64(l.o.TCP.CongestionWindow)) })},
	{name: "PID", wide: true, value: func(l *listed) string {
		if l.end.Process.PID == 0 {
			return ""
		}
		return decimal(uint64(l.end.Process.PID))
	}},
	{name: "USER", wide: true, value: func(l *listed) string { return userOf(l.end) }},
	{name: "PARENT", wide: true, value: func(l *listed) string {
		if p := l.end.Who; p != nil && p.ParentPID != 0 {
			return p.ParentPath + "[" + decimal(uint64(p.ParentPID)) + "]"
		}
		return ""
	}},
	{name: "CONTAINER", wide: true, value: func(l *listed) string { return containerOf(l.end.Container) }},
	{name: "POD", wide: true, value: func(l *listed) string {
		if w := l.end.Container; w != nil && w.PodName != "" {
			return w.PodNamespace + "/" + w.PodName
		}
		return ""
	}},
	{name: "NETNS", wide: true, value: func(l *listed) string { return decimal(uint64(l.o.Key.NetNS)) }},
	{name: "WHO", value: func(l *listed) string {
		s := whoIs(l.end)
		if l.peer != nil {
			s += " → " + whoIs(l.peer)
		}
		return s
	}},
}

func userOf(e *flowcache.End) string {
	if p := e.Who; p != nil && p.UserName != "" {
		return p.UserName
	}
	if e.UID == flowcache.NoID {
		return ""
	}
	return decimal(uint64(e.UID))
}

// containerOf is a container's name, or what of its id is unique enough; of a service, its unit.
func containerOf(w *flowcache.Workload) string {
	switch {
	case w == nil:
		return ""
	case w.ContainerName != "":
		return w.ContainerName
	case w.ContainerID != "":
		return w.ContainerID[:min(12, len(w.ContainerID))]
	}
	return w.ServiceUnit
}

// askRuntimes lets cgroups learn the containers that there are now. A runtime that takes longer than two seconds is not waited for.
func askRuntimes(where runtimes.Config, cgroups *enrich.CGroups) error {
	w, err := runtimes.New(where)
	if err != nil {
		return usageError{err}
	}
	settle(w, cgroups.Apply)
	return nil
}

// settle runs w until it has reported all containers, for at most two seconds.
func settle(w *runtimes.Watcher, apply func(*enrich.ContainerUpdate)) {
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
				return
			}
			apply(u)
		case <-look.C:
			if w.Settled() {
				cancel()
			}
		}
	}
}
