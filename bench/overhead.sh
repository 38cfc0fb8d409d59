#!/usr/bin/env bash
# How much slower work on the network gets beside sockflow and beside other meters. A run without the probe and a run with it make a
# pair, AB and BA in turn, so that what drifts on the machine falls on both; the median of the pairs' ratios is the result. The null
# probe (a sleep) says how much of it is noise, and the probe "hooks", programs that do nothing at the exporter's hooks, how much of it the
# kernel takes before ours begin.
#
# Everything is in a network namespace that has only a loopback. All work and all probes share the machine's cores: what a
# probe costs in its own process shows in the ratio as far as no core is idle.
#
# Needs root and the packages of bench/README.md. Usage: [NAME=value...] bench/overhead.sh
#   FLAGS="..."                                  more flags for the exporter
#   PAIRS=20 DURATION=3                          pairs for each workload and probe; seconds of a run
#   WORKLOADS="short pages iperf3 pingpong"      PROBES="null hooks sockflow conntrack softflowd pmacctd"
#   OUT=file                                     raw results, tab-separated
#   EXPORTER=binary                              default: built from this tree
set -euo pipefail
pairs=${PAIRS:-20} seconds=${DURATION:-3} # not SECONDS: in bash that is a clock
read -ra workloads <<<"${WORKLOADS:-short pages iperf3 pingpong}"
read -ra probes <<<"${PROBES:-null hooks sockflow conntrack softflowd pmacctd}"
dir=$(mktemp -d)
out=$(realpath -m "${OUT:-$dir/raw.tsv}") # before the cd
cd "$(dirname "$0")/.."
netns=sockflow-overhead-$$
port=19996
daemons=() probe=''

cleanup() {
	[ -z "$probe" ] || kill "$probe" 2>/dev/null || true
	[ ${#daemons[@]} = 0 ] || kill "${daemons[@]}" 2>/dev/null || true
	wait
	ip netns delete "$netns" 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

chmod 755 "$dir"
if [ -n "${EXPORTER:-}" ]; then
	cp "$EXPORTER" "$dir/exporter"
else
	CGO_ENABLED=0 go build -o "$dir/exporter" ./cmd/exporter
fi
go build -o "$dir/" ./bench/empty ./bench/pingpong ./bench/sink
[ "$(cat /proc/sys/kernel/bpf_stats_enabled)" = 0 ] || echo "kernel.bpf_stats_enabled is on: eBPF programs cost more than they would" >&2

ip netns add "$netns"
# ip netns exec would mount another /sys, without the control groups that the exporter attaches to. nsenter replaces itself, so that
# $! is the command's own process.
inside() { nsenter --net="/run/netns/$netns" "$@"; }
inside ip link set lo up
# Ports for all the connections of a run, above those that are listened on.
inside sysctl -qw net.ipv4.ip_local_port_range='20000 65535'

# daemon starts a command in the namespace; cleanup ends it.
daemon() {
	nsenter --net="/run/netns/$netns" "$@" >>"$dir/log" 2>&1 &
	daemons+=($!)
}
# The configuration has no keepalive: a request is a connection.
cat >"$dir/nginx.conf" <<-EOF
	daemon off;
	pid $dir/nginx.pid;
	error_log stderr crit;
	worker_processes 1;
	events { worker_connections 4096; }
	http {
		access_log off;
		keepalive_timeout 0;
		client_body_temp_path $dir/body;
		proxy_temp_path $dir/proxy;
		fastcgi_temp_path $dir/fastcgi;
		uwsgi_temp_path $dir/uwsgi;
		scgi_temp_path $dir/scgi;
		# short: nothing but the connection.
		server {
			listen 127.0.0.1:80 backlog=4096;
			location / { return 200 "hello\n"; }
		}
		# pages: a file and a line in the access log, as most servers do.
		server {
			listen 127.0.0.1:81 backlog=4096;
			root $dir/pages;
			access_log $dir/access.log;
		}
	}
EOF
mkdir "$dir/pages"
head -c 615 /dev/zero | tr '\0' x >"$dir/pages/index.html" # as long as nginx's own
daemon nginx -e stderr -c "$dir/nginx.conf"
daemon iperf3 -s -B 127.0.0.1
daemon "$dir/sink" -port "$port"
sleep 1
for pid in "${daemons[@]}"; do
	kill -0 "$pid" 2>/dev/null || { cat "$dir/log" >&2; exit 1; }
done

# work runs a workload and prints its rate.
work() {
	case $1 in
	short) inside wrk -t 1 -c 8 -d "${seconds}s" -H 'Connection: close' http://127.0.0.1/ >"$dir/work" 2>&1 && # connections/s
		awk '/Socket errors/ {print >"/dev/stderr"} /^Requests\/sec/ {rate = $2} END {if (!rate) exit 1; print rate}' "$dir/work" ;;
	pages) inside wrk -t 1 -c 64 -d "${seconds}s" -H 'Connection: close' http://127.0.0.1:81/ >"$dir/work" 2>&1 && # connections/s
		awk '/Socket errors/ {print >"/dev/stderr"} /^Requests\/sec/ {rate = $2} END {if (!rate) exit 1; print rate}' "$dir/work" ;;
	iperf3) inside iperf3 -c 127.0.0.1 -t "$seconds" -f m >"$dir/work" 2>&1 && # Mbit/s
		awk '/receiver/ {rate = $7} END {if (!rate) exit 1; print rate}' "$dir/work" ;;
	pingpong) inside "$dir/pingpong" -duration "${seconds}s" ;; # exchanges/s
	pingpong1) inside "$dir/pingpong" -one -duration "${seconds}s" ;; # the same by one thread, which never sleeps: the worst case
	*) echo "no workload $1" >"$dir/work"; false ;;
	esac || { echo "workload $1 failed:" >&2; cat "$dir/work" >&2; return 1; }
}

# start_probe starts a probe and sets $probe.
start_probe() {
	local command
	case $1 in
	null) command=(sleep 1000000) ;;
	hooks) command=("$dir/empty" -hooks) ;;
	sockflow) command=("$dir/exporter" -c "udp://127.0.0.1:$port" ${FLAGS:-}) ;;
	conntrack) command=(conntrack -E) ;;
	# In runs of seconds softflowd and pmacctd export next to nothing, which flatters them: a TCP flow waits for minutes
	# after its FIN. sockflow exports a connection when it ends.
	#
	# softflowd's default of 8192 flows is less than a second of short connections, and it would do
	# little but evict them: it gets what sockflow has by default. -d: stay in the foreground.
	softflowd) command=(softflowd -d -i lo -v 10 -m 1000000 -n "127.0.0.1:$port" -p "$dir/softflowd.pid" -c "$dir/softflowd.ctl") ;;
	pmacctd)
		cat >"$dir/pmacctd.conf" <<-EOF
			daemonize: false
			pcap_interface: lo
			plugins: nfprobe[x]
			aggregate[x]: src_host, dst_host, src_port, dst_port, proto
			nfprobe_receiver[x]: 127.0.0.1:$port
			nfprobe_version[x]: 10
		EOF
		command=(pmacctd -f "$dir/pmacctd.conf")
		;;
	*) echo "no probe $1" >&2; return 1 ;;
	esac
	nsenter --net="/run/netns/$netns" "${command[@]}" >/dev/null 2>"$dir/probe.log" &
	probe=$!
	if [ "$1" = sockflow ]; then
		for _ in {1..100}; do
			grep -q 'metering by' "$dir/probe.log" && break
			sleep 0.1
		done
		grep -q 'metering by eBPF' "$dir/probe.log" || { cat "$dir/probe.log" >&2; return 1; }
	fi
}

# processor prints the nanoseconds that the probe's threads, and those of its children (pmacctd has some), have had a processor.
processor() {
	local p files=()
	for p in "$probe" $(pgrep -P "$probe" || true); do
		files+=(/proc/"$p"/task/*/schedstat)
	done
	cat "${files[@]}" | awk '{n += $1} END {printf "%d\n", n}'
}

# a is a run without the probe, b one with it: each sets a variable of its name.
a() {
	sleep 1 # as long as b waits
	a=$(work "$1")
}
b() {
	start_probe "$2"
	sleep 1
	local before begin=$EPOCHREALTIME after end
	before=$(processor)
	b=$(work "$1")
	end=$EPOCHREALTIME
	after=$(processor) || { echo "probe $2 ended by itself:" >&2; cat "$dir/probe.log" >&2; return 1; }
	cpu=$(awk -v n=$((after - before)) -v t0="$begin" -v t1="$end" 'BEGIN {printf "%.5f", n / 1e9 / (t1 - t0)}')
	kill "$probe"
	wait "$probe" || true
	probe=''
}

mkdir -p "$(dirname "$out")"
printf 'workload\tprobe\tpair\torder\twithout\twith\tratio\tprobe_cpu\n' >"$out"
for workload in "${workloads[@]}"; do
	for name in "${probes[@]}"; do
		# Connection tracking works only where a rule asks for it. The rule is there for both runs of the pair, which so differ
		# by who listens to the events; compare "without" with that of the others to see what the tracking itself costs.
		if [ "$name" = conntrack ]; then
			inside iptables -A INPUT -m conntrack --ctstate NEW
		fi
		for ((pair = 1; pair <= pairs; pair++)); do
			order=AB
			if ((pair % 2)); then
				a "$workload"
				b "$workload" "$name"
			else
				order=BA
				b "$workload" "$name"
				a "$workload"
			fi
			ratio=$(awk -v a="$a" -v b="$b" 'BEGIN {printf "%.5f", b / a}')
			printf '%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n' "$workload" "$name" "$pair" "$order" "$a" "$b" "$ratio" "$cpu" | tee -a "$out" >&2
		done
		if [ "$name" = conntrack ]; then
			inside iptables -D INPUT -m conntrack --ctstate NEW
			inside iptables -X # the empty chains, which packets would still pass
		fi
	done
done

# quantiles prints the first quartile, the median and the third quartile of a column for a workload and a probe.
quantiles() {
	awk -F '\t' -v w="$1" -v p="$2" -v c="$3" '$1 == w && $2 == p {print $c}' "$out" | sort -g |
		awk '{v[NR] = $1}
		function q(f,  at, low) {at = 1 + f * (NR - 1); low = int(at); return v[low] + (at - low) * (v[low < NR ? low + 1 : NR] - v[low])}
		END {print q(.25), q(.5), q(.75)}'
}
echo
echo "medians of $pairs pairs of $seconds s; rates: short and pages connections/s, iperf3 Mbit/s, pingpong exchanges/s; CPU: the probe's seconds a second"
printf '%-9s %-10s %10s %10s %8s  %-17s %8s\n' workload probe without with ratio quartiles CPU
for workload in "${workloads[@]}"; do
	for name in "${probes[@]}"; do
		read -r _ without _ < <(quantiles "$workload" "$name" 5)
		read -r _ with _ < <(quantiles "$workload" "$name" 6)
		read -r low ratio high < <(quantiles "$workload" "$name" 7)
		read -r _ cpu _ < <(quantiles "$workload" "$name" 8)
		printf '%-9s %-10s %10.0f %10.0f %8.4f  %.4f - %.4f %9.4f\n' "$workload" "$name" "$without" "$with" "$ratio" "$low" "$high" "$cpu"
	done
done
