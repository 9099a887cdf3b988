// Models on a card as people use them: real widths in every format, states that move between card and processor,
// generation and scores, and use that a program should not make of it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <thread>

#include "minimamba/io.hpp"
#include "minimamba/nn/ssd.hpp"
#include "support/support.hpp"

namespace models_test {

using namespace minimamba;
using support::copy_of;
using support::HostMatrix;
using support::identical;
using support::random_tokens;

class OnACard : public testing::Test {
 protected:
  void SetUp() override {
    if (CudaBackend<float>::devices() == 0) GTEST_SKIP() << "this machine has no NVIDIA card";
  }
};

/// A model of one layer as wide as people run: the bits of a prompt are those of its tokens one by one, and those of a
/// batch are those of each row alone.
template <class Model>
void check_width(typename Model::Config config) {
  using Scalar = typename Model::ScalarType;
  config.n_layer = 1;
  config.vocab_size = 64;
  const Model model(config);
  constexpr std::size_t most = 300;
  const auto tokens = random_tokens(most, config.vocab_size);
  std::vector<HostMatrix<Scalar>> one_by_one, states, alone;
  auto steps = model.make_cache();
  for (std::size_t i = 0; i < most; ++i) {
    one_by_one.push_back(copy_of(model.forward(std::span(&tokens[i], 1), steps)));
    states.push_back(copy_of(std::as_const(steps).slot(0)));
  }
  for (std::int32_t token = 0; token < 64; ++token) {
    auto cache = model.make_cache();
    alone.push_back(copy_of(model.forward(std::span(&token, 1), cache)));
  }
  for (const std::size_t size : support::Sizes{2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 48, 64, 65, 128, 257, 300}) {
    auto cache = model.make_cache(), batch = model.make_cache(static_cast<std::int64_t>(size));
    const auto prompt = copy_of(model.forward(std::span(tokens).first(size), cache));
    const auto rows = copy_of(model.forward(std::span(tokens).first(size), batch));
    for (std::size_t i = 0; i < size; ++i) {
      ASSERT_TRUE(identical(one_by_one[i], copy_of(prompt.view().rows_from(i, 1)))) << "token " << i << " of " << size;
      ASSERT_TRUE(identical(alone[static_cast<std::size_t>(tokens[i])], copy_of(rows.view().rows_from(i, 1))))
          << "row " << i << " of " << size;
    }
    ASSERT_TRUE(identical(states[size - 1], copy_of(std::as_const(cache).slot(0)))) << size;
  }
}

template <class W>
using Of = Mamba<float, CudaBackend, W>;
template <class W>
using Mamba2Of = Mamba<float, CudaBackend, W, SSD>;

class RealWidths : public OnACard, public testing::WithParamInterface<std::int64_t> {};
TEST_P(RealWidths, InF32) { check_width<Of<float>>({.d_model = GetParam()}); }
TEST_P(RealWidths, InF16) { check_width<Of<f16>>({.d_model = GetParam()}); }
TEST_P(RealWidths, InBf16) { check_width<Of<bf16>>({.d_model = GetParam()}); }
TEST_P(RealWidths, InQ8) { check_width<Of<q8>>({.d_model = GetParam()}); }
TEST_P(RealWidths, InQ4) { check_width<Of<q4>>({.d_model = GetParam()}); }
TEST_P(RealWidths, OfFalconMambaInBf16) { check_width<Of<bf16>>({.d_model = GetParam(), .dt_b_c_rms = true}); }
TEST_P(RealWidths, OfMamba2InF32) { check_width<Mamba2Of<float>>({.d_model = GetParam()}); }
TEST_P(RealWidths, OfMamba2InBf16) { check_width<Mamba2Of<bf16>>({.d_model = GetParam(), .n_groups = 8}); }
INSTANTIATE_TEST_SUITE_P(Of, RealWidths, testing::Values(768, 1024, 2048, 2560, 4096),
                         testing::PrintToStringParamName());

template <class Model>
void check_split_with_states(std::int64_t d_state) {
  const Model model({.d_model = 64, .n_layer = 2, .vocab_size = 50, .d_state = d_state});
  const auto tokens = random_tokens(100, 50);
  auto whole = model.make_cache(), parts = model.make_cache();
  const auto expected = copy_of(model.forward_last(tokens, whole));
  model.forward(std::span(tokens).first(37), parts);
  model.forward(std::span(tokens).subspan(37, 1), parts);
  EXPECT_TRUE(identical(expected, copy_of(model.forward_last(std::span(tokens).subspan(38), parts)))) << d_state;
  EXPECT_TRUE(identical(copy_of(whole.slot(0)), copy_of(parts.slot(0)))) << d_state;
  EXPECT_GT(support::largest_magnitude(expected), 0);
}

TEST_F(OnACard, ManyStatesOfAChannelGiveTheSameBitsForEverySplit) {
  for (const std::int64_t d_state : {1, 16, 17, 64, 100, 256, 300}) check_split_with_states<Of<float>>(d_state);
  for (const std::int64_t d_state : {1, 63, 64, 65, 128, 132, 256, 300, 1024}) {
    check_split_with_states<Mamba2Of<float>>(d_state);
  }
}

// dt is a part of rows of 13 + 2 x 7 values then, which no copy of 16 bytes can begin with: the kernels for few rows
// take it as it is, up to 64 rows.
TEST_F(OnACard, RowsThatAreNotAlignedGiveTheSameBitsForEverySplit) {
  check_width<Of<bf16>>({.d_model = 200, .d_state = 7});
}

TEST_F(OnACard, ManyRunsAndSlotsGiveTheBitsThatEachHasAlone) {
  const Mamba<float, CudaBackend, bf16> model({.d_model = 96, .n_layer = 2, .vocab_size = 50});
  constexpr std::size_t slots = 450;  // more than one launch takes
  std::vector<std::vector<std::int32_t>> texts;
  std::vector<minimamba::Run> runs;
  for (std::size_t i = 0; i < slots; ++i) texts.push_back(random_tokens(1 + i * 7 % 50, 50, i));
  for (std::size_t i = 0; i < slots; ++i) runs.push_back({(i * 7) % slots, texts[i]});
  auto cache = model.make_cache(slots);
  const auto found = copy_of(model.forward_last(runs, cache));
  std::vector<std::size_t> order(slots);
  for (std::size_t i = 0; i < slots; ++i) order[i] = i * i % slots;
  const auto before = copy_of(View<const float>(std::as_const(cache).slot(0).data(), slots, cache.layout().size()));
  const auto gathered = cache.gather(order);
  cache.reorder(order);
  for (std::size_t i = 0; i < slots; ++i) {
    const auto moved = copy_of(before.view().rows_from(order[i], 1));
    ASSERT_TRUE(identical(moved, copy_of(std::as_const(cache).slot(i)))) << i;
    ASSERT_TRUE(identical(moved, copy_of(gathered.slot(i)))) << i;
  }
  for (std::size_t i = 0; i < slots; i += 37) {
    auto own = model.make_cache();
    ASSERT_TRUE(identical(copy_of(model.forward_last(texts[i], own)), copy_of(found.view().rows_from(i, 1)))) << i;
    ASSERT_TRUE(identical(copy_of(before.view().rows_from(runs[i].slot, 1)), copy_of(own.slot(0)))) << i;
  }
}

TEST_F(OnACard, ReplaysListsOfKernelsThatItHasSeenWithTheSameBits) {
  const Mamba<float, CudaBackend, bf16> model({.d_model = 96, .n_layer = 2, .vocab_size = 50});
  const auto tokens = random_tokens(40, 50);
  auto whole = model.make_cache(), steps = model.make_cache(), other = model.make_cache();
  const auto expected = copy_of(model.forward(tokens, whole));
  model.backend().device().kernels().wait();  // or else lists become other graphs when one comes
  const std::size_t before = model.backend().device().replayed();
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto found = copy_of(model.forward_last(std::span(&tokens[i], 1), steps));
    ASSERT_TRUE(identical(found, copy_of(expected.view().rows_from(i, 1)))) << i;
    if (i % 3 == 0) copy_of(model.forward_last(std::span(&tokens[i], 1), other));  // another list between
  }
  EXPECT_GE(model.backend().device().replayed() - before, 30U);
}

TEST_F(OnACard, BeginsLongListsThatItKnowsBeforeTheyEndWithTheSameBits) {
  const Mamba<float, CudaBackend, bf16> model({.d_model = 64, .n_layer = 16, .vocab_size = 50});
  constexpr std::size_t length = 20;
  const auto tokens = random_tokens(2 * length, 50);
  auto whole = model.make_cache(2), steps = model.make_cache(2);
  const auto expected = copy_of(model.forward(tokens, whole));
  model.backend().device().kernels().wait();  // or else lists become other graphs when one comes
  const std::size_t before = model.backend().device().replayed();
  for (std::size_t i = 0; i < length; ++i) {
    const std::vector<std::int32_t> now{tokens[i], tokens[length + i]};
    const auto found = copy_of(model.forward_last(now, steps));
    for (std::size_t row = 0; row < 2; ++row) {
      const auto own = found.view().row(row), other = expected.view().row(row * length + i);
      ASSERT_EQ(std::memcmp(own.data(), other.data(), own.size_bytes()), 0) << i;
    }
  }
  EXPECT_GE(model.backend().device().replayed() - before, 2 * length - 10);
}

TEST_F(OnACard, DownloadsValuesOfEverySize) {
  const CudaBackend<float> backend;
  for (const std::size_t size : {1U, 255U, 768U, 769U, 5000U}) {
    std::vector<float> values(size), found(size);
    for (std::size_t i = 0; i < size; ++i) values[i] = static_cast<float>(i) + 0.5F;
    auto there = backend.allocate<float>(size);
    backend.upload<float>(values, there.data());
    backend.download(there.data(), std::span(found));
    EXPECT_EQ(found, values);
  }
}

TEST_F(OnACard, AProductHasTheSameBitsWhetherItsRowIsNormalisedJustBeforeOrLongBefore) {
  const CudaBackend<float> backend;
  constexpr std::size_t cols = 64;
  auto rows = backend.allocate<float>(3 * cols);
  const View<float> all(rows.data(), 3, cols), x = all.rows_from(0, 1), weight = all.rows_from(1, 1),
                                               normed = all.rows_from(2, 1);
  std::vector<float> values(3 * cols);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 13) - 5.5F;
  const auto product = [&](std::size_t taken, bool in_place, bool apart) {
    auto matrix = backend.make_matrix<float>(8, taken);
    HostMatrix<float> numbers(8, taken);
    for (std::size_t i = 0; i < 8; ++i) {
      for (std::size_t k = 0; k < taken; ++k) numbers.view().row(i)[k] = static_cast<float>(i * k % 7) - 2.5F;
    }
    backend.upload_rows<float>(numbers.view(), 0, matrix);
    backend.upload<float>(values, rows.data());
    auto result = backend.allocate<float>(8);
    const View<float> from = in_place ? x : normed, y(result.data(), 1, 8);
    backend.rms_norm(x, weight, 1e-5, from);
    if (apart) backend.to_host(from);  // nothing can join what has been started
    backend.matmul(from.columns(0, taken), matrix, y);
    return std::pair(copy_of(View<const float>(y)), copy_of(View<const float>(all)));
  };
  for (const std::size_t taken : {cols, cols / 2}) {
    for (const bool in_place : {false, true}) {
      const auto joined = product(taken, in_place, false), apart = product(taken, in_place, true);
      EXPECT_TRUE(identical(joined.first, apart.first)) << taken << in_place;
      EXPECT_TRUE(identical(joined.second, apart.second)) << taken << in_place;
    }
  }
}

TEST_F(OnACard, ProductsOfLargeAndInfiniteNumbersAreThoseOfF32) {
  const CudaBackend<float> backend;
  constexpr std::size_t cols = 64, outputs = 200;
  constexpr float large = std::numeric_limits<float>::max(), infinity = std::numeric_limits<float>::infinity();
  auto matrix = backend.make_matrix<float>(outputs, cols);
  HostMatrix<float> ones(outputs, cols);
  std::fill(ones.values.begin(), ones.values.end(), 1.0F);
  backend.upload_rows<float>(ones.view(), 0, matrix);
  for (const std::size_t rows : support::Sizes{1, 5, 20, 40, 3000}) {
    std::vector<float> values(rows * cols, 1.0F), found(rows * outputs);
    const std::vector<float> kinds{large, -large, infinity, -infinity, std::nanf("")};
    for (std::size_t i = 0; i < rows; ++i) values[i * cols + i % cols] = kinds[i % kinds.size()];
    auto x = backend.allocate<float>(values.size()), y = backend.allocate<float>(found.size());
    backend.upload<float>(values, x.data());
    backend.matmul(View<const float>(x.data(), rows, cols), matrix, View<float>(y.data(), rows, outputs));
    backend.download<float>(y.data(), found);
    for (std::size_t i = 0; i < found.size(); ++i) {
      const float expected = kinds[i / outputs % kinds.size()];
      ASSERT_TRUE(found[i] == expected || (std::isnan(expected) && std::isnan(found[i]))) << i << ": " << found[i];
    }
  }
}

TEST_F(OnACard, ACacheReturnsToTheStatesThatItKept) {
  const Mamba<float, CudaBackend> model({.d_model = 64, .n_layer = 2, .vocab_size = 50});
  const auto tokens = random_tokens(100, 50);
  auto cache = model.make_cache(), expected = model.make_cache();
  model.forward(std::span(tokens).first(10), cache);
  cache.keep_every(16);
  model.forward(std::span(tokens).subspan(10), cache);
  cache.rollback(0, 10 + 48);
  model.forward(std::span(tokens).first(58), expected);
  EXPECT_TRUE(identical(copy_of(cache.slot(0)), copy_of(expected.slot(0))));
}

TEST_F(OnACard, StatesGoOnOnTheOtherSide) {
  const auto config = support::small_config();
  const auto on_card = support::trained_looking_model<Mamba<float, CudaBackend>>(config);
  const auto on_host = support::trained_looking_model<Mamba<float>>(config);
  const auto file = std::filesystem::temp_directory_path() / "minimamba-gpu-state";
  const auto tokens = random_tokens(40, 50);
  auto a = on_card.make_cache(2);
  auto b = on_host.make_cache(2);
  on_card.forward_last(tokens, a);
  on_host.forward_last(tokens, b);
  save_state(on_card, a, file);
  auto here = load_state(file, on_host);
  EXPECT_TRUE(identical(copy_of(std::as_const(here.cache).slot(1)), copy_of(std::as_const(a).slot(1))));
  const auto expected = copy_of(on_host.forward_last(tokens, b));
  EXPECT_LE(support::largest_difference(copy_of(on_host.forward_last(tokens, here.cache)), expected), 1e-4);
  save_state(on_host, here.cache, file);
  auto there = load_state(file, on_card);
  EXPECT_TRUE(identical(copy_of(std::as_const(here.cache).slot(1)), copy_of(std::as_const(there.cache).slot(1))));
  std::filesystem::remove(file);
}

TEST_F(OnACard, GeneratesAndScoresAsTheProcessorDoes) {
  const MambaConfig config{.d_model = 64, .n_layer = 2, .vocab_size = 100};
  const auto on_card = support::trained_looking_model<Mamba<float, CudaBackend>>(config);
  const auto on_host = support::trained_looking_model<Mamba<float>>(config);
  const auto tokens = random_tokens(60, 100);
  Scorer a(on_card, 16);
  Scorer b(on_host, 16);
  a.read(tokens);
  b.read(tokens);
  EXPECT_NEAR(a.score().nats, b.score().nats, 1e-3);
  const auto continuation = [&](const auto& model) {
    auto cache = model.make_cache();
    std::vector<std::int32_t> found;
    for (const auto token : generate(model, cache, tokens, {.max_new_tokens = 30})) found.push_back(token);
    return found;
  };
  EXPECT_EQ(continuation(on_card), continuation(on_host));
  const auto logits = [&] {
    auto cache = on_card.make_cache();
    return on_card.backend().to_host(on_card.forward(tokens, cache));
  }();
  EXPECT_EQ(logits.rows(), 60U);
  EXPECT_EQ(logits.row(59).size(), 104U);
}

TEST_F(OnACard, PartsOutliveWhatTheyWereMadeOf) {
  std::optional<InferenceCache<float, CudaBackend>> cache;
  std::optional<CudaBuffer<float>> buffer;
  {
    Mamba<float, CudaBackend> model({.d_model = 64, .n_layer = 1, .vocab_size = 50});
    cache.emplace(model.make_cache(3));
    model.forward_last(random_tokens(30, 50), *cache);
    buffer.emplace(CudaBackend<float>().allocate<float>(10));
    const Mamba<float, CudaBackend> moved = std::move(model);
    const Mamba<float, CudaBackend> other({.d_model = 64, .n_layer = 1, .vocab_size = 50}, CudaBackend<float>(), 1);
    other.forward_last(random_tokens(30, 50), *cache);  // of another backend
  }
  const auto copy = cache->clone();
  cache.reset();
  EXPECT_EQ(copy.position(2), 20);
  EXPECT_GT(support::largest_magnitude(copy_of(copy.slot(2))), 0);
}

TEST_F(OnACard, ThreadsUseOneModelAtOnce) {
  const auto config = support::small_config();
  const auto model = support::trained_looking_model<Mamba<float, CudaBackend, q8>>(config);
  const auto tokens = random_tokens(200, 50);
  const auto read = [&] {
    auto cache = model.make_cache();
    std::vector<HostMatrix<float>> all;
    for (std::size_t i = 0; i < 100; ++i)
      all.push_back(copy_of(model.forward(std::span(tokens).subspan(2 * i, 2), cache)));
    return all;
  };
  const auto expected = read();
  std::vector<std::vector<HostMatrix<float>>> found(4);
  std::vector<std::thread> threads;
  for (auto& own : found) threads.emplace_back([&] { own = read(); });
  for (auto& thread : threads) thread.join();
  for (const auto& own : found) {
    for (std::size_t i = 0; i < 100; ++i) ASSERT_TRUE(identical(expected[i], own[i])) << i;
  }
}

TEST_F(OnACard, TooLittleMemoryIsSaidAndLosesNothing) {
  const Mamba<float, CudaBackend> model({.d_model = 64, .n_layer = 2, .vocab_size = 50});
  const auto tokens = random_tokens(30, 50);
  auto cache = model.make_cache(), same = model.make_cache();
  model.forward(tokens, cache);
  model.forward(tokens, same);
  const CudaBackend<float> backend;
  std::vector<CudaBuffer<float>> hoard;
  std::size_t size = backend.total_memory() / 4;
  while (size > (std::size_t{1} << 10)) {
    try {
      hoard.push_back(backend.allocate<float>(size / sizeof(float)));
    } catch (const CudaError& error) {
      EXPECT_EQ(error.problem(), CudaProblem::memory) << error.what();
      size /= 2;
    }
  }
  const auto many = random_tokens(1 << 16, 50);
  try {
    model.forward(many, cache);
    ADD_FAILURE() << "there was memory left";
  } catch (const CudaError& error) {
    EXPECT_EQ(error.problem(), CudaProblem::memory);
    EXPECT_NE(std::string(error.what()).find("too little memory"), std::string::npos) << error.what();
  }
  hoard.clear();
  EXPECT_TRUE(identical(copy_of(cache.slot(0)), copy_of(same.slot(0))));
  EXPECT_EQ(cache.position(), 30);
  EXPECT_TRUE(identical(copy_of(model.forward(tokens, cache)), copy_of(model.forward(tokens, same))));
}

TEST_F(OnACard, KernelsCompiledBeforeGiveTheSameBits) {
  const auto folder = std::filesystem::temp_directory_path() / "minimamba-gpu-kernels";
  const std::string target = gpu::Compiler::get().target_for(gpu::Device::open(0)->capability());
  compile_cuda_kernels(folder.string(), {target});
  const auto tokens = random_tokens(100, 50);
  const auto logits = [&](const CudaKernelOptions& options) {  // the card is opened anew for each
    const Mamba<float, CudaBackend, bf16> model({.d_model = 64, .n_layer = 2, .vocab_size = 50},
                                                CudaBackend<float>({.kernels = options}));
    auto cache = model.make_cache();
    return copy_of(model.forward(tokens, cache));
  };
  int compiled = 0;
  const auto count = [&](const std::string&) { ++compiled; };
  const auto expected = logits({});
  EXPECT_TRUE(identical(expected, logits({.cache = false, .compiled = folder.string(), .on_compile = count})));
  EXPECT_EQ(compiled, 0);
  std::filesystem::remove_all(folder);
  EXPECT_TRUE(identical(expected, logits({.cache = false, .compiled = folder.string(), .on_compile = count})));
  EXPECT_GT(compiled, 0);
}

TEST_F(OnACard, ALongPromptTakesTheMemoryOfAShortOne) {
  const Mamba<float, CudaBackend> model({.d_model = 64, .n_layer = 2, .vocab_size = 50});
  const auto memory_after = [&](std::size_t length) {
    auto cache = model.make_cache();
    model.forward_last(random_tokens(length, 50), cache);
    return cache.memory_bytes();
  };
  EXPECT_EQ(memory_after(65536), memory_after(4096));
}

TEST(Cuda, SaysWhatIsMissingWhereThereIsNoCard) {
  try {
    const CudaBackend<float> backend({.device = 1000});
    ADD_FAILURE() << "there is a card number 1000";
  } catch (const CudaError& error) {
    const std::string text = error.what();
    EXPECT_TRUE(text.find("driver") != std::string::npos) << text;
    EXPECT_TRUE(error.problem() == CudaProblem::no_device || error.problem() == CudaProblem::no_driver ||
                error.problem() == CudaProblem::broken_driver || error.problem() == CudaProblem::old_driver);
  }
}

}  // namespace models_test
