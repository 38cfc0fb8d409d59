package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/flowcache"
)

// metadata names the ends of packets' flows by the sockets that they were of.
type metadata struct {
	ends  *enrich.Ends
	named uint64 // records of which an end was named
}

// maxLine bounds a JSON line.
const maxLine = 1 << 20

// readMetadata reads JSON lines as run prints them.
func readMetadata(path string) (*metadata, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read --metadata %s: %w", path, reasonOf(err))
	}
	defer f.Close()
	m, err := parseMetadata(f)
	if err != nil {
		return nil, fmt.Errorf("read --metadata %s: %w", path, err)
	}
	return m, nil
}

func parseMetadata(in io.Reader) (*metadata, error) {
	m := &metadata{ends: enrich.NewEnds(0)}
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	n := 0
	for lines.Scan() {
		n++
		if len(lines.Bytes()) == 0 {
			continue
		}
		if err := m.line(lines.Bytes()); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return nil, fmt.Errorf("line %d: longer than %d octets", n+1, maxLine)
	}
	return m, lines.Err()
}

// line takes a record over.
func (m *metadata) line(b []byte) error {
	var j jsonRecord
	if err := json.Unmarshal(b, &j); err != nil {
		return fmt.Errorf("no record of run: %w", err)
	}
	proto, err := protocolNumber(j.Protocol)
	if err != nil || !j.Source.IsValid() || !j.Dest.IsValid() {
		return errors.New("no record of run: it has no protocol or address")
	}
	start, err := time.Parse(time.RFC3339Nano, j.Start)
	if err != nil {
		return fmt.Errorf("no record of run: %w", err)
	}
	end, err := time.Parse(time.RFC3339Nano, j.End)
	if err != nil {
		return fmt.Errorf("no record of run: %w", err)
	}
	k := flowcache.Key{Src: mappedAddr(j.Source), Dst: mappedAddr(j.Dest), SrcPort: j.SourcePort, DstPort: j.DestPort, Proto: proto}
	if j.SourceEnd != nil {
		m.ends.Add(k, start.UnixNano(), end.UnixNano(), j.SourceEnd.end())
	}
	if j.DestEnd != nil {
		m.ends.Add(k.Reverse(), start.UnixNano(), end.UnixNano(), j.DestEnd.end())
	}
	return nil
}

// name fills the ends of r.
func (m *metadata) name(r *flowcache.Record) {
	if m.ends.Name(r) {
		m.named++
	}
}

func mappedAddr(a netip.Addr) flowcache.Addr { return flowcache.Addr(a.As16()) }

// protocolNumber is the opposite of protocol.
func protocolNumber(s string) (uint8, error) {
	for _, p := range []uint8{flowcache.ProtoTCP, flowcache.ProtoUDP, flowcache.ProtoUDPLite, 1, 58, 132} {
		if s == protocol(p) {
			return p, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	return uint8(n), err
}

// end is the opposite of endToJSON.
func (j *jsonEnd) end() *flowcache.End {
	id := func(p *uint32) uint32 {
		if p == nil {
			return flowcache.NoID
		}
		return *p
	}
	e := &flowcache.End{
		Local:  j.PID != 0 || j.Kernel || j.NetNS != 0 || j.Cookie != 0,
		Kernel: j.Kernel, Process: flowcache.ProcessID{PID: j.PID}, UID: id(j.UID), GID: id(j.GID), CGroup: j.CGroup,
		NetNS: j.NetNS, Cookie: j.Cookie, Service: j.Service, Node: j.Node, NamedBy: flowcache.NamedByOf(j.NamedBy), NamedLate: j.NamedLate,
	}
	if j.PID != 0 || j.Kernel {
		w := &flowcache.Process{
			ID: e.Process, Path: j.Path, Name: j.Name, CommandLine: j.Command, UID: e.UID, GID: e.GID, UserName: j.User,
			ParentPID: j.ParentPID, ParentPath: j.ParentPath, ParentUID: id(j.ParentUID), CGroup: j.CGroup,
		}
		if t, err := time.Parse(time.RFC3339Nano, j.Started); err == nil {
			w.StartTime = t.UnixNano()
		}
		e.Who = w
	}
	if j.Unit != "" || j.Container != nil {
		w := &flowcache.Workload{ServiceUnit: j.Unit}
		if c := j.Container; c != nil {
			w.ContainerID, w.ContainerName, w.ContainerImage, w.ContainerRuntime = c.ID, c.Name, c.Image, c.Runtime
			w.PodName, w.PodNamespace, w.PodUID, w.PodLabels = c.Pod, c.Namespace, c.PodUID, c.Labels
		}
		e.Container = w
	}
	return e
}
