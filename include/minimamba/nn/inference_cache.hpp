// InferenceCache: all that a model remembers of the tokens it has read. For each layer and row of the batch, the last
// K - 1 inputs of the convolution and the state h. Its size does not depend on how much was read.
#ifndef MINIMAMBA_NN_INFERENCE_CACHE_HPP
#define MINIMAMBA_NN_INFERENCE_CACHE_HPP

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/nn/s6.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A value: move it, clone() it, gather() rows of it. Made by Mamba::make_cache(). One cache serves one thread.
template <class Scalar = float, template <class> class Backend = NativeBackend>
class InferenceCache {
 public:
  static constexpr std::int64_t largest_batch = 1 << 20;

  /// A cache at position 0, all states zero. Throws ArgumentError unless batch is from 1 to largest_batch.
  InferenceCache(const MambaConfig& config, Backend<Scalar> backend, std::int64_t batch = 1)
      : config_(config.resolved()), backend_(std::move(backend)), positions_(checked(batch)) {
    layers_.resize(static_cast<std::size_t>(config_.n_layer));
    for (Layer& layer : layers_) {
      layer.conv = backend_.template allocate<Scalar>(this->batch() * d_inner() * conv_columns());
      layer.ssm = backend_.template allocate<Scalar>(this->batch() * d_inner() * d_state());
    }
  }
  InferenceCache(InferenceCache&&) noexcept = default;
  InferenceCache& operator=(InferenceCache&&) noexcept = default;

  std::size_t batch() const { return positions_.size(); }  // B
  std::int64_t position(std::size_t row = 0) const {
    return positions_[checked_row(row)];
  }  // tokens that the row has read
  const MambaConfig& config() const { return config_; }

  /// The window of one row, [E, K - 1], oldest first, and its state, [E, N].
  View<Scalar> conv(std::size_t layer, std::size_t row) { return one_row(state(layer).conv, row); }
  View<Scalar> ssm(std::size_t layer, std::size_t row) { return one_row(state(layer).ssm, row); }
  View<const Scalar> conv(std::size_t layer, std::size_t row) const { return mutable_self().conv(layer, row); }
  View<const Scalar> ssm(std::size_t layer, std::size_t row) const { return mutable_self().ssm(layer, row); }

  /// All rows of a layer at once: [B E, K - 1] and [B E, N].
  LayerState<Scalar> state(std::size_t layer) {
    if (layer >= layers_.size()) {
      throw ArgumentError("cache layer", "a layer below " + std::to_string(layers_.size()), std::to_string(layer));
    }
    Layer& l = layers_[layer];
    const std::size_t rows = batch() * d_inner();
    return {.conv = View<Scalar>(l.conv.data(), rows, conv_columns()),
            .ssm = View<Scalar>(l.ssm.data(), rows, d_state())};
  }

  /// Bytes of conv and ssm state of all layers and rows.
  std::size_t state_bytes() const {
    return layers_.size() * batch() * d_inner() * (conv_columns() + d_state()) * sizeof(Scalar);
  }

  /// Back to position 0.
  void reset() {
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
      backend_.fill(state(layer).conv, Scalar(0));
      backend_.fill(state(layer).ssm, Scalar(0));
    }
    std::fill(positions_.begin(), positions_.end(), 0);
  }

  /// A cache with the same value.
  InferenceCache clone() const {
    std::vector<std::size_t> rows(batch());
    for (std::size_t row = 0; row < rows.size(); ++row) rows[row] = row;
    return gather(rows);
  }

  /// A cache whose row i is row rows[i] of this one: repeat, drop or reorder sequences. `rows` is any range of whole
  /// numbers. Throws ArgumentError for an index that is no row, or for none at all.
  template <class Rows>
  InferenceCache gather(const Rows& rows) const {
    std::vector<std::size_t> sources;
    for (const auto row : rows) {
      if (std::cmp_less(row, 0) || std::cmp_greater_equal(row, batch())) {
        throw ArgumentError("InferenceCache::gather", "rows below " + std::to_string(batch()), std::to_string(row));
      }
      sources.push_back(static_cast<std::size_t>(row));
    }
    InferenceCache result(config_, backend_, static_cast<std::int64_t>(sources.size()));
    for (std::size_t row = 0; row < sources.size(); ++row) {
      result.copy_row(row, *this, sources[row]);
    }
    return result;
  }
  InferenceCache gather(std::initializer_list<std::size_t> rows) const {
    return gather<std::initializer_list<std::size_t>>(rows);
  }

  /// Row `row` becomes what row `source_row` of another cache of the same sizes is. Throws ArgumentError.
  void copy_row(std::size_t row, const InferenceCache& source, std::size_t source_row) {
    if (detail::sizes_of(source.config_) != detail::sizes_of(config_)) {
      throw ArgumentError("cache", "one of a model with " + detail::sizes_text(config_),
                          detail::sizes_text(source.config_));
    }
    positions_[checked_row(row)] = source.position(source_row);
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
      backend_.copy(source.conv(layer, source_row), conv(layer, row));
      backend_.copy(source.ssm(layer, source_row), ssm(layer, row));
    }
  }

  /// For whoever restores a state: the row has read so many tokens. Throws ArgumentError if that is negative.
  void set_position(std::size_t row, std::int64_t tokens) {
    if (tokens < 0) throw ArgumentError("position", "at least 0", std::to_string(tokens));
    positions_[checked_row(row)] = tokens;
  }

  /// For whoever runs layers by hand: every row has read `tokens` more.
  void advance(std::size_t tokens) {
    for (std::int64_t& position : positions_) position += static_cast<std::int64_t>(tokens);
  }
  Workspace<Backend<Scalar>>& workspace() { return workspace_; }

 private:
  struct Layer {
    typename Backend<Scalar>::template Buffer<Scalar> conv;  // [B, E, K - 1]
    typename Backend<Scalar>::template Buffer<Scalar> ssm;   // [B, E, N]
  };

  static std::size_t checked(std::int64_t batch) {
    if (batch >= 1 && batch <= largest_batch) return static_cast<std::size_t>(batch);
    throw ArgumentError("batch", "a number from 1 to " + std::to_string(largest_batch), std::to_string(batch));
  }
  std::size_t d_inner() const { return static_cast<std::size_t>(config_.d_inner()); }
  std::size_t d_state() const { return static_cast<std::size_t>(config_.d_state); }
  std::size_t conv_columns() const { return static_cast<std::size_t>(config_.d_conv - 1); }
  std::size_t checked_row(std::size_t row) const {
    if (row < batch()) return row;
    throw ArgumentError("cache row", "a row below " + std::to_string(batch()), std::to_string(row));
  }
  View<Scalar> one_row(View<Scalar> all, std::size_t row) const {
    return all.rows_from(checked_row(row) * d_inner(), d_inner());
  }
  InferenceCache& mutable_self() const { return const_cast<InferenceCache&>(*this); }

  MambaConfig config_;
  Backend<Scalar> backend_;
  std::vector<Layer> layers_;
  std::vector<std::int64_t> positions_;
  Workspace<Backend<Scalar>> workspace_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
