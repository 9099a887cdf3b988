// Training checkpoints: one safetensors file, written atomically, with everything that the next step depends on. A
// training run that was killed can be resumed from it and gives the same bits. Needs minimamba::io, as files of data
// do.
#ifndef MINIMAMBA_TRAIN_CHECKPOINT_HPP
#define MINIMAMBA_TRAIN_CHECKPOINT_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/core/hash.hpp"
#include "minimamba/io/save.hpp"
#include "minimamba/train/trainer.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The configuration of a model's backbone, which may be its own.
template <class Model>
const auto& backbone_config(const Model& model) {
  if constexpr (requires { model.backbone.config(); }) {
    return model.backbone.config();
  } else {
    return model.config();
  }
}

inline constexpr std::string_view kernels_key = "backend ";

/// TapeOptions::chunk. Checkpoints from before 2026-11-26 lack it. Its name sorts after "length", because length limits
/// the chunk: if both differ, the message names the length.
inline constexpr const char* chunk_key = "scan_chunk";

/// TrainerOptions::micro_batches. Checkpoints from before 2026-11-27 lack it: they have one.
inline constexpr const char* micro_batches_key = "micro_batches";

/// A hash of all values of the frozen parameters, which checkpoints do not have: it recognises the model that the
/// training run began from. 0 if nothing is frozen. Eight bytes at a time: it reads some GB a second.
template <class Model>
double frozen_fingerprint(const Model& model) {
  using Scalar = typename Model::ScalarType;
  constexpr std::size_t in_unit = sizeof(std::uint64_t) / sizeof(Scalar);
  Fnv1a hash;
  const std::uint64_t none = hash.value();
  for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        if (std::remove_cvref_t<decltype(parameter)>::can_train && !parameter.frozen()) return;
        hash.add(name);
        in_pieces<Scalar>(parameter.rows(), parameter.cols(), [&](std::size_t first, View<Scalar> piece) {
          parameter.download(model.backend(), first, piece);
          const std::span<const Scalar> values(piece.data(), piece.rows() * piece.cols());
          for (std::size_t i = 0; i < values.size(); i += in_unit) {
            std::uint64_t unit = 0;
            std::memcpy(&unit, values.data() + i, std::min(in_unit, values.size() - i) * sizeof(Scalar));
            // Multiplication carries only upwards: without this, the high bits of a unit would move little.
            hash.add(unit ^ (unit >> 32));
          }
        });
      },
      model);
  return hash.value() == none ? 0 : static_cast<double>(hash.value() >> 11);
}

/// Settings that most training runs do not have.
template <class Model, class... Rest>
void add_settings_of_parts(const Trainer<Model, Rest...>& trainer, std::map<std::string, double>& settings) {
  std::size_t number = 0;  // of a group: the first that has a parameter counts
  for (const ParameterGroup& group : trainer.options().adamw.groups) {
    const std::string name = "group " + std::to_string(number++) + " " + group.part;
    settings[name + " rate"] = group.rate;
    if (group.weight_decay) settings[name + " weight_decay"] = *group.weight_decay;
  }
  if (trainer.options().average > 0) settings["average"] = trainer.options().average;
  if (const double frozen = frozen_fingerprint(trainer.model()); frozen != 0) settings["frozen"] = frozen;
  if constexpr (requires { adapter_fingerprint(trainer.model()); }) {
    settings["adapter"] = adapter_fingerprint(trainer.model());
  }
}

/// All settings that the bits of the next step depend on. The backend is not a number, so it is part of its setting's
/// name.
template <class Model, class... Rest>
std::map<std::string, double> settings_of(const Trainer<Model, Rest...>& trainer) {
  const auto& c = backbone_config(trainer.model());
  const TrainerOptions& o = trainer.options();
  const auto number = [](auto value) { return static_cast<double>(value); };
  std::map<std::string, double> settings{{"vocab_size", number(c.vocab_size)},
                                         {"norm_epsilon", c.norm_epsilon},
                                         {"batch", number(o.batch)},
                                         {"length", number(o.length)},
                                         {"accumulate", number(o.accumulate)},
                                         {micro_batches_key, number(o.micro_batches)},
                                         {"validation_fraction", o.validation_fraction},
                                         {"seed", number(o.seed)},
                                         {"rate", o.schedule.max_lr},  // older files use these two names
                                         {"least_rate", o.schedule.min_lr},
                                         {"warmup_steps", number(o.schedule.warmup_steps)},
                                         {"steps", number(o.schedule.steps)},
                                         {"beta1", o.adamw.beta1},
                                         {"beta2", o.adamw.beta2},
                                         {"epsilon", o.adamw.epsilon},
                                         {"weight_decay", o.adamw.weight_decay},
                                         {"clip", o.adamw.clip},
                                         {"dropout", o.tape.dropout},
                                         {chunk_key, number(std::min(o.tape.chunk, o.length))},
                                         {"text", number(trainer.data().fingerprint() >> 11)},  // 53 bits
                                         {std::string(kernels_key) + kernels_text(trainer.model().backend()), 1}};
  add_settings_of_parts(trainer, settings);
  for (const ModelSetting& setting : trainer.model().state_layout().settings()) {
    if (setting.name == "d_inner") {
      settings["expand"] = setting.as_double() / number(c.d_model);  // as in older files
    } else if (setting.name != "vocabulary") {                       // vocab_size, listed above, decides it
      settings[setting.name] = setting.as_double();
    }
  }
  if constexpr (requires { trainer.model().head_settings(); }) {
    for (const ModelSetting& setting : trainer.model().head_settings()) settings[setting.name] = setting.as_double();
  }
  return settings;
}

inline constexpr std::size_t record_size = 5;

/// Calls body(prefix, module) for the model, for both moments of its gradient, and for the average of its weights.
template <class Model, class... Rest, class Body>
void for_each_module(const Trainer<Model, Rest...>& trainer, Body&& body) {
  body(std::string("model."), trainer.model());
  body(std::string("mean."), trainer.optimizer().mean());
  body(std::string("variance."), trainer.optimizer().variance());
  if (trainer.average() != nullptr) body(std::string("average."), trainer.average()->parameters());
}

inline const StoredTensor& require_tensor(const TensorSet& set, const std::string& file, std::string_view name) {
  const StoredTensor* const tensor = set.find(std::string(name));
  if (tensor == nullptr)
    throw CheckpointError(file + ": " + std::string(name), "the file lacks this tensor of a training checkpoint");
  return *tensor;
}

/// Throws CheckpointError if the checkpoint comes from another backend or instruction set. From or to a card it may be
/// moved: then a note about it is returned, otherwise an empty string.
template <class Model, class... Rest>
std::string check_kernels(const Trainer<Model, Rest...>& trainer, const TensorSet& set, const std::string& file) {
  const std::string key = "setting." + std::string(kernels_key), wanted = kernels_text(trainer.model().backend());
  const auto found = set.tensors().lower_bound(key);
  const bool any = found != set.tensors().end() && found->first.starts_with(key);
  const std::string from = any ? printable(found->first.substr(key.size())) : wanted;
  if (from == wanted) return "";
  const auto on_card = [](const std::string& kernels) { return kernels.starts_with("cuda"); };
  if (on_card(from) || on_card(wanted)) {
    return file + ": the training run began on " + from + " and goes on on " + wanted +
           ", which rounds differently, so its bits differ from those of a run on one of them";
  }
  throw CheckpointError(file, key.substr(key.find('.') + 1) + wanted, from);
}

/// Throws CheckpointError if the checkpoint has a setting that the trainer does not have: one of another mixer. That of
/// the backend was checked before.
inline void check_no_other_settings(const std::map<std::string, double>& wanted, const TensorSet& set,
                                    const std::string& file) {
  constexpr std::string_view prefix = "setting.";
  for (auto found = set.tensors().lower_bound(std::string(prefix)); found != set.tensors().end(); ++found) {
    if (!found->first.starts_with(prefix)) return;
    const std::string name = found->first.substr(prefix.size());
    if (wanted.contains(name) || name.starts_with(kernels_key)) continue;
    throw CheckpointError(file, "the checkpoint has the setting " + printable(name) + ", which this model lacks");
  }
}

/// Throws CheckpointError unless the checkpoint has the settings and parameters of this trainer. The number of steps
/// may be larger than in the checkpoint, and a card may be involved: each gives a note.
template <class Model, class... Rest>
std::vector<std::string> check_training(const Trainer<Model, Rest...>& trainer, const TensorSet& set,
                                        const std::string& file) {
  std::vector<std::string> notes;
  if (const std::string moved = check_kernels(trainer, set, file); !moved.empty()) notes.push_back(moved);
  const auto wanted_settings = settings_of(trainer);
  for (const auto& [name, wanted] : wanted_settings) {
    const bool is_absent = set.find("setting." + name) == nullptr;
    if (is_absent && (name == chunk_key || (name == micro_batches_key && wanted == 1))) continue;
    if (name.starts_with(kernels_key) && !notes.empty()) continue;
    const StoredTensor& tensor = require_tensor(set, file, "setting." + name);
    if (tensor.dtype != DType::F64 || tensor.size() != 1) {
      throw CheckpointError(file + ": " + tensor.name, "F64 [1]", type_of(tensor) + " " + shape_text(tensor.shape));
    }
    double found = 0;
    set.read(tensor, 0, std::span(&found, 1));
    if (found == wanted) continue;
    if (name == "steps" && found < wanted) {
      notes.push_back(file + ": the training run was planned for " + number_text(found) +
                      " steps; from here on it follows the schedule for " + number_text(wanted) +
                      ", so its bits differ from those of a single run of that length");
      continue;
    }
    if (name == "text") throw CheckpointError(file, "the checkpoint was trained on other data");
    if (name == "labels") throw CheckpointError(file, "the checkpoint was trained with other labels");
    if (name == "frozen")
      throw CheckpointError(
          file, "the checkpoint was trained with other frozen parameters: another model, or another weight format");
    if (name == "adapter") throw CheckpointError(file, "the checkpoint was trained with adapters of another scale");
    throw CheckpointError(file, name + " " + number_text(wanted), number_text(found));
  }
  check_no_other_settings(wanted_settings, set, file);
  for_each_module(trainer, [&](const std::string& prefix, const Model&) {
    for_each_trainable(  // those of the model: ranks may have divided the moments
        [&](std::string_view name, const auto& parameter) {
          const StoredTensor& tensor = require_tensor(set, file, prefix + std::string(name));
          const bool same =
              std::equal(tensor.shape.begin(), tensor.shape.end(), parameter.shape().begin(), parameter.shape().end());
          const DType dtype = dtype_of<typename Model::ScalarType>();
          if (same && tensor.dtype == dtype) return;
          throw CheckpointError(file + ": " + tensor.name,
                                std::string(name_of(dtype)) + " " + shape_text(parameter.shape()),
                                type_of(tensor) + " " + shape_text(tensor.shape));
        },
        trainer.model());
  });
  const StoredTensor& history = require_tensor(set, file, "history");
  if (history.dtype == DType::F64 && history.shape.size() == 2 && history.shape[1] == record_size) return notes;
  throw CheckpointError(file + ": history", "F64 [steps, 5]", type_of(history) + " " + shape_text(history.shape));
}

}  // namespace detail

/// Saves the state of a training run, without frozen parameters. An existing file is replaced once the new one is
/// complete on the disk. Throws FileError, DivergedError if training has diverged (see Trainer::require_finite), and
/// ArgumentError if ranks have divided the moments and this one has not all: see DataParallel::on_first. The old file
/// is unchanged then.
template <class Model, class... Rest>
void save_training(Trainer<Model, Rest...>& trainer, const std::filesystem::path& file) {
  using Scalar = typename Model::ScalarType;
  if (detail::parameters_in(trainer.optimizer().mean()) < detail::parameters_in(trainer.model())) {
    throw ArgumentError("trainer", "the moments of all parameters, as rank 0 has them in DataParallel::on_first",
                        "those of this rank");
  }
  trainer.require_finite();
  const auto settings = detail::settings_of(trainer);
  std::vector<double> history;
  for (const StepRecord& r : trainer.history()) {
    history.insert(history.end(),
                   {static_cast<double>(r.step), r.loss, r.learning_rate, r.gradient_norm, r.validation_loss});
  }
  std::vector<StoredTensor> tensors;
  for (const auto& [name, value] : settings) tensors.push_back({"setting." + name, DType::F64, {1}});
  tensors.push_back({"history", DType::F64, {trainer.history().size(), detail::record_size}});
  detail::for_each_module(trainer, [&](const std::string& prefix, const Model& module) {
    for_each_trainable(
        [&](std::string_view name, const auto& parameter) {
          tensors.push_back(
              {prefix + std::string(name), dtype_of<Scalar>(), {parameter.shape().begin(), parameter.shape().end()}});
        },
        module);
  });
  AtomicFile::remove_strays_beside(file);
  SafetensorsWriter writer(file, tensors);
  for (const auto& [name, value] : settings) writer.write(std::span(&value, 1), DType::F64);
  writer.write(std::span<const double>(history), DType::F64);
  detail::for_each_module(trainer, [&](const std::string&, const Model& module) {
    for_each_trainable(
        [&](std::string_view, const auto& parameter) {
          detail::in_pieces<Scalar>(parameter.rows(), parameter.cols(), [&](std::size_t first, View<Scalar> piece) {
            parameter.download(module.backend(), first, piece);
            writer.write(std::span<const Scalar>(piece.data(), piece.rows() * piece.cols()), dtype_of<Scalar>());
          });
        },
        module);
  });
  writer.commit();
}

namespace detail {

/// Reads the parameters of a module that train from a checkpoint that check_training has accepted.
template <class Module>
void read_module(const TensorSet& set, const std::string& prefix, Module& module) {
  using Scalar = typename Module::ScalarType;
  for_each_trainable(
      [&](std::string_view name, auto& parameter) {
        const StoredTensor& tensor = *set.find(prefix + std::string(name));
        in_pieces<Scalar>(parameter.rows(), parameter.cols(), [&](std::size_t first, View<Scalar> piece) {
          set.read(tensor, first * parameter.cols(), std::span(piece.data(), piece.rows() * piece.cols()));
          parameter.upload(module.backend(), first, piece);
        });
      },
      module);
}

/// A model with the shapes of another, and with its frozen parameters.
template <class Model>
Model with_frozen_parameters(const Model& like) {
  Model model = allocated_like(like);
  for_each_parameter(
      [&](std::string_view, const auto& source, auto& target) {
        const bool frozen = source.frozen() || !std::remove_cvref_t<decltype(source)>::can_train;
        if (frozen) copy_parameters(source, like.backend(), target, model.backend());
      },
      like, model);
  return model;
}

inline std::vector<StepRecord> read_history(const TensorSet& set) {
  const StoredTensor& stored = *set.find("history");
  std::vector<double> values(static_cast<std::size_t>(stored.size()));
  set.read(stored, 0, std::span(values));
  std::vector<StepRecord> history;
  for (std::size_t i = 0; i < values.size(); i += record_size) {
    history.push_back({.step = static_cast<std::int64_t>(history.size()) + 1,
                       .loss = values[i + 1],
                       .learning_rate = values[i + 2],
                       .gradient_norm = values[i + 3],
                       .validation_loss = values[i + 4]});
  }
  return history;
}

}  // namespace detail

/// Restores a training run from a file that save_training wrote. The trainer's schedule may have more steps than the
/// file's, and a run may move between a card and the processor; on_note is called with a sentence about each. Its model
/// must have the frozen parameters and the adapters that the training run had. While reading, a second model and its
/// moments are in memory. Throws FileError or FormatError if the file cannot be read,
/// CheckpointError for a setting that differs, which it names, and std::bad_alloc. After an exception the trainer is
/// unchanged.
template <class Model, class... Rest>
void resume_training(Trainer<Model, Rest...>& trainer, const ByteSource& source,
                     const std::function<void(const std::string&)>& on_note = {}) {
  TensorSet set;
  read_safetensors(source, set);
  const std::vector<std::string> notes = detail::check_training(trainer, set, source.name());
  const Model& like = trainer.model();
  TrainingState<Model> state{.model = detail::with_frozen_parameters(like),
                             .mean = zeros_like(like),
                             .variance = zeros_like(like),
                             .history = detail::read_history(set)};
  if (trainer.average() != nullptr) state.average = detail::with_frozen_parameters(like);
  detail::read_module(set, "model.", state.model);
  detail::read_module(set, "mean.", state.mean);
  detail::read_module(set, "variance.", state.variance);
  state.model.refresh();
  if (state.average) detail::read_module(set, "average.", *state.average);
  for (const std::string& note : notes) {
    if (on_note) on_note(note);
  }
  trainer.restore(std::move(state));
}
template <class Model, class... Rest>
void resume_training(Trainer<Model, Rest...>& trainer, const std::filesystem::path& file,
                     const std::function<void(const std::string&)>& on_note = {}) {
  resume_training(trainer, ByteSource::open(file), on_note);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
