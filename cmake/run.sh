#!/bin/sh
# Installs missing packages, and builds and runs minimamba:
#   sh cmake/run.sh demo        builds the program generate and runs it
#   sh cmake/run.sh test        builds and runs the tests of the library
#   sh cmake/run.sh test-all    these, and all programs, benchmarks, outside projects and what takes a compiler to test
# It is a thin wrapper around: cmake --workflow --preset demo|test|test-all
set -eu

case "${1:-}" in
  demo | test | test-all) what=$1 ;;
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) echo "usage: sh cmake/run.sh demo|test|test-all" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."

have() { command -v "$1" >/dev/null 2>&1; }

manager=none
for candidate in apt-get dnf brew; do
  if have "$candidate"; then manager=$candidate; break; fi
done

# A library counts as installed if the compiler finds its header.
have_header() {
  folders="$(pkg-config --cflags eigen3 2>/dev/null || echo -I/usr/include/eigen3)"
  [ "$manager" != brew ] || folders="$folders -I$(brew --prefix)/include"
  # shellcheck disable=SC2086
  printf '#include <%s>\n' "$1" | "${CXX:-c++}" -std=c++20 -DPCRE2_CODE_UNIT_WIDTH=8 $folders -E -x c++ - >/dev/null 2>&1
}

# need APT DNF BREW CHECK...: adds a package to the list unless the check succeeds; - means that there is no package.
missing=""
need() {
  case "$manager" in
    dnf) package=$2 ;;
    brew) package=$3 ;;
    *) package=$1 ;;
  esac
  shift 3
  "$@" || [ "$package" = - ] || missing="$missing $package"
}

need g++ gcc-c++ - have "${CXX:-c++}"
need cmake cmake cmake have cmake
need ninja-build ninja-build ninja have ninja
need pkg-config pkgconf-pkg-config pkg-config have pkg-config
need libeigen3-dev eigen3-devel eigen have_header Eigen/Core
need nlohmann-json3-dev json-devel nlohmann-json have_header nlohmann/json.hpp
need libutf8proc-dev utf8proc-devel utf8proc have_header utf8proc.h
[ "$what" = test ] || need libcli11-dev cli11-devel cli11 have_header CLI/CLI.hpp
if [ "$what" != demo ]; then
  need libpcre2-dev pcre2-devel pcre2 have_header pcre2.h
  need libgtest-dev gtest-devel googletest have_header gtest/gtest.h
fi
if [ "$what" = test-all ]; then
  need libcpp-httplib-dev - - have_header httplib.h
  need libopenmpi-dev openmpi-devel open-mpi have mpirun
  need libbenchmark-dev google-benchmark-devel google-benchmark have_header benchmark/benchmark.h
fi

announce() { echo "+ $*"; "$@"; }

if [ -n "$missing" ]; then
  echo "Missing packages:$missing"
  sudo=""
  if [ "$manager" != brew ] && [ "$(id -u)" -ne 0 ]; then
    if have sudo; then sudo=sudo; else manager=none; fi
  fi
  # shellcheck disable=SC2086
  case "$manager" in
    apt-get)
      announce $sudo apt-get update -qq
      announce $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
      ;;
    dnf) announce $sudo dnf install -y $missing ;;
    brew) announce brew install $missing ;;
    *)
      echo "Please install them and run this again: it needs apt-get, dnf or brew, and root or sudo, to do so itself." >&2
      exit 1
      ;;
  esac
fi

if ! have "${CXX:-c++}"; then
  echo "A C++20 compiler is needed (on macOS: xcode-select --install)." >&2
  exit 1
fi
if ! cmake --help-full 2>/dev/null | grep -q -- '--workflow'; then
  echo "CMake 3.25 or later is needed, but this is $(cmake --version | head -n 1): see https://cmake.org/download" >&2
  exit 1
fi
CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)}
export CMAKE_BUILD_PARALLEL_LEVEL
if [ ! -e "build/${what%-all}/CMakeCache.txt" ]; then
  CMAKE_GENERATOR=${CMAKE_GENERATOR:-Ninja}  # keeps every core busy: make compiles no program before its libraries
  export CMAKE_GENERATOR
fi
exec cmake --workflow --preset "$what"
