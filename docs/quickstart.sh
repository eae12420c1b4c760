#!/bin/bash
# The story of thinsnap in a few minutes, on this machine: a real image, containers on it, and the same small change
# of a large file next to overlayfs. Run it as `make quickstart`.
#
#   docs/quickstart.sh THINSNAP        THINSNAP is the program; QUICKSTART_DIR (default /var/tmp) has 6 GiB to spare
#
# Everything stands in one temporary directory and is gone at the end, also after a failure or Ctrl-C. Only the
# image is kept, in /var/cache/thinsnap-tests/quickstart, so that a second run need not download it.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
thinsnap=$(realpath "$1")
cache=${THINSNAP_CACHE:-/var/cache/thinsnap-tests}/quickstart
[ "$(id -u)" = 0 ] || { echo "quickstart: mounts and loop devices need root: run it with sudo" >&2; exit 1; }

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
heading() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
say() { printf '  %s\n' "$@"; }
indent() { sed 's/^/  /'; }
command_line() { printf '  %s$ thinsnap %s%s\n' "$bold" "$*" "$plain"; }

work=$(mktemp -d "${QUICKSTART_DIR:-/var/tmp}/thinsnap-quickstart-XXXXXX")
service='' host='' run_dir=''
cleanup() {
    status=$?
    trap - EXIT
    trap '' INT TERM
    # The deepest mounts first; what is not mounted says nothing.
    awk -v dir="$work/at" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r -n 1 umount
    if [ -n "$service" ]; then
        kill "$service" 2>/dev/null || true
        wait "$service" 2>/dev/null || true
    fi
    # The pool-host outlives a service that had devices in use; they are not in use any more.
    if [ -n "$host" ] && kill "$host" 2>/dev/null; then
        for _ in $(seq 100); do
            [ -e "/proc/$host" ] || break
            sleep 0.1
        done
    fi
    if [ "$status" != 0 ]; then
        [ ! -s "$work/serve.log" ] || { echo; echo "The service's last words:"; tail -n 8 "$work/serve.log" | indent; } >&2
        printf '\nquickstart: stopped with status %s; cleaned up.\n' "$status" >&2
    fi
    if grep -q -e " $work" ${run_dir:+-e " $run_dir"} /proc/self/mountinfo; then
        echo "quickstart: something is still mounted below $work: left as it is" >&2
        exit 1
    fi
    rm -rf "$work" ${run_dir:+"$run_dir"}
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

socket=$work/thinsnap.sock
ts() { "$thinsnap" --socket "$socket" "$@"; }
now() { echo "$EPOCHREALTIME"; }
took() { awk -v a="$1" -v b="$(now)" 'BEGIN { d = b - a; if (d < 1) printf "%.1f ms", d * 1000; else printf "%.1f s", d }'; }
size() { awk -v n="$1" 'BEGIN { split("B KiB MiB GiB", u); i = 1; while (n >= 1024 && i < 4) { n /= 1024; i++ } printf (i == 1 ? "%d %s" : "%.1f %s"), n, u[i] }'; }
pool_used() { ts pool status --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["data"]["used_bytes"])'; }

# Writes 4 KiB into the middle of a file, as a program in a container would: open, write, fsync. Prints the seconds.
change() {
    python3 - "$1" <<'PYTHON'
import os, sys, time
block = os.urandom(4096)
start = time.perf_counter()
file = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(file, block, os.fstat(file).st_size // 2)
os.fsync(file)
print(time.perf_counter() - start)
os.close(file)
PYTHON
}

heading "1. A real image, made by other programs than ours"
"$here/quickstart-image.sh" "$cache/image"
say "an OCI image of three layers: Debian 12, a small change, a data file of 1 GiB" \
    "$(du -sh "$cache/image" | cut -f 1) packed, in $cache/image"

heading "2. A pool and its service: one command, no device-mapper, no configuration file"
command_line serve --root "$work/root" --socket "$socket" --size 20G
# In a session of its own: Ctrl-C is for this script, which unmounts first.
setsid "$thinsnap" serve --root "$work/root" --socket "$socket" --size 20G >"$work/serve.log" 2>&1 &
service=$!
for _ in $(seq 200); do
    ts pool status >/dev/null 2>&1 && break
    kill -0 "$service" 2>/dev/null || { wait "$service" || exit 1; }
    sleep 0.05
done
host=$(pgrep -f "pool-host .*$work")
run_dir=$(tr '\0' '\n' <"/proc/$host/cmdline" | grep -A 1 -x -e --run-dir | tail -n 1)
ts pool status | indent

heading "3. The image becomes a chain of thin snapshots, one for each layer"
command_line image import "$cache/image" --name debian:demo
start=$(now)
ts image import "$cache/image" --name debian:demo >"$work/import.out"
say "unpacked in $(took "$start"):"
ts snapshot tree | indent

heading "4. Ten containers of it"
before=$(pool_used)
start=$(now)
for n in 1 2 3 4 5 6 7 8 9 10; do
    ts container create "web-$n" --image debian:demo >/dev/null
done
say "made in $(took "$start"), for $(size $(($(pool_used) - before))) of pool space:" \
    "each has all of the image, the 1 GiB file included, and shares it"
mkdir -p "$work/at/web-1" "$work/at/web-2"
start=$(now)
ts container mount web-1 "$work/at/web-1" >/dev/null
say "one of them mounted in $(took "$start"); what runs in it: Debian $(chroot "$work/at/web-1" cat /etc/debian_version)"
ts container mount web-2 "$work/at/web-2" >/dev/null

heading "5. A program changes 4 KiB of the 1 GiB file and calls fsync"
mkdir -p "$work"/overlay/{lower/srv,upper,work} "$work/at/overlay"
cp "$work/at/web-2/srv/data.bin" "$work/overlay/lower/srv/data.bin"
mount -t overlay -o "lowerdir=$work/overlay/lower,upperdir=$work/overlay/upper,workdir=$work/overlay/work" overlay "$work/at/overlay"

cold() { sync; echo 3 >/proc/sys/vm/drop_caches; }
cold
overlay_seconds=$(change "$work/at/overlay/srv/data.bin")
sync
overlay_bytes=$(du -s --block-size=1 "$work/overlay/upper" | cut -f 1)
umount "$work/at/overlay"
rm -rf "$work/overlay"

cold
before=$(pool_used)
our_seconds=$(change "$work/at/web-1/srv/data.bin")
sync
our_bytes=$(($(pool_used) - before))

kind=$(findmnt -n -o FSTYPE --target "$work")
awk -v os="$overlay_seconds" -v ts="$our_seconds" -v ob="$(size "$overlay_bytes")" -v tb="$(size "$our_bytes")" -v fs="$kind" 'BEGIN {
    printf "  %-34s %14s %18s\n", "", "time", "space it costs"
    printf "  %-34s %11.1f ms %18s\n", "overlayfs, layers on " fs, os * 1000, ob
    printf "  %-34s %11.1f ms %18s\n", "thinsnap", ts * 1000, tb
    printf "\n  %.0f times sooner. overlayfs copied the file; thinsnap copied the block that was changed.\n", os / ts
}'
if cmp -s "$work/at/web-1/srv/data.bin" "$work/at/web-2/srv/data.bin"; then
    say "the change is not to be seen in its own container: this is a defect" >&2
    exit 1
fi
say "The other containers still see the file as the image has it."

heading "6. What was made of what"
command_line snapshot tree
ts snapshot tree | indent

heading "7. What the pool holds"
command_line pool status
ts pool status | indent

heading "8. For containerd: what its configuration needs, to paste"
command_line doctor --containerd-config
"$thinsnap" doctor --containerd-config | indent
say "" "Start the service on that socket (make install brings a systemd unit):" \
    "  thinsnap serve --root /var/lib/thinsnap --size 100G" \
    "and use it:" \
    "  ctr images pull --snapshotter thinsnap docker.io/library/debian:12" \
    "  ctr run --rm --snapshotter thinsnap docker.io/library/debian:12 demo true"

heading "Done"
say "everything made here is being removed: containers, pool, service, mounts"
