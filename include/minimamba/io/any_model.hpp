// AnyModel: a language model whose weight format and backend are chosen at run time, by name.
//
//   const auto model = minimamba::AnyModel::load("mamba-130m-hf", {.weights = "q8", .backend = "native"});
//   auto cache = model.make_cache();
//   for (std::int32_t token : minimamba::generate(model, cache, prompt)) ...
//
// It computes the same bits as the Mamba of that type. A file that calls AnyModel::load compiles 40 models, which takes
// minutes. To compile them once, link minimamba::models in CMake. Without CMake, compile the whole program with
// -DMINIMAMBA_COMPILED_MODELS, and instantiate each model in one source file (several files compile in parallel):
//   #include <minimamba/backend/native.hpp>
//   #include <minimamba/io/any_model_of.hpp>
//   template minimamba::AnyModel minimamba::AnyModel::load_as<minimamba::Mamba<float, minimamba::NativeBackend>>(
//       const minimamba::Checkpoint&, const minimamba::AnyModelOptions&);
#ifndef MINIMAMBA_IO_ANY_MODEL_HPP
#define MINIMAMBA_IO_ANY_MODEL_HPP

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda/driver.hpp"
#include "minimamba/backend/host_memory.hpp"
#include "minimamba/core/config.hpp"
#include "minimamba/core/error.hpp"
#include "minimamba/core/formats.hpp"
#include "minimamba/core/view.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/io/checkpoint.hpp"
#include "minimamba/io/known_mixers.hpp"
#include "minimamba/io/state.hpp"
#include "minimamba/nn/mamba.hpp"
#include "minimamba/nn/model.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

template <class Number>
class CudaBackend;
template <class Number>
class EigenBackend;
template <class Number>
class NativeBackend;
template <class Number>
class ReferenceBackend;

struct AnyModelOptions {
  std::string weights = "f32";                // f32, bf16, f16, q8 or q4
  std::string backend = "native";             // native, eigen, reference, cuda, or auto: see AnyModel::load
  int threads = 0;                            // 0: as many as the process may use
  std::function<bool(double)> progress = {};  // this and the next two: see LoadOptions
  std::function<void(const std::string&)> on_note = {};
  bool saturate = false;
};

namespace detail {

/// What a pointer owns. Throws ArgumentError if its owner was moved from.
template <class T>
T& not_moved(const std::unique_ptr<T>& owned, const char* what) {
  if (owned != nullptr) return *owned;
  throw ArgumentError(what, "it was moved from");
}

// Each call of forward is one virtual call. The model behind the interface then calls its kernels directly.

/// What AnyCache needs of a cache: see InferenceCache.
class CacheInterface {
 public:
  virtual ~CacheInterface() = default;
  virtual const void* type() const = 0;  // identifies the type of the cache
  virtual std::size_t batch() const = 0;
  virtual std::int64_t position(std::size_t slot) const = 0;
  virtual std::size_t state_bytes() const = 0;
  virtual std::size_t memory_bytes() const = 0;
  virtual void reset() = 0;
  virtual void reset(std::size_t slot) = 0;
  virtual std::unique_ptr<CacheInterface> clone() const = 0;
  virtual std::unique_ptr<CacheInterface> gather(const std::vector<std::int64_t>& slots) const = 0;
  virtual void reorder(std::span<const std::size_t> slots) = 0;
  virtual void assign(const CacheInterface& other) = 0;
  virtual void assign(std::size_t slot, const CacheInterface& other, std::size_t other_slot) = 0;
  virtual void keep_every(std::int64_t tokens) = 0;
  virtual std::int64_t keeps_every() const = 0;
  virtual std::vector<std::int64_t> kept_positions(std::size_t slot) const = 0;
  virtual void rollback(std::size_t slot, std::int64_t position) = 0;
  virtual void release_workspace() = 0;
};

}  // namespace detail

/// The cache of an AnyModel: see InferenceCache for what its functions do. They throw ArgumentError for a cache that
/// was moved from.
class AnyCache {
 public:
  std::size_t batch() const { return own().batch(); }
  std::int64_t position(std::size_t slot = 0) const { return own().position(slot); }
  std::size_t state_bytes() const { return own().state_bytes(); }
  std::size_t memory_bytes() const { return own().memory_bytes(); }

  void reset() { own().reset(); }
  void reset(std::size_t slot) { own().reset(slot); }
  AnyCache clone() const { return AnyCache(own().clone()); }
  template <class Slots>
  AnyCache gather(const Slots& slots) const {
    std::vector<std::int64_t> indices;
    for (const auto slot : slots) indices.push_back(static_cast<std::int64_t>(slot));
    return AnyCache(own().gather(indices));
  }
  AnyCache gather(std::initializer_list<std::size_t> slots) const {
    return gather<std::initializer_list<std::size_t>>(slots);
  }
  void reorder(std::span<const std::size_t> slots) { own().reorder(slots); }
  /// Also throws ArgumentError for the cache of another backend.
  void assign(const AnyCache& other) { own().assign(other.own()); }
  void assign(std::size_t slot, const AnyCache& other, std::size_t other_slot) {
    own().assign(slot, other.own(), other_slot);
  }

  void keep_every(std::int64_t tokens) { own().keep_every(tokens); }
  std::int64_t keeps_every() const { return own().keeps_every(); }
  std::vector<std::int64_t> kept_positions(std::size_t slot) const { return own().kept_positions(slot); }
  void rollback(std::size_t slot, std::int64_t position) { own().rollback(slot, position); }
  void release_workspace() { own().release_workspace(); }

 private:
  friend class AnyModel;
  explicit AnyCache(std::unique_ptr<detail::CacheInterface> cache) : cache_(std::move(cache)) {}

  detail::CacheInterface& own() { return detail::not_moved(cache_, "cache"); }
  const detail::CacheInterface& own() const { return detail::not_moved(cache_, "cache"); }

  std::unique_ptr<detail::CacheInterface> cache_;
};

/// The card on which a model computes, and its memory in bytes, or the processor.
struct AnyDevice {
  std::string name = "CPU";
  std::size_t total_memory = 0, free_memory = 0;  // of a card
};

/// The visible part of an AnyModel's backend: its name, its number of threads, and that logits are in host memory.
class AnyBackend : public detail::HostMemory<float> {
 public:
  // What is safe to assume of any backend; AnyModel::splits_exactly() is about the model's own.
  static constexpr bool splits_exactly = false, kernels_allocate = true;

  AnyBackend(const char* name, int threads) : name_(name), threads_(threads) {}
  const char* name() const { return name_; }
  int threads() const { return threads_; }

 private:
  const char* name_;
  int threads_;
};

/// A parameter of a model by name, and how many values it has.
struct NamedSize {
  std::string name;
  std::size_t size = 0;
};

namespace detail {

/// What AnyModel needs of a model: see Mamba.
class ModelInterface {
 public:
  virtual ~ModelInterface() = default;
  virtual AnyConfig config() const = 0;
  virtual AnyBackend backend() const = 0;
  virtual AnyDevice device() const = 0;
  virtual std::string_view weight_format() const = 0;
  virtual bool splits_exactly() const = 0;
  virtual std::vector<NamedSize> parameters() const = 0;
  virtual std::size_t parameter_count() const = 0;
  virtual std::size_t memory_bytes() const = 0;
  virtual std::unique_ptr<CacheInterface> make_cache(std::int64_t batch) const = 0;
  virtual void check(std::span<const std::int32_t> tokens, const CacheInterface& cache) const = 0;
  virtual View<const float> forward(std::span<const std::int32_t> tokens, CacheInterface& cache) const = 0;
  virtual View<const float> forward_last(std::span<const std::int32_t> tokens, CacheInterface& cache) const = 0;
  virtual View<const float> forward_runs(std::span<const Run> runs, CacheInterface& cache) const = 0;
  virtual View<const float> forward_last_runs(std::span<const Run> runs, CacheInterface& cache) const = 0;
  virtual void save_state(const CacheInterface& cache, const ByteSink& sink, const StateSections& sections) const = 0;
  virtual std::unique_ptr<CacheInterface> load_state(const ByteSource& source, StateSections& sections) const = 0;
};

}  // namespace detail

/// A LanguageModel: generate, generate_batch, Scorer, save_state and load_state take it like a Mamba. Logits are in
/// host memory. Movable; many threads may use one model, each with its own cache.
class AnyModel {
 public:
  using Cache = AnyCache;

  /// Loads a model in the weight format and on the backend that the options name; "auto" is the card if there is one
  /// and the model fits, or else native, with a note about why, unless the machine has no driver of NVIDIA's. Throws
  /// what minimamba::load throws, CudaError, and ArgumentError for a name that is unknown, or for a backend that the
  /// program was compiled without, before the files are opened. (They are templates so that the models are compiled
  /// only in files that call them.)
  template <class Options = AnyModelOptions>
  static AnyModel load(const std::filesystem::path& path, const std::type_identity_t<Options>& options = {});
  template <class Options = AnyModelOptions>
  static AnyModel load(const Checkpoint& checkpoint, const std::type_identity_t<Options>& options = {});

  /// The same for one type of model, whatever formats and backends the options name. Needs io/any_model_of.hpp.
  template <class Model>
  static AnyModel load_as(const Checkpoint& checkpoint, const AnyModelOptions& options);
  /// Takes over a model that computes in float on the host. Needs io/any_model_of.hpp.
  template <class Model>
  static AnyModel of(Model model);

  const AnyConfig& config() const { return config_; }
  const AnyBackend& backend() const { return backend_; }
  /// Where it computes. Throws CudaError if a card does not answer.
  AnyDevice device() const { return own().device(); }
  /// f32, bf16, f16, q8 or q4
  std::string_view weight_format() const { return own().weight_format(); }
  /// Whether the results for a sequence are bit for bit the same however it is split into calls and batched.
  bool splits_exactly() const { return own().splits_exactly(); }
  /// In the order in which for_each_parameter visits them.
  std::vector<NamedSize> parameters() const { return own().parameters(); }
  std::size_t parameter_count() const { return own().parameter_count(); }
  std::size_t memory_bytes() const { return own().memory_bytes(); }

  /// See Mamba for these. They also throw ArgumentError for the cache of another backend, and all functions but
  /// config() and backend() for a model that was moved from.
  Cache make_cache(std::int64_t batch = 1) const { return Cache(own().make_cache(batch)); }
  void check(std::span<const std::int32_t> tokens, const Cache& cache) const { own().check(tokens, cache.own()); }
  View<const float> forward(std::span<const std::int32_t> tokens, Cache& cache) const {
    return own().forward(tokens, cache.own());
  }
  View<const float> forward_last(std::span<const std::int32_t> tokens, Cache& cache) const {
    return own().forward_last(tokens, cache.own());
  }
  template <RangeOfRuns Runs>
  View<const float> forward(const Runs& runs, Cache& cache) const {
    return own().forward_runs(runs, cache.own());
  }
  template <RangeOfRuns Runs>
  View<const float> forward_last(const Runs& runs, Cache& cache) const {
    return own().forward_last_runs(runs, cache.own());
  }
  View<const float> forward(std::initializer_list<std::int32_t> tokens, Cache& cache) const {
    return forward(std::span(tokens.begin(), tokens.size()), cache);
  }
  View<const float> forward_last(std::initializer_list<std::int32_t> tokens, Cache& cache) const {
    return forward_last(std::span(tokens.begin(), tokens.size()), cache);
  }
  View<const float> forward(std::int32_t token, Cache& cache) const { return forward({token}, cache); }
  View<const float> forward_last(std::int32_t token, Cache& cache) const { return forward_last({token}, cache); }

 private:
  explicit AnyModel(std::unique_ptr<const detail::ModelInterface> model)
      : model_(std::move(model)), config_(model_->config()), backend_(model_->backend()) {}

  friend void save_state(const AnyModel&, const AnyCache&, const ByteSink&, const StateSections&);
  friend SavedState<AnyModel> load_state(const ByteSource&, const AnyModel&);
  void save_cache(const Cache& cache, const ByteSink& sink, const StateSections& sections) const {
    own().save_state(cache.own(), sink, sections);
  }
  Cache load_cache(const ByteSource& source, StateSections& sections) const {
    return Cache(own().load_state(source, sections));
  }

  const detail::ModelInterface& own() const { return detail::not_moved(model_, "model"); }

  std::unique_ptr<const detail::ModelInterface> model_;
  AnyConfig config_;
  AnyBackend backend_;
};

static_assert(LanguageModel<AnyModel> && HasRuns<AnyModel>);

/// See io/state.hpp: the files are those of the model of that type. Also for paths.
inline void save_state(const AnyModel& model, const AnyCache& cache, const ByteSink& sink,
                       const StateSections& sections = {}) {
  model.save_cache(cache, sink, sections);
}
inline SavedState<AnyModel> load_state(const ByteSource& source, const AnyModel& model) {
  StateSections sections;
  AnyCache cache = model.load_cache(source, sections);
  return {std::move(cache), std::move(sections)};
}

namespace detail {

using AnyLoader = AnyModel (*)(const Checkpoint&, const AnyModelOptions&);

/// Whether the program has the models of a backend: all do but one that links a minimamba::models of some, whose names
/// are in MINIMAMBA_COMPILED_BACKENDS.
constexpr bool has_models_on(std::string_view backend) {
#ifdef MINIMAMBA_COMPILED_BACKENDS
  return std::string_view(MINIMAMBA_COMPILED_BACKENDS).find(backend) != std::string_view::npos;
#elif !__has_include(<Eigen/Core>)
  return backend != "eigen";
#else
  return !backend.empty();
#endif
}

template <class Files, template <class> class Backend>
AnyLoader any_loader_on(std::string_view weights) {
  if (weights == Format<float>::name) return &AnyModel::load_as<typename Files::template Model<float, Backend>>;
  if (weights == Format<bf16>::name) return &AnyModel::load_as<typename Files::template Model<float, Backend, bf16>>;
  if (weights == Format<f16>::name) return &AnyModel::load_as<typename Files::template Model<float, Backend, f16>>;
  if (weights == Format<q8>::name) return &AnyModel::load_as<typename Files::template Model<float, Backend, q8>>;
  if (weights == Format<q4>::name) return &AnyModel::load_as<typename Files::template Model<float, Backend, q4>>;
  throw ArgumentError("weights", "f32, bf16, f16, q8 or q4", "\"" + std::string(weights) + "\"");
}

/// On the card if there is one and the model fits, or else on the processor.
template <class Files, class Options>
AnyModel load_where_it_fits(const Checkpoint& checkpoint, const Options& options) {
  const auto say_why = [&](const Error& error) {
    if (options.on_note) options.on_note(std::string("computing on the processor: ") + error.what());
  };
  try {
    AnyModel model = any_loader_on<Files, CudaBackend>(options.weights)(checkpoint, options);
    auto cache = model.make_cache();
    model.forward_last(0, cache);  // needs memory too
    return model;
  } catch (const CudaError& error) {
    const bool usual = error.problem() == CudaProblem::no_driver;
    if (!usual) say_why(error);
  } catch (const ConfigError& error) {  // more states than a card takes
    say_why(error);
  }
  return any_loader_on<Files, NativeBackend>(options.weights)(checkpoint, options);
}

/// What "auto" is in a program without models for cards.
template <class Files, class Options>
AnyModel load_without_cards(const Checkpoint& checkpoint, const Options& options) {
  if (options.on_note) options.on_note("computing on the processor: the program was compiled without cuda");
  return any_loader_on<Files, NativeBackend>(options.weights)(checkpoint, options);
}

/// For models of the mixer that Files describe.
template <class Files, class Options>
AnyLoader any_loader(const Options& options) {
  const auto is = [&](const char* backend) { return options.backend == backend; };
  if constexpr (has_models_on("cuda")) {
    if (is("cuda")) return any_loader_on<Files, CudaBackend>(options.weights);
    if constexpr (has_models_on("native")) {
      if (is("auto")) {
        static_cast<void>(any_loader_on<Files, NativeBackend>(options.weights));  // throws for an unknown format
        return &load_where_it_fits<Files, Options>;
      }
    }
  }
  if constexpr (has_models_on("native")) {
    if (is("auto")) {
      static_cast<void>(any_loader_on<Files, NativeBackend>(options.weights));
      return &load_without_cards<Files, Options>;
    }
    if (is("native")) return any_loader_on<Files, NativeBackend>(options.weights);
  }
  if constexpr (has_models_on("reference")) {
    if (is("reference")) return any_loader_on<Files, ReferenceBackend>(options.weights);
  }
  if constexpr (has_models_on("eigen")) {
    if (is("eigen")) return any_loader_on<Files, EigenBackend>(options.weights);
  }
  if (is("native") || is("eigen") || is("reference") || is("cuda") || is("auto")) {
    throw ArgumentError("backend", options.backend + " is not available, because the program was compiled without it");
  }
  throw ArgumentError("backend", "native, eigen, reference, cuda or auto", "\"" + options.backend + "\"");
}

}  // namespace detail

template <class Options>
AnyModel AnyModel::load(const Checkpoint& checkpoint, const std::type_identity_t<Options>& options) {
  return checkpoint.config.visit_files(
      [&]<class Files>(Files) { return detail::any_loader<Files>(options)(checkpoint, options); });
}

template <class Options>
AnyModel AnyModel::load(const std::filesystem::path& path, const std::type_identity_t<Options>& options) {
  detail::any_loader<detail::S6Files>(options);  // throws for unknown names
  const Checkpoint checkpoint = open_checkpoint(path);
  for (const std::string& note : checkpoint.notes) {
    if (options.on_note) options.on_note(note);
  }
  return load<Options>(checkpoint, options);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA

#ifndef MINIMAMBA_COMPILED_MODELS  // which minimamba::models defines: they are compiled once, in files of their own
#if __has_include(<Eigen/Core>)
#include "minimamba/backend/eigen.hpp"
#endif
#include "minimamba/backend/cuda.hpp"
#include "minimamba/backend/native.hpp"
#include "minimamba/backend/reference.hpp"
#include "minimamba/io/any_model_of.hpp"
#endif
#endif
