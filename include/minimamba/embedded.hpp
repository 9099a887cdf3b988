// StaticMamba: a Mamba (S6) whose sizes are known at compile time, for machines without an operating system. It needs
// no heap, no exceptions and no run-time type information; its weights are constants, in flash, which
//   convert model model.hpp --c-array
// writes with their Config. It calls the loops of the reference backend, see backend/reference_loops.hpp.
// docs/embedded.md is the guide.
#ifndef MINIMAMBA_EMBEDDED_HPP
#define MINIMAMBA_EMBEDDED_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "minimamba/backend/reference_loops.hpp"
#include "minimamba/core/activations.hpp"
#include "minimamba/core/formats.hpp"
#include "minimamba/core/random.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The base of the Config of a model: what it need not say. The names are those of MambaConfig. A Config also has the
/// constants d_model, n_layer, vocab_size, d_inner and dt_rank.
struct StaticConfig {
  static constexpr std::size_t d_state = 16;     // N
  static constexpr std::size_t d_conv = 4;       // K
  static constexpr bool conv_bias = true;        // conv1d has a bias
  static constexpr bool bias = false;            // in_proj and out_proj have a bias
  static constexpr bool tie_embeddings = true;   // lm_head shares the embedding's matrix
  static constexpr double norm_epsilon = 1e-5;   // of every RMSNorm
  static constexpr bool dt_b_c_rms = false;      // dt, B and C are normalised, as in FalconMamba
  static constexpr double mixer_rms_eps = 1e-6;  // of these norms
  using Weight = float;                          // or q8: how the matrices are stored
};

/// What a machine has. Derive from it and say what is less.
struct StaticBoard {
  static constexpr std::size_t flash = SIZE_MAX;  // bytes for the weights
  static constexpr std::size_t ram = SIZE_MAX;    // bytes for one state and the activations
  /// The type in which sums are kept: double has the bits of the reference backend, and float is far faster where the
  /// processor has no double.
  using Sum = double;
};

namespace detail {

/// A name of its own, so that compilers print both numbers if it does not hold.
template <std::size_t needed, std::size_t available>
concept FitsInto = (needed <= available);

/// The sizes of a model, by the letters of docs/how_mamba_works.md.
template <class Config>
struct StaticSizes {
  static_assert(
      !requires { Config::head_dim; },
      "StaticMamba runs Mamba (S6); this is the Config of a Mamba-2 (SSD), which it does not run");
  static_assert(std::is_same_v<typename Config::Weight, float> || std::is_same_v<typename Config::Weight, q8>,
                "the Weight of a StaticMamba is float or minimamba::q8");
  static_assert(Config::d_model > 0 && Config::n_layer > 0 && Config::vocab_size > 0 && Config::d_inner > 0 &&
                    Config::dt_rank > 0 && Config::d_state > 0 && Config::d_conv > 0,
                "every size of a Config is at least 1");
  static constexpr std::size_t D = Config::d_model, E = Config::d_inner, N = Config::d_state, K = Config::d_conv,
                               R = Config::dt_rank, V = Config::vocab_size, selected = R + 2 * N;
  /// The format of x_proj: that of S6.
  using Selection = std::conditional_t<std::is_same_v<typename Config::Weight, q8>, bf16, typename Config::Weight>;
};

/// The blocks of a matrix [rows, cols], row after row.
template <class W, std::size_t rows, std::size_t cols>
using StaticMatrix = std::array<typename Format<W>::Block, rows * blocks_in<W>(cols)>;

}  // namespace detail

/// The weights of a layer, in the order of a checkpoint. A is -exp(A_log).
template <class Config, class Sizes = detail::StaticSizes<Config>>
struct StaticLayer {
  template <std::size_t rows, std::size_t cols, class W = typename Config::Weight>
  using Matrix = detail::StaticMatrix<W, rows, cols>;
  template <std::size_t size, bool present = true>
  using Vector = std::array<float, present ? size : 0>;

  Vector<Sizes::D> norm_weight = {};
  Vector<Sizes::E* Sizes::N> A = {};
  Vector<Sizes::E> D = {};
  Matrix<2 * Sizes::E, Sizes::D> in_proj_weight = {};
  Vector<2 * Sizes::E, Config::bias> in_proj_bias = {};
  Vector<Sizes::E* Sizes::K> conv1d_weight = {};
  Vector<Sizes::E, Config::conv_bias> conv1d_bias = {};
  Matrix<Sizes::selected, Sizes::E, typename Sizes::Selection> x_proj_weight = {};
  Matrix<Sizes::E, Sizes::R> dt_proj_weight = {};
  Vector<Sizes::E> dt_proj_bias = {};
  Matrix<Sizes::D, Sizes::E> out_proj_weight = {};
  Vector<Sizes::D, Config::bias> out_proj_bias = {};
};

/// All weights of a model, without the rows of the embedding that pad the vocabulary.
template <class Config>
struct StaticWeights {
  using Sizes = detail::StaticSizes<Config>;
  using Embedding = detail::StaticMatrix<typename Config::Weight, Sizes::V, Sizes::D>;

  Embedding embedding_weight = {};
  std::array<StaticLayer<Config>, Config::n_layer> layers = {};
  std::array<float, Sizes::D> norm_f_weight = {};
  std::conditional_t<Config::tie_embeddings, std::array<float, 0>, Embedding> lm_head_weight = {};

  constexpr const Embedding& head() const {
    if constexpr (Config::tie_embeddings) {
      return embedding_weight;
    } else {
      return lm_head_weight;
    }
  }
};

/// The state of a sequence, all that it carries from token to token: a value, which is copied by = and reset by = {}.
template <class Config>
struct StaticState {
  using Sizes = detail::StaticSizes<Config>;
  struct Layer {
    std::array<float, Sizes::E*(Sizes::K - 1)> conv = {};  // the last K - 1 inputs of the convolution, oldest first
    std::array<float, Sizes::E* Sizes::N> ssm = {};        // h
  };
  std::array<Layer, Config::n_layer> layers = {};
};

/// A model over weights that it does not own, with the activations of one token. It serves any number of states.
template <class Config, class Board = StaticBoard>
class StaticMamba {
  using Sizes = detail::StaticSizes<Config>;
  using W = typename Config::Weight;
  using Selection = typename Sizes::Selection;
  using Sum = typename Board::Sum;

  struct Activations {
    std::array<float, Sizes::D> x;              // the residual stream
    std::array<float, Sizes::D> normed;         // after a norm; then the output of the layer
    std::array<float, 2 * Sizes::E> uz;         // u and z before the convolution
    std::array<float, Sizes::E> u;              // after the convolution
    std::array<float, Sizes::selected> dt_b_c;  // dt, B and C
    std::array<float, Sizes::E> delta, y;
    std::array<float, Sizes::V> logits;
    /// Of a product whose weights ask for rounded ones.
    std::array<Sum, std::is_same_v<W, float> ? 0 : std::max({Sizes::D, Sizes::E, Sizes::R})> rounded;
  };

 public:
  using Weights = StaticWeights<Config>;
  using State = StaticState<Config>;
  static constexpr std::size_t weight_bytes = sizeof(Weights), state_bytes = sizeof(State),
                               activation_bytes = sizeof(Activations);

  static_assert(std::is_same_v<Sum, double> || std::is_same_v<Sum, float>, "the Sum of a Board is double or float");
  static_assert(detail::FitsInto<weight_bytes, Board::flash>,
                "the weights are larger than the flash of the Board: use q8 weights, or a smaller model");
  static_assert(detail::FitsInto<state_bytes + activation_bytes, Board::ram>,
                "a state and the activations are larger than the RAM of the Board: use a model with less d_model, "
                "d_state or layers");

  /// The weights must live as long as this object.
  explicit StaticMamba(const Weights& in_flash) : weights_(&in_flash) {}
  explicit StaticMamba(const Weights&&) = delete;
  template <class Other>
  explicit StaticMamba(const StaticWeights<Other>&) {
    static_assert(std::is_same_v<Other, Config>,
                  "these weights belong to another Config: use the one in the file that convert wrote with them");
  }

  /// Reads one token and returns a logit for each token of the vocabulary, which the next call overwrites. For a token
  /// outside the vocabulary it returns an empty span and changes nothing.
  std::span<const float> forward(std::int32_t token, State& state) {
    if (token < 0 || static_cast<std::size_t>(token) >= Sizes::V) return {};
    const std::size_t row = static_cast<std::size_t>(token) * blocks_in<W>(Sizes::D);
    Format<W>::unpack(weights_->embedding_weight.data() + row, Sizes::D, now_.x.data());
    for (std::size_t i = 0; i < Config::n_layer; ++i) read(weights_->layers[i], state.layers[i]);
    norm(now_.x, weights_->norm_f_weight, Config::norm_epsilon, now_.normed);
    multiply<W>(now_.normed, weights_->head(), now_.logits);
    return now_.logits;
  }

 private:
  using In = std::span<const float>;
  using Out = std::span<float>;

  /// x <- x + S6(RMSNorm(x)), as in nn/mamba_block.hpp and nn/s6.hpp.
  void read(const StaticLayer<Config>& layer, typename State::Layer& state) {
    constexpr std::size_t E = Sizes::E, R = Sizes::R, N = Sizes::N;
    const Out u = Out(now_.uz).first(E), z = Out(now_.uz).last(E), selected(now_.dt_b_c);
    norm(now_.x, layer.norm_weight, Config::norm_epsilon, now_.normed);
    multiply<W>(now_.normed, layer.in_proj_weight, now_.uz);
    add(layer.in_proj_bias, now_.uz);
    convolve(layer, u, state.conv);
    multiply<Selection>(now_.u, layer.x_proj_weight, selected);
    if constexpr (Config::dt_b_c_rms) {
      for (const Out part : {selected.first(R), selected.subspan(R, N), selected.last(N)}) {
        norm(part, {}, Config::mixer_rms_eps, part);
      }
    }
    multiply<W>(selected.first(R), layer.dt_proj_weight, now_.delta);
    detail::scan_row<Sum>(detail::ScanRow<float>{.channels = E,
                                                 .states = N,
                                                 .u = now_.u.data(),
                                                 .delta = now_.delta.data(),
                                                 .delta_bias = layer.dt_proj_bias.data(),
                                                 .a = layer.A.data(),
                                                 .a_stride = N,
                                                 .b = selected.data() + R,
                                                 .c = selected.data() + R + N,
                                                 .d = layer.D.data(),
                                                 .z = z.data(),
                                                 .h = state.ssm.data(),
                                                 .y = now_.y.data()});
    multiply<W>(now_.y, layer.out_proj_weight, now_.normed);
    add(layer.out_proj_bias, now_.normed);
    add(now_.normed, now_.x);
  }

  /// The convolution of u, which then moves into the window.
  void convolve(const StaticLayer<Config>& layer, In u, Out window) {
    constexpr std::size_t E = Sizes::E, past = Sizes::K - 1;
    detail::conv1d_row<Sum>(detail::ConvRow<float>{.channels = E,
                                                   .taps = Sizes::K,
                                                   .weight = layer.conv1d_weight.data(),
                                                   .weight_stride = Sizes::K,
                                                   .bias = Config::conv_bias ? layer.conv1d_bias.data() : nullptr,
                                                   .past = past,
                                                   .window = window.data(),
                                                   .window_stride = past,
                                                   .x = u.data(),
                                                   .x_stride = E,
                                                   .y = now_.u.data()});
    if constexpr (past > 0) {
      for (std::size_t e = 0; e < E; ++e) {
        const Out inputs = window.subspan(e * past, past);
        std::copy(inputs.begin() + 1, inputs.end(), inputs.begin());
        inputs.back() = u[e];
      }
    }
  }

  template <class Format, class Matrix>
  void multiply(In x, const Matrix& weight, Out y) {
    if constexpr (rounds_activations<Format>) {
      round_activations<Format>(x.data(), x.size(), now_.rounded.data());
      detail::matmul_row<Format, Sum>(now_.rounded.data(), x.size(), weight.data(), y);
    } else {
      detail::matmul_row<Format, Sum>(x.data(), x.size(), weight.data(), y);
    }
  }
  static void norm(In x, In weight, double epsilon, Out y) { detail::rms_norm_row(x, weight, epsilon, y); }
  static void add(In x, Out y) {
    for (std::size_t i = 0; i < x.size(); ++i) y[i] += x[i];
  }

  const Weights* weights_;
  Activations now_;
};

/// The most likely token: of equal logits that with the lowest id. -1 if all are NaN or -infinity.
inline std::int32_t greedy_token(std::span<const float> logits) {
  std::int32_t best = -1;
  float largest = -HUGE_VALF;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] > largest)) continue;
    largest = logits[i];
    best = static_cast<std::int32_t>(i);
  }
  return best;
}

/// Draws a token from softmax(logits / temperature): the tokens of Sampler with this temperature and a Random of its
/// seed. At temperature 0 it is greedy_token, and draws nothing.
inline std::int32_t sample_token(std::span<const float> logits, double temperature, Random& random) {
  const std::int32_t best = greedy_token(logits);
  if (best < 0 || !(temperature > 0)) return best;
  const double largest = static_cast<double>(logits[static_cast<std::size_t>(best)]);
  const auto weight = [&](float logit) {
    if (!(logit > -HUGE_VALF)) return 0.0;
    const double wide = static_cast<double>(logit);
    return wide == largest ? 1 : std::exp((wide - largest) / temperature);
  };
  double total = 0;
  for (const float logit : logits) total += weight(logit);
  double remaining = random.uniform() * total;
  std::int32_t token = best;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] > -HUGE_VALF)) continue;
    token = static_cast<std::int32_t>(i);
    remaining -= weight(logits[i]);
    if (remaining < 0) break;
  }
  return token;  // the last one, if rounding has left a remainder
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
