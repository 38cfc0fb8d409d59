#!/usr/bin/env bash
# What many namespaces cost the exporter: N sockets in K network namespaces, how long its start takes (until the first pass is in
# the cache), what processor time it then uses at the default intervals, and its resident memory.
#
# Needs root. Usage: [NAME=value...] bench/namespaces.sh
#   N=20000 NAMESPACES=200   DURATION=70 seconds, which an audit is in   EXPORTER=binary: default built from this tree
#   LIMIT=MB                 fail above so much resident memory
set -euo pipefail
n=${N:-20000} k=${NAMESPACES:-200} seconds=${DURATION:-70}
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
exporter=${EXPORTER:-$dir/exporter}
pids=()
names=$(seq -f "sockflow-bench-%g" -s, "$k")
cleanup() {
	[ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2>/dev/null || true
	wait
	for name in ${names//,/ }; do ip netns delete "$name" 2>/dev/null || true; done
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
[ -n "${EXPORTER:-}" ] || CGO_ENABLED=0 go build -o "$exporter" ./cmd/exporter
go build -o "$dir/sockets" ./bench/sockets
for name in ${names//,/ }; do
	ip netns add "$name"
	ip -n "$name" link set lo up
done
mkfifo "$dir/hold"
"$dir/sockets" -n "$n" -namespaces "$names" <"$dir/hold" >"$dir/ready" &
pids+=($!)
exec 7>"$dir/hold" # it ends when this does
until grep -q ready "$dir/ready"; do sleep 0.1; done

page=http://127.0.0.1:19469/metrics
begin=$(date +%s%N)
"$exporter" --metrics 127.0.0.1:19469 -c udp://127.0.0.1:9 2>"$dir/log" &
pids+=($!)
pid=$!
flows=0
until [ "$flows" -ge "$n" ]; do
	sleep 0.02
	flows=$(curl -s "$page" | awk '$1 == "sockflow_flows" {print int($2)}') || true
	flows=${flows:-0}
	[ $(($(date +%s%N) - begin)) -lt 60000000000 ] || { cat "$dir/log"; exit 1; }
done
echo "start: $flows flows after $((($(date +%s%N) - begin) / 1000000)) ms"
sleep 5
threads() { cat /proc/"$pid"/task/*/schedstat | awk '{s += $1} END {printf "%d", s / 1000000}'; }
t0=$(threads) w0=$(date +%s%N)
sleep "$seconds"
t1=$(threads) w1=$(date +%s%N)
awk -v ms=$((t1 - t0)) -v ns=$((w1 - w0)) 'BEGIN {printf "steady: %.2f %% of a core\n", 100 * ms * 1e6 / ns}'
mb=$(awk '/^VmRSS/ {print int($2 / 1024)}' "/proc/$pid/status")
echo "resident: $mb MB"
[ -z "${LIMIT:-}" ] || [ "$mb" -le "$LIMIT" ]
