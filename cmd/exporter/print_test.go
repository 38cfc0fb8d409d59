package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/sockflow/sockflow/flowcache"
)

// TestJSONLines: what is printed is what the documentation says it is.
func TestJSONLines(t *testing.T) {
	var j map[string]any
	b, _ := json.Marshal(toJSON(sampleRecord()))
	if err := json.Unmarshal(b, &j); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"flowStart", "flowEnd", "flowEndReason", "protocol", "sourceAddress", "forward", "reverse", "source", "tcp", "tcpControlBits"} {
		if _, ok := j[key]; !ok {
			t.Errorf("no %s in %s", key, b)
		}
	}
	if table := (&tableForm{}).records(nil, []flowcache.Record{*sampleRecord()}); !strings.Contains(string(table), "curl[42] www-data →") {
		t.Errorf("table:\n%s", table)
	}
}

func sampleRecord() *flowcache.Record {
	return &flowcache.Record{
		Key:   flowcache.Key{Src: flowcache.AddrFrom4([4]byte{192, 0, 2, 1}), Dst: flowcache.AddrFrom4([4]byte{192, 0, 2, 2}), SrcPort: 40000, DstPort: 443, Proto: 6},
		Start: 1_700_000_000e9, End: 1_700_000_001e9, EndReason: flowcache.EndDetected, HasTCP: true, Control: 0x1b,
		Source: flowcache.End{Local: true, Process: flowcache.ProcessID{PID: 42}, UID: 33, GID: 33,
			Who: &flowcache.Process{Path: "/usr/bin/curl", UserName: "www-data"}},
	}
}
