// Loads and saves adapters as PEFT does, and merges them into the weights of a checkpoint.
#ifndef MINIMAMBA_IO_ADAPTER_HPP
#define MINIMAMBA_IO_ADAPTER_HPP

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/io/adapter_files.hpp"
#include "minimamba/io/commit_together.hpp"
#include "minimamba/io/folders.hpp"
#include "minimamba/io/safetensors_writer.hpp"
#include "minimamba/nn/adapters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// An adapter with the values of a file.
template <class Backend>
Adapter<Backend> loaded_adapter(const AdapterFiles& files, const AdapterPair& pair, const Extents& matrix,
                                const Backend& backend) {
  using Scalar = typename Backend::Scalar;
  Adapter<Backend> adapter(backend, matrix, pair.settings);
  const auto fill = [&](auto& parameter, const StoredTensor& stored, bool turned) {
    std::vector<Scalar> values = stored_values<Scalar>(files, stored);
    if (turned) values = transposed(values, static_cast<std::size_t>(stored.shape[0]));
    parameter.allocate(backend);
    parameter.upload(backend, 0, View<const Scalar>(values.data(), parameter.rows(), parameter.cols()));
  };
  fill(adapter.lora_A, *pair.a, matrix.role() == Role::embedding);  // PEFT's has a column for each token
  fill(adapter.lora_B, *pair.b, false);
  return adapter;
}

/// What adapter_config.json says of a model's adapters.
struct AdapterSummary {
  LoraSettings settings;                      // of most of them
  std::map<std::string, LoraSettings> other;  // of the rest, by PEFT's name of the module
  std::set<std::string> targets;
};

template <class Model>
AdapterSummary summary_of(const Model& model) {
  AdapterSummary summary;
  std::set<std::string> bare;  // last words of matrices that have no adapter
  std::map<std::string, LoraSettings> all;
  for_each_adaptable(
      [&](const std::string& name, const auto& matrix) {
        const std::string module = peft_module(name);
        if (!matrix.adapter.present()) {
          bare.insert(std::string(last_word(module)));
        } else {
          if (all.empty()) summary.settings = matrix.adapter.settings();
          all.emplace(module, matrix.adapter.settings());
        }
      },
      model);
  for (const auto& [module, settings] : all) {
    const std::string word(last_word(module));
    summary.targets.insert(bare.contains(word) ? module : word);
    if (settings != summary.settings) summary.other.emplace(module, settings);
  }
  return summary;
}

inline void write_number(JsonWriter& json, double x) {
  const bool whole = x == std::floor(x) && std::abs(x) < 1e15;
  whole ? json.value(static_cast<std::int64_t>(x)) : json.value(x);
}

/// adapter_config.json, with the keys that PEFT 0.13 writes.
inline std::string adapter_config(const AdapterSummary& summary, const std::string& base_model) {
  JsonWriter json(2);
  json.open('{').key("alpha_pattern").open('{');
  for (const auto& [module, settings] : summary.other) write_number(json.key(module), settings.alpha);
  json.close('}').key("auto_mapping").value(nullptr).key("base_model_name_or_path");
  base_model.empty() ? json.value(nullptr) : json.value(base_model);
  json.key("bias").value("none").key("fan_in_fan_out").value(false).key("inference_mode").value(true);
  json.key("init_lora_weights").value(true);
  for (const char* const key : {"layer_replication", "layers_pattern", "layers_to_transform"}) {
    json.key(key).value(nullptr);
  }
  json.key("loftq_config").open('{').close('}').key("lora_alpha");
  write_number(json, summary.settings.alpha);
  json.key("lora_dropout").value(0.0).key("megatron_config").value(nullptr);
  json.key("megatron_core").value("megatron.core").key("modules_to_save").value(nullptr);
  json.key("peft_type").value("LORA").key("r").value(summary.settings.rank).key("rank_pattern").open('{');
  for (const auto& [module, settings] : summary.other) json.key(module).value(settings.rank);
  json.close('}').key("revision").value(nullptr);
  json.key("target_modules").value(std::vector<std::string>(summary.targets.begin(), summary.targets.end()));
  json.key("task_type").value("CAUSAL_LM").key("use_dora").value(false);
  json.key("use_rslora").value(summary.settings.rank_stabilized).close('}');
  return json.text() + "\n";
}

/// Throws ArgumentError unless the adapters are all that trains.
template <class Model>
void check_only_adapters_train(const Model& model) {
  for_each_trainable(
      [](std::string_view name, const auto&) {
        const std::string_view word = last_word(name);
        if (word == "lora_A" || word == "lora_B") return;
        throw ArgumentError("model", std::string(name) +
                                         " is not frozen, and the files of an adapter cannot hold it: save the merged "
                                         "model, or freeze it");
      },
      model);
}

/// Calls body(name of the tensor, matrix, whether it is written with rows as columns) for each tensor of the file.
template <class Model, class Body>
void for_each_adapter_tensor(const Model& model, Body&& body) {
  for_each_adaptable(
      [&](const std::string& name, const auto& matrix) {
        if (!matrix.adapter.present()) return;
        const bool looked_up = matrix.base.role() == Role::embedding;
        const std::string module = "base_model.model." + peft_module(name);
        body(module + (looked_up ? ".lora_embedding_A" : ".lora_A.weight"), matrix.adapter.lora_A, looked_up);
        body(module + (looked_up ? ".lora_embedding_B" : ".lora_B.weight"), matrix.adapter.lora_B, false);
      },
      model);
}

}  // namespace detail

/// Gives a model the adapter in a folder that PEFT or save_adapter wrote, in place of one that it may have, and freezes
/// everything else. on_note is called with a sentence about each setting that is ignored. Throws what open_adapter
/// throws, CheckpointError for tensors that do not fit the model, and std::bad_alloc; the model is then as it was.
template <class Model>
void load_adapter(Model& model, const AdapterFiles& files,
                  const std::function<void(const std::string&)>& on_note = {}) {
  static_assert(detail::is_lora<typename Model::WeightType>,
                "adapters need a model of Lora<W>: Mamba<float, NativeBackend, Lora<q8>>");
  using Backend = typename Model::BackendType;
  const detail::AdapterPairs pairs = detail::pairs_for(files, model, detail::is_tied(model));
  std::vector<Adapter<Backend>> fresh;  // in the order of the matrices; absent for some
  detail::for_each_adaptable(
      [&](const std::string& name, const auto& matrix) {
        fresh.emplace_back();
        const auto pair = pairs.find(name);
        if (pair != pairs.end()) {
          fresh.back() = detail::loaded_adapter(files, pair->second, matrix.base, model.backend());
        }
      },
      model);
  for (const std::string& note : files.notes) {
    if (on_note) on_note(note);
  }
  std::size_t number = 0;
  detail::for_each_adaptable([&](const std::string&, auto& matrix) { matrix.adapter = std::move(fresh[number++]); },
                             model);
  detail::freeze_but_adapters(model);
}
template <class Model>
void load_adapter(Model& model, const std::filesystem::path& folder,
                  const std::function<void(const std::string&)>& on_note = {}) {
  load_adapter(model, open_adapter(folder), on_note);
}

/// Saves a model's adapter as PEFT does: adapter_model.safetensors, in the model's Scalar, and adapter_config.json,
/// which names the base model if it is given. The folder is created if necessary. Both files get their names together,
/// when they are complete on the disk. Throws FileError, FormatError, and ArgumentError for a model without an adapter
/// or of which other parameters train too; what was in the folder is then as before.
template <class Model>
void save_adapter(const Model& model, const std::filesystem::path& folder, const std::string& base_model = "") {
  static_assert(detail::is_lora<typename Model::WeightType>, "only a model of Lora<W> has an adapter");
  using Scalar = typename Model::ScalarType;
  detail::check_only_adapters_train(model);
  std::vector<StoredTensor> tensors;
  detail::for_each_adapter_tensor(model, [&](const std::string& name, const auto& matrix, bool turned) {
    std::vector<std::uint64_t> shape{matrix.rows(), matrix.cols()};
    if (turned) std::swap(shape[0], shape[1]);
    tensors.push_back({name, dtype_of<Scalar>(), std::move(shape)});
  });
  if (tensors.empty()) throw ArgumentError("model", "an adapter (add_adapter, load_adapter)", "none");
  const std::string text = detail::adapter_config(detail::summary_of(model), base_model);
  MadeFolders folders(folder);
  detail::tidy_folder(folder);
  SafetensorsWriter weights(folder / "adapter_model.safetensors", tensors);
  detail::for_each_adapter_tensor(model, [&](const std::string&, const auto& matrix, bool turned) {
    std::vector<Scalar> values(matrix.size());
    matrix.download(model.backend(), 0, {values.data(), matrix.rows(), matrix.cols()});
    if (turned) values = detail::transposed(values, matrix.rows());
    weights.write(std::span<const Scalar>(values), dtype_of<Scalar>());
  });
  AtomicFile config(folder / "adapter_config.json");
  config.write(text);
  weights.finish();
  std::vector<AtomicFile*> files{&weights.file(), &config};
  commit_together(files);
  folders.keep();
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
