// Where the code of the kernels comes from: files that were compiled before, the cache, or NVRTC.
#ifndef MINIMAMBA_BACKEND_CUDA_KERNEL_CODE_HPP
#define MINIMAMBA_BACKEND_CUDA_KERNEL_CODE_HPP

#include <array>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <future>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda/compiler.hpp"
#include "minimamba/backend/cuda/kernel_cache.hpp"
#include "minimamba/core/error.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// How kernels are made ready. Kernels that are loaded once serve all backends of the process.
struct CudaKernelOptions {
  bool cache = true;              // keep compiled kernels in a folder, for the next start
  std::string cache_folder = {};  // the user's cache folder if empty; must belong to the user alone, or it is not used
  std::string compiled = {};      // a folder that compile_cuda_kernels has filled: NVRTC is then not needed
  /// Called before each compilation, which takes seconds; one call at a time, but by any thread, as several groups of
  /// kernels are compiled at once.
  std::function<void(const std::string&)> on_compile = {};
};

namespace gpu {

/// What identifies the code of a program: the kernels' text, the target, and how it was compiled.
inline std::string key_of(Program program, const std::string& target, const std::string& by) {
  std::string key = "minimamba " + target + " NVRTC" + by;
  for (const char* option : compiler_options) key += std::string(" ") + option;
  return key + "\n" + text_of(program);
}

/// Files that compile_cuda_kernels makes.
class CompiledKernels {
 public:
  explicit CompiledKernels(std::string folder) : folder_(std::move(folder)) {}

  std::string path_of(Program program, const std::string& target) const {
    return folder_ + "/" + program_names[static_cast<std::size_t>(program)] + "." + target + ".kernels";
  }
  /// The code that a card of this capability runs: compiled for the card, for an older one of its generation, or PTX.
  std::optional<std::string> find(Program program, int capability) const {
    if (folder_.empty()) return std::nullopt;
    for (int known = capability; known >= capability / 10 * 10; --known) {
      if (auto code = read(program, binary_target(known))) return code;
    }
    for (int known = capability; known >= oldest_capability; --known) {
      if (auto code = read(program, portable_target(known))) return code;
    }
    return std::nullopt;
  }
  /// Throws FileError.
  void store(Program program, const std::string& target, const std::string& code) const {
    const std::string path = path_of(program, target);
    if (!KernelCache::write(path, key_of(program, target, ""), code)) throw FileError(path, "cannot be written");
  }

 private:
  std::optional<std::string> read(Program program, const std::string& target) const {
    return KernelCache::read(path_of(program, target), key_of(program, target, ""));
  }
  std::string folder_;
};

/// Throws CudaError, which also says that kernels compiled before were wanted and are missing.
inline const Compiler& compiler_for(const CudaKernelOptions& options, int capability) {
  try {
    return Compiler::get();
  } catch (const CudaError& error) {
    if (options.compiled.empty()) throw;
    throw CudaError(error.problem(), options.compiled,
                    "has no kernels of this version of minimamba for " + binary_target(capability) +
                        ", and they cannot be compiled now: " + error.found());
  }
}

/// Makes all these calls at once, each in a thread of its own while there are any, and throws what the first of those
/// that threw has thrown, when all have ended.
template <class... Calls>
void at_once(const Calls&... calls) {
  const auto start = [](const auto& call) {
    try {
      return std::async(std::launch::async, std::cref(call));
    } catch (const std::system_error&) {  // there is no thread to be had
      return std::async(std::launch::deferred, std::cref(call));
    }
  };
  std::array<std::future<void>, sizeof...(Calls)> started = {start(calls)...};
  for (auto& call : started) call.get();
}

/// Calls on_compile, one thread after the other.
inline void say(const CudaKernelOptions& options, const std::string& text) {
  static std::mutex one_at_a_time;
  if (!options.on_compile) return;
  const std::lock_guard lock(one_at_a_time);
  options.on_compile(text);
}

/// The code of a program for a card: the first that loads(code) accepts of what was compiled before and what the cache
/// has, or else compiled now. Throws CudaError.
template <class Loads>
std::string code_of(Program program, int capability, const std::string& card, const CudaKernelOptions& options,
                    Loads&& loads) {
  if (auto found = CompiledKernels(options.compiled).find(program, capability); found && loads(*found)) {
    return *std::move(found);
  }
  const Compiler& compiler = compiler_for(options, capability);
  const std::string target = compiler.target_for(capability);
  const std::string key = key_of(program, target, " " + std::to_string(compiler.version()));
  const KernelCache cache(options.cache_folder);
  if (options.cache) {
    if (auto found = cache.find(key); found && loads(*found)) return *std::move(found);
  }
  const std::string name = program_names[static_cast<std::size_t>(program)];
  say(options, "compiling " + name + " for " + card + " (" + target + ")");
  std::string log;
  std::string code = compiler.compile(program, target, log);
  if (options.cache) cache.store(key, code);
  return code;
}

}  // namespace gpu

/// Compiles all kernels for each of the targets, such as "sm_90a", or "compute_90" for PTX, which cards of that
/// generation and later ones can run, and writes them into a folder for CudaKernelOptions::compiled. It needs NVRTC and
/// no card; programs that get the folder then need no NVRTC. Files serve the version of minimamba that made them.
/// Throws CudaError and FileError.
inline void compile_cuda_kernels(const std::string& folder, const std::vector<std::string>& targets) {
  const gpu::Compiler& compiler = gpu::Compiler::get();
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw FileError(folder, "cannot be made: " + error.message());
  for (const std::string& target : targets) {
    for (std::size_t i = 0; i < gpu::program_count; ++i) {
      std::string log;
      const auto program = static_cast<gpu::Program>(i);
      gpu::CompiledKernels(folder).store(program, target, compiler.compile(program, target, log));
    }
  }
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
