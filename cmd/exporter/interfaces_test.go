package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestInterfaceCounters: the host's end of a container's veth carries the container and what ip(8) counts, and so does its own end.
func TestInterfaceCounters(t *testing.T) {
	id, ns, veth := container(t)
	var st syscall.Stat_t
	if err := syscall.Stat("/run/netns/"+ns, &st); err != nil {
		t.Fatal(err)
	}
	eventually(t, "octets are sent", func() bool {
		exec.Command("bash", "-c", "for n in 1 2 3; do head -c 900 /dev/zero >/dev/udp/10.96.0.2/9; done").Run()
		b, _ := os.ReadFile("/sys/class/net/" + veth + "/statistics/tx_bytes")
		n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
		return n > 2700
	})
	r := runExporter(t, "--metrics", "none", "--interface-interval", "200ms")
	// Neighbour discovery still counts for a while: wait until the exporter has printed the counters that ip prints.
	var why string
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(why)
		}
	})
	eventually(t, "the counters agree", func() bool {
		var link []struct {
			Index   uint32 `json:"ifindex"`
			Stats64 struct {
				RX, TX struct{ Bytes, Packets, Errors, Dropped uint64 }
			}
		}
		out, err := exec.Command("ip", "-s", "-j", "link", "show", "dev", veth).Output()
		if err != nil || json.Unmarshal(out, &link) != nil {
			t.Fatalf("ip: %v %s", err, out)
		}
		var host, own *jsonInterface
		for s := bufio.NewScanner(strings.NewReader(r.out.String())); s.Scan(); {
			var i jsonInterface
			if json.Unmarshal(s.Bytes(), &i); i.Name == veth {
				host = &i
			} else if i.Name == "eth0" && i.NetNS == uint32(st.Ino) {
				own = &i
			}
		}
		if host == nil || own == nil {
			return false
		}
		for _, i := range []*jsonInterface{host, own} {
			if i.Container == nil || i.Container.ID != id || i.Container.Runtime != "docker" || i.Kind != "veth" || i.Time == "" {
				t.Fatalf("%+v %+v", i, i.Container)
			}
		}
		rx, tx := link[0].Stats64.RX, link[0].Stats64.TX
		why = fmt.Sprintf("%+v, ip %+v", host, link)
		return host.Index == link[0].Index && host.In == jsonInterfaceCounters{rx.Bytes, rx.Packets, rx.Errors, rx.Dropped} &&
			host.Out == jsonInterfaceCounters{tx.Bytes, tx.Packets, tx.Errors, tx.Dropped} &&
			own.In.Octets == tx.Bytes && own.Out.Octets == rx.Bytes
	})
	r.stop()
}

// TestJSONNtop: the keys that ntop's parser reads, of both ends of a conversation, with what the programs counted.
func TestJSONNtop(t *testing.T) {
	needRoot(t)
	id, _, veth := container(t)
	r := runExporter(t, "--metrics", "none", "-c", "json:-?style=ntop", "--interface-interval", "200ms")
	srv := start(t, "able-server", "", "server", "127.0.0.1", "77")
	ports := srv.next()
	cl := start(t, "baker-client", "", "client", "127.0.0.1", strconv.Itoa(ports.TCP), strconv.Itoa(ports.UDP), "2", "900")
	cr, sr := cl.end(), srv.end()
	eventually(t, "interfaces are told", func() bool { return strings.Contains(r.out.String(), `"ifName":"`+veth+`"`) })
	time.Sleep(300 * time.Millisecond)
	r.stop()
	n := map[string]int{}
	for s := bufio.NewScanner(strings.NewReader(r.out.String())); s.Scan(); {
		line := s.Text()
		for _, never := range []string{"INTERFACE_NAME", "REMOTE_PROCESS", "REMOTE_CONTAINER"} {
			if strings.Contains(line, never) {
				t.Errorf("%s in %s", never, line)
			}
		}
		var o struct {
			Timestamp    string `json:"timestamp"`
			Name         string `json:"ifName"`
			LocalPort    int    `json:"L4_LOCAL_PORT"`
			RemotePort   int    `json:"L4_REMOTE_PORT"`
			Protocol     int    `json:"PROTOCOL"`
			TCPEvent     string `json:"TCP_EVENT_TYPE"`
			UDPEvent     string `json:"UDP_EVENT_TYPE"`
			LocalAddr    string `json:"IPV4_LOCAL_ADDR"`
			LocalProcess struct {
				PID, UID     int
				PROCESS_PATH string
			} `json:"LOCAL_PROCESS"`
			FatherProcess struct{ PID int }   `json:"LOCAL_FATHER_PROCESS"`
			Container     struct{ ID string } `json:"LOCAL_CONTAINER"`
			TCP           *struct {
				CONN_STATE              string
				BYTES_RCVD, BYTES_ACKED uint64
			}
		}
		if err := json.Unmarshal(s.Bytes(), &o); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if o.Name == veth && o.Container.ID != id {
			t.Errorf("%s", line)
		}
		for _, end := range []struct {
			name string
			*report
			port  int
			event string
		}{{"client", cr, o.RemotePort, "SEND"}, {"server", sr, o.LocalPort, "SEND"}} {
			if o.LocalProcess.PID != end.PID || o.Timestamp == "" {
				continue
			}
			n[end.name+strconv.Itoa(o.Protocol)]++
			if o.LocalProcess.PROCESS_PATH != end.Path || o.FatherProcess.PID != end.PPID || o.LocalAddr != "127.0.0.1" {
				t.Errorf("%s: %s", end.name, line)
			}
			switch o.Protocol {
			case 6:
				var sent, received uint64
				for _, f := range end.Flows {
					if f.Proto == "tcp" && int(f.Local.Port()) == o.LocalPort && int(f.Remote.Port()) == o.RemotePort {
						sent, received = f.Sent, f.Received
					}
				}
				if end.port != ports.TCP || o.TCPEvent != "CLOSE" || o.TCP == nil || o.TCP.BYTES_ACKED != sent || o.TCP.BYTES_RCVD != received || o.UDPEvent != "" {
					t.Errorf("%s: %s", end.name, line)
				}
			case 17:
				if end.port != ports.UDP || o.UDPEvent != end.event || o.TCP != nil || o.TCPEvent != "" {
					t.Errorf("%s: %s", end.name, line)
				}
			}
		}
	}
	if want := map[string]int{"client6": 2, "server6": 2, "client17": 2, "server17": 2}; fmt.Sprint(n) != fmt.Sprint(want) {
		t.Errorf("objects: %v, want %v\n%.2000s", n, want, r.out.String())
	}
	if out, err := exec.Command(buildExporter(t), "-c", "json:-?style=xml").CombinedOutput(); err == nil || !strings.Contains(string(out), "style=ntop") {
		t.Errorf("%v %s", err, out)
	}
}

// printed returns the last line about each interface that r printed, by namespace and index.
func printed(r *running) map[[2]uint32]jsonInterface {
	got := map[[2]uint32]jsonInterface{}
	for s := bufio.NewScanner(strings.NewReader(r.out.String())); s.Scan(); {
		var i jsonInterface
		if json.Unmarshal(s.Bytes(), &i); i.Name != "" {
			got[[2]uint32{i.NetNS, i.Index}] = i
		}
	}
	return got
}

// veth returns where the two ends of a container's eth0 are, by what ip(8) says in its namespace.
func (n *node) veth(pid string) (own, host [2]uint32) {
	n.t.Helper()
	var link []struct {
		Index uint32 `json:"ifindex"`
		Link  uint32 `json:"link_index"`
	}
	if err := json.Unmarshal([]byte(must(n.t, "nsenter", "-t", pid, "-n", "ip", "-j", "link", "show", "dev", "eth0")), &link); err != nil {
		n.t.Fatal(err)
	}
	inode := func(path string) uint32 {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			n.t.Fatal(err)
		}
		return uint32(st.Ino)
	}
	return [2]uint32{inode("/proc/" + pid + "/ns/net"), link[0].Index}, [2]uint32{inode("/run/netns/" + n.name), link[0].Link}
}

// TestContainerInterfaces: both ends of the veths of Docker's containers and of pods, named; what belongs to the node is nobody's, though a
// container shares its namespace. And where a published port leads.
func TestContainerInterfaces(t *testing.T) {
	needRoot(t)
	oci, rootfs := image(t)
	d := startDocker(newNode(t), 213, rootfs)
	c := startContainerd(newNode(t), "", 214, oci)
	d.run("run", "-d", "--name", "hostly", "--network", "host", "shop/web:2", "/bin/pod", "-for", "1h")
	web := d.run("run", "-d", "--name", "web", "-p", "18080:7000", "shop/web:2", "/bin/pod", "-serve", "7000", "-for", "1h")
	r := runExporter(t, "--metrics", "none", "--interface-interval", "300ms", "--docker", d.socket, "--containerd", c.socket, "--podman", "none", "--cri", "none")
	ctx := context.Background()
	host, err := c.runPod(ctx, "hostly", true, nil, "/bin/pod", "-for", "1h")
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.runPod(ctx, "shop-1", false, map[string]string{"app": "shop"}, "/bin/pod", "-serve", "7000", "-for", "1h")
	if err != nil {
		t.Fatal(err)
	}
	defer c.removePod(ctx, host.sandbox)
	defer c.removePod(ctx, p.sandbox)
	client := d.run("run", "-d", "--name", "client", "shop/web:2", "/bin/pod", "-for", "1h")
	pidOf := func(id string) string { return d.run("inspect", "-f", "{{.State.Pid}}", id) }
	var pod string
	for line := range strings.Lines(must(t, c.ctr, "-a", c.socket, "-n", "k8s.io", "task", "ls")) {
		if f := strings.Fields(line); f[0] == p.container {
			pod = f[1]
		}
	}
	webOwn, webHost := d.veth(pidOf(web))
	clientOwn, clientHost := d.veth(pidOf(client))
	podOwn, podHost := c.veth(pod)
	want := map[[2]uint32]string{webOwn: "web", webHost: "web", clientOwn: "client", clientHost: "client", podOwn: "tests/shop-1", podHost: "tests/shop-1"}
	names := func() map[[2]uint32]string {
		got := map[[2]uint32]string{}
		for at, i := range printed(r) {
			if at[0] != webOwn[0] && at[0] != webHost[0] && at[0] != clientOwn[0] && at[0] != podOwn[0] && at[0] != podHost[0] || i.Name == "lo" && i.Container != nil && at[0] != webHost[0] && at[0] != podHost[0] {
				continue // of others, and the loopback of containers
			}
			switch w := i.Container; {
			case w == nil:
			case w.Pod != "":
				got[at] = w.Namespace + "/" + w.Pod
			default:
				got[at] = w.Name
			}
		}
		return got
	}
	eventually(t, "all are named", func() bool { return reflect.DeepEqual(names(), want) || t.Failed() })
	// From the node itself Docker translates; from its own bridge its proxy answers.
	d.inside("busybox", "nc", "-w", "1", "10.213.0.1", "18080")
	time.Sleep(time.Second)
	if got := names(); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	r.stop()
	published := 0
	for _, j := range r.json() {
		if j.SourceEnd == nil || j.SourceEnd.Name != "busybox" || j.DestPort != 18080 {
			continue
		}
		published++
		if e := j.DestEnd; e == nil || e.Container == nil || e.Container.ID != web {
			t.Errorf("the published port's other end is %+v", e)
		}
		if j.PostNAT == nil || j.PostNAT.DestPort != 7000 || !strings.HasPrefix(j.PostNAT.Dest.String(), "10.213.0.") {
			t.Errorf("%s to the published port became %+v", j.Protocol, j.PostNAT)
		}
	}
	if published == 0 {
		t.Error("no record of the published port")
	}
}
