// A backend whose activations between kernels are bf16: see activation_type_test.cpp.
#ifndef MINIMAMBA_TESTS_BF16_ACTIVATIONS_HPP
#define MINIMAMBA_TESTS_BF16_ACTIVATIONS_HPP

#include <cstddef>
#include <vector>

#include "minimamba/minimamba.hpp"

namespace support {

using minimamba::bf16, minimamba::View;

/// The reference backend, with activations that are rounded to bf16 where a kernel writes them.
template <class Number>
class Bf16Activations : public minimamba::ReferenceBackend<Number> {
  using Base = minimamba::ReferenceBackend<Number>;

 public:
  using Scalar = Number;
  using Activation = bf16;
  using Base::Base, Base::rms_norm, Base::add;

  void rms_norm(View<const Scalar> x, View<const Scalar> weight, double epsilon, View<bf16> y) const {
    Widened rows(y);
    Base::rms_norm(x, weight, epsilon, rows.view());
    rows.narrow(y);
  }
  void add(View<const Scalar> x, View<bf16> y) const {
    Widened rows(y);
    Base::add(x, rows.view());
    rows.narrow(y);
  }
  template <minimamba::WeightFormat W>
  void matmul(View<const bf16> x, const minimamba::HostMatrix<W>& weight, View<Scalar> y) const {
    Base::matmul(Widened(x).view(), weight, y);
  }
  template <minimamba::WeightFormat W>
  void matmul(View<const bf16> x, const minimamba::HostMatrix<W>& weight, View<bf16> y) const {
    Widened rows(y);
    matmul(x, weight, rows.view());
    rows.narrow(y);
  }
  void causal_conv1d(const minimamba::Conv1dArguments<Scalar, bf16>& p) const {
    Widened x(p.x), y(p.y);
    Base::causal_conv1d({.segments = p.segments,
                         .x = x.view(),
                         .weight = p.weight,
                         .bias = p.bias,
                         .window = p.window,
                         .y = y.view(),
                         .kept = p.kept});
    y.narrow(p.y);
  }
  void selective_scan(const minimamba::ScanArguments<Scalar, bf16>& p) const {
    Widened u(p.u), delta(p.delta), b(p.b), c(p.c), z(p.z), y(p.y);
    Base::selective_scan({.segments = p.segments,
                          .u = u.view(),
                          .delta = delta.view(),
                          .delta_bias = p.delta_bias,
                          .a = p.a,
                          .b = b.view(),
                          .c = c.view(),
                          .d = p.d,
                          .z = z.view(),
                          .h = p.h,
                          .y = y.view(),
                          .kept = p.kept});
    y.narrow(p.y);
  }

 private:
  /// A copy of activations as Scalar.
  class Widened {
   public:
    template <class T>
    explicit Widened(View<T> from) : values_(from.rows() * from.cols()), rows_(from.rows()), cols_(from.cols()) {
      for (std::size_t i = 0; i < rows_; ++i) {
        for (std::size_t j = 0; j < cols_; ++j) view()(i, j) = static_cast<Scalar>(static_cast<float>(from(i, j)));
      }
    }
    View<Scalar> view() { return {values_.data(), rows_, cols_}; }
    void narrow(View<bf16> to) {
      for (std::size_t i = 0; i < rows_; ++i) {
        for (std::size_t j = 0; j < cols_; ++j) to(i, j) = bf16(static_cast<float>(view()(i, j)));
      }
    }

   private:
    std::vector<Scalar> values_;
    std::size_t rows_, cols_;
  };
};

}  // namespace support

#endif
