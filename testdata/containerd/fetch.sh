#!/usr/bin/env bash
# Prints a directory with the containerd of a Debian suite: fetch.sh trixie|sid. Nothing is installed: the packages' files are unpacked in
# a cache. Its programs run with this system's libraries and runc.
# DEBIAN_MIRROR=URI  of a Debian archive, where the machine's own apt sources are not Debian's
set -euo pipefail

suite=$1
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sockflow-containerd/$suite
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ -x "$cache/root/usr/bin/containerd" ] && [ -n "$(find "$cache/root" -maxdepth 0 -mtime -7)" ]; then
	echo "$cache/root/usr/bin"
	exit
fi
mirror=${DEBIAN_MIRROR:-}
# shellcheck disable=SC2016 # apt expands these
[ -n "$mirror" ] || mirror=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' | awk '$1 !~ /-/ {print $2; exit}')
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
echo "deb [arch=$(dpkg --print-architecture) signed-by=$keyring] $mirror $suite main" >"$apt/sources.list"
options=(-qq -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$apt/lists"
	-o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none)
apt-get "${options[@]}" update >&2
(cd "$apt" && apt-get "${options[@]}" download containerd >&2)
rm -rf "$cache/root"
dpkg-deb -x "$apt"/containerd_*.deb "$cache/root"
touch "$cache/root"
echo "$cache/root/usr/bin"
