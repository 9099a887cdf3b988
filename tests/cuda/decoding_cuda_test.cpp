// The translation of a step of one token into one kernel: which lists it takes, and with which memory. The driver is
// that of support/fake_cuda.cpp, so nothing is computed here; tests/gpu compares bits.
#include "minimamba/backend/cuda/decoding.hpp"

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/cuda.hpp"
#include "minimamba/generate/last_logits.hpp"
#include "support/fake_driver.hpp"

namespace decoding_cuda_test {

using namespace minimamba;
using support::expect_success;
using support::fake_driver;
using support::FakeCuda;

static_assert(sizeof(gpu::DecodeLayer) == 160 && sizeof(gpu::DecodeArguments) == 392);  // as in decode.cuh

FakeCuda& fake_with_grids() {
  FakeCuda& fake = fake_driver();
  fake.cooperative = true;
  return fake;
}
MambaConfig small() { return {.d_model = 64, .n_layer = 2, .vocab_size = 40}; }

/// How many of four equal steps were one kernel: the list of the first holds more, the second is seen for the first
/// time.
template <class Model>
std::size_t decoded(const Model& model, std::int64_t batch = 1) {
  auto cache = model.make_cache(batch);
  const std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch), 3);
  model.backend().device().kernels().wait();  // graphs do it until then
  for (int i = 0; i < 4; ++i) model.backend().to_host(model.forward(tokens, cache));
  return model.backend().device().decoded();
}
template <class W>
void expect_decoded(std::size_t expected, MambaConfig config, std::int64_t batch = 1, CudaOptions options = {}) {
  expect_success([&] {
    fake_with_grids();
    const Mamba<float, CudaBackend, W> model(config, CudaBackend<float>(options));
    REQUIRE(decoded(model, batch) == expected);
  });
}

TEST(CudaDecoding, TakesAStepThatWasSeenBeforeInEveryFormat) {
  expect_decoded<float>(2, small());
  expect_decoded<f16>(2, small());
  expect_decoded<bf16>(2, small());
  expect_decoded<q8>(2, small());
  expect_decoded<q4>(2, small());
}
TEST(CudaDecoding, TakesShapesThatPeopleRun) {
  MambaConfig config{.d_model = 2560, .n_layer = 1, .vocab_size = 40};
  expect_decoded<bf16>(2, config);
  config.d_model = 768;
  config.tie_embeddings = false;
  expect_decoded<float>(2, config);
}
TEST(CudaDecoding, NeedsRoomForWhatBlocksExchange) {
  const auto fits = [](std::size_t format, std::uint32_t channels, std::size_t processors = 132) {
    gpu::DecodeProgram program{.format = format, .arguments = {}, .layers = {gpu::DecodeLayer()}};
    program.arguments.width = 8, program.arguments.channels = channels;
    program.arguments.rank = 1, program.arguments.states = 16;
    return gpu::arrange(program, {.shared_bytes = 231424, .processors = processors});
  };
  EXPECT_TRUE(fits(4, 32));  // u and y of q4 are sent in whole blocks
  EXPECT_FALSE(fits(4, 48));
  EXPECT_TRUE(fits(3, 8));
  EXPECT_TRUE(fits(0, 4096, 16));  // u of 256 channels of a block is multiplied where it is computed
  EXPECT_FALSE(fits(0, 4096, 15));
  EXPECT_TRUE(fits(2, 4096, 15));
}
TEST(CudaDecoding, LeavesOtherStepsToGraphs) {
  MambaConfig config = small();
  expect_decoded<float>(0, config, 2);
  expect_decoded<bf16>(0, config, 1, {.activations = Activations::exact});
  config.d_conv = 3;
  expect_decoded<float>(0, config);
  config = small();
  config.d_state = 32;
  expect_decoded<float>(0, config);
  config = small();
  config.bias = true;
  expect_decoded<float>(0, config);
  config = small();
  config.dt_b_c_rms = true;
  expect_decoded<float>(0, config);
  expect_success([] {
    fake_with_grids();
    REQUIRE(decoded(Mamba<double, CudaBackend>(small())) == 0);
  });
  expect_success([] {
    fake_with_grids();
    const Mamba<float, CudaBackend, float, SSD> model(Mamba2Config{.d_model = 64, .n_layer = 1, .vocab_size = 40});
    REQUIRE(decoded(model) == 0);
  });
}
TEST(CudaDecoding, NeedsACardThatStartsGridsAtOnce) {
  for (const bool old : {false, true}) {
    expect_success([old] {
      FakeCuda& fake = fake_driver();
      fake.cooperative = old;
      if (old) fake.capability = 80;
      const Mamba<float, CudaBackend> model(small());
      REQUIRE(decoded(model) == 0 && model.backend().device().replayed() == 2);
    });
  }
}
TEST(CudaDecoding, GivesWayToGraphsWhereTheGridDoesNotFit) {
  expect_success([] {
    FakeCuda& fake = fake_with_grids();
    fake.cooperative_error = 720;
    {
      const Mamba<float, CudaBackend> model(small());
      REQUIRE(decoded(model) == 0 && model.backend().device().replayed() == 2 && fake.graphs == 1);
    }
    REQUIRE(fake.allocated == 0 && fake.graphs == 0);
  });
}
TEST(CudaDecoding, GoesOnForOtherModelsWhereTheGridOfOneDoesNotFit) {
  expect_success([] {
    FakeCuda& fake = fake_with_grids();
    {
      fake.cooperative_error = 720;
      const Mamba<float, CudaBackend> model(small());
      REQUIRE(decoded(model) == 0 && model.backend().device().replayed() == 2);
      fake.cooperative_error = 0;
      MambaConfig other = small();
      other.d_model = 128;
      const std::size_t of_other = decoded(Mamba<float, CudaBackend>(other));
      REQUIRE(of_other >= 2 && decoded(Mamba<float, CudaBackend, bf16>(small())) >= of_other + 2);
    }
    REQUIRE(fake.allocated == 0 && fake.graphs == 0);
  });
}
TEST(CudaDecoding, GoesOnAsGraphsUntilItsKernelIsCompiled) {
  expect_success([] {
    FakeCuda& fake = fake_with_grids();
    fake.held = "decode_";
    {
      MambaConfig config = small();
      config.n_layer = 16;  // whose graphs are divided
      const Mamba<float, CudaBackend, bf16> model(config);
      auto cache = model.make_cache();
      const auto read = [&] { model.backend().to_host(model.forward(1, cache)); };
      for (int i = 0; i < 8; ++i) read();
      const auto& device = model.backend().device();
      REQUIRE(device.decoded() == 0 && device.replayed() > 4 && fake.compiling == 1 && fake.graphs > 0);
      fake.held = nullptr;
      device.kernels().wait();
      for (int i = 0; i < 5; ++i) read();
      REQUIRE(device.decoded() >= 4 && fake.graphs == 0);
    }
    REQUIRE(fake.allocated == 0 && fake.graphs == 0 && fake.modules == 0);
  });
}
TEST(CudaDecoding, GivesWayToGraphsIfItsKernelIsRefused) {
  expect_success([] {
    FakeCuda& fake = fake_with_grids();
    fake.held = "decode_";
    const Mamba<float, CudaBackend, q8> model(small());
    auto cache = model.make_cache();
    model.forward(1, cache);
    fake.complaint = "line 3";
    fake.held = nullptr;
    REQUIRE(decoded(model) == 0 && model.backend().device().replayed() > 0);
    fake.complaint = nullptr;
    REQUIRE(decoded(Mamba<float, CudaBackend>(small())) >= 2);  // other formats have kernels of their own
  });
}
TEST(CudaDecoding, GivesItsMemoryBack) {
  expect_success([] {
    FakeCuda& fake = fake_with_grids();
    decoded(Mamba<float, CudaBackend, q8>(small()));
    REQUIRE(fake.grids == 2 && fake.allocated == 0 && fake.graphs == 0);
  });
}

TEST(CudaDecoding, KnowsTheMemoryOfAllLayers) {
  expect_success([] {
    FakeCuda& fake = fake_with_grids();
    const Mamba<float, CudaBackend, q8> model(small());
    decoded(model);
    gpu::DecodeArguments p;
    std::memcpy(&p, fake.arguments, sizeof(p));
    REQUIRE(p.layer_count == 2 && p.width == 64 && p.channels == 128 && p.rank == 4 && p.states == 16);
    REQUIRE(p.last == 0 && p.choice == 0);
    REQUIRE(p.slots >= 15 && p.on_the_way > 0 && (p.slots % 15 == 0 || p.slots >= 15 + p.on_the_way));
    REQUIRE(p.ring_at + p.slots * p.slot_bytes <= 232448 - 1024 && p.ring_at % 128 == 0);
    const auto same = [](const gpu::Weights& a, const gpu::Weights& b) {
      return a.data == b.data && a.rows == b.rows && a.cols == b.cols;
    };
    REQUIRE(same(p.embedding, model.embedding.weight.packed().weights()) && same(p.head, p.embedding));
    std::vector<gpu::DecodeLayer> layers(2);
    std::memcpy(layers.data(), reinterpret_cast<const void*>(static_cast<std::uintptr_t>(p.layers)), 320);
    for (std::size_t i = 0; i < 2; ++i) {
      const auto& mixer = model.layers[i].mixer;
      REQUIRE(same(layers[i].in_proj, mixer.in_proj.weight.packed().weights()));
      REQUIRE(same(layers[i].x_proj, mixer.x_proj.weight.packed().weights()));
      REQUIRE(same(layers[i].dt_proj, mixer.dt_proj.weight.packed().weights()));
      REQUIRE(same(layers[i].out_proj, mixer.out_proj.weight.packed().weights()));
      REQUIRE(layers[i].norm == gpu::address(model.layers[i].norm.weight.view().data()));
      REQUIRE(layers[i].a == gpu::address(mixer.A.view().data()) && layers[i].d == gpu::address(mixer.D.view().data()));
      REQUIRE(layers[i].delta_bias == gpu::address(mixer.dt_proj.bias.view().data()));
    }
    REQUIRE(layers[0].h != layers[1].h && layers[0].windows != layers[1].windows);
  });
}
TEST(CudaDecoding, ChoosesTheLargestLogitInTheSameKernel) {
  expect_success([] {
    FakeCuda& fake = fake_with_grids();
    const Mamba<float, CudaBackend> model(small());
    model.backend().device().kernels().wait();
    auto cache = model.make_cache();
    Sampler sampler({}, 40);
    detail::LastLogits<CudaBackend<float>> last;
    int launches = 0;
    for (int i = 0; i < 4; ++i) {
      launches = fake.launches;
      last.take(model.backend(), model.forward_last({1}, cache), sampler);
      last.choose(sampler, 0);
    }
    gpu::DecodeArguments p;
    std::memcpy(&p, fake.arguments, sizeof(p));
    REQUIRE(fake.grids == 2 && p.choice != 0 && p.last != 0 && fake.launches - launches == 1);  // the token's upload
  });
}
template <class W>
void expect_division() {
  expect_success([] {
    FakeCuda& fake = fake_with_grids();
    MambaConfig config = small();
    config.n_layer = 17;
    {
      const Mamba<float, CudaBackend, W> model(config);
      model.backend().device().kernels().wait();
      auto cache = model.make_cache();
      const auto read = [&] {
        const int launches = fake.launches, grids = fake.grids;
        model.backend().to_host(model.forward(1, cache));
        return std::pair(fake.launches - launches, fake.grids - grids);
      };
      read(), read();
      REQUIRE(read() == std::pair(1, 1));  // a whole step; the launch is the upload of the token
      REQUIRE(read().second == 0);         // its parts are seen for the first time
      REQUIRE(read() == std::pair(1, 2) && read() == std::pair(1, 2));
      gpu::DecodeArguments first, second;
      std::memcpy(&first, fake.before, sizeof(first));
      std::memcpy(&second, fake.arguments, sizeof(second));
      REQUIRE(first.layer_count == 2 && second.layer_count == 15);
      REQUIRE(first.token != 0 && second.token == 0 && first.embedding.rows == 40);
      REQUIRE(first.head.rows == 0 && first.norm != 0 && first.logits == 0 && second.head.rows == 40);
      REQUIRE(first.x == second.x && first.width == 64 && second.width == 64);
      REQUIRE(first.tag + first.layer_count < second.tag);
      gpu::DecodeLayer third;
      std::memcpy(&third, reinterpret_cast<const void*>(static_cast<std::uintptr_t>(second.layers)), sizeof(third));
      REQUIRE(third.in_proj.data == model.layers[2].mixer.in_proj.weight.packed().weights().data);
      model.backend().device().set_decoding(false);
      REQUIRE(read() == std::pair(1, 0) && fake.graphs == 2);  // as graphs
    }
    REQUIRE(fake.allocated == 0 && fake.graphs == 0);
  });
}
TEST(CudaDecoding, BeginsALongStepBeforeAllOfItIsRecorded) {
  expect_division<float>();
  expect_division<bf16>();
  expect_division<q8>();
  expect_division<q4>();
}
TEST(CudaDecoding, ClearsWhatBlocksExchangeBeforeTagsRecur) {
  expect_success([] {
    FakeCuda& fake = fake_with_grids();
    MambaConfig config = small();
    config.n_layer = 7;
    const Mamba<float, CudaBackend> model(config);
    model.backend().device().kernels().wait();
    auto cache = model.make_cache();
    std::uint32_t before = 0, begun = 0;
    for (int i = 0; i < 66'000 / 8; ++i) {
      const int cleared = fake.cleared;
      model.backend().to_host(model.forward(1, cache));
      if (i < 3) continue;
      gpu::DecodeArguments p;
      std::memcpy(&p, fake.arguments, sizeof(p));
      REQUIRE(p.tag > 0 && p.tag + p.layer_count <= 0xFFFF);
      REQUIRE(p.tag > before || fake.cleared == cleared + 1);
      begun += p.tag < before;
      before = p.tag + p.layer_count;
    }
    REQUIRE(begun == 1);
  });
}
TEST(CudaDecoding, ClearsWhatBlocksExchangeWhenWordsOfFourBytesHaveOtherPlaces) {
  expect_success([] {
    const FakeCuda& fake = fake_with_grids();
    MambaConfig larger = small();
    larger.d_model = 128;
    const Mamba<float, CudaBackend, bf16> model(small()), draft(larger);
    const Mamba<float, CudaBackend> exact(small()), other(larger);
    model.backend().device().kernels().wait();
    auto of_model = model.make_cache(), of_draft = draft.make_cache();
    auto of_exact = exact.make_cache(), of_other = other.make_cache();
    const auto clears = [&](const auto& reader, auto& cache) {
      const int before = fake.cleared;
      reader.backend().to_host(reader.forward(1, cache));
      return fake.cleared - before;
    };
    for (int i = 0; i < 4; ++i) {
      clears(model, of_model), clears(draft, of_draft), clears(exact, of_exact), clears(other, of_other);
    }
    const std::size_t decoded = model.backend().device().decoded();
    REQUIRE(clears(model, of_model) == 1 && clears(model, of_model) == 0);
    REQUIRE(clears(draft, of_draft) == 1 && clears(draft, of_draft) == 0);
    REQUIRE(clears(exact, of_exact) == 0 && clears(other, of_other) == 0);
    REQUIRE(clears(draft, of_draft) == 1);
    REQUIRE(model.backend().device().decoded() == decoded + 7);
  });
}
TEST(CudaDecoding, TagsDoNotRecur) {
  expect_success([] {
    FakeCuda& fake = fake_with_grids();
    const Mamba<float, CudaBackend> model(small());
    model.backend().device().kernels().wait();
    auto cache = model.make_cache();
    std::uint32_t before = 0;
    for (int i = 0; i < 4; ++i) {
      model.backend().to_host(model.forward(1, cache));
      if (i < 2) continue;
      gpu::DecodeArguments p;
      std::memcpy(&p, fake.arguments, sizeof(p));
      REQUIRE(p.tag > before);
      before = p.tag + p.layer_count;
    }
  });
}

}  // namespace decoding_cuda_test
