#!/usr/bin/env bash
# How long one look at all TCP sockets of the host takes: ss, which asks sock_diag and finds processes in /proc, against the exporter's
# pass by an eBPF iterator, which names the process of each socket. The rounds are interleaved. ss sees one network namespace at a time
# and runs once in each; the pass sees them all.
#
# Needs root and the packages of bench/README.md. Usage: [NAME=value...] bench/snapshot.sh
#   N=100000        sockets, two a connection
#   NAMESPACES=1    network namespaces to spread them over
#   ROUNDS=5        rounds of "ss -tin" and PASSES=3 passes each, of which the first counts apart
#   SLOW_ROUNDS=2   of these also with "ss -tinp", which takes seconds
set -euo pipefail
cd "$(dirname "$0")/.."
n=${N:-100000} namespaces=${NAMESPACES:-1} rounds=${ROUNDS:-5} passes=${PASSES:-3} slow=${SLOW_ROUNDS:-2}
dir=$(mktemp -d)
names=() holder=''

cleanup() {
	[ -z "$holder" ] || kill "$holder" 2>/dev/null || true # its copies end with it
	wait
	for name in "${names[@]}"; do
		ip netns delete "$name" 2>/dev/null || true
	done
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

go build -o "$dir/" ./bench/sockets ./bench/walk
for ((i = 0; i < namespaces; i++)); do
	name=sockflow-snapshot-$$-$i
	ip netns add "$name"
	names+=("$name")
	ip -n "$name" link set lo up
done

mkfifo "$dir/hold" # held open here: when this script ends, in whatever way, the sockets' standard input does
exec 3<>"$dir/hold"
"$dir/sockets" -n "$n" -namespaces "$(IFS=, && echo "${names[*]}")" <"$dir/hold" >"$dir/ready" 2>"$dir/log" 3>&- &
holder=$!
until grep -q ready "$dir/ready"; do
	kill -0 "$holder" 2>/dev/null || { cat "$dir/log" >&2; exit 1; }
	sleep 0.1
done

# look runs ss with a flag in every namespace and appends the seconds to a file.
look() {
	local begin=$EPOCHREALTIME end
	for name in "${names[@]}"; do
		nsenter --net="/run/netns/$name" ss "$1" >/dev/null
	done
	end=$EPOCHREALTIME
	awk -v t0="$begin" -v t1="$end" 'BEGIN {printf "%.6f\n", t1 - t0}' | tee -a "$dir/ss$1" | sed "s/^/ss $1 /"
}
touch "$dir/ss-tinp"
for ((i = 0; i < rounds; i++)); do
	look -tin
	# The first pass of each makes the programs' memory of the sockets; those of a running exporter are like the others.
	"$dir/walk" -passes "$passes" | awk -v first="$dir/first.tsv" -v rest="$dir/walk.tsv" \
		'{print >>(NR == 1 ? first : rest); printf "pass %s s, %d sockets\n", $1, $2}'
	if ((i < slow)); then
		look -tinp
	fi
done

median() { sort -g | awk '{v[NR] = $1} END {if (NR) print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2}'; }
tin=$(median <"$dir/ss-tin") tinp=$(median <"$dir/ss-tinp") walk=$(cut -f 1 "$dir/walk.tsv" | median) first=$(cut -f 1 "$dir/first.tsv" | median) seen=$(cut -f 2 "$dir/walk.tsv" | median)
echo
echo "medians, $n sockets in $namespaces network namespaces; the passes saw $seen (with listeners and what else the host has)"
printf '%-10s %9s %12s %8s\n' '' seconds sockets/s 'of walk'
row() { awk -v what="$1" -v t="$2" -v n="$3" -v walk="$walk" 'BEGIN {printf "%-10s %9.4f %12.0f %8.1f\n", what, t, n / t, t / walk}'; }
[ -z "$tinp" ] || row 'ss -tinp' "$tinp" "$n"
row 'ss -tin' "$tin" "$n"
row 'first walk' "$first" "$seen"
row walk "$walk" "$seen"
