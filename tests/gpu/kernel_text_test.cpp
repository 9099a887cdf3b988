// All kernel text compiles for each generation of cards without a word from the compiler; for the newest to PTX, as
// for cards that are newer than the compiler. This needs no card.
#include <gtest/gtest.h>

#include <span>
#include <string>
#include <vector>

#include "minimamba/backend/cuda/nvrtc.hpp"
#include "minimamba/backend/cuda/memory.hpp"
#include "minimamba/backend/cuda/training_split.hpp"

namespace kernel_text_test {

using namespace minimamba;

/// Kernels, and the parts that have them.
struct Group {
  gpu::Program program;
  std::span<const char* const> kernels;
  std::span<const gpu::PartBegin> parts;
};
const std::vector<Group> groups = {{gpu::Program::layers, gpu::layer_kernels, gpu::layer_parts},
                                   {gpu::Program::layers_double, gpu::layer_kernels, gpu::layer_parts},
                                   {gpu::Program::layers_bf16, gpu::bf16_layer_kernels, gpu::bf16_layer_parts},
                                   {gpu::Program::products_tf32, gpu::tf32_kernels, gpu::tf32_parts},
                                   {gpu::Program::products_mma, gpu::mma_kernels, gpu::mma_parts},
                                   {gpu::Program::products_q8, gpu::q8_kernels, gpu::mma_parts},
                                   {gpu::Program::products_q4, gpu::q4_kernels, gpu::mma_parts},
                                   {gpu::Program::products_wide, gpu::wide_kernels, gpu::wide_parts},
                                   {gpu::Program::training_split, gpu::split_kernels, gpu::split_parts}};
/// The code of a part, for a card, has its kernels and no others of the group.
void expect_kernels(const gpu::Unit& unit, const std::string& code) {
  for (const Group& group : groups) {
    if (group.program != unit.program) continue;
    for (std::size_t i = 0; i < group.kernels.size(); ++i) {
      std::size_t part = 0;
      for (const gpu::PartBegin& begin : group.parts) part = i >= begin.kernel ? begin.part : part;
      const std::string section = std::string(".text.") + group.kernels[i] + '\0';
      EXPECT_EQ(code.find(section) != std::string::npos, part == unit.part) << group.kernels[i];
    }
  }
}

class KernelText : public testing::TestWithParam<const char*> {};

TEST_P(KernelText, CompilesWithoutAWarning) {
  const gpu::Compiler* compiler = nullptr;
  try {
    compiler = &gpu::Compiler::get();
  } catch (const CudaError& error) {
    GTEST_SKIP() << error.what();
  }
  for (std::size_t i = 0; i < gpu::program_count; ++i) {
    for (std::size_t part = 0; part < gpu::parts_of(static_cast<gpu::Program>(i)); ++part) {
      const gpu::Unit unit{static_cast<gpu::Program>(i), part};
      SCOPED_TRACE(unit.name());
      std::string log;
      const std::string code = compiler->compile(unit, GetParam(), log);
      EXPECT_EQ(log, "");
      if (std::string(GetParam()) == "sm_90a") expect_kernels(unit, code);
      EXPECT_GT(code.size(), 300U);  // PTX of a program that other cards have, and this one has not: its head alone
    }
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
                                 sizeof(gpu::text::products_some),
                                 sizeof(gpu::text::products_conv),
                                 sizeof(gpu::text::products_double),
                                 sizeof(gpu::text::training),
                                 sizeof(gpu::text::training_loss),
                                 sizeof(gpu::text::training_bf16),
                                 sizeof(gpu::text::training_bf16_blocks),
                                 sizeof(gpu::text::training_bf16_tiles),
                                 sizeof(gpu::text::wgmma_tiles),
                                 sizeof(gpu::text::training_wgmma),
                                 sizeof(gpu::text::training_split),
                                 sizeof(gpu::text::training_tiles),
                                 sizeof(gpu::text::training_scan),
                                 sizeof(gpu::text::training_products),
                                 sizeof(gpu::text::training_sums),
                                 sizeof(gpu::text::decode_exchange),
                                 sizeof(gpu::text::decode_units),
                                 sizeof(gpu::text::decode_products),
                                 sizeof(gpu::text::decode_block),
                                 sizeof(gpu::text::decode_parts),
                                 sizeof(gpu::text::decode),
                                 sizeof(gpu::text::wgmma),
                                 sizeof(gpu::text::ssd_backward),
                                 sizeof(gpu::text::ssd_backward_sums)}) {
    EXPECT_LT(size, 16U << 10);
  }
}

}  // namespace kernel_text_test
