// The outputs, losses and gradients of models with heads, against those that PyTorch computed: see make_heads.py.
#include <filesystem>
#include <string>
#include <vector>

#include "minimamba/train/sequence_trainer.hpp"
#include "support/golden.hpp"
#include "support/training.hpp"

namespace heads_test {

using namespace minimamba;

class Case {
 public:
  explicit Case(const std::filesystem::path& file) : name_(file.stem().string()) {
    read_safetensors(ByteSource::open(file), set_);
  }
  bool is(const char* part) const { return name_.find(part) != name_.npos; }
  std::vector<double> numbers(const std::string& name) const {
    const StoredTensor& tensor = *set_.find(name);
    std::vector<double> values(static_cast<std::size_t>(tensor.size()));
    set_.read(tensor, 0, std::span(values));
    return values;
  }
  std::vector<std::int64_t> integers(const std::string& name) const {
    const StoredTensor& tensor = *set_.find(name);
    std::vector<std::int64_t> values(static_cast<std::size_t>(tensor.size()));
    set_.source(tensor.source).read(tensor.begin, std::as_writable_bytes(std::span(values)));
    return values;
  }

  SequenceConfig<> config() const {
    SequenceConfig<> config{.backbone = {.d_model = 8, .n_layer = 1, .d_state = 3, .dt_rank = 1, .bias = true}};
    if (is("tokens")) {
      config.backbone.vocab_size = 11;
    } else {
      config.columns = 2;
    }
    config.pooling = is("last") ? Pooling::last : is("mean") ? Pooling::mean : is("max") ? Pooling::max : Pooling::none;
    if (is("classification")) {
      config.labels = {"a", "b", "c"};
      return config;
    }
    config.task = Task::regression;
    config.targets = 2;
    if (is("quantiles")) config.quantiles = {0.1, 0.5, 0.8};
    return config;
  }
  SequenceBatch batch() const {
    SequenceBatch batch{.lengths = integers("lengths")};
    const auto convert = [](const auto& from, auto& to) { to.assign(from.begin(), from.end()); };
    is("tokens") ? convert(integers("tokens"), batch.tokens) : convert(numbers("inputs"), batch.inputs);
    is("classification") ? convert(integers("labels"), batch.labels) : convert(numbers("targets"), batch.targets);
    return batch;
  }

 private:
  std::string name_;
  TensorSet set_;
};

template <class K>
class GoldenHeads : public support::KernelTest<K> {};
TYPED_TEST_SUITE(GoldenHeads, support::TrainingKinds, support::KindNames);

TYPED_TEST(GoldenHeads, HaveTheGradientsOfPyTorch) {
  using Scalar = typename TypeParam::Scalar;
  using Model = SequenceModel<Scalar, TypeParam::template BackendOf>;
  constexpr double allowed = sizeof(Scalar) == 8 ? 1e-9 : 1e-4;
  int cases = 0;
  for (const auto& entry : std::filesystem::directory_iterator(GOLDEN_FOLDER "/heads")) {
    SCOPED_TRACE(entry.path().string());
    const Case expected(entry.path());
    Model model(expected.config());
    for_each_parameter(
        [&](std::string_view name, auto& parameter) {
          const std::vector<double> numbers = expected.numbers("weight." + std::string(name));
          ASSERT_EQ(numbers.size(), parameter.size()) << name;
          const std::vector<Scalar> values(numbers.begin(), numbers.end());
          parameter.upload(model.backend(), 0, {values.data(), parameter.rows(), parameter.cols()});
        },
        model);
    model.refresh();
    const SequenceBatch batch = expected.batch();
    SequencePass<Model> pass(model, {.tape = {.chunk = 4}});
    auto gradients = zeros_like(model);
    double sum = 0;
    pass.forward(model, batch, 0);
    pass.backward(model, batch, gradients, {.scale = 1 / static_cast<double>(pass.count(batch)), .sum = {&sum, 1, 1}});
    EXPECT_NEAR(sum / static_cast<double>(pass.count(batch)), expected.numbers("loss")[0], allowed);
    for (const auto& [name, found] : support::parameters_of(gradients)) {
      support::HostMatrix<double> wanted(found.rows, found.cols);
      wanted.values = expected.numbers("grad." + name);
      EXPECT_LE(support::largest_difference(found, wanted), allowed * support::largest_magnitude(wanted)) << name;
    }
    ++cases;
  }
  EXPECT_EQ(cases, 8);
}

}  // namespace heads_test
