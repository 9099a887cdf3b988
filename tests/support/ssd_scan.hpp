// The inputs of the recurrence of SSD, which tests of its kernels share.
#ifndef MINIMAMBA_TESTS_SSD_SCAN_HPP
#define MINIMAMBA_TESTS_SSD_SCAN_HPP

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "support/support.hpp"

namespace support {

struct ScanShape {
  std::size_t heads, head_dim, groups, states;
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();

  std::size_t channels() const { return heads * head_dim; }
};

/// The inputs of a scan of `rows` tokens, whose columns are parts of wider matrices, and the states of `slots` slots.
template <class Scalar>
struct Scan {
  ScanShape shape;
  HostMatrix<Scalar> zxbcdt, delta_bias, a, d, h;

  Scan(const ScanShape& of, std::size_t rows, std::size_t slots)
      : shape(of),
        zxbcdt(random_matrix<Scalar>(rows, 3 + of.channels() + 2 * of.groups * of.states + of.heads, 1)),
        delta_bias(random_matrix<Scalar>(1, of.heads, 2)),
        a(random_matrix<Scalar>(1, of.heads, 3)),
        d(random_matrix<Scalar>(1, of.heads, 4)),
        h(random_matrix<Scalar>(slots * of.channels(), of.states, 5)) {
    for (Scalar& value : a.values) value = -std::abs(value) - Scalar(0.1);
    if (rows > 0) zxbcdt.values[zxbcdt.cols - 1] = Scalar(30);  // beyond the threshold of softplus
  }
  minimamba::View<const Scalar> columns(std::size_t first, std::size_t count) const {
    return zxbcdt.view().columns(3 + first, count);
  }
  minimamba::View<const Scalar> x() const { return columns(0, shape.channels()); }
  minimamba::View<const Scalar> b() const { return columns(shape.channels(), shape.groups * shape.states); }
  minimamba::View<const Scalar> c() const {
    return columns(shape.channels() + shape.groups * shape.states, shape.groups * shape.states);
  }
  minimamba::View<const Scalar> delta() const {
    return columns(shape.channels() + 2 * shape.groups * shape.states, shape.heads);
  }
  /// Scans, and returns y.
  template <class Backend>
  HostMatrix<Scalar> run(const Backend& backend, const std::vector<minimamba::Segment>& segments,
                         const minimamba::KeptStates<Scalar>& kept = {}) {
    HostMatrix<Scalar> y(zxbcdt.rows, shape.channels());
    backend.ssd_scan({.segments = segments,
                      .x = x(),
                      .delta = delta(),
                      .delta_bias = delta_bias.view(),
                      .dt_min = shape.dt_min,
                      .dt_max = shape.dt_max,
                      .a = a.view(),
                      .b = b(),
                      .c = c(),
                      .d = d.view(),
                      .h = {h.view(), shape.channels()},
                      .y = y.view(),
                      .kept = kept});
    return y;
  }
};

/// Shapes with every kind of remainder: of lanes, registers and strips; heads of one channel and of odd numbers.
inline std::vector<ScanShape> scan_shapes() {
  return {{1, 1, 1, 1},
          {2, 3, 1, 5},
          {6, 16, 2, 24},
          {4, 8, 4, 12},
          {3, 64, 1, 128},
          {2, 33, 2, 150},
          {5, 24, 1, 64, 0.01, 0.2},
          {2, 64, 1, 16}};
}

}  // namespace support

#endif
