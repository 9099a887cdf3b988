// InferenceCache: the state of a model after the tokens it has read. Each sequence has a slot, which holds what the
// mixers carry from token to token. Its size does not depend on how many tokens were read.
#ifndef MINIMAMBA_NN_INFERENCE_CACHE_HPP
#define MINIMAMBA_NN_INFERENCE_CACHE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/backend/concept.hpp"
#include "minimamba/nn/layers.hpp"
#include "minimamba/nn/mixer.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A value: move it, clone() it, gather() some of its slots. Made by Mamba::make_cache(). Use a cache in one thread at
/// a time. All states are in one allocation, [B, layout().size()].
template <class Scalar = float, template <class> class Backend = NativeBackend>
class InferenceCache {
 public:
  using ScalarType = Scalar;
  using WorkspaceType = Workspace<Backend<Scalar>>;
  static constexpr std::int64_t largest_batch = 1 << 20;

  /// A cache at position 0, all states zero. Throws ArgumentError unless batch is from 1 to largest_batch.
  InferenceCache(StateLayout layout, Backend<Scalar> backend, std::int64_t batch = 1)
      : layout_(std::move(layout)), backend_(std::move(backend)), positions_(checked(batch)) {
    if (layout_.size() > static_cast<std::size_t>(-1) / positions_.size()) throw std::bad_array_new_length();
    states_ = backend_.template allocate<Scalar>(positions_.size() * layout_.size());
  }
  InferenceCache(InferenceCache&&) noexcept = default;
  InferenceCache& operator=(InferenceCache&&) noexcept = default;

  std::size_t batch() const { return positions_.size(); }  // B, the number of slots
  /// How many tokens a slot has read. Throws ArgumentError.
  std::int64_t position(std::size_t slot = 0) const { return positions_[checked_slot(slot)]; }
  const StateLayout& layout() const { return layout_; }

  /// A named part of the state of a layer in one slot. Throws ArgumentError.
  View<Scalar> state(std::size_t layer, std::size_t slot, std::string_view name) {
    const std::size_t part = layout_.find(name);
    if (part == layout_.parts().size()) throw ArgumentError("cache state", parts_text(), std::string(name));
    return state(layer)[part][checked_slot(slot)];
  }
  View<const Scalar> state(std::size_t layer, std::size_t slot, std::string_view name) const {
    return mutable_self().state(layer, slot, name);
  }
  /// For S6: the window of the convolution, [E, K - 1], oldest first, and the state h, [E, N].
  View<Scalar> conv(std::size_t layer, std::size_t slot) { return state(layer, slot, "conv"); }
  View<Scalar> ssm(std::size_t layer, std::size_t slot) { return state(layer, slot, "ssm"); }
  View<const Scalar> conv(std::size_t layer, std::size_t slot) const { return state(layer, slot, "conv"); }
  View<const Scalar> ssm(std::size_t layer, std::size_t slot) const { return state(layer, slot, "ssm"); }

  /// One layer's states in all slots. It refers to this cache: do not move the cache while it is used. Throws
  /// ArgumentError.
  LayerState<Scalar> state(std::size_t layer) {
    if (layer >= layout_.layers() || batch() == 0) {
      throw ArgumentError("cache layer", "a layer below " + std::to_string(layout_.layers()), std::to_string(layer));
    }
    return {states(), layout_, layer};
  }
  /// The whole state of a slot, [1, layout().size()]: layer by layer, part by part.
  View<Scalar> slot(std::size_t slot) { return states().rows_from(checked_slot(slot), 1); }
  View<const Scalar> slot(std::size_t slot) const { return mutable_self().slot(slot); }

  /// Bytes of the states of all layers and slots.
  std::size_t state_bytes() const { return batch() * layout_.size() * sizeof(Scalar); }

  /// Bytes of memory that the cache holds: the states, those kept for rollback(), and its own workspace.
  std::size_t memory_bytes() const {
    return (states_.size() + kept_states_.size()) * sizeof(Scalar) +
           (positions_.capacity() + order_.capacity()) * sizeof(std::int64_t) + kept_.capacity() * sizeof(Kept) +
           workspace_.memory_bytes();
  }

  /// Back to position 0.
  void reset() {
    backend_.fill(states(), Scalar(0));
    std::fill(positions_.begin(), positions_.end(), 0);
    kept_.clear();
  }
  void reset(std::size_t slot) {
    backend_.fill(this->slot(slot), Scalar(0));
    positions_[slot] = 0;
    forget_kept(slot);
  }

  /// A copy of the states and positions, without those kept by keep_every().
  InferenceCache clone() const {
    InferenceCache copy(layout_, backend_, static_cast<std::int64_t>(batch()));
    copy.assign(*this);
    return copy;
  }

  /// A cache whose slot i is slot slots[i] of this one: repeat, drop or reorder sequences. `slots` is any range of
  /// integers. Throws ArgumentError if it is empty or has an index that is not a slot.
  template <class Slots>
  InferenceCache gather(const Slots& slots) const {
    std::vector<std::size_t> sources;
    for (const auto slot : slots) {
      if (std::cmp_less(slot, 0) || std::cmp_greater_equal(slot, batch())) {
        throw ArgumentError("InferenceCache::gather", "slots below " + std::to_string(batch()), std::to_string(slot));
      }
      sources.push_back(static_cast<std::size_t>(slot));
    }
    InferenceCache result(layout_, backend_, static_cast<std::int64_t>(sources.size()));
    backend_.gather_rows(mutable_self().states(), sources, result.states());
    for (std::size_t i = 0; i < sources.size(); ++i) result.positions_[i] = positions_[sources[i]];
    return result;
  }
  InferenceCache gather(std::initializer_list<std::size_t> slots) const {
    return gather<std::initializer_list<std::size_t>>(slots);
  }

  /// Slot i becomes what slot slots[i] was, in place: a slot may be repeated, and one that is not named is lost. Throws
  /// ArgumentError unless there are batch() indices, each below batch().
  void reorder(std::span<const std::size_t> slots) {
    if (slots.size() != batch()) {
      throw ArgumentError("InferenceCache::reorder", std::to_string(batch()) + " slots", std::to_string(slots.size()));
    }
    for (const std::size_t slot : slots) checked_slot(slot);
    order_.resize(batch());
    for (std::size_t i = 0; i < batch(); ++i) order_[i] = positions_[slots[i]];
    reorder_kept(slots);
    backend_.reorder_rows(states(), slots);
    positions_.swap(order_);
  }

  /// Copies the states and positions of another cache of the same sizes and batch. Throws ArgumentError.
  void assign(const InferenceCache& other) {
    check_like(other);
    if (other.batch() != batch()) {
      throw ArgumentError("cache", "one of " + std::to_string(batch()) + " slots", std::to_string(other.batch()));
    }
    backend_.copy(other.mutable_self().states(), states());
    positions_ = other.positions_;
    kept_.clear();
  }
  /// Copies slot `other_slot` of a cache of the same sizes to slot `slot`. Throws ArgumentError.
  void assign(std::size_t slot, const InferenceCache& other, std::size_t other_slot) {
    check_like(other);
    const std::int64_t position = other.position(other_slot);
    backend_.copy(other.slot(other_slot), this->slot(slot));
    positions_[slot] = position;
    forget_kept(slot);
  }

  /// Makes each call of forward keep, for rollback(), the state of a slot before every `tokens` tokens that it reads
  /// (and before each chunk of a long run). What the previous call kept is dropped. Kept states move with their slot in
  /// reorder(), and are dropped when the slot gets another state. 0 keeps none and frees their memory.
  /// Throws ArgumentError for a negative number.
  void keep_every(std::int64_t tokens) {
    if (tokens < 0) throw ArgumentError("keep_every", "at least 0 tokens", std::to_string(tokens));
    keep_every_ = tokens;
    kept_.clear();
    if (tokens == 0) kept_states_ = {};
  }
  std::int64_t keeps_every() const { return keep_every_; }
  /// The positions to which a slot can return, in ascending order.
  std::vector<std::int64_t> kept_positions(std::size_t slot) const {
    std::vector<std::int64_t> positions;
    checked_slot(slot);
    for (const Kept& kept : kept_) {
      if (kept.slot == slot) positions.push_back(kept.position);
    }
    return positions;
  }
  /// Returns a slot to a position that the last call kept, as if it had not read the tokens after it. Throws
  /// ArgumentError for a position that was not kept.
  void rollback(std::size_t slot, std::int64_t position) {
    checked_slot(slot);
    for (const Kept& kept : kept_) {
      if (kept.slot != slot || kept.position != position) continue;
      backend_.copy(View<const Scalar>(kept_states_.data() + kept.row * layout_.size(), 1, layout_.size()),
                    this->slot(slot));
      positions_[slot] = position;
      return;
    }
    throw ArgumentError("position", "one of kept_positions()", std::to_string(position));
  }

  /// For models that keep states: allocates memory for `count` states, none of them kept yet.
  void reserve_kept(std::size_t count) {
    kept_.clear();
    kept_rows_ = 0;
    kept_.reserve(count);
    if (kept_states_.size() >= count * layout_.size()) return;
    kept_states_ = {};
    kept_states_ = backend_.template allocate<Scalar>(count * layout_.size());
  }
  /// The memory for the states of a layer that are kept next.
  void kept_of(std::size_t layer, std::vector<KeptStates<Scalar>>& parts) {
    parts.clear();
    const View<Scalar> all(kept_states_.data(), kept_states_.size() / std::max<std::size_t>(layout_.size(), 1),
                           layout_.size());
    const LayerState<Scalar> states(all.rows_from(kept_rows_, all.rows() - kept_rows_), layout_, layer);
    for (std::size_t part = 0; part < layout_.parts().size(); ++part) {
      parts.push_back({static_cast<std::size_t>(keep_every_), states[part]});
    }
  }
  void note_kept(std::size_t slot, std::int64_t position) { kept_.push_back({slot, position, kept_rows_++}); }

  /// More tokens than any sequence has, with room to count on.
  static constexpr std::int64_t largest_position = std::int64_t{1} << 62;

  /// For code that restores a state: sets how many tokens the slot has read. Throws ArgumentError unless that is from 0
  /// to largest_position.
  void set_position(std::size_t slot, std::int64_t tokens) {
    if (tokens < 0 || tokens > largest_position) {
      throw ArgumentError("position", "0 to 2^62", std::to_string(tokens));
    }
    positions_[checked_slot(slot)] = tokens;
    forget_kept(slot);
  }

  /// For code that runs layers itself: a slot has read `tokens` more.
  void advance_slot(std::size_t slot, std::size_t tokens) { positions_[slot] += static_cast<std::int64_t>(tokens); }

  /// The workspace that forward uses unless another one is passed.
  WorkspaceType& workspace() { return workspace_; }
  /// Frees the memory of its own workspace, which invalidates views of logits in it. Only the state remains.
  void release_workspace() { workspace_ = {}; }

 private:
  struct Kept {
    std::size_t slot;
    std::int64_t position;
    std::size_t row;  // of kept_states_
  };

  void forget_kept(std::size_t slot) {
    std::erase_if(kept_, [&](const Kept& kept) { return kept.slot == slot; });
  }
  void reorder_kept(std::span<const std::size_t> slots) {
    if (kept_.empty()) return;
    std::vector<Kept> moved;
    for (std::size_t i = 0; i < slots.size(); ++i) {
      for (const Kept& kept : kept_) {
        if (kept.slot == slots[i]) moved.push_back({i, kept.position, kept.row});
      }
    }
    kept_ = std::move(moved);
  }

  static std::size_t checked(std::int64_t batch) {
    if (batch >= 1 && batch <= largest_batch) return static_cast<std::size_t>(batch);
    throw ArgumentError("batch", "an integer from 1 to " + std::to_string(largest_batch), std::to_string(batch));
  }
  std::size_t checked_slot(std::size_t slot) const {
    if (slot < batch()) return slot;
    throw ArgumentError("cache slot", "a slot below " + std::to_string(batch()), std::to_string(slot));
  }
  void check_like(const InferenceCache& other) const {
    if (other.layout_ == layout_) return;
    throw ArgumentError("cache", "one of a model with " + layout_.settings_text(), other.layout_.settings_text());
  }
  std::string parts_text() const {
    std::string text = "one of";
    for (const StatePart& part : layout_.parts()) text += " " + part.name;
    return text;
  }
  View<Scalar> states() { return {states_.data(), batch(), layout_.size()}; }
  InferenceCache& mutable_self() const { return const_cast<InferenceCache&>(*this); }

  StateLayout layout_;
  Backend<Scalar> backend_;
  std::vector<std::int64_t> positions_, order_;
  typename Backend<Scalar>::template Buffer<Scalar> states_;       // [B, layout.size()]
  std::int64_t keep_every_ = 0;                                    // tokens
  std::vector<Kept> kept_;                                         // which state is in which row of kept_states_
  std::size_t kept_rows_ = 0;                                      // rows in use
  typename Backend<Scalar>::template Buffer<Scalar> kept_states_;  // [rows, layout.size()]
  WorkspaceType workspace_;
};

namespace detail {

template <class BackendType>
struct CacheOf;
template <class Scalar, template <class> class Backend>
struct CacheOf<Backend<Scalar>> {
  using Type = InferenceCache<Scalar, Backend>;
};

/// The cache of models of a backend.
template <class Scalar, template <class> class Backend>
using CacheFor = typename CacheOf<typename CacheBackend<Backend<Scalar>>::Type>::Type;

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
