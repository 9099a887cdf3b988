#!/bin/sh
# Fuzzes for a long time: each target until it has made so many executions, several targets at a time.
#   tests/fuzz/run.sh BUILD [WORK] [TARGET...]
# BUILD is that of the preset fuzz, or asan, which is slower by far. WORK (default: BUILD/fuzz-long) keeps what was found and
# how far each target is, so that the script can be interrupted and goes on. 10^7 executions of the formats that strangers'
# files have, 10^6 of the others, in turns of five minutes; TARGETs (config, gguf ...) are all if none is named.
# MINIMAMBA_FUZZ_DIVISOR=1000 makes fewer executions, MINIMAMBA_FUZZ_JOBS=1 runs so many targets at a time. Exit status 1
# if a target has found something: WORK/<target> has a file crash-*, oom-* or timeout-*, which the target reads as its
# argument (without ASAN_OPTIONS it tells more), and its other executions are left out until the file `found` there is removed.
# A target that was killed (status 137) counts as one that has, since the system kills so when memory is short; it leaves no such file.
set -eu
if [ "$1" = --one ]; then  # a part of the executions: a target, its folder, how many it is to make, and its first corpus
  target=$2 work=$3 wanted=$4 corpus=$5 status=0
  mkdir -p "$work/corpus"
  cd "$work"
  made=$(cat executions 2>/dev/null || echo 0) what="found something"
  known=$(find corpus ${corpus:+"$corpus"} -type f | wc -l)  # executed again when a turn begins, which does not count
  trap : INT TERM  # what the target has made until then does
  # Half of the time went to weights by the frequency of features (entropic), stacks of allocations, and memory that
  # AddressSanitizer keeps from use for longer than a test takes. A process that others hold up is not a slow one.
  export ASAN_OPTIONS=malloc_context_size=0:quarantine_size_mb=4:thread_local_quarantine_size_kb=64
  "$target" -runs=$((wanted - made + known)) -max_total_time=300 -seed=$((made + 1)) -entropic=0 -rss_limit_mb=2048 -timeout=600 \
    -report_slow_units=600 -verbosity=0 -print_final_stats=1 corpus ${corpus:+"$corpus"} >log 2>&1 || status=$?
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' log)
  made=$((made + (${runs:-0} > known ? ${runs:-0} - known : 0)))
  echo "$made" >executions.new  # on a full disk this fails, and `executions` stays: an empty one would end the target
  mv executions.new executions
  case $status in
    0) ;;
    72 | 129 | 130 | 143) exit 255 ;;  # it was interrupted: xargs starts no other
    *)
      [ "$status" -ne 137 ] || what="killed, perhaps for want of memory,"
      { cat log; echo "status $status"; } >found
      echo "$(basename "$target"): $what after $made executions: $work/found"
      exit 1 ;;
  esac
  [ "$made" -lt "$wanted" ] || echo "$(basename "$target"): $made executions"
  exit 0
fi
build=$(cd "$1" && pwd) source=$(cd "$(dirname "$0")" && pwd)
work=${2:-$build/fuzz-long}
shift "$(($# < 2 ? $# : 2))"
chosen=$*
for name in $chosen; do
  [ -e "$build/tests/${name}_fuzz" ] || { echo "there is no target $name in $build/tests"; exit 2; }
done
left() {  # targets that have executions to make, each with what --one takes
  for target in "$build"/tests/*_fuzz; do
    name=$(basename "$target" _fuzz)
    case " ${chosen:-$name} " in
      *" $name "*) ;;
      *) continue ;;
    esac
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
state() { cat "$work"/*/executions "$work"/*/found 2>/dev/null | cksum; }
while [ "$(left | wc -c)" -gt 0 ]; do
  status=0 before=$(state)
  left | xargs -0 -n 4 -P "${MINIMAMBA_FUZZ_JOBS:-$(nproc)}" sh "$0" --one || status=$?
  [ "$status" -ne 124 ] || exit 130
  [ "$(state)" != "$before" ] || { echo "no target makes an execution any more: see its file log in $work"; exit 1; }
done
for found in "$work"/*/found; do
  [ ! -e "$found" ] || { echo "found something: $found"; exit 1; }
done
