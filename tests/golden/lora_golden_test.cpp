// Adapters in the files that PEFT writes, against what PyTorch computes with them: see make_lora.py.
#include "minimamba/io/adapter.hpp"
#include "support/files.hpp"
#include "support/golden.hpp"
#include "support/lora.hpp"

namespace lora_golden_test {

using namespace minimamba;

template <class Model>
class GoldenAdapters : public testing::Test {
 public:
  static constexpr bool is_s6 = std::is_same_v<typename Model::Config, MambaConfig>;
  static constexpr const char* base = is_s6 ? "tiny-hf" : "tiny-mamba2";
  /// In parts of the largest: as for the gradients of whole models, see support/golden_gradients.hpp.
  static constexpr double allowed = sizeof(typename Model::ScalarType) == 8 ? 1e-9 : 1e-4;

  static std::filesystem::path folder() { return std::filesystem::path(GOLDEN_FOLDER) / "lora" / base; }
  static Model model() {
    Model model = load<Model>(std::filesystem::path(GOLDEN_FOLDER) / base);
    load_adapter(model, folder());
    return model;
  }
};
using Models = testing::Types<Mamba<double, ReferenceTraining, Lora<double>>, Mamba<float, NativeTraining, Lora<float>>,
                              Mamba<double, NativeTraining, Lora<double>, SSD>>;
TYPED_TEST_SUITE(GoldenAdapters, Models);

TYPED_TEST(GoldenAdapters, HaveTheLogitsAndGradientsOfPyTorch) {
  const support::Expected expected(this->folder());
  const auto model = this->model();
  const auto tokens = expected.tokens("input_ids");
  auto cache = model.make_cache(2);
  const auto wanted = expected.matrix("logits");
  const auto logits = support::copy_of(model.forward(tokens, cache));
  EXPECT_LE(support::largest_difference(logits, wanted), this->allowed * support::largest_magnitude(wanted));

  auto gradients = zeros_like(model);
  Tape tape(model);
  auto initial = model.make_cache(2);
  tape.forward(model, tokens, initial);
  const Loss loss = tape.backward(model, next_token_targets(tokens, 2), gradients);
  EXPECT_NEAR(loss.mean(), expected.matrix("loss").values[0], this->allowed);
  std::size_t compared = 0;
  detail::for_each_adapter_tensor(gradients, [&](const std::string& name, const auto& matrix, bool turned) {
    using Scalar = typename TypeParam::ScalarType;
    support::HostMatrix<Scalar> found(matrix.rows(), matrix.cols());
    matrix.download(model.backend(), 0, found.view());
    if (turned) {
      found.values = detail::transposed(found.values, found.rows);
      std::swap(found.rows, found.cols);
    }
    const auto gradient = expected.matrix("grad." + name);
    EXPECT_GT(support::largest_magnitude(gradient), 0) << name;
    EXPECT_LE(support::largest_difference(found, gradient), this->allowed * support::largest_magnitude(gradient))
        << name;
    ++compared;
  });
  EXPECT_EQ(compared, this->is_s6 ? 2U * (2 * 4 + 2) : 2U * (3 * 2 + 2));
}

TYPED_TEST(GoldenAdapters, AreSavedWithTheNamesAndShapesOfPeft) {
  const support::Folder folder;
  const auto model = this->model();
  save_adapter(model, folder / "adapter", this->base);
  const AdapterFiles ours = open_adapter(folder / "adapter"), theirs = open_adapter(this->folder());
  ASSERT_EQ(ours.tensors.tensors().size(), theirs.tensors.tensors().size());
  for (const auto& [name, tensor] : theirs.tensors.tensors()) {
    const StoredTensor* const found = ours.tensors.find(name);
    ASSERT_NE(found, nullptr) << name;
    EXPECT_EQ(found->shape, tensor.shape) << name;
    EXPECT_EQ(detail::stored_values<double>(ours, *found), detail::stored_values<double>(theirs, tensor)) << name;
  }
  // The text of adapter_config.json is the same, but for line breaks within lists.
  const auto config = [](const std::filesystem::path& file) { return to_text(read_json(ByteSource::open(file))); };
  EXPECT_EQ(config(folder / "adapter" / "adapter_config.json"), config(this->folder() / "adapter_config.json"));
}

}  // namespace lora_golden_test
