// io/: saving and loading whole models, and what is refused.
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>

#include <sys/resource.h>

#include "minimamba/io.hpp"
#include "support/support.hpp"

namespace {

using namespace minimamba;
namespace fs = std::filesystem;
using support::copy_of;
using support::random_tokens;

/// A folder that is gone when the test ends.
class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("minimamba-test-" + std::to_string(::getpid()) + "-" + next())) {
    fs::create_directories(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  fs::path operator/(const std::string& name) const { return path_ / name; }
  const fs::path& path() const { return path_; }

 private:
  static std::string next() {
    static int count = 0;
    return std::to_string(++count);
  }
  fs::path path_;
};

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void write_text(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

template <class K>
class Checkpoint : public testing::Test {};
TYPED_TEST_SUITE(Checkpoint, support::Kinds, support::KindNames);

template <class Model>
void expect_round_trip(const MambaConfig& config) {
  const Folder folder;
  Model model = support::trained_looking_model<Model>(config);
  save(model, folder / "model");
  const auto loaded = load<Model>(folder / "model");
  EXPECT_EQ(loaded.config().vocab_size, model.config().vocab_size);
  EXPECT_EQ(loaded.config().padded_vocab_size(), model.config().padded_vocab_size());
  EXPECT_EQ(loaded.config().eos_token_id, model.config().eos_token_id);
  auto a = model.make_cache(), b = loaded.make_cache();
  const auto tokens = random_tokens(20, config.vocab_size);
  EXPECT_TRUE(identical(copy_of(model.forward(tokens, a)), copy_of(loaded.forward(tokens, b))));
  save(loaded, folder / "again");
  EXPECT_EQ(read_text(folder / "model" / "model.safetensors"), read_text(folder / "again" / "model.safetensors"));
}

TYPED_TEST(Checkpoint, SavesAndLoadsTheSameModel) {
  expect_round_trip<typename TypeParam::Model>(support::small_config());
  expect_round_trip<typename TypeParam::template ModelOf<bf16>>(support::small_config());
  expect_round_trip<typename TypeParam::template ModelOf<f16>>(support::small_config());
  expect_round_trip<typename TypeParam::Model>({.d_model = 9,
                                                .n_layer = 1,
                                                .vocab_size = 11,
                                                .d_state = 1,
                                                .d_conv = 1,
                                                .expand = 3,
                                                .pad_vocab_size_multiple = 7,
                                                .conv_bias = false,
                                                .bias = true,
                                                .tie_embeddings = false,
                                                .norm_epsilon = 1e-3,
                                                .eos_token_id = 3});
}

using Model = Mamba<float, ReferenceBackend>;

/// Loads a saved model after `change` has had its way with the folder.
std::string refusal(const std::function<void(const Folder&)>& change, MambaConfig config = support::small_config()) {
  const Folder folder;
  save(Model(config), folder.path());
  change(folder);
  try {
    load<Model>(folder.path());
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

std::function<void(const Folder&)> config_with(const std::string& key, const nlohmann::json& value) {
  return [=](const Folder& folder) {
    nlohmann::json config = nlohmann::json::parse(read_text(folder / "config.json"));
    config[key] = value;
    write_text(folder / "config.json", config.dump());
  };
}

void expect_contains(const std::string& text, const std::vector<std::string>& parts) {
  for (const auto& part : parts) EXPECT_NE(text.find(part), text.npos) << "\"" << part << "\" is not in: " << text;
}

TEST(Loading, NamesTheMissingFileOrFolder) {
  EXPECT_THROW(load<Model>("/no/such/folder"), FileError);
  expect_contains(refusal([](const Folder& f) { fs::remove(f / "config.json"); }),
                  {"config.json", "none of that name"});
  expect_contains(refusal([](const Folder& f) { fs::remove(f / "model.safetensors"); }), {"model.safetensors"});
}

TEST(Loading, RefusesConfigurationsThatCannotBe) {
  expect_contains(refusal([](const Folder& f) { write_text(f / "config.json", "{"); }), {"config.json", "JSON"});
  expect_contains(refusal([](const Folder& f) { write_text(f / "config.json", "[]"); }), {"config.json", "object"});
  for (const nlohmann::json& bad : {nlohmann::json(-1), nlohmann::json(0), nlohmann::json(std::int64_t{1} << 40),
                                    nlohmann::json("many"), nlohmann::json(1.5), nlohmann::json()}) {
    for (const char* key : {"hidden_size", "num_hidden_layers", "vocab_size"}) {
      EXPECT_NE(refusal(config_with(key, bad)), "accepted") << key << " " << bad;
    }
    for (const char* key : {"state_size", "conv_kernel", "expand", "time_step_rank"}) {
      if (bad.is_null()) continue;  // none: the default
      EXPECT_NE(refusal(config_with(key, bad)), "accepted") << key << " " << bad;
    }
  }
  expect_contains(refusal(config_with("model_type", "falcon_mamba")), {"model_type", "falcon_mamba", "mamba"});
  expect_contains(refusal(config_with("model_type", "mamba2")), {"model_type", "mamba2"});
  expect_contains(refusal(config_with("hidden_act", "gelu")), {"hidden_act", "gelu"});
  expect_contains(refusal(config_with("intermediate_size", 47)), {"intermediate_size", "48", "47"});
  expect_contains(refusal(config_with("minimamba_vocab_size", 57)), {"minimamba_vocab_size", "56", "57"});
}

TEST(Loading, RefusesTensorsThatContradictTheConfiguration) {
  expect_contains(refusal(config_with("state_size", 6)), {"A_log", "[48, 6]", "[48, 5]", "config.json"});
  expect_contains(refusal(config_with("num_hidden_layers", 3)), {"layers.2", "none"});
  expect_contains(refusal(config_with("num_hidden_layers", 1)), {"layers.1"});
  expect_contains(refusal(config_with("vocab_size", 64)), {"embeddings.weight", "[64, 24]", "[56, 24]"});
  expect_contains(refusal(config_with("use_bias", true)), {"in_proj.bias", "none"});
  expect_contains(refusal(config_with("tie_word_embeddings", false)), {"lm_head.weight", "none"});
  expect_contains(refusal(config_with("use_conv_bias", false)), {"conv1d.bias"});
}

TEST(Loading, RefusesATruncatedFile) {
  expect_contains(refusal([](const Folder& f) {
                    fs::resize_file(f / "model.safetensors", fs::file_size(f / "model.safetensors") - 1);
                  }),
                  {"model.safetensors", "bytes"});
  expect_contains(refusal([](const Folder& f) { fs::resize_file(f / "model.safetensors", 5); }),
                  {"model.safetensors", "bytes"});
  expect_contains(refusal([](const Folder& f) { fs::resize_file(f / "model.safetensors", 0); }),
                  {"model.safetensors", "bytes"});
}

/// Rewrites the weights with one change to the list of tensors or their values.
using Tensors = std::map<std::string, std::pair<std::vector<std::uint64_t>, std::vector<float>>>;
Tensors read_tensors(const fs::path& path) {
  TensorSet set;
  read_safetensors(ByteSource::open(path), set);
  Tensors tensors;
  for (const auto& [name, tensor] : set.tensors()) {
    std::vector<float> values(tensor.size());
    set.read(tensor, 0, std::span(values));
    tensors[name] = {tensor.shape, values};
  }
  return tensors;
}
void write_tensors(const fs::path& path, const Tensors& tensors, DType dtype = DType::F32) {
  std::vector<StoredTensor> list;
  for (const auto& [name, content] : tensors) list.push_back({name, dtype, content.first});
  SafetensorsWriter writer(path, list);
  for (const auto& [name, content] : tensors) writer.write(std::span<const float>(content.second), dtype);
  writer.commit();
}
std::function<void(const Folder&)> tensors_with(const std::function<void(Tensors&)>& change) {
  return [=](const Folder& folder) {
    Tensors tensors = read_tensors(folder / "model.safetensors");
    change(tensors);
    write_tensors(folder / "model.safetensors", tensors);
  };
}

TEST(Loading, RefusesMissingMisshapedAndUnknownTensors) {
  expect_contains(refusal(tensors_with([](Tensors& t) { t.erase("backbone.norm_f.weight"); })),
                  {"backbone.norm_f.weight", "[24]", "none"});
  expect_contains(refusal(tensors_with([](Tensors& t) {
                    t["backbone.norm_f.weight"].first = {1, 24};
                  })),
                  {"backbone.norm_f.weight", "[24]", "[1, 24]"});
  expect_contains(refusal(tensors_with([](Tensors& t) { t["backbone.extra"] = {{1}, {1.F}}; })), {"backbone.extra"});
}

TEST(Loading, AcceptsATiedHeadOnlyIfItIsTheEmbedding) {
  const auto with_head = [](float change) {
    return tensors_with([=](Tensors& t) {
      t["lm_head.weight"] = t["backbone.embeddings.weight"];
      t["lm_head.weight"].second[7] += change;
    });
  };
  EXPECT_EQ(refusal(with_head(0)), "accepted");
  expect_contains(refusal(with_head(1)), {"lm_head.weight", "backbone.embeddings.weight", "element 7"});
}

TEST(Loading, ReadsEveryFloatingPointTypeAndBothEmbeddingNames) {
  const Folder folder;
  const Model model = support::trained_looking_model<Model>(support::small_config());
  save(model, folder.path());
  Tensors tensors = read_tensors(folder / "model.safetensors");
  auto cache = model.make_cache();
  const auto tokens = random_tokens(9, 50);
  const auto expected = copy_of(model.forward(tokens, cache));
  tensors["backbone.embedding.weight"] = std::move(tensors["backbone.embeddings.weight"]);
  tensors.erase("backbone.embeddings.weight");
  for (const auto& [dtype, allowed] :
       {std::pair{DType::F64, 0.0}, {DType::F32, 0.0}, {DType::F16, 2e-2}, {DType::BF16, 0.1}}) {
    write_tensors(folder / "model.safetensors", tensors, dtype);
    const auto loaded = load<Model>(folder / "model.safetensors");  // the file itself will do
    auto own = loaded.make_cache();
    const auto found = copy_of(loaded.forward(tokens, own));
    EXPECT_LE(support::largest_difference(found, expected), allowed * support::largest_magnitude(expected));
  }
}

TEST(Loading, ReadsShards) {
  const Folder folder;
  const Model model = support::trained_looking_model<Model>(support::small_config());
  save(model, folder.path());
  const Tensors all = read_tensors(folder / "model.safetensors");
  Tensors parts[2];
  nlohmann::json index{{"metadata", {{"total_size", 1}}}, {"weight_map", nlohmann::json::object()}};
  for (const auto& [name, content] : all) {
    const std::size_t part = name < "backbone.layers.1" ? 0 : 1;
    parts[part][name] = content;
    index["weight_map"][name] = part == 0 ? "a.safetensors" : "b.safetensors";
  }
  write_tensors(folder / "a.safetensors", parts[0]);
  write_tensors(folder / "b.safetensors", parts[1]);
  fs::remove(folder / "model.safetensors");
  const fs::path index_path = folder / "model.safetensors.index.json";
  write_text(index_path, index.dump());
  auto cache = model.make_cache();
  const auto tokens = random_tokens(9, 50);
  const auto expected = copy_of(model.forward(tokens, cache));
  for (const fs::path& path : {folder.path(), index_path}) {
    const auto loaded = load<Model>(path);
    auto own = loaded.make_cache();
    EXPECT_TRUE(identical(copy_of(loaded.forward(tokens, own)), expected));
  }
  const auto refused = [&](const nlohmann::json& changed) -> std::string {
    write_text(index_path, changed.dump());
    try {
      load<Model>(folder.path());
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  auto changed = index;
  changed["weight_map"]["backbone.norm_f.weight"] = "a.safetensors";
  expect_contains(refused(changed), {"backbone.norm_f.weight", "a.safetensors"});
  changed["weight_map"]["backbone.norm_f.weight"] = "../b.safetensors";
  expect_contains(refused(changed), {"plain name", "../b.safetensors"});
  changed["weight_map"].erase("backbone.norm_f.weight");
  expect_contains(refused(changed), {"backbone.norm_f.weight"});
  parts[0]["backbone.norm_f.weight"] = all.at("backbone.norm_f.weight");
  write_tensors(folder / "a.safetensors", parts[0]);
  expect_contains(refused(index), {"backbone.norm_f.weight", "a.safetensors", "b.safetensors"});
}

TEST(Loading, TellsItsProgressAndCanBeCancelled) {
  const Folder folder;
  save(Model(support::small_config()), folder.path());
  std::vector<double> told;
  load<Model>(folder.path(), {.progress = [&](double part) { return told.push_back(part), true; }});
  EXPECT_EQ(told.size(), 22U);
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_DOUBLE_EQ(told.back(), 1);
  EXPECT_THROW(load<Model>(folder.path(), {.progress = [](double part) { return part < 0.5; }}), CancelledError);
}

TEST(Saving, LeavesTheOldFilesWhenTheDiskIsFull) {
  const Folder folder;
  save(Model(support::small_config()), folder.path());
  const auto before = read_text(folder / "model.safetensors"), config = read_text(folder / "config.json");
  const Model other = support::trained_looking_model<Model>(support::small_config());
  rlimit old_limit{};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const rlimit small{10000, old_limit.rlim_max};
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  EXPECT_THROW(save(other, folder.path()), FileError);
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(read_text(folder / "model.safetensors"), before);
  EXPECT_EQ(read_text(folder / "config.json"), config);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 2);  // nothing is left lying about
}

TEST(Saving, RefusesPlacesThatCannotBeWritten) {
  const Folder folder;
  const Model model(support::small_config());
  write_text(folder / "file", "kept");
  EXPECT_THROW(save(model, folder / "file"), FileError);
  EXPECT_THROW(save(model, folder / "file" / "below"), FileError);
  EXPECT_EQ(read_text(folder / "file"), "kept");
  fs::create_directories(folder / "model" / "config.json");
  EXPECT_THROW(save(model, folder / "model"), FileError);
  EXPECT_FALSE(fs::exists(folder / "model" / "model.safetensors"));
}

}  // namespace
