package main

import (
	"bytes"
	"encoding/csv"
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/sockflow/sockflow/templates"
)

// goflow2 reads these itself.
var goflow2Knows = map[uint16]bool{1: true, 2: true, 4: true, 6: true, 7: true, 8: true, 10: true, 11: true, 12: true, 21: true, 22: true, 27: true, 28: true, 32: true, 139: true, 152: true, 153: true}

func (l *elementList) goflow2(w io.Writer) error {
	var fields, protobuf, render, ipfix, v9 []string
	for _, r := range l.rows {
		if r.reporting() || r.padding() || !r.enterprise() && goflow2Knows[r.IANA] {
			continue
		}
		name := r.snake()
		fields = append(fields, name)
		kind := "varint"
		switch r.Type {
		case templates.String:
			kind = "string"
			render = append(render, fmt.Sprintf("    %s: string", name))
		case templates.IPv4Address, templates.IPv6Address:
			kind = "string"
			render = append(render, fmt.Sprintf("    %s: ip", name))
		}
		protobuf = append(protobuf, fmt.Sprintf("    - {name: %s, index: %d, type: %s}", name, r.protobufIndex(), kind))
		if r.enterprise() {
			ipfix = append(ipfix, fmt.Sprintf("    - {penprovided: true, pen: %d, field: %d, destination: %s}", r.ipfix.PEN, r.ipfix.ID, name))
		} else {
			ipfix = append(ipfix, fmt.Sprintf("    - {field: %d, destination: %s}", r.ipfix.ID, name))
		}
		// goflow2 takes 23 and 24 of NetFlow v9 for octets and packets: send it --direction uniflow. Its JSON is broken by the NULs
		// that fill strings of fixed length.
		if r.v9 != 0 && !r.Reverse && r.Type != templates.String {
			v9 = append(v9, fmt.Sprintf("    - {field: %d, destination: %s}", r.v9, name))
		}
	}
	_, err := fmt.Fprintf(w, `# goflow2 -mapping FILE
# NetFlow v9: numbers only, and send it --direction uniflow. IPFIX tells more.
formatter:
  fields:
    - type
    - sequence_num
    - sampler_address
    - observation_domain_id
    - time_flow_start_ns
    - time_flow_end_ns
    - bytes
    - packets
    - src_addr
    - dst_addr
    - proto
    - src_port
    - dst_port
    - tcp_flags
    - icmp_type
    - icmp_code
    - %s
  protobuf:
%s
  render:
%s
ipfix:
  mapping:
%s
netflowv9:
  mapping:
%s
`, strings.Join(fields, "\n    - "), strings.Join(protobuf, "\n"), strings.Join(render, "\n"), strings.Join(ipfix, "\n"), strings.Join(v9, "\n"))
	return err
}

// protobufIndex is a field number that stays: goflow2 has those below 1000.
func (r *elementRow) protobufIndex() int {
	switch {
	case r.Native != 0:
		return 1000 + int(r.Native)
	case r.Reverse:
		return 3000 + int(r.IANA)
	}
	return 2000 + int(r.IANA)
}

// nfacctd has primitives for these.
var pmacctKnows = map[uint16]bool{1: true, 2: true, 4: true, 6: true, 7: true, 8: true, 10: true, 11: true, 12: true, 21: true, 22: true, 27: true, 28: true, 152: true, 153: true, 95: true, 225: true, 226: true, 227: true, 228: true}

// maxPrimitives is what nfacctd 1.7.7 keeps apart: with more it shows the text of one under the name of another, and from 65 on it
// crashes.
const maxPrimitives = 50

// pmacctLeaves is left out of primitives where there are too many, first to last.
var pmacctLeaves = []string{
	"sourceProcessCommandLine", "destinationProcessCommandLine", "tcpPacingRate", "tcpUnacknowledgedPackets", "tcpRoundTripTimeVarianceMicroseconds", "tcpCongestionControl",
	"tcpCongestionWindow", "tcpDeliveryRate", "tcpLostPackets", "reverseRetransmittedOctetDeltaCount", "retransmittedOctetDeltaCount", "reverseRetransmittedPacketDeltaCount",
	"sourceContainerRuntime", "destinationContainerRuntime", "sourceParentUserId", "destinationParentUserId", "sourcePodUid", "destinationPodUid",
	"sourceControlGroupId", "destinationControlGroupId", "sourceSocketCookie", "destinationSocketCookie", "sourceParentProcessId", "destinationParentProcessId",
	"sourceNodeName", "destinationNodeName", "tcpConnectTimeMicroseconds", "tcpState", "icmpTypeCodeIPv6", "postNATSourceIPv6Address", "postNATDestinationIPv6Address",
}

func (l *elementList) pmacct(w io.Writer) error {
	var rows []elementRow
	for _, r := range l.rows {
		// nfacctd leaves IANA's strings empty in primitives.
		if !r.reporting() && !r.padding() && (r.enterprise() || !pmacctKnows[r.IANA] && r.Type != templates.String) && (!l.netflow9 || r.v9 != 0) {
			rows = append(rows, r)
		}
	}
	var left []string
	for _, name := range pmacctLeaves {
		if len(rows) > maxPrimitives {
			rows = slices.DeleteFunc(rows, func(r elementRow) bool { return r.Name == name })
			left = append(left, name)
		}
	}
	var b bytes.Buffer
	fmt.Fprintln(&b, "! nfacctd: aggregate_primitives: FILE; name in aggregate those that are wanted.")
	for _, name := range left {
		fmt.Fprintf(&b, "! left out, nfacctd takes %d: %s\n", maxPrimitives, name)
	}
	for _, r := range rows {
		semantics, length := "u_int", strconv.Itoa(r.fixed())
		switch r.Type {
		case templates.String:
			semantics, length = "str", "vlen"
			if l.netflow9 {
				length = strconv.Itoa(int(r.v9Len))
			}
		case templates.IPv4Address, templates.IPv6Address:
			semantics = "ip"
		}
		number := r.number()
		if l.netflow9 {
			number = r.v9Text()
		}
		fmt.Fprintf(&b, "name=%s field_type=%s len=%s semantics=%s\n", r.snake(), number, length, semantics)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// rubyType is the type of BinData that Logstash and Filebeat name.
func (r *elementRow) rubyType() string {
	switch r.Type {
	case templates.String:
		return ":string"
	case templates.IPv4Address:
		return ":ip4_addr"
	case templates.IPv6Address:
		return ":ip6_addr"
	}
	return ":uint" + strconv.Itoa(8*r.fixed())
}

// definitions prints the YAML of Logstash's codec, which Filebeat reads too, but for enterprises that the collector knows. Names are as the elements'.
func (l *elementList) definitions(w io.Writer, comment string, knows ...uint32) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s\n---\n", comment)
	empty := b.Len()
	if l.netflow9 {
		for _, r := range l.rows {
			if r.v9 > 500 {
				fmt.Fprintf(&b, "%d:\n- %s\n- :%s\n", r.v9, r.rubyType(), r.Name)
			}
		}
	} else {
		for _, pen := range l.enterprises() {
			if slices.Contains(knows, pen) {
				continue
			}
			fmt.Fprintf(&b, "%d:\n", pen)
			for _, r := range l.rows {
				if r.ipfix.PEN == pen {
					fmt.Fprintf(&b, "  %d:\n  - %s\n  - :%s\n", r.ipfix.ID, r.rubyType(), r.Name)
				}
			}
		}
	}
	if b.Len() == empty {
		b.WriteString("{}\n") // no mapping is no file to either
	}
	_, err := w.Write(b.Bytes())
	return err
}

// logstash leaves out the registries that Logstash has: a definitions file replaces what it has of an enterprise as a whole.
func (l *elementList) logstash(w io.Writer) error {
	if l.netflow9 {
		return l.definitions(w, "logstash-codec-netflow: netflow_definitions => FILE")
	}
	return l.definitions(w, "logstash-codec-netflow: ipfix_definitions => FILE. It loses the templates in which one element is not defined.",
		templates.PENIANA, templates.PENReverse)
}

func (l *elementList) filebeat(w io.Writer) error {
	if l.netflow9 { // one file for both: enterprise 0 has the types of NetFlow v9
		var b bytes.Buffer
		fmt.Fprintln(&b, "# Filebeat netflow input: custom_definitions: [FILE]\n---\n0:")
		for _, r := range l.rows {
			if r.v9 > 500 {
				fmt.Fprintf(&b, "  %d:\n  - %s\n  - :%s\n", r.v9, r.rubyType(), r.Name)
			}
		}
		_, err := w.Write(b.Bytes())
		return err
	}
	// Filebeat knows IANA's, with types, such as of times, that this form has no names for.
	return l.definitions(w, "Filebeat netflow input: custom_definitions: [FILE]", templates.PENIANA)
}

func (l *elementList) telegraf(w io.Writer) error {
	c := csv.NewWriter(w)
	for _, r := range l.rows {
		kind := "uint"
		switch r.Type {
		case templates.String:
			kind = "string"
		case templates.IPv4Address, templates.IPv6Address:
			kind = "ip"
		}
		if r.enterprise() {
			c.Write([]string{fmt.Sprintf("%d.%d", r.ipfix.PEN, r.ipfix.ID), r.snake(), kind})
		}
	}
	c.Flush()
	return c.Error()
}

type fdsElements struct {
	XMLName  xml.Name     `xml:"ipfix-elements"`
	Scope    fdsScope     `xml:"scope"`
	Elements []fdsElement `xml:"element"`
}

type fdsScope struct {
	PEN    uint32    `xml:"pen"`
	Name   string    `xml:"name"`
	Biflow fdsBiflow `xml:"biflow"`
}

type fdsBiflow struct {
	Mode string `xml:"mode,attr"`
}

type fdsElement struct {
	ID        uint16 `xml:"id"`
	Name      string `xml:"name"`
	Type      string `xml:"dataType"`
	Semantics string `xml:"dataSemantic"`
	Units     string `xml:"units,omitempty"`
	Status    string `xml:"status"`
}

func (l *elementList) libfds(w io.Writer) error {
	var pens []string
	for _, pen := range l.enterprises() {
		if pen != templates.PENIANA && pen != templates.PENReverse {
			pens = append(pens, strconv.Itoa(int(pen)))
		}
	}
	if len(pens) != 1 {
		return usagef("libfds has a file for each enterprise: give --enterprise, one of %s", strings.Join(pens, ", "))
	}
	x := fdsElements{Scope: fdsScope{Name: "sockflow", Biflow: fdsBiflow{"none"}}}
	for _, r := range l.rows {
		if strconv.Itoa(int(r.ipfix.PEN)) != pens[0] {
			continue
		}
		x.Scope.PEN = r.ipfix.PEN
		x.Elements = append(x.Elements, fdsElement{r.ipfix.ID, r.Name, r.Type.String(), r.Semantics.String(), r.unitsText(), "current"})
	}
	switch x.Scope.PEN {
	case templates.PENNtop:
		x.Scope.Name = "ntop"
	case templates.PENAntrea:
		x.Scope.Name = "antrea"
	}
	return writeXML(w, x)
}

func (l *elementList) vflow(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintln(&b, "# vFlow: append to ipfix.elements. It drops the rest of a set at an element that is not there.")
	for _, pen := range l.enterprises() {
		if pen == templates.PENIANA {
			continue
		}
		fmt.Fprintf(&b, "%d:\n", pen)
		for _, r := range l.rows {
			if r.ipfix.PEN == pen {
				fmt.Fprintf(&b, "  %d:\n    - %s\n    - %s\n", r.ipfix.ID, r.Name, r.Type)
			}
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}
