#!/bin/sh
# Fuzzes for a long time: each target until it has made so many executions, several targets at a time.
#   tests/fuzz/run.sh BUILD [WORK]
# BUILD is that of the preset asan. WORK (default: BUILD/fuzz-long) keeps what was found and how far each target is, so
# that the script can be interrupted and goes on. 10^7 executions of the formats that strangers' files have, 10^6 of the
# others; MINIMAMBA_FUZZ_DIVISOR=1000 makes fewer. Exit status 1 if a target has found something: WORK/<target> has a file
# crash-*, oom-* or timeout-*, which the target reads as its argument.
set -eu
if [ "$1" = --one ]; then  # a target, its folder, its executions and the corpus of the repository
  target=$2 work=$3 wanted=$4 corpus=$5
  mkdir -p "$work/corpus"
  cd "$work"
  made=$(cat executions 2>/dev/null || echo 0)
  while [ "$made" -lt "$wanted" ]; do
    runs=$((wanted - made))
    [ "$runs" -lt 100000 ] || runs=100000
    "$target" -runs="$runs" -seed=$((made + 1)) -rss_limit_mb=2048 -timeout=20 -verbosity=0 corpus ${corpus:+"$corpus"} >log 2>&1 ||
      { echo "$(basename "$target"): found something after $made executions: $work/log"; exit 1; }
    made=$((made + runs))
    echo "$made" >executions
  done
  echo "$(basename "$target"): $made executions"
  exit 0
fi
build=$(cd "$1" && pwd) source=$(cd "$(dirname "$0")" && pwd)
work=${2:-$build/fuzz-long}
for target in "$build"/tests/*_fuzz; do
  name=$(basename "$target" _fuzz)
  case $name in
    safetensors | torch_bin | gguf | config | index) wanted=10000000 ;;
    *) wanted=1000000 ;;
  esac
  corpus=$source/corpus/$name
  [ -d "$corpus" ] || corpus=
  printf '%s\0%s\0%s\0%s\0' "$target" "$work/$name" $((wanted / ${MINIMAMBA_FUZZ_DIVISOR:-1})) "$corpus"
done | xargs -0 -n 4 -P "$(nproc)" sh "$0" --one
