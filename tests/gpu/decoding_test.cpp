// A step of one token as one kernel gives the bits of the kernels that it stands for: logits, greedy choices and state.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "minimamba/cuda.hpp"
#include "minimamba/generate/last_logits.hpp"

namespace decoding_test {

using namespace minimamba;

template <class W>
void expect_the_same_bits(const MambaConfig& config) {
  if (CudaBackend<float>::devices() == 0) GTEST_SKIP() << "no NVIDIA card";
  const Mamba<float, CudaBackend, W> model(config);
  const auto& backend = model.backend();
  if (backend.device().capability() < 90) GTEST_SKIP() << "the card is older than Hopper";
  auto cache = model.make_cache(), other = model.make_cache();
  backend.device().kernels().wait();
  const std::size_t before = backend.device().decoded();
  for (std::int32_t i = 0; i < 12; ++i) {
    const std::int32_t token = i * 7919 % static_cast<std::int32_t>(config.vocab_size);
    const auto read = [&](bool decodes, auto& of) {
      backend.device().set_decoding(decodes);
      return backend.to_host(i % 3 == 2 ? model.forward({token}, of) : model.forward_last({token}, of));
    };
    const auto one = read(true, cache), many = read(false, other);
    ASSERT_EQ(std::memcmp(one.row(0).data(), many.row(0).data(), one.cols() * sizeof(float)), 0) << "token " << i;
  }
  backend.device().set_decoding(true);
  EXPECT_GE(backend.device().decoded() - before, 8U);
  const auto state = backend.to_host(cache.slot(0)), other_state = backend.to_host(other.slot(0));
  EXPECT_EQ(std::memcmp(state.row(0).data(), other_state.row(0).data(), state.cols() * sizeof(float)), 0);
}
/// Small, of a real width, with parts of slices at the ends of sums, and with more panels than a round takes. With q4,
/// d_inner must be a multiple of 32.
template <class W>
void expect_the_same_bits() {
  expect_the_same_bits<W>({.d_model = 64, .n_layer = 3, .vocab_size = 256});
  expect_the_same_bits<W>({.d_model = 768, .n_layer = 2, .vocab_size = 50280});
  expect_the_same_bits<W>({.d_model = 208, .n_layer = 2, .vocab_size = 1000, .d_state = 7});
  if (!std::is_same_v<W, q4>) expect_the_same_bits<W>({.d_model = 100, .n_layer = 2, .vocab_size = 500});
  expect_the_same_bits<W>({.d_model = 2048, .n_layer = 1, .vocab_size = 500});
  expect_the_same_bits<W>({.d_model = 2560, .n_layer = 1, .vocab_size = 5000});
}

TEST(CudaDecoding, GivesTheSameBitsInF32) { expect_the_same_bits<float>(); }
TEST(CudaDecoding, GivesTheSameBitsInF16) { expect_the_same_bits<f16>(); }
TEST(CudaDecoding, GivesTheSameBitsInBf16) { expect_the_same_bits<bf16>(); }
TEST(CudaDecoding, GivesTheSameBitsInQ8) { expect_the_same_bits<q8>(); }
TEST(CudaDecoding, GivesTheSameBitsInQ4) { expect_the_same_bits<q4>(); }

/// All use the same memory, in words of different sizes and places.
TEST(CudaDecoding, GivesTheSameBitsWhenModelsTakeTurns) {
  if (CudaBackend<float>::devices() == 0) GTEST_SKIP() << "no NVIDIA card";
  const MambaConfig config{.d_model = 768, .n_layer = 4, .vocab_size = 256};
  const Mamba<float, CudaBackend, bf16> model(config);
  const Mamba<float, CudaBackend> between(config);
  const Mamba<float, CudaBackend, bf16> draft({.d_model = 1024, .n_layer = 4, .vocab_size = 256});
  const auto& backend = model.backend();
  if (backend.device().capability() < 90) GTEST_SKIP() << "the card is older than Hopper";
  auto cache = model.make_cache(), other = model.make_cache();
  auto of_between = between.make_cache(), of_draft = draft.make_cache();
  backend.device().kernels().wait();
  const std::size_t before = backend.device().decoded();
  for (std::int32_t i = 0; i < 40; ++i) {
    backend.device().set_decoding(true);
    if (i % 2 == 0) {
      between.forward({i}, of_between);
    } else {
      draft.forward({i}, of_draft);
    }
    const auto one = backend.to_host(model.forward({i}, cache));
    backend.device().set_decoding(false);
    const auto many = backend.to_host(model.forward({i}, other));
    ASSERT_EQ(std::memcmp(one.row(0).data(), many.row(0).data(), one.cols() * sizeof(float)), 0) << "token " << i;
  }
  backend.device().set_decoding(true);
  EXPECT_GT(backend.device().decoded(), before + 30);
}

TEST(CudaDecoding, ChoosesTheSameToken) {
  if (CudaBackend<float>::devices() == 0) GTEST_SKIP() << "no NVIDIA card";
  const Mamba<float, CudaBackend, bf16> model({.d_model = 256, .n_layer = 2, .vocab_size = 1000});
  auto cache = model.make_cache();
  model.backend().device().kernels().wait();
  Sampler sampler({}, 1000);
  detail::LastLogits<CudaBackend<float>> last;
  std::vector<float> logits(1000);
  for (std::int32_t i = 0; i < 8; ++i) {
    const auto row = model.forward_last({i}, cache);
    last.take(model.backend(), row, sampler);
    model.backend().download(row.data(), logits);
    EXPECT_EQ(last.choose(sampler, 0), std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
}

}  // namespace decoding_test
