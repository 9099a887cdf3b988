#!/bin/sh
# Fuzzes for a long time: each target until it has made so many executions, several targets at a time.
#   tests/fuzz/run.sh BUILD [WORK]
# BUILD is that of the preset asan; with -DCMAKE_CXX_FLAGS_RELEASE="-O1 -g1 -DMINIMAMBA_TEST_FEW_KINDS" it is faster.
# WORK (default: BUILD/fuzz-long) keeps what was found and how far each target is, so that the script can be interrupted
# and goes on. 10^7 executions of the formats that strangers' files have, 10^6 of the others, in turns;
# MINIMAMBA_FUZZ_DIVISOR=1000 makes fewer. Exit status 1 if a target has found something: WORK/<target> has a file
# crash-*, oom-* or timeout-*, which the target reads as its argument, and its other executions are left out.
set -eu
if [ "$1" = --one ]; then  # a part of the executions: a target, its folder, how many it is to make, and its first corpus
  target=$2 work=$3 wanted=$4 corpus=$5
  mkdir -p "$work/corpus"
  cd "$work"
  made=$(cat executions 2>/dev/null || echo 0)
  runs=$((wanted - made))
  [ "$runs" -lt 50000 ] || runs=50000
  # Weights by the frequency of features (entropic) take up to 95 % of the time of a target with a large corpus, stacks
  # of allocations a tenth. A process that others hold up is not a slow one.
  export ASAN_OPTIONS=malloc_context_size=2
  "$target" -runs="$runs" -seed=$((made + 1)) -entropic=0 -rss_limit_mb=2048 -timeout=600 -report_slow_units=600 \
    -verbosity=0 corpus ${corpus:+"$corpus"} >log 2>&1 ||
    { cp log found; echo "$(basename "$target"): found something after $made executions: $work/found"; exit 1; }
  made=$((made + runs))
  echo "$made" >executions
  [ "$made" -lt "$wanted" ] || echo "$(basename "$target"): $made executions"
  exit 0
fi
build=$(cd "$1" && pwd) source=$(cd "$(dirname "$0")" && pwd)
work=${2:-$build/fuzz-long}
left() {  # targets that have executions to make, each with what --one takes
  for target in "$build"/tests/*_fuzz; do
    name=$(basename "$target" _fuzz)
    case $name in
      safetensors | torch_bin | gguf | config | index) wanted=10000000 ;;
      *) wanted=1000000 ;;
    esac
    wanted=$((wanted / ${MINIMAMBA_FUZZ_DIVISOR:-1}))
    [ "$(cat "$work/$name/executions" 2>/dev/null || echo 0)" -lt "$wanted" ] || continue
    [ ! -e "$work/$name/found" ] || continue
    corpus=$source/corpus/$name
    [ -d "$corpus" ] || corpus=
    printf '%s\0%s\0%s\0%s\0' "$target" "$work/$name" "$wanted" "$corpus"
  done
}
while [ "$(left | wc -c)" -gt 0 ]; do
  left | xargs -0 -n 4 -P "$(nproc)" sh "$0" --one || true
done
for found in "$work"/*/found; do
  [ ! -e "$found" ] || { echo "found something: $found"; exit 1; }
done
