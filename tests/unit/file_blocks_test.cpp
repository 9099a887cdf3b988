// Files in our own formats of blocks, Q8_0 and Q4_0: a model of that format takes their blocks as they are, whoever
// wrote them, and gives them back.
#include <bit>
#include <cstring>

#include "support/files.hpp"

namespace file_blocks_test {

using namespace minimamba;
using support::Folder;
using support::read_text;

constexpr MambaConfig config{.d_model = 96, .n_layer = 2, .vocab_size = 77, .dt_rank = 32, .tie_embeddings = false};

/// Fills the tensors of this type in a GGUF file with blocks that our own packing would not make: any integers, -128 of
/// q8 among them, with scales of any sign, zeros of both signs and tiny numbers.
void fill_with_any_blocks(const support::fs::path& path, DType dtype) {
  std::string file = read_text(path);
  const Checkpoint checkpoint = open_checkpoint(path);
  Random random(5);
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) {
    if (tensor.dtype != dtype) continue;
    const std::size_t bytes = bytes_of(dtype), all = static_cast<std::size_t>(tensor.size()) / 32;
    for (std::size_t b = 0; b < all; ++b) {
      char* const block = file.data() + tensor.begin + b * bytes;
      const double scale = random.uniform(-1, 1) / (dtype == DType::Q8_0 ? 1000 : 64);
      const f16 stored(static_cast<float>(b % 17 == 3 ? -0.0 : b % 17 == 5 ? 1e-7 * scale : scale));
      std::memcpy(block, &stored, 2);
      for (std::size_t i = 2; i < bytes; ++i) block[i] = static_cast<char>(random.uniform(0, 256));
      if (b % 5 == 0 && dtype == DType::Q8_0) block[2] = static_cast<char>(-128);
      // Only small integers: packing again would choose a smaller scale.
      for (std::size_t i = 2; i < bytes && b % 7 == 1; ++i) block[i] = dtype == DType::Q8_0 ? block[i] & 3 : '\x99';
    }
  }
  support::write_text(path, file);
}

/// A file of random blocks of the model's format.
template <class M>
void write_file(const support::fs::path& path) {
  constexpr DType dtype = detail::gguf_dtype<typename M::WeightType>();
  save_gguf(Mamba<float>(config), path, {.matrices = dtype});
  fill_with_any_blocks(path, dtype);
}

template <class M>
class FileBlocks : public testing::Test {};
using Models = testing::Types<Mamba<float, NativeBackend, q8>, Mamba<float, NativeBackend, q4>,
                              Mamba<double, NativeBackend, q4>, Mamba<float, EigenBackend, q4>,
                              Mamba<double, ReferenceBackend, q8>, Mamba<float, ReferenceBackend, q4>>;
TYPED_TEST_SUITE(FileBlocks, Models);

TYPED_TEST(FileBlocks, AreTheModelsAsTheyAre) {
  using Scalar = typename TypeParam::ScalarType;
  const Folder folder;
  write_file<TypeParam>(folder / "model.gguf");
  const Checkpoint checkpoint = open_checkpoint(folder / "model.gguf");
  const auto model = load<TypeParam>(checkpoint);
  std::size_t matrices = 0;
  for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        if (checkpoint.find(name)->dtype != detail::kept_as<std::remove_cvref_t<decltype(parameter)>>()) return;
        std::vector<Scalar> stored(parameter.size()), taken(parameter.size());
        checkpoint.read(name, 0, std::span(stored));
        parameter.download(model.backend(), 0, View<Scalar>(taken.data(), parameter.rows(), parameter.cols()));
        ASSERT_EQ(std::memcmp(stored.data(), taken.data(), stored.size() * sizeof(Scalar)), 0) << name;
        matrices += parameter.rows() > 1 && name.find("weight") != name.npos ? 1U : 0U;
      },
      model);
  EXPECT_GE(matrices, 8U);
}

TYPED_TEST(FileBlocks, AreSavedAsTheyWere) {
  const Folder folder;
  write_file<TypeParam>(folder / "model.gguf");
  save_gguf(load<TypeParam>(folder / "model.gguf"), folder / "again.gguf");
  const Checkpoint before = open_checkpoint(folder / "model.gguf"), after = open_checkpoint(folder / "again.gguf");
  std::size_t same = 0;
  for (const auto& [name, tensor] : before.tensors.tensors()) {
    const StoredTensor& other = *after.tensors.find(name);
    if (block_size_of(tensor.dtype) == 1 || block_size_of(other.dtype) == 1) continue;
    std::vector<std::byte> blocks(static_cast<std::size_t>(tensor.size()) / 32 * bytes_of(tensor.dtype));
    std::vector<std::byte> again(blocks.size());
    before.tensors.read_stored(tensor, 0, blocks);
    after.tensors.read_stored(other, 0, again);
    EXPECT_TRUE(blocks == again) << name;
    ++same;
  }
  EXPECT_GE(same, 8U);  // all but x_proj, which models of q8 have in bf16
}

TYPED_TEST(FileBlocks, AreConvertedAsTheyWere) {
  const Folder folder;
  write_file<TypeParam>(folder / "model.gguf");
  constexpr DType dtype = detail::gguf_dtype<typename TypeParam::WeightType>();
  save_gguf(open_checkpoint(folder / "model.gguf"), folder / "again.gguf", {.matrices = dtype});
  EXPECT_TRUE(read_text(folder / "model.gguf") == read_text(folder / "again.gguf"));
}

TYPED_TEST(FileBlocks, GiveTheLogitsOfTheirValues) {
  const Folder folder;
  write_file<TypeParam>(folder / "model.gguf");
  const auto logits_of = [&](const auto& model) {
    auto cache = model.make_cache();
    return support::copy_of(model.forward(support::random_tokens(20, 77), cache));
  };
  using Exact = Mamba<double, ReferenceBackend>;
  const auto expected = logits_of(load<Exact>(folder / "model.gguf"));
  using Backend = typename TypeParam::BackendType;
  LoadOptions<TypeParam> options{.backend = Backend({.activations = Activations::exact})};
  const auto found = logits_of(load<TypeParam>(folder / "model.gguf", options));
  EXPECT_LT(support::largest_difference(found, expected), 0.02);
}

TEST(ReadStored, RefusesWhatTheTensorDoesNotHave) {
  const Folder folder;
  write_file<Mamba<float, NativeBackend, q4>>(folder / "model.gguf");
  const Checkpoint checkpoint = open_checkpoint(folder / "model.gguf");
  const StoredTensor& tensor = *checkpoint.find("embedding.weight");
  const std::size_t blocks = static_cast<std::size_t>(tensor.size()) / 32;
  std::vector<std::byte> bytes(36);
  EXPECT_NO_THROW(checkpoint.tensors.read_stored(tensor, blocks - 2, bytes));
  EXPECT_THROW(checkpoint.tensors.read_stored(tensor, blocks - 1, bytes), ArgumentError);
  EXPECT_THROW(checkpoint.tensors.read_stored(tensor, blocks + 1, std::span(bytes).first(0)), ArgumentError);
  EXPECT_THROW(checkpoint.tensors.read_stored(tensor, ~std::uint64_t{0}, bytes), ArgumentError);
}

}  // namespace file_blocks_test
