// CudaBackend where there is no card: what it says about each thing that may be missing, and that nothing is lost or
// leaks. The driver and NVRTC are those of support/fake_cuda.cpp; as a process opens them once, each case runs in a
// process of its own.
#include "minimamba/cuda.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/fake_driver.hpp"

namespace cuda_test {

using namespace minimamba;
using support::expect_problem;
using support::expect_success;
using support::fake_driver;
using support::FakeCuda;
using support::Folder;

/// Opening a backend fails.
void expect_refusal(CudaProblem problem, const char* words, const std::function<void(FakeCuda&)>& prepare) {
  expect_problem(problem, words, [&] {
    prepare(fake_driver());
    CudaBackend<float>();
  });
}

TEST(CudaErrors, SayThatThereIsNoDriver) {
  if (support::has_driver()) GTEST_SKIP() << "this machine has a driver";
  expect_problem(CudaProblem::no_driver,
                 "no NVIDIA driver on this machine.*install the driver.*or use the native backend",
                 [] { CudaBackend<float>(); });
  expect_success([] { REQUIRE(CudaBackend<float>::devices() == 0); });
}
TEST(CudaErrors, SayThatALibraryIsNoDriver) {
  expect_refusal(CudaProblem::broken_driver, "libcuda.so.1 is not a driver of NVIDIA",
                 [](FakeCuda& fake) { fake.version_error = 999; });
}
TEST(CudaErrors, SayThatTheDriverIsTooOld) {
  expect_refusal(CudaProblem::old_driver,
                 "expected a driver for CUDA 11.2 or later, found one for CUDA 11.1: install a newer",
                 [](FakeCuda& fake) { fake.driver_version = 11010; });
}
TEST(CudaErrors, SayThatTheDriverDoesNotStart) {
  expect_refusal(CudaProblem::broken_driver, "does not start: a fake error .CUDA_ERROR_FAKE.; nvidia-smi may say more",
                 [](FakeCuda& fake) { fake.init_error = 999; });
}
TEST(CudaErrors, SayThatThereIsNoCard) {
  expect_refusal(CudaProblem::no_device, "the driver sees no card: .*CUDA_VISIBLE_DEVICES",
                 [](FakeCuda& fake) { fake.init_error = 100; });
  expect_refusal(CudaProblem::no_device, "there is no card number 0: the driver sees 0 ",
                 [](FakeCuda& fake) { fake.cards = 0; });
  expect_problem(CudaProblem::no_device, "there is no card number 7: the driver sees 2 ", [] {
    fake_driver().cards = 2;
    REQUIRE(CudaBackend<float>::devices() == 2);
    CudaBackend<float>({.device = 7});
  });
}
TEST(CudaErrors, SayThatTheCardIsTooOld) {
  expect_refusal(CudaProblem::old_device,
                 "Fake H100: expected a card of compute capability 8.0 or later .Ampere., found 7.5",
                 [](FakeCuda& fake) { fake.capability = 75; });
}
TEST(CudaErrors, SayThatNvrtcIsMissing) {
  expect_refusal(
      CudaProblem::no_compiler,
      "no NVRTC of CUDA 13 or 12, which compiles the kernels ./nowhere/libnvrtc.so cannot be opened.: install the",
      [](FakeCuda&) { ::setenv("MINIMAMBA_NVRTC", "/nowhere/libnvrtc.so", 1); });
  expect_refusal(CudaProblem::no_compiler, "expected NVRTC of CUDA 12 or 13, found another library",
                 [](FakeCuda&) { ::setenv("MINIMAMBA_NVRTC", "libm.so.6", 1); });
  expect_refusal(CudaProblem::no_compiler, "expected NVRTC of CUDA 12 or 13, found that of CUDA 11.9",
                 [](FakeCuda& fake) { fake.compiler_major = 11; });
}
TEST(CudaErrors, ShowWhatNvrtcRefuses) {
  expect_refusal(CudaProblem::compiler,
                 "NVRTC: it cannot compile the kernels \"layers_0\": line 3: expected a semicolon",
                 [](FakeCuda& fake) { fake.complaint = "line 3: expected a semicolon"; });
}
TEST(CudaErrors, SayThatNvrtcIsNewerThanTheDriver) {
  for (const int error : {200, 209, 222}) {
    expect_refusal(CudaProblem::old_driver, "loading the kernels failed: .*older than NVRTC.*install a newer driver",
                   [error](FakeCuda& fake) { fake.load_error = error; });
  }
  expect_refusal(CudaProblem::kernel, "loading the kernels failed: a fake error",
                 [](FakeCuda& fake) { fake.load_error = 999; });
}
TEST(CudaErrors, SayWhichCallFailed) {
  expect_problem(CudaProblem::kernel, "CUDA: starting a kernel failed: a fake error", [] {
    FakeCuda& fake = fake_driver();
    const CudaBackend<float> backend;
    auto memory = backend.allocate<float>(8);
    fake.launch_error = 1;
    backend.fill({memory.data(), 1, 8}, 1);  // may be queued
    backend.to_host({memory.data(), 1, 8});
  });
}
TEST(CudaErrors, SayThatAKernelWasLostForLackOfMemory) {
  expect_problem(CudaProblem::kernel, "CUDA: starting a kernel failed: a fake error", [] {
    FakeCuda& fake = fake_driver();
    const CudaBackend<float> backend;
    auto memory = backend.allocate<float>(8);
    fake.launch_error = 2;  // not CudaProblem::memory, which loses nothing
    backend.fill({memory.data(), 1, 8}, 1);
    backend.to_host({memory.data(), 1, 8});
  });
}
TEST(CudaErrors, OfAKernelThatIsStartedWhereMemoryIsFreedAppearLater) {
  expect_problem(CudaProblem::kernel, "CUDA: starting a kernel failed: a fake error", [] {
    FakeCuda& fake = fake_driver();
    const CudaBackend<float> backend;
    auto memory = backend.allocate<float>(8);
    std::optional<CudaBuffer<float>> other(backend.allocate<float>(8));
    backend.fill({memory.data(), 1, 8}, 1);
    fake.launch_error = 1;
    other.reset();  // starts what is queued
    fake.launch_error = 0;
    backend.to_host({memory.data(), 1, 8});
  });
}
TEST(CudaErrors, OfAKernelRemainUntilAllThatUsesTheCardIsGone) {
  expect_success([] {
    FakeCuda& fake = fake_driver();
    const auto reads_a_token = [&](int launch_error) {
      const Mamba<float, CudaBackend> model({.d_model = 16, .n_layer = 1, .vocab_size = 32}, CudaBackend<float>());
      auto cache = model.make_cache();
      fake.launch_error = launch_error;
      const auto fails = [&](auto&& call) {
        try {
          call();
          return false;
        } catch (const CudaError& error) {
          return error.problem() == CudaProblem::kernel;
        }
      };
      const bool failed = fails([&] { model.backend().to_host(model.forward(1, cache)); });
      fake.launch_error = 0;
      REQUIRE(failed == fails([&] { model.backend().to_host(cache.slot(0)); }));
      REQUIRE(failed == fails([&] { model.make_cache(); }));
      return !failed;
    };
    REQUIRE(reads_a_token(0));
    REQUIRE(!reads_a_token(1));
    REQUIRE(reads_a_token(0));
  });
}
TEST(CudaErrors, OfAKernelAppearAtTheNextDownload) {
  expect_problem(
      CudaProblem::kernel, "kernel or transfer failed: an illegal memory access.*CUDA_ERROR_ILLEGAL_ADDRESS", [] {
        FakeCuda& fake = fake_driver();
        const Mamba<float, CudaBackend> model({.d_model = 16, .n_layer = 1, .vocab_size = 32}, CudaBackend<float>());
        auto cache = model.make_cache();
        fake.wait_error = 700;
        const auto logits = model.forward(1, cache);  // is queued
        try {
          model.backend().to_host(logits);
        } catch (const CudaError&) {
          try {  // every call after it fails too, and no destructor does
            model.make_cache();
            support::require(false, "memory cannot be allocated");
          } catch (const CudaError& error) {
            REQUIRE(error.problem() == CudaProblem::kernel);
          }
          throw;
        }
      });
}
TEST(CudaErrors, SayHowMuchMemoryIsMissing) {
  expect_problem(CudaProblem::memory, "Fake H100: too little memory for 2048 MiB more: 10.. MiB of 1024 MiB are free",
                 [] {
                   fake_driver();
                   CudaBackend<float>().allocate<float>(std::size_t{1} << 29);
                 });
  expect_problem(CudaProblem::memory, "too little memory", [] {
    FakeCuda& fake = fake_driver();
    const Mamba<float, CudaBackend> model({.d_model = 16, .n_layer = 1, .vocab_size = 32}, CudaBackend<float>());
    auto cache = model.make_cache();
    model.forward({1, 2, 3}, cache);
    fake.memory = fake.allocated + 1000;
    try {
      model.forward(std::vector<std::int32_t>(5000), cache);
    } catch (const CudaError&) {
      REQUIRE(cache.position() == 3);
      model.forward({1, 2, 3}, cache);
      REQUIRE(cache.position() == 6);
      throw;
    }
  });
}

TEST(Cuda, RefusesMoreStatesThanItsScanTakesBeforeAnythingIsComputed) {
  const MambaConfig config{.d_model = 16, .n_layer = 1, .vocab_size = 32, .d_state = 1025};
  try {
    S6<float, CudaBackend>(config.resolved());
    ADD_FAILURE() << "1025 states were accepted";
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "MambaConfig.d_state: expected at most 1024 states on this backend, found 1025");
  }
  const MambaConfig largest{.d_model = 16, .n_layer = 1, .vocab_size = 32, .d_state = 1024};
  EXPECT_NO_THROW((S6<float, CudaBackend>(largest.resolved())));
  EXPECT_NO_THROW(S6<float>(config.resolved()));
  const Mamba2Config second{.d_model = 64, .n_layer = 1, .vocab_size = 32, .d_state = 1025};
  EXPECT_THROW((SSD<float, CudaBackend>(second.resolved())), ConfigError);
  EXPECT_NO_THROW(SSD<float>(second.resolved()));
}

TEST(Cuda, NamesTheCardAndItsMemory) {
  expect_success([] {
    fake_driver();
    const CudaBackend<float> backend;
    REQUIRE(backend.device_name() == "Fake H100");
    REQUIRE(backend.total_memory() == std::size_t{1} << 30);
    const auto memory = backend.allocate<std::byte>(1 << 20);
    REQUIRE(backend.free_memory() <= backend.total_memory() - (1 << 20));
  });
}

TEST(Cuda, TransfersMoreThanAPieceOfPinnedMemory) {
  expect_success([] {
    fake_driver();
    const CudaBackend<float> backend;
    std::vector<float> values(5'000'000), back(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
    auto memory = backend.allocate<float>(values.size());
    backend.upload(values, memory.data());
    backend.download(memory.data(), back);
    REQUIRE(values == back);
  });
}

TEST(Cuda, UploadsValuesOfEverySize) {
  expect_success([] {
    fake_driver();
    const CudaBackend<float> backend;
    const std::vector<char> values = {1, 2, 3, 4, 5, 6, 7};
    std::vector<char> back(values.size());
    auto memory = backend.allocate<char>(values.size());
    backend.upload(values, memory.data());
    backend.download(memory.data(), back);
    REQUIRE(values == back);
  });
}

TEST(Cuda, DownloadsValuesOfEverySize) {
  expect_success([] {
    fake_driver();
    const CudaBackend<float> backend;
    for (const std::size_t size : {1U, 768U, 769U, 5000U}) {  // up to 768 are sent by a kernel
      std::vector<float> values(size), back(size);
      for (std::size_t i = 0; i < size; ++i) values[i] = static_cast<float>(i) + 1;
      auto memory = backend.allocate<float>(size);
      gpu::Device::open(0)->upload(values.data(), size * sizeof(float), gpu::address(memory.data()));
      backend.download(memory.data(), back);
      REQUIRE(values == back);
    }
  });
}

TEST(Cuda, MemoryAndMatricesSurviveAMoveToThemselves) {
  expect_success([] {
    const FakeCuda& fake = fake_driver();
    const CudaBackend<float> backend;
    const std::size_t before = fake.allocated;
    auto memory = backend.allocate<float>(8);
    auto matrix = backend.make_matrix<float>(3, 5);
    auto& same_memory = memory;
    auto& same_matrix = matrix;
    const std::size_t bytes = matrix.bytes(), allocated = fake.allocated;
    const float* const there = memory.data();
    memory = std::move(same_memory);
    matrix = std::move(same_matrix);
    REQUIRE(memory.size() == 8 && memory.data() == there);
    REQUIRE(matrix.rows() == 3 && matrix.cols() == 5 && matrix.bytes() == bytes && matrix.weights().data != 0);
    REQUIRE(fake.allocated == allocated);
    memory = backend.allocate<float>(16);
    matrix = backend.make_matrix<float>(0, 0);
    REQUIRE(memory.size() == 16 && matrix.rows() == 0 && matrix.bytes() == 0);
    REQUIRE(fake.allocated < allocated && fake.allocated > before);
  });
}

/// A product of so many rows that one grid cannot have a block for each eight of them.
template <class Scalar, class Weight>
void multiply_many_rows(Activations activations) {
  constexpr std::size_t rows = 65535 * 8 + 1;
  fake_driver().memory = std::size_t{1} << 40;  // it only counts
  const CudaBackend<Scalar> backend({.activations = activations});
  auto x = backend.template allocate<Scalar>(rows), y = backend.template allocate<Scalar>(rows),
       sum = backend.template allocate<Scalar>(rows);
  const auto weight = backend.template make_matrix<Weight>(1, 1);
  backend.reserve_matmul(rows, weight);
  backend.matmul({x.data(), rows, 1}, weight, {y.data(), rows, 1});
  backend.add({y.data(), rows, 1}, {sum.data(), rows, 1});
  backend.to_host({y.data(), 1, 1});
}
TEST(Cuda, MultipliesAnyNumberOfRows) {
  for (const Activations activations : {Activations::rounded, Activations::exact}) {
    expect_success([=] { multiply_many_rows<float, float>(activations); });
    expect_success([=] { multiply_many_rows<float, f16>(activations); });
    expect_success([=] { multiply_many_rows<float, bf16>(activations); });
    expect_success([=] { multiply_many_rows<float, q8>(activations); });
    expect_success([=] { multiply_many_rows<float, q4>(activations); });
    expect_success([=] { multiply_many_rows<double, double>(activations); });
    expect_success([=] { multiply_many_rows<double, q4>(activations); });
  }
}

TEST(Cuda, RunsOtherKernelsOnAnyNumberOfRowsSequencesAndGroups) {
  expect_success([] {
    fake_driver();
    const CudaBackend<float> backend;
    constexpr std::size_t many = 70'000;
    auto x = backend.allocate<float>(many), y = backend.allocate<float>(many), z = backend.allocate<float>(2 * many);
    const View<float> tall{x.data(), many, 1}, wide{x.data(), 1, many};
    backend.fill(tall, 1);
    backend.copy(tall, {y.data(), many, 1});
    backend.add(tall, {y.data(), many, 1});
    backend.negative_exp(tall, {y.data(), many, 1});
    backend.rms_norm(tall, {}, 1e-5, {y.data(), many, 1});
    const auto sequences = uniform_segments(many, 1);
    backend.causal_conv1d({.segments = sequences,
                           .x = tall,
                           .weight = {z.data(), 1, 2},
                           .bias = {},
                           .window = {{z.data(), many, 1}, 1},
                           .y = {y.data(), many, 1}});
    backend.gated_rms_norm({.x = wide,
                            .z = wide,
                            .weight = {z.data(), 1, many},
                            .groups = many,
                            .epsilon = 1e-5,
                            .y = {y.data(), 1, many}});
    backend.to_host({y.data(), 1, 1});
  });
}

TEST(Cuda, ReplaysListsOfKernelsUnlessMemoryIsShort) {
  expect_success([] {
    FakeCuda& fake = fake_driver();
    {
      const Mamba<float, CudaBackend> model({.d_model = 16, .n_layer = 1, .vocab_size = 32}, CudaBackend<float>());
      auto cache = model.make_cache();
      const auto read = [&] {
        const int before = fake.launches;
        model.backend().to_host(model.forward(1, cache));
        return fake.launches - before;
      };
      read();
      const int all = read();
      fake.graph_error = 2;
      REQUIRE(read() == all && fake.graphs == 0);
      fake.graph_error = 0;
      REQUIRE(read() < all && read() < all && fake.graphs == 1);
    }
    REQUIRE(fake.graphs == 0);
  });
}

TEST(Cuda, BeginsALongListThatItKnowsBeforeAllOfItIsRecorded) {
  expect_success([] {
    FakeCuda& fake = fake_driver();
    const Mamba<float, CudaBackend> model({.d_model = 16, .n_layer = 16, .vocab_size = 32}, CudaBackend<float>());
    auto cache = model.make_cache(2);
    const auto read = [&] {
      const std::size_t before = model.backend().device().replayed();
      model.backend().to_host(model.forward({1, 2}, cache));
      return model.backend().device().replayed() - before;
    };
    read(), read();
    REQUIRE(read() == 1);  // the whole list has become a graph
    read();                // its two parts are seen for the first time
    REQUIRE(read() == 2 && read() == 2 && fake.graphs == 3);
    const int before = fake.launches;
    REQUIRE(read() == 2 && fake.launches - before == 1);  // the upload of the tokens
  });
}

TEST(Cuda, KeepsWhatLongListsBeginWithWhileTheyAreInUse) {
  expect_success([] {
    fake_driver();
    const Mamba<float, CudaBackend> model({.d_model = 16, .n_layer = 16, .vocab_size = 32}, CudaBackend<float>());
    const auto replays = [&](auto& cache) {
      const std::size_t before = model.backend().device().replayed();
      model.backend().to_host(model.forward({1, 2}, cache));
      return model.backend().device().replayed() - before;
    };
    auto cache = model.make_cache(2);
    while (replays(cache) < 2) {
    }
    std::vector<decltype(model.make_cache(2))> others;
    for (int i = 0; i < 70; ++i) {  // more than are kept
      others.push_back(model.make_cache(2));
      replays(others.back()), replays(others.back());
      REQUIRE(replays(cache) == 2);
    }
  });
}

TEST(Cuda, GivesEverythingBackInAnyOrder) {
  expect_success([] {
    FakeCuda& fake = fake_driver();
    for (const bool cache_first : {false, true}) {
      using Model = Mamba<float, CudaBackend, q8>;
      const MambaConfig config{.d_model = 16, .n_layer = 1, .vocab_size = 32};
      std::optional<CudaBackend<float>> backend(std::in_place);
      std::optional<Model> model(std::in_place, config, *backend);
      std::optional<Model::Cache> cache(model->make_cache(3));
      model->backend().to_host(model->forward({1, 2, 3}, *cache));
      const auto copy = cache->clone();
      backend.reset();
      if (cache_first) cache.reset();
      model.reset();
      cache.reset();
      REQUIRE(fake.allocated > 0 && fake.contexts == 1);
    }
    REQUIRE(fake.allocated == 0 && fake.pinned == 0);
    REQUIRE(fake.contexts == 0 && fake.streams == 0 && fake.events == 0 && fake.modules == 0);
  });
}

}  // namespace cuda_test
