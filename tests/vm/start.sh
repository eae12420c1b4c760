# Process 1 of the guest: finishes the machine, runs the command, reports its status. See guest.py for the other end.
b=/run/vm/busybox
. /run/vm/settings
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do $b ln -s "/proc/self/${link#*:}" "/dev/${link%%:*}"; done
$b mkdir -p /dev/pts /dev/shm /dev/mapper
$b mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
$b mount -t tmpfs -o mode=1777 shm /dev/shm
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
$b mount -t debugfs debugfs /sys/kernel/debug
$b hostname thinsnap-vm
$b ip link set lo up
ulimit -n 1048576
ulimit -l unlimited
ulimit -c 0
# The kernel asks for modules by itself; the host need not have kmod.
for tool in modprobe insmod rmmod lsmod; do
    [ -x /usr/sbin/$tool ] || [ -x /sbin/$tool ] || $b cp $b /usr/sbin/$tool
done
if [ $MACHINE = user-mode ]; then
    out=/dev/ttyS0 err=/dev/ttyS1 control=/dev/ttyS2
    # A line keeps its settings as long as somebody has it open.
    exec 5<>$out 6<>$err 7<>$control
    for port in $out $err $control; do $b stty -F $port raw -echo -onlcr -opost; done
fi
for port in /sys/class/virtio-ports/vport*; do
    [ -e "$port/name" ] || continue
    case $($b cat "$port/name") in
    out) out=/dev/${port##*/} ;;
    err) err=/dev/${port##*/} ;;
    control) control=/dev/${port##*/} ;;
    esac
done

# Any program may open /dev/stdout again, a port can be opened once only: so there is a pipe between.
$b mkfifo /run/vm/out /run/vm/err
exec 8<>"$control"
$b cat /run/vm/out >"$out" 8>&- &
relay_out=$!
$b cat /run/vm/err >"$err" 8>&- &
relay_err=$!
# The host asks what everybody is doing before it gives up.
while read -r word <&8; do
    [ "$word" = dump ] || continue
    for key in 9 w l m; do echo $key >/proc/sysrq-trigger; done
    $b ps -o pid,ppid,stat,args >/dev/console
    echo dumped >&8
done </dev/null >/dev/null 2>&1 &

echo "start $($b cut -d ' ' -f 1 /proc/uptime)" >&8
/bin/sh /run/vm/command </dev/null >/run/vm/out 2>/run/vm/err 8>&-
echo "status $?" >&8

# wait_for SECONDS PROCESS...: until they have ended, but not for ever: what the command left running may hold the
# pipes, and a suspended or full device blocks sync.
wait_for() {
    rounds=$(($1 * 20))
    shift
    while [ $rounds -gt 0 ]; do
        living=
        for process in "$@"; do ! kill -0 "$process" 2>/dev/null || living=1; done
        [ -n "$living" ] || return 0
        $b usleep 50000
        rounds=$((rounds - 1))
    done
    return 1
}
wait_for 3 $relay_out $relay_err
$b sync &
wait_for 10 $! || echo unsynced >&8
echo end >&8
while :; do $b sleep 60; done
