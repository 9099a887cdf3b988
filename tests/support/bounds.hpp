// How far a backend may be from the reference in double: what the same computation with the same operands loses when
// each kernel makes rounding errors, at random, as large as those of a sum of so many terms in another Scalar.
#ifndef MINIMAMBA_TESTS_BOUNDS_HPP
#define MINIMAMBA_TESTS_BOUNDS_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "minimamba/minimamba.hpp"
#include "support/bf16_activations.hpp"
#include "support/support.hpp"

namespace support {

/// ReferenceBackend in double with the rounding errors of Rounded: every number that a kernel reads or writes is off by
/// a random part of Rounded's epsilon times the root of the terms that it is summed with.
template <class Rounded>
struct Rough {
  template <class Scalar>
  class Backend : public minimamba::ReferenceBackend<Scalar> {
    using Base = minimamba::ReferenceBackend<Scalar>;
    template <class T>
    using View = minimamba::View<T>;

   public:
    explicit Backend(minimamba::CpuOptions options = {}, std::uint64_t seed = 1)
        : Base(options), random_(std::make_shared<minimamba::Random>(seed)) {}

    void rms_norm(View<const Scalar> x, View<const Scalar> weight, double epsilon, View<Scalar> y) const {
      Base::rms_norm(x, weight, epsilon, y);
      disturb(y, 16);
    }
    template <class W>
    void matmul(View<const Scalar> x, const minimamba::HostMatrix<W>& weight, View<Scalar> y) const {
      HostMatrix<Scalar> rough = copy_of(x);
      disturb(rough.view(), x.cols());
      Base::matmul(rough.view(), weight, y);
      disturb(y, 1);
    }
    void causal_conv1d(const minimamba::Conv1dArguments<Scalar>& p) const {
      Base::causal_conv1d(p);
      disturb(p.y, p.weight.cols() + 4);
    }
    /// Token by token, since each rounds the state anew.
    void selective_scan(const minimamba::ScanArguments<Scalar>& p) const {
      for (const minimamba::Segment& segment : p.segments) {
        for (std::size_t t = 0; t < segment.length; ++t) {
          const std::size_t i = segment.first + t;
          const minimamba::Segment token{.first = 0, .length = 1, .slot = 0};
          HostMatrix<Scalar> delta = copy_of(p.delta.rows_from(i, 1));
          disturb(delta.view(), 16);
          minimamba::ScanArguments<Scalar> one = p;
          one.segments = {&token, 1};
          one.u = p.u.rows_from(i, 1);
          one.delta = delta.view();
          one.b = p.b.rows_from(i, 1);
          one.c = p.c.rows_from(i, 1);
          one.z = p.z.rows_from(i, 1);
          one.h = {p.h[segment.slot], 1, 0};
          one.y = p.y.rows_from(i, 1);
          Base::selective_scan(one);
          disturb(p.h[segment.slot], 4);
          disturb(one.y, 4 + p.a.cols());
        }
      }
    }
    void ssd_scan(const minimamba::SsdScanArguments<Scalar>& p) const {
      for (const minimamba::Segment& segment : p.segments) {
        for (std::size_t t = 0; t < segment.length; ++t) {
          const std::size_t i = segment.first + t;
          const minimamba::Segment token{.first = 0, .length = 1, .slot = 0};
          HostMatrix<Scalar> delta = copy_of(p.delta.rows_from(i, 1));
          disturb(delta.view(), 16);
          minimamba::SsdScanArguments<Scalar> one = p;
          one.segments = {&token, 1};
          one.x = p.x.rows_from(i, 1);
          one.delta = delta.view();
          one.b = p.b.rows_from(i, 1);
          one.c = p.c.rows_from(i, 1);
          one.h = {p.h[segment.slot], 1, 0};
          one.y = p.y.rows_from(i, 1);
          Base::ssd_scan(one);
          disturb(p.h[segment.slot], 4);
          disturb(one.y, 4 + p.h.cols());
        }
      }
    }
    void gated_rms_norm(const minimamba::GatedRmsNormArguments<Scalar>& p) const {
      Base::gated_rms_norm(p);
      disturb(p.y, 20);
    }
    void add(View<const Scalar> x, View<Scalar> y) const {
      Base::add(x, y);
      disturb(y, 1);
    }

   private:
    void disturb(View<Scalar> y, std::size_t terms) const {
      const double part = std::numeric_limits<Rounded>::epsilon() * std::sqrt(static_cast<double>(terms));
      for (std::size_t i = 0; i < y.rows(); ++i) {
        for (Scalar& value : y.row(i)) value += value * static_cast<Scalar>(random_->uniform(-part, part));
      }
    }
    std::shared_ptr<minimamba::Random> random_;
  };
};

/// Logits and states of all tokens, in double.
struct Outcome {
  HostMatrix<double> logits{0, 0};
  std::vector<HostMatrix<double>> states;
};

template <class Scalar>
HostMatrix<double> in_double(const HostMatrix<Scalar>& values) {
  HostMatrix<double> result(values.rows, values.cols);
  std::copy(values.values.begin(), values.values.end(), result.values.begin());
  return result;
}
template <class Model>
Outcome outcome_of(const Model& model, std::span<const std::int32_t> tokens, std::size_t batch) {
  auto cache = model.make_cache(static_cast<std::int64_t>(batch));
  Outcome outcome;
  outcome.logits = in_double(copy_of(model.forward(tokens, cache)));
  for (const auto& state : states(cache)) outcome.states.push_back(in_double(state));
  return outcome;
}

/// The greatest difference of the logits, and of the states.
struct Distance {
  double logits = 0, states = 0;
};
inline Distance distance(const Outcome& a, const Outcome& b) {
  Distance result{largest_difference(a.logits, b.logits), 0};
  for (std::size_t i = 0; i < a.states.size(); ++i) {
    result.states = std::max(result.states, largest_difference(a.states[i], b.states[i]));
  }
  return result;
}

/// The model of the same mixer on another backend, in double.
template <class Model>
struct InDouble;
template <class Scalar, template <class> class Backend, class W,
          template <class, template <class> class, class> class Mixer>
struct InDouble<minimamba::Mamba<Scalar, Backend, W, Mixer>> {
  template <template <class> class Other>
  using On = minimamba::Mamba<double, Other, W, Mixer>;
};

/// What a model of weights W in Scalar must give, and how far it may be from that.
struct Expectation {
  Outcome outcome;
  Distance allowed;
};

/// From a model whose weights are taken, as they are stored. Errors of rounding are ten times those of three rough
/// runs; where activations are rounded, an error of rounding may put one on the other side of a step, so what all these
/// steps together amount to is allowed as well.
template <class Scalar, class W, class Model>
Expectation expectation(const Model& model, std::span<const std::int32_t> tokens, std::size_t batch,
                        minimamba::Activations activations = minimamba::Activations::rounded) {
  const auto in_reference = [&]<template <class> class Backend>(Backend<double> backend) {
    using Reference = typename InDouble<Model>::template On<Backend>;
    Reference reference = Reference::shapes_only(model.config(), backend);
    minimamba::allocate_parameters(reference, backend);
    minimamba::copy_parameters(model, model.backend(), reference, backend);
    reference.refresh();
    return outcome_of(reference, tokens, batch);
  };
  const auto exactly = [&](minimamba::Activations how) {
    return in_reference(minimamba::ReferenceBackend<double>({.activations = how}));
  };
  using Kept = minimamba::detail::ActivationOfMixer<typename Model::MixerType, typename Model::BackendType>;
  constexpr bool narrow = std::is_same_v<Kept, minimamba::bf16>;
  Expectation expected{exactly(activations), {}};
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    using Roughly = typename Rough<Scalar>::template Backend<double>;
    const Distance rough = distance(expected.outcome, in_reference(Roughly({.activations = activations}, seed)));
    expected.allowed.logits = std::max(expected.allowed.logits, 10 * rough.logits);
    expected.allowed.states = std::max(expected.allowed.states, 10 * rough.states);
  }
  if constexpr (narrow) {  // between kernels, too
    if (activations == minimamba::Activations::rounded) {
      expected.outcome = in_reference(Bf16Activations<double>({.activations = activations}));
    }
  }
  if (minimamba::rounds_activations<W> && activations == minimamba::Activations::rounded) {
    const Distance steps = distance(expected.outcome, exactly(minimamba::Activations::exact));
    expected.allowed.logits += steps.logits;
    expected.allowed.states += steps.states;
  }
  return expected;
}

template <class Model>
void expect_outcome(const Model& model, std::span<const std::int32_t> tokens, std::size_t batch,
                    const Expectation& expected) {
  const Distance found = distance(outcome_of(model, tokens, batch), expected.outcome);
  EXPECT_LE(found.logits, expected.allowed.logits) << "logits, of " << largest_magnitude(expected.outcome.logits);
  EXPECT_LE(found.states, expected.allowed.states) << "states";
}

}  // namespace support

#endif
