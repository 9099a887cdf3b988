// Where the kernels of CudaBackend come from: compiled by NVRTC, from the cache, or made before. The driver and NVRTC
// are those of support/fake_cuda.cpp: see cuda_test.cpp.
#include "minimamba/cuda.hpp"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <future>
#include <iterator>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda_training.hpp"
#include "support/fake_driver.hpp"

namespace kernels_cuda_test {

using namespace minimamba;
using support::expect_problem;
using support::expect_success;
using support::fake_driver;
using support::FakeCuda;
using support::Folder;

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

/// What a backend compiles when it is made: what it needs at once, and what every model needs.
constexpr int of_a_backend = 3;

/// Opens a backend and returns how often NVRTC was called.
int compilations(const CudaKernelOptions& options) {
  { const CudaBackend<float> backend({.kernels = options}); }  // waits for what it has begun
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
  expect_compilations(of_a_backend);
  struct stat status;
  ASSERT_EQ(::stat(options.cache_folder.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0700U);
  expect_compilations(0);
  spoil(options.cache_folder);
  expect_compilations(of_a_backend);
  expect_compilations(0);
  ::chmod(options.cache_folder.c_str(), 0770);  // others might have put kernels there
  expect_compilations(of_a_backend);
  ::chmod(options.cache_folder.c_str(), 0700);
  std::filesystem::rename(options.cache_folder, folder / "elsewhere");
  std::filesystem::create_directory_symlink(folder / "elsewhere", options.cache_folder);
  expect_compilations(of_a_backend);
  std::filesystem::remove(options.cache_folder);
  std::filesystem::rename(folder / "elsewhere", options.cache_folder);
  expect_compilations(0);
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

TEST(CudaKernels, InACacheBelongToTheVersionOfNvrtcThatMadeThem) {
  const Folder folder;
  const CudaKernelOptions options{.cache_folder = folder / "cache"};
  const auto compilations_by = [&](int version) {
    fake_driver().compiler_major = version;
    return compilations(options);
  };
  expect_success([&] { REQUIRE(compilations_by(12) == of_a_backend); });
  expect_success([&] { REQUIRE(compilations_by(13) == of_a_backend); });
  expect_success([&] { REQUIRE(compilations_by(12) == 0); });
  expect_problem(CudaProblem::no_compiler, "there is no NVRTC", [&] {  // which is asked for its version
    fake_driver();
    ::setenv("MINIMAMBA_NVRTC", "/nowhere", 1);
    compilations(options);
  });
}

TEST(CudaKernels, OfDifferentProgramsAreCompiledAtOnce) {
  expect_success([] {
    FakeCuda& fake = fake_driver();
    const CudaBackend<float> backend;
    backend.device().kernels().wait();
    fake.meeting = of_a_backend + 3 + 4;  // each waits until all are being compiled
    std::thread other([&] { backend.make_matrix<q8>(1, 1); });
    backend.make_matrix<float>(1, 1);
    other.join();
    backend.device().kernels().wait();
    REQUIRE(fake.compilations == fake.meeting && fake.complaint == nullptr);
  });
}

TEST(CudaKernels, ThatAModelNeedsAreCompiledAtOnce) {
  expect_success([] {
    FakeCuda& fake = fake_driver();
    fake.cooperative = true;
    int under_way = 0, most = 0, said = 0;
    const CudaBackend<float> backend({.kernels = {.cache = false, .on_compile = [&](const std::string&) {
                                                    most = std::max(most, ++under_way);
                                                    std::this_thread::sleep_for(std::chrono::milliseconds(5));
                                                    --under_way, ++said;
                                                  }}});
    backend.device().kernels().wait();
    fake.meeting = of_a_backend + 3 + 2 + 1;  // products, layers and decoding of bf16
    backend.make_matrix<bf16>(1, 1);
    backend.device().kernels().wait();
    REQUIRE(fake.compilations == fake.meeting && fake.complaint == nullptr);
    REQUIRE(said == fake.meeting && most == 1);  // one call at a time
    backend.make_matrix<bf16>(1, 1);
    REQUIRE(fake.compilations == fake.meeting);
    fake.meeting += 3 + 1 + 1;
    backend.make_matrix<float>(1, 1);
    backend.device().kernels().wait();
    REQUIRE(fake.compilations == fake.meeting && fake.complaint == nullptr);
  });
  expect_success([] {
    FakeCuda& fake = fake_driver();
    const CudaBackend<float> backend;
    backend.device().kernels().wait();
    fake.meeting = of_a_backend + 2;
    const CudaTraining<float> training;
    REQUIRE(fake.compilations == fake.meeting && fake.complaint == nullptr);
  });
}
TEST(CudaKernels, CanBeCompiledAfterACompilationAmongSeveralHasFailed) {
  expect_success([] {
    FakeCuda& fake = fake_driver();
    const CudaBackend<float> backend({.kernels = {.cache = false}});
    backend.device().kernels().wait();
    fake.complaint = "line 3";
    const Mamba<float, CudaBackend, bf16> model({.d_model = 16, .n_layer = 1, .vocab_size = 32}, backend);
    auto cache = model.make_cache();
    const auto is_refused = [&] {
      try {
        model.forward(1, cache);
      } catch (const CudaError& error) {
        return error.problem() == CudaProblem::compiler;
      }
      return false;
    };
    backend.device().on_stream([](gpu::Handle) {});  // what makes a model
    const int before = fake.launches;
    for (int i = 0; i < 12; ++i) REQUIRE(is_refused());  // more often than there are parts
    backend.device().on_stream([](gpu::Handle) {});
    REQUIRE(cache.position() == 0 && fake.launches == before);
    backend.device().kernels().wait();
    fake.complaint = nullptr;
    model.forward(1, cache);  // compiles again what was refused beside what was thrown
    REQUIRE(cache.position() == 1);
  });
}
TEST(CudaKernels, ThatAreRefusedForAWhileStopOneForward) {
  for (const char* const held : {"", "layers_bf16"}) {  // and are refused before the next one begins, or while it waits
    expect_success([held] {
      FakeCuda& fake = fake_driver();
      const CudaBackend<float> backend({.kernels = {.cache = false}});
      backend.device().kernels().wait();
      constexpr int of_products = 3, of_layers = 2;
      const bool holds = held[0] != 0;
      if (holds) fake.held = held;
      fake.complaint = "too little memory";
      const Mamba<float, CudaBackend, bf16> model({.d_model = 16, .n_layer = 1, .vocab_size = 32}, backend);
      auto cache = model.make_cache();
      const int all = of_a_backend + of_products + of_layers;
      while (fake.compilations < all || fake.compiling != (holds ? of_layers : 0)) std::this_thread::yield();
      bool refused = false;
      try {
        model.forward(1, cache);
      } catch (const CudaError& error) {
        refused = std::string(error.what()).find("\"products_mma_0\": too little memory") != std::string::npos;
      }
      REQUIRE(refused && cache.position() == 0);
      fake.complaint = nullptr;
      std::thread other([&] {
        while (fake.compilations < all + of_products) std::this_thread::yield();
        fake.held = nullptr;
      });
      model.forward(1, cache);
      other.join();
      REQUIRE(cache.position() == 1 && fake.compilations == all + of_products + of_layers);
    });
  }
}
/// Reads with a model of weights W while what begin(backend) begins for other models is refused.
template <class W, class Begin>
void expect_to_go_on(const Begin& begin) {
  expect_success([&] {
    FakeCuda& fake = fake_driver();
    const Mamba<float, CudaBackend, W> model({.d_model = 16, .n_layer = 1, .vocab_size = 32});
    auto cache = model.make_cache();
    model.backend().device().kernels().wait();
    fake.complaint = "line 3";
    begin(model.backend());
    model.backend().device().kernels().wait();
    model.forward({1, 2}, cache);
    REQUIRE(cache.position() == 2);
  });
}
TEST(CudaKernels, ThatAreRefusedDoNotStopModelsThatDoNotNeedThem) {
  expect_to_go_on<float>([](const auto& backend) { backend.template make_matrix<q8>(1, 1); });
  expect_to_go_on<float>([](const auto& backend) { backend.template make_matrix<f16>(1, 1); });
  expect_to_go_on<float>([](const auto& backend) { backend.template make_matrix<bf16>(1, 1); });
  expect_to_go_on<bf16>([](const auto& backend) { backend.template make_matrix<float>(1, 1); });
  expect_to_go_on<q4>([](const auto& backend) {  // as a model of bf16 does on Hopper
    backend.device().begin({.program = gpu::Program::products_wide,
                            .kernels = gpu::wide_kernels,
                            .shared_of = gpu::wide_shared_memory,
                            .parts = gpu::wide_parts,
                            .may_lack = true},
                           {});
  });
}
TEST(CudaKernels, OfScansOfManyStatesAreCompiledBeforeAnythingIsChanged) {
  expect_success([] {
    FakeCuda& fake = fake_driver();
    const Mamba<float, CudaBackend> model({.d_model = 16, .n_layer = 1, .vocab_size = 32, .d_state = 32});
    auto cache = model.make_cache();
    model.backend().device().kernels().wait();
    const int before = fake.compilations;
    fake.complaint = "line 3";
    bool refused = false;
    try {
      model.forward({1, 2}, cache);
    } catch (const CudaError& error) {
      refused = std::string(error.what()).find("\"layers_3\": line 3") != std::string::npos;
    }
    REQUIRE(refused && cache.position() == 0 && fake.compilations == before + 1);
    fake.complaint = nullptr;
    model.forward({1, 2}, cache);
    REQUIRE(cache.position() == 2 && fake.compilations == before + 2);
  });
}

TEST(CudaKernels, AreCompiledWhileAProgramGoesOn) {
  expect_success([] {
    FakeCuda& fake = fake_driver();
    fake.held = "layers_1";
    const CudaBackend<float> backend;
    backend.make_matrix<bf16>(1, 1);
    auto memory = backend.allocate<float>(8);
    backend.fill({memory.data(), 1, 8}, 1);
    backend.to_host({memory.data(), 1, 8});
    while (fake.compiling == 0) std::this_thread::yield();
    fake.held = nullptr;
    backend.rms_norm({memory.data(), 1, 8}, {}, 1e-5, {memory.data(), 1, 8});  // waits
  });
}
TEST(CudaKernels, AreCompiledBeforeTheLastUserOfACardIsGone) {
  expect_success([] {
    FakeCuda& fake = fake_driver();
    fake.slow = true;
    { const CudaBackend<float> backend; }
    REQUIRE(fake.compilations == of_a_backend && fake.compiling == 0 && fake.modules == 0);
  });
}
TEST(CudaKernels, AreCompiledBeforeAProgramEnds) {
  const Folder folder;
  EXPECT_EXIT(
      {
        fake_driver().slow = true;
        static const auto* const left = new CudaBackend<float>({.kernels = {.cache_folder = folder / "cache"}});
        std::exit(left->threads());
      },
      testing::ExitedWithCode(1), "");
  const std::filesystem::directory_iterator files(folder / "cache");
  EXPECT_EQ(std::distance(begin(files), end(files)), of_a_backend);
}
TEST(CudaKernels, ThatAreBeingCompiledAreNotCompiledAgain) {
  expect_success([] {
    fake_driver();
    auto& all = gpu::Compilations::get();
    std::promise<void> may_end;
    const auto once = [end = may_end.get_future().share()]() -> gpu::Compiled {
      end.wait();
      return {"code", ""};
    };
    const auto never = []() -> gpu::Compiled { std::abort(); };
    const auto first = all.start("key", once);
    REQUIRE(all.find("key").valid() && !all.find("another").valid());
    const auto second = all.start("key", never);
    may_end.set_value();
    REQUIRE(first.get().code == "code" && second.get().code == "code");
    REQUIRE(!all.find("key").valid());
    REQUIRE(all.start("key", [] { return gpu::Compiled{"other", ""}; }).get().code == "other");
  });
}
TEST(CudaKernels, AreKeptBySeveralProcessesAtOnce) {
  const Folder folder;
  const CudaKernelOptions options{.cache_folder = folder / "cache"};
  expect_success([&] {
    fake_driver().slow = true;
    const pid_t other = ::fork();
    REQUIRE(compilations(options) == of_a_backend);
    if (other == 0) std::_Exit(0);
    int status = 0;
    REQUIRE(::waitpid(other, &status, 0) == other && status == 0);
  });
  expect_success([&] {
    fake_driver();
    REQUIRE(compilations(options) == 0);
  });
}

TEST(CudaKernels, AreKeptInAFolderWhoseNameEndsInASlash) {
  const Folder folder;
  const CudaKernelOptions options{.cache_folder = (folder / "cache").string() + "/"};
  for (const int expected : {of_a_backend, 0}) {
    expect_success([&] {
      fake_driver();
      REQUIRE(compilations(options) == expected);
    });
  }
}
TEST(CudaKernels, AreKeptDespiteWhatAKilledProgramLeft) {
  const Folder folder;
  const auto path = (folder / "kernels").string();
  support::write_text(path + "." + std::to_string(::getpid()) + ".tmp", "half");  // of the same number, in a container
  EXPECT_TRUE(gpu::KernelCache::write(path, "key", "code"));
  EXPECT_EQ(gpu::KernelCache::read(path, "key"), "code");
  EXPECT_EQ(gpu::KernelCache::read(path, "another key"), std::nullopt);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  EXPECT_EQ(gpu::KernelCache::read(path, "key"), std::nullopt);
}

TEST(CudaKernels, AreNotKeptWhereThatIsNotWanted) {
  const Folder folder;
  expect_success([&] {
    fake_driver();
    int said = 0;
    const CudaKernelOptions options{
        .cache = false, .cache_folder = folder / "cache", .on_compile = [&](const std::string& text) {
          ++said;
          REQUIRE(text.starts_with("compiling layers_") && text.ends_with(" for Fake H100 (sm_90a)"));
        }};
    REQUIRE(compilations(options) == of_a_backend && said == of_a_backend);
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
    REQUIRE(compilations({.cache = false, .compiled = folder / "90"}) == of_a_backend);
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
          support::leave(3);
        }
        support::leave(0);
      },
      testing::ExitedWithCode(3), "file/kernels: cannot be made: Not a directory");
}

}  // namespace kernels_cuda_test
