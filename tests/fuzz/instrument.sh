#!/bin/bash
# Compiles the project's own crates with libFuzzer's counters: cargo's RUSTC_WORKSPACE_WRAPPER.
# The flags are cargo-fuzz's for a stable compiler. Dependencies are left as they are, so they are not built anew;
# build scripts are programs of their own, which are not fuzzed.
case " $* " in
    *" build_script_build "*) exec "$@" ;;
esac
exec "$@" \
    -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
