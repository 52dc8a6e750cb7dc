#!/usr/bin/env bash
# Runs the groups of end-to-end tests repeatedly while every CPU runs a busy loop, and prints which tests failed, how
# often and in which runs. The tests that run alone are left out: they measure time, which the busy loops would distort.
# Needs an installed Weft: use `make soak`.
#
#   e2e/soak.sh [RUNS]      20 by default
#
# The output of each run is in target/soak, the evidence of failed tests in target/e2e.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs=${1:-20}
loops=$(nproc)
# A run takes less than half an hour on two idle cores.
limit=2h
logs=target/soak
started=()
finished=0
declare -A failed=() count=()

finish() {
  kill "${started[@]}" 2>/dev/null || true
  echo
  echo "$finished of $runs runs with $loops busy loops; ${#failed[@]} tests failed"
  for name in "${!failed[@]}"; do
    printf '  %-80s %3d of %d, in runs%s\n' "$name" "${count[$name]}" "$finished" "${failed[$name]}"
  done | sort
}

# Prints the names of failed tests from the output of `cargo test`, and a line if a test program printed no result.
failures() {
  awk '
    /^     Running / { running++ }
    /^failures:$/ { split("", names); inside = 1; next }
    inside && /^    [a-z_0-9:]+$/ { names[$1] = 1 }
    /^test result:/ { for (name in names) print name; split("", names); inside = 0; results++ }
    END { if (results == 0 || results < running) print "(the tests did not run to the end)" }
  ' "$1"
}

passed() {
  awk '/^test result:/ { for (at = 1; at < NF; at++) if ($(at + 1) == "passed;") sum += $at } END { print sum + 0 }' "$1"
}

mkdir -p "$logs"
# Compile before the busy loops start.
cargo test --quiet --profile ci --locked --package weft-e2e --no-run
trap finish EXIT
trap 'exit 130' INT TERM
for ((at = 0; at < loops; at++)); do
  while :; do :; done &
  started+=($!)
done
for ((run = 1; run <= runs; run++)); do
  log=$logs/run-$run.log
  begun=$SECONDS
  # All tests run, also after a failure.
  timeout --kill-after=60 "$limit" make --no-print-directory --ignore-errors e2e-groups \
    profile='--profile ci --no-fail-fast' >"$log" 2>&1 &
  # In the background, so that signals are handled at once.
  started[loops]=$!
  wait "${started[loops]}" || true
  finished=$run
  while read -r name; do
    count[$name]=$((${count[$name]:-0} + 1))
    failed[$name]+=" $run"
  done < <(failures "$log")
  echo "run $run: $(failures "$log" | wc -l) failed, $(passed "$log") passed in $((SECONDS - begun)) s ($log)"
done
[[ ${#failed[@]} -eq 0 ]]
