package main

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/templates"
)

// markdown is docs/elements.md, which a test keeps equal.
func (l *elementList) markdown(w io.Writer) error {
	sizes, err := l.sizes()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `# Information Elements

Made by `+"`sockflow elements --format markdown`"+`, which also prints configurations by which collectors name these elements: see its `+"`--help`"+`.

Numbers are IPFIX's: IANA's alone, others as enterprise:number. 29305 are reverse elements (RFC 5103), 35632 is ntop's enterprise and 56506
Antrea's, whose numbers collectors know (`+"`--dialect known`"+`, the default). 32473 stands for the native elements until `+"`--pen`"+` says otherwise; with
`+"`--dialect native`"+` they all have native numbers, and with `+"`--dialect iana`"+` only those with a number of IANA's are sent. NetFlow v9 has field types
instead: ntop's from 57472, native ones from `+"`--v9-base`"+`. The source is the end that began.

A record has the fields that its kind can tell, at most %d, in a template of its own: address family; TCP, other ports, ICMP or neither; what is
known of each end (nothing, its pod or node elsewhere, a socket of the kernel, a process, a container, a pod); whether addresses were translated.
`+"`?fields=+name,-name`"+` in a collector's URL adds and removes; a name without source or destination stands for both. Where a record would have more
fields, these are left out, first to last, unless added by name: %s.

Octets of a record of TCP over IPv4 (IPv6: 24 more), without the text of its strings, each of which costs its own octets:

| | fields | octets | of which strings, one octet each |
|---|---|---|---|
%s
| name | number | native | NetFlow v9 | type | units | |
|---|---|---|---|---|---|---|
`, templates.MaxFields, strings.Join(templates.GiveWay(), ", "), sizes)
	for _, r := range l.rows {
		native := ""
		if r.Native != 0 {
			native = strconv.Itoa(int(r.Native))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", r.Name, r.number(), native, r.v9Text(), r.Type, r.unitsText(), r.Description)
	}
	_, err = w.Write(b.Bytes())
	return err
}

// sizes are the rows of a table: what records of some kinds cost.
func (l *elementList) sizes() (string, error) {
	set, err := templates.New(l.options)
	if err != nil {
		return "", err
	}
	host := flowcache.End{Local: true}
	container := flowcache.End{Local: true, Container: &flowcache.Workload{ContainerID: "c"}}
	pod := flowcache.End{Local: true, Container: &flowcache.Workload{ContainerID: "c", PodName: "p"}}
	elsewhere := flowcache.End{Container: &flowcache.Workload{PodName: "p"}}
	var rows []string
	for _, k := range []struct {
		name         string
		source, dest flowcache.End
		udp          bool
	}{
		{"one end here, a process", host, flowcache.End{}, false},
		{"the same, UDP", host, flowcache.End{}, true},
		{"one end here, in a container", container, flowcache.End{}, false},
		{"one end here, in a pod", pod, flowcache.End{}, false},
		{"one end here, in a pod; the other a pod elsewhere", pod, elsewhere, false},
		{"both ends here, processes", host, host, false},
		{"both ends here, in pods", pod, pod, false},
	} {
		r := flowcache.Record{Key: flowcache.Key{Src: flowcache.AddrFrom4([4]byte{}), Dst: flowcache.AddrFrom4([4]byte{}), Proto: flowcache.ProtoTCP}, Source: k.source, Dest: k.dest}
		if k.udp {
			r.Key.Proto = flowcache.ProtoUDP
		}
		t, texts := set.For(&r), 0
		for _, f := range t.Fields {
			if f.Length == templates.Variable {
				texts++
			}
		}
		rows = append(rows, fmt.Sprintf("| %s | %d | %d | %d |", k.name, len(t.Fields), t.Fixed+texts, texts))
	}
	return strings.Join(rows, "\n") + "\n", nil
}
