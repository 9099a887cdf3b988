// Makes an AnyModel of a model of one type: for source files that compile a model for AnyModel::load, and for models of
// your own. Include the header of the model's backend too.
#ifndef MINIMAMBA_IO_ANY_MODEL_OF_HPP
#define MINIMAMBA_IO_ANY_MODEL_OF_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/backend/concept.hpp"
#include "minimamba/backend/host_memory.hpp"
#include "minimamba/core/config.hpp"
#include "minimamba/core/error.hpp"
#include "minimamba/core/formats.hpp"
#include "minimamba/core/parallel.hpp"
#include "minimamba/core/view.hpp"
#include "minimamba/io/any_model.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/io/load.hpp"
#include "minimamba/io/state.hpp"
#include "minimamba/nn/parameters.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The address identifies the type, also without run-time type information.
template <class T>
inline char type_mark = 0;

template <class Cache>
class ErasedCache final : public CacheInterface {
 public:
  explicit ErasedCache(Cache cache) : cache_(std::move(cache)) {}
  static std::unique_ptr<CacheInterface> of(Cache cache) { return std::make_unique<ErasedCache>(std::move(cache)); }

  /// The cache behind an interface. Throws ArgumentError if it has another type.
  static const Cache& in(const CacheInterface& erased) {
    if (erased.type() == &type_mark<Cache>) return static_cast<const ErasedCache&>(erased).cache_;
    throw ArgumentError("cache", "it belongs to a model with another backend");
  }
  static Cache& in(CacheInterface& erased) { return const_cast<Cache&>(in(std::as_const(erased))); }

  const void* type() const override { return &type_mark<Cache>; }
  std::size_t batch() const override { return cache_.batch(); }
  std::int64_t position(std::size_t slot) const override { return cache_.position(slot); }
  std::size_t state_bytes() const override { return cache_.state_bytes(); }
  std::size_t memory_bytes() const override { return cache_.memory_bytes() + logits_.capacity() * sizeof(float); }
  void reset() override { cache_.reset(); }
  void reset(std::size_t slot) override { cache_.reset(slot); }
  std::unique_ptr<CacheInterface> clone() const override { return of(cache_.clone()); }
  std::unique_ptr<CacheInterface> gather(const std::vector<std::int64_t>& slots) const override {
    return of(cache_.gather(slots));
  }
  void reorder(std::span<const std::size_t> slots) override { cache_.reorder(slots); }
  void assign(const CacheInterface& other) override { cache_.assign(in(other)); }
  void assign(std::size_t slot, const CacheInterface& other, std::size_t other_slot) override {
    cache_.assign(slot, in(other), other_slot);
  }
  void keep_every(std::int64_t tokens) override { cache_.keep_every(tokens); }
  std::int64_t keeps_every() const override { return cache_.keeps_every(); }
  std::vector<std::int64_t> kept_positions(std::size_t slot) const override { return cache_.kept_positions(slot); }
  void rollback(std::size_t slot, std::int64_t position) override { cache_.rollback(slot, position); }
  void release_workspace() override {
    cache_.release_workspace();
    logits_ = {};
  }

  /// Memory on the host for logits of a card.
  static std::vector<float>& logits_in(CacheInterface& erased) { return static_cast<ErasedCache&>(erased).logits_; }

 private:
  Cache cache_;
  std::vector<float> logits_;
};

template <class Model>
class ErasedModel final : public ModelInterface {
 public:
  using BackendType = typename Model::BackendType;
  static_assert(std::is_same_v<typename Model::ScalarType, float>, "an AnyModel computes in float");
  static constexpr bool on_device = BackendTraits<BackendType>::on_device;
  static_assert(on_device || std::is_base_of_v<HostMemory<float>, BackendType>,
                "the backend of an AnyModel has its memory on the host, or is a CudaBackend");

  explicit ErasedModel(Model model) : model_(std::move(model)) {}

  AnyConfig config() const override { return AnyConfig(model_.config()); }
  AnyBackend backend() const override { return {model_.backend().name(), model_.backend().threads()}; }
  AnyDevice device() const override {
    if constexpr (on_device) {
      const BackendType& card = model_.backend();
      return {card.device_name(), card.total_memory(), card.free_memory()};
    } else {
      return {};
    }
  }
  std::string_view weight_format() const override { return Format<typename Model::WeightType>::name; }
  bool splits_exactly() const override { return BackendTraits<BackendType>::splits_exactly; }
  std::vector<NamedSize> parameters() const override {
    std::vector<NamedSize> all;
    for_each_parameter(
        [&](std::string_view name, const auto& parameter) {
          all.push_back({std::string(name), parameter.size()});
        },
        model_);
    return all;
  }
  std::size_t parameter_count() const override { return model_.parameter_count(); }
  std::size_t memory_bytes() const override { return model_.memory_bytes(); }

  std::unique_ptr<CacheInterface> make_cache(std::int64_t batch) const override {
    return Erased::of(model_.make_cache(batch));
  }
  void check(std::span<const std::int32_t> tokens, const CacheInterface& cache) const override {
    model_.check(tokens, Erased::in(cache));
  }
  View<const float> forward(std::span<const std::int32_t> tokens, CacheInterface& cache) const override {
    return on_host(tokens.size(), cache, [&](auto& own) { return model_.forward(tokens, own); });
  }
  View<const float> forward_last(std::span<const std::int32_t> tokens, CacheInterface& cache) const override {
    return on_host(cache.batch(), cache, [&](auto& own) { return model_.forward_last(tokens, own); });
  }
  View<const float> forward_runs(std::span<const Run> runs, CacheInterface& cache) const override {
    std::size_t rows = 0;
    for (const Run& run : runs) rows += run.tokens.size();
    return on_host(rows, cache, [&](auto& own) { return model_.forward(runs, own); });
  }
  View<const float> forward_last_runs(std::span<const Run> runs, CacheInterface& cache) const override {
    return on_host(runs.size(), cache, [&](auto& own) { return model_.forward_last(runs, own); });
  }

  void save_state(const CacheInterface& cache, const ByteSink& sink, const StateSections& sections) const override {
    minimamba::save_state(model_, Erased::in(cache), sink, sections);
  }
  std::unique_ptr<CacheInterface> load_state(const ByteSource& source, StateSections& sections) const override {
    auto saved = minimamba::load_state(source, model_);
    sections = std::move(saved.sections);
    return Erased::of(std::move(saved.cache));
  }

 private:
  using Erased = ErasedCache<typename Model::Cache>;

  /// The logits of forward(cache), up to `rows` rows. Those of a card are copied into the erased cache, in memory that
  /// is there before the state changes.
  template <class Forward>
  View<const float> on_host(std::size_t rows, CacheInterface& erased, Forward&& forward) const {
    auto& cache = Erased::in(erased);
    if constexpr (on_device) {
      std::vector<float>& copy = Erased::logits_in(erased);
      copy.reserve(rows * vocabulary_of(model_));
      const View<const float> logits = forward(cache);
      const std::size_t cols = logits.cols();
      copy.resize(logits.rows() * cols);
      if (logits.stride() == cols) {
        model_.backend().download(logits.data(), copy);
      } else {
        for (std::size_t i = 0; i < logits.rows(); ++i) {
          model_.backend().download(logits.rows_from(i, 1).data(), std::span(copy).subspan(i * cols, cols));
        }
      }
      return {copy.data(), logits.rows(), cols};
    } else {
      return forward(cache);
    }
  }

  Model model_;
};

}  // namespace detail

template <class Model>
AnyModel AnyModel::of(Model model) {
  return AnyModel(std::make_unique<const detail::ErasedModel<Model>>(std::move(model)));
}

namespace detail {

template <class BackendType>
BackendType any_backend(const AnyModelOptions& options) {
  if constexpr (BackendTraits<BackendType>::on_device) {
    check_threads(options.threads);
    return BackendType({.kernels = {.on_compile = options.on_note}});
  } else {
    return BackendType({.threads = options.threads});
  }
}

}  // namespace detail

template <class Model>
AnyModel AnyModel::load_as(const Checkpoint& checkpoint, const AnyModelOptions& options) {
  using BackendType = typename Model::BackendType;
  return of(minimamba::load<Model>(checkpoint, {.backend = detail::any_backend<BackendType>(options),
                                                .progress = options.progress,
                                                .on_note = options.on_note,
                                                .saturate = options.saturate}));
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
