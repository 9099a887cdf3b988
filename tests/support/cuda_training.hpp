// Training on a card under the tests that other backends pass.
#ifndef MINIMAMBA_TESTS_CUDA_TRAINING_HPP
#define MINIMAMBA_TESTS_CUDA_TRAINING_HPP

#include <cstdint>
#include <span>
#include <vector>

#include "minimamba/backend/cuda_training.hpp"
#include "support/cuda.hpp"

namespace support {

/// CudaTraining, whose kernels also take memory of the host.
template <class Number>
class TestedCudaTraining : public WithMemoryOfTheHost<minimamba::CudaTraining<Number>> {
  using Base = WithMemoryOfTheHost<minimamba::CudaTraining<Number>>;
  using typename Base::Mirror;

 public:
  using Scalar = Number;
  using Weights = minimamba::CudaMatrix<Scalar>;
  using Base::Base;

  void matmul_backward_input(View<const Scalar> d_y, const Weights& weight, View<Scalar> d_x) const {
    Mirror mirror(*this);
    Base::matmul_backward_input(mirror.of(d_y), weight, mirror.of(d_x));
  }
  void matmul_backward_weight(View<const Scalar> d_y, View<const Scalar> x, Weights& d_weight) const {
    Mirror mirror(*this);
    Base::matmul_backward_weight(mirror.of(d_y), mirror.of(x), d_weight);
  }
  void matmul_backward(View<const Scalar> d_y, const Weights& weight, View<const Scalar> x, Weights& d_weight,
                       View<Scalar> d_x) const {
    Mirror mirror(*this);
    Base::matmul_backward(mirror.of(d_y), weight, mirror.of(x), d_weight, mirror.of(d_x));
  }
  void embed_backward(View<const std::int32_t> tokens, View<const Scalar> d_y, Weights& d_weight) const {
    Mirror mirror(*this);
    Base::embed_backward(mirror.of(tokens), mirror.of(d_y), d_weight);
  }
  void add_last() const = delete;  // add is used instead
  void add_backward(View<const Scalar> d_y, View<Scalar> d_x) const {
    Mirror mirror(*this);
    Base::add_backward(mirror.of(d_y), mirror.of(d_x));
  }
  void negative_exp_backward(View<const Scalar> y, View<const Scalar> d_y, View<Scalar> d_x) const {
    Mirror mirror(*this);
    Base::negative_exp_backward(mirror.of(y), mirror.of(d_y), mirror.of(d_x));
  }
  void rms_norm_backward(minimamba::RmsNormBackwardArguments<Scalar> p) const {
    Mirror mirror(*this);
    p.x = mirror.of(p.x), p.weight = mirror.of(p.weight), p.d_y = mirror.of(p.d_y), p.d_x = mirror.of(p.d_x);
    p.d_weight = mirror.of(p.d_weight);
    Base::rms_norm_backward(p);
  }
  void causal_conv1d_backward(minimamba::Conv1dBackwardArguments<Scalar> p) const {
    Mirror mirror(*this);
    p.x = mirror.of(p.x), p.weight = mirror.of(p.weight), p.bias = mirror.of(p.bias), p.d_y = mirror.of(p.d_y);
    p.d_x = mirror.of(p.d_x), p.d_weight = mirror.of(p.d_weight), p.d_bias = mirror.of(p.d_bias);
    p.kept.states = mirror.of(p.kept.states), p.d_window = mirror.of(p.d_window);
    Base::causal_conv1d_backward(p);
  }
  void selective_scan_backward(minimamba::ScanBackwardArguments<Scalar> p) const {
    Mirror mirror(*this);
    p.u = mirror.of(p.u), p.delta = mirror.of(p.delta), p.delta_bias = mirror.of(p.delta_bias), p.a = mirror.of(p.a);
    p.b = mirror.of(p.b), p.c = mirror.of(p.c), p.d = mirror.of(p.d), p.z = mirror.of(p.z), p.d_y = mirror.of(p.d_y);
    p.kept.states = mirror.of(p.kept.states), p.d_h = mirror.of(p.d_h);
    p.d_u = mirror.of(p.d_u), p.d_delta = mirror.of(p.d_delta), p.d_z = mirror.of(p.d_z);
    p.d_b = mirror.of(p.d_b), p.d_c = mirror.of(p.d_c), p.d_delta_bias = mirror.of(p.d_delta_bias);
    p.d_a = mirror.of(p.d_a), p.d_d = mirror.of(p.d_d), p.y = mirror.of(p.y);
    Base::selective_scan_backward(p);
  }
  void ssd_scan_backward(minimamba::SsdScanBackwardArguments<Scalar> p) const {
    Mirror mirror(*this);
    p.x = mirror.of(p.x), p.delta = mirror.of(p.delta), p.delta_bias = mirror.of(p.delta_bias), p.a = mirror.of(p.a);
    p.b = mirror.of(p.b), p.c = mirror.of(p.c), p.d = mirror.of(p.d), p.kept.states = mirror.of(p.kept.states);
    p.d_y = mirror.of(p.d_y), p.d_x = mirror.of(p.d_x), p.d_delta = mirror.of(p.d_delta), p.d_b = mirror.of(p.d_b);
    p.d_c = mirror.of(p.d_c), p.d_delta_bias = mirror.of(p.d_delta_bias), p.d_a = mirror.of(p.d_a);
    p.d_d = mirror.of(p.d_d), p.d_h = mirror.of(p.d_h);
    Base::ssd_scan_backward(p);
  }
  void gated_rms_norm_backward(minimamba::GatedRmsNormBackwardArguments<Scalar> p) const {
    Mirror mirror(*this);
    p.x = mirror.of(p.x), p.z = mirror.of(p.z), p.weight = mirror.of(p.weight), p.d_y = mirror.of(p.d_y);
    p.d_x = mirror.of(p.d_x), p.d_z = mirror.of(p.d_z), p.d_weight = mirror.of(p.d_weight);
    Base::gated_rms_norm_backward(p);
  }
  void cross_entropy(minimamba::CrossEntropyArguments<Scalar> p) const {
    Mirror mirror(*this);
    p.logits = mirror.of(p.logits), p.targets = mirror.of(p.targets), p.d_logits = mirror.of(p.d_logits);
    p.loss = mirror.of(p.loss);
    Base::cross_entropy(p);
  }
  void dropout(View<Scalar> x, const minimamba::Dropout& dropout) const {
    Mirror mirror(*this);
    Base::dropout(mirror.of(x), dropout);
  }
  void sum_of_squares(View<const Scalar> x, View<double> sum) const {
    Mirror mirror(*this);
    Base::sum_of_squares(mirror.of(x), mirror.of(sum));
  }
  void lerp(View<Scalar> y, View<const Scalar> x, double rate) const {
    Mirror mirror(*this);
    Base::lerp(mirror.of(y), mirror.of(x), rate);
  }
  void sums_of_squares(std::span<const View<const Scalar>> xs, View<double> sums) const {
    Mirror mirror(*this);
    std::vector<View<const Scalar>> there;
    for (const auto& x : xs) there.push_back(mirror.of(x));
    Base::sums_of_squares(std::span<const View<const Scalar>>(there), mirror.of(sums));
  }
  void adamw(const minimamba::AdamWArguments<Scalar>& p) const { adamw(std::span(&p, 1)); }
  void adamw(std::span<const minimamba::AdamWArguments<Scalar>> steps) const {
    Mirror mirror(*this);
    std::vector<minimamba::AdamWArguments<Scalar>> there(steps.begin(), steps.end());
    for (auto& p : there) {
      p.weight = mirror.of(p.weight), p.gradient = mirror.of(p.gradient), p.mean = mirror.of(p.mean);
      p.variance = mirror.of(p.variance);
    }
    Base::adamw(std::span<const minimamba::AdamWArguments<Scalar>>(there));
  }
};

}  // namespace support

#endif
