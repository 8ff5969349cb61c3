#!/usr/bin/env bash
# Peak memory (VmHWM) of our process while it pulls one layer with one file of 1 GB from an OCI
# layout; skopeo's beside it.
set -euo pipefail
program=${PROGRAM:-target/release/atomic-rs}
mkdir -p target
work=$(mktemp -d -p target)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/source" "$work/layout/blobs/sha256"
yes 0123456789abcdef | head -c 1G > "$work/source/huge" || true
tar -C "$work/source" -cf "$work/layer.tar" huge
diff_id=$(sha256sum "$work/layer.tar" | cut -c1-64)
gzip -1 "$work/layer.tar"
put() { # file, media type -> descriptor
	local digest
	digest=$(sha256sum "$1" | cut -c1-64)
	cp "$1" "$work/layout/blobs/sha256/$digest"
	printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s}' "$2" "$digest" "$(stat -c %s "$1")"
}
printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$diff_id" > "$work/config"
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
	"$(put "$work/config" config.v1+json)" "$(put "$work/layer.tar.gz" layer.v1.tar+gzip)" > "$work/manifest"
printf '{"schemaVersion":2,"manifests":[%s]}' "$(put "$work/manifest" manifest.v1+json)" > "$work/layout/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' > "$work/layout/oci-layout"
export ATOMIC_OSTREE_CHECKOUT_PATH=$PWD/$work/c
"$program" pull "oci:$PWD/$work/layout" >/dev/null 2>&1 &
pid=$!
ours=0 theirs=0
while [ -d /proc/$pid ]; do
	now=$(awk '/VmHWM/{print $2}' /proc/$pid/status 2>/dev/null || true)
	[ "${now:-0}" -gt "$ours" ] && ours=$now
	for child in $(cat /proc/$pid/task/*/children 2>/dev/null || true); do
		now=$(awk '/VmHWM/{print $2}' "/proc/$child/status" 2>/dev/null || true)
		[ "${now:-0}" -gt "$theirs" ] && theirs=$now
	done
	sleep 0.05
done
wait $pid
echo "peak memory while pulling one file of 1 GB: atomic-rs $((ours / 1024)) MB, skopeo beside it $((theirs / 1024)) MB"
