package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/sockflow/sockflow/flowcache"
)

// listOutputs are the forms of --output.
var listOutputs = map[string]func(w io.Writer, socks []listed) error{
	"table": func(w io.Writer, socks []listed) error { return listTable(w, socks, false) },
	"wide":  func(w io.Writer, socks []listed) error { return listTable(w, socks, true) },
	"json":  listJSON,
	"csv":   listCSV,
}

func listTable(w io.Writer, socks []listed, wide bool) error {
	t := tabwriter.NewWriter(w, 0, 8, 1, ' ', 0)
	line := make([]string, 0, len(columns))
	write := func(f func(c *column) string) {
		line = line[:0]
		for i := range columns {
			if columns[i].wide && !wide {
				continue
			}
			s := f(&columns[i])
			if s == "" {
				s = "-"
			}
			line = append(line, printable(s))
		}
		io.WriteString(t, strings.Join(line, "\t")+"\n")
	}
	write(func(c *column) string { return c.name })
	for i := range socks {
		write(func(c *column) string {
			if c.short != nil && !wide {
				return c.short(&socks[i])
			}
			return c.value(&socks[i])
		})
	}
	return t.Flush()
}

func listCSV(w io.Writer, socks []listed) error {
	c := csv.NewWriter(w)
	line := make([]string, len(columns))
	for i := range columns {
		line[i] = strings.ToLower(strings.ReplaceAll(columns[i].name, "-", "_"))
	}
	c.Write(line)
	for i := range socks {
		for j := range columns {
			line[j] = printable(columns[j].value(&socks[i])) // CSV has no way to escape
		}
		c.Write(line)
	}
	c.Flush()
	return c.Error()
}

// jsonSocket is a socket as a JSON line; names are those of jsonRecord.
type jsonSocket struct {
	Protocol   string     `json:"protocol"`
	State      string     `json:"state"`
	Local      netip.Addr `json:"localAddress"`
	LocalPort  uint16     `json:"localPort"`
	Remote     string     `json:"remoteAddress,omitempty"`
	RemotePort uint16     `json:"remotePort,omitempty"`
	Sent       *uint64    `json:"payloadOctetsSent,omitempty"`
	Received   *uint64    `json:"payloadOctetsReceived,omitempty"`
	TCP        *jsonTCP   `json:"tcp,omitempty"`
	End        *jsonEnd   `json:"socket"`
	Peer       *jsonEnd   `json:"peer,omitempty"`
}

func listJSON(w io.Writer, socks []listed) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	for i := range socks {
		l := &socks[i]
		j := jsonSocket{
			Protocol: protocol(l.o.Key.Proto), State: l.state(), Local: l.o.Key.Src.Netip(), LocalPort: l.o.Key.SrcPort,
			End: endToJSON(l.end),
		}
		if !l.listens() {
			j.Remote, j.RemotePort = l.o.Key.Dst.Netip().String(), l.o.Key.DstPort
		}
		if l.counted() {
			j.Sent, j.Received = &l.o.Out.Payload, &l.o.In.Payload
			j.TCP = toJSON(&flowcache.Record{HasTCP: true, TCP: l.o.TCP, Forward: l.o.Out, Reverse: l.o.In}).TCP
		}
		if l.peer != nil {
			j.Peer = endToJSON(l.peer)
		}
		e.Encode(&j) // what it encodes always can be
	}
	_, err := w.Write(appendEscaped(nil, b.Bytes()))
	return err
}
