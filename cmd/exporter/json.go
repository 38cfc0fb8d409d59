package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
)

// openJSON opens a destination json:PATH or json:-, with its options.
func openJSON(dest string, stdout io.Writer) (p printer, done func(), err error) {
	path, query, _ := strings.Cut(strings.TrimPrefix(dest, "json:"), "?")
	options, err := url.ParseQuery(query)
	if err != nil {
		return nil, nil, usagef("collector %q: %w", dest, err)
	}
	style := "sockflow"
	for name, values := range options {
		if name != "style" || len(values) != 1 || values[0] != "sockflow" && values[0] != "ntop" {
			return nil, nil, usagef("collector %q: the only option is style=sockflow or style=ntop", dest)
		}
		style = values[0]
	}
	w, done := stdout, func() {}
	if path != "-" && path != "" {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return nil, nil, fmt.Errorf("collector %q: %w", dest, err)
		}
		w, done = f, func() { f.Close() }
	}
	if style == "ntop" {
		return &ntopPrinter{w: w}, done, nil
	}
	return newJSONPrinter(w), done, nil
}

type jsonPrinter struct {
	w *bufio.Writer
	e *json.Encoder
}

func newJSONPrinter(w io.Writer) *jsonPrinter {
	b := bufio.NewWriterSize(w, 64<<10)
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	return &jsonPrinter{b, e}
}

func (p *jsonPrinter) print(records []flowcache.Record) error {
	for i := range records {
		if err := p.e.Encode(toJSON(&records[i])); err != nil {
			return err
		}
	}
	return p.w.Flush()
}

// jsonInterface is the state and the counters of a network interface as a JSON line.
type jsonInterface struct {
	Time      string                `json:"observationTime"`
	Name      string                `json:"interfaceName"`
	Index     uint32                `json:"interfaceIndex"`
	NetNS     uint32                `json:"networkNamespace"`
	Type      uint16                `json:"interfaceType"` // ARPHRD_...
	Kind      string                `json:"kind,omitempty"`
	Up        bool                  `json:"up"`
	MTU       uint32                `json:"mtu"`
	In        jsonInterfaceCounters `json:"in"`
	Out       jsonInterfaceCounters `json:"out"`
	Container *jsonContainer        `json:"container,omitempty"`
}

type jsonInterfaceCounters struct {
	Octets  uint64 `json:"octets"`
	Packets uint64 `json:"packets"`
	Errors  uint64 `json:"errors"`
	Drops   uint64 `json:"drops"`
}

func (p *jsonPrinter) interfaces(list []flowcache.Interface) error {
	for _, i := range list {
		if err := p.e.Encode(&jsonInterface{
			timestamp(i.Time), i.Name, i.Index, i.NetNS, i.Type, i.Kind, i.Up, i.MTU,
			jsonInterfaceCounters(i.In), jsonInterfaceCounters(i.Out), containerToJSON(i.Container),
		}); err != nil {
			return err
		}
	}
	return p.w.Flush()
}

// ntopPrinter writes records in the JSON of ntop's agents: an object a line for each end that is here.
type ntopPrinter struct {
	w     io.Writer
	agent ipfix.AgentJSON
	buf   []byte
}

func (p *ntopPrinter) print(records []flowcache.Record) error {
	p.buf = p.buf[:0]
	for i := range records {
		p.buf = p.agent.Append(p.buf, &records[i], '\n')
	}
	_, err := p.w.Write(p.buf)
	return err
}

func (p *ntopPrinter) interfaces(list []flowcache.Interface) error {
	p.buf = p.buf[:0]
	for i := range list {
		p.buf = append(p.agent.AppendCounter(p.buf, &list[i]), '\n')
	}
	_, err := p.w.Write(p.buf)
	return err
}
