#!/usr/bin/env bash
# Fuzzes the proxy's parsers of untrusted input with libFuzzer, guided by coverage, starting from corpus/.
#
#   proxy/fuzz/run.sh [SECONDS [TARGET...]]      seconds per target; defaults: 10 s, all targets
#
# Failing inputs are in target/fuzz/artifacts; to reproduce one, pass the file to target/fuzz/HOST/release/TARGET.
# After a long run, `MERGE=1 proxy/fuzz/run.sh` adds inputs with new coverage to corpus/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

seconds=${1:-10}
targets=("${@:2}")
[[ ${#targets[@]} -gt 0 ]] || targets=(detect path hello head chunks block frames table identity)
host=$(rustc -vV | sed -n 's/^host: //p')
built=../../target/fuzz
found=$built/corpus

# The coverage instrumentation for libFuzzer, which stable Rust supports through LLVM passes.
level="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
flags="--cfg fuzzing $level -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
RUSTFLAGS=$flags cargo build --quiet --locked --release --target "$host" --target-dir "$built"

for target in "${targets[@]}"; do
  program=$built/$host/release/$target
  mkdir -p "$found/$target" "$built/artifacts"
  if [[ ${MERGE:-} ]]; then
    "$program" -set_cover_merge=1 "corpus/$target" "$found/$target" 2>/dev/null
    continue
  fi
  log=$built/$target.log
  if ! "$program" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 -max_len=4096 -print_final_stats=1 \
    -artifact_prefix="$built/artifacts/$target-" "$found/$target" "corpus/$target" >"$log" 2>&1; then
    tail -40 "$log"
    echo "fuzzing $target failed: see above, and $built/artifacts" >&2
    exit 1
  fi
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  covered=$(grep -o 'cov: [0-9]*' "$log" | tail -1)
  echo "fuzzing $target: $runs inputs in $seconds s, ${covered:-cov: 0}"
  # Without instrumentation the coverage stays near zero.
  [[ ${covered#cov: } -gt 20 ]] || { echo "fuzzing $target: no coverage instrumentation" >&2; exit 1; }
done
