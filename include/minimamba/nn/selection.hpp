// What a model selects: dt of each token, layer and channel, and how far back the state reaches.
//
//   const auto layers = minimamba::selection_of(model, tokens);
//   layers[3][7].dt[minimamba::TokenSelection::median];     // of layer 3 at token 7, over the channels
//   layers[3][7].reach[minimamba::TokenSelection::median];  // tokens, over the channels and their states
//
// At each token, state n of channel c is multiplied by exp(dt A), with A = A(c, n) < 0, and the token is added to it.
// So what was written k tokens ago has been multiplied by exp(A (sum of the last k dt)). The reach of a state is the
// smallest k for which that is below 1/e: it holds what the last k tokens wrote, and what came before has faded.
//
// The numbers are those of the model's own forward: the blocks run, and dt and A are read from what they used. Any
// mixer with selection() can be shown: see nn/mixer.hpp.
#ifndef MINIMAMBA_NN_SELECTION_HPP
#define MINIMAMBA_NN_SELECTION_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/nn/mamba_block.hpp"
#include "minimamba/nn/mixer.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// What one layer selected at each token of a sequence.
struct LayerSelection {
  std::size_t tokens = 0, channels = 0, states = 0;  // C channels of N states each
  std::vector<double> dt = {};                       // [tokens, C]
  std::vector<double> a = {};                        // [C, N]
};

/// The reach of a state that still holds more than 1/e of what it held before the first token.
inline constexpr std::size_t beyond_the_prompt = std::numeric_limits<std::size_t>::max();

/// What one layer selected at one token. A quantile of p is the smallest value that at least p % of the values do not
/// exceed.
struct TokenSelection {
  static constexpr std::array<int, 7> percentiles{0, 10, 25, 50, 75, 90, 100};
  static constexpr std::size_t median = 3;  // its place among them

  double mean_dt = 0;                                   // over the channels
  std::array<double, percentiles.size()> dt{};          // quantiles over the channels
  std::array<std::size_t, percentiles.size()> reach{};  // over the channels and their states
};

namespace detail {

/// The place of a quantile among `count` sorted values.
inline std::size_t quantile_index(int percent, std::size_t count) {
  return std::max<std::size_t>((static_cast<std::size_t>(percent) * count + 99) / 100, 1) - 1;
}

/// Copies a matrix to the host.
template <class Backend, class T>
std::vector<double> on_host(const Backend& backend, View<const T> x) {
  std::vector<T> row(x.cols());
  std::vector<double> values;
  values.reserve(x.rows() * x.cols());
  for (std::size_t i = 0; i < x.rows(); ++i) {
    backend.download(x.rows_from(i, 1).data(), std::span<T>(row));
    for (const T value : row) values.push_back(static_cast<double>(value));
  }
  return values;
}

/// Adds dt of some tokens. Throws ArgumentError for one that is not finite.
template <class Backend, class T>
void add_dt(const Backend& backend, const SelectionViews<typename Backend::Scalar, T>& views, std::size_t layer,
            LayerSelection& to) {
  const auto softplus = [](double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); };
  const std::vector<double> delta = on_host(backend, views.delta), bias = on_host(backend, views.bias);
  for (std::size_t i = 0; i < delta.size(); ++i) {
    const double dt = softplus(delta[i] + bias[i % to.channels]);
    if (!std::isfinite(dt)) {
      throw ArgumentError("model", "dt of token " + std::to_string(to.tokens + i / to.channels) + " in layer " +
                                       std::to_string(layer) + " is not finite: a weight is NaN or too large");
    }
    to.dt.push_back(std::clamp(dt, views.dt_min, views.dt_max));
  }
  to.tokens += views.delta.rows();
}

}  // namespace detail

/// The reach of each state, token by token.
class Reach {
 public:
  explicit Reach(const LayerSelection& selection)
      : of_(selection), begins_(selection.a.size()), needed_(begins_.size()) {
    sums_.assign(of_.channels, 0);  // before the first token
    sums_.reserve((of_.tokens + 1) * of_.channels);
    for (std::size_t i = 0; i < of_.dt.size(); ++i) sums_.push_back(sums_[i] + of_.dt[i]);
    std::transform(of_.a.begin(), of_.a.end(), needed_.begin(), [](double a) { return 1 / std::abs(a); });
  }

  /// Goes to the next token, and calls body(reach) for each state of each channel. There are selection.tokens of them.
  template <class Body>
  void next(Body&& body) {
    ++read_;
    for (std::size_t i = 0; i < begins_.size(); ++i) {
      const std::size_t channel = i / of_.states;
      const auto faded = [&](std::size_t begin) {  // whether that state fades from there to this token
        return sums_[read_ * of_.channels + channel] - sums_[begin * of_.channels + channel] > needed_[i];
      };
      std::size_t& begin = begins_[i];  // only grows, so that all tokens together cost two passes
      while (begin + 1 < read_ && faded(begin + 1)) ++begin;
      body(begin > 0 || faded(0) ? read_ - begin : beyond_the_prompt);
    }
  }

 private:
  const LayerSelection& of_;
  std::size_t read_ = 0;
  std::vector<double> sums_;         // [tokens + 1, C], of dt of the tokens before
  std::vector<std::size_t> begins_;  // [C, N], the last place from which that state fades to the current token
  std::vector<double> needed_;       // [C, N], the sum of dt that takes it below 1/e
};

/// What a layer selected, token by token.
inline std::vector<TokenSelection> summary(const LayerSelection& selection) {
  std::vector<TokenSelection> all(selection.tokens);
  Reach reach(selection);
  std::vector<std::size_t> counts(selection.tokens + 2);  // states of each reach; the last is beyond the prompt
  for (std::size_t t = 0; t < selection.tokens; ++t) {
    TokenSelection& token = all[t];
    const auto first = selection.dt.begin() + static_cast<std::ptrdiff_t>(t * selection.channels);
    std::vector<double> dt(first, first + static_cast<std::ptrdiff_t>(selection.channels));
    for (const double value : dt) token.mean_dt += value / static_cast<double>(dt.size());
    std::sort(dt.begin(), dt.end());
    std::fill(counts.begin(), counts.end(), 0);
    reach.next([&](std::size_t tokens) { ++counts[std::min(tokens, counts.size() - 1)]; });
    std::size_t at = 0, passed = counts[0];  // states whose reach is at most `at`
    for (std::size_t i = 0; i < token.dt.size(); ++i) {
      token.dt[i] = dt[detail::quantile_index(TokenSelection::percentiles[i], dt.size())];
      const std::size_t place = detail::quantile_index(TokenSelection::percentiles[i], selection.a.size());
      while (passed <= place) passed += counts[++at];
      token.reach[i] = at + 1 == counts.size() ? beyond_the_prompt : at;
    }
  }
  return all;
}

/// A model whose blocks can say what they select.
template <class Model>
concept HasSelection = requires(const typename Model::MixerType& mixer,
                                const ActivationViews<typename Model::ScalarType>& views) {
  mixer.selection(views);
};

namespace detail {

template <class Backend>
struct LayerPass {
  using Scalar = typename Backend::Scalar;
  View<Scalar> x;            // [M, D], the residual stream before the layer, and then after it
  View<Scalar> out;          // [rows that pass together, D], scratch
  LayerState<Scalar> state;  // of the sequence
  ActivationBuffer<Backend>& activations;
};

/// Passes a sequence through a layer, some rows at a time.
template <class A, class Block, class Backend>
LayerSelection pass_through(const Backend& backend, const Block& block, std::size_t layer,
                            const LayerPass<Backend>& p) {
  LayerSelection selection;
  const std::size_t rows = p.out.rows();
  for (std::size_t first = 0; first < p.x.rows(); first += rows) {
    const std::size_t count = std::min(rows, p.x.rows() - first);
    const Segment segment{.first = 0, .length = count, .slot = 0};
    const auto activations = p.activations.template of<A>(count);
    block.forward(backend, BlockArguments<typename Backend::Scalar, A>{.segments = std::span(&segment, 1),
                                                                       .x = p.x.rows_from(first, count),
                                                                       .state = p.state,
                                                                       .activations = activations,
                                                                       .out = p.out.rows_from(0, count)});
    const SelectionViews<typename Backend::Scalar, A> selected = block.mixer.selection(activations.from(1));
    if (first == 0) {
      selection = {.channels = selected.a.rows(), .states = selected.a.cols(), .a = on_host(backend, selected.a)};
    }
    add_dt(backend, selected, layer, selection);
  }
  return selection;
}

}  // namespace detail

/// Reads a sequence from its beginning, layer by layer, and calls body(layer, selection) with the LayerSelection of
/// each layer, in order. Memory grows with the tokens by the residual stream and by one LayerSelection. `rows_at_once`
/// is how many tokens pass through a layer together (0: as many as suit the backend); it changes nothing in the result
/// where the backend splits exactly. Throws ArgumentError for no tokens, for a token id that the model does not have,
/// and for a model whose dt is not finite.
template <HasSelection Model, class Body>
void for_each_selection(const Model& model, std::span<const std::int32_t> tokens, Body&& body,
                        std::int64_t rows_at_once = 0) {
  using Backend = typename Model::BackendType;
  auto cache = model.make_cache();
  model.check(tokens, cache);
  if (tokens.empty()) throw ArgumentError("tokens", "at least one token", "none");
  if (rows_at_once < 0) throw ArgumentError("rows_at_once", "at least 0", std::to_string(rows_at_once));
  const Backend& backend = model.backend();
  const std::size_t most =
      rows_at_once > 0 ? static_cast<std::size_t>(rows_at_once) : BackendTraits<Backend>::rows_at_once;
  const std::size_t rows = std::min(tokens.size(), most), D = model.norm_f.weight.cols();
  Activation<Backend, std::int32_t> ids;
  Activation<Backend> x, out;
  ActivationBuffer<Backend> activations;
  ids.reserve(backend, 1, tokens.size());
  x.reserve(backend, tokens.size(), D);
  out.reserve(backend, rows, D);
  model.embedding.forward(backend, ids.upload(backend, tokens), x(tokens.size()));
  detail::with_activations<typename Model::Block::ActivationType>(backend, [&]<class A>() {
    activations.template reserve<A>(backend, Model::Block::activation_widths(model.config()), rows);
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
      const detail::LayerPass<Backend> pass{x(tokens.size()), out(rows), cache.state(layer), activations};
      body(layer, detail::pass_through<A>(backend, model.layers[layer], layer, pass));
    }
  });
}

/// The same in brief: [layers][tokens].
template <HasSelection Model>
std::vector<std::vector<TokenSelection>> selection_of(const Model& model, std::span<const std::int32_t> tokens,
                                                      std::int64_t rows_at_once = 0) {
  std::vector<std::vector<TokenSelection>> layers;
  for_each_selection(
      model, tokens, [&](std::size_t, const LayerSelection& selection) { layers.push_back(summary(selection)); },
      rows_at_once);
  return layers;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
