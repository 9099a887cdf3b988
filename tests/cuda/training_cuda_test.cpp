// CudaTraining without a card: what it queues, gives back and refuses, and how products are divided. The driver and
// NVRTC are those of support/fake_cuda.cpp: see cuda_test.cpp. Kernels compute nothing there, so all numbers are zero.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <new>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "minimamba/backend/cuda_training.hpp"
#include "minimamba/train.hpp"
#include "support/fake_driver.hpp"

namespace training_cuda_test {

using namespace minimamba;
using support::expect_problem;
using support::expect_success;
using support::fake_driver;
using support::FakeCuda;

static_assert(TrainingBackend<CudaTraining<float>> && TrainingBackend<CudaTraining<double>>);
static_assert(!TrainingBackend<CudaBackend<float>>);
static_assert(std::is_same_v<Mamba<float, CudaTraining>::Cache, Mamba<float, CudaBackend>::Cache>);

TEST(CudaTrainings, CompileTheKernelsOfTrainingWithTheirBackend) {
  expect_success([] {
    const FakeCuda& fake = fake_driver();
    const CudaBackend<float> inference;
    inference.device().kernels().wait();
    const int before = fake.compilations;
    const CudaTraining<float> backend;
    REQUIRE(fake.compilations == before + 2);
    const CudaTraining<float> other;
    REQUIRE(fake.compilations == before + 2);
    REQUIRE(backend.training_kernels_name() == "cuda sm_90a");
    const CudaTraining<float> rounding({.products = Products::bf16});
    REQUIRE(fake.compilations == before + 3);  // this driver describes no matrices for those of Hopper
    REQUIRE(rounding.training_kernels_name() == "cuda sm_90a, bf16 products");
    const CudaTraining<double> exact({.products = Products::bf16});  // which double does not have
    REQUIRE(exact.training_kernels_name() == "cuda sm_90a");
  });
}

template <class Scalar, Products products = Products::f32>
void train() {
  FakeCuda& fake = fake_driver();
  {
    using Model = Mamba<Scalar, CudaTraining>;
    const MambaConfig config{.d_model = 16, .n_layer = 2, .vocab_size = 32};
    Trainer<Model> trainer(Model(config, CudaTraining<Scalar>({.products = products})),
                           std::vector<std::int32_t>(500, 1),
                           {.batch = 2, .length = 40, .accumulate = 2, .schedule = {.steps = 3}});
    const int before = fake.launches;
    while (!trainer.ended()) {
      const StepRecord step = trainer.step();
      REQUIRE(step.loss == 0 && step.gradient_norm == 0);
    }
    REQUIRE(fake.launches > before);
    REQUIRE(trainer.validate(1) == 0);
  }
  REQUIRE(fake.allocated == 0 && fake.contexts == 0 && fake.events == 0 && fake.modules == 0 && fake.graphs == 0);
}
TEST(CudaTrainings, TakeStepsAndGiveEverythingBack) {
  expect_success(train<float>);
  expect_success(train<double>);
  expect_success(train<float, Products::bf16>);
}

TEST(CudaTrainings, SayHowMuchMemoryIsMissing) {
  expect_problem(CudaProblem::memory, "too little memory", [] {
    FakeCuda& fake = fake_driver();
    using Model = Mamba<float, CudaTraining>;
    const Model model({.d_model = 64, .n_layer = 1, .vocab_size = 32}, CudaTraining<float>());
    Tape tape(model);
    auto cache = model.make_cache();
    fake.memory = fake.allocated + (1U << 20);
    tape.forward(model, std::vector<std::int32_t>(10'000, 1), cache);
  });
}

/// Others cannot know when it is released, and have made no room for one of their own.
TEST(CudaTrainings, GiveAHeldWeightToTheThreadThatHoldsItAlone) {
  std::vector<std::byte> weights(256), memory(128);
  const gpu::Weights weight{gpu::address(weights.data()), 8, 8};
  gpu::HeldWeight held;
  const auto hold = [&] {
    return held.hold(
        weight.data, memory.size(), [&](std::size_t bytes) { return CudaBuffer<std::byte>(memory.data(), bytes); },
        [](gpu::Address) {});
  };
  EXPECT_TRUE(hold());
  EXPECT_TRUE(held.find(weight).has_value());
  bool found = true, second = true;
  std::thread([&] { found = held.find(weight).has_value(), second = hold(); }).join();
  EXPECT_FALSE(found || second);
  held.release();
  EXPECT_FALSE(held.find(weight).has_value());
  std::thread([&] { found = hold() && held.find(weight).has_value(); }).join();
  EXPECT_TRUE(found);
  EXPECT_FALSE(held.find(weight).has_value());
}

/// What a product [2, 8] at 1000 is told to store, after it has been asked to add its result; nothing if it refuses.
std::optional<gpu::Output> output_of(const gpu::Block& block, const gpu::SumOfRows& add) {
  gpu::Recording recording;
  recording.add({}, {}, block, gpu::Output{.y = 1000, .y_stride = 8});
  const bool adds = recording.add_to_last_product(add);
  const auto output = recording.list().get<gpu::Output>(recording.list().last(), 0);
  EXPECT_EQ(adds, output.sum == add.sum);
  return adds ? std::optional(output) : std::nullopt;
}
TEST(CudaTrainings, LetProductsAddTheirResultToMatricesThatTheyDoNotRead) {
  const gpu::SumOfRows add{.rows_at = 1000,
                           .sum = 5000,
                           .stride = 8,
                           .sum_stride = 16,
                           .rows = 2,
                           .cols = 8,
                           .from = 7000,
                           .from_stride = 8};
  gpu::SumOfRows last = add, in_place = add;
  last.last = true;
  in_place.last = true, in_place.from = 0;
  // The sum lies between the two operands, and touches neither.
  gpu::Block block{
      .output = 1, .rows = 2, .cols = 8, .input = 4000, .input_end = 5000, .other = 5128, .other_end = 6000};
  block.only_sums = true;
  const auto kept = output_of(block, add), alone = output_of(block, last), same = output_of(block, in_place);
  ASSERT_TRUE(kept && alone && same);
  EXPECT_EQ(kept->y, 1000U);
  EXPECT_TRUE(alone->y == 0 && alone->from == 7000 && alone->from_stride == 8 && alone->sum_stride == 16);
  EXPECT_TRUE(same->y == 0 && same->from == 5000 && same->from_stride == 16);

  gpu::Block other = block;  // of inference: they add in place, and store their result too
  other.only_sums = false;
  EXPECT_FALSE(output_of(other, last));
  ASSERT_TRUE(output_of(other, in_place));
  EXPECT_EQ(output_of(other, in_place)->y, 1000U);
  for (const auto end : {&gpu::Block::input_end, &gpu::Block::other}) {
    gpu::Block reads = block;
    reads.*end = end == &gpu::Block::other ? 5124 : 5004;
    EXPECT_FALSE(output_of(reads, add));
  }
}

TEST(CudaTrainings, RunKernelsOnAnyNumberOfRowsAndSequences) {
  expect_success([] {
    fake_driver();
    const CudaTraining<float> backend;
    constexpr std::size_t many = 600'000, sequences = 70'000;
    auto x = backend.allocate<float>(many), y = backend.allocate<float>(many), small = backend.allocate<float>(64);
    auto sum = backend.allocate<double>(1);
    auto tokens = backend.allocate<std::int32_t>(many);
    const auto tall = [](auto& buffer, std::size_t rows) { return View<float>(buffer.data(), rows, 1); };
    const View<float> one = tall(small, 1);
    auto weight = backend.make_matrix<float>(1, 1);
    backend.matmul_backward_input(tall(x, many), weight, tall(y, many));
    backend.matmul_backward_weight(tall(x, many), tall(y, many), weight);
    backend.embed_backward({tokens.data(), 1, many}, tall(x, many), weight);
    backend.add_backward(tall(x, many), one);
    backend.negative_exp_backward(tall(x, many), tall(x, many), tall(y, many));
    backend.rms_norm_backward({tall(x, many), one, 1e-5, tall(x, many), tall(y, many), one});
    backend.cross_entropy({tall(x, many), {tokens.data(), 1, many}, 1, tall(y, many), {sum.data(), 1, 1}});
    backend.dropout(tall(x, many), {.rate = 0.1});
    backend.sum_of_squares(View<const float>(x.data(), many, 1), {sum.data(), 1, 1});
    const auto segments = uniform_segments(sequences, 2);
    const std::size_t rows = 2 * sequences;
    const SlotView<float> states(tall(y, sequences), 1);
    backend.causal_conv1d_backward({.segments = segments,
                                    .x = tall(x, rows),
                                    .weight = {small.data(), 1, 2},
                                    .bias = {},
                                    .kept = {2, SlotView<const float>(states)},
                                    .d_y = tall(x, rows),
                                    .d_x = tall(y, rows),
                                    .d_weight = {small.data(), 1, 2},
                                    .d_bias = {},
                                    .d_window = states});
    backend.selective_scan_backward({.segments = segments,
                                     .u = tall(x, rows),
                                     .delta = tall(x, rows),
                                     .delta_bias = one,
                                     .a = one,
                                     .b = tall(x, rows),
                                     .c = tall(x, rows),
                                     .d = one,
                                     .z = tall(x, rows),
                                     .kept = {2, SlotView<const float>(states)},
                                     .d_y = tall(x, rows),
                                     .d_u = tall(y, rows),
                                     .d_delta = tall(y, rows),
                                     .d_b = tall(y, rows),
                                     .d_c = tall(y, rows),
                                     .d_z = tall(y, rows),
                                     .d_delta_bias = one,
                                     .d_a = one,
                                     .d_d = one,
                                     .d_h = states});
    std::vector<double> host(1);
    backend.download(sum.data(), host);
  });
}

/// Every slice of tokens is in one part, and no part is so short that a block would do little.
TEST(CudaTrainings, DivideProductsOfWeightsIntoPartsThatDependOnSizesAlone) {
  for (const std::uint32_t tokens : {1U, 16U, 17U, 300U, 4096U, 16'384U, 1'000'000U}) {
    for (const auto& [outputs, inputs] : {std::pair(1U, 1U), {80U, 1536U}, {3072U, 768U}, {50'280U, 768U}}) {
      gpu::BackwardProduct p{.m = outputs, .n = inputs, .k = tokens};
      const gpu::WeightParts parts = gpu::weight_parts(p);
      p.slices = parts.slices;
      const std::size_t count = p.grid(gpu::backward_tiles[parts.tile]).z, slices = (tokens + 15) / 16;
      EXPECT_GE(count * parts.slices, slices);
      EXPECT_LT((count - 1) * parts.slices, slices);
      EXPECT_TRUE(count == 1 || parts.slices >= 8) << tokens << ", " << outputs << ", " << inputs;
      EXPECT_TRUE(count == 1 || count * outputs * inputs * sizeof(float) <= std::size_t{1} << 27);
    }
  }
}

TEST(CudaTrainings, ChooseTheScanByItsStatesAndRefuseMoreThan1024) {
  for (const auto& [states, lanes] : {std::pair(1, 8), {16, 8}, {17, 16}, {64, 16}, {256, 64}, {1024, 256}}) {
    const auto kernel = gpu::scan_backward_kernel(static_cast<std::size_t>(states));
    EXPECT_EQ(gpu::scan_backward_kernels[kernel].lanes, static_cast<std::size_t>(lanes)) << states;
  }
  EXPECT_THROW(gpu::scan_backward_kernel(1025), ArgumentError);
}

/// Every slice of a sum is in one part, and parts are of one size but for the last.
template <class Divide>
void expect_whole_parts(const Divide& divide, std::size_t widths) {
  for (const std::uint32_t m : {1U, 80U, 768U, 50280U}) {
    for (const std::uint32_t n : {1U, 48U, 1536U, 3072U}) {
      for (const std::uint32_t k : {1U, 64U, 65U, 2048U, 16384U}) {
        gpu::Bf16Product p{.m = m, .n = n, .k = k};
        const gpu::Bf16Division division = divide(p, true);
        p.slices = division.slices;
        ASSERT_LT(division.width, widths);
        ASSERT_GE(p.parts() * p.slices, p.all_slices());
        ASSERT_LT((p.parts() - 1) * p.slices, p.all_slices());
        ASSERT_LE(p.parts() == 1 ? 0 : p.parts() * m * n * sizeof(float), std::size_t{1} << 27);
        ASSERT_EQ(divide(p, false).slices, p.all_slices());
      }
    }
  }
}
TEST(CudaTrainings, DivideSumsOfRoundedProductsIntoWholeParts) {
  expect_whole_parts([](const gpu::Bf16Product& p, bool in_parts) { return gpu::divide(p, in_parts); },
                     gpu::bf16_widths.size());
}
TEST(CudaTrainings, DivideSumsOfSplitProductsIntoWholeParts) {
  expect_whole_parts(gpu::divide_split, gpu::split_widths.size());
}

/// No operand of a product takes more than 1 GiB, whichever of the two is wider.
TEST(CudaTrainings, SplitNoMoreRowsAtOnceThanFindPlace) {
  EXPECT_EQ(gpu::split_rows_at_once(768), (std::size_t{1} << 30) / (768 * 6));
  for (const std::size_t cols : {128U, 700U, 50'280U, 300'000'000U}) {
    const std::size_t rows = gpu::split_rows_at_once(cols);
    EXPECT_TRUE(rows == 1 || gpu::SplitRows::bytes(rows, cols) <= std::size_t{1} << 30) << cols;
    EXPECT_GT(gpu::SplitRows::bytes(rows + 1, cols), std::size_t{1} << 30) << cols;
  }
}

/// Each length of chunk has a table of its own, which is written once more only if it changes; of many lengths, some
/// share one.
TEST(CudaTrainings, WriteATableOfSegmentsOnceForEachLengthOfChunk) {
  expect_success([] {
    fake_driver();
    const auto device = gpu::Device::open(0);
    int written = 0;
    const auto table = [&](std::uint32_t value, std::size_t chunk, std::size_t size = 4) {
      const std::vector<std::uint32_t> entries(size, value);
      return device->segments(std::span<const std::uint32_t>(entries), chunk, device->lock_segments(),
                              [&](gpu::Address, std::size_t bytes, const std::byte*) {
                                REQUIRE(bytes == size * sizeof(std::uint32_t));
                                ++written;
                              });
    };
    const gpu::Address inference = table(1, 0), convolution = table(1, 64), scan = table(2, 16);
    REQUIRE(written == 3 && inference != convolution && convolution != scan && scan != inference);
    REQUIRE(table(1, 0) == inference && table(1, 64) == convolution && table(2, 16) == scan && written == 3);
    REQUIRE(table(3, 16) == scan && written == 4);
    REQUIRE(table(2, 16) == scan && written == 5);
    REQUIRE(table(2, 16, 3) == scan && written == 6);
    table(2, 16, 10'000);  // in new memory
    REQUIRE(written == 7);
    table(2, 16, 10'000);
    REQUIRE(written == 7);
    for (std::size_t chunk = 1; chunk < 6; ++chunk) table(static_cast<std::uint32_t>(10 + chunk), chunk);
    REQUIRE(written == 12);
    table(1, 64);  // whose memory others have taken
    REQUIRE(written == 13 && table(1, 0) == inference && written == 13);
    bool failed = false;
    try {
      const std::vector<std::uint32_t> entries(4, 5);
      device->segments(std::span<const std::uint32_t>(entries), 64, device->lock_segments(),
                       [](gpu::Address, std::size_t, const std::byte*) { throw std::bad_alloc(); });
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    REQUIRE(failed);
    table(1, 64);  // nobody knows what is there
    REQUIRE(written == 14);
  });
}

/// The tables of a launch: every block of a grid finds its parameter and its place in that.
TEST(CudaTrainings, FillTablesOfParameters) {
  std::vector<std::uint64_t> sizes;
  for (std::size_t i = 0; i < 250; ++i) sizes.push_back(i % 7 == 3 ? 0 : 1000 * i);
  std::size_t number = 0;
  const auto launch = [&](const gpu::ElementsTable& table, std::size_t entries, std::size_t blocks) {
    std::size_t next = 0;
    for (std::size_t i = 0; i < entries; ++i, ++number) {
      ASSERT_EQ(table.first[i], next);
      ASSERT_EQ(table.entry[i].count, sizes[number]);
      next += (sizes[number] + 65535) / 65536;
    }
    ASSERT_EQ(next, blocks);
    for (std::size_t i = entries; i < table.most; ++i) ASSERT_EQ(table.first[i], 0xFFFFFFFFU);
  };
  gpu::TableFiller<gpu::ElementsTable, decltype(launch)> tables(launch);
  for (const std::uint64_t size : sizes) tables.add(gpu::Elements{0, size, 0, 0}, (size + 65535) / 65536);
  tables.finish();
  EXPECT_EQ(number, sizes.size());
}

}  // namespace training_cuda_test
