#!/bin/sh
# Installs those of the named Debian packages that are missing; with nothing missing it needs no network and no root.
#
#   tests/install-missing.sh PACKAGE...
set -eu

# Sets `missing` to those of the packages that are not installed; status 1: none.
any_missing() {
    missing=
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
    done
    [ -n "$missing" ]
}

apt_get() { apt-get -qq -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@"; }
install() {
    echo "installing$missing"
    # The names are split into words on purpose.
    # shellcheck disable=SC2086
    apt_get install -y --no-install-recommends $missing >/dev/null
}

any_missing "$@" || exit 0
export DEBIAN_FRONTEND=noninteractive
apt_get update
install
# One of another suite, which was here already, may have had to go for them: it comes back in the version that fits.
any_missing "$@" || exit 0
install
if any_missing "$@"; then
    echo "cannot be installed together:$missing" >&2
    exit 1
fi
