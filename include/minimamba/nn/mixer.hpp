// The interface of a mixer, the part of a block that passes information from token to token. Blocks, models, caches,
// training and files use only this interface, so a new mixer is a new header and no other header changes.
//
// A mixer is a template <class Scalar, template <class> class Backend, class Weight>, made from a resolved Config, with
// a table of its parameters (visit, see nn/parameters.hpp) and
//   using Config = ...;                                  of its models: a ModelConfig; MambaConfig if there is none
//   static std::vector<ModelSetting> settings(const Config&);                   its sizes and switches
//   static std::vector<StatePart> state_parts(const Config&);                   its state
//   static std::vector<std::size_t> activation_widths(const Config&);           columns of its activations
//   void forward(const Backend<Scalar>&, const MixerArguments<Scalar, ActivationOf<Backend<Scalar>>>&) const;
// A mixer whose activations may have the type that suits its weights has using ActivationType =
// ActivationOf<Backend<Scalar>, Weight>; its forward is then a template, and also called with Scalar.
// A mixer whose rows may depend on later rows has static constexpr bool causal = false; a language model of it does not
// compile. For training it also has
//   static std::size_t backward_scratch(const Config&);                         scratch values that backward needs
//   void backward(const Backend<Scalar>&, Gradient&, const MixerBackwardArguments<Scalar>&) const;
// where Gradient is the mixer of a module of gradients. It may have
//   void reserve(const Backend<Scalar>&, std::size_t rows) const;               scratch for calls of so many rows
//   void refresh(const Backend<Scalar>&);  void reserve_derived(const Backend<Scalar>&);  void check_derived() const;
//   void copy_derived(const Backend<Scalar>&, const Mixer& from);  std::size_t derived_bytes() const;
// for tensors that it derives from its parameters (compute, allocate, check, copy and count them), and
//   template <class F, class... Self> static void visit_derived(F&& f, Self&... self);
// for derived tensors that a file may hold in place of a parameter, and
//   template <class T> SelectionViews<Scalar, T> selection(const ActivationViews<T>&) const;
// for nn/selection.hpp, which shows what it selects. A mixer some of whose activations can be computed again from the
// others at little cost may name them and compute them, with the bits of forward:
//   static constexpr std::array recomputed{...};         indices of activation_widths, in ascending order
//   void recompute(const Backend<Scalar>&, const MixerArguments<Scalar>&) const;
// It does not use y, and of the state only the parts that are kept once are those before forward. A mixer that reads x
// in products alone may have
//   template <class T> bool reads_operand(const Backend<Scalar>&, View<T> x) const;   see backend/concept.hpp
// and passes x_is_operand on. One that derives from S6 has it: it says false if its forward reads x in other ways, too.
// What files say of its models is in io/known_mixers.hpp.
#ifndef MINIMAMBA_NN_MIXER_HPP
#define MINIMAMBA_NN_MIXER_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/backend/concept.hpp"
#include "minimamba/core/config.hpp"
#include "minimamba/core/library.hpp"
#include "minimamba/core/view.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A part of the state of a mixer: a [rows, cols] matrix for each sequence and layer.
struct StatePart {
  std::string name;
  std::size_t rows = 0, cols = 0;
  bool kept_once = false;  // backward needs it only before the first token of a segment, not before each chunk

  std::size_t size() const { return rows * cols; }
  bool operator==(const StatePart&) const = default;
};

/// A setting of a model: a size, a switch (is_switch) or a floating-point number (is_number). Messages list the
/// settings, and the fingerprints of state files are computed from them.
struct ModelSetting {
  std::string name;
  std::int64_t value = 0;
  bool is_switch = false;  // on or off: the value is 1 or 0
  bool is_number = false;  // the value has the bits of a double

  static ModelSetting number(std::string name, double x) {
    return {std::move(name), detail::bit_cast<std::int64_t>(x), false, true};
  }
  double as_double() const { return is_number ? detail::bit_cast<double>(value) : static_cast<double>(value); }
  /// "d_model 512", "no bias", "mixer_rms_eps 1e-06"
  std::string text() const {
    if (is_switch) return (value == 0 ? "no " : "") + name;
    return name + " " + (is_number ? number_text(as_double()) : std::to_string(value));
  }

  bool operator==(const ModelSetting&) const = default;
};

/// How the state of a sequence is stored in a slot of a cache (layer by layer, part by part), and the settings of the
/// model it belongs to. A model accepts a state only if its own layout is equal.
class StateLayout {
 public:
  StateLayout() = default;
  StateLayout(std::vector<StatePart> parts, std::size_t layers, std::vector<ModelSetting> settings = {})
      : layers_(layers) {
    for (const StatePart& part : parts) {
      places_.push_back({layer_size_, part.rows, part.cols});
      layer_size_ += part.size();
    }
    content_ = std::make_shared<const Content>(Content{std::move(parts), std::move(settings)});
  }

  const std::vector<StatePart>& parts() const { return content().parts; }
  const std::vector<ModelSetting>& settings() const { return content().settings; }
  /// The settings in words: "d_model 512, n_layer 6, no bias".
  std::string settings_text() const {
    std::string text;
    for (const ModelSetting& setting : settings()) text += (text.empty() ? "" : ", ") + setting.text();
    return text;
  }
  std::size_t layers() const { return layers_; }
  std::size_t size() const { return layers_ * layer_size_; }  // values in a slot
  /// Where a part of a layer's state begins, and its shape.
  struct Place {
    std::size_t offset, rows, cols;  // from the layer's first value
  };
  std::size_t offset(std::size_t layer) const { return layer * layer_size_; }
  const Place* places() const { return places_.data(); }
  /// The index of the part with that name; parts().size() if there is none.
  std::size_t find(std::string_view name) const {
    const auto is_it = [&](const StatePart& part) { return part.name == name; };
    return static_cast<std::size_t>(std::find_if(parts().begin(), parts().end(), is_it) - parts().begin());
  }
  bool operator==(const StateLayout& other) const {
    return layers_ == other.layers_ && (content_ == other.content_ || content() == other.content());
  }

 private:
  struct Content {
    std::vector<StatePart> parts;
    std::vector<ModelSetting> settings;

    bool operator==(const Content&) const = default;
  };
  const Content& content() const {
    static const Content none;  // of a layout that was moved from
    return content_ ? *content_ : none;
  }

  std::shared_ptr<const Content> content_;
  std::vector<Place> places_;
  std::size_t layers_ = 0, layer_size_ = 0;
};

namespace detail {

template <class MixerType>
struct ConfigOfMixer {
  using Type = MambaConfig;
};
template <class MixerType>
requires requires { typename MixerType::Config; }
struct ConfigOfMixer<MixerType> {
  using Type = typename MixerType::Config;
};

}  // namespace detail

/// The configuration of models with this mixer: its type Config, or MambaConfig.
template <class MixerType>
using ConfigOf = typename detail::ConfigOfMixer<MixerType>::Type;

/// The layout of a model whose blocks have this mixer. The configuration is a resolved one.
template <class MixerType>
StateLayout state_layout(const ConfigOf<MixerType>& config) {
  std::vector<ModelSetting> settings{{"d_model", config.d_model}, {"n_layer", config.n_layer}};
  const std::vector<ModelSetting> of_mixer = MixerType::settings(config);
  settings.insert(settings.end(), of_mixer.begin(), of_mixer.end());
  settings.push_back({"vocabulary", config.padded_vocab_size()});
  settings.push_back({"tie_embeddings", config.tie_embeddings, true});
  return {MixerType::state_parts(config), static_cast<std::size_t>(config.n_layer), std::move(settings)};
}

/// The parts of one layer's state, in all slots.
template <class Scalar>
class LayerState {
 public:
  /// slots: [slots, layout.size()]
  LayerState(View<Scalar> slots, const StateLayout& layout, std::size_t layer)
      : first_(slots.data() + layout.offset(layer)),
        slots_(slots.rows()),
        stride_(slots.stride()),
        places_(layout.places()) {}

  SlotView<Scalar> operator[](std::size_t part) const {
    const StateLayout::Place& place = places_[part];
    return {View<Scalar>(first_ + place.offset, place.rows, place.cols), slots_, stride_};
  }

 private:
  Scalar* first_;  // the layer's first value in the first slot
  std::size_t slots_, stride_;
  const StateLayout::Place* places_;
};

/// Matrices of M rows and several widths: the activations of a layer, or their gradients.
struct ActivationMatrix {
  void* data;
  std::size_t cols;
};
template <class T>
class ActivationViews {
 public:
  using Matrix = ActivationMatrix;

  ActivationViews() = default;
  ActivationViews(std::span<const Matrix> matrices, std::size_t rows) : matrices_(matrices), rows_(rows) {}

  View<T> operator[](std::size_t index) const {
    return {static_cast<T*>(matrices_[index].data), rows_, matrices_[index].cols};
  }
  /// The matrices from index `first` on.
  ActivationViews from(std::size_t first) const { return {matrices_.subspan(first), rows_}; }

 private:
  std::span<const Matrix> matrices_;
  std::size_t rows_ = 0;
};

template <class Scalar, class Activation = Scalar>
struct MixerArguments {
  std::span<const Segment> segments;
  View<const Activation> x;                       // [M, D], the normed residual stream
  LayerState<Scalar> state;                       // read and written
  ActivationViews<Activation> activations;        // [M, each of activation_widths], overwritten
  View<Scalar> y;                                 // [M, D], not x
  std::span<const KeptStates<Scalar>> kept = {};  // for each part of the state, or none
  bool x_is_operand = false;                      // only where reads_operand says so

  KeptStates<Scalar> kept_of(std::size_t part) const { return kept.empty() ? KeptStates<Scalar>() : kept[part]; }
};

/// Backward adds to the gradients of parameters, and overwrites those of activations.
template <class Scalar>
struct MixerBackwardArguments {
  std::span<const Segment> segments;  // those of forward, like the next three
  View<const Scalar> x;               // [M, D]
  ActivationViews<Scalar> activations;
  std::span<const KeptStates<Scalar>> kept;
  View<const Scalar> d_y;                 // [M, D]
  View<Scalar> d_x;                       // [M, D], overwritten
  ActivationViews<Scalar> d_activations;  // overwritten
  View<Scalar> scratch;                   // [1, backward_scratch], overwritten
  LayerState<Scalar> d_state;             // in: of the final state; out: of the initial one
  bool x_is_operand = false;              // as in forward
  View<const Scalar> d_y_operand = {};    // d_y once more, as an operand, or empty
};

/// What a mixer selects with: at each token, it multiplies state n of channel c by exp(dt a(c, n)), where dt is
/// softplus(delta + bias) of that token and channel, clamped to dt_min and dt_max.
template <class Scalar, class Activation = Scalar>
struct SelectionViews {
  View<const Activation> delta;  // [M, C], of the last forward
  View<const Scalar> bias;       // [1, C]
  View<const Scalar> a;          // [C, N], not above 0
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();
};

namespace detail {

/// The type of a mixer's activations.
template <class MixerType, class B>
struct TypeOfActivations {
  using Type = ActivationOf<B>;
};
template <class MixerType, class B>
requires requires { typename MixerType::ActivationType; }
struct TypeOfActivations<MixerType, B> {
  using Type = typename MixerType::ActivationType;
};
template <class MixerType, class B>
using ActivationOfMixer = typename TypeOfActivations<MixerType, B>::Type;

/// Calls body.template operator()<T>() for the type that activations have: A, or Scalar where the backend keeps all
/// bits.
template <class A, class B, class Body>
void with_activations(const B& backend, Body&& body) {
  if constexpr (!std::is_same_v<A, ActivationOf<B>>) {
    if (backend.activations() == Activations::exact) return body.template operator()<typename B::Scalar>();
  }
  body.template operator()<A>();
}

/// Whether no row depends on later ones.
template <class MixerType>
inline constexpr bool is_causal = [] {
  if constexpr (requires { MixerType::causal; }) return bool{MixerType::causal};
  return true;
}();

template <class Scalar>
KeptStates<const Scalar> as_constant(const KeptStates<Scalar>& kept) {
  return {kept.chunk, kept.states};
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
