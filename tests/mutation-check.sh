#!/bin/bash
# Puts one defect after the other into a test build and looks whether the test that must notice does.
# A defect that nobody notices is a failure. The defects are listed in pool/src/mutation.rs.
set -u
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Test program and test that must notice, by defect.
explorer="explorer a_power_cut_anywhere"
declare -A catches=(
  [SkipDataFlush]=$explorer
  [SkipMetadataFlush]=$explorer
  [SkipLastFlush]=$explorer
  [MetadataBeforeData]=$explorer
  [ReuseInTransaction]=$explorer
  [SkipIntentLog]="intent_log what_was_acknowledged_survives_a_kill"
  [SkipEarlyFile]="intent_log what_was_acknowledged_early_is_there"
  [AnswerFlushEarly]=$explorer
  [KeepCover]="flush_ahead root_a_flush_covers_what"
  [CoverUnderWay]="flush_ahead root_no_flush_is_begun_ahead_while_a_write_is"
  [AnswerWriteEarly]=$explorer
  [KeepSharing]=$explorer
  [ShowOldBytes]=$explorer
  [PunchBeforeCommit]=$explorer
  [DropEpochEarly]="intent_log what_was_acknowledged_survives"
  [SkipFlushAtOpen]="intent_log a_flush_in_the_next_life"
  [GiveDeviceEarly]="intent_log a_device_belongs_to_nobody"
  [RecordBeforePool]=$explorer
  [SkipLimbo]=$explorer
  [ForgetBeforeDelete]=$explorer
  [CopyBeforePool]=$explorer
)
# Enough to meet every sort of operation some dozen times.
export THINSNAP_EXPLORE_STATES=${THINSNAP_EXPLORE_STATES:-15000}

run() { # PROGRAM TEST
  timeout 300 "$CARGO" test --quiet --workspace --features mutate --test "$1" "$2" >"$log" 2>&1
}

programs=$(printf '%s\n' "${catches[@]}" | cut -d' ' -f1 | sort -u | sed 's/^/--test /')
# shellcheck disable=SC2086  # a list of words
"$CARGO" test --quiet --workspace --features mutate --no-run $programs || exit 1

failed=0
while read -r program test; do
  if ! run "$program" "$test" || ! grep -q '1 passed' "$log"; then
    echo "without a defect, $program $test does not pass:"; tail -40 "$log"; failed=1
  fi
done < <(printf '%s\n' "${catches[@]}" | sort -u)
[ $failed = 0 ] || exit 1

printf '| %-20s | %-48s | %s |\n' defect "noticed by" "in its words"
printf '|-%-20s-|-%-48s-|---|\n' -------------------- ------------------------------------------------
for defect in $(grep -oE '^    [A-Z][A-Za-z]+,$' pool/src/mutation.rs | tr -d ' ,'); do
  read -r program test <<<"${catches[$defect]:-}"
  if [ -z "$program" ]; then
    printf '| %-20s | %-48s | |\n' "$defect" "NOBODY LOOKS"; failed=1; continue
  fi
  export THINSNAP_MUTATION=$defect
  run "$program" "$test"; status=$?
  unset THINSNAP_MUTATION
  if [ $status != 0 ] && grep -q 'test result: FAILED' "$log"; then
    words=$(grep -A1 'panicked at [a-z/]*tests/' "$log" | grep -vE 'panicked at|^--' | tail -1 | tr '|' '/' | cut -c1-100)
    printf '| %-20s | %-48s | %s |\n' "$defect" "$program: $test…" "$words"
  else
    printf '| %-20s | %-48s | |\n' "$defect" "NOBODY (status $status)"; failed=1
  fi
done
exit $failed
