// Where the kernels of CudaBackend come from: compiled by NVRTC, from the cache, or made before. The driver and NVRTC
// are those of support/fake_cuda.cpp: see cuda_test.cpp.
#include "minimamba/cuda.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
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
  std::filesystem::rename(options.cache_folder, folder / "elsewhere");
  std::filesystem::create_directory_symlink(folder / "elsewhere", options.cache_folder);
  expect_compilations(1);
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
  expect_success([&] { REQUIRE(compilations_by(12) == 1); });
  expect_success([&] { REQUIRE(compilations_by(13) == 1); });
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
    const CudaBackend<float> backend;  // compiles those that every model needs
    fake.meeting = 3;
    std::thread other([&] { backend.make_matrix<q8>(1, 1); });
    backend.make_matrix<float>(1, 1);
    other.join();
    REQUIRE(fake.compilations == 3 && fake.complaint == nullptr);
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
    fake.meeting = 4;  // each waits until all are being compiled
    backend.make_matrix<bf16>(1, 1);
    REQUIRE(fake.compilations == 4 && fake.complaint == nullptr);  // products, layers and decoding of bf16
    REQUIRE(said == 4 && most == 1);                               // one call at a time
    backend.make_matrix<bf16>(1, 1);
    REQUIRE(fake.compilations == 4);
    fake.meeting = 6;
    backend.make_matrix<float>(1, 1);
    REQUIRE(fake.compilations == 6 && fake.complaint == nullptr);
  });
  expect_success([] {
    FakeCuda& fake = fake_driver();
    const CudaBackend<float> backend;
    fake.meeting = 3;
    const CudaTraining<float> training;
    REQUIRE(fake.compilations == 3 && fake.complaint == nullptr);
  });
}
TEST(CudaKernels, ThatAreCompiledAtOnceThrowWhenAllHaveEnded) {
  int ended = 0;
  const auto refuse = [] { throw CudaError(CudaProblem::compiler, "NVRTC", "first"); };
  const auto end = [&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    ++ended;
  };
  EXPECT_THROW(gpu::at_once(refuse, end), CudaError);
  EXPECT_EQ(ended, 1);
}
TEST(CudaKernels, CanBeCompiledAfterACompilationAmongSeveralHasFailed) {
  expect_success([] {
    FakeCuda& fake = fake_driver();
    const CudaBackend<float> backend({.kernels = {.cache = false}});
    fake.complaint = "line 3";
    bool refused = false;
    try {
      backend.make_matrix<bf16>(1, 1);
    } catch (const CudaError& error) {
      refused = error.problem() == CudaProblem::compiler;
    }
    fake.complaint = nullptr;
    const Mamba<float, CudaBackend, bf16> model({.d_model = 16, .n_layer = 1, .vocab_size = 32}, backend);
    REQUIRE(refused);
  });
}

TEST(CudaKernels, AreKeptInAFolderWhoseNameEndsInASlash) {
  const Folder folder;
  const CudaKernelOptions options{.cache_folder = (folder / "cache").string() + "/"};
  for (const int expected : {1, 0}) {
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

}  // namespace kernels_cuda_test
