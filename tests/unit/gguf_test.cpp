// io/gguf, io/ggml_blocks, io/gguf_config, io/gguf_writer: GGUF read, written, and read again. What is refused is in
// tests/contract.
#include "support/files.hpp"

namespace gguf_test {

using namespace minimamba;
using support::copy_of;
using support::Folder;
using support::Model;
using support::random_tokens;
using support::read_text;
namespace fs = std::filesystem;

const fs::path data_folder = GOLDEN_FOLDER;

TEST(GgmlBlocks, AreWhatAnIndependentReaderMakesOfThem) {
  TensorSet set;
  read_gguf(ByteSource::open(data_folder / "gguf" / "blocks.gguf"), set);
  const ByteSource expected_file = ByteSource::open(data_folder / "gguf" / "blocks.f64");
  std::vector<double> expected(1024);
  std::uint64_t at = 0;
  ASSERT_EQ(set.tensors().size(), 8U);
  for (const auto& [name, tensor] : set.tensors()) {
    EXPECT_EQ(name, name_of(tensor.dtype));
    EXPECT_EQ(tensor.shape, (std::vector<std::uint64_t>{2, 512}));
    expected_file.read(at, std::as_writable_bytes(std::span(expected)));
    at += expected.size() * sizeof(double);
    std::vector<double> exact(1024);
    std::vector<float> rounded(1024);
    set.read(tensor, 0, std::span(exact));
    set.read(tensor, 0, std::span(rounded));
    for (std::size_t i = 0; i < exact.size(); ++i) {
      ASSERT_EQ(exact[i], expected[i]) << name << " " << i;
      ASSERT_EQ(rounded[i], static_cast<float>(expected[i])) << name << " " << i;
    }
    for (const std::size_t first : {0U, 1U, 31U, 255U, 256U, 700U}) {  // any part of it, whole blocks or not
      std::vector<float> part(301);
      set.read(tensor, first, std::span(part));
      EXPECT_TRUE(std::equal(part.begin(), part.end(), rounded.begin() + static_cast<std::ptrdiff_t>(first))) << name;
    }
  }
  EXPECT_EQ(at, expected_file.size());
}

/// The logits of 20 tokens.
template <class M>
auto logits_of(const M& model) {
  auto cache = model.make_cache();
  return copy_of(model.forward(random_tokens(20, 30), cache));
}

TEST(Gguf, GivesTheLogitsOfTheCheckpointItWasMadeFrom) {
  const fs::path tied = data_folder / "gguf" / "tied.gguf", untied = data_folder / "gguf" / "untied.gguf";
  EXPECT_TRUE(identical(logits_of(load<Model>(tied)), logits_of(load<Model>(data_folder / "odd-hf"))));
  // A is a float there, of which in double many A_log would do.
  using Double = Mamba<double, ReferenceBackend>;
  const auto exact = logits_of(load<Double>(data_folder / "odd-hf"));
  EXPECT_LT(support::largest_difference(logits_of(load<Double>(tied)), exact), 1e-5);

  // F16 is the same rounding of the matrices as our own: but other parameters stay as they are.
  const Folder folder;
  save(open_checkpoint(data_folder / "odd-official"), folder.path(), {.matrices = DType::F16});
  EXPECT_TRUE(identical(logits_of(load<Model>(untied)), logits_of(load<Model>(folder.path()))));
}

TEST(Gguf, HasTheConfiguration) {
  const Checkpoint tied = open_checkpoint(data_folder / "gguf" / "tied.gguf");
  EXPECT_EQ(tied.format, CheckpointFormat::gguf);
  EXPECT_EQ(tied.config.vocab_size, 37);  // of 40 rows
  EXPECT_EQ(tied.config.padded_vocab_size(), 40);
  EXPECT_EQ(tied.config.norm_epsilon, 1e-3);  // and not the float next to it
  EXPECT_EQ(tied.config.eos_token_id, 0);
  EXPECT_FALSE(tied.config.bos_token_id);
  EXPECT_TRUE(tied.config.tie_embeddings);
  const auto untied = open_checkpoint(data_folder / "gguf" / "untied.gguf").config.as<MambaConfig>();
  EXPECT_FALSE(untied.tie_embeddings);
  EXPECT_TRUE(untied.bias);
  EXPECT_FALSE(untied.conv_bias);
  EXPECT_EQ(untied.expand, 3);
  EXPECT_EQ(untied.dt_rank, 7);
  EXPECT_EQ(untied.d_conv, 2);
}

template <class T>
std::string bytes_of_value(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}
/// A key "number" of GGUF's number for a type, and so much of a file as has nothing else.
template <class T>
GgufValue read_number(std::uint32_t type, T value) {
  const std::string file = "GGUF" + bytes_of_value(3U) + bytes_of_value(std::uint64_t{0}) +
                           bytes_of_value(std::uint64_t{1}) + bytes_of_value(std::uint64_t{6}) + "number" +
                           bytes_of_value(type) + bytes_of_value(value);
  TensorSet set;
  return read_gguf(ByteSource(std::as_bytes(std::span(file)), "made"), set).at("number");
}

TEST(Gguf, MayHaveNumbersOfEveryWidth) {
  EXPECT_EQ(read_number(0, std::uint8_t{200}), GgufValue(std::uint64_t{200}));
  EXPECT_EQ(read_number(1, std::int8_t{-100}), GgufValue(std::int64_t{-100}));
  EXPECT_EQ(read_number(2, std::uint16_t{60'000}), GgufValue(std::uint64_t{60'000}));
  EXPECT_EQ(read_number(3, std::int16_t{-30'000}), GgufValue(std::int64_t{-30'000}));
  EXPECT_EQ(read_number(4, std::uint32_t{4'000'000'000}), GgufValue(std::uint64_t{4'000'000'000}));
  EXPECT_EQ(read_number(5, std::int32_t{-2'000'000'000}), GgufValue(std::int64_t{-2'000'000'000}));
  EXPECT_EQ(read_number(7, std::uint8_t{1}), GgufValue(true));
  EXPECT_EQ(read_number(10, ~std::uint64_t{0}), GgufValue(~std::uint64_t{0}));
  EXPECT_EQ(read_number(11, std::int64_t{-1} << 62), GgufValue(std::int64_t{-1} << 62));
  EXPECT_EQ(read_number(12, 1.0 / 3), GgufValue(1.0 / 3));
  EXPECT_EQ(read_number(6, 1e-5F), GgufValue(1e-5)) << "as it was written in decimal";
  EXPECT_EQ(read_number(6, 1e-30F), GgufValue(static_cast<double>(1e-30F))) << "has no short form";
}

TEST(Gguf, IsRecognisedByItsContentAndFoundInAFolder) {
  const Folder folder;
  fs::copy_file(data_folder / "gguf" / "tied.gguf", folder / "weights");
  EXPECT_EQ(open_checkpoint(folder / "weights").config.d_model, 18);
  EXPECT_THROW(open_checkpoint(folder.path()), FileError);
  fs::rename(folder / "weights", folder / "M.GGUF");
  EXPECT_EQ(open_checkpoint(folder.path()).config.d_model, 18);
  fs::rename(folder / "M.GGUF", folder / "ggml-model-f32.gguf");
  support::write_text(folder / "training.safetensors", "of a training");
  support::write_text(folder / "other.safetensors", "of something else");
  EXPECT_EQ(open_checkpoint(folder.path()).config.d_model, 18);
  fs::remove(folder / "other.safetensors");
  fs::copy_file(data_folder / "gguf" / "untied.gguf", folder / "other.gguf");
  try {
    open_checkpoint(folder.path());
    ADD_FAILURE() << "accepted";
  } catch (const FileError& error) {
    EXPECT_NE(std::string(error.what()).find("2 files *.gguf"), std::string::npos) << error.what();
  }
}

template <class K>
class SavedGguf : public testing::Test {};
TYPED_TEST_SUITE(SavedGguf, support::Kinds, support::KindNames);

template <class M>
void expect_round_trip(const MambaConfig& config) {
  const Folder folder;
  const M model = support::trained_looking_model<M>(config);
  save_gguf(model, folder / "model.gguf");
  const auto loaded = load<M>(folder / "model.gguf");
  EXPECT_EQ(loaded.config(), model.config());
  EXPECT_TRUE(identical(logits_of(model), logits_of(loaded)));
  save_gguf(loaded, folder / "again.gguf");
  EXPECT_TRUE(read_text(folder / "model.gguf") == read_text(folder / "again.gguf"));
  const DType matrices = detail::gguf_dtype<typename M::WeightType>();
  save_gguf(open_checkpoint(folder / "model.gguf"), folder / "converted.gguf", {.matrices = matrices});
  const bool same = read_text(folder / "model.gguf") == read_text(folder / "converted.gguf");
  EXPECT_EQ(same, matrices != DType::Q8_0);  // a q8 model has x_proj in 16 bits
}

TYPED_TEST(SavedGguf, IsLoadedAsTheSameModelInEveryWeightFormat) {
  using Float = std::is_same<typename TypeParam::Scalar, float>;
  const MambaConfig config{.d_model = 32,
                           .n_layer = 2,
                           .vocab_size = 30,
                           .dt_rank = 32,
                           .bias = true,
                           .tie_embeddings = false,
                           .norm_epsilon = 1e-6,
                           .eos_token_id = 3};
  MambaConfig falcon = config;
  falcon.dt_b_c_rms = true;
  falcon.mixer_rms_eps = 1e-3;
  // The file holds floats, which doubles are not; what is quantised is a product that floats hold.
  if constexpr (Float::value) {
    expect_round_trip<typename TypeParam::Model>(config);
    expect_round_trip<typename TypeParam::Model>(falcon);
    support::for_each_reduced_format<TypeParam>([&](auto weight) {
      using Narrow = typename TypeParam::template ModelOf<decltype(weight)>;
      expect_round_trip<Narrow>(config);
      expect_round_trip<Narrow>(falcon);
    });
  } else {
    const Folder folder;
    const auto model = support::trained_looking_model<typename TypeParam::Model>(config);
    save_gguf(model, folder / "model.gguf");
    const auto loaded = load<typename TypeParam::Model>(folder / "model.gguf");
    EXPECT_LT(support::largest_difference(logits_of(model), logits_of(loaded)), 1e-4);
  }
}

TEST(SavingGguf, KeepsTheWholeRangeOfWhatAQ8ModelHasInBf16) {
  using Quantised = Mamba<float, NativeBackend, q8>;
  const Folder folder;
  Quantised model({.d_model = 32, .n_layer = 1, .vocab_size = 8});
  auto& weight = model.layers[0].mixer.x_proj.weight;
  support::HostMatrix<float> numbers(weight.rows(), weight.cols()), found(weight.rows(), weight.cols());
  for (std::size_t i = 0; i < numbers.values.size(); ++i) numbers.values[i] = i % 2 == 0 ? 0x1p100F : 0x1.8p-100F;
  weight.upload(model.backend(), 0, numbers.view());
  save_gguf(model, folder / "model.gguf");
  const auto loaded = load<Quantised>(folder / "model.gguf");
  loaded.layers[0].mixer.x_proj.weight.download(loaded.backend(), 0, found.view());
  EXPECT_EQ(found.values, numbers.values);
}

TEST(SavingGguf, StoresInEachTypeWhatThatTypeCanHold) {
  const Folder folder;
  const MambaConfig config{.d_model = 32, .n_layer = 1, .vocab_size = 30, .dt_rank = 5};
  const auto model = support::trained_looking_model<Model>(config);
  const std::map<DType, double> tolerances{
      {DType::F32, 0}, {DType::F16, 2e-3}, {DType::BF16, 2e-2}, {DType::Q8_0, 2e-2}, {DType::Q4_0, 0.2}};
  for (const auto& [dtype, tolerance] : tolerances) {
    save_gguf(model, folder / "model.gguf", {.matrices = dtype});
    const Checkpoint checkpoint = open_checkpoint(folder / "model.gguf");
    EXPECT_EQ(checkpoint.find("layers.0.mixer.in_proj.weight")->dtype, dtype);
    EXPECT_EQ(checkpoint.find("layers.0.mixer.x_proj.weight")->dtype, dtype);
    EXPECT_EQ(checkpoint.find("embedding.weight")->dtype, dtype);
    // Rows of 5 numbers are no blocks of 32.
    EXPECT_EQ(checkpoint.find("layers.0.mixer.dt_proj.weight")->dtype, dtype < DType::Q4_0 ? dtype : DType::F16);
    for (const char* name : {"A_log", "D", "conv1d.weight", "conv1d.bias", "dt_proj.bias"}) {
      EXPECT_EQ(checkpoint.find(std::string("layers.0.mixer.") + name)->dtype, DType::F32) << name;
    }
    std::vector<float> before(128 * 32), after(before.size());
    model.layers[0].mixer.in_proj.weight.download(model.backend(), 0, View<float>(before.data(), 128, 32));
    checkpoint.read("layers.0.mixer.in_proj.weight", 0, std::span(after));
    for (std::size_t i = 0; i < before.size(); ++i) ASSERT_NEAR(before[i], after[i], tolerance) << name_of(dtype);
  }
  save_gguf(open_checkpoint(folder / "model.gguf"), folder / "again.gguf", {.matrices = DType::Q8_0});
  save_gguf(open_checkpoint(folder / "again.gguf"), folder / "third.gguf", {.matrices = DType::Q8_0});
  EXPECT_TRUE(read_text(folder / "again.gguf") == read_text(folder / "third.gguf"));
  for (const DType dtype : {DType::F64, DType::I32, DType::Q4_K}) {
    const std::string old = read_text(folder / "model.gguf");
    EXPECT_THROW(save_gguf(model, folder / "model.gguf", {.matrices = dtype}), ArgumentError);
    EXPECT_TRUE(read_text(folder / "model.gguf") == old);
  }
}

TEST(SavingGguf, HasTheTokensOfBytesOrSaysThatThereAreNone) {
  const Folder folder;
  save_gguf(Model({.d_model = 4, .n_layer = 1, .vocab_size = 256}), folder / "bytes.gguf");
  const GgufMetadata bytes = open_checkpoint(folder / "bytes.gguf").metadata;
  const auto& tokens = std::get<std::vector<std::string>>(bytes.at("tokenizer.ggml.tokens"));
  ASSERT_EQ(tokens.size(), 256U);
  EXPECT_EQ(tokens['a'], "a");
  EXPECT_EQ(tokens[' '], "\xC4\xA0");   // U+0120
  EXPECT_EQ(tokens[0], "\xC4\x80");     // U+0100
  EXPECT_EQ(tokens[0xE9], "\xC3\xA9");  // itself
  EXPECT_EQ(std::get<std::string>(bytes.at("tokenizer.ggml.model")), "gpt2");
  save_gguf(Model({.d_model = 4, .n_layer = 1, .vocab_size = 255, .pad_vocab_size_multiple = 1}), folder / "none.gguf");
  const GgufMetadata none = open_checkpoint(folder / "none.gguf").metadata;
  EXPECT_EQ(std::get<std::string>(none.at("tokenizer.ggml.model")), "no_vocab");
  EXPECT_EQ(std::get<std::uint64_t>(none.at("mamba.vocab_size")), 255U);
}

TEST(SavingGguf, CarriesMetadataOfEveryKind) {
  const Folder folder;
  const GgufMetadata extra{{"a.text", std::string("abc")},
                           {"a.flag", true},
                           {"a.natural", std::uint64_t{1} << 40},
                           {"a.integer", std::int64_t{-7}},
                           {"a.number", 0.1},
                           {"a.texts", std::vector<std::string>{"", "x"}},
                           {"a.numbers", std::vector<double>{0.5, -2}},
                           {"a.integers", std::vector<double>{1, -2}},
                           {"a.none", std::vector<double>{}}};
  save_gguf(Model(support::tiny_config()), folder / "model.gguf", {}, extra);
  const GgufMetadata read = open_checkpoint(folder / "model.gguf").metadata;
  for (const auto& [key, value] : extra) EXPECT_TRUE(read.at(key) == value) << key;
}

TEST(Gguf, GivesTheModelAnAOfAnyMagnitudeBitForBit) {
  const Folder folder;
  const MambaConfig config{.d_model = 32, .n_layer = 2, .vocab_size = 30};
  Model written(config);
  Random random(1);
  const std::size_t count = written.layers[0].mixer.A.size();
  std::vector<std::vector<float>> all;
  for (auto& layer : written.layers) {
    auto& values = all.emplace_back();
    for (std::size_t i = 0; i < count; ++i) {
      values.push_back(-static_cast<float>(std::pow(10, random.uniform(-30, 10))));
    }
    layer.mixer.A.upload(written.backend(), 0, View<const float>(values.data(), 64, 16));
  }
  save_gguf(written, folder / "model.gguf");
  const auto expect_a = [&](const auto& model) {
    using Scalar = typename std::decay_t<decltype(model)>::ScalarType;
    std::vector<Scalar> found(count);
    for (std::size_t layer = 0; layer < all.size(); ++layer) {
      model.layers[layer].mixer.A.download(model.backend(), 0, View<Scalar>(found.data(), 64, 16));
      for (std::size_t i = 0; i < count; ++i) ASSERT_EQ(found[i], static_cast<Scalar>(all[layer][i])) << i;
    }
  };
  const auto model = load<Model>(folder / "model.gguf");
  expect_a(model);
  expect_a(model.clone());
  expect_a(load<Mamba<double>>(folder / "model.gguf"));
  EXPECT_TRUE(identical(logits_of(model), logits_of(written)));
  EXPECT_TRUE(identical(logits_of(model.clone()), logits_of(written)));
  save_gguf(model, folder / "again.gguf");
  EXPECT_TRUE(read_text(folder / "again.gguf") == read_text(folder / "model.gguf"));
  save_gguf(open_checkpoint(folder / "model.gguf"), folder / "again.gguf");
  EXPECT_TRUE(read_text(folder / "again.gguf") == read_text(folder / "model.gguf"));
}

TEST(LogarithmOfA, MakesTheSameAAgain) {
  Random random(1);
  for (int i = 0; i < 200'000; ++i) {
    const float logarithm = static_cast<float>(random.uniform(-10, 8));
    const float a = static_cast<float>(-std::exp(static_cast<double>(logarithm)));
    ASSERT_EQ(static_cast<float>(-std::exp(static_cast<double>(detail::logarithm_of_a(a)))), a) << logarithm;
    const double again = detail::logarithm_of_a(static_cast<double>(a));
    ASSERT_EQ(static_cast<float>(-std::exp(again)), a) << logarithm;
  }
  for (int i = 0; i < 200'000; ++i) {  // numbers that no float's exponential need be
    const float a = -static_cast<float>(random.uniform(1e-3, 2900));
    const float made = static_cast<float>(-std::exp(static_cast<double>(detail::logarithm_of_a(a))));
    ASSERT_LE(std::abs(made - a), 4 * (std::nextafter(std::abs(a), 1e9F) - std::abs(a))) << a;
  }
  EXPECT_EQ(detail::logarithm_of_a(-1.0F), 0);
  EXPECT_EQ(detail::logarithm_of_a(-0.0F), -std::numeric_limits<float>::infinity());
}

}  // namespace gguf_test
