// The kernels of SSD of every backend against the equations of backend/ssd_concept.hpp, written out in double.
#include <limits>
#include <vector>

#include "support/ssd_scan.hpp"

namespace ssd_kernels_test {

using namespace minimamba;
using support::HostMatrix;
using support::random_matrix;
using support::Scan;
using support::ScanShape;
using support::tolerance;

double silu(double x) { return x / (1 + std::exp(-x)); }
double softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }

template <class K>
class SsdKernels : public support::KernelTest<K> {};
TYPED_TEST_SUITE(SsdKernels, support::KernelKinds, support::KindNames);

TYPED_TEST(SsdKernels, ScanAsTheEquationSays) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend({.threads = 2});
  static_assert(HasSsd<typename TypeParam::Backend>);
  for (const ScanShape& shape : support::scan_shapes()) {
    for (const std::size_t length : support::Sizes{0, 1, 2, 17, 40}) {
      const std::size_t batch = 2, rows = batch * length, E = shape.channels(), P = shape.head_dim, N = shape.states;
      Scan<Scalar> scan(shape, rows, batch);
      HostMatrix<double> state(batch * E, N);
      std::copy(scan.h.values.begin(), scan.h.values.end(), state.values.begin());
      const auto y = scan.run(backend, uniform_segments(batch, length));
      const auto wide = [](Scalar value) { return static_cast<double>(value); };
      for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t e = 0; e < E; ++e) {
          const std::size_t head = e / P, first = head / (shape.heads / shape.groups) * N;
          const double raw = softplus(wide(scan.delta()(i, head)) + wide(scan.delta_bias(0, head)));
          const double dt = std::min(std::max(raw, shape.dt_min), shape.dt_max), x = wide(scan.x()(i, e));
          double sum = wide(scan.d(0, head)) * x, magnitude = std::abs(sum);
          for (std::size_t n = 0; n < N; ++n) {
            double& value = state.values[(i / length * E + e) * N + n];
            value = std::exp(dt * wide(scan.a(0, head))) * value + dt * x * wide(scan.b()(i, first + n));
            sum += wide(scan.c()(i, first + n)) * value;
            magnitude += std::abs(wide(scan.c()(i, first + n)) * value);
          }
          ASSERT_NEAR(wide(y(i, e)), sum, tolerance<Scalar>(length + 8) * (1 + magnitude)) << i << ", " << e;
        }
      }
      EXPECT_LE(support::largest_difference(scan.h, state),
                tolerance<Scalar>(length + 8) * (1 + support::largest_magnitude(scan.h)));
    }
  }
}

TYPED_TEST(SsdKernels, KeepTheStateBeforeEachChunkAndScanOnFromIt) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend({.threads = 2});
  for (const ScanShape& shape : support::scan_shapes()) {
    const std::vector<Segment> segments{{0, 19, 2}, {19, 0, 1}, {19, 6, 0}};
    const std::size_t E = shape.channels(), chunk = 7, chunks = 3 + 1;
    Scan<Scalar> whole(shape, 25, 3), kept = whole;
    HostMatrix<Scalar> states(chunks * E, shape.states);
    const auto y = whole.run(backend, segments);
    support::expect_same<TypeParam>(kept.run(backend, segments, {chunk, {states.view(), E}}), y, "y");
    support::expect_same<TypeParam>(kept.h, whole.h, "state");
    for (std::size_t k = 0; k < 3; ++k) {  // from each kept state, the rest of the first segment
      Scan<Scalar> rest(shape, 25, 3);
      backend.copy(std::as_const(states).view().rows_from(k * E, E), rest.h.view().rows_from(2 * E, E));
      const auto last = rest.run(backend, {{k * chunk, 19 - k * chunk, 2}});
      support::expect_same<TypeParam>(support::copy_of(rest.h.view().rows_from(2 * E, E)),
                                      support::copy_of(whole.h.view().rows_from(2 * E, E)), "state");
      support::expect_same<TypeParam>(support::copy_of(last.view().rows_from(k * chunk, 19 - k * chunk)),
                                      support::copy_of(y.view().rows_from(k * chunk, 19 - k * chunk)), "y");
    }
  }
}

TYPED_TEST(SsdKernels, GiveTheSameBitsForAnySplitOrderAndNumberOfThreads) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend one({.threads = 1});
  Random random(7);
  for (const ScanShape& shape : support::scan_shapes()) {
    const std::size_t length = 50;
    const Scan<Scalar> start(shape, 2 * length, 2);
    Scan<Scalar> whole = start;
    const auto y = whole.run(one, {{0, length, 0}, {length, length, 1}});
    for (const int threads : {1, 2, 5}) {
      const typename TypeParam::Backend backend({.threads = threads});
      Scan<Scalar> split = start;
      HostMatrix<Scalar> found(2 * length, shape.channels());
      for (std::size_t read[2] = {0, 0}; read[0] + read[1] < 2 * length;) {
        std::vector<Segment> segments;
        for (const std::size_t slot : {std::size_t{1}, std::size_t{0}}) {
          const auto most = static_cast<std::size_t>(random.uniform(0, 24));
          const std::size_t count = std::min(most, length - read[slot]);
          segments.push_back({slot * length + read[slot], count, slot});
          read[slot] += count;
        }
        const auto part = split.run(backend, segments);
        for (const Segment& segment : segments) {
          one.copy(part.view().rows_from(segment.first, segment.length),
                   found.view().rows_from(segment.first, segment.length));
        }
      }
      support::expect_same<TypeParam>(found, y, "y");
      support::expect_same<TypeParam>(split.h, whole.h, "state");
    }
  }
}

TYPED_TEST(SsdKernels, NormEachGroupOfGatedChannels) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend({.threads = 2});
  for (const std::size_t groups : support::Sizes{1, 2, 4}) {
    for (const std::size_t size : support::Sizes{1, 7, 96}) {
      const std::size_t cols = groups * size;
      const auto x = random_matrix<Scalar>(5, cols, 1), wide = random_matrix<Scalar>(5, cols + 2, 2);
      const auto z = wide.view().columns(1, cols);
      const auto weight = random_matrix<Scalar>(1, cols, 3);
      HostMatrix<Scalar> y(5, cols);
      backend.gated_rms_norm(
          {.x = x.view(), .z = z, .weight = weight.view(), .groups = groups, .epsilon = 1e-3, .y = y.view()});
      for (std::size_t i = 0; i < 5; ++i) {
        for (std::size_t first = 0; first < cols; first += size) {
          double squares = 0;
          const auto gated = [&](std::size_t j) {
            return static_cast<double>(x(i, j)) * silu(static_cast<double>(z(i, j)));
          };
          for (std::size_t j = first; j < first + size; ++j) squares += gated(j) * gated(j);
          const double scale = 1 / std::sqrt(squares / static_cast<double>(size) + 1e-3);
          for (std::size_t j = first; j < first + size; ++j) {
            const double expected = gated(j) * scale * static_cast<double>(weight(0, j));
            ASSERT_NEAR(static_cast<double>(y(i, j)), expected, std::abs(expected) * tolerance<Scalar>(8));
          }
        }
      }
    }
  }
}

TYPED_TEST(SsdKernels, NormGroupsWhoseSquaresOverflow) {
  using Scalar = typename TypeParam::Scalar;
  if (!support::long_double_has_squares<Scalar>()) GTEST_SKIP() << "a long double has not the squares of all numbers";
  const typename TypeParam::Backend backend;
  auto x = random_matrix<Scalar>(1, 64, 1);
  for (std::size_t j = 32; j < 64; ++j) x.values[j] = std::sqrt(std::numeric_limits<Scalar>::max()) * (2 + x(0, j));
  HostMatrix<Scalar> z(1, 64), weight(1, 64), y(1, 64);
  for (std::size_t j = 0; j < 64; ++j) z.values[j] = 40, weight.values[j] = 1;  // silu(40) is 40
  backend.gated_rms_norm(
      {.x = x.view(), .z = z.view(), .weight = weight.view(), .groups = 2, .epsilon = 1e-5, .y = y.view()});
  for (const std::size_t first : support::Sizes{0, 32}) {
    long double squares = 0;
    for (std::size_t j = first; j < first + 32; ++j) squares += std::pow(static_cast<long double>(x(0, j)), 2);
    for (std::size_t j = first; j < first + 32; ++j) {
      const long double expected = static_cast<long double>(x(0, j)) / std::sqrt(squares / 32);
      EXPECT_NEAR(static_cast<double>(y(0, j)), static_cast<double>(expected), 1e-5);
    }
  }
}

}  // namespace ssd_kernels_test
