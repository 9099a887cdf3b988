// CudaBackend where there is no card: what it says about each thing that may be missing, where its kernels come from,
// and that nothing is lost or leaks. The driver and NVRTC are those of support/fake_cuda.cpp; as a process opens them
// once, each case runs in a process of its own.
#include "minimamba/cuda.hpp"
#include "minimamba/io/any_model.hpp"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/fake_cuda.hpp"
#include "support/files.hpp"

namespace {

using namespace minimamba;
using support::FakeCuda;
using support::Folder;

/// Makes the fake driver the one that the library finds, by its name, and its NVRTC that which the environment names.
FakeCuda& fake_driver() {
  void* const library = ::dlopen(FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
  FakeCuda* (*settings)() = nullptr;
  if (library != nullptr) settings = reinterpret_cast<FakeCuda* (*)()>(::dlsym(library, "fake_cuda"));
  if (settings == nullptr) std::abort();
  ::setenv("MINIMAMBA_NVRTC", FAKE_CUDA, 1);
  ::setenv("XDG_CACHE_HOME", "/dev/null", 1);  // nothing is kept
  return *settings();
}

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::_Exit(1);
}
#define REQUIRE(...) require((__VA_ARGS__), #__VA_ARGS__)

int status_of(CudaProblem problem) { return 10 + static_cast<int>(problem); }

[[noreturn]] void end_with(const std::function<void()>& body) {
  try {
    body();
  } catch (const CudaError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::_Exit(status_of(error.problem()));
  }
  std::fprintf(stderr, "no error\n");
  std::_Exit(0);
}
/// `body` runs in a process of its own, and throws a CudaError that has these words.
void expect_problem(CudaProblem problem, const char* words, const std::function<void()>& body) {
  EXPECT_EXIT(end_with(body), testing::ExitedWithCode(status_of(problem)), words);
}
void expect_success(const std::function<void()>& body) {
  EXPECT_EXIT(end_with(body), testing::ExitedWithCode(0), "no error");
}
/// Opening a backend fails.
void expect_refusal(CudaProblem problem, const char* words, const std::function<void(FakeCuda&)>& prepare) {
  expect_problem(problem, words, [&] {
    prepare(fake_driver());
    CudaBackend<float>();
  });
}

TEST(CudaErrors, SayThatThereIsNoDriver) {
  if (std::filesystem::exists("/proc/driver/nvidia") || std::filesystem::exists("/dev/dxg")) {
    GTEST_SKIP() << "this machine has a driver";
  }
  expect_problem(CudaProblem::no_driver,
                 "no NVIDIA driver on this machine.*install the driver.*or use the native backend|does not start",
                 [] { CudaBackend<float>(); });
  expect_success([] { REQUIRE(CudaBackend<float>::devices() == 0); });
}
TEST(CudaErrors, SayThatALibraryIsNoDriver) {
  expect_refusal(CudaProblem::no_driver, "libcuda.so.1 is not a driver of NVIDIA",
                 [](FakeCuda& fake) { fake.version_error = 999; });
}
TEST(CudaErrors, SayThatTheDriverIsTooOld) {
  expect_refusal(CudaProblem::old_driver,
                 "expected a driver for CUDA 11.2 or later, found one for CUDA 11.1: install a newer",
                 [](FakeCuda& fake) { fake.driver_version = 11010; });
}
TEST(CudaErrors, SayThatTheDriverDoesNotStart) {
  expect_refusal(CudaProblem::no_driver, "does not start: a fake error .CUDA_ERROR_FAKE.; nvidia-smi may say more",
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
}
TEST(CudaErrors, ShowWhatNvrtcRefuses) {
  expect_refusal(CudaProblem::compiler, "NVRTC: it cannot compile the kernels \"layers\": line 3: expected a semicolon",
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
    backend.fill({memory.data(), 1, 8}, 1);
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
            require(false, "memory cannot be allocated");
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

std::string target_for(int capability, int newest) {
  std::string target;
  FakeCuda& fake = fake_driver();
  fake.newest_architecture = newest;
  return gpu::Compiler::get().target_for(capability);
}
TEST(CudaKernels, AreCompiledForTheCardOrTheClosestThatNvrtcKnows) {
  const std::vector<std::pair<int, const char*>> expected = {{80, "sm_80"},       {86, "sm_80"},   {89, "sm_80"},
                                                             {90, "sm_90a"},      {100, "sm_100"}, {103, "sm_100"},
                                                             {120, "compute_100"}};
  for (const auto& [capability, target] : expected) {
    expect_success([capability = capability, target = target] { REQUIRE(target_for(capability, 100) == target); });
  }
}

/// Opens a backend and returns how often NVRTC was called.
int compilations(const CudaKernelOptions& options) {
  CudaBackend<float> backend({.kernels = options});
  return fake_driver().compilations;
}
void spoil(const std::filesystem::path& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::string bytes = support::read_text(entry.path());
    bytes.back() ^= 1;
    support::write_text(entry.path(), bytes);
  }
}

TEST(CudaKernels, AreKeptInACacheThatBelongsToTheUser) {
  const Folder folder;
  const CudaKernelOptions options{.cache_folder = folder / "a" / "b"};
  const auto expect_compilations = [&](int expected) {
    expect_success([&] {
      fake_driver();
      REQUIRE(compilations(options) == expected);
    });
  };
  expect_compilations(1);
  struct stat status;
  ASSERT_EQ(::stat(options.cache_folder.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0700U);
  expect_compilations(0);
  spoil(options.cache_folder);
  expect_compilations(1);
  expect_compilations(0);
  ::chmod(options.cache_folder.c_str(), 0770);  // others might have put kernels there
  expect_compilations(1);
  ::chmod(options.cache_folder.c_str(), 0700);
  expect_success([&] {  // code of another driver, which this one does not load, is compiled again
    FakeCuda& fake = fake_driver();
    fake.load_error = 222;
    try {
      compilations(options);
    } catch (const CudaError& error) {
      REQUIRE(error.problem() == CudaProblem::old_driver);
    }
    REQUIRE(fake.compilations == 1);
  });
}

TEST(CudaKernels, AreNotKeptWhereThatIsNotWanted) {
  const Folder folder;
  expect_success([&] {
    fake_driver();
    int said = 0;
    const CudaKernelOptions options{
        .cache = false, .cache_folder = folder / "cache", .on_compile = [&](const std::string& text) {
          ++said;
          REQUIRE(text == "compiling layers for Fake H100 (sm_90a)");
        }};
    REQUIRE(compilations(options) == 1 && said == 1);
  });
  EXPECT_FALSE(std::filesystem::exists(folder / "cache"));
}

/// Files of kernels, compiled before for a target.
void compile_before(const std::string& folder, const std::string& target) {
  expect_success([&] {
    fake_driver();
    compile_cuda_kernels(folder, {target});
  });
}
/// Opens a backend where there is no NVRTC, on a card of a capability.
void open_without_nvrtc(const std::string& folder, int capability, const std::string& loaded) {
  FakeCuda& fake = fake_driver();
  fake.capability = capability;
  ::setenv("MINIMAMBA_NVRTC", "/nowhere", 1);
  REQUIRE(compilations({.cache = false, .compiled = folder}) == 0);
  REQUIRE(fake.loaded == loaded);
}

TEST(CudaKernels, CompiledBeforeNeedNoNvrtc) {
  const Folder folder;
  compile_before(folder / "80", "sm_80");
  compile_before(folder / "90", "sm_90a");
  compile_before(folder / "any", "compute_80");
  expect_success([&] { open_without_nvrtc(folder / "90", 90, "sm_90a"); });
  expect_success([&] { open_without_nvrtc(folder / "80", 80, "sm_80"); });
  expect_success([&] { open_without_nvrtc(folder / "80", 89, "sm_80"); });
  expect_success([&] { open_without_nvrtc(folder / "any", 120, "compute_80"); });
  expect_problem(
      CudaProblem::no_compiler,
      "80: has no kernels of this version of minimamba for sm_90a, and they cannot be compiled now: there is no",
      [&] { open_without_nvrtc(folder / "80", 90, "sm_80"); });
  spoil(folder / "90");
  expect_problem(CudaProblem::no_compiler, "90: has no kernels of this version of minimamba for sm_90a",
                 [&] { open_without_nvrtc(folder / "90", 90, "sm_90a"); });
  expect_success([&] {
    fake_driver();
    REQUIRE(compilations({.cache = false, .compiled = folder / "90"}) == 1);
  });
}

TEST(CudaKernels, CannotBeWrittenBelowAFile) {
  const Folder folder;
  support::write_text(folder / "file", "x");
  EXPECT_EXIT(
      {
        fake_driver();
        try {
          compile_cuda_kernels(folder / "file" / "kernels", {"sm_90a"});
        } catch (const FileError& error) {
          std::fprintf(stderr, "%s\n", error.what());
          std::_Exit(3);
        }
        std::_Exit(0);
      },
      testing::ExitedWithCode(3), "file/kernels: cannot be made: Not a directory");
}

// Programs, which choose the card by its name.

void save_model(const Folder& folder, std::int64_t d_state = 16) {
  save(Mamba<float>({.d_model = 8, .n_layer = 1, .vocab_size = 16, .d_state = d_state}), folder.path());
}
/// The backend of a model, and what it said.
std::string chosen(const Folder& folder, const std::string& wanted) {
  std::string notes;
  const auto model = AnyModel::load(
      folder.path(), {.backend = wanted, .on_note = [&](const std::string& note) { notes += ", " + note; }});
  return model.backend().name() + (" on " + model.device().name) + notes;
}

TEST(AnyModelOnACard, IsLikeOneOnTheProcessor) {
  const Folder folder;
  save_model(folder);
  expect_success([&] {
    fake_driver();
    const AnyModel model = AnyModel::load(folder.path(), {.weights = "q8", .backend = "cuda"});
    REQUIRE(model.device().total_memory == std::size_t{1} << 30);
    auto cache = model.make_cache(2);
    const View<const float> logits = model.forward({1, 2, 3, 4}, cache);
    REQUIRE(logits.rows() == 4 && logits.row(3).size() == 16);
    REQUIRE(cache.position(1) == 2 && cache.memory_bytes() > cache.state_bytes());
    const auto copy = cache.clone();
    REQUIRE(copy.position(0) == 2);
    auto one = model.make_cache();
    const auto result =
        generate(model, one, std::vector<std::int32_t>{1}, {.max_new_tokens = 3, .ignore_eos = true}).collect();
    REQUIRE(result.tokens.size() == 3);
  });
}

TEST(AnyModelOnACard, IsChosenByAutoWhereItFits) {
  const Folder folder, wide;
  save_model(folder);
  save_model(wide, 1025);
  const auto expect_choice = [&](const char* words, const std::function<std::string(FakeCuda&)>& choose) {
    EXPECT_EXIT(end_with([&] { std::fprintf(stderr, "%s\n", choose(fake_driver()).c_str()); }),
                testing::ExitedWithCode(0), words);
  };
  expect_choice("cuda on Fake H100, compiling layers for Fake H100 .sm_90a., compiling",
                [&](FakeCuda&) { return chosen(folder, "auto"); });
  expect_choice("native on CPU, .*computing on the processor: Fake H100: too little memory", [&](FakeCuda& fake) {
    fake.memory = 1000;
    return chosen(folder, "auto");
  });
  expect_choice("native on CPU, computing on the processor: Fake H100: expected a card of compute",
                [&](FakeCuda& fake) {
                  fake.capability = 75;
                  return chosen(folder, "auto");
                });
  expect_choice("native on CPU, .*computing on the processor: MambaConfig.d_state: expected at most 1024",
                [&](FakeCuda&) { return chosen(wide, "auto"); });
  expect_choice("^native on CPU\n", [&](FakeCuda& fake) {  // nothing is wrong with a machine without a card
    fake.init_error = 100;
    return chosen(folder, "auto");
  });
  expect_problem(CudaProblem::no_device, "the driver sees no card", [&] {
    fake_driver().init_error = 100;
    chosen(folder, "cuda");
  });
}

}  // namespace
