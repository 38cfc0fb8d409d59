#!/usr/bin/env bash
# build.sh BINARY ARCH REFERENCE OUTPUT.tar: an OCI image of one layer, made with no registry and no Docker. The same input gives the same
# octets. ctr image import, docker load and podman load take it.
set -euo pipefail
[ $# = 4 ] || { echo "usage: build.sh BINARY ARCH REFERENCE OUTPUT.tar" >&2; exit 2; }
binary=$1 arch=$2 reference=$3 output=$(realpath -m "$4")
certificates=${CA_CERTIFICATES:-/etc/ssl/certs/ca-certificates.crt}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root/etc/ssl/certs" "$work/image/blobs/sha256"
install -m 0755 "$binary" "$work/root/sockflow"
if [ -r "$certificates" ]; then
	install -m 0644 "$certificates" "$work/root/etc/ssl/certs/ca-certificates.crt"
else
	echo "note: no $certificates: tls:// and dtls:// need ?ca= in this image" >&2
fi

pack() { tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$1" -cf - .; }
# blob FILE: moves it to its name and prints "DIGEST SIZE".
blob() {
	local digest size
	digest=$(sha256sum "$1" | cut -d' ' -f1) size=$(stat -c %s "$1")
	mv "$1" "$work/image/blobs/sha256/$digest"
	echo "$digest $size"
}

pack "$work/root" >"$work/layer.tar"
diff=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
gzip -9n "$work/layer.tar"
read -r layer layer_size < <(blob "$work/layer.tar.gz")
cat >"$work/config.json" <<EOF
{"architecture":"$arch","os":"linux","config":{"Entrypoint":["/sockflow"],"Cmd":["run"],"Labels":{"org.opencontainers.image.title":"sockflow","org.opencontainers.image.licenses":"Apache-2.0"}},"rootfs":{"type":"layers","diff_ids":["sha256:$diff"]}}
EOF
read -r config config_size < <(blob "$work/config.json")
cat >"$work/manifest.json" <<EOF
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$config_size},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:$layer","size":$layer_size}]}
EOF
read -r manifest manifest_size < <(blob "$work/manifest.json")
echo '{"imageLayoutVersion":"1.0.0"}' >"$work/image/oci-layout"
cat >"$work/image/index.json" <<EOF
{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest","size":$manifest_size,"platform":{"architecture":"$arch","os":"linux"},"annotations":{"io.containerd.image.name":"$reference","org.opencontainers.image.ref.name":"${reference##*:}"}}]}
EOF
# For docker load, which reads this older list too.
cat >"$work/image/manifest.json" <<EOF
[{"Config":"blobs/sha256/$config","RepoTags":["$reference"],"Layers":["blobs/sha256/$layer"]}]
EOF
pack "$work/image" >"$output"
echo "$reference $(stat -c %s "$output") octets"
