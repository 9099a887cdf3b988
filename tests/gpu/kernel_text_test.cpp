// All kernel text compiles for each generation of cards without a word from the compiler; for the newest to PTX, as
// for cards that are newer than the compiler. This needs no card.
#include <gtest/gtest.h>

#include <string>

#include "minimamba/backend/cuda/compiler.hpp"

namespace kernel_text_test {

using namespace minimamba;

class KernelText : public testing::TestWithParam<const char*> {};

TEST_P(KernelText, CompilesWithoutAWarning) {
  const gpu::Compiler* compiler = nullptr;
  try {
    compiler = &gpu::Compiler::get();
  } catch (const CudaError& error) {
    GTEST_SKIP() << error.what();
  }
  for (std::size_t i = 0; i < gpu::program_count; ++i) {
    SCOPED_TRACE(gpu::program_names[i]);
    std::string log;
    const std::string code = compiler->compile(static_cast<gpu::Program>(i), GetParam(), log);
    EXPECT_EQ(log, "");
    EXPECT_GT(code.size(), 300U);  // PTX of a program that other cards have, and this one has not: its head alone
  }
}
INSTANTIATE_TEST_SUITE_P(For, KernelText, testing::Values("sm_80", "sm_90a", "compute_120"),
                         [](const auto& target) { return std::string(target.param); });

TEST(KernelText, IsInPiecesThatEveryCompilerTakes) {
  for (const std::size_t size : {sizeof(gpu::text::common),
                                 sizeof(gpu::text::layers),
                                 sizeof(gpu::text::mixer_layers),
                                 sizeof(gpu::text::state_sums),
                                 sizeof(gpu::text::scan_one),
                                 sizeof(gpu::text::scan),
                                 sizeof(gpu::text::ssd),
                                 sizeof(gpu::text::ssd_scan),
                                 sizeof(gpu::text::formats),
                                 sizeof(gpu::text::tf32),
                                 sizeof(gpu::text::products_tf32),
                                 sizeof(gpu::text::products_fma),
                                 sizeof(gpu::text::activations),
                                 sizeof(gpu::text::mma),
                                 sizeof(gpu::text::products_mma),
                                 sizeof(gpu::text::products_wide),
                                 sizeof(gpu::text::products_double),
                                 sizeof(gpu::text::training),
                                 sizeof(gpu::text::training_loss),
                                 sizeof(gpu::text::training_bf16),
                                 sizeof(gpu::text::training_bf16_blocks),
                                 sizeof(gpu::text::training_bf16_tiles),
                                 sizeof(gpu::text::wgmma_tiles),
                                 sizeof(gpu::text::training_tiles),
                                 sizeof(gpu::text::training_scan),
                                 sizeof(gpu::text::training_products),
                                 sizeof(gpu::text::training_sums),
                                 sizeof(gpu::text::ssd_backward),
                                 sizeof(gpu::text::ssd_backward_sums)}) {
    EXPECT_LT(size, 16U << 10);
  }
}

}  // namespace kernel_text_test
