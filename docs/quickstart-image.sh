#!/bin/bash
# Makes a real image, as other programs make images: a Debian root file system, a layer with a 1 GiB file, a small layer.
#
#   docs/quickstart-image.sh DEST    →  DEST is an OCI layout with the image `debian:demo`
#
# debootstrap fetches Debian's packages once, umoci writes the layers. A DEST that is there is left as it is.
set -euo pipefail

dest=$1
[ ! -e "$dest/index.json" ] || exit 0

step() { printf '  %-62s' "$1"; step_start=$EPOCHREALTIME; }
stepped() { awk -v a="$step_start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%6.1f s\n", b - a }'; }

mkdir -p "$(dirname "$dest")"
work=$(mktemp -d "$dest.XXXXXX")
trap 'umount "$work/root/proc" "$work/root/sys" 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
# A mirror that apt uses here is one that debootstrap can use too.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | grep -m 1 '/debian/\?$')

step "debootstrap: Debian 12, minbase (downloaded once)"
if ! debootstrap --variant=minbase bookworm "$work/root" "$mirror" >"$work/debootstrap.log" 2>&1; then
    printf 'failed\n\ndebootstrap could not make a root file system from %s:\n' "$mirror" >&2
    tail -n 5 "$work/debootstrap.log" >&2
    exit 1
fi
rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
stepped

step "umoci: layer 1, the root file system"
umoci init --layout "$work/layout"
umoci new --image "$work/layout:demo"
umoci unpack --image "$work/layout:demo" "$work/bundle" >/dev/null
rmdir "$work/bundle/rootfs"
mv "$work/root" "$work/bundle/rootfs"
umoci repack --image "$work/layout:demo" --refresh-bundle "$work/bundle" >/dev/null
stepped

step "umoci: layer 2, a small change and a removed file"
mkdir -p "$work/bundle/rootfs/srv"
echo "hello from the second layer" >"$work/bundle/rootfs/srv/hello"
rm -f "$work/bundle/rootfs/etc/motd" "$work/bundle/rootfs/etc/issue.net"
umoci repack --image "$work/layout:demo" --refresh-bundle "$work/bundle" >/dev/null
stepped

step "umoci: layer 3, a data file of 1 GiB that does not compress"
head -c 1G /dev/urandom >"$work/bundle/rootfs/srv/data.bin"
umoci repack --image "$work/layout:demo" "$work/bundle" >/dev/null
umoci gc --layout "$work/layout" >/dev/null
stepped

mv "$work/layout" "$dest"
