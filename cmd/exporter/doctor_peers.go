package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/enrich/kube"
	"github.com/sockflow/sockflow/enrich/runtimes"
	"github.com/sockflow/sockflow/flowcache"
)

// runtimes speaks to every runtime as run does.
func (d *doctor) runtimes() {
	cfg := d.settings.runtimes
	lines := &lastLine{}
	cfg.Notify = func(ok bool, line string) { slog.New(lines).Info(line) }
	w, err := runtimes.New(cfg)
	if err != nil {
		d.say(bad, "sockets", err.Error(), "see --containerd, --docker, --cri and --podman in run --help")
		return
	}
	settle(w, func(*enrich.ContainerUpdate) {})
	for _, st := range w.Stats() {
		name := st.Kind + " " + st.Socket
		switch {
		case st.Connects > 0:
			d.say(good, name, fmt.Sprintf("answers: %d containers", st.Containers))
		case errors.Is(unix.Access(st.Socket, unix.R_OK|unix.W_OK), os.ErrPermission):
			d.say(bad, name, "permission denied, so containers have ids only", "run as root, or in the group of the socket: ls -l "+st.Socket)
		default:
			d.say(bad, name, "does not answer: "+lines.String(), "start it, or name another socket with --"+st.Kind+"; none: do not ask")
		}
	}
	if len(w.Stats()) == 0 {
		d.say(note, "none", "no runtime's socket is where runtimes have it; containers are told by their ids")
	}
}

// kubernetes asks the API server for everything that run would, once.
func (d *doctor) kubernetes() {
	d.settings.kube.atOnce = true
	c, err := d.settings.kube.open(d.settings.nodeName, slog.New(&lastLine{}))
	switch {
	case err != nil:
		d.say(bad, "API server", err.Error(), "see --kube in run --help, and docs/kubernetes.md")
		return
	case c == nil && os.Getenv("KUBERNETES_SERVICE_HOST") != "":
		d.say(reduced, "API server", "not asked, though this is a pod: pods of this node have names by their runtime, services and other nodes' pods have none", "--kube auto, with the ClusterRole of deploy/kubernetes")
		return
	case c == nil:
		d.say(note, "API server", "not asked (--kube)")
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	objects := map[kube.Kind]int{}
	changes := make(chan []kube.Change)
	go func() { // ends with ctx
		c.source.Run(ctx, changes)
		close(changes)
	}()
	// A kind's list is complete when a watch of the kind has begun.
	settled := func() bool {
		st := c.source.Stats()
		for k := range kube.Kinds() {
			if st.Watches[k]+st.Refused[k]+st.Failed[k] == 0 {
				return false
			}
		}
		return true
	}
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		select {
		case list, ok := <-changes:
			for i := range list {
				if list[i].Step == kube.Set {
					objects[list[i].Object.Kind]++
				}
			}
			if ok {
				continue
			}
			tick.Stop()
		case <-tick.C:
			if settled() {
				cancel()
			}
			continue
		}
		break
	}
	st := c.source.Stats()
	for k := range kube.Kinds() {
		name := k.String() + " of " + c.source.Server()
		switch {
		case st.Refused[k] > 0:
			d.say(bad, name, "refused: "+c.source.Server()+" does not let this identity list them", "apply the ClusterRole of docs/kubernetes.md")
		case st.Failed[k] > 0 || st.Watches[k] == 0:
			d.say(bad, name, "no answer from "+c.source.Server(), "let this host reach the API server, and see --kube-ca and --kube-token")
		default:
			d.say(good, name, fmt.Sprintf("%d are told", objects[k]))
		}
	}
}

// lastLine is a logger that keeps its last message.
type lastLine struct {
	mu   sync.Mutex
	line string
}

func (l *lastLine) Enabled(context.Context, slog.Level) bool { return true }
func (l *lastLine) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *lastLine) WithGroup(string) slog.Handler            { return l }
func (l *lastLine) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line = r.Message
	return nil
}

func (l *lastLine) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.line
}

// reach makes a session with each collector.
func (d *doctor) reach() {
	if len(d.settings.collectors) == 0 {
		d.say(note, "none", "name them with -c, as for run, and they are tried")
		return
	}
	for _, address := range d.settings.collectors {
		if path, ok := strings.CutPrefix(address, "json:"); ok {
			if jsonPath(address) != "" {
				d.file(address, path)
			}
			continue
		}
		d.collector(address)
	}
}

// file looks whether a file can be made; it may be another exporter's, which writes it.
func (d *doctor) file(address, path string) {
	path, _, _ = strings.Cut(path, "?")
	if dir := filepath.Dir(path); unix.Access(dir, unix.W_OK) != nil {
		d.say(bad, address, "no file can be written in "+dir, "make the folder, or let the exporter write it")
		return
	}
	if err := checkFolder(filepath.Dir(path), path); err != nil {
		d.say(bad, address, err.Error(), "name a folder that root alone may write into")
		return
	}
	d.say(good, address, "can be written")
}

func (d *doctor) collector(address string) {
	if path, ok := strings.CutPrefix(address, "file:"); ok {
		d.file(address, path)
		return
	}
	one := *d.settings
	one.collectors = []string{address}
	one.exporting.doctor = true
	one.templateRefresh = 100 * time.Millisecond // a refusal (ICMP) is returned when the next datagram is sent
	line := &lastLine{}
	exporters, err := destinations(&one, io.Discard, slog.New(line))
	if err != nil {
		d.say(bad, address, err.Error(), "see run --help")
		return
	}
	x := exporters[0]
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	if d.testFlow {
		x.Offer(testRecord())
	}
	go func() { // ends with ctx
		x.Run(ctx)
		close(ended)
	}()
	// An answer that nobody listens comes after what it answers.
	const answer = 300 * time.Millisecond
	var connected time.Time
	for begin := time.Now(); time.Since(begin) < 3*time.Second; time.Sleep(10 * time.Millisecond) {
		st := x.Stats()
		if st.Connects > 0 && connected.IsZero() {
			connected = time.Now()
		}
		if st.Errors > 0 || !connected.IsZero() && time.Since(connected) > answer {
			break
		}
	}
	cancel()
	<-ended
	st := x.Stats()
	switch {
	case st.Errors > 0:
		d.say(bad, x.Name(), strings.TrimPrefix(line.String(), "collector "+x.Name()+": "), "let the collector listen there, and no firewall refuse it")
	case st.Connects == 0:
		d.say(bad, x.Name(), "no answer within 3 s", "look for a firewall on the way, and whether the collector runs")
	case d.testFlow && st.DroppedQueue+st.DroppedSend+st.DroppedBig > 0:
		d.say(bad, x.Name(), "the test flow was not taken")
	case d.testFlow:
		d.say(good, x.Name(), fmt.Sprintf("templates and the test flow are sent: %d messages, %d octets", st.Messages, st.Octets))
	case strings.Contains(address, "udp://"):
		d.say(good, x.Name(), fmt.Sprintf("templates are sent, and nobody refused them: %d messages (UDP tells no more; --test-flow sends a flow to look for)", st.Messages))
	default:
		d.say(good, x.Name(), fmt.Sprintf("connected; %d messages are sent", st.Messages))
	}
	if u, err := url.Parse(address); err == nil && strings.Contains(u.Scheme, "udp") {
		d.pathMTU(x.Name(), u.Host)
	}
}

// pathMTU says what the kernel knows of the way (ip(7), IP_MTU).
func (d *doctor) pathMTU(name, host string) {
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(host, "4739")
	}
	c, err := net.Dial("udp", host)
	if err != nil {
		return // said above
	}
	defer c.Close()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if c.RemoteAddr().(*net.UDPAddr).IP.To4() == nil {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	mtu := 0
	raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, option) })
	if err != nil || mtu == 0 {
		d.say(reduced, "path MTU", "not known for "+name+": messages have 512 octets", "set --mtu")
		return
	}
	d.say(good, "path MTU", fmt.Sprintf("%d octets to %s", mtu, host))
}

// testRecord is a flow between addresses for documentation (RFC 5737).
func testRecord() *flowcache.Records {
	now := time.Now().UnixNano()
	r := flowcache.RecordPool(nil).Get()
	r.List = append(r.List, flowcache.Record{
		Key: flowcache.Key{
			Src: flowcache.AddrFrom4([4]byte{192, 0, 2, 1}), Dst: flowcache.AddrFrom4([4]byte{192, 0, 2, 2}), SrcPort: 7, DstPort: 7, Proto: flowcache.ProtoUDP,
		},
		Start: now, End: now, EndReason: flowcache.EndDetected, Final: true,
		Forward: flowcache.Counters{Payload: 1, Octets: 29, Packets: 1},
		Source: flowcache.End{
			Local: true, Process: flowcache.ProcessID{PID: uint32(os.Getpid())}, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
			Who: &flowcache.Process{Path: "/sockflow-doctor", Name: "sockflow-doctor", ParentUID: flowcache.NoID},
		},
		Dest: flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID},
	})
	return r
}
