// A mixer of one's own: two S6, one of which reads each sequence from its end to its beginning, so that every row
// depends on all rows of its sequence. For classifying and tagging; a language model of it does not compile.
//
//   minimamba::SequenceModel<float, minimamba::NativeTraining, float, BidirectionalS6> model(...);
//
// A whole sequence must be read in one call, because the reading from its end begins anew in each.
#ifndef MINIMAMBA_EXAMPLES_BIDIRECTIONAL_HPP
#define MINIMAMBA_EXAMPLES_BIDIRECTIONAL_HPP

#include <minimamba/minimamba.hpp>

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

/// y = S6(x) + reversed(S6'(reversed(x)))
template <class Scalar, template <class> class Backend, class Weight>
struct BidirectionalS6 {
  using Half = minimamba::S6<Scalar, Backend, Weight>;
  using Config = minimamba::MambaConfig;
  template <class T>
  using View = minimamba::View<T>;

  static constexpr bool causal = false;

  Half left_to_right, right_to_left;

  BidirectionalS6() = default;
  explicit BidirectionalS6(const Config& config)
      : left_to_right(config),
        right_to_left(config),
        half_(Half::state_parts(config), 1),
        half_activations_(Half::activation_widths(config).size()) {}

  static std::vector<minimamba::ModelSetting> settings(const Config& config) {
    std::vector<minimamba::ModelSetting> settings = Half::settings(config);
    settings.push_back({"bidirectional", 1, true});
    return settings;
  }
  /// Those of left_to_right, and then those of right_to_left.
  static std::vector<minimamba::StatePart> state_parts(const Config& config) {
    std::vector<minimamba::StatePart> parts = Half::state_parts(config);
    for (minimamba::StatePart part : Half::state_parts(config)) {
      part.name += "_reversed";
      parts.push_back(std::move(part));
    }
    return parts;
  }
  /// The activations of left_to_right; the reversed input; those of right_to_left; its output.
  static std::vector<std::size_t> activation_widths(const Config& config) {
    const std::vector<std::size_t> half = Half::activation_widths(config);
    const auto D = static_cast<std::size_t>(config.d_model);
    std::vector<std::size_t> widths = half;
    widths.push_back(D);
    widths.insert(widths.end(), half.begin(), half.end());
    widths.push_back(D);
    return widths;
  }
  static std::size_t backward_scratch(const Config& config) { return Half::backward_scratch(config); }

  void reserve(const Backend<Scalar>& backend, std::size_t rows) const { left_to_right.reserve(backend, rows); }
  void refresh(const Backend<Scalar>& backend) {
    left_to_right.refresh(backend);
    right_to_left.refresh(backend);
  }
  void reserve_derived(const Backend<Scalar>& backend) {
    left_to_right.reserve_derived(backend);
    right_to_left.reserve_derived(backend);
  }
  void check_derived() const {
    left_to_right.check_derived();
    right_to_left.check_derived();
  }
  void copy_derived(const Backend<Scalar>& backend, const BidirectionalS6& from) {
    left_to_right.copy_derived(backend, from.left_to_right);
    right_to_left.copy_derived(backend, from.right_to_left);
  }
  std::size_t derived_bytes() const { return left_to_right.derived_bytes() + right_to_left.derived_bytes(); }

  void forward(const Backend<Scalar>& backend, const minimamba::MixerArguments<Scalar>& p) const {
    const View<Scalar> x = p.activations[half_activations_], y = p.activations[2 * half_activations_ + 1];
    left_to_right.forward(backend, p);
    copy_reversed(backend, p.segments, p.x, x);
    clear_states(backend, p.segments, p.state);
    right_to_left.forward(backend, minimamba::MixerArguments<Scalar>{
                                       .segments = p.segments,
                                       .x = x,
                                       .state = second_half(p.state),
                                       .activations = p.activations.from(half_activations_ + 1),
                                       .y = y,
                                       .kept = p.kept.empty() ? p.kept : p.kept.subspan(half_.parts().size())});
    add_reversed(backend, p.segments, y, p.y);
  }

  void backward(const Backend<Scalar>& backend, BidirectionalS6& gradient,
                const minimamba::MixerBackwardArguments<Scalar>& p) const {
    const View<Scalar> d_x = p.d_activations[half_activations_], d_y = p.d_activations[2 * half_activations_ + 1];
    left_to_right.backward(backend, gradient.left_to_right, p);
    copy_reversed(backend, p.segments, p.d_y, d_y);
    right_to_left.backward(backend, gradient.right_to_left,
                           {.segments = p.segments,
                            .x = p.activations[half_activations_],
                            .activations = p.activations.from(half_activations_ + 1),
                            .kept = p.kept.subspan(half_.parts().size()),
                            .d_y = d_y,
                            .d_x = d_x,
                            .d_activations = p.d_activations.from(half_activations_ + 1),
                            .scratch = p.scratch,
                            .d_state = second_half(p.d_state)});
    clear_states(backend, p.segments, p.d_state);  // the forward pass ignores the initial state of this half
    add_reversed(backend, p.segments, d_x, p.d_x);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("left_to_right", self.left_to_right...);
    f("right_to_left", self.right_to_left...);
  }

 private:
  using Segments = std::span<const minimamba::Segment>;

  /// Calls body(row, mirrored row) for each row of each sequence.
  template <class Body>
  static void for_each_row(Segments segments, Body&& body) {
    for (const minimamba::Segment& segment : segments) {
      for (std::size_t i = 0; i < segment.length; ++i) body(segment.first + i, segment.first + segment.length - 1 - i);
    }
  }
  /// y = x, each sequence from its end to its beginning. A backend's copy of a row is a kernel: nothing here touches
  /// the numbers.
  static void copy_reversed(const Backend<Scalar>& backend, Segments segments, View<const Scalar> x, View<Scalar> y) {
    for_each_row(segments,
                 [&](std::size_t row, std::size_t other) { backend.copy(x.rows_from(row, 1), y.rows_from(other, 1)); });
  }
  static void add_reversed(const Backend<Scalar>& backend, Segments segments, View<const Scalar> x, View<Scalar> y) {
    for_each_row(segments,
                 [&](std::size_t row, std::size_t other) { backend.add(x.rows_from(row, 1), y.rows_from(other, 1)); });
  }
  void clear_states(const Backend<Scalar>& backend, Segments segments,
                    const minimamba::LayerState<Scalar>& state) const {
    const std::size_t parts = half_.parts().size();
    for (const minimamba::Segment& segment : segments) {
      for (std::size_t part = parts; part < 2 * parts; ++part) backend.fill(state[part][segment.slot], Scalar(0));
    }
  }
  /// The state of right_to_left, which lies after that of left_to_right.
  minimamba::LayerState<Scalar> second_half(const minimamba::LayerState<Scalar>& state) const {
    const minimamba::SlotView<Scalar> first = state[half_.parts().size()];
    return {View<Scalar>(first.first().data(), first.slots(), half_.size(), first.stride()), half_, 0};
  }

  minimamba::StateLayout half_;  // of the state of one S6
  std::size_t half_activations_ = 0;
};

#endif
