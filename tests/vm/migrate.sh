# A real containerd works on its own devmapper snapshotter, is moved to thinsnap, and goes on (`make test-migrate`).
# Words: a suite of Debian whose containerd is in the cache, and the thinsnap program. Runs in the guest, in /scratch.
set -eu
suite=$1 thinsnap=$2
export PATH="$THINSNAP_CACHE/containerd-$suite/usr/bin:$THINSNAP_CACHE/runc-bookworm/usr/sbin:/usr/sbin:/sbin:$PATH"
cd /scratch
ctr="ctr --address /scratch/c/sock"
mine="$thinsnap --root /scratch/thinsnap"
move="$mine migrate --from-devmapper /scratch/c/dm --pool-name pool"
die() { echo "migrate.sh: $*"; tail -n 20 c/log thinsnap.log 2>/dev/null; exit 1; }
# fails STATUS COMMAND...: ends with this status.
fails() { wanted=$1 status=0; shift; "$@" || status=$?; [ $status = "$wanted" ] || die "$*: status $status, not $wanted"; }
equal() { [ "$1" = "$2" ] || die "$3: \`$1\` is not \`$2\`"; }
wait_for() { rounds=0; until [ -S "$1" ]; do rounds=$((rounds + 1)); [ $rounds -lt 300 ] || die "no $1"; sleep 0.1; done; }
containerd_up() { rm -f c/sock; containerd --config c/config.toml >c/log 2>&1 & containerd=$!; wait_for c/sock; }
containerd_down() { kill $containerd; wait $containerd || :; }
local=
case $suite in sid) local=--local ;; esac

truncate -s 2G data
truncate -s 16M meta
data=$(losetup --find --show data) metadata=$(losetup --find --show meta)
dmsetup create pool --table "0 4194304 thin-pool $metadata $data 128 0"
mkdir -p c
common='version = 2
root = "/scratch/c/root"
state = "/scratch/c/state"
[grpc]
address = "/scratch/c/sock"'
disabled='"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"'
echo "disabled_plugins = [$disabled]
$common
[plugins.'io.containerd.snapshotter.v1.devmapper']
root_path = '/scratch/c/dm'
pool_name = 'pool'
base_image_size = '512MB'
async_remove = true" >c/config.toml

mkdir -p programs/bin
cp "$(command -v busybox)" programs/bin/
for name in sh cat echo sleep md5sum ls; do ln -s busybox programs/bin/$name; done
umoci init --layout oci
umoci new --image oci:t
for layer in one two; do
    umoci unpack --image oci:t unpacked >/dev/null
    cp -a programs/. unpacked/rootfs/
    head -c 3000000 /dev/urandom >unpacked/rootfs/$layer
    umoci repack --image oci:t unpacked >/dev/null
    cp unpacked/rootfs/$layer .
    rm -r unpacked
done
skopeo copy oci:oci:t oci-archive:image.tar:t >/dev/null
image=docker.io/library/story:t

containerd_up
$ctr images import $local --snapshotter devmapper --base-name docker.io/library/story image.tar
$ctr run --rm --snapshotter devmapper $image gone /bin/echo ran
$ctr run --detach --snapshotter devmapper $image kept /bin/sh -c 'echo hello >/written; md5sum /one /two >/sums; exec sleep 100000'
rounds=0
until $ctr tasks exec --exec-id "look$rounds" kept /bin/cat /sums | grep -q two; do rounds=$((rounds + 1)); [ $rounds -lt 50 ] || die "no /sums"; done
$ctr tasks rm --force kept
sums=$(md5sum one two | sed 's, \([a-z]*\)$, /\1,')
fails 5 $move --dry-run
containerd_down

# A mounted device; a draft, which nobody serves and which leaves containerd what it was.
mkdir -p at
mount "$(ls /dev/mapper/pool-snap-* | tail -n 1)" at
fails 5 $move --take-over
umount at
before=$(md5sum <meta)
$move --dry-run
[ ! -e thinsnap ] || die "a dry run made a directory"
$move --apply
$move --apply >/dev/null
sync
equal "$(md5sum <meta)" "$before" "the pool's metadata after --apply"
fails 1 $mine serve --socket /scratch/thinsnap.sock
containerd_up
equal "$($ctr run --rm --snapshotter devmapper $image back /bin/sh -c 'md5sum /one /two')" "$sums" "back on devmapper"
fails 5 $move --apply
containerd_down

$move --take-over
$move --take-over >/dev/null
equal "$(dmsetup ls)$(losetup --all)" "No devices found" "what the kernel still has"
thin_check --quiet meta || die "thin_check"
echo '[snapshotter.thinsnap]
size = "512M"' >thinsnap.toml
$mine --config thinsnap.toml serve --socket /scratch/thinsnap.sock >thinsnap.log 2>&1 &
service=$!
wait_for thinsnap.sock
$thinsnap --socket /scratch/thinsnap.sock snapshot tree --space thinsnap
echo "disabled_plugins = [$disabled, 'io.containerd.snapshotter.v1.devmapper']
$common
[proxy_plugins.thinsnap]
type = 'snapshot'
address = '/scratch/thinsnap.sock'" >c/config.toml
containerd_up
for again in 1 2; do $thinsnap --socket /scratch/thinsnap.sock migrate --announce /scratch/c/sock; done
$ctr snapshots --snapshotter thinsnap tree
# The layers are there: nothing is unpacked again.
used=$($thinsnap --socket /scratch/thinsnap.sock snapshot ls --space thinsnap | grep -c committed)
equal "$($ctr run --rm --snapshotter thinsnap $image new /bin/sh -c 'md5sum /one /two; ls /written 2>/dev/null || :')" "$sums" "a new container"
equal "$($thinsnap --socket /scratch/thinsnap.sock snapshot ls --space thinsnap | grep -c committed)" "$used" "committed snapshots"
# The container's own content, in containerd's hands and through a garbage collection.
$ctr content prune references 2>/dev/null || :
sh -ec "$($ctr snapshots --snapshotter thinsnap mounts /scratch/at kept)"
equal "$(cat at/written at/sums)" "hello
$sums" "what the container wrote"
umount at
# A new container gets it, and the key that it had is free.
name=$($thinsnap --socket /scratch/thinsnap.sock snapshot ls --space thinsnap | grep -o 'default/[0-9]*/kept')
take="containerd.io/snapshot/thinsnap.take=$name"
equal "$($ctr run --rm --snapshotter thinsnap --snapshotter-label $take $image revived /bin/sh -c 'cat /written /sums')" "hello
$sums" "what a new container finds"
$ctr snapshots --snapshotter thinsnap rm kept
containerd_down
kill $service
wait $service || :
mine_loops=$(losetup --all)
equal "$mine_loops" "" "loop devices at the end"
thin_check --quiet meta || die "thin_check at the end"
echo "moved: $suite"
