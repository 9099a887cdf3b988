// Files of adapters: what is read, what is refused by name, and what a failed call leaves.
#include "minimamba/io/adapter.hpp"
#include "minimamba/io/merge_adapter.hpp"
#include "support/files.hpp"
#include "support/lora.hpp"

namespace adapter_test {

using namespace minimamba;
namespace fs = std::filesystem;
using Native = Mamba<float, NativeTraining, Lora<q8>>;

/// A folder with the adapter of a model, in which something can be changed.
struct Saved {
  support::Folder folder;
  Native model = support::adapted_model<Native>();
  fs::path path = folder / "adapter";

  Saved() { save_adapter(model, path); }

  /// Replaces a piece of the text of adapter_config.json.
  void edit(const std::string& from, const std::string& to) const {
    std::string text = support::read_text(path / "adapter_config.json");
    const std::size_t place = text.find(from);
    ASSERT_NE(place, std::string::npos) << from;
    support::write_text(path / "adapter_config.json", text.replace(place, from.size(), to));
  }
  /// Writes the tensors again: without those that keep(name) rejects, with the shapes and names of change(tensor).
  template <class Change>
  void rewrite(Change&& change) const {
    const AdapterFiles files = open_adapter(path);
    std::vector<StoredTensor> tensors;
    for (auto [name, tensor] : files.tensors.tensors()) {
      if (change(tensor)) tensors.push_back(tensor);
    }
    SafetensorsWriter writer(path / "adapter_model.safetensors", tensors);
    for (const StoredTensor& tensor : tensors) {
      writer.write(std::span<const float>(std::vector<float>(static_cast<std::size_t>(tensor.size()), 0.5F)),
                   DType::F32);
    }
    writer.commit();
  }
  /// What load_adapter says for a model with another adapter, which must stay as it was.
  std::string refusal() const {
    Native other = support::trained_looking_model<Native>(support::lora_config());
    add_adapter(other, {.targets = {"in_proj"}});
    const auto before = support::trained_of(other);
    std::string message = "no error";
    try {
      load_adapter(other, path);
    } catch (const Error& error) {
      message = error.what();
    }
    support::expect_identical(support::trained_of(other), before);
    return message;
  }
};

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST(AdapterFilesOfAModel, GiveTheSameModelAgain) {
  const Saved saved;
  EXPECT_EQ(support::names_in(saved.path), (std::set<std::string>{"adapter_config.json", "adapter_model.safetensors"}));
  Native other = support::trained_looking_model<Native>(support::lora_config());
  load_adapter(other, saved.path);
  support::expect_identical(support::trained_of(other), support::trained_of(saved.model));
  const auto tokens = support::random_tokens(12, 10);
  auto cache = other.make_cache(), again = saved.model.make_cache();
  EXPECT_TRUE(support::identical(support::copy_of(other.forward(tokens, cache)),
                                 support::copy_of(saved.model.forward(tokens, again))));
}

TEST(AdapterFilesOfAModel, MayHaveOtherRanksAndAlphas) {
  const Saved saved;
  saved.edit("\"alpha_pattern\": {}",
             R"("alpha_pattern": {"mixer.x_proj": 3, "^backbone.layers.1.mixer.in_proj": 2.5})");
  saved.edit("\"rank_pattern\": {}", R"("rank_pattern": {"out_proj": 2})");
  saved.rewrite([](StoredTensor& tensor) {
    if (tensor.name.find("out_proj.lora_A") != std::string::npos) tensor.shape[0] = 2;
    if (tensor.name.find("out_proj.lora_B") != std::string::npos) tensor.shape[1] = 2;
    return tensor.name.find("dt_proj") == std::string::npos;
  });
  Native other = support::trained_looking_model<Native>(support::lora_config());
  load_adapter(other, saved.path);
  const auto settings = [&](const auto& linear) { return linear.weight.adapter.settings(); };
  EXPECT_EQ(settings(other.layers[0].mixer.x_proj), (LoraSettings{3, 3, true}));
  EXPECT_EQ(settings(other.layers[0].mixer.in_proj), (LoraSettings{3, 4.5, true}));
  EXPECT_EQ(settings(other.layers[1].mixer.in_proj), (LoraSettings{3, 2.5, true}));
  EXPECT_EQ(settings(other.layers[1].mixer.out_proj), (LoraSettings{2, 4.5, true}));
  EXPECT_FALSE(other.layers[0].mixer.dt_proj.weight.adapter.present());
  const support::Folder folder;
  save_adapter(other, folder / "again");
  Native third = support::trained_looking_model<Native>(support::lora_config());
  load_adapter(third, folder / "again");
  support::expect_identical(support::trained_of(third), support::trained_of(other));
  EXPECT_EQ(settings(third.layers[1].mixer.in_proj), settings(other.layers[1].mixer.in_proj));
}

TEST(AdapterFilesOfAModel, AreRefusedByTheNameOfAnUnsupportedOption) {
  const std::pair<const char*, const char*> edits[] = {
      {"\"use_dora\": false", "\"use_dora\": true"},
      {"\"bias\": \"none\"", "\"bias\": \"lora_only\""},
      {"\"modules_to_save\": null", "\"modules_to_save\": [\"norm_f\"]"},
      {"\"peft_type\": \"LORA\"", "\"peft_type\": \"IA3\""},
      {"\"fan_in_fan_out\": false", "\"fan_in_fan_out\": true"},
      {"\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\""},
      {"\"layer_replication\": null", "\"layer_replication\": [[0, 1]]"},
      {"\"revision\": null", "\"lora_bias\": true"},
      {"\"r\": 3", "\"r\": 1e300"},
      {"\"alpha_pattern\": {}", "\"alpha_pattern\": {\".*x_proj\": 3}"},
      {"\"alpha_pattern\": {}", "\"alpha_pattern\": {\"x_proj$\": 3}"},
      {"\"alpha_pattern\": {}", "\"alpha_pattern\": [3]"}};
  for (const auto& [from, to] : edits) {
    const Saved saved;
    saved.edit(from, to);
    const std::string text(to);
    expect_contains(saved.refusal(), "adapter_config.json: " + text.substr(1, text.find('"', 1) - 1));
  }
}

TEST(AdapterFilesOfAModel, HaveTheAlphaOfTheFirstKeyThatPeftFinds) {
  const Saved saved;
  saved.edit("\"alpha_pattern\": {}",
             R"("alpha_pattern": {"^backbone.layers.0.mixer.in_proj": 2, "^x_proj": 7, "in_proj": 3, "proj": 9})");
  Native other = support::trained_looking_model<Native>(support::lora_config());
  load_adapter(other, saved.path);
  const auto alpha = [&](const auto& linear) { return linear.weight.adapter.settings().alpha; };
  EXPECT_EQ(alpha(other.layers[0].mixer.in_proj), 2);
  EXPECT_EQ(alpha(other.layers[1].mixer.in_proj), 3);
  EXPECT_EQ(alpha(other.layers[0].mixer.x_proj), 4.5);  // ^ stands for the beginning of the whole name
  EXPECT_EQ(alpha(other.layers[0].mixer.dt_proj), 4.5);
}

TEST(AdapterFilesOfAModel, AreRefusedForAScaleThatFloatCannotHold) {
  for (const char* const edit : {"\"lora_alpha\": 1e300", "\"lora_alpha\": -1e300"}) {
    const Saved saved;
    saved.edit("\"lora_alpha\": 4.5", edit);
    expect_contains(saved.refusal(), "the alpha of backbone.embeddings: expected a number that scales");
  }
  const Saved saved;
  saved.edit("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"x_proj\": 1e300}");
  expect_contains(saved.refusal(), "the alpha of backbone.layers.0.mixer.x_proj");
}

/// PEFT adds the frozen matrix to the file if a target is called lm_head.
TEST(AdapterFilesOfAModel, MayHoldTheFrozenHeadToo) {
  const std::string name = "base_model.model.lm_head.base_layer.weight";
  const auto with_head = [&](const Saved& saved, std::vector<std::uint64_t> shape) {
    const AdapterFiles files = open_adapter(saved.path);
    std::vector<StoredTensor> tensors{{name, DType::F32, shape}};
    for (const auto& [key, tensor] : files.tensors.tensors()) tensors.push_back(tensor);
    SafetensorsWriter writer(saved.path / "adapter_model.safetensors", tensors);
    for (const StoredTensor& tensor : tensors) {
      std::vector<float> values(static_cast<std::size_t>(tensor.size()));
      if (tensor.name != name) files.tensors.read(tensor, 0, std::span(values));
      writer.write(std::span<const float>(values), DType::F32);
    }
    writer.commit();
  };
  const Saved saved;
  with_head(saved, {16, 6});  // the vocabulary is padded
  Native other = support::trained_looking_model<Native>(support::lora_config());
  std::string notes;
  load_adapter(other, saved.path, [&](const std::string& note) { notes += note; });
  support::expect_identical(support::trained_of(other), support::trained_of(saved.model));
  expect_contains(notes, name + " is not read");
  const Saved resized;
  with_head(resized, {10, 6});
  expect_contains(resized.refusal(), name + ": expected shape [16, 6] (of the model), found shape [10, 6]");
  const Saved alone;
  with_head(alone, {16, 6});
  alone.rewrite([](StoredTensor& tensor) { return tensor.name.find("lm_head.lora") == std::string::npos; });
  expect_contains(alone.refusal(), "lm_head.lora_A.weight: expected a tensor, because there is base_layer.weight");
}

TEST(AdapterFilesOfAModel, AreRefusedIfTheirTensorsDoNotFit) {
  const auto refusal = [](auto&& change) {
    const Saved saved;
    saved.rewrite(change);
    return saved.refusal();
  };
  const std::string module = "base_model.model.backbone.layers.1.mixer.in_proj.";
  expect_contains(refusal([&](StoredTensor& t) { return t.name != module + "lora_B.weight"; }),
                  module + "lora_B.weight: expected a tensor, because there is lora_A.weight, found no tensor");
  expect_contains(refusal([&](StoredTensor& t) { return t.name != module + "lora_A.weight"; }), "lora_A.weight");
  expect_contains(refusal([&](StoredTensor& t) {
                    if (t.name == module + "lora_A.weight") t.shape = {3, 7};
                    return true;
                  }),
                  "expected shape [3, 6] (the matrix is [24, 6]), found shape [3, 7]");
  expect_contains(refusal([&](StoredTensor& t) {
                    if (t.name == module + "lora_A.weight") t.shape = {4, 6};
                    return true;
                  }),
                  "expected shape [3, ...] (r in adapter_config.json), found shape [4, 6]");
  expect_contains(refusal([&](StoredTensor& t) {
                    if (t.name == module + "lora_B.weight") t.shape = {24, 4};
                    return true;
                  }),
                  "expected shape [24, 3]");
  expect_contains(refusal([&](StoredTensor& t) {
                    if (t.name.starts_with(module)) t.name.replace(t.name.find("in_proj"), 7, "q_proj");
                    return true;
                  }),
                  "the model has no matrix backbone.layers.1.mixer.q_proj");
  expect_contains(refusal([&](StoredTensor& t) {
                    if (t.name == module + "lora_B.weight") t.name = module + "lora_magnitude_vector";
                    return true;
                  }),
                  "lora_magnitude_vector");
  // A and B as embeddings have them, for a matrix that is none.
  expect_contains(refusal([&](StoredTensor& t) {
                    if (t.name == module + "lora_A.weight") t.name = module + "lora_embedding_A";
                    if (t.name == module + "lora_B.weight") t.name = module + "lora_embedding_B";
                    return true;
                  }),
                  "lora_A.weight: expected a tensor of this name, found " + module + "lora_embedding_A");
  expect_contains(refusal([&](StoredTensor& t) {
                    if (t.name == module + "lora_B.weight") t.name = module + "lora_embedding_A";
                    return true;
                  }),
                  "lora_embedding_A: it is " + module + "lora_A.weight again");
  expect_contains(refusal([](StoredTensor&) { return false; }), "the tensors of an adapter");
}

TEST(AdapterFilesOfAModel, SayThatTheirDropoutIsNotApplied) {
  const Saved saved;
  auto config = nlohmann::json::parse(support::read_text(saved.path / "adapter_config.json"));
  config["lora_dropout"] = 0.1;
  support::write_text(saved.path / "adapter_config.json", config.dump());
  const std::vector<std::string> notes = open_adapter(saved.path).notes;
  ASSERT_EQ(notes.size(), 1U);
  expect_contains(notes[0], "adapter_config.json: lora_dropout is not applied");
}

TEST(AdapterFilesOfAModel, AreRefusedForATiedEmbedding) {
  const Saved saved;
  MambaConfig config = support::lora_config();
  config.tie_embeddings = true;
  Native tied(config);
  try {
    load_adapter(tied, saved.path);
    FAIL();
  } catch (const CheckpointError& error) {
    expect_contains(error.what(), "tie_embeddings");
  }
}

TEST(AdapterFilesOfAModel, AreNotWrittenForAModelThatTheyCannotHold) {
  const support::Folder folder;
  Native model = support::trained_looking_model<Native>(support::lora_config());
  const auto write = [&] { save_adapter(model, folder / "adapter"); };
  EXPECT_THROW(write(), ArgumentError);
  add_adapter(model, {.targets = {"in_proj"}});
  unfreeze(model, {"norm_f"});
  EXPECT_THROW(write(), ArgumentError);
  EXPECT_FALSE(fs::exists(folder / "adapter"));
  freeze(model, {"norm_f"});
  write();
  support::write_text(folder / "file", "");
  EXPECT_THROW(save_adapter(model, folder / "file" / "adapter"), FileError);
}

TEST(AdapterFilesOfAModel, MergeIntoACheckpointAsIntoAModel) {
  const support::Folder folder;
  using Plain = Mamba<float, NativeTraining>;
  using Adapted = Mamba<float, NativeTraining, Lora<float>>;
  const Plain base = support::trained_looking_model<Plain>(support::lora_config());
  save(base, folder / "base");
  auto model = load<Adapted>(folder / "base");
  add_adapter(model, support::adapt_everything<Adapted>());
  support::fill_adapters(model);
  save_adapter(model, folder / "adapter");
  const Checkpoint checkpoint = open_checkpoint(folder / "base");
  save_merged(checkpoint, open_adapter(folder / "adapter"), folder / "merged");
  save_merged(checkpoint, open_adapter(folder / "adapter"), folder / "half", {.matrices = DType::BF16});
  save_merged_gguf(checkpoint, open_adapter(folder / "adapter"), folder / "merged.gguf");
  const auto wanted = support::parameters_of(merge(model));
  for (const auto& [name, values] : support::parameters_of(load<Plain>(folder / "merged"))) {
    EXPECT_LE(support::largest_difference(values, wanted.at(name)), 1e-7 * support::largest_magnitude(values)) << name;
  }
  for (const auto& [name, values] : support::parameters_of(load<Plain>(folder / "merged.gguf"))) {
    EXPECT_LE(support::largest_difference(values, wanted.at(name)), 1e-6 * support::largest_magnitude(values)) << name;
  }
  for (const auto& [name, values] : support::parameters_of(load<Plain>(folder / "half"))) {
    EXPECT_LE(support::largest_difference(values, wanted.at(name)), 0x1p-8 * support::largest_magnitude(values))
        << name;
  }
}

TEST(AdapterFilesOfAModel, AreRefusedIfAValueIsNotFinite) {
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    const Saved saved;
    const AdapterFiles files = open_adapter(saved.path);
    std::vector<StoredTensor> tensors;
    for (const auto& [name, tensor] : files.tensors.tensors()) tensors.push_back(tensor);
    SafetensorsWriter writer(saved.path / "adapter_model.safetensors", tensors);
    for (const StoredTensor& tensor : tensors) {
      std::vector<float> values(static_cast<std::size_t>(tensor.size()), 0.5F);
      if (&tensor == &tensors.back()) values.back() = value;
      writer.write(std::span<const float>(values), DType::F32);
    }
    writer.commit();
    expect_contains(saved.refusal(), "expected finite values");
  }
}

}  // namespace adapter_test
