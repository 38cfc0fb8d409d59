package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sockflow/sockflow/flowcache"
)

func TestJoinNames(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"path", "curl\x00bin\x00usr\x00", "/usr/bin/curl"},
		{"root", "", "/"},
		{"root's own name", "init\x00/\x00", "/init"},
		{"cut short", "long\x00par", "/par/long"},
		{"memfd", "memfd:x\x00/\x00", "/memfd:x"},
	} {
		if got := joinNames([]byte(tc.in)); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// TestLayout compiles the contract with the host's C compiler and compares offsets and sizes with ours: a record with a different
// octet in each field must decode to those.
func TestLayout(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			t.Fatal("needs a C compiler")
		}
		t.Skip("needs a C compiler")
	}
	dir := t.TempDir()
	src := `#include <stdio.h>
#include <string.h>
typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned int __u32; typedef unsigned long long __u64;
#include "events.h"
int main(void) {
	struct socket_record r; memset(&r, 0, sizeof r);
	r.kind = 1; r.netns = 2; r.cookie = 3; r.time = 4; r.start = 5; r.task_start = 6; r.cgroup = 7; r.bytes_sent = 8; r.bytes_retrans = 9;
	r.bytes_received = 10; r.pacing_rate = 11; r.saddr[0] = 12; r.daddr[0] = 13; r.ca_name[0] = 14; r.tgid = 15; r.uid = 16; r.gid = 17;
	r.segs_out = 18; r.segs_in = 19; r.total_retrans = 20; r.srtt_us = 21; r.rttvar_us = 22; r.min_rtt_us = 23; r.lost = 24; r.unacked = 25;
	r.cwnd = 26; r.mss = 27; r.rate_delivered = 28; r.rate_interval_us = 29; r.connect_us = 30; r.sport = 31; r.dport = 32; r.header_len = 33;
	r.error = 34; r.proto = 35; r.state = 36; r.old_state = 37; r.role = 38; r.flags = 39; r.v4 = 1;
	fwrite(&r, sizeof r, 1, stdout);
	struct datagram_event d; memset(&d, 0, sizeof d);
	d.kind = 2; d.netns = 2; d.cookie = 3; d.time = 4; d.task_start = 5; d.cgroup = 6; d.tgid = 7; d.uid = 8; d.gid = 9;
	fwrite(&d, sizeof d, 1, stdout);
	struct process_event p; memset(&p, 0, sizeof p);
	p.kind = KIND_EXEC; p.tgid = 2; p.time = 3; p.start = 40000000; p.parent_start = 50000000; p.cgroup = 6; p.parent_tgid = 7; p.uid = 8; p.gid = 9;
	p.path_len = 4; p.cgroup_len = 2; p.comm[0] = 'c';
	fwrite(&p, sizeof p, 1, stdout);
	fwrite("b\0a\0g", 6, 1, stdout);
	return 0;
}`
	c := filepath.Join(dir, "layout.c")
	if err := os.WriteFile(c, []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(cc, "-Iinclude", "-o", filepath.Join(dir, "layout"), c).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := exec.Command(filepath.Join(dir, "layout")).Output()
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != socketLen+datagramLen+processLen+6 {
		t.Fatalf("%d octets", len(b))
	}
	var r socketRecord
	if err := r.decode(b); err != nil {
		t.Fatal(err)
	}
	want := socketRecord{
		netns: 2, cookie: 3, time: 4, start: 5, taskStart: 6, cgroup: 7, bytesSent: 8, bytesRetrans: 9, bytesReceived: 10, pacing: 11,
		src: flowcache.Addr{12}, dst: flowcache.Addr{13}, ca: [16]byte{14}, tgid: 15, uid: 16, gid: 17, segsOut: 18, segsIn: 19, retrans: 20,
		srtt: 21, rttvar: 22, minRTT: 23, lost: 24, unacked: 25, cwnd: 26, mss: 27, delivered: 28, interval: 29, conn: 30, sport: 31, dport: 32,
		headerLen: 33, err: 34, proto: 35, state: 36, oldState: 37, role: 38, flags: 39, v4: true,
	}
	if r != want {
		t.Errorf("socket record: %+v", r)
	}
	var d datagramEvent
	if err := d.decode(b[socketLen:]); err != nil || d != (datagramEvent{cookie: 3, time: 4, taskStart: 5, cgroup: 6, netns: 2, tgid: 7, uid: 8, gid: 9}) {
		t.Errorf("datagram event: %+v, %v", d, err)
	}
	ev, err := decodeProcess(b[socketLen+datagramLen:], 0)
	wantEv := flowcache.ProcessEvent{
		Kind: flowcache.ProcessExec, Parent: flowcache.ProcessID{PID: 7, Start: 5}, Time: 3,
		Process: flowcache.Process{
			ID: flowcache.ProcessID{PID: 2, Start: 4}, Path: "/a/b", Name: "c", UID: 8, GID: 9,
			ParentPID: 7, ParentUID: flowcache.NoID, CGroup: 6, CGroupPath: "/g",
		},
	}
	if d := cmp.Diff(wantEv, ev); d != "" || err != nil {
		t.Error(err, d)
	}
}

// FuzzEvent: whatever comes out of the ring buffer, nothing panics, and short records are refused.
func FuzzEvent(f *testing.F) {
	for _, kind := range []byte{kindSocket, kindDatagram, kindRelease, kindExec, kindFork, kindExit, kindMove, kindMPTCP, 0} {
		b := make([]byte, 256)
		b[0] = kind
		f.Add(b)
		f.Add(b[:10])
	}
	exec := make([]byte, processLen)
	exec[0], exec[52], exec[54] = kindExec, 8, 3
	f.Add(append(exec, "sh\x00bin\x00\x00g\x00"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &Source{batch: &flowcache.Batch{}, grams: newDatagrams(nil, nil, nil), out: make(chan *flowcache.Batch, 4)}
		in := bytes.Clone(b)
		s.event(b)
		if s.events.Load() != 1 || !bytes.Equal(in, b) {
			t.Fatal("not counted, or changed")
		}
		told := len(s.batch.Observations) + len(s.batch.Processes) + len(s.grams.closed) + len(s.grams.owners)
		if told+int(s.malformed.Load()) != 1 && kindOf(in) != kindMPTCP { // which reports no flow
			t.Fatalf("%d told, %d malformed", told, s.malformed.Load())
		}
		for _, p := range s.batch.Processes {
			if p.Kind == flowcache.ProcessExec && !strings.HasPrefix(p.Process.Path, "/") {
				t.Fatalf("path %q", p.Process.Path)
			}
		}
	})
}
