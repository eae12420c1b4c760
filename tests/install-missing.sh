#!/bin/sh
# Installs those of the named Debian packages that are missing; with nothing missing it needs no network and no root.
#
#   tests/install-missing.sh PACKAGE...
set -eu

missing=
for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

echo "installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt_get() { apt-get -qq -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@"; }
apt_get update
# The names are split into words on purpose.
# shellcheck disable=SC2086
apt_get install -y --no-install-recommends $missing >/dev/null
