package selection

import (
	"strings"
	"testing"

	"github.com/sockflow/sockflow/flowcache"
)

// flow is a record with everything in it that a filter can ask for.
func flow() *flowcache.Record {
	return &flowcache.Record{
		Key:       flowcache.Key{Src: parseAddr("10.1.2.3"), Dst: parseAddr("192.0.2.80"), SrcPort: 40001, DstPort: 443, Proto: 6, NetNS: 77},
		EndReason: flowcache.EndDetected,
		Source: flowcache.End{
			Local: true, Process: flowcache.ProcessID{PID: 4711}, UID: 33, GID: 33, NetNS: 77,
			Who: &flowcache.Process{Path: "/usr/lib/apache 2/bin/httpd", Name: "httpd-worker", UserName: "www-data", CommandLine: "httpd -k start", ParentPath: "/sbin/init"},
			Container: &flowcache.Workload{
				ContainerID: strings.Repeat("0123456789abcdef", 4), ContainerName: "web", ContainerImage: "docker.io/library/httpd:2", ContainerRuntime: "containerd",
				PodName: "web-7d9f", PodNamespace: "shop", PodLabels: "app=web,tier=front",
			},
		},
		Dest: flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID, Service: "bank/payments", Node: "node-b"},
	}
}

func TestFilter(t *testing.T) {
	six := flow()
	six.Key.Src, six.Key.Dst, six.Key.Proto, six.Key.DstPort = parseAddr("2001:db8:1::5"), parseAddr("fe80::1"), 17, 53
	six.Source, six.Dest = six.Dest, flowcache.End{Local: true, Container: &flowcache.Workload{ServiceUnit: "unbound.service"}}
	for _, tc := range []struct {
		text      string
		four, six bool
	}{
		{"ip4", true, false},
		{"ip6", false, true},
		{"host 10.1.2.3", true, false},
		{"src host 10.1.2.3", true, false},
		{"dst host 10.1.2.3", false, false},
		{"net 10.0.0.0/8", true, false},
		{"net 10.1.2.0/23", true, false},
		{"net 10.1.4.0/23", false, false},
		{"net 0.0.0.0/0", true, false},
		{"net ::/0", true, true}, // IPv4 addresses are IPv4-mapped
		{"net 2001:db8::/32", false, true},
		{"net 2001:db8:1::/49", false, true},
		{"net 2001:db8:1:8000::/49", false, false},
		{"src net 10.0.0.0/8,2001:db8::/32", true, true},
		{"port 443", true, false},
		{"port 443,53", true, true},
		{"src port 40000-50000", true, true},
		{"dst port 1-52", false, false},
		{"proto tcp", true, false},
		{"proto 17", false, true},
		{"proto tcp,udp", true, true},
		{"process httpd", true, false},
		{"process httpd-worker", true, false},
		{`process "/usr/lib/apache 2/*"`, true, false},
		{"process *httpd", true, false},
		{"process h?tpd", true, false},
		{"process curl", false, false},
		{"dst process httpd", false, false},
		{"command *start", true, false},
		{"parent init", true, false},
		{"user www-data", true, false},
		{"user 33", true, false},
		{"user 4294967295", false, false},
		{"pid 4711", true, false},
		{"netns 77", true, false},
		{"container web", true, false},
		{"container 0123456789ab", true, false},
		{"container 0123*", true, false},
		{"image *httpd:*", true, false},
		{"runtime containerd", true, false},
		{"pod web-*", true, false},
		{"namespace shop,bank", true, false},
		{"label tier=front", true, false},
		{"label app=*", true, false},
		{"label app=front", false, false},
		{"unit unbound.service", false, true},
		{"service bank/*", true, true},
		{"node node-b", true, true},
		{"dst node node-b", true, false},
		{"local", true, true},
		{"src local", true, false},
		{"not local", false, false},
		{"end end", true, true},
		{"end active,idle", false, false},
		{"not proto tcp", false, true},
		{"include proto tcp", true, false},
		{"exclude proto tcp", false, true},
		{"exclude port 443 or port 53", false, false},
		{"proto tcp and port 443", true, false},
		{"proto udp or port 443 and user nobody", false, true},
		{"(proto udp or port 443) and user www-data", true, false},
		{"not (proto udp or port 80)", true, false},
		{"not not(proto tcp)", true, false},
	} {
		f, err := Parse(tc.text)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := f.Match(flow()); got != tc.four {
			t.Errorf("%s: %t for the IPv4 flow", tc.text, got)
		}
		if got := f.Match(six); got != tc.six {
			t.Errorf("%s: %t for the IPv6 flow", tc.text, got)
		}
	}
}

func TestFilterMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "want a property",
		"port":                        "at 5, the end: want a value of port",
		"port 80 an port 81":          `at 9, "an": want "and", "or" or the end`,
		"(port 80":                    `want ")"`,
		"port 80)":                    `want "and"`,
		"port 99999":                  "no port",
		"port 90-80":                  "no port",
		"net 10.0.0.0/33":             "no network",
		"host example.org":            "no address",
		"host fe80::1%eth0":           "no address",
		"proto fish":                  "no proto",
		"src proto tcp":               "whole flow",
		"src":                         "want a property",
		"colour red":                  "want a property: host",
		`process "a`:                  "not closed",
		"pid x":                       "no pid",
		"end badly":                   "no reason",
		strings.Repeat("(", 200):      "nested",
		strings.Repeat("not ", 10000): "nested",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
}

func TestFilterAllocatesNothing(t *testing.T) {
	f, err := Parse(`(src net 10.0.0.0/8,2001:db8::/32 and not port 1-80) and (process "*/bin/*" or user root) and label tier=fr*t and pod web*`)
	if err != nil {
		t.Fatal(err)
	}
	r := flow()
	if !f.Match(r) {
		t.Error("does not match")
	}
	if n := testing.AllocsPerRun(100, func() { f.Match(r) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkFilter(b *testing.B) {
	f, err := Parse(`not net 127.0.0.0/8,::1 and not (port 53 and proto udp) and namespace shop*`)
	if err != nil {
		b.Fatal(err)
	}
	r := flow()
	b.ReportAllocs()
	for b.Loop() {
		f.Match(r)
	}
}

// FuzzFilter: any text is a filter or one line of error; a filter can be asked, and its text makes it again.
func FuzzFilter(f *testing.F) {
	for _, s := range []string{
		"exclude net 10.0.0.0/8 or port 53", `process "/usr/*" and not (user root)`, "src host ::1", "label a=b,c", "port 1-2,3", "((", `"`, "not", "net ::ffff:1.2.3.4/100",
	} {
		f.Add(s)
	}
	r, empty := flow(), &flowcache.Record{}
	f.Fuzz(func(t *testing.T, s string) {
		filter, err := Parse(s)
		if err != nil {
			return
		}
		filter.Match(empty)
		got := filter.Match(r)
		again, err := Parse(filter.String())
		if err != nil || again.Match(r) != got {
			t.Fatalf("%q: %v", s, err)
		}
		if opposite, err := Parse("not (" + strings.TrimPrefix(s, "include ") + ")"); err == nil && !strings.Contains(s, "clude") && opposite.Match(r) == got {
			t.Fatalf("%q and its opposite are both %t", s, got)
		}
	})
}
