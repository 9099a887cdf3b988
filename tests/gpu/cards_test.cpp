// Ranks with a card each, on real cards; with one card alone, two ranks use it, and the memory of the host.
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda_training.hpp"
#include "minimamba/distributed/cards.hpp"
#include "minimamba/distributed/data_parallel.hpp"
#include "minimamba/nn/ssd.hpp"
#include "minimamba/train.hpp"
#include "support/ranks.hpp"

namespace cards_test {

using namespace minimamba;
using support::on_ranks;

template <class Model>
class RanksOfCards : public testing::Test {
 public:
  static constexpr int ranks = 2;
  static int cards() { return CudaBackend<float>::devices(); }

  static Trainer<Model> make(std::int64_t micro_batches, int device, Products products) {
    std::vector<std::int32_t> tokens(3000);
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * i % 47);
    typename Model::Config config;
    config.d_model = 64;
    config.n_layer = 3;
    config.vocab_size = 50;
    if constexpr (requires { config.head_dim; }) config.head_dim = 32;
    return {Model(config, CudaTraining<float>({.device = device, .products = products}), 3),
            std::move(tokens),
            {.batch = 2,
             .length = 48,
             .micro_batches = micro_batches,
             .seed = 5,
             .schedule = {.max_lr = 1e-2, .min_lr = 1e-3, .warmup_steps = 2, .steps = 4},
             .tape = {.dropout = 0.1}}};
  }
  static std::vector<std::uint32_t> bits_of(const Model& model) {
    std::vector<std::uint32_t> bits;
    for_each_parameter(
        [&](std::string_view, const auto& parameter) {
          std::vector<float> values(parameter.size());
          parameter.download(model.backend(), 0, {values.data(), parameter.rows(), parameter.cols()});
          for (const float x : values) bits.push_back(std::bit_cast<std::uint32_t>(x));
        },
        model);
    return bits;
  }

  template <class Links, class Open>
  void expect_bits(std::int64_t micro_batches, Products products, DataParallelOptions how, Open&& open) {
    auto alone = make(micro_batches, 0, products);
    while (!alone.ended()) alone.step();
    const auto expected = bits_of(alone.model());
    how.check_every = 2;
    on_ranks<ThreadRanks>(ranks, [&](std::size_t rank, const ThreadRanks& comm) {
      auto trainer = make(micro_batches, static_cast<int>(rank) % cards(), products);
      DataParallel together(CardRanks<ThreadRanks, Links>(comm, open(comm, trainer.model().backend().device())), how);
      while (!trainer.ended()) trainer.step(together);
      if (how.reduction == Reduction::sum) return;
      EXPECT_EQ(expected, bits_of(trainer.model())) << micro_batches << " micro-batches, rank " << rank;
    });
  }
  template <class Links, class Open>
  void expect_all_bits(Open&& open) {
    for (const std::int64_t micro_batches : {2, 3, 4}) {
      expect_bits<Links>(micro_batches, Products::f32, {}, open);
      expect_bits<Links>(micro_batches, Products::bf16, {.divide_moments = true}, open);
    }
    expect_bits<Links>(2, Products::f32, {.reduction = Reduction::sum}, open);
  }
};
using Models = testing::Types<Mamba<float, CudaTraining>, Mamba<float, CudaTraining, float, SSD>>;
TYPED_TEST_SUITE(RanksOfCards, Models);

TYPED_TEST(RanksOfCards, HaveTheBitsOfOneThroughTheMemoryOfTheHost) {
  if (this->cards() == 0) GTEST_SKIP() << "no NVIDIA card";
  this->template expect_all_bits<NcclLinks>(
      [](const ThreadRanks&, const gpu::Device&) { return std::shared_ptr<const NcclLinks>(); });
}
TYPED_TEST(RanksOfCards, HaveTheBitsOfOneOverNccl) {
  if (this->cards() < this->ranks) GTEST_SKIP() << "a single NVIDIA card, or none";
  try {
    gpu::Nccl::get();
  } catch (const LinkError& error) {
    GTEST_SKIP() << error.what();
  }
  this->template expect_all_bits<NcclLinks>(
      [](const ThreadRanks& here, const gpu::Device& device) { return NcclLinks::open(here, device); });
}
TYPED_TEST(RanksOfCards, HaveTheBitsOfOneByCopiesOfTheDriver) {
  if (this->cards() < this->ranks) GTEST_SKIP() << "a single NVIDIA card, or none";
  this->template expect_all_bits<PeerLinks>(
      [](const ThreadRanks& here, const gpu::Device& device) { return PeerLinks::open(here, device); });
}

}  // namespace cards_test
