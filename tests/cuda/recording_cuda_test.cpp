// Lists of kernels: a product that also convolves what it gives. No card and no driver are needed.
#include "minimamba/cuda.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <optional>

namespace recording_cuda_test {

using namespace minimamba;

constexpr std::size_t program = 11;
constexpr gpu::Weights weights{.data = 64, .rows = 8, .cols = 16};

/// A product [2, 8] of bf16 at 1000, which reads [4000, 5000).
void add_product(gpu::Recording& recording, bool narrow = true) {
  gpu::TensorMap x, w;
  x.words[3] = 5, w.words[15] = 6;
  recording.add({.program = program, .number = 3}, {.x = 7},
                {.threads = 160, .shared = 99, .output = 5, .rows = 2, .cols = 8, .input = 4000, .input_end = 5000}, x,
                w, std::uint32_t{2}, weights, gpu::Output{.y = 1000, .y_stride = 8, .narrow = narrow});
}
/// That of its first four columns, which goes to 6000.
gpu::ConvolutionOfRows convolution() {
  return {.x = 1000, .x_stride = 8, .rows = 2, .convolution = {.y = 6000, .y_stride = 4, .channels = 4}};
}

TEST(CudaRecordings, ConvolveWhatTheLastProductGives) {
  gpu::Recording recording;
  add_product(recording);
  ASSERT_EQ(recording.product_before(convolution(), program), std::optional<std::size_t>(3));
  recording.convolve_after_last({.function = &recording, .program = program, .number = 9}, convolution().convolution);
  ASSERT_EQ(recording.list().size(), 1U);
  const gpu::Launch& launch = recording.list().last();
  EXPECT_TRUE(launch.function == &recording && launch.program == program && launch.kernel == 9 && launch.count == 6);
  EXPECT_TRUE(launch.x == 7 && launch.threads == 160 && launch.shared == 99 && launch.output == 5);
  EXPECT_TRUE(recording.list().get<gpu::TensorMap>(launch, 0).words[3] == 5 &&
              recording.list().get<gpu::TensorMap>(launch, 1).words[15] == 6);
  EXPECT_EQ(recording.list().get<std::uint32_t>(launch, 2), 2U);
  EXPECT_EQ(recording.list().get<gpu::Weights>(launch, 3).cols, 16U);
  EXPECT_EQ(recording.list().get<gpu::Output>(launch, 4).y, 1000U);
  EXPECT_EQ(recording.list().get<gpu::Convolution>(launch, 5).y, 6000U);
}

TEST(CudaRecordings, ConvolveNothingElse) {
  gpu::Recording empty, wide;
  EXPECT_FALSE(empty.product_before(convolution(), program));
  add_product(wide, false);
  EXPECT_FALSE(wide.product_before(convolution(), program));
  gpu::Recording recording;
  add_product(recording);
  EXPECT_FALSE(recording.product_before(convolution(), program + 1));
  auto other = convolution();
  other.x = 1002;
  EXPECT_FALSE(recording.product_before(other, program));
  other = convolution(), other.x_stride = 4;
  EXPECT_FALSE(recording.product_before(other, program));
  other = convolution(), other.rows = 1;
  EXPECT_FALSE(recording.product_before(other, program));
  other = convolution(), other.convolution.y = 4996;  // which the product reads
  EXPECT_FALSE(recording.product_before(other, program));
  other.convolution.y = 5000;
  EXPECT_TRUE(recording.product_before(other, program));
  other.convolution.y = 1008;  // the other columns of the product
  EXPECT_FALSE(recording.product_before(other, program));
  other.convolution.y = 1032;
  EXPECT_TRUE(recording.product_before(other, program));
  other.convolution.channels = 9;  // more than the product gives
  EXPECT_FALSE(recording.product_before(other, program));
  recording.add({}, {}, gpu::Block(), std::uint32_t{0});
  EXPECT_FALSE(recording.product_before(convolution(), program));
}

}  // namespace recording_cuda_test
