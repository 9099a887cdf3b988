// A model with a head on the backbone of a trained language model: its blocks and its embedding are read, and its head
// for tokens gives way to a new one.
//
//   const auto checkpoint = minimamba::open_checkpoint("mamba-130m-hf");
//   auto model = minimamba::load_pretrained<minimamba::SequenceModel<float, minimamba::NativeTraining>>(
//       checkpoint, {.labels = {"bad", "good"}});
#ifndef MINIMAMBA_IO_PRETRAINED_HPP
#define MINIMAMBA_IO_PRETRAINED_HPP

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>

#include "minimamba/io/load.hpp"
#include "minimamba/io/sequence_files.hpp"
#include "minimamba/nn/sequence_model.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

template <class LanguageModel>
struct SequenceModelFor;
template <class Scalar, template <class> class Backend, class Weight,
          template <class, template <class> class, class> class Mixer>
struct SequenceModelFor<Mamba<Scalar, Backend, Weight, Mixer>> {
  using Type = SequenceModel<Scalar, Backend, Weight, Mixer>;
};

}  // namespace detail

/// The model with a head whose backbone is that of a type of language model.
template <class LanguageModel>
using SequenceModelOf = typename detail::SequenceModelFor<LanguageModel>::Type;

namespace detail {

template <class Scalar, template <class> class Backend, class Weight,
          template <class, template <class> class, class> class Mixer>
Mamba<Scalar, Backend, Weight, Mixer> language_model_for(const SequenceModel<Scalar, Backend, Weight, Mixer>&);

}  // namespace detail

template <class Model>
struct PretrainedOptions {
  typename Model::BackendType backend = typename Model::BackendType();
  std::uint64_t seed = 0;  // of the weights of the head, and of the input layer for rows of numbers
  /// As in LoadOptions.
  std::function<bool(double)> progress = {};
  std::function<void(const std::string&)> on_note = {};
  bool saturate = false;
};

/// A model with a new head, for which `config` says all but the backbone: that is the checkpoint's, with its weights. A
/// model of real inputs has a new input layer too, and no embedding. Throws what load throws, and ConfigError for a
/// head that is not valid; ConfigError too for a checkpoint of another mixer.
template <class Model>
Model load_pretrained(const Checkpoint& checkpoint, typename Model::Config config,
                      const PretrainedOptions<Model>& options = {}) {
  using Language = decltype(detail::language_model_for(std::declval<const Model&>()));
  config.backbone = checkpoint.config_as<typename Model::Backbone::Config>();
  if (config.columns > 0) config.backbone.vocab_size = 0;
  Model model = Model::shapes_only(config, options.backend);
  const auto make = [&](auto& layer) {
    allocate_parameters(layer, model.backend());
    initialize_parameters(layer, model.backbone.config(), model.backend(), options.seed);
  };
  if (config.columns > 0) make(model.input);
  if (config.task != Task::features) make(model.head);
  Language language = load<Language>(checkpoint, {.backend = options.backend,
                                                  .progress = options.progress,
                                                  .on_note = options.on_note,
                                                  .saturate = options.saturate});
  if (config.columns == 0) model.embedding = std::move(language.embedding);
  model.backbone.layers = std::move(language.layers);
  model.backbone.norm_f = std::move(language.norm_f);
  model.refresh();
  return model;
}

/// The backbone's configuration in the config.json of a SequenceModel, of any mixer: for programs that choose the type
/// of the model by it. Throws as read_sequence_config does.
inline AnyConfig read_backbone_config(const ByteSource& source) {
  const Json json = read_json(source, detail::sequence_config_limits);
  detail::ConfigReader reader(json, source.name());
  AnyConfig config;
  detail::KnownMixers::find([&](auto files) { return files.describes(reader); },
                            [&](auto files) {
                              using Config = typename decltype(files)::Config;
                              config = AnyConfig(read_sequence_config<Config>(source).backbone);
                            });
  return config;
}
inline AnyConfig read_backbone_config(const std::filesystem::path& folder) {
  return read_backbone_config(ByteSource::open(folder / "config.json"));
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
