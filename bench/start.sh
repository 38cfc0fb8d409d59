#!/usr/bin/env bash
# From the exec of the exporter to its first record of a connection that was made after it: by eBPF, records as JSON. Short connections are made
# all the while. Prints the milliseconds of each run, and the median.
#
# Needs root. Usage: [NAME=value...] bench/start.sh
#   RUNS=11        BUSY=N: with N endless loops beside        EXPORTER=binary: default built from this tree
set -euo pipefail
runs=${RUNS:-11}
dir=$(mktemp -d)
pids=()
cleanup() {
	kill "${pids[@]}" 2>/dev/null || true
	wait
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
[ -z "${EXPORTER:-}" ] || cp "$EXPORTER" "$dir/exporter"
cd "$(dirname "$0")/.."
[ -x "$dir/exporter" ] || CGO_ENABLED=0 go build -o "$dir/exporter" ./cmd/exporter
go build -o "$dir/load" ./bench/load
"$dir/load" -rate 100 -duration 10m >/dev/null &
pids+=($!)
for ((i = 0; i < ${BUSY:-0}; i++)); do
	(while :; do :; done) &
	pids+=($!)
done
mkfifo "$dir/records"
for ((i = 0; i < runs; i++)); do
	begin=$(date +%s%N)
	"$dir/exporter" --source ebpf --metrics none -c json:- >"$dir/records" 2>"$dir/log" &
	pid=$!
	grep -qm1 "$dir/load" "$dir/records" || { cat "$dir/log"; exit 1; }
	echo $((($(date +%s%N) - begin) / 1000000))
	kill "$pid" 2>/dev/null || true
	wait "$pid" || true
done | sort -n | awk '{v[NR] = $1; printf "%s ", $1} END {printf "ms; median %s ms\n", v[int((NR + 1) / 2)]}'
