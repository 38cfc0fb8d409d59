package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
)

// openJSON opens a destination json:PATH or json:-, with its options.
func openJSON(dest string, stdout io.Writer, notify func(ok bool, line string)) (*printing, error) {
	path, query, _ := strings.Cut(strings.TrimPrefix(dest, "json:"), "?")
	options, err := url.ParseQuery(query)
	if err != nil {
		return nil, usagef("collector %q: %w", dest, err)
	}
	var f form = newJSONForm()
	queue := printQueue
	for name, values := range options {
		switch {
		case name == "style" && len(values) == 1 && values[0] == "sockflow":
		case name == "style" && len(values) == 1 && values[0] == "ntop":
			f = &ntopForm{}
		case name == "queue" && len(values) == 1:
			if queue, err = strconv.Atoi(values[0]); err != nil || queue < 1 {
				return nil, usagef("collector %q: queue must be a number of records", dest)
			}
		default:
			return nil, usagef("collector %q: the only options are style=sockflow, style=ntop and queue=RECORDS", dest)
		}
	}
	if path == "-" || path == "" {
		return newPrinting("json:-", f, stdout, nil, queue, notify), nil
	}
	if err := checkFolder(filepath.Dir(path), path); err != nil {
		return nil, fmt.Errorf("collector %q: %w", dest, err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("collector %q: %w", dest, err)
	}
	return newPrinting("json:"+path, f, file, file, queue, notify), nil
}

// jsonForm is a JSON object a line.
type jsonForm struct {
	lines bytes.Buffer
	e     *json.Encoder
}

func newJSONForm() *jsonForm {
	f := &jsonForm{}
	f.e = json.NewEncoder(&f.lines)
	f.e.SetEscapeHTML(false)
	return f
}

// records and interfaces: what they encode always can be.
func (f *jsonForm) records(dst []byte, list []flowcache.Record) []byte {
	f.lines.Reset()
	for i := range list {
		f.e.Encode(toJSON(&list[i]))
	}
	return appendEscaped(dst, f.lines.Bytes())
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

func (f *jsonForm) interfaces(dst []byte, list []flowcache.Interface) []byte {
	f.lines.Reset()
	for _, i := range list {
		f.e.Encode(&jsonInterface{
			timestamp(i.Time), i.Name, i.Index, i.NetNS, i.Type, i.Kind, i.Up, i.MTU,
			jsonInterfaceCounters(i.In), jsonInterfaceCounters(i.Out), containerToJSON(i.Container),
		})
	}
	return appendEscaped(dst, f.lines.Bytes())
}

// ntopForm is the JSON of ntop's agents: an object a line for each end that is here.
type ntopForm struct {
	agent ipfix.AgentJSON
	lines []byte
}

func (f *ntopForm) records(dst []byte, list []flowcache.Record) []byte {
	f.lines = f.lines[:0]
	for i := range list {
		f.lines = f.agent.Append(f.lines, &list[i], '\n')
	}
	return appendEscaped(dst, f.lines)
}

func (f *ntopForm) interfaces(dst []byte, list []flowcache.Interface) []byte {
	f.lines = f.lines[:0]
	for i := range list {
		f.lines = append(f.agent.AppendCounter(f.lines, &list[i]), '\n')
	}
	return appendEscaped(dst, f.lines)
}
