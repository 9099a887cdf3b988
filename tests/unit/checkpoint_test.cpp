// io/: saving and loading whole models. What is refused is in tests/contract.
#include "support/files.hpp"

namespace checkpoint_test {

using namespace minimamba;
namespace fs = std::filesystem;
using support::copy_of;
using support::Folder;
using support::Model;
using support::random_tokens;
using support::read_text;
using support::write_text;

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
  EXPECT_TRUE(read_text(folder / "model" / "model.safetensors") == read_text(folder / "again" / "model.safetensors"));
}

TYPED_TEST(Checkpoint, SavesAndLoadsTheSameModel) {
  expect_round_trip<typename TypeParam::Model>(support::small_config());
  support::for_each_reduced_format<TypeParam>([](auto weight) {
    expect_round_trip<typename TypeParam::template ModelOf<decltype(weight)>>(support::small_config());
  });
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
                                                .dt_b_c_rms = true,
                                                .mixer_rms_eps = 1e-2,
                                                .eos_token_id = 3});
}

TEST(Saving, In16BitsKeepsEverythingButTheMatricesInF32) {
  const Folder folder;
  const Model model = support::trained_looking_model<Model>(support::small_config());
  for (const DType dtype : {DType::F16, DType::BF16, DType::F32, DType::F64}) {
    save(model, folder / "model", {.matrices = dtype});
    const auto checkpoint = open_checkpoint(folder / "model");
    const DType other = dtype == DType::F64 ? DType::F64 : DType::F32;
    for_each_parameter(
        [&](std::string_view name, const auto& parameter) {
          const bool matrix = parameter.shape().size() == 2 && !name.ends_with("A_log");
          EXPECT_EQ(checkpoint.find(name)->dtype, matrix ? dtype : other) << name;
        },
        model);
    // From the checkpoint to another one, whose numbers are the same.
    save(checkpoint, folder / "copy", {.matrices = dtype});
    EXPECT_TRUE(read_text(folder / "copy" / "model.safetensors") == read_text(folder / "model" / "model.safetensors"));
    EXPECT_TRUE(read_text(folder / "copy" / "config.json") == read_text(folder / "model" / "config.json"));
  }
  const auto before = support::contents(folder.path());
  EXPECT_THROW(save(model, folder / "model", {.matrices = DType::Q8_0}), ArgumentError);
  try {
    save(model, folder / "model", {.progress = [](double) { return false; }});
    ADD_FAILURE() << "not cancelled";
  } catch (const CancelledError& error) {
    EXPECT_EQ(error.what(), (folder / "model").string() + ": saving was cancelled");
  }
  EXPECT_THROW(save(open_checkpoint(folder / "model"), folder / "new", {.progress = [](double) { return false; }}),
               CancelledError);
  EXPECT_EQ(support::contents(folder.path()), before);
}

TEST(Saving, WritesOtherFilesNextToTheModel) {
  const Folder folder;
  const Model model(support::tiny_config());
  const std::string text(300'000, 't');
  const ByteSource source(std::as_bytes(std::span(text)), "text");
  save(model, folder / "model", {.files = {{"tokenizer.json", source}}});
  EXPECT_TRUE(read_text(folder / "model" / "tokenizer.json") == text);
  for (const char* name : {"config.json", "../x", "", "a/b", "model.safetensors"}) {
    EXPECT_THROW(save(model, folder / "other", {.files = {{name, source}}}), ArgumentError) << name;
  }
  EXPECT_FALSE(fs::exists(folder / "other"));
}

/// Whole files of weights.
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
}

TEST(Loading, ReportsItsProgressAndCanBeCancelled) {
  const Folder folder;
  save(Model(support::small_config()), folder.path());
  std::vector<double> told;
  load<Model>(folder.path(), {.progress = [&](double part) { return told.push_back(part), true; }});
  EXPECT_EQ(told.size(), 22U);
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_DOUBLE_EQ(told.back(), 1);
  try {
    load<Model>(folder.path(), {.progress = [](double part) { return part < 0.5; }});
    ADD_FAILURE() << "not cancelled";
  } catch (const CancelledError& error) {
    EXPECT_EQ(error.what(), (folder / "model.safetensors").string() + ": loading was cancelled");
  }
}

}  // namespace checkpoint_test
