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
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <utility>
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
      : of_(&selection),
        channels_(selection.channels),
        states_(selection.states),
        room_(selection.tokens + 1),
        sums_(channels_ * room_),
        begins_(selection.a.size()),
        needed_(begins_.size()) {
    std::transform(selection.a.begin(), selection.a.end(), needed_.begin(), [](double a) { return 1 / std::abs(a); });
  }

  /// Goes to the next token of the selection, of which there are selection.tokens, and calls body(reach) for each state
  /// of each channel. The selection must outlive this.
  template <class Body>
  void next(Body&& body) {
    next(std::span(of_->dt).subspan(read_ * channels_, channels_), body);
  }
  /// The same for a token with this dt [C], which is copied: for sequences that grow.
  template <class Body>
  void next(std::span<const double> dt, Body&& body) {
    if (read_ + 1 == room_) grow();
    ++read_;
    for (std::size_t channel = 0, i = 0; channel < channels_; ++channel) {
      double* const sums = sums_.data() + channel * room_;
      const double now = sums[read_ - 1] + dt[channel];
      sums[read_] = now;
      for (const std::size_t end = i + states_; i < end; ++i) {
        // A state fades from `begin` to this token if the sum of dt between them is more than it needs.
        const double needed = needed_[i];
        std::size_t begin = begins_[i];  // only grows, so that all tokens together cost two passes
        while (begin + 1 < read_ && now - sums[begin + 1] > needed) ++begin;
        begins_[i] = begin;
        body(begin > 0 || now > needed ? read_ - begin : beyond_the_prompt);
      }
    }
  }
  std::size_t read() const { return read_; }

 private:
  void grow() {
    std::vector<double> more(2 * sums_.size());
    for (std::size_t channel = 0; channel < channels_; ++channel) {
      std::copy_n(sums_.data() + channel * room_, room_, more.data() + 2 * channel * room_);
    }
    sums_ = std::move(more);
    room_ *= 2;
  }

  const LayerSelection* of_;
  std::size_t channels_, states_, room_, read_ = 0;
  std::vector<double> sums_;         // [C, room], of dt of the tokens before each
  std::vector<std::size_t> begins_;  // [C, N], the last place from which that state fades to the current token
  std::vector<double> needed_;       // [C, N], the sum of dt that takes it below 1/e
};

/// Sums up what a layer selects, token by token. Memory grows by C numbers a token.
class SelectionSummary {
 public:
  /// A selection of any number of tokens, of which only A is used.
  explicit SelectionSummary(const LayerSelection& selection) : states_(selection.a.size()), reach_(selection) {}

  /// The next token, with this dt [C].
  TokenSelection next(std::span<const double> dt) {
    TokenSelection token;
    sorted_.assign(dt.begin(), dt.end());
    for (const double value : sorted_) token.mean_dt += value / static_cast<double>(dt.size());
    std::sort(sorted_.begin(), sorted_.end(), std::less<>());  // the default is slow in libc++, compiled for size
    counts_.assign(reach_.read() + 3, 0);                      // states of each reach; the last is beyond the prompt
    reach_.next(dt, [&](std::size_t tokens) { ++counts_[std::min(tokens, counts_.size() - 1)]; });
    std::size_t at = 0, passed = counts_[0];  // states whose reach is at most `at`
    for (std::size_t i = 0; i < token.dt.size(); ++i) {
      token.dt[i] = sorted_[detail::quantile_index(TokenSelection::percentiles[i], dt.size())];
      const std::size_t place = detail::quantile_index(TokenSelection::percentiles[i], states_);
      while (passed <= place) passed += counts_[++at];
      token.reach[i] = at + 1 == counts_.size() ? beyond_the_prompt : at;
    }
    return token;
  }

 private:
  std::size_t states_;
  Reach reach_;
  std::vector<double> sorted_;
  std::vector<std::size_t> counts_;
};

/// What a layer selected, token by token.
inline std::vector<TokenSelection> summary(const LayerSelection& selection) {
  std::vector<TokenSelection> all;
  all.reserve(selection.tokens);
  SelectionSummary tokens(selection);
  for (std::size_t t = 0; t < selection.tokens; ++t) {
    all.push_back(tokens.next(std::span(selection.dt).subspan(t * selection.channels, selection.channels)));
  }
  return all;
}

/// A model whose blocks can say what they select.
template <class Model>
concept HasSelection = requires(const typename Model::MixerType& mixer,
                                const ActivationViews<typename Model::ScalarType>& views) {
  mixer.selection(views);
};

/// Reads a sequence in parts of any size, and says what each layer selects at each token, and what the model says after
/// the last one: the blocks of the model's own forward, layer by layer. The model must outlive it.
template <HasSelection Model>
class SelectionReader {
 public:
  using Backend = typename Model::BackendType;
  using Scalar = typename Backend::Scalar;

  /// At most `rows_at_once` tokens pass through a layer together (0: as many as suit the backend); it changes nothing
  /// in the result where the backend splits exactly. Throws ArgumentError.
  explicit SelectionReader(const Model& model, std::int64_t rows_at_once = 0)
      : model_(model), cache_(model.make_cache()), a_(model.layers.size()) {
    if (rows_at_once < 0) throw ArgumentError("rows_at_once", "at least 0", std::to_string(rows_at_once));
    rows_at_once_ = rows_at_once > 0 ? static_cast<std::size_t>(rows_at_once) : BackendTraits<Backend>::rows_at_once;
  }

  /// Reads more tokens and calls body(layer, selection) with the LayerSelection of each layer at these tokens, in
  /// order. Throws ArgumentError for no tokens and for a token id that the model does not have, before it reads any;
  /// and for a model whose dt is not finite. After that, or if body throws, this can only be destroyed.
  template <class Body>
  void read(std::span<const std::int32_t> tokens, Body&& body) {
    model_.check(tokens, cache_);
    if (tokens.empty()) throw ArgumentError("tokens", "at least one token", "none");
    const Backend& backend = model_.backend();
    const std::size_t rows = std::min(tokens.size(), rows_at_once_), D = model_.norm_f.weight.cols();
    ids_.reserve(backend, 1, tokens.size());
    x_.reserve(backend, tokens.size(), D);
    out_.reserve(backend, rows, D);
    model_.embedding.forward(backend, ids_.upload(backend, tokens), x_(tokens.size()));
    detail::with_activations<typename Model::Block::ActivationType>(backend, [&]<class A>() {
      activations_.template reserve<A>(backend, Model::Block::activation_widths(model_.config()), rows);
      for (std::size_t layer = 0; layer < model_.layers.size(); ++layer) {
        LayerSelection selection = pass_through<A>(layer, x_(tokens.size()), out_(rows));
        body(layer, std::as_const(selection));
        a_[layer] = std::move(selection.a);
      }
    });
    read_ = tokens.size();
  }

  /// The logits [1, V] after the last token that was read, with the bits of Model::forward_last. Valid until the next
  /// call. Throws ArgumentError if nothing was read.
  typename Model::Logits logits() {
    if (read_ == 0) throw ArgumentError("tokens", "at least one token before logits", "none");
    const Backend& backend = model_.backend();
    model_.head().reserve(backend, 1);
    logits_.reserve(backend, 1, model_.embedding.weight.rows());
    detail::with_activations<typename Model::Block::ActivationType>(backend, [&]<class A>() {
      const View<A> normed = activations_.template of<A>(1)[0];
      model_.norm_f.forward(backend, View<const Scalar>(x_(read_).rows_from(read_ - 1, 1)), normed);
      model_.head_forward(normed, logits_(1));
    });
    return typename Model::Logits(logits_(1));
  }

 private:
  /// Passes rows of the residual stream x [M, D] through a layer, as many at a time as `out`, scratch, has rows.
  template <class A>
  LayerSelection pass_through(std::size_t layer, View<Scalar> x, View<Scalar> out) {
    const Backend& backend = model_.backend();
    const auto& block = model_.layers[layer];
    LayerSelection selection;
    for (std::size_t first = 0; first < x.rows(); first += out.rows()) {
      const std::size_t count = std::min(out.rows(), x.rows() - first);
      const Segment segment{.first = 0, .length = count, .slot = 0};
      const auto activations = activations_.template of<A>(count);
      block.forward(backend, BlockArguments<Scalar, A>{.segments = std::span(&segment, 1),
                                                       .x = x.rows_from(first, count),
                                                       .state = cache_.state(layer),
                                                       .activations = activations,
                                                       .out = out.rows_from(0, count)});
      const SelectionViews<Scalar, A> selected = block.mixer.selection(activations.from(1));
      if (first == 0) {
        selection = {.channels = selected.a.rows(), .states = selected.a.cols(), .a = std::move(a_[layer])};
        if (selection.a.empty()) selection.a = detail::on_host(backend, selected.a);
      }
      detail::add_dt(backend, selected, layer, selection);
    }
    return selection;
  }

  const Model& model_;
  typename Model::Cache cache_;
  std::vector<std::vector<double>> a_;  // of each layer, once it has been read
  std::size_t rows_at_once_ = 0, read_ = 0;
  Activation<Backend, std::int32_t> ids_;
  Activation<Backend> x_, out_, logits_;  // x_ holds the last part that was read
  ActivationBuffer<Backend> activations_;
};

/// Reads a sequence from its beginning, layer by layer, and calls body(layer, selection) with the LayerSelection of
/// each layer, in order. Memory grows with the tokens by the residual stream and by one LayerSelection. `rows_at_once`
/// is as in SelectionReader, and so are the exceptions.
template <HasSelection Model, class Body>
void for_each_selection(const Model& model, std::span<const std::int32_t> tokens, Body&& body,
                        std::int64_t rows_at_once = 0) {
  SelectionReader<Model>(model, rows_at_once).read(tokens, body);
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
