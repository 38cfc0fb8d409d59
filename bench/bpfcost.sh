#!/usr/bin/env bash
# What the exporter's eBPF programs cost, by the kernel's own count (kernel.bpf_stats_enabled), while a known number of short TCP
# connections is made over the loopback. It is the cost that appears in no process of the exporter: the programs run within the
# system calls of others. They run for the whole host, so that a quiet one gives the best figures; those of the exporter's own
# packets to its collector are in it too.
#
# Needs root and the packages of bench/README.md. Usage: [NAME=value...] bench/bpfcost.sh
#   N=100000            connections
#   RATE=5000           a second
#   EMPTY_NS=           what the kernel reads for a program that does nothing, reading the clock twice; default: measured here and now
#   EXPORTER=binary     default: built from this tree
set -euo pipefail
cd "$(dirname "$0")/.."
n=${N:-100000} rate=${RATE:-5000}
port=19997
dir=$(mktemp -d)
sink='' exporter='' stats=/proc/sys/kernel/bpf_stats_enabled
was=$(cat $stats)

cleanup() {
	[ -z "$exporter" ] || kill "$exporter" 2>/dev/null || true
	[ -z "$sink" ] || kill "$sink" 2>/dev/null || true
	wait
	echo "$was" >$stats
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

if [ -n "${EXPORTER:-}" ]; then
	cp "$EXPORTER" "$dir/exporter"
else
	CGO_ENABLED=0 go build -o "$dir/exporter" ./cmd/exporter
fi
go build -o "$dir/" ./bench/load ./bench/sink ./bench/empty
empty=${EMPTY_NS:-$("$dir/empty")}
echo 1 >$stats
"$dir/sink" -port "$port" &
sink=$!
"$dir/exporter" -c "udp://127.0.0.1:$port" 2>"$dir/log" &
exporter=$!
for _ in {1..100}; do
	grep -q 'metering by' "$dir/log" && break
	sleep 0.1
done
grep -q 'metering by eBPF' "$dir/log" || { cat "$dir/log" >&2; exit 1; }
sleep 1

# The programs are those that this exporter holds, by its file descriptors: another one may run on the host. A link's descriptor
# names its program too, a program's alone has run_cnt.
mapfile -t ids < <(awk '/^prog_id/ {id = $2} /^run_cnt/ {print id}' /proc/"$exporter"/fdinfo/* | sort -un)
counts() { # name, nanoseconds, runs
	local id
	for id in "${ids[@]}"; do
		bpftool -j prog show id "$id" | jq -r '[.name, .run_time_ns // 0, .run_cnt // 0] | @tsv'
	done
}
counts >"$dir/before"
"$dir/load" -rate "$rate" -count "$n" -duration 24h >"$dir/load.json"
sleep 0.2 # the exporter's reading and sending
counts >"$dir/after"

made=$(jq .connections "$dir/load.json")
jq -r '"\(.connections) connections, \(.failed) failed, \(.perSecond | round) a second"' "$dir/load.json"
echo "ns: as the kernel counts; net: less $empty ns, what it counts for a program that does nothing"
awk -F '\t' -v made="$made" -v empty="$empty" '
	function row(name, runs, ns) {
		mean = runs ? ns / runs : 0; net = runs ? mean - empty : 0
		printf "%-13s %10d %10.2f %9.1f %9.1f %12.1f %12.1f\n", name, runs, runs / made, mean, net, ns / made, (ns - empty * runs) / made
	}
	BEGIN {printf "%-13s %10s %10s %9s %9s %12s %12s\n", "program", "runs", "runs/conn", "ns", "net ns", "ns/conn", "net ns/conn"}
	NR == FNR {ns0[$1] = $2; runs0[$1] = $3; next}
	{
		ns = $2 - ns0[$1]; runs = $3 - runs0[$1]
		if ($1 == "walk") {walkNs = ns; walkRuns = runs; next}
		row($1, runs, ns); allNs += ns; allRuns += runs
	}
	END {
		printf "%-13s %10d %10.2f %9s %9s %12.1f %12.1f\n", "total", allRuns, allRuns / made, "", "", allNs / made, (allNs - empty * allRuns) / made
		print "apart, by the time and not by the connection (a run for each open file of the host, every snapshot interval):"
		row("walk", walkRuns, walkNs)
	}' "$dir/before" "$dir/after"
