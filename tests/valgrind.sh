#!/bin/sh
# The unit tests under valgrind's memcheck: reads of what was never written, accesses out of bounds, leaks.
#   tests/valgrind.sh BUILD [FILTER]
# BUILD is that of the preset test; FILTER chooses tests as --gtest_filter does (default: all). Valgrind has no AVX-512
# and tells programs so: the kernels are the portable ones and those of AVX2. The tests run in
# MINIMAMBA_VALGRIND_PARTS parts (default: 24), each with logs in BUILD/valgrind; one that has passed with the same
# program is not run again, so that the script can be interrupted. Exit status 1 if memcheck has found something, a
# test fails, or a pattern of FILTER has no test. MINIMAMBA_TEST_VALGRIND tells tests to leave out most of many cases, and
# all limits on time.
set -eu
if [ "$1" = --part ]; then  # of so many parts, numbered from 0
  program=$2 work=$3 filter=$4 part=$5 parts=$6
  log=$work/$part
  [ ! "$log.passed" -nt "$program" ] || exit 0
  if MINIMAMBA_TEST_VALGRIND=1 GTEST_TOTAL_SHARDS=$parts GTEST_SHARD_INDEX=$part valgrind --error-exitcode=9 --quiet --leak-check=full \
    --errors-for-leak-kinds=definite --num-callers=24 --fair-sched=yes "--log-file=$log.memcheck" \
    "$program" "--gtest_filter=$filter" >"$log.tests" 2>&1; then
    mv "$log.tests" "$log.passed"
  else
    echo "failed: $log.tests, $log.memcheck"
    exit 1
  fi
  exit 0
fi
build=$(cd "$1" && pwd) filter=${2:-*} parts=${MINIMAMBA_VALGRIND_PARTS:-24}
printf '%s\n' "${filter%%-*}" | tr : '\n' | while read -r pattern; do
  "$build/tests/unit_tests" --gtest_list_tests "--gtest_filter=${pattern:-*}" | grep -q '^  ' ||
    { echo "there is no test $pattern"; exit 1; }
done
work=$build/valgrind/$(printf '%s %s' "$filter" "$parts" | cksum | cut -d ' ' -f 1)
mkdir -p "$work"
part=0
while [ "$part" -lt "$parts" ]; do
  printf '%s\0' "$part"
  part=$((part + 1))
done | xargs -0 -P "$(nproc)" -I '{}' sh "$0" --part "$build/tests/unit_tests" "$work" "$filter" '{}' "$parts" ||
  exit 1
echo "memcheck has found nothing"
