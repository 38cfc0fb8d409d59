#!/usr/bin/env bash
# A day's churn of flows, processes and containers in half an hour: does anything of the exporter grow?
#
# At the default rates half an hour has as many as a day with 21 TCP connections and 6 UDP flows a second, a new process every two seconds,
# a new container every 24 seconds, and collectors that restart every 48 minutes. Timeouts are the defaults. A sample is taken every ten seconds;
# a line is fitted through those of the second half, and what it rises in that time must be no more than the tolerance: so much of
# the mean, or so much in all, whichever is more.
#
# All traffic is on the loopback of network namespaces of its own. Needs root and the packages of bench/README.md.
# Usage: [NAME=value...] bench/soak.sh
#   MINUTES=30                                     CONNECTIONS=1000 UDP=300 PROCESSES=25 CONTAINERS=2: a second
#   RESTART=60                                     seconds between two restarts of the collectors
#   FLAGS="..."                                    more flags for the exporter
#   OUT=file                                       samples, tab-separated
#   EXPORTER=binary                                default: built from this tree
set -euo pipefail
minutes=${MINUTES:-30} restart=${RESTART:-60}
dir=$(mktemp -d)
out=$(realpath -m "${OUT:-$dir/samples.tsv}") # before the cd
[ -z "${EXPORTER:-}" ] || cp "$EXPORTER" "$dir/exporter"
cd "$(dirname "$0")/.."
netns=sockflow-soak-$$
cgroups=$(awk '$3 == "cgroup2" {print $2; exit}' /proc/mounts)/$netns
page=http://127.0.0.1:19469/metrics
loads=() pid='' collector=''

cleanup() {
	for p in "${loads[@]}" $pid $collector; do kill "$p" 2>/dev/null || true; done
	wait
	for kill in "$cgroups"/*/cgroup.kill; do # what an interrupted run leaves
		[ ! -e "$kill" ] || echo 1 >"$kill"
	done
	sleep 0.1
	rmdir "$cgroups"/*/ "$cgroups" 2>/dev/null || true
	ip netns delete "$netns" 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
trap 'echo "line $LINENO: $BASH_COMMAND failed; the exporter and the collector said:"; tail -n 20 "$dir/log" "$dir/collector"' ERR

[ -x "$dir/exporter" ] || CGO_ENABLED=0 go build -o "$dir/exporter" ./cmd/exporter
go build -o "$dir/" ./bench/load ./bench/churn
ip netns add "$netns"
mkdir "$cgroups"
# ip netns exec would mount another /sys, without the control groups that the exporter attaches to.
inside() { exec nsenter --net="/run/netns/$netns" "$@"; }
(inside ip link set lo up)
collect() {
	inside "$dir/exporter" collect --listen udp://127.0.0.1:19995 --listen tcp://127.0.0.1:19996 >/dev/null 2>>"$dir/collector"
}
collect &
collector=$!
read -ra flags <<<"${FLAGS:-}"
inside "$dir/exporter" -c udp://127.0.0.1:19995 -c tcp://127.0.0.1:19996 --spool "$dir/spool" --metrics 127.0.0.1:19469 "${flags[@]}" 2>"$dir/log" &
pid=$!
scrape() { (inside curl -sf "$page"); }
for _ in {1..100}; do
	! scrape >"$dir/page" || break
	sleep 0.1
done
[ -s "$dir/page" ] || { cat "$dir/log"; exit 1; }
duration=$((minutes * 60))
inside "$dir/load" -rate "${CONNECTIONS:-1000}" -duration "${duration}s" >"$dir/load.json" &
loads+=($!)
inside "$dir/churn" -udp "${UDP:-300}" -processes "${PROCESSES:-25}" -containers "${CONTAINERS:-2}" -cgroups "$cgroups" -duration "${duration}s" >"$dir/churn.json" &
loads+=($!)

# bpf prints how many maps, programs and links the exporter has open, their memory in octets, and the entries of its hash maps. Those that evict
# the oldest (LRU) are left out: they may fill up, and have all their memory from the start.
bpf() {
	local hash entries=0 n
	# A descriptor may be closed before cat comes to it.
	{ cat /proc/"$pid"/fdinfo/* 2>/dev/null || true; } | awk '
		$1 == "map_type:" {type = $2} $1 == "prog_type:" {type = ""}
		$1 == "memlock:" {octets = $2}
		$1 == "map_id:" && !seen["m" $2]++ {maps++; memory += octets; if (type == 1) hash = hash " " $2}
		$1 == "prog_id:" && !link && !seen["p" $2]++ {programs++; memory += octets}
		$1 == "link_id:" && !seen["l" $2]++ {links++}
		END {print maps + 0, programs + 0, links + 0, memory + 0, hash}' >"$dir/bpf"
	local maps programs links memory
	read -r maps programs links memory hash <"$dir/bpf"
	for id in $hash; do
		n=$(bpftool map dump id "$id" 2>/dev/null | awk '/^Found/ {print $2}')
		entries=$((entries + ${n:-0}))
	done
	echo "$maps $programs $links $memory $entries"
}

columns=(resident_kB descriptors goroutines threads maps programs links bpf_octets datagram_entries flows processes namespaces)
(IFS=$'\t'; echo "seconds	${columns[*]}") >"$out"
begin=$SECONDS next=0 restarts=0 again=$restart
while [ $((SECONDS - begin)) -lt "$duration" ]; do
	kill -0 "$pid" || { cat "$dir/log"; echo "the exporter has ended"; exit 1; }
	if [ $((SECONDS - begin)) -ge "$again" ]; then
		again=$((again + restart)) restarts=$((restarts + 1))
		kill "$collector"
		wait "$collector" || true
		sleep 3
		collect &
		collector=$!
	fi
	scrape >"$dir/page"
	read -r maps programs links memory entries < <(bpf)
	awk -v OFS='\t' -v t=$((SECONDS - begin)) -v maps="$maps" -v programs="$programs" -v links="$links" -v memory="$memory" -v entries="$entries" '
		{v[$1] = $2}
		END {print t, v["process_resident_memory_bytes"] / 1024, v["process_open_fds"], v["go_goroutines"], v["go_threads"], maps, programs, links, memory,
			entries, v["sockflow_flows"], v["sockflow_processes"], v["sockflow_namespaces"]}' "$dir/page" >>"$out"
	next=$((next + 10))
	while [ $((SECONDS - begin)) -lt $next ]; do sleep 0.2; done
done
wait "${loads[@]}"
loads=()
scrape >"$dir/page"

echo "made in $minutes minutes, with $restarts restarts of the collectors:"
cat "$dir/load.json" "$dir/churn.json"
echo "the exporter: $(awk '{s = $14 + $15} END {print s}' "/proc/$pid/stat") ticks of $(getconf CLK_TCK) a second; records:"
awk '/^sockflow_(records_total|collector_records_total|collector_connects_total)/ && $2 != 0 {printf "  %s %.0f\n", $1, $2}' "$dir/page"
echo "losses and corrections by cause:"
awk '/^sockflow_(lost|malformed|shared|forgotten|audit|runtime_overflow|container_overflow|netlink_overruns|interface_errors|process_facts_total.*miss|passes_total.*error|collector_errors)/ && $2 != 0 {printf "  %s %.0f\n", $1, $2}' "$dir/page"
awk -F'\t' '
	BEGIN {
		split("resident_kB 0.05 2048 descriptors 0 4 goroutines 0 6 threads 0 4 maps 0 0 programs 0 0 links 0 0 bpf_octets 0.01 65536 datagram_entries 0.1 200 flows 0.2 200 processes 0.2 100 namespaces 0.2 8", a, " ")
		for (i = 1; i in a; i += 3) {part[a[i]] = a[i + 1]; most[a[i]] = a[i + 2]}
	}
	NR == 1 {for (i = 2; i <= NF; i++) name[i] = $i; cols = NF; next}
	{n++; for (i = 1; i <= NF; i++) v[n, i] = $i}
	END {
		from = int(n / 2) + 1
		printf "%-18s %10s %10s %10s %10s %10s %9s\n", "", "start", "half", "end", "least", "most", "rise"
		for (i = 2; i <= cols; i++) {
			sx = sy = sxx = sxy = k = 0; lo = hi = v[from, i]
			for (j = from; j <= n; j++) {
				x = v[j, 1]; y = v[j, i]; k++
				sx += x; sy += y; sxx += x * x; sxy += x * y
				if (y < lo) lo = y
				if (y > hi) hi = y
			}
			slope = k * sxx == sx * sx ? 0 : (k * sxy - sx * sy) / (k * sxx - sx * sx)
			rise = slope * (v[n, 1] - v[from, 1])
			allowed = part[name[i]] * sy / k
			if (most[name[i]] > allowed) allowed = most[name[i]]
			grows = rise > allowed + 1e-6
			bad += grows
			printf "%-18s %10d %10d %10d %10d %10d %9.1f %s %.1f\n", name[i], v[1, i], v[from, i], v[n, i], lo, hi, rise, grows ? "GROWS, more than" : "of at most", allowed
		}
		exit bad > 0
	}' "$out"
