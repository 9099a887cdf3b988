// How `classify` trains a model of any type.
#ifndef MINIMAMBA_EXAMPLES_CLASSIFY_RUN_HPP
#define MINIMAMBA_EXAMPLES_CLASSIFY_RUN_HPP

#include <minimamba/io/pretrained.hpp>
#include <minimamba/nn/adapters.hpp>
#include <minimamba/train/sequence_trainer.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fitting.hpp"
#include "vocabulary.hpp"

namespace classifying {

using minimamba::SequenceBatch;

struct Arguments {
  fitting::Options fit;
  std::string data, task, model, tokenizer, pooling;
  std::optional<std::size_t> examples;  // default: 20,000 to train on, 2,000 to evaluate on
  std::size_t length = 500;
  bool freeze_backbone = false;
  std::int64_t lora_rank = 0;  // 0: no adapters
  double lora_alpha = 16;
  std::vector<std::string> lora_targets = {};  // none: in_proj, and x_proj where there is one
};

/// Examples from any source, so that each type of model is compiled once.
class Examples {
 public:
  template <class Source>
  explicit Examples(Source source, std::vector<std::string> names) : labels(std::move(names)) {
    const auto shared = std::make_shared<const Source>(std::move(source));
    size_ = shared->size();
    fingerprint_ = [shared] { return shared->fingerprint(); };
    append_ = [shared](std::size_t i, SequenceBatch& batch) { shared->append(i, batch); };
  }
  std::size_t size() const { return size_; }
  std::uint64_t fingerprint() const { return fingerprint_(); }
  void append(std::size_t i, SequenceBatch& batch) const { append_(i, batch); }

  std::vector<std::string> labels;
  bool of_words = false;  // whether there is a label for each word, not for the whole

 private:
  std::size_t size_ = 0;
  std::function<std::uint64_t()> fingerprint_;
  std::function<void(std::size_t, SequenceBatch&)> append_;
};

/// What is trained on, and from what.
struct Training {
  Examples examples;
  const program::Vocabulary& vocabulary;  // whose tokenizer the examples use
  std::optional<minimamba::Checkpoint> init;
  bool saved_backbone = false;  // the configuration is that of a model which was saved, with its vocabulary
};

/// A model to train: new, or with a new head on the backbone of --model.
template <class Model>
Model make_model(const Arguments& arguments, const Training& training,
                 const typename Model::Backbone::Config& backbone) {
  typename Model::Config config{.backbone = backbone, .labels = training.examples.labels};
  if (training.examples.of_words && !arguments.pooling.empty()) {
    throw minimamba::ArgumentError("--pooling", "none of it, as the data have a label for each word",
                                   arguments.pooling);
  }
  config.pooling = training.examples.of_words    ? minimamba::Pooling::none
                   : arguments.pooling == "last" ? minimamba::Pooling::last
                   : arguments.pooling == "max"  ? minimamba::Pooling::max
                                                 : minimamba::Pooling::mean;
  const typename Model::BackendType backend({.threads = arguments.fit.threads});
  const std::uint64_t seed = arguments.fit.training.seed;
  constexpr bool is_adapted = minimamba::detail::is_lora<typename Model::WeightType>;
  if (!training.init) {
    if (!training.saved_backbone) config.backbone.vocab_size = training.vocabulary.tokenizer.size();
    return Model(config, backend, seed);
  }
  Model model = minimamba::load_pretrained<Model>(*training.init, config, {.backend = backend, .seed = seed});
  if (training.vocabulary.tokenizer.size() > model.config().backbone.vocab_size) {
    throw minimamba::ArgumentError(
        "tokenizer",
        "at most " + std::to_string(model.config().backbone.vocab_size) + " tokens, the vocabulary of the model",
        std::to_string(training.vocabulary.tokenizer.size()));
  }
  if (arguments.freeze_backbone) freeze(model, {"embedding", "backbone"});
  if constexpr (is_adapted) {
    add_adapter(model,
                {.rank = arguments.lora_rank,
                 .alpha = arguments.lora_alpha,
                 .targets = arguments.lora_targets.empty() ? minimamba::default_targets(model) : arguments.lora_targets,
                 .seed = seed});
    unfreeze(model, {"head"});
  }
  return model;
}

/// Trains a model of this type. Returns the exit code.
template <class Model>
int train_as(const Arguments& arguments, Training& training, const typename Model::Backbone::Config& backbone) {
  auto model = make_model<Model>(arguments, training, backbone);
  const std::size_t labels = training.examples.labels.size();
  minimamba::ShuffledExamples data(std::move(training.examples), arguments.fit.training.validation_fraction);
  fitting::print("%zu examples to train on, %zu to validate on, %zu labels\n", data.training_size(),
                 data.validation_size(), labels);
  minimamba::Trainer trainer(std::move(model), std::move(data), arguments.fit.training);
  std::vector<std::pair<std::string, minimamba::ByteSource>> files;
  const std::string& json = training.vocabulary.json;
  if (!json.empty()) {
    files.emplace_back("tokenizer.json", minimamba::ByteSource(std::as_bytes(std::span(json)), "tokenizer.json"));
  }
  return fitting::Fit(trainer, arguments.fit, std::move(files)).run();
}

#ifdef MINIMAMBA_COMPILED_FITS  // which CMakeLists.txt defines: they are compiled in files of their own
using minimamba::detail::S6Files, minimamba::detail::SsdFiles, minimamba::Lora;
#define CLASSIFY_FIT(...)                                                                       \
  extern template fitting::Model<__VA_ARGS__> make_model<fitting::Model<__VA_ARGS__>>(          \
      const Arguments&, const Training&, const fitting::Model<__VA_ARGS__>::Backbone::Config&); \
  extern template int train_as<fitting::Model<__VA_ARGS__>>(const Arguments&, Training&,        \
                                                            const fitting::Model<__VA_ARGS__>::Backbone::Config&)
CLASSIFY_FIT(S6Files);
CLASSIFY_FIT(SsdFiles);
CLASSIFY_FIT(S6Files, Lora<float>);
CLASSIFY_FIT(SsdFiles, Lora<float>);
#undef CLASSIFY_FIT
#endif

}  // namespace classifying

#endif
