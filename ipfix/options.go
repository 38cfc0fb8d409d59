package ipfix

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/templates"
)

// Info describes the Exporter in options records, in addition to what its Encoder knows.
type Info struct {
	Version string       // of the exporter
	Kernel  string       // its release
	Facts   func() Facts // asked for each report; nil: none is made
}

// Facts are counts since the start, for the reports of RFC 7011, sections 4.1 to 4.3.
type Facts struct {
	Messages, Octets, Flows uint64 // sent to this collector
	// What was not sent to this collector. Packets and octets of records in messages that were lost are not known.
	NotSentFlows, NotSentPackets, NotSentOctets uint64
	Metering                                    Metering
}

// Metering are the counts of the Metering Process.
type Metering struct {
	Flows          uint64 // observed
	IgnoredPackets uint64 // observations that were lost
	IgnoredOctets  uint64 // as far as known
}

// Describe sets the description of the Exporter for options records.
func (e *Encoder) Describe(i Info) { e.info = i }

// Kinds of options templates.
const (
	optionsTypes = iota
	optionsExporter
	optionsStatistics
	optionsMetering
	optionsExporting
	optionsKeys
	optionsSelection
	optionsSampling
	optionsApplications
	optionsInterfaces
	optionsKinds
)

// optionsID is the id of an options template. As those of flow records, which are templates.FirstID and up, ids change with the layout of all:
// elements have other numbers, or none, in another dialect.
func (e *Encoder) optionsID(kind int) uint16 {
	const first, most = 256, 12 // 63 pages of 12 are below templates.FirstID
	return uint16(first + most*e.set.Page() + kind)
}

// Scope types of NetFlow v9 (RFC 3954, section 6.1).
const (
	scopeSystem    = 1
	scopeInterface = 2
	scopeTemplate  = 5
)

// optionsSpec lists the elements of an options template; the first of them are its scope.
type optionsSpec struct {
	kind     int
	scopes   int
	v9Scope  uint16 // instead of the scopes; the value is the first's. 0: IPFIX only
	v9Only   bool
	elements []string
}

var optionsSpecs = []optionsSpec{
	// Type records (RFC 5610, section 3.9).
	{optionsTypes, 2, 0, false, []string{"privateEnterpriseNumber", "informationElementId", "informationElementDataType", "informationElementSemantics",
		"informationElementUnits", "informationElementRangeBegin", "informationElementRangeEnd", "informationElementName", "informationElementDescription"}},
	{optionsExporter, 1, scopeSystem, false, []string{"exportingProcessId", "observationDomainName", "systemInitTimeMilliseconds", "exporterVersion", "kernelVersion"}},
	// Metering Process Statistics (RFC 7011, section 4.1).
	{optionsStatistics, 2, scopeSystem, false, []string{"observationDomainId", "meteringProcessId", "exportedMessageTotalCount", "exportedFlowRecordTotalCount", "exportedOctetTotalCount", "observedFlowTotalCount"}},
	// Metering Process Reliability Statistics (section 4.2); the times of the first and last loss.
	{optionsMetering, 2, scopeSystem, false, []string{"observationDomainId", "meteringProcessId", "ignoredPacketTotalCount", "ignoredOctetTotalCount", "observationTimeMilliseconds", "observationTimeMilliseconds"}},
	// Exporting Process Reliability Statistics (section 4.3).
	{optionsExporting, 1, scopeSystem, false, []string{"exportingProcessId", "notSentFlowTotalCount", "notSentPacketTotalCount", "notSentOctetTotalCount", "observationTimeMilliseconds", "observationTimeMilliseconds"}},
	// Flow Keys (section 4.4).
	{optionsKeys, 1, scopeTemplate, false, []string{"templateId", "flowKeyIndicator"}},
	// No selection: one packet of one (RFC 5476, section 6.5.2; RFC 5477, section 8.2).
	{optionsSelection, 1, 0, false, []string{"selectorId", "selectorAlgorithm", "samplingPacketInterval", "samplingPacketSpace"}},
	{optionsSampling, 1, scopeSystem, true, []string{"exportingProcessId", "samplingInterval", "samplingAlgorithm"}},
	// Names of applications (RFC 6759, section 6.6).
	{optionsApplications, 1, scopeSystem, false, []string{"applicationId", "applicationName", "applicationDescription"}},
	// Counters of interfaces: as options records they are no flows, which some collectors would take them for.
	// An index is of a network namespace, whose inode stands for the VRF.
	{optionsInterfaces, 2, scopeInterface, false, []string{
		"ingressInterface", "ingressVRFID", "interfaceName", "ingressInterfaceType", "observationTimeMilliseconds",
		"octetTotalCount", "packetTotalCount", "interfaceInputErrorPackets", "droppedPacketTotalCount",
		"postOctetTotalCount", "postPacketTotalCount", "interfaceOutputErrorPackets", "interfaceOutputDropPackets",
		"interfaceMtu", "interfaceOperational", "interfaceKind", "sourceNetworkNamespace",
		"sourceContainerId", "sourceContainerName", "sourcePodName", "sourcePodNamespace",
	}},
}

// optionsTemplate is a spec in a dialect.
type optionsTemplate struct {
	fields []optionsField
	scopes int
}

type optionsField struct {
	number  templates.Number
	length  uint16
	element *templates.Element
	value   int // which of a record's values
}

func newOptions(opt templates.Options) (l [optionsKinds]optionsTemplate, err error) {
	elements, err := templates.Elements()
	if err != nil {
		return l, err
	}
	byName := map[string]*templates.Element{}
	for i := range elements {
		byName[elements[i].Name] = &elements[i]
	}
	for _, spec := range optionsSpecs {
		if opt.V9 && spec.v9Scope == 0 || !opt.V9 && spec.v9Only {
			continue
		}
		t := optionsTemplate{scopes: spec.scopes}
		for i, name := range spec.elements {
			el := byName[name]
			if el == nil {
				return l, fmt.Errorf("options element %s is not in the registry", name)
			}
			f := optionsField{element: el, length: el.Length(opt), value: i}
			switch n, ok := el.Number(opt); {
			case opt.V9 && i == 0:
				f.number = templates.Number{ID: spec.v9Scope}
				if spec.v9Scope == scopeSystem && spec.kind == optionsApplications {
					// The application is no scope of NetFlow v9: it follows one.
					t.fields = append(t.fields, optionsField{number: f.number, length: 4, value: -1})
					f.number = n
				}
			case opt.V9 && i < spec.scopes && spec.kind != optionsInterfaces:
				continue
			case !ok:
				continue // not in this dialect
			default:
				f.number = n
			}
			t.fields = append(t.fields, f)
		}
		if opt.V9 {
			t.scopes = 1
		}
		l[spec.kind] = t
	}
	return l, nil
}

// value is a value of an options record.
type value struct {
	n uint64
	s string
}

func number(n uint64) value { return value{n: n} }
func text(s string) value   { return value{s: s} }

// option adds an options record, and its template if it is the first in this session. Without effect where the protocol has no such.
func (c *control) option(kind int, values ...value) {
	t := &c.e.options[kind]
	if len(t.fields) == 0 {
		return
	}
	id := c.e.optionsID(kind)
	c.announceOptions(kind)
	b := c.body[:0]
	for _, f := range t.fields {
		var v value
		if f.value >= 0 {
			v = values[f.value]
		} else {
			v.n = uint64(c.e.domain)
		}
		switch {
		case f.element == nil || f.element.Type != templates.String:
			for shift := 8 * (int(f.length) - 1); shift >= 0; shift -= 8 {
				b = append(b, byte(v.n>>shift))
			}
		case f.length == templates.Variable:
			b = templates.AppendString(b, v.s, 255)
		default:
			b = templates.AppendFixed(b, v.s, int(f.length))
		}
	}
	c.body = b
	c.add(id, b, 1)
}

// announceOptions adds the Options Template of a kind, unless it was sent in this session or the protocol has none.
func (c *control) announceOptions(kind int) {
	t := &c.e.options[kind]
	if len(t.fields) == 0 || c.e.announced.options[kind] {
		return
	}
	c.e.announced.options[kind] = true
	for _, f := range t.fields {
		if f.element != nil {
			c.describe(f.number, f.element)
		}
	}
	c.optionsTemplate(c.e.optionsID(kind), t)
}

// optionsTemplate adds an Options Template Record (RFC 7011, section 3.4.2.2; RFC 3954, section 6.1).
func (c *control) optionsTemplate(id uint16, t *optionsTemplate) {
	v9 := c.e.proto == NetFlowV9
	b := binary.BigEndian.AppendUint16(c.body[:0], id)
	if v9 {
		b = binary.BigEndian.AppendUint16(b, uint16(4*t.scopes))
		b = binary.BigEndian.AppendUint16(b, uint16(4*(len(t.fields)-t.scopes)))
	} else {
		b = binary.BigEndian.AppendUint16(b, uint16(len(t.fields)))
		b = binary.BigEndian.AppendUint16(b, uint16(t.scopes))
	}
	for _, f := range t.fields {
		b = appendField(b, f.number, f.length)
	}
	c.body = b
	set := uint16(setOptionsTemplate)
	if v9 {
		set = setOptionsV9
	}
	c.closeSet() // nfacctd reads one in a set
	c.add(set, b, 0)
	c.bring(id)
}

func (c *control) pid() value { return number(uint64(os.Getpid())) }

// exporter adds what does not change in a session.
func (c *control) exporter() {
	e := c.e
	e.followClock(c.now)
	node := e.set.Options().Node
	c.option(optionsExporter, c.pid(), text(node), number(uint64(e.zero/1e6)), text(e.info.Version), text(e.info.Kernel))
	c.option(optionsSelection, number(1), number(1), number(1), number(0))
	c.option(optionsSampling, c.pid(), number(1), number(1))
}

func (c *control) flowKeys(t *templates.Template) {
	c.option(optionsKeys, number(uint64(t.ID)), number(t.Keys))
}

// lossTimes are when a count of loss was first and last seen to grow, to the time of a report; before any loss, from when to when it was 0.
type lossTimes struct {
	count       uint64
	first, last int64 // Unix milliseconds; 0 never
}

func (l *lossTimes) values(boot int64, now time.Time) (first, last value) {
	if l.first == 0 {
		return number(uint64(boot / 1e6)), number(uint64(now.UnixMilli()))
	}
	return number(uint64(l.first)), number(uint64(l.last))
}

func (l *lossTimes) see(count uint64, now time.Time) {
	if count == l.count {
		return
	}
	l.count, l.last = count, now.UnixMilli()
	if l.first == 0 {
		l.first = l.last
	}
}

func (c *control) statistics() {
	e := c.e
	if e.info.Facts == nil {
		return
	}
	f := e.info.Facts()
	domain := number(uint64(e.domain))
	e.ignored.see(f.Metering.IgnoredPackets, c.now)
	e.notSent.see(f.NotSentFlows, c.now)
	c.e.followClock(c.now)
	ignoredFirst, ignoredLast := e.ignored.values(e.zero, c.now)
	notSentFirst, notSentLast := e.notSent.values(e.zero, c.now)
	c.option(optionsStatistics, domain, c.pid(), number(f.Messages), number(f.Flows), number(f.Octets), number(f.Metering.Flows))
	c.option(optionsMetering, domain, c.pid(), number(f.Metering.IgnoredPackets), number(f.Metering.IgnoredOctets), ignoredFirst, ignoredLast)
	c.option(optionsExporting, c.pid(), number(f.NotSentFlows), number(f.NotSentPackets), number(f.NotSentOctets), notSentFirst, notSentLast)
}

// Interfaces sends the counters of interfaces.
func (e *Encoder) Interfaces(l []flowcache.Interface, now time.Time) error {
	if len(l) == 0 {
		return nil
	}
	c := e.control(now)
	for i := range l {
		f := &l[i]
		w := f.Container
		if w == nil {
			w = &flowcache.Workload{}
		}
		up := uint64(0)
		if f.Up {
			up = 1
		}
		c.option(optionsInterfaces, number(uint64(f.Index)), number(uint64(f.NetNS)), text(f.Name), number(interfaceType(f.Type)), number(uint64(f.Time/1e6)),
			number(f.In.Octets), number(f.In.Packets), number(f.In.Errors), number(f.In.Drops),
			number(f.Out.Octets), number(f.Out.Packets), number(f.Out.Errors), number(f.Out.Drops),
			number(uint64(f.MTU)), number(up), text(f.Kind), number(uint64(f.NetNS)),
			text(w.ContainerID), text(w.ContainerName), text(w.PodName), text(w.PodNamespace))
	}
	return c.end()
}

// interfaceType turns a type of Linux (ARPHRD_..., if_arp.h) into IANA's (ifType).
func interfaceType(arphrd uint16) uint64 {
	switch arphrd {
	case 1:
		return 6 // ethernetCsmacd
	case 512:
		return 23 // ppp
	case 772:
		return 24 // softwareLoopback
	case 32:
		return 199 // infiniband
	case 768, 769, 776, 778, 0xfffe:
		return 131 // tunnel: IPIP, IP6IP6, SIT, GRE, none
	}
	return 1 // other
}
