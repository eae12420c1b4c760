#!/bin/bash
# Fuzzes: replays seeds, old findings and the grown corpus of each target, then tries new inputs for SECONDS.
#
#   tests/fuzz/run.sh SECONDS [TARGET...]
#
# Works with the stable compiler and without cargo-fuzz, whose layout and flags it uses. Corpora grow in
# target/fuzz/corpus; a finding ends the run with status 1 and stands in target/fuzz/findings: make a regression of
# it by copying it to tests/fuzz/regressions/TARGET.
set -eu
cd "$(dirname "$0")/../.."
seconds=$1
shift
cargo=${CARGO:-cargo}
top=${CARGO_TARGET_DIR:-target}/fuzz

# Only the project's own crates are compiled anew, with counters; dependencies are those of the tests.
RUSTC_WORKSPACE_WRAPPER=$PWD/tests/fuzz/instrument.sh "$cargo" build --quiet -p thinsnap-fuzz --features libfuzzer \
    --bins --config 'profile.dev.package.thinsnap.opt-level=1'
programs=${CARGO_TARGET_DIR:-target}/debug

targets=$*
[ -n "$targets" ] || targets=$(cd tests/fuzz/fuzz_targets && basename -s .rs -- *.rs)
"$cargo" run --quiet -p thinsnap-fuzz --example seeds -- "$top/seeds"

# In memory: targets write and remove small files all the time.
memory=/dev/shm
[ -d "$memory" ] || memory=${TMPDIR:-/tmp}
TMPDIR=$(mktemp -d "$memory/thinsnap-fuzz-XXXXXX")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

fuzz() {
    target=$1
    mkdir -p "$top/corpus/$target" "$top/findings/$target"
    known=
    for dir in "tests/fuzz/seeds/$target" "tests/fuzz/regressions/$target" "$top/seeds/$target"; do
        [ ! -d "$dir" ] || known="$known $dir"
    done
    # Memory beyond 4 GiB of addresses is refused, so that a length that is believed shows itself.
    # shellcheck disable=SC2086 # one word a folder
    if (ulimit -v $((4 << 20)) && RUST_BACKTRACE=1 exec "$programs/fuzz_$target" -max_total_time="$seconds" \
        -timeout=20 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
        -artifact_prefix="$top/findings/$target/" "$top/corpus/$target" $known) >"$top/$target.log" 2>&1; then
        printf 'fuzz %-18s %s\n' "$target" "$(awk '/stat::number_of_executed_units/ { runs = $2 }
            / cov: / { for (i = 1; i < NF; i++) if ($i == "cov:") cov = $(i + 1) }
            END { print runs " inputs, " cov " places reached, no finding" }' "$top/$target.log")"
    else
        printf 'fuzz %-18s FINDING\n' "$target"
        tail -n 60 "$top/$target.log"
        return 1
    fi
}
export -f fuzz
export programs top seconds
# shellcheck disable=SC2086 # one word a target
printf '%s\n' $targets | xargs -P "$(nproc)" -I{} bash -c 'fuzz {}'
