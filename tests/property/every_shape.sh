#!/bin/sh
# Runs all of the tests of real and of random shapes, which take about half an hour on two cores.
#   sh tests/property/every_shape.sh [build folder, by default build/test]
set -eu
cd "$(dirname "$0")/../.."
MINIMAMBA_TEST_EVERY_SHAPE=1
export MINIMAMBA_TEST_EVERY_SHAPE
exec "${1:-build/test}/tests/property_tests" --gtest_filter='*RealShapes*:*RandomShapes*:*Products*:BlocksOfRows*:*RealTraining*'
