#!/bin/busybox sh
# The first program of the guest, in its initramfs: puts the host's root together with a layer for what the guest
# writes, and goes on there with start.sh. The host's root is shared read-only: nothing here can change it.
b=/bin/busybox
die() { echo "guest: $*" >/dev/console; $b sleep 1; $b poweroff -n -f; }
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
. /vm/settings
while read -r module; do $b insmod "/modules/$module" || die "insmod $module"; done </modules/list

# A link for each disk, by the name that the caller gave it; disks appear in their own time and order. Those of a kernel
# that is a program are there, in the order of their names.
$b mkdir /dev/disk-by-name
rounds=0
letters=abcdefgh
for name in $DISKS; do
    if [ $MACHINE = user-mode ]; then
        $b ln -s /dev/ubd${letters%"${letters#?}"} /dev/disk-by-name/$name
        letters=${letters#?}
    fi
    until [ -e /dev/disk-by-name/$name ]; do
        for disk in /sys/block/vd*; do
            [ "$($b cat $disk/serial 2>/dev/null)" = $name ] && $b ln -s /dev/${disk##*/} /dev/disk-by-name/$name
        done
        [ $rounds -lt 1200 ] || die "the disk $name does not appear"
        rounds=$((rounds + 1))
        [ -e /dev/disk-by-name/$name ] || $b usleep 50000
    done
done

# share TAG DIRECTORY OPTIONS: a directory of the host.
share() {
    if [ $MACHINE = user-mode ]; then
        eval "directory=\$HOST_$1"
        $b mount -t hostfs -o "${3%%,*}" -o "$directory" none "$2" || die "mount $2"
        return
    fi
    $b mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,access=any,$3" "$1" "$2" || die "mount $2"
}
share root /lower ro,cache=loose
$b mount -t tmpfs -o mode=755,size=75% upper /upper
$b mkdir /upper/files /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work,xino=off,index=off,metacopy=off root /newroot ||
    die "mount the overlay"

for dir in proc sys dev run scratch; do [ -d /newroot/$dir ] || $b mkdir /newroot/$dir; done
$b mount -t ext4 -o noatime /dev/disk-by-name/scratch /newroot/scratch || die "mount /scratch"
$b chmod 1777 /newroot/scratch
$b mount --move /proc /newroot/proc
$b mount --move /sys /newroot/sys
$b mount --move /dev /newroot/dev
$b mount -t tmpfs -o mode=755 run /newroot/run
$b mkdir -p /newroot/run/lock /newroot/run/vm "/newroot/lib/modules/$RELEASE"
$b cp /vm/* /bin/busybox /newroot/run/vm/
share modules "/newroot/lib/modules/$RELEASE" ro,cache=loose
while read -r tag dir; do
    $b mkdir -p "/newroot$dir"
    share "$tag" "/newroot$dir" rw,cache=mmap
done </vm/shares
exec $b switch_root /newroot /run/vm/busybox sh /run/vm/start.sh
die "switch_root"
