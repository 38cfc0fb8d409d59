#!/bin/bash
# Records every capture of this folder anew: real programs that talk in network namespaces of this script's own.
#   record.sh [NAME]...      all, or those named
# Needs root and: tcpdump tshark iproute2 iptables curl nginx-light openssl dnsmasq-base bind9-dnsutils chrony openssh-server
# openssh-client iperf3 iputils-ping python3. Packets are cut after 128 octets: what programs said to each other is not kept.
set -eu
want=("$@")
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
a=sfcap-a b=sfcap-b n=sfcap-n
pids=()
cleanup() {
	for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
	for ns in $a $b $n; do ip netns del $ns 2>/dev/null || true; done
	rm -rf "$work"
}
trap cleanup EXIT
in_a() { ip netns exec $a "$@"; }
in_b() { ip netns exec $b "$@"; }

# Two hosts, a and b, and a cable. Its offloads are off: the packets are those of a wire.
ip netns add $a; ip netns add $b
ip -n $a link add eth0 type veth peer name eth0 netns $b
for x in "$a 1" "$b 2"; do
	set -- $x
	ip -n $1 addr add 10.77.0.$2/24 dev eth0
	ip -n $1 addr add fd77::$2/64 dev eth0 nodad
	ip -n $1 link set eth0 up; ip -n $1 link set lo up
	ip netns exec $1 sysctl -qw net.ipv6.conf.eth0.router_solicitations=0
	ip netns exec $1 python3 "$here/offload.py" eth0
done
ping_until() { for _ in $(seq 50); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "record.sh: no answer: $*" >&2; exit 1; }
ping_until in_a ping -c1 -W1 fd77::2

# Servers of b.
serve() { "$@" </dev/null >/dev/null 2>&1 & pids+=($!); }
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=b.test -keyout "$work/key" -out "$work/crt" 2>/dev/null
mkdir -p "$work/www" /run/sshd; head -c 60000 /dev/zero | tr '\0' x > "$work/www/page"
cat > "$work/nginx.conf" <<EOF
daemon off; master_process off; pid $work/nginx.pid; error_log /dev/null;
events { worker_connections 64; }
http { access_log off; root $work/www; client_body_temp_path $work/t; proxy_temp_path $work/t; fastcgi_temp_path $work/t; uwsgi_temp_path $work/t; scgi_temp_path $work/t;
  server { listen 80; listen [::]:80; listen 443 ssl; listen [::]:443 ssl; ssl_certificate $work/crt; ssl_certificate_key $work/key; } }
EOF
serve ip netns exec $b nginx -c "$work/nginx.conf"
serve ip netns exec $b dnsmasq -k -C /dev/null -R --no-hosts --address=/b.test/10.77.0.2 --address=/b.test/fd77::2 --pid-file="$work/dns.pid"
printf 'local stratum 8\nallow all\nport 123\ncmdport 0\nbindcmdaddress /\npidfile %s\ndriftfile %s\n' "$work/ntp.pid" "$work/drift" > "$work/ntp.conf"
serve ip netns exec $b chronyd -d -x -u root -f "$work/ntp.conf"
ssh-keygen -q -t ed25519 -N '' -f "$work/host"; ssh-keygen -q -t ed25519 -N '' -f "$work/id"; cp "$work/id.pub" "$work/auth"; chmod 600 "$work/auth"; chmod 755 "$work"
serve ip netns exec $b /usr/sbin/sshd -D -e -f /dev/null -h "$work/host" -o "AuthorizedKeysFile=$work/auth" -o StrictModes=no -o PidFile=none
serve ip netns exec $b iperf3 -s
for p in 80 22 53 5201; do ping_until in_a bash -c "</dev/tcp/10.77.0.2/$p"; done

# record NAME COMMAND...: what passes at a while the command (a function) runs.
record() {
	name=$1; shift
	[ ${#want[@]} = 0 ] || [[ " ${want[*]} " == *" $name "* ]] || return 0
	ip netns exec ${at:-$a} tcpdump -q -n --immediate-mode -s ${snap:-128} -i ${on:-eth0} ${how:-} -w "$work/$name" "${filter:-not arp}" 2>"$work/err" & t=$!
	for _ in $(seq 50); do grep -q listening "$work/err" && break; sleep 0.1; done
	"$@" >/dev/null 2>&1 || true
	sleep 0.7
	kill -INT $t; wait $t || true
	cp "$work/$name" "$here/$name"
	echo "$name: $(stat -c %s "$here/$name") octets"
}
http() { in_a curl -s http://10.77.0.2/page; in_a curl -s 'http://[fd77::2]/page' 'http://[fd77::2]/none'; }
tls() { in_a curl -sk https://10.77.0.2/page; in_a curl -sk --tls-max 1.2 'https://[fd77::2]/page'; }
dns() { in_a dig +tries=1 @10.77.0.2 b.test; in_a dig +tries=1 @fd77::2 b.test AAAA; in_a dig +tcp @10.77.0.2 b.test; }
ntp() { in_a timeout 9 chronyd -Q -u root -f /dev/null -t 8 'server 10.77.0.2 iburst maxsamples 3' "pidfile $work/q.pid"; }
ssh_() { in_a ssh -F /dev/null -i "$work/id" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@10.77.0.2 uptime; }
iperf_tcp() { in_a iperf3 -c 10.77.0.2 -n 150K; in_a iperf3 -c fd77::2 -n 150K -R; }
iperf_udp() { in_a iperf3 -u -c 10.77.0.2 -n 60K -l 1000; in_a iperf3 -u -c fd77::2 -n 60K -l 1000 -R; }
icmp() { in_a ping -c4 -i0.2 10.77.0.2; in_a ping -c4 -i0.2 fd77::2; in_a bash -c 'echo x >/dev/udp/10.77.0.2/9'; in_a bash -c 'echo x >/dev/udp/fd77::2/9'; }
fragments() { in_a ping -c3 -i0.2 -s 4000 10.77.0.2; in_a ping -c3 -i0.2 -s 4000 fd77::2; in_a iperf3 -u -c 10.77.0.2 -n 40K -l 4000; }
extension() { in_b timeout 8 python3 "$here/extension.py" server & in_a python3 "$here/extension.py" client; }
resets() { in_a curl -s http://10.77.0.2:81/; in_a curl -s 'http://[fd77::2]:81/'; in_a python3 -c 'import socket,struct
for a in ("10.77.0.2", "fd77::2"):
    s=socket.create_connection((a, 80)); s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); s.send(b"GET /page HTTP/1.0\r\n\r\n"); s.recv(10); s.close()'; }
half_open() { in_b iptables -A INPUT -p tcp --dport 82 -j DROP; in_a curl -s -m 4 http://10.77.0.2:82/; }
retransmissions() { in_b iptables -A INPUT -p tcp --dport 80 -m statistic --mode nth --every 9 --packet 4 -j DROP; in_a iptables -A INPUT -p tcp --sport 80 -m statistic --mode nth --every 11 --packet 5 -j DROP
	in_a curl -s -m 20 http://10.77.0.2/page; in_a curl -s -m 20 --data-binary @"$work/www/page" http://10.77.0.2/page; in_a iptables -F; in_b iptables -F; }
vxlan() {
	for x in "$a 1 2" "$b 2 1"; do set -- $x
		ip -n $1 link add vx0 type vxlan id 42 dstport 4789 local 10.77.0.$2 remote 10.77.0.$3 dev eth0
		ip -n $1 addr add 10.78.0.$2/24 dev vx0; ip -n $1 link set vx0 up mtu 1400; ip netns exec $1 python3 "$here/offload.py" vx0; done
	in_a ping -c2 -i0.2 10.78.0.2; in_a curl -s http://10.78.0.2/page; in_a dig +tries=1 @10.78.0.2 b.test; }

record http.pcap http
record tls.pcap tls
record dns.pcap dns
record ntp.pcap ntp
record ssh.pcap ssh_
record iperf-tcp.pcap iperf_tcp
record iperf-udp.pcap iperf_udp
record icmp.pcap icmp
record fragments.pcap fragments
record extension.pcap extension
record resets.pcap resets
record half-open.pcap half_open
record retransmissions.pcap retransmissions
snap=200 record vxlan.pcap vxlan
how="--time-stamp-precision=nano" record nano.pcap http
on=any how="-y LINUX_SLL2" record cooked2.pcap dns
on=any how="-y LINUX_SLL" record cooked.pcap resets

# A trunk: its two ends are TAP devices, joined by a program that tags what passes and shows it to a third.
vlan() { in_a ping -c2 -i0.2 10.79.0.2; in_a curl -s http://10.79.0.2/page; in_a dig +tries=1 @10.79.0.2 b.test; }
serve ip netns exec $a python3 "$here/trunk.py" $b
ping_until in_a ping -c1 -W1 10.79.0.2
snap=132 on=trunk record vlan.pcap vlan

# A node with two pods on a bridge, as the CNI plugin of that name makes it, and a service address.
ip netns add $n
ip -n $n link add cni0 type bridge; ip -n $n addr add 10.80.0.1/24 dev cni0; ip -n $n link set cni0 up; ip -n $n link set lo up
for x in "$a 2" "$b 3"; do set -- $x
	ip -n $1 link add pod0 type veth peer name pod$2 netns $n
	ip -n $n link set pod$2 master cni0 up
	ip -n $1 addr add 10.80.0.$2/24 dev pod0; ip -n $1 link set pod0 up; ip -n $1 route add 10.96.0.0/16 via 10.80.0.1
	for e in "$1 pod0" "$n pod$2"; do ip netns exec ${e% *} python3 "$here/offload.py" ${e#* }; done
done
ip netns exec $n sysctl -qw net.ipv4.ip_forward=1
ip netns exec $n iptables -t nat -A PREROUTING -d 10.96.0.10 -p tcp --dport 80 -j DNAT --to 10.80.0.3:80
ip netns exec $n iptables -t nat -A POSTROUTING -s 10.80.0.0/24 -d 10.80.0.3 -m conntrack --ctstate DNAT -j MASQUERADE
pods() { in_a curl -s http://10.80.0.3/page; in_a curl -s http://10.96.0.10/page; in_a ping -c1 10.80.0.3; }
at=$n on=cni0 record pods.pcap pods

# Two interfaces in one pcapng file.
if [ ${#want[@]} = 0 ] || [[ " ${want[*]} " == *" interfaces.pcapng "* ]]; then
	ip netns exec $n tshark -q -s 128 -i pod2 -i pod3 -f 'not arp' -w "$work/i.pcapng" 2>"$work/err" & t=$!
	for _ in $(seq 50); do grep -q Capturing "$work/err" && break; sleep 0.1; done
	sleep 1; pods >/dev/null 2>&1; sleep 1
	kill -INT $t; wait $t || true
	cp "$work/i.pcapng" "$here/interfaces.pcapng"
	echo "interfaces.pcapng: $(stat -c %s "$here/interfaces.pcapng") octets"
fi
[ ${#want[@]} != 0 ] || gzip -9c "$here/http.pcap" >"$here/compressed.pcap.gz"
