package ipfix

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// ntopngRecord is a flow from curl, in a container, to nginx, in a pod.
func ntopngRecord() *flowcache.Record {
	a := flowcache.AddrFrom4
	return &flowcache.Record{
		Key:   flowcache.Key{Src: a([4]byte{192, 168, 77, 1}), Dst: a([4]byte{192, 168, 88, 9}), SrcPort: 40001, DstPort: 443, Proto: 6},
		Start: 1764000000e9, End: 1764000002e9, EndReason: flowcache.EndDetected, Final: true, Control: 0x1b, ControlBack: 0x12, HasTCP: true,
		Forward:      flowcache.Counters{Payload: 900, Octets: 1500, Packets: 10, RetransPackets: 5, RetransOctets: 70000},
		Reverse:      flowcache.Counters{Payload: 8000, Octets: 9001, Packets: 11},
		ForwardTotal: flowcache.Counters{Payload: 1900, Octets: 3000, Packets: 20, RetransPackets: 5, RetransOctets: 70000},
		ReverseTotal: flowcache.Counters{Payload: 18000, Octets: 20000, Packets: 22},
		TCP:          flowcache.TCPMetrics{SRTT: 4100, RTTVar: 5300, State: flowcache.TCPClose},
		Source: flowcache.End{
			Local: true, Process: flowcache.ProcessID{PID: 4242}, UID: 1000, GID: 1000, Cookie: 1,
			Who:       &flowcache.Process{Path: "/usr/bin/curl", UserName: "alice", ParentPID: 1, ParentPath: "/sbin/init", ParentUID: 0},
			Container: &flowcache.Workload{ContainerID: "cf5485c07181"},
		},
		Dest: flowcache.End{
			Local: true, Process: flowcache.ProcessID{PID: 999}, UID: 0, GID: 0, Cookie: 2,
			Who:       &flowcache.Process{Path: "/usr/sbin/nginx", ParentUID: flowcache.NoID},
			Container: &flowcache.Workload{ContainerID: "deadbeef0001", ContainerName: "web", PodName: "kube-dns-1", PodNamespace: "kube-system"},
		},
	}
}

// TestTLVOctets: the octets that ntopng 6.3 was seen to read.
func TestTLVOctets(t *testing.T) {
	got := append([]byte(nil), appendTLV(appendTLVStart(nil), ntopngRecord(), "10.0.0.1")...)
	text := func(s string) string {
		b := binary.BigEndian.AppendUint16(nil, uint16(len(s)))
		return hex.EncodeToString(append(b, s...))
	}
	want := strings.Join([]string{
		"0101",
		"223c04", "2b08" + text("192.168.77.1"), "2b0c" + text("192.168.88.9"),
		"23079c41", "230b01bb", "220406",
		"230105dc", "22020a", "23172329", "22180b",
		"2416" + "69248100", "2415" + "69248102",
		"2b82" + text("10.0.0.1"),
		"22061b", "32e0ce1b", "32e0cf12", // TCP_FLAGS, CLIENT_TCP_FLAGS 57550, SERVER
		"32e0ed05", "32e0ee00", // RETRANSMITTED_IN_PKTS 57581, OUT
		"34e0ff00011170", "32e10000", // RETRANSMITTED_IN_BYTES 57599, OUT
		"3ae0fc33330340", // SERVER_NW_LATENCY_MS 57596: 2.05
		"33e1281092", "33e22903e8", "3be129" + text("/usr/bin/curl"), "3be1f4" + text("alice"),
		"32e1f501", "3be1f6" + text("/sbin/init"), "32e2b400",
		"3be2ae" + text("cf5485c07181"),
		"33e1f703e7", "32e22a00", "3be1f8" + text("/usr/sbin/nginx"),
		"3be2af" + text("deadbeef0001"),
		"bb" + text("DST_CONTAINER_NAME") + text("web"), "bb" + text("K8S_DST_POD") + text("kube-dns-1"), "bb" + text("K8S_DST_NS") + text("kube-system"),
		"01",
	}, "")
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
	r := ntopngRecord()
	if n := testing.AllocsPerRun(100, func() { got = appendTLV(got[:0], r, "10.0.0.1") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTLVStrings(t *testing.T) {
	var b tlv
	b.text(1, "a\xffb")
	if !bytes.HasSuffix(b, []byte("a\ufffdb")) {
		t.Errorf("%q", b)
	}
	b = nil
	b.text(1, strings.Repeat("é", 600))
	if n := int(binary.BigEndian.Uint16(b[2:])); n != len(b)-4 || n > maxTLVString || n%2 != 0 {
		t.Errorf("%d octets of %d", n, len(b))
	}
}

// TestAgentJSON: an object for each end that is here; counters are totals; nothing that ends ntopng or puts one end in the other's place.
func TestAgentJSON(t *testing.T) {
	var a AgentJSON
	r := ntopngRecord()
	r.Final = false
	first := a.Append(nil, r, '\n')
	if bytes.Contains(first, []byte("REMOTE_PROCESS")) || bytes.Contains(first, []byte("REMOTE_CONTAINER")) || bytes.Contains(first, []byte("INTERFACE_NAME")) {
		t.Errorf("%s", first)
	}
	lines := bytes.Split(bytes.TrimSpace(first), []byte("\n"))
	if len(lines) != 2 {
		t.Fatalf("%s", first)
	}
	want := []string{
		`{"timestamp":"1764000002.000000","IP_PROTOCOL_VERSION":4,"PROTOCOL":6,"IPV4_LOCAL_ADDR":"192.168.77.1","IPV4_REMOTE_ADDR":"192.168.88.9","L4_LOCAL_PORT":40001,"L4_REMOTE_PORT":443,"TCP_EVENT_TYPE":"CONNECT","LOCAL_PROCESS":{"PID":4242,"UID":1000,"UID_NAME":"alice","GID":1000,"PROCESS_PATH":"/usr/bin/curl"},"LOCAL_FATHER_PROCESS":{"PID":1,"UID":0,"PROCESS_PATH":"/sbin/init"},"LOCAL_CONTAINER":{"ID":"cf5485c07181"},"TCP":{"CONN_STATE":"CLOSE","SEGS_IN":22,"SEGS_OUT":20,"UNACK_SEGMENTS":0,"RETRAN_PKTS":5,"LOST_PKTS":0,"RTT":4.1,"RTT_VARIANCE":5.3,"BYTES_RCVD":18000,"BYTES_ACKED":1900}}`,
		`{"timestamp":"1764000002.000000","IP_PROTOCOL_VERSION":4,"PROTOCOL":6,"IPV4_LOCAL_ADDR":"192.168.88.9","IPV4_REMOTE_ADDR":"192.168.77.1","L4_LOCAL_PORT":443,"L4_REMOTE_PORT":40001,"TCP_EVENT_TYPE":"ACCEPT","LOCAL_PROCESS":{"PID":999,"UID":0,"GID":0,"PROCESS_PATH":"/usr/sbin/nginx"},"LOCAL_CONTAINER":{"ID":"deadbeef0001","K8S":{"POD":"kube-dns-1","NS":"kube-system","NAME":"web"}},"TCP":{"CONN_STATE":"CLOSE","SEGS_IN":20,"SEGS_OUT":22,"UNACK_SEGMENTS":0,"RETRAN_PKTS":0,"LOST_PKTS":0,"RTT":4.1,"RTT_VARIANCE":5.3,"BYTES_RCVD":1900,"BYTES_ACKED":18000}}`,
	}
	for i, l := range lines {
		if string(l) != want[i] {
			t.Errorf("got  %s\nwant %s", l, want[i])
		}
	}
	r.Final = true
	if last := a.Append(nil, r, '\n'); bytes.Count(last, []byte(`"CLOSE"`)) != 4 { // the state and the event, of both
		t.Errorf("%s", last)
	}
}

// subscriber is a SUB socket of the test, made by hand of the specification.
type subscriber struct {
	t *testing.T
	net.Conn
}

func (s subscriber) hello(topics ...string) {
	s.t.Helper()
	greeting := make([]byte, 64)
	greeting[0], greeting[9], greeting[10], greeting[11] = 0xff, 0x7f, 3, 1
	copy(greeting[12:], "NULL")
	s.Write(greeting)
	s.Write([]byte("\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"))
	for _, topic := range topics {
		s.Write(append([]byte{0, byte(1 + len(topic)), 1}, topic...))
	}
	got := make([]byte, 64)
	if _, err := io.ReadFull(s, got); err != nil || got[0] != 0xff || got[9] != 0x7f || got[10] != 3 || string(got[12:17]) != "NULL\x00" {
		s.t.Fatalf("greeting %x, %v", got, err)
	}
	if flags, body := s.frame(); flags != 4 || string(body) != "\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB" {
		s.t.Fatalf("%d %q", flags, body)
	}
}

func (s subscriber) frame() (flags byte, body []byte) {
	s.t.Helper()
	s.SetReadDeadline(time.Now().Add(10 * time.Second))
	h := make([]byte, 2)
	if _, err := io.ReadFull(s, h); err != nil {
		s.t.Fatal(err)
	}
	n := uint64(h[1])
	if h[0]&2 != 0 {
		rest := make([]byte, 7)
		io.ReadFull(s, rest)
		n = binary.BigEndian.Uint64(append(h[1:], rest...))
	}
	body = make([]byte, n)
	if _, err := io.ReadFull(s, body); err != nil {
		s.t.Fatal(err)
	}
	return h[0] &^ 2, body
}

// message returns the next message of two frames.
func (s subscriber) message() (header, payload []byte) {
	s.t.Helper()
	flags, header := s.frame()
	if flags != 1 || len(header) != 36 {
		s.t.Fatalf("flags %d of a header of %d octets", flags, len(header))
	}
	if flags, payload = s.frame(); flags != 0 {
		s.t.Fatalf("flags %d of a payload", flags)
	}
	return header, payload
}

// startNtopng runs an exporter until the test ends.
func startNtopng(t *testing.T, url string) *Ntopng {
	t.Helper()
	cfg, err := ParseNtopngURL(url, NtopngConfig{SourceID: 7, Node: "here", ReconnectMin: 100 * time.Millisecond, ReconnectMax: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	x, err := NewNtopng(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { x.Run(ctx); close(done) }() // ends with ctx
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Error("still running 5 s after the end")
		}
	})
	return x
}

func offer(x *Ntopng, recs ...*flowcache.Record) {
	r := flowcache.RecordPool(nil).Get()
	for _, rec := range recs {
		r.List = append(r.List, *rec)
	}
	x.Offer(r)
}

// TestNtopngConnects: to a subscriber that comes late, goes and comes back. Nothing is lost, and messages are numbered without a gap.
func TestNtopngConnects(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { l.Close() }()
	x := startNtopng(t, "zmq://"+l.Addr().String())
	offer(x, ntopngRecord())
	accept := func(topics ...string) subscriber {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		s := subscriber{t, c}
		s.hello(topics...)
		return s
	}
	s := accept("flow", "event", "counter", "template")
	seen := map[string]int{}
	last := uint32(0)
	next := func() (topic string, payload []byte) {
		header, payload := s.message()
		topic = string(bytes.TrimRight(header[:16], "\x00"))
		if seen[topic]++; header[16] != 4 || header[17] != map[bool]byte{true: 2}[topic == "flow"] || header[18] != 0 || header[19] != 0 {
			t.Errorf("header %x of %s", header, topic)
		}
		if n := binary.LittleEndian.Uint32(header[20:]); int(n) != len(payload) || n != binary.LittleEndian.Uint32(header[24:]) {
			t.Errorf("%d octets are announced of %d", n, len(payload))
		}
		if id := binary.BigEndian.Uint32(header[28:]); id != last+1 {
			t.Errorf("message %d after %d", id, last)
		} else {
			last = id
		}
		if binary.LittleEndian.Uint32(header[32:]) != 7 {
			t.Errorf("header %x", header)
		}
		return topic, payload
	}
	for seen["flow"] < 1 || seen["event"] < 1 || seen["template"] < 1 {
		topic, payload := next()
		switch topic {
		case "flow":
			if want := appendTLV(appendTLVStart(nil), ntopngRecord(), "127.0.0.1"); !bytes.Equal(payload, want) {
				t.Errorf("got  %x\nwant %x", payload, want)
			}
		case "event":
			var e struct{ Time int64 }
			if err := json.Unmarshal(payload, &e); err != nil || time.Since(time.Unix(e.Time, 0)).Abs() > 5*time.Second {
				t.Errorf("%s: %v", payload, err)
			}
		case "template":
			var fields []struct{ Name string }
			if err := json.Unmarshal(payload, &fields); err != nil {
				t.Error(err)
			}
			for _, name := range strings.Fields("FIRST_SWITCHED LAST_SWITCHED L4_SRC_PORT L4_DST_PORT IP_PROTOCOL_VERSION PROTOCOL IN_BYTES IN_PKTS OUT_BYTES OUT_PKTS") {
				if !bytes.Contains(payload, []byte(`"`+name+`"`)) {
					t.Errorf("the template has no %s", name)
				}
			}
		}
	}
	// An interface's counters.
	r := flowcache.RecordPool(nil).Get()
	r.Interfaces = append(r.Interfaces, flowcache.Interface{
		Index: 3, Name: "veth1", Type: 1, Up: true, In: flowcache.InterfaceCounters{Octets: 5}, Container: &flowcache.Workload{ContainerID: "c1", ContainerName: "web"},
	})
	x.Offer(r)
	for {
		topic, payload := next()
		if topic != "counter" {
			continue
		}
		if want := `{"deviceIP":2130706433,"ifIndex":3,"ifName":"veth1","ifType":1,"ifSpeed":0,"ifDirection":"Full","ifAdminStatus":"Up","ifOperStatus":"Up","ifInOctets":5,"ifInPackets":0,"ifInErrors":0,"ifOutOctets":0,"ifOutPackets":0,"ifOutErrors":0,"ifPromiscuousMode":false,"LOCAL_CONTAINER":{"ID":"c1","DOCKER":{"NAME":"web"}}}`; string(payload) != want {
			t.Errorf("got  %s\nwant %s", payload, want)
		}
		break
	}
	// A ping, as libzmq sends with ZMQ_HEARTBEAT_IVL.
	s.Write([]byte("\x04\x0b\x04PING\x00\x0aping"))
	if flags, body := s.frame(); flags != 4 || string(body) != "\x04PONGping" {
		t.Errorf("%d %q", flags, body)
	}
	// The subscriber restarts; what comes meanwhile follows.
	s.Close()
	eventually(t, "the loss is noticed", func() bool { return x.publisher().count("flow") == 0 })
	const many = 500 // more than one message
	for range many {
		offer(x, ntopngRecord())
	}
	s = accept("flow")
	got := 0
	for got < many {
		topic, payload := next()
		if topic == "flow" {
			got += bytes.Count(payload, []byte("/usr/bin/curl"))
		}
	}
	eventually(t, "they are counted", func() bool { return x.Stats().Records == many+1 })
	if st := x.Stats(); got != many || st.Records != many+1 || st.Encoded != many+1 || st.DroppedQueue+st.DroppedSend != 0 || st.Waiting != 0 {
		t.Errorf("%d records; %+v", got, st)
	}
}

// TestNtopngBound: several subscribers, each its topics; hostile and silent ones do no harm.
func TestNtopngBound(t *testing.T) {
	x := startNtopng(t, "zmq://127.0.0.1:"+freePort(t)+"?bind=true&format=json")
	dial := func() subscriber {
		var c net.Conn
		eventually(t, "it is bound", func() bool {
			var err error
			c, err = net.Dial("tcp", x.cfg.Address)
			return err == nil
		})
		t.Cleanup(func() { c.Close() })
		return subscriber{t, c}
	}
	silent := dial() // says nothing at all
	defer silent.Close()
	for name, bad := range map[string]string{
		"huge frame":        "\x02\x7f\xff\xff\xff\xff\xff\xff\xff",
		"long frame":        "\x02\x00\x00\x00\x00\x00\x00\x04\x01",
		"error":             "\x04\x07\x05ERROR\x00",
		"too many subjects": strings.Repeat("\x00\x02\x01x", zmtpMaxTopics+1),
	} {
		s := dial()
		s.hello()
		s.Write([]byte(bad))
		s.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := s.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: the connection is still there: %v", name, err)
		}
	}
	for _, bad := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00CURVE" + strings.Repeat("\x00", 47), "\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + strings.Repeat("\x00", 48) + "\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH"} {
		s := dial()
		s.Write([]byte(bad))
		s.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, s); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%.20q: the connection is still there", bad)
		}
	}
	a, b := dial(), dial()
	a.hello("flow")
	b.hello("") // everything
	eventually(t, "both have subscribed", func() bool { return x.publisher().count("flow") == 2 })
	offer(x, ntopngRecord())
	for _, s := range []subscriber{a, b} {
		for {
			header, payload := s.message()
			if header[0] != 'f' {
				continue
			}
			var objects []map[string]any
			if err := json.Unmarshal(payload, &objects); err != nil || len(objects) != 2 || header[17] != 0 {
				t.Errorf("%s: %v", payload, err)
			}
			break
		}
	}
	a.Write([]byte("\x00\x05\x00flow")) // no more
	eventually(t, "one has gone", func() bool { return x.publisher().count("flow") == 1 })
}

// TestNtopngHungSubscriber: one that does not read is let go, and does not hold up the end.
func TestNtopngHungSubscriber(t *testing.T) {
	t.Parallel() // it waits for a timeout
	x := startNtopng(t, "zmq://127.0.0.1:"+freePort(t)+"?bind=true&queue=100000")
	var c net.Conn
	eventually(t, "it is bound", func() bool {
		var err error
		c, err = net.Dial("tcp", x.cfg.Address)
		return err == nil
	})
	defer c.Close()
	subscriber{t, c}.hello("flow")
	eventually(t, "the subscription", func() bool { return x.publisher().count("flow") == 1 })
	const n = 1000
	for range n {
		r := flowcache.RecordPool(nil).Get()
		for range 50 {
			r.List = append(r.List, *ntopngRecord())
		}
		x.Offer(r)
	}
	eventually(t, "it is let go", func() bool { return x.publisher().count("flow") == 0 })
	st := x.Stats()
	if st.Encoded+st.Waiting+st.DroppedQueue != n*50 || st.Errors == 0 {
		t.Errorf("%+v", st)
	}
}

// TestNtopngQueueIsBounded: nobody subscribes, and the memory is that of the queue.
func TestNtopngQueueIsBounded(t *testing.T) {
	x := startNtopng(t, "zmq://127.0.0.1:1?queue=10")
	for range 25 {
		offer(x, ntopngRecord())
	}
	if st := x.Stats(); st.DroppedQueue != 15 || st.Waiting != 10 {
		t.Errorf("%+v", st)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func TestParseNtopngURL(t *testing.T) {
	for _, tc := range []struct{ url, name, err string }{
		{"zmq://127.0.0.1:5556", "zmq://127.0.0.1:5556", ""},
		{"zmq://*:5556", "zmq://*:5556", ""},
		{"zmq://[::1]:5556?format=json&queue=9&domain=3&reconnect-min=1s&reconnect-max=2s", "zmq://[::1]:5556", ""},
		{"zmq://h", "", "PORT"},
		{"zmq://:5556", "", "PORT"},
		{"zmq://h:0", "", "PORT"},
		{"zmq://h:1/x", "", "more than"},
		{"zmq://h:1?format=xml", "", "tlv or json"},
		{"zmq://h:1?bind=maybe", "", "true"},
		{"zmq://h:1?queue=0", "", "queue"},
		{"zmq://h:1?mtu=1", "", "unknown"},
		{"zmq://h:1?format=json&format=tlv", "", "twice"},
		{"udp://h:1", "", "scheme"},
		{"zmq://h:x", "", "collector"},
	} {
		cfg, err := ParseNtopngURL(tc.url, NtopngConfig{})
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v; want %q", tc.url, err, tc.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.url, err)
			continue
		}
		if x, err := NewNtopng(cfg); err != nil || x.Name() != tc.name {
			t.Errorf("%s: %v", tc.url, err)
		}
	}
}

func FuzzZMTP(f *testing.F) {
	f.Add([]byte("\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + strings.Repeat("\x00", 48) + "\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB\x00\x05\x01flow\x04\x0b\x04PING\x00\x0aping"))
	f.Add([]byte("\x02\x7f\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		handshake(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(b), io.Discard})
		r := bytes.NewReader(b)
		buf := make([]byte, zmtpMaxFrame)
		for {
			before := r.Len()
			flags, body, err := readFrame(r, buf)
			if err != nil {
				return
			}
			if r.Len() >= before || len(body) > zmtpMaxFrame {
				t.Fatalf("%d octets left of %d", r.Len(), before)
			}
			if _, data, ok := command(flags, body); ok {
				property(data, "socket-type")
			}
		}
	})
}

func BenchmarkTLV(b *testing.B) {
	r := ntopngRecord()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = appendTLV(buf[:0], r, "10.0.0.1")
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
