#!/bin/sh
# Unpacks packages of any Debian suite into a folder, beside the system: nothing is installed and the
# system's package sources are not touched.
#
#   tests/fetch-deb.sh SUITE PACKAGE... DEST
#   tests/fetch-deb.sh trixie thin-provisioning-tools /var/cache/thinsnap-tests/thin-tools-1.1
#   tests/fetch-deb.sh sid containerd runc            /var/cache/thinsnap-tests/containerd-2
#   tests/fetch-deb.sh trixie depends-of:linux-image-amd64 /var/cache/thinsnap-tests/kernel-6.12
#   → DEST/usr/bin/…, DEST/usr/sbin/…, run by path
#
# - Only the packages named are unpacked, no dependencies: name the libraries too where ldd misses one.
#   depends-of:PACKAGE is what PACKAGE, an empty one, stands for: the first package that it depends on.
# - A DEST that holds exactly these packages of this suite is left as it is, without the network: so a
#   second run is quick and works offline. Remove DEST to fetch anew.
# - DEST appears whole or not at all (unpacked beside it, then renamed); callers may run at once.
# - The mirror and its keys are those of the machine's own Debian sources; the package lists of each suite
#   live in $THINSNAP_CACHE (default /var/cache/thinsnap-tests)/apt/SUITE.
set -eu

die() { echo "fetch-deb: $*" >&2; exit 1; }

[ $# -ge 3 ] || die "usage: tests/fetch-deb.sh SUITE PACKAGE... DEST"
suite=$1
shift
packages=
while [ $# -gt 1 ]; do
    packages="$packages $1"
    shift
done
dest=$1
cache=${THINSNAP_CACHE:-/var/cache/thinsnap-tests}
state=$cache/apt/$suite
stamp="$suite:$packages"

holds_them() { [ "$(cat "$dest/.fetched" 2>/dev/null)" = "$stamp" ]; }
holds_them && exit 0

mkdir -p "$state/lists/partial" "$state/archives/partial" "$(dirname "$dest")"
exec 9>"$state/lock"
flock 9
holds_them && exit 0

# The mirror: the first of the machine's own sources with Debian's main archive (not the security one).
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | grep -m 1 '/debian/\?$') ||
    die "this machine's apt sources name no Debian mirror"
echo "deb $mirror $suite main" >"$state/sources.list"

# private_apt get|cache ARG...
private_apt() {
    command=apt-$1
    shift
    $command -q -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=- -o Dir::Etc::preferencesparts=- \
        -o Dir::State::lists="$state/lists" -o Dir::Cache="$state" -o APT::Sandbox::User=root -o Acquire::Retries=3 \
        -o Acquire::Languages=none "$@"
}

work=$(mktemp -d "$dest.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
private_apt get update >"$work/apt.log" 2>&1 || die "apt-get update of $suite: $(tail -n 3 "$work/apt.log")"
mkdir "$work/debs" "$work/root"
for package in $packages; do
    case $package in depends-of:*)
        empty=${package#depends-of:}
        package=$(private_apt cache show --no-all-versions "$empty" 2>"$work/apt.log" | sed -n 's/^Depends: \([^ ,(|]*\).*/\1/p')
        [ -n "$package" ] || die "apt-cache show $empty of $suite names nothing that it depends on: $(tail -n 3 "$work/apt.log")"
        ;;
    esac
    (cd "$work/debs" && private_apt get download "$package") >"$work/apt.log" 2>&1 ||
        die "apt-get download $package from $suite: $(tail -n 3 "$work/apt.log")"
done
for deb in "$work"/debs/*.deb; do
    dpkg-deb -x "$deb" "$work/root"
    echo "fetch-deb: $suite $(basename "$deb")" >&2
done
echo "$stamp" >"$work/root/.fetched"
rm -rf "$dest"
mv "$work/root" "$dest"
