// A driver and an NVRTC without a card, for tests: see fake_cuda.cpp. A process opens them once, so each case runs in a
// process of its own. Linux only.
#ifndef MINIMAMBA_TESTS_FAKE_DRIVER_HPP
#define MINIMAMBA_TESTS_FAKE_DRIVER_HPP

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <functional>

#include "minimamba/backend/cuda/driver.hpp"
#include "support/fake_cuda.hpp"
#include "support/files.hpp"
#include "support/leave.hpp"

namespace support {

/// Makes the fake driver the one that the library finds, by its name, and its NVRTC that which the environment names.
inline FakeCuda& fake_driver() {
  void* const library = ::dlopen(FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
  FakeCuda* (*settings)() = nullptr;
  if (library != nullptr) settings = reinterpret_cast<FakeCuda* (*)()>(::dlsym(library, "fake_cuda"));
  if (settings == nullptr) std::abort();
  ::setenv("MINIMAMBA_NVRTC", FAKE_CUDA, 1);
  ::setenv("XDG_CACHE_HOME", "/dev/null", 1);  // nothing is kept
  return *settings();
}

/// Whether this machine has a driver of its own.
inline bool has_driver() {
  for (const char* const name : {"libcuda.so.1", "libcuda.so", "/usr/lib/wsl/lib/libcuda.so.1"}) {
    if (::dlopen(name, RTLD_NOW | RTLD_LOCAL) != nullptr) return true;
  }
  return false;
}

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "not so: %s\n", what);
  leave(1);
}
#define REQUIRE(...) support::require((__VA_ARGS__), #__VA_ARGS__)

inline int status_of(minimamba::CudaProblem problem) { return 10 + static_cast<int>(problem); }

[[noreturn]] inline void end_with(const std::function<void()>& body) {
  try {
    body();
  } catch (const minimamba::CudaError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    leave(status_of(error.problem()));
  }
  std::fprintf(stderr, "no error\n");
  leave(0);
}
/// `body` runs in a process of its own, and throws a CudaError that has these words.
inline void expect_problem(minimamba::CudaProblem problem, const char* words, const std::function<void()>& body) {
  EXPECT_EXIT(end_with(body), testing::ExitedWithCode(status_of(problem)), words);
}
inline void expect_success(const std::function<void()>& body) {
  EXPECT_EXIT(end_with(body), testing::ExitedWithCode(0), "no error");
}

}  // namespace support

#endif
