#!/usr/bin/env bash
# What the exporter costs: CPU (of one core) and resident memory at several rates of short connections, and whether its records sum
# to what the load counted. Needs root and nfdump. Usage: bench/cost.sh [rate...]
set -euo pipefail
cd "$(dirname "$0")/.."
rates=("$@")
[ ${#rates[@]} -gt 0 ] || rates=(0 1000 10000)
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$dir"' EXIT
CGO_ENABLED=0 go build -o "$dir/exporter" ./cmd/exporter
go build -o "$dir/load" ./bench/load
for rate in "${rates[@]}"; do
	mkdir -p "$dir/nf$rate"
	nfcapd -w "$dir/nf$rate" -b 127.0.0.1 -p 19995 -t 3600 -B 16000000 >/dev/null 2>&1 &
	nf=$!
	"$dir/exporter" -c udp://127.0.0.1:19995 --snapshot-interval 5s 2>"$dir/log" &
	pid=$!
	until grep -q 'metering by' "$dir/log"; do sleep 0.1; done
	sleep 1
	cpu() { cat /proc/"$pid"/task/*/schedstat | awk '{s += $1} END {printf "%d", s / 1000}'; } # microseconds: ticks miss what runs for less
	before=$(cpu)
	if [ "$rate" = 0 ]; then
		sleep 10
		echo '{}' >"$dir/load.json"
	else
		"$dir/load" -rate "$rate" -duration 10s >"$dir/load.json"
	fi
	after=$(cpu)
	rss=$(awk '/VmRSS/ {print $2}' "/proc/$pid/status")
	kill -USR1 $pid
	sleep 1
	kill -TERM $pid
	wait $pid || true
	sleep 1
	kill -TERM $nf
	wait $nf || true
	awk -v r="$rate" -v c=$((after - before)) -v m="$rss" 'BEGIN {printf "rate %s/s: CPU %.2f %% of one core, resident %.1f MB\n", r, c / 1e7 * 100, m / 1024}'
	cat "$dir/load.json"
	if [ "$rate" != 0 ]; then
		port=$(sed 's/.*"port":\([0-9]*\).*/\1/' "$dir/load.json")
		nfdump -R "$dir/nf$rate" -q -o "fmt:%fl" "dst port $port" | awk '{n += $1} END {print "records at the collector (two sockets a connection):", n}'
	fi
	grep -o 'msg=status.*' "$dir/log" || true
done
