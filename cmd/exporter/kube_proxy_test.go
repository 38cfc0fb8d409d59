package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// kubeNode is a network namespace with pods on a bridge, as the CNI plugin bridge makes them.
type kubeNode struct {
	ns, server, client string
}

// A pod's port 8080 and 5353 is the service shop/web at 10.96.7.7:80 (TCP) and 53 (UDP), and at the ports 30080 and 30053 of the node.
const (
	kubeServer = "10.244.0.2"
	kubeHost   = "192.168.77.1"
)

func newKubeNode(t *testing.T) *kubeNode {
	t.Helper()
	name := fmt.Sprintf("sfk%d", os.Getpid())
	k := &kubeNode{name + "n", name + "s", name + "c"}
	for _, ns := range []string{k.ns, k.server, k.client} {
		newNamespace(t, ns)
	}
	for _, line := range []string{
		"link add cni0 type bridge", "addr add 10.244.0.1/24 dev cni0", "link set cni0 up",
		"link add eth0 type bridge", "addr add " + kubeHost + "/24 dev eth0", "link set eth0 up", "route add default via 192.168.77.254",
	} {
		ip(t, "-n "+k.ns+" "+line)
	}
	// As kubelet and kube-proxy want them.
	ip(t, "netns exec "+k.ns+" sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=1")
	for i, pod := range []string{k.server, k.client} {
		veth := fmt.Sprint("veth", i)
		ip(t, fmt.Sprintf("link add %s netns %s type veth peer name eth0 netns %s", veth, k.ns, pod))
		ip(t, fmt.Sprintf("-n %s link set %s master cni0 up", k.ns, veth))
		ip(t, fmt.Sprintf("-n %s link set %s type bridge_slave hairpin on", k.ns, veth))
		ip(t, fmt.Sprintf("-n %s addr add 10.244.0.%d/24 dev eth0", pod, i+2))
		ip(t, "-n "+pod+" link set eth0 up")
		ip(t, "-n "+pod+" route add default via 10.244.0.1")
	}
	return k
}

// restore gives a command its input in a namespace.
func restore(t *testing.T, ns, input string, argv ...string) {
	t.Helper()
	needTool(t, argv[0])
	c := exec.Command("ip", append([]string{"netns", "exec", ns}, argv...)...)
	c.Stdin = strings.NewReader(input)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

// What kube-proxy 1.29 gives to iptables-restore (pkg/proxy/iptables/proxier.go), for the service.
const kubeIptables = `*filter
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-LOLE4ISW44XBNF3G - [0:0]
:KUBE-EXT-LOLE4ISW44XBNF3G - [0:0]
:KUBE-SEP-I5S3UXTZZ6CP3BKV - [0:0]
:KUBE-SVC-BBNA7UVZBIWQPOQ2 - [0:0]
:KUBE-EXT-BBNA7UVZBIWQPOQ2 - [0:0]
:KUBE-SEP-2ZGLLAVD3DMM6TYD - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -m comment --comment "shop/web:http cluster IP" -m tcp -p tcp -d 10.96.7.7 --dport 80 -j KUBE-SVC-LOLE4ISW44XBNF3G
-A KUBE-SVC-LOLE4ISW44XBNF3G -m comment --comment "shop/web:http cluster IP" -m tcp -p tcp -d 10.96.7.7 --dport 80 ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ
-A KUBE-NODEPORTS -m comment --comment shop/web:http -m tcp -p tcp --dport 30080 -j KUBE-EXT-LOLE4ISW44XBNF3G
-A KUBE-EXT-LOLE4ISW44XBNF3G -m comment --comment "masquerade traffic for shop/web:http external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-LOLE4ISW44XBNF3G -j KUBE-SVC-LOLE4ISW44XBNF3G
-A KUBE-SVC-LOLE4ISW44XBNF3G -m comment --comment "shop/web:http -> 10.244.0.2:8080" -j KUBE-SEP-I5S3UXTZZ6CP3BKV
-A KUBE-SEP-I5S3UXTZZ6CP3BKV -m comment --comment shop/web:http -s 10.244.0.2 -j KUBE-MARK-MASQ
-A KUBE-SEP-I5S3UXTZZ6CP3BKV -m comment --comment shop/web:http -m tcp -p tcp -j DNAT --to-destination 10.244.0.2:8080
-A KUBE-SERVICES -m comment --comment "shop/web:dns cluster IP" -m udp -p udp -d 10.96.7.7 --dport 53 -j KUBE-SVC-BBNA7UVZBIWQPOQ2
-A KUBE-SVC-BBNA7UVZBIWQPOQ2 -m comment --comment "shop/web:dns cluster IP" -m udp -p udp -d 10.96.7.7 --dport 53 ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ
-A KUBE-NODEPORTS -m comment --comment shop/web:dns -m udp -p udp --dport 30053 -j KUBE-EXT-BBNA7UVZBIWQPOQ2
-A KUBE-EXT-BBNA7UVZBIWQPOQ2 -m comment --comment "masquerade traffic for shop/web:dns external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-BBNA7UVZBIWQPOQ2 -j KUBE-SVC-BBNA7UVZBIWQPOQ2
-A KUBE-SVC-BBNA7UVZBIWQPOQ2 -m comment --comment "shop/web:dns -> 10.244.0.2:5353" -j KUBE-SEP-2ZGLLAVD3DMM6TYD
-A KUBE-SEP-2ZGLLAVD3DMM6TYD -m comment --comment shop/web:dns -s 10.244.0.2 -j KUBE-MARK-MASQ
-A KUBE-SEP-2ZGLLAVD3DMM6TYD -m comment --comment shop/web:dns -m udp -p udp -j DNAT --to-destination 10.244.0.2:5353
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
COMMIT
`

// And to nft (pkg/proxy/nftables/proxier.go), which serves no node port on loopback addresses.
const kubeNftables = `table ip kube-proxy {
	comment "rules for kube-proxy"
	set cluster-ips { type ipv4_addr; elements = { 10.96.7.7 } }
	set nodeport-ips { type ipv4_addr; elements = { 192.168.77.1 } }
	map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	map service-nodeports { type inet_proto . inet_service : verdict; }
	chain mark-for-masquerade { mark set mark or 0x4000; }
	chain masquerading {
		mark and 0x4000 == 0 return
		mark set mark xor 0x4000
		masquerade fully-random
	}
	chain endpoint-TCP {
		ip saddr 10.244.0.2 jump mark-for-masquerade
		meta l4proto tcp dnat to 10.244.0.2:8080
	}
	chain service-TCP {
		ip daddr 10.96.7.7 tcp dport 80 ip saddr != 10.244.0.0/16 jump mark-for-masquerade
		numgen random mod 1 vmap { 0 : goto endpoint-TCP }
	}
	chain external-TCP {
		jump mark-for-masquerade
		goto service-TCP
	}
	chain endpoint-UDP {
		ip saddr 10.244.0.2 jump mark-for-masquerade
		meta l4proto udp dnat to 10.244.0.2:5353
	}
	chain service-UDP {
		ip daddr 10.96.7.7 udp dport 53 ip saddr != 10.244.0.0/16 jump mark-for-masquerade
		numgen random mod 1 vmap { 0 : goto endpoint-UDP }
	}
	chain external-UDP {
		jump mark-for-masquerade
		goto service-UDP
	}
	chain services {
		ip daddr . meta l4proto . th dport vmap @service-ips
		ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
	}
	chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
	chain nat-output { type nat hook output priority -100; jump services; }
	chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
}
add element ip kube-proxy service-ips { 10.96.7.7 . tcp . 80 : goto service-TCP, 10.96.7.7 . udp . 53 : goto service-UDP }
add element ip kube-proxy service-nodeports { tcp . 30080 : goto external-TCP, udp . 30053 : goto external-UDP }
`

// In ipvs mode the services are IPVS's, their addresses those of a device, and rules are there for masquerading (pkg/proxy/ipvs/proxier.go).
const (
	kubeIPVS = `-A -t 10.96.7.7:80 -s rr
-a -t 10.96.7.7:80 -r 10.244.0.2:8080 -m -w 1
-A -u 10.96.7.7:53 -s rr
-a -u 10.96.7.7:53 -r 10.244.0.2:5353 -m -w 1
-A -t 192.168.77.1:30080 -s rr
-a -t 192.168.77.1:30080 -r 10.244.0.2:8080 -m -w 1
-A -u 192.168.77.1:30053 -s rr
-a -u 192.168.77.1:30053 -r 10.244.0.2:5353 -m -w 1
`
	kubeSets = `create KUBE-CLUSTER-IP hash:ip,port family inet
add KUBE-CLUSTER-IP 10.96.7.7,tcp:80
add KUBE-CLUSTER-IP 10.96.7.7,udp:53
create KUBE-LOOP-BACK hash:ip,port,ip family inet
add KUBE-LOOP-BACK 10.244.0.2,tcp:8080,10.244.0.2
add KUBE-LOOP-BACK 10.244.0.2,udp:5353,10.244.0.2
create KUBE-NODE-PORT-TCP bitmap:port range 0-65535
add KUBE-NODE-PORT-TCP 30080
create KUBE-NODE-PORT-UDP bitmap:port range 0-65535
add KUBE-NODE-PORT-UDP 30053
`
	kubeIPVSRules = `*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m comment --comment "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose" -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN
-A KUBE-SERVICES -m comment --comment "Kubernetes service cluster ip + port for masquerade purpose" -m set --match-set KUBE-CLUSTER-IP dst,dst ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes nodeport TCP port for masquerade purpose" -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-NODE-PORT -p udp -m comment --comment "Kubernetes nodeport UDP port for masquerade purpose" -m set --match-set KUBE-NODE-PORT-UDP dst -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
COMMIT
`
)

// TestKubeProxy: connections and datagrams to a service address and to a node port, from a pod, from the node and from the pod that serves (hairpin,
// masqueraded): one record each, with both ends and what the serving socket saw.
func TestKubeProxy(t *testing.T) {
	needRoot(t)
	for _, mode := range []string{"iptables", "nftables", "ipvs"} {
		t.Run(mode, func(t *testing.T) {
			if _, err := os.Stat("/proc/net/ip_vs"); mode == "ipvs" && err != nil {
				t.Skip("the kernel has no ip_vs: make test-kernels has one")
			}
			k := newKubeNode(t)
			loopback := kubeHost
			switch mode {
			case "iptables":
				restore(t, k.ns, kubeIptables, "iptables-restore")
				loopback = "127.0.0.1"
			case "nftables":
				restore(t, k.ns, kubeNftables, "nft", "-f", "-")
			case "ipvs":
				ip(t, "-n "+k.ns+" link add kube-ipvs0 type dummy")
				ip(t, "-n "+k.ns+" addr add 10.96.7.7/32 dev kube-ipvs0")
				ip(t, "-n "+k.ns+" link set lo mtu 1500") // IPVS sends on what fits through the loopback, and refuses what then does not fit
				ip(t, "netns exec "+k.ns+" sysctl -qw net.ipv4.vs.conntrack=1")
				restore(t, k.ns, kubeIPVS, "ipvsadm", "-R")
				restore(t, k.ns, kubeSets, "ipset", "restore")
				restore(t, k.ns, kubeIPVSRules, "iptables-restore")
			}
			r := runWatching(t)
			srv := start(t, "web", k.server, "server", kubeServer, "77", "8080", "5353")
			srv.next()
			var clients []*report
			for _, c := range []struct {
				ns, to   string
				tcp, udp int
			}{
				{k.client, "10.96.7.7", 80, 53}, {k.client, kubeHost, 30080, 30053},
				{k.ns, "10.96.7.7", 80, 53}, {k.ns, loopback, 30080, 30053},
				{k.server, "10.96.7.7", 80, 53}, {k.server, kubeHost, 30080, 30053},
			} {
				cl := start(t, "shopper", c.ns, "client", c.to, strconv.Itoa(c.tcp), strconv.Itoa(c.udp), "2", "900")
				clients = append(clients, cl.end())
			}
			sr := srv.end()
			time.Sleep(500 * time.Millisecond)
			r.stop()
			oneRecordEach(t, r.json(), sr, clients...)
			if t.Failed() {
				t.Log(r.errs.String())
			}
		})
	}
}
