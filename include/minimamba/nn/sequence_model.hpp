// SequenceModel: a backbone between an input layer and a head, for what is not text generation: classes or numbers for
// whole sequences or for each of their rows, and features. The inputs are token ids or rows of real numbers.
//
//   minimamba::SequenceModel<float> model({.backbone = {.d_model = 64, .n_layer = 2, .vocab_size = 256},
//                                          .pooling = minimamba::Pooling::mean,
//                                          .labels = {"bad", "good"}});
//   auto cache = model.make_cache(2);                               // two sequences
//   const auto logits = model.forward(tokens, lengths, cache);      // [2, 2]
//
// minimamba/train/sequence_trainer.hpp trains it, minimamba/io/sequence_files.hpp saves and loads it.
#ifndef MINIMAMBA_NN_SEQUENCE_MODEL_HPP
#define MINIMAMBA_NN_SEQUENCE_MODEL_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/backend/pooling.hpp"
#include "minimamba/core/hash.hpp"
#include "minimamba/nn/mamba_model.hpp"
#include "minimamba/nn/runs.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

namespace detail {

/// A hash of labels and of their order.
inline std::uint64_t hash_of(std::span<const std::string> labels) {
  Fnv1a hash;
  for (const std::string& label : labels) {
    hash.add(std::uint64_t{label.size()});
    hash.add(label);
  }
  return hash.value();
}

}  // namespace detail

/// What the head says: a logit for each label; numbers; or nothing, and the backbone's outputs are the result.
enum class Task { classification, regression, features };
/// Which rows the head reads: one for each sequence (its last row, or the mean or the largest of all its rows), or
/// each row: token classification, for example, is classification without pooling.
enum class Pooling { last, mean, max, none };

/// The configuration of a SequenceModel. BackboneConfig is that of its mixer.
template <class BackboneConfig = MambaConfig>
struct SequenceConfig {
  BackboneConfig backbone = {};  // vocab_size: of token ids, or 0 for real inputs
  std::int64_t columns = 0;      // C, numbers in a row of real inputs; 0: tokens
  Task task = Task::classification;
  Pooling pooling = Pooling::last;
  std::vector<std::string> labels = {};  // of classification
  std::int64_t targets = 1;              // T, numbers that a regression predicts
  std::vector<double> quantiles = {};    // a regression's quantiles of each number, ascending; none: its mean

  /// K, columns of the head's output: one for each label, or T numbers, each with all of its quantiles.
  std::int64_t outputs() const {
    if (task == Task::features) return backbone.d_model;
    if (task == Task::classification) return static_cast<std::int64_t>(labels.size());
    return targets * std::max<std::int64_t>(static_cast<std::int64_t>(quantiles.size()), 1);
  }
  /// A copy with every default filled in. Throws ConfigError for what no model can have.
  SequenceConfig resolved() const {
    const auto require = [](bool good, const char* name, const std::string& expected, const std::string& found) {
      if (!good) throw ConfigError(std::string("SequenceConfig.") + name, expected, found);
    };
    require(columns >= 0 && columns <= most, "columns", "from 0 to " + std::to_string(most), std::to_string(columns));
    require((columns == 0) != (backbone.vocab_size == 0), "columns", "either columns or backbone.vocab_size",
            columns == 0 ? "neither" : "both");
    const auto count = static_cast<std::int64_t>(labels.size());
    if (task == Task::classification) {
      require(count >= 2 && count <= most, "labels", "from 2 to " + std::to_string(most), std::to_string(count));
      require(std::set<std::string>(labels.begin(), labels.end()).size() == labels.size(), "labels", "distinct labels",
              "one of them twice");
    } else {
      require(labels.empty(), "labels", "none: the task is no classification", std::to_string(count));
    }
    require(targets >= 1 && targets <= most, "targets", "from 1 to " + std::to_string(most), std::to_string(targets));
    require(targets == 1 || task == Task::regression, "targets", "1: the task is no regression",
            std::to_string(targets));
    require(quantiles.empty() || task == Task::regression, "quantiles", "none: the task is no regression",
            std::to_string(quantiles.size()));
    for (std::size_t i = 0; i < quantiles.size(); ++i) {
      const double least = i == 0 ? 0 : quantiles[i - 1];
      require(quantiles[i] > least && quantiles[i] < 1, "quantiles", "ascending numbers between 0 and 1",
              number_text(quantiles[i]));
    }
    require(std::cmp_less_equal(quantiles.size(), 1000), "quantiles", "at most 1000", std::to_string(quantiles.size()));
    SequenceConfig copy = *this;
    if (columns > 0) copy.backbone.vocab_size = 1;
    copy.backbone = copy.backbone.resolved();
    if (columns > 0) copy.backbone.vocab_size = 0;
    return copy;
  }
  bool operator==(const SequenceConfig&) const = default;

 private:
  static constexpr std::int64_t most = 1 << 16;
};

/// Scalar, Backend, Weight and Mixer are those of MambaModel, the backbone; the mixer need not be causal. The input
/// layer for real numbers and the head are narrow, so they are stored in Scalar. The cache carries the state of the
/// backbone: with a causal mixer a sequence may be read in several calls, row by row if need be.
template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar,
          template <class, template <class> class, class> class Mixer = S6>
class SequenceModel {
 public:
  using ScalarType = Scalar;
  using BackendType = Backend<Scalar>;
  using WeightType = Weight;
  using Backbone = MambaModel<Scalar, Backend, Weight, Mixer>;
  using MixerType = typename Backbone::MixerType;
  using Cache = typename Backbone::Cache;
  using WorkspaceType = typename Cache::WorkspaceType;
  using Outputs = typename Backbone::Outputs;
  using Config = SequenceConfig<typename Backbone::Config>;

  static_assert(
      HasPooling<BackendType>,
      "the backend has no kernel pool_rows (see backend/pooling.hpp), which a model of whole sequences needs");

  /// A model with random weights. Throws ConfigError.
  explicit SequenceModel(const Config& config, Backend<Scalar> backend = Backend<Scalar>(), std::uint64_t seed = 0)
      : SequenceModel(shapes_only(config, std::move(backend))) {
    allocate_parameters(*this, this->backend());
    initialize_parameters(*this, backbone.config(), this->backend(), seed);
    refresh();
  }
  /// Parameters with shapes but no memory yet. Throws ConfigError.
  static SequenceModel shapes_only(const Config& config, Backend<Scalar> backend = Backend<Scalar>()) {
    return SequenceModel(Resolved{config.resolved()}, std::move(backend));
  }
  SequenceModel(SequenceModel&&) noexcept = default;
  SequenceModel& operator=(SequenceModel&&) noexcept = default;

  /// A model with the same configuration, adapters and frozen parts, without memory.
  SequenceModel shapes() const {
    SequenceModel shapes = shapes_only(config_, backend());
    detail::copy_layout(*this, shapes);
    return shapes;
  }
  SequenceModel clone() const {
    SequenceModel copy = shapes();
    allocate_parameters(copy, copy.backend());
    copy_parameters(*this, backend(), copy, copy.backend());
    copy.refresh();
    return copy;
  }

  const Config& config() const { return config_; }
  const Backend<Scalar>& backend() const { return backbone.backend(); }
  std::size_t parameter_count() const { return count_parameters(*this); }
  /// Bytes of memory that the model holds: its parameters as they are stored, and what is derived from them.
  std::size_t memory_bytes() const {
    return parameter_bytes(embedding) + parameter_bytes(input) + backbone.memory_bytes() + parameter_bytes(head);
  }
  const StateLayout& state_layout() const { return backbone.state_layout(); }
  /// A cache for `batch` sequences, all at their beginning. Throws ArgumentError.
  Cache make_cache(std::int64_t batch = 1) const { return backbone.make_cache(batch); }
  void refresh() { backbone.refresh(); }
  void reserve_derived() { backbone.reserve_derived(); }
  void check_derived() const { backbone.check_derived(); }
  /// The settings of what is around the backbone, by name: for checkpoints of training.
  std::vector<ModelSetting> head_settings() const {
    std::vector<ModelSetting> settings{{"columns", config_.columns},
                                       {"outputs", config_.outputs()},
                                       {"targets", config_.targets},
                                       {"task", static_cast<std::int64_t>(config_.task)},
                                       {"pooling", static_cast<std::int64_t>(config_.pooling)}};
    if (!config_.labels.empty()) {  // 53 bits: a double holds them
      settings.push_back({"labels", static_cast<std::int64_t>(detail::hash_of(config_.labels) >> 11)});
    }
    for (std::size_t i = 0; i < config_.quantiles.size(); ++i) {
      settings.push_back(ModelSetting::number("quantile_" + std::to_string(i), config_.quantiles[i]));
    }
    return settings;
  }

  /// Reads more of each of the cache's sequences: lengths[i] rows of sequence i, packed one after another. Returns
  /// [sequences, K], or [rows, K] without pooling; for features, D instead of K. The mean and the maximum are over the
  /// rows of this call. The view is valid until the next call with this workspace, which is the cache's own unless one
  /// is passed. Throws ArgumentError, and leaves the cache unchanged, for lengths below 1 or that do not add up, a
  /// token outside the vocabulary, inputs of another width, and a cache of a model with other sizes.
  Outputs forward(std::span<const std::int32_t> tokens, std::span<const std::int64_t> lengths, Cache& cache,
                  WorkspaceType& work) const {
    backbone.check_cache(cache);
    pack_segments(lengths, tokens.size(), cache.batch(), work.packed);
    check_tokens(tokens);
    work.ids.reserve(backend(), 1, tokens.size());
    const View<Scalar> x = reserve(tokens.size(), work);
    embedding.forward(backend(), work.ids.upload(backend(), tokens), x);
    return read(x, cache, work);
  }
  /// The same for rows of numbers [sum of the lengths, C] in the backend's memory.
  Outputs forward(View<const Scalar> inputs, std::span<const std::int64_t> lengths, Cache& cache,
                  WorkspaceType& work) const {
    backbone.check_cache(cache);
    pack_segments(lengths, inputs.rows(), cache.batch(), work.packed);
    if (config_.columns == 0 || std::cmp_not_equal(inputs.cols(), config_.columns)) {
      throw ArgumentError("inputs", expected_inputs(), "rows of " + std::to_string(inputs.cols()) + " numbers");
    }
    const View<Scalar> x = reserve(inputs.rows(), work);
    input.forward(backend(), inputs, x);
    return read(x, cache, work);
  }
  Outputs forward(std::span<const std::int32_t> tokens, std::span<const std::int64_t> lengths, Cache& cache) const {
    return forward(tokens, lengths, cache, cache.workspace());
  }
  Outputs forward(View<const Scalar> inputs, std::span<const std::int64_t> lengths, Cache& cache) const {
    return forward(inputs, lengths, cache, cache.workspace());
  }
  /// The same for the one sequence of a cache: any number of its rows, a single one in a stream.
  Outputs forward(std::span<const std::int32_t> tokens, Cache& cache) const {
    return forward(tokens, std::array{static_cast<std::int64_t>(tokens.size())}, cache);
  }
  Outputs forward(View<const Scalar> inputs, Cache& cache) const {
    return forward(inputs, std::array{static_cast<std::int64_t>(inputs.rows())}, cache);
  }

  /// Throws ArgumentError for a token id outside [0, vocab_size), and for any tokens if the inputs are numbers.
  void check_tokens(std::span<const std::int32_t> tokens) const {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] >= 0 && tokens[i] < config_.backbone.vocab_size) continue;
      throw ArgumentError("tokens[" + std::to_string(i) + "]", expected_inputs(), std::to_string(tokens[i]));
    }
  }
  /// The rows of the result of a call.
  std::size_t result_rows(std::size_t rows, std::size_t sequences) const {
    return config_.pooling == Pooling::none ? rows : sequences;
  }
  /// "a token id from 0 to 255", or "rows of 3 numbers"
  std::string expected_inputs() const {
    if (config_.columns > 0) return "rows of " + std::to_string(config_.columns) + " numbers";
    return "a token id from 0 to " + std::to_string(config_.backbone.vocab_size - 1);
  }

  Embedding<Scalar, Backend, Weight> embedding;  // [V, D], or absent
  Linear<Scalar, Backend> input;                 // [D, C], or absent
  Backbone backbone;
  Linear<Scalar, Backend> head;  // [K, D], or absent

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("embedding", self.embedding...);
    f("input", self.input...);
    f("backbone", self.backbone...);
    f("head", self.head...);
  }

 private:
  struct Resolved {
    Config config;
  };
  SequenceModel(const Resolved& resolved, Backend<Scalar> backend)
      : backbone(Backbone::shapes_only(resolved.config.backbone, std::move(backend))), config_(resolved.config) {
    const auto size = [](std::int64_t value) { return static_cast<std::size_t>(value); };
    const std::size_t D = size(config_.backbone.d_model);
    if (config_.columns == 0) {
      embedding = {size(config_.backbone.padded_vocab_size()), D};
    } else {
      input = {size(config_.columns), D, true};
    }
    if (config_.task != Task::features) head = {D, size(config_.outputs()), true};
  }

  /// Memory for all that a call needs besides the backbone's. Returns that of the backbone's inputs.
  View<Scalar> reserve(std::size_t rows, WorkspaceType& work) const {
    const auto D = static_cast<std::size_t>(config_.backbone.d_model);
    const std::size_t results = result_rows(rows, work.packed.size());
    work.inputs.reserve(backend(), rows, D);
    work.pooled.reserve(backend(), work.packed.size(), D);
    work.logits.reserve(backend(), results, static_cast<std::size_t>(config_.outputs()));
    work.input_runs.reserve(work.packed.size());
    return work.inputs(rows);
  }

  Outputs read(View<const Scalar> x, Cache& cache, WorkspaceType& work) const {
    work.input_runs.clear();
    for (const Segment& segment : work.packed) {
      work.input_runs.push_back({segment.slot, x.rows_from(segment.first, segment.length)});
    }
    const std::span<const InputRun<Scalar>> runs(work.input_runs);
    const Outputs rows = config_.pooling == Pooling::last ? backbone.forward_last(runs, cache, work)
                                                          : backbone.forward(runs, cache, work);
    View<const Scalar> chosen = rows;
    if (config_.pooling == Pooling::mean || config_.pooling == Pooling::max) {
      const View<Scalar> pooled = work.pooled(work.packed.size());
      backend().pool_rows(
          {.segments = work.packed, .x = rows, .largest = config_.pooling == Pooling::max, .y = pooled});
      chosen = pooled;
    }
    if (config_.task == Task::features) return Outputs(chosen);
    const View<Scalar> outputs = work.logits(chosen.rows());
    head.forward(backend(), chosen, outputs);
    return Outputs(outputs);
  }

  Config config_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
