#!/bin/bash
# Runs a command and fails if it leaves anything behind: a mount, a loop device, a process, a temporary file
# or a run directory.
#
#   tests/leftovers.sh cargo test --workspace
#
# What belongs to the command is known by two marks, so that other work on the machine is never blamed: its
# temporary files stand in a TMPDIR of its own (mounts and loop devices are found by that path), and its
# processes carry a variable in their environment. The exit status is the command's own, or 1 for leftovers.
set -u

# Not /tmp: that may be a tmpfs, where direct I/O is not possible on older kernels. Short: socket paths end at 107 bytes.
TMPDIR=$(mktemp -d /var/tmp/thinsnap-XXXXXX)
# Tests that play another user must reach what they make in it.
chmod 0711 "$TMPDIR"
THINSNAP_TEST_RUN=$(basename "$TMPDIR")
export TMPDIR THINSNAP_TEST_RUN
trap 'rmdir "$TMPDIR" 2>/dev/null' EXIT

run_dirs() {
    find /run/thinsnap -mindepth 1 -maxdepth 1 -type d 2>/dev/null | sort
}
run_dirs_before=$(run_dirs)

"$@"
status=$?

# This shell itself is not found: its environment was set before the mark was.
processes() {
    for process in /proc/[0-9]*; do
        tr '\0' '\n' <"$process/environ" 2>/dev/null | grep -qx "THINSNAP_TEST_RUN=$THINSNAP_TEST_RUN" || continue
        printf 'process %s: %s\n' "${process#/proc/}" "$(tr '\0' ' ' <"$process/cmdline")"
    done 2>/dev/null
}

leftovers() {
    awk -v dir="$TMPDIR" 'index($5, dir) == 1 { print "mount " $5 }' /proc/self/mountinfo
    losetup --noheadings --output NAME,BACK-FILE | awk -v dir="$TMPDIR" 'index($2, dir) == 1 { print "loop device " $0 }'
    processes
    find "$TMPDIR" -mindepth 1 -maxdepth 1 -printf 'file %p\n'
    # A run directory that is new and that no process names: a living one may be other work's.
    comm -13 <(printf '%s\n' "$run_dirs_before") <(run_dirs) | while read -r dir; do
        grep -qsaF "$dir" /proc/[0-9]*/cmdline || printf 'run directory %s\n' "$dir"
    done
}

# A process that was told to end may need a moment: look again before blaming it.
for attempt in 1 2 3 4 5 6; do
    found=$(leftovers)
    [ -n "$found" ] || break
    [ "$attempt" = 6 ] || sleep 0.5
done
if [ -n "$found" ]; then
    printf 'leftovers: the command left behind:\n%s\n' "$found" >&2
    # Files go; never through a mount that is still there.
    grep -q " $TMPDIR" /proc/self/mountinfo || rm -rf "$TMPDIR"
    exit 1
fi
echo "leftovers: none (no mount, loop device, process, temporary file or run directory)"
exit $status
