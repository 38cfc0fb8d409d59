#!/usr/bin/env bash
# Captures into flow records: 5 million packets of 100 000 and of 1 000 000 flows (bench/packets), by the exporter, softflowd, pmacctd and
# nfpcapd, in turn in one run, each several times; the ratio is of medians. All have the same timeouts and tables larger than the number of flows,
# and first their flows and packets must agree within 0.1 %. Records go to a UDP port of this host that nobody reads, or a file where a
# program has no other way. Needs: softflowd pmacct nfdump. Usage: bench/replay.sh [rounds [flows...]]
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5}
shift || true
sizes=("$@")
[ ${#sizes[@]} -gt 0 ] || sizes=(100000 1000000)
packets=${PACKETS:-5000000}
dir=$(mktemp -d "${TMPDIR:-/tmp}/replay.XXXXXX")
trap 'rm -rf "$dir"' EXIT
CGO_ENABLED=0 go build -o "$dir/exporter" ./cmd/exporter
go build -o "$dir/packets" ./bench/packets
port=9 # discard
most=3000000

# The first three print their flows, both directions as one, and packets.
ours() { "$dir/exporter" replay "$1" -c "netflow9+udp://127.0.0.1:$port" --max-flows $most --idle-timeout 15s --active-timeout 60s 2>&1 | sed -n 's/.*msg=replayed.* packets=\([0-9]*\).* records=\([0-9]*\).*/\2 \1/p'; }
ours_ipfix() { "$dir/exporter" replay "$1" -c "udp://127.0.0.1:$port" --max-flows $most --idle-timeout 15s --active-timeout 60s 2>&1 | sed -n 's/.*msg=replayed.* packets=\([0-9]*\).* records=\([0-9]*\).*/\2 \1/p'; }
softflowd() { command softflowd -r "$1" -m $most -v 9 -n 127.0.0.1:$port -t general=15s -t tcp=15s -t udp=15s -t tcp.rst=15s -t tcp.fin=15s -t maxlife=60s 2>&1 | awk '/^Packets processed/ {p = $3} /^Flows exported/ {f = $3} END {print f, p}'; }
pmacctd() {
	printf '%s\n' 'daemonize: false' 'plugins: nfprobe[x]' 'aggregate[x]: src_host, dst_host, src_port, dst_port, proto' "nfprobe_receiver[x]: 127.0.0.1:$port" \
		'nfprobe_version[x]: 9' "nfprobe_maxflows[x]: $most" 'nfprobe_timeouts[x]: tcp=15:general=15:udp=15:maxlife=60' 'plugin_pipe_size[x]: 200000000' \
		'plugin_buffer_size[x]: 100000' "pcap_savefile: $1" >"$dir/pmacctd.conf"
	timeout 300 pmacctd -f "$dir/pmacctd.conf" >/dev/null 2>&1 || true
}
nfpcapd() {
	rm -rf "$dir/nf"; mkdir "$dir/nf"
	command nfpcapd -r "$1" -w "$dir/nf" -e 60,15 -B 1500000 -t 3600 >/dev/null 2>&1
}
now() { date +%s%N; }
peak() { /usr/bin/env python3 -c 'import resource,subprocess,sys; subprocess.run(sys.argv[1:],stderr=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)' "$@"; }
median() { sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }

programs=(ours ours_ipfix softflowd nfpcapd)
type -P pmacctd >/dev/null && programs+=(pmacctd)
for flows in "${sizes[@]}"; do
	file=$dir/$flows.pcap
	"$dir/packets" -packets "$packets" -flows "$flows" -o "$file"
	cat "$file" >/dev/null # in the page cache for all
	echo "== $packets packets of $flows flows"
	read -r f p < <(ours "$file")
	echo "ours: $f records of $p packets"
	read -r sf sp < <(softflowd "$file")
	echo "softflowd: $sf flows of $sp packets"
	awk -v a="$f" -v b="$sf" -v p="$p" -v q="$sp" 'BEGIN {if (a == 0 || b == 0 || (a - b) ^ 2 > (b / 1000) ^ 2 || p != q) {print "records do not agree within 0.1 %"; exit 1}}'
	for _ in $(seq "$rounds"); do
		for x in "${programs[@]}"; do
			begin=$(now)
			$x "$file" >/dev/null
			echo $((($(now) - begin) / 1000000)) >>"$dir/$flows.$x"
		done
	done
	base=$(median <"$dir/$flows.softflowd")
	for x in "${programs[@]}"; do
		awk -v x="$x" -v m="$(median <"$dir/$flows.$x")" -v b="$base" -v n="$packets" 'BEGIN {printf "%-11s %7d ms  %6.2f M packets/s  %5.1f x softflowd\n", x, m, n / m / 1000, b / m}'
	done
	few=$dir/few.pcap
	"$dir/packets" -packets 20000 -flows 1000 -o "$few"
	args=(-c "udp://127.0.0.1:$port" --max-flows $most)
	a=$(peak "$dir/exporter" replay "$few" "${args[@]}") b=$(peak "$dir/exporter" replay "$file" "${args[@]}")
	awk -v a="$a" -v b="$b" -v f="$flows" 'BEGIN {printf "peak memory %.1f MB, %.1f MB of it for the program itself: %d octets a flow\n", b / 1024, a / 1024, (b - a) * 1024 / (f - 1000)}'
	rm -f "$file"
done
