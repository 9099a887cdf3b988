// Models of one layer as wide as people run: the bits of a prompt are those of its tokens one by one, those of a batch
// are those of each row alone, for any number of threads. What a short run takes of it is chosen below;
// MINIMAMBA_TEST_EVERY_SHAPE=1 in the environment takes all (every_shape.sh).
#ifndef MINIMAMBA_TESTS_REAL_SHAPES_HPP
#define MINIMAMBA_TESTS_REAL_SHAPES_HPP

#include <cstdlib>
#include <string>
#include <vector>

#include "support/sanitizer.hpp"
#include "support/support.hpp"

namespace support {

using namespace minimamba;

inline bool every_shape() { return std::getenv("MINIMAMBA_TEST_EVERY_SHAPE") != nullptr; }

/// Rows at which blocks and tiles begin, end and are one too many.
inline std::vector<std::size_t> all_sizes() {
  std::vector<std::size_t> sizes{47, 48, 49, 72, 96, 144, 192};
  for (std::size_t size = 239; size <= 257; ++size) sizes.push_back(size);
  sizes.insert(sizes.end(), {512, 600});
  return sizes;
}
inline std::vector<std::size_t> sizes_to_test() {
  if (every_shape()) return all_sizes();
  if (support::under_a_sanitizer) return {48, 96, 241};
  return {47, 48, 96, 192, 240, 257};
}
inline std::vector<int> threads_to_test() {
  if (every_shape()) return {1, 2, 3, 8, 16};
  return {1, 3};
}

/// What one sequence gave after each of its tokens, or each sequence after its only one: all for `wanted` of them.
template <class Scalar>
struct Steps {
  std::vector<HostMatrix<Scalar>> logits, conv, ssm;

  template <class Cache>
  void add(View<const Scalar> last, const Cache& cache) {
    logits.push_back(copy_of(last));
    conv.push_back(copy_of(cache.conv(0, 0)));
    ssm.push_back(copy_of(cache.ssm(0, 0)));
  }
  void expect(std::size_t index, View<const Scalar> found, const HostMatrix<Scalar>& conv_found,
              const HostMatrix<Scalar>& ssm_found) const {
    ASSERT_TRUE(identical(logits[index], copy_of(found))) << "logits of row " << index;
    ASSERT_TRUE(identical(conv[index], conv_found)) << "conv of row " << index;
    ASSERT_TRUE(identical(ssm[index], ssm_found)) << "ssm of row " << index;
  }
};

/// A model of this configuration, for calls of so many rows, in ascending order.
template <class Model>
void check_width(const typename Model::Config& config, const std::vector<std::size_t>& sizes) {
  using Scalar = typename Model::ScalarType;
  SCOPED_TRACE(std::string(Format<typename Model::WeightType>::name) + ", d_model " + std::to_string(config.d_model));
  const std::size_t most = sizes.back();
  const auto tokens = support::random_tokens(most, config.vocab_size);
  Model model(config, NativeBackend<Scalar>({.threads = 1}));
  const Steps<Scalar> prompt = [&] {
    Steps<Scalar> steps;
    auto cache = model.make_cache();
    for (std::size_t i = 0; i < most; ++i) steps.add(model.forward(std::span(&tokens[i], 1), cache), cache);
    return steps;
  }();
  const Steps<Scalar> rows = [&] {
    Steps<Scalar> steps;
    for (std::size_t i = 0; i < static_cast<std::size_t>(config.vocab_size); ++i) {  // of each token, since they repeat
      auto cache = model.make_cache();
      const auto token = static_cast<std::int32_t>(i);
      steps.add(model.forward(std::span(&token, 1), cache), cache);
    }
    return steps;
  }();
  for (const int threads : threads_to_test()) {
    SCOPED_TRACE("threads " + std::to_string(threads));
    const NativeBackend<Scalar> backend({.threads = threads});
    Model same = Model::shapes_only(config, backend);
    allocate_parameters(same, backend);
    copy_parameters(model, model.backend(), same, backend);
    same.refresh();
    for (const std::size_t size : sizes) {
      SCOPED_TRACE(std::to_string(size) + " rows");
      auto cache = same.make_cache();
      const auto logits = same.forward(std::span(tokens).first(size), cache);
      for (std::size_t i = 0; i < size; ++i) {
        ASSERT_TRUE(identical(prompt.logits[i], copy_of(logits.rows_from(i, 1)))) << "token " << i << " of a prompt";
      }
      prompt.expect(size - 1, logits.rows_from(size - 1, 1), copy_of(cache.conv(0, 0)), copy_of(cache.ssm(0, 0)));
      auto batch = same.make_cache(static_cast<std::int64_t>(size));
      const auto of_rows = same.forward(std::span(tokens).first(size), batch);
      for (std::size_t i = 0; i < size && !testing::Test::HasFatalFailure(); ++i) {
        rows.expect(static_cast<std::size_t>(tokens[i]), of_rows.rows_from(i, 1), copy_of(batch.conv(0, i)),
                    copy_of(batch.ssm(0, i)));
      }
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

/// The fixture of tests of one width, of which a short run takes the small ones.
class OfWidth : public testing::TestWithParam<std::int64_t> {
 protected:
  void SetUp() override {
    if (!every_shape() && GetParam() > (under_a_sanitizer ? 768 : 1024)) {
      GTEST_SKIP() << "MINIMAMBA_TEST_EVERY_SHAPE=1 takes this shape too";
    }
  }
};

}  // namespace support

#endif
