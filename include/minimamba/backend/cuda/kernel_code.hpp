// Where the code of the kernels comes from: files that were compiled before, the cache, or NVRTC.
#ifndef MINIMAMBA_BACKEND_CUDA_KERNEL_CODE_HPP
#define MINIMAMBA_BACKEND_CUDA_KERNEL_CODE_HPP

#include <cstddef>
#include <filesystem>
#include <functional>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda/compilations.hpp"
#include "minimamba/backend/cuda/nvrtc.hpp"
#include "minimamba/backend/cuda/kernel_cache.hpp"
#include "minimamba/core/error.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// How kernels are made ready. Kernels that are loaded once serve all backends of the process.
struct CudaKernelOptions {
  bool cache = true;              // keep compiled kernels in a folder, for the next start
  std::string cache_folder = {};  // the user's cache folder if empty; must belong to the user alone, or it is not used
  std::string compiled = {};      // a folder that compile_cuda_kernels has filled: NVRTC is then not needed
  /// Called before each compilation, which takes seconds in a thread of its own, as several groups of kernels are
  /// compiled at once: one call at a time, by the thread that makes a backend or a model, or first uses it.
  std::function<void(const std::string&)> on_compile = {};
};

namespace gpu {

/// What identifies the code of kernels: their text, the target, and how it was compiled.
inline std::string key_of(const Unit& unit, const std::string& target, const std::string& by) {
  std::string key = "minimamba " + target + " NVRTC" + by;
  for (const char* option : compiler_options) key += std::string(" ") + option;
  return key + "\n" + text_of(unit);
}

/// Files that compile_cuda_kernels makes.
class CompiledKernels {
 public:
  explicit CompiledKernels(std::string folder) : folder_(std::move(folder)) {}

  std::string path_of(const Unit& unit, const std::string& target) const {
    return folder_ + "/" + unit.name() + "." + target + ".kernels";
  }
  /// The code that a card of this capability runs: compiled for the card, for an older one of its generation, or PTX.
  std::optional<std::string> find(const Unit& unit, int capability) const {
    if (folder_.empty()) return std::nullopt;
    for (int known = capability; known >= capability / 10 * 10; --known) {
      if (auto code = read(unit, binary_target(known))) return code;
    }
    for (int known = capability; known >= oldest_capability; --known) {
      if (auto code = read(unit, portable_target(known))) return code;
    }
    return std::nullopt;
  }
  /// Throws FileError.
  void store(const Unit& unit, const std::string& target, const std::string& code) const {
    const std::string path = path_of(unit, target);
    if (!KernelCache::write(path, key_of(unit, target, ""), code)) throw FileError(path, "cannot be written");
  }

 private:
  std::optional<std::string> read(const Unit& unit, const std::string& target) const {
    return KernelCache::read(path_of(unit, target), key_of(unit, target, ""));
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

/// Calls on_compile, one thread after the other.
inline void say(const CudaKernelOptions& options, const std::string& text) {
  static std::mutex one_at_a_time;
  if (!options.on_compile) return;
  const std::lock_guard lock(one_at_a_time);
  options.on_compile(text);
}

/// Where code comes from, in the order in which it is looked for.
enum class Origin { compiled_before, cache, compiler };
struct KernelCode {
  Origin origin = Origin::compiled_before;
  CompiledLater compiled = {};
};
struct Card {
  int capability = 0;
  std::string name;
};

/// Compiles, and keeps the code for the next start. `text` alone tells why it failed, as this may be another thread.
inline Compiled compile_and_keep(const Unit& unit, const std::string& target, const std::string& key,
                                 const KernelCache* cache) {
  Compiled compiled;
  try {
    try {
      std::string log;
      compiled.code = Compiler::get().compile(unit, target, log);
      if (cache != nullptr) cache->store(key, compiled.code);
    } catch (const CudaError& error) {
      compiled.refusal = error.found();
    }
  } catch (const std::bad_alloc&) {      // of the text of a refusal, too
    compiled.refusal = "out of memory";  // which is short enough to need none
  }
  return compiled;
}

/// The code of kernels for a card, of the first origin from `from` on that has it. If they must be compiled, that goes
/// on in another thread when this returns. Throws CudaError if there is no compiler.
inline KernelCode code_of(const Unit& unit, const Card& card, const CudaKernelOptions& options, Origin from) {
  if (from == Origin::compiled_before) {
    if (auto found = CompiledKernels(options.compiled).find(unit, card.capability)) {
      return {Origin::compiled_before, compiled_already(*std::move(found))};
    }
  }
  const Compiler& compiler = compiler_for(options, card.capability);
  const std::string target = compiler.target_for(card.capability);
  const std::string key = key_of(unit, target, " " + std::to_string(compiler.version()));
  const KernelCache cache(options.cache_folder);
  if (options.cache && from != Origin::compiler) {
    if (auto found = cache.find(key)) return {Origin::cache, compiled_already(*std::move(found))};
  }
  const std::string what = key + "\n" + (options.cache ? cache.folder() : "");
  if (CompiledLater found = Compilations::get().find(what); found.valid()) return {Origin::compiler, std::move(found)};
  say(options, "compiling " + unit.name() + " for " + card.name + " (" + target + ")");
  return {Origin::compiler, Compilations::get().start(what, [=, keeps = options.cache] {
            return compile_and_keep(unit, target, key, keeps ? &cache : nullptr);
          })};
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
      const auto program = static_cast<gpu::Program>(i);
      for (std::size_t part = 0; part < gpu::parts_of(program); ++part) {
        std::string log;
        gpu::CompiledKernels(folder).store({program, part}, target, compiler.compile({program, part}, target, log));
      }
    }
  }
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
