// The adapters of a whole model: adding them, and merging them into the weights.
#ifndef MINIMAMBA_NN_ADAPTERS_HPP
#define MINIMAMBA_NN_ADAPTERS_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/core/hash.hpp"
#include "minimamba/core/random.hpp"
#include "minimamba/nn/freeze.hpp"
#include "minimamba/nn/lora.hpp"
#include "minimamba/nn/mamba.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Adapters that are to be trained, with the names of PEFT's LoraConfig.
struct LoraOptions {
  std::int64_t rank = 8;
  double alpha = 16;
  bool rank_stabilized = false;  // scales by alpha / sqrt(rank) instead of alpha / rank
  /// Which matrices: in_proj, x_proj, dt_proj, out_proj, embedding and lm_head, the last two only if they are not tied.
  /// PEFT itself refuses adapters of out_proj in Mamba models, since version 0.18. See default_targets for other
  /// mixers.
  std::vector<std::string> targets = {"in_proj", "x_proj"};
  std::uint64_t seed = 0;  // of the first values
};

namespace detail {

template <class Module>
inline constexpr bool is_adaptable = false;
template <class Backend, class W>
inline constexpr bool is_adaptable<WeightMatrix<Backend, Lora<W>>> = true;

/// Calls body(name, matrix) for each matrix that may have an adapter. The name is that of its layer: embedding, or
/// layers.3.mixer.in_proj.
template <class Body, class Module>
void for_each_adaptable(Body&& body, Module& module, const std::string& name = "") {
  using Type = std::remove_const_t<Module>;
  if constexpr (is_adaptable<Type>) {
    if (module.base.present()) body(name.substr(0, name.rfind('.')), module);
  } else if constexpr (!Parameter<Type>) {
    Type::visit([&](std::string_view part, auto& below) { for_each_adaptable(body, below, joined(name, part)); },
                module);
  }
}

/// Whether the model's embedding is also its head.
template <class Model>
bool is_tied(const Model& model) {
  if constexpr (requires { model.config().tie_embeddings&& model.embedding.weight.rows(); }) {
    return model.config().tie_embeddings;
  }
  return false;
}

/// Why the tied embedding has no adapter.
inline constexpr const char* tied_text =
    "the embedding is also the head (tie_embeddings), and an adapter would change only one of the two";

/// The last word of the name of a layer.
inline std::string_view last_word(std::string_view name) { return name.substr(name.rfind('.') + 1); }

/// Whether the scale is in the range of float.
inline bool scale_fits(const LoraSettings& settings) {
  return std::abs(settings.scale()) <= std::numeric_limits<float>::max();
}
inline constexpr const char* scale_text = "a number that scales within the range of float";

inline void check_settings(const LoraSettings& settings) {
  if (settings.rank < 1 || settings.rank > largest_rank) {
    throw ArgumentError("LoraOptions.rank", "from 1 to 4096", std::to_string(settings.rank));
  }
  if (!scale_fits(settings)) {
    throw ArgumentError("LoraOptions.alpha", scale_text, number_text(settings.alpha));
  }
}

/// Throws ArgumentError for a target that names no matrix, or the tied embedding.
template <class Model>
void check_targets(const Model& model, const std::vector<std::string>& targets) {
  if (targets.empty()) throw ArgumentError("LoraOptions.targets", "at least one matrix", "none");
  for (const std::string& target : targets) {
    if (is_tied(model) && (target == "embedding" || target == "lm_head")) {
      throw ArgumentError("LoraOptions.targets", "\"" + target + "\": " + tied_text);
    }
    std::string known;
    bool found = false;
    for_each_adaptable(
        [&](const std::string& name, const auto&) {
          const std::string word(last_word(name));
          found = found || word == target;
          if ((", " + known + ", ").find(", " + word + ", ") == known.npos) known += (known.empty() ? "" : ", ") + word;
        },
        model);
    if (!found) throw ArgumentError("LoraOptions.targets", "one of " + known, "\"" + target + "\"");
  }
}

/// The values that training starts from: y is that of the model without adapters.
template <class Backend>
void initialize_adapter(Adapter<Backend>& adapter, bool looked_up, const Backend& backend, Random random) {
  using Scalar = typename Backend::Scalar;
  adapter.lora_A.allocate(backend);
  adapter.lora_B.allocate(backend);
  WeightMatrix<Backend, Scalar>& drawn = looked_up ? adapter.lora_B : adapter.lora_A;  // the other one is zero
  const double bound = 1 / std::sqrt(static_cast<double>(drawn.cols()));               // kaiming uniform, a = sqrt(5)
  in_pieces<Scalar>(drawn.rows(), drawn.cols(), [&](std::size_t first, View<Scalar> piece) {
    for (std::size_t i = 0; i < piece.rows() * piece.cols(); ++i) {
      piece.data()[i] =
          static_cast<Scalar>(static_cast<float>(looked_up ? random.normal() : random.uniform(-bound, bound)));
    }
    drawn.upload(backend, first, piece);
  });
}

/// Freezes everything but the adapters.
template <class Model>
void freeze_but_adapters(Model& model) {
  for_each_parameter(
      [](std::string_view name, auto& parameter) {
        const std::string_view word = last_word(name);
        parameter.set_frozen(word != "lora_A" && word != "lora_B");
      },
      model);
}

/// The values of a matrix on the host.
template <class Backend, class W>
std::vector<double> values_on_host(const WeightMatrix<Backend, W>& matrix, const Backend& backend) {
  using Scalar = typename Backend::Scalar;
  std::vector<double> values;
  values.reserve(matrix.size());
  in_pieces<Scalar>(matrix.rows(), matrix.cols(), [&](std::size_t first, View<Scalar> piece) {
    matrix.download(backend, first, piece);
    values.insert(values.end(), piece.data(), piece.data() + piece.rows() * piece.cols());
  });
  return values;
}

/// The other orientation of a matrix of so many rows.
template <class T>
std::vector<T> transposed(const std::vector<T>& values, std::size_t rows) {
  std::vector<T> turned(values.size());
  const std::size_t cols = values.size() / std::max<std::size_t>(rows, 1);
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < cols; ++j) turned[j * rows + i] = values[i * cols + j];
  }
  return turned;
}

/// What an adapter adds to its matrix, W + s B A, computed in double.
class Delta {
 public:
  Delta() = default;
  /// The values of A and B, of an embedding's adapter A [rows, r] and B [cols, r].
  Delta(const LoraSettings& settings, bool looked_up, std::vector<double> a, std::vector<double> b)
      : rank_(static_cast<std::size_t>(settings.rank)), scale_(settings.scale()) {
    rows_ = looked_up ? std::move(a) : std::move(b);
    columns_ = looked_up ? transposed(b, b.size() / rank_) : std::move(a);
  }
  template <class Backend>
  Delta(const Adapter<Backend>& adapter, bool looked_up, const Backend& backend)
      : Delta(adapter.settings(), looked_up, values_on_host(adapter.lora_A, backend),
              values_on_host(adapter.lora_B, backend)) {}

  /// Adds it to rows [first, first + piece.rows()) of the matrix.
  template <class Scalar>
  void add_to(std::size_t first, View<Scalar> piece) const {
    std::vector<double> sum(piece.cols());
    for (std::size_t i = 0; i < piece.rows(); ++i) {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (std::size_t k = 0; k < rank_; ++k) {
        const double factor = rows_[(first + i) * rank_ + k];
        const double* const column = columns_.data() + k * piece.cols();
        for (std::size_t j = 0; j < sum.size(); ++j) sum[j] += factor * column[j];
      }
      for (std::size_t j = 0; j < sum.size(); ++j) {
        piece(i, j) = static_cast<Scalar>(static_cast<double>(piece(i, j)) + scale_ * sum[j]);
      }
    }
  }

 private:
  std::size_t rank_ = 0;
  double scale_ = 0;
  std::vector<double> rows_, columns_;  // [rows, r], [r, cols]
};

/// Copies a module, with its adapters merged, to one without them.
template <class From, class To, class FromBackend, class ToBackend>
void merge_module(const From& from, const FromBackend& from_backend, To& to, const ToBackend& to_backend) {
  if constexpr (is_adaptable<From>) {
    Delta delta;
    const bool adapted = from.adapter.present();
    if (adapted) delta = Delta(from.adapter, from.base.role() == Role::embedding, from_backend);
    using Scalar = typename FromBackend::Scalar;
    in_pieces<Scalar>(from.rows(), from.cols(), [&](std::size_t first, View<Scalar> piece) {
      from.base.download(from_backend, first, piece);
      if (adapted) delta.add_to(first, piece);
      const std::vector<typename ToBackend::Scalar> converted(piece.data(), piece.data() + piece.rows() * piece.cols());
      to.upload(to_backend, first, {converted.data(), piece.rows(), piece.cols()});
    });
  } else if constexpr (Parameter<From>) {
    if (from.present()) copy_parameters(from, from_backend, to, to_backend);
  } else {
    From::visit([&](std::string_view, const auto& a, auto& b) { merge_module(a, from_backend, b, to_backend); }, from,
                to);
  }
}

}  // namespace detail

/// Gives a model adapters to train, and freezes everything else; adapters that it had are replaced. The model computes
/// what it computed without them. Throws ArgumentError for options that do not fit the model, and std::bad_alloc; the
/// model is then as it was.
template <class Model>
void add_adapter(Model& model, const LoraOptions& options) {
  static_assert(detail::is_lora<typename Model::WeightType>,
                "adapters need a model of Lora<W>: Mamba<float, NativeTraining, Lora<q8>>");
  const LoraSettings settings{options.rank, options.alpha, options.rank_stabilized};
  detail::check_settings(settings);
  detail::check_targets(model, options.targets);
  std::vector<Adapter<typename Model::BackendType>> fresh;  // in the order of the matrices; absent for some
  detail::for_each_adaptable(
      [&](const std::string& name, const auto& matrix) {
        fresh.emplace_back();
        const auto& targets = options.targets;
        if (std::find(targets.begin(), targets.end(), detail::last_word(name)) == targets.end()) return;
        fresh.back() = Adapter(model.backend(), matrix.base, settings);
        detail::initialize_adapter(fresh.back(), matrix.base.role() == Role::embedding, model.backend(),
                                   Random(options.seed, name));
      },
      model);
  std::size_t number = 0;
  detail::for_each_adaptable([&](const std::string&, auto& matrix) { matrix.adapter = std::move(fresh[number++]); },
                             model);
  detail::freeze_but_adapters(model);
}

/// A model of type To, without adapters, whose weights are W + s B A: in f32 that is the same model but for rounding.
template <class To, class Model>
To merge_to(const Model& model, const typename To::BackendType& backend = typename To::BackendType()) {
  To merged = To::shapes_only(model.config(), backend);
  allocate_parameters(merged, backend);
  detail::merge_module(model, model.backend(), merged, backend);
  merged.refresh();
  return merged;
}
/// The same on the model's own backend, with weights in its Scalar. To write it in bf16: save(merge(model), folder,
/// {.matrices = DType::BF16}).
template <class Scalar, template <class> class Backend, class W,
          template <class, template <class> class, class> class Mixer>
Mamba<Scalar, Backend, Scalar, Mixer> merge(const Mamba<Scalar, Backend, Lora<W>, Mixer>& model) {
  return merge_to<Mamba<Scalar, Backend, Scalar, Mixer>>(model, model.backend());
}

template <class Scalar, template <class> class Backend, class Weight,
          template <class, template <class> class, class> class Mixer>
class SequenceModel;
/// The same for a model with a head.
template <class Scalar, template <class> class Backend, class W,
          template <class, template <class> class, class> class Mixer>
SequenceModel<Scalar, Backend, Scalar, Mixer> merge(const SequenceModel<Scalar, Backend, Lora<W>, Mixer>& model) {
  return merge_to<SequenceModel<Scalar, Backend, Scalar, Mixer>>(model, model.backend());
}

/// The matrices that are adapted unless others are named: in_proj, and x_proj if the mixer has one. PEFT accepts them.
template <class Model>
std::vector<std::string> default_targets(const Model& model) {
  bool has_x_proj = false;
  detail::for_each_adaptable(
      [&](const std::string& name, const auto&) { has_x_proj = has_x_proj || detail::last_word(name) == "x_proj"; },
      model);
  if (has_x_proj) return {"in_proj", "x_proj"};
  return {"in_proj"};
}

/// A hash of how the adapters are scaled, cut to the 53 bits that a double can hold: for checkpoints of training runs.
template <class Model>
requires detail::is_lora<typename Model::WeightType>
double adapter_fingerprint(const Model& model) {
  detail::Fnv1a hash;
  detail::for_each_adaptable(
      [&](const std::string& name, const auto& matrix) {
        if (!matrix.adapter.present()) return;
        hash.add(name);
        hash.add_value(matrix.adapter.settings().scale());
      },
      model);
  return static_cast<double>(hash.value() >> 11);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
