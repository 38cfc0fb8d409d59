package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/netsampler/goflow2/v2/decoders/netflow"
	"github.com/netsampler/goflow2/v2/producer"
	protoproducer "github.com/netsampler/goflow2/v2/producer/proto"

	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/templates"
)

// goflow2Column is the decoder and the producer of goflow2, configured by a mapping as its users do.
type goflow2Column struct{ sinks }

func (c *goflow2Column) url(r *interopRow) string { return c.udpURL(r) }

// goflow2Config maps what the records carry beyond goflow2's own fields.
func goflow2Config() *protoproducer.ProducerConfig {
	cfg := &protoproducer.ProducerConfig{}
	f := &cfg.Formatter
	f.Fields = []string{"bytes", "packets", "src_port", "dst_port", "time_flow_start_ns", "time_flow_end_ns"}
	f.Render = map[string]protoproducer.RendererID{}
	add := func(name, typ string) {
		f.Fields = append(f.Fields, name)
		f.Protobuf = append(f.Protobuf, protoproducer.ProtobufFormatterConfig{Name: name, Index: int32(1000 + len(f.Protobuf)), Type: typ})
		if typ == "string" {
			f.Render[name] = protoproducer.RendererString
		}
	}
	for _, name := range []string{"payload", "reverseOctets", "reversePackets", "pid"} {
		add(name, "varint")
	}
	for _, name := range []string{"path", "user", "container", "pod"} {
		add(name, "string")
	}
	ipfix := func(pen uint32, id uint16, to string) {
		cfg.IPFIX.Mapping = append(cfg.IPFIX.Mapping, protoproducer.NetFlowMapField{PenProvided: pen != 0, Pen: pen, Type: id, Destination: to})
	}
	v9 := func(id uint16, to string) {
		cfg.NetFlowV9.Mapping = append(cfg.NetFlowV9.Mapping, protoproducer.NetFlowMapField{Type: id, Destination: to})
	}
	ipfix(0, 401, "payload")
	ipfix(templates.PENReverse, 1, "reverseOctets")
	ipfix(templates.PENReverse, 2, "reversePackets")
	v9(401, "payload")
	for _, n := range allWhoNumbers() {
		ipfix(n.pen, n.id, n.what)
		if n.pen == 0 {
			v9(n.id, n.what)
		}
	}
	return cfg
}

func (c *goflow2Column) flows(rows []*interopRow) map[*interopRow]map[string]sight {
	mapped, err := goflow2Config().Compile()
	if err != nil {
		c.t.Fatal(err)
	}
	all := map[*interopRow]map[string]sight{}
	for _, r := range rows {
		all[r] = map[string]sight{}
		p, err := protoproducer.CreateProtoProducer(mapped, protoproducer.CreateSamplingSystem)
		if err != nil {
			c.t.Fatal(err)
		}
		known := netflow.CreateTemplateSystem()
		for _, m := range c.udp[r.index].messages() {
			var v9 netflow.NFv9Packet
			var v10 netflow.IPFIXPacket
			if err := netflow.DecodeMessageVersion(bytes.NewBuffer(m), known, &v9, &v10); err != nil {
				c.t.Errorf("goflow2: %v", err)
				continue
			}
			var packet any = &v10
			if r.proto == ipfix.NetFlowV9 {
				packet = &v9
			}
			made, err := p.Produce(packet, &producer.ProduceArgs{TimeReceived: time.Now(), SamplerAddress: netip.MustParseAddr("127.0.0.1")})
			if err != nil {
				c.t.Errorf("goflow2: %v", err)
			}
			for _, f := range made {
				c.flow(all[r], f)
			}
		}
	}
	return all
}

// flow adds what goflow2 writes of a flow.
func (c *goflow2Column) flow(flows map[string]sight, f producer.ProducerMessage) {
	line, err := f.(json.Marshaler).MarshalJSON()
	if err != nil {
		c.t.Errorf("goflow2: %v", err)
		return
	}
	s := sight{}
	if !json.Valid(line) {
		s["no JSON"] = ""
		line = bytes.ReplaceAll(line, []byte{0}, nil)
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	m := map[string]any{}
	if err := d.Decode(&m); err != nil {
		c.t.Errorf("goflow2: %v in %s", err, line)
		return
	}
	text := func(name string) string {
		if m[name] == nil {
			return ""
		}
		return fmt.Sprint(m[name])
	}
	s["octets"], s["packets"] = text("bytes"), text("packets")
	for _, what := range []string{"payload", "reverseOctets", "reversePackets", "pid", "path", "user", "container", "pod"} {
		s.set(what, text(what))
	}
	for what, name := range map[string]string{"start": "time_flow_start_ns", "end": "time_flow_end_ns"} {
		ns, _ := strconv.ParseInt(text(name), 10, 64)
		s[what] = strconv.FormatInt(ns/1e6, 10)
	}
	flows[flowKey(text("src_port"), text("dst_port"))] = s
}
