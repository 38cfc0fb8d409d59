package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"

	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// debianPython has Debian's modules; another one may come first in the path.
const debianPython = "/usr/bin/python3"

// zmqMessage is what testdata/zmqsub.py prints.
type zmqMessage struct {
	Topic string
	Flags int
	ID    uint32
	Body  json.RawMessage
}

// zmqSubscriber is a subscriber by libzmq.
type zmqSubscriber struct {
	port string
	mu   sync.Mutex
	msgs []zmqMessage
	errs bytes.Buffer
}

func newZMQSubscriber(t *testing.T, args ...string) *zmqSubscriber {
	t.Helper()
	c := exec.Command(debianPython, append([]string{"testdata/zmqsub.py"}, args...)...)
	s := &zmqSubscriber{}
	c.Stderr = &s.errs
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	if args[0] == "bind" {
		lines.Scan()
		s.port = strings.TrimPrefix(lines.Text(), "port ")
	}
	read := make(chan struct{})
	go func() { // ends with the program
		defer close(read)
		for lines.Scan() {
			var m zmqMessage
			if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
				t.Errorf("%s: %v", lines.Bytes(), err)
			}
			s.mu.Lock()
			s.msgs = append(s.msgs, m)
			s.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		in.Close()
		<-read
		if err := c.Wait(); err != nil || s.errs.Len() > 0 {
			t.Errorf("subscriber: %v\n%s", err, s.errs.String())
		}
	})
	return s
}

func (s *zmqSubscriber) topics() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := map[string]int{}
	for _, m := range s.msgs {
		n[m.Topic]++
	}
	return n
}

// flows returns the records of all flow messages.
func (s *zmqSubscriber) flows(t *testing.T) []map[string]any {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []map[string]any
	for i, m := range s.msgs {
		if i > 0 && m.ID != s.msgs[i-1].ID+1 {
			t.Errorf("message %d after %d", m.ID, s.msgs[i-1].ID)
		}
		if m.Topic != "flow" {
			continue
		}
		var recs []map[string]any
		d := json.NewDecoder(bytes.NewReader(m.Body))
		d.UseNumber()
		if err := d.Decode(&recs); err != nil {
			t.Errorf("%s: %v", m.Body, err)
		}
		all = append(all, recs...)
	}
	return all
}

// TestNtopng: libzmq receives what programs did, bound and connected, in both forms.
func TestNtopng(t *testing.T) {
	needRoot(t)
	needTool(t, debianPython)
	if exec.Command(debianPython, "-c", "import zmq").Run() != nil {
		miss(t, "needs python3-zmq")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	tlv := newZMQSubscriber(t, "bind")
	agent := newZMQSubscriber(t, "connect", port)
	r := runExporter(t, "-c", "zmq://127.0.0.1:"+tlv.port, "-c", "zmq://127.0.0.1:"+port+"?bind=true&format=json&domain=9")
	for _, s := range []*zmqSubscriber{tlv, agent} {
		eventually(t, "event and template", func() bool { n := s.topics(); return n["event"] > 0 && n["template"] > 0 })
	}
	srv := start(t, "bravo-server", "", "server", "127.0.0.1", "2500")
	ports := srv.next()
	cl := start(t, "alpha-client", "", "client", "127.0.0.1", strconv.Itoa(ports.TCP), strconv.Itoa(ports.UDP), "6", "40000")
	counts := []*report{cl.end(), srv.end()}
	r.stop()

	num := func(v any) string { return fmt.Sprint(v) }
	recs := tlv.flows(t)
	for _, c := range counts[0].Flows {
		if c.Proto != "tcp" {
			continue
		}
		n := 0
		for _, f := range recs {
			if num(f["7"]) != strconv.Itoa(int(c.Local.Port())) || num(f["11"]) != strconv.Itoa(int(c.Remote.Port())) || num(f["4"]) != "6" {
				continue
			}
			n++
			for key, want := range map[string]string{
				"60": "4", "8": "127.0.0.1", "12": "127.0.0.1", "57640": strconv.Itoa(c.PID), "57641": counts[0].Path, "57897": strconv.Itoa(counts[0].UID),
				"57845": strconv.Itoa(counts[0].PPID), "57848": counts[1].Path, "57850": strconv.Itoa(counts[1].PPID),
			} {
				if num(f[key]) != want {
					t.Errorf("key %s is %v, want %s", key, f[key], want)
				}
			}
			if in, _ := f["1"].(json.Number).Int64(); uint64(in) < c.Sent {
				t.Errorf("%d octets, the program sent %d", in, c.Sent)
			}
		}
		if n == 0 {
			t.Errorf("no record of %v", c.Local)
		}
	}
	// Of the agent's form the last object of a connection has its totals, which are what the programs counted.
	objects := agent.flows(t)
	for _, rep := range counts {
		for _, c := range rep.Flows {
			if c.Proto != "tcp" {
				continue
			}
			var last map[string]any
			for _, o := range objects {
				if num(o["L4_LOCAL_PORT"]) == strconv.Itoa(int(c.Local.Port())) && num(o["L4_REMOTE_PORT"]) == strconv.Itoa(int(c.Remote.Port())) && o["TCP"] != nil {
					last = o
				}
			}
			if last == nil {
				t.Errorf("no object of %v", c.Local)
				continue
			}
			tcp, process := last["TCP"].(map[string]any), last["LOCAL_PROCESS"].(map[string]any)
			if num(tcp["BYTES_ACKED"]) != strconv.FormatUint(c.Sent, 10) || num(tcp["BYTES_RCVD"]) != strconv.FormatUint(c.Received, 10) || last["TCP_EVENT_TYPE"] != "CLOSE" {
				t.Errorf("%v; the program sent %d and received %d", last, c.Sent, c.Received)
			}
			if num(process["PID"]) != strconv.Itoa(c.PID) || process["PROCESS_PATH"] != rep.Path {
				t.Errorf("%v is of %d %s", process, c.PID, rep.Path)
			}
		}
	}
}
