#!/usr/bin/env bash
# Boots Debian's cloud kernels in QEMU, without KVM, and runs the exporter and its acceptance test in each.
# Needs root, apt, Go and an x86-64 machine. Usage: testdata/kernels/run.sh [5.10|6.1|6.12|7]...
#
# REQUIRE_KERNELS=1  a kernel that cannot be had is a failure, not a skip
# DEBIAN_MIRROR=URI  of a Debian archive, where the machine's own apt sources are not Debian's
# TEST_RUN=REGEXP    the tests to run, of cmd/exporter
# CGROUPS=MODE       the hierarchies of control groups that a guest mounts: v2 (the default), hybrid or v1; with the last two only the tests of
#                    control groups run
# CONTAINERS=1       with containerd and all it needs, and the tests of the DaemonSet; with cgroup v2
# NETWORKS=1         with the tools of networks, and the tests of address translation and of steered packets; with cgroup v2
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sockflow-kernels
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
packages=(qemu-system-x86 busybox-static cpio xz-utils kmod debian-archive-keyring)
# What the exporter and the tests may want; Debian builds these as modules. Those a kernel has built in, or not at all, are passed over.
modules=(inet_diag tcp_diag udp_diag unix_diag veth bridge nf_conntrack nf_nat nf_conntrack_netlink sctp)
memory=1024 patience=900
cgroups=${CGROUPS:-v2}
if [ -n "${CONTAINERS:-}" ]; then
	packages+=(containerd runc containernetworking-plugins iproute2)
	modules+=(overlay llc stp)
	memory=3072 patience=900
fi
if [ -n "${NETWORKS:-}" ]; then
	packages+=(iproute2 iptables nftables ipset ipvsadm)
	modules+=(llc stp br_netfilter dummy ip_vs ip_vs_rr ip_set_hash_ipport ip_set_hash_ipportip ip_set_bitmap_port nf_tables nft_compat
		nft_chain_nat nft_ct nft_nat nft_masq nft_redir nft_numgen nft_log nft_limit nft_reject_inet
		xt_set xt_comment xt_mark xt_addrtype xt_MASQUERADE xt_nat xt_REDIRECT xt_CT xt_conntrack xt_statistic xt_tcpudp xt_owner xt_recent xt_multiport)
	memory=2048
fi

die() {
	echo "$*" >&2
	exit 1
}

# suites prints where Debian has a line of kernels, best first.
suites() {
	case $1 in
	5.10) echo bullseye-security ;;
	6.1) echo bookworm-security bookworm ;;
	6.12) echo bookworm-security trixie ;;
	7) echo trixie-backports sid ;;
	*) die "no kernel $1: use 5.10, 6.1, 6.12 or 7" ;;
	esac
}

install_packages() {
	local p missing=()
	for p in "${packages[@]}"; do
		dpkg -s "$p" >/dev/null 2>&1 || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# mirror prints the URI of a suite's archive: the one that this machine uses.
mirror() {
	local main=${DEBIAN_MIRROR:-} security=
	if [ -z "$main" ]; then
		# shellcheck disable=SC2016 # apt expands these
		main=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' | awk '$1 !~ /-/ {print $2; exit}')
		# shellcheck disable=SC2016
		security=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' | awk '$1 ~ /-security$/ {print $2; exit}')
	fi
	case $1 in
	*-security) echo "${security:-${main%/}-security}" ;;
	*) echo "$main" ;;
	esac
}

# download brings the newest kernel of a line from a suite into a directory of the cache, by an apt that knows this suite only and
# leaves the machine's own alone.
download() {
	local line=$1 suite=$2 dir=$3 apt names version
	apt=$work/apt-$suite
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$dir"
	echo "deb [arch=amd64 signed-by=$keyring] $(mirror "$suite") $suite main" >"$apt/sources.list"
	local options=(-qq -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$apt/lists"
		-o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none)
	apt-get "${options[@]}" update || return
	version=$(apt-cache "${options[@]}" search --names-only "^linux-image-${line//./\\.}\\.[^ ]*-cloud-amd64\$" |
		sed 's/^linux-image-//; s/ .*//' | sort -V | tail -n 1)
	[ -n "$version" ] || {
		echo "no package linux-image-$line.*-cloud-amd64" >&2
		return 1
	}
	# Newer packaging has the kernel and its modules in packages of their own.
	names=$(apt-cache "${options[@]}" search --names-only "^linux-(image|binary|modules)-${version//+/.}\$" | cut -d' ' -f1)
	# shellcheck disable=SC2086 # a list of words. apt takes a file that is there and whole as downloaded.
	(cd "$dir" && apt-get "${options[@]}" download $names) || return
	find "$dir" -name '*.deb' ! -name "*-${version}_*" -delete
}

# fetch unpacks the kernel of a line in the work directory. If there is none it sets result to why.
fetch() {
	local line=$1 dir=$cache/$1 tree=$work/$1 suite deb got=
	for suite in $(suites "$line"); do
		if download "$line" "$suite" "$dir" 2>"$work/apt.log"; then
			got=$suite
			break
		fi
	done
	compgen -G "$dir/linux-*.deb" >/dev/null || {
		result="SKIP $line: not in $(suites "$line"): $(head -n 1 "$work/apt.log")"
		return 1
	}
	[ -n "$got" ] || echo "$line: cannot ask for a newer one, using the kernel of the cache"
	for deb in "$dir"/linux-*.deb; do
		dpkg-deb -x "$deb" "$tree"
	done
}

# pack_programs adds programs, with the libraries that they are linked to.
pack_programs() {
	local root=$1 program library
	mkdir -p "$root"/{sbin,lib64}
	for program in "${@:2}"; do
		cp "$(command -v "$program")" "$root/bin/"
	done
	find "$root" -type f -perm /111 -o -name '*.so' | while read -r program; do
		ldd "$program" 2>/dev/null | grep -o '/[^ ]*' || true
	done | sort -u | while read -r library; do
		mkdir -p "$root$(dirname "$library")"
		cp -L "$library" "$root$library"
	done
}

# pack_containers adds what containers need: programs, and CNI.
pack_containers() {
	local root=$1
	mkdir -p "$root"/{usr/lib/cni,usr/bin,usr/sbin,var/lib}
	cp /usr/lib/cni/{bridge,host-local,loopback} "$root/usr/lib/cni/"
	pack_programs "$root" containerd containerd-shim-runc-v2 ctr runc ip
	echo 'nameserver 127.0.0.1' >"$root/etc/resolv.conf"
	cp "$work/pod" deploy/kubernetes/sockflow.yaml "$root/"
	touch "$root/containers"
}

# pack_networks adds what makes networks and translates addresses.
pack_networks() {
	local root=$1
	mkdir -p "$root/usr/lib/x86_64-linux-gnu"
	cp -r /usr/lib/x86_64-linux-gnu/xtables "$root/usr/lib/x86_64-linux-gnu/"
	pack_programs "$root" ip iptables iptables-restore ip6tables nft ipset ipvsadm
	printf 'tcp 6 TCP\nudp 17 UDP\n' >"$root/etc/protocols"
}

# pack makes the initramfs.
pack() {
	local tree=$1 version=$2 root=$3 lib=$1/lib module file
	[ -d "$lib" ] || lib=$tree/usr/lib
	mkdir -p "$root"/{bin,dev,proc,sys,tmp,run,root,etc,modules}
	cp "$(command -v busybox)" "$root/bin/busybox"
	ln -s busybox "$root/bin/sh"
	cp "$here/init" "$work/exporter" "$work/exporter.test" "$root"
	chmod 755 "$root/init"
	echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
	echo 127.0.0.1 localhost >"$root/etc/hosts"
	local tests='^(TestAcceptance|TestSCTP|TestClockStepped|TestCGroups|TestInCGroupNamespace)$'
	case $version in
	5.10.*) tests='^TestAcceptance$' ;; # by netlink: the programs of the other live too short to be named
	esac
	[ "$cgroups" = v2 ] || tests='^TestCGroups$'
	[ -z "${CONTAINERS:-}" ] || tests='^TestDaemonSet$'
	if [ -n "${NETWORKS:-}" ]; then
		tests='TestSteeredConnections|TestKubeProxy|TestIstio|TestPostNAT|TestZones|TestRefusedDatagrams'
		case $version in
		6.1.*) ;; # without what the others need: docs/kernels.md
		*) tests="$tests|TestTranslatedHere|TestRouteMTU|TestPing" ;;
		esac
		tests="^($tests)\$"
	fi
	echo "$cgroups" >"$root/cgroups"
	echo "${TEST_RUN:-$tests}" >"$root/tests"
	# modules.dep is made at installation, which does not take place. It warns of lists that newer packages do not have.
	depmod -b "${lib%/lib}" "$version" 2>/dev/null
	for module in "${modules[@]}"; do
		modprobe -d "${lib%/lib}" -S "$version" --show-depends "$module" 2>/dev/null || true
	done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' | while read -r file; do
		module=$(basename "$file" .xz)
		case $file in
		*.xz) xz -dc "$file" >"$root/modules/$module" ;;
		*) cp "$file" "$root/modules/$module" ;;
		esac
		echo "$module"
	done >"$root/modules/order"
	[ -z "${CONTAINERS:-}" ] || pack_containers "$root"
	[ -z "${NETWORKS:-}" ] || pack_networks "$root"
	(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$root.gz"
}

# boot runs a kernel, prints what it printed, and sets result.
boot() {
	local line=$1 tree=$work/$1 kernel version verdict attempt started=$SECONDS
	kernel=$(find "$tree" -name 'vmlinuz*' -print -quit)
	version=$(basename "$(find "$tree" -path '*/lib/modules/*-cloud-amd64' -print -quit)")
	pack "$tree" "$version" "$work/root-$line"
	for attempt in 1 2 3; do
		timeout "$patience" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m "$memory" -smp 2 -nographic -no-reboot -nodefaults \
			-serial stdio -kernel "$kernel" -initrd "$work/root-$line.gz" -append 'console=ttyS0 panic=-1 quiet' \
			</dev/null >"$work/$line.log" 2>&1 &
		qemu=$!
		wait "$qemu" || true
		qemu=
		tr -d '\r' <"$work/$line.log" | sed 's/\x1b\[[0-9;?=]*[a-zA-Z]//g; s/\x1bc//g' >"$work/$line.txt"
		# QEMU's fault, about one boot in 30: a CPU meets the breakpoint of a code patch that is gone. One thread for both CPUs would
		# not do it, but is too slow for the deadlines of the tests.
		grep -Eq '(Oops: |\] )int3: 0000' "$work/$line.txt" || break
		echo "$line| int3, attempt $attempt"
	done
	sed "s/^/$line| /" "$work/$line.txt"
	verdict=$(sed -n 's/^RESULT //p' "$work/$line.txt" | tail -n 1)
	case $verdict in
	pass) result="PASS $line ($version, cgroup $cgroups) in $((SECONDS - started)) s" ;;
	*) result="FAIL $line ($version, cgroup $cgroups): ${verdict:-no verdict: crashed, or not finished after $patience s}" ;;
	esac
}

lines=("$@")
[ ${#lines[@]} -gt 0 ] || lines=(6.1 6.12)
for line in "${lines[@]}"; do
	suites "$line" >/dev/null
done
case $cgroups in v2 | hybrid | v1) ;; *) die "CGROUPS=$cgroups: use v2, hybrid or v1" ;; esac
[ "$(id -u)" = 0 ] || die "needs root"
[ "$(uname -m)" = x86_64 ] || die "the kernels are for x86-64"

work=$(mktemp -d)
qemu=
trap '[ -z "$qemu" ] || { kill "$qemu" && wait "$qemu"; } || true; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
install_packages
cd "$here/../.."
CGO_ENABLED=0 go build -trimpath -o "$work/exporter" ./cmd/exporter
CGO_ENABLED=0 go test -c -trimpath -o "$work/exporter.test" ./cmd/exporter
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$work/pod" ./cmd/exporter/testdata/pod

failed=0
results=()
for line in "${lines[@]}"; do
	if fetch "$line"; then
		boot "$line"
	fi
	echo "$result"
	results+=("$result")
	case ${REQUIRE_KERNELS:-}$result in
	*FAIL* | 1SKIP*) failed=1 ;;
	esac
done
echo
printf '%s\n' "${results[@]}"
exit $failed
