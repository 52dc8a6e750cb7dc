#!/usr/bin/env bash
# Runs the groups of end-to-end tests again and again while every CPU has something else to do, and prints which tests failed,
# how often and in which runs. Not those that run alone: they measure time, and the busy loops would be measured too. Weft is
# installed before: `make soak` sees to it.
#
#   e2e/soak.sh [RUNS]      20 by default
#
# Each run's output is in target/soak; what a test that failed saw last is in target/e2e.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs=${1:-20}
loops=$(nproc)
# A run takes less than half an hour on two cores that nothing else uses.
limit=2h
logs=target/soak
started=()
finished=0
declare -A failed=() count=()

finish() {
  kill "${started[@]}" 2>/dev/null || true
  echo
  echo "$finished of $runs runs beside $loops busy loops; ${#failed[@]} tests failed"
  for name in "${!failed[@]}"; do
    printf '  %-80s %3d of %d, in runs%s\n' "$name" "${count[$name]}" "$finished" "${failed[$name]}"
  done | sort
}

# The names of the tests that failed, from what `cargo test` printed; and whether it printed as many results as it ran programs.
failures() {
  awk '
    /^     Running / { running++ }
    /^failures:$/ { split("", names); inside = 1; next }
    inside && /^    [a-z_0-9:]+$/ { names[$1] = 1 }
    /^test result:/ { for (name in names) print name; split("", names); inside = 0; results++ }
    END { if (results == 0 || results < running) print "(the tests did not run to their end)" }
  ' "$1"
}

passed() {
  awk '/^test result:/ { for (at = 1; at < NF; at++) if ($(at + 1) == "passed;") sum += $at } END { print sum + 0 }' "$1"
}

mkdir -p "$logs"
# Before the loops begin, so that they do not slow down the compiler.
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
  # Every test of a run counts, also after one that failed.
  timeout --kill-after=60 "$limit" make --no-print-directory --ignore-errors e2e-groups \
    profile='--profile ci --no-fail-fast' >"$log" 2>&1 &
  # Not in the foreground, where a signal would have to wait for its end.
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
